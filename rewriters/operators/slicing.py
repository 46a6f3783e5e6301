"""Pad and Slice: rows added and taken away at the ends."""

from __future__ import annotations

from collections.abc import Sequence

from patchconv_deploy.rewriters.operators.record import Absolute, Pads, Record, RowLocal
from patchconv_deploy.rewriters.operators.rules import FAR, optional, same_rows, with_number
from patchconv_deploy.rewriters.tiling.row_maps import (
    Ending,
    Fitted,
    Padding,
    Pointwise,
    RowMap,
    Sliding,
)
from patchconv_deploy.rewriters.tiling.sizes import Size, by_remainder

__all__ = ["pad", "slice_rows"]


# Steps of a region have at least so many rows.
_LONGEST_PERIOD = 64


def pad(record: Record, axis: int) -> RowLocal | str:
    """Pad by constants, edges or reflection; negative pads crop."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    rank = len(shape)
    pads = record.attributes.get("pads") or record.attributes.get("paddings") or record.value(1)
    stated = record.stated[1] if len(record.stated) > 1 else None
    if pads is None and stated is None:
        return "its padding is known at run time alone"
    axes: Sequence[int] = range(rank)
    if record.given(3):
        given = record.value(3)
        if given is None:
            return "its axes are known at run time alone"
        axes = [at % rank for at in given]
    if axis not in axes:
        return same_rows(axis)
    at = list(axes).index(axis)
    if pads is None:
        return _pad_to_multiple(record, axis, at, stated or ())
    begin, end = int(pads[at]), int(pads[len(axes) + at])
    if begin == end == 0:
        return same_rows(axis)
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


def _pad_to_multiple(
    record: Record, axis: int, at: int, stated: Sequence[Size | None]
) -> RowLocal | str:
    """Pad by as many rows below as are missing, which is worked out.

    Args:
        record: The Pad.
        axis: The dimension that is the tiled axis.
        at: Its place among the dimensions that are padded.
        stated: The padding.
    """
    unknown = "its padding is known at run time alone"
    x, half = record.free[0] if record.free else (), len(stated) // 2
    rows = x[axis] if axis < len(x) else None
    if rows is None or at + half >= len(stated):
        return unknown
    above, below = stated[at], stated[at + half]
    if above is None or below is None:
        return unknown
    if min(*above.values, *below.values) < 0 or not _is_periodic(rows, above, below):
        return unknown
    mode, most = record.attributes.get("mode", "constant"), max(*above.values, *below.values)
    margins = {"constant": 0, "edge": 1, "reflect": most + 1}
    if mode not in margins:
        return f"its mode is {mode!r}"
    if most == 0:
        return RowLocal(Pointwise(), ((0, axis),), axis)
    return RowLocal(_ending(rows, above, below, margins[mode]), ((0, axis),), axis)


def _is_periodic(rows: Size, *sizes: Size) -> bool:
    """Tell whether sizes come back to the same values, by the height that rows follow from."""
    return all(
        not size.slope and size.symbol in ("", rows.symbol) and size.period <= _LONGEST_PERIOD
        for size in sizes
    )


def _ending(rows: Size, above: Size, below: Size, margin: int = 0) -> RowMap:
    """Return what comes or goes at the ends: by the rows themselves where these tell, else not."""
    begin = above.constant
    ends = None if begin is None else by_remainder(below, rows, _LONGEST_PERIOD)
    if begin is None or ends is None:
        return Fitted(above, below, margin)
    return Ending(begin, ends, margin)


def slice_rows(record: Record, axis: int) -> RowLocal | str:
    """Slice: along the rows counted from the ends, else as it is."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    rank = len(shape)
    inputs = record.opset >= 10
    starts = record.value(1) if inputs else record.attributes.get("starts")
    ends = record.value(2) if inputs else record.attributes.get("ends")
    if starts is None or ends is None:
        return _slice_to_size(record, axis, starts)
    count = len(starts)
    axes = optional(record, 3, "axes", tuple(range(count)))
    strides = optional(record, 4, "", (1,) * count)
    if axes is None or strides is None:
        return "its axes are known at run time alone"
    axes = tuple(at % rank for at in axes)
    if axis not in axes:
        return same_rows(axis)
    at, rows = axes.index(axis), shape[axis]
    start, end, stride = starts[at], ends[at], strides[at]
    if stride < 1:
        return "it takes rows backwards"
    if (start < 0 or 0 <= end < FAR // 2) and rows is None:
        return "it counts rows of an input of unknown size"
    height = rows or 0
    if start < 0:
        start = max(0, start + height)
    if end >= 0:
        # From the end, so that it means the same in a window; beyond it: all rows.
        end = 0 if end >= height and (rows is not None or end > FAR // 2) else end - height
    if rows is not None and height + end - start < 1:
        return "it takes no rows"
    starts = with_number(starts, at, start)
    ends = with_number(ends, at, FAR if end == 0 else end)
    row_map = Sliding(1, stride, -start, end)
    if not inputs:
        replaced = {"starts": starts, "ends": ends, "axes": axes}
        return RowLocal(row_map, ((0, axis),), axis, attributes=replaced)
    constants = {1: starts, 2: ends, 3: axes, 4: strides}
    return RowLocal(row_map, ((0, axis),), axis, constants=constants)


def _slice_to_size(record: Record, axis: int, starts: Sequence[int] | None) -> RowLocal | str:
    """Slice down to a row that is worked out, as many rows from the end at every size."""
    unknown = "its bounds are known at run time alone"
    last = record.stated[2] if len(record.stated) > 2 else None
    x, rank = record.free[0] if record.free else (), len(record.shape(0) or ())
    if starts is None or last is None or len(last) != len(starts):
        return unknown
    count = len(starts)
    axes = optional(record, 3, "axes", tuple(range(count)))
    strides = optional(record, 4, "", (1,) * count)
    if axes is None or strides is None:
        return unknown
    axes = tuple(at % rank for at in axes)
    if axis not in axes:
        return same_rows(axis)
    at = axes.index(axis)
    rows, end = x[axis] if axis < len(x) else None, last[at]
    less = None if rows is None or end is None else end - rows
    if less is None or rows is None or end is None or not end.slope:
        return unknown
    if starts[at] < 0 or strides[at] != 1 or max(less.values) > 0:
        return unknown
    if not _is_periodic(rows, less):
        return unknown
    row_map = _ending(rows, Size.number(-starts[at]), less)
    if isinstance(row_map, Ending) and len(row_map.ends) == 1:
        row_map = Sliding(1, 1, row_map.begin, row_map.ends[0])
    return RowLocal(
        row_map,
        ((0, axis),),
        axis,
        absolute={2: Absolute(at, count, starts[at])},
    )
