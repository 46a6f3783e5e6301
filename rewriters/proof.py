"""Prove a tiling before it is emitted, with integers alone.

A region is, here, a `Network`: tensors by number and, in an order that computes them, the row maps
between them. `walk` carries the interval of right rows through one patch, operator by operator;
`prove` asks it for every kind of patch and lets nothing pass that is not right:

1. all operands of an operator have the same rows and advance alike, and each operator's output is
   ``H_out - m*r_out`` rows high in the window (shapes agree),
2. each operator needs the same rows in the window as in the whole, shifted by the patch,
3. each core lies inside the right rows, and the cores cover every output exactly once.

The same with windows that shrink (`rewriters.shrinking`): there every operator is the one that has
dropped some of its padding, and a tensor has less rows at interior edges.

Walking assumes the worst: a row that reads the padding at an interior edge of a window is wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import NamedTuple

from rewriters.geometry import (
    Extent,
    Patch,
    Rows,
    Tiling,
    core,
    covers,
    free_steps,
    schedule,
)
from rewriters.rowmaps import RowMap, dropped

__all__ = [
    "Link",
    "Network",
    "Shrinking",
    "effort",
    "extents",
    "first_height",
    "heights",
    "padding_dropped",
    "prove",
    "prove_every_height",
    "right_rows",
    "steps",
    "walk",
    "window_slack",
]

_FAR = 1 << 62
_ONE_ROW = "it joins a tensor of one row with a taller one"
# Steps of a window in which no kernel of practical size sees both edges at once.
_TALL = 1 << 22


class Link(NamedTuple):
    """One operator: the tensors it reads along the tiled axis, and those it makes.

    Attributes:
        row_map: Its rows.
        reads: Tensors by number.
        makes: Tensors by number.
        room: Rows of padding it may go without at an interior edge, above and below.
    """

    row_map: RowMap
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    room: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Network:
    """The row maps of a region, first to last.

    Attributes:
        tensors: Number of tensors; they are numbered from 0.
        links: Operators, each after those that make what it reads.
        inputs: Tensors that no operator makes.
        outputs: Tensors that are wanted.
    """

    tensors: int
    links: tuple[Link, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def chain(cls, row_maps: Sequence[RowMap]) -> Network:
        """Return operators one after the other: tensor 0 is the input, the last the output."""
        links = tuple(Link(row_map, (k,), (k + 1,)) for k, row_map in enumerate(row_maps))
        return cls(len(links) + 1, links, (0,), (len(links),))


@dataclass(frozen=True, slots=True)
class Shrinking:
    """Rows that every tensor, by number, goes without at an interior edge of a window.

    Attributes:
        top: At an upper edge.
        bottom: At a lower edge.
    """

    top: tuple[int, ...]
    bottom: tuple[int, ...]

    def at(self, patch_shift: int, trim: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return the rows that a patch goes without: none where its edge is the whole's."""
        none = (0,) * len(self.top)
        return (self.top if patch_shift > 0 else none), (
            self.bottom if patch_shift < trim else none
        )


def padding_dropped(
    link: Link, top: Sequence[int], bottom: Sequence[int]
) -> tuple[int, int] | None:
    """Return the padding an operator drops, above and below; None if it cannot be.

    Args:
        link: The operator.
        top: Rows that every tensor goes without above.
        bottom: The same below.
    """
    row_map, source, target = link.row_map, link.reads[0], link.makes[0]
    above = row_map.step_in * top[target] - row_map.step_out * top[source]
    below = row_map.step_in * bottom[target] - row_map.step_out * bottom[source]
    if not (0 <= above <= link.room[0] and 0 <= below <= link.room[1]):
        return None
    return above, below


def steps(network: Network) -> tuple[int, ...] | str:
    """Return whole rows per step for every tensor, as few as possible; or why there are none."""
    touching: list[list[Link]] = [[] for _ in range(network.tensors)]
    for link in network.links:
        for tensor in {*link.reads, *link.makes}:
            touching[tensor].append(link)
    ratios: dict[int, Fraction] = {0: Fraction(1)}
    queue = deque([0])
    # A link fixes all its tensors at once: walked again from each of them, a join of n tensors
    # would take n * n steps.
    walked: set[int] = set()
    while queue:
        tensor = queue.popleft()
        for link in touching[tensor]:
            if id(link) in walked:
                continue
            walked.add(id(link))
            factor = Fraction(link.row_map.step_out, link.row_map.step_in)
            here = ratios[tensor] if tensor in link.reads else ratios[tensor] / factor
            for others, ratio in ((link.reads, here), (link.makes, here * factor)):
                for other in others:
                    if other not in ratios:
                        ratios[other] = ratio
                        queue.append(other)
                    elif ratios[other] != ratio:
                        return "it joins tensors whose rows advance differently"
    if len(ratios) < network.tensors:
        return "it is not connected"
    whole = lcm(*(ratio.denominator for ratio in ratios.values()))
    rows = [int(ratios[tensor] * whole) for tensor in range(network.tensors)]
    least = gcd(*rows)
    return tuple(row // least for row in rows)


def heights(network: Network, rows: Sequence[int]) -> tuple[int, ...] | str:
    """Return the rows of every tensor, given those of the inputs; or why they do not fit."""
    found = [0] * network.tensors
    for tensor, count in zip(network.inputs, rows, strict=True):
        found[tensor] = count
    misfit = ""
    for link in network.links:
        before = {found[tensor] for tensor in link.reads}
        if len(before) > 1:
            misfit = misfit or (_ONE_ROW if 1 in before else "it joins tensors of different height")
        after = link.row_map.rows_out(found[link.reads[0]])
        for tensor in link.makes:
            found[tensor] = after
    return misfit or tuple(found)


def right_rows(
    row_map: RowMap, right: Rows, rows: int, count: int, *, first: bool, last: bool
) -> Rows:
    """Return the output rows that need right input rows alone.

    Args:
        row_map: The operator.
        right: Right rows of its input.
        rows: All rows of its input, in the window.
        count: All rows of its output, in the window.
        first: The window begins where the whole does.
        last: It ends where the whole does.
    """
    margin = row_map.margin
    if not len(right):
        return Rows(0, 0)
    begin = end = 0
    low = needed = row_map.needs(Rows(0, 1), rows)
    if not (first and right.begin == 0 and right.end >= margin):
        # Row maps are affine but for their phase: start next to the answer.
        begin = (right.begin - low.begin) * row_map.step_out // row_map.step_in
        begin = min(max(begin, 0), count)
        while begin > 0 and row_map.needs(Rows(begin - 1, begin), rows).begin >= right.begin:
            begin -= 1
        while begin < count and row_map.needs(Rows(begin, begin + 1), rows).begin < right.begin:
            begin += 1
    if last and right.end == rows and right.begin <= rows - margin:
        return Rows(begin, max(begin, count))
    end = (right.end - needed.end) * row_map.step_out // row_map.step_in + 1
    end = min(max(end, 0), count)
    while end > 0 and row_map.needs(Rows(end - 1, end), rows).end > right.end:
        end -= 1
    while end < count and row_map.needs(Rows(end, end + 1), rows).end <= right.end:
        end += 1
    return Rows(begin, max(begin, end))


def walk(
    network: Network,
    step: Sequence[int],
    whole: Sequence[int],
    *,
    shift: int,
    trim: int,
    shrinking: Shrinking | None = None,
) -> list[Rows] | str:
    """Carry the right rows of one patch through the network.

    Args:
        network: The region.
        step: Its `steps`.
        whole: Its `heights`.
        shift: Steps the window starts down.
        trim: Steps the window is shorter than the whole.
        shrinking: Rows that tensors go without at interior edges.

    Returns:
        The right rows of every tensor, counted in what the patch has of it; or why there are none.
    """
    top: Sequence[int] = (0,) * network.tensors
    bottom = top
    if shrinking is not None:
        top, bottom = shrinking.at(shift, trim)
    begins = [shift * r + above for r, above in zip(step, top, strict=True)]
    local = [
        rows - trim * r - above - below
        for rows, r, above, below in zip(whole, step, top, bottom, strict=True)
    ]
    if min(local) < 1:
        return "a window has no rows"
    right = [Rows(0, rows) for rows in local]
    first, last = shift == 0, shift == trim
    for link in network.links:
        row_map, source, target = link.row_map, link.reads[0], link.makes[0]
        if shrinking is not None:
            less = padding_dropped(link, top, bottom)
            if less is None or len({(top[tensor], bottom[tensor]) for tensor in link.reads}) > 1:
                return "its operands do not shrink alike"
            row_map = dropped(row_map, *less)
        rows, count = local[source], local[target]
        if row_map.rows_out(rows) != count:
            return f"a window is {row_map.rows_out(rows)} rows high where {count} fit"
        if trim and rows < row_map.margin:
            return "a window has fewer rows than its padding is made of"
        read = Rows(
            max(right[tensor].begin for tensor in link.reads),
            min(right[tensor].end for tensor in link.reads),
        )
        made = right_rows(row_map, read, rows, count, first=first, last=last)
        for at in {made.begin, made.end - 1} if len(made) else ():
            here = row_map.needs(Rows(at, at + 1), rows).shifted(begins[source])
            there = Rows(at, at + 1).shifted(begins[target])
            if here != link.row_map.needs(there, whole[source]):
                return "a window's rows are not the whole's rows, shifted"
        for tensor in link.makes:
            right[tensor] = made
    return right


def extents(network: Network, rows: Sequence[int] | None, height: int = 0) -> tuple[Extent, ...]:
    """Return the extent of each output: its rows, rows per step, wrong rows of interior windows.

    Wrong rows are counted in a window tall enough that its two edges do not meet. They depend on
    the height's remainder by the step alone; where the height is unknown every remainder counts.

    Args:
        network: The region; its steps and heights must fit.
        rows: Rows of each whole input; None where unknown, then the region has one input.
        height: Stands in for the input's rows in the result's ``rows`` where those are unknown.
    """
    step = _fitting(steps(network))
    if rows is None:
        given: list[tuple[int, ...]] = [(p,) for p in range(step[network.inputs[0]])]
    else:
        given = [tuple(rows)]
    worst = [(-1, -1)] * len(network.outputs)
    for sizes in given:
        tall = [
            size + (_TALL + 2) * step[tensor]
            for size, tensor in zip(sizes, network.inputs, strict=True)
        ]
        whole = heights(network, tall)
        if isinstance(whole, str) and rows is None:
            # The model itself does not run at such heights.
            continue
        whole = _fitting(whole)
        # Two steps shorter than the whole and one down: an interior window.
        right = walk(network, step, whole, shift=1, trim=2)
        for k, tensor in enumerate(network.outputs):
            if isinstance(right, str) or not len(right[tensor]):
                worst[k] = (_FAR, _FAR)
                continue
            tail = whole[tensor] - 2 * step[tensor] - right[tensor].end
            worst[k] = (max(worst[k][0], right[tensor].begin), max(worst[k][1], tail))
    if min(worst) < (0, 0):
        raise ValueError("there is no height at which its tensors fit")
    if rows is None:
        fitting = (heights(network, (height + k,)) for k in range(len(given) + 1))
        whole = next((found for found in fitting if not isinstance(found, str)), "nothing fits")
    else:
        whole = heights(network, rows)
    whole = _fitting(whole)
    return tuple(
        Extent(whole[tensor], step[tensor], top, tail)
        for tensor, (top, tail) in zip(network.outputs, worst, strict=True)
    )


def _fitting(found: tuple[int, ...] | str) -> tuple[int, ...]:
    if isinstance(found, str):
        raise ValueError(found)
    return found


def prove(
    network: Network, rows: Sequence[int], tiling: Tiling, shrinking: Shrinking | None = None
) -> str | None:
    """Prove a tiling of a region of known height.

    Args:
        network: The region.
        rows: Rows of each whole input.
        tiling: The patches; empty cores are allowed.
        shrinking: Rows that tensors go without at interior edges.

    Returns:
        None if every core is right, else the reason it is not.
    """
    step, whole = steps(network), heights(network, rows)
    if isinstance(step, str):
        return step
    if isinstance(whole, str):
        return whole
    for k, tensor in enumerate(network.outputs):
        if not covers([patch.cores[k] for patch in tiling.patches], whole[tensor]):
            return "the cores do not cover the output exactly once"
    # A window's right rows, counted in the window, depend on which of its edges are true borders.
    walked: dict[tuple[bool, bool], list[Rows] | str] = {}
    for patch in tiling.patches:
        if not 0 <= patch.shift <= tiling.trim:
            return "a window reaches beyond the tensor"
        kind = (patch.shift == 0, patch.shift == tiling.trim)
        if kind not in walked:
            walked[kind] = walk(
                network, step, whole, shift=patch.shift, trim=tiling.trim, shrinking=shrinking
            )
        found = walked[kind]
        if isinstance(found, str):
            return found
        for tensor, owned in zip(network.outputs, patch.cores, strict=True):
            above = shrinking.top[tensor] if shrinking is not None and patch.shift else 0
            right = found[tensor].shifted(patch.shift * step[tensor] + above)
            if len(owned) and not (right.begin <= owned.begin and owned.end <= right.end):
                return (
                    f"rows {owned.begin}..{owned.end} of a patch are not all right "
                    f"(right: {right.begin}..{right.end})"
                )
    return None


@lru_cache(maxsize=4096)
def prove_every_height(network: Network, splits: int) -> str | None:
    """Prove the run-time schedule of a region of one input whose height is unknown.

    That neighbours are never too far apart is shown for all heights in `rewriters.geometry`, and
    no wrong row depends on the height but through its remainder by the step (`extents`). What is
    left to chance is small images, where the two edges of a window meet, and this code: so every
    height is proven from one row up to where all windows are interior, every remainder has come
    round, and the free steps have passed every remainder by ``splits`` twice.

    Returns:
        None if every core is right at every height, else the first height that is not, and why.
    """
    step = steps(network)
    if isinstance(step, str):
        return step
    try:
        worst = extents(network, None, first_height(network))
    except ValueError as error:
        return str(error)
    if any(extent.top >= _FAR for extent in worst):
        return "its windows leave no right row"
    slack = window_slack(network)
    source = network.inputs[0]
    for rows in _heights(network, worst, splits):
        whole = heights(network, (rows,))
        if whole == _ONE_ROW:
            return f"at {rows} rows: {whole}"
        if isinstance(whole, str):
            # Not even the model as it is runs at this height.
            continue
        here = [
            Extent(whole[tensor], extent.step, extent.top, extent.tail)
            for tensor, extent in zip(network.outputs, worst, strict=True)
        ]
        free = min(free_steps(extent, max) for extent in here)
        patches = []
        for k in range(splits):
            placed = schedule(free, splits, k)
            cores = []
            for extent in here:
                last = extent.rows if k == splits - 1 else 0
                begin, end = core(extent, placed, first=int(k > 0), last=last, minimum=min)
                cores.append(Rows(begin, max(begin, end)))
            patches.append(Patch(placed.shifts, tuple(cores)))
        placed = schedule(free, splits, 0)
        if placed.stride * step[source] + slack < rows - placed.trim * step[source]:
            return f"at {rows} rows: a window is taller than it is declared to be"
        reason = prove(network, (rows,), Tiling(placed.trim, tuple(patches)))
        if reason is not None:
            return f"at {rows} rows: {reason}"
    return None


def effort(network: Network, splits: int) -> int:
    """Return about how many operators `prove_every_height` would look at."""
    step = steps(network)
    if isinstance(step, str):
        return 0
    rounds = 2 * splits + 2 * _reach(network) // step[network.inputs[0]] + 2
    return len(network.links) * splits * step[network.inputs[0]] * rounds


@lru_cache(maxsize=4096)
def window_slack(network: Network) -> int:
    """Return the most input rows a window has beyond its patch's own steps, at any height.

    A window has ``H - trim*r`` rows, which are ``stride*r`` (see `geometry.Schedule`) and
    ``H - free*r``. The latter depends on the height's remainder by the step alone once a step is
    free; this is its maximum, so ``stride*r + window_slack`` bounds a window from above.
    """
    step = _fitting(steps(network))
    worst = extents(network, None, first_height(network))
    most = 0
    for rows in _heights(network, worst, 2):
        whole = heights(network, (rows,))
        if isinstance(whole, str):
            continue
        free = min(
            max(0, whole[tensor] - extent.top - extent.tail) // extent.step
            for tensor, extent in zip(network.outputs, worst, strict=True)
        )
        most = max(most, rows - free * step[network.inputs[0]])
    return most


def first_height(network: Network) -> int:
    """Return the first height that gives every tensor a row; fewer rows are no input."""
    low, high = 0, 1
    while not _has_rows(network, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _has_rows(network, middle) else (middle, high)
    return high


def _has_rows(network: Network, rows: int) -> bool:
    # Not by `heights`: where tensors fit each other does not grow with the height.
    found = [0] * network.tensors
    found[network.inputs[0]] = rows
    for link in network.links:
        for tensor in link.makes:
            found[tensor] = link.row_map.rows_out(min(found[n] for n in link.reads))
    return rows > _TALL or min(found) >= 1


def _heights(network: Network, worst: Sequence[Extent], splits: int) -> Iterator[int]:
    """Yield every height at which something new can happen; see `prove_every_height`."""
    step = _fitting(steps(network))
    rounds = 2 * splits + 2 + max((e.top + e.tail) // e.step for e in worst)
    first = first_height(network)
    yield from range(first, first + step[network.inputs[0]] * rounds + _reach(network))


def _reach(network: Network) -> int:
    """Return about how many input rows an output row needs, by the sum of all operators."""
    step = _fitting(steps(network))
    source = step[network.inputs[0]]
    total = 0
    for link in network.links:
        needs = link.row_map.needs(Rows(0, 1), _TALL)
        total += -(-len(needs) * source // step[link.reads[0]])
    return max(1, total)
