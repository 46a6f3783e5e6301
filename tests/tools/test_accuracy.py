"""Errors against float64: what is compared, and when it is called too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

pytest.importorskip("torch", reason="torch is not installed")

from tools import accuracy
from tools.accuracy import CASES, NOT_CUT, Case, Errors, Row, compare, in_double, main, markdown

_ROW = Row("net", "normal", "--splits 4", "1 x4", 3.0, Errors(2e-6, 1e-6), Errors(3e-6, 1e-6))


def test_errors_are_of_all_runs_together() -> None:
    """The largest of any run, the root mean square of all elements."""
    got = [np.array([1.0, 2.0]), np.array([3.0, 0.0])]
    truth = [np.array([1.0, 2.5]), np.array([3.0, 0.0])]
    assert Errors.of(got, truth) == Errors(0.5, 0.25)


def test_a_ratio_above_the_bound_is_told() -> None:
    """Of the largest as well as of the RMS error; of an exact original any error is too much."""
    assert _ROW.ratios() == pytest.approx((1.5, 1.0))
    assert _ROW.good(1.5)
    assert not _ROW.good(1.49)
    assert "**above 1.49**" in markdown([_ROW], 1.49)
    exact = Row("net", "normal", "x", "1 x4", 3.0, Errors(0.0, 0.0), Errors(0.0, 0.0))
    assert exact.good(1.5)
    assert "the original is exact |" in markdown([exact], 1.5)
    worse = Row("net", "normal", "x", "1 x4", 3.0, Errors(0.0, 0.0), Errors(1e-9, 1e-9))
    assert not worse.good(1.5)
    assert "the original is exact; **above 1.5**" in markdown([worse], 1.5)
    uncut = Row("net", "normal", "x", NOT_CUT, 3.0, _ROW.original, _ROW.original)
    assert not uncut.good(1.5)


def test_a_file_in_double_computes_in_double() -> None:
    """Weights, constants and Casts, too: a difference of 1e-12 is still there at the end."""
    third = numpy_helper.from_array(np.array([1e-12], np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=third),
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "c"], ["s"]),
        helper.make_node("Sub", ["s", "w"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    one = numpy_helper.from_array(np.array([1.0], np.float32), "w")
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    double = in_double(model)
    onnx.checker.check_model(double, full_check=True)
    evaluator: Any = ReferenceEvaluator(double)
    (got,) = evaluator.run(None, {"x": np.array([1.0])})
    assert got.dtype == np.float64
    assert got[0] == pytest.approx(1e-12, rel=1e-3)


def test_a_small_network_on_both_kinds_of_inputs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The original's error is rounding, not a difference of networks; so is the other's."""
    monkeypatch.setitem(CASES, "attention", Case("attention", (96,), {"channels": 16}))
    rows = compare("attention", 2, tmp_path)
    assert [row.inputs for row in rows] == ["normal", "normal", "1e4 +- 1e-2", "1e4 +- 1e-2"]
    for row in rows:
        assert row.cut != NOT_CUT
        assert 0 < row.original.largest < 1e-5 * row.magnitude
        assert 0 < row.rewritten.largest < 1e-5 * row.magnitude
        assert row.original.rms < row.original.largest


def test_the_command_fails_where_the_bound_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says how many rows are within."""
    monkeypatch.setattr(accuracy, "compare", lambda *_: [_ROW])
    for bound, code in (("1.5", 0), ("1.2", 1)):
        done = CliRunner().invoke(main, ["--only", "swinir", "--bound", bound])
        assert done.exit_code == code, done.output
        assert f"{1 - code} of 1 within {bound}" in done.output
