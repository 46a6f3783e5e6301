"""What is read where statistics are written in two, and the new nodes: a builder, and moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as count_from
from math import prod
from typing import Any, TypeAlias

import onnx
from onnx import TensorProto, helper

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.nodes import attributes, node_label
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.graph.use_def import Index

__all__ = [
    "FLOATS",
    "HALF",
    "InTwo",
    "NewNodes",
    "ReadGraph",
    "block_of",
    "in_blocks",
    "moments",
    "moments_by_row",
]


# Sums of these are made in float32, as runtimes do.
HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, *HALF})


@dataclass
class NewNodes:
    """New nodes, whose names begin with those of the node they stand for.

    Attributes:
        base: What their names begin with.
        opset: Version of the default domain.
        image: The tensor that is looked at as a whole.
        kind: What people call what looks at it.
        nodes: The nodes, in order.
    """

    base: str
    opset: int
    image: str
    kind: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(
        self, op: str, inputs: Sequence[str], suffix: str, output: str = "", **given: Any
    ) -> str:
        """Add a node; return its output, called after the suffix where no name is given."""
        made = output or f"{self.base}/{suffix}"
        name = f"{self.base}/{suffix}"
        self.nodes.append(helper.make_node(op, list(inputs), [made], name=name, **given))
        return made

    def ints(self, values: Sequence[int], suffix: str) -> str:
        """Add a constant of whole numbers."""
        tensor = helper.make_tensor("value", TensorProto.INT64, [len(values)], list(values))
        return self.add("Constant", [], suffix, value=tensor)

    def floats(self, values: Sequence[float], suffix: str) -> str:
        """Add a constant vector of single precision."""
        tensor = helper.make_tensor("value", TensorProto.FLOAT, [len(values)], list(values))
        return self.add("Constant", [], suffix, value=tensor)

    def number(self, value: float, kind: int, suffix: str) -> str:
        """Add a constant of one number without dimensions, of an element type."""
        tensor = helper.make_tensor("value", kind, [], [value])
        return self.add("Constant", [], suffix, value=tensor)

    def reduce(self, op: str, x: str, axes: Sequence[int], suffix: str, *, output: str = "") -> str:
        """Add a reduction that keeps its dimensions."""
        if self.opset >= (13 if op == "ReduceSum" else 18):
            over = self.ints(axes, f"{suffix}/axes")
            return self.add(op, [x, over], suffix, output, keepdims=1)
        return self.add(op, [x], suffix, output, axes=list(axes), keepdims=1)

    def reshape(self, x: str, dims: Sequence[int], suffix: str) -> str:
        """Add a Reshape to given dimensions."""
        return self.add("Reshape", [x, self.ints(dims, f"{suffix}/shape")], suffix)

    def squeeze(self, x: str, axes: Sequence[int], suffix: str, output: str) -> str:
        """Add a Squeeze."""
        if self.opset >= 13:
            over = self.ints(axes, f"{suffix}/axes")
            return self.add("Squeeze", [x, over], suffix, output)
        return self.add("Squeeze", [x], suffix, output, axes=list(axes))

    def halves(
        self, x: str, size: int, suffix: str, what: tuple[str, str], axis: int = 1
    ) -> tuple[str, str]:
        """Split a dimension, of twice ``size``, in two."""
        names = [f"{self.base}/{suffix}_{which}" for which in what]
        name = f"{self.base}/{suffix}"
        inputs = [x, self.ints([size, size], f"{suffix}/sizes")] if self.opset >= 13 else [x]
        node = helper.make_node("Split", inputs, names, name=name, axis=axis)
        if self.opset < 13:
            node.attribute.append(helper.make_attribute("split", [size, size]))
        self.nodes.append(node)
        return names[0], names[1]


# Positions of the nodes that new ones stand for, and the new ones.
InTwo: TypeAlias = tuple[Sequence[int], NewNodes]


@dataclass(frozen=True)
class ReadGraph:
    """What is known of the graph that is read.

    Attributes:
        facts: What is certain of it.
        axes: Which dimension of a tensor is the tiled axis, where that is known.
        word: What new names have between slashes, and no other has.
        taken: What new names begin with so far.
    """

    facts: CertainFacts
    axes: Mapping[str, int]
    word: str
    taken: set[str] = field(default_factory=set)

    @property
    def index(self) -> Index:
        """Who makes and reads what."""
        return self.facts.index

    @property
    def shapes(self) -> Shapes:
        """Shapes that are certain."""
        return self.facts.shapes

    def node(self, position: int) -> onnx.NodeProto:
        """Return a node of the graph."""
        return self.index.graph.node[position]

    def only_user(self, name: str) -> int | None:
        """Return the position of the only node that reads a tensor, None if there are others."""
        users = self.index.users.get(name, ())
        return users[0] if len(users) == 1 and name not in self.index.outputs else None

    def is_read(self, name: str) -> bool:
        """Tell whether anybody reads a tensor."""
        return name in self.index.users or name in self.index.outputs

    def new(self, position: int, image: str, kind: str) -> NewNodes:
        """Return a place for the new nodes that stand for a node.

        Args:
            position: The node's.
            image: The tensor that it looks at as a whole.
            kind: What people call it.
        """
        label = node_label(self.node(position))
        # Two nodes may have one name, or one the name that another's output has.
        free = (label if number == 1 else f"{label}_{number}" for number in count_from(1))
        base = next(name for name in free if name not in self.taken)
        self.taken.add(base)
        return NewNodes(f"{base}/{self.word}", self.facts.opset, image, kind)

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


# Elements of a signal that are looked at together, as the row of an image is.
_BLOCK = range(64, 7, -1)


def block_of(dims: Sequence[int | None], axis: int) -> int | None:
    """Return how many neighbours of a signal [N, C, L] are looked at together; None of an image.

    As many as divide its length; None too where its length is unknown or no such number does.
    """
    length = dims[-1]
    if len(dims) != 3 or axis != 2 or not length:
        return None
    return next((size for size in _BLOCK if length % size == 0 and length > size), None)


def in_blocks(
    new: NewNodes, signal: str, dims: Sequence[int | None], block: int
) -> tuple[str, tuple[int | None, ...]]:
    """Write a signal as an image whose rows are blocks of neighbours.

    Args:
        new: Takes the node.
        signal: The signal.
        dims: Its shape; channels and length are known.
        block: Elements of a block, which divide its length.

    Returns:
        The image, and its shape.
    """
    channels, rows = dims[1] or 0, (dims[2] or 0) // block
    image = new.reshape(signal, [0, channels, rows, block], "in_blocks")
    return image, (dims[0], channels, rows, block)


def moments(
    new: NewNodes, image: str, dims: Sequence[int | None], axis: int, groups: int, own: int
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
    mean, variance = moments_by_row(new, image, dims, axis, others, own)
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


def moments_by_row(
    new: NewNodes,
    image: str,
    dims: Sequence[int | None],
    axis: int,
    others: Sequence[int],
    own: int,
    join: int = 1,
) -> tuple[str, str]:
    """Write means and variances over the tiled axis and others: over each row, then over the rows.

    Args:
        new: Takes the nodes.
        image: What they are of.
        dims: Its shape.
        axis: The tiled axis.
        others: The other dimensions that they are taken over.
        own: Its element type.
        join: A dimension along which both are put together, of known size once reduced.

    Returns:
        Both; the dimensions that they are taken over are 1.
    """
    joined = 1 if join in others else dims[join]
    assert joined is not None
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
    rows = new.add("Concat", [means, squares], "rows", axis=join)
    # Over the rows. That of both together comes first, so that no patch is asked for halves.
    average = new.reduce("ReduceMean", rows, [axis], "over_rows")
    off = new.add("Sub", [rows, average], "off_average")
    between = new.reduce(
        "ReduceMean", new.add("Mul", [off, off], "off_squared"), [axis], "squares_between"
    )
    mean, within = new.halves(average, joined, "average", ("mean", "within"), join)
    between, _ = new.halves(between, joined, "between", ("rows", "unused"), join)
    if count:
        within = new.add("Div", [within, new.number(count, own, "row_size")], "within_rows")
    return mean, new.add("Add", [within, between], "variance")


def _merged(new: NewNodes, means: str, variances: str) -> tuple[str, str]:
    """Merge the means and variances of a group's channels."""
    mean = new.reduce("ReduceMean", means, [2], "group_mean")
    off = new.add("Sub", [means, mean], "group_off")
    between = new.add("Mul", [off, off], "group_squared")
    both = new.add("Add", [variances, between], "group_both")
    return mean, new.reduce("ReduceMean", both, [2], "group_variance")
