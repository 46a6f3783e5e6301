"""Two tiers of one property: a few examples in every run, and many among the slow tests."""

from __future__ import annotations

import pytest


def examples(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrise a test with ``examples``: how many it draws, in either tier.

    The draws are derandomised, so each tier always sees the same ones; the slow tier adds rarer
    combinations of the same property, never another property.

    Args:
        few: By default; enough that a planted fault of the property is found.
        many: In the slow tier.
    """
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
