"""Floating outputs judged: every element, and the rows next to seams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from patchconv_deploy.verify.integers import INTEGER_SHARE, SEAM_SHARE, TOGETHER
from patchconv_deploy.verify.measured import CHANCE, Measured, Verdict, neighbours
from patchconv_deploy.verify.seams import seam_rows
from patchconv_deploy.verify.tolerances import (
    ABSOLUTE,
    EPSILON,
    MOST_FREEDOM,
    TOLERANCES,
    USUAL,
    Way,
    coarsest,
    spread_of,
)

__all__ = ["UNSTABLE", "judge_floats"]


Array = np.ndarray[Any, Any]

_FAINT = 100

UNSTABLE = "the original itself differs by {:.3g} between two runs (random operators?)"

_FREE = "the original itself differs by {:.3g} without graph optimisations"


def judge_floats(
    found: Measured, dtype: str, way: Way, *, rtol: float | None, atol: float | None
) -> Verdict:
    """Judge a floating output.

    Args:
        found: What was measured.
        dtype: Its element type.
        way: What lies between the cuts and the output.
        rtol: Tolerance relative to the spread; by element type if None. Where a tolerance is given,
            it alone counts.
        atol: Absolute tolerance, added; by element type if None.
    """
    kind = coarsest(dtype, way.coarsest) or "float32"
    spread = spread_of(found.reference[found.finite])
    usual = ABSOLUTE.get(dtype, 5e-7)
    share = TOLERANCES[kind] if rtol is None else rtol
    absolute = usual if atol is None else atol
    tolerance = absolute + share * spread
    # An infinite value would make its tolerance infinite.
    magnitudes = np.abs(np.where(found.finite, found.reference, 0))
    allowed = tolerance + 16 * EPSILON.get(kind, 0.0) * magnitudes
    faint = spread < _FAINT * usual
    verdict = Verdict("", True, _at_largest(found, allowed), spread, faint)
    if np.any((4 * found.drift > allowed)[found.finite]):
        return replace(verdict, reason=UNSTABLE.format(found.noise), passed=None)
    if rtol is not None or atol is not None:
        return _with(verdict, _too_far(found, allowed, verdict.tolerance, 0.0))
    freedom = found.freedom
    if freedom is not None:
        # Freedom counts up to a tenth of the spread; beyond it nothing can be said.
        raised = min(2 * freedom, MOST_FREEDOM * spread)
        allowed = np.maximum(allowed, raised)
        verdict = replace(verdict, tolerance=_at_largest(found, allowed))
        beyond = found.difference > allowed
        if beyond.any() and (found.difference[beyond] <= 2 * freedom).all():
            return replace(verdict, reason=_FREE.format(freedom), passed=None)
    return _with(verdict, _fault(found, allowed, verdict.tolerance, way, kind))


def _at_largest(found: Measured, allowed: Array) -> float:
    """Return what is allowed where the largest difference is: each value has last places."""
    return float(allowed.flat[np.argmax(np.where(found.finite, found.difference, -1))])


def _with(verdict: Verdict, reason: str) -> Verdict:
    return replace(verdict, reason=reason, passed=not reason)


def _too_far(found: Measured, allowed: Array, tolerance: float, share: float) -> str:
    """Return how far elements are off, empty if no more than a share of them is."""
    wrong = (found.difference > allowed) & found.finite
    if float(np.mean(wrong)) <= share:
        return ""
    worst = float(np.max(found.difference[wrong]))
    return f"differs by {worst:.3g}, tolerance {tolerance:.3g}"


def _fault(found: Measured, allowed: Array, tolerance: float, way: Way, kind: str) -> str:
    """Return what is wrong with a floating output, empty if nothing is."""
    beyond = found.difference > allowed
    steps = way.stepped and seam_rows(beyond.shape, found.seams) is not None
    # Without rows to compare, nothing tells a few steps from a few wrong elements.
    reason = _too_far(found, allowed, tolerance, INTEGER_SHARE if steps else 0.0)
    if reason:
        return reason
    rows = seam_rows(beyond.shape, found.seams)
    if rows is None:
        return ""
    if steps:
        count = beyond.size // beyond.shape[rows[0]]
        stray = found.stands_out(beyond.astype(float), None, SEAM_SHARE + CHANCE / count, TOGETHER)
        if stray:
            return stray
    magnitude = np.where(found.finite, np.abs(found.reference), 0)
    others = tuple(axis for axis in range(beyond.ndim) if axis != rows[0])
    floor = (
        ABSOLUTE.get(kind if kind == "float64" else "float32", 5e-7)
        + USUAL[kind] * spread_of(found.reference[found.finite])
        + 0.5 * EPSILON.get(kind, 0.0) * np.mean(magnitude, axis=others)
    )
    own = None if found.own is None else np.minimum(found.own, allowed)
    return found.stands_out(
        np.where(beyond, 0, found.difference), own, floor, neighbours(beyond.shape, rows[0])
    )
