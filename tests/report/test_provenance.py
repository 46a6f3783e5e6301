"""A rewritten file beside its original: is it made of that, and what does it do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from patchconv_deploy.engines.measurement import Measurement
from patchconv_deploy.report.page.figures import read_figures
from patchconv_deploy.report.text import mebibytes
from tests.planning.test_peak_holders import vae_decoder
from tests.support.commands import run_command
from tests.support.report_pages import Page, measured_row, read_page
from tests.support.small_models import chain, file_names, super_resolution


def _pair(folder: Path, made: onnx.ModelProto, *options: str) -> tuple[Path, Path]:
    """Save a model and rewrite it."""
    source, patched = folder / "model.onnx", folder / "model.patched.onnx"
    onnx.save(made, source)
    done = run_command("rewrite", source, "--no-verify", "--report", folder / "r.json", *options)
    assert done.returncode == 0, done.stderr
    return source, patched


def _page(source: Path, patched: Path, *options: str | Path) -> tuple[Page, str]:
    """Return the page of both, and what was said on standard error."""
    out = source.with_name("page.html")
    asked = ("--no-curve", "-o", out, *options)
    done = run_command("report", source, patched, *asked)
    assert done.returncode == 0, done.stderr
    return read_page(out), done.stderr


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (super_resolution(16), ("--splits", "4")),
        (vae_decoder((64, 64)), ("--splits", "8", "--max-recompute", "4")),
        (chain(4, (1, 2, "h", 64)), ("--splits", "4", "--shape", "x:1x2x96x64")),
        (chain(4, (1, 2, "h", "w")), ("--splits", "4", "--shape", "x:1x2x48..96x64")),
        (super_resolution(16), ("--no-fold", "--target", "tensorrt", "--form", "fused")),
        (super_resolution(16), ("--form", "sequential", "--min-elements", "0")),
    ],
    ids=["plain", "statistics", "fixed sizes", "range", "not folded", "single convs"],
)
def test_what_was_made_of_a_model_is_known_again(
    made: onnx.ModelProto, options: tuple[str, ...], tmp_path: Path
) -> None:
    """The plan in the file, applied again, gives the file; the figures are its report's."""
    source, patched = _pair(tmp_path, made, *options)
    page, said = _page(source, patched, "--no-verify")
    assert "the plan in the file" not in page.words + said
    report = json.loads((tmp_path / "r.json").read_text())
    seams = [region["seams"] for region in page.data["regions"]]
    assert seams == [entry["seams"] for entry in report["rewritten"]]
    assert [r["form"] for r in page.data["regions"]] == [e["form"] for e in report["rewritten"]]
    peak = report["peak_activation_bytes"]
    if ".." not in " ".join(options):  # of a range the file does not say what was assumed
        assert f"→ {mebibytes(peak['after'])} MiB" in page.section("summary")
        assert max(page.data["plots"]["after"]["bytes"]) == peak["after"]
        if report["recompute"] is not None:
            assert f"{report['recompute']:.3f}x the work counted" in page.section("summary")


def test_what_was_changed_since_is_said(tmp_path: Path) -> None:
    """Another weight: the plan fits, the file is not the one that it gives."""
    source, patched = _pair(tmp_path, super_resolution(16))
    made = onnx.load(patched)
    weight = next(t for t in made.graph.initializer if t.name == "d")
    other = onnx.numpy_helper.to_array(weight) + np.float32(1)
    weight.CopyFrom(onnx.numpy_helper.from_array(other, "d"))
    onnx.save(made, patched)
    page, said = _page(source, patched, "--no-verify")
    assert "1 weights are not the model's" in page.section("summary")
    assert said.startswith("warning: the plan in the file fits the model, but 1 weights")


def test_a_mismatch_is_shown_and_is_no_success(tmp_path: Path) -> None:
    """The page says that the models do not compute the same; the exit code is 1."""
    source, patched = _pair(tmp_path, super_resolution(16))
    made = onnx.load(patched)
    weight = next(t for t in made.graph.initializer if t.name == "d")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, "d"))
    onnx.save(made, patched)
    out = tmp_path / "page.html"
    done = run_command("report", source, patched, "--no-curve", "-o", out)
    assert done.returncode == 1
    assert "error: the models do not compute the same" in done.stderr
    assert "Outputs measured mismatch" in read_page(out).section("summary")


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    """Other nodes, other inputs, a file that was rewritten itself: one line, no page."""
    source, patched = _pair(tmp_path, super_resolution(16))
    other = tmp_path / "other.onnx"
    renamed = super_resolution(16)
    for each in renamed.graph.node:
        each.name += "_"
    onnx.save(renamed, other)
    onnx.save(chain(4, (1, 2, 64, 64)), tmp_path / "chain.onnx")
    for first, second, said in (
        (other, patched, "was not made of"),
        (tmp_path / "chain.onnx", patched, "was not made of"),
        (patched, patched, "was rewritten itself"),
        (source, other, "holds no plan"),
        (patched, "--no-verify", "was rewritten itself"),
    ):
        done = run_command("report", first, second, "--no-curve", "-o", tmp_path / "page.html")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    assert "page.html" not in file_names(tmp_path)


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        ((1, 2, 64, 64), ("--memory-budget", "1GiB")),
        ((1, 2, "h", 64), ("--memory-budget", "1GiB", "--shape", "x:1x2x96x64")),
        ((1, 2, 64, 64), ("--max-buffer", "1GiB")),
        ((1, 2, 2, 2), ()),
    ],
    ids=["budget", "sizes fixed", "limit", "no gain"],
)
def test_a_file_that_was_left_as_it_was_has_a_page(
    dims: tuple[int | str, ...], options: tuple[str, ...], tmp_path: Path
) -> None:
    """A budget that was kept already: the page says so, and that the outputs are the same."""
    source, patched = _pair(tmp_path, chain(4, dims), *options)
    assert json.loads((tmp_path / "r.json").read_text())["rewritten"] == []
    page, said = _page(source, patched)
    assert "model.patched.onnx is the model as it was" in page.words
    assert "equal to the bit" in page.section("summary")
    assert page.data["regions"] == []
    assert "lowers no peak" not in page.words
    assert "error" not in said


def test_a_file_without_a_plan_that_is_not_the_model_is_refused(tmp_path: Path) -> None:
    """One weight is another: it is not what a rewrite that cut nothing writes."""
    source, patched = _pair(tmp_path, chain(4, (1, 2, 64, 64)), "--memory-budget", "1GiB")
    made = onnx.load(patched)
    weight = made.graph.initializer[0]
    other = onnx.numpy_helper.to_array(weight) + np.float32(1)
    weight.CopyFrom(onnx.numpy_helper.from_array(other, weight.name))
    onnx.save(made, patched)
    done = run_command("report", source, patched, "-o", tmp_path / "page.html")
    assert done.returncode == 2
    assert "holds no plan, and is not" in done.stderr


def test_a_plan_that_is_damaged_is_refused(tmp_path: Path) -> None:
    """A plan that is no plan is said to be none."""
    source, patched = _pair(tmp_path, super_resolution(16))
    made = onnx.load(patched)
    entry = next(e for e in made.metadata_props if e.key == "patchconv.plan")
    entry.value = "{]"
    onnx.save(made, patched)
    done = run_command("report", source, patched, "-o", tmp_path / "page.html")
    assert done.returncode == 2
    assert "the plan it holds cannot be read" in done.stderr


def test_figures_of_before_are_shown(tmp_path: Path) -> None:
    """What was measured and verified before stands beside what is predicted, and says so."""
    source, patched = _pair(tmp_path, super_resolution(16))
    rows = [
        measured_row("model.onnx", 9 << 20),
        measured_row("model.patched.onnx", 5 << 20, reuse=False),
        measured_row("model.patched.onnx", 7 << 20),
        measured_row("broken.onnx", 0, error="out of memory"),
    ]
    (tmp_path / "m.json").write_text(json.dumps({"results": rows}))
    page, _ = _page(source, patched, "--no-verify", "--figures", tmp_path / "m.json")
    summary = page.section("summary")
    assert "Running measured 9.0 → 5.0 MiB" in summary
    assert "Whole process measured 18.0 → 10.0 MiB" in summary
    said = "the whole process needs 10.0 MiB instead of 18.0 MiB, at 1.50x the time (measured)."
    assert said in page.words
    assert "Measured with onnxruntime 1.32 on a processor; the original with default" in summary
    assert "cut, memory reuse off, memory pattern on" in summary
    assert "Time measured 1.50x" in summary
    lines = page.data["plots"]["measured"]
    assert [(line["when"], line["bytes"]) for line in lines] == [
        ("before", 9 << 20),
        ("after", 5 << 20),
    ]
    table = page.section("measured")
    assert "model.patched.onnx reuse off, pattern on 5.0 10.0 0.5 1.50x" in table
    assert "broken.onnx: out of memory" in table
    said = "Why this plan: it is the one that model.patched.onnx was written by."
    assert said in page.section("summary")


def test_both_files_aremeasured_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files themselves, the rewritten one as it recommends, at the sizes that it has."""
    options = ("--splits", "4", "--shape", "x:1x2x96x64")
    source, patched = _pair(tmp_path, chain(4, (1, 2, "h", 64)), *options)
    asked: list[Any] = []

    def measured(models: list[Path], _: Any, **more: Any) -> list[Measurement]:
        asked.append((models, more["shapes"], more["recommended"]))
        figures = zip(models, (8 << 20, 2 << 20), strict=True)
        return [Measurement(str(path), version="1", peak_bytes=peak) for path, peak in figures]

    monkeypatch.setattr("patchconv_deploy.report.page.subject.measure_onnxruntime", measured)
    page, _ = _page(source, patched, "--no-verify", "--measure")
    assert asked == [([source, patched], {"x": (1, 2, 96, 64)}, True)]
    assert "Running measured 8.0 → 2.0 MiB" in page.section("summary")
    assert [line["bytes"] for line in page.data["plots"]["measured"]] == [8 << 20, 2 << 20]


def test_a_verification_of_before_is_not_done_again(tmp_path: Path) -> None:
    """That of a report is taken, with the sizes it was at; one of another rewrite is refused."""
    source, patched = tmp_path / "model.onnx", tmp_path / "model.patched.onnx"
    onnx.save(super_resolution(16), source)
    report = tmp_path / "r.json"
    assert run_command("rewrite", source, "--report", report).returncode == 0
    page, _ = _page(source, patched, "--figures", report)
    assert f"as {report} says" in page.section("measured")
    assert "at x 1x3x16x16" in page.section("summary")
    data = json.loads(report.read_text())
    # What there is to doubt stands beside the word that all is well.
    data["verification"]["doubt"] = "the outputs are <nearly> zero"
    report.write_text(json.dumps(data))
    doubted, _ = _page(source, patched, "--figures", report)
    assert "the outputs are <nearly> zero" in doubted.section("summary")
    data["rewritten"][0]["nodes"].pop()
    report.write_text(json.dumps(data))
    done = run_command("report", source, patched, "--figures", report, "-o", tmp_path / "q.html")
    assert done.returncode == 2
    assert "is of another rewrite" in done.stderr


def test_a_builders_plan_is_not_calledmeasured_row(tmp_path: Path) -> None:
    """What TensorRT plans is planned."""
    row = {
        "model": "model.onnx",
        "kind": "planned",
        "engine": "tensorrt-rtx",
        "planned_activation_bytes": 3 << 20,
        "peak_bytes": None,
        "options": {},
    }
    (tmp_path / "p.json").write_text(json.dumps({"results": [row]}))
    (found,) = read_figures([tmp_path / "p.json"]).rows
    assert (found.kind, found.peak, found.whole, found.seconds) == ("planned", 3 << 20, None, None)
