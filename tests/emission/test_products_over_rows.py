"""Matrix products that add up over all positions: attention between channels, linear attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.graph import products_over_rows
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.statistics import Statistic
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.float64 import in_double
from tests.support.oracle import oracle_run
from tests.support.small_models import assert_same, copy_of, model, node, noise, operators, run

pytestmark = pytest.mark.usefixtures("less_weighed")

CHANNELS, HEADS, HEIGHT, WIDTH = 16, 2, 48, 20
LENGTH = HEIGHT * WIDTH


def _reduce(opset: int, x: str, y: str) -> onnx.NodeProto:
    if opset >= 18:
        return node("ReduceL2", f"{x} last", y, name=y)
    return node("ReduceL2", x, y, name=y, axes=[-1])


def _channel_attention(
    opset: int = 17, *, kind: int = TensorProto.FLOAT, expand: str = "Shape"
) -> onnx.ModelProto:
    """Return Restormer's attention: queries and keys of each channel, over their lengths."""
    each = CHANNELS // HEADS
    nodes = [node("Conv", "x w", "c", name="qkv", pads=[1] * 4)]
    for at, name in enumerate("qkv"):
        nodes += [
            node("Slice", f"c at{at} at{at + 1} one", f"{name}1"),
            node("Reshape", f"{name}1 heads", name),
        ]
    for name in "qk":
        nodes.append(_reduce(opset, name, f"{name}_length"))
        length = f"{name}_length"
        if expand == "Shape":
            nodes.append(node("Shape", name, f"{name}_shape"))
        if expand:
            sizes = f"{name}_shape" if expand == "Shape" else "heads"
            nodes.append(node("Expand", f"{length} {sizes}", f"{name}_wide"))
            length = f"{name}_wide"
        nodes.append(node("Div", f"{name} {length}", f"{name}_unit"))
    nodes += [
        node("Transpose", "k_unit", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "q_unit kt", "scores", name="product"),
        node("Softmax", "scores", "weights", axis=3),
        node("MatMul", "weights v", "o"),
        node("Reshape", "o image", "i"),
        node("Conv", "i u", "y", name="out", pads=[1] * 4),
    ]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    weights: dict[str, Any] = {
        "w": (noise(3 * CHANNELS, 3, 3, 3) / 5).astype(dtype),
        "u": (noise(2, CHANNELS, 3, 3, seed=2) / 12).astype(dtype),
        "heads": np.array([1, HEADS, each, LENGTH]),
        "image": np.array([1, CHANNELS, HEIGHT, WIDTH]),
        "one": np.array([1]),
        "last": np.array([-1]),
    }
    weights |= {f"at{at}": np.array([at * CHANNELS]) for at in range(4)}
    made = model(nodes, {"x": (1, 3, HEIGHT, WIDTH)}, {"y": (1, 2, HEIGHT, WIDTH)}, weights,
                 opset=opset)  # fmt: skip
    for end in (*made.graph.input, *made.graph.output):
        end.type.tensor_type.elem_type = kind
    return made


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    given = {"splits": 4, "max_recompute": 4.0, **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(**given))


def _reach(outcome: Outcome) -> set[str]:
    return {name for done in outcome.rewritten for name in done.nodes}


def _statistics(made: onnx.ModelProto) -> list[Statistic]:
    return list(look_at(Loaded(copy_of(made), None), Options(splits=4)).facts.statistics)


_X = {"x": noise(1, 3, HEIGHT, WIDTH, seed=3)}


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("expand", ["Shape", "numbers", ""])
def test_attention_between_channels_is_cut(opset: int, expand: str) -> None:
    """From one Conv to the other, lengths and products from each patch; at each opset."""
    made = _channel_attention(opset, expand=expand)
    outcome = _cut(made)
    assert {"product", "out", "qkv"} <= _reach(outcome)
    assert_same(made, outcome.model, _X, 1e-5)
    # Nothing is expanded to the image any more.
    assert "Expand" not in operators(outcome.model)


def test_it_is_as_near_to_the_truth() -> None:
    """Against float64, by the second oracle; the original's own error is the yardstick."""
    made = _channel_attention()
    (truth,) = oracle_run(in_double(made), {"x": _X["x"].astype(np.float64)})
    errors = [
        np.sqrt(np.mean(np.square(run(each, _X)["y"] - truth))) for each in (made, _cut(made).model)
    ]
    assert errors[1] <= 1.5 * errors[0]


def test_half_precision_is_summed_up_in_float32() -> None:
    """Products of half precision become wide before they are added up."""
    made = _channel_attention(kind=TensorProto.FLOAT16)
    outcome = _cut(made)
    assert "product" in _reach(outcome)
    assert_same(made, outcome.model, {"x": _X["x"].astype(np.float16)}, 5e-3)
    makers = {name: each for each in outcome.model.graph.node for name in each.output}
    (whole,) = (
        each
        for each in outcome.model.graph.node
        if each.op_type == "ReduceSum" and each.name.startswith("product/")
    )
    kinds = set[int]()
    pending = [whole.input[0]]
    while pending:
        maker = makers[pending.pop()]
        if maker.op_type == "Concat":
            pending += maker.input
        else:
            assert maker.op_type == "Cast"
            kinds.add(maker.attribute[0].i)
    assert kinds == {TensorProto.FLOAT}


def test_what_is_said_of_it() -> None:
    """A statistic like others, by name; without regions the file is as it was."""
    made = _channel_attention()
    found = {entry.label: entry.kind for entry in _statistics(made)}
    assert found["product"] == "a product over the image"
    assert {"q_length", "k_length"} <= found.keys()
    outcome = _cut(made, splits=1)
    assert outcome.model.SerializeToString() == made.SerializeToString()


def _linear(*, before: str = "", by_letters: bool = False) -> onnx.ModelProto:
    """Return linear attention: keys by values, and queries by these; several blocks of it."""
    nodes = [node("Conv", "x e", "i0", name="embed", pads=[1] * 4)]
    for block in range(2):
        b, image = f"b{block}_", f"i{block}"
        nodes.append(node("Conv", f"{image} w", f"{b}c", name=f"{b}qkv", pads=[1] * 4))
        for at, name in enumerate("qkv"):
            nodes += [
                node("Slice", f"{b}c at{at} at{at + 1} one", f"{b}{name}1"),
                node("Reshape", f"{b}{name}1 flat", f"{b}{name}2"),
            ]
        keys = f"{b}k2"
        if before == "Softmax":
            nodes.append(node("Softmax", keys, f"{b}k3", axis=3))
        elif before:
            nodes.append(node(before, keys, f"{b}k3"))
        keys = f"{b}k3" if before else keys
        product, last = f"{b}product", f"{b}o"
        if by_letters:
            nodes += [
                node("Einsum", f"{keys} {b}v2", f"{b}context", name=product,
                     equation="bhdn, bhen -> bhde"),
                node("Mul", f"{b}context small", f"{b}scaled"),
                node("Einsum", f"{b}scaled {b}q2", last, equation="bhde,bhdn->bhen"),
            ]  # fmt: skip
        else:
            nodes += [
                node("Transpose", f"{b}v2", f"{b}vt", perm=[0, 1, 3, 2]),
                node("MatMul", f"{keys} {b}vt", f"{b}context", name=product),
                node("Mul", f"{b}context small", f"{b}scaled"),
                node("Transpose", f"{b}scaled", f"{b}st", perm=[0, 1, 3, 2]),
                node("MatMul", f"{b}st {b}q2", last),
            ]
        nodes += [
            node("Reshape", f"{last} image", f"{b}image"),
            node("Add", f"{b}image {image}", f"i{block + 1}"),
        ]
    nodes.append(node("Conv", "i2 u", "y", name="out", pads=[1] * 4))
    weights = {
        "e": noise(CHANNELS, 3, 3, 3) / np.float32(5),
        "w": noise(3 * CHANNELS, CHANNELS, 3, 3) / np.float32(12),
        "u": noise(2, CHANNELS, 3, 3, seed=2) / np.float32(12),
        "flat": np.array([1, HEADS, CHANNELS // HEADS, LENGTH]),
        "image": np.array([1, CHANNELS, HEIGHT, WIDTH]),
        "small": np.array(1 / LENGTH, np.float32),
        "one": np.array([1]),
    }
    weights |= {f"at{at}": np.array([at * CHANNELS]) for at in range(4)}
    shapes = {"x": (1, 3, HEIGHT, WIDTH)}, {"y": (1, 2, HEIGHT, WIDTH)}
    return model(nodes, *shapes, weights, opset=17)


@pytest.mark.parametrize("before", ["", "Relu", "Softmax"])
@pytest.mark.parametrize("form", ["fused", "shrinking"])
@pytest.mark.parametrize("by_letters", [False, True])
def test_linear_attention_is_cut(before: str, form: str, by_letters: bool) -> None:
    """Keys as they are, above zero, or weights over all positions; MatMul or Einsum."""
    made = _linear(before=before, by_letters=by_letters)
    assert {"b0_product", "b1_product"} <= {entry.label for entry in _statistics(made)}
    outcome = _cut(made, form=form)
    assert {"b0_product", "b1_product"} <= _reach(outcome)
    assert_same(made, outcome.model, _X, 2e-5)


def test_rows_that_are_missing_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the last row of the image is not added."""

    def wrong(
        new: Any, op: str, factors: list[str], axis: int, output: str, kind: int, **given: Any
    ) -> None:
        bounds = [new.ints([number], name) for number, name in ((0, "a"), (-1, "b"), (axis, "c"))]
        fewer = [new.add("Slice", [each, *bounds], f"{at}") for at, each in enumerate(factors)]
        right(new, op, fewer, axis, output, kind, **given)

    right = products_over_rows.sum_of_rows
    monkeypatch.setattr(products_over_rows, "sum_of_rows", wrong)
    made = _linear()
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, _cut(made).model, _X, 2e-5)


@pytest.mark.parametrize(("channels", "width", "found"), [(4, 12, True), (64, 4, False)])
def test_a_product_that_is_larger_than_its_rows_stays(
    channels: int, width: int, found: bool
) -> None:
    """Of many channels a product for each row would be more than the image."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Reshape", "c flat", "a"),
        node("Transpose", "a", "b", perm=[0, 2, 1]),
        node("MatMul", "a b", "y", name="product"),
    ]
    weights = {"w": noise(channels, 3, 3, 3), "flat": np.array([1, channels, -1])}
    shapes = {"x": (1, 3, 16, width)}, {"y": (1, channels, channels)}
    assert bool(_statistics(model(nodes, *shapes, weights))) is found


@pytest.mark.parametrize(
    ("equation", "inputs"),
    [
        ("cn,dn->cd", "a a a"),
        ("cn,dn->cd", "a"),
        ("cn,dn->cz", "a a"),
        ("cn,dn->cc", "a a"),
        ("cn,dn", "a a"),
    ],
)
def test_an_equation_that_is_none_stays(equation: str, inputs: str) -> None:
    """Of another number of factors, or with a letter that no factor has, or has once."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Reshape", "c flat", "a"),
        node("Einsum", inputs, "y", name="product", equation=equation),
    ]
    weights = {"w": noise(4, 3, 3, 3), "flat": np.array([4, 16 * 12])}
    made = model(nodes, {"x": (1, 3, 16, 12)}, {"y": (None, None)}, weights)
    assert not _statistics(made)
