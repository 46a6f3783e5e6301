"""What looks at the whole image, written as one reduction over each row and one over the rows.

A normalisation, a global pool or a reduction over the image holds the whole image until it has seen
the last row. Written in two, only its second half does, and that reads a few numbers a row:

    x --+-- reduce each row -- rows --- reduce over the rows --- mean, scale, shift
        |      (row-local)   [N, C, H, 1]      (tiny)                    |
        +----------------------------------------------------------- apply -- y
                                                                  (row-local)

What is row-local can be cut into patches like any other layer. All rows have equally many elements,
so that the second half needs no counts, and is right at any height:

    mean     = mean of the rows' means
    variance = mean of the rows' variances + mean of (row's mean - mean)^2

which is Chan, Golub and LeVeque's merge of equal counts ("Updating formulae and a pairwise
algorithm for computing sample variances", 1979): never the difference of two large sums. Half
precision is reduced in float32. Groups are merged from their channels in the same way.

    written in two                                             not
    InstanceNormalization, its Mul and Add behind it           of a tensor without another axis
    Reshape [N, G, -1], InstanceNormalization, Reshape back    whose sizes are unknown
    GroupNormalization
    GlobalAveragePool, GlobalMaxPool
    AveragePool, MaxPool whose kernel is the image             with padding, Indices
    Reduce* over the tiled axis and others                     over the tiled axis alone

What is not cut in the end gets its own nodes back (`Statistic.originals`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as count_from
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from rewriters.graph.facts import CertainFacts
from rewriters.graph.nodes import attributes, node_label
from rewriters.graph.shapes import Shapes
from rewriters.graph.use_def import Index
from rewriters.operators.record import is_channelwise

__all__ = ["NO_STATISTICS", "Statistic", "Statistics", "find_statistics", "write_in_two"]


# How a reduction over several axes is one over some of them, and then one over the rest.
_IN_TWO: Mapping[str, tuple[str, str]] = {
    "ReduceMean": ("ReduceMean", "ReduceMean"),
    "ReduceSum": ("ReduceSum", "ReduceSum"),
    "ReduceMax": ("ReduceMax", "ReduceMax"),
    "ReduceMin": ("ReduceMin", "ReduceMin"),
    "ReduceProd": ("ReduceProd", "ReduceProd"),
    "ReduceL1": ("ReduceL1", "ReduceSum"),
    "ReduceL2": ("ReduceL2", "ReduceL2"),
    "ReduceSumSquare": ("ReduceSumSquare", "ReduceSum"),
    "ReduceLogSumExp": ("ReduceLogSumExp", "ReduceLogSumExp"),
    "ReduceLogSum": ("ReduceSum", "ReduceLogSum"),
}

# Of these the two are the same for integers, too.
_WHOLE_NUMBERS = frozenset("ReduceSum ReduceMax ReduceMin ReduceProd".split())

_POOLS = {
    "GlobalAveragePool": "ReduceMean",
    "GlobalMaxPool": "ReduceMax",
    # Where their kernel is the whole image.
    "AveragePool": "ReduceMean",
    "MaxPool": "ReduceMax",
}

_OPERATORS = frozenset({"InstanceNormalization", "GroupNormalization", *_POOLS, *_IN_TWO})

# What sizes are worked out with.
_SIZES = frozenset("Shape Gather Concat Unsqueeze Squeeze Slice Cast Constant Mul Div".split())

# Sums of these are made in float32, as runtimes do.
_HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, *_HALF})


@dataclass(frozen=True)
class Statistic:
    """Nodes that look at the whole image, and what is written in their place.

    Attributes:
        covered: Their positions, ascending, with those of nodes that only serve them.
        originals: The nodes themselves.
        nodes: The new ones, in order; they make the same output.
        output: What they make for others.
        rows: What the new ones make of each row.
    """

    covered: tuple[int, ...]
    originals: tuple[onnx.NodeProto, ...]
    nodes: tuple[onnx.NodeProto, ...]
    output: str
    rows: str

    @property
    def label(self) -> str:
        """The name, for people, of the node that looks at the whole image."""
        return node_label(next(n for n in self.originals if n.op_type in _OPERATORS))

    @property
    def kind(self) -> str:
        """What people call it."""
        operators = {node.op_type for node in self.originals}
        if operators & _POOLS.keys():
            return "global pooling"
        if "InstanceNormalization" in operators and "Reshape" not in operators:
            return "InstanceNorm statistics"
        if operators & {"InstanceNormalization", "GroupNormalization"}:
            return "GroupNorm statistics"
        return f"statistics over the image ({self.originals[-1].op_type})"


@dataclass
class _Nodes:
    """New nodes, whose names begin with those of the node they stand for."""

    base: str
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(
        self, op: str, inputs: Sequence[str], suffix: str, output: str = "", **given: Any
    ) -> str:
        made = output or f"{self.base}/{suffix}"
        name = f"{self.base}/{suffix}"
        self.nodes.append(helper.make_node(op, list(inputs), [made], name=name, **given))
        return made

    def ints(self, values: Sequence[int], suffix: str) -> str:
        tensor = helper.make_tensor("value", TensorProto.INT64, [len(values)], list(values))
        return self.add("Constant", [], suffix, value=tensor)

    def number(self, value: float, kind: int, suffix: str) -> str:
        tensor = helper.make_tensor("value", kind, [], [value])
        return self.add("Constant", [], suffix, value=tensor)

    def reduce(self, op: str, x: str, axes: Sequence[int], suffix: str, *, output: str = "") -> str:
        """Add a reduction that keeps its dimensions."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            over = self.ints(axes, f"{suffix}/axes")
            return self.add(op, [x, over], suffix, output, keepdims=1)
        return self.add(op, [x], suffix, output, axes=list(axes), keepdims=1)

    def reshape(self, x: str, dims: Sequence[int], suffix: str) -> str:
        return self.add("Reshape", [x, self.ints(dims, f"{suffix}/shape")], suffix)

    def squeeze(self, x: str, axes: Sequence[int], suffix: str, output: str) -> str:
        if self.opset >= 13:
            over = self.ints(axes, f"{suffix}/axes")
            return self.add("Squeeze", [x, over], suffix, output)
        return self.add("Squeeze", [x], suffix, output, axes=list(axes))

    def halves(self, x: str, size: int, suffix: str, what: tuple[str, str]) -> tuple[str, str]:
        """Split the second dimension, of twice ``size``, in two."""
        names = [f"{self.base}/{suffix}_{which}" for which in what]
        name = f"{self.base}/{suffix}"
        inputs = [x, self.ints([size, size], f"{suffix}/sizes")] if self.opset >= 13 else [x]
        node = helper.make_node("Split", inputs, names, name=name, axis=1)
        if self.opset < 13:
            node.attribute.append(helper.make_attribute("split", [size, size]))
        self.nodes.append(node)
        return names[0], names[1]


@dataclass(frozen=True)
class _Graph:
    """What is known of the graph that is read."""

    facts: CertainFacts
    axes: Mapping[str, int]
    word: str
    taken: set[str] = field(default_factory=set)

    @property
    def index(self) -> Index:
        return self.facts.index

    @property
    def shapes(self) -> Shapes:
        return self.facts.shapes

    def node(self, position: int) -> onnx.NodeProto:
        return self.index.graph.node[position]

    def only_user(self, name: str) -> int | None:
        """Return the position of the only node that reads a tensor, None if there are others."""
        users = self.index.users.get(name, ())
        return users[0] if len(users) == 1 and name not in self.index.outputs else None

    def new(self, position: int) -> _Nodes:
        label = node_label(self.node(position))
        # Two nodes may have one name, or one the name that another's output has.
        free = (label if number == 1 else f"{label}_{number}" for number in count_from(1))
        base = next(name for name in free if name not in self.taken)
        self.taken.add(base)
        return _Nodes(f"{base}/{self.word}", self.facts.opset)

    def reduced_axes(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """Return the axes that a reduction is over, None if it is not known."""
        rank = len(self.shapes.dims.get(node.input[0], ()))
        given = attributes(node)
        axes: Any = given.get("axes")
        if len(node.input) > 1 and node.input[1]:
            axes = self.facts.constants.numbers(node.input[1])
            if axes is None:
                return None
        if not axes and given.get("noop_with_empty_axes", 0):
            return None
        return tuple(sorted({at % rank for at in axes} if axes else range(rank))) if rank else None


def find_statistics(facts: CertainFacts, axes: Mapping[str, int]) -> list[Statistic]:
    """Find what looks at the whole image, and write it in two; the model is not changed.

    Args:
        facts: The model.
        axes: Which dimension of a tensor is the tiled axis, where that is known.
    """
    found = _Graph(facts, axes, _free_word(facts.index.names))
    statistics: list[Statistic] = []
    for position, node in enumerate(facts.graph.node):
        if node.domain not in ("", "ai.onnx") or not node.input or not node.output:
            continue
        made: tuple[Sequence[int], _Nodes] | None = None
        if node.op_type == "InstanceNormalization":
            made = _grouped(found, position) or _instance(found, position)
        elif node.op_type == "GroupNormalization":
            made = _group(found, position)
        elif node.op_type in _POOLS or node.op_type in _IN_TWO:
            made = _reduction(found, position)
        if made is not None:
            positions, nodes = made
            output = facts.graph.node[max(positions)].output[0]
            covered = _with_servants(found, positions, nodes)
            originals = tuple(_copy(facts.graph.node[at]) for at in covered)
            statistics.append(
                Statistic(covered, originals, tuple(nodes.nodes), output, f"{nodes.base}/rows")
            )
    return statistics


def _with_servants(found: _Graph, positions: Sequence[int], new: _Nodes) -> tuple[int, ...]:
    """Return positions with those of nodes that work out sizes for them and for nobody else."""
    covered, read = {*positions}, {name for node in new.nodes for name in node.input}
    pending = list(positions)
    while pending:
        for name in found.node(pending.pop()).input:
            maker = found.index.producer.get(name)
            if maker is None or maker in covered or found.node(maker).op_type not in _SIZES:
                continue
            made = found.node(maker).output
            users = {at for each in made for at in found.index.users.get(each, ())}
            if users <= covered and found.index.outputs.isdisjoint(made) and read.isdisjoint(made):
                covered.add(maker)
                pending.append(maker)
    return tuple(sorted(covered))


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def _free_word(names: Collection[str]) -> str:
    """Return the first of statistic, statistic_2, ... that no name has between slashes."""
    number = 1
    while True:
        word = "statistic" if number == 1 else f"statistic_{number}"
        if not any(f"/{word}/" in name for name in names):
            return word
        number += 1


def _instance(found: _Graph, position: int) -> tuple[Sequence[int], _Nodes] | None:
    """Each channel of each image by itself: the groups are the channels."""
    node = found.node(position)
    dims = found.shapes.dims.get(node.input[0])
    if dims is None or len(dims) < 4 or dims[1] is None:
        return None
    return _normalised(found, position, node.input[0], dims[1], position, [position])


def _grouped(found: _Graph, position: int) -> tuple[Sequence[int], _Nodes] | None:
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


def _restores(found: _Graph, node: onnx.NodeProto, x: str, channels: int | None) -> bool:
    """Tell whether a Reshape gives a tensor the shape of ``x``, worked out when the model runs."""
    maker = found.index.producer.get(node.input[1])
    if maker is None or not channels:
        return False
    shape = found.node(maker)
    part = attributes(shape)
    whole = part.get("start", 0) == 0 and "end" not in part
    return shape.op_type == "Shape" and shape.input[0] == x and whole


def _group(found: _Graph, position: int) -> tuple[Sequence[int], _Nodes] | None:
    node = found.node(position)
    dims = found.shapes.dims.get(node.input[0])
    groups = attributes(node).get("num_groups")
    if dims is None or len(dims) < 4 or not dims[1] or not groups or dims[1] % groups:
        return None
    return _normalised(found, position, node.input[0], groups, position, [position])


def _normalised(
    found: _Graph,
    position: int,
    x: str,
    groups: int,
    last: int,
    covered: Sequence[int],
) -> tuple[Sequence[int], _Nodes] | None:
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
    """
    shapes, node = found.shapes, found.node(position)
    dims = shapes.dims[x]
    rank, channels = len(dims), dims[1]
    axis = found.axes.get(x)
    kind = shapes.elements.get(x, 0)
    # Of a signal of one axis there is nothing that each row has a part of.
    if axis is None or axis < 2 or rank < 4 or channels is None or kind not in _FLOATS:
        return None
    if len(node.input) < 3 or not all(node.input[:3]):
        return None
    affine = (shapes.dims.get(node.input[1]), shapes.dims.get(node.input[2]))
    if affine[0] != affine[1] or affine[0] not in ((groups,), (channels,)):
        return None
    new, covered = found.new(position), list(covered)
    single = kind in _HALF
    own = int(TensorProto.FLOAT) if single else kind
    image = new.add("Cast", [x], "single", to=own) if single else x
    each, ones = channels // groups, [1] * (rank - 2)
    mean, variance = _moments(new, image, dims, axis, groups, own)
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


def _moments(
    new: _Nodes, image: str, dims: Sequence[int | None], axis: int, groups: int, own: int
) -> tuple[str, str]:
    """Write the means and variances of groups of channels: over each row, the rows, the channels.

    Args:
        new: Takes the nodes.
        image: What they are of.
        dims: Its shape; the number of channels is known.
        axis: The tiled axis.
        groups: Channels are taken together in so many groups.
        own: Its element type.

    Returns:
        Both, N x groups x 1 x 1.
    """
    channels = dims[1]
    assert channels is not None
    others = [at for at in range(2, len(dims)) if at != axis]
    # Over each row.
    means = new.reduce("ReduceMean", image, others, "row_means")
    off = new.add("Sub", [image, means], "off_row_means")
    # The sum is made without a tensor of squares; of a width known at run time alone the mean is.
    sizes = [dims[at] for at in others]
    count = prod(size or 0 for size in sizes) if None not in sizes else 0
    if count:
        squares = new.reduce("ReduceSumSquare", off, others, "row_squares")
    else:
        squared = new.add("Mul", [off, off], "squared")
        squares = new.reduce("ReduceMean", squared, others, "row_squares")
    # One tensor: of two, the second is asked for when all patches have made the first.
    rows = new.add("Concat", [means, squares], "rows", axis=1)
    # Over the rows. That of both together comes first, so that no patch is asked for halves.
    average = new.reduce("ReduceMean", rows, [axis], "over_rows")
    off = new.add("Sub", [rows, average], "off_average")
    between = new.reduce(
        "ReduceMean", new.add("Mul", [off, off], "off_squared"), [axis], "squares_between"
    )
    mean, within = new.halves(average, channels, "average", ("mean", "within"))
    between, _ = new.halves(between, channels, "between", ("rows", "unused"))
    if count:
        within = new.add("Div", [within, new.number(count, own, "row_size")], "within_rows")
    variance = new.add("Add", [within, between], "variance")
    # Over the channels of a group.
    each = channels // groups
    if each > 1:
        mean = new.reshape(mean, [0, groups, each, 1], "means_by_group")
        variance = new.reshape(variance, [0, groups, each, 1], "variances_by_group")
        mean, variance = _merged(new, mean, variance)
    else:
        mean = new.reshape(mean, [0, groups, 1, 1], "means")
        variance = new.reshape(variance, [0, groups, 1, 1], "variances")
    return mean, variance


def _merged(new: _Nodes, means: str, variances: str) -> tuple[str, str]:
    """Merge the means and variances of a group's channels."""
    mean = new.reduce("ReduceMean", means, [2], "group_mean")
    off = new.add("Sub", [means, mean], "group_off")
    between = new.add("Mul", [off, off], "group_squared")
    both = new.add("Add", [variances, between], "group_both")
    return mean, new.reduce("ReduceMean", both, [2], "group_variance")


def _channelwise(found: _Graph, name: str, op: str, channels: int) -> tuple[int, str] | None:
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


def _reduction(found: _Graph, position: int) -> tuple[Sequence[int], _Nodes] | None:
    """Write a reduction or a global pool."""
    shapes, node = found.shapes, found.node(position)
    x, y = node.input[0], node.output[0]
    dims, axis = shapes.dims.get(x), found.axes.get(x)
    if dims is None or axis is None:
        return None
    if node.op_type in _POOLS:
        if not _is_whole(found, node, dims):
            return None
        op, over = _POOLS[node.op_type], tuple(range(2, len(dims)))
        keeps = True
    else:
        op, keeps = node.op_type, bool(attributes(node).get("keepdims", 1))
        found_axes = found.reduced_axes(node)
        if found_axes is None:
            return None
        over = found_axes
    others = [at for at in over if at != axis]
    # Over the rows of one channel alone nothing becomes smaller row by row.
    if axis not in over or not others or dims[axis] == 1:
        return None
    if all(dims[at] == 1 for at in others):
        return None
    kind = shapes.elements.get(x, 0)
    # Of integers a mean or a root of each row would be rounded.
    if kind not in _FLOATS and (not kind or op not in _WHOLE_NUMBERS):
        return None
    single = kind in _HALF and op not in ("ReduceMax", "ReduceMin")
    new = found.new(position)
    image = new.add("Cast", [x], "single", to=int(TensorProto.FLOAT)) if single else x
    each, across = _IN_TWO[op]
    rows = new.reduce(each, image, others, "rows")
    name = "" if single or not keeps else y
    whole = new.reduce(across, rows, [axis], "whole", output=name)
    if not keeps:
        whole = new.squeeze(whole, over, "squeezed", "" if single else y)
    if single:
        new.add("Cast", [whole], "half", y, to=kind)
    return [position], new


def _is_whole(found: _Graph, node: onnx.NodeProto, dims: Sequence[int | None]) -> bool:
    """Tell whether a pool is over the whole image, each element once."""
    if node.op_type.startswith("Global"):
        return True
    given = attributes(node)
    plain = {"auto_pad": ("NOTSET", "VALID", ""), "ceil_mode": (0,), "storage_order": (0,)}
    if any(given.get(name, values[0]) not in values for name, values in plain.items()):
        return False
    if any(given.get("pads", ())) or any(step != 1 for step in given.get("dilations", ())):
        return False
    read = [
        name for name in node.output if name in found.index.users or name in found.index.outputs
    ]
    return list(given.get("kernel_shape", ())) == list(dims[2:]) and read == [node.output[0]]


@dataclass(frozen=True)
class Statistics:
    """Statistics as they stand in a graph.

    Attributes:
        entries: What is written in two.
        places: The positions of each one's new nodes.
        before: The graph's nodes as they were.
    """

    entries: tuple[Statistic, ...] = ()
    places: tuple[range, ...] = ()
    before: tuple[onnx.NodeProto, ...] = ()

    def undo(self, graph: onnx.GraphProto) -> None:
        """Give the graph its own nodes back, in place."""
        if self.entries:
            del graph.node[:]
            graph.node.extend(self.before)


# Of a model that has none, or is not written in another way.
NO_STATISTICS = Statistics()


def write_in_two(graph: onnx.GraphProto, entries: Sequence[Statistic]) -> Statistics:
    """Put new nodes where the last of those stood that they stand for, in place.

    Args:
        graph: The graph they were found in, or its skeleton.
        entries: What `find_statistics` found there.
    """
    gone = {at for entry in entries for at in entry.covered}
    # What serves a statistic comes before what it is read by.
    at_last = {entry.covered[-1]: number for number, entry in enumerate(entries)}
    places = [range(0)] * len(entries)
    before, nodes = tuple(graph.node), list[onnx.NodeProto]()
    for position, node in enumerate(before):
        number = at_last.get(position)
        if number is not None:
            places[number] = range(len(nodes), len(nodes) + len(entries[number].nodes))
            nodes.extend(entries[number].nodes)
        elif position not in gone:
            nodes.append(node)
    # Messages keep their content when the list they came from is emptied.
    del graph.node[:]
    graph.node.extend(nodes)
    return Statistics(tuple(entries), tuple(places), before)
