"""Prove a tiling before it is emitted, with integers alone.

A region is, here, a `Network`: tensors by number and, in an order that computes them, the row maps
between them. `walk` carries the interval of valid rows through one patch, operator by operator;
`prove` asks it for every kind of patch and lets nothing pass that is not right:

1. all operands of an operator have the same rows and advance alike, and each operator's output is
   ``H_out - m*r_out`` rows high in the window (shapes agree),
2. each operator needs the same rows in the window as in the whole, shifted by the patch,
3. each core lies inside the valid rows, and the cores cover every output exactly once.

The same with windows that shrink (`tiling.shrinking`): there every operator is the one that has
dropped some of its padding, and a tensor has less rows at interior edges.

Walking assumes the worst: a row that reads the padding at an interior edge of a window is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from patchconv_deploy.rewriters.tiling.network import (
    FAR,
    ONE_ROW,
    TALL,
    Network,
    Shrinking,
    first_height,
    heights,
    steps,
    walk,
)
from patchconv_deploy.rewriters.tiling.patches import Extent, Rows, Tiling, covers

__all__ = [
    "Windows",
    "extents",
    "fitting",
    "heights_to_walk",
    "period",
    "prove",
    "prove_one_row",
    "reach",
    "window_slack",
]


def extents(network: Network, rows: Sequence[int] | None, height: int = 0) -> tuple[Extent, ...]:
    """Return the extent of each output: its rows, rows per step, wrong rows of interior windows.

    Wrong rows are counted in a window tall enough that its two edges do not meet. They depend on
    the height's remainder by the step alone; where the height is unknown every remainder counts.

    Args:
        network: The region; its steps and heights must fit.
        rows: Rows of each whole input; None where unknown.
        height: Stands in for the input's rows in the result's ``rows`` where those are unknown.
    """
    step = fitting(steps(network))
    turns = 1
    if rows is None:
        turn, turns = _advance(network)
        given = [(network.at(p), network.rows_at(p)) for p in range(turn)]
    else:
        given = [(network, tuple(rows))]
    worst = [(-1, -1)] * len(network.outputs)
    for here, sizes in given:
        tall = [
            size + (TALL + 2) * turns * step[tensor]
            for size, tensor in zip(sizes, network.inputs, strict=True)
        ]
        whole = heights(here, tall)
        if isinstance(whole, str) and rows is None:
            # The model itself does not run at such heights.
            continue
        whole = fitting(whole)
        # Two steps shorter than the whole and one down: an interior window.
        valid = walk(here, step, whole, shift=1, trim=2)
        for k, tensor in enumerate(network.outputs):
            if isinstance(valid, str) or not len(valid[tensor]):
                worst[k] = (FAR, FAR)
                continue
            tail = whole[tensor] - 2 * step[tensor] - valid[tensor].end
            worst[k] = (max(worst[k][0], valid[tensor].begin), max(worst[k][1], tail))
    if min(worst) < (0, 0):
        raise ValueError("there is no height at which its tensors fit")
    if rows is None:
        tried = (
            heights(network.at(height + k), network.rows_at(height + k))
            for k in range(len(given) + 1)
        )
        whole = next((found for found in tried if not isinstance(found, str)), "nothing fits")
    else:
        whole = heights(network, rows)
    whole = fitting(whole)
    return tuple(
        Extent(whole[tensor], step[tensor], top, tail)
        for tensor, (top, tail) in zip(network.outputs, worst, strict=True)
    )


def fitting(found: tuple[int, ...] | str) -> tuple[int, ...]:
    """Return rows, or raise the reason why there are none as a `ValueError`."""
    if isinstance(found, str):
        raise ValueError(found)
    return found


def prove_one_row(network: Network, tiling: Tiling, whole: Sequence[int]) -> str | None:
    """Prove a tiling where one row is joined with a taller tensor: every window is the whole.

    Args:
        network: The region.
        tiling: The patches.
        whole: Rows of every tensor (`tiling.network.heights_of_one_row`).

    Returns:
        None if every core is right, else the reason it is not.
    """
    if tiling.trim or any(patch.shift for patch in tiling.patches):
        return ONE_ROW
    return _uncovered(network, tiling, whole)


def _uncovered(network: Network, tiling: Tiling, whole: Sequence[int]) -> str | None:
    for k, tensor in enumerate(network.outputs):
        if not covers([patch.cores[k] for patch in tiling.patches], whole[tensor]):
            return "the cores do not cover the output exactly once"
    return None


@dataclass
class Windows:
    """Windows of a region that were walked, for proofs at many heights.

    A window shifted by whole steps is the same window: which of its rows are right depends on its
    height and on which of its edges are true borders, not on the image around it.

    Attributes:
        steps: Rows per step of every tensor.
        walked: What `walk` said, by the rows of the inputs and the edges.
    """

    steps: tuple[int, ...] | str
    walked: dict[tuple[bool, bool, tuple[int, ...]], list[Rows] | str] = field(default_factory=dict)


def prove(
    network: Network,
    rows: Sequence[int],
    tiling: Tiling,
    shrinking: Shrinking | None = None,
    windows: Windows | None = None,
) -> str | None:
    """Prove a tiling of a region of known height.

    Args:
        network: The region.
        rows: Rows of each whole input.
        tiling: The patches; empty cores are allowed.
        shrinking: Rows that tensors go without at interior edges.
        windows: Windows of the same region, and no shrinking ones, that were walked before.

    Returns:
        None if every core is right, else the reason it is not.
    """
    windows = windows or Windows(steps(network))
    step, whole = windows.steps, heights(network, rows)
    if isinstance(step, str):
        return step
    if isinstance(whole, str):
        return whole
    uncovered = _uncovered(network, tiling, whole)
    if uncovered is not None:
        return uncovered
    local = tuple(whole[tensor] - tiling.trim * step[tensor] for tensor in network.inputs)
    for patch in tiling.patches:
        if not 0 <= patch.shift <= tiling.trim:
            return "a window reaches beyond the tensor"
        if tiling.trim == 0 and min(whole) > 0:
            continue  # the window is the whole, and computed as that is
        kind = (patch.shift == 0, patch.shift == tiling.trim, local)
        if kind not in windows.walked:
            windows.walked[kind] = walk(
                network, step, whole, shift=patch.shift, trim=tiling.trim, shrinking=shrinking
            )
        found = windows.walked[kind]
        if isinstance(found, str):
            return found
        for tensor, owned in zip(network.outputs, patch.cores, strict=True):
            above = shrinking.top[tensor] if shrinking is not None and patch.shift else 0
            valid = found[tensor].shifted(patch.shift * step[tensor] + above)
            if len(owned) and not (valid.begin <= owned.begin and owned.end <= valid.end):
                return (
                    f"rows {owned.begin}..{owned.end} of a patch are not all right "
                    f"(right: {valid.begin}..{valid.end})"
                )
    return None


@lru_cache(maxsize=4096)
def window_slack(network: Network, at: int = 0) -> int:
    """Return the most rows of an input a window has beyond its patch's own steps, at any height.

    A window has ``H - trim*r`` rows, which are ``stride*r`` (see `tiling.patches.Placement`) and
    ``H - free*r``. The latter depends on the height's remainder by the step alone once a step is
    free; this is its maximum, so ``stride*r + window_slack`` bounds a window from above.
    """
    step = fitting(steps(network))
    worst = extents(network, None, first_height(network))
    most = 0
    for rows in heights_to_walk(network, worst, 2):
        whole = heights(network.at(rows), network.rows_at(rows))
        if isinstance(whole, str):
            continue
        free = min(
            max(0, whole[tensor] - extent.top - extent.tail) // extent.step
            for tensor, extent in zip(network.outputs, worst, strict=True)
        )
        most = max(most, whole[network.inputs[at]] - free * step[network.inputs[at]])
    return most


def heights_to_walk(network: Network, worst: Sequence[Extent], splits: int) -> range:
    """Return every height at which something new can happen; see `prove_every_height`."""
    rounds = 2 * splits + 2 + max((e.top + e.tail) // e.step for e in worst)
    first = first_height(network)
    return range(first, first + period(network) * rounds + reach(network))


def period(network: Network) -> int:
    """Return after which height it repeats, in whole steps (`Network.advance`)."""
    return _advance(network)[0]


def _advance(network: Network) -> tuple[int, int]:
    found = network.advance(fitting(steps(network)))
    if found is None:
        raise ValueError("its inputs advance differently")
    return found


def reach(network: Network) -> int:
    """Return about how much height an output row needs, by the sum of all operators."""
    step = fitting(steps(network))
    source = period(network)
    total = 0
    # How many rows one needs does not depend on what is padded.
    for link in network.at(0).links:
        needs = link.row_map.needs(Rows(0, 1), TALL)
        total += -(-len(needs) * source // step[link.reads[0]])
    return max(1, total)
