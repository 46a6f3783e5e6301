"""Every operator of the table, between two Convs, cut by hand and compared.

A case stands a node, in one of its spellings, between two Convs with random weights and cuts the
whole as one region, at every opset at which the operator's definition changed. The result is
compared with ONNX Runtime and, where that can run it, with onnx's reference evaluator. What the
table refuses is refused for the reason it should be.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotInRuntime

from patchconv_deploy.rewriters.operators.record import Record
from patchconv_deploy.rewriters.operators.rules import Entry
from patchconv_deploy.rewriters.operators.table import BARRIERS, CONTRIB, TABLE, rows_of
from patchconv_deploy.rewriters.regions.attention import KEYS
from tests.support.random_graphs import Graph
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import Array, noise, operators, run
from tests.support.tiers import slow

# A node between the Convs: gets the graph and the first Conv's output, [1, 4, 24, 6] of float32,
# and returns the second Conv's input.
Between: TypeAlias = Callable[[Graph, str], str]

_NEWEST = 26

_ROWS, _COLUMNS = 24, 6

_NOT_IN_RUNTIME = (Fail, InvalidArgument, InvalidGraph, NotInRuntime)

_FLOAT, _BOOL, _INT32, _INT64 = (
    TensorProto.FLOAT,
    TensorProto.BOOL,
    TensorProto.INT32,
    TensorProto.INT64,
)


def _graph(opset: int, batch: int = 1) -> Graph:
    return Graph("height", batch, opset, lambda low, high: low, np.random.default_rng(7))


def _model(between: Between, opset: int, batch: int = 1) -> onnx.ModelProto:
    """Put a node between two Convs."""
    g = _graph(opset, batch)
    g.inputs["x"] = (batch, 3, _ROWS, _COLUMNS)
    (x,) = g.node("Conv", ["x", g.weight(4, 3, 3, 3, scale=0.4), g.weight(4)], pads=[1] * 4)
    made = between(g, x)
    inner = helper.make_model(
        helper.make_graph(
            g.nodes,
            "inner",
            [helper.make_tensor_value_info("x", _FLOAT, g.inputs["x"])],
            [helper.make_tensor_value_info(made, _FLOAT, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in g.weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    inferred = onnx.shape_inference.infer_shapes(inner, data_prop=True)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    channels = dims[1].dim_value if len(dims) == 4 else 4
    w = g.weight(2, channels, 3, 3, scale=0.5 / np.sqrt(channels))
    g.node("Conv", [made, w], pads=[1] * 4)
    return g.model()


def _op(op: str, *more: Any, to_float: bool = False, **attrs: Any) -> Between:
    """Return one node on the image; further inputs are arrays, or "x" for the image again."""

    def between(g: Graph, x: str) -> str:
        inputs = [x, *(_input(g, x, given) for given in more)]
        (y,) = g.node(op, inputs, **attrs)
        return _cast(g, y, _FLOAT) if to_float else y

    return between


def _input(g: Graph, x: str, given: Any) -> str:
    if isinstance(given, str):
        return x if given == "x" else given
    array = np.asarray(given)
    return g.const(array, np.float32 if array.dtype == np.float64 else array.dtype)


def _cast(g: Graph, x: str, kind: int) -> str:
    return g.node("Cast", [x], to=kind)[0]


def _after(first: Between, then: Between) -> Between:
    return lambda g, x: then(g, first(g, x))


def _as(kind: int, then: Between) -> Between:
    """Run a node on the image cast to another type."""

    def between(g: Graph, x: str) -> str:
        (large,) = g.node("Mul", [x, g.const(5, np.float32)])
        (whole,) = g.node("Abs", [large])
        if kind == _BOOL:
            (mask,) = g.node("Greater", [x, g.const(0.1, np.float32)])
            return _cast(g, then(g, mask), _FLOAT)
        return _cast(g, then(g, _cast(g, whole, kind)), _FLOAT)

    return between


def _positive(g: Graph, x: str) -> str:
    (x,) = g.node("Abs", [x])
    return g.node("Add", [x, g.const(1.0, np.float32)])[0]


def _small(g: Graph, x: str) -> str:
    (x,) = g.node("Tanh", [x])
    return g.node("Mul", [x, g.const(0.9, np.float32)])[0]


def _axes(op: str, axes: Sequence[int], *, since: int, then: Between | None = None) -> Any:
    """Return a node whose axes are an attribute before an opset, an input from there on."""

    def between(g: Graph, x: str, **attrs: Any) -> str:
        if g.opset < since:
            (y,) = g.node(op, [x], axes=list(axes), **attrs)
        else:
            (y,) = g.node(op, [x, g.const(list(axes))], **attrs)
        return then(g, y) if then else y

    return between


def _reduce(op: str, axes: Sequence[int], keep: bool) -> Between:
    since = 13 if op == "ReduceSum" else 18
    made = _axes(op, axes, since=since)

    def between(g: Graph, x: str) -> str:
        x = _positive(g, x) if "Log" in op else x
        y: str = made(g, x, keepdims=int(keep))
        return y if keep else _unsqueeze(g, y, 1)

    return between


def _unsqueeze(g: Graph, x: str, axis: int) -> str:
    made: str = _axes("Unsqueeze", [axis], since=13)(g, x)
    return made


def _squeeze(g: Graph, x: str, *axes: int) -> str:
    made: str = _axes("Squeeze", axes, since=13)(g, x)
    return made


def _moved(perm: Sequence[int], then: Between) -> Between:
    """Run a node on the transposed image, and transpose it back."""
    back = [list(perm).index(k) for k in range(len(perm))]

    def between(g: Graph, x: str) -> str:
        (x,) = g.node("Transpose", [x], perm=list(perm))
        return g.node("Transpose", [then(g, x)], perm=back)[0]

    return between


def _slice(starts: Sequence[int], ends: Sequence[int], axes: Any, strides: Any = None) -> Between:
    def between(g: Graph, x: str) -> str:
        if g.opset < 10:
            attrs = {} if axes is None else {"axes": axes}
            return g.node("Slice", [x], starts=starts, ends=ends, **attrs)[0]
        inputs = [x, g.const(starts), g.const(ends)]
        inputs.append("" if axes is None else g.const(axes))
        if strides is not None:
            inputs.append(g.const(strides))
        return g.node("Slice", inputs)[0]

    return between


def _pad(begin: int, end: int, *, given_axes: bool = False, **attrs: Any) -> Between:
    def between(g: Graph, x: str) -> str:
        pads = [0, 0, begin, 1, 0, 0, end, 2]
        if g.opset < 11:
            more: Any = {"value": 0.3} if attrs.get("mode", "constant") == "constant" else {}
            return g.node("Pad", [x], pads=pads, **more, **attrs)[0]
        value = g.const(0.3, np.float32) if attrs.get("mode", "constant") == "constant" else ""
        if given_axes:
            inputs = [x, g.const([1, begin, 2, end]), value, g.const([3, -2])]
            return g.node("Pad", inputs, **attrs)[0]
        return g.node("Pad", [x, g.const(pads), *([value] if value else [])], **attrs)[0]

    return between


def _resize(factor: float, sizes: bool = False, **attrs: Any) -> Between:
    def between(g: Graph, x: str) -> str:
        scales = g.const([1, 1, factor, 2], np.float32)
        if g.opset == 10:
            kept = {k: v for k, v in attrs.items() if k == "mode"}
            return g.node("Resize", [x, scales], **kept)[0]
        given = {k: v for k, v in attrs.items() if k != "axes"}
        roi = g.const([], np.float32) if g.opset < 13 else ""
        if "axes" in attrs:
            given["axes"] = attrs["axes"]
            by_axis = {2: int(factor * _ROWS), 3: 2 * _COLUMNS}
            if sizes:
                tail = ["", "", g.const([by_axis[at % 4] for at in attrs["axes"]])]
            else:
                numbers = [{2: factor, 3: 2.0}[at % 4] for at in attrs["axes"]]
                tail = ["", g.const(numbers, np.float32)]
            return g.node("Resize", [x, *tail], **given)[0]
        if sizes:
            none = g.const([], np.float32) if g.opset < 13 else ""
            tail = [roi, none, g.const([g.batch, 4, int(factor * _ROWS), 2 * _COLUMNS])]
        else:
            tail = [roi, scales]
        return g.node("Resize", [x, *tail], **given)[0]

    return between


def _split(g: Graph, x: str) -> str:
    if g.opset < 13:
        parts = g.node("Split", [x], 2, axis=1, split=[1, 3])
    else:
        parts = g.node("Split", [x, g.const([1, 3])], 2, axis=-3)
    return g.node("Concat", parts[::-1], axis=1)[0]


def _split_equally(g: Graph, x: str) -> str:
    more = {"num_outputs": 2} if g.opset >= 18 else {}
    parts = g.node("Split", [x], 2, axis=1, **more)
    return g.node("Concat", parts[::-1], axis=1)[0]


def _dropout(g: Graph, x: str) -> str:
    if g.opset < 12:
        y, mask = g.node("Dropout", [x], 2, ratio=0.3)
    else:
        y, mask = g.node("Dropout", [x, g.const(0.3, np.float32), g.const(False, np.bool_)], 2)
    g.unread.add(mask)
    return y


def _clip(g: Graph, x: str) -> str:
    if g.opset < 11:
        return g.node("Clip", [x], min=-0.2, max=0.4)[0]
    return g.node("Clip", [x, g.const(-0.2, np.float32), g.const(0.4, np.float32)])[0]


def _clip_above(g: Graph, x: str) -> str:
    if g.opset < 11:
        return g.node("Clip", [x], max=0.4)[0]
    return g.node("Clip", [x, "", g.const(0.4, np.float32)])[0]


def _batch_norm(g: Graph, x: str) -> str:
    variance = g.const([0.5, 1, 2, 0.7], np.float32)
    return g.node("BatchNormalization", [x, *(g.weight(4) for _ in range(3)), variance])[0]


def _quantise(scales: Any, back: bool = True, **attrs: Any) -> Between:
    def between(g: Graph, x: str) -> str:
        scale, zero = g.const(scales, np.float32), g.const(np.full_like(scales, 3), np.uint8)
        if g.opset < 13:
            attrs.pop("axis", None)
        (q,) = g.node("QuantizeLinear", [x, scale, zero], **attrs)
        return g.node("DequantizeLinear", [q, scale, zero], **attrs)[0] if back else q

    return between


def _conv_integer(g: Graph, x: str) -> str:
    scale, zero = g.const(0.05, np.float32), g.const(3, np.uint8)
    (q,) = g.node("QuantizeLinear", [x, scale, zero])
    w = g.const(g.rng.integers(0, 9, (4, 4, 3, 3)), np.uint8)
    (y,) = g.node("ConvInteger", [q, w, zero], pads=[1] * 4)
    return g.node("Mul", [_cast(g, y, _FLOAT), g.const(0.01, np.float32)])[0]


def _conv_quantised(g: Graph, x: str) -> str:
    scale, zero = g.const(0.05, np.float32), g.const(3, np.uint8)
    (q,) = g.node("QuantizeLinear", [x, scale, zero])
    w = g.const(g.rng.integers(0, 9, (4, 4, 3, 3)), np.uint8)
    weights = [w, g.const(0.02, np.float32), g.const(4, np.uint8)]
    out = [g.const(0.1, np.float32), g.const(100, np.uint8)]
    (y,) = g.node("QLinearConv", [q, scale, zero, *weights, *out], pads=[1] * 4, strides=[2, 1])
    return g.node("DequantizeLinear", [y, *out])[0]


def _upsample(mode: str) -> Between:
    def between(g: Graph, x: str) -> str:
        return g.node("Upsample", [x, g.const([1, 1, 2, 2], np.float32)], mode=mode)[0]

    return between


def _nhwc_reshape(g: Graph, x: str) -> str:
    """[N, C, H, W] -> [N, 2, C/2, H, W], halves swapped."""
    (x,) = g.node("Reshape", [x, g.const([0, 2, 2, _ROWS, _COLUMNS])])
    (x,) = g.node("Transpose", [x], perm=[0, 2, 1, 3, 4])
    return g.node("Reshape", [x, g.const([0, -1, _ROWS, _COLUMNS])])[0]


def _flat_columns(g: Graph, x: str) -> str:
    """[N, C, H, W] -> [N*C, H, W] and back."""
    (x,) = g.node("Reshape", [x, g.const([-1, _ROWS, _COLUMNS])])
    (x,) = g.node("Sigmoid", [x])
    return g.node("Reshape", [x, g.const([1, 4, _ROWS, _COLUMNS])])[0]


def _gather(indices: Any, axis: int) -> Between:
    def between(g: Graph, x: str) -> str:
        (y,) = g.node("Gather", [x, g.const(indices)], axis=axis)
        return _unsqueeze(g, y, 1) if np.ndim(indices) == 0 else y

    return between


def _gather_two(g: Graph, x: str) -> str:
    """Two axes of indices make a fifth dimension."""
    (y,) = g.node("Gather", [x, g.const([[0, 3], [2, 1]])], axis=1)
    return g.node("Reshape", [y, g.const([1, 4, _ROWS, _COLUMNS])])[0]


def _arg(op: str, keep: bool) -> Between:
    def between(g: Graph, x: str) -> str:
        (y,) = g.node(op, [x], axis=1, keepdims=int(keep))
        return _cast(g, y if keep else _unsqueeze(g, y, 1), _FLOAT)

    return between


def _expand(g: Graph, x: str) -> str:
    (x,) = g.node("Expand", [_unsqueeze(g, x, 1), g.const([1, 2, 4, _ROWS, _COLUMNS])])
    return g.node("Reshape", [x, g.const([1, 8, _ROWS, _COLUMNS])])[0]


def _there_and_back(g: Graph, x: str) -> str:
    """A dimension of one before the rows, and one behind the last; some counted from the end."""
    x = _axes("Unsqueeze", [-1, 2] if g.opset >= 13 else [2, 5], since=13)(g, x)
    (x,) = g.node("Relu", [x])
    return _squeeze(g, _squeeze(g, x, 2), -1 if g.opset >= 13 else 4)


def _squeeze_all(g: Graph, x: str) -> str:
    """No axes given: every dimension of one goes."""
    (x,) = g.node("Squeeze", [x])
    return _unsqueeze(g, x, 0)


def _bits(op: str) -> Between:
    def between(g: Graph, x: str) -> str:
        other = g.const(g.rng.integers(0, 4, (4, _ROWS, 1)), np.uint8)
        attrs: Any = {"direction": "LEFT"} if op == "BitShift" else {}
        return g.node(op, [x, other], **attrs)[0]

    return _as(TensorProto.UINT8, between)


def _logic(op: str) -> Between:
    def between(g: Graph, x: str) -> str:
        other = g.const(g.rng.random((1, _ROWS, _COLUMNS)) > 0.5, np.bool_)
        return g.node(op, [x, other])[0]

    return _as(_BOOL, between)


def _normalise(op: str, axis: int, *sizes: int) -> Between:
    count = 2 if op == "LayerNormalization" else 1

    def between(g: Graph, x: str) -> str:
        return g.node(op, [x, *(g.weight(*sizes) for _ in range(count))], axis=axis)[0]

    return between


def _second(op: str, first: Any, *more: Any, **attrs: Any) -> Between:
    """Return a product whose second factor the image is."""

    def between(g: Graph, x: str) -> str:
        inputs = [_input(g, x, first), x, *(_input(g, x, given) for given in more)]
        return g.node(op, inputs, **attrs)[0]

    return between


def _flat(then: Between, turned: bool = False, turned_back: bool = False) -> Between:
    """Run a node on the image as a matrix, a pixel a row, or a column where it is turned."""

    def between(g: Graph, x: str) -> str:
        (x,) = g.node("Transpose", [x], perm=[0, 2, 3, 1])
        (x,) = g.node("Reshape", [x, g.const([_ROWS * _COLUMNS, 4])])
        if turned:
            (x,) = g.node("Transpose", [x], perm=[1, 0])
        y = then(g, x)
        if turned_back:
            (y,) = g.node("Transpose", [y], perm=[1, 0])
        (y,) = g.node("Reshape", [y, g.const([1, _ROWS, _COLUMNS, 4])])
        return g.node("Transpose", [y], perm=[0, 3, 1, 2])[0]

    return between


def _of_tokens(*more: Array) -> Between:
    """Let rows be tokens, of four heads in the channels, and attend."""

    def between(g: Graph, x: str) -> str:
        (x,) = g.node("Transpose", [x], perm=[0, 2, 1, 3])
        (x,) = g.node("Reshape", [x, g.const([1, _ROWS, 4 * _COLUMNS])])
        y = _op("Attention", *more, q_num_heads=4, kv_num_heads=4)(g, x)
        (y,) = g.node("Reshape", [y, g.const([1, _ROWS, 4, _COLUMNS])])
        return g.node("Transpose", [y], perm=[0, 2, 1, 3])[0]

    return between


def _cast_like(g: Graph, x: str) -> str:
    (y,) = g.node("CastLike", [x, g.const([1], np.int32)])
    return _cast(g, y, _FLOAT)


def _where(g: Graph, x: str) -> str:
    mask = g.const(g.rng.random((_ROWS, 1)) > 0.5, np.bool_)
    (y,) = g.node("Where", [mask, x, g.const(0.3, np.float32)])
    (mask,) = g.node("Greater", [y, x])
    return g.node("Where", [mask, g.weight(4, 1, 1), y])[0]


def _several(op: str) -> Between:
    return lambda g, x: g.node(op, [x, g.weight(_ROWS, 1), g.weight(4, 1, 1), x])[0]


_FMOD: Mapping[str, Any] = {"Mod": {"fmod": 1}}


def _itself(op: str) -> Between:
    """Both operands are made of the same image."""
    return lambda g, x: g.node(op, [x, _positive(g, x)], **_FMOD.get(op, {}))[0]


def _constant_first(op: str) -> Between:
    return lambda g, x: g.node(op, [g.weight(_ROWS, 1), _positive(g, x)], **_FMOD.get(op, {}))[0]


def _not_a_number(g: Graph, x: str) -> str:
    (y,) = g.node("IsNaN", g.node("Log", [x]))
    return _cast(g, y, _FLOAT)


def _infinite(g: Graph, x: str) -> str:
    (y,) = g.node("IsInf", g.node("Reciprocal", g.node("Relu", [x])))
    return _cast(g, y, _FLOAT)


_UNARY = (
    "Abs Asinh Atan Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity "
    "LeakyRelu Mish Neg Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Swish Tan "
    "Tanh ThresholdedRelu"
).split()

_PAIRS = "Add Sub Mul Div Mod".split()

_COMPARISONS = "Equal Less LessOrEqual Greater GreaterOrEqual".split()

_LOGIC = "And Or Xor".split()

_BITS = "BitShift BitwiseAnd BitwiseOr BitwiseXor".split()

_REDUCTIONS = [op for op in TABLE if op.startswith("Reduce")]

Spelling: TypeAlias = tuple[Between, int, int]


def _at(between: Between, least: int = 9, most: int = _NEWEST) -> Spelling:
    return between, least, most


_ROW_NUMBERS = np.arange(_ROWS, dtype=np.float64).reshape(_ROWS, 1) / 10 + 0.1

SPELLINGS: Mapping[str, Sequence[Spelling]] = {
    **{op: [_at(_op(op))] for op in _UNARY},
    **{op: [_at(_after(_small, _op(op)))] for op in ("Acos", "Asin", "Atanh")},
    **{op: [_at(_after(_positive, _op(op)))] for op in ("Acosh", "Log", "Sqrt", "Reciprocal")},
    **{
        op: [
            _at(_op(op, _ROW_NUMBERS, **_FMOD.get(op, {}))),
            _at(_op(op, np.arange(1.0, 5).reshape(4, 1, 1), **_FMOD.get(op, {}))),
            _at(_itself(op)),
            _at(_constant_first(op)),
        ]
        for op in _PAIRS
    },
    "Pow": [
        _at(_after(_positive, _op("Pow", _ROW_NUMBERS))),
        _at(_op("Pow", 2.0)),
        _at(_op("Pow", np.asarray(3, np.int64)), 12),
    ],
    **{
        op: [
            _at(_as(_INT32, _op(op, np.arange(_ROWS, dtype=np.int32).reshape(-1, 1) % 5))),
            _at(_as(_INT64, _op(op, np.asarray(3, np.int64)))),
        ]
        for op in _COMPARISONS
    },
    **{op: [_at(_logic(op))] for op in _LOGIC},
    **{op: [_at(_bits(op))] for op in _BITS},
    "Not": [_at(_as(_BOOL, _op("Not")))],
    "BitwiseNot": [_at(_as(_INT32, _op("BitwiseNot")))],
    **{op: [_at(_several(op)), _at(_op(op))] for op in ("Max", "Min", "Mean", "Sum")},
    "IsNaN": [_at(_not_a_number)],
    "IsInf": [_at(_infinite)],
    **{
        op: [
            _at(_reduce(op, [1], keep=True)),
            _at(_reduce(op, [-3] if op != "ReduceL1" else [1], keep=False), 11),
            _at(_reduce(op, [1, 3], keep=True)),
        ]
        for op in _REDUCTIONS
    },
    "PRelu": [_at(_op("PRelu", np.arange(4.0).reshape(4, 1, 1))), _at(_op("PRelu", _ROW_NUMBERS))],
    "Clip": [_at(_clip), _at(_clip_above), _at(_op("Clip"))],
    "Where": [_at(_where)],
    "Cast": [
        _at(_op("Cast", to=TensorProto.INT32, to_float=True)),
        _at(_op("Cast", to=TensorProto.DOUBLE, to_float=True)),
    ],
    "CastLike": [_at(_cast_like)],
    "Dropout": [_at(_dropout), _at(_op("Dropout"))],
    "CumSum": [
        _at(_op("CumSum", np.asarray(1, np.int32))),
        _at(_op("CumSum", np.asarray(-1, np.int64), exclusive=1, reverse=1)),
    ],
    "BatchNormalization": [_at(_batch_norm)],
    "LRN": [_at(_op("LRN", size=3, alpha=0.2))],
    "Conv": [
        _at(_op("Conv", noise(4, 4, 5, 3), pads=[2, 1, 1, 1], strides=[2, 1])),
        _at(_op("Conv", noise(4, 4, 3, 3), auto_pad="SAME_UPPER", strides=[3, 1])),
        _at(_op("Conv", noise(8, 1, 3, 3), noise(8), group=4, dilations=[2, 1])),
        _at(
            lambda g, x: _unsqueeze(
                g,
                g.node(
                    "Conv",
                    [_squeeze(g, g.node("ReduceMean", [x], axes=[3])[0], 3), g.weight(4, 4, 3)],
                    pads=[1, 1],
                )[0],
                3,
            ),
            9,
            17,
        ),
    ],
    "ConvInteger": [_at(_conv_integer)],
    "QLinearConv": [_at(_conv_quantised)],
    "ConvTranspose": [
        _at(_op("ConvTranspose", noise(4, 3, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])),
        _at(_op("ConvTranspose", noise(4, 3, 3, 3), strides=[2, 1], output_padding=[1, 0])),
        _at(_op("ConvTranspose", noise(4, 3, 3, 3), strides=[2, 2], output_shape=[49, 13])),
        _at(_op("ConvTranspose", noise(4, 3, 3, 3), strides=[2, 1], auto_pad="SAME_LOWER")),
    ],
    "MaxPool": [
        _at(_op("MaxPool", kernel_shape=[2, 2], strides=[2, 2])),
        _at(_op("MaxPool", kernel_shape=[3, 1], strides=[1, 1], pads=[1, 0, 1, 0])),
        _at(_op("MaxPool", kernel_shape=[3, 1], strides=[2, 1], ceil_mode=1), 10),
        _at(_op("MaxPool", kernel_shape=[3, 2], strides=[2, 1], auto_pad="SAME_UPPER")),
        _at(_op("MaxPool", kernel_shape=[3, 1], dilations=[2, 1]), 10),
    ],
    "AveragePool": [
        _at(_op("AveragePool", kernel_shape=[3, 3], pads=[1] * 4)),
        _at(_op("AveragePool", kernel_shape=[3, 1], pads=[1, 0, 1, 0], count_include_pad=1)),
        _at(_op("AveragePool", kernel_shape=[3, 1], strides=[2, 1], ceil_mode=1), 10),
        _at(_op("AveragePool", kernel_shape=[3, 1], dilations=[2, 1]), 19),
    ],
    "LpPool": [
        _at(_op("LpPool", kernel_shape=[2, 2], p=2)),
        _at(_op("LpPool", kernel_shape=[3, 2], p=1, strides=[2, 1], pads=[1, 0, 1, 0])),
    ],
    "Resize": [
        _at(_resize(2)),
        _at(_resize(0.5)),
        _at(_resize(3, nearest_mode="floor", coordinate_transformation_mode="asymmetric"), 11),
        _at(_resize(2, sizes=True, nearest_mode="ceil"), 11),
        _at(_resize(2, mode="linear")),
        _at(_resize(4, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"), 11),
        _at(_resize(0.25, sizes=True, mode="linear"), 11),
        _at(_resize(2, mode="cubic", cubic_coeff_a=-0.6, exclude_outside=1), 11),
        _at(_resize(0.5, sizes=True, mode="cubic"), 11),
        _at(_resize(2, mode="linear", axes=[-1, 2]), 18),
        _at(_resize(2, sizes=True, axes=[3, 2]), 18),
        _at(
            _resize(
                2,
                sizes=True,
                axes=[3],
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            ),
            18,
        ),
    ],
    "Upsample": [_at(_upsample("nearest"), 9, 9), _at(_upsample("linear"), 9, 9)],
    "DepthToSpace": [
        _at(_op("DepthToSpace", blocksize=2)),
        _at(_op("DepthToSpace", blocksize=2, mode="CRD"), 11),
    ],
    "SpaceToDepth": [_at(_op("SpaceToDepth", blocksize=2))],
    "Pad": [
        _at(_pad(2, 1)),
        _at(_pad(3, 2, mode="reflect")),
        _at(_pad(2, 3, mode="edge")),
        _at(_pad(-2, 1)),
        _at(_pad(-1, -3)),
        _at(_pad(-2, 3, mode="edge")),
        _at(_pad(2, 1, given_axes=True, mode="reflect"), 18),
    ],
    "Slice": [
        _at(_slice([1], [23], [2])),
        _at(_slice([2, 1], [-3, 5], [2, 3])),
        _at(_slice([-20], [1 << 31], [-2]), 10),
        _at(_slice([0, 1, 3, 0], [1, 4, 20, 6], None)),
        _at(_slice([1], [24], [2], [3]), 10),
        _at(_slice([3], [0], [1], [-1]), 10),
        _at(_slice([0], [2], [1])),
    ],
    "QuantizeLinear": [
        _at(_quantise(0.05), 10),
        _at(_quantise(np.array([0.05, 0.02, 0.07, 0.04]), axis=1), 13),
        _at(_quantise(np.array([0.05, 0.02, 0.07, 0.04]), axis=-3), 13),
    ],
    "DequantizeLinear": [_at(_quantise(0.05), 10)],
    **{
        op: [
            _at(_op(op, axis=1), 13),
            _at(_op(op), 13),
            _at(_moved([0, 2, 3, 1], _op(op)), 13),
            _at(_op(op, axis=3), 9, 12),
        ]
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    },
    "Concat": [
        _at(_op("Concat", "x", axis=1)),
        _at(_op("Concat", noise(1, 2, _ROWS, _COLUMNS), axis=1)),
        _at(_op("Concat", noise(1, 4, _ROWS, 2), axis=-1 + 4)),
        _at(_op("Concat", "x", axis=-3), 11),
    ],
    "Split": [_at(_split), _at(_split_equally)],
    "Gather": [
        _at(_gather([2, 0], 1)),
        _at(_gather(1, 1)),
        _at(_gather([1, 1], -1), 11),
        _at(_gather_two),
    ],
    **{op: [_at(_arg(op, keep=True)), _at(_arg(op, keep=False))] for op in ("ArgMax", "ArgMin")},
    "LayerNormalization": [
        _at(_moved([0, 2, 3, 1], _normalise("LayerNormalization", -1, 4))),
        _at(_normalise("LayerNormalization", 3, _COLUMNS)),
    ],
    "RMSNormalization": [_at(_moved([0, 2, 3, 1], _normalise("RMSNormalization", -1, 4)))],
    "MatMul": [
        _at(_moved([0, 2, 3, 1], _op("MatMul", noise(4, 3)))),
        _at(_op("MatMul", noise(1, 1, _COLUMNS, 5))),
        _at(_op("MatMul", noise(1, 4, _COLUMNS, 5))),
        _at(_moved([0, 2, 1, 3], _op("MatMul", noise(_COLUMNS, 5)))),
        _at(_moved([0, 1, 3, 2], _second("MatMul", noise(_COLUMNS, _COLUMNS)))),
        _at(_moved([0, 1, 3, 2], _second("MatMul", noise(1, 4, _COLUMNS, _COLUMNS)))),
        _at(_moved([0, 2, 3, 1], _op("MatMul", noise(1, _ROWS, 4, 4)))),
    ],
    "Gemm": [
        _at(_flat(_op("Gemm", noise(4, 4), noise(4), alpha=0.5, beta=2.0))),
        _at(_flat(_op("Gemm", noise(4, 4), noise(_ROWS * _COLUMNS, 1), transB=1))),
        _at(_flat(_op("Gemm", noise(4, 4), transA=1), turned=True), 11),
        _at(_flat(_second("Gemm", noise(4, 4), noise(4, 1)), turned=True, turned_back=True)),
        _at(_flat(_second("Gemm", noise(4, 4), noise(1), transB=1), turned_back=True)),
    ],
    "Einsum": [
        _at(_op("Einsum", noise(4, 4), equation="nchw,cd->ndhw"), 12),
        _at(_op("Einsum", noise(_ROWS, 4, 4), equation="n c h w, h c d -> n d h w"), 12),
        _at(_second("Einsum", noise(4, 4), equation="dc,Nchw->Ndhw"), 12),
        _at(_op("Einsum", "x", equation="nchw,nchw->nchw"), 12),
        _at(_moved([0, 2, 1, 3], _op("Einsum", noise(1, 1, 4, 5), equation="nhcw,nhck->nhck")), 12),
    ],
    "Attention": [
        _at(_op("Attention", noise(1, 4, 9, _COLUMNS), noise(1, 4, 9, _COLUMNS)), 23),
        _at(
            _op("Attention", noise(1, 2, 9, 6), noise(1, 2, 9, 6), noise(_ROWS, 9), softcap=2.0), 23
        ),
        _at(
            _op(
                "Attention", noise(1, 4, 9, 6), noise(1, 4, 9, 6), noise(_ROWS, 9) > -0.5, scale=0.9
            ),
            23,
        ),
        _at(_of_tokens(noise(1, 9, 24), noise(1, 9, 24), noise(1, 1, _ROWS, 9)), 23),
        _at(
            _moved(
                [2, 0, 1, 3],
                _op("Attention", noise(_ROWS, 1, 7, 6), noise(_ROWS, 1, 7, 6), noise(24, 1, 4, 7)),
            ),
            23,
        ),
    ],
    "Transpose": [_at(_moved([0, 3, 2, 1], _op("Relu"))), _at(_moved([2, 0, 3, 1], _op("Relu")))],
    "Squeeze": [_at(_there_and_back), _at(_squeeze_all)],
    "Unsqueeze": [_at(_there_and_back)],
    "Reshape": [_at(_nhwc_reshape), _at(_flat_columns)],
    "Expand": [_at(_expand)],
    "Tile": [_at(_op("Tile", np.array([1, 2, 1, 3])))],
}

_SCHEMAS = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""]


def _opsets(op: str, least: int, most: int) -> list[int]:
    """Return the opsets at which an operator's definition changed."""
    since = [s.since_version for s in _SCHEMAS if s.name == op and not s.deprecated]
    gone = [s.since_version for s in _SCHEMAS if s.name == op and s.deprecated]
    opsets = {max(version, least) for version in since}
    return sorted(opset for opset in opsets if opset <= min([most, *(g - 1 for g in gone)]))


def _tiered(op: str, number: int, opsets: Sequence[int]) -> list[Any]:
    """Return a spelling's cases: its first and last opset by default, those between are slow."""
    return [
        (op, number, opset) if opset in (opsets[0], opsets[-1]) else slow(op, number, opset)
        for opset in opsets
    ]


_CASES = [
    case
    for op, spellings in SPELLINGS.items()
    for number, (_, least, most) in enumerate(spellings)
    if (opsets := _opsets(op, least, most))
    for case in _tiered(op, number, opsets)
]


def test_none_is_missing() -> None:
    """Every entry of the table has a spelling here, and none has without being there."""
    assert set(SPELLINGS) == set(TABLE)


@pytest.mark.parametrize(("op", "number", "opset"), _CASES)
def test_operator(op: str, number: int, opset: int) -> None:
    """The node and its Convs are one region, and the cut model computes the same."""
    between = SPELLINGS[op][number][0]
    model = _model(between, opset)
    feeds = {"x": noise(1, 3, _ROWS, _COLUMNS, seed=5)}
    for form, splits in (("fused", 3), ("shrinking", 3), ("loop", 2)):
        made = tile_all(model, splits, form)
        assert op in made.operators, made.reasons
        assert len(made.plans) == 1, made.reasons
        assert _compare(model, made.model, feeds)


def _compare(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Any]) -> int:
    """Compare with ONNX Runtime and the reference evaluator; return how many could run it."""
    pairs = []
    try:
        expected = run(before, feeds)
    except _NOT_IN_RUNTIME:
        pass
    else:
        pairs.append((expected, run(after, feeds)))
    if before.opset_import[0].version < 14 and "BatchNormalization" in operators(before):
        return len(pairs)  # the reference takes statistics of the image, as if it were training
    try:
        evaluated: Any = ReferenceEvaluator(before).run(None, dict(feeds))
        names = [value.name for value in before.graph.output]
        again: Any = ReferenceEvaluator(after).run(None, dict(feeds))
    except Exception:  # noqa: BLE001 - it lacks types and operators, and raises of every kind
        pass
    else:
        pairs.append(
            (dict(zip(names, evaluated, strict=True)), dict(zip(names, again, strict=True)))
        )
    for wanted, got in pairs:
        assert list(wanted) == list(got)
        for name, array in wanted.items():
            largest = float(np.nanmax(np.abs(array), initial=0))
            np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * largest + 1e-7)
            assert largest > 0
    return len(pairs)


def _run_time(g: Graph, values: Any) -> str:
    """Return integers that are known at run time alone, though not their number."""
    g.inputs.setdefault("n", (1,))
    wanted = np.asarray(values)
    (zero,) = g.node("Mul", ["n", g.const([0.0], np.float32)])
    (n,) = g.node("Add", [_cast(g, zero, _INT64), g.const(wanted)])
    return n


def _reshaped(*dims: int) -> Between:
    def between(g: Graph, x: str) -> str:
        (x,) = g.node("Reshape", [x, g.const(dims)])
        (x,) = g.node("Softmax", [x], axis=-1)
        return g.node("Reshape", [x, g.const([1, 4, _ROWS, _COLUMNS])])[0]

    return between


def _indices(g: Graph, x: str) -> str:
    y, indices = g.node("MaxPool", [x], 2, kernel_shape=[2, 2], strides=[2, 2])
    return g.node("Add", [y, _cast(g, indices, _FLOAT)])[0]


def _training_dropout(g: Graph, x: str) -> str:
    return g.node("Dropout", [x, g.const(0.0, np.float32), g.const(True, np.bool_)])[0]


def _dropout_mask(g: Graph, x: str) -> str:
    y, mask = g.node("Dropout", [x], 2)
    return g.node("Add", [y, _cast(g, mask, _FLOAT)])[0]


def _training_norm(g: Graph, x: str) -> str:
    weights = [g.weight(4), g.weight(4), g.weight(4), g.const([0.5, 1, 2, 0.7], np.float32)]
    y, *more = g.node("BatchNormalization", [x, *weights], 3, training_mode=1)
    g.unread.update(more)
    return y


def _statistics(g: Graph, x: str) -> str:
    """LayerNormalization's mean is used too."""
    (x,) = g.node("Transpose", [x], perm=[0, 2, 3, 1])
    y, mean = g.node("LayerNormalization", [x, g.weight(4)], 2)
    (y,) = g.node("Add", [y, mean])
    return g.node("Transpose", [y], perm=[0, 3, 1, 2])[0]


def _scale_along_rows(g: Graph, x: str) -> str:
    """LayerNormalization over columns, its scale another one in each row."""
    return g.node("LayerNormalization", [x, g.weight(_ROWS, _COLUMNS)], axis=-1)[0]


def _rms_scale_along_rows(g: Graph, x: str) -> str:
    return g.node("RMSNormalization", [x, g.weight(_ROWS, _COLUMNS)], axis=-1)[0]


def _roi(g: Graph, x: str) -> str:
    roi = g.const([0, 0, 0.25, 0, 1, 1, 0.75, 1], np.float32)
    scales = g.const([1, 1, 2, 1], np.float32)
    attrs: Any = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    return g.node("Resize", [x, roi, scales], **attrs)[0]


def _keys_alone(g: Graph, x: str) -> str:
    """One query, made of the whole image: each row is weighed against all others."""
    (query,) = g.node("ReduceMax", [x], axes=[2], keepdims=1)
    (keys,) = g.node("Transpose", [x], perm=[0, 1, 3, 2])
    (weights,) = g.node("Softmax", g.node("MatMul", [query, keys]), axis=-1)
    return g.node("Add", [x, g.node("MatMul", [weights, x])[0]])[0]


def _cached_keys(g: Graph, x: str) -> str:
    """Keys and values of an earlier run stand before its own."""
    inputs = [x, *(g.weight(1, 4, 9, 6) for _ in range(2)), ""]
    y, *more = g.node("Attention", [*inputs, *(g.weight(1, 4, 5, 6) for _ in range(2))], 3)
    g.unread.update(more)
    return y


def _blocks(g: Graph, x: str) -> str:
    scale = g.const(np.full((1, 4, _ROWS, 1), 0.05), np.float32)
    (q,) = g.node("QuantizeLinear", [x, scale], axis=3, block_size=6, output_dtype=3)
    return g.node("DequantizeLinear", [q, scale], axis=3, block_size=6)[0]


def _at_run_time(op: str, *before: Any, values: Any, **attrs: Any) -> Between:
    def between(g: Graph, x: str) -> str:
        inputs = [x, *(_input(g, x, given) for given in before), _run_time(g, values)]
        return g.node(op, inputs, **attrs)[0]

    return between


REFUSALS: Mapping[str, tuple[Between, int]] = {
    "its Indices count positions in the whole image": (_indices, 17),
    "before opset 13 Softmax flattens its input": (_op("Softmax", axis=1), 11),
    "before opset 13 Hardmax flattens its input": (_op("Hardmax", axis=1), 9),
    "it concatenates along the tiled axis": (_op("Concat", "x", axis=2), 17),
    "it works along the tiled axis (Softmax)": (_op("Softmax", axis=-2), 17),
    "it works along the tiled axis (Split)": (
        lambda g, x: g.node("Add", g.node("Split", [x, g.const([12, 12])], 2, axis=2))[0],
        17,
    ),
    "it gathers along the tiled axis": (_op("Gather", np.arange(20)[::-1], axis=2), 17),
    "it searches along the tiled axis": (
        _op("ArgMax", axis=2, to_float=True),
        17,
    ),
    "it sums along the tiled axis": (_op("CumSum", np.asarray(-2)), 17),
    "it sums over the tiled axis": (_moved([0, 2, 1, 3], _op("LRN", size=3)), 17),
    "it reduces over the tiled axis": (_op("ReduceMax", axes=[2], keepdims=1), 17),
    "it normalises over the tiled axis": (
        lambda g, x: g.node("LayerNormalization", [x, g.weight(_ROWS, _COLUMNS)], axis=2)[0],
        17,
    ),
    "its scale is not the same in all rows": (_scale_along_rows, 17),
    "an output besides the first is used": (_dropout_mask, 17),
    "it is in training mode": (_training_dropout, 17),
    "its parameters vary along the tiled axis": (
        _moved(
            [0, 2, 1, 3],
            lambda g, x: g.node(
                "BatchNormalization",
                [x, *(g.weight(_ROWS) for _ in range(3)), g.const(np.ones(_ROWS), np.float32)],
            )[0],
        ),
        17,
    ),
    "its scales vary along the tiled or the batch axis": (
        _quantise(np.linspace(0.01, 0.1, _ROWS), axis=2),
        17,
    ),
    "its mode is 'wrap'": (_pad(2, 1, mode="wrap"), 19),
    "its padding is known at run time alone": (
        _at_run_time("Pad", values=[0, 0, 1, 0, 0, 0, 1, 0]),
        17,
    ),
    "it takes rows backwards": (_slice([23], [2], [2], [-1]), 17),
    "its bounds are known at run time alone": (_at_run_time("Slice", [1], values=[9]), 17),
    "it repeats the tiled axis": (_op("Tile", np.array([1, 1, 2, 1])), 17),
    "runtimes disagree on the size of what it reads or makes": (
        _op("MaxPool", kernel_shape=[2, 1], strides=[5, 1], pads=[0, 0, 1, 0], ceil_mode=1),
        17,
    ),
    "coordinate_transformation_mode is 'align_corners'": (
        _resize(2, mode="linear", coordinate_transformation_mode="align_corners"),
        17,
    ),
    "coordinate_transformation_mode is 'tf_crop_and_resize'": (_roi, 17),
    "coordinate_transformation_mode is 'half_pixel_symmetric'": (
        _resize(2, mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
        19,
    ),
    "antialias widens the kernel with the factor": (_resize(0.5, mode="linear", antialias=1), 18),
    "its factor rounds differently from row to row (only powers of two are exact)": (
        _resize(3, mode="linear"),
        17,
    ),
    "its sizes are known at run time alone": (
        _at_run_time("Resize", "", "", values=[1, 4, 48, 12]),
        17,
    ),
    "it takes rows apart or puts them together": (_reshaped(1, 4, 9, 16), 17),
    "it sums products over the tiled axis": (
        _moved([0, 1, 3, 2], _op("MatMul", noise(_ROWS, _ROWS))),
        17,
    ),
    KEYS: (_keys_alone, 17),
    "its mask is counted from the first query on": (
        _op("Attention", noise(1, 4, 24, 6), noise(1, 4, 24, 6), is_causal=1),
        23,
    ),
    "the tiled axis is that of its heads or channels": (
        _moved([0, 2, 1, 3], _op("Attention", noise(1, 24, 9, 6), noise(1, 24, 9, 6))),
        23,
    ),
    "how many of its keys count is known at run time alone": (_cached_keys, 23),
    "its equation leaves letters open": (_op("Einsum", noise(4, 4), equation="nchw,cd"), 17),
    "it takes a diagonal along the tiled axis": (
        _op("Einsum", noise(_ROWS, _ROWS), equation="nchw,hh->nchw"),
        17,
    ),
    "its output is asked to be larger than the kernel can fill": (
        _op("ConvTranspose", noise(4, 3, 3, 3), strides=[2, 1], output_shape=[60, 6]),
        17,
    ),
    "it is quantised block by block": (_blocks, 21),
    **{BARRIERS[op]: (_op(op), opset) for op, opset in (("MeanVarianceNormalization", 17),)},
    BARRIERS["GlobalAveragePool"]: (
        lambda g, x: g.node("Add", [x, g.node("GlobalAveragePool", [x])[0]])[0],
        17,
    ),
    BARRIERS["RandomNormalLike"]: (_op("RandomNormalLike"), 17),
    BARRIERS["DynamicQuantizeLinear"]: (
        lambda g, x: g.node("DequantizeLinear", g.node("DynamicQuantizeLinear", [x], 3))[0],
        17,
    ),
    "no rule says how this operator is cut": (_op("Trilu"), 17),
}


@pytest.mark.parametrize("reason", list(REFUSALS))
def test_refused(reason: str) -> None:
    """What cannot be cut is not, and says why."""
    between, opset = REFUSALS[reason]
    model = _model(between, opset)
    made = tile_all(model)
    assert reason in made.reasons


def test_aspect_ratio() -> None:
    """A Resize that keeps the aspect ratio makes sizes that depend on the whole."""
    between = _resize(2, sizes=True, axes=[2, 3], keep_aspect_ratio_policy="not_larger")
    made = tile_all(_model(between, 18))
    assert "Resize" not in made.operators
    assert any("disagree" in reason for reason in made.reasons)


_LISTS = (
    "pads strides dilations kernel_shape output_padding output_shape axes perm starts ends split "
    "scales"
).split()
_NUMBERS = "axis blocksize ceil_mode keepdims group block_size".split()


def _contradictory(draw: random.Random, op: str) -> tuple[Record, int]:
    """Return a record of a node whose lists and ranks do not fit each other, and a dimension."""

    def numbers(*choices: int) -> tuple[int, ...]:
        return tuple(draw.choice(choices) for _ in range(draw.randint(0, 6)))

    values: dict[str, Any] = {name: numbers(-1, 0, 1, 2, 3) for name in _LISTS}
    values |= {name: draw.randint(-3, 4) for name in _NUMBERS}
    values |= {"mode": draw.choice(["linear", "nearest", "constant", "reflect"])}
    values |= {"equation": draw.choice(["nchw,cd->ndhw", "bhqd,bhkd->bhqk", ""])}
    kept = {name: value for name, value in values.items() if draw.random() < 0.4}
    count, output = draw.randint(1, 6), numbers(1, 2, 8) or (1,)
    record = Record(
        op_type=op,
        opset=draw.choice([9, 13, 18, 21]),
        attributes=kept,
        shapes=tuple(numbers(1, 2, 8) for _ in range(count)),
        outputs=(output,),
        values=[draw.choice([None, numbers(-1, 0, 1, 2, 8)]) for _ in range(count)],
    )
    return record, draw.randrange(len(output))


@pytest.mark.parametrize("table", [TABLE, CONTRIB], ids=["onnx", "com.microsoft"])
def test_what_contradicts_itself_is_a_reason(table: Mapping[str, Entry]) -> None:
    """No list of a file is trusted to be as long as another one."""
    answers = Counter[str]()
    for op, entry in table.items():
        for seed in range(60):
            record, axis = _contradictory(random.Random(f"{op} {seed}"), op)
            found = rows_of(entry, record, axis)
            answers[found if isinstance(found, str) else "row-local"] += 1
    assert answers["its attributes do not fit its inputs"] > 0
    assert len(answers) > 3
