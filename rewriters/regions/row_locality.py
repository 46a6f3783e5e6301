"""Which nodes are row-local, and along which dimension of which tensor.

Convolutions and pools say where an image's rows are; from there the tiled axis is followed through
the graph in both directions, as far as the table of operators knows the way: through a Transpose it
becomes another dimension, at a barrier it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from rewriters.graph.facts import CertainFacts, record_of
from rewriters.operators.record import Record, RowLocal
from rewriters.operators.table import BARRIERS, SPATIAL, TABLE

__all__ = ["AXES", "Locality", "find_locality", "tiled_axes", "tiled_axis"]


# Spatial axes by name, counted from the last dimension; a 1-D Conv's only one answers to all.
AXES = {"width": 1, "height": 2, "depth": 3}

_RANKLESS = "the rank of its output is unknown"

_UNKNOWN = "the table of operators does not have it"


@dataclass(frozen=True, slots=True)
class Locality:
    """The row-local nodes of a graph, by position, and why others are not."""

    links: Mapping[int, RowLocal]
    reasons: Mapping[int, str]


def tiled_axis(name: str | int, rank: int) -> int | None:
    """Return the tensor dimension a name or an index stands for, None if there is none."""
    if isinstance(name, int):
        axis = name
    elif rank == 3:
        axis = 2
    else:
        axis = rank - AXES[name]
    return axis if 2 <= axis < rank else None


def tiled_axes(facts: CertainFacts, axis_name: str | int) -> dict[str, int]:
    """Return which dimension of each tensor is the tiled axis, where that is known.

    Args:
        facts: The model.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
    """
    graph, axes = facts.graph, dict[str, int]()
    for position, link in find_locality(facts, axis_name).links.items():
        node = graph.node[position]
        axes.update((node.input[i], axis) for i, axis in link.carriers)
        axes.update(dict.fromkeys(node.output, link.axis))
    for node in graph.node:
        if node.op_type in SPATIAL and node.domain in ("", "ai.onnx"):
            shape = facts.shapes.dims.get(node.input[0])
            axis = None if shape is None else tiled_axis(axis_name, len(shape))
            if axis is not None:
                axes.setdefault(node.input[0], axis)
    return axes


def find_locality(facts: CertainFacts, axis_name: str | int) -> Locality:
    """Find every row-local node.

    Args:
        facts: The model.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
    """
    graph, index, shapes = facts.graph, facts.index, facts.shapes
    links: dict[int, RowLocal] = {}
    reasons: dict[int, str] = {}
    records: dict[int, Record] = {}
    queue: deque[int] = deque()

    def ask(position: int, axis: int) -> RowLocal | str:
        node = graph.node[position]
        if node.domain not in ("", "ai.onnx"):
            return f"it is of the domain {node.domain}"
        if node.op_type not in TABLE:
            return BARRIERS.get(node.op_type, _UNKNOWN)
        if not shapes.doubtful.isdisjoint((*node.input, *node.output)):
            return "runtimes disagree on the size of what it reads or makes"
        read = [n for n in node.output if n in index.users or n in index.outputs]
        if any(len(shapes.dims.get(name, ())) <= axis for name in read):
            return _RANKLESS
        if position not in records:
            records[position] = record_of(facts, position)
        return TABLE[node.op_type](records[position], axis)

    def assign(position: int, axis: int) -> bool:
        if position in links:
            return True
        found = ask(position, axis)
        if isinstance(found, str):
            reasons.setdefault(position, found)
            return False
        links[position] = found
        reasons.pop(position, None)
        queue.append(position)
        return True

    def follow(position: int, name: str, axis: int) -> None:
        """Look for the output dimension whose rows come from this input's dimension."""
        node = graph.node[position]
        # Where the rank is unknown it is asked once, for the reason why not.
        rank = len(shapes.dims.get(node.output[0]) or (0,) * (axis + 1)) if node.output else 0
        for at in sorted(range(rank), key=lambda at: (at != axis, at)):
            found = ask(position, at)
            if isinstance(found, str):
                reasons.setdefault(position, found)
                if found in (_UNKNOWN, BARRIERS.get(node.op_type)):
                    return
            elif any(node.input[i] == name and a == axis for i, a in found.carriers):
                assign(position, at)
                return

    for position, node in enumerate(graph.node):
        if node.op_type in SPATIAL and node.domain in ("", "ai.onnx"):
            shape = shapes.dims.get(node.input[0])
            axis = None if shape is None else tiled_axis(axis_name, len(shape))
            if axis is None:
                continue
            if not assign(position, axis) and node.op_type not in TABLE:
                # A barrier still says where the axes of what it reads are.
                producer = index.producer.get(node.input[0])
                if producer is not None:
                    assign(producer, axis)
    while queue:
        position = queue.popleft()
        node, link = graph.node[position], links[position]
        for i, axis in link.carriers:
            producer = index.producer.get(node.input[i])
            if producer is not None and producer not in links:
                assign(producer, axis)
        for name in node.output:
            for user in index.users.get(name, ()):
                if user not in links:
                    follow(user, name, link.axis)
    return Locality(links, reasons)
