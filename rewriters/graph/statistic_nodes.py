"""Shared pieces of statistics: rows of signals and sequences, moments merged from those of rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

from onnx import TensorProto

from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph

__all__ = [
    "FLOATS",
    "HALF",
    "InTwo",
    "block_of",
    "in_blocks",
    "moments",
    "moments_by_row",
    "row_of",
]


# Sums of these are made in float32, as runtimes do.
HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, *HALF})


# Positions of the nodes that new ones stand for, and the new ones.
InTwo: TypeAlias = tuple[Sequence[int], NewNodes]

# How many neighbours of a signal may stand for the row of an image; the most is tried first.
_BLOCK = range(64, 7, -1)

# How many nodes before a sequence the image that it was is looked for.
_FAR = 16


def block_of(dims: Sequence[int | None], axis: int) -> int | None:
    """Return how many neighbours of a signal [N, C, L] are looked at together; None of an image.

    As many as divide its length; None too where its length is unknown or no such number does.
    """
    length = dims[-1]
    if len(dims) != 3 or axis != 2 or not length:
        return None
    return next((size for size in _BLOCK if length % size == 0 and length > size), None)


def row_of(found: ReadGraph, name: str) -> int | None:
    """Return how many positions of a sequence are a row of the image that it was.

    Args:
        found: The graph.
        name: The sequence; its tiled axis is known.

    Returns:
        The width of the image; None where no Reshape of one is near, or its sizes are unknown.
    """
    dims, axes = found.shapes.dims, found.axes
    length = dims[name][axes[name]]
    for _ in range(_FAR):
        maker = found.index.producer.get(name)
        reads = () if maker is None else found.node(maker).input
        carrier = next((each for each in reads if each in axes), None)
        if maker is None or carrier is None or not length:
            return None
        shape = dims.get(carrier)
        rows = None if shape is None else shape[axes[carrier]]
        if found.node(maker).op_type == "Reshape" and rows and length > rows > 1:
            return length // rows if length % rows == 0 else None
        if rows != length:
            return None
        name = carrier
    return None


def in_blocks(
    new: NewNodes,
    signal: str,
    dims: Sequence[int | None],
    axis: int,
    block: int,
    suffix: str = "in_blocks",
) -> tuple[str, tuple[int | None, ...]]:
    """Write a signal as an image whose rows are blocks of neighbours.

    Args:
        new: Takes the node.
        signal: The signal.
        dims: Its shape; its length is known, and all sizes behind that.
        axis: The dimension of its length.
        block: Elements of a block, which divide its length.
        suffix: What the image is called after.

    Returns:
        The image, and its shape; blocks are the dimension behind that of its rows.
    """
    rows, behind = (dims[axis] or 0) // block, dims[axis + 1 :]
    # A size before it that is unknown is copied.
    wanted = [*(size or 0 for size in dims[:axis]), rows, block, *(size or 0 for size in behind)]
    image = new.reshape(signal, wanted, suffix)
    return image, (*dims[:axis], rows, block, *behind)


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
