"""What is measured of an output before it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchconv_deploy.verify.seams import Seam, seam_rows

__all__ = ["CHANCE", "Measured", "Verdict", "measure", "neighbours"]


Array = np.ndarray[Any, Any]

# A row may have so many times the usual error, and so many deviations; so many elements are chance.
_TIMES, _DEVIATIONS, CHANCE = 4, 6, 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of an output.

    Attributes:
        reason: Why it does not pass, empty if it does.
        passed: It passes; None if nothing can be said.
        tolerance: What its largest difference was held against.
        magnitude: The reference's spread.
        faint: The reference is so small that its agreement says little.
    """

    reason: str
    passed: bool | None
    tolerance: float = 0.0
    magnitude: float = 0.0
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """Distances of an output.

    Attributes:
        reference: The original's values, float64 or int64.
        other: The rewritten model's.
        difference: Distance between the two, 0 where the reference is not finite.
        drift: Distance of the reference to itself in a second run, the same.
        own: Distance of the reference to itself without graph optimisations, None if it was not
            run so.
        finite: Where the reference is finite.
        seams: Seams of all regions.
    """

    reference: Array
    other: Array
    difference: Array
    drift: Array
    own: Array | None
    finite: Array
    seams: Sequence[Seam]

    @property
    def largest(self) -> float:
        """The largest difference."""
        return float(np.max(self.difference))

    @property
    def noise(self) -> float:
        """The largest difference between two runs of the reference."""
        return float(np.max(self.drift))

    @property
    def freedom(self) -> float | None:
        """The largest difference of the reference to itself without graph optimisations."""
        return None if self.own is None else float(np.max(self.own))

    @property
    def at_seams(self) -> float | None:
        """The largest difference at rows next to a seam, None where there are no such rows."""
        rows = seam_rows(self.reference.shape, self.seams)
        if rows is None or not rows[1].size:
            return None
        return float(np.max(np.take(self.difference, rows[1], axis=rows[0])))

    @property
    def relative(self) -> float:
        """The largest difference over the reference's largest magnitude, itself where that is 0."""
        magnitude = float(np.max(np.where(self.finite, np.abs(self.reference), 0)))
        return self.largest / magnitude if magnitude else self.largest

    @property
    def differing(self) -> float:
        """The share of elements that differ."""
        return float(np.mean(self.difference != 0))

    def unlike_infinities(self) -> str:
        """Return how infinities and NaNs differ, empty if both models have the same ones."""
        a, b = self.reference[~self.finite], self.other[~self.finite]
        # Of integers none are not finite.
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            return "infinities or NaNs differ"
        if not np.isfinite(self.largest):
            return "the rewritten model gives infinities or NaNs"
        return ""

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


def measure(
    reference: Array, again: Array, other: Array, plain: Array | None, seams: Sequence[Seam]
) -> Measured:
    """Measure an output that is not empty, of numbers.

    Args:
        reference: What the original computed.
        again: What it computed a second time.
        other: What the rewritten model computed.
        plain: What the original computed without graph optimisations, None if it was not run so.
        seams: Seams of all regions.
    """
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
    return Measured(a, b, difference, drift, own, finite, seams)


def neighbours(shape: Sequence[int], axis: int) -> int:
    """Return how many elements see one value of a layer before: all channels of 3x3 places."""
    return 9 * shape[1] if len(shape) > 2 and axis != 1 else 9
