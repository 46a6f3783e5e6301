"""Faults planted in one patch are found, whatever the types; what is right passes.

A seam that is shifted by a row, a crop that is off by one, a row of padding where a row of the
image belongs: in one patch of four, at each type of interface and of what lies inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T

from patchconv_deploy.engines.errors import EngineError, RunError
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.verify import pairs
from patchconv_deploy.verify.child import _keep, _Worker
from patchconv_deploy.verify.verification import Verification, verify
from tests.support.small_models import Array, copy_of, cut, model, node, noise, value

ROWS, COLUMNS, CHANNELS = 96, 24, 8


def _weights(layers: int, out: int, seed: int) -> list[Array]:
    widths = [3, *[CHANNELS] * (layers - 1), out]
    return [
        noise(b, a, 3, 3, seed=seed + k) * np.float32((2 / (9 * a)) ** 0.5)
        for k, (a, b) in enumerate(pairwise(widths))
    ]


def _convs(x: str, y: str, dtype: Any, layers: int = 7, out: int = 3) -> tuple[list[Any], Any]:
    nodes, weights = [], {}
    for k, each in enumerate(_weights(layers, out, 7)):
        weights[f"w{k}"] = each.astype(dtype)
        made = y if k == layers - 1 else f"c{k}"
        nodes.append(node("Conv", f"{x} w{k}", made, name=f"conv{k}", pads=[1] * 4))
        x = made
        if k < layers - 1:
            nodes.append(node("Relu", made, f"r{k}", name=f"relu{k}"))
            x = f"r{k}"
    return nodes, weights


def _model(
    nodes: list[Any], weights: Any, kind: int = T.FLOAT, out: int | None = None
) -> onnx.ModelProto:
    dims = (1, 3, ROWS, COLUMNS)
    made = value("y", (None,) * 4, kind if out is None else out)
    made.type.tensor_type.ClearField("shape")
    return model(nodes, [value("x", dims, kind)], [made], weights)


def _plain_type(dtype: Any, kind: int) -> onnx.ModelProto:
    return _model(*_convs("x", "y", dtype), kind)


def _bfloat16() -> onnx.ModelProto:
    made = _plain_type(np.float32, T.FLOAT)
    for tensor in made.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        bits = (array.view(np.uint32) >> 16).astype(np.uint16)
        tensor.ClearField("raw_data")
        tensor.data_type, tensor.raw_data = T.BFLOAT16, bits.tobytes()
    for each in (*made.graph.input, *made.graph.output):
        each.type.tensor_type.elem_type = T.BFLOAT16
    made.opset_import[0].version, made.ir_version = 22, 10
    return made


def _half_inside(end: list[Any], out: int, constants: Any, channels: int = 3) -> onnx.ModelProto:
    nodes, weights = _convs("h", "v", np.float16, layers=7 if channels == 3 else 2, out=channels)
    first = node("Cast", "x", "h", to=T.FLOAT16)
    return _model(
        [first, *nodes, node("Cast", "v", "f", to=T.FLOAT), *end], weights | constants, out=out
    )


_IMAGE = [
    node("Mul", "f gain", "g"),
    node("Add", "g middle", "m"),
    node("Clip", "m low high", "p"),
    node("Round", "p", "q"),
]

_LEVELS = {
    name: np.array(number, np.float32)
    for name, number in {"gain": 60, "middle": 128, "low": 0, "high": 255}.items()
}


def _image(cast: bool) -> onnx.ModelProto:
    nodes, weights = _convs("x", "f", np.float32)
    last = node("Cast", "q", "y", to=T.UINT8) if cast else node("Identity", "q", "y")
    return _model([*nodes, *_IMAGE, last], weights | _LEVELS, out=T.UINT8 if cast else T.FLOAT)


def _labels(half: bool) -> onnx.ModelProto:
    end = node("ArgMax", "f", "y", axis=1, keepdims=0)
    if half:
        return _half_inside([end], T.INT64, {}, channels=6)
    nodes, weights = _convs("x", "f", np.float32, layers=2, out=6)
    return _model([*nodes, end], weights, out=T.INT64)


def _quantised() -> onnx.ModelProto:
    """Quantise what each Conv reads, and its weights, to eight bits."""
    plain, weights = _convs("x", "y", np.float32, layers=4)
    nodes, constants = [], {"z": np.array(128, np.uint8), "wz": np.array(0, np.int8)}
    for each in plain:
        if each.op_type == "Conv":
            x, w = each.input
            scale = float(np.abs(weights[w]).max()) / 127
            constants |= {
                f"{w}q": np.round(weights[w] / scale).astype(np.int8),
                f"{w}s": np.array(scale, np.float32),
                f"{w}a": np.array(4 / 127, np.float32),
            }
            nodes += [
                node("QuantizeLinear", f"{x} {w}a z", f"{w}x8"),
                node("DequantizeLinear", f"{w}x8 {w}a z", f"{w}x"),
                node("DequantizeLinear", f"{w}q {w}s wz", w),
            ]
            each.input[0] = f"{w}x"
        nodes.append(each)
    return _model(nodes, constants)


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "float32": lambda: _plain_type(np.float32, T.FLOAT),
    "float16": lambda: _plain_type(np.float16, T.FLOAT16),
    "double": lambda: _plain_type(np.float64, T.DOUBLE),
    "bfloat16": _bfloat16,
    "float16 in float32": lambda: _half_inside([node("Identity", "f", "y")], T.FLOAT, {}),
    "float16 in uint8": lambda: _half_inside(
        [*_IMAGE, node("Cast", "q", "y", to=T.UINT8)], T.UINT8, _LEVELS
    ),
    "float32 in uint8": lambda: _image(cast=True),
    "rounded float32": lambda: _image(cast=False),
    "labels": lambda: _labels(half=False),
    "labels of float16": lambda: _labels(half=True),
    "int8 QDQ": _quantised,
}


def _moved(made: onnx.ModelProto, what: str, start: int, end: int) -> onnx.ModelProto:
    """Move the bounds of one Slice."""
    made = copy_of(made)
    (cut_out,) = [each for each in made.graph.node if each.name.endswith(f"patchconv/{what}")]
    held = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    for at, by in ((1, start), (2, end)):
        name = f"moved{at}"
        made.graph.initializer.append(
            onnx.numpy_helper.from_array(held[cut_out.input[at]] + by, name)
        )
        cut_out.input[at] = name
    return made


def _padded(made: onnx.ModelProto) -> onnx.ModelProto:
    """Give a patch zeros where the first row of its window was."""
    made = _moved(made, "window_2", 1, 0)
    conv = next(
        each for each in made.graph.node if each.op_type == "Conv" and each.name.endswith("Conv_2")
    )
    pads = next(entry for entry in conv.attribute if entry.name == "pads")
    assert attributes(conv)["pads"] == (1, 1, 1, 1)
    pads.ints[0] = 2
    return made


FAULTS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "a window shifted by a row": lambda made: _moved(made, "window_2", -1, -1),
    "a crop off by one": lambda made: _moved(made, "core_1", 1, 1),
    "a row of padding": _padded,
}


class _Inside:
    """The process that runs the models, in this one: its start is most of the time."""

    def __init__(self) -> None:
        worker = _Worker()
        self._verbs = {
            "original": worker.original,
            "rewritten": worker.rewritten,
            "compare": worker.compare,
            "keep": _keep,
        }

    def ask(self, do: str, *, time_limit_s: float | None = None, **command: Any) -> dict[str, Any]:
        try:
            return self._verbs[do](command)
        except EngineError:
            raise
        except Exception as error:
            raise RunError(f"{type(error).__name__}: {error}") from error


@pytest.fixture
def judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[onnx.ModelProto, onnx.ModelProto, Outcome], Verification]:
    """Return what verifies a model against another."""

    @contextmanager
    def inside(module: str, *arguments: str) -> Iterator[_Inside]:
        yield _Inside()

    monkeypatch.setattr(pairs, "child_process", inside)

    def judge(made: onnx.ModelProto, changed: onnx.ModelProto, outcome: Outcome) -> Verification:
        paths = tmp_path / "original.onnx", tmp_path / "rewritten.onnx"
        for path, each in zip(paths, (made, changed), strict=True):
            path.write_bytes(each.SerializeToString())
        return verify(*paths, outcome)

    return judge


@pytest.mark.parametrize("name", MODELS)
def test_a_fault_of_one_patch_is_found_at_each_type(name: str, judged: Any) -> None:
    """The right model passes; each fault does not, and is a mismatch, not a failure to run."""
    made = MODELS[name]()
    outcome = cut(made, "fused", splits=4)
    assert len(outcome.rewritten) == 1
    right = judged(made, outcome.model, outcome)
    assert right.passed, right
    for fault, plant in FAULTS.items():
        found = judged(made, plant(outcome.model), outcome)
        assert found.ran
        assert found.outputs, f"{fault}: {found.reason}"
        assert found.passed is False, f"{fault}: {found}"
