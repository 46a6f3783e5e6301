"""Reductions and pools over the image, written in two (`graph.statistics`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.new_nodes import ReadGraph
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.statistic_nodes import (
    FLOATS,
    HALF,
    InTwo,
    block_of,
    in_blocks,
)

__all__ = ["REDUCTIONS", "reduction"]


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
    block = block_of(dims, axis) if not others and dims[1] is not None else None
    # Over the rows of one channel alone nothing becomes smaller row by row.
    if axis not in over or dims[axis] == 1:
        return None
    if block is None and all(dims[at] == 1 for at in others):
        return None
    kind = shapes.elements.get(x, 0)
    # Of integers a mean or a root of each row would be rounded.
    if kind not in FLOATS and (not kind or op not in _WHOLE_NUMBERS):
        return None
    single = kind in HALF and op not in ("ReduceMax", "ReduceMin")
    kind_of = "global pooling" if node.op_type in _POOLS else f"statistics over the image ({op})"
    new = found.new(position, x, kind_of)
    image = new.add("Cast", [x], "single", to=int(TensorProto.FLOAT)) if single else x
    each, across = _IN_TWO[op]
    gone = () if keeps else over
    if block is not None:
        image, _ = in_blocks(new, image, dims, block)
        others, gone = [3], (*gone, 3)
    rows = new.reduce(each, image, others, "rows")
    name = "" if single or gone else y
    whole = new.reduce(across, rows, [axis], "whole", output=name)
    if gone:
        whole = new.squeeze(whole, gone, "squeezed", "" if single else y)
    if single:
        new.add("Cast", [whole], "half", y, to=kind)
    return [position], new


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
    read = [
        name for name in node.output if name in found.index.users or name in found.index.outputs
    ]
    return list(given.get("kernel_shape", ())) == list(dims[2:]) and read == [node.output[0]]
