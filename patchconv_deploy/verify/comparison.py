"""Compare what two models computed, output by output.

Errors are judged against the spread of the output as a whole: patching changes the order in which
a runtime adds products up, and that shifts every element by a share of the summands, not of the
sum. The spread is the 99.9 % quantile of the distance from the median, so that neither an offset
nor a few huge elements (masks of -1e9) hide anything. The tolerance of an element ``a`` is

    absolute part + share * spread + 16 * eps * abs(a)

where the absolute part is a few last places of 1.0: what a saturating function (Sigmoid, Softmax)
makes of values near its ends. Share and eps are those of the coarsest type between a cut and the
output (`Way`), not of the output's own: inside a float32 interface a network may compute in float16
or on quantised values. A row computed from wrong neighbours is off by the spread itself.

Beside that, *no row next to a seam may stand out*: its mean error is held against that of the rows
in the middle of the patches, four times of which, and what chance adds, are allowed, and a few last
places of the coarsest type. That is 25 times and more sharper than the tolerance, and what a coarse
type allows elsewhere hides no row at a seam.

The original's own freedom, its distance to itself without graph optimisations, is a floor of both
where it is given; but never does it raise a tolerance above a tenth of the spread. What does not
pass even so is held against the original whose large sums are taken in steps (`sums_in_steps`),
to the same tolerance; but only where the two are no further apart than a tenth of the spread.

An output whose spread is hardly larger than the absolute part, or that is constant or empty, proves
little and is called faint. Where the reference differs from itself between two runs by more than a
quarter of the tolerance (random operators), nothing can be said: it is unstable.

Integer outputs. Where every cut Conv is an integer one they must be equal to the bit. Else values
that lay on a rounding edge may differ: *levels* (a Cast or QuantizeLinear of floating values) by
one level, and by more only as far as the coarsest type reaches; *labels* (ArgMax) where the
original's own scores of the two labels differ by no more than the tolerance; others in any way. In
one of a thousand elements, or as many as the coarsest type's last places move, next to a seam in
two of a hundred. Floating outputs behind a rounding (Round, Cast, a comparison) may have as many
that are off by a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from patchconv_deploy.verify.floats import UNSTABLE, judge_floats
from patchconv_deploy.verify.integers import judge_integers
from patchconv_deploy.verify.measured import Measured, Verdict, measure
from patchconv_deploy.verify.seams import Seam
from patchconv_deploy.verify.tolerances import MOST_FREEDOM, Way, spread_of

__all__ = ["OutputComparison", "compare_output", "rounding_of_sums"]


Array = np.ndarray[Any, Any]


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
        freedom: Largest difference of the reference to itself without graph optimisations, None
            where it was not run so.
        differing: Share of elements that differ at all.
        tolerance: What ``max_abs`` was held against, where it is.
        magnitude: The reference's spread.
        faint: The reference is so small that its agreement says little.
        reason: Why it did not pass, empty if it did.
        sums: It was compared with the original whose large sums are taken in steps; this is the
            largest difference between the original and that one, None where it was not.
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
    freedom: float | None = None
    sums: float | None = None


def rounding_of_sums(reference: Array, steps: Array) -> float | None:
    """Return how far the original is from itself with its large sums taken in steps.

    Args:
        reference: What the original computed.
        steps: What it computed with these in steps (`sums_in_steps`).

    Returns:
        The largest difference, of integers the share that differs; None where it is no rounding:
        more than a tenth of the spread, or of the elements.
    """
    if reference.shape != steps.shape or reference.dtype != steps.dtype or not reference.size:
        return None
    if reference.dtype.kind in "iub":
        share = float(np.mean(reference != steps))
        return share if share <= MOST_FREEDOM else None
    found = measure(reference, reference, steps, None, ())
    most = MOST_FREEDOM * spread_of(found.reference[found.finite])
    return None if found.unlike_infinities() or found.largest > most else found.largest


def compare_output(
    name: str,
    reference: Array,
    again: Array,
    other: Array,
    *,
    seams: Sequence[Seam] = (),
    exact_integers: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    way: Way | None = None,
    plain: Array | None = None,
    scores: Array | None = None,
    final: bool = True,
) -> OutputComparison:
    """Compare one output.

    Args:
        name: The output.
        reference: What the original computed.
        again: What it computed a second time.
        other: What the rewritten model computed.
        seams: Seams of all regions.
        exact_integers: Integer outputs must be equal.
        rtol: Tolerance relative to the spread; by element type if None. Where a tolerance is given,
            it alone counts.
        atol: Absolute tolerance, added; by element type if None.
        way: What lies between the cuts and the output; the output's own type alone if None.
        plain: What the original computed without graph optimisations.
        scores: Of labels, what it chose among.
        final: There are no scores to be had; else labels that differ do not pass without.
    """
    dtype = str(reference.dtype)
    if reference.shape != other.shape or reference.dtype != other.dtype:
        was, now = (f"{array.dtype}{list(array.shape)}" for array in (reference, other))
        return OutputComparison(name, dtype, False, **_UNLIKE, reason=f"{was} became {now}")
    if reference.size == 0 or reference.dtype.kind not in "biufV":
        if np.array_equal(reference, other):
            return OutputComparison(name, dtype, True, **_ALIKE, faint=True)
        return OutputComparison(name, dtype, False, **_UNLIKE, faint=True, reason="differs")
    found = measure(reference, again, other, plain, seams)
    unlike = found.unlike_infinities()
    if unlike:
        return _comparison(name, dtype, found, Verdict(unlike, False))
    way = way or Way()
    if reference.dtype.kind not in "iub":
        verdict = judge_floats(found, dtype, way, rtol=rtol, atol=atol)
    elif found.noise:
        verdict = Verdict(UNSTABLE.format(found.noise), None)
    else:
        exact = exact_integers or rtol == 0
        verdict = judge_integers(found, way, scores, exact=exact, final=final)
    return _comparison(name, dtype, found, verdict)


# What is said of outputs whose distance cannot be told.
_UNLIKE: dict[str, Any] = {
    "max_abs": inf,
    "max_rel": inf,
    "seam_max_abs": None,
    "noise": 0.0,
    "differing": 1.0,
    "tolerance": 0.0,
}

_ALIKE: dict[str, Any] = {**_UNLIKE, "max_abs": 0.0, "max_rel": 0.0, "differing": 0.0}


def _comparison(name: str, dtype: str, found: Measured, verdict: Verdict) -> OutputComparison:
    return OutputComparison(
        name,
        dtype,
        verdict.passed,
        max_abs=found.largest,
        max_rel=found.relative,
        seam_max_abs=found.at_seams,
        noise=found.noise,
        differing=found.differing,
        tolerance=verdict.tolerance,
        magnitude=verdict.magnitude,
        faint=verdict.faint,
        reason=verdict.reason,
        freedom=found.freedom,
    )
