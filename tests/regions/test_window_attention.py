"""Attention inside windows of an image (Swin): rows of windows, then of pixels, are cut.

Partition is a Reshape [1, H/w, w, W/w, w, C], a Transpose and a Reshape to windows in the batch; a
shift rolls the image by two Slices and a Concat, which is a barrier that the axis begins behind
anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.operators.channelwise import JOINED
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.float64 import assert_same_in_double
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise

_CHANNELS, _HEADS = 8, 2


class _Network:
    """A network of window attention that grows.

    Args:
        rows: Rows of the image.
        columns: Columns of it.
        window: Rows and columns of a window.
        batch: Images.
    """

    def __init__(self, rows: int, columns: int, window: int, batch: int = 1) -> None:
        self.rows, self.columns, self.window, self.batch = rows, columns, window, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        made = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(node(op, " ".join(inputs), " ".join(made), name=made[0], **attrs))
        return made if outputs > 1 else made[0]

    def const(self, array: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def reshape(self, x: str, *dims: int) -> str:
        return str(self.add("Reshape", x, self.const(dims)))

    def roll(self, x: str, by: int) -> str:
        """Roll the image along both axes."""
        for axis, size in ((1, self.rows), (2, self.columns)):
            parts = [
                self.add("Slice", x, *(self.const([k]) for k in (begin, end, axis)))
                for begin, end in ((by % size, size), (0, by % size))
            ]
            x = self.add("Concat", *parts, axis=axis)
        return x

    def block(self, x: str, shift: int = 0) -> str:
        """Attend inside windows of [N, rows, columns, channels], shifted or not."""
        w, below, beside = self.window, self.rows // self.window, self.columns // self.window
        y = self.roll(x, shift) if shift else x
        y = self.reshape(y, self.batch, below, w, beside, w, _CHANNELS)
        y = self.add("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
        y = self.reshape(y, -1, w * w, _CHANNELS)
        joint = self.add("MatMul", y, self.const(noise(_CHANNELS, 3 * _CHANNELS) / 2))
        few = _CHANNELS // _HEADS
        joint = self.reshape(joint, -1, w * w, 3, _HEADS, few)
        joint = self.add("Transpose", joint, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.add("Gather", joint, self.const(np.int64(at)), axis=0) for at in range(3))
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.add("Add", scores, self.const(noise(_HEADS, w * w, w * w)))
        if shift:
            # Each window has a mask of its own.
            mask = self.const(2 * noise(1, below * beside, 1, w * w, w * w))
            scores = self.reshape(scores, self.batch, below * beside, _HEADS, w * w, w * w)
            scores = self.add("Add", scores, mask)
            scores = self.reshape(scores, -1, _HEADS, w * w, w * w)
        y = self.add("MatMul", self.add("Softmax", scores, axis=-1), v)
        y = self.reshape(self.add("Transpose", y, perm=[0, 2, 1, 3]), -1, w * w, _CHANNELS)
        y = self.reshape(y, self.batch, below, beside, w, w, _CHANNELS)
        y = self.add("Transpose", y, perm=[0, 1, 3, 2, 4, 5])
        y = self.reshape(y, self.batch, self.rows, self.columns, _CHANNELS)
        y = self.roll(y, -shift) if shift else y
        y = self.add("Add", x, y)
        return str(self.add("Add", y, self.add("Tanh", y)))


def _model(
    *shifts: int,
    rows: int = 24,
    columns: int = 16,
    window: int = 4,
    batch: int = 1,
    opset: int = 17,
) -> onnx.ModelProto:
    """Make blocks between two Convs."""
    b = _Network(rows, columns, window, batch)
    x = b.add("Conv", "x", b.const(noise(_CHANNELS, 3, 3, 3) / 3), pads=[1] * 4)
    x = b.add("Transpose", x, perm=[0, 2, 3, 1])
    for shift in shifts:
        x = b.block(x, shift)
    x = b.add("Transpose", x, perm=[0, 3, 1, 2])
    y = b.add("Conv", x, b.const(noise(3, _CHANNELS, 3, 3) / 5), pads=[1] * 4)
    dims = [batch, 3, rows, columns]
    return model(b.nodes, {"x": dims}, {y: dims}, b.weights, opset=opset)


def _same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Compare with ONNX Runtime and, in double precision, with the reference evaluator."""
    dims = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": noise(*dims, seed=3)}
    # Sharp weights make rounding larger, of the original as well.
    assert_same(before, after, feeds, rel=1e-4)
    assert_same_in_double(before, after, feeds)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(("form", "splits"), [("fused", 3), ("shrinking", 6), ("loop", 2)])
def test_windows_are_one_region(form: str, splits: int, opset: int) -> None:
    """Two blocks and the Convs around them are cut as one, in steps of a window's rows."""
    made = _model(0, 0, opset=opset)
    cut = tile_all(made, splits, form)
    assert len(cut.plans) == 1, cut.reasons
    assert len(cut.plans[0].region.nodes) == len(made.graph.node)
    _same(made, cut.model)


@pytest.mark.parametrize(("form", "splits"), [("fused", 3), ("shrinking", 2), ("loop", 2)])
def test_shifted_windows(form: str, splits: int) -> None:
    """A roll along the axis is a barrier; what is between two of them is cut by rows of windows."""
    made = _model(0, 2)
    cut = tile_all(made, splits, form)
    assert cut.reasons.count(JOINED) == 2
    _same(made, cut.model)
    products = [
        at
        for plan in cut.plans
        for at in plan.region.nodes
        if made.graph.node[at].op_type == "MatMul"
    ]
    assert len(products) == sum(each.op_type == "MatMul" for each in made.graph.node)
    # Windows lie in the batch: queries and keys are cut alike.
    for at in products:
        link = cut.locality.links[at]
        assert link.axis == 0
        assert {axis for _, axis in link.carriers} == {0}


@pytest.mark.parametrize("shifts", [(0,), (2,), (0, 2)], ids=str)
def test_a_plan_is_found(shifts: tuple[int, ...]) -> None:
    """The search cuts windows, and what it writes computes the same."""
    made = _model(*shifts)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=4))
    assert outcome.rewritten
    _same(made, outcome.model)


def test_windows_of_several_images() -> None:
    """Rows of windows of all images are one dimension: queries inside a window are cut instead."""
    made = _model(0, 2, batch=2)
    cut = tile_all(made)
    axes = {
        cut.locality.links[at].axis
        for at, each in enumerate(made.graph.node)
        if each.op_type == "Softmax"
    }
    assert axes == {2}
    _same(made, cut.model)


@pytest.mark.parametrize("seed", range(12))
def test_random_windows(seed: int) -> None:
    """Any size of image and window, any shifts, any number of patches."""
    rng = np.random.default_rng(seed)
    window = int(rng.integers(2, 5))
    rows, columns = (window * int(rng.integers(2, 7)) for _ in range(2))
    shifts = tuple(int(each) for each in rng.integers(0, window, int(rng.integers(1, 4))))
    made = _model(*shifts, rows=rows, columns=columns, window=window)
    form = ("fused", "shrinking", "loop")[int(rng.integers(3))]
    cut = tile_all(made, int(rng.integers(2, 7)), form)
    assert cut.plans
    _same(made, cut.model)


def _vision_transformer(tokens_first: bool) -> onnx.ModelProto:
    """Make patches of an image tokens, put a class token beside them, and attend."""
    rows, columns = 12, 8
    count = rows // 2 * columns // 2
    b = _Network(rows, columns, 2)
    x = b.add("Conv", "x", b.const(noise(_CHANNELS, 3, 2, 2) / 3), strides=[2, 2])
    x = b.add("Transpose", b.reshape(x, 1, _CHANNELS, count), perm=[0, 2, 1])
    extra = b.const(noise(1, 1, _CHANNELS))
    x = b.add("Concat", *((x, extra) if tokens_first else (extra, x)), axis=1)
    x = b.add("Add", x, b.const(noise(1, count + 1, _CHANNELS)))
    q, k, v = (b.add("MatMul", x, b.const(noise(_CHANNELS, _CHANNELS, seed=at))) for at in range(3))
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 1]))
    y = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
    y = b.add("Add", x, y)
    dims = {"x": [1, 3, rows, columns]}, {y: [1, count + 1, _CHANNELS]}
    return model(b.nodes, *dims, b.weights)


@pytest.mark.parametrize("tokens_first", [False, True])
def test_behind_a_class_token(tokens_first: bool) -> None:
    """A Concat of tokens is a barrier; the tokens behind it are rows again, one more."""
    made = _vision_transformer(tokens_first)
    cut = tile_all(made, 5)
    assert JOINED in cut.reasons
    assert "Softmax" in cut.operators
    _same(made, cut.model)
