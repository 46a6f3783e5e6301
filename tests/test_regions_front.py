"""Regions from the outside: budgets, plans, limits, ranges, pixel shuffle spelled out, inspect."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from patchconv_deploy.cli import patchconv
from rewriters.errors import BudgetError, OptionError
from rewriters.graph import Loaded
from rewriters.planner import read_plan
from rewriters.rewrite import Options, Outcome, pareto_of, rewrite_model
from tests.regions_by_hand import tile_all
from tests.small_models import assert_same, chain, copy_of, model, node, noise, run

DIMS = (1, 2, 96, 64)


def _chain() -> onnx.ModelProto:
    """Make a chain whose inner tensors are large beside its ends."""
    nodes, weights, x = [], {}, "x"
    widths = [2, 16, 16, 16, 2]
    for k, (a, b) in enumerate(pairwise(widths)):
        y = "y" if k == 3 else f"c{k}"
        nodes.append(node("Conv", f"{x} w{k}", y, name=f"conv{k}", pads=[1] * 4))
        weights[f"w{k}"] = noise(b, a, 3, 3, seed=k) / 8
        x = y
    return model(nodes, {"x": DIMS}, {"y": (None,) * 4}, weights)


def _rewrite(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(Loaded(copy_of(made), None), Options(**options))


def test_a_budget_is_kept_with_the_least_work() -> None:
    """Each budget is kept as predicted; a smaller one asks for more work, never for less."""
    made, feed = _chain(), {"x": noise(*DIMS)}
    peak = _rewrite(made, splits=1).before.bytes
    work = []
    for share in (0.9, 0.6, 0.4):
        outcome = _rewrite(made, memory_budget=int(share * peak))
        assert outcome.after.bytes <= share * peak
        assert outcome.recompute is not None
        work.append(outcome.recompute)
        assert_same(made, outcome.model, feed)
    assert work == sorted(work)


def test_the_axis_that_serves_better_is_found() -> None:
    """A wide image of few rows is cut along its width; what is written says so."""
    made = _chain()
    for dim, size in zip(
        made.graph.input[0].type.tensor_type.shape.dim[2:], (12, 512), strict=True
    ):
        dim.dim_value = size
    outcome = _rewrite(made, axis="auto", splits=4)
    assert {done.axis for done in outcome.rewritten} == {3}
    assert (outcome.plan or {})["axis"] == "width"
    assert outcome.after.bytes < _rewrite(made, splits=4).after.bytes
    assert_same(made, outcome.model, {"x": noise(1, 2, 12, 512)})


def test_a_budget_that_cannot_be_met_says_what_holds_it() -> None:
    """The smallest peak found, a bound, and the tensors are in the message."""
    with pytest.raises(BudgetError, match=r"smallest peak found .* held by .* no plan goes below"):
        _rewrite(_chain(), memory_budget=1000)


def test_a_plan_is_applied_to_the_byte() -> None:
    """What is written down, read and applied again is the same model; edits are obeyed."""
    made = _chain()
    outcome = _rewrite(made, splits=4)
    assert outcome.plan is not None
    text = json.dumps(outcome.plan)
    again = _rewrite(made, plan=read_plan(text))
    assert again.model.SerializeToString() == outcome.model.SerializeToString()
    edited = json.loads(text)
    edited["regions"][0].update(splits=3, form="loop")
    third = _rewrite(made, plan=read_plan(json.dumps(edited)))
    assert [(done.form, done.splits) for done in third.rewritten] == [("loop", 3)]
    assert_same(made, third.model, {"x": noise(*DIMS)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "not a plan of version"),
        ({"axis": "time"}, "axis must be"),
        ({"order": "chaos"}, "order must be"),
        ({"regions": {}}, "must be a list"),
        ({"regions": [{"nodes": [], "outputs": ["y"]}]}, "must be a list of names"),
        ({"regions": [{"nodes": ["a"], "outputs": ["y"], "form": "x", "splits": 2}]}, "form"),
    ],
)
def test_a_damaged_plan_is_refused(change: dict[str, Any], message: str) -> None:
    """Each field is checked before anything is done."""
    plan = {"version": 2, "axis": "height", "order": "file", "regions": [], **change}
    with pytest.raises(OptionError, match=message):
        read_plan(json.dumps(plan))


def test_an_edited_plan() -> None:
    """A region makes what its nodes make; a node that is named twice is one."""
    plan: dict[str, Any] = dict(_rewrite(_chain(), splits=4).plan or {})
    whole = _rewrite(_chain(), plan=plan).model
    region = plan["regions"][0]
    region["nodes"].append(region["nodes"][0])
    assert _rewrite(_chain(), plan=plan).model == whole
    region["outputs"].append("x")
    with pytest.raises(OptionError, match="no node of its region makes 'x'"):
        _rewrite(_chain(), plan=plan)


def test_a_plan_of_another_model_is_refused() -> None:
    """Nodes that are not there, and regions that cannot be proven."""
    plan: dict[str, Any] = dict(_rewrite(_chain(), splits=4).plan or {})
    with pytest.raises(OptionError, match="no node 'conv2'"):
        _rewrite(chain(2), plan=plan)
    plan["regions"][0]["nodes"].remove("conv1")
    with pytest.raises(OptionError, match="cannot be cut"):
        _rewrite(_chain(), plan=plan)


def test_no_tensor_above_the_limit() -> None:
    """Every tensor is brought under the limit; what cannot be is named."""
    made, limit = _chain(), 40_000
    outcome = _rewrite(made, max_tensor_elements=limit)
    inferred = onnx.shape_inference.infer_shapes(outcome.model)
    for value in inferred.graph.value_info:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert np.prod(sizes) <= limit, value.name
    assert_same(made, outcome.model, {"x": noise(*DIMS)})
    with pytest.raises(BudgetError, match="tensors of more than 100 elements stay"):
        _rewrite(made, max_tensor_elements=100)


def test_a_tensor_of_three_billion_elements() -> None:
    """A super-resolution network TensorRT refuses becomes one it takes; nothing is run."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node("Resize", "c _ s", "u", name="up", mode="nearest", nearest_mode="floor"),
        node("Conv", "u b", "v", name="wide", pads=[1] * 4),
        node("Relu", "v", "r", name="relu"),
        node("Conv", "r d", "y", name="last", pads=[1] * 4),
    ]
    nodes[1].attribute.append(
        onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
    )
    weights = {
        "a": noise(64, 3, 3, 3),
        "b": noise(64, 64, 3, 3),
        "d": noise(3, 64, 3, 3),
        "s": np.array([1, 1, 4, 4], np.float32),
    }
    made = model(nodes, {"x": (1, 3, 1712, 1712)}, {"y": (1, 3, 6848, 6848)}, weights)
    assert 64 * 6848 * 6848 > 3e9 - 1e7
    outcome = _rewrite(made, target="tensorrt", splits=64)
    inferred = onnx.shape_inference.infer_shapes(outcome.model)
    sizes = [
        np.prod([dim.dim_value for dim in value.type.tensor_type.shape.dim], dtype=np.int64)
        for value in inferred.graph.value_info
    ]
    assert max(sizes) <= 2**31 - 1


@pytest.mark.parametrize("form", ["fused", "shrinking", "loop"])
@pytest.mark.parametrize("deep", [False, True])
def test_pixel_shuffle_spelled_out(form: str, deep: bool) -> None:
    """Reshape and Transpose that put rows together, or take them apart, are cut like the real."""
    shapes = (
        ([1, 4, 12, 2, 5, 2], [1, 16, 12, 5]) if deep else ([1, 2, 2, 2, 24, 10], [1, 2, 48, 20])
    )
    perm = [0, 1, 3, 5, 2, 4] if deep else [0, 1, 4, 2, 5, 3]
    nodes = [
        node("Conv", "x w", "a", name="c0", pads=[1] * 4),
        node("Reshape", "a s1", "b"),
        node("Transpose", "b", "c", perm=perm),
        node("Reshape", "c s2", "d"),
        node("Conv", "d v", "y", name="c1", pads=[1] * 4),
    ]
    weights = {
        "w": noise(4 if deep else 8, 2, 3, 3, seed=1),
        "v": noise(3, 16 if deep else 2, 3, 3, seed=2),
        "s1": np.array(shapes[0]),
        "s2": np.array(shapes[1]),
    }
    made = model(nodes, {"x": (1, 2, 24, 10)}, {"y": (None,) * 4}, weights)
    cut = tile_all(made, 3, form)
    assert [len(plan.region.nodes) for plan in cut.plans] == [5]
    assert_same(made, cut.model, {"x": noise(1, 2, 24, 10)})


def test_a_range_leaves_the_axis_free(tmp_path: Path) -> None:
    """Memory is predicted for the largest size; every size in the range is right."""
    made = _chain()
    dim = made.graph.input[0].type.tensor_type.shape.dim[2]
    dim.Clear()
    dim.dim_param = "height"
    onnx.save(made, tmp_path / "m.onnx")
    arguments = ["rewrite", str(tmp_path / "m.onnx"), "--shape", "x:1x2x40..400x64"]
    done = CliRunner().invoke(patchconv, arguments, catch_exceptions=False)
    assert "run time" in done.output
    after = onnx.load(tmp_path / "m.patched.onnx")
    assert after.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "height"
    for rows in (40, 41, 77, 400):
        assert_same(made, after, {"x": noise(1, 2, rows, 64)})


def test_pareto_falls() -> None:
    """From the model as it is on: ever more work, ever lower peaks."""
    points = pareto_of(Loaded(_chain(), None), Options())
    assert points[0].regions == 0
    assert len(points) > 2
    peaks, work = [p.peak for p in points], [p.recompute for p in points]
    assert peaks == sorted(set(peaks), reverse=True)
    assert work == sorted(work)


def test_inspect_says_what_holds_the_peak(tmp_path: Path) -> None:
    """The largest tensors, the barrier with its reason, and what cutting would bring."""
    nodes = [
        node("Conv", "x w", "c", name="conv", pads=[1] * 4),
        node("GlobalAveragePool", "c", "g", name="pool"),
        node("Mul", "c g", "y", name="scale"),
    ]
    made = model(nodes, {"x": DIMS}, {"y": (None,) * 4}, {"w": noise(8, 2, 3, 3)})
    onnx.save(made, tmp_path / "m.onnx")
    report = tmp_path / "i.json"
    arguments = ["inspect", str(tmp_path / "m.onnx"), "--pareto", "--json", str(report)]
    done = CliRunner().invoke(patchconv, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "it pools over the whole image" in done.output
    data = json.loads(report.read_text())
    assert data["tensors"][0]["bytes"] == 4 * 8 * 96 * 64
    assert data["barriers"][0]["node"] == "pool"
    assert {entry["first"] for entry in data["runs"]} == {"conv", "scale"}
    assert data["pareto"][0]["form"] == "original"
    assert run(made, {"x": noise(*DIMS)})
