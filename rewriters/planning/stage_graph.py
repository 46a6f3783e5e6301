"""The graph that plans are paths through: places between nodes, and the stages from one to another.

A *stage* is a run of neighbouring nodes: one node as it is, or a region in P patches. What lives
across a stage's ends does not depend on how the nodes before it were staged, so each stage's peak
can be told alone:

    as it is     live before + what the node makes
    P patches    live before + all outputs + max(window x most live inside, largest output)
    in strips    live before + grown + max(window x most live inside, largest joined)

While the patches run, their cores pile up; then they are joined, each output beside its cores. What
regions alone read can stay in strips: those that nobody reads any more are set free one by one as
the outputs grow, and ``grown`` is by how much more these are in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from patchconv_deploy.rewriters.planning.candidate_regions import candidate_regions
from patchconv_deploy.rewriters.planning.region_table import RegionTable
from patchconv_deploy.rewriters.planning.schedule import Schedule, Tensor
from patchconv_deploy.rewriters.planning.stages import LargestTensor, Limits

__all__ = ["StageGraph", "live_bytes", "stage_graphs_of"]


# A tensor so many times smaller than the peak is as well put together.
_SMALL = 32


@dataclass(frozen=True, eq=False)
class StageGraph:
    """All stages of one order of the nodes.

    Attributes:
        schedule: The nodes in order.
        order: Name of the order of the nodes (`planning.orders`).
        regions: The regions there are.
        live_bytes: Bytes alive while each node runs as it is.
        walked: Tensors that were walked past to find the regions.
        in_strips: Regions hand over in strips what can be: nobody else may make or read it.
    """

    schedule: Schedule
    order: str
    regions: RegionTable
    live_bytes: list[int]
    walked: int
    in_strips: bool = False
    # Per limit on tensors `live_bytes`, None of a node that must be cut.
    _uncut: dict[LargestTensor, list[int | None]] = field(default_factory=dict)

    @cached_property
    def size(self) -> int:
        """Places and stages that a plan is looked for at."""
        return len(self.schedule.nodes) + len(self.regions)

    @cached_property
    def _strips(self) -> frozenset[int]:
        """Tensors that regions alone may make and read; small ones do not matter."""
        if not self.in_strips:
            return frozenset()
        least = max(self.live_bytes, default=0) // _SMALL
        tensors = enumerate(self.schedule.tensors)
        return frozenset(n for n, t in tensors if t.in_strips and t.bytes > least)

    @cached_property
    def work(self) -> float:
        """Multiply-accumulates of all nodes, each once."""
        return sum(node.work for node in self.schedule.nodes if not node.rematerialised)

    @cached_property
    def rematerialised_work(self) -> float:
        """Multiply-accumulates of all nodes that repeat others."""
        return sum(node.work for node in self.schedule.nodes if node.rematerialised)

    @cached_property
    def bound(self) -> int:
        """Bytes below which no plan goes: what nodes that cannot be cut read and make at once."""
        schedule = self.schedule
        whole = [
            sum(schedule.tensors[number].bytes for number in {*o.reads, *o.makes} - {o.takes_over})
            for o in schedule.nodes
            if o.link is None
        ]
        end = len(schedule.nodes)
        outputs = sum(t.bytes for t in schedule.tensors if t.last_use >= end)
        return max([outputs, *whole])

    def too_large(self, most: LargestTensor) -> bool:
        """Tell whether a tensor between nodes is larger than that."""
        tensors = self.schedule.tensors
        return any(most.exceeded_by(t.elements, t.size) and t.made_at >= 0 for t in tensors)

    def untileable(self, most: LargestTensor) -> list[Tensor]:
        """Return the larger tensors that no tiling makes smaller, the most bytes first."""
        tensors = self.schedule.tensors
        found = [t for t in tensors if t.untileable and most.exceeded_by(t.elements, t.size)]
        return sorted(found, key=lambda tensor: -tensor.size)

    def forbid(self, begin: int, end: int) -> None:
        """Have no region between two places: it was found not to be provable."""
        self.regions.forbid(begin, end)

    def uncut(self, limits: Limits) -> list[bool]:
        """Tell of every node whether it may be left as it is."""
        most = limits.tensor
        if most not in self._uncut:
            wide = {
                number
                for number, tensor in enumerate(self.schedule.tensors)
                if most.exceeded_by(tensor.elements, tensor.size) and not tensor.untileable
            }
            strips = self._strips
            self._uncut[most] = [
                None
                if node.rematerialised
                or not wide.isdisjoint(node.makes)
                or not strips.isdisjoint((*node.makes, *node.reads))
                else alive
                for alive, node in zip(self.live_bytes, self.schedule.nodes, strict=True)
            ]
        budget = limits.budget
        return [alive is not None and alive <= budget for alive in self._uncut[most]]


def stage_graphs_of(
    schedule: Schedule,
    engine_overhead: Mapping[int, int],
    order: str,
    progress: Callable[[int], None],
    *,
    hands_over: bool,
    in_loops: bool = False,
) -> Iterator[StageGraph]:
    """Yield all stages of a schedule: what regions make put together, then handed over in strips.

    Args:
        schedule: The nodes in order.
        engine_overhead: Bytes an engine has alive while a node runs, by position, beyond those
            counted here: what it copies and lays out anew.
        order: Name of the order of the nodes.
        progress: Called with the tensors walked past so far from time to time.
        hands_over: Yield the second.
        in_loops: As of `planning.stages.CandidateRegion.peak`.
    """
    found = candidate_regions(schedule, progress)
    for in_strips in (False, True) if hands_over else (False,):
        # What an engine lays out anew beside a node are whole tensors: of strips there are none.
        alive = live_bytes(schedule, {} if in_strips else engine_overhead)
        table = RegionTable(found.regions, in_strips=in_strips, in_loops=in_loops)
        yield StageGraph(schedule, order, table, alive, found.walked, in_strips)


def live_bytes(schedule: Schedule, engine_overhead: Mapping[int, int]) -> list[int]:
    """Return the bytes alive while each node runs as it is.

    Args:
        schedule: The nodes in order.
        engine_overhead: As of `stage_graphs_of`.
    """
    found = []
    for place, node in enumerate(schedule.nodes):
        made = sum(schedule.tensors[number].bytes for number in node.makes)
        if node.takes_over >= 0:
            made = 0
        found.append(schedule.live[place] + made + engine_overhead.get(node.position, 0))
    return found
