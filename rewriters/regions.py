"""Regions: what can be cut as one.

A region is a connected set of row-local nodes: it reads tensors that carry the tiled axis, its
*inputs*, and makes such tensors that others read, its *outputs*. The smallest is one convolution. A
convolution between DequantizeLinear and QuantizeLinear takes both into its region, so that the pair
stays next to it in every patch and the runtime still finds its int8 kernel:

    x_q -> DequantizeLinear -> Conv [-> Relu|Clip] -> QuantizeLinear -> y_q      (one region)

Matching is pure: it reads the graph and answers with a frozen `Region` or a `Refusal`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod

import onnx

from rewriters.graph import captured, node_label
from rewriters.locality import Facts, record_of, tiled_axis
from rewriters.operators import CONVOLUTIONS, RowLocal, Shape, read_convolution
from rewriters.proof import Link, Network, heights, steps
from rewriters.shapes import Shapes
from rewriters.table import TABLE

__all__ = [
    "ConvSize",
    "Edge",
    "Refusal",
    "Region",
    "Selection",
    "candidates",
    "conv_size",
    "find_region",
    "make_region",
    "region_size",
    "select",
]

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
class Edge:
    """A tensor of the graph and the dimension of it that is the tiled axis."""

    name: str
    axis: int


@dataclass(frozen=True, slots=True)
class Region:
    """A set of nodes that is cut as one.

    Attributes:
        nodes: Positions in the graph, ascending.
        label: Names of emitted nodes derive from it.
        tensors: The tensors that carry the tiled axis; the network knows them by number.
        network: The row maps between them.
        links: Per node its row map, the inputs that carry the axis, and what to replace.
        rank: Dimensions of all its tensors where they are convolutions' alone, else 0: then every
            rank is known.
    """

    nodes: tuple[int, ...]
    label: str
    tensors: tuple[Edge, ...]
    network: Network
    links: tuple[RowLocal, ...]
    rank: int = 0

    @property
    def inputs(self) -> tuple[Edge, ...]:
        """Tensors that are cut into windows."""
        return tuple(self.tensors[number] for number in self.network.inputs)

    @property
    def outputs(self) -> tuple[Edge, ...]:
        """Tensors that cores are put together to."""
        return tuple(self.tensors[number] for number in self.network.outputs)

    def rows(self, shapes: Shapes) -> tuple[int, ...] | None:
        """Return the rows of each input, None if any is unknown."""
        found = []
        for edge in self.inputs:
            dims = shapes.dims.get(edge.name)
            rows = None if dims is None or len(dims) <= edge.axis else dims[edge.axis]
            if rows is None:
                return None
            found.append(rows)
        return tuple(found)


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


def region_size(region: Region, shapes: Shapes) -> ConvSize:
    """Return the sizes of a region's first input and output, and the bytes of all of them."""
    x, y = (shapes.dims.get(edges[0].name) for edges in (region.inputs, region.outputs))
    sizes = [shapes.bytes(edge.name) for edge in (*region.inputs, *region.outputs)]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    return ConvSize(x, y, total, None)


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
            return Refusal(label, "its size is unknown; fix it with shapes=", "size-unknown")
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
            "its size is unknown; fix it with shapes=, or take every Conv with min_elements=0",
            "size-unknown",
        )
    if 2 * size.bytes < peak:
        share = 100 * size.bytes / peak
        return Refusal(label, f"not large: {share:.0f} % of the graph's peak", "not-large")
    return None


def make_region(
    facts: Facts,
    links: Mapping[int, RowLocal],
    nodes: Collection[int],
    wanted: Collection[str],
    label: str,
    rank: int = 0,
) -> Region | Refusal:
    """Make a region of row-local nodes.

    Args:
        facts: The model.
        links: At least the nodes' own links.
        nodes: Positions of the nodes.
        wanted: Tensors to make whole; those that the nodes make for others.
        label: Names the region.
        rank: Dimensions of all tensors where that is certain, else 0.
    """
    graph = facts.graph
    ordered = tuple(sorted(nodes))
    numbers: dict[Edge, int] = {}
    made: dict[str, Edge] = {}
    entries: list[Link] = []
    inputs: list[int] = []
    for position in ordered:
        node, link = graph.node[position], links[position]
        reads = []
        for i, axis in link.carriers:
            edge = Edge(node.input[i], axis)
            if edge.name in made and made[edge.name] != edge:
                return Refusal(label, "a tensor in it is cut along two dimensions", "not-provable")
            if edge not in numbers:
                numbers[edge] = len(numbers)
                inputs.append(numbers[edge])
            reads.append(numbers[edge])
        carriers = {i for i, _ in link.carriers}
        shared = [n for i, n in enumerate(node.input) if i not in carriers and n in made]
        if shared or any(name in made for name in captured(node)):
            return Refusal(
                label, "a tensor made in it is used whole by each of its rows", "not-provable"
            )
        makes = []
        for name in node.output:
            if name:
                edge = Edge(name, link.axis)
                made[name] = edge
                numbers[edge] = len(numbers)
                makes.append(numbers[edge])
        entries.append(Link(link.row_map, tuple(reads), tuple(makes), link.room))
    outputs = tuple(numbers[made[name]] for name in made if name in wanted)
    network = Network(len(numbers), tuple(entries), tuple(inputs), outputs)
    region = Region(
        ordered, label, tuple(numbers), network, tuple(links[at] for at in ordered), rank
    )
    return _fitting(facts, region) or region


def _fitting(facts: Facts, region: Region) -> Refusal | None:
    """Return why a region cannot be cut whatever the patches, None if it may."""
    label, shapes = region.label, facts.shapes
    found = steps(region.network)
    if isinstance(found, str):
        return Refusal(label, found, "not-provable")
    for edge in (*region.inputs, *region.outputs):
        if not _can_slice(shapes.elements.get(edge.name), facts.opset):
            reason = f"opset {facts.opset} cannot slice its element type"
            return Refusal(label, reason, "opset-too-old")
    if not shapes.doubtful.isdisjoint(edge.name for edge in (*region.inputs, *region.outputs)):
        return Refusal(
            label,
            "runtimes disagree on the size of its input (a fractional Resize, a pool with "
            "ceil_mode or a narrow Cast before it)",
            "size-doubtful",
        )
    rows = region.rows(shapes)
    if rows is None:
        if len(region.inputs) > 1:
            reason = "its inputs' sizes along the tiled axis are unknown; fix them with shapes="
            return Refusal(label, reason, "size-unknown")
        return None
    whole = heights(region.network, rows)
    if isinstance(whole, str):
        return Refusal(label, whole, "not-provable")
    for edge, count in zip(region.tensors, whole, strict=True):
        dims = shapes.dims.get(edge.name)
        inferred = dims[edge.axis] if dims is not None and len(dims) > edge.axis else None
        if inferred not in (None, count):
            return Refusal(
                label,
                f"shape inference gives {edge.name} {inferred} rows, its own arithmetic {count}",
                "not-provable",
            )
    return None


def find_region(facts: Facts, position: int, axis_name: str | int) -> Region | Refusal:
    """Find the region of one convolution, its Q/DQ pair included.

    Args:
        facts: The model.
        position: Position of the convolution.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
    """
    conv = facts.graph.node[position]
    label = node_label(conv)
    record = record_of(facts, position)
    read = read_convolution(record)
    if isinstance(read, str):
        return Refusal(label, read, "kernel-unknown")
    axis = tiled_axis(axis_name, read.rank + 2)
    if axis is None:
        return Refusal(label, f"a {read.rank}-D Conv has no axis {axis_name}", "no-such-axis")
    if conv.input[0] in facts.index.constants:
        return Refusal(label, "its input is a constant", "constant-input")
    link = TABLE[conv.op_type](record, axis)
    if isinstance(link, str):
        return Refusal(label, link, "not-provable")
    head = _dequantize_before(facts, conv.input[0], axis)
    tail = _quantize_after(facts, conv.output[0], axis) if head else {}
    if head and tail:
        last = facts.graph.node[max(tail)].output[0]
        links = {**head, position: link, **tail}
        region = make_region(facts, links, links, [last], label, read.rank + 2)
        # The pair's type may not be cut at this opset: cut the Conv alone, or nothing.
        if isinstance(region, Region):
            return region
    return make_region(facts, {position: link}, [position], conv.output, label, read.rank + 2)


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


def _dequantize_before(facts: Facts, name: str, axis: int) -> dict[int, RowLocal]:
    position = facts.index.producer.get(name)
    if position is None:
        return {}
    node = facts.graph.node[position]
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return {}
    link = TABLE["DequantizeLinear"](record_of(facts, position), axis)
    return {} if isinstance(link, str) else {position: link}


def _quantize_after(facts: Facts, name: str, axis: int) -> dict[int, RowLocal]:
    """Return the nodes from the tensor's only user down to QuantizeLinear, or none."""
    found: dict[int, RowLocal] = {}
    while True:
        users = facts.index.users.get(name, [])
        if name in facts.index.outputs or len(users) != 1:
            return {}
        node = facts.graph.node[users[0]]
        if node.domain not in ("", "ai.onnx") or node.input[0] != name:
            return {}
        if node.op_type not in _BETWEEN and node.op_type != "QuantizeLinear":
            return {}
        link = TABLE[node.op_type](record_of(facts, users[0]), axis)
        if isinstance(link, str) or name in node.input[1:]:
            return {}
        found[users[0]] = link
        if node.op_type == "QuantizeLinear":
            return found
        name = node.output[0]
