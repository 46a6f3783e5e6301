"""Where the cores of a region meet, in an output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Seam", "seam_rows"]


Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a region's cores meet: rows of an output ``rows`` tall along ``axis``."""

    axis: int
    rows: int
    at: tuple[int, ...]


def seam_rows(
    shape: Sequence[int], seams: Sequence[Seam], *, wide: bool = False
) -> tuple[int, Array] | None:
    """Return (axis, row numbers) of an output that lie next to a seam of some region.

    A seam in a tensor of another height is carried over in proportion; two rows on each side.

    Args:
        shape: The output's shape.
        seams: Seams of all regions.
        wide: Take a quarter of a patch on each side.
    """
    marks: dict[int, set[int]] = {}
    for seam in seams:
        if seam.axis >= len(shape) or not seam.rows:
            continue
        height = shape[seam.axis]
        reach = max(2, seam.rows // (4 * (len(seam.at) + 1))) if wide else 2
        for row in seam.at:
            low = (row - reach) * height // seam.rows
            high = -(-(row + reach) * height // seam.rows)
            marks.setdefault(seam.axis, set()).update(range(max(0, low), min(height, high)))
    if not marks:
        return None
    axis = max(marks, key=lambda a: len(marks[a]))
    return axis, np.array(sorted(marks[axis]), dtype=np.int64)
