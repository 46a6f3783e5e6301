"""Nodes run a second time, so that what they make need not be kept.

A tensor that is read early and late holds the peak between. It may be rematerialised instead: the
nodes that make it, repeated right before a later user, become part of the region there, and all
users from there on read what is made again.

    kept               conv -> x -> ... peak ... -> add(x)
    rematerialised     conv -> x -> ... peak ... -> conv -> x' -> add(x')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from patchconv_deploy.rewriters.planning.schedule import Entry, Schedule
from patchconv_deploy.rewriters.planning.stage_graph import StageGraph
from patchconv_deploy.rewriters.planning.stages import Plan

__all__ = [
    "PeakHolder",
    "Rematerialisation",
    "across_barriers",
    "overhead_without",
    "peak_holders",
    "rematerialisations",
]


# Tensors that are tried each time.
_MOST_HOLDERS = 4

# Tensors so many times smaller than the largest are rematerialised across barriers, too.
_SHARES = (1, 4, 16)

# A tensor so many times smaller than the one that is rematerialised from it is kept instead.
_SMALLER = 4


@dataclass(frozen=True, slots=True)
class Rematerialisation:
    """How a tensor is rematerialised.

    Attributes:
        use: Place of the user that it is made for a second time.
        keeps: Much smaller tensors on the way to it are kept; else it is made from what is alive.
    """

    use: int
    keeps: bool


class PeakHolder(NamedTuple):
    """A tensor that holds a plan's peak, and the place of a user to rematerialise it for."""

    tensor: int
    use: int


def peak_holders(graph: StageGraph, plan: Plan, base: Schedule) -> list[PeakHolder]:
    """Return tensors that hold a plan's peak, and the users before which to rematerialise them.

    They are alive where the peak is. A user is the first one after the peak that may be in a
    region, what reads the tensor whole (a pool) standing before it; or else the last one.

    Args:
        graph: The stages.
        plan: A plan made of them.
        base: The schedule before any node was repeated.

    Returns:
        Tensors and users of ``base``, the largest tensor first.
    """
    schedule = graph.schedule
    worst = _peak_place(graph, plan)
    if worst is None:
        return []
    numbers = {tensor.name: number for number, tensor in enumerate(base.tensors)}
    places = {node.position: place for place, node in enumerate(base.nodes)}
    there = places[next(n.position for n in schedule.nodes[worst:] if not n.rematerialised)]
    alive = [
        tensor
        for tensor in schedule.tensors
        if 0 <= tensor.made_at <= worst
        and tensor.last_use >= worst
        and tensor.bytes
        and schedule.nodes[tensor.made_at].link is not None
    ]
    alive.sort(key=lambda tensor: -tensor.bytes)
    found = []
    for number in (numbers[tensor.name] for tensor in alive if tensor.name in numbers):
        made = base.tensors[number].made_at
        users = [
            place
            for place in base.users.get(number, ())
            if place >= max(there, made + 2) and base.nodes[place].link is not None
        ]
        found += [PeakHolder(number, use) for use in dict.fromkeys((*users[:1], *users[-1:]))]
    return found


def _peak_place(graph: StageGraph, plan: Plan) -> int | None:
    """Return the place where most is alive, of a region the first; None without nodes."""
    peaks = dict(enumerate(graph.live_bytes))
    for begin, end, splits in plan.spans:
        peaks.update(dict.fromkeys(range(begin, end), 0))
        peaks[begin] = graph.regions.peak(begin, end, splits)
    return max(peaks, key=lambda place: peaks[place], default=None)


def rematerialisations(
    base: Schedule, chosen: Mapping[int, Rematerialisation], holders: Sequence[PeakHolder]
) -> Iterator[tuple[dict[int, Rematerialisation], list[Entry]]]:
    """Yield ways to rematerialise one tensor more, with the order of the nodes.

    Args:
        base: The schedule before any node is repeated.
        chosen: Tensors that are rematerialised already.
        holders: Further ones and their users.
    """
    numbers = [n for n in dict.fromkeys(holder.tensor for holder in holders) if n not in chosen]
    seen: list[list[Entry]] = []
    for number, use in holders:
        for keeps in (True, False) if number in numbers[:_MOST_HOLDERS] else ():
            wanted = {**chosen, number: Rematerialisation(use, keeps)}
            order = _order(base, wanted)
            if order is not None and order not in seen:
                seen.append(order)
                yield wanted, order


def across_barriers(base: Schedule) -> Iterator[tuple[dict[int, Rematerialisation], list[Entry]]]:
    """Yield passes: what is read before and after a barrier is made again behind it, not kept.

    A statistic reads a tensor whole and what is normalised reads it again, when the statistic is
    there. Either it is kept in between, or the layers that make it run a second time. Of a chain
    of such tensors every other one is kept, so that no layer runs more than twice. First the large
    ones alone, then smaller ones too.

    Args:
        base: The schedule before any node is repeated.

    Yields:
        Tensors that are rematerialised, and the order of the nodes.
    """
    barriers = list(accumulate(int(node.link is None) for node in base.nodes))
    holders = dict[int, int]()
    for number, tensor in enumerate(base.tensors):
        if tensor.made_at < 0 or not tensor.bytes or base.nodes[tensor.made_at].link is None:
            continue
        users = base.users.get(number, ())
        later = [at for at in users if barriers[at] > barriers[users[0]]]
        # What is read behind a further barrier as well would have to be kept for that.
        if later and barriers[later[0]] == barriers[users[-1]]:
            holders[number] = later[0]
    largest = max((base.tensors[number].bytes for number in holders), default=0)
    seen: list[list[Entry]] = []
    for share in _SHARES:
        chosen = dict[int, Rematerialisation]()
        for number, use in holders.items():
            if base.tensors[number].bytes * share < largest:
                continue
            made_of = _made_of(base, number, use, chosen)
            if made_of is not None:
                chosen[number] = Rematerialisation(use, keeps=False)
        order = _order(base, chosen) if chosen else None
        if order is not None and order not in seen:
            seen.append(order)
            yield chosen, order


def _made_of(
    base: Schedule, number: int, use: int, chosen: Mapping[int, Rematerialisation]
) -> set[int] | None:
    """Return the nodes that make a tensor of what is alive at a place; None if that is too far.

    Args:
        base: The schedule before any node is repeated.
        number: The tensor.
        use: The place.
        chosen: Tensors that are not there any more, as they are rematerialised themselves.
    """
    needed, pending = set[int](), [number]
    while pending:
        at = pending.pop()
        tensor = base.tensors[at]
        if tensor.made_at < 0 or tensor.made_at in needed:
            continue
        if at != number and at in chosen:
            return None
        if at != number and tensor.last_use >= use:
            continue
        if base.nodes[tensor.made_at].link is None:
            return None
        needed.add(tensor.made_at)
        pending.extend(base.nodes[tensor.made_at].carried)
    return needed


def _order(base: Schedule, chosen: Mapping[int, Rematerialisation]) -> list[Entry] | None:
    """Return an order in which tensors are rematerialised before a user, None if there is none.

    The nodes repeated go back to what is alive at that place anyway, or kept for it.

    Args:
        base: The schedule before any node is repeated.
        chosen: Per tensor how.
    """
    before: dict[int, list[int]] = {}
    for number, way in chosen.items():
        use = way.use
        small = base.tensors[number].bytes // _SMALLER if way.keeps else -1
        needed, pending = set[int](), [number]
        while pending:
            at = pending.pop()
            tensor = base.tensors[at]
            made = tensor.made_at
            there = at not in chosen and (tensor.last_use >= use or tensor.bytes <= small)
            if made < 0 or there or made in needed:
                continue
            if base.nodes[made].link is None:
                return None
            needed.add(made)
            pending.extend(base.nodes[made].carried)
        before[use] = sorted({*before.get(use, ()), *needed})
    order = []
    for place, node in enumerate(base.nodes):
        order += [
            Entry(base.nodes[at].position, rematerialised=True) for at in before.get(place, ())
        ]
        order.append(Entry(node.position))
    return order


def overhead_without(
    base: Schedule,
    chosen: Mapping[int, Rematerialisation],
    engine_overhead: Mapping[int, int],
) -> dict[int, int]:
    """Return an engine's overhead without the copies of tensors that are rematerialised.

    A copy in another layout is for the users, and those are in a region now.

    Args:
        base: The schedule before any node is repeated.
        chosen: Per tensor how.
        engine_overhead: As of `planning.stage_graph.stage_graph`.
    """
    left = dict(engine_overhead)
    for number, way in chosen.items():
        tensor = base.tensors[number]
        for node in base.nodes[tensor.made_at : way.use]:
            if number in (*node.makes, *node.reads) and node.position in left:
                left[node.position] = max(0, left[node.position] - tensor.bytes)
    return left
