"""Row maps: which input rows an operator needs for its output rows, in integers.

    kind          needs, for the output rows [a, b)                                 rows out
    Pointwise     [a, b)                                                            H
    Sliding       [a*s - p, (b-1)*s - p + K)                                        (H+p+q-K)//s + 1
    Transposed    [ceil((a + p - K + 1) / s), floor((b - 1 + p) / s) + 1)           s*(H-1)+o+K-p-q

s: stride, p and q: begin and end padding, K: the kernel's reach ``dilation * (kernel - 1) + 1``,
o: output padding. Rows outside [0, H) stand for padding at a true border of the image.
``K - 1`` and ``p`` enter with the window's own height where SAME padding depends on it.

Source: ONNX operator definitions of Conv, ConvTranspose and AveragePool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from rewriters.geometry import Rows

__all__ = ["Pointwise", "RowMap", "Sliding", "Transposed"]


class RowMap(Protocol):
    """The rows of one operator along the tiled axis."""

    @property
    def step_in(self) -> int:
        """Input rows per step of this operator alone."""

    @property
    def step_out(self) -> int:
        """Output rows per step of this operator alone."""

    def rows_out(self, rows: Any) -> Any:
        """Return the output rows for ``rows`` input rows; ``+ - * //`` alone."""

    def needs(self, out: Rows, rows: int) -> Rows:
        """Return the input rows the output rows need, not clamped to ``[0, rows)``."""


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Each output row needs the same input row."""

    step_in: int = 1
    step_out: int = 1

    def rows_out(self, rows: Any) -> Any:  # noqa: D102
        return rows

    def needs(self, out: Rows, rows: int) -> Rows:  # noqa: D102
        return out


@dataclass(frozen=True, slots=True)
class Sliding:
    """Conv and its integer forms: a kernel of ``reach`` rows moved by ``stride``.

    Attributes:
        reach: ``dilation * (kernel - 1) + 1``.
        stride: Rows between two kernel positions.
        begin: Padding rows above; of no meaning with ``same``.
        end: Padding rows below; of no meaning with ``same``.
        same: None for explicit padding, else "SAME_UPPER" or "SAME_LOWER".
    """

    reach: int
    stride: int
    begin: int = 0
    end: int = 0
    same: str | None = None

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
        return (rows + (self.begin + self.end - self.reach)) // self.stride + 1

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
