"""A model and what was made of it under other runtimes: the commands on small ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import onnx
import pytest
from click.testing import CliRunner

from patchconv_deploy import rewrite
from tests.support.small_models import chain, model, node, noise
from tools import other_runtimes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A chain of Convs, and the same in patches."""
    original, patched = tmp_path / "model.onnx", tmp_path / "model.patched.onnx"
    onnx.save(chain(4, (1, 2, 128, 64)), original)
    assert rewrite(original, patched, splits=4).outcome.rewritten
    return original, patched


def _rows(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


@pytest.mark.parametrize(
    "runtimes",
    [
        {"ONNX Runtime": "onnxruntime"},
        pytest.param(other_runtimes.RUNTIMES, marks=pytest.mark.slow),
    ],
)
def test_both_models_run_and_compute_the_same(
    runtimes: dict[str, str], pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row a runtime and model; nothing differs, or by rounding alone."""
    for name in runtimes.values():
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setattr(other_runtimes, "RUNTIMES", runtimes)
    done = CliRunner().invoke(other_runtimes.main, [*map(str, pair), "--runs", "1"])
    assert done.exit_code == 0, done.output
    rows = _rows(done.output)
    assert [row[0] for row in rows] == [
        f"{title}, {each.name}" for title in runtimes for each in pair
    ]
    assert all(float(row[6]) < 1e-5 for row in rows)


def test_a_runtime_that_is_missing_is_named(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to type; nothing is measured."""
    monkeypatch.setattr(other_runtimes, "RUNTIMES", {"Another": "no_such_runtime"})
    done = CliRunner().invoke(other_runtimes.main, [*map(str, pair)])
    assert done.exit_code == 1
    assert "pip install no_such_runtime" in done.output


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"x": (1, 2, None, 8)}, "not float32 of fixed sizes"),
        ({"x": (1, 2, 8, 8), "z": (1, 2, 8, 8)}, "has 2 inputs"),
    ],
)
def test_models_that_it_does_not_take_are_refused(
    inputs: dict[str, tuple[int | None, ...]], said: str, tmp_path: Path
) -> None:
    """One line of what they are."""
    nodes = [node("Conv", "x w", "y"), *(node("Relu", n, "r") for n in inputs if n != "x")]
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, inputs, {"y": (None,) * 4}, {"w": noise(2, 2, 1, 1)}), path)
    with pytest.raises(click.ClickException, match=said):
        other_runtimes.input_of(path)


@pytest.mark.slow
def test_in_web_assembly_both_compute_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Sums of the outputs agree; a size that a model does not take is said in its row."""
    npm, program = shutil.which("npm"), shutil.which("node")
    if npm is None or program is None:
        pytest.skip("Node.js is not installed")
    script = shutil.copy(ROOT / "tools" / "onnxruntime_web.mjs", tmp_path)
    install = [npm, "install", "--no-save", "--no-audit", "--no-fund", "onnxruntime-web"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True)

    def run(shape: str) -> list[list[str]]:
        command = [program, script, shape, *map(str, pair)]
        done = subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300
        )
        return _rows(done.stdout)

    first, second = run("1x2x128x64")
    assert (first[0], second[0]) == tuple(each.name for each in pair)
    assert float(first[4]) == pytest.approx(float(second[4]), rel=1e-6)
    assert float(first[4]) != 0
    assert all("failed: " in row[1] for row in run("1x2x16x64"))
