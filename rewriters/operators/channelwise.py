"""Over another dimension than the tiled one: Softmax, Concat, reductions."""

from __future__ import annotations

from patchconv_deploy.rewriters.operators.record import Record, RowLocal
from patchconv_deploy.rewriters.operators.rules import OverAllRows, optional, same_rows
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise

__all__ = ["JOINED", "REDUCTIONS", "SOFTMAX", "add_and_normalize", "along", "normalize", "reduce"]


# Of a Concat: where its result is cut, its operands are not cut in the same places.
JOINED = "it concatenates along the tiled axis"

# Of a Softmax: weights that add up to one over all rows.
SOFTMAX = OverAllRows("it works along the tiled axis (Softmax)")


def along(record: Record, axis: int) -> RowLocal | str:
    """Read the operators that work along one axis of their own, which is not the tiled one."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    op, rank = record.op_type, len(shape)
    flattens = op in ("Softmax", "LogSoftmax", "Hardmax") and record.opset < 13
    defaults = dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), 1 if flattens else -1)
    at = record.attributes.get("axis", defaults.get(op, 0)) % rank
    if flattens and at < rank - 1:
        return f"before opset 13 {op} flattens its input"
    match op:
        case "Concat":
            if at == axis:
                return JOINED
            return same_rows(axis, *range(len(record.shapes)))
        case "Gather":
            indices = record.shape(1)
            if indices is None:
                return "the rank of its indices is unknown"
            source = axis if axis < at else axis - len(indices) + 1
            if source <= at and axis >= at:
                return "it gathers along the tiled axis"
            return RowLocal(Pointwise(), ((0, source),), axis)
        case "ArgMax" | "ArgMin":
            keeps = record.attributes.get("keepdims", 1)
            source = axis if keeps or axis < at else axis + 1
            if source == at:
                return OverAllRows("it searches along the tiled axis")
            return RowLocal(Pointwise(), ((0, source),), axis)
        case _:
            if at != axis:
                return same_rows(axis)
            if op == "Softmax":
                return SOFTMAX
            reason = f"it works along the tiled axis ({op})"
            return reason if op == "Split" else OverAllRows(reason)


def reduce(record: Record, axis: int) -> RowLocal | str:
    """Reductions over other dimensions."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    rank = len(shape)
    axes = optional(record, 1, "axes", ())
    if axes is None:
        return "its axes are known at run time alone"
    if not axes and record.attributes.get("noop_with_empty_axes", 0):
        return same_rows(axis)
    reduced = {at % rank for at in axes} or set(range(rank))
    if record.attributes.get("keepdims", 1):
        source = axis
    else:
        kept = [at for at in range(rank) if at not in reduced]
        source = kept[axis] if axis < len(kept) else -1
    if source in reduced or source < 0:
        return OverAllRows("it reduces over the tiled axis")
    return RowLocal(Pointwise(), ((0, source),), axis)


def normalize(record: Record, axis: int) -> RowLocal | str:
    """Normalisations over other dimensions, scale and bias along them."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    if any(record.used[1:]):
        return "an output besides the first is used"
    if axis >= record.attributes.get("axis", -1) % len(shape):
        return OverAllRows("it normalises over the tiled axis")
    for index in range(1, len(record.shapes)):
        scale = record.shape(index)
        if index in record.absent:
            continue
        if scale is None:
            return "the rank of its scale is unknown"
        at = axis - (len(shape) - len(scale))
        if at >= 0 and scale[at] != 1:
            return "its scale is not the same in all rows"
    return same_rows(axis)


def add_and_normalize(record: Record, axis: int) -> RowLocal | str:
    """SkipLayerNormalization and its kin: a sum of two, normalised over the last dimension."""
    shape, skip = record.shape(0), record.shape(1)
    if shape is None or skip is None:
        return "its input's rank is unknown"
    # Mean and deviation; the sum itself has the rows of what it is made of.
    if any(record.used[1:3]):
        return "an output besides the result and the sum is used"
    if axis == len(shape) - 1:
        return OverAllRows("it normalises over the tiled axis")
    at = axis - (len(shape) - len(skip))
    carriers = [(0, axis)]
    if at >= 0 and skip[at] != 1:
        carriers.append((1, at))
    return RowLocal(Pointwise(), tuple(carriers), axis)


REDUCTIONS = (
    "ReduceMax ReduceMin ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceSumSquare"
).split()
