"""README and documentation: what can run is run, what is named exists, figures are one place's."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch

from patchconv_deploy import rewrite
from patchconv_deploy.cli.main import patchconv, rewrite_command
from patchconv_deploy.options import OPTIONS
from tests.support.pages import PAGES, ROOT, blocks_of, commands_of, prose_of, text_of
from tests.support.small_models import chain, model, node, noise
from tools.dev import COMMANDS
from tools.draw_docs import DRAWINGS
from tools.option_table import written

_TYPED = ("sh", "console")
_OPTIONS_PAGE = "docs/command-line.md"

# Files and folders of the repository as they are named in the text.
_NAMED = re.compile(r"`((?:patchconv_deploy|rewriters|engines|tests|tools|docs)/[\w./-]*)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")


def _prepare(folder: Path, *, patched: bool) -> None:
    """Write the models that pages speak of; with ``patched``, what their commands would write."""
    made = chain(4, (1, 2, 256, 64))
    onnx.save(made, folder / "model.onnx")
    if patched:
        onnx.save(made, folder / "model.patched.onnx")
    convs = [
        node("Conv", "input a", "c", name="first", pads=[1] * 4),
        node("Relu", "c", "r", name="relu"),
        node("Conv", "r b", "y", name="last", pads=[1] * 4),
    ]
    weights = {"a": noise(16, 3, 3, 3), "b": noise(3, 16, 3, 3, seed=1)}
    free = model(convs, {"input": (1, 3, "height", "width")}, {"y": (None,) * 4}, weights)
    onnx.save(free, folder / "free.onnx")


def _typed(page: str) -> Iterator[str]:
    """Yield each single command of a page, run or not."""
    for block in blocks_of(page):
        if block.language in _TYPED:
            for line in commands_of(block):
                yield from re.split(r"\s(?:&&|\||&)(?:\s|$)", line)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    """Each has a language; what is not run has a reason; commands stand in no other place."""
    for block in blocks_of(page):
        assert block.language in (*_TYPED, "python", "text", "json", "toml"), block.text
        assert not block.not_run or block.language in (*_TYPED, "python"), block.text
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            assert set(tomllib.loads(block.text)) <= set(OPTIONS)
    assert not re.search(
        r"^    (\$ |patchconv|python|pip|pytest|import|from) ", prose_of(page), re.M
    )


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_known(page: str) -> None:
    """Options exist and take such values; modules, tests and extras that are named are there."""
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    for line in _typed(page):
        words = shlex.split(line, comments=True)
        # What is set for one command stands before it.
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        match words:
            case ["patchconv-rewrite", *rest]:
                rewrite_command.make_context("patchconv-rewrite", rest)
            case ["patchconv", name, *rest]:
                patchconv.commands[name].make_context(name, rest)
            case ["python", "-m", name, *_] if name.startswith("tools."):
                path = ROOT / name.replace(".", "/")
                assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), line
            case ["python3" | "python", file, name, *_] if file == "tools/dev.py":
                assert name in COMMANDS, line
            case ["python3" | "python" | ".venv/test/bin/python", *rest]:
                files = [word for word in rest if word.startswith(("tools/", "tests/"))]
                assert all((ROOT / file).exists() for file in files), line
            case ["pytest", *rest]:
                files = [word for word in rest if word.startswith("tests/")]
                assert files, line
                assert all((ROOT / file).is_file() for file in files), line
            case ["pip", "install", what] if what.startswith("."):
                assert set(what.strip(".[]").split(",")) <= set(extras), line
            case [program, *_]:
                known = ("trtexec", "curl", "docker", "nvidia-smi", "grep", "npm", "node", "pip")
                assert program in known, line


def test_every_command_is_listed() -> None:
    """In the first table of docs/command-line.md."""
    table = text_of(_OPTIONS_PAGE).partition("## ")[0]
    assert set(re.findall(r"`patchconv ([a-z]+)", table)) == set(patchconv.commands)


def test_a_command_that_is_not_known_is_found() -> None:
    """An option that is gone is refused as it is on the command line."""
    with pytest.raises(click.UsageError, match="No such option"):
        rewrite_command.make_context("patchconv-rewrite", ["m.onnx", "--memory-limit", "1G"])


_WITH_PYTHON = [
    page
    for page in PAGES
    if any(block.language == "python" and not block.not_run for block in blocks_of(page))
]


@pytest.mark.usefixtures("less_weighed")
@pytest.mark.parametrize("page", _WITH_PYTHON)
def test_python_runs_as_it_stands(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block after the other, in a folder that holds the models, and nothing else is needed."""
    _prepare(tmp_path, patched=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    made = chain(4, (1, 2, 256, 64))
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3)]
    names: dict[str, Any] = {
        "model_proto": made,
        "gs_graph": gs.import_onnx(made),
        "module": torch.nn.Sequential(*layers).eval(),
        "x": torch.zeros(1, 3, 64, 64),
    }
    for block in blocks_of(page):
        if block.language == "python" and not block.not_run:
            exec(compile(block.text, page, "exec"), names)


_WITH_COMMANDS = [
    page
    for page in PAGES
    if any(block.language in _TYPED and not block.not_run for block in blocks_of(page))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", _WITH_COMMANDS)
def test_commands_run_as_they_stand(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a page one after the other, its Python between them, in a folder of its own."""
    _prepare(tmp_path, patched=False)
    monkeypatch.chdir(tmp_path)
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", os.pathsep.join((str(programs), os.environ["PATH"])))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if block.not_run or block.language == "text":
            continue
        if block.language == "python" and page == "docs/verification.md":
            exec(compile(block.text, page, "exec"), names)
        for line in commands_of(block) if block.language in _TYPED else ():
            command = ["bash", "-euo", "pipefail", "-c", line]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_exists(page: str) -> None:
    """Files in the text, and where links lead (anchors are for `mkdocs build --strict`)."""
    prose = prose_of(page)
    missing = [name for name in _NAMED.findall(prose) if not (ROOT / name).exists()]
    folder = (ROOT / page).parent
    missing += [name for name in _LINK.findall(prose) if not (folder / name).exists()]
    assert not missing


def test_rooms_hold_what_the_architecture_says() -> None:
    """Modules that are named by their room, as `planning.search` or `emission/writer.py`."""
    rooms = "graph|operators|regions|memory|tiling|emission|planning"
    named = re.findall(rf"`((?:{rooms})[./]\w+)", text_of("docs/architecture.md"))
    assert len(named) > 30
    places = [ROOT / "rewriters" / name.replace(".", "/") for name in named]
    assert not [
        place for place in places if not (place.is_dir() or place.with_suffix(".py").exists())
    ]


def test_words_are_those_of_the_code() -> None:
    """Every word of the glossary stands in the file that it names."""
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `([\w./]+)` \|$", text_of("docs/glossary.md"), re.M)
    assert len(rows) > 30
    for words, file in rows:
        code = text_of(file).lower().replace("_", " ")
        for word in words.split(", "):
            assert word in code, (word, file)


def test_codes_are_those_of_the_code() -> None:
    """Every code that docs/what-is-cut.md explains is one that the rewriters give."""
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", text_of("docs/what-is-cut.md"), re.M)
    codes = re.findall(r"`([a-z-]+)`", " ".join(rows))
    assert len(codes) > 10
    code = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("rewriters/**/*.py"))
    assert not [each for each in codes if f'"{each}"' not in code]


def test_the_options_are_the_declared_ones() -> None:
    """`python -m tools.option_table` changes nothing; what it does is seen elsewhere."""
    text = text_of(_OPTIONS_PAGE)
    assert written(text) == text
    assert text.count("| `--max-recompute X` | most work after over work before") == 1


def test_the_table_of_options_is_written_again() -> None:
    """Whatever stood between the comments; all else stays, and without comments nothing is done."""
    text = text_of(_OPTIONS_PAGE)
    broken = text.replace("| `--max-recompute X` |", "| `--max-work X` |")
    assert broken != text
    assert written(broken) == text
    assert written(broken + "more\n") == text + "more\n"
    with pytest.raises(ValueError, match="once each"):
        written(text.replace("<!-- end of options -->", ""))
    with pytest.raises(ValueError, match="once each"):
        written(text + text)


def test_the_drawings_are_those_of_the_script() -> None:
    """`python -m tools.draw_docs docs/drawings` changes nothing."""
    for name, draw in DRAWINGS.items():
        assert text_of(f"docs/drawings/{name}") == draw(), name


def _cells(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| network"):
            yield [cell.strip(" *") for cell in line.strip("|").split("|")]


def test_the_results_of_the_readme_are_those_of_the_results() -> None:
    """Each of its rows stands in docs/results.md, figure by figure."""
    measured: dict[tuple[str, str], tuple[str, ...]] = {}
    original = ""
    for cells in _cells(text_of("docs/results.md")):
        if cells[1] == "original":
            original = cells[4].replace(" default", "").removesuffix(" best")
        else:
            measured[original, cells[1]] = (*cells[4:7], cells[9])
    text = text_of("README.md")
    table = text[text.index("<!-- results") : text.index("<!-- end of results -->")]
    rows = list(_cells(table))
    assert len(rows) > 4
    for _, before, whole, gain, time, outputs, option in rows:
        assert measured[before, option] == (whole, gain, time, outputs)


def test_the_schemas_are_those_that_are_written(tmp_path: Path) -> None:
    """The keys of docs/report.md and docs/plan-files.md, at every level that they spell out."""
    _prepare(tmp_path, patched=False)
    result = rewrite(tmp_path / "model.onnx", splits=4, dry_run=True)

    def check(said: Any, found: Any, where: str) -> None:
        if isinstance(said, dict) and "..." not in said and found:
            optional = {"fused", "x"} if where.endswith(("by_form", "shapes")) else set()
            assert set(said) - optional <= set(found), where
            if not optional:
                assert set(found) <= set(said), where
            for key in said.keys() & found.keys():
                check(said[key], found[key], f"{where}.{key}")
        elif isinstance(said, list) and said and isinstance(said[0], dict) and found:
            check(said[0], found[0], f"{where}[]")

    for page, data in (("report", result.report.data), ("plan-files", result.outcome.plan)):
        (schema,) = [b for b in blocks_of(f"docs/{page}.md") if b.language == "json"]
        check(json.loads(schema.text), data, page)
