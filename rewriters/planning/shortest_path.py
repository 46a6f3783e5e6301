"""Plans as shortest paths through a stage graph.

The least extra work under a budget is a shortest path over the places between nodes, found by
dynamic programming; the least peak is the smallest budget with a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from patchconv_deploy.rewriters.planning.stage_graph import StageGraph
from patchconv_deploy.rewriters.planning.stages import (
    Limits,
    Plan,
    RegionChoice,
    Span,
    patch_counts,
)

__all__ = ["cheapest_plan", "least_peak"]


# What there is where there is no further region.
_NONE = -1, -1, 0, 0.0


def cheapest_plan(graph: StageGraph, limits: Limits) -> Plan | None:
    """Return the plan of least extra work that keeps the limits, None if there is none.

    The limit on recompute is checked on the result: less work is not to be had. Regions that hand
    strips over are all in the same number of patches, the fewest that keep the budget: a window
    then lies on few strips, and all are of a size, so that one takes the place of another: powers
    of two, which divide most heights.
    """
    if not graph.in_strips or limits.alike is not None:
        return _cheapest(graph, limits, limits.alike)
    counts = [count for count in patch_counts(limits.splits) if count & (count - 1) == 0]
    plans = (_cheapest(graph, limits, count) for count in counts)
    return next((plan for plan in plans if plan is not None), None)


def _cheapest(graph: StageGraph, limits: Limits, alike: int | None) -> Plan | None:
    # The least cost up to every place, and the stage that ends there: its begin, its patches.
    best, begins, splits = [0.0], [-1], [0]
    hops = zip(*graph.regions.hops(limits, alike), strict=True)
    begin, end, patches, cost = next(hops, _NONE)
    for place, fits in enumerate(graph.uncut(limits)):
        least, first, fewest = (best[place], place, 1) if fits else (inf, -1, 0)
        while end == place + 1:
            if best[begin] + cost < least:
                least, first, fewest = best[begin] + cost, begin, patches
            begin, end, patches, cost = next(hops, _NONE)
        best.append(least)
        begins.append(first)
        splits.append(fewest)
    if best[-1] == inf:
        return None
    spans, at = [], len(best) - 1
    while at:
        if splits[at] > 1:
            spans.append(Span(begins[at], at, splits[at]))
        at = begins[at]
    plan = _plan(graph, best[-1], spans[::-1], shrinks=limits.shrinks)
    return plan if plan.recompute <= limits.recompute else None


def _plan(graph: StageGraph, cost: float, spans: Sequence[Span], *, shrinks: bool) -> Plan:
    """Return a path as a plan; its cost is what its regions cost."""
    choices = []
    extra = 0.0
    peak = 0
    covered: set[int] = set()
    for begin, end, splits in spans:
        region = graph.regions.one(begin, end)
        repeated = sum(n.work for n in graph.schedule.nodes[begin:end] if n.rematerialised)
        extra += float(region.extra(splits, shrinks=shrinks)) + repeated
        peak = max(peak, graph.regions.peak(begin, end, splits))
        covered.update(range(begin, end))
        choices.append(_choice(graph, begin, end, splits))
    uncut = [alive for at, alive in enumerate(graph.live_bytes) if at not in covered]
    return Plan(
        tuple(choices),
        tuple(spans),
        cost + graph.rematerialised_work,
        1 + extra / graph.work if graph.work else 1.0,
        max([peak, *uncut]),
    )


def _choice(graph: StageGraph, begin: int, end: int, splits: int) -> RegionChoice:
    tensors = graph.schedule.tensors
    own = graph.schedule.nodes[begin:end]
    wanted = [
        tensors[number].name
        for node in own
        for number in node.makes
        if tensors[number].last_use >= end
    ]
    return RegionChoice(tuple(sorted({node.position for node in own})), tuple(wanted), splits)


def least_peak(graph: StageGraph, limits: Limits) -> Plan | None:
    """Return the plan of least peak that keeps the other limits, None if there is none.

    Args:
        graph: The stages.
        limits: What to keep; the budget is not looked at.
    """
    low, high = 0, max(graph.live_bytes, default=0)
    found = cheapest_plan(graph, replace(limits, budget=high))
    if found is None:
        return None
    # The peak of a plan is a sum of whole tensors: a hundredth is near enough.
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        plan = cheapest_plan(graph, replace(limits, budget=middle))
        if plan is None:
            low = middle
        else:
            found, high = plan, plan.peak
    return found
