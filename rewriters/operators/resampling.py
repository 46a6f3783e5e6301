"""Resize, Upsample, DepthToSpace, SpaceToDepth: rows scaled up and down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil, floor

from patchconv_deploy.rewriters.operators.record import Absolute, Record, RowLocal
from patchconv_deploy.rewriters.operators.rules import local_sizes, resize_axes
from patchconv_deploy.rewriters.tiling.row_maps import Periodic, Sliding, Transposed
from patchconv_deploy.rewriters.tiling.sizes import ratio

__all__ = ["resize", "to_depth", "to_space"]


# Ways to find coordinates that find a row itself where there are as many as before.
_ITSELF = frozenset(
    {"half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric"}
)

# Larger factors are no resizing of images; a period has to be listed row by row.
_LARGEST_FACTOR = 256


def to_space(record: Record, axis: int) -> RowLocal | str:
    """DepthToSpace: each input row becomes a block of output rows."""
    size = record.attributes.get("blocksize", 0)
    if axis < 2 or size < 1:
        return "it mixes batch or channels"
    return RowLocal(Transposed(size, size), ((0, axis),), axis)


def to_depth(record: Record, axis: int) -> RowLocal | str:
    """SpaceToDepth: a block of input rows becomes one output row."""
    size = record.attributes.get("blocksize", 0)
    if axis < 2 or size < 1:
        return "it mixes batch or channels"
    return RowLocal(Sliding(size, size), ((0, axis),), axis)


def _source_row(mode: str, row: int, factor: Fraction) -> Fraction | None:
    """Return the position an output row is read from, in input rows."""
    if mode == "asymmetric" or (factor == 1 and mode in _ITSELF):
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


def resize(record: Record, axis: int) -> RowLocal | str:
    """Resize and Upsample by exact factors."""
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
        constants=local_sizes(record, axis),
        absolute=_absolute(record, axis),
    )


def _absolute(record: Record, axis: int) -> dict[int, Absolute]:
    axes = resize_axes(record)
    if record.op_type != "Resize" or record.opset < 11 or not record.given(3):
        return {}
    if record.value(3) or axis not in axes:
        return {}
    whole = axes == tuple(range(len(record.output or ())))
    return {3: Absolute(axes.index(axis), len(axes), None if whole else 0)}


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _free_factor(record: Record, axis: int) -> Fraction | None:
    """Return the factor to a size that is a function of the input's own; None if it varies."""
    x, y = record.free[0] if record.free else (), record.free_output
    if len(x) != len(y) or axis >= len(x):
        return None
    before, after = x[axis], y[axis]
    return None if before is None or after is None else ratio(after, before)


def _factor(
    record: Record, axis: int, rows: int | None, out: int | None, old: bool
) -> Fraction | str:
    """Return the exact factor of the tiled axis, output rows over input rows."""
    known = rows is not None and out is not None
    factor = Fraction(out or 0, rows or 1)
    axes = resize_axes(record)
    sizes = record.value(3)
    if not old and record.given(3):
        if record.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return "keep_aspect_ratio_policy makes sizes that depend on the whole"
        if sizes is None or not known:
            free = _free_factor(record, axis)
            if free is None:
                return "its sizes are known at run time alone"
            factor = free
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
