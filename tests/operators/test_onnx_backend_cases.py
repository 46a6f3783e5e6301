"""The ONNX project's own cases of every convolution, cut into patches, against their own outputs.

Each case brings its inputs and the outputs that ONNX expects; nothing here computes them. The
cases that converted PyTorch modules and operators come with the onnx wheel like the node cases.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from patchconv_deploy.rewriters.graph.model import opset_of
from patchconv_deploy.rewriters.operators.record import CONVOLUTIONS
from patchconv_deploy.rewriters.outcome import Outcome
from tests.support.backend_cases import node_cases
from tests.support.oracle import IR_VERSION, Array, ops, oracle_run, ort_run, rewrite

# What ONNX Runtime reads; the operators of these cases are the same before and after.
_NEWEST_OPSET = 22

_KINDS = ("simple", "pytorch-converted", "pytorch-operator")

# Left alone, and why: nothing of them can be cut.
_REFUSED = {"one-row", "no-such-axis", "kernel-unknown", "not-provable", "opset-too-old"}


class _Case(NamedTuple):
    name: str
    model: onnx.ModelProto
    inputs: dict[str, Array]
    outputs: list[Array]


def _tensors(folder: Path, kind: str) -> list[Array]:
    paths = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.load_tensor(str(path))) for path in paths]


def _lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in versions that ONNX Runtime reads; Conv has not changed since 22."""
    model = copy.deepcopy(model)
    model.ir_version = min(model.ir_version, IR_VERSION)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, _NEWEST_OPSET)
    return model


def _on_disk(folder: Path) -> tuple[onnx.ModelProto, list[Array], list[Array]] | None:
    path, data = folder / "model.onnx", folder / "test_data_set_0"
    if not path.is_file():
        return None
    return onnx.load(path), _tensors(data, "input"), _tensors(data, "output")


@cache
def _cases() -> dict[str, _Case]:
    """Return the cases that hold a convolution; recent onnx makes the node cases in memory."""
    found = {}
    tests: list[tuple[str, TestCase]] = [("node", test) for test in node_cases(CONVOLUTIONS)]
    tests += [(kind, test) for kind in _KINDS for test in load_model_tests(kind=kind)]
    for kind, test in tests:
        if test.model is not None and test.data_sets:
            model, (inputs, outputs) = test.model, test.data_sets[0]
        else:
            loaded = _on_disk(Path(test.model_dir or ""))
            if loaded is None:
                continue
            model, inputs, outputs = loaded
        if not set(CONVOLUTIONS) & set(ops(model)):
            continue
        weights = {tensor.name for tensor in model.graph.initializer}
        # Old cases list weights among the inputs, and give data for the true ones alone.
        names = [entry.name for entry in model.graph.input if entry.name not in weights]
        feeds = {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)}
        found[f"{kind}/{test.name}"] = _Case(
            test.name, _lowered(model), feeds, [np.asarray(y) for y in outputs]
        )
    return found


def _rewrite(case: _Case, form: str) -> Outcome:
    """Cut every convolution; the oldest cases are converted first, as the refusal asks for."""
    old = opset_of(case.model) < 9
    return rewrite(case.model, splits=3, form=form, upgrade_opset=13 if old else None)


def _names() -> list[str]:
    return sorted(_cases())


def _run(model: onnx.ModelProto, case: _Case) -> tuple[list[Array], str]:
    """Run on ONNX Runtime, or on the reference evaluator where the former refuses the case."""
    try:
        ort_run(case.model, case.inputs)
    except Exception:  # noqa: BLE001 - ONNX Runtime raises half a dozen types for "not implemented"
        return oracle_run(model, case.inputs), "oracle"
    return ort_run(model, case.inputs), "onnxruntime"


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("name", _names())
def test_backend_case(name: str, form: str) -> None:
    """The rewritten model gives the case's own outputs; what is not cut has a known reason."""
    case = _cases()[name]
    outcome = _rewrite(case, form)
    convolutions = sum(op in CONVOLUTIONS for op in ops(case.model))
    assert len(outcome.rewritten) + len(outcome.refused) == convolutions
    assert {refusal.code for refusal in outcome.refused} <= _REFUSED, outcome.refused
    results, _ = _run(outcome.model, case)
    assert len(results) == len(case.outputs)
    for result, expected in zip(results, case.outputs, strict=True):
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        # The tolerance of ONNX's own backend tests.
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-6)


def test_enough_cases() -> None:
    """Most cases are really cut, and really run on ONNX Runtime."""
    cut: dict[str, int] = {}
    engines: dict[str, int] = {}
    refused: dict[str, Any] = {}
    for name, case in _cases().items():
        outcome = _rewrite(case, "sequential")
        refused |= dict.fromkeys([name] * len(outcome.refused), outcome.refused)
        if outcome.rewritten:
            cut[name] = len(outcome.rewritten)
            engine = _run(outcome.model, case)[1]
            engines[engine] = engines.get(engine, 0) + 1
    assert len(cut) > 50, (len(cut), len(_cases()))
    assert engines["onnxruntime"] >= 0.9 * len(cut), engines
    assert {"node/" in name for name in cut} == {True, False}
    assert len(refused) < 0.2 * len(_cases()), refused
