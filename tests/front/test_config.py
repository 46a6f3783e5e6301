"""Options from a file, a budget of what is free, and completion in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from patchconv_deploy.free_memory import Memory
from tests.support.commands import run_command
from tests.support.small_models import chain, file_names, super_resolution

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model that is cut by default."""
    path = tmp_path / "model.onnx"
    onnx.save(super_resolution(16), path)
    return path


def _options(source: Path, *arguments: str | Path) -> dict[str, Any]:
    """Return the options of a rewrite, as its report has them."""
    report = source.with_name("report.json")
    done = run_command("rewrite", source, "--dry-run", "--report", report, *arguments)
    assert done.returncode == 0, done.stderr
    options: dict[str, Any] = json.loads(report.read_text())["options"]
    return options


def _config(source: Path, text: str) -> Path:
    path = source.with_name("run.toml")
    path.write_text(text)
    return path


def test_a_file_gives_options(source: Path) -> None:
    """By Python's names or by the flags; lists where an option may be given more than once."""
    text = """
    splits = 3
    memory-budget = "20MiB"
    max_recompute = 1.25
    fold = false
    exclude = ["a*", "b*"]
    shapes = "x:1x3x16x16"
    """
    found = _options(source, "--config", _config(source, text))
    assert found["splits"] == 3
    assert found["memory_budget_bytes"] == 20 << 20
    assert found["max_recompute"] == 1.25
    assert found["fold"] is False
    assert found["exclude"] == ["a*", "b*"]
    assert found["shapes"] == {"x": [1, 3, 16, 16]}


def test_the_command_line_wins(source: Path) -> None:
    """Of both, what was typed counts."""
    config = _config(source, "splits = 3\nfold = false")
    found = _options(source, "--config", config, "--splits", "5", "--fold")
    assert (found["splits"], found["fold"]) == (5, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("splitz = 3", "there is no option 'splitz'"),
        ("config = 'other.toml'", "there is no option 'config'"),
        ("splits = ", "not TOML"),
        ("fold = 'no'", "fold is true or false"),
        ("splits = true", "splits: True is no value of it"),
        ("splits = [1]", "splits: [1] is no value of it"),
        ("[splits]\na = 1", "is no value of it"),
        ("splits = 'many'", "'many' is not a valid int"),
        ("memory_budget = 1\nmemory-budget = 2", "'memory-budget' is given twice"),
        pytest.param(f"splits = {'9' * 5000}", "not TOML: ", id="5000 digits"),
        pytest.param(f"splits = 0x{'f' * 6000}", "splits: too long a number", id="hexadecimal"),
        pytest.param(f"splits = [0x{'f' * 6000}]", "splits: too long a number", id="in a list"),
        ('plan = "a\\u0000b"', "plan: 'a\\x00b' is no value of it"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(text: str, said: str, source: Path) -> None:
    """One line, exit code 2, nothing written."""
    config = _config(source, text)
    done = run_command("rewrite", source, "--config", config)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert file_names(source.parent) == ["model.onnx", "run.toml"]


def test_a_page_takes_its_options_from_a_file_too(source: Path) -> None:
    """And says how to make it again."""
    config = _config(source, "splits = 2\nverify = false\ncurve = false")
    done = run_command("report", source, "--config", config)
    assert done.returncode == 0, done.stderr
    assert "--splits 2" in source.with_name("model.report.html").read_text()


def test_a_missing_file_is_said(source: Path) -> None:
    """As any other file that is read."""
    done = run_command("rewrite", source, "--config", source.with_name("none.toml"))
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_what_the_curve_does_not_look_at_is_refused_from_a_file_too(source: Path) -> None:
    """An option of one plan means nothing to all of them, wherever it stands."""
    done = run_command("rewrite", source, "--pareto", "--config", _config(source, "splits = 3"))
    assert done.returncode == 2
    assert "--splits means nothing to --pareto" in done.stderr


def test_auto_is_what_is_free_less_what_loading_takes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure is said, and is the budget; a limit of a container counts."""
    there = Memory(8 << 30, 4 << 30, limit=30 << 20, held=2 << 20)
    monkeypatch.setattr("patchconv_deploy.cli.auto_budget.memory_here", lambda: there)
    report = source.with_name("report.json")
    asked = ("--memory-budget", "auto", "--dry-run", "--report", report)
    done = run_command("rewrite", source, *asked)
    assert done.returncode == 0, done.stderr
    data = json.loads(report.read_text())
    budget = data["options"]["memory_budget_bytes"]
    loading = data["process_bytes"]["before"]["loading"]
    assert budget == (28 << 20) - loading - 4 * 3 * 16 * 16
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"Memory budget: {budget / 2**20:.1f} MiB (28.0 MiB free here, less ")


def test_auto_that_leaves_nothing_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where loading alone takes all, no plan helps."""
    monkeypatch.setattr("patchconv_deploy.cli.auto_budget.memory_here", lambda: Memory(1, 1000))
    done = run_command("rewrite", source, "--memory-budget", "auto")
    assert done.returncode == 2
    assert "nothing is left" in done.stderr


def test_a_size_that_is_none_is_refused_as_before(tmp_path: Path) -> None:
    """Only that one word is no size and taken."""
    onnx.save(chain(1), tmp_path / "m.onnx")
    done = run_command("rewrite", tmp_path / "m.onnx", "--memory-budget", "automatic")
    assert done.returncode == 2
    assert "'automatic' is not a size" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    """The line that the help names prints what the shell reads."""
    assert f"_PATCHCONV_COMPLETE={shell}_source patchconv" in run_command("--help").stdout
    # As the installed script starts it: by its name, not as a module.
    code = (
        "import sys; sys.argv[0] = 'patchconv'; from patchconv_deploy.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "_PATCHCONV_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    # click asks bash for its version, which need not be there.
    assert done.returncode == 0, done.stderr
    assert f"_PATCHCONV_COMPLETE={shell}_complete" in done.stdout
