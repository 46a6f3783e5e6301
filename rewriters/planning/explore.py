"""Which plans of a model are weighed.

That depends on the model, the axis, the engine and the forms, and not on a budget or a limit on
work. Those are answered from what was weighed: a larger budget never takes longer, and each point
of the curve is met by a budget. Plans of few patches come first, level by level, and a limit on
patches ends that early: what is weighed under it is the beginning of what is weighed without, so
that leave to take more patches is never worse.

    search   what the search finds for ever other budgets (`planning.budget_search`)
    polish   plans near the best of these, in other numbers of patches (`planning.refit`)
    forms    the best of these in every form, and what is near them

The effort is bounded (`planning.effort`).
"""

from __future__ import annotations

from dataclasses import replace

from patchconv_deploy.rewriters.planning.budget_search import search_budgets
from patchconv_deploy.rewriters.planning.evaluated_plan import pareto_front
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.planning.refit import polish
from patchconv_deploy.rewriters.planning.stages import patch_counts
from patchconv_deploy.rewriters.planning.weighed_plans import OTHER_FORMS, WeighedPlans

__all__ = ["explore", "explore_next"]


# Most patches of each level, and its share of the effort: most where people ask for so many.
_LEVELS = (
    *((2, 0.03), (3, 0.03), (4, 0.2), (5, 0.02), (6, 0.03), (8, 0.15), (10, 0.03), (12, 0.03)),
    *((14, 0.02), (16, 0.15), (32, 0.1), (64, 0.1), (patch_counts(1 << 30)[-1], 0.3)),
)

# Of a level's effort, so much is for the search; what the search leaves, and the rest, for plans
# near the best.
_SEARCHED = 0.5


def explore(
    weighed: WeighedPlans, splits: int = _LEVELS[-1][0], progress: Progress | None = None
) -> None:
    """Weigh plans, level by level, until the effort is spent or there are no more.

    Args:
        weighed: Takes the plans; levels that it has are not weighed again.
        splits: Patches up to which levels are weighed; the last one may go beyond.
        progress: Called with (what, done, total) from time to time.
    """
    if progress is not None:
        weighed.effort.progress = progress
    wanted, below = [], weighed.limits.splits
    for most, share in _levels_above(below):
        if below >= splits:
            break
        wanted.append((most, share))
        below = most
    weighed.effort.expect(sum(share for _, share in wanted))
    for most, share in wanted:
        weighed.limits = replace(weighed.limits, splits=most)
        _explore_level(weighed, weighed.effort.give(share))


def explore_next(weighed: WeighedPlans, progress: Progress | None = None) -> bool:
    """Weigh the plans of one level more; tell whether there was one."""
    above = _levels_above(weighed.limits.splits)
    if above:
        explore(weighed, above[0][0], progress)
    return bool(above)


def _levels_above(splits: int) -> list[tuple[int, float]]:
    return [level for level in _LEVELS if level[0] > splits]


def _explore_level(weighed: WeighedPlans, given: float) -> None:
    search_budgets(weighed, given * (1 - _SEARCHED))
    polish(weighed, given * OTHER_FORMS)
    for form in weighed.forms[::-1]:
        for plan in pareto_front(weighed.by_time())[::-1]:
            if weighed.effort.left > 0:
                weighed.weigh(plan.regions, form, (plan.figures.order,))
    polish(weighed, 0)
