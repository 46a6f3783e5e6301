"""Clones say no more than they have to; what is written computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.emission import lean_clones
from patchconv_deploy.rewriters.outcome import Outcome
from tests.support.small_models import assert_same, copy_of, cut, model, node, noise, run

LISTS = frozenset({"strides", "dilations", "pads", "output_padding"})

LAYERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "Conv": ("Conv", "x w", {"kernel_shape": [3, 3], "pads": [1] * 4}),
    "no padding": ("Conv", "x w", {"kernel_shape": [3, 3], "pads": [0] * 4}),
    "stride": ("Conv", "x w", {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 1]}),
    "dilation": ("Conv", "x w", {"kernel_shape": [3, 3], "pads": [2] * 4, "dilations": [1, 2]}),
    "ConvTranspose": (
        "ConvTranspose",
        "x w",
        {"strides": [2, 2], "output_padding": [0, 0], "pads": [1] * 4, "kernel_shape": [3, 3]},
    ),
    "MaxPool": ("MaxPool", "x", {"kernel_shape": [3, 3], "pads": [1] * 4}),
    "AveragePool": ("AveragePool", "x", {"kernel_shape": [2, 2], "strides": [2, 2]}),
}


def _network(name: str = "Conv", opset: int = 17) -> onnx.ModelProto:
    """Make a layer that states all its lists between a Neg and a Relu."""
    op, inputs, given = LAYERS[name]
    stated = {"strides": [1, 1], "pads": [0] * 4, **given}
    if op != "AveragePool":
        stated = {"dilations": [1, 1], **stated}
    nodes = [
        node("Neg", "input", "x", name="first"),
        node(op, inputs, "c", name="a layer of a block with a long name", **stated),
        node("Relu", "c", "y", name="last"),
    ]
    weights = {"w": noise(4, 4, 3, 3)} if "w" in inputs.split() else {}
    return model(nodes, {"input": (1, 4, 64, 16)}, {"y": (None,) * 4}, weights, opset=opset)


def _cut(made: onnx.ModelProto, splits: int = 4, form: str = "fused", **options: Any) -> Outcome:
    nodes = [each.name for each in made.graph.node]
    region = {"nodes": nodes, "outputs": ["y"], "form": form, "splits": splits}
    plan = {"version": 2, "axis": "height", "order": "file", "regions": [region]}
    outcome = cut(made, form, plan=plan, **options)
    assert outcome.rewritten
    return outcome


def _of(made: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [each for each in made.graph.node if each.op_type == op]


@pytest.mark.parametrize("form", ["fused", "shrinking", "batch"])
@pytest.mark.parametrize("name", LAYERS)
def test_lists_of_defaults_are_left_out(name: str, form: str) -> None:
    """What is not 1, or 0 for padding, stays; so does the kernel's size. Outputs are the same."""
    made = _network(name)
    outcome = _cut(made, form=form)
    (original,) = _of(made, LAYERS[name][0])
    said = {each.name: each for each in original.attribute}
    for clone in _of(outcome.model, original.op_type):
        kept = {each.name: list(each.ints) for each in clone.attribute if each.name in LISTS}
        assert all(
            set(ints) != {int(key in ("strides", "dilations"))} for key, ints in kept.items()
        )
        assert {"strides", "dilations"} & LAYERS[name][2].keys() <= kept.keys()
        assert {each.name for each in clone.attribute} - LISTS == said.keys() - LISTS
    feeds = {"input": noise(1, 4, 64, 16)}
    assert np.array_equal(run(outcome.model, feeds)["y"], run(made, feeds)["y"])


def test_before_opset_11_nothing_is_left_out() -> None:
    """Their defaults are not all written down there."""
    outcome = _cut(_network(opset=10))
    for clone in _of(outcome.model, "Conv"):
        assert {"strides", "dilations", "pads"} <= {each.name for each in clone.attribute}


def _with_a_layer_behind() -> tuple[onnx.ModelProto, Outcome]:
    """Make a network whose last layer is not cut, and cut it."""
    made = _network()
    behind = copy_of(made).graph.node[1]
    behind.name, behind.input[0], behind.output[0] = "uncut", "y", "z"
    made.graph.node.append(behind)
    made.graph.output[0].name = "z"
    names = [each.name for each in made.graph.node[:3]]
    region = {"nodes": names, "outputs": ["y"], "form": "fused", "splits": 4}
    plan = {"version": 2, "axis": "height", "order": "file", "regions": [region]}
    return made, cut(made, "fused", plan=plan)


def test_nodes_that_are_not_cut_stay_as_they_are() -> None:
    """What nobody wrote is not touched."""
    made, outcome = _with_a_layer_behind()
    (left,) = (each for each in outcome.model.graph.node if each.name == "uncut")
    assert left == made.graph.node[-1]


def _dense() -> onnx.ModelProto:
    """Make a dense block as exporters write it: its first layer puts one tensor together."""
    nodes = [
        node("Concat", "input", "a", name="first", axis=1),
        node("Conv", "a w", "b", name="conv", pads=[1] * 4),
        node("Concat", "input b", "c", name="both", axis=1),
        node("Concat", "c", "d", name="again", axis=1),
        node("Relu", "d", "y", name="last"),
    ]
    return model(nodes, {"input": (1, 4, 64, 16)}, {"y": (None,) * 4}, {"w": noise(4, 4, 3, 3)})


def test_a_concat_of_one_tensor_is_not_cloned() -> None:
    """Those of several tensors are, and the numbers are what they were."""
    made = _dense()
    outcome = _cut(made)
    concats = _of(outcome.model, "Concat")
    assert len(concats) == 4 + 1
    assert all(len(each.input) > 1 for each in concats)
    onnx.checker.check_model(outcome.model, full_check=True)
    feeds = {"input": noise(1, 4, 64, 16)}
    assert np.array_equal(run(outcome.model, feeds)["y"], run(made, feeds)["y"])


def test_a_concat_of_one_tensor_that_is_not_cut_stays() -> None:
    """So does one that makes an output of the model."""
    made = _dense()
    last = made.graph.node[-1]
    last.op_type, last.name = "Concat", "last"
    last.attribute.append(onnx.helper.make_attribute("axis", 1))
    region = {"nodes": ["first", "conv", "both"], "outputs": ["c"], "form": "fused", "splits": 4}
    plan = {"version": 2, "axis": "height", "order": "file", "regions": [region]}
    outcome = cut(made, "fused", plan=plan)
    left = [each.name for each in _of(outcome.model, "Concat") if len(each.input) == 1]
    assert left == ["again", "last"]
    assert_same(made, outcome.model, {"input": noise(1, 4, 64, 16)})


def _tensors(outcome: Outcome) -> set[str]:
    return {name for each in outcome.model.graph.node for name in each.output}


def test_tensors_of_very_many_clones_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes keep their names; few clones keep those of their tensors as well."""
    made = _network()
    few = _cut(made)
    assert any(name.endswith("/patchconv/Conv_3") for name in _tensors(few))
    monkeypatch.setattr(lean_clones, "_MANY_NODES", 10)
    many = _cut(made)
    assert [each.name for each in many.model.graph.node] == [
        each.name for each in few.model.graph.node
    ]
    assert len(_tensors(many)) == len(_tensors(few))
    new = _tensors(many) - {"y"}
    assert all(name.startswith("patchconv/") and len(name) < 16 for name in new)
    assert_same(made, many.model, {"input": noise(1, 4, 64, 16)})


def test_tensors_that_bodies_read_are_numbered_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Loop, at a free height, reads what was made around it."""
    monkeypatch.setattr(lean_clones, "_MANY_NODES", 1)
    made = _network()
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "rows"
    outcome = cut(made, "loop", splits=4)
    assert outcome.rewritten
    loops = _of(outcome.model, "Loop")
    assert loops
    read = {
        name
        for loop in loops
        for attribute in loop.attribute
        for inner in attribute.g.node
        for name in inner.input
    }
    assert any(name.startswith("patchconv/") and name[10:].isdigit() for name in read)
    for rows in (64, 101):
        assert_same(made, outcome.model, {"input": noise(1, 4, rows, 16)})


def test_tensors_that_others_know_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the surrounding graph reads, and outputs of the model."""
    monkeypatch.setattr(lean_clones, "_MANY_NODES", 1)
    made, outcome = _with_a_layer_behind()
    assert {"y", "z"} <= _tensors(outcome)
    assert_same(made, outcome.model, {"input": noise(1, 4, 64, 16)})
    whole = _network()
    assert_same(whole, _cut(whole).model, {"input": noise(1, 4, 64, 16)})


def test_a_file_that_was_numbered_is_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the second time avoid those of the first."""
    monkeypatch.setattr(lean_clones, "_MANY_NODES", 1)
    made, outcome = _with_a_layer_behind()
    del outcome.model.metadata_props[:]
    again = cut(outcome.model, "fused", splits=2)
    assert again.rewritten
    assert any(name.startswith("patchconv_2/") for name in _tensors(again))
    assert_same(made, again.model, {"input": noise(1, 4, 64, 16)})
