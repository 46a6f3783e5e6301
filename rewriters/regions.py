"""Regions: what can be cut as one.

A region is a chain of row-local nodes with one input and one output that carry the tiled axis. The
smallest is one convolution. A convolution between DequantizeLinear and QuantizeLinear takes both
into its region, so that the pair stays next to it in every patch and the runtime still finds its
int8 kernel:

    x_q -> DequantizeLinear -> Conv [-> Relu|Clip] -> QuantizeLinear -> y_q      (one region)

Matching is pure: it reads the graph and answers with a frozen `Region` or a `Refusal`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod

import onnx

from rewriters.graph import Index, attributes, node_label
from rewriters.operators import CONVOLUTIONS, TABLE, Record, RowLocal, Shape, read_convolution
from rewriters.rowmaps import RowMap
from rewriters.shapes import Shapes

__all__ = [
    "AXES",
    "ConvSize",
    "Refusal",
    "Region",
    "Selection",
    "candidates",
    "conv_size",
    "find_region",
    "select",
]

# Spatial axes by name, counted from the last dimension; a 1-D Conv's only one answers to all.
AXES = {"width": 1, "height": 2, "depth": 3}
_BETWEEN = frozenset({"Relu", "Clip", "LeakyRelu"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """A convolution that was left alone.

    Attributes:
        node: The node's name, or its output's where it has none.
        reason: Why, in words.
        code: The same as a word that stays the same from release to release.
    """

    node: str
    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class Region:
    """A chain of nodes that is cut as one.

    Attributes:
        nodes: Positions in the graph, first to last.
        conv: Position of the convolution.
        label: The convolution's label; names of emitted nodes derive from it.
        input: The tensor that is cut into windows.
        output: The tensor the cores are put together to.
        rank: Dimensions of both.
        axis: The tiled axis.
        links: Per node its row map, the input that carries the axis, and changed attributes.
    """

    nodes: tuple[int, ...]
    conv: int
    label: str
    input: str
    output: str
    rank: int
    axis: int
    links: tuple[RowLocal, ...]

    @property
    def chain(self) -> tuple[RowMap, ...]:
        """The row maps alone, input to output."""
        return tuple(link.row_map for link in self.links)


@dataclass(frozen=True, slots=True)
class ConvSize:
    """Sizes of a convolution's input and output; None where unknown."""

    input: Shape | None
    output: Shape | None
    bytes: int | None
    elements: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which convolutions to cut.

    Attributes:
        min_elements: Least channels x height x width of the larger of input and output; None for
            the default rule: input and output are at least half of the graph's peak.
        include: Name patterns; a match is cut whatever the default rule says.
        exclude: Name patterns that are never cut.
    """

    min_elements: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def candidates(graph: onnx.GraphProto) -> Iterator[int]:
    """Yield the positions of the main graph's convolutions."""
    for position, node in enumerate(graph.node):
        if node.op_type in CONVOLUTIONS and node.domain in ("", "ai.onnx"):
            yield position


def conv_size(node: onnx.NodeProto, shapes: Shapes) -> ConvSize:
    """Return the sizes of a convolution's input and output."""
    x, y = shapes.dims.get(node.input[0]), shapes.dims.get(node.output[0])
    both = (shapes.bytes(node.input[0]), shapes.bytes(node.output[0]))
    elements = None
    if x and y and all(size is not None for size in x[1:] + y[1:]):
        elements = max(prod(size or 0 for size in x[1:]), prod(size or 0 for size in y[1:]))
    total = None if both[0] is None or both[1] is None else both[0] + both[1]
    return ConvSize(x, y, total, elements)


def select(label: str, size: ConvSize, peak: int, selection: Selection) -> Refusal | None:
    """Return None if the convolution is to be cut, else why not.

    Args:
        label: The convolution's label, matched against the patterns.
        size: Its sizes, of free dimensions as assumed.
        peak: Predicted peak activation of the whole graph, in bytes.
        selection: The user's choice.
    """

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(label, pattern) for pattern in patterns)

    if matches(selection.exclude):
        return Refusal(label, "excluded by name", "excluded")
    if selection.include and not matches(selection.include):
        return Refusal(label, "not among the included names", "not-included")
    if selection.min_elements is not None:
        if selection.min_elements == 0:
            return None
        if size.elements is None:
            return Refusal(label, "its size is unknown; fix it with --shape", "size-unknown")
        if size.elements < selection.min_elements:
            return Refusal(
                label,
                f"not large: {size.elements} elements, {selection.min_elements} asked for",
                "not-large",
            )
        return None
    if selection.include:
        return None
    if size.bytes is None or not peak:
        return Refusal(
            label,
            "its size is unknown; fix it with --shape, or take every Conv with --min-elements 0",
            "size-unknown",
        )
    if 2 * size.bytes < peak:
        share = 100 * size.bytes / peak
        return Refusal(label, f"not large: {share:.0f} % of the graph's peak", "not-large")
    return None


def _axis(name: str | int, rank: int) -> int | None:
    """Return the tensor dimension a name or an index stands for, None if there is none."""
    if isinstance(name, int):
        axis = name
    elif rank == 3:
        axis = 2
    else:
        axis = rank - AXES[name]
    return axis if 2 <= axis < rank else None


def _record(node: onnx.NodeProto, shapes: Shapes, opset: int) -> Record:
    dims = tuple(shapes.dims.get(name) if name else None for name in node.input)
    return Record(node.op_type, opset, attributes(node), dims)


def find_region(
    index: Index, shapes: Shapes, opset: int, position: int, axis_name: str | int
) -> Region | Refusal:
    """Find the region around a convolution.

    Args:
        index: Use-def index of the graph.
        shapes: Known shapes; assumed sizes must not be in it.
        opset: Version of the default domain.
        position: Position of the convolution.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
    """
    graph = index.graph
    conv = graph.node[position]
    label = node_label(conv)
    record = _record(conv, shapes, opset)
    read = read_convolution(record)
    if isinstance(read, str):
        return Refusal(label, read, "kernel-unknown")
    rank = read.rank + 2
    axis = _axis(axis_name, rank)
    if axis is None:
        return Refusal(label, f"a {read.rank}-D Conv has no axis {axis_name}", "no-such-axis")
    if conv.input[0] in index.constants:
        return Refusal(label, "its input is a constant", "constant-input")
    link = TABLE[conv.op_type](record, axis)
    if isinstance(link, str):
        return Refusal(label, link, "not-provable")
    nodes, links = [position], [link]
    head = _dequantize_before(index, shapes, opset, conv.input[0], axis)
    tail = _quantize_after(index, shapes, opset, conv.output[0], axis) if head else []
    if head and tail:
        nodes = [head[0], position, *(at for at, _ in tail)]
        links = [head[1], link, *(local for _, local in tail)]
    if any(not _can_slice(shapes.elements.get(name), opset) for name in _ends(graph, nodes)):
        # The pair's type cannot be cut at this opset: cut the Conv alone, or nothing.
        nodes, links = [position], [link]
    for name in _ends(graph, nodes):
        if not _can_slice(shapes.elements.get(name), opset):
            return Refusal(label, f"opset {opset} cannot slice its element type", "opset-too-old")
    first, last = graph.node[nodes[0]], graph.node[nodes[-1]]
    return Region(
        nodes=tuple(nodes),
        conv=position,
        label=label,
        input=first.input[0],
        output=last.output[0],
        rank=rank,
        axis=axis,
        links=tuple(links),
    )


def _ends(graph: onnx.GraphProto, nodes: Sequence[int]) -> tuple[str, str]:
    """Return the tensors that a chain of nodes begins and ends with."""
    return graph.node[nodes[0]].input[0], graph.node[nodes[-1]].output[0]


@lru_cache(maxsize=256)
def _can_slice(element: int | None, opset: int) -> bool:
    """Tell whether Slice, Concat and Reshape take an element type; unknown ones are let pass."""
    if element is None:
        return True
    if element not in onnx.TensorProto.DataType.values():
        return False
    word = "tensor(" + onnx.TensorProto.DataType.Name(element).lower() + ")"
    newest = min(opset, onnx.defs.onnx_opset_version())
    return all(
        word in onnx.defs.get_schema(op, newest).type_constraints[0].allowed_type_strs
        for op in ("Slice", "Concat", "Reshape")
    )


def _dequantize_before(
    index: Index, shapes: Shapes, opset: int, name: str, axis: int
) -> tuple[int, RowLocal] | None:
    position = index.producer.get(name)
    if position is None:
        return None
    node = index.graph.node[position]
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    link = TABLE["DequantizeLinear"](_record(node, shapes, opset), axis)
    return None if isinstance(link, str) else (position, link)


def _quantize_after(
    index: Index, shapes: Shapes, opset: int, name: str, axis: int
) -> list[tuple[int, RowLocal]]:
    """Return the nodes from the tensor's only user down to QuantizeLinear, or none."""
    found: list[tuple[int, RowLocal]] = []
    while True:
        users = index.users.get(name, [])
        if name in index.outputs or len(users) != 1:
            return []
        node = index.graph.node[users[0]]
        if node.domain not in ("", "ai.onnx") or node.input[0] != name:
            return []
        if node.op_type not in _BETWEEN and node.op_type != "QuantizeLinear":
            return []
        link = TABLE[node.op_type](_record(node, shapes, opset), axis)
        if isinstance(link, str) or name in node.input[1:]:
            return []
        found.append((users[0], link))
        if node.op_type == "QuantizeLinear":
            return found
        name = node.output[0]
