"""Windows that take a tensor apart without overlap: ONNX Runtime copies all of them at once.

It makes one Split of such Slices. Where the tensor stays in memory all the same, because it is an
input or something else reads it later, that is as much again, and each window is taken for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning import emitted_region
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.oracle import oracle_run
from tests.support.small_models import assert_same, copy_of, model, node, noise

SIDE, SPLITS = 64, 8


def _wide(read_later: bool, given: bool, opset: int = 17) -> onnx.ModelProto:
    """Make Convs of one pixel: of 16 channels 32, a Sigmoid of these, and one.

    Args:
        read_later: What the first of them reads is added to the result.
        given: It is the model's input; else a Sigmoid of that.
        opset: The version.
    """
    x, y = "x" if given else "h", "z" if read_later else "y"
    nodes = [] if given else [node("Sigmoid", "x", "h", name="begin")]
    nodes += [
        node("Conv", f"{x} up", "wide", name="up"),
        node("Sigmoid", "wide", "gate", name="gate"),
        node("Conv", "gate down", y, name="down"),
    ]
    if read_later:
        nodes.append(node("Add", f"z {x}", "y", name="add"))
    weights = {"up": noise(32, 16, 1, 1), "down": noise(1, 32, 1, 1)}
    dims, made = (1, 16, SIDE, SIDE), (1, 16 if read_later else 1, SIDE, SIDE)
    return model(nodes, {"x": dims}, {"y": made}, weights, opset=opset)


def _cut(made: onnx.ModelProto, target: str = "onnxruntime") -> Outcome:
    """Cut the three nodes, in a way that the search may not take."""
    names = ["up", "gate", "down"]
    (output,) = (each.output[0] for each in made.graph.node if each.name == "down")
    region = {"nodes": names, "outputs": [output], "form": "fused", "splits": SPLITS}
    plan: Mapping[str, Any] = {"version": 2, "axis": "height", "order": "file", "regions": [region]}
    return rewrite_model(Loaded(copy_of(made), None), Options(plan=plan, target=target))


def _run(made: onnx.ModelProto, folder: Path) -> list[str]:
    """Return the operators of the graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    data = made.SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [each.op_type for each in onnx.load(folder / "optimised.onnx").graph.node]


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize(("read_later", "given"), [(True, False), (False, True), (True, True)])
def test_of_what_stays_one_window_at_a_time_is_taken(
    read_later: bool, given: bool, opset: int, tmp_path: Path
) -> None:
    """No Split; the numbers are the original's."""
    made = _wide(read_later, given, opset)
    outcome = _cut(made)
    run = _run(outcome.model, tmp_path)
    assert "Split" not in run
    assert run.count("Slice") == SPLITS
    assert_same(made, outcome.model, {"x": noise(1, 16, SIDE, SIDE)}, 1e-6)


def test_numbers_by_the_reference_evaluator() -> None:
    """The other oracle."""
    made = _wide(True, True)
    feeds = {"x": noise(1, 16, SIDE, SIDE)}
    expected, got = (oracle_run(each, feeds)[0] for each in (made, _cut(made).model))
    assert abs(expected - got).max() <= 1e-5 * abs(expected).max()


def test_what_goes_is_taken_apart_at_once(tmp_path: Path) -> None:
    """It is gone then, and its windows go one by one: no more than the whole."""
    assert "Split" in _run(_cut(_wide(False, False)).model, tmp_path)


def test_a_compiler_is_told_nothing_of_it() -> None:
    """TensorRT takes Slices along one axis that tile a tensor for views of it."""
    made = _cut(_wide(True, True), target="tensorrt").model
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in made.graph.initializer}
    cuts = [each for each in made.graph.node if each.op_type == "Slice"]
    assert len(cuts) == SPLITS
    assert all(constants[each.input[3]].tolist() == [2] for each in cuts)


def test_it_is_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As predicted: less by a copy of the input, but for the window that is in use."""
    made = _wide(False, True)
    apart = _cut(made)
    monkeypatch.setattr(emitted_region, "_staying", lambda *_: frozenset())
    at_once = _cut(made)
    copy = 4 * 16 * SIDE * SIDE
    assert at_once.after.bytes - apart.after.bytes >= (SPLITS - 2) / SPLITS * copy
