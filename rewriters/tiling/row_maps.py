"""Row maps: which input rows an operator needs for its output rows, in integers.

    kind          needs, for the output rows [a, b)                                 rows out
    Pointwise     [a, b)                                                            H
    Sliding       [a*s - p, (b-1)*s - p + K)                                        (H+p+q-K)//s + 1
    Transposed    [ceil((a + p - K + 1) / s), floor((b - 1 + p) / s) + 1)           s*(H-1)+o+K-p-q
    Padding       [a - p, b - p)                                                    H + p + q
    Ending        [a - p, b - p)                                                    H + p + q(H)
    Fitted        [a - p(N), b - p(N))                                              H + p(N) + q(N)
    Periodic      [low(a), high(b - 1)), read off one period                        H*n//d

s: stride, p and q: begin and end padding (negative: rows cut off; q(H) has a
period, and so has what follows from the model's own height N), K: the reach
``dilation * (kernel - 1) + 1``, o: output padding, n/d: the factor rows are resized by. Rows
outside [0, H) stand for padding at a true border of the image. ``K - 1`` and ``p`` enter with the
window's own height where SAME padding depends on it.

`removable_padding` says how much padding an operator may go without where the rows beyond the edge
are real, and `dropped` what is left of it then; a ConvTranspose goes without the rows that its
kernel reaches in part alone. At an edge that is ``d`` rows shorter, with x rows cut off an
operator's input and y off its output, ``d = step_in * y - step_out * x``.

Source: ONNX operator definitions of Conv, ConvTranspose, AveragePool, Pad and Resize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from patchconv_deploy.rewriters.tiling.patches import Rows
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = [
    "Ending",
    "Fitted",
    "Padding",
    "Periodic",
    "Pointwise",
    "RowMap",
    "Sliding",
    "Transposed",
    "dropped",
    "removable_padding",
]


class RowMap(Protocol):
    """The rows of one operator along the tiled axis."""

    def __hash__(self) -> int:
        """Maps that are equal are one key: what follows from one is found once."""

    @property
    def step_in(self) -> int:
        """Input rows per step of this operator alone."""

    @property
    def step_out(self) -> int:
        """Output rows per step of this operator alone."""

    def rows_out(self, rows: Any) -> Any:
        """Return the output rows for ``rows`` input rows; ``+ - * //`` alone."""

    @property
    def margin(self) -> int:
        """Rows next to a true border that the padding there is made of."""

    def needs(self, out: Rows, rows: int) -> Rows:
        """Return the input rows the output rows need, not clamped to ``[0, rows)``."""


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Each output row needs the same input row."""

    step_in: int = 1
    step_out: int = 1
    margin: int = 0

    def rows_out(self, rows: Any) -> Any:  # noqa: D102
        return rows

    def needs(self, out: Rows, rows: int) -> Rows:  # noqa: D102
        return out


@dataclass(frozen=True, slots=True)
class Sliding:
    """Conv, its integer forms, pools, strided Slice: ``reach`` rows moved by ``stride``.

    Attributes:
        reach: ``dilation * (kernel - 1) + 1``.
        stride: Rows between two kernel positions.
        begin: Padding rows above; of no meaning with ``same``.
        end: Padding rows below; of no meaning with ``same``.
        same: None for explicit padding, else "SAME_UPPER" or "SAME_LOWER".
        ceil: A last kernel position that hangs over the end counts.
    """

    reach: int
    stride: int
    begin: int = 0
    end: int = 0
    same: str | None = None
    ceil: bool = False
    margin: int = 0

    @property
    def step_in(self) -> int:  # noqa: D102
        return self.stride

    @property
    def step_out(self) -> int:  # noqa: D102
        return 1

    def pads(self, rows: int) -> tuple[int, int]:
        """Return the padding (above, below) for an input of ``rows`` rows."""
        if self.same is None:
            return self.begin, self.end
        total = max(0, (-(-rows // self.stride) - 1) * self.stride + self.reach - rows)
        small, large = total // 2, total - total // 2
        return (small, large) if self.same == "SAME_UPPER" else (large, small)

    def rows_out(self, rows: Any) -> Any:  # noqa: D102
        if self.same is not None:
            return (rows + (self.stride - 1)) // self.stride
        over = self.stride - 1 if self.ceil else 0
        return (rows + (self.begin + self.end - self.reach + over)) // self.stride + 1

    def needs(self, out: Rows, rows: int) -> Rows:  # noqa: D102
        begin, _ = self.pads(rows)
        low = out.begin * self.stride - begin
        return Rows(low, (out.end - 1) * self.stride - begin + self.reach)


@dataclass(frozen=True, slots=True)
class Transposed:
    """ConvTranspose: input row ``x`` adds to the output rows ``x*s - p .. x*s - p + K - 1``.

    Attributes:
        reach: ``dilation * (kernel - 1) + 1``.
        stride: Output rows between two input rows.
        begin: Output rows cropped above.
        end: Output rows cropped below.
        extra: Output padding: rows added below.
    """

    reach: int
    stride: int
    begin: int = 0
    end: int = 0
    extra: int = 0
    margin: int = 0

    @property
    def step_in(self) -> int:  # noqa: D102
        return 1

    @property
    def step_out(self) -> int:  # noqa: D102
        return self.stride

    def rows_out(self, rows: Any) -> Any:  # noqa: D102
        return (rows - 1) * self.stride + (self.extra + self.reach - self.begin - self.end)

    def needs(self, out: Rows, rows: int) -> Rows:  # noqa: D102
        low = -(-(out.begin + self.begin - self.reach + 1) // self.stride)
        return Rows(low, (out.end - 1 + self.begin) // self.stride + 1)


@dataclass(frozen=True, slots=True)
class Padding:
    """Pad: ``begin`` rows above and ``end`` below, negative where rows are cut off.

    Attributes:
        begin: Rows added above.
        end: Rows added below.
        margin: Rows at a true border that the padding there is made of, cut ones included.
    """

    begin: int
    end: int
    margin: int = 0
    step_in: int = 1
    step_out: int = 1

    def rows_out(self, rows: Any) -> Any:  # noqa: D102
        return rows + (self.begin + self.end)

    def needs(self, out: Rows, rows: int) -> Rows:  # noqa: D102
        return out.shifted(-self.begin)


@dataclass(frozen=True, slots=True)
class Ending:
    """Pad or Slice to a row that is worked out: up to a multiple, or down to another tensor's rows.

    How many rows come or go below depends on what is left of the height by a period. Windows differ
    from the whole by periods, and so end as it does.

    Attributes:
        begin: Rows added above, negative where they are cut off.
        ends: The same below, by the remainder of the input's rows; as many as the period has.
        margin: Rows at a true border that the padding there is made of, cut ones included.
    """

    begin: int
    ends: tuple[int, ...]
    margin: int = 0
    step_in: int = 1
    step_out: int = 1

    def rows_out(self, rows: Any) -> Any:  # noqa: D102
        return _plus_by_remainder(rows, [self.begin + end for end in self.ends], rows)

    def needs(self, out: Rows, rows: int) -> Rows:  # noqa: D102
        return out.shifted(-self.begin)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Pad or Slice to rows that follow from the model's own height, and not from its input's alone.

    A map of half the rows that is doubled lacks a row of the map it came from, or it does not:
    which of the two is lost on the way. Every window of an image gets what the whole gets, a
    number; so it is a `Padding` at each height.

    Attributes:
        begin: Rows added above, negative where they are cut off, by the model's height.
        end: The same below.
        margin: Rows at a true border that the padding there is made of, cut ones included.
    """

    begin: Size
    end: Size
    margin: int = 0
    step_in: int = 1
    step_out: int = 1

    @property
    def symbol(self) -> str:
        """The model's height, by name."""
        return self.begin.symbol or self.end.symbol

    def at(self, height: int) -> Padding:
        """Return what it is at a height of the model."""
        return Padding(self.begin.at(height), self.end.at(height), self.margin)

    def rows_out(self, rows: Any) -> Any:
        """Return the output rows for input rows that are a function of the model's height."""
        if not isinstance(rows, Size):
            raise TypeError("its rows follow from the model's height alone")
        padded = rows + self.begin
        return None if padded is None else padded + self.end

    def rows_out_at(self, rows: Any, height: Any) -> Any:
        """Return the output rows at a height that is worked out; ``+ - * //`` alone."""
        added = self.begin + self.end
        assert added is not None  # both follow from one height
        return _plus_by_remainder(rows, added.values, height)

    def needs(self, out: Rows, rows: int) -> Rows:
        """Raise a `TypeError`: at a height it is a `Padding`."""
        raise TypeError("its rows follow from the model's height alone")


def _plus_by_remainder(rows: Any, values: Sequence[int], height: Any) -> Any:
    """Return rows and one of some values more, by what is left of a height; ``+ - * //`` alone."""
    period = len(values)
    made = rows + values[0]
    for rest in range(1, period):
        more = values[rest] - values[rest - 1]
        if more:
            # 1 where so many rows or more are left, else 0.
            made = made + ((height + (period - rest)) // period - height // period) * more
    return made


@dataclass(frozen=True, slots=True)
class Periodic:
    """Resize by ``step_out / step_in`` in lowest terms: every ``step_out`` rows it is the same.

    Attributes:
        step_in: Input rows per period.
        step_out: Output rows per period.
        lows: Per output row of the first period the first input row it needs.
        highs: The same, one past the last input row.
    """

    step_in: int
    step_out: int
    lows: tuple[int, ...]
    highs: tuple[int, ...]
    margin: int = 0

    def rows_out(self, rows: Any) -> Any:  # noqa: D102
        return rows * self.step_out // self.step_in

    def needs(self, out: Rows, rows: int) -> Rows:  # noqa: D102
        period, phase = divmod(out.begin, self.step_out)
        low = period * self.step_in + self.lows[phase]
        period, phase = divmod(out.end - 1, self.step_out)
        return Rows(low, period * self.step_in + self.highs[phase])


def removable_padding(row_map: RowMap) -> tuple[int, int]:
    """Return the rows of padding, above and below, that an operator may go without."""
    match row_map:
        case Sliding(same=None, ceil=False) | Padding():
            return max(0, row_map.begin), max(0, row_map.end)
        case Transposed(reach=reach, stride=stride):
            above = reach - stride - row_map.begin
            return max(0, above), max(0, reach - stride - row_map.end + row_map.extra)
    return 0, 0


def dropped(row_map: RowMap, above: int, below: int) -> RowMap:
    """Return an operator without some of its `removable_padding`.

    Args:
        row_map: The operator.
        above: Rows that are dropped above.
        below: Rows that are dropped below.
    """
    match row_map:
        case Sliding() | Padding():
            return replace(row_map, begin=row_map.begin - above, end=row_map.end - below)
        case Transposed():
            return replace(row_map, begin=row_map.begin + above, end=row_map.end + below)
    return row_map
