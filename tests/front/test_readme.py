"""The README's first lines of Python run as they stand there; its options are the declared ones."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import pytest
import torch

from patchconv_deploy.rewriters.planning import effort
from tests.support.small_models import chain
from tools.option_table import written

README = Path(__file__).resolve().parents[2] / "README.md"


def _block(begin: str) -> str:
    """Return the indented block that begins with a line."""
    lines = README.read_text(encoding="utf-8").split("\n")
    first = lines.index(f"    {begin}")
    last = next(at for at in range(first, len(lines)) if not lines[at].startswith("    "))
    return textwrap.dedent("\n".join(lines[first:last]))


def test_the_first_lines_of_python_run_when_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, in a folder that holds model.onnx, and nothing else is needed."""
    # What is weighed does not matter here; a small part of it is soon done.
    monkeypatch.setattr(effort, "_EFFORT", 2_000)
    made = chain(4, (1, 2, 256, 64))
    onnx.save(made, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3)]
    names: dict[str, Any] = {
        "model_proto": made,
        "gs_graph": gs.import_onnx(made),
        "module": torch.nn.Sequential(*layers).eval(),
        "x": torch.zeros(1, 3, 64, 64),
    }
    exec(_block("from patchconv_deploy import convert_model, pareto, rewrite"), names)
    assert names["result"].report.rewritten
    assert (tmp_path / "model.patched.onnx").is_file()
    assert (tmp_path / "out.onnx").is_file()


def test_its_options_are_the_declared_ones() -> None:
    """`python -m tools.option_table README.md` changes nothing; what it does is seen elsewhere."""
    text = README.read_text(encoding="utf-8")
    assert written(text) == text
    assert text.count("| `--max-recompute X` | most work after over before") == 1


def test_its_table_is_written_again() -> None:
    """Whatever stood between the comments; all else stays, and without comments nothing is done."""
    text = README.read_text(encoding="utf-8")
    broken = text.replace("| `--max-recompute X` |", "| `--max-work X` |")
    assert broken != text
    assert written(broken) == text
    assert written(broken + "more\n") == text + "more\n"
    with pytest.raises(ValueError, match="once each"):
        written(text.replace("<!-- end of options -->", ""))
    with pytest.raises(ValueError, match="once each"):
        written(text + text)
