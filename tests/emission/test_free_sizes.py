"""Networks that work out sizes from a free height are cut, and equal to the original at each."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning import evaluator
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion, emit_region
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import (
    Array,
    assert_same_where_it_runs,
    copy_of,
    model,
    node,
    noise,
)

REL = 2e-6

_HEIGHTS = (*range(1, 36), 64, 97, 130)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


_NUMBERS = {
    "zero": _ints(0),
    "one": _ints(1),
    "two": _ints(2),
    "four": _ints(4),
    "rows_at": np.array(2, np.int64),
    "columns_at": np.array(3, np.int64),
    "channels_at": _ints(1),
    "twice": np.array(2, np.float32),
    "halves": np.array([1, 1, 2, 2], np.float32),
}


def _network(
    nodes: list[onnx.NodeProto], inner: int, end: int, inputs: dict[str, Any] | None = None
) -> onnx.ModelProto:
    """Return a Conv to 16 channels, "a", some nodes that make "t", and two more Convs."""
    made = [
        node("Conv", "x wa", "p", name="first", pads=[1] * 4),
        node("Relu", "p", "a", name="relu"),
        *nodes,
        node("Conv", "t wb", "q", name="second", pads=[1] * 4),
        node("Relu", "q", "r", name="relu_again"),
        node("Conv", "r wc", "y", name="third", pads=[1] * 4),
    ]
    weights = {
        **_NUMBERS,
        "wa": noise(16, 3, 3, 3) / 3,
        "wb": noise(end, inner, 3, 3) / 9,
        "wc": noise(3, end, 3, 3) / 9,
        "wd": noise(16, 16, 3, 3) / 9,
    }
    given = inputs or {"x": ("N", 3, "H", "W")}
    return model(made, given, {"y": (None,) * 4}, weights)


def _doubled(way: str) -> onnx.ModelProto:
    """Resize to twice the size, worked out in floats."""
    nodes = [
        node("Shape", "a", "shape"),
        node("Slice", "shape zero two zero", "front"),
        node("Gather", "shape rows_at", "h"),
        node("Gather", "shape columns_at", "w"),
    ]
    for each in "hw":
        nodes += [
            node("Cast", each, f"{each}_float", to=onnx.TensorProto.FLOAT),
            node("Mul", f"{each}_float twice", f"{each}_twice"),
            node("Floor", f"{each}_twice", f"{each}_floor"),
            node("Cast", f"{each}_floor", f"{each}_size", to=onnx.TensorProto.INT64),
            node("Unsqueeze", f"{each}_size zero", f"{each}_one"),
        ]
    nodes += [
        node("Concat", "front h_one w_one", "sizes", axis=0),
        node("Resize", "a _ _ sizes", "t", name="up", mode=way),
    ]
    return _network(nodes, 16, 8)


def _shuffled() -> onnx.ModelProto:
    """Channels in another order, by views."""
    nodes = [
        node("Shape", "a", "shape"),
        node("Slice", "shape two four zero", "rows"),
        node("Concat", "apart rows", "five", axis=0),
        node("Reshape", "a five", "v", name="view"),
        node("Transpose", "v", "u", name="swap", perm=[0, 2, 1, 3, 4]),
        node("Concat", "together rows", "dims", axis=0),
        node("Reshape", "u dims", "t", name="view_back"),
    ]
    made = _network(nodes, 16, 16)
    for name, value in {"apart": _ints(-1, 4, 4), "together": _ints(-1, 16)}.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return made


def _halves_of_channels() -> onnx.ModelProto:
    """Channels in two halves, whose bounds are worked out."""
    nodes = [
        node("Shape", "a", "shape"),
        node("Gather", "shape channels_at", "c"),
        node("Add", "c one", "above"),
        node("Div", "above two", "half"),
        node("Mul", "half two", "whole"),
        node("Slice", "a zero half one", "u", name="front"),
        node("Slice", "a half whole one", "v", name="back"),
        node("Mul", "u v", "t", name="gate"),
    ]
    return _network(nodes, 8, 8)


def _unfolded() -> onnx.ModelProto:
    """Blocks of two by two pixels as channels, by views of sizes that are worked out."""
    nodes = [
        node("Shape", "a", "shape"),
        node("Gather", "shape zero", "n"),
        node("Gather", "shape two", "h"),
        node("Gather", "shape three", "w"),
        node("Div", "h two", "low"),
        node("Div", "w two", "narrow"),
        node("Concat", "n sixteen low two narrow two", "six", axis=0),
        node("Reshape", "a six", "v", name="view"),
        node("Transpose", "v", "u", name="swap", perm=[0, 1, 3, 5, 2, 4]),
        node("Concat", "n many low narrow", "dims", axis=0),
        node("Reshape", "u dims", "t", name="view_back"),
    ]
    made = _network(nodes, 64, 64)
    for name, number in {"three": 3, "sixteen": 16, "many": 64}.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(_ints(number), name))
    return made


def _cropped(*, odd: bool = False) -> onnx.ModelProto:
    """The middle of a skip, as large as what two Convs without padding have left of it."""
    nodes = [
        node("Conv", "a wd", "b", name="smaller", pads=[0] * 4),
        node("Shape", "b" if not odd else "low", "dims"),
        node("Gather", "dims two", "rows"),
        node("Gather", "dims three", "columns"),
        node("Add", "rows one", "end"),
        node("Add", "columns one", "right"),
        node("Slice", "a one end two", "tall", name="crop_rows"),
        node("Slice", "tall one right three", "c", name="crop_columns"),
        node("Concat", "b c", "t", name="both", axis=1),
    ]
    if odd:
        pool = node("MaxPool", "b", "low", name="pool", kernel_shape=[2, 2], strides=[2, 2])
        nodes.insert(1, pool)
    made = _network(nodes, 32, 8)
    made.graph.initializer.append(onnx.numpy_helper.from_array(_ints(3), "three"))
    return made


def _skips() -> onnx.ModelProto:
    """Two scales that are kept for the end: regions of several inputs."""
    nodes = [
        node("Conv", "a wd", "low", name="low", pads=[1] * 4, strides=[2, 2]),
        node("Conv", "low wd", "lower", name="lower", pads=[1] * 4, strides=[2, 2]),
        node("GlobalAveragePool", "lower", "g", name="pool"),
        node("Mul", "lower g", "gated", name="gate"),
        node("Resize", "gated _ halves", "u", name="up", mode="nearest"),
        node("Concat", "low u", "s", name="skip", axis=1),
        node("Conv", "s we", "v", name="mixed", pads=[1] * 4),
        node("Resize", "v _ halves", "w", name="up_again", mode="linear"),
        node("Add", "a w", "t", name="skip_again"),
    ]
    made = _network(nodes, 16, 8)
    made.graph.initializer.append(onnx.numpy_helper.from_array(noise(16, 32, 3, 3) / 9, "we"))
    return made


def _two_inputs(second: str) -> onnx.ModelProto:
    """An image and a mask, and the features of one beside the other."""
    nodes = [
        node("Conv", "mask wm", "m", name="of_mask", pads=[1] * 4),
        node("Concat", "a m", "t", name="both", axis=1),
    ]
    made = _network(nodes, 32, 8, {"x": ("N", 3, "H", "W"), "mask": ("N", 1, second, "W")})
    made.graph.initializer.append(onnx.numpy_helper.from_array(noise(16, 1, 3, 3) / 3, "wm"))
    return made


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(
        Loaded(copy_of(made), None), Options(**{"splits": 4, "max_recompute": 50.0, **options})
    )


def _strip(made: onnx.ModelProto, height: int) -> dict[str, Array]:
    """Return inputs of a height, two images 12 columns wide."""
    found = {}
    for value in made.graph.input:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        found[value.name] = noise(2, dims[1], height, 12, seed=height)
    return found


@pytest.mark.parametrize("form", ["rounds", "fused"])
@pytest.mark.parametrize(
    ("made", "inside", "share"),
    [
        (_doubled("nearest"), "up", 0.65),
        (_doubled("linear"), "up", 0.65),
        (_shuffled(), "view", 0.6),
        (_halves_of_channels(), "front", 0.6),
        (_unfolded(), "view", 0.8),
        (_cropped(), "both", 0.8),
        (_skips(), "skip_again", 0.8),
        (_two_inputs("H"), "both", 0.7),
    ],
    ids=["nearest", "linear", "shuffled", "halves", "unfolded", "cropped", "skips", "two inputs"],
)
def test_every_height(made: onnx.ModelProto, inside: str, share: float, form: str) -> None:
    """Wherever the original runs, from one row up."""
    outcome = _cut(made, form=form)
    assert {cut.form for cut in outcome.rewritten} == {form}
    assert inside in {name for cut in outcome.rewritten for name in cut.nodes}
    assert outcome.after.bytes < share * outcome.before.bytes
    onnx.checker.check_model(outcome.model, full_check=True)
    strips = (_strip(made, height) for height in _HEIGHTS)
    assert assert_same_where_it_runs(made, outcome.model, strips, REL) > 8


def _reason(made: onnx.ModelProto, name: str) -> str:
    """Return why a node is in no region, empty if it is in one."""
    from patchconv_deploy.rewriters.prepare import look_at
    from patchconv_deploy.rewriters.regions.row_locality import find_locality

    facts = look_at(Loaded(copy_of(made), None), Options()).facts.certain
    names = (name, f"{name}/resizing/by_scales")
    at = next(at for at, each in enumerate(facts.graph.node) if each.name in names)
    locality = find_locality(facts, "height")
    return "" if at in locality.links else locality.reasons[at]


def test_a_factor_that_varies_is_refused() -> None:
    """Up to the size of a tensor that was halved: at odd heights that is not twice."""
    nodes = [
        node("MaxPool", "a", "low", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "low wd", "lower", name="low", pads=[1] * 4),
        node("Shape", "a", "sizes"),
        node("Resize", "lower _ _ sizes", "u", name="up"),
        node("Add", "a u", "t", name="skip"),
    ]
    assert "known at run time" in _reason(_network(nodes, 16, 8), "up")
    # To a height that was rounded up to an even one it is.
    even = [
        node("Conv", "a wd", "low", name="low", pads=[1] * 4, strides=[2, 2]),
        node("Resize", "low _ halves", "even", name="up_first", mode="nearest"),
        node("Conv", "low wd", "lower", name="lower", pads=[1] * 4),
        node("Shape", "even", "sizes"),
        node("Resize", "lower _ _ sizes", "u", name="up"),
        node("Add", "even u", "t", name="skip"),
    ]
    assert not _reason(_network(even, 16, 8), "up")


def test_a_crop_by_a_share_is_refused() -> None:
    """Half of the rows are not so many from the end at every height."""
    assert not _reason(_cropped(), "crop_rows")
    assert "known at run time" in _reason(_cropped(odd=True), "crop_rows")


@pytest.mark.parametrize("target", [(0, -1, 0), (1, -1, 0)])
def test_columns_that_are_copied_from_where_rows_lie(target: Any) -> None:
    """An image as wide as it is high: a 0 would copy the rows of a patch as its columns."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Reshape", "p target", "q", name="view"),
        node("Unsqueeze", "q one", "u"),
        node("Conv", "u b", "r", name="second", pads=[1] * 4),
        node("Conv", "r c", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(1, 3, 3, 3),
        "b": noise(8, 1, 3, 3),
        "c": noise(2, 8, 3, 3),
        "target": np.array(target),
        "one": np.array([1]),
    }
    made = model(nodes, {"x": (1, 3, "S", "S")}, {"y": (None,) * 4}, weights)
    outcome = _cut(made, form="rounds")
    assert outcome.rewritten
    feeds = [{"x": noise(1, 3, side, side)} for side in (2, 7, 300)]
    assert assert_same_where_it_runs(made, outcome.model, feeds, REL) == 3


def test_a_view_of_what_is_cropped() -> None:
    """Of an image that a region hands on whole, too: the view is told as many rows as it gets."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("Shape", "q", "shape"),
        node("Slice", "shape two four", "rows"),
        node("Concat", "apart rows", "five", axis=0),
        node("Reshape", "q five", "v", name="view"),
        node("Sigmoid", "v", "z", name="sigmoid"),
    ]
    weights = {**_NUMBERS, "a": noise(16, 3, 3, 3), "apart": _ints(1, 4, 4)}
    made = model(nodes, {"x": (1, 3, "H", 12)}, {"q": (None,) * 4, "z": (None,) * 5}, weights)
    region = {
        "nodes": ["first", "relu", "view", "sigmoid"],
        "outputs": ["q", "z"],
        "form": "rounds",
        "splits": 4,
    }
    plan = read_plan(json.dumps({"version": 2, "axis": "height", "regions": [region]}))
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(plan=plan))
    strips = ({"x": noise(1, 3, height, 12)} for height in (1, 9, 130, 700))
    assert assert_same_where_it_runs(made, outcome.model, strips, REL) == 4


def test_rows_that_are_mixed_are_refused() -> None:
    """Rows and columns as one dimension, and back as the transposed image."""
    nodes = [
        node("Shape", "a", "shape"),
        node("Slice", "shape zero two zero", "front"),
        node("Gather", "shape two", "h"),
        node("Gather", "shape three", "w"),
        node("Concat", "front w h", "dims", axis=0),
        node("Reshape", "a dims", "t", name="view"),
    ]
    made = _network(nodes, 16, 8)
    made.graph.initializer.append(onnx.numpy_helper.from_array(_ints(3), "three"))
    assert _reason(made, "view")


def test_heights_that_may_differ_are_refused() -> None:
    """Of two inputs whose heights are not said to be the same no region is made."""
    outcome = _cut(_two_inputs("H2"))
    assert "both" not in {name for cut in outcome.rewritten for name in cut.nodes}
    assert any("sizes along the tiled axis are unknown" in each.reason for each in outcome.refused)


def test_predictions_hand_over_what_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a height known at run time alone patches are put together; so they are at assumed ones."""
    found: list[EmittedRegion] = []

    def noted(*given: Any, **named: Any) -> EmittedRegion:
        found.append(emit_region(*given, **named))
        return found[-1]

    monkeypatch.setattr(evaluator, "emit_region", noted)
    dims = ("N", 8, "H", 64)
    nodes = [
        node("Conv", "x w", "h", name="first", pads=[1] * 4),
        node("InstanceNormalization", "h scale shift", "n", name="norm"),
        node("Relu", "n", "r", name="relu"),
        node("Conv", "r v", "y", name="last", pads=[1] * 4),
    ]
    weights = {"w": noise(64, 8, 3, 3), "v": noise(8, 64, 3, 3), "scale": noise(64),
               "shift": noise(64)}  # fmt: skip
    made = model(nodes, {"x": dims}, {"y": dims}, weights)
    asked = Options(form="fused", splits=4, ranges={"x": ((1, 1), (8, 8), (16, 256), (64, 64))})
    assert rewrite_model(Loaded(made, None), asked).rewritten
    at_run_time = [each for each in found if each.plan.tiling is None]
    assert at_run_time
    for each in at_run_time:
        assert each.sized is not None
        assert not each.fragment.joins
        assert not each.sized.joins
