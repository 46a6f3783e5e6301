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
where it is given; but never does it raise a tolerance above a tenth of the spread.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = [
    "TOLERANCES",
    "OutputComparison",
    "Seam",
    "Way",
    "coarsest",
    "compare_output",
    "seam_rows",
]


Array = np.ndarray[Any, Any]

# Largest error relative to the output's spread. float32 keeps 24 bits and networks add
# up thousands of products in another order, layer after layer; the others scale with their bits.
# "int8": values quantised to 8 bits, of which a few may be a few quanta off; "int4": to fewer.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-10,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 5e-2,
    "int8": 5e-2,
    "int4": 2e-1,
}

# From fine to coarse.
_COARSENESS = tuple(TOLERANCES)

# A few units in the last place of 1.0.
_ABSOLUTE: Mapping[str, float] = {
    "float64": 1e-15,
    "float32": 5e-7,
    "float16": 2e-3,
    "bfloat16": 2e-2,
}

# Mean error of a row, relative to the spread, that is no sign of anything: sums of many products in
# another order; a quarter of the last place of 16 bits; half a quantum.
_USUAL: Mapping[str, float] = {
    "float64": 32 * 2.0**-52,
    "float32": 32 * 2.0**-23,
    "float16": 2.0**-12,
    "bfloat16": 2.0**-9,
    "int8": 2.0**-8,
    "int4": 2.0**-4,
}

_FAINT = 100

_INTEGER_SHARE, _SEAM_SHARE = 1e-3, 2e-2

# A row may have so many times the usual error, and so many deviations; so many elements are chance.
_TIMES, _DEVIATIONS, _CHANCE = 4, 6, 3

# Values on a rounding edge that err together, if at all.
_ROUNDED = 3

# The original's freedom raises no tolerance above this share of the spread.
_MOST_FREEDOM = 0.1

_EPSILON: Mapping[str, float] = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}


def coarsest(*types: str) -> str:
    """Return the coarsest of some types; what is no key of `TOLERANCES` does not count."""
    known = [name for name in types if name in TOLERANCES]
    return max(known, key=_COARSENESS.index, default="")


@dataclass(frozen=True, slots=True)
class Way:
    """What lies between the cuts and an output.

    Attributes:
        coarsest: The coarsest type, a key of `TOLERANCES`; empty if there is none.
        stepped: Something on it is no continuous function: a rounding, a comparison, an ArgMax.
        kind: Of an integer output: "levels", "labels" or "others".
        scores: Of labels: the tensor whose largest element they name.
        axis: Of labels: the axis of it.
        smallest: Of labels: they name the smallest element.
    """

    coarsest: str = ""
    stepped: bool = False
    kind: str = "others"
    scores: str = ""
    axis: int = 0
    smallest: bool = False


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
        freedom: Largest difference of the reference to itself without graph optimisations, None
            where it was not run so.
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
    freedom: float | None = None


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


@dataclass(frozen=True, slots=True)
class _Figures:
    """What is measured of an output before it is judged.

    Attributes:
        reference: The original's values.
        difference: Distance of the rewritten model's, 0 where the reference is not finite.
        own: Distance of the original's without graph optimisations, None if it was not run.
        finite: Where the reference is finite.
        seams: Seams of all regions.
    """

    reference: Array
    difference: Array
    own: Array | None
    finite: Array
    seams: Sequence[Seam] = field(default_factory=tuple)

    def stands_out(
        self, errors: Array, own: Array | None, floor: Array | float, together: float
    ) -> str:
        """Return which row next to a seam has larger errors than others have; empty if none.

        Args:
            errors: An error per element.
            own: The same of the original without graph optimisations.
            floor: Mean error that a row may have, one for all rows or one for each.
            together: Elements that err together.
        """
        shape = errors.shape
        found, wide = seam_rows(shape, self.seams), seam_rows(shape, self.seams, wide=True)
        if found is None or wide is None or not errors.size:
            return ""
        axis, marked = found
        rows = np.moveaxis(errors, axis, 0).reshape(shape[axis], -1)
        apart = np.setdiff1d(np.arange(shape[axis]), wide[1] if wide[0] == axis else marked)
        if apart.size < 4:
            apart = np.setdiff1d(np.arange(shape[axis]), marked)
        samples = [rows[apart]] if apart.size >= 4 else []
        samples += [] if own is None else [own.reshape(-1)]
        if not samples:
            return ""
        usual = max(float(np.mean(sample)) for sample in samples)
        square = max(float(np.mean(np.square(sample))) for sample in samples)
        single = max(1.0, rows.shape[1] / together)
        chance = _DEVIATIONS * np.sqrt(square / single)
        allowed = np.broadcast_to(floor, shape[axis])[marked] + _TIMES * usual + chance
        excess = rows[marked].mean(axis=1) - allowed
        if not (excess > 0).any():
            return ""
        worst = int(np.argmax(excess))
        mean = float(rows[marked[worst]].mean())
        return (
            f"row {marked[worst]}, next to a seam, stands out: mean error {mean:.3g}, "
            f"of other rows {usual:.3g}"
        )


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
    way = way or Way()

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
    own = None
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite, np.abs(a - b), 0)
        drift = np.where(finite & np.isfinite(c), np.abs(a - c), 0)
        if plain is not None and plain.shape == a.shape:
            own = np.abs(a - plain.astype(wide))
            own = np.where(finite & np.isfinite(own), own, 0)
    figures: dict[str, Any] = {
        "max_abs": float(np.max(difference)),
        "noise": float(np.max(drift)),
        "differing": float(np.mean(difference != 0)),
        "freedom": None if own is None else float(np.max(own)),
    }
    largest = float(np.max(np.where(finite, np.abs(a), 0)))
    figures["max_rel"] = figures["max_abs"] / largest if largest else figures["max_abs"]
    rows = seam_rows(reference.shape, seams)
    if rows is not None and rows[1].size:
        at_seams = np.take(difference, rows[1], axis=rows[0])
        figures["seam_max_abs"] = float(np.max(at_seams))
    # `difference` is 0 where the reference is not finite; there both must hold the same.
    if not np.array_equal(a[~finite], b[~finite], equal_nan=floating):
        return result("infinities or NaNs differ", **figures)
    if not np.isfinite(figures["max_abs"]):
        return result("the rewritten model gives infinities or NaNs", **figures)
    measured = _Figures(a, difference, own, finite, seams)
    if not floating:
        if figures["noise"]:
            return result(_UNSTABLE.format(figures["noise"]), passed=None, **figures)
        if exact_integers or rtol == 0:
            return result(_any_differs(figures), **figures)
        chosen = None if scores is None else _gaps(b, scores, way)
        if way.kind == "labels" and chosen is None and not final and figures["max_abs"]:
            return result("labels differ", **figures)
        spread = _spread(a.astype(np.float64))
        figures["magnitude"] = spread
        return result(_integer_fault(measured, way, spread, chosen), **figures)

    kind = coarsest(dtype, way.coarsest) or "float32"
    spread = _spread(a[finite])
    share = TOLERANCES[kind] if rtol is None else rtol
    absolute = _ABSOLUTE.get(dtype, 5e-7) if atol is None else atol
    allowed = absolute + share * spread + 16 * _EPSILON.get(kind, 0.0) * np.abs(a)
    figures |= {
        "tolerance": absolute + share * spread,
        "magnitude": spread,
        "faint": spread < _FAINT * _ABSOLUTE.get(dtype, 5e-7),
    }
    if np.any((4 * drift > allowed)[finite]):
        return result(_UNSTABLE.format(figures["noise"]), passed=None, **figures)
    if rtol is not None or atol is not None:
        return result(_too_far(measured, allowed, figures["tolerance"], 0.0), **figures)
    if own is not None:
        # Freedom counts up to a tenth of the spread; beyond it nothing can be said.
        raised = min(2 * float(np.max(own)), _MOST_FREEDOM * spread)
        figures["tolerance"] = max(figures["tolerance"], raised)
        allowed = np.maximum(allowed, raised)
        beyond = difference > allowed
        if beyond.any() and (difference[beyond] <= 2 * float(np.max(own))).all():
            reason = _FREE.format(float(np.max(own)))
            return result(reason, passed=None, **figures)
    return result(_float_fault(measured, allowed, figures["tolerance"], way, kind), **figures)


_UNSTABLE = "the original itself differs by {:.3g} between two runs (random operators?)"

_FREE = "the original itself differs by {:.3g} without graph optimisations"


def _spread(values: Array) -> float:
    """Return the 99.9 % quantile of the distance from the median; the largest of few values."""
    if not values.size:
        return 0.0
    distance = np.abs(values - np.median(values))
    return float(np.quantile(distance, 0.999) if values.size >= 1000 else np.max(distance))


def _too_far(found: _Figures, allowed: Array, tolerance: float, share: float) -> str:
    """Return how far elements are off, empty if no more than a share of them is."""
    wrong = (found.difference > allowed) & found.finite
    if float(np.mean(wrong)) <= share:
        return ""
    worst = float(np.max(found.difference[wrong]))
    return f"differs by {worst:.3g}, tolerance {tolerance:.3g}"


def _float_fault(found: _Figures, allowed: Array, tolerance: float, way: Way, kind: str) -> str:
    """Return what is wrong with a floating output, empty if nothing is."""
    beyond = found.difference > allowed
    steps = way.stepped and seam_rows(beyond.shape, found.seams) is not None
    # Without rows to compare, nothing tells a few steps from a few wrong elements.
    reason = _too_far(found, allowed, tolerance, _INTEGER_SHARE if steps else 0.0)
    if reason:
        return reason
    rows = seam_rows(beyond.shape, found.seams)
    if rows is None:
        return ""
    if steps:
        count = beyond.size // beyond.shape[rows[0]]
        stray = found.stands_out(
            beyond.astype(float), None, _SEAM_SHARE + _CHANCE / count, _ROUNDED
        )
        if stray:
            return stray
    magnitude = np.where(found.finite, np.abs(found.reference), 0)
    others = tuple(axis for axis in range(beyond.ndim) if axis != rows[0])
    floor = (
        _ABSOLUTE.get(kind if kind == "float64" else "float32", 5e-7)
        + _USUAL[kind] * _spread(found.reference[found.finite])
        + 0.5 * _EPSILON.get(kind, 0.0) * np.mean(magnitude, axis=others)
    )
    own = None if found.own is None else np.minimum(found.own, allowed)
    return found.stands_out(
        np.where(beyond, 0, found.difference), own, floor, _neighbours(beyond.shape, rows[0])
    )


def _any_differs(figures: Mapping[str, Any]) -> str:
    share = figures["differing"]
    return f"{100 * share:.3g} % of an integer output differ" if share else ""


def _integer_fault(
    found: _Figures, way: Way, spread: float, gaps: tuple[Array, float] | None
) -> str:
    """Return what is wrong with an integer output that derives from floating values.

    Args:
        found: What was measured.
        way: What lies between the cuts and the output.
        spread: The output's spread.
        gaps: Of labels: by how much each label that was chosen misses the best score, and by how
            much it may.
    """
    kind = coarsest(way.coarsest, "float32")
    usual = _USUAL[kind]
    errors = (found.difference != 0).astype(float)
    own = None if found.own is None else (found.own != 0).astype(float)
    most, near = max(_INTEGER_SHARE, 4 * usual), max(_SEAM_SHARE, 4 * usual)
    if way.kind == "levels":
        errors, own = found.difference.astype(float), found.own
        levels = 1 + int(TOLERANCES[kind] * spread)
        if float(np.max(errors)) > levels:
            return f"differs by {int(np.max(errors))} levels, {levels} are allowed"
        most, near = max(_INTEGER_SHARE, usual * spread), max(_SEAM_SHARE, usual * spread)
    elif gaps is not None:
        missed, allowed = gaps
        if float(np.max(missed)) > allowed:
            return (
                f"a label whose score misses the best by {float(np.max(missed)):.3g} was chosen, "
                f"{allowed:.3g} is allowed"
            )
        most = max(_INTEGER_SHARE, 20 * usual, _CHANCE / errors.size)
        near = max(_SEAM_SHARE, 20 * usual)
    if own is not None:
        most = max(most, min(2 * float(np.mean(own)), _MOST_FREEDOM))
    if float(np.mean(errors)) > most:
        share = float(np.mean(found.difference != 0))
        return f"{100 * share:.3g} % of an integer output differ"
    rows = seam_rows(errors.shape, found.seams)
    if rows is None:
        return ""
    count = errors.size // errors.shape[rows[0]]
    quantised = kind in ("int8", "int4")
    together = _neighbours(errors.shape, rows[0]) if quantised else _ROUNDED
    return found.stands_out(errors, own, near + _CHANCE / count, together)


def _neighbours(shape: Sequence[int], axis: int) -> int:
    """Return how many elements see one value of a layer before: all channels of 3x3 places."""
    return 9 * shape[1] if len(shape) > 2 and axis != 1 else 9


def _gaps(labels: Array, scores: Array, way: Way) -> tuple[Array, float] | None:
    """Return by how much the scores of some labels miss the best, and by how much they may."""
    if scores.ndim == 0 or not -scores.ndim <= way.axis < scores.ndim:
        return None
    table = np.moveaxis(scores.astype(np.float64), way.axis, -1)
    count = table.shape[-1]
    table = (-table if way.smallest else table).reshape(-1, count)
    flat = labels.reshape(-1)
    if len(table) != flat.size or not np.isfinite(table).all():
        return None
    if flat.min() < 0 or flat.max() >= count:
        return np.array([np.inf]), 0.0
    kind = coarsest(way.coarsest, "float32")
    chosen = np.take_along_axis(table, flat[:, None], axis=1)[:, 0]
    return table.max(axis=1) - chosen, 2 * (5e-7 + TOLERANCES[kind] * _spread(table))
