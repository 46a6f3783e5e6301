"""Whole regions for a memory budget: the plan that is taken, of those that were weighed.

Under a budget the plan of least predicted time that keeps it, by the prediction for the engine in
view; without one the plan that ranks first by what it saves, a form that is less plain by so much
behind. `planning.evaluator` has the plans. Both choices are the first by one order of all plans, so
that more plans to choose from are never worse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from rewriters.emission.forms import FORMS, GAIN, REGIONAL_FORMS
from rewriters.emission.names import NameScheme
from rewriters.errors import BudgetError, Offer, OptionError
from rewriters.memory.peak import Peak, size_text
from rewriters.planning.candidates import Candidates, candidates_of, row_local
from rewriters.planning.emitted_region import Draft, draft
from rewriters.planning.evaluated_plan import Candidate, Point, front
from rewriters.planning.evaluator import Frontier
from rewriters.planning.orders import run_rank_of
from rewriters.planning.predictor import MemoryPredictor
from rewriters.planning.progress import Progress
from rewriters.planning.stages import Limits
from rewriters.regions.refusal import Refusal
from rewriters.regions.region import make_region
from rewriters.regions.row_locality import find_locality
from rewriters.regions.tiled_region import RegionPlan, plan_region

__all__ = [
    "MARGIN",
    "Regional",
    "apply_plan",
    "cut_regions",
    "original_of",
    "pareto",
    "rank",
    "to_ask",
    "weigh",
]

# Kept back of a budget: the prediction is this much too low at worst on the tests' models.
MARGIN = 0.05

# No plan has as many patches.
_PLENTY = 192

# Work is counted in ways that differ by so much: of the region's outputs, or of every node.
_ROUNDED = 1.005


@dataclass(frozen=True)
class Regional:
    """Regions that are cut.

    Attributes:
        drafts: The regions.
        forms: Per form that was weighed the same regions in it.
        weighed: Every candidate's figures.
        recompute: Work after over before.
        time: Predicted time after over before.
        order: Name of the order of the nodes.
        run_rank: When each node is wanted to run, by position; None for the order of the file.
        refused: Regions that the search wanted and that could not be proven.
        links: Positions of the row-local nodes.
        reasons: Why other nodes are not, by position.
    """

    drafts: tuple[Draft, ...]
    forms: Mapping[str, tuple[Draft, ...]]
    weighed: tuple[Candidate, ...]
    recompute: float
    time: float
    order: str
    run_rank: list[int] | None
    refused: tuple[Refusal, ...]
    links: Collection[int]
    reasons: Mapping[int, str]


def cut_regions(
    predictor: MemoryPredictor,
    limits: Limits,
    axis: str | int,
    form: str,
    engine: str,
    kept: frozenset[int],
    progress: Progress,
) -> Regional:
    """Choose regions and emit them.

    Args:
        predictor: Predicts the model's memory.
        limits: What to keep; without a budget the peak is made as low as the others allow.
        axis: The axis to cut.
        form: "fused", "shrinking", "loop", or "auto".
        engine: A key of `memory.targets.ENGINES`.
        kept: Positions of nodes to leave as they are.
        progress: Called with (what, done, total) from time to time.

    Raises:
        BudgetError: No plan keeps the limits.
    """
    progress("searching", 0, 1)
    plain = predictor.predict(None, engine)
    found = candidates_of(predictor, axis, kept, engine, progress)
    frontier = Frontier(
        predictor,
        found,
        engine,
        limits.elements,
        REGIONAL_FORMS if form == "auto" else (form,),
    )
    taken = None
    fits = plain.need <= limits.budget < inf and not frontier.too_large
    if not fits:
        frontier.explore(limits.splits, progress)
        if limits.budget < inf or frontier.too_large:
            taken = _within(frontier, limits, plain)
        else:
            taken = _least(frontier, limits, plain)
            while taken is None and limits.more and frontier.explore_next(progress):
                limits = replace(limits, splits=frontier.limits.splits)
                taken = _least(frontier, limits, plain)
    weighed = tuple(
        replace(
            point.candidate,
            fits=_fits(point, limits, plain),
            taken=point is taken,
        )
        for point in frontier.weighed()
    )
    candidate = original_of(plain)
    if taken is not None:
        candidate = taken.candidate
    provable = {
        at
        for plan in found.proven.values()
        if isinstance(plan, RegionPlan)
        for at in plan.region.nodes
    }
    positions = {label: at for at, label in predictor.facts.labels.items()}
    return Regional(
        drafts=() if taken is None else taken.drafts,
        forms={} if taken is None else frontier.in_forms(taken),
        weighed=weighed,
        recompute=candidate.recompute,
        time=candidate.time,
        order=candidate.order,
        run_rank=frontier.run_rank_of(candidate.order),
        refused=tuple(each for each in found.refused if positions[each.node] not in provable),
        links=found.links.keys(),
        reasons=found.reasons,
    )


def original_of(plain: Peak) -> Candidate:
    """Return the figures of the model as it is."""
    return Candidate(
        "original",
        0,
        1,
        plain.need,
        1.0,
        1.0,
        fits=True,
        touched=plain.touched,
        loading=plain.weights.loading,
        process=plain.process,
        unknown=plain.unknown,
    )


def _fits(point: Point, limits: Limits, plain: Peak) -> bool:
    """Tell whether a plan keeps the limits, with a margin for the prediction's error.

    One with tensors of unknown size, of which the model as it is has none, may be of any size.
    """
    if point.peak.unknown > plain.unknown:
        return False
    held = limits.budget == inf or to_ask(point.peak.need) <= limits.budget
    held = held and point.candidate.splits <= limits.splits
    return held and point.candidate.recompute <= _ROUNDED * limits.recompute


def to_ask(need: int) -> int:
    """Return the least budget that a plan of a predicted need keeps, the margin included."""
    return -(-need * 100 // (100 - round(100 * MARGIN)))


def _fitting(frontier: Frontier, limits: Limits, plain: Peak) -> list[Point]:
    """Return the plans that keep the limits and lose no more in weights than they gain.

    What a limit on elements asks for is not done for its gain.
    """
    return [
        point
        for point in frontier.weighed()
        if _fits(point, limits, plain) and (frontier.too_large or _pays(point.peak, plain))
    ]


def _pays(peak: Peak, plain: Peak) -> bool:
    """Tell whether a plan loses no more in weights than it gains in activations."""
    more = (peak.weights.loading - peak.weights.packed) - (
        plain.weights.loading - plain.weights.packed
    )
    return more <= max(0, plain.need - peak.need)


def _least(frontier: Frontier, limits: Limits, plain: Peak) -> Point | None:
    """Return the plan that ranks first without a budget, None if none gains.

    What counts is what the process needs: in an arena more patches may have as much in use as fewer
    have, and touch less of it. Only where nothing touches less, what is in use.
    """
    fitting = _fitting(frontier, limits, plain)
    for figure in (_touched, _need):
        gaining = [p for p in fitting if figure(p.peak) < GAIN * figure(plain)]
        if gaining:
            # Of equals the first, which takes the least time.
            return min(
                gaining,
                key=lambda p: rank(p.candidate.form, figure(p.peak), compiled=frontier.compiled),
            )
    return None


def rank(form: str, size: int, *, compiled: bool = False) -> float:
    """Return what plans are ranked by without a budget, the lower the better.

    Args:
        form: A plan's form.
        size: What it touches, or needs, bytes.
        compiled: The engine in view is a compiler.
    """
    return size / FORMS[form].saves[compiled]


def _touched(peak: Peak) -> int:
    return peak.touched


def _need(peak: Peak) -> int:
    return peak.need


def _within(frontier: Frontier, limits: Limits, plain: Peak) -> Point:
    """Return the plan of least time that keeps the limits.

    The budget is one of activations; what is loaded counts in `_fitting` alone.

    Raises:
        BudgetError: There is none.
    """
    taken = next(iter(_fitting(frontier, limits, plain)), None)
    if taken is not None:
        return taken
    fitting = _fitting(frontier, replace(limits, budget=inf), plain)
    least = min(fitting, key=lambda point: point.peak.need, default=None)
    offers = _offers(fitting, plain) if limits.budget < inf and not frontier.too_large else ()
    advice = _advice(offers, limits) if offers else ""
    raise BudgetError(_infeasible(frontier, limits, plain, least) + advice, offers)


def _offers(points: Sequence[Point], plain: Peak) -> tuple[Offer, ...]:
    """Return budgets that are kept, the smallest first; the last is the model as it is."""
    found = [Offer(plain.need, 1.0, 1.0)]
    for point in front(points, plain.need):
        budget = to_ask(point.peak.need)
        if budget < found[-1].budget:
            found.append(Offer(budget, point.candidate.recompute, point.candidate.time))
    return tuple(reversed(found))


def _infeasible(frontier: Frontier, limits: Limits, plain: Peak, least: Point | None) -> str:
    graph = frontier.found.stage_graphs[0]
    if frontier.too_large and least is None:
        names = ", ".join(graph.untileable(limits.elements or 0)[:3])
        return f"tensors of more than {limits.elements} elements stay, whatever is cut" + (
            f": {names}" if names else ""
        )
    there = least.peak if least is not None and least.peak.need < plain.need else plain
    held = ", ".join(f"{name} ({size_text(size)})" for name, size in there.alive[:3])
    return (
        f"a budget of {size_text(limits.budget)}, less {MARGIN:.0%} for the prediction's "
        f"error, cannot be met: the smallest peak found is "
        f"{size_text(there.need)} (predicted, at {there.at!r}, held by {held}); no plan goes "
        f"below {size_text(graph.bound)}. "
    )


def _advice(offers: Sequence[Offer], limits: Limits) -> str:
    """Return what to ask for instead: the smallest budget that is kept, and the next cheaper."""
    asked = [
        f"{_asked(offer.budget)} or more ({offer.recompute:.2f}x the work, {offer.time:.2f}x the "
        "time)"
        if offer.time != 1
        else f"{_asked(offer.budget)} or more (the model as it is)"
        for offer in offers[:2]
    ]
    tight = []
    if limits.recompute < inf:
        tight.append("more recompute")
    if limits.splits < _PLENTY:
        tight.append("more patches")
    allowed = f"; or allow {' or '.join(tight)}" if tight else ""
    return f"Raise the budget to {', or to '.join(asked)}{allowed}"


def _asked(size: float) -> str:
    """Return a size for people, rounded up, so that what is asked for is enough."""
    if size >= 2**20:
        return f"{-(-size * 10 // 2**20) / 10:,.1f} MiB"
    return f"{-(-size * 10 // 2**10) / 10:,.1f} KiB" if size >= 2**10 else f"{size} bytes"


def pareto(
    predictor: MemoryPredictor,
    limits: Limits,
    axis: str | int,
    engine: str,
    kept: frozenset[int],
) -> list[Candidate]:
    """Return plans of ever lower peak and ever more time, from the model as it is.

    It is alone where its peak is unknown.

    Args:
        predictor: Predicts the model's memory.
        limits: What every plan has to keep; its budget is not looked at.
        axis: The axis to cut.
        engine: A key of `memory.targets.ENGINES`.
        kept: Positions of nodes to leave as they are.
    """
    plain = predictor.predict(None, engine)
    if plain.unknown:
        return [original_of(plain)]
    found = candidates_of(predictor, axis, kept, engine)
    _, points = weigh(predictor, found, limits, engine, plain)
    return [original_of(plain), *(point.candidate for point in points)]


def weigh(
    predictor: MemoryPredictor, found: Candidates, limits: Limits, engine: str, plain: Peak
) -> tuple[Frontier, list[Point]]:
    """Return the plans of a model, and those of them that nothing beats: budgets choose of these.

    Args:
        predictor: Predicts the model's memory.
        found: What there is to choose from.
        limits: What every plan has to keep; its budget is not looked at.
        engine: A key of `memory.targets.ENGINES`.
        plain: Predicted peak of the model as it is.
    """
    frontier = Frontier(predictor, found, engine, limits.elements)
    frontier.explore()
    free = replace(limits, budget=inf)
    return frontier, front(_fitting(frontier, free, plain), plain.need)


def apply_plan(
    predictor: MemoryPredictor, data: Mapping[str, Any], engine: str
) -> tuple[tuple[Draft, ...], list[int] | None]:
    """Return the regions of a plan as it is written in a file, and when each node is to run.

    Args:
        predictor: Predicts the model's memory.
        data: The plan, `planning.plan_file.plan_data`.
        engine: A key of `memory.targets.ENGINES`.

    Raises:
        OptionError: The plan does not fit the model, or a region of it cannot be proven.
    """
    facts, labels = predictor.facts, predictor.facts.labels
    certain = facts.certain
    positions = {label: at for at, label in labels.items()}
    names = NameScheme.avoiding(facts.index.names)
    links = find_locality(certain, data["axis"]).links
    run_rank = run_rank_of(predictor, data["order"], engine, row_local(facts, links))
    drafts = []
    for entry in data["regions"]:
        unknown = [label for label in entry["nodes"] if label not in positions]
        if unknown:
            raise OptionError(f"plan=: the model has no node {unknown[0]!r}")
        nodes = sorted({positions[label] for label in entry["nodes"]})
        made = {name for at in nodes for name in certain.graph.node[at].output}
        strange = [name for name in entry["outputs"] if name not in made]
        if strange:
            raise OptionError(f"plan=: no node of its region makes {strange[0]!r}")
        outside = [label for label in entry["nodes"] if positions[label] not in links]
        if outside:
            raise OptionError(f"plan=: node {outside[0]!r} cannot be in a region")
        label = labels[max(nodes)]
        region = make_region(certain, links, nodes, entry["outputs"], label)
        plan = (
            region
            if isinstance(region, Refusal)
            else plan_region(region, certain.shapes, entry["splits"], certain.opset)
        )
        if not isinstance(plan, RegionPlan):
            raise OptionError(f"plan=: the region of {label!r} cannot be cut: {plan.reason}")
        base = labels[nodes[0]] if len(nodes) == 1 else label
        drafts.append(draft(plan, entry["form"], facts, names, base))
    return tuple(drafts), run_rank
