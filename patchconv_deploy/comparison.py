"""Compare what two models computed, output by output.

Errors are judged against the spread of the output as a whole: patching changes the order in which
a runtime adds products up, and that shifts every element by a share of the summands, not of the
sum. The spread is the 99.9 % quantile of the distance from the median, so that neither an offset
nor a few huge elements (masks of -1e9) hide anything. The tolerance of an element ``a`` is

    absolute part + rtol * spread + 16 * eps * abs(a)

where the absolute part is a few last places of 1.0: what a saturating function (Sigmoid, Softmax)
makes of values near its ends. A row computed from wrong neighbours is off by the spread itself.

An output whose spread is hardly larger than the absolute part, or that is constant or empty, proves
little and is called faint. Where the reference differs from itself between two runs by more than a
quarter of the tolerance (random operators), nothing can be said: it is unstable.

Where every cut Conv is an integer one, integer outputs must be equal to the bit. Other integer
outputs (quantised results, indices of a maximum) may differ in one element of a thousand, and in
two of a hundred next to a seam: values that lay on a rounding edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TOLERANCES", "OutputComparison", "Seam", "compare_output", "seam_rows"]

# Largest error relative to the output's spread. float32 keeps 24 bits and networks add
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
_INTEGER_SHARE, _SEAM_SHARE = 1e-3, 2e-2
_EPSILON: Mapping[str, float] = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}


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
        passed: Within tolerance; None if the reference is unstable.
        max_abs: Largest absolute difference.
        max_rel: The same over the reference's largest magnitude.
        seam_max_abs: The largest at rows next to a seam, None where the output has no such rows.
        noise: Largest difference between two runs of the reference.
        differing: Share of elements that differ at all.
        tolerance: What ``max_abs`` was held against.
        magnitude: The reference's spread.
        faint: The reference is so small that its agreement says little.
        reason: Why it did not pass, empty if it did.
    """

    name: str
    dtype: str
    passed: bool | None
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
        rtol: Tolerance relative to the spread; by element type if None.
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
        passed = values.pop("passed", not reason)
        return OutputComparison(name, dtype, passed, reason=reason, **{**fields, **values})

    if reference.shape != other.shape or reference.dtype != other.dtype:
        return result(
            f"{reference.dtype}{list(reference.shape)} became {other.dtype}{list(other.shape)}"
        )
    if reference.size == 0 or reference.dtype.kind not in "biufV":
        same = bool(np.array_equal(reference, other))
        values = {"max_abs": 0.0, "max_rel": 0.0, "differing": 0.0} if same else {}
        return result("" if same else "differs", faint=True, **values)
    floating = reference.dtype.kind not in "iub"
    wide = np.float64 if floating else np.int64
    a, b, c = (array.astype(wide) for array in (reference, other, again))
    finite = np.isfinite(a) if floating else np.ones(a.shape, bool)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite, np.abs(a - b), 0)
        drift = np.where(finite & np.isfinite(c), np.abs(a - c), 0)
    figures: dict[str, Any] = {
        "max_abs": float(np.max(difference)),
        "noise": float(np.max(drift)),
        "differing": float(np.mean(difference != 0)),
    }
    largest = float(np.max(np.where(finite, np.abs(a), 0)))
    figures["max_rel"] = figures["max_abs"] / largest if largest else figures["max_abs"]
    rows = seam_rows(reference.shape, seams)
    at_seams = None
    if rows is not None and rows[1].size:
        at_seams = np.take(difference, rows[1], axis=rows[0])
        figures["seam_max_abs"] = float(np.max(at_seams))
    # `difference` is 0 where the reference is not finite; there both must hold the same.
    if not np.array_equal(a[~finite], b[~finite], equal_nan=floating):
        return result("infinities or NaNs differ", **figures)
    if not np.isfinite(figures["max_abs"]):
        return result("the rewritten model gives infinities or NaNs", **figures)
    if not floating:
        return _judge_integers(result, figures, at_seams, exact=exact_integers or rtol == 0)

    spread = _spread(a[finite])
    share = TOLERANCES.get(dtype, 1e-4) if rtol is None else rtol
    absolute = _ABSOLUTE.get(dtype, 5e-7) if atol is None else atol
    allowed = absolute + share * spread + 16 * _EPSILON.get(dtype, 0.0) * np.abs(a)
    figures |= {
        "tolerance": absolute + share * spread,
        "magnitude": spread,
        "faint": spread < _FAINT * _ABSOLUTE.get(dtype, 5e-7),
    }
    if np.any((4 * drift > allowed)[finite]):
        return result(_UNSTABLE.format(figures["noise"]), passed=None, **figures)
    wrong = (difference > allowed) & finite
    if np.any(wrong):
        worst = float(np.max(difference[wrong]))
        return result(f"differs by {worst:.3g}, tolerance {figures['tolerance']:.3g}", **figures)
    return result("", **figures)


_UNSTABLE = "the original itself differs by {:.3g} between two runs (random operators?)"


def _spread(values: np.ndarray[Any, Any]) -> float:
    """Return the 99.9 % quantile of the distance from the median; the largest of few values."""
    if not values.size:
        return 0.0
    distance = np.abs(values - np.median(values))
    return float(np.quantile(distance, 0.999) if values.size >= 1000 else np.max(distance))


def _judge_integers(
    result: Callable[..., OutputComparison],
    figures: Mapping[str, Any],
    at_seams: np.ndarray[Any, Any] | None,
    *,
    exact: bool,
) -> OutputComparison:
    if figures["noise"]:
        return result(_UNSTABLE.format(figures["noise"]), passed=None, **figures)
    share = figures["differing"]
    near = 0.0 if at_seams is None else float(np.mean(at_seams != 0))
    if share > (0 if exact else _INTEGER_SHARE) or near > (0 if exact else _SEAM_SHARE):
        reason = f"{100 * share:.3g} % of an integer output differ ({100 * near:.3g} % at seams)"
        return result(reason, **figures)
    return result("", **figures)
