"""Reductions and pools over the image, written in two (`graph.statistics`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    row_of,
)

__all__ = ["REDUCTIONS", "can_be_in_two", "reduce_in_two", "reduction"]


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

# What is read here.
REDUCTIONS = (*_POOLS, *_IN_TWO)


def reduction(found: ReadGraph, position: int) -> InTwo | None:
    """Write a reduction or a global pool in two; None where it is not over rows and more."""
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
    block = None if others else _block_of(found, x, dims, axis)
    # Over the rows of one channel alone nothing becomes smaller row by row.
    if axis not in over or dims[axis] == 1:
        return None
    if block is None and all(dims[at] == 1 for at in others):
        return None
    kind = shapes.elements.get(x, 0)
    if not can_be_in_two(op, kind):
        return None
    kind_of = "global pooling" if node.op_type in _POOLS else f"statistics over the image ({op})"
    new, image, gone = found.new(position, x, kind_of), x, () if keeps else over
    if block is not None:
        image, _ = in_blocks(new, x, dims, axis, block)
        others, gone = [axis + 1], (axis + 1,) if keeps else (axis, axis + 1)
    reduce_in_two(new, op, image, axis, others, y, kind=kind, gone=gone)
    return [position], new


def can_be_in_two(op: str, kind: int) -> bool:
    """Tell whether a reduction of an element type is one of each row and one of these."""
    # Of integers a mean or a root of each row would be rounded.
    return op in _IN_TWO and (kind in FLOATS or (bool(kind) and op in _WHOLE_NUMBERS))


def reduce_in_two(
    new: NewNodes,
    op: str,
    image: str,
    axis: int,
    others: Sequence[int],
    output: str,
    *,
    kind: int,
    gone: Sequence[int] = (),
) -> None:
    """Write a reduction over the rows and other dimensions: over each row first, then the rows.

    Args:
        new: Takes the nodes.
        op: The reduction.
        image: What is reduced.
        axis: The dimension of the rows.
        others: The other dimensions.
        output: What the result is called.
        kind: Its element type.
        gone: Reduced dimensions that the result does not have.
    """
    single = kind in HALF and op not in ("ReduceMax", "ReduceMin")
    if single:
        image = new.add("Cast", [image], "single", to=int(TensorProto.FLOAT))
    each, across = _IN_TWO[op]
    rows = new.reduce(each, image, others, "rows")
    whole = new.reduce(across, rows, [axis], "whole", output="" if single or gone else output)
    if gone:
        whole = new.squeeze(whole, gone, "squeezed", "" if single else output)
    if single:
        new.add("Cast", [whole], "half", output, to=kind)


def _block_of(found: ReadGraph, x: str, dims: Sequence[int | None], axis: int) -> int | None:
    """Return how many positions of a signal or sequence, reduced along it alone, stand for a row.

    Of a sequence they are those of a row of the image that was folded into it. None of an image.
    """
    if len(dims) == 3 and axis == 2:
        return block_of(dims, axis) if dims[1] is not None else None
    if axis < 1 or None in dims[1:]:
        return None
    return row_of(found, x)


def _is_whole(found: ReadGraph, node: onnx.NodeProto, dims: Sequence[int | None]) -> bool:
    """Tell whether a pool is over the whole image, each element once."""
    if node.op_type.startswith("Global"):
        return True
    given = attributes(node)
    plain = {"auto_pad": ("NOTSET", "VALID", ""), "ceil_mode": (0,), "storage_order": (0,)}
    if any(given.get(name, values[0]) not in values for name, values in plain.items()):
        return False
    if any(given.get("pads", ())) or any(step != 1 for step in given.get("dilations", ())):
        return False
    read = [name for name in node.output if found.is_read(name)]
    return list(given.get("kernel_shape", ())) == list(dims[2:]) and read == [node.output[0]]
