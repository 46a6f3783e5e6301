"""Patches of a row axis, in integers.

Every tensor ``t`` of a region has ``H_t`` rows and advances ``r_t`` rows per *step*. A patch is a
pair ``(i, m)`` with ``0 <= i <= m``: its window starts ``i`` steps down and is ``m`` steps shorter
than the whole, so in it tensor ``t`` has ``H_t - m*r_t`` rows and its row 0 is the whole's row
``i*r_t``. All patches of a region share one ``m`` (the *trim*): their shapes are equal.

With the original padding left in place, the first ``top`` and last ``tail`` rows of an interior
window's output are wrong. Windows starting at steps ``i_0 <= i_1 <= ...`` cover the whole without
a gap when no two neighbours are further apart than the rows that stay valid allow. Writing
``M = floor((H - top - tail) / r)`` for the steps an output leaves free (the least of them where a
region has several outputs), neighbours may be ``M - m`` steps apart; ``splits`` windows spread over
``m`` steps are at most ``ceil(m / (splits - 1))`` apart, so the largest trim is
``m = M - ceil(M / splits)``.

`free_steps`, `place_windows` and `core` hold these formulas once: on whole numbers here, and as the
run-time arithmetic that `rewriters.emission` writes into a graph whose height is not known.

Source: PatchConv (mit-han-lab/patch_conv) for the idea; uniform windows and the bound above are
this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "BEYOND",
    "Extent",
    "Patch",
    "Placement",
    "Rows",
    "Tiling",
    "core",
    "covers",
    "free_steps",
    "place_windows",
    "tile",
]


# More rows than any tensor has, and far from overflow when added to.
BEYOND = 1 << 40


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
    """One patch: its window starts ``shift`` steps down; per region output the rows it owns."""

    shift: int
    cores: tuple[Rows, ...]


@dataclass(frozen=True, slots=True)
class Tiling:
    """The patches of a region; every window is ``trim`` steps shorter than the whole."""

    trim: int
    patches: tuple[Patch, ...]

    def seams(self, output: int = 0) -> tuple[int, ...]:
        """Return the rows of an output at which a new core begins."""
        return tuple(patch.cores[output].begin for patch in self.patches[1:])


class Placement(NamedTuple):
    """Windows of all patches.

    Attributes:
        stride: Free steps a patch has of its own: ``ceil(M / splits)``.
        trim: Steps a window is shorter than the whole: ``M - stride``.
        shifts: Per patch, steps its window starts down.
        following: Per patch, steps the next patch's window starts down.
    """

    stride: Any
    trim: Any
    shifts: Any
    following: Any


def free_steps(extent: Any, maximum: Callable[[Any, Any], Any]) -> Any:
    """Return the steps an output leaves free (``M``).

    The arithmetic here, in `place_windows` and in `core` is ``+ - * //``, minimum and maximum on
    non-negative numbers alone, so that it means the same on Python integers and on tensors.

    Args:
        extent: An `Extent`, or an object with its four fields as other kinds of number.
        maximum: The larger of two numbers, elementwise.
    """
    return maximum(extent.rows - (extent.top + extent.tail), 0) // extent.step


def place_windows(free: Any, splits: int, index: Any) -> Placement:
    """Place ``splits`` windows over a region that leaves ``free`` steps.

    Args:
        free: `free_steps` of the region's output, the least where there are several.
        splits: Number of patches, at least 2.
        index: The patch number ``k``, one number or an array ``0 .. splits - 1``.
    """
    stride = (free + (splits - 1)) // splits
    trim = free - stride
    return Placement(stride, trim, index * trim // (splits - 1), (index + 1) * trim // (splits - 1))


def core(
    extent: Any,
    placed: Placement,
    *,
    first: Any,
    last: Any,
    minimum: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """Return where the cores of an output begin and end; the last ones are empty if it is small.

    Args:
        extent: An `Extent`, or an object with its four fields as other kinds of number.
        placed: The windows.
        first: 0 where ``k`` is the first patch, else 1.
        last: A number no output has more rows than where ``k`` is the last patch, else 0.
        minimum: The smaller of two numbers, elementwise.
    """
    begins = minimum(placed.shifts * extent.step + extent.top, extent.rows) * first
    ends = minimum(placed.following * extent.step + (last + extent.top), extent.rows)
    return begins, ends


def tile(extents: Sequence[Extent], splits: int) -> Tiling:
    """Cut outputs of known height into at most ``splits`` patches, none of them empty.

    Too few rows for the asked number of patches: fewer patches. So few that every window would
    be the whole: two patches on whole windows (``trim`` 0), right but of no use, which the caller
    is free to refuse. One row, or ``splits`` of 1: the whole as one patch.

    Args:
        extents: The region's outputs along the tiled axis.
        splits: Patches asked for, at least 1.
    """
    free = min(free_steps(extent, max) for extent in extents)
    count = min(splits, *(extent.rows for extent in extents))
    if count < 2:
        return Tiling(0, (Patch(0, tuple(Rows(0, extent.rows) for extent in extents)),))
    if free < 2:
        middles = [(extent.rows, (extent.rows + 1) // 2) for extent in extents]
        upper = Patch(0, tuple(Rows(0, middle) for _, middle in middles))
        lower = Patch(0, tuple(Rows(middle, rows) for rows, middle in middles))
        return Tiling(0, (upper, lower))
    count = min(count, free)
    patches = []
    trim = 0
    for k in range(count):
        placed = place_windows(free, count, k)
        trim = placed.trim
        cores = tuple(
            Rows(
                *core(
                    extent,
                    placed,
                    first=int(k > 0),
                    last=extent.rows if k == count - 1 else 0,
                    minimum=min,
                )
            )
            for extent in extents
        )
        patches.append(Patch(placed.shifts, cores))
    return Tiling(trim, tuple(patches))


def covers(cores: Sequence[Rows], rows: int) -> bool:
    """Tell whether the cores, in order, cover ``[0, rows)`` exactly once."""
    at = 0
    for core in cores:
        if core.begin != at or core.end < core.begin:
            return False
        at = core.end
    return at == rows
