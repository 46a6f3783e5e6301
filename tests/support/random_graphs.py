"""Random graphs of row-local nodes, for the property tests.

Weights are random and scaled to keep numbers near one, so that a wrong row shows wherever it is.
Sizes are kept by the generator itself: a graph that ONNX Runtime refuses is a fault of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.small_models import Array

__all__ = ["Graph", "random_graph"]


Draw = Callable[[int, int], int]

_LEAST, _MOST = 2, 72

_UNARY = (
    "Relu Sigmoid Tanh Abs Neg Elu Selu Softplus Softsign HardSigmoid LeakyRelu Identity Erf Sin "
    "Cos Floor Sign ThresholdedRelu"
).split()


@dataclass(frozen=True)
class _Image:
    """A tensor [N, channels, rows, columns], rows and columns swapped where width is cut."""

    name: str
    channels: int
    rows: int
    columns: int


@dataclass
class Graph:
    """A graph that grows.

    Attributes:
        axis: "height" or "width": the axis that `_Image.rows` counts.
        batch: Images.
        outputs: Tensors that are outputs although nodes read them.
        unread: Tensors that are none although nobody reads them.
        images: What a node may read.
        kinds: How it has grown.
    """

    axis: str
    batch: int
    opset: int
    draw: Draw
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    images: list[_Image] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)

    # --- spelling -------------------------------------------------------------------------------

    def both(self, along: Any, across: Any) -> list[Any]:
        """Order a pair of numbers for the spatial axes as the model has them."""
        return [along, across] if self.axis == "height" else [across, along]

    def pads(self, begin: int, end: int, left: int, right: int) -> list[int]:
        """Return padding as the model spells it."""
        return [*self.both(begin, left), *self.both(end, right)]

    def shape(self, image: _Image) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return (self.batch, image.channels, *self.both(image.rows, image.columns))

    @property
    def dim(self) -> int:
        """The dimension that is cut."""
        return 2 if self.axis == "height" else 3

    def weight(self, *shape: int, scale: float = 1.0, dtype: Any = np.float32) -> str:
        """Add random numbers and return their name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = (scale * self.rng.standard_normal(shape)).astype(dtype)
        return name

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """Add a constant and return its name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype=dtype)
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> list[str]:
        """Add a node and return its outputs."""
        at = len(self.nodes)
        names = [f"t{at}" if k == 0 else f"t{at}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n{at}", **attrs))
        return names

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        channels: int,
        rows: int,
        columns: int,
        **attrs: Any,
    ) -> _Image:
        """Add a node that makes an image other nodes may read."""
        image = _Image(self.node(op, inputs, **attrs)[0], channels, rows, columns)
        self.images.append(image)
        return image

    def pick(self) -> _Image:
        """Return one of the tensors, mostly one of the last."""
        back = self.draw(1, len(self.images)) if self.draw(0, 3) == 0 else 1
        return self.images[-back]

    def one_of(self, *values: Any) -> Any:
        """Return one of the values."""
        return values[self.draw(0, len(values) - 1)]

    def take_in(self, channels: int, rows: int, columns: int) -> _Image:
        """Add an input."""
        name = f"x{len(self.inputs)}"
        image = _Image(name, channels, rows, columns)
        self.inputs[name] = self.shape(image)
        self.images.append(image)
        return image

    def model(self) -> onnx.ModelProto:
        """Return the model; every tensor nobody reads is an output of it."""
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output]
        outputs = [n for n in made if n not in read | self.unread or n in self.outputs]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                for name, shape in self.inputs.items()
            ],
            [helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        made_model = helper.make_model(
            graph, ir_version=8, opset_imports=[helper.make_opsetid("", self.opset)]
        )
        inferred = onnx.shape_inference.infer_shapes(made_model)
        kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
        del made_model.graph.output[:]
        made_model.graph.output.extend(
            helper.make_tensor_value_info(n, kinds[n] or onnx.TensorProto.FLOAT, (None,) * 4)
            for n in outputs
        )
        return made_model

    def feeds(self) -> dict[str, Array]:
        """Return random inputs."""
        return {
            name: self.rng.standard_normal(shape).astype(np.float32)
            for name, shape in self.inputs.items()
        }


def _conv(g: Graph) -> bool:
    x = g.pick()
    kernel, stride = g.one_of(1, 2, 3, 3, 3, 5), g.one_of(1, 1, 1, 2, 3)
    dilation = g.one_of(1, 1, 2)
    reach = dilation * (kernel - 1) + 1
    begin, end = g.draw(0, min(3, reach - 1)), g.draw(0, min(3, reach - 1))
    if g.draw(0, 1):
        begin = end = reach // 2
    attrs: dict[str, Any] = {"pads": g.pads(begin, end, 1, 1)}
    rows = (x.rows + begin + end - reach) // stride + 1
    if g.draw(0, 5) == 0 and dilation == 1:
        attrs = {"auto_pad": g.one_of("SAME_UPPER", "SAME_LOWER")}
        rows = -(-x.rows // stride)
    group = x.channels if g.draw(0, 3) == 0 else 1
    out = group * g.draw(1, 2) if group > 1 else g.draw(1, 5)
    if not _LEAST <= rows <= _MOST or x.columns < 3 or out > 8:
        return False
    inner = x.channels // group
    w = g.weight(out, inner, *g.both(kernel, 3), scale=1.4 / np.sqrt(inner * kernel * 3))
    g.add(
        "Conv",
        [x.name, w, g.weight(out, scale=0.3)],
        out,
        rows,
        x.columns,
        strides=g.both(stride, 1),
        dilations=g.both(dilation, 1),
        group=group,
        **attrs,
    )
    return True


def _conv_transpose(g: Graph) -> bool:
    x = g.pick()
    stride, kernel = g.one_of(1, 2, 2, 3), g.draw(1, 5)
    begin, end = g.draw(0, min(2, kernel - 1)), g.draw(0, min(2, kernel - 1))
    extra = g.draw(0, stride - 1)
    rows = stride * (x.rows - 1) + extra + kernel - begin - end
    attrs: dict[str, Any] = {
        "pads": g.pads(begin, end, 1, 1),
        "output_padding": g.both(extra, 0),
    }
    # Of an output_shape below the input's onnx and ONNX Runtime infer the wrong rank.
    if g.draw(0, 3) == 0 and rows >= x.rows:
        attrs = {"output_shape": g.both(rows, x.columns), "output_padding": g.both(extra, 0)}
        if g.draw(0, 1):
            attrs["auto_pad"] = g.one_of("SAME_UPPER", "SAME_LOWER")
    if not _LEAST <= rows <= _MOST:
        return False
    out = g.draw(1, 4)
    w = g.weight(x.channels, out, *g.both(kernel, 3), scale=1 / np.sqrt(x.channels * kernel))
    g.add("ConvTranspose", [x.name, w], out, rows, x.columns, strides=g.both(stride, 1), **attrs)
    return True


def _pool(g: Graph) -> bool:
    x = g.pick()
    op = g.one_of("MaxPool", "AveragePool", "LpPool")
    kernel, stride = g.draw(1, 4), g.draw(1, 3)
    begin, end = g.draw(0, kernel // 2), g.draw(0, kernel // 2)
    ceil = g.draw(0, 3) == 0 and op != "LpPool"
    rows = (x.rows + begin + end - kernel + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and (rows - 1) * stride >= x.rows + begin:
        return False
    attrs: dict[str, Any] = {"pads": g.pads(begin, end, 0, 0), "ceil_mode": int(ceil)}
    if op == "LpPool":
        attrs.pop("ceil_mode")
    if g.draw(0, 4) == 0 and kernel >= stride:
        attrs = {"auto_pad": g.one_of("SAME_UPPER", "SAME_LOWER")}
        rows = -(-x.rows // stride)
    if op == "AveragePool":
        attrs["count_include_pad"] = g.draw(0, 1)
    if not _LEAST <= rows <= _MOST:
        return False
    g.add(
        op,
        [x.name],
        x.channels,
        rows,
        x.columns,
        kernel_shape=g.both(kernel, 1),
        strides=g.both(stride, 1),
        **attrs,
    )
    return True


def _resize(g: Graph) -> bool:
    x = g.pick()
    mode = g.one_of("nearest", "nearest", "linear", "linear", "cubic")
    up, down = g.one_of((2, 1), (2, 1), (4, 1), (1, 2), (1, 1), (3, 1), (5, 1))
    if x.rows % down:
        return False
    rows = x.rows * up // down
    if mode != "nearest" and up in (3, 5):
        mode = "nearest"
    if not _LEAST <= rows <= _MOST:
        return False
    attrs: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": g.one_of("half_pixel", "asymmetric")
        if up < 2
        else g.one_of("half_pixel", "asymmetric", "pytorch_half_pixel"),
    }
    if mode == "nearest":
        attrs["nearest_mode"] = g.one_of("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    image = _Image("", x.channels, rows, x.columns)
    if g.draw(0, 1):
        tail = ["", "", g.const(g.shape(image))]
    else:
        tail = ["", g.const([1, 1, *g.both(up / down, 1)], np.float32)]
    g.add("Resize", [x.name, *tail], x.channels, rows, x.columns, **attrs)
    return True


def _to_space(g: Graph) -> bool:
    x = g.pick()
    if x.channels < 4 or 2 * x.rows > _MOST or x.columns > 8:
        return False
    if x.channels % 4:
        (name,) = g.node("Conv", [x.name, g.weight(8, x.channels, 1, 1, scale=0.5)])
        x = _Image(name, 8, x.rows, x.columns)
    channels = x.channels // 4
    if g.draw(0, 2):
        g.add(
            "DepthToSpace",
            [x.name],
            channels,
            2 * x.rows,
            2 * x.columns,
            blocksize=2,
            mode=g.one_of("DCR", "CRD"),
        )
        return True
    space = g.both(x.rows, x.columns)
    (name,) = g.node("Reshape", [x.name, g.const([g.batch, channels, 2, 2, *space])])
    (name,) = g.node("Transpose", [name], perm=[0, 1, 4, 2, 5, 3])
    target = g.const([g.batch, channels, 2 * space[0], 2 * space[1]])
    g.add("Reshape", [name, target], channels, 2 * x.rows, 2 * x.columns)
    return True


def _to_depth(g: Graph) -> bool:
    x = g.pick()
    if x.rows % 2 or x.columns % 2 or x.columns < 6 or x.channels > 2 or x.rows < 6:
        return False
    g.add("SpaceToDepth", [x.name], 4 * x.channels, x.rows // 2, x.columns // 2, blocksize=2)
    return True


def _pad(g: Graph) -> bool:
    x = g.pick()
    mode = g.one_of("constant", "edge", "reflect")
    begin, end = g.draw(-2, 4), g.draw(-2, 4)
    rows = x.rows + begin + end
    left = x.rows + min(begin, 0) + min(end, 0)
    if not _LEAST <= rows <= _MOST or max(begin, end) >= left:
        return False
    sides = g.pads(begin, end, 0, 0)
    inputs = [x.name, g.const([0, 0, *sides[:2], 0, 0, *sides[2:]])]
    if mode == "constant":
        inputs.append(g.const(0.7, np.float32))
    g.add("Pad", inputs, x.channels, rows, x.columns, mode=mode)
    return True


def _slice(g: Graph) -> bool:
    x = g.pick()
    begin, end, stride = g.draw(0, 3), g.draw(0, 3), g.one_of(1, 1, 1, 2)
    rows = -(-(x.rows - begin - end) // stride)
    if not rows >= _LEAST:
        return False
    start = begin if g.draw(0, 1) else begin - x.rows
    stop = x.rows - end if g.draw(0, 1) else -end or np.iinfo(np.int64).max
    inputs = [x.name, *(g.const([n]) for n in (start, stop, g.dim, stride))]
    g.add("Slice", inputs, x.channels, rows, x.columns)
    return True


def _unary(g: Graph) -> bool:
    x = g.pick()
    g.add(g.one_of(*_UNARY), [x.name], x.channels, x.rows, x.columns)
    return True


def _partners(g: Graph, x: _Image) -> list[_Image]:
    return [i for i in g.images if (i.rows, i.columns) == (x.rows, x.columns) and i.name != x.name]


def _join(g: Graph) -> bool:
    x = g.pick()
    partners = _partners(g, x)
    if not partners:
        return False
    y = partners[g.draw(0, len(partners) - 1)]
    if x.channels == y.channels and g.draw(0, 2):
        op = g.one_of("Add", "Sub", "Mul", "Max", "Min")
        g.add(op, [x.name, y.name], x.channels, x.rows, x.columns)
        return True
    if x.channels + y.channels > 10:
        return False
    images = [x, y, x] if g.draw(0, 3) == 0 and 2 * x.channels + y.channels < 10 else [x, y]
    channels = sum(i.channels for i in images)
    g.add("Concat", [i.name for i in images], channels, x.rows, x.columns, axis=1)
    return True


def _crop_and_join(g: Graph) -> bool:
    """Cut the taller of two tensors to the other's rows, somewhere, and put them together."""
    x = g.pick()
    others = [i for i in g.images if i.columns == x.columns and 0 < i.rows - x.rows < 9]
    if not others:
        return False
    y = others[g.draw(0, len(others) - 1)]
    begin = g.draw(0, y.rows - x.rows)
    bounds = [g.const([n]) for n in (begin, begin + x.rows, g.dim)]
    (cropped,) = g.node("Slice", [y.name, *bounds])
    if x.channels + y.channels > 10:
        return False
    g.add("Concat", [x.name, cropped], x.channels + y.channels, x.rows, x.columns, axis=1)
    return True


def _with_constant(g: Graph) -> bool:
    x = g.pick()
    kind = g.draw(0, 5)
    size: tuple[int, ...] = (
        (1, x.channels, *g.both(x.rows, 1)),
        tuple(g.both(x.rows, x.columns)),
        (x.channels, 1, 1),
        (1, 1, *g.both(1, x.columns)),
        (),
        (x.channels, *g.both(x.rows, x.columns)),
    )[kind]
    names = [x.name, g.weight(*size)]
    g.add(g.one_of("Add", "Mul"), names[:: g.one_of(1, -1)], x.channels, x.rows, x.columns)
    return True


def _where(g: Graph) -> bool:
    x = g.pick()
    partners = [y for y in _partners(g, x) if y.channels == x.channels]
    if not partners:
        return False
    y = partners[0]
    (mask,) = g.node("Greater", [x.name, y.name])
    g.add("Where", [mask, x.name, y.name], x.channels, x.rows, x.columns)
    return True


def _norm(g: Graph) -> bool:
    x = g.pick()
    if g.draw(0, 1):
        several = [g.weight(x.channels) for _ in range(3)]
        variance = g.const(np.abs(g.rng.standard_normal(x.channels)) + 0.5, np.float32)
        g.add("BatchNormalization", [x.name, *several, variance], x.channels, x.rows, x.columns)
    else:
        g.add("LRN", [x.name], x.channels, x.rows, x.columns, size=3, alpha=0.1)
    return True


def _channels_last(g: Graph) -> bool:
    x = g.pick()
    (name,) = g.node("Transpose", [x.name], perm=[0, 2, 3, 1])
    for _ in range(g.draw(1, 3)):
        match g.draw(0, 3):
            case 0:
                w = g.weight(x.channels, x.channels, scale=1 / np.sqrt(x.channels))
                (name,) = g.node("MatMul", [name, w])
            case 1 if g.opset >= 17:
                (name,) = g.node(
                    "LayerNormalization",
                    [name, g.weight(x.channels), g.weight(x.channels)],
                    epsilon=0.01,
                )
            case 2:
                (name,) = g.node("Add", [name, g.weight(x.channels)])
            case _:
                (name,) = g.node("Softmax", [name], axis=-1)
    g.add("Transpose", [name], x.channels, x.rows, x.columns, perm=[0, 3, 1, 2])
    return True


def _over_channels(g: Graph) -> bool:
    x = g.pick()
    if x.channels < 2:
        return False
    match g.draw(0, 3):
        case 0:
            g.add("ReduceMax", [x.name], 1, x.rows, x.columns, axes=[1], keepdims=1)
        case 1:
            g.add("Softmax", [x.name], x.channels, x.rows, x.columns, axis=1)
        case 2:
            (name,) = g.node("ReduceSum", [x.name, g.const([1])], keepdims=0)
            g.add("Unsqueeze", [name, g.const([1])], 1, x.rows, x.columns)
        case _:
            (name,) = g.node("ArgMax", [x.name], axis=1, keepdims=1)
            g.add("Cast", [name], 1, x.rows, x.columns, to=onnx.TensorProto.FLOAT)
    return True


def _split(g: Graph) -> bool:
    x = g.pick()
    if x.channels < 2:
        return False
    first = g.draw(1, x.channels - 1)
    names = g.node("Split", [x.name, g.const([first, x.channels - first])], 2, axis=1)
    if g.draw(0, 1):
        g.add("Concat", names[::-1], x.channels, x.rows, x.columns, axis=1)
    else:
        g.images.append(_Image(names[0], first, x.rows, x.columns))
        g.images.append(_Image(names[1], x.channels - first, x.rows, x.columns))
    return True


def _shuffle(g: Graph) -> bool:
    x = g.pick()
    if x.channels % 2:
        return False
    space = g.both(x.rows, x.columns)
    (name,) = g.node("Reshape", [x.name, g.const([g.batch, 2, x.channels // 2, *space])])
    (name,) = g.node("Transpose", [name], perm=[0, 2, 1, 3, 4])
    target = g.const([g.batch, x.channels, *space] if g.draw(0, 1) else [0, -1, *space])
    g.add("Reshape", [name, target], x.channels, x.rows, x.columns)
    return True


def _squeeze_excite(g: Graph) -> bool:
    x = g.pick()
    kind = g.draw(0, 2)
    if kind == 0:
        (name,) = g.node("GlobalAveragePool", [x.name])
    elif kind == 1:
        (name,) = g.node("AveragePool", [x.name], kernel_shape=g.both(x.rows, x.columns))
    else:
        (name,) = g.node("ReduceMean", [x.name], axes=[2, 3], keepdims=1)
    (name,) = g.node("Conv", [name, g.weight(x.channels, x.channels, 1, 1)])
    (name,) = g.node("Sigmoid", [name])
    g.add("Mul", [x.name, name], x.channels, x.rows, x.columns)
    return True


def _quantised(g: Graph) -> bool:
    x = g.pick()
    if g.draw(0, 1):
        scale, zero, axis = g.const(0.05, np.float32), g.const(3, np.int8), {}
    else:
        sizes = 0.02 + 0.03 * g.rng.random(x.channels)
        scale, zero = g.const(sizes, np.float32), g.const([0] * x.channels, np.int8)
        axis = {"axis": 1}
    (name,) = g.node("QuantizeLinear", [x.name, scale, zero], **axis)
    g.add("DequantizeLinear", [name, scale, zero], x.channels, x.rows, x.columns, **axis)
    return True


def _side_output(g: Graph) -> bool:
    x = g.pick()
    if x.name in g.inputs:
        return False
    g.outputs.append(x.name)
    return True


def _more_input(g: Graph) -> bool:
    """Take in another image, of the rows of one that is there."""
    x = g.pick()
    if len(g.inputs) > 2:
        return False
    g.take_in(g.draw(1, 4), x.rows, x.columns)
    return True


def _residual(g: Graph) -> bool:
    """Two Convs that keep the size beside a skip."""
    x = g.pick()
    if x.columns < 3:
        return False
    name = x.name
    for _ in range(g.draw(1, 2)):
        w = g.weight(x.channels, x.channels, 3, 3, scale=0.5 / np.sqrt(x.channels))
        (name,) = g.node("Conv", [name, w], pads=[1] * 4)
        (name,) = g.node("Relu", [name])
    g.add("Add", [x.name, name], x.channels, x.rows, x.columns)
    return True


_GROWTH: tuple[tuple[int, Callable[[Graph], bool]], ...] = (
    (8, _conv),
    (3, _residual),
    (3, _conv_transpose),
    (4, _pool),
    (4, _resize),
    (2, _to_space),
    (1, _to_depth),
    (4, _pad),
    (2, _slice),
    (3, _unary),
    (6, _join),
    (2, _crop_and_join),
    (3, _with_constant),
    (1, _where),
    (2, _norm),
    (2, _channels_last),
    (2, _over_channels),
    (2, _split),
    (1, _shuffle),
    (1, _squeeze_excite),
    (1, _quantised),
    (2, _side_output),
    (1, _more_input),
)

_WHEEL = tuple(grow for weight, grow in _GROWTH for _ in range(weight))


def _instance_norm(g: Graph) -> bool:
    x = g.pick()
    scale, bias = g.weight(x.channels), g.weight(x.channels)
    inputs = [x.name, scale, bias]
    g.add("InstanceNormalization", inputs, x.channels, x.rows, x.columns, epsilon=0.01)
    return True


def _group_norm(g: Graph) -> bool:
    """As exporters write it; scale and shift may be missing, or of another kind."""
    x = g.pick()
    groups = g.one_of(*(n for n in range(1, x.channels + 1) if x.channels % n == 0))
    ones, zeros = g.const(np.ones(groups), np.float32), g.weight(groups)
    (name,) = g.node("Reshape", [x.name, g.const([0, groups, -1])])
    (name,) = g.node("InstanceNormalization", [name, ones, zeros], epsilon=0.01)
    shape = g.node("Shape", [x.name])[0] if g.draw(0, 1) else g.const(g.shape(x))
    (name,) = g.node("Reshape", [name, shape])
    if g.draw(0, 2):
        (name,) = g.node("Mul", [name, g.weight(x.channels, 1, 1)])
    size = (1, x.channels, 1, 1) if g.draw(0, 3) else ()
    g.add("Add", [name, g.weight(*size)], x.channels, x.rows, x.columns)
    return True


def _spelled_norm(g: Graph) -> bool:
    x = g.pick()
    axes = g.one_of([2, 3], [-1, -2], [1, 2, 3])
    (mean,) = g.node("ReduceMean", [x.name], axes=axes)
    (off,) = g.node("Sub", [x.name, mean])
    (squared,) = g.node("Mul", [off, off])
    (variance,) = g.node("ReduceMean", [squared], axes=axes)
    (moved,) = g.node("Add", [variance, g.const(0.01, np.float32)])
    (root,) = g.node("Sqrt", [moved])
    g.add("Div", [off, root], x.channels, x.rows, x.columns)
    return True


def _reduced_gate(g: Graph) -> bool:
    """Weigh channels by a reduction of the image; some keep the axes, some do not."""
    x = g.pick()
    op = g.one_of("Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp", "Sum")
    keeps = g.draw(0, 1)
    if op == "Sum":
        (name,) = g.node("ReduceSum", [x.name, g.const([2, 3])], keepdims=keeps)
    else:
        (name,) = g.node(f"Reduce{op}", [x.name], axes=[2, 3], keepdims=keeps)
    if not keeps:
        (name,) = g.node("Unsqueeze", [name, g.const([2, 3])])
    (name,) = g.node("Mul", [name, g.const(0.01, np.float32)])
    (name,) = g.node("Tanh", [name])
    g.add(g.one_of("Mul", "Add"), [x.name, name], x.channels, x.rows, x.columns)
    return True


def _global_max(g: Graph) -> bool:
    x = g.pick()
    (name,) = g.node("GlobalMaxPool", [x.name])
    (name,) = g.node("Sigmoid", [name])
    g.add("Mul", [x.name, name], x.channels, x.rows, x.columns)
    return True


_STATISTICS = (_instance_norm, _group_norm, _group_norm, _spelled_norm, _reduced_gate, _global_max)


def random_graph(draw: Draw, *, most: int = 8, statistics: bool = False) -> Graph:
    """Return a random graph.

    Args:
        draw: Returns a whole number between two, both included.
        most: Steps of growth.
        statistics: Every third step or so looks at the whole image.
    """
    rng = np.random.default_rng(draw(0, 1 << 30))
    axis = ("height", "height", "width")[draw(0, 2)]
    batch, opset = (1, 1, 2)[draw(0, 2)], (13, 14, 16, 17)[draw(0, 3)]
    graph = Graph(axis, batch, opset, draw, rng)
    graph.take_in(draw(1, 4), draw(3, 32), 2 * draw(2, 3))
    if not _conv(graph):
        _residual(graph)
    for _ in range(draw(1, most)):
        grow = _WHEEL[draw(0, len(_WHEEL) - 1)]
        if statistics and draw(0, 2) == 0:
            grow = _STATISTICS[draw(0, len(_STATISTICS) - 1)]
        if grow(graph):
            graph.kinds.append(grow.__name__[1:])
    return graph
