"""Plans near the best ones: the same regions, in other numbers of patches.

refit    of a plan that is beaten by little or not at all: its regions, each in as few patches
as keep what the plan holds, or somewhat less. What a region would hold in other
patches follows from what it was predicted to hold in these
step     of a plan that nothing beats: one region in a few patches more or less
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from math import inf

from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion
from patchconv_deploy.rewriters.planning.evaluated_plan import EvaluatedPlan, pareto_front
from patchconv_deploy.rewriters.planning.stages import patch_counts
from patchconv_deploy.rewriters.planning.weighed_plans import WeighedPlans
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["polish"]


# What a plan is refitted to, in terms of its own, and how often a refit is corrected.
_REFITTED = (1.0, 0.94, 0.8)

_CORRECTED = 3

_ROUNDED = 1.001

# A plan is refitted if its extra time is no more than this many times that of a plan that holds no
# more; extra time of less than that is as good as none.
_BEATEN = 1.5

_LITTLE = 0.01


def polish(weighed: WeighedPlans, reserve: float) -> None:
    """Weigh plans near the best ones, until all are done or no more effort is left than that.

    Args:
        weighed: Has the best ones, and takes the others.
        reserve: Effort to leave.
    """
    refitted: set[EvaluatedPlan] = set()
    stepped: set[EvaluatedPlan] = set()
    near = deque[EvaluatedPlan]()
    known = -1
    # Fewer patches would bring back a tensor above the limit.
    while weighed.effort.left > reserve and not weighed.too_large:
        if weighed.count != known:
            near, known = deque(_hardly_beaten(weighed, refitted)), weighed.count
        if near:
            refitted.add(near[0])
            for share in _REFITTED:
                _refit(weighed, near[0], share * near[0].level)
            near.popleft()
            continue
        pending = [plan for plan in pareto_front(weighed.by_time()) if plan not in stepped]
        if not pending:
            break
        stepped.add(pending[0])
        _step(weighed, pending[0])


def _hardly_beaten(weighed: WeighedPlans, done: Collection[EvaluatedPlan]) -> list[EvaluatedPlan]:
    """Return plans that are hardly beaten by one that needs no more, the best first."""
    found: list[tuple[float, int, EvaluatedPlan]] = []
    best = inf
    for plan in sorted(weighed.all(), key=lambda p: (p.peak.need, p.figures.time)):
        best = min(best, plan.figures.time)
        beaten = (plan.figures.time - 1 + _LITTLE) / (best - 1 + _LITTLE)
        if beaten <= _BEATEN and plan not in done:
            found.append((beaten, -plan.peak.need, plan))
    return [plan for *_, plan in sorted(found, key=lambda entry: entry[:2])]


def _refit(weighed: WeighedPlans, plan: EvaluatedPlan, level: float) -> None:
    """Weigh a plan's regions in as few patches as are expected to keep a level of bytes."""
    fewest = [_fewest(weighed, plan, at, level) for at in range(len(plan.regions))]
    splits = [count for count in fewest if count is not None]
    if plan.around > level * _ROUNDED or len(splits) < len(fewest):
        return
    for _ in range(_CORRECTED):
        if weighed.effort.left <= 0:
            return
        made = {
            at: region
            for at, (old, count) in enumerate(zip(plan.regions, splits, strict=True))
            if (region := _in_patches(weighed, old, count)) is not None
        }
        if not made:
            return
        figures = plan.figures
        found = weighed.weigh(tuple(made.values()), figures.form, (figures.order,))
        if found is None:
            return
        above = [
            at for at, (most, _) in zip(made, found.needs, strict=True) if most > level * _ROUNDED
        ]
        # What is not cut any more may be what needs too much.
        if not above and found.around > level * _ROUNDED:
            above = [at for at in range(len(splits)) if at not in made]
        if not above:
            return
        for at in above:
            splits[at] = _more(weighed, splits[at], plan.regions[at].splits)


def _step(weighed: WeighedPlans, plan: EvaluatedPlan) -> None:
    """Weigh a plan with each region in a few patches less, and in a few more."""
    tried = (1, *patch_counts(weighed.limits.splits))
    for at, region in enumerate(plan.regions):
        below = [count for count in tried if count < region.splits][-1:]
        above = [count for count in tried if count > region.splits][:1]
        for count in (*below, *above):
            changed = _in_patches(weighed, region, count)
            if count > 1 and changed is None:
                continue
            middle = () if changed is None else (changed,)
            regions = (*plan.regions[:at], *middle, *plan.regions[at + 1 :])
            if regions and weighed.effort.left > 0:
                weighed.weigh(regions, plan.figures.form, (plan.figures.order,))


def _in_patches(weighed: WeighedPlans, plan: RegionPlan, splits: int) -> RegionPlan | None:
    """Return a region in so many patches, None for one, or where it cannot be cut so."""
    if splits in (1, plan.splits):
        return plan if splits == plan.splits else None
    return weighed.candidates.in_patches(plan, splits)


def _more(weighed: WeighedPlans, splits: int, known: int) -> int:
    """Return the next number of patches; at most that of the plan, if that is more."""
    higher = (c for c in (*patch_counts(weighed.limits.splits), known) if c > splits)
    return min(higher, default=splits)


def _fewest(weighed: WeighedPlans, plan: EvaluatedPlan, at: int, level: float) -> int | None:
    """Return the fewest patches of a region that keep a level, 1 for leaving it as it is.

    In more patches the rows that each has of its own are fewer; its halo stays, and so do the
    bytes held before the region and its outputs, whose cores pile up.

    Args:
        weighed: Has the plan.
        plan: The plan.
        at: The region's place among those of the plan.
        level: Bytes to keep.

    Returns:
        None if no number of patches is expected to.
    """
    region = plan.regions[at]
    most, least = plan.needs[at]
    share = _window_share(plan.emitted[at])
    if share is None:
        return region.splits if most <= level * _ROUNDED else None
    sizes = weighed.evaluator.facts.bytes
    outputs = sum(sizes[edge.name] or 0 for edge in region.region.outputs)
    fixed = min(most, least + outputs)
    halo = max(0.0, share - 1 / region.splits)
    for splits in (1, *patch_counts(weighed.limits.splits)):
        if splits == 1:
            expected: float = weighed.evaluator.uncut_peak(region)
        else:
            expected = fixed + (most - fixed) * min(1.0, 1 / splits + halo) / share
        if expected <= level * _ROUNDED:
            return splits
    return region.splits if most <= level * _ROUNDED else None


def _window_share(entry: EmittedRegion) -> float | None:
    """Return the share of the rows that a window has, None if known at run time alone."""
    plan = entry.assumed or entry.plan
    if plan.tiling is None:
        return None
    number = plan.region.network.outputs[0]
    return 1 - plan.tiling.trim * plan.steps[number] / plan.heights[number]
