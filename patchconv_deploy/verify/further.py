"""Further sizes to verify at, where they are free: other heights, and an odd width.

What is right at one height may be wrong at another: the last patch is lower, windows meet, sizes
that the graph works out have another remainder. So beside the first height that the original runs
at, others are tried, all else as it was: an odd one, the least, the assumed one. Patches have the
whole width, so of that one more is enough. A network that takes multiples of 32 alone takes no odd
height: then it is an odd number of the largest blocks that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.fixed_shapes import free_inputs, nominal_shapes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.shapes import ANONYMOUS
from patchconv_deploy.verify.cases import Ranges, shapes_at

__all__ = ["Further", "further_sizes"]


InputSizes = Mapping[str, tuple[int, ...]]

# Rows that a network may ask for a multiple of.
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)

# The first dimension that may be a width: batch and channels, or batch and rows, come before it.
_FIRST_SIDE = 2


@dataclass(frozen=True, slots=True)
class Further:
    """Sizes of one kind to verify at.

    Attributes:
        kind: "height" or "width": what is another than at the first sizes.
        sizes: Sizes of the inputs; the first of them that can be run is wanted.
    """

    kind: str
    sizes: Iterator[InputSizes]


def further_sizes(
    source: Loaded,
    written: onnx.ModelProto,
    sizes: InputSizes,
    rows_at: Callable[[InputSizes], object],
    ranges: Ranges,
    assumed: InputSizes,
) -> Iterator[Further]:
    """Yield sizes of the inputs in groups: of each group the first that can be run is wanted.

    Args:
        source: The original.
        written: The rewritten model, of which more may be fixed.
        sizes: Sizes that both were verified at.
        rows_at: Tells how many rows the regions that were cut have at some sizes of the inputs.
        ranges: Sizes that may be used, where they are given.
        assumed: Sizes that were assumed for what was predicted.
    """
    heights, others = _free_sides(written, sizes, rows_at)
    known = _runs(source, sizes)

    def group(places: Sequence[tuple[str, int]], wanted: list[int]) -> Iterator[InputSizes]:
        low, high = _range(places, ranges)
        for size in wanted:
            if not low <= size <= high:
                continue
            found = _with_size(source, sizes, places, size)
            # What inference says of the original is enough to leave out most that does not run.
            if not known or _runs(source, found):
                yield found

    if heights:
        (name, at), (low, high) = heights[0], _range(heights, ranges)
        done = {sizes[name][at]}
        for wanted in (
            [_odd(sizes[name][at], block, high) for block in _BLOCKS],
            [-(-low // block) * block for block in _BLOCKS],
            [assumed[name][at]] if name in assumed else [],
        ):
            new = [rows for rows in dict.fromkeys(wanted) if rows not in done]
            yield Further("height", group(heights, new))
            # The least that was taken before needs no second time.
            done.update(wanted[:1])
    for places in others:
        name, at = places[0]
        _, high = _range(places, ranges)
        odd = dict.fromkeys(_odd(sizes[name][at], block, high) for block in _BLOCKS)
        yield Further("width", group(places, [size for size in odd if size != sizes[name][at]]))


def _range(places: Sequence[tuple[str, int]], ranges: Ranges) -> tuple[int, int]:
    """Return the least and the largest size that dimensions of one size may have."""
    given = [ranges[name][axis] for name, axis in places if name in ranges]
    return max([1, *(low for low, _ in given)]), min([1 << 31, *(high for _, high in given)])


def _free_sides(
    written: onnx.ModelProto, sizes: InputSizes, rows_at: Callable[[InputSizes], object]
) -> tuple[list[tuple[str, int]], list[list[tuple[str, int]]]]:
    """Return the free dimensions of the inputs that the rows of what was cut depend on, and others.

    Found by trying: which dimension of an input becomes the one that is cut (channels may come
    last, a model may transpose its input) is for the graph to say. The others come in groups of one
    size.
    """
    free, groups = free_inputs(written), dict[object, list[tuple[str, int]]]()
    for value in written.graph.input:
        for axis, size in enumerate(free.get(value.name, ())):
            symbol = value.type.tensor_type.shape.dim[axis].dim_param
            if size is None and value.name in sizes:
                key = (value.name, axis) if symbol in ANONYMOUS else symbol
                groups.setdefault(key, []).append((value.name, axis))
    rows, heights, others = rows_at(sizes), list[tuple[str, int]](), list[list[tuple[str, int]]]()
    for places in groups.values():
        if rows_at(_scaled(sizes, places, 2, 1)) != rows:
            heights += places
        elif all(axis >= _FIRST_SIDE for _, axis in places):
            others.append(places)
    return heights, others


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


def _with_size(
    source: Loaded, sizes: InputSizes, places: Sequence[tuple[str, int]], size: int
) -> InputSizes:
    """Return sizes with another height or width, which other inputs follow."""
    name, axis = places[0]
    given = _scaled(sizes, places, size, sizes[name][axis])
    return {**sizes, **nominal_shapes(source.model, given=given)}


def _odd(size: int, block: int, high: int) -> int:
    """Return an odd number of blocks, a little more than a size, or less where it must be."""
    count = (size // block + 1) | 1
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
