"""The original with its large sums in steps: the same numbers, of shorter sums; what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy import rewrite
from patchconv_deploy.errors import VerificationError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.verify.comparison import rounding_of_sums
from patchconv_deploy.verify.sums_in_steps import with_sums_in_steps

Array = np.ndarray[Any, Any]


def _model(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], opset: int, **weights: Array
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ())],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    graph.output[0].type.tensor_type.ClearField("shape")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def _run(model: onnx.ModelProto, x: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def _image(*shape: int) -> Array:
    """Return what an activation gives: no value below zero."""
    noise = np.random.default_rng(0).standard_normal(shape)
    return np.maximum(noise, 0).astype(np.float32)


def _normal(x: Array, axes: tuple[int, ...]) -> Array:
    wide = x.astype(np.float64)
    off = wide - wide.mean(axes, keepdims=True)
    made: Array = off / np.sqrt(np.square(off).mean(axes, keepdims=True) + 1e-5)
    return made


_FOUR = np.array([1.5, -1.0, 0.5, 2.0], np.float32)
_TWO = np.array([0.5, 2.0], np.float32)


def _by_channel(x: Array, scale: Array) -> Array:
    found: Array = x * scale.reshape(1, -1, 1, 1) + scale[::-1].reshape(1, -1, 1, 1)
    return found


def _in_groups(x: Array) -> Array:
    return _normal(x.reshape(1, 2, 2, *x.shape[2:]), (2, 3, 4)).reshape(x.shape)


# Name, opset, attributes, weights, the truth in float64.
_CASES: dict[str, tuple[str, int, dict[str, Any], tuple[Array, ...], Any]] = {
    "instance": (
        "InstanceNormalization", 17, {}, (_FOUR, _FOUR[::-1].copy()),
        lambda x: _by_channel(_normal(x, (2, 3)), _FOUR),
    ),
    "group, a scale for each channel": (
        "GroupNormalization", 21, {"num_groups": 2}, (_FOUR, _FOUR[::-1].copy()),
        lambda x: _by_channel(_in_groups(x), _FOUR),
    ),
    "group, a scale for each group": (
        "GroupNormalization", 18, {"num_groups": 2}, (_TWO, _TWO[::-1].copy()),
        lambda x: _by_channel(
            _in_groups(x).reshape(1, 2, -1, x.shape[-1]), _TWO
        ).reshape(x.shape),
    ),
    "layer": (
        "LayerNormalization", 17, {"axis": 1}, (np.array([2.0], np.float32),),
        lambda x: 2 * _normal(x, (1, 2, 3)),
    ),
    "mean": (
        "ReduceMean", 13, {"axes": [2, 3], "keepdims": 0}, (),
        lambda x: x.mean((2, 3), dtype=np.float64),
    ),
    "mean of all": ("ReduceMean", 18, {}, (), lambda x: x.mean(dtype=np.float64, keepdims=True)),
    "sum": (
        "ReduceSum", 17, {"keepdims": 1}, (np.array([2, 3]),),
        lambda x: x.sum((2, 3), dtype=np.float64, keepdims=True),
    ),
    "pool": (
        "GlobalAveragePool", 17, {}, (),
        lambda x: x.mean((2, 3), dtype=np.float64, keepdims=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", _CASES)
def test_it_is_the_same_number(case: str) -> None:
    """Each operator is written so that it gives what float64 gives, to float32's last places."""
    op, opset, attributes, arrays, truth = _CASES[case]
    weights = {f"w{at}": array for at, array in enumerate(arrays)}
    x = _image(1, 4, 1024, 512)
    model = _model([helper.make_node(op, ["x", *weights], ["y"], **attributes)], x.shape, opset,
                   **weights)  # fmt: skip
    stepped = with_sums_in_steps(Loaded(model, None), {"x": x.shape})
    assert stepped is not None
    found, wanted = _run(stepped, x), truth(x)
    assert found.shape == _run(model, x).shape == wanted.shape
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= 2e-6 * scale
    assert op not in {node.op_type for node in stepped.graph.node} or op.startswith("Reduce")


@pytest.mark.parametrize("length", [2**18, 65537, 65537 * 3, 3 * 5 * 7 * 11 * 13 * 17])
def test_any_length_is_taken_in_parts(length: int) -> None:
    """A signal's one dimension is written as several; a prime stays one."""
    x = _image(1, 2, length)
    stepped = _mean_in_steps(x.shape)
    wanted = x.mean(2, dtype=np.float64, keepdims=True)
    assert np.abs(_run(stepped, x) - wanted).max() <= (1e-4 if length == 65537 else 2e-6)


@pytest.mark.parametrize(
    ("length", "longest"), [(2**18, 512), (2**24, 2048), (65537 * 3, 65537), (255255, 561)]
)
def test_parts_are_short(length: int, longest: int) -> None:
    """None is longer than 2^11 but a prime."""
    ends = "/reduced_parts/shape"
    (parts,) = (
        numpy_helper.to_array(node.attribute[0].t)
        for node in _mean_in_steps((1, 2, length)).graph.node
        if node.name.endswith(ends)
    )
    assert np.prod(parts[2:]) == length
    assert parts[2:].max() <= longest


def _mean_in_steps(shape: tuple[int, ...]) -> onnx.ModelProto:
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2])
    made = with_sums_in_steps(Loaded(_model([node], shape, 13), None), {"x": shape})
    assert made is not None
    return made


def test_what_is_small_is_left() -> None:
    """Short sums, and sums over channels, are as they were."""
    for axes, shape in ((2, 3), (1, 4, 128, 128)), ((1,), (1, 4, 1024, 512)):
        node = helper.make_node("ReduceMean", ["x"], ["y"], axes=axes)
        assert with_sums_in_steps(Loaded(_model([node], shape, 13), None), {"x": shape}) is None


def _normalising(shape: tuple[int, ...]) -> onnx.ModelProto:
    weights = {
        "w": np.random.default_rng(1).standard_normal((4, 1, 3, 3)).astype(np.float32),
        "s": _FOUR,
        "b": _FOUR,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("InstanceNormalization", ["r", "s", "b"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    return _model(nodes, shape, 17, **weights)


def test_an_original_that_rounds_much_is_no_fault_of_the_rewritten(tmp_path: Path) -> None:
    """Of 2^22 values ONNX Runtime's variance is off by far more than any tolerance."""
    path = tmp_path / "model.onnx"
    onnx.save(_normalising((1, 1, 2048, 2048)), path)
    report = rewrite(path, tmp_path / "out.onnx", splits=4).report
    (output,) = report.verification["outputs"]
    assert output["passed"]
    # Off from the original by more than is allowed, from its sums in steps by nearly nothing.
    assert output["sums"] > output["tolerance"] > 20 * output["max_abs"]


def test_a_wrong_statistic_is_caught_even_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variance that is off by less than the original's own rounding here."""
    path = tmp_path / "model.onnx"
    onnx.save(_normalising((1, 1, 2048, 2048)), path)

    def wrong(loaded: Loaded, options: Options, progress: Any = None) -> Outcome:
        (normalisation,) = [n for n in loaded.model.graph.node if n.input[1:] == ["s", "b"]]
        normalisation.attribute.append(helper.make_attribute("epsilon", 2e-3))
        return rewrite_model(loaded, options, progress)

    monkeypatch.setattr("patchconv_deploy.api.rewrite_model", wrong)
    with pytest.raises(VerificationError, match="does not compute the same"):
        rewrite(path, tmp_path / "out.onnx", splits=4)


def test_a_reference_that_is_another_model_is_none() -> None:
    """Sums in steps that are far from the original are no rounding."""
    x = _image(1, 4, 64, 64)
    assert rounding_of_sums(x, x * np.float32(1.01)) == pytest.approx(0.01 * x.max(), rel=1e-2)
    assert rounding_of_sums(x, x * np.float32(1.5)) is None
    assert rounding_of_sums(x, x[:, :, 1:]) is None
    labels = (x > 1).astype(np.int64)
    assert rounding_of_sums(labels, labels) == 0
    assert rounding_of_sums(labels, 1 - labels) is None
