"""Further heights to verify at, where the height is free: an odd one, the least, the assumed one.

What is right at one height may be wrong at another: the last patch is lower, windows meet, sizes
that the graph works out have another remainder. So beside the first height that the original runs
at, others are tried, all else as it was. A network that takes multiples of 32 alone takes no odd
height: then it is an odd number of the largest blocks that it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.constant_folding import infer_by_value
from patchconv_deploy.rewriters.graph.fixed_shapes import (
    fix_shapes,
    free_inputs,
    has_channels_last,
    nominal_shapes,
)
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.verify.cases import Ranges

__all__ = ["further_sizes"]


InputSizes = Mapping[str, tuple[int, ...]]

# Rows that a network may ask for a multiple of.
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


def further_sizes(
    source: Loaded, sizes: InputSizes, axis: int, ranges: Ranges, assumed: InputSizes
) -> Iterator[Sequence[InputSizes]]:
    """Yield sizes of the inputs in groups: of each group the first that can be run is wanted.

    Args:
        source: The original.
        sizes: Sizes that it was verified at.
        axis: The dimension that is cut.
        ranges: Sizes that may be used, where they are given.
        assumed: Sizes that were assumed for what was predicted.
    """
    free = free_inputs(source.model)
    places = {name: at for name, shape in free.items() if (at := _place(shape, axis)) is not None}
    if not places:
        return
    first = next(iter(places))
    height = sizes[first][places[first]]
    low, high = 1, 1 << 31
    for name, at in places.items():
        if name in ranges:
            low, high = max(low, ranges[name][at][0]), min(high, ranges[name][at][1])
    known = _runs(source, sizes)
    wanted = (
        [_odd(height, block, high) for block in _BLOCKS],
        [-(-low // block) * block for block in _BLOCKS],
        [assumed[first][places[first]]] if first in assumed else [],
    )
    done = {height}
    for heights in wanted:
        group = []
        for rows in dict.fromkeys(heights):
            if rows in done or not low <= rows <= high:
                continue
            given = {
                name: (*shape[: places[name]], rows, *shape[places[name] + 1 :])
                if name in places
                else shape
                for name, shape in sizes.items()
            }
            found = {**sizes, **nominal_shapes(source.model, given=given)}
            # What inference says of the original is enough to leave out most that does not run.
            if not known or _runs(source, found):
                group.append(found)
        # The least that was taken before needs no second time.
        done.update(heights[:1])
        yield group


def _place(shape: Sequence[int | None], axis: int) -> int | None:
    """Return the dimension of an input that is cut, if it is free; channels may come last."""
    if len(shape) <= 2:
        return None
    if has_channels_last(shape):
        axis -= 1
    return axis if axis < len(shape) and shape[axis] is None else None


def _odd(height: int, block: int, high: int) -> int:
    """Return an odd number of blocks, a little more than a height, or less where it must be."""
    count = (height // block + 1) | 1
    while count > 1 and count * block > high:
        count -= 2
    return count * block


def _runs(source: Loaded, sizes: InputSizes) -> bool:
    """Tell whether all outputs have a size, as far as inference knows."""
    slim = skeleton(source)
    try:
        fix_shapes(slim, sizes)
        shapes = infer_by_value(slim)
    except RewriterError:
        return False
    dims = [shapes.dims.get(value.name, (None,)) for value in source.model.graph.output]
    return all(size is not None and size > 0 for shape in dims for size in shape)
