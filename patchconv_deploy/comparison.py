"""Compare what two models computed, output by output.

Errors are judged against the size of the output as a whole: patching changes the order in which
a runtime adds products up, and that shifts every element by a share of the summands, not of
the sum. So the tolerance is ``atol + rtol * max|reference|``, raised to four times the reference's
own difference between two runs. A row computed from wrong neighbours is off by the size of the
output itself. The absolute part is a few last places of 1.0: what a saturating function (Sigmoid,
Softmax) makes of values near its ends. An output that is hardly larger than that proves little
and is called faint.

Where every cut Conv is an integer one, integer outputs must be equal to the bit. Other integer
outputs (quantised results, indices of a maximum) may differ in one element of a thousand: a
value that lay on a rounding edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TOLERANCES", "OutputComparison", "Seam", "compare_output", "seam_rows"]

# Largest error relative to the output's largest magnitude. float32 keeps 24 bits and networks add
# up thousands of products in another order, layer after layer; the others scale with their bits.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-10,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 5e-2,
}
# A few units in the last place of 1.0.
_ABSOLUTE: Mapping[str, float] = {
    "float64": 1e-15,
    "float32": 5e-7,
    "float16": 2e-3,
    "bfloat16": 2e-2,
}
_FAINT = 100
_INTEGER_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a region's cores meet: rows of an output ``rows`` tall along ``axis``."""

    axis: int
    rows: int
    at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Differences of one output.

    Attributes:
        name: The output.
        dtype: Its element type.
        passed: Within tolerance.
        max_abs: Largest absolute difference.
        max_rel: The same over the reference's largest magnitude.
        seam_max_abs: The largest at rows next to a seam, None where the output has no such rows.
        noise: Largest difference between two runs of the reference.
        differing: Share of elements that differ at all.
        tolerance: What ``max_abs`` was held against.
        magnitude: The reference's largest magnitude.
        faint: The reference is so small that its agreement says little.
        reason: Why it did not pass, empty if it did.
    """

    name: str
    dtype: str
    passed: bool
    max_abs: float
    max_rel: float
    seam_max_abs: float | None
    noise: float
    differing: float
    tolerance: float
    magnitude: float = 0.0
    faint: bool = False
    reason: str = ""


def seam_rows(
    shape: Sequence[int], seams: Sequence[Seam]
) -> tuple[int, np.ndarray[Any, Any]] | None:
    """Return (axis, row numbers) of an output that lie next to a seam of some region.

    A seam in a tensor of another height is carried over in proportion; two rows on each side.
    """
    marks: dict[int, set[int]] = {}
    for seam in seams:
        if seam.axis >= len(shape) or not seam.rows:
            continue
        height = shape[seam.axis]
        for row in seam.at:
            low = (row - 2) * height // seam.rows
            high = -(-(row + 2) * height // seam.rows)
            marks.setdefault(seam.axis, set()).update(range(max(0, low), min(height, high)))
    if not marks:
        return None
    axis = max(marks, key=lambda a: len(marks[a]))
    return axis, np.array(sorted(marks[axis]), dtype=np.int64)


def compare_output(
    name: str,
    reference: np.ndarray[Any, Any],
    again: np.ndarray[Any, Any],
    other: np.ndarray[Any, Any],
    *,
    seams: Sequence[Seam] = (),
    exact_integers: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
) -> OutputComparison:
    """Compare one output.

    Args:
        name: The output.
        reference: What the original computed.
        again: What it computed a second time.
        other: What the rewritten model computed.
        seams: Seams of all regions.
        exact_integers: Integer outputs must be equal.
        rtol: Tolerance relative to the largest magnitude; by element type if None.
        atol: Absolute tolerance, added; by element type if None.
    """
    dtype = str(reference.dtype)

    def result(reason: str, **values: Any) -> OutputComparison:
        fields: dict[str, Any] = {
            "max_abs": float("inf"),
            "max_rel": float("inf"),
            "seam_max_abs": None,
            "noise": 0.0,
            "differing": 1.0,
            "tolerance": 0.0,
        }
        return OutputComparison(name, dtype, not reason, reason=reason, **{**fields, **values})

    if reference.shape != other.shape or reference.dtype != other.dtype:
        return result(
            f"{reference.dtype}{list(reference.shape)} became {other.dtype}{list(other.shape)}"
        )
    if reference.size == 0 or reference.dtype.kind in "OUS":
        same = bool(np.array_equal(reference, other))
        values = {} if not same else {"max_abs": 0.0, "max_rel": 0.0, "differing": 0.0}
        return result("" if same else "text differs", **values)
    floating = reference.dtype.kind not in "iub"
    wide = np.float64 if floating else np.int64
    a, b, c = (array.astype(wide) for array in (reference, other, again))
    finite = np.isfinite(a) if floating else np.ones(a.shape, bool)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite, np.abs(a - b), 0)
        noise = float(np.max(np.where(finite & np.isfinite(c), np.abs(a - c), 0)))
    largest = float(np.max(np.where(finite, np.abs(a), 0)))
    max_abs = float(np.max(difference))
    if floating:
        share = TOLERANCES.get(dtype, 1e-4) if rtol is None else rtol
        floor = _ABSOLUTE.get(dtype, 5e-7) if atol is None else atol
        tolerance = max(floor + share * largest, 4 * noise)
    else:
        tolerance = 0.0
    # `difference` is 0 where the reference is not finite; there both must hold the same.
    same_special = bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))
    differing = float(np.mean(difference != 0))
    rows = seam_rows(reference.shape, seams)
    seam = None
    if rows is not None and rows[1].size:
        seam = float(np.max(np.take(difference, rows[1], axis=rows[0])))
    reason = ""
    if not same_special:
        reason = "infinities or NaNs differ"
    elif not np.isfinite(max_abs):
        reason = "the rewritten model gives infinities or NaNs"
    elif floating:
        if max_abs > tolerance:
            reason = f"differs by {max_abs:.3g}, tolerance {tolerance:.3g}"
    elif exact_integers or rtol == 0:
        if differing and not noise:
            reason = f"{100 * differing:.3g} % of an integer output differ"
    elif differing > _INTEGER_SHARE and not noise:
        reason = f"{100 * differing:.3g} % of an integer output differ"
    return result(
        reason,
        max_abs=max_abs,
        max_rel=max_abs / largest if largest else max_abs,
        seam_max_abs=seam,
        noise=noise,
        differing=differing,
        tolerance=tolerance,
        magnitude=largest,
        faint=floating and largest < _FAINT * _ABSOLUTE.get(dtype, 5e-7),
    )
