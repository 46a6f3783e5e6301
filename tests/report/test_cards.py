"""What stands beside the figures of a page's head, and what is to be known of a verification."""

from __future__ import annotations

import pytest

from patchconv_deploy.report.page.cards import _times_less
from patchconv_deploy.report.warnings import doubt_of
from patchconv_deploy.verify.verification import Verification


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (598.0, 254.0, "2.4 times less"),
        (7.2, 6.8, "6 % less"),
        (100.0, 70.0, "30 % less"),
        (100.0, 120.0, "20 % more"),
        (289.0, 486.0, "1.7 times more"),
        (100.0, 99.5, "about the same"),
        (None, 3.0, ""),
        (3.0, None, ""),
    ],
)
def test_what_is_less(before: float | None, after: float | None, said: str) -> None:
    """Small differences in percent, large ones in times."""
    assert _times_less(before, after) == said


@pytest.mark.parametrize(
    ("seed", "said"), [(0, "on seeded inputs;"), (None, "on the inputs that were given;")]
)
def test_outputs_that_say_little_are_told_with_the_inputs(seed: int | None, said: str) -> None:
    """Whoever gave inputs is not told that they were seeded."""
    output = {"dtype": "float32", "faint": True}
    assert said in doubt_of(Verification(True, True, seed=seed, outputs=(output,)))
