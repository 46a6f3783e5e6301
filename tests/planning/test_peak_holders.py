"""What holds a peak, said: the causes by their bytes, in the words of the field, and what to do."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto

from patchconv_deploy import OptionError, pareto, rewrite
from patchconv_deploy.cli.main import patchconv
from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.peak_holders import Reason
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.commands import run_command
from tests.support.small_models import (
    Array,
    chain,
    copy_of,
    model,
    node,
    noise,
    super_resolution,
    value,
)

SIDE = 64

# Of a signal: a prime, so that it has no blocks of which each has a part of a statistic.
LENGTH = 4093


def _group_norm(
    at: str, x: str, weights: dict[str, Array], sides: tuple[int, ...]
) -> list[onnx.NodeProto]:
    """Make GroupNorm as exporters write it before opset 21, and SiLU."""
    weights |= {
        f"{at}grouped": np.array([0, 4, -1]),
        f"{at}one": np.ones(4, np.float32),
        f"{at}zero": np.zeros(4, np.float32),
        f"{at}scale": noise(32, *(1 for _ in sides), seed=7),
        f"{at}whole": np.array([1, 32, *sides]),
    }
    return [
        node("Reshape", f"{x} {at}grouped", f"{at}r", name=f"{at}group"),
        node("InstanceNormalization", f"{at}r {at}one {at}zero", f"{at}i", name=f"{at}norm"),
        node("Reshape", f"{at}i {at}whole", f"{at}b", name=f"{at}ungroup"),
        node("Mul", f"{at}b {at}scale", f"{at}m", name=f"{at}mul"),
        node("Sigmoid", f"{at}m", f"{at}s", name=f"{at}sigmoid"),
        node("Mul", f"{at}m {at}s", f"{at}y", name=f"{at}silu"),
    ]


def vae_decoder(sides: tuple[int, ...] = (LENGTH,), blocks: int = 2) -> onnx.ModelProto:
    """Make residual blocks of a VAE's decoder: GroupNorm, SiLU, Conv, twice each.

    Of a signal of this length a statistic is nothing that each row has a part of.
    """
    kernel, pads = (3,) * len(sides), [1] * 2 * len(sides)
    weights = {"w0": noise(32, 4, *kernel), "wy": noise(3, 32, *kernel)}
    nodes = [node("Conv", "x w0", "h", name="conv_in", pads=pads)]
    x = "h"
    for k in range(blocks):
        before = x
        for j in range(2):
            at = f"block{k}.{j}."
            nodes += _group_norm(at, x, weights, sides)
            weights[f"{at}w"] = noise(32, 32, *kernel, seed=j) / 9
            nodes.append(node("Conv", f"{at}y {at}w", f"{at}c", name=f"{at}conv", pads=pads))
            x = f"{at}c"
        nodes.append(node("Add", f"{x} {before}", f"sum{k}", name=f"add{k}"))
        x = f"sum{k}"
    nodes.append(node("Conv", f"{x} wy", "y", name="conv_out", pads=pads))
    return model(nodes, {"x": (1, 4, *sides)}, {"y": (1, 3, *sides)}, weights)


def transformer() -> onnx.ModelProto:
    """Make a patch embedding and self-attention over its tokens, four heads in one."""
    tokens = (SIDE // 2) ** 2
    weights = {
        "w": noise(16, 3, 2, 2),
        "flat": np.array([1, 16, tokens]),
        **{name: noise(16, 16, seed=k) for k, name in enumerate("qkv")},
    }
    nodes = [
        node("Conv", "x w", "p", name="patch_embed", strides=[2, 2]),
        node("Reshape", "p flat", "f", name="flatten"),
        node("Transpose", "f", "t", name="tokens", perm=[0, 2, 1]),
        *(node("MatMul", f"t {n}", f"{n}t", name=f"to_{n}") for n in "qkv"),
        node("Transpose", "kt", "ktt", name="turn", perm=[0, 2, 1]),
        node("MatMul", "qt ktt", "scores", name="scores"),
        node("Softmax", "scores", "weights", name="softmax", axis=-1),
        node("MatMul", "weights vt", "y", name="mix"),
    ]
    return model(nodes, {"x": (1, 3, SIDE, SIDE)}, {"y": (1, tokens, 16)}, weights)


def run_time_sizes(dims: tuple[Any, ...] = (1, 3, SIDE, SIDE)) -> onnx.ModelProto:
    """Make Convs of which the second is resized to a size that an input has."""
    nodes = [
        node("Conv", "x w", "a", name="first", pads=[1] * 4),
        node("Resize", "a _ _ size", "r", name="resize", mode="nearest"),
        node("Conv", "r v", "y", name="second", pads=[1] * 4),
    ]
    weights = {"w": noise(16, 3, 3, 3), "v": noise(3, 16, 3, 3)}
    inputs = [value("x", dims), value("size", (4,), TensorProto.INT64)]
    return model(nodes, inputs, [value("y", None)], weights)


def outputs_alone() -> onnx.ModelProto:
    """Make a Conv and what follows it outputs of the model, all of them."""
    nodes = [
        node("Conv", "x w", "a", name="conv"),
        node("Sigmoid", "a", "b", name="sigmoid"),
        node("Tanh", "a", "c", name="tanh"),
    ]
    out = dict.fromkeys("abc", (1, 3, SIDE, SIDE))
    return model(nodes, {"x": (1, 3, SIDE, SIDE)}, out, {"w": noise(3, 3, 1, 1)})


def tall_halo() -> onnx.ModelProto:
    """Make two Convs of which the second reads nearly all rows for each."""
    nodes = [
        node("Conv", "x w", "a", name="wide", pads=[1] * 4),
        node("Conv", "a v", "y", name="far", dilations=[15, 1], pads=[30, 0, 30, 0]),
    ]
    weights = {"w": noise(32, 3, 3, 3), "v": noise(3, 32, 5, 1)}
    return model(nodes, {"x": (1, 3, SIDE, SIDE)}, {"y": None}, weights)


def gated() -> onnx.ModelProto:
    """Make a Conv of a signal whose result is pooled whole to weigh its channels."""
    nodes = [
        node("Conv", "x w", "a", name="conv", pads=[1] * 2),
        node("GlobalAveragePool", "a", "g", name="pool"),
        node("Mul", "a g", "m", name="scale"),
        node("ReduceMax", "m", "y", name="max", axes=[2]),
    ]
    return model(nodes, {"x": (1, 3, LENGTH)}, {"y": None}, {"w": noise(32, 3, 3)})


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(Loaded(copy_of(made), None), Options(**options))


def _command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(patchconv, ["rewrite", *map(str, arguments)])


def _first(made: onnx.ModelProto, **options: Any) -> Reason:
    outcome = _cut(made, **options)
    assert not outcome.rewritten
    return outcome.reasons[0]


@pytest.mark.parametrize(
    ("made", "reason", "code"),
    [
        (vae_decoder(), "GroupNorm statistics", "barrier"),
        (gated(), "global pooling", "barrier"),
        (tall_halo(), "layers whose patches would need as much", "no-gain"),
    ],
    ids=["vae decoder", "gate", "halo"],
)
def test_a_cause_has_its_name_and_its_bytes(made: onnx.ModelProto, reason: str, code: str) -> None:
    """The largest cause is named as people name it, with bytes that are alive, and what to do."""
    outcome = _cut(made)
    found = outcome.reasons[0]
    assert (found.reason, found.code) == (reason, code)
    held = dict(outcome.before.alive)
    assert 0 < (found.bytes or 0) <= sum(held.values())
    assert sum(each.bytes or 0 for each in outcome.reasons) <= outcome.before.need
    assert found.nodes
    assert found.advice


def test_statistics_hold_what_stands_around_them() -> None:
    """Two tensors of 32 channels and more around a GroupNorm: all of the decoder's peak."""
    found = _first(vae_decoder())
    assert (found.bytes or 0) >= 2 * 4 * 32 * LENGTH
    assert set(found.nodes) <= {f"block{k}.{j}.norm" for k in range(2) for j in range(2)}


def test_what_is_not_cut_keeps_its_own_nodes() -> None:
    """Few patches of a deep network that normalises save nothing: it stays, and says why."""
    made = vae_decoder((SIDE, SIDE), blocks=6)
    outcome = _cut(made, splits=2)
    assert not outcome.rewritten
    assert [reason.reason for reason in outcome.reasons] == ["GroupNorm statistics"]
    assert {n.name for n in outcome.model.graph.node} == {n.name for n in made.graph.node}


def test_names_with_slashes_are_no_twins() -> None:
    """As exporters name tensors: what is called /a/b is no copy of something called /a."""
    made = vae_decoder((SIDE, SIDE), blocks=6)
    outer = {"x", "y", *(tensor.name for tensor in made.graph.initializer)}
    for each in made.graph.node:
        for names in (each.input, each.output):
            names[:] = [n if n in outer or not n else f"/net/{n}" for n in names]
    outcome = _cut(made, splits=2)
    assert [reason.reason for reason in outcome.reasons] == ["GroupNorm statistics"]


@pytest.mark.usefixtures("less_weighed")
def test_regions_and_causes_have_the_names_of_the_model() -> None:
    """What is written in two to be cut is called in reports what it is called in the model."""
    made = vae_decoder((SIDE, SIDE), blocks=1)
    outcome = _cut(made, splits=16, max_recompute=3.0)
    names = {node.name for node in made.graph.node}
    assert len(outcome.rewritten) > 2
    assert {name for cut in outcome.rewritten for name in cut.nodes} <= names
    assert any("block0.0.norm" in cut.nodes for cut in outcome.rewritten)


def test_weights_among_the_tensors_are_the_cause(tmp_path: Path) -> None:
    """A network that is mostly a Gemm: weights are named, and what holds nothing is not shown."""
    nodes = [
        node("Conv", "x w", "a", name="conv", pads=[1] * 4),
        node("Flatten", "a", "f", name="flatten"),
        node("Gemm", "f v", "y", name="gemm"),
    ]
    weights = {"w": noise(4, 3, 3, 3), "v": noise(4 * 16 * 16, 2048)}
    made = model(nodes, {"x": (1, 3, 16, 16)}, {"y": None}, weights)
    found = _first(made)
    assert found.code == "weights"
    assert (found.bytes or 0) >= weights["v"].nbytes
    assert "float16" in found.advice
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    output = _command(path, "--dry-run").output
    assert "weights, laid out for their kernels, hold 8.0 of 8.0 MiB" in output
    assert "(flatten)" not in output
    inspected = CliRunner().invoke(patchconv, ["inspect", str(path)]).output
    assert "; weights, laid out for their kernels, 8.0" in inspected


def test_at_a_free_height_advice_is_to_fix_it() -> None:
    """Channel attention over residual blocks: less is cut where the height is free."""
    weights = {"w0": noise(16, 3, 3, 3)}
    nodes = [node("Conv", "x w0", "t0", name="head", pads=[1] * 4)]
    for k in range(2):
        weights[f"v{k}"] = noise(16, 16, 3, 3, seed=k)
        nodes += [
            node("Conv", f"t{k} v{k}", f"c{k}", name=f"conv{k}", pads=[1] * 4),
            node("GlobalAveragePool", f"c{k}", f"g{k}", name=f"pool{k}"),
            node("Mul", f"c{k} g{k}", f"m{k}", name=f"mul{k}"),
            node("Add", f"m{k} t{k}", f"t{k + 1}", name=f"add{k}"),
        ]
    made = model(nodes, {"x": (1, 3, "h", "w")}, {"t2": None}, weights)
    fixed = model(nodes, {"x": (1, 3, 512, 512)}, {"t2": None}, weights)
    for each in (made, fixed):
        found = next(r for r in _cut(each, splits=1).reasons if r.reason == "global pooling")
        assert ("shapes={'x': (1, 3, 512, 512)}" in found.advice) is (each is made)
    with pytest.raises(BudgetError, match=r"model as it is\); at a fixed size .* fix with shapes="):
        _cut(made, memory_budget=1 << 20)
    with pytest.raises(BudgetError) as caught:
        _cut(fixed, memory_budget=1 << 20)
    assert "fixed size" not in str(caught.value)


def test_attention_is_named_where_it_is_not_cut() -> None:
    """Kept from being cut, the scores are held by what the user excluded; else they are cut."""
    assert _cut(transformer()).rewritten
    found = _first(transformer(), selection=Selection(exclude=("scores", "softmax", "mix")))
    assert found.code == "excluded"
    assert {"scores", "softmax"} >= set(found.nodes) > set()


def test_what_is_excluded_is_the_cause() -> None:
    """Everything left alone by name; of a barrier's neighbours the barrier stays the cause."""
    found = _first(tall_halo(), selection=Selection(exclude=("*",)))
    assert found.code == "excluded"
    assert "exclude=" in found.advice
    convs = Selection(exclude=("*conv*",))
    assert _first(vae_decoder(), selection=convs).reason == "GroupNorm statistics"


def test_what_a_model_is_given_and_returns_is_its_own() -> None:
    """All is excluded but the model's outputs, which nobody can cut."""
    outcome = _cut(outputs_alone(), selection=Selection(exclude=("*",)))
    codes = {each.code: set(each.nodes) for each in outcome.reasons}
    assert codes["interface"] <= {"a", "b", "c"}


def test_the_table_names_causes_and_ends_in_what_to_do(tmp_path: Path) -> None:
    """The command prints the same; the JSON has it as data; the refusals name the first cause."""
    path, report = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(vae_decoder(), path)
    done = _command(path, "--dry-run", "--report", report)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    at = lines.index("No Conv was cut. What holds the peak:")
    assert lines[at + 1].startswith("  GroupNorm statistics hold 1.0 of 1.6 MiB (")
    assert lines[at + 2].startswith("  layers whose patches would need as much hold")
    assert "What to do: no patches reach through it: run the model on a smaller image." in lines
    data = json.loads(report.read_text())
    (held, *_) = data["peak_activation_bytes"]["held_by"]
    assert held["code"] == "barrier"
    assert held["bytes"] >= 2 * 4 * 32 * LENGTH
    assert {each["code"] for each in data["refused"]} == {"no-gain"}
    assert all("GroupNorm statistics hold" in each["reason"] for each in data["refused"])


def test_an_unknown_peak_is_said_and_never_a_number(tmp_path: Path) -> None:
    """In the table, the report, the curve and Python; the Convs say that sizes are unknown."""
    path, report = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(run_time_sizes(), path)
    done = _command(path, "--dry-run", "--report", report)
    assert done.exit_code == 0, done.output
    assert "recommended options): unknown (at least 0.5 MiB before)" in done.output
    assert "sizes unknown: 2 tensors, from the Resize 'resize' on" in done.output
    assert done.output.splitlines()[-1] == "warning: the predicted peak is unknown"
    data = json.loads(report.read_text())
    peak = data["peak_activation_bytes"]
    for key in ("before", "after", "touched_before", "touched_after"):
        assert peak[key] is None
    assert peak["held_by"][0]["code"] == "size-unknown"
    assert {each["code"] for each in data["refused"]} == {"size-unknown"}
    curve = _command(path, "--pareto", "--report", report)
    assert curve.exit_code == 0
    row = curve.output.splitlines()[1].split()
    # What loading costs is known: it is the session alone.
    assert 6 <= float(row.pop(3)) < 6.1
    assert row == ["original", "0", "unknown", "unknown", "1.000x", "1.000x", "-"]
    assert curve.output.splitlines()[-1].startswith("warning: the predicted peak is unknown; sizes")
    (point,) = json.loads(report.read_text())["pareto"]
    assert point["peak"] is None
    assert point["unknown"] > 0


def test_advice_has_the_models_own_input() -> None:
    """Its name and its rank, ready to be pasted."""
    found = _first(run_time_sizes(("n", 3, "h", "w")))
    assert found.code == "size-unknown"
    assert "fix with shapes={'x': (1, 3, 512, 512)}" in found.advice
    assert "shapes=" not in _first(run_time_sizes()).advice


@pytest.mark.parametrize("form", ["batch", "sequential"])
def test_single_convs_of_unknown_sizes(form: str, tmp_path: Path) -> None:
    """They are cut by arithmetic at run time; after that the peak is as unknown as before."""
    path, report = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(run_time_sizes(), path)
    done = _command(path, "--form", form, "--min-elements", "0", "--dry-run", "--report", report)
    assert done.exit_code == 0, done.output
    assert " 0.0" not in done.output
    assert "recommended options): unknown (at least" in done.output
    data = json.loads(report.read_text())
    assert len(data["rewritten"]) == 2
    assert data["peak_activation_bytes"]["after"] is None
    assert data["peak_activation_bytes"]["by_form"] == {form: None}
    assert "the predicted peak is unknown" in data["warnings"][-1]


def test_what_the_data_sizes_does_not_hide_the_peak() -> None:
    """Boxes that are found are as many as there are: said, and the image's peak stays known."""
    made = gated()
    made.graph.node.append(node("NonZero", "y", "found", name="boxes"))
    made.graph.node.append(node("Cast", "found", "z", name="cast", to=TensorProto.FLOAT))
    made.graph.output.append(value("z", None))
    outcome = _cut(made)
    assert not outcome.before.unknown
    assert set(outcome.data_sized) == {"found", "z"}
    assert outcome.before.need == _cut(gated()).before.need or outcome.before.need > 0
    # It is no excuse for sizes that something else hides.
    other = run_time_sizes()
    other.graph.node.append(node("NonZero", "a", "found", name="boxes"))
    other.graph.output.append(value("found", None, TensorProto.INT64))
    assert _cut(other).before.unknown


def _old() -> onnx.ModelProto:
    made = chain(6, (1, 2, 256, 64))
    made.opset_import[0].version, made.ir_version = 8, 3
    made.graph.input.extend(value(w.name, w.dims) for w in made.graph.initializer)
    return made


def _again() -> onnx.ModelProto:
    made = chain(6, (1, 2, 256, 64))
    return _cut(made, form="batch", selection=Selection(min_elements=0)).model


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("made", "words"),
    [
        (run_time_sizes(), "nobody can tell whether a budget is kept, as the predicted peak is un"),
        (_old(), "opset 8 is older than 9; convert it with upgrade_opset=13; as it is it needs"),
        (_again(), "rewritten before (it holds a plan) and is not cut again, and needs"),
    ],
    ids=["unknown", "old opset", "rewritten"],
)
def test_a_budget_that_is_not_kept_is_no_success(
    made: onnx.ModelProto, words: str, dry: bool, tmp_path: Path
) -> None:
    """Exit code 1 and the reason, from the command; a BudgetError in Python; no file."""
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    with pytest.raises(BudgetError) as stop:
        rewrite(path, memory_budget="10KiB", dry_run=dry)
    assert words in str(stop.value)
    done = run_command("rewrite", path, "--memory-budget", "10KiB", *(["--dry-run"] if dry else []))
    assert done.returncode == 1
    said = str(stop.value).replace("upgrade_opset=13", "--upgrade-opset 13")
    assert done.stderr.splitlines() == [f"error: {said}"]
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_no_curve_of_those_either(tmp_path: Path) -> None:
    """Old and rewritten models: one line that says what to do."""
    for made, words in ((_old(), "upgrade_opset=13"), (_again(), "give the original")):
        onnx.save(made, tmp_path / "m.onnx")
        with pytest.raises(OptionError, match=words):
            pareto(tmp_path / "m.onnx")


def test_a_plan_is_held_against_the_budget() -> None:
    """A plan that is given is applied as it is; needs it more than the budget, that is said."""
    made = super_resolution(32)
    done = _cut(made, splits=4)
    need = done.after.need
    assert _cut(made, plan=done.plan, memory_budget=need).rewritten
    with pytest.raises(BudgetError, match=r"the plan needs .*, the budget is"):
        _cut(made, plan=done.plan, memory_budget=need - 1)


def test_a_budget_that_is_kept_already_is_said(tmp_path: Path) -> None:
    """The original is written, so that what comes next finds its file, and the line says so."""
    path = tmp_path / "m.onnx"
    onnx.save(super_resolution(32), path)
    done = _command(path, "--memory-budget", "2GiB")
    assert done.exit_code == 0
    assert "MiB); cut it anyway with --splits N in place of the budget." in done.output
    assert "It fits as it is (" in done.output
    assert done.output.rstrip().endswith("m.patched.onnx (the model as it was)")
    assert (tmp_path / "m.patched.onnx").read_bytes() == path.read_bytes()
    found = rewrite(path, memory_budget="2GiB", dry_run=True)
    assert found.outcome.fits
    assert found.report.data["peak_activation_bytes"]["fits_as_it_is"]
    assert {refusal.code for refusal in found.outcome.refused} == {"no-gain"}


@pytest.mark.parametrize("form", ["batch", "plan"])
def test_a_rise_is_the_last_line(form: str, tmp_path: Path) -> None:
    """Of whatever form, and from a plan: what rises, from what to what, and what to do."""
    path, plan = tmp_path / "m.onnx", tmp_path / "p.json"
    made = tall_halo()
    onnx.save(made, path)
    forced = ["--form", "batch", "--min-elements", "0"]
    if form == "plan":
        done = _cut(made, form="batch", selection=Selection(min_elements=0))
        plan.write_text(json.dumps(done.plan))
        forced = ["--plan", str(plan)]
    done_ = _command(path, "--dry-run", *forced)
    assert done_.exit_code == 0, done_.output
    last = done_.output.splitlines()[-1]
    assert last.startswith("warning: the predicted memory rises, activations from ")
    assert "keep the original" in last


def _normalised() -> onnx.ModelProto:
    """Make Convs with much to fold into them, on a small image of few channels."""
    nodes, weights, x = [], {}, "x"
    for k, (a, b) in enumerate(pairwise([3, 64, 64, 64, 3])):
        weights[f"w{k}"] = noise(b, a, 3, 3, seed=k) / a
        weights |= {f"{name}{k}": np.ones(b, np.float32) for name in ("g", "b", "m", "v")}
        y = "y" if k == 3 else f"n{k}"
        nodes.append(node("Conv", f"{x} w{k}", f"c{k}", name=f"conv{k}", pads=[1] * 4))
        nodes.append(node("BatchNormalization", f"c{k} g{k} b{k} m{k} v{k}", y, name=f"norm{k}"))
        x = y
    return model(nodes, {"x": (1, 3, 64, 16)}, {"y": (None,) * 4}, weights)


@pytest.mark.parametrize("fold", [True, False])
def test_weights_that_rise_are_warned_of(fold: bool, tmp_path: Path) -> None:
    """Four patches with a copy each, though less is in use; folded once there is none to tell."""
    path, plan = tmp_path / "m.onnx", tmp_path / "p.json"
    made = _normalised()
    onnx.save(made, path)
    entry = {
        "nodes": [each.name for each in made.graph.node],
        "outputs": ["y"],
        "form": "fused",
        "splits": 4,
    }
    plan.write_text(
        json.dumps({"version": 2, "axis": "height", "order": "file", "regions": [entry]})
    )
    done = _command(path, "--dry-run", "--plan", str(plan), *([] if fold else ["--no-fold"]))
    assert done.exit_code == 0, done.output
    warned = [line for line in done.output.splitlines() if "loading takes" in line]
    assert len(warned) == (0 if fold else 1)
    for line in warned:
        assert line.startswith("warning: the memory that loading takes is predicted to rise from ")
        assert "(--splits)" in line


def test_a_plan_that_loses_more_in_weights_than_it_gains_is_not_taken() -> None:
    """The same network is cut where its weights are folded once, and else left as it is."""
    folded, copied = (_cut(_normalised(), fold=fold) for fold in (True, False))
    assert folded.rewritten
    assert not copied.rewritten
    # There were plans of less activations, and what they load is why none was taken.
    before = copied.before
    gaining = [each for each in copied.weighed if each.peak < 0.9 * before.need]
    assert gaining
    for each in gaining:
        if each.splits <= 4 and each.recompute <= 1.5:
            assert each.loading - before.weights.loading > before.need - each.peak


def _inspected(made: onnx.ModelProto, folder: Path) -> tuple[str, dict[str, Any]]:
    onnx.save(made, folder / "m.onnx")
    arguments = ["inspect", str(folder / "m.onnx"), "--json", str(folder / "i.json")]
    done = CliRunner().invoke(patchconv, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output, json.loads((folder / "i.json").read_text())


@pytest.mark.parametrize("made", [vae_decoder(), gated(), tall_halo()], ids=["vae", "gate", "halo"])
def test_what_is_not_cut_is_not_said_to_be_cuttable(made: onnx.ModelProto, tmp_path: Path) -> None:
    """Row-local neighbours that save nothing: inspect has no region, rewrite leaves them alone."""
    said, data = _inspected(made, tmp_path)
    assert not _cut(made).rewritten
    assert data["runs"] == []
    assert "Nothing would be cut: no region along this axis lowers the peak." in said
    assert data["reasons"] == [_as_json(each) for each in _cut(made).reasons]


def _as_json(reason: Reason) -> dict[str, Any]:
    return {**dataclasses.asdict(reason), "nodes": list(reason.nodes)}


def test_what_could_be_cut_is_what_a_rewrite_chooses_from(tmp_path: Path) -> None:
    """Every region in every number of patches is one of a plan of the curve, and saves."""
    made = super_resolution(32)
    _, data = _inspected(made, tmp_path)
    assert data["runs"]
    for entry in data["runs"]:
        for size, work in entry["tiled"].values():
            assert size < 0.98 * entry["peak"]
            assert work >= 1
    patches = {int(n) for entry in data["runs"] for n in entry["tiled"]}
    assert patches & {point.splits for point in pareto(tmp_path / "m.onnx")[1:]}


def test_inspect_says_what_is_unknown_and_what_is_left(tmp_path: Path) -> None:
    """An unknown peak has no bytes; old and rewritten models would be left as they are."""
    said, data = _inspected(run_time_sizes(), tmp_path)
    assert (
        "Predicted activations (onnxruntime): unknown (at least 0.5 MiB); sizes unknown: 2" in said
    )
    assert data["peak"]["bytes"] is None
    assert data["runs"] == []
    assert {entry["bytes"] for entry in data["barriers"]} == {None}
    assert _inspected(chain(6, (1, 2, 256, 64)), tmp_path)[1]["runs"]
    for made, words in ((_old(), "--upgrade-opset 13"), (_again(), "was rewritten before")):
        said, data = _inspected(made, tmp_path)
        assert "Nothing would be cut: " in said
        assert words in said
        assert data["runs"] == []
