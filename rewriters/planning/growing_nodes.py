"""Nodes as regions grow past them: what does not depend on where a region begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from patchconv_deploy.rewriters.planning.schedule import Schedule, ScheduledNode, Tensor
from patchconv_deploy.rewriters.tiling.network import TALL, valid_rows
from patchconv_deploy.rewriters.tiling.patches import Rows
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise, RowMap

__all__ = ["GrowingNode", "edges", "growing_nodes", "tall"]


class _ValidRows(dict[Rows, Rows]):
    """Rows of an operator's output that are valid, by those of its input: found once each.

    Args:
        row_map: The operator.
        rows: All rows of its input.
        count: All rows of its output.
    """

    __slots__ = ("_count", "_row_map", "_rows")

    def __init__(self, row_map: RowMap, rows: int, count: int) -> None:
        super().__init__()
        self._row_map, self._rows, self._count = row_map, rows, count

    def __missing__(self, valid: Rows) -> Rows:
        made = valid_rows(self._row_map, valid, self._rows, self._count, first=False, last=False)
        self[valid] = made
        return made


class GrowingNode(NamedTuple):
    """A row-local node as regions grow past it: what does not depend on where they begin.

    Attributes:
        carried: Tensors it reads along the tiled axis.
        makes: Tensors it makes.
        touches: Both, each once.
        whole: Tensors that it reads whole.
        ends: Those of what it touches that nobody reads any more.
        takes_over: The tensor whose bytes its output has from here on, -1 for none.
        component: Number of the set of row-local nodes it is one of.
        valid_rows: Valid rows of what it makes, None if they are those of what it reads.
        shortening: Steps that its output is shorter by where its window shrinks.
        work: Its work.
        size: Bytes of what it makes.
        elements: Elements of the largest tensor that it makes.
        buffer: Bytes of the largest tensor that it makes.
        edges: Tensors that it reads and makes, and one more.
    """

    carried: tuple[int, ...]
    makes: tuple[int, ...]
    touches: tuple[int, ...]
    whole: tuple[int, ...]
    ends: tuple[int, ...]
    takes_over: int
    component: int
    valid_rows: _ValidRows | None
    shortening: float
    work: float
    size: int
    elements: int
    buffer: int
    edges: int


def tall(tensor: Tensor) -> int:
    """Return the rows of a tensor in a window far taller than the whole."""
    return tensor.rows + TALL * tensor.step


def edges(nodes: Sequence[ScheduledNode]) -> int:
    """Return how many tensors nodes read and make, each node one more."""
    return sum(1 + len(node.reads) + len(node.makes) for node in nodes)


def growing_nodes(schedule: Schedule) -> list[GrowingNode | None]:
    """Return the nodes as regions grow past them, None where one is not row-local."""
    tensors, found = schedule.tensors, list[GrowingNode | None]()
    shared: dict[tuple[RowMap, int, int], _ValidRows] = {}
    for place, node in enumerate(schedule.nodes):
        link = node.link
        if link is None:
            found.append(None)
            continue
        made = [tensors[number] for number in node.makes]
        touches = tuple(dict.fromkeys((*node.carried, *node.makes)))
        valid = None
        if not isinstance(link.row_map, Pointwise):
            key = link.row_map, tall(tensors[node.carried[0]]), tall(made[0])
            valid = shared.setdefault(key, _ValidRows(*key))
        found.append(
            GrowingNode(
                carried=node.carried,
                makes=node.makes,
                touches=touches,
                whole=node.whole,
                ends=tuple(number for number in touches if tensors[number].last_use == place),
                takes_over=node.takes_over,
                component=made[0].component,
                valid_rows=valid,
                shortening=sum(link.removable_padding) / made[0].step,
                work=node.work,
                size=sum(tensor.size for tensor in made),
                elements=max(tensor.elements for tensor in made),
                buffer=max(tensor.size for tensor in made),
                edges=edges([node]),
            )
        )
    return found
