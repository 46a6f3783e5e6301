"""Windows that shrink: rows that no later operator needs are not made.

Uniform windows keep their height, in terms of the scale, from a region's inputs to its outputs, and
carry the rows that padding at an interior edge made wrong to the end, where the crop removes them.
An operator that may go without its padding there (`tiling.row_maps.removable_padding`) does not
make them:

    uniform      10 -conv- 10 -conv- 10 -conv- 10 -crop- 4
    shrinking    10 -conv-  8 -conv-  6 -conv-  4

Windows and cores stay those of the tiling, so nothing else changes; of a chain about half of the
recompute is gone. Nothing is sliced inside the region: where operands of different reach are
joined, the rows stay that the shorter way needs, and with them the padding on the longer one (a
residual block shrinks before and behind it, not inside).

Per tensor t, ``top_t`` and ``bottom_t`` rows are cut off at interior edges. They are the largest
whole numbers with

1. ``top_t`` at most the rows that no core needs,
2. for an operator from x to y that drops d rows of its padding,
   ``d = step_in * top_y - step_out * top_x`` and ``0 <= d <= removable padding``,
3. the same at all operands of an operator.

Such differences are closed under the larger of two solutions, so a largest one exists; it is found
by lowering the first bound until nothing gives. All interior patches are of the same shapes.

Source: this project's. Overlapping windows that shrink are how tiled inference is written by hand
(MCUNetV2, arXiv:2110.15352); the bound at joins is Bellman and Ford's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import reduce

from patchconv_deploy.rewriters.tiling.network import Network, Shrinking
from patchconv_deploy.rewriters.tiling.patches import Rows, Tiling

__all__ = ["needed", "shrink"]


def needed(network: Network, whole: Sequence[int], cores: Sequence[Rows]) -> list[Rows | None]:
    """Return the rows of every tensor that a patch's cores need; None of a tensor they do not.

    Args:
        network: The region.
        whole: Its `tiling.network.heights`.
        cores: The patch's rows of each output.
    """
    found: list[Rows | None] = [None] * network.tensors

    def want(tensor: int, rows: Rows) -> None:
        rows = Rows(max(0, rows.begin), min(whole[tensor], rows.end))
        if len(rows):
            old = found[tensor]
            found[tensor] = rows if old is None else _hull(old, rows)

    for tensor, core in zip(network.outputs, cores, strict=True):
        want(tensor, core)
    for link in reversed(network.links):
        made = [rows for tensor in link.makes if (rows := found[tensor]) is not None]
        if not made:
            continue
        for tensor in link.reads:
            want(tensor, link.row_map.needs(reduce(_hull, made), whole[tensor]))
    return found


def _hull(rows: Rows, other: Rows) -> Rows:
    return Rows(min(rows.begin, other.begin), max(rows.end, other.end))


def shrink(
    network: Network, step: Sequence[int], whole: Sequence[int], tiling: Tiling
) -> Shrinking | None:
    """Return the rows that every tensor may go without at interior edges, None if there are none.

    Args:
        network: The region.
        step: Its `tiling.network.steps`.
        whole: Its `tiling.network.heights`.
        tiling: The patches, proven.
    """
    if tiling.trim == 0 or not any(any(link.removable_padding) for link in network.links):
        return None
    top = [rows - 1 for rows in whole]
    bottom = list(top)
    for patch in tiling.patches:
        for tensor, rows in enumerate(needed(network, whole, patch.cores)):
            if rows is None:
                continue
            begin = patch.shift * step[tensor]
            end = begin + whole[tensor] - tiling.trim * step[tensor]
            if patch.shift > 0:
                top[tensor] = min(top[tensor], rows.begin - begin)
            if patch.shift < tiling.trim:
                bottom[tensor] = min(bottom[tensor], end - rows.end)
    _lower(network, top, 0)
    _lower(network, bottom, 1)
    if not any(top) and not any(bottom):
        return None
    return Shrinking(tuple(top), tuple(bottom))


def _lower(network: Network, most: list[int], edge: int) -> None:
    """Lower bounds, in place, to the largest numbers that suit every operator."""
    touching: list[list[int]] = [[] for _ in range(network.tensors)]
    for number, link in enumerate(network.links):
        for tensor in {*link.reads, *link.makes}:
            touching[tensor].append(number)
    queue = deque(range(len(network.links)))
    waiting = set(queue)
    while queue:
        number = queue.popleft()
        waiting.discard(number)
        link = network.links[number]
        into, out = link.row_map.step_in, link.row_map.step_out
        removable = link.removable_padding[edge]
        x = min(most[tensor] for tensor in link.reads)
        y = min(most[tensor] for tensor in link.makes)
        before = None
        while before != (x, y):
            before = x, y
            y = min(y, (out * x + removable) // into)
            x = min(x, into * y // out)
        for tensors, bound in ((link.reads, x), (link.makes, y)):
            for tensor in tensors:
                if most[tensor] != bound:
                    most[tensor] = bound
                    fresh = [other for other in touching[tensor] if other not in waiting]
                    waiting.update(fresh)
                    queue.extend(fresh)
