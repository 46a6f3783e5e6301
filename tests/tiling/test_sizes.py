"""`tiling.sizes`: what is said of sizes holds at every one of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

from patchconv_deploy.rewriters.tiling.sizes import Size, left_over, ratio

_SYMBOL = Size.free("h")


def _random_size(random_: random.Random) -> tuple[Size | None, Callable[[int], int]]:
    """Return arithmetic on a free size, as a `Size` and as a function."""
    made: Size | None = _SYMBOL
    steps: list[tuple[str, int]] = []
    for _ in range(random_.randint(1, 6)):
        op, by = random_.choice("+*/%-"), random_.choice((1, 2, 3, 4, 8))
        steps.append((op, by))
        if made is None:
            break
        match op:
            case "+":
                made = made + by
            case "*":
                made = made * by
            case "/":
                made = made // by
            case "%":
                made = made % by
            case "-":
                made = made - by

    def function(n: int) -> int:
        for op, by in steps:
            match op:
                case "+":
                    n += by
                case "*":
                    n *= by
                case "/":
                    n //= by
                case "%":
                    n %= by
                case "-":
                    n -= by
        return n

    return made, function


def test_arithmetic() -> None:
    """The same numbers as whole numbers give, and equal if and only if they are alike."""
    random_, compared = random.Random(3), 0
    seen: dict[tuple[int, ...], Size] = {}
    for _ in range(2000):
        made, function = _random_size(random_)
        if made is None:
            continue
        numbers = tuple(function(n) for n in range(1, 1500))
        assert tuple(made.at(n) for n in range(1, 1500)) == numbers
        assert seen.setdefault(numbers, made) == made
        assert (made.constant is not None) == (len(set(numbers)) == 1)
        compared += 1
    assert compared > 1500
    assert len(set(seen.values())) == len(seen)


def test_order_and_ratio() -> None:
    """Decided for all sizes from 1 on."""
    random_, never, ratios = random.Random(5), 0, 0
    for _ in range(400):
        (a, f), (b, g) = _random_size(random_), _random_size(random_)
        if a is None or b is None or a - b is None:
            continue
        tried = (*range(1, 1200), *range(1_000_000, 1_000_600))
        pairs = [(f(n), g(n)) for n in tried]
        assert a.is_never_below(b) == all(x >= y for x, y in pairs)
        never += a.is_never_below(b)
        found = ratio(a, b)
        assert found is None or all(x == found * y for x, y in pairs)
        if b.slope:
            assert ratio(b * 6, b * 4) == Fraction(3, 2)
            ratios += 1
    assert never > 50
    assert ratios > 50


def test_products() -> None:
    """What is left of a shape once equal sizes are taken away."""
    h, w, n = (Size.free(name) for name in "hwn")
    number = Size.number
    assert left_over([n, number(16), h, w], [number(4), number(4), h, w]) == n
    assert left_over([n, number(16), h, w], [n, number(8), h, w]) == number(2)
    assert left_over([n, number(16)], [n, number(16)]) == number(1)
    assert left_over([n, number(16), h], [number(5), h]) is None
    assert left_over([n, h, w], [number(2)]) is None
    assert left_over([n, None], [n]) is None
    assert left_over([n], [n, h]) is None


def test_unlike_symbols() -> None:
    """Sizes of two free dimensions have no sum, and none is so many times the other."""
    h, w = Size.free("h"), Size.free("w")
    assert h + w is None
    assert ratio(h, w) is None
    assert not h.is_never_below(w)
    assert h - h == Size.number(0)
