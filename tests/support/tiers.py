"""Two tiers of one property: part of the cases in every run, all of them with the slow tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from patchconv_deploy.rewriters.planning import effort

__all__ = ["examples", "slow", "weighing_less"]


def examples(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrise a test with ``examples``: how many it draws, in either tier.

    The draws are derandomised, so each tier always sees the same ones; the slow tier adds rarer
    combinations of the same property, never another property.

    Args:
        few: By default; enough that a planted fault of the property is found.
        many: In the slow tier.
    """
    return pytest.mark.parametrize("examples", [few, slow(many)])


def slow(*values: object) -> Any:
    """Return a set of a test's parameters that is run in the slow tier alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


@contextmanager
def weighing_less() -> Iterator[None]:
    """Weigh fewer plans: for tests of what is written, which holds whichever plan is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "_EFFORT", 2_000)
        yield
