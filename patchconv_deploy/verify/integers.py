"""Integer outputs judged: levels, labels, and what must be equal to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from patchconv_deploy.verify.measured import CHANCE, Measured, Verdict, neighbours
from patchconv_deploy.verify.seams import seam_rows
from patchconv_deploy.verify.tolerances import (
    MOST_FREEDOM,
    TOLERANCES,
    USUAL,
    Way,
    coarsest,
    spread_of,
)

__all__ = ["INTEGER_SHARE", "SEAM_SHARE", "TOGETHER", "judge_integers"]


Array = np.ndarray[Any, Any]

# Shares of elements that may differ: of all, and of a row next to a seam.
INTEGER_SHARE, SEAM_SHARE = 1e-3, 2e-2

# Values on a rounding edge that err together, if at all.
TOGETHER = 3


def judge_integers(
    found: Measured, way: Way, scores: Array | None, *, exact: bool, final: bool
) -> Verdict:
    """Judge an integer output that the original reproduces from run to run.

    Args:
        found: What was measured.
        way: What lies between the cuts and the output.
        scores: Of labels, what the original chose among.
        exact: It must be equal to the bit.
        final: There are no scores to be had; else labels that differ do not pass without.
    """
    if exact:
        share = found.differing
        return _verdict(f"{100 * share:.3g} % of an integer output differ" if share else "")
    gaps = None if scores is None else _gaps(found.other, scores, way)
    if way.kind == "labels" and gaps is None and not final and found.largest:
        return _verdict("labels differ")
    spread = spread_of(found.reference.astype(np.float64))
    return _verdict(_fault(found, way, spread, gaps), spread)


def _verdict(reason: str, spread: float = 0.0) -> Verdict:
    return Verdict(reason, not reason, magnitude=spread)


def _fault(found: Measured, way: Way, spread: float, gaps: tuple[Array, float] | None) -> str:
    """Return what is wrong with an integer output that derives from floating values.

    Args:
        found: What was measured.
        way: What lies between the cuts and the output.
        spread: The output's spread.
        gaps: Of labels: by how much each label that was chosen misses the best score, and by how
            much it may.
    """
    kind = coarsest(way.coarsest, "float32")
    usual = USUAL[kind]
    errors = (found.difference != 0).astype(float)
    own = None if found.own is None else (found.own != 0).astype(float)
    most, near = max(INTEGER_SHARE, 4 * usual), max(SEAM_SHARE, 4 * usual)
    if way.kind == "levels":
        errors, own = found.difference.astype(float), found.own
        levels = 1 + int(TOLERANCES[kind] * spread)
        if float(np.max(errors)) > levels:
            return f"differs by {int(np.max(errors))} levels, {levels} are allowed"
        most, near = max(INTEGER_SHARE, usual * spread), max(SEAM_SHARE, usual * spread)
    elif gaps is not None:
        missed, allowed = gaps
        if float(np.max(missed)) > allowed:
            return (
                f"a label whose score misses the best by {float(np.max(missed)):.3g} was chosen, "
                f"{allowed:.3g} is allowed"
            )
        most = max(INTEGER_SHARE, 20 * usual, CHANCE / errors.size)
        near = max(SEAM_SHARE, 20 * usual)
    if own is not None:
        most = max(most, min(2 * float(np.mean(own)), MOST_FREEDOM))
    if float(np.mean(errors)) > most:
        share = found.differing
        return f"{100 * share:.3g} % of an integer output differ"
    rows = seam_rows(errors.shape, found.seams)
    if rows is None:
        return ""
    count = errors.size // errors.shape[rows[0]]
    quantised = kind in ("int8", "int4")
    together = neighbours(errors.shape, rows[0]) if quantised else TOGETHER
    return found.stands_out(errors, own, near + CHANCE / count, together)


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
    return table.max(axis=1) - chosen, 2 * (5e-7 + TOLERANCES[kind] * spread_of(table))
