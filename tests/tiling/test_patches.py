"""Tilings and their proof against brute force.

The brute force is a one-dimensional network of plain Python numbers that follows the operator
definitions and nothing else. A window reads zeros beyond a true border, as the operator's padding
does, and NaN beyond an interior edge, where its rows are not the whole's. So a row of a window is
right exactly where no NaN reached it, and then it must equal the whole's row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchconv_deploy.rewriters.tiling import network as networks
from patchconv_deploy.rewriters.tiling import proof, proof_any_height
from patchconv_deploy.rewriters.tiling.network import Network
from patchconv_deploy.rewriters.tiling.patches import (
    Extent,
    Patch,
    Rows,
    Tiling,
    core,
    covers,
    free_steps,
    place_windows,
    tile,
)
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise, RowMap, Sliding, Transposed
from tests.support.oracle import conv_padding
from tests.support.tiers import examples

_NAN = math.nan

Check = TypeVar("Check", bound=Callable[..., None])


def _for_all(examples: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Check], Check]:
    """Run the decorated check on this many examples, here and now."""

    def decorate(check: Check) -> Check:
        tried = settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        tried(given(*strategies)(check))()
        return check

    return decorate


def _apply(op: RowMap, x: Sequence[float], above: float, below: float) -> list[float]:
    """Apply one operator; ``above`` and ``below`` stand for all rows beyond the ends of ``x``."""

    def at(row: int) -> float:
        if row < 0:
            return above
        return x[row] if row < len(x) else below

    match op:
        case Sliding():
            pads = conv_padding(
                len(x), op.reach, op.stride, (op.begin, op.end), op.same or "NOTSET"
            )
            count = (len(x) + sum(pads) - op.reach) // op.stride + 1
            return [
                math.fsum((3 * k + 1) * at(a * op.stride - pads[0] + k) for k in range(op.reach))
                for a in range(count)
            ]
        case Transposed():
            count = op.stride * (len(x) - 1) + op.extra + op.reach - op.begin - op.end
            return [
                math.fsum(
                    (3 * k + 1) * at((y + op.begin - k) // op.stride)
                    for k in range(op.reach)
                    if (y + op.begin - k) % op.stride == 0
                )
                for y in range(count)
            ]
        case _:
            return list(x)


def _evaluate(
    chain: Sequence[RowMap], x: Sequence[float], *, first: bool, last: bool
) -> list[float]:
    for op in chain:
        x = _apply(op, x, 0.0 if first else _NAN, 0.0 if last else _NAN)
        # Whole numbers below 2^53 stay exact; the remainder keeps them there over long chains.
        x = [row if math.isnan(row) else row % 1_000_003 for row in x]
    return list(x)


def _image(rows: int) -> list[float]:
    random = Random(rows)
    return [float(random.randrange(1, 1000)) for _ in range(rows)]


def _rows_out(chain: Sequence[RowMap], rows: int) -> int:
    for op in chain:
        rows = op.rows_out(rows)
        if rows < 1:
            return 0
    return rows


def _steps(chain: Sequence[RowMap]) -> tuple[int, int]:
    """Return input and output rows per step."""
    found = networks.steps(Network.chain(chain))
    assert not isinstance(found, str)
    return found[0], found[-1]


def _walk(chain: Sequence[RowMap], rows: int, shift: int, trim: int) -> Rows | str:
    """Return the valid rows of a window's output."""
    network = Network.chain(chain)
    step, whole = networks.steps(network), networks.heights(network, (rows,))
    assert not isinstance(step, str)
    assert not isinstance(whole, str)
    found = networks.walk(network, step, whole, shift=shift, trim=trim)
    return found if isinstance(found, str) else found[-1]


def _extent(chain: Sequence[RowMap], rows: int | None, height: int = 0) -> Extent:
    """Return the extent of the output."""
    return proof.extents(Network.chain(chain), None if rows is None else (rows,), height)[0]


def _prove(chain: Sequence[RowMap], rows: int, tiling: Tiling) -> str | None:
    return proof.prove(Network.chain(chain), (rows,), tiling)


def _window(chain: Sequence[RowMap], rows: int, shift: int, trim: int) -> list[float] | None:
    """Return a window's output rows, NaN where wrong; None if there is no such window."""
    step, _ = _steps(chain)
    begin, height = shift * step, rows - trim * step
    if height < 1 or not 0 <= shift <= trim or _rows_out(chain, height) < 1:
        return None
    x = _image(rows)[begin : begin + height]
    return _evaluate(chain, x, first=shift == 0, last=shift == trim)


def _wrong(chain: Sequence[RowMap], rows: int, tiling: Tiling) -> str | None:
    """Return what is wrong with a tiling, by brute force; None if it gives the whole."""
    whole = _evaluate(chain, _image(rows), first=True, last=True)
    (_, out), joined = _steps(chain), list[float]()
    for patch in tiling.patches:
        window = _window(chain, rows, patch.shift, tiling.trim)
        if window is None:
            return "no such window"
        if len(window) != len(whole) - tiling.trim * out:
            return "not the height that a window has"
        owned = patch.cores[0].shifted(-patch.shift * out)
        if owned.begin < 0 or owned.end > len(window):
            return "a core outside its window"
        joined.extend(window[owned.begin : owned.end])
    # NaN is equal to nothing.
    return None if joined == whole else "wrong rows"


@st.composite
def _operators(draw: st.DrawFn) -> RowMap:
    kind = draw(st.sampled_from(("sliding", "sliding", "same", "transposed", "pointwise")))
    reach, stride = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    begin, end = draw(st.integers(0, reach)), draw(st.integers(0, reach))
    match kind:
        case "sliding":
            return Sliding(reach, stride, begin, end)
        case "same":
            same = draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER")))
            return Sliding(reach, stride, same=same)
        case "transposed":
            return Transposed(reach, stride, begin, end, draw(st.integers(0, stride - 1)))
        case _:
            return Pointwise()


_chains = st.lists(_operators(), min_size=1, max_size=4).map(tuple)

_single = _operators().map(lambda op: (op,))

_tiled = st.one_of(_single, _chains)


@examples(150, 500)
def test_rows_out_and_needs(examples: int) -> None:
    """A row map's output height and needs are those of the operator, for every output row."""
    seen: Counter[str] = Counter()

    @_for_all(examples, _operators(), st.integers(1, 30))
    def check(op: RowMap, rows: int) -> None:
        whole = _apply(op, _image(rows), 0.0, 0.0)
        assert max(0, op.rows_out(rows)) == len(whole)
        for row in range(len(whole)):
            needs = op.needs(Rows(row, row + 1), rows)
            inside = range(max(0, needs.begin), min(rows, needs.end))
            for spoiled in range(rows):
                x = _image(rows)
                x[spoiled] = _NAN
                reads = math.isnan(_apply(op, x, 0.0, 0.0)[row])
                assert reads == (spoiled in inside)
            seen["compared"] += 1

    assert seen["compared"] > 3 * examples


@examples(200, 500)
def test_steps_are_whole_and_least(examples: int) -> None:
    """Rows per step keep every operator's ratio, and have no common divisor to take out."""

    @_for_all(examples, _chains)
    def check(chain: tuple[RowMap, ...]) -> None:
        rows = networks.steps(Network.chain(chain))
        assert not isinstance(rows, str)
        assert math.gcd(*rows) == 1
        for op, r_in, r_out in zip(chain, rows, rows[1:], strict=False):
            assert r_in * op.step_out == r_out * op.step_in


@examples(600, 4000)
def test_tilings_are_right(examples: int) -> None:
    """Every tiling of a chain that can be proven gives the whole; single operators always can."""
    seen: Counter[str] = Counter()

    @_for_all(examples, _tiled, st.integers(1, 60), st.integers(1, 9))
    def check(chain: tuple[RowMap, ...], rows: int, splits: int) -> None:
        out = _rows_out(chain, rows)
        if out < 1:
            return
        found = _extent(chain, rows)
        assert found.rows == out
        tiling = tile([found], splits)
        assert 1 <= len(tiling.patches) <= splits
        assert covers([patch.cores[0] for patch in tiling.patches], out)
        assert all(len(patch.cores[0]) for patch in tiling.patches)
        assert len(tiling.patches) >= min(2, splits, out)
        reason = _prove(chain, rows, tiling)
        assert reason is None, (reason, tiling)
        assert _wrong(chain, rows, tiling) is None, tiling
        seen["right"] += 1
        seen["trimmed"] += tiling.trim > 0
        seen["chains"] += len(chain) > 1

    assert seen["right"] > 0.6 * examples, seen
    assert seen["trimmed"] > 0.2 * examples, seen
    assert seen["chains"] > 0.2 * examples, seen


@examples(500, 2500)
def test_right_rows_of_a_window(examples: int) -> None:
    """`walk` calls exactly the valid rows valid: one operator without holes in its kernel."""
    seen: Counter[str] = Counter()

    @_for_all(examples, _tiled, st.integers(1, 60), st.integers(0, 12), st.integers(0, 12))
    def check(chain: tuple[RowMap, ...], rows: int, shift: int, trim: int) -> None:
        if _rows_out(chain, rows) < 1 or shift > trim:
            return
        window = _window(chain, rows, shift, trim)
        walked = _walk(chain, rows, shift, trim)
        if window is None:
            assert isinstance(walked, str)
            return
        if isinstance(walked, str):
            seen["refused"] += 1
            return
        whole = _evaluate(chain, _image(rows), first=True, last=True)
        down = shift * _steps(chain)[1]
        for row in range(walked.begin, walked.end):
            assert window[row] == whole[row + down]
        right = [row for row, number in enumerate(window) if not math.isnan(number)]
        gaps = any(isinstance(op, Transposed) and op.reach < op.stride for op in chain)
        # Rows that no kernel tap reaches are right wherever they are; walk need not find them all.
        if not gaps and len(chain) == 1 and right:
            assert right == list(range(walked.begin, walked.end)), (walked, right)
            seen["exact"] += 1
        seen["sound"] += 1

    assert seen["sound"] > 0.2 * examples, seen
    assert seen["exact"] > 0.08 * examples, seen


@examples(250, 800)
def test_no_larger_trim_would_do(examples: int) -> None:
    """The trim is the largest that the asked number of patches can cover the output with.

    Greedy is best here: each next window lies as far down as the valid rows above it allow.
    """
    seen: Counter[str] = Counter()

    @_for_all(examples, _tiled, st.integers(10, 80), st.integers(2, 6))
    def check(chain: tuple[RowMap, ...], rows: int, splits: int) -> None:
        out = _rows_out(chain, rows)
        found = _extent(chain, rows) if out else None
        if found is None:
            return
        tiling = tile([found], splits)
        if len(tiling.patches) < splits or tiling.trim == 0:
            return
        trim, (_, step) = tiling.trim + 1, _steps(chain)
        covered, count, shift = 0, 0, 0
        while covered < out and count < splits:
            rights = {at: _walk(chain, rows, at, trim) for at in range(shift, trim + 1)}
            reach = {
                at: right.shifted(at * step)
                for at, right in rights.items()
                if not isinstance(right, str) and len(right)
            }
            best = max(
                (rows.end for rows in reach.values() if rows.begin <= covered < rows.end),
                default=None,
            )
            if best is None:
                break
            covered, count = best, count + 1
        assert covered < out
        seen["compared"] += 1

    assert seen["compared"] > 0.25 * examples


def _mutate(draw: st.DrawFn, tiling: Tiling) -> Tiling:
    patches = list(tiling.patches)
    trim = tiling.trim
    match draw(st.sampled_from(("seam", "trim", "shift", "drop", "hole"))):
        case "seam" if len(patches) > 1:
            k = draw(st.integers(1, len(patches) - 1))
            seam = patches[k].cores[0].begin + draw(st.integers(-6, 6))
            above = Rows(patches[k - 1].cores[0].begin, seam)
            patches[k - 1] = replace(patches[k - 1], cores=(above,))
            patches[k] = replace(patches[k], cores=(Rows(seam, patches[k].cores[0].end),))
        case "trim":
            trim += draw(st.integers(1, 3))
            if draw(st.booleans()):  # the last window still ends where the tensor does
                patches[-1] = replace(patches[-1], shift=trim)
        case "shift":
            k = draw(st.integers(0, len(patches) - 1))
            patches[k] = replace(patches[k], shift=patches[k].shift + draw(st.integers(-2, 2)))
        case "drop":
            del patches[draw(st.integers(0, len(patches) - 1))]
        case _:
            k = draw(st.integers(0, len(patches) - 1))
            owned = patches[k].cores[0]
            patches[k] = replace(patches[k], cores=(Rows(owned.begin, owned.end - 1),))
    return Tiling(trim, tuple(patches))


@examples(600, 5000)
def test_wrong_tilings_are_refused(examples: int) -> None:
    """Whatever is broken in a right tiling: if `prove` lets it pass, it is right by brute force."""
    seen: Counter[str] = Counter()

    @_for_all(examples, _tiled, st.integers(2, 60), st.integers(2, 6), st.data())
    def check(chain: tuple[RowMap, ...], rows: int, splits: int, data: st.DataObject) -> None:
        if _rows_out(chain, rows) < 2:
            return
        tiling = tile([_extent(chain, rows)], splits)
        broken = data.draw(st.composite(lambda draw: _mutate(draw, tiling))())
        if broken == tiling:
            return
        reason, wrong = _prove(chain, rows, broken), _wrong(chain, rows, broken)
        if wrong is not None:
            assert reason is not None, (wrong, broken)
            seen[wrong] += 1
        seen["refused" if reason else "still right"] += 1

    assert seen["refused"] > 0.3 * examples, seen
    assert seen["wrong rows"] > 0.1 * examples, seen
    assert seen["still right"] > 0.01 * examples, seen


_CONV = (Sliding(5, 1, 2, 2),)  # two halo rows on either side

# 20 rows in two patches: trim, then shift, begin and end of the core of each, then the reason.
_BY_HAND: dict[str, tuple[int, tuple[int, int, int], tuple[int, int, int], str]] = {
    "right: the upper window is 14 rows, 12 of them right": (6, (0, 0, 12), (6, 12, 20), ""),
    "a seam one row too far down": (6, (0, 0, 13), (6, 13, 20), "not all right"),
    "a seam one row too far up": (6, (0, 0, 7), (6, 7, 20), "not all right"),
    "windows one row too short for any seam": (9, (0, 0, 10), (9, 10, 20), "not all right"),
    "a row in no core": (6, (0, 0, 11), (6, 12, 20), "exactly once"),
    "a row in two cores": (6, (0, 0, 12), (6, 11, 20), "exactly once"),
    "the last row in no core": (6, (0, 0, 12), (6, 12, 19), "exactly once"),
    "a window below the end": (6, (0, 0, 12), (7, 12, 20), "beyond the tensor"),
    "a window above the start": (6, (-1, 0, 12), (6, 12, 20), "beyond the tensor"),
    "windows of no rows": (20, (0, 0, 12), (20, 12, 20), "no rows"),
}


@pytest.mark.parametrize("case", list(_BY_HAND))
def test_prove_by_hand(case: str) -> None:
    """Five taps, SAME padding: what is right and what is not can be counted by hand."""
    trim, *patches, reason = _BY_HAND[case]
    tiling = Tiling(trim, tuple(Patch(shift, (Rows(*owned),)) for shift, *owned in patches))
    found = _prove(_CONV, 20, tiling)
    assert (found is None) == (not reason)
    assert reason in (found or "")
    assert (_wrong(_CONV, 20, tiling) is None) == (not reason)


def _placed(found: Extent, splits: int) -> Tiling:
    """Return the tiling that the emitted graph would work out, as arrays like the graph does."""
    k = np.arange(splits)
    placed = place_windows(free_steps(found, np.maximum), splits, k)
    begins, ends = core(
        found,
        placed,
        first=(k > 0).astype(np.int64),
        last=np.where(k == splits - 1, 1 << 40, 0),
        minimum=np.minimum,
    )
    # A Slice with its end before its begin takes nothing.
    return Tiling(
        int(placed.trim),
        tuple(
            Patch(int(shift), (Rows(int(begin), max(int(begin), int(end))),))
            for shift, begin, end in zip(
                np.broadcast_to(placed.shifts, (splits,)), begins, ends, strict=True
            )
        ),
    )


@examples(30, 200)
def test_schedule_at_every_height(examples: int) -> None:
    """What is proven for every height is right at each, far beyond those that are walked."""
    seen: Counter[str] = Counter()

    @_for_all(examples, st.one_of(_single, _single, _chains), st.integers(2, 7))
    def check(chain: tuple[RowMap, ...], splits: int) -> None:
        reason = proof_any_height.prove_every_height(Network.chain(chain), splits)
        if len(chain) == 1:
            assert reason is None, reason
        if reason is not None:
            seen["refused"] += 1
            return
        for rows in [*range(1, 40), 61, 97, 150]:
            out = _rows_out(chain, rows)
            if out:
                tiling = _placed(_extent(chain, None, rows), splits)
                assert _wrong(chain, rows, tiling) is None, (rows, tiling)
                seen["right"] += 1

    assert seen["right"] > 20 * examples, seen
    assert seen["refused"] < 0.3 * examples, seen


def test_too_small_a_halo_is_found_at_some_height(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the halo counted a little too small, the proof of every height would not pass.

    One row above; a whole step below, since windows end at whole steps and may have rows to spare.
    """
    right = proof.extents
    refused = 0
    chains: list[tuple[RowMap, ...]] = [
        (Sliding(3, 1, 1, 1),),
        (Sliding(7, 2, 3, 3),),
        (Sliding(5, 3, 1, 0),),
        (Sliding(3, 1, same="SAME_LOWER"),),
        (Transposed(4, 2, 1, 1),),
        (Sliding(3, 1, 1, 1), Pointwise(), Transposed(4, 2, 1, 1)),
    ]
    for field in ("top", "tail"):

        def short(
            network: Network, rows: Sequence[int] | None, height: int = 0, field: str = field
        ) -> tuple[Extent, ...]:
            (found,) = right(network, rows, height)
            less = found.step if field == "tail" else 1
            return (replace(found, **{field: getattr(found, field) - less}),)

        monkeypatch.setattr(proof_any_height, "extents", short)
        for chain in chains:
            network = Network.chain(chain)
            for splits in (2, 3, 5):
                proof_any_height.prove_every_height.cache_clear()
                proof.window_slack.cache_clear()
                if getattr(right(network, None, 1)[0], field) > 0:
                    assert proof_any_height.prove_every_height(network, splits) is not None, (
                        chain,
                        splits,
                    )
                    refused += 1
    proof.window_slack.cache_clear()
    proof_any_height.prove_every_height.cache_clear()
    assert refused > 25


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
def test_tile_by_hand(rows: int, splits: int) -> None:
    """A pointwise operator has no halo: cores of equal size, windows no taller than they are."""
    tiling = tile([Extent(rows, 1, 0, 0)], splits)
    sizes = [len(patch.cores[0]) for patch in tiling.patches]
    assert len(sizes) == min(rows, splits)
    assert max(sizes) - min(sizes) <= 1
    if rows > 2:
        assert rows - tiling.trim == max(sizes) == -(-rows // len(sizes))


def test_rows() -> None:
    """An interval of no rows has length 0, whichever way round its ends are."""
    assert len(Rows(2, 5)) == 3
    assert len(Rows(5, 2)) == 0
    assert Rows(2, 5).shifted(-2) == Rows(0, 3)
    assert not covers([Rows(0, 3), Rows(3, 2), Rows(2, 5)], 5)
    assert covers([Rows(0, 3), Rows(3, 3), Rows(3, 5)], 5)
