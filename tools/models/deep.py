"""Deep graphs of the kinds that people run, for timings of the search; weights are shared zeros.

rrdbnet   dense blocks of five Convs whose results are all kept, upsampled at the end
unet      residual blocks with SiLU at four heights, every level's result kept for later
residual  a chain of residual blocks, a stride now and then
vae       residual blocks with GroupNorm as exporters spell it, which no patch can compute alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["KINDS", "make"]


class _Builder:
    """A growing graph; every method adds nodes and returns their result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.channels = {"x": 3}

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"c_{array.dtype}_" + "_".join(map(str, array.shape or array.reshape(-1)))
        if array.ndim == 1 and array.size < 9:
            name += "_" + "_".join(map(str, array.tolist()))
        self.weights.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, channels: int = 0, **attributes: Any) -> str:
        made = f"t{len(self.nodes)}"
        name = f"/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], name, **attributes))
        self.channels[made] = channels or self.channels[inputs[0]]
        return made

    def conv(self, x: str, channels: int, stride: int = 1) -> str:
        weight = self.constant(np.zeros((channels, self.channels[x], 3, 3), np.float32))
        return self.add(
            "Conv", x, weight, channels=channels, pads=[1] * 4, strides=[stride, stride]
        )

    def silu(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def concat(self, *parts: str) -> str:
        channels = sum(self.channels[part] for part in parts)
        return self.add("Concat", *parts, channels=channels, axis=1)

    def upsample(self, x: str) -> str:
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        return self.add(
            "Resize", x, "", scales, coordinate_transformation_mode="asymmetric",
            mode="nearest", nearest_mode="floor",
        )  # fmt: skip

    def group_norm(self, x: str) -> str:
        channels = self.channels[x]
        groups = self.constant(np.array([0, 4, -1], np.int64))
        ones = self.constant(np.ones(4, np.float32))
        flat = self.add("InstanceNormalization", self.add("Reshape", x, groups), ones, ones)
        back = self.add("Reshape", flat, self.add("Shape", x), channels=channels)
        scale = self.constant(np.ones((channels, 1, 1), np.float32))
        return self.add("Add", self.add("Mul", back, scale), scale)

    def residual(self, x: str, channels: int, *, norm: bool = False) -> str:
        y = self.conv(self.silu(self.group_norm(x) if norm else x), channels)
        y = self.conv(self.silu(self.group_norm(y) if norm else y), channels)
        return self.add("Add", y, x if self.channels[x] == channels else self.conv(x, channels))

    def model(self, output: str, rows: int) -> onnx.ModelProto:
        kind = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "deep",
            [helper.make_tensor_value_info("x", kind, [1, 3, rows, rows])],
            [helper.make_tensor_value_info(output, kind, [1, "c", "h", "w"])],
            list(self.weights.values()),
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _rrdbnet(nodes: int) -> onnx.ModelProto:
    made = _Builder()
    half = made.constant(np.full((), 0.5, np.float32))
    first = x = made.conv("x", 32)
    while len(made.nodes) < nodes - 24:
        outer = x
        for _ in range(3):
            parts = [x]
            for _ in range(4):
                whole = made.concat(*parts) if len(parts) > 1 else x
                parts.append(made.add("LeakyRelu", made.conv(whole, 16), alpha=0.2))
            x = made.add("Add", made.add("Mul", made.conv(made.concat(*parts), 32), half), x)
        x = made.add("Add", made.add("Mul", x, half), outer)
    x = made.add("Add", made.conv(x, 32), first)
    for _ in range(2):
        x = made.add("LeakyRelu", made.conv(made.upsample(x), 32), alpha=0.2)
    return made.model(made.conv(x, 3), 256)


def _unet(nodes: int) -> onnx.ModelProto:
    made, widths = _Builder(), (16, 32, 64, 128)
    # A residual block is seven nodes; most are where the image is small, as in real ones.
    shares = (0.02, 0.06, 0.12, 0.6)
    blocks = [max(1, int(share * nodes / 7)) for share in shares]
    x, skips = made.conv("x", widths[0]), []
    for level, width in enumerate(widths):
        for _ in range(blocks[level]):
            x = made.residual(x, width)
        if level < len(widths) - 1:
            skips.append(x)
            x = made.conv(x, widths[level + 1], stride=2)
    for level in reversed(range(len(widths) - 1)):
        x = made.concat(made.conv(made.upsample(x), widths[level]), skips.pop())
        for _ in range(blocks[level]):
            x = made.residual(x, widths[level])
    return made.model(made.conv(x, 3), 512)


def _residual(nodes: int) -> onnx.ModelProto:
    made = _Builder()
    x = made.conv("x", 16)
    while len(made.nodes) < nodes:
        # Halved early, so that most blocks are where the image is small.
        for halved in range(1, 4):
            if made.channels[x] < 16 << halved and len(made.nodes) > nodes << halved >> 5:
                x = made.add("Relu", made.conv(x, 16 << halved, stride=2))
        y = made.conv(made.add("Relu", made.conv(x, made.channels[x])), made.channels[x])
        x = made.add("Relu", made.add("Add", y, x))
    return made.model(x, 512)


def _vae(nodes: int) -> onnx.ModelProto:
    made = _Builder()
    x = made.conv("x", 128)
    for width in (128, 64, 32):
        start = len(made.nodes)
        while len(made.nodes) < start + nodes // 3:
            x = made.residual(x, width, norm=True)
        x = made.conv(made.upsample(x), width)
    return made.model(made.conv(x, 3), 64)


KINDS: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "rrdbnet": _rrdbnet,
    "unet": _unet,
    "residual": _residual,
    "vae": _vae,
}


def make(kind: str, nodes: int) -> onnx.ModelProto:
    """Return a graph of about so many nodes; the same every time."""
    return KINDS[kind](nodes)
