"""ONNX Runtime's own quantised operators: those that quantised networks have beside QLinearConv.

Each reads tensors of 8 bits with a scale and a zero point for each, and computes row by row what
the operator of ONNX does that it is named after.

    QLinearAdd, QLinearMul            a, scale, zero, b, scale, zero, scale, zero
    QLinearSigmoid, QLinearLeakyRelu  x, scale, zero, scale, zero
    QLinearSoftmax                    the same
    QLinearAveragePool                the same
    QLinearConcat                     scale, zero, then x, scale, zero of each
    QLinearWhere                      condition, x, scale, zero, y, scale, zero, scale, zero

Source: ONNX Runtime's contrib operators, domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from patchconv_deploy.rewriters.operators.channelwise import along
from patchconv_deploy.rewriters.operators.elementwise import broadcast
from patchconv_deploy.rewriters.operators.pooling import pool
from patchconv_deploy.rewriters.operators.record import Record, RowLocal
from patchconv_deploy.rewriters.operators.rules import same_rows

__all__ = ["QUANTISED", "Quantised"]


@dataclass(frozen=True, slots=True)
class Quantised:
    """A quantised operator.

    Attributes:
        plain: The operator of ONNX whose shapes it has, Identity for any that keeps them.
        operands: Where the tensors that this one reads stand, given the number of inputs.
        entry: Its rows.
        dropped: Attributes that the plain one does not have.
    """

    plain: str
    operands: Callable[[int], tuple[int, ...]]
    entry: Callable[[Record, int], RowLocal | str]
    dropped: tuple[str, ...] = ()


def _at(*operands: int) -> Callable[[int], tuple[int, ...]]:
    return lambda count: operands


def _parts(count: int) -> tuple[int, ...]:
    return tuple(range(2, count, 3))


def _as_plain(
    entry: Callable[[Record, int], RowLocal | str], operands: Callable[[int], tuple[int, ...]]
) -> Callable[[Record, int], RowLocal | str]:
    """Return an entry that asks one of an operator that reads the operands alone."""

    def ask(record: Record, axis: int) -> RowLocal | str:
        at = operands(len(record.shapes))
        plain = replace(
            record,
            op_type=QUANTISED[record.op_type].plain,
            shapes=tuple(record.shapes[i] for i in at),
            absent=frozenset(),
        )
        found = entry(plain, axis)
        if isinstance(found, str):
            return found
        return replace(found, carriers=tuple((at[i], dim) for i, dim in found.carriers))

    return ask


def _softmax(record: Record, axis: int) -> RowLocal | str:
    """Over channels; it says itself by which version of Softmax it goes."""
    given = record.attributes.get("opset", 1)
    found = along(replace(record, op_type="Softmax", opset=given), axis)
    return found if isinstance(found, str) else same_rows(axis)


def _average(record: Record, axis: int) -> RowLocal | str:
    if record.attributes.get("channels_last", 0):
        return "its channels come last"
    if record.attributes.get("ceil_mode", 0):
        return "ceil_mode, where runtimes disagree"
    return pool(record, axis)


def _first(record: Record, axis: int) -> RowLocal | str:
    return same_rows(axis)


_PAIR, _ONE = _at(0, 3), _at(0)

QUANTISED: Mapping[str, Quantised] = {
    "QLinearAdd": Quantised("Add", _PAIR, _as_plain(broadcast, _PAIR)),
    "QLinearMul": Quantised("Mul", _PAIR, _as_plain(broadcast, _PAIR)),
    "QLinearWhere": Quantised("Where", _at(0, 1, 4), _as_plain(broadcast, _at(0, 1, 4))),
    "QLinearConcat": Quantised("Concat", _parts, _as_plain(along, _parts)),
    "QLinearSigmoid": Quantised("Identity", _ONE, _first),
    "QLinearLeakyRelu": Quantised("Identity", _ONE, _first, ("alpha",)),
    "QLinearSoftmax": Quantised("Identity", _ONE, _softmax, ("opset", "axis")),
    "QLinearAveragePool": Quantised("AveragePool", _ONE, _average, ("channels_last",)),
}
