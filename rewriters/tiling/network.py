"""A region as integers: how its tensors' rows depend on each other.

A row of a window is *valid* if it equals the whole's row; what is made of the padding at an
interior edge is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm
from typing import NamedTuple

from patchconv_deploy.rewriters.tiling.patches import Rows
from patchconv_deploy.rewriters.tiling.row_maps import (
    Ending,
    Fitted,
    Pointwise,
    RowMap,
    Sliding,
    dropped,
)
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = [
    "FAR",
    "ONE_ROW",
    "TALL",
    "Link",
    "Network",
    "Shrinking",
    "contracted",
    "first_height",
    "heights",
    "heights_of_one_row",
    "padding_dropped",
    "steps",
    "tallest_first",
    "valid_rows",
    "walk",
]


FAR = 1 << 62

ONE_ROW = "it joins a tensor of one row with a taller one"

# Steps of a window in which no kernel of practical size sees both edges at once.
TALL = 1 << 22


class Link(NamedTuple):
    """One operator: the tensors it reads along the tiled axis, and those it makes.

    Attributes:
        row_map: Its rows.
        reads: Tensors by number.
        makes: Tensors by number.
        removable_padding: Rows of padding it may go without at an interior edge, above and below.
    """

    row_map: RowMap
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    removable_padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Network:
    """The row maps of a region, first to last.

    Attributes:
        tensors: Number of tensors; they are numbered from 0.
        links: Operators, each after those that make what it reads.
        inputs: Tensors that no operator makes.
        outputs: Tensors that are wanted.
        sizes: Rows of each input where they are known when the model runs alone and there are
            several: functions of the model's own height. One input's are its own.
        least: The least height that it is run at.
        most: The largest one, None for any.
    """

    tensors: int
    links: tuple[Link, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sizes: tuple[Size, ...] = ()
    least: int = 1
    most: int | None = None

    def within(self, heights: range) -> range:
        """Return the heights to prove in place of some that begin with the first one there is.

        From one on they repeat: as many, from the least that it is run at, have all that differ.
        """
        begin = max(heights.start, self.least)
        end = begin + len(heights)
        return range(begin, end if self.most is None else min(end, self.most + 1))

    def rows_at(self, height: int) -> tuple[int, ...]:
        """Return the rows of each input at a height of the model, or of its one input."""
        return tuple(size.at(height) for size in self.sizes) if self.sizes else (height,)

    @property
    def fits(self) -> int:
        """Heights of the model after which what is fitted to it repeats; 0 where nothing is."""
        maps = [link.row_map for link in self.links if isinstance(link.row_map, Fitted)]
        return lcm(*(lcm(each.begin.period, each.end.period) for each in maps)) if maps else 0

    def at(self, height: int) -> Network:
        """Return it at a height of the model: what is fitted to that is padded by numbers."""
        period = self.fits
        return _at(self, height % period) if period else self

    def advance(self, step: Sequence[int]) -> tuple[int, int] | None:
        """Return after which height all inputs are whole steps taller, and how many steps.

        Args:
            step: Its `steps`.

        Returns:
            None where they do not advance alike.
        """
        if not self.sizes:
            return step[self.inputs[0]], 1
        rows = [step[number] for number in self.inputs]
        pairs = list(zip(self.sizes, rows, strict=True))
        if any(size.slope < 1 for size in self.sizes):
            return None
        height = lcm(*(size.period for size in self.sizes), self.fits or 1)
        height *= lcm(*(r // gcd(r, size.slope * (height // size.period)) for size, r in pairs))
        found = {size.slope * (height // size.period) // r for size, r in pairs}
        return (height, found.pop()) if len(found) == 1 else None

    @classmethod
    def chain(cls, row_maps: Sequence[RowMap]) -> Network:
        """Return operators one after the other: tensor 0 is the input, the last the output."""
        links = tuple(Link(row_map, (k,), (k + 1,)) for k, row_map in enumerate(row_maps))
        return cls(len(links) + 1, links, (0,), (len(links),))


@lru_cache(maxsize=4096)
def _at(network: Network, height: int) -> Network:
    links = [
        link._replace(row_map=link.row_map.at(height)) if isinstance(link.row_map, Fitted) else link
        for link in network.links
    ]
    return replace(network, links=tuple(links))


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
    if not (0 <= above <= link.removable_padding[0] and 0 <= below <= link.removable_padding[1]):
        return None
    return above, below


def _is_each_row(row_map: RowMap) -> bool:
    """Tell whether each output row is made of the same input row alone."""
    if isinstance(row_map, Sliding):
        plain = row_map.begin == row_map.end == 0 or row_map.same is not None
        return row_map.reach == row_map.stride == 1 and plain and not row_map.margin
    return row_map == Pointwise()


@lru_cache(maxsize=256)
def contracted(network: Network) -> Network:
    """Return the same without operators that make each row from the same row of one tensor.

    Their results have as many rows, and the same ones are valid: a proof learns nothing from them.
    What makes an output stays. Layers between two convolutions are mostly such operators.
    """
    same, kept = list(range(network.tensors)), list[Link]()
    for link in network.links:
        reads = tuple(same[number] for number in link.reads)
        if _is_each_row(link.row_map):
            reads = tuple(dict.fromkeys(reads))
            if len(reads) == 1 and not {*link.makes} & {*network.outputs}:
                for number in link.makes:
                    same[number] = reads[0]
                continue
        kept.append(link._replace(reads=reads))
    left = sorted({*network.inputs, *(number for link in kept for number in link.makes)})
    numbers = {number: at for at, number in enumerate(left)}

    def renumbered(tensors: Sequence[int]) -> tuple[int, ...]:
        return tuple(numbers[number] for number in tensors)

    links = [
        link._replace(reads=renumbered(link.reads), makes=renumbered(link.makes)) for link in kept
    ]
    return replace(
        network,
        tensors=len(left),
        links=tuple(links),
        inputs=renumbered(network.inputs),
        outputs=renumbered(network.outputs),
    )


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
    rows = [row // least for row in rows]
    # What ends by the remainder of its rows ends alike in windows that differ by whole periods.
    times = 1
    for link in network.links:
        if isinstance(link.row_map, Ending):
            every = len(link.row_map.ends)
            times = lcm(times, every // gcd(every, rows[link.reads[0]]))
    return tuple(row * times for row in rows)


def heights(network: Network, rows: Sequence[int]) -> tuple[int, ...] | str:
    """Return the rows of every tensor, given those of the inputs; or why they do not fit.

    Args:
        network: The region, at a height (`Network.at`) where anything in it is fitted to that.
        rows: Rows of each input.
    """
    found = _given(network, rows)
    misfit = ""
    for link in network.links:
        before = {found[tensor] for tensor in link.reads}
        if len(before) > 1:
            misfit = misfit or (ONE_ROW if 1 in before else "it joins tensors of different height")
        after = link.row_map.rows_out(found[link.reads[0]])
        for tensor in link.makes:
            found[tensor] = after
    return misfit or tuple(found)


def _given(network: Network, rows: Sequence[int]) -> list[int]:
    """Return the rows of every tensor, of inputs those that are given, of the others 0."""
    found = [0] * network.tensors
    for tensor, count in zip(network.inputs, rows, strict=True):
        found[tensor] = count
    return found


def heights_of_one_row(network: Network, rows: int) -> tuple[int, ...] | None:
    """Return the rows of every tensor where one row may be joined with a taller tensor.

    It is repeated then, as broadcasting has it. Where operands do not broadcast the model does not
    run at this height.

    Args:
        network: The region.
        rows: Its height (`Network.rows_at`).

    Returns:
        None where the rows of what is joined are not those of the first operand.
    """
    found = _given(network, network.rows_at(rows))
    for link in network.at(rows).links:
        first = found[link.reads[0]]
        if any(found[tensor] > first for tensor in link.reads):
            return None
        for tensor in link.makes:
            found[tensor] = link.row_map.rows_out(first)
    return tuple(found)


# Heights at which a tensor of one row is looked for.
_LOW = 64


def tallest_first(network: Network) -> Network:
    """Return the same with the operand first that is the tallest where another has one row.

    Args:
        network: The region.
    """
    if all(len({*link.reads}) < 2 for link in network.links):
        return network
    links = list(network.links)
    first = first_height(network)
    for rows in range(first, first + _LOW):
        found = _given(network, network.rows_at(rows))
        low = False
        for at, link in enumerate(replace(network, links=tuple(links)).at(rows).links):
            most = max(found[tensor] for tensor in link.reads)
            if found[link.reads[0]] == 1 < most:
                tallest = next(tensor for tensor in link.reads if found[tensor] == most)
                rest = [tensor for tensor in link.reads if tensor != tallest]
                links[at] = links[at]._replace(reads=(tallest, *rest))
            low = low or any(found[tensor] == 1 for tensor in link.reads)
            for tensor in link.makes:
                found[tensor] = link.row_map.rows_out(most)
        if not low:
            break
    return replace(network, links=tuple(links))


def valid_rows(
    row_map: RowMap, valid: Rows, rows: int, count: int, *, first: bool, last: bool
) -> Rows:
    """Return the output rows that need valid input rows alone.

    Args:
        row_map: The operator.
        valid: Valid rows of its input.
        rows: All rows of its input, in the window.
        count: All rows of its output, in the window.
        first: The window begins where the whole does.
        last: It ends where the whole does.
    """
    margin = row_map.margin
    if not len(valid):
        return Rows(0, 0)
    begin = end = 0
    low = needed = row_map.needs(Rows(0, 1), rows)
    if not (first and valid.begin == 0 and valid.end >= margin):
        # Row maps are affine but for their phase: start next to the answer.
        begin = (valid.begin - low.begin) * row_map.step_out // row_map.step_in
        begin = min(max(begin, 0), count)
        while begin > 0 and row_map.needs(Rows(begin - 1, begin), rows).begin >= valid.begin:
            begin -= 1
        while begin < count and row_map.needs(Rows(begin, begin + 1), rows).begin < valid.begin:
            begin += 1
    if last and valid.end == rows and valid.begin <= rows - margin:
        return Rows(begin, max(begin, count))
    end = (valid.end - needed.end) * row_map.step_out // row_map.step_in + 1
    end = min(max(end, 0), count)
    while end > 0 and row_map.needs(Rows(end - 1, end), rows).end > valid.end:
        end -= 1
    while end < count and row_map.needs(Rows(end, end + 1), rows).end <= valid.end:
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
    """Carry the valid rows of one patch through the network.

    Args:
        network: The region.
        step: Its `steps`.
        whole: Its `heights`.
        shift: Steps the window starts down.
        trim: Steps the window is shorter than the whole.
        shrinking: Rows that tensors go without at interior edges.

    Returns:
        The valid rows of every tensor, counted in what the patch has of it; or why there are none.
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
    valid = [Rows(0, rows) for rows in local]
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
            max(valid[tensor].begin for tensor in link.reads),
            min(valid[tensor].end for tensor in link.reads),
        )
        made = valid_rows(row_map, read, rows, count, first=first, last=last)
        for at in {made.begin, made.end - 1} if len(made) else ():
            here = row_map.needs(Rows(at, at + 1), rows).shifted(begins[source])
            there = Rows(at, at + 1).shifted(begins[target])
            if here != link.row_map.needs(there, whole[source]):
                return "a window's rows are not the whole's rows, shifted"
        for tensor in link.makes:
            valid[tensor] = made
    return valid


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
    found = _given(network, network.rows_at(rows))
    for link in network.at(rows).links:
        for tensor in link.makes:
            found[tensor] = link.row_map.rows_out(min(found[n] for n in link.reads))
    return rows > TALL or min(found) >= 1
