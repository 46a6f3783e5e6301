"""Normalisations over the image, written in two (`graph.statistics`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.statistic_nodes import (
    FLOATS,
    HALF,
    InTwo,
    block_of,
    in_blocks,
    moments,
    moments_by_row,
)
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, is_channelwise

__all__ = ["fused_group", "group", "grouped", "instance", "layer"]


def instance(found: ReadGraph, position: int) -> InTwo | None:
    """Each channel of each image by itself: the groups are the channels."""
    node = found.node(position)
    dims = found.shapes.dims.get(node.input[0])
    if dims is None or len(dims) < 3 or dims[1] is None:
        return None
    before = found.index.producer.get(node.input[0])
    if len(dims) == 3 and before is not None and found.node(before).op_type == "Reshape":
        return None  # an image, spelled as a signal
    x, called = node.input[0], "InstanceNorm statistics"
    return _normalised(found, _Norm(position, x, dims[1], position, [position], called))


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
    if whole is None or inner is None or len(whole) < 3 or len(inner) != 3:
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
    return _normalised(found, _Norm(position, x, groups, last, covered))


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
    if dims is None or len(dims) < 3 or not dims[1] or not groups or dims[1] % groups:
        return None
    return _normalised(found, _Norm(position, node.input[0], groups, position, [position]))


def fused_group(found: ReadGraph, position: int) -> InTwo | None:
    """ONNX Runtime's GroupNorm and SkipGroupNorm: channels last, a sum before, a gate behind.

    SkipGroupNorm's second output is that sum; where it is read, the node stays as it is.
    """
    node = found.node(position)
    given = attributes(node)
    dims = found.shapes.dims.get(node.input[0])
    groups, gates = given.get("groups"), given.get("activation", 0)
    last = bool(given.get("channels_last", 1))
    added = tuple(name for name in node.input[3:5] if name)
    if dims is None or len(dims) != 4 or not groups or gates not in (0, 1):
        return None
    channels = dims[-1 if last else 1]
    if not channels or channels % groups or any(found.is_read(name) for name in node.output[1:]):
        return None
    if (len(node.input) > 3) != (node.op_type == "SkipGroupNorm") or not all(node.input[:4]):
        return None
    shapes = [found.shapes.dims.get(name) for name in added]
    # A bias is a number a channel; what is skipped to has images, and channels in its own place.
    fits = {dims, (dims[0], channels), (dims[0], 1, 1, channels)}
    if added and (shapes[0] not in fits or any(each != (channels,) for each in shapes[1:])):
        return None
    if added and not last:
        return None
    x, covered = node.input[0], [position]
    called = "GroupNorm statistics"
    norm = _Norm(position, x, groups, position, covered, called, last, added, bool(gates))
    return _normalised(found, norm)


def layer(found: ReadGraph, position: int) -> InTwo | None:
    """LayerNormalization over the tiled axis and others, with a factor for each element."""
    node = found.node(position)
    x, gain, bias = (*node.input, "")[:3]
    dims, axis = found.shapes.dims.get(x), found.axes.get(x)
    kind = found.shapes.elements.get(x, 0)
    if dims is None or axis is None or kind not in FLOATS or not gain:
        return None
    rank = len(dims)
    first = attributes(node).get("axis", -1) % rank
    others = [at for at in range(first, rank) if at != axis and dims[at] != 1]
    if not 1 <= first <= axis or not others or any(map(found.is_read, node.output[1:])):
        return None
    given = {found.shapes.dims.get(name) for name in (gain, bias) if name}
    if None in given:
        return None
    by_channel = (dims[1], *[1] * (rank - 2))
    if first == 1 and axis > 1 and rank > 3 and given <= {by_channel, (1, *by_channel)}:
        return _normalised(found, _Norm(position, x, 1, position, [position], _LAYER))
    new = found.new(position, x, _LAYER)
    single = kind in HALF
    own = int(TensorProto.FLOAT) if single else kind

    def wide(name: str, what: str) -> str:
        cast = found.shapes.elements.get(name, 0) != own
        return new.add("Cast", [name], what, to=own) if cast else name

    image, join = wide(x, "single"), others[0]
    mean, variance = moments_by_row(new, image, dims, axis, others, own, join)
    root = _root(new, node, variance, own)
    # Both as one tensor, so that neither is used before the other is there.
    both = new.add("Concat", [root, mean], "affine", axis=join)
    root, mean = new.halves(both, 1, "applied", ("deviation", "mean"), join)
    steps: list[_Step] = [("Sub", [mean], "centred", {}), ("Div", [root], "normalised", {})]
    steps.append(("Mul", [wide(gain, "gain")], "scaled" if bias else "y", {}))
    if bias:
        steps.append(("Add", [wide(bias, "bias")], "y", {}))
    if single:
        steps.append(("Cast", (), "half", {"to": kind}))
    _apply(new, image, steps, node.output[0])
    return [position], new


# An operator on what was made last, what it reads besides, the name of its result, attributes.
_Step: TypeAlias = tuple[str, Sequence[str], str, dict[str, Any]]

_LAYER = "LayerNorm statistics"

# Stands for x * sigmoid(x).
_GATE = "Gate"


@dataclass(frozen=True)
class _Norm:
    """A normalisation over the image, however it is spelled.

    Attributes:
        position: Of the node that has the scale, the bias and epsilon.
        x: What is normalised.
        groups: Channels are normalised together in so many groups.
        last: Position of the node that makes the result.
        covered: Positions of all nodes it consists of.
        called: What people call it.
        channels_last: Whether the channels of the image, and of the result, are its last dimension.
        added: What is added to the image first.
        gates: Whether the result is multiplied by its own sigmoid.
    """

    position: int
    x: str
    groups: int
    last: int
    covered: Sequence[int]
    called: str = "GroupNorm statistics"
    channels_last: bool = False
    added: Sequence[str] = ()
    gates: bool = False

    @property
    def plain(self) -> bool:
        """Whether nothing happens before or behind the normalisation itself."""
        return not (self.channels_last or self.added or self.gates)


def _normalised(found: ReadGraph, norm: _Norm) -> InTwo | None:
    """Write a normalisation over the image.

    The result is ``(x - mean) * scale + bias``, not ``x * scale + shift``, whose two large numbers
    cancel where the mean is large. With ``centre = mean - bias / scale`` it is
    ``(x - centre) * scale``, one operation less, where no scale is zero.
    """
    shapes, node, groups = found.shapes, found.node(norm.position), norm.groups
    dims, axis = shapes.dims[norm.x], found.axes.get(norm.x)
    if norm.channels_last and axis is not None:
        dims, axis = (dims[0], dims[-1], *dims[1:-1]), axis + 1
    rank, channels = len(dims), dims[1]
    kind = shapes.elements.get(norm.x, 0)
    if axis is None or not 2 <= axis < rank or channels is None or kind not in FLOATS:
        return None
    block = block_of(dims, axis)
    # Of a signal that has no blocks there is nothing that each row has a part of.
    if rank < 4 and block is None:
        return None
    gain, bias = (*node.input, "", "")[1:3]
    affine = {shapes.dims.get(name) for name in (gain, bias) if name}
    sizes = {prod(size or 0 for size in each) for each in affine if each is not None}
    if not gain or len(affine) != 1 or not sizes <= {groups, channels} or not sizes:
        return None
    (size,) = sizes
    new, covered = found.new(norm.position, norm.x, norm.called), list(norm.covered)
    single = kind in HALF
    own = int(TensorProto.FLOAT) if single else kind
    image = _image(found, new, norm, own if single else None, rank)
    each, ones = channels // groups, [1] * (rank - 2)
    rows, sizes_of = (image, dims) if block is None else in_blocks(new, image, dims, axis, block)
    mean, variance = moments(new, rows, sizes_of, axis, groups, own)
    root = _root(new, node, variance, own)

    def factor(name: str, size: int, what: str) -> str:
        """Return a factor or summand of each group or channel, by group."""
        cast = shapes.elements.get(name, 0) != own
        wide = new.add("Cast", [name], f"{what}_single", to=own) if cast else name
        here = [1, groups, each, 1] if size == channels else [1, groups, 1, 1]
        return new.reshape(wide, here, what)

    scale = new.add("Div", [factor(gain, size, "gain"), root], "scale")
    shift = factor(bias, size, "bias") if bias else ""
    gains = [gain]
    result = found.node(norm.last).output[0]
    for op in ("Mul", "Add"):
        follower = _channelwise(found, result, op, channels)
        if follower is None or single or not norm.plain:
            continue
        at, name = follower
        given = new.reshape(name, [1, groups, each, 1], f"{op.lower()}_by_group")
        if op == "Mul":
            scale = new.add("Mul", [scale, given], "scale_further")
            gains.append(name)
        if shift:
            shift = new.add(op, [shift, given], f"shift_further_{op.lower()}")
        elif op == "Add":
            shift = given
        covered.append(at)
        result = found.node(at).output[0]

    def spread(name: str, what: str) -> str:
        """Return numbers by group as those of channels."""
        if each > 1:
            full = new.ints([1, groups, each, 1], f"{what}/full")
            name = new.add("Expand", [name, full], f"{what}/each")
        return new.reshape(name, [0, channels, *ones], f"{what}/channels")

    centre = mean
    divides = all(_is_large(found.facts.constants.array(name)) for name in gains)
    if divides and shift:
        centre = new.add("Sub", [mean, new.add("Div", [shift, scale], "bias_before")], "centre")
    # Both as one tensor, so that neither is used before the other is there.
    affine_parts = [spread(scale, "scale"), spread(centre, "centre")]
    both = new.add("Concat", affine_parts, "affine", axis=1)
    scale, centre = new.halves(both, channels, "applied", ("scale", "centre"))
    steps: list[_Step] = [("Sub", [centre], "centred", {})]
    if divides or not shift:
        steps.append(("Mul", [scale], "y", {}))
    else:
        steps.append(("Mul", [scale], "scaled", {}))
        steps.append(("Add", [spread(shift, "bias")], "y", {}))
    _apply(new, image, steps + _behind(norm, rank, kind if single else None), result)
    return covered, new


def _image(found: ReadGraph, new: NewNodes, norm: _Norm, single: int | None, rank: int) -> str:
    """Write what comes before the mean; return the image, channels first."""
    image = norm.x
    for number, name in enumerate(norm.added):
        dims = found.shapes.dims[name]
        if len(dims) == 2:
            name = new.reshape(name, [0, *[1] * (rank - 2), -1], f"added_{number}/channels")
        image = new.add("Add", [image, name], f"sum_{number}")
    if single is not None:
        image = new.add("Cast", [image], "single", to=single)
    if norm.channels_last:
        perm = [0, rank - 1, *range(1, rank - 1)]
        image = new.add("Transpose", [image], "channels_first", perm=perm)
    return image


def _root(new: NewNodes, node: onnx.NodeProto, variance: str, own: int) -> str:
    """Write the deviation that is divided by."""
    epsilon = new.number(attributes(node).get("epsilon", 1e-5), own, "epsilon")
    return new.add("Sqrt", [new.add("Add", [variance, epsilon], "above_zero")], "deviation")


def _behind(norm: _Norm, rank: int, half: int | None) -> list[_Step]:
    """Return what comes behind a normalisation: a gate, its layout, its element type."""
    steps: list[_Step] = []
    if norm.gates:
        steps.append((_GATE, (), "gated", {}))
    if norm.channels_last:
        steps.append(("Transpose", (), "channels_last", {"perm": [0, *range(2, rank), 1]}))
    if half is not None:
        steps.append(("Cast", (), "half", {"to": half}))
    return steps


def _apply(new: NewNodes, image: str, steps: Sequence[_Step], result: str) -> None:
    """Write what is done to each element, one step after the other; the last makes the result."""
    for number, (op, others, suffix, given) in enumerate(steps):
        output = result if number == len(steps) - 1 else ""
        read = [image, *others]
        if op == _GATE:
            op, read = "Mul", [image, new.add("Sigmoid", [image], "gate")]
        image = new.add(op, read, suffix, output, **given)


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
    if node.op_type != op or node.domain not in ONNX_DOMAINS or len(node.input) != 2:
        return None
    other = node.input[0] if node.input[1] == name else node.input[1]
    fits = is_channelwise(op, dims.get(other), dims.get(name)) and dims.get(other) != ()
    return (user, other) if fits and other in found.index.constants else None
