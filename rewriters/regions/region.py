"""Regions: what can be cut as one.

A region is a connected set of row-local nodes: it reads tensors that carry the tiled axis, its
*inputs*, and makes such tensors that others read, its *outputs*. The smallest is one convolution. A
convolution between DequantizeLinear and QuantizeLinear takes both into its region, so that the pair
stays next to it in every patch and the runtime still finds its int8 kernel:

    x_q -> DequantizeLinear -> Conv [-> Relu|Clip] -> QuantizeLinear -> y_q      (one region)

Matching is pure: it reads the graph and answers with a frozen `Region` or a `Refusal`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import onnx

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.nodes import captured
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.operators.record import RowLocal
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.tiling.network import Link, Network, heights, steps, tallest_first
from patchconv_deploy.rewriters.tiling.row_maps import Fitted
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["Edge", "Region", "make_region"]


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
        heights: The least and the largest height (`Network.rows_at`) that it is run at, where that
            is given; None for any.
        height: An input of the model and the dimension of it that is its height, where anything
            in the region is fitted to that (`tiling.row_maps.Fitted`); else None.
    """

    nodes: tuple[int, ...]
    label: str
    tensors: tuple[Edge, ...]
    network: Network
    links: tuple[RowLocal, ...]
    rank: int = 0
    heights: tuple[int, int] | None = None
    height: Edge | None = None

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

    def at(self, shapes: Shapes) -> Region:
        """Return the same at known shapes: what is fitted to the model's height is numbers."""
        dims = () if self.height is None else shapes.dims.get(self.height.name, ())
        known = None
        if self.height is not None and self.height.axis < len(dims):
            known = dims[self.height.axis]
        return self if known is None else replace(self, network=self.network.at(known), height=None)


def make_region(
    facts: CertainFacts,
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
        entries.append(Link(link.row_map, tuple(reads), tuple(makes), link.removable_padding))
    outputs = tuple(numbers[made[name]] for name in made if name in wanted)
    network = Network(len(numbers), tuple(entries), tuple(inputs), outputs)
    edges = tuple(numbers)
    given: tuple[int, int] | None = None
    height = None
    if network.fits:
        height = _height(facts, network, [edges[number] for number in inputs])
        if height is None:
            reason = "it ends by sizes that are known at run time alone; fix them with shapes="
            return Refusal(label, reason, "size-unknown")
    if any(_is_free(facts.shapes, edges[number]) for number in inputs):
        if len(inputs) > 1 or network.fits:
            network = replace(network, sizes=_sizes(facts, [edges[n] for n in inputs]))
        if len(inputs) == 1 or network.sizes:
            network = tallest_first(network)
        size = facts.free.size(edges[inputs[0]].name, edges[inputs[0]].axis)
        if network.sizes and size is not None:  # its height is the model's own
            size = Size.free(size.symbol)
        given = facts.free.range_of(size)
    own = tuple(links[at] for at in ordered)
    region = Region(ordered, label, tuple(numbers), network, own, rank, given, height)
    return _fitting(facts, region) or region


def _sizes(facts: CertainFacts, inputs: Sequence[Edge]) -> tuple[Size, ...]:
    """Return the rows of several inputs as functions of one height; none if they are not."""
    sizes = [facts.free.size(edge.name, edge.axis) for edge in inputs]
    known = tuple(size for size in sizes if size is not None and size.symbol and size.slope > 0)
    one = len({size.symbol for size in known}) == 1
    return known if one and len(known) == len(sizes) else ()


def _height(facts: CertainFacts, network: Network, inputs: Sequence[Edge]) -> Edge | None:
    """Return the model's height that everything in a region follows from, None if there is none."""
    symbols = {link.row_map.symbol for link in network.links if isinstance(link.row_map, Fitted)}
    symbols |= {size.symbol for size in _sizes(facts, inputs)}
    place = facts.free.places.get(next(iter(symbols))) if len(symbols) == 1 else None
    return Edge(*place) if place is not None and _sizes(facts, inputs) else None


def _is_free(shapes: Shapes, edge: Edge) -> bool:
    """Tell whether the rows of a tensor are known when the model runs alone."""
    dims = shapes.dims.get(edge.name)
    return dims is None or len(dims) <= edge.axis or dims[edge.axis] is None


def _fitting(facts: CertainFacts, region: Region) -> Refusal | None:
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
        if len(region.inputs) > 1 and not region.network.sizes:
            reason = "its inputs' sizes along the tiled axis are unknown; fix them with shapes="
            return Refusal(label, reason, "size-unknown")
        if region.network.advance(found) is None:
            return Refusal(label, "its inputs advance differently", "not-provable")
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
