"""Normalisations over the image, written in two (`graph.statistics`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from rewriters.graph.nodes import attributes
from rewriters.graph.statistic_nodes import FLOATS, HALF, InTwo, ReadGraph, moments
from rewriters.operators.record import is_channelwise

__all__ = ["group", "grouped", "instance"]


def instance(found: ReadGraph, position: int) -> InTwo | None:
    """Each channel of each image by itself: the groups are the channels."""
    node = found.node(position)
    dims = found.shapes.dims.get(node.input[0])
    if dims is None or len(dims) < 4 or dims[1] is None:
        return None
    return _normalised(
        found, position, node.input[0], dims[1], position, [position], "InstanceNorm statistics"
    )


def grouped(found: ReadGraph, position: int) -> InTwo | None:
    """Exporters' GroupNorm: the groups become channels of an image of one axis."""
    node = found.node(position)
    index, dims = found.index, found.shapes.dims
    first, last = index.producer.get(node.input[0]), found.only_user(node.output[0])
    if first is None or last is None or found.only_user(node.input[0]) is None:
        return None
    if found.node(first).op_type != "Reshape" or found.node(last).op_type != "Reshape":
        return None
    x, y, inner = found.node(first).input[0], found.node(last).output[0], dims.get(node.input[0])
    whole, back = dims.get(x), dims.get(y)
    if whole is None or inner is None or len(whole) < 4 or len(inner) != 3:
        return None
    groups, channels = inner[1], whole[1]
    if whole[0] is None:
        # Of a batch that is not known the target must say that it stays.
        target = found.facts.constants.numbers(found.node(first).input[1])
        if not target or target[0] != 0 or attributes(found.node(first)).get("allowzero", 0):
            return None
    same = back == whole and None not in whole
    if not same and not _restores(found, found.node(last), x, channels):
        return None
    if not groups or not channels or channels % groups or inner[0] != whole[0]:
        return None
    covered = [first, position, last]
    return _normalised(found, position, x, groups, last, covered)


def _restores(found: ReadGraph, node: onnx.NodeProto, x: str, channels: int | None) -> bool:
    """Tell whether a Reshape gives a tensor the shape of ``x``, worked out when the model runs."""
    maker = found.index.producer.get(node.input[1])
    if maker is None or not channels:
        return False
    shape = found.node(maker)
    part = attributes(shape)
    whole = part.get("start", 0) == 0 and "end" not in part
    return shape.op_type == "Shape" and shape.input[0] == x and whole


def group(found: ReadGraph, position: int) -> InTwo | None:
    """GroupNormalization as one node."""
    node = found.node(position)
    dims = found.shapes.dims.get(node.input[0])
    groups = attributes(node).get("num_groups")
    if dims is None or len(dims) < 4 or not dims[1] or not groups or dims[1] % groups:
        return None
    return _normalised(found, position, node.input[0], groups, position, [position])


def _normalised(
    found: ReadGraph,
    position: int,
    x: str,
    groups: int,
    last: int,
    covered: Sequence[int],
    called: str = "GroupNorm statistics",
) -> InTwo | None:
    """Write a normalisation over the image.

    The result is ``(x - mean) * scale + bias``, not ``x * scale + shift``, whose two large numbers
    cancel where the mean is large. With ``centre = mean - bias / scale`` it is
    ``(x - centre) * scale``, one operation less, where no scale is zero.

    Args:
        found: The graph.
        position: Of the node that has the scale, the bias and epsilon.
        x: What is normalised.
        groups: Channels are normalised together in so many groups.
        last: Position of the node that makes the result.
        covered: Positions of all nodes it consists of.
        called: What people call it.
    """
    shapes, node = found.shapes, found.node(position)
    dims = shapes.dims[x]
    rank, channels = len(dims), dims[1]
    axis = found.axes.get(x)
    kind = shapes.elements.get(x, 0)
    # Of a signal of one axis there is nothing that each row has a part of.
    if axis is None or axis < 2 or rank < 4 or channels is None or kind not in FLOATS:
        return None
    if len(node.input) < 3 or not all(node.input[:3]):
        return None
    affine = (shapes.dims.get(node.input[1]), shapes.dims.get(node.input[2]))
    if affine[0] != affine[1] or affine[0] not in ((groups,), (channels,)):
        return None
    new, covered = found.new(position, x, called), list(covered)
    single = kind in HALF
    own = int(TensorProto.FLOAT) if single else kind
    image = new.add("Cast", [x], "single", to=own) if single else x
    each, ones = channels // groups, [1] * (rank - 2)
    mean, variance = moments(new, image, dims, axis, groups, own)
    epsilon = new.number(attributes(node).get("epsilon", 1e-5), own, "epsilon")
    root = new.add("Sqrt", [new.add("Add", [variance, epsilon], "above_zero")], "deviation")

    def factor(name: str, size: int, what: str) -> str:
        """Return a factor or summand of each group or channel, by group."""
        wide = new.add("Cast", [name], f"{what}_single", to=own) if single else name
        here = [1, groups, each, 1] if size == channels else [1, groups, 1, 1]
        return new.reshape(wide, here, what)

    size = groups if affine[0] == (groups,) else channels
    scale = new.add("Div", [factor(node.input[1], size, "gain"), root], "scale")
    shift = factor(node.input[2], size, "bias")
    gains = [node.input[1]]
    result = found.node(last).output[0]
    for op in ("Mul", "Add"):
        follower = _channelwise(found, result, op, channels)
        if follower is None or single:
            continue
        at, name = follower
        given = new.reshape(name, [1, groups, each, 1], f"{op.lower()}_by_group")
        if op == "Mul":
            scale = new.add("Mul", [scale, given], "scale_further")
            gains.append(name)
        shift = new.add(op, [shift, given], f"shift_further_{op.lower()}")
        covered.append(at)
        result = found.node(at).output[0]

    def spread(name: str, what: str) -> str:
        """Return numbers by group as those of channels."""
        if each > 1:
            full = new.ints([1, groups, each, 1], f"{what}/full")
            name = new.add("Expand", [name, full], f"{what}/each")
        return new.reshape(name, [0, channels, *ones], f"{what}/channels")

    divides = all(_is_large(found.facts.constants.array(name)) for name in gains)
    centre = mean
    if divides:
        centre = new.add("Sub", [mean, new.add("Div", [shift, scale], "bias_before")], "centre")
    # Both as one tensor, so that neither is used before the other is there.
    affine_parts = [spread(scale, "scale"), spread(centre, "centre")]
    both = new.add("Concat", affine_parts, "affine", axis=1)
    scale, centre = new.halves(both, channels, "applied", ("scale", "centre"))
    op, operands = "Mul", [new.add("Sub", [image, centre], "centred"), scale]
    if not divides:
        op, operands = "Add", [new.add("Mul", operands, "scaled"), spread(shift, "bias")]
    if single:
        new.add("Cast", [new.add(op, operands, "y")], "half", result, to=kind)
    else:
        new.add(op, operands, "y", result)
    return covered, new


# What is divided by factors of at least so much does not overflow.
_LARGE = 1e-9


def _is_large(factors: np.ndarray[Any, Any] | None) -> bool:
    """Tell whether factors are known and none of them is near zero."""
    return factors is not None and bool(np.all(np.abs(factors.astype(np.float64)) >= _LARGE))


def _channelwise(found: ReadGraph, name: str, op: str, channels: int) -> tuple[int, str] | None:
    """Return the only user of a tensor and its constant, if it scales or shifts whole channels."""
    user = found.only_user(name)
    if user is None:
        return None
    node, dims = found.node(user), found.shapes.dims
    if node.op_type != op or node.domain not in ("", "ai.onnx") or len(node.input) != 2:
        return None
    other = node.input[0] if node.input[1] == name else node.input[1]
    fits = is_channelwise(op, dims.get(other), dims.get(name)) and dims.get(other) != ()
    return (user, other) if fits and other in found.index.constants else None
