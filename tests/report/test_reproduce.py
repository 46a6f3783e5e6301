"""The commands of a page, typed again in a shell as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
from html import unescape
from pathlib import Path

import onnx
import pytest

from patchconv_deploy.free_memory import Memory
from tests.support.commands import run_command
from tests.support.report_pages import read_page
from tests.support.small_models import chain


def _typed(page: Path) -> list[list[str]]:
    """Return what a shell makes of each line of a page's commands, the program's name left out."""
    text = page.read_text(encoding="utf-8")
    section = text[text.index('id="commands"') :].partition("</section>")[0]
    lines = [
        line
        for block in re.findall(r"<pre>(.*?)</pre>", section, re.S)
        for line in unescape(block).split("\n")
    ]
    found = []
    for line in lines:
        shell = f'patchconv() {{ printf "%s\\0" "$@"; }}; {line}'
        done = subprocess.run(["bash", "-c", shell], capture_output=True, check=True)
        found.append([os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]])
    return found


def _page(name: str, *options: str, wide: bool = False) -> list[list[str]]:
    """Save a model here under a name and write its page; return the page's commands."""
    onnx.save(chain(4, (1, 2, 64, 256) if wide else (1, 2, 256, 64)), str(Path(name).absolute()))
    asked = ("--no-curve", "--no-verify", "-o", "page.html", *options)
    done = run_command("report", *asked, "--", name)
    assert done.returncode == 0, done.stderr
    return _typed(Path("page.html"))


@pytest.mark.parametrize(
    "name",
    [
        "a b.onnx",
        'it\'s $HOME `x` "y" \\n.onnx',
        "-m.onnx",
        "--help.onnx",
        "a\nb\tc\x1b[2J.onnx",
        "it's\u00a0a\u202eb.onnx",
        os.fsdecode(b"\xff0.onnx"),
        "漢字.onnx",
    ],
)
def test_the_same_file_is_named_whatever_its_name_holds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command reads it and, typed, makes the page's plan."""
    monkeypatch.chdir(tmp_path)
    commands = _page(name, "--splits", "3")
    for words in commands:
        models = [word for word in words if word.endswith(".onnx")]
        assert Path(models[0]) == Path(name)
        assert all(Path(each).parent == Path() for each in models)
    done = run_command(*commands[0], "--no-verify", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    seams = [entry["seams"] for entry in json.loads(Path("report.json").read_text())["rewritten"]]
    assert [region["seams"] for region in read_page(Path("page.html")).data["regions"]] == seams
    done = run_command(*next(words for words in commands if words[0] == "inspect"))
    assert done.returncode == 0, done.stderr


def test_the_curve_is_that_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along its axis, with what else the curve depends on, and with nothing of one plan."""
    monkeypatch.chdir(tmp_path)
    asked = ("--axis", "auto", "--splits", "3", "--max-recompute", "1.25", "--exclude", "x*")
    commands = _page("wide.onnx", *asked, wide=True)
    curve = next(words for words in commands if "--pareto" in words)
    looked = ["--axis", "width", "--max-recompute", "1.25", "--exclude", "x*"]
    assert curve == ["rewrite", "wide.onnx", *looked, "--pareto"]
    assert run_command(*curve).returncode == 0
    assert ["inspect", "wide.onnx", "--axis", "width"] in commands
    patched = run_command("rewrite", "wide.onnx", "--axis", "width", "--no-verify")
    assert patched.returncode == 0, patched.stderr
    done = run_command("report", "wide.onnx", "wide.patched.onnx", "--no-verify", "--no-curve")
    assert done.returncode == 0, done.stderr
    again = _typed(Path("wide.report.html"))
    assert ["inspect", "wide.onnx", "--axis", "width"] in again


def test_a_budget_of_what_is_free_is_the_one_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another day there is more or less, and another plan."""
    there = Memory(8 << 30, 4 << 30)
    monkeypatch.setattr("patchconv_deploy.cli.auto_budget.memory_here", lambda: there)
    monkeypatch.chdir(tmp_path)
    commands = _page("m.onnx", "--memory-budget", "auto")
    at = commands[0].index("--memory-budget")
    assert re.fullmatch(r"\d+(B|KiB|MiB|GiB)", commands[0][at + 1])
