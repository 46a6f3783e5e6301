"""Each row from the same rows, with broadcasting: arithmetic, activations, quantisation."""

from __future__ import annotations

from patchconv_deploy.rewriters.operators.record import Record, RowLocal
from patchconv_deploy.rewriters.operators.rules import OverAllRows, same_rows
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise

__all__ = ["BROADCAST", "broadcast", "first_alone", "quantize"]


def broadcast(record: Record, axis: int) -> RowLocal | str:
    """Arithmetic, comparisons and activations, with operands of one row or of all."""
    shape = record.output
    if shape is None:
        return "its output's rank is unknown"
    if shape[axis] == 1:
        return "its output is one row"
    carriers = []
    for index, operand in enumerate(record.shapes):
        if index in record.absent:
            continue
        if operand is None:
            return "an operand's rank is unknown"
        at = axis - (len(shape) - len(operand))
        if at >= 0 and operand[at] != 1:
            carriers.append((index, at))
    if not carriers:
        return "none of its inputs has the tiled axis"
    return RowLocal(Pointwise(), tuple(carriers), axis)


def first_alone(record: Record, axis: int) -> RowLocal | str:
    """Operators that are elementwise in their first input; the others are per channel."""
    values = record.attributes
    if any(record.used[1:]):
        return "an output besides the first is used"
    match record.op_type:
        case "BatchNormalization":
            if values.get("training_mode", 0) or not values.get("spatial", 1):
                return "it is in training mode"
            if axis == 1:
                return "its parameters vary along the tiled axis"
        case "LRN" if axis == 1:
            return "it sums over the tiled axis"
        case "Dropout":
            training = record.value(2)
            if record.given(2) and (training is None or training[0]):
                return "it is in training mode"
        case "CumSum":
            at, rank = record.value(1), len(record.shape(0) or ())
            if not at or not rank or at[0] % rank == axis:
                return OverAllRows("it sums along the tiled axis")
    return same_rows(axis)


def quantize(record: Record, axis: int) -> RowLocal | str:
    """QuantizeLinear and DequantizeLinear, whose scales do not run along the rows."""
    scale, shape = record.shape(1), record.shape(0)
    if scale is None:
        return "its scale's shape is unknown"
    if record.attributes.get("block_size", 0):
        return "it is quantised block by block"
    if any(size != 1 for size in scale):
        at = record.attributes.get("axis", 1)
        if at < 0:
            if shape is None:
                return "its quantised axis counts from the end of an unknown rank"
            at += len(shape)
        if at in (0, axis):
            return "its scales vary along the tiled or the batch axis"
    return same_rows(axis)


BROADCAST = (
    # arithmetic, comparisons, logic
    "Add Sub Mul Div Pow Mod Max Min Mean Sum And Or Xor Not Equal Less LessOrEqual Greater "
    "GreaterOrEqual BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot Where PRelu Clip "
    # functions of one number
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Reciprocal Relu Round Selu "
    "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()
