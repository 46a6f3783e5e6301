"""Rounds of a Loop: one file for every height, equal to the original at each."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.report.warnings import warnings_of
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.oracle import oracle_run
from tests.support.random_graphs import random_graph
from tests.support.small_models import (
    Array,
    assert_same,
    assert_same_where_it_runs,
    copy_of,
    in_half,
    model,
    node,
    noise,
)
from tests.support.tiers import slow

pytestmark = pytest.mark.usefixtures("less_weighed")

REL = 2e-6


def _chain(dims: tuple[Any, ...] = ("N", 3, "H", "W"), opset: int = 17) -> onnx.ModelProto:
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("Conv", "q b", "r", name="second", pads=[2] * 4, dilations=[2, 2]),
        node("Sigmoid", "r", "s", name="sigmoid"),
        node("Conv", "s c", "y", name="third", pads=[1] * 4),
    ]
    weights = {"a": noise(16, 3, 3, 3), "b": noise(16, 16, 3, 3) / 9, "c": noise(2, 16, 3, 3) / 9}
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights, opset=opset)


def _unet() -> onnx.ModelProto:
    """Two scales, two skips, two outputs of different heights."""
    nodes = [
        node("Conv", "x a", "p", name="in", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("MaxPool", "q", "m", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "m b", "n", name="low", pads=[1] * 4),
        node("Relu", "n", "o", name="relu_low"),
        node("Conv", "o e", "half", name="side", pads=[0] * 4),
        node("ConvTranspose", "o c", "u", name="up", strides=[2, 2]),
        node("Concat", "u q", "k", name="skip", axis=1),
        node("Conv", "k d", "y", name="out", pads=[1] * 4),
    ]
    weights = {
        "a": noise(8, 3, 3, 3),
        "b": noise(16, 8, 3, 3) / 9,
        "c": noise(16, 8, 2, 2) / 4,
        "d": noise(2, 16, 3, 3) / 9,
        "e": noise(1, 16, 1, 1) / 4,
    }
    outputs = {"y": (None,) * 4, "half": (None,) * 4}
    return model(nodes, {"x": (1, 3, "H", "W")}, outputs, weights)


def _normalised() -> onnx.ModelProto:
    """Convolutions around an InstanceNormalization, and a gate."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("InstanceNormalization", "p s t", "q", name="norm"),
        node("Relu", "q", "r", name="relu"),
        node("Conv", "r b", "v", name="second", pads=[1] * 4),
        node("GlobalAveragePool", "v", "g", name="pool"),
        node("Sigmoid", "g", "h", name="gate"),
        node("Mul", "v h", "w", name="gated"),
        node("Conv", "w c", "y", name="third", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3),
        "s": 1 + noise(16) / 4,
        "t": noise(16),
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(2, 16, 3, 3) / 9,
    }
    return model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, weights)


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    given = {"splits": 64, "max_recompute": 50.0, **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(**given))


def _loops(made: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [each for each in made.graph.node if each.op_type == "Loop"]


def _strip(made: onnx.ModelProto, height: int, axis: int = 2) -> dict[str, Array]:
    (given,) = made.graph.input
    dims = [each.dim_value or 8 for each in given.type.tensor_type.shape.dim]
    if given.type.tensor_type.shape.dim[0].dim_param:
        dims[0] = 2
    dims[axis] = height
    return {given.name: 1 + noise(*dims, seed=height)}


@pytest.mark.parametrize("made", [_chain(), _chain(opset=13), _unet(), _normalised()])
def test_every_height(made: onnx.ModelProto) -> None:
    """From one row up, whatever the last round has left."""
    outcome = _cut(made)
    assert {cut.form for cut in outcome.rewritten} == {"rounds"}
    assert _loops(outcome.model)
    onnx.checker.check_model(outcome.model, full_check=True)
    for height in (*range(2, 67, 2), 100, 131 * 2):
        assert_same(made, outcome.model, _strip(made, height), REL)


def test_odd_heights_and_one_row() -> None:
    """A chain runs at any height at all."""
    made = _chain()
    outcome = _cut(made)
    for height in (1, 3, 5, 7, 9, 11, 13, 33, 65, 127):
        assert_same(made, outcome.model, _strip(made, height), REL)
    for batch in (0, 1, 3):
        assert_same(made, outcome.model, {"x": noise(batch, 3, 30, 9)}, REL)


def _joined_at_one_row() -> onnx.ModelProto:
    """At one row the lower scale is doubled to two, to which the skip's one row is repeated."""
    nodes = [
        node("Conv", "x a", "p", name="in", pads=[1] * 4),
        node("Conv", "p b", "q", name="low", pads=[1] * 4, strides=[2, 2]),
        node("Resize", "q _ s", "u", name="up", coordinate_transformation_mode="asymmetric"),
        node("Add", "p u", "v", name="skip"),
        node("Conv", "v c", "y", name="out", pads=[1] * 4),
    ]
    weights = {"a": noise(16, 3, 3, 3), "b": noise(16, 16, 3, 3) / 9, "c": noise(2, 16, 3, 3) / 9}
    weights["s"] = np.array([1, 1, 2, 2], np.float32)
    return model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, weights)


def _reflected(mode: str) -> onnx.ModelProto:
    """Padding made of more rows than the smallest images have."""
    nodes = [
        node("Pad", "x wide", "p", name="pad", mode=mode),
        node("Conv", "p a", "q", name="first"),
        node("Relu", "q", "r", name="relu"),
        node("Pad", "r narrow", "s", name="pad_again", mode=mode),
        node("Conv", "s b", "y", name="second"),
    ]
    weights = {"a": noise(16, 3, 9, 9) / 9, "b": noise(3, 16, 3, 3) / 9}
    weights |= {
        "wide": np.array([0, 0, 4, 4, 0, 0, 4, 4]),
        "narrow": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    return model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, weights)


@pytest.mark.parametrize("form", ["rounds", "fused"])
@pytest.mark.parametrize("made", [_joined_at_one_row(), _reflected("reflect"), _reflected("edge")])
def test_small_images_are_one_window(made: onnx.ModelProto, form: str) -> None:
    """Rows that are repeated or padded otherwise at a low height hinder no patches at others."""
    outcome = _cut(made, form=form, splits=4)
    assert [cut.form for cut in outcome.rewritten] == [form]
    assert outcome.after.bytes < 0.5 * outcome.before.bytes
    strips = (_strip(made, height) for height in (*range(1, 40), 64, 97, 130))
    assert assert_same_where_it_runs(made, outcome.model, strips, REL) > 20


def test_along_the_width() -> None:
    """The same where the width is cut."""
    made = _unet()
    outcome = _cut(made, axis="width")
    assert {cut.form for cut in outcome.rewritten} == {"rounds"}
    for width in (2, 8, 30, 64, 130):
        assert_same(made, outcome.model, _strip(made, width, 3), REL)


def test_a_file_does_not_grow_with_the_number_of_patches() -> None:
    """Nodes are written once, weights too, and they stand where a runtime can lay them out."""
    made = _chain()
    few, many = _cut(made, splits=4).model, _cut(made, splits=64).model
    assert abs(few.ByteSize() - many.ByteSize()) < 2000
    (loop,) = _loops(many)
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert {"a", "b", "c"} <= {tensor.name.split("/")[-1] for tensor in body.initializer}
    assert not {"a", "b", "c"} & {tensor.name for tensor in many.graph.initializer}


def test_half_precision() -> None:
    """Sequences of float16."""
    made = in_half(_chain())
    outcome = _cut(made)
    assert {cut.form for cut in outcome.rewritten} == {"rounds"}
    x = noise(1, 3, 50, 9).astype(np.float16)
    assert_same(made, outcome.model, {"x": x}, 2e-3)


@pytest.mark.parametrize(
    ("options", "opset"), [({"target": "tensorrt"}, 17), ({}, 12), ({"form": "fused"}, 17)]
)
def test_where_there_are_no_rounds(options: dict[str, Any], opset: int) -> None:
    """A compiler takes no sequences, nor does an old Loop: patches are shares of the height."""
    made = _chain(opset=opset)
    outcome = _cut(made, splits=4, **options)
    assert outcome.rewritten
    assert {cut.form for cut in outcome.rewritten}.isdisjoint({"rounds"})
    assert_same(made, outcome.model, _strip(made, 50), REL)


def test_where_the_height_is_known_rounds_are_no_other_form() -> None:
    """Asked for at a size that is fixed, windows shrink."""
    made = _chain((1, 3, 64, 64))
    outcome = _cut(made, form="rounds", splits=4)
    assert {cut.form for cut in outcome.rewritten} == {"shrinking"}
    assert not _loops(outcome.model)


def test_a_plan_file_keeps_the_height_of_a_patch() -> None:
    """Written, read and applied it is the same model, byte for byte."""
    made = _unet()
    outcome = _cut(made, splits=40)
    assert outcome.plan is not None
    again = rewrite_model(Loaded(copy_of(made), None), Options(plan=outcome.plan))
    assert again.model.SerializeToString() == outcome.model.SerializeToString()
    other = {**outcome.plan, "regions": [dict(each) for each in outcome.plan["regions"]]}
    for entry in other["regions"]:
        entry["patch_rows"] = 2 * entry["patch_rows"]
    taller = rewrite_model(Loaded(copy_of(made), None), Options(plan=other))
    assert taller.model.SerializeToString() != outcome.model.SerializeToString()
    assert_same(made, taller.model, _strip(made, 90), REL)


def _freed(made: onnx.ModelProto, axis: int) -> onnx.ModelProto:
    """Return a model with a free dimension, and nothing said of the shapes behind it."""
    made = copy_of(made)
    made.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "H"
    del made.graph.value_info[:]
    for value in made.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return made


@pytest.mark.parametrize("seeds", [range(8), slow(range(8, 300))], ids=["first", "more"])
def test_random_graphs(seeds: range) -> None:
    """At heights that the original runs at, whatever the graph is made of."""
    grown = ran = 0
    for seed in seeds:
        draw = random.Random(seed).randint
        graph = random_graph(draw, most=8, statistics=bool(seed % 2))
        made, feeds = graph.model(), graph.feeds()
        if len(feeds) > 1 or graph.opset < 13:
            continue  # several inputs, or a Loop that takes no sequences
        free = _freed(made, 2)
        outcome = _cut(free, form="rounds")
        grown += any(cut.form == "rounds" for cut in outcome.rewritten)
        ((name, array),) = feeds.items()
        count = array.shape[2]
        given = (
            {name: np.take(array, np.arange(count + more) % count, axis=2)}
            for more in (0, 1, 2, 5, 8, 40)
        )
        ran += assert_same_where_it_runs(free, outcome.model, given, 3e-5)
    assert grown > len(seeds) // 4
    assert ran > len(seeds)


def test_a_second_oracle() -> None:
    """The reference evaluator of ONNX runs the Loop to the same numbers."""
    made = _unet()
    outcome = _cut(made)
    feeds = _strip(made, 44)
    for right, found in zip(oracle_run(made, feeds), oracle_run(outcome.model, feeds), strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


def test_a_compiler_cannot_be_asked_for_rounds() -> None:
    """One line that says what to do."""
    with pytest.raises(OptionError, match="form='rounds': TensorRT takes no sequences"):
        Options(form="rounds", target="tensorrt")


def test_what_is_said_of_patches_that_grow() -> None:
    """At an old opset the report says which one bounds the peak; at a newer one nothing of it."""
    for opset, said in ((12, True), (13, False)):
        options = Options(splits=4)
        outcome = rewrite_model(Loaded(_chain(opset=opset), None), options)
        assert outcome.rewritten
        found = [each for each in warnings_of(outcome, options, {}) if "upgrade_opset=13" in each]
        assert bool(found) == said


def test_what_is_said_of_patches_that_a_compiler_holds_whole() -> None:
    """TensorRT, of a free height alone: one profile for each."""
    for dims, target, said in (
        ((1, 3, "H", "W"), "tensorrt", True),
        ((1, 3, 512, 512), "tensorrt", False),
        ((1, 3, "H", "W"), "onnxruntime", False),
    ):
        options = Options(splits=4, target=target)
        outcome = rewrite_model(Loaded(_chain(dims=dims), None), options)
        assert outcome.rewritten
        found = [each for each in warnings_of(outcome, options, {}) if "an engine for each" in each]
        assert bool(found) == said


def test_a_plan_that_cannot_be_done_is_no_other_plan() -> None:
    """Rounds at an old opset, of heights that are not proven, or for a compiler: said."""
    plan = _cut(_chain(), splits=16).plan
    assert plan is not None
    cases: list[tuple[onnx.ModelProto, dict[str, Any], str]] = [
        (_chain(opset=12), {}, "leave patch_rows out"),
        (_chain(), {"target": "tensorrt"}, "TensorRT takes no rounds"),
    ]
    for made, options, said in cases:
        with pytest.raises(OptionError, match=said):
            rewrite_model(Loaded(copy_of(made), None), Options(plan=plan, **options))
    tall = {**plan, "regions": [{**each, "patch_rows": 10**7} for each in plan["regions"]]}
    with pytest.raises(OptionError, match="leave patch_rows out"):
        rewrite_model(Loaded(_chain(), None), Options(plan=tall))


@pytest.mark.parametrize("opset", [13, 19])
def test_a_size_of_what_is_put_together(opset: int) -> None:
    """A Resize to a part of the Shape of a tensor that rounds made: its rank is declared."""
    nodes = [
        node("Conv", "x a", "p", name="conv", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("CumSum", "q two", "z", name="sum"),
        node("Shape", "q", "size"),
        node("Slice", "size two four", "image"),
        node("Shape", "small", "low"),
        node("Slice", "low zero two", "others"),
        node("Concat", "others image", "whole", axis=0),
        node("Resize", "small _ _ whole", "y", mode="nearest", nearest_mode="floor"),
    ]
    starts = {"x": (1, 3, "H", "W"), "small": (1, 2, "h", "w")}
    weights = {"a": noise(8, 3, 3, 3), "zero": np.array([0])}
    weights |= {"two": np.array([2]), "four": np.array([4])}
    ends = {"y": (None,) * 4, "z": (None,) * 4}
    made = model(nodes, starts, ends, weights, opset=opset)
    region = {"nodes": ["conv", "relu"], "outputs": ["q"], "form": "rounds", "splits": 4}
    plan = {"version": 2, "axis": "height", "order": "file", "regions": [{**region, "axis": 2}]}
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(plan=plan))
    assert {cut.form for cut in outcome.rewritten} == {"rounds"}
    for height in (1, 2, 9, 30):
        feeds = {"x": noise(1, 3, height, 9), "small": noise(1, 2, 3, 4)}
        assert_same(made, outcome.model, feeds, REL)
