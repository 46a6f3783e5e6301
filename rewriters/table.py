"""The operators a region can hold: one table entry each.

    entry         operators                                        rows        refused
    _sliding      Conv, ConvInteger, QLinearConv                   Sliding     kernel size unknown
    _transposed   ConvTranspose                                    Transposed  output beyond kernel
    _pool         MaxPool, AveragePool, LpPool                     Sliding     Indices used
    _resize       Resize, Upsample                                 Periodic    corners, odd factors
    _to_space     DepthToSpace                                     Transposed
    _to_depth     SpaceToDepth                                     Sliding
    _pad          Pad                                              Padding     wrap, unknown pads
    _slice        Slice                                            Sliding     backwards
    _broadcast    arithmetic, comparisons, activations, Where ...  Pointwise   unknown rank
    _first        BatchNormalization, LRN, Dropout, CumSum ...     Pointwise   training, own axis
    _quantize     QuantizeLinear, DequantizeLinear                 Pointwise   scales along rows
    _along        Softmax, Concat, Split, Gather, ArgMax ...       Pointwise   along the tiled axis
    _reduce       ReduceMean, ReduceSum ...                        Pointwise   over the tiled axis
    _normalize    LayerNormalization, RMSNormalization             Pointwise   over the tiled axis
    _matmul       MatMul, the second factor shared                 Pointwise   over the tiled axis
    _transpose, _squeeze, _unsqueeze, _reshape, _expand            Pointwise   rows not kept apart

An entry is asked with the dimension of the node's *output* that is the tiled axis, and says which
dimension of which inputs that is. Emission knows no operator: what is not here is not cut.
`BARRIERS` names operators whose output rows depend on all input rows.

Source: the ONNX operator definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import ceil, floor, prod
from typing import Any

from rewriters.operators import ROWS, Pads, Record, RowLocal, Shape, read_convolution
from rewriters.rowmaps import Padding, Periodic, Pointwise, RowMap, Sliding, Transposed

__all__ = ["BARRIERS", "SPATIAL", "TABLE", "Entry"]

Entry = Callable[[Record, int], RowLocal | str]

_FAR = (1 << 63) - 1
# Larger factors are no resizing of images; a period has to be listed row by row.
_LARGEST_FACTOR = 256


def _same(axis: int, *indices: int) -> RowLocal:
    """Return rows as they are, carried on the same dimension by the inputs named."""
    return RowLocal(Pointwise(), tuple((index, axis) for index in indices or (0,)), axis)


# --- kernels ------------------------------------------------------------------------------------


def _sliding(record: Record, axis: int) -> RowLocal | str:
    conv = read_convolution(record)
    if isinstance(conv, str):
        return conv
    i = axis - 2
    if not 0 <= i < conv.rank:
        return "it mixes batch or channels"
    begins, ends = conv.begins, conv.ends
    same = conv.auto_pad if conv.auto_pad.startswith("SAME") else None
    if same is not None and max(conv.strides) == 1:
        # Moved by one, SAME padding is the same at every size.
        pairs = [
            _split_padding(conv.reach(j) - 1, upper=same == "SAME_UPPER") for j in range(conv.rank)
        ]
        begins, ends, same = tuple(a for a, _ in pairs), tuple(b for _, b in pairs), None
    row_map = Sliding(conv.reach(i), conv.strides[i], begins[i], ends[i], same=same)
    pads = Pads((*begins, *ends), i, conv.rank + i, without=("auto_pad",))
    return RowLocal(row_map, ((0, axis),), axis, pads=None if same else pads)


def _pool(record: Record, axis: int) -> RowLocal | str:
    if any(record.used[1:]):
        return "its Indices count positions in the whole image"
    values = record.attributes
    kernel = values.get("kernel_shape", ())
    rank, i = len(kernel), axis - 2
    if not 0 <= i < rank:
        return "it has no kernel along the tiled axis"
    stride = values.get("strides", (1,) * rank)[i]
    dilation = values.get("dilations", (1,) * rank)[i]
    pads = values.get("pads", (0,) * (2 * rank))
    auto_pad = values.get("auto_pad", "NOTSET") or "NOTSET"
    reach = dilation * (kernel[i] - 1) + 1
    if min(reach, stride) < 1:
        return "a kernel, stride or dilation below 1"
    if auto_pad.startswith("SAME"):
        if max(values.get("dilations", (1,))) > 1 or stride > reach + 1:
            return "runtimes pad it differently (auto_pad, dilated or of a stride above its kernel)"
        return RowLocal(Sliding(reach, stride, same=auto_pad), ((0, axis),), axis)
    begin, end = (pads[i], pads[rank + i]) if auto_pad == "NOTSET" else (0, 0)
    ceil_mode = bool(values.get("ceil_mode", 0))
    if ceil_mode:
        shape = record.shape(0)
        rows = shape[axis] if shape is not None else None
        if rows is None:
            return "ceil_mode on an input of unknown size"
        out = -(-(rows + begin + end - reach) // stride) + 1
        if (out - 1) * stride >= rows + begin:
            return "its last window lies in the padding (ceil_mode), where runtimes disagree"
    return RowLocal(
        Sliding(reach, stride, begin, end, ceil=ceil_mode),
        ((0, axis),),
        axis,
        pads=Pads(tuple(pads), i, rank + i) if auto_pad == "NOTSET" else None,
    )


def _split_padding(total: int, *, upper: bool) -> tuple[int, int]:
    """Split computed padding; the odd row goes below for SAME_UPPER alone."""
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def _transposed(record: Record, axis: int) -> RowLocal | str:
    conv = read_convolution(record)
    if isinstance(conv, str):
        return conv
    i = axis - 2
    if not 0 <= i < conv.rank:
        return "it mixes batch or channels"
    begins, ends = list(conv.begins), list(conv.ends)
    replaced: dict[str, Any] = {}
    if conv.output_shape is not None:
        shape = record.shape(0)
        if len(conv.output_shape) != conv.rank:
            return "output_shape does not have one entry per spatial axis"
        if shape is None or any(size is None for size in shape[2:]):
            return "output_shape fixes the output of an input of unknown size"
        natural = [
            (size or 0) * stride - stride + extra + conv.reach(j)
            for j, (size, stride, extra) in enumerate(
                zip(shape[2:], conv.strides, conv.output_padding, strict=True)
            )
        ]
        totals = [a - b for a, b in zip(natural, conv.output_shape, strict=True)]
    elif conv.auto_pad.startswith("SAME"):
        totals = [
            conv.reach(j) + conv.output_padding[j] - conv.strides[j] for j in range(conv.rank)
        ]
    else:
        totals = []
    if totals:
        if min(totals) < 0:
            return "its output is asked to be larger than the kernel can fill"
        for j, total in enumerate(totals):
            begins[j], ends[j] = _split_padding(total, upper=conv.auto_pad == "SAME_UPPER")
    padded = conv.auto_pad != "NOTSET" and any(conv.output_padding)
    if conv.output_shape is not None or padded:
        # onnx's inference adds output_padding on top of auto_pad's size, TensorRT leaves it out.
        replaced = {"output_shape": None, "auto_pad": None, "pads": (*begins, *ends)}
    row_map = Transposed(conv.reach(i), conv.strides[i], begins[i], ends[i], conv.output_padding[i])
    pads = Pads(
        (*begins, *ends), i, conv.rank + i, crops=True, without=("auto_pad", "output_shape")
    )
    return RowLocal(row_map, ((0, axis),), axis, attributes=replaced, pads=pads)


# --- resampling and moving rows -----------------------------------------------------------------


def _to_space(record: Record, axis: int) -> RowLocal | str:
    size = record.attributes.get("blocksize", 0)
    if axis < 2 or size < 1:
        return "it mixes batch or channels"
    return RowLocal(Transposed(size, size), ((0, axis),), axis)


def _to_depth(record: Record, axis: int) -> RowLocal | str:
    size = record.attributes.get("blocksize", 0)
    if axis < 2 or size < 1:
        return "it mixes batch or channels"
    return RowLocal(Sliding(size, size), ((0, axis),), axis)


def _source_row(mode: str, row: int, factor: Fraction) -> Fraction | None:
    """Return the position an output row is read from, in input rows."""
    if mode == "asymmetric":
        return Fraction(row) / factor
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and factor >= 2):
        # pytorch_half_pixel differs for outputs of one row, which no factor of 2 or more makes.
        return (row + Fraction(1, 2)) / factor - Fraction(1, 2)
    return None


_NEAREST: Mapping[str, Callable[[Fraction], int]] = {
    "round_prefer_floor": lambda x: ceil(x - Fraction(1, 2)),
    "round_prefer_ceil": lambda x: floor(x + Fraction(1, 2)),
    "floor": floor,
    "ceil": ceil,
}


def _resize(record: Record, axis: int) -> RowLocal | str:
    x, y = record.shape(0), record.output
    if x is None or y is None:
        return "its input's rank is unknown"
    values = record.attributes
    old = record.op_type == "Upsample" or record.opset < 11
    coordinates = values.get(
        "coordinate_transformation_mode", "asymmetric" if old else "half_pixel"
    )
    if values.get("antialias", 0):
        return "antialias widens the kernel with the factor"
    factor = _factor(record, axis, x[axis], y[axis], old)
    if isinstance(factor, str):
        return factor
    mode = values.get("mode", "nearest")
    exact = _is_power_of_two(factor.numerator) and _is_power_of_two(factor.denominator)
    if not exact and (mode != "nearest" or factor.denominator > 1):
        return "its factor rounds differently from row to row (only powers of two are exact)"
    if mode not in ("nearest", "linear", "cubic"):
        return f"its mode is {mode!r}"
    lows, highs = [], []
    for row in range(factor.numerator):
        at = _source_row(coordinates, row, factor)
        if at is None:
            return f"coordinate_transformation_mode is {coordinates!r}"
        if mode == "nearest":
            rounding = "floor" if old else values.get("nearest_mode", "round_prefer_floor")
            if rounding not in _NEAREST:
                return f"nearest_mode is {rounding!r}"
            low, reach = _NEAREST[rounding](at), 1
        elif mode == "linear":
            low, reach = floor(at), 2
        else:
            low, reach = floor(at) - 1, 4
        lows.append(low)
        highs.append(low + reach)
    return RowLocal(
        Periodic(factor.denominator, factor.numerator, tuple(lows), tuple(highs)),
        ((0, axis),),
        axis,
        constants=_local_sizes(record, axis),
    )


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _resize_axes(record: Record) -> tuple[int, ...]:
    rank = len(record.shape(0) or ())
    return tuple(at % rank for at in record.attributes.get("axes", range(rank)))


def _factor(
    record: Record, axis: int, rows: int | None, out: int | None, old: bool
) -> Fraction | str:
    """Return the exact factor of the tiled axis, output rows over input rows."""
    known = rows is not None and out is not None
    factor = Fraction(out or 0, rows or 1)
    axes = _resize_axes(record)
    sizes = record.value(3)
    if not old and record.given(3):
        if record.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return "keep_aspect_ratio_policy makes sizes that depend on the whole"
        if sizes is None or not known:
            return "its sizes are known at run time alone"
    else:
        scales = record.attributes.get("scales") or record.value(1 if old else 2)
        if not scales:
            return "its scales are known at run time alone"
        scale = scales[axes.index(axis)] if axis in axes else 1.0
        if not known:
            factor = Fraction(float(scale))
            if factor.denominator > 1:
                return "it resizes an axis of unknown size by a fraction"
        if Fraction(float(scale)) != factor:
            return f"its scale {scale} is not exactly its output's size over its input's"
    if factor <= 0 or max(factor.numerator, factor.denominator) > _LARGEST_FACTOR:
        return "its factor is not a small ratio of whole numbers"
    return factor


def _local_sizes(record: Record, axis: int) -> Mapping[int, tuple[int | None, ...]]:
    sizes, axes = record.value(3), _resize_axes(record)
    if record.op_type != "Resize" or record.opset < 11 or not sizes or axis not in axes:
        return {}
    at = axes.index(axis)
    return {3: (*sizes[:at], ROWS, *sizes[at + 1 :])}


def _pad(record: Record, axis: int) -> RowLocal | str:
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    rank = len(shape)
    pads = record.attributes.get("pads") or record.attributes.get("paddings") or record.value(1)
    if pads is None:
        return "its padding is known at run time alone"
    axes: Sequence[int] = range(rank)
    if record.given(3):
        given = record.value(3)
        if given is None:
            return "its axes are known at run time alone"
        axes = [at % rank for at in given]
    if axis not in axes:
        return _same(axis)
    at = list(axes).index(axis)
    begin, end = int(pads[at]), int(pads[len(axes) + at])
    if begin == end == 0:
        return _same(axis)
    mode = record.attributes.get("mode", "constant")
    margins = {"constant": 0, "edge": 1, "reflect": max(begin, end, 0) + 1}
    if mode not in margins:
        return f"its mode is {mode!r}"
    # What one side cuts off is no longer there for the other to be made of.
    margin = margins[mode] + max(-begin, -end, 0)
    written = Pads(
        tuple(int(number) for number in pads),
        at,
        len(axes) + at,
        index=None if record.attributes.get("pads") else 1,
    )
    return RowLocal(Padding(begin, end, margin), ((0, axis),), axis, pads=written)


def _slice(record: Record, axis: int) -> RowLocal | str:
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    rank = len(shape)
    inputs = record.opset >= 10
    starts = record.value(1) if inputs else record.attributes.get("starts")
    ends = record.value(2) if inputs else record.attributes.get("ends")
    if starts is None or ends is None:
        return "its bounds are known at run time alone"
    count = len(starts)
    axes = _optional(record, 3, "axes", tuple(range(count)))
    strides = _optional(record, 4, "", (1,) * count)
    if axes is None or strides is None:
        return "its axes are known at run time alone"
    axes = tuple(at % rank for at in axes)
    if axis not in axes:
        return _same(axis)
    at, rows = axes.index(axis), shape[axis]
    start, end, stride = starts[at], ends[at], strides[at]
    if stride < 1:
        return "it takes rows backwards"
    if (start < 0 or 0 <= end < _FAR // 2) and rows is None:
        return "it counts rows of an input of unknown size"
    height = rows or 0
    if start < 0:
        start = max(0, start + height)
    if end >= 0:
        # From the end, so that it means the same in a window; beyond it: all rows.
        end = 0 if end >= height and (rows is not None or end > _FAR // 2) else end - height
    if rows is not None and height + end - start < 1:
        return "it takes no rows"
    starts = _replaced(starts, at, start)
    ends = _replaced(ends, at, _FAR if end == 0 else end)
    row_map = Sliding(1, stride, -start, end)
    if not inputs:
        replaced = {"starts": starts, "ends": ends, "axes": axes}
        return RowLocal(row_map, ((0, axis),), axis, attributes=replaced)
    constants = {1: starts, 2: ends, 3: axes, 4: strides}
    return RowLocal(row_map, ((0, axis),), axis, constants=constants)


def _replaced(numbers: Sequence[int], at: int, number: int) -> tuple[int, ...]:
    return (*numbers[:at], number, *numbers[at + 1 :])


def _optional(
    record: Record, index: int, attribute: str, default: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return an optional input's numbers, or the attribute it was before; None if not constant."""
    if attribute in record.attributes:
        given: tuple[int, ...] = record.attributes[attribute]
        return given
    value = record.value(index)
    if value is not None:
        return tuple(int(number) for number in value)
    return None if record.given(index) else default


# --- one row at a time --------------------------------------------------------------------------


def _broadcast(record: Record, axis: int) -> RowLocal | str:
    shape = record.output
    if shape is None:
        return "its output's rank is unknown"
    if shape[axis] == 1:
        return "its output is one row"
    carriers = []
    for index, operand in enumerate(record.shapes):
        if index in record.absent:
            continue
        if operand is None:
            return "an operand's rank is unknown"
        at = axis - (len(shape) - len(operand))
        if at >= 0 and operand[at] != 1:
            carriers.append((index, at))
    if not carriers:
        return "none of its inputs has the tiled axis"
    return RowLocal(Pointwise(), tuple(carriers), axis)


def _first(record: Record, axis: int) -> RowLocal | str:
    values = record.attributes
    if any(record.used[1:]):
        return "an output besides the first is used"
    match record.op_type:
        case "BatchNormalization":
            if values.get("training_mode", 0) or not values.get("spatial", 1):
                return "it is in training mode"
            if axis == 1:
                return "its parameters vary along the tiled axis"
        case "LRN" if axis == 1:
            return "it sums over the tiled axis"
        case "Dropout":
            training = record.value(2)
            if record.given(2) and (training is None or training[0]):
                return "it is in training mode"
        case "CumSum":
            at, rank = record.value(1), len(record.shape(0) or ())
            if not at or not rank or at[0] % rank == axis:
                return "it sums along the tiled axis"
    return _same(axis)


def _quantize(record: Record, axis: int) -> RowLocal | str:
    scale, shape = record.shape(1), record.shape(0)
    if scale is None:
        return "its scale's shape is unknown"
    if record.attributes.get("block_size", 0):
        return "it is quantised block by block"
    if any(size != 1 for size in scale):
        at = record.attributes.get("axis", 1)
        if at < 0:
            if shape is None:
                return "its quantised axis counts from the end of an unknown rank"
            at += len(shape)
        if at in (0, axis):
            return "its scales vary along the tiled or the batch axis"
    return _same(axis)


def _along(record: Record, axis: int) -> RowLocal | str:
    """Read the operators that work along one axis of their own, which is not the tiled one."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    op, rank = record.op_type, len(shape)
    defaults = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1}
    if op in defaults and record.opset < 13:
        return f"before opset 13 {op} flattens its input"
    at = record.attributes.get("axis", defaults.get(op, 0)) % rank
    match op:
        case "Concat":
            if at == axis:
                return "it concatenates along the tiled axis"
            return _same(axis, *range(len(record.shapes)))
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
                return "it searches along the tiled axis"
            return RowLocal(Pointwise(), ((0, source),), axis)
        case _:
            return f"it works along the tiled axis ({op})" if at == axis else _same(axis)


def _reduce(record: Record, axis: int) -> RowLocal | str:
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    rank = len(shape)
    axes = _optional(record, 1, "axes", ())
    if axes is None:
        return "its axes are known at run time alone"
    if not axes and record.attributes.get("noop_with_empty_axes", 0):
        return _same(axis)
    reduced = {at % rank for at in axes} or set(range(rank))
    if record.attributes.get("keepdims", 1):
        source = axis
    else:
        kept = [at for at in range(rank) if at not in reduced]
        source = kept[axis] if axis < len(kept) else -1
    if source in reduced or source < 0:
        return "it reduces over the tiled axis"
    return RowLocal(Pointwise(), ((0, source),), axis)


def _normalize(record: Record, axis: int) -> RowLocal | str:
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    if any(record.used[1:]):
        return "an output besides the first is used"
    if axis >= record.attributes.get("axis", -1) % len(shape):
        return "it normalises over the tiled axis"
    for index in range(1, len(record.shapes)):
        scale = record.shape(index)
        if index in record.absent:
            continue
        if scale is None:
            return "the rank of its scale is unknown"
        at = axis - (len(shape) - len(scale))
        if at >= 0 and scale[at] != 1:
            return "its scale is not the same in all rows"
    return _same(axis)


def _matmul(record: Record, axis: int) -> RowLocal | str:
    a, b = record.shape(0), record.shape(1)
    if a is None or b is None or len(b) < 2 or len(a) < len(b):
        return "its factors are not an image and a matrix"
    if axis >= len(a) - 1:
        return "the tiled axis is its second factor's"
    at = axis - (len(a) - len(b))
    if axis < len(a) - 2 and at >= 0 and b[at] != 1:
        return "both factors have the tiled axis"
    return _same(axis)


# --- other spellings of the same rows -----------------------------------------------------------


def _transpose(record: Record, axis: int) -> RowLocal | str:
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    perm = record.attributes.get("perm") or tuple(reversed(range(len(shape))))
    return RowLocal(Pointwise(), ((0, perm[axis]),), axis)


def _squeeze(record: Record, axis: int) -> RowLocal | str:
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    axes = _optional(record, 1, "axes", ())
    if axes is None:
        return "its axes are known at run time alone"
    if not axes and any(size is None for size in shape):
        return "it drops axes of unknown size"
    gone = {at % len(shape) for at in axes} or {k for k, size in enumerate(shape) if size == 1}
    kept = [at for at in range(len(shape)) if at not in gone]
    return RowLocal(Pointwise(), ((0, kept[axis]),), axis)


def _unsqueeze(record: Record, axis: int) -> RowLocal | str:
    shape = record.shape(0)
    axes = _optional(record, 1, "axes", ())
    if shape is None or not axes:
        return "its axes are known at run time alone"
    rank = len(shape) + len(axes)
    new = {at % rank for at in axes}
    if axis in new:
        return "the tiled axis is new here"
    return RowLocal(Pointwise(), ((0, axis - sum(at < axis for at in new)),), axis)


def _whole(shape: Shape | None) -> tuple[int, ...] | None:
    if shape is None or any(size is None for size in shape):
        return None
    return tuple(size or 0 for size in shape)


def _reshape(record: Record, axis: int) -> RowLocal | str:
    x, y = _whole(record.shape(0)), _whole(record.output)
    if x is None or y is None:
        return "it reshapes a tensor of unknown size"
    if y[axis] < 2:
        return "its output is one row"
    for at, rows in enumerate(x):
        if rows == y[axis] and prod(x[:at]) == prod(y[:axis]):
            # Row-major order keeps the rows apart; -1 takes as many as there are.
            target = (*y[:axis], -1, *y[axis + 1 :])
            return RowLocal(Pointwise(), ((0, at),), axis, constants={1: target})
    for at, rows in enumerate(x):
        # Pixel shuffle spelled out: k neighbouring rows become one more dimension, or one again.
        if rows < 2 or prod(x[:at]) != prod(y[:axis]):
            continue
        target = (*y[:axis], -1, *y[axis + 1 :])
        together, apart = y[axis] // rows, rows // y[axis]
        if y[axis] == rows * together and x[at + 1 : at + 2] == (together,):
            row_map: RowMap = Transposed(together, together)
            return RowLocal(row_map, ((0, at),), axis, constants={1: target})
        if rows == y[axis] * apart and y[axis + 1 : axis + 2] == (apart,):
            row_map = Sliding(apart, apart)
            return RowLocal(row_map, ((0, at),), axis, constants={1: target})
    return "it takes rows apart or puts them together"


def _expand(record: Record, axis: int) -> RowLocal | str:
    x, y = record.shape(0), _whole(record.output)
    if x is None or y is None:
        return "it expands a tensor of unknown size"
    at = axis - (len(y) - len(x))
    if at < 0 or x[at] != y[axis] or y[axis] < 2:
        return "it makes the tiled axis"
    target = (*y[:axis], 1, *y[axis + 1 :])
    return RowLocal(Pointwise(), ((0, at),), axis, constants={1: target})


def _tile(record: Record, axis: int) -> RowLocal | str:
    repeats = record.value(1)
    if repeats is None or len(repeats) <= axis or repeats[axis] != 1:
        return "it repeats the tiled axis"
    return _same(axis)


_BROADCAST = (
    # arithmetic, comparisons, logic
    "Add Sub Mul Div Pow Mod Max Min Mean Sum And Or Xor Not Equal Less LessOrEqual Greater "
    "GreaterOrEqual BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot Where PRelu Clip "
    # functions of one number
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Reciprocal Relu Round Selu "
    "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()

_REDUCTIONS = (
    "ReduceMax ReduceMin ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceSumSquare"
).split()

TABLE: Mapping[str, Entry] = {
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), _sliding),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("BatchNormalization", "LRN", "Dropout", "CumSum", "CastLike"), _first),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _along),
    **dict.fromkeys(("Concat", "Split", "Gather", "ArgMax", "ArgMin"), _along),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalize),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "ConvTranspose": _transposed,
    "DepthToSpace": _to_space,
    "SpaceToDepth": _to_depth,
    "Pad": _pad,
    "Slice": _slice,
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
}

# Operators that say where the image's axes are: batch, channels, then one axis per dimension.
SPATIAL = frozenset(
    {"Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
    | {"DepthToSpace", "SpaceToDepth", "Upsample"}
    | {"GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization"}
)

BARRIERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), "it pools over the whole image"
    ),
    **dict.fromkeys(
        ("InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization"),
        "its statistics are taken over the whole image",
    ),
    "MaxUnpool": "its Indices count positions in the whole image",
    "DynamicQuantizeLinear": "its scale is taken over the whole image",
    **dict.fromkeys(
        ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"), "it is random"
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), "it holds a graph of its own"),
}
