"""What a rewrite says of its plan: why it was taken, and what each figure of its memory is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from patchconv_deploy import rewrite
from patchconv_deploy.cli.main import main_rewrite
from tests.support.commands import run_command
from tests.support.small_models import chain, noise

pytestmark = pytest.mark.usefixtures("less_weighed")

DIMS = (1, 2, 256, 64)

_PARTS = ("running", "loading")


def _saved(folder: Path, dims: Any = DIMS) -> Path:
    """Between ends of 2 channels are 16."""
    made = chain(6, dims)
    for name, shape in (("w0", (16, 2, 3, 3)), ("w1", (2, 16, 3, 3))):
        (weight,) = [each for each in made.graph.initializer if each.name == name]
        weight.CopyFrom(onnx.numpy_helper.from_array(noise(*shape) / 8, name))
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {},
            ("plans weighed, at most 4 patches a region and at most 1.5x the work, the one of ",),
        ),
        ({"splits": 8, "max_recompute": 2}, ("at most 8 patches a region and at most 2x the",)),
        (
            {"memory_budget": "900KiB"},
            ("the fastest, as predicted, that keeps the budget of 0.9 MiB, less 5%",),
        ),
        (
            {"memory_budget": "900KiB", "splits": 16},
            ("the fastest, ", "prediction's error, at most 16 patches a region"),
        ),
        ({"max_buffer": "512KiB"}, ("the fastest, ", "keeps every tensor at 0.5 MiB or less")),
        ({"form": "batch", "min_elements": 0}, ("single Convs were asked for",)),
    ],
)
def test_why_a_plan_was_taken(options: Any, words: tuple[str, ...], tmp_path: Path) -> None:
    """By what it was chosen, of how many, within which limits."""
    result = rewrite(_saved(tmp_path), verify=False, **options)
    assert result.outcome.rewritten
    said = result.report.data["choice"]
    for each in words:
        assert each in said
    if result.outcome.goal is not None:
        assert f"of {len(result.outcome.weighed)} plans weighed" in said


def test_of_what_was_not_searched_that_is_said(tmp_path: Path) -> None:
    """A plan that is given, patches of a height that is asked for, and nothing cut at all."""
    path = _saved(tmp_path)
    plan = rewrite(path, splits=4, verify=False).outcome.plan
    given = rewrite(path, plan=plan, verify=False, force=True).report.data
    assert given["choice"] == "it was given with plan=; nothing was searched"
    free = _saved(tmp_path, (1, 2, "h", 64))
    rows = rewrite(free, patch_rows=64, verify=False, force=True).report.data
    assert "patch_rows=64 asks for patches of this height" in rows["choice"]
    kept = rewrite(path, memory_budget="1GiB", dry_run=True).report.data
    assert kept["choice"] == ""


def test_a_rewrite_and_a_measurement_call_a_figure_alike(tmp_path: Path) -> None:
    """Activations, running, loading, whole process: one word for one figure."""
    path = _saved(tmp_path)
    report, out = tmp_path / "r.json", tmp_path / "out.onnx"
    done = run_command(path, "--report", report, "-o", out, program=main_rewrite)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[1]: line for line in done.stdout.splitlines() if line[:2] == "  "}
    data = json.loads(report.read_text())
    peak, process = data["peak_activation_bytes"], data["process_bytes"]
    for name, before, after in (
        ("activations", peak["before"], peak["after"]),
        *((name, *(process[when][name] for when in ("before", "after"))) for name in _PARTS),
        ("whole process", *(process[when]["together"] for when in ("before", "after"))),
    ):
        figures = lines[name].removeprefix(f"  {name}").split()[:2]
        assert figures == [f"{size / 2**20:,.1f}" for size in (before, after)]
    assert "Why this plan: of " in done.stdout
    assert "--pareto shows what other budgets cost" in done.stdout
    measured = run_command("measure", out, "--runs", "1", "--processes", "1")
    assert measured.returncode == 0, measured.stderr
    for name in ("activations", *_PARTS, "whole process"):
        assert name in measured.stdout.splitlines()[0]
