"""The proof for an image of any height: every height that can differ is walked."""

from __future__ import annotations

from functools import lru_cache

from rewriters.tiling.network import (
    FAR,
    ONE_ROW,
    Network,
    first_height,
    heights,
    heights_of_one_row,
    steps,
)
from rewriters.tiling.patches import Extent, Patch, Rows, Tiling, core, free_steps, place_windows
from rewriters.tiling.proof import (
    Windows,
    extents,
    heights_to_walk,
    period,
    prove,
    prove_one_row,
    reach,
    window_slack,
)

__all__ = ["effort", "prove_every_height"]


@lru_cache(maxsize=4096)
def prove_every_height(network: Network, splits: int) -> str | None:
    """Prove the run-time placement of the windows of a region whose height is unknown.

    That neighbours are never too far apart is shown for all heights in `tiling.patches`, and
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
    if any(extent.top >= FAR for extent in worst):
        return "its windows leave no right row"
    slack = [window_slack(network, at) for at in range(len(network.inputs))]
    windows = Windows(step)
    for rows in heights_to_walk(network, worst, splits):
        whole = heights(network, network.rows_at(rows))
        joined = heights_of_one_row(network, rows) if whole == ONE_ROW else None
        if whole == ONE_ROW and joined is None:
            return f"at {rows} rows: {whole}"
        whole = joined or whole
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
            placed = place_windows(free, splits, k)
            cores = []
            for extent in here:
                last = extent.rows if k == splits - 1 else 0
                begin, end = core(extent, placed, first=int(k > 0), last=last, minimum=min)
                cores.append(Rows(begin, max(begin, end)))
            patches.append(Patch(placed.shifts, tuple(cores)))
        placed = place_windows(free, splits, 0)
        if any(
            placed.stride * step[tensor] + more < whole[tensor] - placed.trim * step[tensor]
            for tensor, more in zip(network.inputs, slack, strict=True)
        ):
            return f"at {rows} rows: a window is taller than it is declared to be"
        tiling = Tiling(placed.trim, tuple(patches))
        if joined is not None:
            reason = prove_one_row(network, tiling, joined)
        else:
            reason = prove(network, network.rows_at(rows), tiling, windows=windows)
        if reason is not None:
            return f"at {rows} rows: {reason}"
    return None


def effort(network: Network, splits: int) -> int:
    """Return about how many operators `prove_every_height` would look at."""
    step = steps(network)
    if isinstance(step, str):
        return 0
    if network.advance(step) is None:
        return 0
    turn = period(network)
    rounds = 2 * splits + 2 * reach(network) // turn + 2
    return len(network.links) * splits * turn * rounds
