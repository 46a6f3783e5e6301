"""Sizes as functions of one free size of the model, exactly.

A free size ``n`` is at least 1. What networks make of it by whole numbers (sums, multiples, floor
and ceiling division, remainders) grows by the same amount from period to period:

    f(n) = slope * (n // period) + values[n % period]

Two such functions are equal if and only if they are written alike in their least period, so that
what holds at every size is decided, not tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm, prod

__all__ = ["Size", "by_remainder", "left_over", "ratio"]


# Longer periods are not of interest: a step of a region has no more rows.
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class Size:
    """A size that depends on at most one free size of the model.

    Attributes:
        symbol: The free size, empty for a number.
        slope: What is added from one period to the next.
        values: The first period, from a free size of 0 on.
    """

    symbol: str
    slope: int
    values: tuple[int, ...]

    @classmethod
    def number(cls, number: int) -> Size:
        """Return a number."""
        return cls("", 0, (number,))

    @classmethod
    def free(cls, symbol: str) -> Size:
        """Return a free size itself."""
        return cls(symbol, 1, (0,))

    @property
    def period(self) -> int:
        """Sizes after which it has grown by its slope."""
        return len(self.values)

    @property
    def constant(self) -> int | None:
        """The number that it is at every size, None if it is not one."""
        return None if self.symbol else self.values[0]

    def at(self, size: int) -> int:
        """Return it at a free size."""
        turns, rest = divmod(size, self.period)
        return self.slope * turns + self.values[rest]

    def over(self, period: int) -> tuple[int, tuple[int, ...]]:
        """Return slope and values over a multiple of its period."""
        return self.slope * (period // self.period), tuple(self.at(n) for n in range(period))

    def __add__(self, other: Size | int) -> Size | None:
        return _combined(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Size | int) -> Size | None:
        return _combined(self, other, -1)

    def __mul__(self, factor: int) -> Size:
        return _least(self.symbol, self.slope * factor, [each * factor for each in self.values])

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Size | None:
        """Divide and round down."""
        if divisor < 1:
            return None
        period = self.period * (divisor // gcd(divisor, self.slope))
        if period > _LONGEST:
            return None
        slope, values = self.over(period)
        return _least(self.symbol, slope // divisor, [each // divisor for each in values])

    def __mod__(self, divisor: int) -> Size | None:
        """Return the remainder, with the divisor's sign."""
        whole = self // divisor
        return None if whole is None else self - whole * divisor

    def is_never_below(self, other: Size) -> bool:
        """Tell whether it is as large as another one, or larger, at every size from 1 on."""
        less = self - other
        if less is None or less.slope < 0:
            return False
        # A period begins at 0, which is no size.
        first = (*less.values[1:], less.at(less.period))
        return min(first) >= 0


def ratio(a: Size, b: Size) -> Fraction | None:
    """Return what one size is times another at every size, None if that is no number."""
    if a.symbol != b.symbol or not b.slope:
        return None
    found = Fraction(a.slope * b.period, b.slope * a.period)
    return found if a * found.denominator == b * found.numerator else None


def by_remainder(size: Size, of: Size, most: int) -> tuple[int, ...] | None:
    """Return a size as it follows from what is left of another one by a period.

    Args:
        size: The size; it comes back to the same values.
        of: What it may follow from.
        most: The longest period.

    Returns:
        Its values by the remainder of the other one, in the least period; None if they do not
        follow from that, or in no such period.
    """
    if size.symbol not in ("", of.symbol) or size.slope or of.slope < 1:
        return None
    turn = lcm(size.period, of.period)
    period = of.over(turn)[0] if turn <= _LONGEST else 0
    if not 1 <= period <= most:
        return None
    found: dict[int, int] = {}
    for n in range(turn):
        rest = of.at(n) % period
        if found.setdefault(rest, size.at(n)) != size.at(n):
            return None
    # A remainder that never comes may have any value.
    values, last = [], next(iter(found.values()))
    for rest in range(period):
        last = found.get(rest, last)
        values.append(last)
    return _least(of.symbol, 0, values).values


def left_over(whole: Sequence[Size | None], parts: Sequence[Size | None]) -> Size | None:
    """Return the product of some sizes over that of others, None if it is no size that is known.

    Sizes are taken away in pairs that are equal: what is left of the first may be one size and
    numbers, of the second numbers.
    """
    if None in whole or None in parts:
        return None
    rest = [size for size in whole if size is not None]
    number = 1
    for part in parts:
        if part in rest:
            rest.remove(part)
        elif part is not None and part.constant:
            number *= part.constant
        else:
            return None
    times = prod(size.constant for size in rest if size.constant is not None)
    free = [size for size in rest if size.constant is None]
    if len(free) > 1 or times % number:
        return None
    return free[0] * (times // number) if free else Size.number(times // number)


def _combined(a: Size, b: Size | int, sign: int) -> Size | None:
    if isinstance(b, int):
        b = Size.number(b)
    if a.symbol and b.symbol and a.symbol != b.symbol:
        return None
    period = lcm(a.period, b.period)
    if period > _LONGEST:
        return None
    (slope, values), (more, others) = a.over(period), b.over(period)
    result = [x + sign * y for x, y in zip(values, others, strict=True)]
    return _least(a.symbol or b.symbol, slope + sign * more, result)


def _least(symbol: str, slope: int, values: list[int]) -> Size:
    """Return a size in its least period."""
    period = len(values)
    for divisor in _primes(period):
        while period % divisor == 0 and slope % divisor == 0:
            shorter, less = period // divisor, slope // divisor
            repeats = (
                values[n] == less * (n // shorter) + values[n % shorter] for n in range(period)
            )
            if not all(repeats):
                break
            period, slope, values = shorter, less, values[:shorter]
    if period == 1 and slope == 0:
        symbol = ""
    return Size(symbol, slope, tuple(values))


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            found.append(divisor)
            while number % divisor == 0:
                number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found
