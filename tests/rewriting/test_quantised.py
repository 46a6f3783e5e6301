"""Quantised convolutions: bit-exact, and the runtime still finds its int8 kernel in every patch.

Integer arithmetic has one right answer, so every comparison here is ``==``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from patchconv_deploy.rewriters.outcome import Outcome
from tests.support.oracle import Array, conv, make_model, ops, ort_run, ort_session, rewrite, value

_ELEMENTS = {np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8}

_FORMS = ["batch", "sequential"]

_SIZE = (2, 6, 37, 11)


def _bytes(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> Array:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return rng.integers(low, high + 1, size=tuple(shape)).astype(dtype)


def _shape(free: bool) -> list[int | str]:
    return ["n", _SIZE[1], "h", "w"] if free else list(_SIZE)


def _qlinear(
    activation: Any, weight: Any, *, per_channel: bool, bias: bool, free: bool, **attributes: Any
) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    scales = rng.uniform(0.002, 0.02, 8 if per_channel else ()).astype(np.float32)
    weights: dict[str, Array] = {
        "xs": np.array(0.04, np.float32),
        "xz": np.array(7, activation),
        "w": _bytes(rng, (8, 6, 3, 3), weight),
        "ws": scales,
        "wz": np.zeros(scales.shape, weight) if weight is np.int8 else np.array(128, weight),
        "ys": np.array(0.9, np.float32),
        "yz": np.array(11, activation),
    }
    if weight is np.uint8 and per_channel:
        weights["wz"] = np.full(8, 128, weight)
    if bias:
        weights["b"] = rng.integers(-9000, 9000, 8).astype(np.int32)
    node = helper.make_node("QLinearConv", ["x", *weights], ["y"], "conv", **attributes)
    element = _ELEMENTS[activation]
    return make_model(
        [node], [value("x", _shape(free), element)], [value("y", [None] * 4, element)], weights
    )


def _same(model: onnx.ModelProto, outcome: Outcome, feeds: Sequence[Array]) -> list[Array]:
    """Compare every output at every size; return the first size's."""
    onnx.checker.check_model(outcome.model, full_check=True)
    before, after = ort_session(model), ort_session(outcome.model)
    results = []
    for x in feeds:
        whole, cut = before.run(None, {"x": x}), after.run(None, {"x": x})
        for a, b in zip(whole, cut, strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
            # Neither all alike nor all saturated: a wrong row would show.
            assert a.size < 500 or len(np.unique(a)) > 20
        results.append(whole)
    return list(results[0])


def _feeds(dtype: Any, free: bool) -> list[Array]:
    rng = np.random.default_rng(8)
    sizes = [_SIZE, (1, 6, 12, 9), (3, 6, 64, 5), (1, 6, 3, 3)] if free else [_SIZE]
    return [_bytes(rng, size, dtype) for size in sizes]


_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "same": {"pads": [1, 1, 1, 1]},
    "stride, one-sided": {"pads": [2, 0, 1, 1], "strides": [2, 1], "kernel_shape": [3, 3]},
    "auto": {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
    "none, dilated": {"dilations": [1, 2]},
}


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("attributes", _ATTRIBUTES.values(), ids=_ATTRIBUTES)
@pytest.mark.parametrize(
    ("activation", "weight", "per_channel", "bias"),
    [
        (np.uint8, np.int8, True, True),
        (np.uint8, np.uint8, False, False),
        (np.int8, np.int8, True, True),
        (np.int8, np.int8, False, False),
    ],
)
def test_qlinearconv(
    activation: Any,
    weight: Any,
    per_channel: bool,
    bias: bool,
    attributes: dict[str, Any],
    free: bool,
    form: str,
) -> None:
    """QLinearConv pads with the activation's zero point, in every patch: bit-exact."""
    model = _qlinear(
        activation, weight, per_channel=per_channel, bias=bias, free=free, **attributes
    )
    outcome = rewrite(model, splits=4, form=form)
    assert [done.op_type for done in outcome.rewritten] == ["QLinearConv"]
    assert ops(outcome.model).count("QLinearConv") == (1 if form == "batch" else 4)
    feeds = _feeds(activation, free)
    if attributes == _ATTRIBUTES["none, dilated"]:
        feeds = feeds[:3]  # the last is smaller than the kernel
    _same(model, outcome, feeds)


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("zero_points", [0, 1, 2])
def test_convinteger(zero_points: int, free: bool, form: str) -> None:
    """ConvInteger equals the uncut one and, the zero points taken off, the float64 oracle."""
    rng = np.random.default_rng(4)
    weights: dict[str, Array] = {"w": _bytes(rng, (4, 6, 3, 3), np.uint8)}
    if zero_points > 0:
        weights["xz"] = np.array(100, np.uint8)
    if zero_points > 1:
        weights["wz"] = np.array(120, np.uint8)
    attributes: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [2, 1]}
    node = helper.make_node("ConvInteger", ["x", *weights], ["y"], "conv", **attributes)
    model = make_model(
        [node],
        [value("x", _shape(free), TensorProto.UINT8)],
        [value("y", [None] * 4, TensorProto.INT32)],
        weights,
    )
    outcome = rewrite(model, splits=5, form=form)
    assert [done.op_type for done in outcome.rewritten] == ["ConvInteger"]
    feeds = _feeds(np.uint8, free)
    (whole,) = _same(model, outcome, feeds)
    x = feeds[0].astype(np.float64) - float(weights.get("xz", np.array(0)))
    w = weights["w"].astype(np.float64) - float(weights.get("wz", np.array(0)))
    assert np.array_equal(whole, conv(x, w, **attributes))


def _qdq(
    dtype: Any,
    *,
    between: str | None = None,
    convolutions: int = 1,
    quantised_output: bool = True,
    free: bool = False,
    opset: int = 17,
    per_channel: bool = True,
) -> onnx.ModelProto:
    """Return x_q -> DQ -> [Conv (weight DQ) [-> between] [-> Q -> y_q]] x convolutions."""
    rng = np.random.default_rng(6)
    element = _ELEMENTS[dtype]
    weights: dict[str, Array] = {
        "xs": np.array(0.04, np.float32),
        "xz": np.array(5, dtype),
        "ys": np.array(0.5, np.float32),
        # ONNX Runtime drops a Relu or Clip that QuantizeLinear does already, and only then fuses:
        # its zero point is the least number, and the Clip ends beyond what 8 bits hold.
        "yz": np.array(np.iinfo(dtype).min if between else 9, dtype),
    }
    if between == "Clip":
        weights |= {"low": np.array(0, np.float32), "high": np.array(128, np.float32)}
    nodes = [helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"], "x_dq")]
    outputs = []
    for n in range(convolutions):
        channels = 8 if per_channel else 1
        scales = rng.uniform(0.002, 0.02, channels).astype(np.float32)
        weights[f"w{n}"] = _bytes(rng, (8, 6, 3, 3), np.int8)
        weights[f"ws{n}"] = scales if per_channel else scales[0]
        weights[f"wz{n}"] = np.zeros(weights[f"ws{n}"].shape, np.int8)
        weights[f"b{n}"] = rng.integers(-9000, 9000, 8).astype(np.int32)
        weights[f"bs{n}"] = (weights[f"ws{n}"] * np.float32(0.04)).astype(np.float32)
        weights[f"bz{n}"] = np.zeros(weights[f"ws{n}"].shape, np.int32)
        axis: dict[str, Any] = {"axis": 0} if per_channel else {}
        for kind in ("w", "b"):
            nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    [f"{kind}{n}", f"{kind}s{n}", f"{kind}z{n}"],
                    [f"{kind}f{n}"],
                    f"{kind}_dq{n}",
                    **axis,
                )
            )
        last = f"c{n}"
        nodes.append(
            helper.make_node(
                "Conv", ["xf", f"wf{n}", f"bf{n}"], [last], f"conv{n}", pads=[1, 1, 1, 1]
            )
        )
        if between is not None:
            more = ["low", "high"] if between == "Clip" else []
            nodes.append(helper.make_node(between, [last, *more], [f"r{n}"], f"between{n}"))
            last = f"r{n}"
        if quantised_output:
            nodes.append(
                helper.make_node("QuantizeLinear", [last, "ys", "yz"], [f"y{n}"], f"y_q{n}")
            )
            last = f"y{n}"
        outputs.append(value(last, [None] * 4, element if quantised_output else TensorProto.FLOAT))
    return make_model(nodes, [value("x", _shape(free), element)], outputs, weights, opset=opset)


def _optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    path = folder / "optimised.onnx"
    ort_session(model, optimised_path=str(path))
    return Counter(ops(onnx.load(path)))


def _nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("between", [None, "Relu", "Clip"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_pair_around_a_conv(
    dtype: Any, between: str | None, free: bool, form: str, tmp_path: Path
) -> None:
    """DequantizeLinear and QuantizeLinear are cloned with the Conv; what is cut and joined is int8.

    ONNX Runtime fuses each patch's three nodes into one QLinearConv, as it does in the original.
    """
    model = _qdq(dtype, between=between, free=free)
    outcome = rewrite(model, splits=4, form=form)
    assert len(outcome.rewritten) == 1
    chain = ("x_dq", "conv0", *(["between0"] if between else []), "y_q0")
    assert outcome.rewritten[0].nodes == chain
    _same(model, outcome, _feeds(dtype, free))

    patches = 1 if form == "batch" else 4
    found = Counter(ops(outcome.model))
    assert found["Conv"] == found["QuantizeLinear"] == patches
    assert found["DequantizeLinear"] == patches + 2  # weight and bias are shared
    made = _nodes(outcome.model)
    for node in outcome.model.graph.node:
        if node.op_type == "Conv":
            dequantize = made[node.input[0]]
            assert dequantize.op_type == "DequantizeLinear"
            # A window of the int8 input, or the stack of all windows.
            window = made[dequantize.input[0]]
            assert (window.op_type == "Concat") == (form == "batch")
            cut = [made[name] for name in window.input] if form == "batch" else [window]
            if free:  # each window's height is stated by a Reshape
                assert {stated.op_type for stated in cut} == {"Reshape"}
                cut = [made[stated.input[0]] for stated in cut]
            assert {(slice_.op_type, slice_.input[0]) for slice_ in cut} == {("Slice", "x")}
            assert node.input[1:] == ["wf0", "bf0"]
    integer = {tensor.name for tensor in outcome.model.graph.initializer}
    joined = made["y0"]
    while joined.op_type in ("Squeeze", "Concat", "Slice", "Reshape", "Unsqueeze"):
        joined = made[next(name for name in joined.input if name not in integer)]
    assert joined.op_type == "QuantizeLinear"

    before, after = _optimised(model, tmp_path), _optimised(outcome.model, tmp_path)
    assert before["QLinearConv"] == 1
    assert after["QLinearConv"] == patches
    assert after["Conv"] == after["FusedConv"] == after["DequantizeLinear"] == 0


@pytest.mark.parametrize("opset", [10, 12, 13, 19, 21])
@pytest.mark.parametrize("form", _FORMS)
def test_pair_at_each_opset(form: str, opset: int) -> None:
    """Per-tensor before opset 13, per-channel from it on."""
    model = _qdq(np.uint8, opset=opset, per_channel=opset >= 13)
    outcome = rewrite(model, splits=3, form=form)
    assert outcome.rewritten[0].nodes == ("x_dq", "conv0", "y_q0")
    _same(model, outcome, _feeds(np.uint8, False))


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
def test_one_dequantize_for_two_convs(form: str, free: bool, tmp_path: Path) -> None:
    """A DequantizeLinear that two Convs read goes into both regions, and the original goes away."""
    model = _qdq(np.uint8, convolutions=2, free=free)
    outcome = rewrite(model, splits=4, form=form)
    assert [done.nodes for done in outcome.rewritten] == [
        ("x_dq", "conv0", "y_q0"),
        ("x_dq", "conv1", "y_q1"),
    ]
    _same(model, outcome, _feeds(np.uint8, free))
    patches = 2 if form == "batch" else 8
    assert "x_dq" not in {node.name for node in outcome.model.graph.node}
    found = Counter(ops(outcome.model))
    assert found["Conv"] == found["QuantizeLinear"] == patches
    assert found["DequantizeLinear"] == patches + 4
    assert _optimised(outcome.model, tmp_path)["QLinearConv"] == patches


@pytest.mark.parametrize("form", _FORMS)
def test_one_dequantize_for_a_conv_and_an_output(form: str) -> None:
    """A DequantizeLinear that is read elsewhere too stays where it is, beside its clones."""
    model = _qdq(np.uint8)
    model.graph.output.append(value("xf", [None] * 4))
    outcome = rewrite(model, splits=4, form=form)
    assert "x_dq" in {node.name for node in outcome.model.graph.node}
    _same(model, outcome, _feeds(np.uint8, False))


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
def test_no_quantize_after(form: str, free: bool) -> None:
    """Without a QuantizeLinear behind it, the Conv alone is cut, in float."""
    model = _qdq(np.int8, quantised_output=False, free=free)
    outcome = rewrite(model, splits=4, form=form)
    assert [done.nodes for done in outcome.rewritten] == [("conv0",)]
    found = Counter(ops(outcome.model))
    assert found["DequantizeLinear"] == 3
    before, after = ort_session(model), ort_session(outcome.model)
    for x in _feeds(np.int8, free):
        (whole,), (cut,) = before.run(None, {"x": x}), after.run(None, {"x": x})
        # Float sums in another order: 54 products of at most 5 x 2.5 each.
        assert np.abs(whole - cut).max() <= 1e-4
        assert whole.shape == cut.shape


@pytest.mark.parametrize("form", _FORMS)
def test_an_output_between_conv_and_quantize(form: str) -> None:
    """A Conv whose own output the model shows is cut alone: its pair cannot move into patches."""
    model = _qdq(np.uint8)
    model.graph.output.append(value("c0", [None] * 4))
    outcome = rewrite(model, splits=4, form=form)
    assert [done.nodes for done in outcome.rewritten] == [("conv0",)]
    feeds = _feeds(np.uint8, False)
    whole, cut = ort_run(model, {"x": feeds[0]}), ort_run(outcome.model, {"x": feeds[0]})
    assert np.abs(whole[1] - cut[1]).max() <= 1e-4
    # A float that lies on a rounding border may fall to either side of it.
    assert np.abs(whole[0].astype(int) - cut[0].astype(int)).max() <= 1
    assert np.mean(whole[0] != cut[0]) < 0.01


def test_scales_along_the_tiled_axis() -> None:
    """Scales per row cannot be cloned: such a pair stays outside, the Conv alone is cut."""
    model = _qdq(np.uint8)
    node = next(node for node in model.graph.node if node.name == "x_dq")
    node.attribute.append(helper.make_attribute("axis", 2))
    for name, per_row in (
        ("xs", np.linspace(0.01, 0.08, _SIZE[2], dtype=np.float32)),
        ("xz", np.arange(_SIZE[2]).astype(np.uint8)),
    ):
        old = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        old.CopyFrom(onnx.numpy_helper.from_array(per_row, name))
    for form in _FORMS:
        outcome = rewrite(copy.deepcopy(model), splits=4, form=form)
        assert [done.nodes for done in outcome.rewritten] == [("conv0",)]
        x = _feeds(np.uint8, False)[0]
        (whole,), (cut,) = ort_run(model, {"x": x}), ort_run(outcome.model, {"x": x})
        assert np.abs(whole.astype(int) - cut.astype(int)).max() <= 1
        assert np.mean(whole != cut) < 0.01
        # Cut by height these scales vary; cut by width they are the same in every patch.
        wide = rewrite(copy.deepcopy(model), splits=4, form=form, axis="width")
        assert wide.rewritten[0].nodes == ("x_dq", "conv0", "y_q0")
        assert np.array_equal(whole, ort_run(wide.model, {"x": x})[0])
