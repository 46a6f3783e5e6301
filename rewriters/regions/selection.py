"""Which convolutions are cut one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import onnx

from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.operators.record import CONVOLUTIONS, ONNX_DOMAINS, Shape
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region

__all__ = ["ConvSize", "Selection", "candidates", "conv_size", "region_size", "select"]


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
        if node.op_type in CONVOLUTIONS and node.domain in ONNX_DOMAINS:
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
