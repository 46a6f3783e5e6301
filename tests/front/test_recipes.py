"""The recipes of the documentation, run as they stand there: slow."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.commands import run_command
from tests.support.networks import ocr_file
from tests.support.pages import ROOT, blocks_of, commands_of, prose_of

_PAGE = "docs/recipes.md"


def _scripts(folder: Path) -> None:
    """Write the page's Python to the files that it is to be saved as."""
    names = re.findall(r"Save this as\s`([\w.]+)`", prose_of(_PAGE))
    blocks = [block.text for block in blocks_of(_PAGE) if block.language == "python"]
    for name, text in zip(names, blocks, strict=True):
        (folder / name).write_text(text)


def _commands(program: str) -> list[list[str]]:
    """Return the page's commands of a program, words apart."""
    shell = [block for block in blocks_of(_PAGE) if block.language == "sh"]
    lines = [shlex.split(line, comments=True) for block in shell for line in commands_of(block)]
    return [words for words in lines if words[0] == program]


def _typed(words: list[str]) -> str:
    """Run a command of this project; return what it said."""
    words = ["rewrite", *words[1:]] if words[0] == "patchconv-rewrite" else words[1:]
    done = run_command(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _python(python: str | Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a script with an interpreter, beside this checkout."""
    return subprocess.run(
        [str(python), *words[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )


def test_the_scripts_are_python(tmp_path: Path) -> None:
    """In every run: each block has a file's name, and can be compiled."""
    _scripts(tmp_path)
    found = sorted(tmp_path.iterdir())
    assert [file.name for file in found] == ["export_decoder.py", "serve_pages.py"]
    for file in found:
        compile(file.read_text(), file.name, "exec")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_detector_for_any_page_in_512_mib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewritten one serves all pages within the limit, the original none; both say the same."""
    shutil.copy(ocr_file("ch_PP-OCRv4_det_infer"), tmp_path / "det.onnx")
    _scripts(tmp_path)
    monkeypatch.chdir(tmp_path)
    (rewriting,) = (each for each in _commands("patchconv-rewrite") if "det.onnx" in each)
    assert "equal within tolerance" in _typed(rewriting)
    serving = [each for each in _commands("python") if "serve_pages.py" in each]
    limited, refused, free = (_python(sys.executable, words) for words in serving)
    assert limited.returncode == 0, limited.stderr
    assert refused.returncode != 0
    assert "pixels of text" not in refused.stdout
    assert free.returncode == 0, free.stderr
    *pages, held = limited.stdout.splitlines()
    *wanted, whole = free.stdout.splitlines()
    assert pages == wanted
    assert len(pages) == 6
    assert all(int(page.split()[1]) > 0 for page in pages)
    least, most = (int(re.findall(r"\d+", line)[0]) for line in (held, whole))
    assert least < 450
    assert most > 2 * least


@pytest.mark.slow
def test_the_decoder_of_diffusers_becomes_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported with the package's own class, cut, verified, published, checked and measured."""
    # The package goes into an environment of its own, beside the packages that are here.
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    here = Path(pytest.__file__).parents[1]
    (Path(own) / "beside.pth").write_text(f"{here}\n")
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", "diffusers"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if installed.returncode != 0:
        pytest.skip(f"diffusers cannot be installed: {installed.stderr[-300:]}")
    _scripts(tmp_path)
    monkeypatch.chdir(tmp_path)
    (exporting,) = (each for each in _commands("python") if "export_decoder.py" in each)
    exported = _python(python, exporting)
    assert exported.returncode == 0, exported.stderr[-2000:]
    (rewriting,) = (each for each in _commands("patchconv-rewrite") if "decoder.onnx" in each)
    assert "equal within tolerance" in _typed(rewriting)
    publishing, checking, measuring = _commands("patchconv")
    assert "Published: models/decoder/1" in _typed(publishing)
    assert "1 models, 0 refused" in _typed(checking)
    rows = [line.split() for line in _typed(measuring).splitlines() if line.startswith("decoder")]
    original, rewritten = (float(row[4].replace(",", "")) for row in rows)
    assert rewritten < 0.7 * original
