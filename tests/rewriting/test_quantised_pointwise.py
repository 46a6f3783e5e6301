"""ONNX Runtime's quantised operators beside QLinearConv: cut with it, equal to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from patchconv_deploy import rewrite
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.operators import quantised, table
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import Array, copy_of, model, node, noise, run

# Operator, its operands among "p", "q" and "flags", attributes.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "add": ("QLinearAdd", "p s z q s z s z", {}),
    "multiply": ("QLinearMul", "p s z q s z s z", {}),
    "add one number to each channel": ("QLinearAdd", "channels s z q s z s z", {}),
    "sigmoid": ("QLinearSigmoid", "q s z small z", {}),
    "leaky relu": ("QLinearLeakyRelu", "q s z s z", {"alpha": 0.2}),
    "softmax": ("QLinearSoftmax", "q s z small z", {"axis": 1, "opset": 13}),
    "pool": (
        "QLinearAveragePool",
        "q s z s z",
        {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1},
    ),
    "pool by two": (
        "QLinearAveragePool",
        "q s z s z",
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    "where": ("QLinearWhere", "flags p s z q s z s z", {}),
    "concat": ("QLinearConcat", "s z p s z q s z", {"axis": 1}),
}


def _made(case: str, dims: tuple[Any, ...] = (1, 3, 48, 12)) -> onnx.ModelProto:
    """Two convolutions, the operator on what they make, and a third one."""
    op, reads, more = CASES[case]
    rng = np.random.default_rng(3)
    width = 32 if op == "QLinearConcat" else 16
    nodes = [
        node("QLinearConv", "x s z a s w s z", "p", name="first", pads=[1] * 4),
        node("QLinearConv", "p s z b s w s z", "q", name="second", pads=[1] * 4),
        node("Greater", "p q", "flags", name="greater"),
        node(op, reads, "t", name="between", domain="com.microsoft", **more),
        node("QLinearConv", "t s z c s w s z", "y", name="last", pads=[1] * 4),
    ]
    if op != "QLinearWhere":
        del nodes[2]
    weights = {
        "a": rng.integers(-60, 60, (16, 3, 3, 3), np.int8),
        "b": rng.integers(-20, 20, (16, 16, 3, 3), np.int8),
        "c": rng.integers(-20, 20, (4, width, 3, 3), np.int8),
        "s": np.array(0.04, np.float32),
        "small": np.array(0.004, np.float32),
        "z": np.array(120, np.uint8),
        "w": np.array(0, np.int8),
        "channels": rng.integers(60, 190, (1, 16, 1, 1), np.uint8),
    }
    return model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.UINT8, dims)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, (None,) * 4)],
        weights,
        domains={"com.microsoft": 1},
    )


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(
        Loaded(copy_of(made), None), Options(**{"splits": 4, "max_recompute": 50.0, **options})
    )


def _image(height: int) -> dict[str, Array]:
    rng = np.random.default_rng(height)
    return {"x": rng.integers(0, 255, (1, 3, height, 12), np.uint8)}


def _differ(made: onnx.ModelProto, outcome: Outcome, height: int) -> bool:
    right, found = (run(each, _image(height))["y"] for each in (made, outcome.model))
    assert right.std() > 1  # it is no constant
    return not np.array_equal(right, found)


@pytest.mark.parametrize("case", CASES)
def test_each_is_cut(case: str) -> None:
    """With what is around it, at a fixed height and at every one."""
    fixed, free = _made(case), _made(case, (1, 3, "H", "W"))
    for made, heights in ((fixed, (48,)), (free, (2, 3, 9, 17, 48, 101))):
        outcome = _cut(made)
        assert "between" in {name for cut in outcome.rewritten for name in cut.nodes}
        assert any(each.domain == "com.microsoft" for each in made.graph.node)
        assert outcome.after.bytes < 0.8 * outcome.before.bytes
        assert not any(_differ(made, outcome, height) for height in heights)


def test_a_pool_that_is_taken_for_pointwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: a pool as if it had no rows around it."""
    monkeypatch.setitem(
        table.CONTRIB, "QLinearAveragePool", quantised.QUANTISED["QLinearSigmoid"].entry
    )
    made = _made("pool")
    assert _differ(made, _cut(made), 48)


@pytest.mark.parametrize(
    ("case", "changes", "reason"),
    [
        ("softmax", {"axis": 2}, "along the tiled axis"),
        ("softmax", {"opset": 11}, "flattens"),
        ("concat", {"axis": 2}, "concatenates along the tiled axis"),
        ("pool", {"ceil_mode": 1}, "ceil_mode"),
        ("pool", {"channels_last": 1}, "channels come last|rank of its output is unknown"),
    ],
)
def test_what_is_refused(
    case: str, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason."""
    from patchconv_deploy.rewriters.prepare import look_at
    from patchconv_deploy.rewriters.regions.row_locality import find_locality

    op, reads, more = CASES[case]
    monkeypatch.setitem(CASES, case, (op, reads, {**more, **changes}))
    facts = look_at(Loaded(_made(case), None), Options()).facts.certain
    at = next(at for at, each in enumerate(facts.graph.node) if each.name == "between")
    locality = find_locality(facts, "height")
    assert at not in locality.links
    assert any(word in locality.reasons[at] for word in reason.split("|"))


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = [{"x": noise(1, 3, 48, 16, seed=seed)} for seed in range(2)]

    def get_next(self) -> dict[str, Array] | None:
        return self._left.pop() if self._left else None


def test_a_network_that_onnx_runtime_quantised(tmp_path: Path) -> None:
    """Its quantiser writes these operators; rewritten and verified."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Sigmoid", "p", "g", name="gate"),
        node("Mul", "p g", "m", name="swish"),
        node("Conv", "m b", "q", name="second", pads=[1] * 4),
        node("Add", "q m", "s", name="skip"),
        node("Concat", "s m", "k", name="both", axis=1),
        node("Conv", "k c", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(2, 32, 3, 3) / 9,
    }
    made = model(nodes, {"x": (1, 3, 48, 16)}, {"y": (1, 2, 48, 16)}, weights)
    onnx.save(made, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "saved.onnx",
        _Images(),
        quant_format=QuantFormat.QOperator,
    )
    found = {each.op_type for each in onnx.load(tmp_path / "saved.onnx").graph.node}
    assert {"QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearConcat"} <= found
    result = rewrite(tmp_path / "saved.onnx", splits=4)
    assert {"first_quant", "last_quant"} <= {
        name for cut in result.outcome.rewritten for name in cut.nodes
    }
    assert result.report.verification["passed"]
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": noise(1, 3, 48, 16)})[0].shape == (1, 2, 48, 16)


def test_the_table_means_them_in_their_domain_alone() -> None:
    """Another operator of that name is none of them."""
    assert "QLinearAdd" in table.table_of("com.microsoft")
    assert "QLinearAdd" not in table.table_of("")
    assert "Conv" in table.table_of("ai.onnx")
    assert not table.table_of("someone.else")
