"""Plans evaluated: what each needs, by the prediction for an engine, and how long it takes.

The search counts live bytes; an engine holds more (its order, its arena). So a plan is judged by
the prediction for the engine in view, on the nodes that would be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.memory.lowering.node import copied
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.memory.targets import ENGINES
from patchconv_deploy.rewriters.operators.record import RowLocal
from patchconv_deploy.rewriters.planning.candidates import choice_of
from patchconv_deploy.rewriters.planning.effort import EMITTED, PROVEN
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion, emit_region, ordered
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate, EvaluatedPlan, choices_of
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.orders import run_rank_of
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.stages import RegionChoice
from patchconv_deploy.rewriters.planning.work import COPY
from patchconv_deploy.rewriters.planning.written_tensors import largest_of
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["PlanEvaluator", "copied_of", "costs_of", "recompute_of"]


# Tensors that a node reads without costing more to predict, and what each further one costs.
_FEW = 3

_READ = 1 / 6


@dataclass(frozen=True, slots=True)
class _Known:
    """What a plan came to in one order of the nodes."""

    order: str
    arrangement: Sequence[int | Fragment] | None
    plan: EvaluatedPlan | None


class PlanEvaluator:
    """Evaluates plans of a model on an engine.

    What was worked out is kept; an answer is the same whatever was asked before.

    Args:
        predictor: Predicts the model's memory.
        engine: A key of `memory.targets.ENGINES`.
        row_local: The nodes that may be in a region.
        spend: Called with the effort (`planning.effort`) of what is worked out.
    """

    def __init__(
        self,
        predictor: MemoryPredictor,
        engine: str,
        row_local: Mapping[int, RowLocal],
        spend: Callable[[float], None],
    ) -> None:
        self.facts = facts = predictor.facts
        self.engine = engine
        self._predictor = predictor
        self._row_local = row_local
        self._spend = spend
        self._names = NameScheme.avoiding(facts.index.names)
        self._emitted: dict[tuple[RegionChoice, str], EmittedRegion] = {}
        # Those of them that cannot be proven, and why.
        self._refused: dict[tuple[RegionChoice, str], Refusal] = {}
        self._known: dict[tuple[tuple[RegionChoice, ...], str], list[_Known]] = {}
        self._largest: dict[EvaluatedPlan, int] = {}
        self._run_ranks: dict[str, list[int] | None] = {}
        self._more_reads = [_READ * max(0, len(node.reads) - _FEW) for node in facts.executed]

    def largest(self, plan: EvaluatedPlan) -> int:
        """Return the bytes of the largest tensor that a plan would write."""
        if plan not in self._largest:
            run_rank = self.run_rank_of(plan.figures.order)
            found = largest_of(self._predictor, plan.emitted, run_rank)
            self._largest[plan] = 0 if found is None else found.bytes
        return self._largest[plan]

    @property
    def compiled(self) -> bool:
        """Whether the engine is a compiler."""
        return ENGINES[self.engine].lowering.compiler

    def run_rank_of(self, order: str) -> list[int] | None:
        """Return when each node runs in an order, None for that of the file."""
        if order not in self._run_ranks:
            self._run_ranks[order] = run_rank_of(
                self._predictor, order, self.engine, self._row_local
            )
        return self._run_ranks[order]

    def uncut_peak(self, plan: RegionPlan) -> int:
        """Return the most bytes alive while a region's nodes run as they are."""
        return max(self._alive.get(at, 0) for at in plan.region.nodes)

    @cached_property
    def _alive(self) -> Mapping[int, int]:
        return self._predictor.run(self.engine)[1]

    def emitted(self, regions: Sequence[RegionPlan], form: str) -> tuple[EmittedRegion, ...]:
        """Return regions as nodes; plans that are near each other share most of theirs."""
        return tuple(self._emit(plan, form) for plan in regions)

    def _emit(self, plan: RegionPlan, form: str) -> EmittedRegion:
        key = choice_of(plan.region, plan.splits), form
        if key not in self._emitted:
            label, compiled = plan.region.label, self.compiled
            made = emit_region(plan, form, self.facts, self._names, label, compiled=compiled)
            self._emitted[key] = made
            further = plan.splits * self._further(plan.region.nodes)
            proven = 0 if made.plan.stride is None else PROVEN * made.plan.walked
            self._spend(EMITTED * (made.fragment.count + further) + proven)
        return self._emitted[key]

    def proven(self, plan: EvaluatedPlan) -> tuple[EmittedRegion, ...] | Refusal:
        """Return a plan's regions proven at every height, or why one of them cannot be."""
        found = list[EmittedRegion]()
        for region in plan.regions:
            made = self._proven((choice_of(region.region, region.splits), plan.figures.form))
            if isinstance(made, Refusal):
                return made
            found.append(made)
        return tuple(found)

    def _proven(self, key: tuple[RegionChoice, str]) -> EmittedRegion | Refusal:
        """Return a region that was emitted, proven: once for all plans that share it."""
        entry = self._emitted[key]
        if entry.plan.proven:
            return entry
        if key not in self._refused:
            certain = self.facts.certain
            made = entry.plan.at_every_height(certain.shapes, certain.opset)
            if not isinstance(made, Refusal):
                self._emitted[key] = replace(entry, plan=made)
                return self._emitted[key]
            self._refused[key] = made
        return self._refused[key]

    def cost_of(self, regions: Sequence[RegionPlan]) -> float:
        """Return the effort of one prediction of a plan's regions, about."""
        return sum(
            plan.splits * (len(plan.region.nodes) + self._further(plan.region.nodes))
            for plan in regions
        )

    def _further(self, nodes: Iterable[int]) -> float:
        """Return what nodes cost that read many tensors, beyond one each."""
        return sum(self._more_reads[at] for at in nodes)

    def evaluate(
        self, regions: tuple[RegionPlan, ...], form: str, order: str
    ) -> EvaluatedPlan | None:
        """Return a plan with what is predicted of it.

        Args:
            regions: Its regions.
            form: Their form.
            order: Name of the order of the nodes.

        Returns:
            None where the regions depend on each other in a circle, or not even assumed sizes are
            known.
        """
        known = self._known.setdefault((choices_of(regions), form), [])
        for entry in known:
            if entry.order == order:
                return entry.plan
        emitted = self.emitted(regions, form)
        arrangement = ordered(self.facts, emitted, self.run_rank_of(order), sized=True)
        same = next((entry for entry in known if entry.arrangement == arrangement), None)
        if arrangement is None:
            plan = None
        elif same is None:
            plan = self._judge(regions, emitted, form, order, arrangement)
        elif same.plan is None:
            plan = None
        else:
            plan = replace(same.plan, figures=replace(same.plan.figures, order=order))
        known.append(_Known(order, arrangement, plan))
        return plan

    def _judge(
        self,
        regions: tuple[RegionPlan, ...],
        emitted: tuple[EmittedRegion, ...],
        form: str,
        order: str,
        arrangement: Sequence[int | Fragment],
    ) -> EvaluatedPlan | None:
        peak = self._predictor.predict(arrangement, self.engine)
        inside = {at for plan in regions for at in plan.region.nodes}
        further = self._further(at for at in range(len(self._more_reads)) if at not in inside)
        further += sum(plan.splits * self._further(plan.region.nodes) for plan in regions)
        self._spend(len(peak.live_bytes) + further)
        costs = costs_of(self.facts, emitted, arrangement, compiled=self.compiled)
        if costs is None:
            return None
        work, time = costs
        figures = Candidate(
            form,
            len(regions),
            max(plan.splits for plan in regions),
            peak.need,
            work,
            time,
            fits=True,
            order=order,
            unknown=peak.unknown,
            touched=peak.touched,
            loading=peak.weights.loading,
            process=peak.process,
        )
        needs, around = self._needs(emitted, peak)
        level = max(around, *(most for most, _ in needs))
        return EvaluatedPlan(
            regions, emitted, figures, replace(peak, live_bytes=()), level, needs, around
        )

    def _needs(
        self, emitted: Sequence[EmittedRegion], peak: Peak
    ) -> tuple[tuple[tuple[int, int], ...], int]:
        """Return `EvaluatedPlan.needs` and `EvaluatedPlan.around`."""
        own = {
            label: at
            for at, entry in enumerate(emitted)
            for label in self._predictor.labels(entry.sized or entry.fragment)
        }
        most, least, around = [0] * len(emitted), [inf] * len(emitted), 0
        for label, size in peak.live_bytes:
            at = own.get(label)
            if at is None:
                at = own.get(copied(label))
            if at is None:
                around = max(around, size)
            else:
                most[at] = max(most[at], size)
                least[at] = min(least[at], size)
        pairs = zip(most, least, strict=True)
        return tuple((high, int(min(high, low))) for high, low in pairs), around


def recompute_of(
    facts: ModelFacts, emitted: Sequence[EmittedRegion], arrangement: Sequence[int | Fragment]
) -> float | None:
    """Return the work after over before, at assumed sizes where a height is known at run time.

    Args:
        facts: The model.
        emitted: Its regions.
        arrangement: They and the other nodes.

    Returns:
        None where not even assumed sizes are known.
    """
    work = facts.work
    own = {id(each) for each in facts.originals.values()}
    after = sum(work[item] for item in arrangement if isinstance(item, int))
    # What keeps its own nodes does the work of those that are not written.
    kept = (item for item in arrangement if isinstance(item, Fragment) and id(item) in own)
    after += sum(work[at] for item in kept for at in item.covers)
    for entry in emitted:
        share = entry.recompute(facts, assume=True)
        if share is None:
            return None
        after += share * sum(work[at] for at in entry.plan.region.nodes)
    return after / sum(work) if sum(work) else 1.0


def costs_of(
    facts: ModelFacts,
    emitted: Sequence[EmittedRegion],
    arrangement: Sequence[int | Fragment],
    *,
    compiled: bool,
) -> tuple[float, float] | None:
    """Return work and predicted time, both after over before; as `recompute_of`.

    Args:
        facts: The model.
        emitted: Its regions; of several forms the slowest counts for all.
        arrangement: They and the other nodes.
        compiled: A compiler runs them.
    """
    work = recompute_of(facts, emitted, arrangement)
    if work is None:
        return None
    slowest = max((FORMS[entry.form].time[compiled] for entry in emitted), default=1.0)
    return work, (work + copied_of(facts, emitted)) * slowest


def copied_of(facts: ModelFacts, emitted: Sequence[EmittedRegion]) -> float:
    """Return what copying windows and cores takes, in terms of the work before."""
    moved = sum((entry.sized or entry.fragment).moved for entry in emitted)
    return COPY * moved / (sum(facts.work) or 1.0)
