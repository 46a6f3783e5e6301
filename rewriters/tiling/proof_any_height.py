"""The proof for an image of any height: every height that can differ is walked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from patchconv_deploy.rewriters.tiling.network import (
    FAR,
    ONE_ROW,
    Network,
    first_height,
    heights,
    heights_of_one_row,
    steps,
)
from patchconv_deploy.rewriters.tiling.patches import (
    Extent,
    Patch,
    Rows,
    Tiling,
    core,
    free_steps,
    place_windows,
)
from patchconv_deploy.rewriters.tiling.proof import (
    Windows,
    extents,
    fitting,
    heights_to_walk,
    period,
    prove,
    prove_one_row,
    reach,
    window_slack,
)

__all__ = ["effort", "prove_every_height", "prove_heights"]


def prove_heights(
    network: Network,
    to_walk: Callable[[Sequence[Extent]], range],
    tile: Callable[[Sequence[Extent], Sequence[int]], Tiling | str],
) -> str | None:
    """Prove a region at many heights, each window once.

    Args:
        network: The region.
        to_walk: Returns the heights, given the outputs with the wrong rows of any height; those
            that it is run at are proven (`Network.within`).
        tile: Returns the patches at a height, given the outputs and the rows of every tensor; or
            why there are none.

    Returns:
        None if every core is right at every height that the model runs at, else the first height
        that is not, and why.
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
    walked: dict[Network, Windows] = {}
    for rows in network.within(to_walk(worst)):
        sized = network.at(rows)
        windows = walked.setdefault(sized, Windows(step))
        whole = heights(sized, network.rows_at(rows))
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
        tiling = tile(here, whole)
        if isinstance(tiling, str):
            reason: str | None = tiling
        elif joined is not None:
            reason = prove_one_row(network, tiling, joined)
        else:
            reason = prove(sized, network.rows_at(rows), tiling, windows=windows)
        if reason is not None:
            return f"at {rows} rows: {reason}"
    return None


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

    @cache
    def declared() -> list[tuple[int, int, int]]:
        """Return each input, its rows per step and the most that its windows have beyond steps."""
        step = fitting(steps(network))
        return [(n, step[n], window_slack(network, at)) for at, n in enumerate(network.inputs)]

    def tile(outs: Sequence[Extent], whole: Sequence[int]) -> Tiling | str:
        free = min(free_steps(extent, max) for extent in outs)
        patches = []
        for k in range(splits):
            placed = place_windows(free, splits, k)
            cores = []
            for extent in outs:
                last = extent.rows if k == splits - 1 else 0
                begin, end = core(extent, placed, first=int(k > 0), last=last, minimum=min)
                cores.append(Rows(begin, max(begin, end)))
            patches.append(Patch(placed.shifts, tuple(cores)))
        placed = place_windows(free, splits, 0)
        if any(
            placed.stride * step + slack < whole[tensor] - placed.trim * step
            for tensor, step, slack in declared()
        ):
            return "a window is taller than it is declared to be"
        return Tiling(placed.trim, tuple(patches))

    return prove_heights(network, lambda worst: heights_to_walk(network, worst, splits), tile)


def effort(network: Network, splits: int) -> int:
    """Return about how many operators `prove_every_height` would look at.

    Raises:
        ValueError: The region has no steps, or its inputs advance differently.
    """
    turn = period(network)
    rounds = 2 * splits + 2 * reach(network) // turn + 2
    return len(network.links) * splits * len(network.within(range(1, 1 + turn * rounds)))
