"""Every region that a plan may be made of: where they begin and end, and the walks between.

A region lies in a run of row-local nodes. Where a run is long, or its nodes read many tensors,
regions begin and end at some of the places alone, those where little is alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from patchconv_deploy.rewriters.planning.growing import grow
from patchconv_deploy.rewriters.planning.growing_nodes import edges, growing_nodes
from patchconv_deploy.rewriters.planning.schedule import Schedule
from patchconv_deploy.rewriters.planning.stages import CandidateRegion

__all__ = ["CandidateRegions", "candidate_regions"]


# Places where regions of one run of nodes may begin or end; the graph is tried at all of them if
# they are no more than that.
_MOST_CUTS = 56

_FEWEST_CUTS = 8

# Tensors read and made that are walked past for the regions of one order of the nodes, about: where
# each node reads many tensors, regions begin at fewer places.
_WALKED = 1_000_000


class CandidateRegions(NamedTuple):
    """The regions of a schedule.

    Attributes:
        regions: The regions.
        walked: Tensors read and made that were walked past to find them, nodes included.
    """

    regions: list[CandidateRegion]
    walked: int


def candidate_regions(schedule: Schedule, progress: Callable[[int], None]) -> CandidateRegions:
    """Find the regions of a schedule.

    Args:
        schedule: The nodes in order.
        progress: Called with the tensors walked past so far from time to time.
    """
    nodes = growing_nodes(schedule)
    runs = list(_runs(schedule))
    found, walked = list[CandidateRegion](), edges(schedule.nodes)
    inside = sum(edges(schedule.nodes[begin:end]) for begin, end in runs)
    most = max(_FEWEST_CUTS, min(_MOST_CUTS, _WALKED // max(1, inside)))
    for begin, end in runs:
        cuts = sorted({*_cuts(schedule, begin, end, most), *_behind_keys(schedule, begin, end)})
        ends = frozenset(cuts)
        for place in cuts[:-1]:
            progress(walked)
            regions, passed = grow(schedule, nodes, place, end, ends)
            found += regions
            walked += passed
    return CandidateRegions(found, walked)


def _runs(schedule: Schedule) -> Iterator[tuple[int, int]]:
    """Yield maximal runs of row-local nodes."""
    begin = 0
    for place, node in enumerate(schedule.nodes):
        if node.link is None:
            if place > begin:
                yield begin, place
            begin = place + 1
    if begin < len(schedule.nodes):
        yield begin, len(schedule.nodes)


def _behind_keys(schedule: Schedule, begin: int, end: int) -> list[int]:
    """Return the first places where regions may begin that hold what reads tensors whole.

    A region that makes such a tensor cannot hold its reader.
    """
    tensors, found = schedule.tensors, dict[int, None]()
    for node in schedule.nodes[begin:end]:
        made = max((tensors[number].made_at for number in node.whole), default=-1) + 1
        if made > begin:
            found[made] = None
    return list(found)[:_MOST_CUTS]


def _cuts(schedule: Schedule, begin: int, end: int, most: int) -> list[int]:
    """Return at most so many places, and the ends, of a run where little is alive.

    None is between a Conv and its fold.
    """
    live = schedule.live
    inner: list[int] = []
    first = end
    for place in range(end - 1, begin, -1):
        folded = schedule.nodes[place].folded
        if folded >= 0:
            first = min(first, schedule.tensors[folded].made_at + 1)
        if place < first:
            inner.append(place)
    inner.reverse()
    if len(inner) > most:
        best = sorted(inner, key=lambda place: (live[place], place))[: most // 2]
        size = -(-len(inner) // (most // 2))
        parts = [inner[at : at + size] for at in range(0, len(inner), size)]
        # Of each part the place with least alive too: regions of every length.
        inner = sorted({*best, *(min(part, key=lambda at: live[at]) for part in parts)})
    return [begin, *inner, end]
