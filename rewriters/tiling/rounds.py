"""Patches of a fixed height, as many as an image needs: rounds of a Loop.

Where the height is known when the model runs alone, patches that are a share of it
(`tiling.patches.place_windows`) grow with it. Here each patch has ``stride`` steps of its own,
whatever the height, and their number comes from it. With ``M`` steps that the outputs leave free:

    trim     m   = max(M - stride, 0)              the window is m steps shorter than the whole
    rounds   n   = ceil(m / stride) + 1
    shift    i_k = min(k * stride, m)              the last window ends where the whole does
    core     from k * stride on                    the last one is lower than the others

Neighbours are at most ``stride = M - m`` steps apart, so the cores of `tiling.patches.core` lie
inside the right rows as they do there: those of the last window, which is further up than it would
be in an image of whole strides, reach further down than its own begins. All cores but the last
begin and end at multiples of a stride, so that who reads them knows which one a row lies in. Below
the height of a patch ``m`` is 0: one round, on the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from patchconv_deploy.rewriters.tiling.network import Network, first_height
from patchconv_deploy.rewriters.tiling.patches import (
    BEYOND,
    Extent,
    Patch,
    Placement,
    Rows,
    Tiling,
    core,
    free_steps,
)
from patchconv_deploy.rewriters.tiling.proof import period, reach
from patchconv_deploy.rewriters.tiling.proof_any_height import prove_heights

__all__ = [
    "effort",
    "most_touched",
    "place_round",
    "prove_rounds",
    "round_cores",
    "rounds_of",
    "tile_rounds",
    "touched",
]


def rounds_of(free: Any, stride: int, maximum: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    """Return the trim and the number of rounds.

    The arithmetic of this module means the same on integers and on tensors, as that of
    `tiling.patches` does.

    Args:
        free: `free_steps` of the region's output, the least where there are several.
        stride: Steps each patch has of its own, at least 1.
        maximum: The larger of two numbers.
    """
    trim = maximum(free - stride, 0)
    return trim, (trim + (stride - 1)) // stride + 1


def place_round(
    trim: Any, stride: int, index: Any, minimum: Callable[[Any, Any], Any]
) -> Placement:
    """Return where the window of round ``index`` starts, and that of the one after it."""
    shift = minimum(index * stride, trim)
    return Placement(stride, trim, shift, minimum(shift + stride, trim))


def round_cores(
    outs: Sequence[Any], placed: Placement, index: Any, minimum: Callable[[Any, Any], Any]
) -> list[tuple[Any, Any]]:
    """Return where each output's rows of a round begin and end.

    Args:
        outs: `Extent`, or objects with its four fields as other kinds of number.
        placed: `place_round`.
        index: The round.
        minimum: The smaller of two numbers.
    """
    begins = index * placed.stride
    owned = placed._replace(shifts=begins, following=begins + placed.stride)
    # The first round alone starts at the top, the last one alone as far down as windows go.
    first = minimum(placed.shifts, 1)
    last = minimum(placed.trim - placed.shifts, 1) * -BEYOND + BEYOND
    return [core(out, owned, first=first, last=last, minimum=minimum) for out in outs]


def most_touched(rows: int, each: int) -> int:
    """Return the most cores that so many neighbouring rows lie on.

    Args:
        rows: The rows.
        each: Rows of every core; the first and the last may have more.
    """
    return max(0, rows + each - 2) // each + 1


def touched(
    rows: tuple[Any, Any],
    most: int,
    cores: tuple[int, int, Any],
    minimum: Callable[[Any, Any], Any],
    maximum: Callable[[Any, Any], Any],
) -> list[tuple[Any, Any, Any]]:
    """Return which rows of which cores of an output make up a window of it.

    Args:
        rows: Where the window begins and ends.
        most: Rows that it has at most.
        cores: Rows of each core, how many more the first has, and the number of cores.
        minimum: The smaller of two numbers.
        maximum: The larger of two numbers.

    Returns:
        The number of each core, and the rows of it from and up to which: from there to its end
        where it has fewer; the second no more than the first where it has none of them.
    """
    (begin, end), (each, top, count) = rows, cores
    last = count - 1
    first = minimum(maximum(begin - top, 0) // each, last)
    found = []
    for at in range(most_touched(most, each)):
        number = first + at if at else first
        index = minimum(number, last) if at else first
        # The first core begins at the top; behind the last one there is none.
        above = number * each + top
        above = above + (number - index) * BEYOND if at else above * minimum(number, 1)
        found.append((index, maximum(begin - above, 0), maximum(end - above, 0)))
    return found


def tile_rounds(outs: Sequence[Extent], stride: int) -> Tiling:
    """Return the patches at a known height.

    Args:
        outs: The region's outputs.
        stride: Steps each patch has of its own.
    """
    free = min(free_steps(out, max) for out in outs)
    trim, count = rounds_of(free, stride, max)
    patches = []
    for k in range(count):
        placed = place_round(trim, stride, k, min)
        cores = tuple(Rows(*bounds) for bounds in round_cores(outs, placed, k, min))
        patches.append(Patch(placed.shifts, cores))
    return Tiling(trim, tuple(patches))


@lru_cache(maxsize=4096)
def prove_rounds(network: Network, stride: int) -> str | None:
    """Prove the rounds of a region at every height.

    That the cores lie inside the right rows follows from the bounds above at every height. What is
    left to chance is small images, where the edges of windows meet, and this code: so every height
    is proven from the first one up to where there is an interior window, and every remainder by a
    step has come round with each number of rows that the last patch may be lower by.

    Returns:
        None if every core is right at every height, else the first height that is not, and why.
    """
    return prove_heights(
        network,
        lambda worst: _heights(network, worst, stride),
        lambda outs, _: tile_rounds(outs, stride),
    )


def effort(network: Network, stride: int) -> int:
    """Return about how many operators and patches `prove_rounds` would look at.

    Raises:
        ValueError: The region has no steps, or its inputs advance differently.
    """
    source = period(network)
    count = (_STRIDES * stride + 2) * source + 2 * reach(network)
    walked = len(network.within(range(1, 1 + count)))
    return walked * (len(network.links) + count // (stride * source) + 1)


# Heights to prove, beyond the reach, in strides: a first, an interior and a last window.
_STRIDES = 3


def _heights(network: Network, worst: Sequence[Extent], stride: int) -> range:
    edges = 2 + max((extent.top + extent.tail) // extent.step for extent in worst)
    first = first_height(network)
    more = (_STRIDES * stride + edges) * period(network) + reach(network)
    return range(first, first + more)
