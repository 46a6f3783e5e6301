"""The same numbers under other dimensions: Transpose, Reshape and the like."""

from __future__ import annotations

from math import prod

from patchconv_deploy.rewriters.operators.record import Absolute, FreeShape, Record, RowLocal
from patchconv_deploy.rewriters.operators.rules import optional, same_rows, whole_sizes
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise, RowMap, Sliding, Transposed
from patchconv_deploy.rewriters.tiling.sizes import Size, left_over

__all__ = ["expand", "reshape", "squeeze", "tile", "transpose", "unsqueeze"]


def transpose(record: Record, axis: int) -> RowLocal | str:
    """Dimensions in another order."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    perm = record.attributes.get("perm") or tuple(reversed(range(len(shape))))
    if sorted(perm) != list(range(len(shape))):
        return "it does not have each dimension once"
    return RowLocal(Pointwise(), ((0, perm[axis]),), axis)


def squeeze(record: Record, axis: int) -> RowLocal | str:
    """Dimensions of one taken away."""
    shape = record.shape(0)
    if shape is None:
        return "its input's rank is unknown"
    axes = optional(record, 1, "axes", ())
    if axes is None:
        return "its axes are known at run time alone"
    if not axes and any(size is None for size in shape):
        return "it drops axes of unknown size"
    gone = {at % len(shape) for at in axes} or {k for k, size in enumerate(shape) if size == 1}
    kept = [at for at in range(len(shape)) if at not in gone]
    return RowLocal(Pointwise(), ((0, kept[axis]),), axis)


def unsqueeze(record: Record, axis: int) -> RowLocal | str:
    """Dimensions of one put in."""
    shape = record.shape(0)
    axes = optional(record, 1, "axes", ())
    if shape is None or not axes:
        return "its axes are known at run time alone"
    rank = len(shape) + len(axes)
    new = {at % rank for at in axes}
    if axis in new:
        return "the tiled axis is new here"
    return RowLocal(Pointwise(), ((0, axis - sum(at < axis for at in new)),), axis)


def reshape(record: Record, axis: int) -> RowLocal | str:
    """The same numbers under other dimensions, where rows stay apart."""
    x, y = whole_sizes(record.shape(0)), whole_sizes(record.output)
    if x is None or y is None:
        return _reshape_free(record, axis)
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


def _reshape_free(record: Record, axis: int) -> RowLocal | str:
    """The same where sizes are known when the model runs alone, as functions of a free size."""
    unknown = "it reshapes a tensor of unknown size"
    x = record.free[0] if record.free else ()
    y, target = record.free_output, record.stated[1] if len(record.stated) > 1 else None
    rows = y[axis] if axis < len(y) else None
    if rows is None or not rows.symbol:
        return unknown
    given = None if target is None or axis >= len(target) else target[axis]
    constants = record.value(1)
    if given == rows:
        absolute = {1: Absolute(axis, len(y))}
    elif (constants is not None and constants[axis] == -1) or given == Size.number(-1):
        absolute = {}
    else:
        return unknown
    one = Size.number(1)
    copied = set[int]()
    if not record.attributes.get("allowzero", 0):
        copied = {k for k, number in enumerate(constants or ()) if number == 0}
        copied |= {k for k, number in enumerate(target or ()) if number == Size.number(0)}
    for at, size in enumerate(x):
        if size is None or left_over(x[:at], y[:axis]) != one:
            continue
        if at != axis and at in copied:
            # Of an image that is as wide as it is high.
            return "it takes the size of another dimension from the rows"
        if size == rows:
            return RowLocal(Pointwise(), ((0, at),), axis, absolute=absolute)
        together = _number(x, at + 1)
        if together and rows == size * together:
            row_map: RowMap = Transposed(together, together)
            return RowLocal(row_map, ((0, at),), axis, absolute=absolute)
        apart = _number(y, axis + 1)
        # Where it does not divide the model does not run.
        if apart and rows == size // apart:
            return RowLocal(Sliding(apart, apart), ((0, at),), axis, absolute=absolute)
    return "it takes rows apart or puts them together"


def _number(sizes: FreeShape, at: int) -> int | None:
    """Return a size that is the same whatever the model's are."""
    size = sizes[at] if at < len(sizes) else None
    return None if size is None else size.constant


def expand(record: Record, axis: int) -> RowLocal | str:
    """Broadcast to given sizes, the rows as they are."""
    x, y = record.shape(0), whole_sizes(record.output)
    if x is None or y is None:
        return "it expands a tensor of unknown size"
    at = axis - (len(y) - len(x))
    if at < 0 or x[at] != y[axis] or y[axis] < 2:
        return "it makes the tiled axis"
    target = (*y[:axis], 1, *y[axis + 1 :])
    return RowLocal(Pointwise(), ((0, at),), axis, constants={1: target})


def tile(record: Record, axis: int) -> RowLocal | str:
    """Repeated along other dimensions."""
    repeats = record.value(1)
    if repeats is None or len(repeats) <= axis or repeats[axis] != 1:
        return "it repeats the tiled axis"
    return same_rows(axis)
