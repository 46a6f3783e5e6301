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
from typing import NamedTuple

from rewriters.planning.schedule import Entry, Schedule
from rewriters.planning.stage_graph import StageGraph
from rewriters.planning.stages import Plan

__all__ = [
    "PeakHolder",
    "Rematerialisation",
    "overhead_without",
    "peak_holders",
    "rematerialisations",
]


# Tensors that are tried each time.
_MOST_HOLDERS = 4

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
        peaks[begin] = int(graph.regions.one(begin, end).peak(splits))
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
