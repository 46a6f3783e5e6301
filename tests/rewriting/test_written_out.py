"""FusedConv and branches that are decided, in operators that can be cut; and back if none is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy import rewrite
from patchconv_deploy.rewriters.graph import branches, fused_convs
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import (
    Array,
    assert_same,
    assert_same_where_it_runs,
    copy_of,
    model,
    node,
    noise,
)

REL = 2e-6


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(
        Loaded(copy_of(made), None), Options(**{"splits": 4, "max_recompute": 50.0, **options})
    )


def _fused(
    activation: str = "Relu",
    parameters: tuple[float, ...] = (),
    *,
    dims: tuple[Any, ...] = (1, 3, 48, 20),
    opset: int = 17,
) -> onnx.ModelProto:
    """Three of them, one with a sum before the activation."""
    more: dict[str, Any] = {"domain": "com.microsoft", "pads": [1] * 4, "activation": activation}
    if parameters:
        more["activation_params"] = list(parameters)
    nodes = [
        node("FusedConv", "x a a_bias", "p", name="first", **more),
        node("FusedConv", "p b", "q", name="second", **more),
        node("FusedConv", "q b b_bias p", "r", name="third", **more),
        node("Conv", "r c", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "a_bias": noise(16),
        "b": noise(16, 16, 3, 3) / 9,
        "b_bias": noise(16),
        "c": noise(2, 16, 3, 3) / 9,
    }
    made = model(nodes, {"x": dims}, {"y": (None,) * 4}, weights, opset=opset)
    made.opset_import.add(domain="com.microsoft", version=1)
    return made


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [
        ("Relu", ()),
        ("Tanh", ()),
        ("Sigmoid", ()),
        ("LeakyRelu", (0.3,)),
        ("Clip", (-0.5, 0.75)),
        ("HardSigmoid", (0.3, 0.4)),
    ],
)
def test_every_activation(activation: str, parameters: tuple[float, ...]) -> None:
    """In one region with what it adds; the sum comes before the activation."""
    made = _fused(activation, parameters)
    outcome = _cut(made)
    assert outcome.rewritten
    assert all(each.op_type != "FusedConv" for each in outcome.model.graph.node)
    assert {"first", "second", "third", "last"} <= {n for c in outcome.rewritten for n in c.nodes}
    assert outcome.after.bytes < 0.6 * outcome.before.bytes
    assert_same(made, outcome.model, {"x": noise(1, 3, 48, 20)}, 2e-5)


@pytest.mark.parametrize("opset", [9, 13])
def test_bounds_of_a_clip_are_attributes_before_opset_11(opset: int) -> None:
    """And inputs from there on."""
    made = _fused("Clip", (-0.5, 0.75), opset=opset)
    outcome = _cut(made)
    assert outcome.rewritten
    assert_same(made, outcome.model, {"x": noise(1, 3, 48, 20)}, 2e-5)


def test_every_height_of_a_fused_conv() -> None:
    """In rounds, tiny and odd ones too."""
    made = _fused(dims=(1, 3, "H", "W"))
    outcome = _cut(made)
    assert {cut.form for cut in outcome.rewritten} == {"rounds"}
    strips = ({"x": noise(1, 3, height, 9, seed=height)} for height in (1, 2, 3, 7, 16, 33, 101))
    assert assert_same_where_it_runs(made, outcome.model, strips, 2e-5) == 7


def test_a_sum_that_is_forgotten_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the third one without what it adds."""
    original = fused_convs._written_out

    def wrong(each: onnx.NodeProto, *given: Any) -> list[onnx.NodeProto] | None:
        short = onnx.NodeProto()
        short.CopyFrom(each)
        del short.input[3:]
        return original(short, *given)

    monkeypatch.setattr(fused_convs, "_written_out", wrong)
    made = _fused()
    outcome = _cut(made)
    with pytest.raises(AssertionError):
        assert_same(made, outcome.model, {"x": noise(1, 3, 48, 20)}, 2e-5)


@pytest.mark.parametrize("made", [_fused("Softplus"), _fused("LeakyRelu"), _fused("Tanh")])
def test_what_is_not_cut_stays_as_it_is(made: onnx.ModelProto) -> None:
    """An activation that is not known, a parameter too few; one that is written back."""
    outcome = _cut(made, selection=Selection(exclude=("*",)))
    assert not outcome.rewritten
    assert outcome.model == made


def test_a_file_that_onnx_runtime_saved(tmp_path: Path) -> None:
    """Optimised as far as files may be, rewritten and verified."""
    nodes = [
        node("Conv", "x a a_bias", "p", name="first", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("Conv", "q b", "r", name="second", pads=[1] * 4),
        node("Add", "r q", "s", name="skip"),
        node("Relu", "s", "t", name="relu_again"),
        node("Conv", "t c", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "a_bias": noise(16),
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(2, 16, 3, 3) / 9,
    }
    made = model(nodes, {"x": (1, 3, 64, 32)}, {"y": (None,) * 4}, weights)
    onnx.save(made, tmp_path / "plain.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(tmp_path / "plain.onnx", options, ["CPUExecutionProvider"])
    saved = onnx.load(tmp_path / "saved.onnx")
    assert any(each.op_type == "FusedConv" for each in saved.graph.node)
    result = rewrite(tmp_path / "saved.onnx", splits=4)
    assert result.outcome.rewritten
    assert result.report.verification["passed"]


def _graph(
    nodes: list[onnx.NodeProto], output: str, weights: Mapping[str, Array] | None = None
) -> onnx.GraphProto:
    made = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "branch", [], [value], made)


def _branched(
    count: int = 1, dims: tuple[Any, ...] = ("N", 3, "H", "W"), *, free: bool = False
) -> onnx.ModelProto:
    """An If on the channels of an image, or on its columns: a Conv in one branch alone.

    Both branches call what they make alike, and as a tensor behind the If is called.
    """
    taken = _graph(
        [
            node("Conv", "p inner", "t", name="of_branch", pads=[1] * 4),
            node("Relu", "t", "out", name="relu_of_branch"),
        ],
        "out",
        {"inner": noise(16, 16, 3, 3) / 9},
    )
    other = _graph([node("Neg", "p", "t", name="minus"), node("Neg", "t", "out")], "out")
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Shape", "x", "shape"),
        node("Gather", "shape where", "n", axis=0),
        node("Equal", "n three", "c"),
        node("If", "c", "q", name="if", then_branch=taken, else_branch=other),
        node("Sigmoid", "q", "t", name="sigmoid"),
        node("Conv", "t b", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "b": noise(2, 16, 3, 3) / 9,
        "where": np.array(3 if free else 1, np.int64),
        "three": np.array(3 * count, np.int64),
    }
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights)


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ([node("Greater", "n three", "c")], False),
        ([node("GreaterOrEqual", "n three", "c")], True),
        ([node("Less", "three n", "c")], False),
        ([node("LessOrEqual", "three n", "c")], True),
        ([node("Less", "n three", "d"), node("Not", "d", "c")], True),
        ([node("Equal", "n three", "d"), node("Less", "n n", "e"), node("And", "d e", "c")], False),
        ([node("Equal", "n three", "d"), node("Less", "n n", "e"), node("Or", "d e", "c")], True),
        (
            [node("Equal", "n three", "d"), node("Equal", "n n", "e"), node("Xor", "d e", "c")],
            False,
        ),
    ],
    ids=["greater", "no less", "less", "no greater", "not", "and", "or", "either"],
)
def test_a_condition_that_compares_sizes(condition: list[onnx.NodeProto], taken: bool) -> None:
    """What is decided by the sizes is the branch that is taken; the channels are three."""
    made = _branched()
    at = next(k for k, each in enumerate(made.graph.node) if each.op_type == "Equal")
    after = list(made.graph.node)[at + 1 :]
    del made.graph.node[at:]
    made.graph.node.extend([*condition, *after])
    outcome = _cut(made)
    assert all(each.op_type != "If" for each in outcome.model.graph.node)
    inside = {name for cut in outcome.rewritten for name in cut.nodes}
    assert ("of_branch" if taken else "minus") in inside
    feed = {"x": noise(1, 3, 40, 9)}
    assert_same(made, outcome.model, feed, 2e-6)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dims", [("N", 3, "H", "W"), (2, 3, 48, 9)])
def test_the_branch_that_is_taken(count: int, dims: tuple[Any, ...]) -> None:
    """Whichever it is, it is cut with what is around; at every height where that is free."""
    made = _branched(count, dims)
    outcome = _cut(made)
    assert all(each.op_type != "If" for each in outcome.model.graph.node)
    inside = {name for cut in outcome.rewritten for name in cut.nodes}
    assert ("of_branch" if count == 1 else "minus") in inside
    assert {"first", "last"} <= inside
    onnx.checker.check_model(outcome.model, full_check=True)
    heights = (1, 2, 3, 8, 17, 48, 77) if "H" in dims else (48,)
    strips = ({"x": noise(2, 3, height, 9, seed=height)} for height in heights)
    assert assert_same_where_it_runs(made, outcome.model, strips, REL) == len(heights)


def test_a_condition_that_depends_on_the_image_stays() -> None:
    """Its Convs are left alone, by name."""
    made = _branched(free=True)
    outcome = _cut(made)
    assert "If" in {each.op_type for each in outcome.model.graph.node}
    assert "of_branch" in {refused.node for refused in outcome.refused}
    for width in (3, 9):
        assert_same(made, outcome.model, {"x": noise(1, 3, 40, width)}, REL)


def test_a_model_with_branches_is_looked_at() -> None:
    """Without its weights, whose bytes nobody asks for a second time."""
    made = _branched()
    as_it_was = copy_of(made)
    facts = look_at(Loaded(made, None), Options()).facts
    assert {"of_branch", "last"} <= {*facts.labels.values()}
    assert made == as_it_was


def test_a_model_that_is_not_cut_keeps_its_branches() -> None:
    """The node is the file's own again, at its place."""
    made = _branched(1, (1, 3, 48, 9))
    outcome = _cut(made, selection=Selection(exclude=("*",)))
    assert not outcome.rewritten
    assert outcome.model == made


def test_names_are_kept_apart() -> None:
    """What the branch calls "t" stands beside the "t" behind it, and is read by its own nodes."""
    made = _branched(1, (1, 3, 48, 9))
    graph = copy_of(made).graph
    assert branches.inline_branches(graph, lambda name: True, made.ir_version)
    outputs = [name for each in graph.node for name in each.output]
    assert len(outputs) == len(set(outputs))
    by_name = {each.name: each for each in graph.node}
    assert by_name["relu_of_branch"].input[0] == by_name["of_branch"].output[0] != "t"
    assert by_name["sigmoid"].output[0] == "t"
    assert by_name["relu_of_branch"].output[0] == "q"


def test_the_other_branch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the branch that is not taken."""
    original = branches.inline_branches

    def wrong(graph: onnx.GraphProto, condition: Any, version: int) -> bool:
        return original(graph, lambda name: not condition(name), version)

    monkeypatch.setattr("patchconv_deploy.rewriters.prepare.inline_branches", wrong)
    made = _branched()
    outcome = _cut(made)
    with pytest.raises(AssertionError):
        assert_same(made, outcome.model, {"x": noise(1, 3, 40, 9)}, REL)


def test_branches_in_branches_and_what_they_only_hand_on() -> None:
    """A branch that is a tensor from outside, a weight, or has an If again."""
    inner = helper.make_node(
        "If",
        ["yes"],
        ["deep"],
        then_branch=_graph([node("Identity", "w", "same")], "same", {"w": noise(1, 16, 1, 1)}),
        else_branch=_graph([node("Neg", "p", "same")], "same"),
    )
    same_p = _graph([node("Identity", "p", "same")], "same")
    same_q = _graph([node("Identity", "q", "same")], "same")
    then = _graph([inner, node("Add", "deep p", "sum", name="sum")], "sum")
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("If", "yes", "q", then_branch=then, else_branch=same_p),
        node("If", "no", "r", then_branch=same_p, else_branch=same_q),
        node("Conv", "r b", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "b": noise(2, 16, 3, 3) / 9,
        "yes": np.array(True),
        "no": np.array(False),
    }
    made = model(nodes, {"x": (1, 3, 48, 9)}, {"y": (None,) * 4}, weights)
    outcome = _cut(made)
    assert {"first", "sum", "last"} <= {name for cut in outcome.rewritten for name in cut.nodes}
    assert_same(made, outcome.model, {"x": noise(1, 3, 48, 9)}, REL)
