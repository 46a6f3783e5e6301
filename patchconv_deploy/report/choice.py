"""Why a plan was taken and no other, in a sentence."""

from __future__ import annotations

from math import inf

from patchconv_deploy.report.text import with_unit
from patchconv_deploy.rewriters.options import MOST_SPLITS, Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.choose import Goal
from patchconv_deploy.rewriters.planning.offers import MARGIN

__all__ = ["choice_of"]


def choice_of(outcome: Outcome, options: Options) -> str:
    """Return why a plan was taken, its options as in Python; empty where nothing was cut.

    Args:
        outcome: What was done.
        options: What was asked for.
    """
    if not outcome.rewritten:
        return ""
    if options.plan is not None:
        return "it was given with plan=; nothing was searched"
    if options.patch_rows is not None:
        rows = f"patch_rows={options.patch_rows}"
        return f"{rows} asks for patches of this height, in the regions of least memory"
    if outcome.goal is None:
        return (
            "single Convs were asked for (form=, include= or min_elements=); nothing was searched"
        )
    count = len(outcome.weighed)
    if outcome.goal.least == "time":
        limits = _limits(options, outcome.goal)
        return f"of {count} plans weighed the fastest, as predicted, that keeps {limits}"
    return (
        f"of {count} plans weighed, {_bounds(outcome.goal)}, the one of least memory that is worth "
        "its time; of nearly equal ones the plainest form"
    )


def _limits(options: Options, goal: Goal) -> str:
    """Return the limits that were asked for, in words."""
    found = []
    if options.memory_budget is not None:
        budget = with_unit(options.memory_budget)
        found.append(f"the budget of {budget}, less {MARGIN:.0%} for the prediction's error")
    if options.max_buffer is not None:
        found.append(f"every tensor at {with_unit(options.max_buffer)} or less")
    if options.max_tensor_elements is not None or not found:
        found.append("every tensor within the elements it may have")
    return ", ".join(filter(None, [" and ".join(found), _bounds(goal)]))


def _bounds(goal: Goal) -> str:
    """Return how many patches and how much work a plan might take; empty without a limit."""
    found = []
    if goal.splits < MOST_SPLITS:
        found.append(f"at most {goal.splits} patches a region")
    if goal.recompute < inf:
        found.append(f"at most {goal.recompute:g}x the work")
    return " and ".join(found)
