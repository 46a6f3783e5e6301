"""Further heights to verify at, where the height is free: an odd one, the least, the assumed one.

What is right at one height may be wrong at another: the last patch is lower, windows meet, sizes
that the graph works out have another remainder. So beside the first height that the original runs
at, others are tried, all else as it was. A network that takes multiples of 32 alone takes no odd
height: then it is an odd number of the largest blocks that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.fixed_shapes import free_inputs, nominal_shapes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.shapes import ANONYMOUS
from patchconv_deploy.verify.cases import Ranges, shapes_at

__all__ = ["further_sizes"]


InputSizes = Mapping[str, tuple[int, ...]]

# Rows that a network may ask for a multiple of.
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


def further_sizes(
    source: Loaded,
    sizes: InputSizes,
    rows_at: Callable[[InputSizes], object],
    ranges: Ranges,
    assumed: InputSizes,
) -> Iterator[Iterator[InputSizes]]:
    """Yield sizes of the inputs in groups: of each group the first that can be run is wanted.

    Args:
        source: The original.
        sizes: Sizes that it was verified at.
        rows_at: Tells how many rows the regions that were cut have at some sizes of the inputs.
        ranges: Sizes that may be used, where they are given.
        assumed: Sizes that were assumed for what was predicted.
    """
    places = _heights(source, sizes, rows_at)
    if not places:
        return
    name, at = places[0]
    height = sizes[name][at]
    low, high = 1, 1 << 31
    for where, axis in places:
        if where in ranges:
            low, high = max(low, ranges[where][axis][0]), min(high, ranges[where][axis][1])
    known = _runs(source, sizes)
    wanted = (
        [_odd(height, block, high) for block in _BLOCKS],
        [-(-low // block) * block for block in _BLOCKS],
        [assumed[name][at]] if name in assumed else [],
    )
    done = {height}

    def group(heights: list[int]) -> Iterator[InputSizes]:
        for rows in heights:
            if rows in done or not low <= rows <= high:
                continue
            found = _with_heights(source, sizes, places, rows)
            # What inference says of the original is enough to leave out most that does not run.
            if not known or _runs(source, found):
                yield found

    for heights in wanted:
        yield group(list(dict.fromkeys(heights)))
        # The least that was taken before needs no second time.
        done.update(heights[:1])


def _heights(
    source: Loaded, sizes: InputSizes, rows_at: Callable[[InputSizes], object]
) -> list[tuple[str, int]]:
    """Return the free dimensions of the inputs that the rows of what was cut depend on.

    Found by trying: which dimension of an input becomes the one that is cut (channels may come
    last, a model may transpose its input) is for the graph to say.
    """
    free, groups = free_inputs(source.model), dict[object, list[tuple[str, int]]]()
    for value in source.model.graph.input:
        for axis, size in enumerate(free.get(value.name, ())):
            symbol = value.type.tensor_type.shape.dim[axis].dim_param
            if size is None and value.name in sizes:
                key = (value.name, axis) if symbol in ANONYMOUS else symbol
                groups.setdefault(key, []).append((value.name, axis))
    rows = rows_at(sizes)
    return [
        place
        for places in groups.values()
        if rows_at(_scaled(sizes, places, 2, 1)) != rows
        for place in places
    ]


def _scaled(
    sizes: InputSizes, places: Sequence[tuple[str, int]], by: int, over: int
) -> dict[str, tuple[int, ...]]:
    """Return sizes with some dimensions as much larger; where that is no integer, rounded up."""
    found = dict(sizes)
    for name, axis in places:
        shape = list(found[name])
        shape[axis] = -(-shape[axis] * by // over)
        found[name] = tuple(shape)
    return found


def _with_heights(
    source: Loaded, sizes: InputSizes, places: Sequence[tuple[str, int]], rows: int
) -> InputSizes:
    """Return sizes with another height, which other inputs follow."""
    name, axis = places[0]
    given = _scaled(sizes, places, rows, sizes[name][axis])
    return {**sizes, **nominal_shapes(source.model, given=given)}


def _odd(height: int, block: int, high: int) -> int:
    """Return an odd number of blocks, a little more than a height, or less where it must be."""
    count = (height // block + 1) | 1
    while count > 1 and count * block > high:
        count -= 2
    return count * block


def _runs(source: Loaded, sizes: InputSizes) -> bool:
    """Tell whether all outputs have a size, as far as inference knows."""
    try:
        shapes = shapes_at(source, sizes)
    except RewriterError:
        return False
    dims = [shapes.dims.get(value.name, (None,)) for value in source.model.graph.output]
    return all(size is not None and size > 0 for shape in dims for size in shape)
