"""The nodes of a graph in the order they run, as the search for regions reads them.

Nodes may stand in it more than once: a tensor that lives long can be rematerialised, made a second
time right before its late user. What a node reads is then the latest version made before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from patchconv_deploy.rewriters.operators.record import RowLocal

__all__ = ["Entry", "Schedule", "ScheduledNode", "Tensor"]


@dataclass(slots=True)
class Tensor:
    """One version of an activation.

    Attributes:
        name: Its name in the graph.
        bytes: What it costs to keep: its size, 0 for a constant and for inputs that do not count.
        made_at: Place of the node that makes it, -1 for what is there from the start.
        last_use: Place of the last node that reads it; the length of the schedule if it is
            an output of the graph.
        rows: Rows along the tiled axis, 0 if it has none.
        step: Rows per step of the row-local nodes it is connected to, 0 if it has none.
        component: Number of that set of nodes.
        size: Bytes of the tensor itself.
        elements: Its elements.
        untileable: No tiling can make it smaller: it is an input or output of the graph, or a node
            that cannot be in a region reads or makes it whole.
    """

    name: str
    bytes: int
    made_at: int
    last_use: int
    rows: int = 0
    step: int = 0
    component: int = -1
    size: int = 0
    elements: int = 0
    untileable: bool = False
    in_strips: bool = False


@dataclass(slots=True)
class ScheduledNode:
    """One node at its place.

    Attributes:
        position: Position in the graph.
        rematerialised: It repeats an earlier one; it may lie in a region alone.
        link: Its row map, None where it cannot be in a region.
        carried: Tensors it reads along the tiled axis.
        reads: All activations it reads.
        whole: Those that it does not read along the tiled axis.
        makes: Tensors it makes.
        work: `planning.work.node_work`.
        takes_over: The tensor whose bytes its output has from here on, -1 for none.
        folded: The Conv's result that it is folded into by engines, -1 for none.
    """

    position: int
    rematerialised: bool
    link: RowLocal | None
    carried: tuple[int, ...]
    reads: tuple[int, ...]
    whole: tuple[int, ...]
    makes: tuple[int, ...]
    work: float
    takes_over: int = -1
    folded: int = -1


@dataclass(frozen=True)
class Schedule:
    """Nodes and the tensors between them.

    Attributes:
        nodes: In the order they run.
        tensors: Their tensors by number.
        live: Per place, bytes of the tensors made before it and read at or after it; one more
            entry for the end.
    """

    nodes: Sequence[ScheduledNode]
    tensors: Sequence[Tensor]
    live: Sequence[int]

    @cached_property
    def users(self) -> Mapping[int, Sequence[int]]:
        """Places of the nodes that read each tensor, in order."""
        found: dict[int, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for number in node.reads:
                found.setdefault(number, []).append(place)
        return found

    @cached_property
    def rematerialised(self) -> frozenset[int]:
        """Tensors that repeated nodes make."""
        return frozenset(n for node in self.nodes if node.rematerialised for n in node.makes)


class Entry(NamedTuple):
    """A node in an order: its position in the graph, and whether it repeats an earlier one."""

    position: int
    rematerialised: bool = False
