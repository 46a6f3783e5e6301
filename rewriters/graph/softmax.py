"""Softmax over an image, written in two (`graph.statistics`).

    x -- Reshape [.., H x W] -- Softmax -- y

becomes, with the largest of each row and the sum of exponentials above it as the statistic:

    largest = max of the rows' largest
    sum     = sum of (row's sum) * exp(row's largest - largest)
    y       = Reshape(exp(x - largest) / sum)

A row that is masked as a whole (minus infinity throughout) adds nothing, as in the original.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from onnx import TensorProto

from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.respelling import copied
from patchconv_deploy.rewriters.graph.statistic_nodes import FLOATS, HALF, InTwo
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, Shape

__all__ = ["softmax", "softmax_in_two"]


# The least finite number of an element type: what is subtracted from a row of minus infinity.
_LOWEST: Mapping[int, float] = {
    TensorProto.FLOAT: -3.4028234663852886e38,
    TensorProto.DOUBLE: -1.7976931348623157e308,
}


def softmax(found: ReadGraph, position: int) -> InTwo | None:
    """Softmax over the last dimension of what an image is reshaped to, where that is the image."""
    node = found.node(position)
    flat = node.input[0]
    reshape = found.index.producer.get(flat)
    if reshape is None or found.node(reshape).op_type != "Reshape":
        return None
    if found.node(reshape).domain not in ONNX_DOMAINS:
        return None
    x = found.node(reshape).input[0]
    dims, axis = found.shapes.dims.get(x), found.axes.get(x)
    kind = found.shapes.elements.get(x, 0)
    if dims is None or axis is None or kind not in FLOATS:
        return None
    over = _reshaped(dims, axis, found.shapes.dims.get(flat))
    rank = len(found.shapes.dims.get(flat, ()))
    default = -1 if found.facts.opset >= 13 else 1
    if over is None or attributes(node).get("axis", default) % rank != rank - 1:
        return None
    others = [at for at in range(over, len(dims)) if at != axis and dims[at] != 1]
    join, channels = over - 1, dims[over - 1]
    if not others or join < 1 or channels is None:
        return None
    new = found.new(position, x, "Softmax over the image")
    y = softmax_in_two(new, x, axis, others, join, channels, kind)
    again = copied(found.node(reshape))
    again.name = f"{new.base}/flat"
    again.input[0], again.output[0] = y, node.output[0]
    new.nodes.append(again)
    covered = [position] if found.only_user(flat) is None else [reshape, position]
    return covered, new


def _reshaped(x: Shape, axis: int, y: Shape | None) -> int | None:
    """Return from which dimension of an image on all are one, the last, of what it is reshaped to.

    The tiled axis is among them. None where the last dimension is another, or nobody knows.
    """
    if y is None or None in x or None in y or 0 in x:
        return None
    sizes = [size or 0 for size in x]
    return next((at for at in range(axis, 0, -1) if prod(sizes[at:]) == y[-1]), None)


def softmax_in_two(
    new: NewNodes,
    x: str,
    axis: int,
    others: Sequence[int],
    join: int,
    channels: int,
    kind: int,
    output: str = "",
) -> str:
    """Write a Softmax over the rows of an image and other dimensions.

    Args:
        new: Takes the nodes.
        x: The image.
        axis: The dimension of its rows.
        others: The other dimensions that it is over.
        join: A dimension that it is not over.
        channels: The size of that one.
        kind: The image's element type; half precision is worked out in float32.
        output: What the result is called; a name of its own where none is given.

    Returns:
        The name of the result, of the image's shape and element type.
    """
    single = kind in HALF
    own = int(TensorProto.FLOAT) if single else kind
    image = new.add("Cast", [x], "single", to=own) if single else x
    lowest = new.number(_LOWEST[own], own, "lowest")
    # Over each row.
    above = new.add("Max", [new.reduce("ReduceMax", image, others, "row_max"), lowest], "row_top")
    powers = new.add("Exp", [new.add("Sub", [image, above], "row_off")], "row_exp")
    sums = new.reduce("ReduceSum", powers, others, "row_sums")
    # One tensor: of two, the second is asked for when all patches have made the first.
    rows = new.add("Concat", [above, sums], "rows", axis=join)
    # Over the rows, both halves together, so that no patch is asked for halves. The Min changes
    # nothing: it makes the halves wait until all patches are there.
    top = new.reduce("ReduceMax", rows, [axis], "over_rows")
    bounded = new.add("Min", [rows, top], "bounded")
    tops, sums = new.halves(bounded, channels, "by_row", ("max", "sums"), join)
    largest, _ = new.halves(top, channels, "largest", ("max", "unused"), join)
    weights = new.add("Exp", [new.add("Sub", [tops, largest], "below")], "weights")
    weighed = new.add("Mul", [sums, weights], "weighed")
    whole = new.reduce("ReduceSum", weighed, [axis], "whole")
    # Both as one tensor, so that neither is used before the other is there.
    both = new.add("Concat", [largest, whole], "affine", axis=join)
    largest, whole = new.halves(both, channels, "applied", ("max", "sum"), join)
    y = new.add("Exp", [new.add("Sub", [image, largest], "off")], "exp")
    y = new.add("Div", [y, whole], "y", "" if single else output)
    return new.add("Cast", [y], "half", output, to=kind) if single else y
