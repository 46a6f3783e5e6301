"""Plans that the search finds, for budgets from the model's own peak down to the least.

Where two neighbours differ, one between them is looked for, too.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf, isqrt, log
from typing import TypeAlias

from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.planning.effort import EMITTED, LOOKED_FOR, PROVEN
from patchconv_deploy.rewriters.planning.evaluated_plan import (
    EvaluatedPlan,
    choices_of,
    pareto_front,
)
from patchconv_deploy.rewriters.planning.shortest_path import least_peak
from patchconv_deploy.rewriters.planning.stage_graph import StageGraph
from patchconv_deploy.rewriters.planning.stages import RegionChoice
from patchconv_deploy.rewriters.planning.weighed_plans import WeighedPlans
from patchconv_deploy.rewriters.regions.tiled_region import ORDERS, RegionPlan

__all__ = ["search_budgets"]


# The first plans are weighed in every form and order, the rest in those that did best.
_FIRST = 4

# Effort for what hands strips over in one number of patches, a share of the whole.
_HANDED = 0.8

# Up to so many patches every way of handing over is weighed.
_EVERY = 8

# Twice as many patches are weighed where the last doubling lowered the need to this or less.
_LOWER = 0.9

# Budgets are no nearer to each other than that.
_NEAR = 1.05

# More work than this is hardly wanted.
_USUAL = 2.0

# Regions by what tells them from others.
_Found: TypeAlias = Mapping[tuple[RegionChoice, ...], tuple[RegionPlan, ...]]


def search_budgets(weighed: WeighedPlans, reserve: float) -> None:
    """Weigh what the search finds, from coarse to fine, until no more effort is left than that.

    Args:
        weighed: Takes the plans; its limits are kept.
        reserve: Effort to leave.
    """
    first: list[list[EvaluatedPlan]] = []
    effort, forms = weighed.effort, weighed.searched_forms
    _hand_over(weighed)
    for regions in _coarse_to_fine(weighed, reserve):
        if effort.left <= reserve:
            break
        if len(first) < _FIRST:
            found: list[EvaluatedPlan] = []
            for form in forms:
                plan = weighed.weigh(regions, form, ORDERS) if effort.left > 0 else None
                found += () if plan is None else (plan,)
            first.append(found)
        else:
            form, order = _did_best(first, forms)
            weighed.weigh(regions, form, (order,))


def _hand_over(weighed: WeighedPlans) -> None:
    """Weigh plans that hand strips over, all regions in as many patches as the limits leave.

    What is handed over is counted as if all of it came about, which it does not: so each way of
    doing it is weighed, and not the one alone that seems best. In the order of the file, which
    keeps strips and what is made of them together. They are dear to weigh: each doubling of the
    patches has effort of its own.
    """
    alike = 1 << (weighed.limits.splits.bit_length() - 1)
    handed = weighed.handed
    if alike == 1 or alike in handed:
        return
    handed[alike] = {}
    found = dict[StageGraph, tuple[RegionPlan, ...]]()
    with weighed.effort.apart(_HANDED):
        for graph, form in _worth_doubling(weighed, alike):
            if graph not in found:
                found[graph] = next(iter(_at(weighed, inf, graph, alike).values()), ())
            regions = found[graph]
            cost = (1 + EMITTED) * weighed.evaluator.cost_of(regions)
            if not regions or cost > weighed.effort.left:
                continue
            plan = weighed.weigh(regions, form, ORDERS[:1])
            if plan is not None:
                handed[alike][graph, form] = plan


def _worth_doubling(weighed: WeighedPlans, alike: int) -> list[tuple[StageGraph, str]]:
    """Return the ways, stages and form, in which so many patches are weighed, the best first.

    In few patches every one. In many, those that nothing beat in half as many, where half as many
    brought enough; in twice the few every one whose windows shrink too, whose work hardly grows.
    """
    graphs = [graph for graph in weighed.candidates.stage_graphs if graph.in_strips]
    forms = weighed.searched_forms
    if alike <= _EVERY:
        return [(graph, form) for graph in graphs for form in forms]
    half, quarter = weighed.handed.get(alike // 2, {}), weighed.handed.get(alike // 4, {})
    unbeaten = pareto_front(sorted(half.values(), key=lambda p: (p.figures.time, p.peak.need)))
    found = [
        way
        for way, plan in sorted(half.items(), key=lambda e: e[1].peak.need * e[1].figures.time)
        if plan in unbeaten and way in quarter and plan.peak.need < _LOWER * quarter[way].peak.need
    ]
    if alike <= 2 * _EVERY:
        ways = [(graph, form) for graph in graphs for form in forms if FORMS[form].shrinks]
        found = [*ways, *(way for way in found if way not in ways)]
    return found


def _did_best(first: Sequence[Sequence[EvaluatedPlan]], forms: Sequence[str]) -> tuple[str, str]:
    """Return the form and the order of the nodes that did best by the first plans."""

    def score(form: str) -> float:
        own = [[p for p in found if p.figures.form == form] or found for found in first]
        return sum(log(p.peak.need * p.figures.time) for found in own for p in found[:1])

    orders = Counter(p.figures.order for found in first for p in found)
    order = max(orders, key=lambda name: orders[name], default="file")
    return min(forms, key=score), order


def _coarse_to_fine(weighed: WeighedPlans, reserve: float) -> Iterator[tuple[RegionPlan, ...]]:
    usual = replace(weighed.limits, recompute=_USUAL)
    graphs = _in_whole(weighed)
    least = [plan.peak for graph in graphs if (plan := least_peak(graph, usual))]
    low = max(1, min(least, default=0))
    high = max(1, weighed.candidates.plain_peak)
    seen: set[tuple[RegionChoice, ...]] = {()}

    def new(plans: _Found) -> Iterator[tuple[RegionPlan, ...]]:
        for key, regions in plans.items():
            if key not in seen:
                seen.add(key)
                yield regions

    lowest = _at(weighed, low)
    yield from new(lowest)
    if weighed.too_large:
        # What a limit on elements asks for may hold more than the model as it is.
        yield from new(_at(weighed, inf))
    higher = _at(weighed, high)
    yield from new(higher)
    between = deque([(low, lowest, high, higher)])
    while between and weighed.effort.left > reserve:
        low, lower, high, higher = between.popleft()
        # What no plan keeps at either end none keeps between; what two ends have in common is
        # the best in between, too.
        if high > _NEAR * low and lower.keys() != higher.keys():
            middle = isqrt(low * high)
            found = _at(weighed, middle)
            yield from new(found)
            between += (middle, found, high, higher), (low, lower, middle, found)


def _in_whole(weighed: WeighedPlans) -> list[StageGraph]:
    """Return the stages of which every region makes its results whole."""
    return [graph for graph in weighed.candidates.stage_graphs if not graph.in_strips]


def _at(
    weighed: WeighedPlans,
    budget: float,
    graph: StageGraph | None = None,
    alike: int | None = None,
) -> _Found:
    """Return what the search finds for a budget: no regions where the model keeps it as it is.

    Empty where no plan keeps the budget, which is another thing.

    Args:
        weighed: Has the candidates.
        budget: Most bytes alive at once.
        graph: Where to search, None for everywhere but where strips are handed over.
        alike: Patches of every region, None for the fewest that do.
    """
    limits = replace(weighed.limits, budget=budget, alike=alike)
    plans, candidates = {}, weighed.candidates
    # What shrinking windows save is counted too high where branches join.
    for shrinks in (True, False):
        regions = candidates.choose(
            replace(limits, shrinks=shrinks),
            _in_whole(weighed) if graph is None else [graph],
        )
        weighed.effort.spend(LOOKED_FOR * candidates.looked_at + PROVEN * candidates.proved)
        candidates.looked_at = candidates.proved = 0
        if regions is not None:
            plans[choices_of(regions)] = regions
    return plans
