"""Search: which nodes to run patch by patch, in how many patches, for a memory budget.

The nodes stand in the order they run (`planning.schedule`); several orders are tried
(`planning.orders`). From every place where one may begin, regions grow (`planning.growing`); they
and the nodes as they are make a graph of stages (`planning.stage_graph`), and a plan is a shortest
path through it (`planning.shortest_path`). All windows of a region are of one height: P patches of
window share w do P*w times the work, where w follows from the rows that stay valid
(`tiling.patches`).

Tensors that live long (skip connections, what a pool over the whole image reads before the rest
does) hold a peak that no stage can lower. They may be rematerialised
(`planning.rematerialisation`): which ones is found greedily, of those that hold the least peak the
largest first.

Related work: MCUNetV2 (arXiv:2110.15352) patches the head of a network; TVM's Ethos-U cascader
(apache/tvm-rfcs 0037) searches stripes for on-chip memory with Pareto sets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from patchconv_deploy.rewriters.emission.rounds import OLDEST_OPSET
from patchconv_deploy.rewriters.memory.targets import ENGINES
from patchconv_deploy.rewriters.operators.record import RowLocal
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.orders import run_orders
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.rematerialisation import (
    Rematerialisation,
    across_barriers,
    overhead_without,
    peak_holders,
    rematerialisations,
)
from patchconv_deploy.rewriters.planning.schedule import Entry, Schedule
from patchconv_deploy.rewriters.planning.scheduling import make_schedule
from patchconv_deploy.rewriters.planning.shortest_path import least_peak
from patchconv_deploy.rewriters.planning.stage_graph import StageGraph, live_bytes, stage_graphs_of
from patchconv_deploy.rewriters.planning.stages import USUAL, Limits, Plan

__all__ = ["stage_graphs", "takes_rounds"]


# Tensors read and made that are walked past for the regions of all orders together; the last order
# is finished.
_WALKED_IN_ALL = 2_000_000

# Tensors that are rematerialised at most, and what each has to bring.
_MOST_REMATERIALISED = 6

_WORTH = 0.97

# Orders of the nodes in which strips are handed over.
_IN_STRIPS = ("engine", "runs")

# Most work with whole passes run again.
_PASSES = 2.5


def stage_graphs(
    predictor: MemoryPredictor,
    links: Mapping[int, RowLocal],
    skipped: Collection[int],
    engine: str,
    progress: Callable[[int, int], None],
) -> Iterator[StageGraph]:
    """Yield the stages of each order of the nodes, then with long-lived tensors rematerialised.

    Args:
        predictor: Predicts the model's memory.
        links: Row-local nodes that may be in a region.
        skipped: Nodes that compute constants.
        engine: A key of `memory.targets.ENGINES`.
        progress: Called with (done, most) from time to time.
    """
    facts = predictor.facts
    run, alive = predictor.run(engine)
    search = _Search(facts, links, engine, progress)
    schedules = {
        name: search.schedule([Entry(at) for at in order if at not in skipped])
        for name, order in run_orders(facts, run, links).items()
    }
    base = schedules["engine"]
    overhead = {
        node.position: max(0, alive.get(node.position, 0) - counted)
        for node, counted in zip(base.nodes, live_bytes(base, {}), strict=True)
    }
    found = [
        graph
        for name, each in schedules.items()
        for graph in search.stages(each, overhead, name)
        if not graph.in_strips or name in _IN_STRIPS
    ]
    yield from found
    usual = Limits(recompute=USUAL)
    for in_strips in (False, True):
        plans = [
            (plan, graph)
            for graph in found
            if graph.in_strips == in_strips and (plan := least_peak(graph, usual)) is not None
        ]
        if plans:
            plan, graph = min(plans, key=lambda entry: entry[0].peak)
            yield from search.rematerialised(graph, plan, overhead, usual)


def takes_rounds(facts: ModelFacts, links: Mapping[int, RowLocal], engine: str) -> bool:
    """Tell whether regions are written as rounds, as many as an image needs.

    That is where the tiled axis is of any size; a compiler takes no sequences.

    Args:
        facts: The model.
        links: Its row-local nodes.
        engine: A key of `memory.targets.ENGINES`.
    """
    if ENGINES[engine].lowering.compiler or facts.certain.opset < OLDEST_OPSET:
        return False
    graph, dims = facts.certain.graph, facts.certain.shapes.dims
    made = ((dims.get(graph.node[at].output[0], ()), link.axis) for at, link in links.items())
    return any(len(shape) > axis and shape[axis] is None for shape, axis in made)


@dataclass
class _Search:
    """The effort of a search, and what all of its schedules have in common.

    Attributes:
        facts: The model.
        links: Row-local nodes that may be in a region.
        engine: A key of `memory.targets.ENGINES`.
        progress: Called with (done, most) from time to time.
        walked: Tensors that were walked past so far.
    """

    facts: ModelFacts
    links: Mapping[int, RowLocal]
    engine: str
    progress: Callable[[int, int], None]
    walked: int = 0

    def schedule(self, order: Sequence[Entry]) -> Schedule:
        """Lay out the nodes in an order."""
        laid = make_schedule(self.facts, self.links, order, engine=ENGINES[self.engine])
        self._tell(0)
        return laid

    def stages(
        self, schedule: Schedule, engine_overhead: Mapping[int, int], order: str
    ) -> list[StageGraph]:
        """Find all stages of a schedule, as `stage_graphs_of`."""
        grows = takes_rounds(self.facts, self.links, self.engine)
        found = list(
            stage_graphs_of(
                schedule,
                engine_overhead,
                order,
                self._tell,
                hands_over=bool(self.facts.statistics) or grows,
                in_loops=grows,
            )
        )
        self.walked += found[0].walked
        return found

    def _tell(self, here: int) -> None:
        self.progress(min(self.walked + here, _WALKED_IN_ALL), _WALKED_IN_ALL)

    def rematerialised(
        self, graph: StageGraph, plan: Plan, engine_overhead: Mapping[int, int], limits: Limits
    ) -> Iterator[StageGraph]:
        """Yield stages with one tensor more rematerialised each, as long as that lowers the peak.

        Args:
            graph: The stages where none is.
            plan: The plan of least peak.
            engine_overhead: As of `stage_graph`.
            limits: What plans keep.
        """
        base, chosen = graph.schedule, dict[int, Rematerialisation]()
        yield from self._greedily(graph, plan, chosen, engine_overhead, limits, base)
        if not graph.in_strips:
            return
        passes, best = replace(limits, recompute=_PASSES), None
        for wanted, order in across_barriers(base):
            if self.walked >= _WALKED_IN_ALL:
                return
            overhead = overhead_without(base, wanted, engine_overhead)
            tried = self.stages(self.schedule(order), overhead, graph.order)[-1]
            lower = least_peak(tried, passes)
            if lower is not None:
                yield tried
                if best is None or lower.peak < best[1].peak:
                    best = tried, lower, wanted
        if best is not None:
            yield from self._greedily(*best, engine_overhead, passes, base)

    def _greedily(
        self,
        graph: StageGraph,
        plan: Plan,
        chosen: Mapping[int, Rematerialisation],
        engine_overhead: Mapping[int, int],
        limits: Limits,
        base: Schedule,
    ) -> Iterator[StageGraph]:
        for _ in range(_MOST_REMATERIALISED):
            for wanted, order in rematerialisations(base, chosen, peak_holders(graph, plan, base)):
                if self.walked >= _WALKED_IN_ALL:
                    return
                overhead = overhead_without(base, wanted, engine_overhead)
                both = self.stages(self.schedule(order), overhead, graph.order)
                tried = both[graph.in_strips]
                lower = least_peak(tried, limits)
                if lower is not None and lower.peak < _WORTH * plan.peak:
                    chosen, graph, plan = wanted, tried, lower
                    break
            else:
                return
            yield graph
