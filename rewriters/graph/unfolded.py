"""How a tensor with folded dimensions is written with each of them on its own.

    [N, H * W, C]     folded: rows and columns in one dimension
    [N, (H, W), C]    its layout: what each dimension is made of
    [N, H, W, C]      unfolded

A Reshape keeps the order of the numbers. So a dimension of its output is made of those of its input
that have the same product, and as many numbers before and behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["Layout", "Part", "Unfolded", "is_one", "plain", "reshaped"]


# The size of a dimension, None where it is unknown.
Part = Size | None

# Per dimension of a tensor what it is made of: one size, or those of several dimensions.
Layout = tuple[tuple[Part, ...], ...]

_ONE = Size.number(1)


@dataclass(frozen=True, slots=True)
class Unfolded:
    """A tensor that is written with every dimension on its own.

    Attributes:
        name: What it is called.
        layout: What each dimension of the model's own tensor is made of.
    """

    name: str
    layout: Layout

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its sizes."""
        return tuple(part for parts in self.layout for part in parts)

    def at(self, axis: int) -> int:
        """Return where a dimension of the model's own tensor begins."""
        return sum(len(parts) for parts in self.layout[:axis])

    def is_folded(self, axis: int) -> bool:
        """Tell whether a dimension is made of several."""
        return len(self.layout[axis]) > 1


def plain(sizes: Sequence[Part]) -> Layout:
    """Return the layout of a tensor nothing of which is folded."""
    return tuple((size,) for size in sizes)


def is_one(part: Part) -> bool:
    """Tell whether a size is 1 whatever the model's are."""
    return part == _ONE


def reshaped(x: Sequence[Part], y: Sequence[Part]) -> list[tuple[int, ...]] | None:
    """Find what each dimension of a Reshape's output is made of.

    Args:
        x: Sizes of its input.
        y: Sizes of its output; of one that is unknown it is what the others leave.

    Returns:
        Per dimension of the output the input's that it is made of, those of one left out;
        numbers that are taken apart are all made of the same ones. None where it is not known.
    """
    before = _matched(x, y)
    at_x, at_y = (before[-1][0].stop, before[-1][1].stop) if before else (0, 0)
    after = _matched(x[at_x:][::-1], y[at_y:][::-1])
    end_x, end_y = len(x), len(y)
    found = [(list(xs), list(ys)) for xs, ys in before]
    for xs, ys in after:
        found.append(([len(x) - 1 - at for at in xs][::-1], [len(y) - 1 - at for at in ys][::-1]))
        end_x, end_y = len(x) - xs.stop, len(y) - ys.stop
    rest = [at for at in range(at_x, end_x) if not is_one(x[at])]
    if end_y - at_y > 1 or (end_y == at_y and rest) or any(x[at] is None for at in rest):
        return None
    if end_y - at_y == 1:
        if y[at_y] is not None:
            return None
        found.append((rest, [at_y]))
    made: list[tuple[int, ...]] = [()] * len(y)
    for those, dimensions in found:
        for each in dimensions:
            made[each] = tuple(at for at in those if not is_one(x[at]))
    return made


def _matched(x: Sequence[Part], y: Sequence[Part]) -> list[tuple[range, range]]:
    """Return which neighbours have the same product, from the front on, as far as that is known."""
    found: list[tuple[range, range]] = []
    i = j = 0
    while i < len(x) or j < len(y):
        a, b = (x[i] if i < len(x) else _ONE), (y[j] if j < len(y) else _ONE)
        if a is None or b is None:
            break
        xs, ys = range(i, i + (i < len(x))), range(j, j + (j < len(y)))
        if a != b:
            if is_one(b) and ys:
                xs = range(i, i)
            elif is_one(a) and xs:
                ys = range(j, j)
            else:
                numbers = _of_numbers(x, y, i, j)
                if numbers is None:
                    break
                xs, ys = numbers
        found.append((xs, ys))
        i, j = xs.stop, ys.stop
    return found


def _of_numbers(x: Sequence[Part], y: Sequence[Part], i: int, j: int) -> tuple[range, range] | None:
    """Return the shortest ranges of numbers from two places on that have the same product."""
    ends = [i, j]
    products = [1, 1]
    while products[0] != products[1] or ends == [i, j]:
        which = int(products[1] < products[0])
        sizes = (x, y)[which]
        size = sizes[ends[which]] if ends[which] < len(sizes) else None
        if size is None or not size.constant:
            return None
        products[which] *= size.constant
        ends[which] += 1
    return range(i, ends[0]), range(j, ends[1])
