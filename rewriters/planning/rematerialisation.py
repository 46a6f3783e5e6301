"""Nodes run a second time, so that what they make need not be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewriters.planning.schedule import Schedule

__all__ = ["Rematerialised", "ways_to_rematerialise"]


HOLDERS = 4

# A tensor so many times smaller than the one made again from it is kept instead.
SMALLER = 4


@dataclass(frozen=True, slots=True)
class Rematerialised:
    """How a tensor is made again.

    Attributes:
        use: Place of the user that it is made again for.
        keeps: Much smaller tensors on the way to it are kept; else it is made from what is alive.
    """

    use: int
    keeps: bool


def ways_to_rematerialise(
    laid: Schedule, chosen: Mapping[int, Rematerialised], held: Sequence[tuple[int, int]]
) -> Iterator[tuple[dict[int, Rematerialised], list[tuple[int, bool]]]]:
    """Yield ways to make one tensor more again, with the order of the nodes.

    Args:
        laid: The order before any is repeated.
        chosen: Tensors that are made again already.
        held: Further ones and their users.
    """
    numbers = [number for number in dict.fromkeys(n for n, _ in held) if number not in chosen]
    seen: list[list[tuple[int, bool]]] = []
    for number, use in held:
        for keeps in (True, False) if number in numbers[:HOLDERS] else ():
            wanted = {**chosen, number: Rematerialised(use, keeps)}
            again = _repeated(laid, wanted)
            if again is not None and again not in seen:
                seen.append(again)
                yield wanted, again


def _repeated(
    laid: Schedule, chosen: Mapping[int, Rematerialised]
) -> list[tuple[int, bool]] | None:
    """Return an order in which tensors are made again before a user, None if there is none.

    The nodes repeated go back to what is alive at that place anyway, or kept for it.

    Args:
        laid: The order before any is repeated.
        chosen: Per tensor how.
    """
    before: dict[int, list[int]] = {}
    for number, way in chosen.items():
        use = way.use
        small = laid.tensors[number].bytes // SMALLER if way.keeps else -1
        needed, pending = set(), [number]
        while pending:
            at = pending.pop()
            made = laid.tensors[at].made_at
            tensor = laid.tensors[at]
            there = at not in chosen and (tensor.last_use >= use or tensor.bytes <= small)
            if made < 0 or there or made in needed:
                continue
            if laid.nodes[made].link is None:
                return None
            needed.add(made)
            pending.extend(laid.nodes[made].carried)
        before[use] = sorted({*before.get(use, ()), *needed})
    order = []
    for place, node in enumerate(laid.nodes):
        order += [(laid.nodes[at].position, True) for at in before.get(place, ())]
        order.append((node.position, False))
    return order
