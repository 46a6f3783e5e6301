"""Prove a tiling before it is emitted, with integers alone.

A region is, here, the chain of its row maps from its input to its output. `walk` carries the
interval of right rows through one patch, operator by operator; `prove` asks it for every patch and
lets nothing pass that is not right:

1. each operator's output is ``H_out - m*r_out`` rows high in the window (shapes agree),
2. each operator needs the same rows in the window as in the whole, shifted by the patch,
3. each core lies inside the right rows, and the cores cover the output exactly once.

Walking assumes the worst: a row that reads the padding at an interior edge of a window is wrong.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from rewriters.geometry import Extent, Patch, Rows, Tiling, covers, schedule
from rewriters.rowmaps import RowMap

__all__ = ["Steps", "effort", "extent", "prove", "prove_every_height", "steps", "window_slack"]

_FAR = 1 << 62
# Steps of a window in which no kernel of practical size sees both edges at once.
_TALL = 1 << 22


@dataclass(frozen=True, slots=True)
class Steps:
    """Rows per step of every tensor along a chain: input first, output last."""

    rows: tuple[int, ...]

    @property
    def input(self) -> int:
        """Input rows per step."""
        return self.rows[0]

    @property
    def output(self) -> int:
        """Output rows per step."""
        return self.rows[-1]


def steps(chain: Sequence[RowMap]) -> Steps:
    """Return whole rows per step for every tensor of the chain, as few as possible."""
    rows = [1]
    for row_map in chain:
        # The next tensor advances rows[-1] * step_out / step_in; scale all up until that is whole.
        numerator = rows[-1] * row_map.step_out
        factor = row_map.step_in // gcd(numerator, row_map.step_in)
        rows = [row * factor for row in rows]
        rows.append(rows[-1] * row_map.step_out // row_map.step_in)
    return Steps(tuple(rows))


def _right_rows(row_map: RowMap, right: Rows, rows: int, *, first: bool, last: bool) -> Rows:
    """Return the output rows that need right input rows alone, in a window of ``rows`` rows."""
    count = row_map.rows_out(rows)
    low = -_FAR if first and right.begin == 0 else right.begin
    high = _FAR if last and right.end == rows else right.end
    begin = bisect_left(range(count), low, key=lambda a: row_map.needs(Rows(a, a + 1), rows).begin)
    end = bisect_left(range(count), high + 1, key=lambda a: row_map.needs(Rows(a, a + 1), rows).end)
    return Rows(begin, max(begin, end))


def walk(chain: Sequence[RowMap], step: Steps, rows: int, *, shift: int, trim: int) -> Rows | str:
    """Carry the right rows of one patch through the chain.

    Args:
        chain: Row maps from the region's input to its output.
        step: `steps` of the chain.
        rows: Rows of the region's whole input.
        shift: Steps the window starts down.
        trim: Steps the window is shorter than the whole.

    Returns:
        The right rows of the window's output, counted in the window; or why there are none.
    """
    whole, local = rows, rows - trim * step.input
    if local < 1:
        return "a window has no rows"
    right = Rows(0, local)
    for row_map, r_in, r_out in zip(chain, step.rows, step.rows[1:], strict=False):
        right = _right_rows(row_map, right, local, first=shift == 0, last=shift == trim)
        next_whole, next_local = row_map.rows_out(whole), row_map.rows_out(local)
        if next_local != next_whole - trim * r_out or next_local < 1:
            return f"a window is {next_local} rows high where {next_whole - trim * r_out} fit"
        for at in (right.begin, right.end - 1):
            here = row_map.needs(Rows(at, at + 1), local).shifted(shift * r_in)
            if len(right) and here != row_map.needs(Rows(at, at + 1).shifted(shift * r_out), whole):
                return "a window's rows are not the whole's rows, shifted"
        whole, local = next_whole, next_local
    return right


def extent(chain: Sequence[RowMap], rows: int | None, height: int) -> Extent:
    """Return the output's extent: its rows, rows per step, and wrong rows of interior windows.

    Wrong rows are counted in a window tall enough that its two edges do not meet. They depend on
    the height's remainder by the step alone; where the height is unknown every remainder counts.

    Args:
        chain: Row maps from the region's input to its output.
        rows: Rows of the whole input, or None where unknown.
        height: Stands in for ``rows`` in the result's ``rows`` where that is unknown.
    """
    step = steps(chain)
    tall = step.input * _TALL
    phases = range(step.input) if rows is None else (rows % step.input,)
    top = tail = 0
    for phase in phases:
        # Two steps shorter than the whole and one down: an interior window.
        right = walk(chain, step, tall + phase + 2 * step.input, shift=1, trim=2)
        out = tall + phase
        for row_map in chain:
            out = row_map.rows_out(out)
        if isinstance(right, str) or not len(right):
            return Extent(_rows_out(chain, rows or height), step.output, _FAR, _FAR)
        top, tail = max(top, right.begin), max(tail, out - right.end)
    return Extent(_rows_out(chain, rows or height), step.output, top, tail)


def _rows_out(chain: Sequence[RowMap], rows: int) -> int:
    for row_map in chain:
        rows = row_map.rows_out(rows)
    return rows


def prove(chain: Sequence[RowMap], rows: int, tiling: Tiling) -> str | None:
    """Prove a tiling of a region of known height.

    Args:
        chain: Row maps from the region's input to its output.
        rows: Rows of the whole input.
        tiling: The patches; empty cores are allowed.

    Returns:
        None if every core is right, else the reason it is not.
    """
    step = steps(chain)
    if not covers([patch.core for patch in tiling.patches], _rows_out(chain, rows)):
        return "the cores do not cover the output exactly once"
    # A window's right rows, counted in the window, depend on which of its edges are true borders.
    walked: dict[tuple[bool, bool], Rows | str] = {}
    for patch in tiling.patches:
        if not 0 <= patch.shift <= tiling.trim:
            return "a window reaches beyond the tensor"
        kind = (patch.shift == 0, patch.shift == tiling.trim)
        if kind not in walked:
            walked[kind] = walk(chain, step, rows, shift=patch.shift, trim=tiling.trim)
        right = walked[kind]
        if isinstance(right, str):
            return right
        right = right.shifted(patch.shift * step.output)
        if len(patch.core) and not (
            right.begin <= patch.core.begin and patch.core.end <= right.end
        ):
            return (
                f"rows {patch.core.begin}..{patch.core.end} of a patch are not all right "
                f"(right: {right.begin}..{right.end})"
            )
    return None


@lru_cache(maxsize=4096)
def prove_every_height(chain: tuple[RowMap, ...], splits: int) -> str | None:
    """Prove the run-time schedule of a region of unknown height.

    That neighbours are never too far apart is shown for all heights in `rewriters.geometry`, and
    no wrong row depends on the height but through its remainder by the step (`extent`). What is
    left to chance is small images, where the two edges of a window meet, and this code: so every
    height is proven from one row up to where all windows are interior, every remainder has come
    round, and the free steps have passed every remainder by ``splits`` twice.

    Returns:
        None if every core is right at every height, else the first height that is not, and why.
    """
    step = steps(chain)
    worst = extent(chain, None, 1)
    if worst.top >= _FAR:
        return "its windows leave no right row"
    slack = window_slack(chain)
    for rows in _heights(chain, worst, splits):
        out = _rows_out(chain, rows)
        here = Extent(out, step.output, worst.top, worst.tail)
        placed = [
            schedule(
                here,
                splits,
                index=k,
                first=int(k > 0),
                last=out if k == splits - 1 else 0,
                minimum=min,
                maximum=max,
            )
            for k in range(splits)
        ]
        patches = tuple(Patch(p.shifts, Rows(p.begins, max(p.begins, p.ends))) for p in placed)
        stride, trim = placed[0].stride, placed[0].trim
        if stride * step.input + slack < rows - trim * step.input:
            return f"at {rows} rows: a window is taller than it is declared to be"
        reason = prove(chain, rows, Tiling(trim, patches))
        if reason is not None:
            return f"at {rows} rows: {reason}"
    return None


def effort(chain: Sequence[RowMap], splits: int) -> int:
    """Return about how many patches `prove_every_height` would look at."""
    step = steps(chain)
    return splits * step.input * (2 * splits + 2 * len(_needs(chain)) // step.input + 2)


@lru_cache(maxsize=4096)
def window_slack(chain: tuple[RowMap, ...]) -> int:
    """Return the most input rows a window has beyond its patch's own steps, at any height.

    A window has ``H - trim*r`` rows, which are ``stride*r`` (see `geometry.Schedule`) and
    ``H - free*r``. The latter depends on the height's remainder by the step alone once a step is
    free; this is its maximum, so ``stride*r + window_slack`` bounds a window from above.
    """
    step = steps(chain)
    worst = extent(chain, None, 1)
    most = 0
    for rows in _heights(chain, worst, 2):
        out = _rows_out(chain, rows)
        free = max(0, out - worst.top - worst.tail) // step.output
        most = max(most, rows - free * step.input)
    return most


def _heights(chain: Sequence[RowMap], worst: Extent, splits: int) -> Iterator[int]:
    """Yield every height at which something new can happen; see `prove_every_height`."""
    step = steps(chain)
    rounds = (worst.top + worst.tail) // step.output + 2 * splits + 2
    # The first height that gives an output row; fewer rows are no input of this region.
    first = bisect_left(range(1, _TALL), 1, key=lambda rows: _rows_out(chain, rows)) + 1
    yield from range(first, first + step.input * rounds + len(_needs(chain)))


def _needs(chain: Sequence[RowMap]) -> Rows:
    """Return the input rows that the first output row needs, in a tall input."""
    rows = Rows(0, 1)
    for row_map in reversed(chain):
        needs = row_map.needs(rows, _TALL)
        rows = Rows(needs.begin, max(needs.begin + 1, needs.end))
    return rows
