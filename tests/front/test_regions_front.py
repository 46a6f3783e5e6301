"""Regions from the outside: budgets, plans, limits, ranges, pixel shuffle spelled out, inspect."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx.inliner import inline_local_functions

from patchconv_deploy import UsageError, pareto, rewrite
from patchconv_deploy.cli.main import main_rewrite, patchconv
from patchconv_deploy.rewriters.errors import BudgetError, OptionError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.look import pareto_of
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning import choose, explore
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.weighed_plans import WeighedPlans
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.sizes import parse_size
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import (
    Array,
    assert_same,
    chain,
    copy_of,
    model,
    most_elements,
    node,
    noise,
    run,
    super_resolution,
)

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
    with pytest.raises(BudgetError, match=r"smallest peak found .* held by .* cannot be cut takes"):
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


def test_a_plan_is_not_chosen_again() -> None:
    """What bounds the choice of a plan does not go with a plan."""
    plan: dict[str, Any] = dict(_rewrite(_chain(), splits=4).plan or {})
    with pytest.raises(OptionError, match=r"max_recompute= .* and plan= .* leave out one"):
        _rewrite(_chain(), plan=plan, max_recompute=1.2)


def test_names_inside_a_function_are_not_made_again() -> None:
    """A model whose function has the names that new nodes and tensors would have."""
    plain = _rewrite(_chain(), splits=4).model
    old = {name for each in _chain().graph.node for name in (each.name, *each.output)}
    old |= {tensor.name for tensor in _chain().graph.initializer}
    made = {name for each in plain.graph.node for name in (each.name, *each.output)} - old
    made |= {tensor.name for tensor in plain.graph.initializer} - old
    opsets = [onnx.helper.make_opsetid("", 17)]
    inner = [node("Relu", "a", "r", name="relu")]
    names = sorted(made)
    for name, before in zip(names, ["r", *names], strict=False):
        inner.append(onnx.helper.make_node("Abs", [before], [name], name=name))
    inner.append(node("Identity", names[-1], "b"))
    called = _chain()
    last = called.graph.output[0].name
    called.graph.node.append(node("Own", last, "z", name="own", domain="here"))
    called.functions.append(onnx.helper.make_function("here", "Own", ["a"], ["b"], inner, opsets))
    called.opset_import.add(domain="here", version=1)
    called.graph.output[0].name = "z"
    outcome = _rewrite(called, splits=4)
    assert outcome.rewritten
    new = {name for each in outcome.model.graph.node for name in (each.name, *each.output)}
    assert not (new | {tensor.name for tensor in outcome.model.graph.initializer}) & made
    inlined = inline_local_functions(outcome.model)
    onnx.checker.check_model(inlined, full_check=True)
    assert_same(called, inlined, {"x": noise(*DIMS)})


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
    assert most_elements(outcome.model) <= limit
    assert_same(made, outcome.model, {"x": noise(*DIMS)})
    with pytest.raises(BudgetError, match="tensors of more than 100 elements stay"):
        _rewrite(made, max_tensor_elements=100)


def test_a_tensor_of_three_billion_elements() -> None:
    """A super-resolution network TensorRT refuses becomes one it takes; nothing is run.

    `tests.engines.test_engine_evidence` has TensorRT for RTX plan it.
    """
    assert 64 * 6848 * 6848 > 3e9 - 1e7
    outcome = _rewrite(super_resolution(1712), target="tensorrt", splits=64)
    assert outcome.rewritten
    assert most_elements(outcome.model) <= 2**31 - 1


@pytest.mark.parametrize("constant", [False, True])
def test_what_a_loop_scales_up_is_counted(constant: bool) -> None:
    """A Resize in a body reads its scales from around it: the loop's patches are no smaller."""
    made = super_resolution(256)
    if constant:
        (scales,) = [each for each in made.graph.initializer if each.name == "s"]
        made.graph.node.insert(0, node("Constant", "", "s", value=scales))
        made.graph.initializer.remove(scales)
    outcome = _rewrite(made, splits=4)
    fused, loop = (outcome.after_by_form[form] for form in ("fused", "loop"))
    assert loop > 0.9 * fused
    assert [done.form for done in outcome.rewritten] == ["fused"]


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


@pytest.mark.usefixtures("less_weighed")
def test_pareto_falls() -> None:
    """From the model as it is on: ever more work, ever lower peaks."""
    points = pareto_of(Loaded(_chain(), None), Options())
    assert points[0].regions == 0
    assert len(points) > 2
    peaks, work = [p.peak for p in points], [p.recompute for p in points]
    assert peaks == sorted(set(peaks), reverse=True)
    assert work == sorted(work)


def _rewrite_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(patchconv, ["rewrite", *map(str, arguments)])


@pytest.mark.usefixtures("less_weighed")
def test_the_curve_is_printed_and_no_model_written(tmp_path: Path) -> None:
    """--pareto, the same points from the command, from inspect and from Python."""
    path, report = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(_chain(), path)
    done = _rewrite_command(path, "--pareto", "--report", report)
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "r.json"]
    data = json.loads(report.read_text())
    points = pareto(path)
    assert [(p["peak"], p["recompute"]) for p in data["pareto"]] == [
        (p.peak, p.recompute) for p in points
    ]
    head, *rows = done.output.splitlines()
    words = ["plan", "regions", "running,", "MiB", "loading", "process", "work", "time"]
    assert head.split() == [*words, "--memory-budget"]
    assert [row.split()[0] for row in rows] == [point.form for point in points]
    other = tmp_path / "i.json"
    shown = CliRunner().invoke(patchconv, ["inspect", str(path), "--pareto", "--json", str(other)])
    assert shown.output.splitlines()[-len(rows) :] == rows
    assert json.loads(other.read_text())["pareto"] == data["pareto"]
    # A rewrite leaves a margin of 5 % below its budget; what is to be typed has it.
    for point, row in zip(points, rows, strict=True):
        budget = parse_size(row.split()[-1])
        assert budget is not None
        outcome = _rewrite(_chain(), memory_budget=budget)
        assert (outcome.after.need, outcome.recompute or 1.0) == (point.peak, point.recompute)


@pytest.mark.usefixtures("less_weighed")
def test_inspect_searches_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could be cut and the curve are of one search; the model as it is is predicted once."""
    path = tmp_path / "m.onnx"
    onnx.save(_chain(), path)
    searched, predicted = [], []
    explored, predict_all = explore.explore, MemoryPredictor.predict_all

    def exploring(weighed: WeighedPlans, *arguments: Any) -> None:
        searched.append(weighed)
        explored(weighed, *arguments)

    def predicting(self: MemoryPredictor, order: Any, engines: Any) -> list[Peak]:
        predicted.extend([self] if order is None else [])
        return predict_all(self, order, engines)

    monkeypatch.setattr(choose, "explore", exploring)
    monkeypatch.setattr(MemoryPredictor, "predict_all", predicting)
    done = CliRunner().invoke(patchconv, ["inspect", str(path), "--pareto"])
    assert done.exit_code == 0, done.output
    assert "fused" in done.output or "shrinking" in done.output
    assert (len(searched), len(predicted)) == (1, 1)
    pareto(path)
    assert (len(searched), len(predicted)) == (2, 2)
    done = CliRunner().invoke(patchconv, ["inspect", str(path), "--pareto", "--axis", "auto"])
    assert done.exit_code
    assert "--axis auto: a curve is along one axis" in str(done.exception)


@pytest.mark.usefixtures("less_weighed")
def test_the_curve_obeys_what_it_looks_at(tmp_path: Path) -> None:
    """The axis, what is kept, the most work, the target, sizes of inputs: as for a rewrite."""
    path = tmp_path / "m.onnx"
    made = _chain()
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(made, path)
    sizes: dict[str, Any] = {"shapes": {"x": (1, 2, (40, 400), 64)}}
    least = pareto(path, **sizes)[-1]
    assert pareto(path, shapes={"x": DIMS})[0].peak < pareto(path, **sizes)[0].peak
    assert pareto(path, target="tensorrt", **sizes)[0].peak != pareto(path, **sizes)[0].peak
    # Half a percent more or less is a matter of what is counted.
    narrow = pareto(path, max_recompute=1.05, **sizes)
    assert all(point.recompute <= 1.005 * 1.05 for point in narrow)
    assert pareto(path, exclude="conv1", **sizes)[-1].peak > least.peak
    assert pareto(path, axis="width", **sizes)[-1] != least
    assert len(pareto(path, exclude="*", **sizes)) == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'splits'"):
        pareto(path, splits=4)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory-budget", "1MiB"], "--memory-budget means nothing to --pareto"),
        (["--splits", "4"], "--splits means nothing to --pareto"),
        (["--plan", "p.json"], "--plan means nothing to --pareto"),
        (["--form", "fused"], "--form means nothing to --pareto"),
        (["-o", "o.onnx"], "--output means nothing to --pareto"),
        (["--no-verify"], "--verify means nothing to --pareto"),
        (["--measure"], "--measure means nothing to --pareto"),
        (["--axis", "auto"], "name height or width"),
        (["--max-recompute", "0.5"], "must be 1 or more"),
    ],
)
def test_beside_the_curve_nothing_is_ignored(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What would have to be ignored is refused: one line, exit code 2, no file."""
    onnx.save(_chain(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["patchconv-rewrite", "m.onnx", "--pareto", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        main_rewrite()
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.usefixtures("less_weighed")
def test_no_curve_of_what_is_left_alone(tmp_path: Path) -> None:
    """A model that holds a plan, and one too old to be cut; converted, the old one has a curve."""
    path = tmp_path / "m.onnx"
    onnx.save(_rewrite(_chain(), splits=4).model, path)
    with pytest.raises(OptionError, match=r"was rewritten before .* give the original"):
        pareto(path)
    old = _chain()
    old.opset_import[0].version = 8
    old.ir_version = 3
    old.graph.input.extend(
        onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims)
        for w in old.graph.initializer
    )
    onnx.save(old, path)
    with pytest.raises(OptionError, match="opset 8 is older than 9"):
        pareto(path)
    assert len(pareto(path, upgrade_opset=13)) > 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_tensor_elements": "64MiB"}, "max_tensor_elements is '64MiB'; .* a whole number"),
        ({"splits": "4"}, "splits is '4'; it must be a whole number"),
        ({"splits": True}, "splits is True; it must be a whole number"),
        ({"memory_budget": 2.5}, "memory_budget is 2.5; it must be a number of bytes, or 512MiB"),
        ({"memory_budget": "64 apples"}, "memory_budget is '64 apples'; it must be a number of"),
    ],
)
def test_numbers_are_asked_for(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    """A keyword of another type is one clear line."""
    onnx.save(_chain(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=words):
        rewrite(tmp_path / "m.onnx", **given)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.usefixtures("less_weighed")
def test_a_budget_is_a_number_or_text(tmp_path: Path) -> None:
    """In Python 900KiB is 900 * 1024; a small number of bytes is one, as it says."""
    onnx.save(_chain(), tmp_path / "m.onnx")
    keywords: dict[str, Any] = {"dry_run": True}
    text = rewrite(tmp_path / "m.onnx", memory_budget="900KiB", **keywords)
    number = rewrite(tmp_path / "m.onnx", memory_budget=900 * 1024, **keywords)
    assert text.report.data["options"]["memory_budget_bytes"] == 900 * 1024
    assert text.outcome.plan == number.outcome.plan
    with pytest.raises(BudgetError, match="cannot be met"):
        rewrite(tmp_path / "m.onnx", memory_budget=512, **keywords)


def test_inspect_says_what_holds_the_peak(tmp_path: Path) -> None:
    """The largest tensors, the barrier with its reason, and what cutting would bring."""
    nodes = [
        node("Conv", "x w", "c", name="conv", pads=[1] * 2),
        node("GlobalAveragePool", "c", "g", name="pool"),
        node("Mul", "c g", "y", name="scale"),
    ]
    dims = (1, 2, 6143)  # a signal of a prime length: else the pool would be one over its blocks
    made = model(nodes, {"x": dims}, {"y": (None,) * 3}, {"w": noise(8, 2, 3)})
    onnx.save(made, tmp_path / "m.onnx")
    report = tmp_path / "i.json"
    arguments = ["inspect", str(tmp_path / "m.onnx"), "--pareto", "--json", str(report)]
    done = CliRunner().invoke(patchconv, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "it pools over the whole image" in done.output
    data = json.loads(report.read_text())
    assert data["tensors"][0]["bytes"] == 4 * 8 * 6143
    assert [(each["node"], each["kind"]) for each in data["barriers"]] == [("pool", "barrier")]
    assert "barrier: each of its output rows depends on all input rows" in done.output
    # Both Convs' neighbours are row-local, but the pool wants the tensor between them whole.
    assert data["runs"] == []
    assert "global pooling holds 0.2 MiB of it" in done.output
    assert data["pareto"][0]["form"] == "original"
    assert run(made, {"x": noise(*dims)})


def test_inspect_lists_what_no_region_holds_and_nothing_else(tmp_path: Path) -> None:
    """A Resize that is refused is no barrier; sizes, and a gate's few numbers, need nothing whole.

    A region begins with the node that it is of in the model, not with one that stands for it here.
    """
    ways: dict[str, Any] = {
        "coordinate_transformation_mode": "align_corners",
        "cubic_coeff_a": -0.75,
    }
    nodes = [
        node("Conv", "x a", "c", name="one", pads=[1] * 4),
        node("GlobalAveragePool", "c", "g", name="pool"),
        node("Sigmoid", "g", "s", name="gate"),
        node("Mul", "c s", "t", name="weigh"),
        node("Resize", "t _ two", "u", name="cubic", mode="cubic", **ways),
        node("Conv", "u b", "d", name="two", pads=[1] * 4),
        node("Resize", "d _ two", "e", name="linear", mode="linear", **ways),
        node("Conv", "e v", "f", name="three", pads=[1] * 4),
        node("Shape", "c", "sizes", name="sizes"),
        node("Slice", "sizes from to", "rows", name="rows"),
        node("Concat", "front rows", "shape", name="shape", axis=0),
        node("Resize", "f _ _ shape", "y", name="back", mode="nearest", nearest_mode="floor"),
    ]
    weights: dict[str, Any] = {
        "a": noise(8, 2, 3, 3) / 4,
        "b": noise(8, 8, 3, 3) / 9,
        "v": noise(2, 8, 3, 3) / 9,
        "two": np.array([1, 1, 2, 2], np.float32),
        "from": np.array([2]),
        "to": np.array([4]),
        "front": np.array([1, 2]),
    }
    made = model(nodes, {"x": (1, 2, 64, 48)}, {"y": (None,) * 4}, weights)
    onnx.save(made, tmp_path / "m.onnx")
    report = tmp_path / "i.json"
    arguments = ["inspect", str(tmp_path / "m.onnx"), "--json", str(report)]
    done = CliRunner().invoke(patchconv, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    data = json.loads(report.read_text())
    listed = {each["node"]: each["kind"] for each in data["barriers"]}
    assert listed["cubic"] == "refused"
    assert not listed.keys() & {"sizes", "rows", "shape", "gate", "linear"}
    assert "A statistic is a reduction over the whole image" in done.output
    names = {each.name for each in nodes}
    assert data["runs"]
    assert {each[end] for each in data["runs"] for end in ("first", "last")} <= names
    assert {each["maker"] for each in data["tensors"]} <= names


def _squeezed() -> onnx.ModelProto:
    """Make a wide tensor of few channels that is pooled whole, then scaled and added to itself."""
    nodes = [
        node("Conv", "x w0", "t", name="widen"),
        node("GlobalAveragePool", "t", "g", name="pool"),
        node("Sigmoid", "g", "s", name="gate"),
        node("Mul", "t s", "m", name="scale"),
        node("Add", "t m", "a", name="add"),
        node("Conv", "a w1", "y", name="narrow"),
    ]
    weights = {"w0": noise(32, 2, 1, 1, seed=1), "w1": noise(2, 32, 1, 1, seed=2)}
    return model(nodes, {"x": DIMS}, {"y": (None,) * 4}, weights)


def test_what_is_pooled_whole_is_made_again_for_its_later_users() -> None:
    """It is whole nowhere: patches of one pass give the pool its rows, those of a second it."""
    made = _squeezed()
    outcome = _rewrite(made, splits=8)
    first, second = outcome.rewritten
    assert first.nodes == ("widen", "pool")
    assert second.nodes == ("widen", "scale", "add", "narrow")
    whole = 4 * 32 * DIMS[2] * DIMS[3]
    assert outcome.after.bytes < 0.5 * whole
    assert outcome.before.bytes > 2.5 * whole
    assert_same(made, outcome.model, {"x": noise(*DIMS)})


@pytest.mark.usefixtures("less_weighed")
@pytest.mark.parametrize("op", ["BatchNormalization", "Mul", "Add"])
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_no_region_begins_between_a_conv_and_what_is_folded_into_it(share: float, op: str) -> None:
    """Engines fold the two into one, which rounds otherwise than one after the other."""
    nodes, x = [], "x"
    weights: dict[str, Array] = {}
    for k, (a, b) in enumerate(pairwise([2, 16, 2, 16, 2])):
        y = "y" if k == 3 else f"b{k}"
        nodes.append(node("Conv", f"{x} w{k}", f"c{k}", name=f"conv{k}", pads=[1] * 4))
        reads = f"s{k} o{k} o{k} s{k}" if op == "BatchNormalization" else f"k{k}"
        nodes.append(node(op, f"c{k} {reads}", y, name=f"norm{k}"))
        weights[f"k{k}"] = noise(b, 1, 1, seed=30 + k)
        weights[f"w{k}"] = noise(b, a, 3, 3, seed=k) / 8
        weights[f"s{k}"] = np.abs(noise(b, seed=10 + k)) + np.float32(0.5)
        weights[f"o{k}"] = noise(b, seed=20 + k)
        x = y
    made = model(nodes, {"x": DIMS}, {"y": (None,) * 4}, weights)
    peak = _rewrite(made, splits=1).before.bytes
    outcome = _rewrite(made, memory_budget=int(share * peak))
    assert outcome.rewritten
    for region in outcome.rewritten:
        for k in range(4):
            assert (f"conv{k}" in region.nodes) == (f"norm{k}" in region.nodes)
    assert_same(made, outcome.model, {"x": noise(*DIMS)})
