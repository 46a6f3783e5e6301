"""Patches of a row axis, in integers.

Every tensor ``t`` of a region has ``H_t`` rows and advances ``r_t`` rows per *step*. A patch is a
pair ``(i, m)`` with ``0 <= i <= m``: its window starts ``i`` steps down and is ``m`` steps shorter
than the whole, so in it tensor ``t`` has ``H_t - m*r_t`` rows and its row 0 is the whole's row
``i*r_t``. All patches of a region share one ``m`` (the *trim*): their shapes are equal.

With the original padding left in place, the first ``top`` and last ``tail`` rows of an interior
window's output are wrong. Windows starting at steps ``i_0 <= i_1 <= ...`` cover the whole without
a gap when no two neighbours are further apart than the rows that stay right allow. Writing
``M = floor((H - top - tail) / r)`` for the steps an output leaves free, neighbours may be
``M - m`` steps apart; ``splits`` windows spread over ``m`` steps are at most
``ceil(m / (splits - 1))`` apart, so the largest trim is ``m = M - ceil(M / splits)``.

`schedule` holds these formulas once: on whole numbers here, and as the run-time arithmetic that
`rewriters.emission` writes into a graph whose height is not known.

Source: PatchConv (mit-han-lab/patch_conv) for the idea; uniform windows and the bound above are
this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Extent", "Patch", "Rows", "Schedule", "Tiling", "schedule", "tile"]


class Rows(NamedTuple):
    """The half-open row interval ``[begin, end)``."""

    begin: int
    end: int

    def __len__(self) -> int:
        return max(0, self.end - self.begin)

    def shifted(self, by: int) -> Rows:
        """Return the interval ``by`` rows further down."""
        return Rows(self.begin + by, self.end + by)


@dataclass(frozen=True, slots=True)
class Extent:
    """A region output along the tiled axis.

    Attributes:
        rows: Its rows in the whole tensor.
        step: Rows per step (``r``).
        top: Wrong rows at the upper edge of an interior window.
        tail: Wrong rows at the lower edge of an interior window.
    """

    rows: int
    step: int
    top: int
    tail: int


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: its window starts ``shift`` steps down and owns the output rows ``core``."""

    shift: int
    core: Rows


@dataclass(frozen=True, slots=True)
class Tiling:
    """The patches of a region output; every window is ``trim`` steps shorter than the whole."""

    trim: int
    patches: tuple[Patch, ...]

    @property
    def seams(self) -> tuple[int, ...]:
        """Output rows at which a new core begins."""
        return tuple(patch.core.begin for patch in self.patches[1:])


class Schedule(NamedTuple):
    """Windows and cores of all patches.

    Attributes:
        stride: Free steps a patch has of its own: ``ceil(M / splits)``.
        trim: Steps a window is shorter than the whole: ``M - stride``.
        shifts: Per patch, steps its window starts down.
        begins: Per patch, the output row its core begins at.
        ends: Per patch, the output row its core ends before.
    """

    stride: Any
    trim: Any
    shifts: Any
    begins: Any
    ends: Any


def schedule(
    extent: Any,
    splits: int,
    *,
    index: Any,
    first: Any,
    last: Any,
    minimum: Callable[[Any, Any], Any],
    maximum: Callable[[Any, Any], Any],
) -> Schedule:
    """Place ``splits`` windows on an output, the last ones empty-handed if it is too small.

    The arithmetic is ``+ - * //``, ``minimum`` and ``maximum`` on non-negative numbers alone, so
    that it means the same on Python integers and on tensors of a graph.

    Args:
        extent: An `Extent`, or an object with its four fields as other kinds of number.
        splits: Number of patches, at least 2.
        index: The patch number ``k``, one number or an array ``0 .. splits - 1``.
        first: 0 where ``k`` is the first patch, else 1.
        last: A number no output has more rows than where ``k`` is the last patch, else 0.
        minimum: The smaller of two numbers, elementwise.
        maximum: The larger of two numbers, elementwise.

    Returns:
        The windows and cores.
    """
    free = maximum(extent.rows - (extent.top + extent.tail), 0) // extent.step
    stride = (free + (splits - 1)) // splits
    trim = free - stride
    shifts = index * trim // (splits - 1)
    following = (index + 1) * trim // (splits - 1)
    begins = minimum(shifts * extent.step + extent.top, extent.rows) * first
    ends = minimum(following * extent.step + (last + extent.top), extent.rows)
    return Schedule(stride, trim, shifts, begins, ends)


def tile(extent: Extent, splits: int) -> Tiling:
    """Cut an output of known height into at most ``splits`` patches, none of them empty.

    Too few rows for the asked number of patches: fewer patches. So few that every window would
    be the whole: two patches on whole windows (``trim`` 0), right but of no use, which the caller
    is free to refuse. One row, or ``splits`` of 1: the whole as one patch.

    Args:
        extent: The output along the tiled axis.
        splits: Patches asked for, at least 1.
    """
    free = max(0, (extent.rows - extent.top - extent.tail) // extent.step)
    count = min(splits, extent.rows)
    if count < 2:
        return Tiling(0, (Patch(0, Rows(0, extent.rows)),))
    if free < 2:
        middle = (extent.rows + 1) // 2
        return Tiling(0, (Patch(0, Rows(0, middle)), Patch(0, Rows(middle, extent.rows))))
    count = min(count, free)
    patches = []
    trim = 0
    for k in range(count):
        placed = schedule(
            extent,
            count,
            index=k,
            first=int(k > 0),
            last=extent.rows if k == count - 1 else 0,
            minimum=min,
            maximum=max,
        )
        trim = placed.trim
        patches.append(Patch(placed.shifts, Rows(placed.begins, placed.ends)))
    return Tiling(trim, tuple(patches))


def covers(cores: Sequence[Rows], rows: int) -> bool:
    """Tell whether the cores, in order, cover ``[0, rows)`` exactly once."""
    at = 0
    for core in cores:
        if core.begin != at or core.end < core.begin:
            return False
        at = core.end
    return at == rows
