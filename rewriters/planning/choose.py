"""Whole regions for a memory budget: the plan that is taken, of those that were weighed.

Under a budget the plan of least predicted time that keeps it, by the prediction for the engine in
view; without one the plan that ranks first by what it saves, a form that is less plain by so much
behind. `planning.explore` says which plans there are. Both choices are the first by one order of
all plans, so that more plans to choose from are never worse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from patchconv_deploy.rewriters.emission.forms import FORMS, GAIN, REGIONAL_FORMS
from patchconv_deploy.rewriters.memory.peak import Peak, loads_more
from patchconv_deploy.rewriters.planning.candidates import Candidates, candidates_of
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion
from patchconv_deploy.rewriters.planning.evaluated_plan import (
    Candidate,
    EvaluatedPlan,
    original_of,
    pareto_front,
)
from patchconv_deploy.rewriters.planning.evaluator import PlanEvaluator
from patchconv_deploy.rewriters.planning.explore import explore, explore_next
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.offers import budget_error, tensor_error, to_ask
from patchconv_deploy.rewriters.planning.peak_holders import fixing_advice
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.planning.search import takes_rounds
from patchconv_deploy.rewriters.planning.stages import Limits
from patchconv_deploy.rewriters.planning.weighed_plans import WeighedPlans
from patchconv_deploy.rewriters.planning.written_tensors import largest_of
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["ChosenRegions", "Goal", "choose_regions", "pareto", "rank", "unbeaten"]


# Work is counted in ways that differ by so much: of the region's outputs, or of every node.
_ROUNDED = 1.005

# Without a budget: share of the memory that has to be saved for twice the time.
_WORTH = 0.1


@dataclass(frozen=True, slots=True)
class Goal:
    """What a plan was chosen by.

    Attributes:
        least: "time" (of the plans that keep the limits the one of least predicted time) or
            "memory" (the one that needs the least, of those that keep them and are worth it).
        splits: Most patches that a region might have.
        recompute: Most work after over before; infinite where there was no limit.
    """

    least: str
    splits: int
    recompute: float


@dataclass(frozen=True)
class ChosenRegions:
    """Regions that are to be cut.

    Attributes:
        regions: The regions.
        forms: Per form that was weighed the same regions in it.
        weighed: The figures of every plan that was weighed.
        recompute: Work after over before.
        time: Predicted time after over before.
        order: Name of the order of the nodes.
        run_rank: When each node is wanted to run, by position; None for the order of the file.
        refused: Regions that the search wanted and that could not be proven.
        links: Positions of the row-local nodes.
        reasons: Why other nodes are not, by position.
        goal: What they were chosen by, None where nothing is cut.
    """

    regions: tuple[EmittedRegion, ...]
    forms: Mapping[str, tuple[EmittedRegion, ...]]
    weighed: tuple[Candidate, ...]
    recompute: float
    time: float
    order: str
    run_rank: list[int] | None
    refused: tuple[Refusal, ...]
    links: Collection[int]
    reasons: Mapping[int, str]
    goal: Goal | None = None


def choose_regions(
    predictor: MemoryPredictor,
    limits: Limits,
    axis: str | int,
    form: str,
    engine: str,
    kept: frozenset[int],
    progress: Progress,
) -> ChosenRegions:
    """Choose regions and emit them.

    Args:
        predictor: Predicts the model's memory.
        limits: What to keep; without a budget the peak is made as low as the others allow.
        axis: The axis to cut.
        form: "fused", "shrinking", "loop", "rounds" or "auto".
        engine: A key of `memory.targets.ENGINES`.
        kept: Positions of nodes to leave as they are.
        progress: Called with (what, done, total) from time to time.

    Raises:
        BudgetError: No plan keeps the limits.
    """
    progress("searching", 0, 1)
    found = candidates_of(predictor, axis, kept, engine, progress)
    forms = _forms(predictor.facts, found, form, engine)
    found.puts_off = _puts_off(forms)
    chosen = _chosen(predictor, found, limits, forms, engine, progress)
    if chosen is None:
        # A region of it cannot be proven: only those that can be are weighed, then.
        found.puts_off = False
        found.proven.clear()
        chosen = _chosen(predictor, found, limits, forms, engine, progress)
    assert chosen is not None
    return chosen


def _puts_off(forms: Sequence[str]) -> bool:
    """Tell whether proofs are put off until a plan is taken.

    A height that is free takes long to prove a region at, and of many that are weighed one plan is
    taken.
    """
    return all(FORMS[form].grows for form in forms)


def _chosen(
    predictor: MemoryPredictor,
    found: Candidates,
    limits: Limits,
    forms: Sequence[str],
    engine: str,
    progress: Progress,
) -> ChosenRegions | None:
    """Choose of the candidates, as `choose_regions`; None if a region taken cannot be proven."""
    plain = predictor.predict(None, engine)
    weighed = WeighedPlans(predictor, found, engine, limits.tensor, forms)
    taken, least = None, "memory"
    limited = limits.budget < inf or limits.tensor.bytes is not None
    fits = limited and plain.need <= limits.budget and not weighed.too_large
    if not fits:
        explore(weighed, limits.splits, progress)
        if limits.budget < inf or weighed.too_large:
            taken, least = _within(weighed, limits, plain, predictor), "time"
        else:
            taken = _least(weighed, limits, plain)
            while taken is None and limits.more and explore_next(weighed, progress):
                limits = replace(limits, splits=weighed.limits.splits)
                taken = _least(weighed, limits, plain)
    regions: tuple[EmittedRegion, ...] | Refusal = ()
    if taken is not None:
        regions = weighed.evaluator.proven(taken)
    if isinstance(regions, Refusal):
        return None
    figures = original_of(plain) if taken is None else taken.figures
    return ChosenRegions(
        regions=regions,
        forms={} if taken is None else weighed.in_forms(taken),
        weighed=tuple(
            replace(
                plan.figures,
                fits=_fits(plan, limits, plain) and _keeps_tensors(weighed, plan, limits),
                taken=plan is taken,
            )
            for plan in weighed.by_time()
        ),
        recompute=figures.recompute,
        time=figures.time,
        order=figures.order,
        run_rank=weighed.evaluator.run_rank_of(figures.order),
        refused=_unprovable(predictor.facts, found),
        links=found.links.keys(),
        reasons=found.reasons,
        goal=None if taken is None else Goal(least, limits.splits, limits.recompute),
    )


def _forms(facts: ModelFacts, found: Candidates, form: str, engine: str) -> Sequence[str]:
    """Return the forms to weigh plans in.

    Where the tiled axis is of any size, patches that are a share of it grow with it; those of a
    fixed height keep their bound, and no other form is weighed. A compiler takes no sequences.
    """
    if form != "auto":
        return (form,)
    grows = takes_rounds(facts, found.links, engine)
    return [name for name in REGIONAL_FORMS if FORMS[name].grows == grows]


def _unprovable(facts: ModelFacts, found: Candidates) -> tuple[Refusal, ...]:
    """Return the regions that could not be proven, where no other one of that node was."""
    provable = {
        at
        for plan in found.proven.values()
        if isinstance(plan, RegionPlan)
        for at in plan.region.nodes
    }
    positions = {label: at for at, label in facts.labels.items()}
    return tuple(each for each in found.refused if positions[each.node] not in provable)


def _fits(plan: EvaluatedPlan, limits: Limits, plain: Peak) -> bool:
    """Tell whether a plan keeps the limits, with a margin for the prediction's error.

    One with tensors of unknown size, of which the model as it is has none, may be of any size.
    """
    if plan.peak.unknown > plain.unknown:
        return False
    held = limits.budget == inf or to_ask(plan.peak.need) <= limits.budget
    held = held and plan.figures.splits <= limits.splits
    return held and plan.figures.recompute <= _ROUNDED * limits.recompute


def _keeps_tensors(weighed: WeighedPlans, plan: EvaluatedPlan, limits: Limits) -> bool:
    """Tell whether no tensor that a plan would write has more bytes than one may have.

    The search counts tensors of the model, cut or not; windows and what is put together are others.
    """
    most = limits.tensor.bytes
    return most is None or weighed.evaluator.largest(plan) <= most


def _fitting(weighed: WeighedPlans, limits: Limits, plain: Peak) -> list[EvaluatedPlan]:
    """Return the plans that keep the limits and lose no more in weights than they gain.

    What a limit on elements asks for is not done for its gain.
    """
    return [
        plan
        for plan in weighed.by_time()
        if _fits(plan, limits, plain)
        and (weighed.too_large or _pays(plan.peak, plain))
        and _keeps_tensors(weighed, plan, limits)
    ]


def _pays(peak: Peak, plain: Peak) -> bool:
    """Tell whether a plan loses no more in loading than it gains in activations."""
    return loads_more(peak, plain) <= max(0, plain.need - peak.need)


def _least(weighed: WeighedPlans, limits: Limits, plain: Peak) -> EvaluatedPlan | None:
    """Return the plan that ranks first without a budget, None if none gains.

    What counts is what the process needs: in an arena more patches may have as much in use as fewer
    have, and touch less of it. Only where nothing touches less, what is in use. What loading takes
    more, as for every node that is written, is added. A plan that takes much longer has to save
    some memory for it, and one that has more in use has to touch as much less.
    """
    fitting = _fitting(weighed, limits, plain)
    compiled = weighed.evaluator.compiled
    for figure in (_touched, _need):
        gaining = [
            plan
            for plan in fitting
            if figure(plan.peak) < GAIN * figure(plain)
            and plan.peak.need <= plain.need
            and plan.peak.bytes + plan.peak.touched <= plain.bytes + plain.touched
            and 1 - figure(plan.peak) / figure(plain) >= _WORTH * (plan.figures.time - 1)
        ]
        if gaining:
            # Of equals the first, which takes the least time.
            return min(
                gaining,
                key=lambda p: rank(
                    p.figures.form, figure(p.peak) + loads_more(p.peak, plain), compiled=compiled
                ),
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


def _within(
    weighed: WeighedPlans, limits: Limits, plain: Peak, predictor: MemoryPredictor
) -> EvaluatedPlan:
    """Return the plan of least time that keeps the limits.

    The budget is one of activations; what is loaded counts in `_fitting` alone.

    Raises:
        BudgetError: There is none.
    """
    taken = next(iter(_fitting(weighed, limits, plain)), None)
    if taken is not None:
        return taken
    others = _fitting(weighed, replace(limits, budget=inf), plain)
    graph = weighed.candidates.stage_graphs[0]
    if weighed.too_large and not others:
        kept = None
        if limits.tensor.bytes is not None:
            kept = _least_buffer(weighed, limits, plain, predictor)
        raise tensor_error(limits, graph, kept)
    # What is offered instead has to be there when it is asked for.
    others = [plan for plan in pareto_front(others) if _is_proven(weighed.evaluator, plan)]
    fixing = fixing_advice(predictor.facts)
    raise budget_error(others, limits, plain, graph, too_large=weighed.too_large, fixing=fixing)


def _is_proven(evaluator: PlanEvaluator, plan: EvaluatedPlan) -> bool:
    return not isinstance(evaluator.proven(plan), Refusal)


def _least_buffer(
    weighed: WeighedPlans, limits: Limits, plain: Peak, predictor: MemoryPredictor
) -> int | None:
    """Return bytes that a plan keeps every tensor at where the limit cannot be kept.

    Looked for is a plan that goes as low as what no tiling makes smaller, then any plan. The model
    as it is keeps a limit, too.
    """
    graph, engine = weighed.candidates.stage_graphs[0], weighed.evaluator.engine
    floor = max((tensor.size for tensor in graph.untileable(limits.tensor)), default=None)
    found: list[int] = []
    for size in dict.fromkeys([floor, None]):
        if found:
            break
        tensor = replace(limits.tensor, bytes=size)
        again = WeighedPlans(predictor, weighed.candidates, engine, tensor, weighed.forms)
        explore(again, limits.splits)
        asked = replace(limits, tensor=tensor, budget=inf)
        found = [again.evaluator.largest(plan) for plan in _fitting(again, asked, plain)]
    left = largest_of(predictor, ())
    if left is not None and not graph.too_large(replace(limits.tensor, bytes=None)):
        found.append(left.bytes)
    return min(found, default=None)


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
    _, plans = unbeaten(predictor, found, limits, engine, plain)
    fits = not found.stage_graphs[0].too_large(limits.tensor)
    return [replace(original_of(plain), fits=fits), *(plan.figures for plan in plans)]


def unbeaten(
    predictor: MemoryPredictor, found: Candidates, limits: Limits, engine: str, plain: Peak
) -> tuple[PlanEvaluator, list[EvaluatedPlan]]:
    """Return the plans of a model that nothing beats, and what they were evaluated by.

    Budgets choose of these.

    Args:
        predictor: Predicts the model's memory.
        found: What there is to choose from.
        limits: What every plan has to keep; its budget is not looked at.
        engine: A key of `memory.targets.ENGINES`.
        plain: Predicted peak of the model as it is.
    """
    forms = _forms(predictor.facts, found, "auto", engine)
    found.puts_off = _puts_off(forms)
    weighed = WeighedPlans(predictor, found, engine, limits.tensor, forms)
    explore(weighed)
    fitting = _fitting(weighed, replace(limits, budget=inf), plain)
    # Where the model as it is keeps no limit, plans may need more than it does.
    front = pareto_front(fitting, inf if weighed.too_large else plain.need)
    return weighed.evaluator, [plan for plan in front if _is_proven(weighed.evaluator, plan)]
