"""What the families share: which operands carry the axis, and sizes rewritten for a patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from patchconv_deploy.rewriters.operators.record import ROWS, Record, RowLocal, Shape
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise

__all__ = [
    "CONTRIB_DOMAIN",
    "FAR",
    "Entry",
    "local_sizes",
    "optional",
    "resize_axes",
    "same_rows",
    "split_padding",
    "whole_sizes",
    "with_number",
]


# The domain of ONNX Runtime's own operators.
CONTRIB_DOMAIN = "com.microsoft"


class OverAllRows(str):
    """A reason of a barrier: each row of the node's output depends on all rows of its input.

    Any other reason is of a node that looks at few rows, or of which nobody knows, and that cannot
    be proven patch by patch: it is refused.
    """

    __slots__ = ()


Entry = Callable[[Record, int], RowLocal | str]

FAR = (1 << 63) - 1


def same_rows(axis: int, *indices: int) -> RowLocal:
    """Return rows as they are, carried on the same dimension by the inputs named."""
    return RowLocal(Pointwise(), tuple((index, axis) for index in indices or (0,)), axis)


def split_padding(total: int, *, upper: bool) -> tuple[int, int]:
    """Split computed padding; the odd row goes below for SAME_UPPER alone."""
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def resize_axes(record: Record) -> tuple[int, ...]:
    """Return the dimensions that a Resize names; all if it names none."""
    rank = len(record.shape(0) or ())
    return tuple(at % rank for at in record.attributes.get("axes", range(rank)))


def local_sizes(record: Record, axis: int) -> Mapping[int, tuple[int | None, ...]]:
    """Return sizes of a patch in place of those that a node gives for the whole."""
    sizes, axes = record.value(3), resize_axes(record)
    if record.op_type != "Resize" or record.opset < 11 or not sizes or axis not in axes:
        return {}
    at = axes.index(axis)
    return {3: (*sizes[:at], ROWS, *sizes[at + 1 :])}


def with_number(numbers: Sequence[int], at: int, number: int) -> tuple[int, ...]:
    """Return numbers with one of them replaced."""
    return (*numbers[:at], number, *numbers[at + 1 :])


def optional(
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


def whole_sizes(shape: Shape | None) -> tuple[int, ...] | None:
    """Return a shape if every size of it is known."""
    if shape is None or any(size is None for size in shape):
        return None
    return tuple(size or 0 for size in shape)
