"""The least versions that the package asks for are enough."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import onnx
import pytest
from packaging.requirements import Requirement

from tests.support.small_models import conv

ROOT = Path(__file__).parents[2]


def _least() -> list[str]:
    """Return what the package and its CPU extra need, each at the least version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for text in (*project["dependencies"], *project["optional-dependencies"]["cpu"]):
        needed = Requirement(text)
        (least,) = (each.version for each in needed.specifier if each.operator == ">=")
        found.append(f"{needed.name}=={least}")
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the least numpy has no wheel for it")
def test_the_least_versions_are_enough(tmp_path: Path) -> None:
    """With them a model is rewritten, verified, looked at and measured."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", *_least()], check=True, timeout=900)
    onnx.save(conv((1, 2, 512, 512)), tmp_path / "conv.onnx")

    def typed(*words: str) -> str:
        done = subprocess.run(
            [python, "-m", "patchconv_deploy", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    rewriting = ("rewrite", "conv.onnx", "-o", "cut.onnx", "--form", "sequential", "--splits", "4")
    assert ", verified at" in typed(*rewriting)
    assert "conv" in typed("inspect", "conv.onnx")
    assert "cut.onnx" in typed(
        "measure", "conv.onnx", "cut.onnx", "--runs", "1", "--processes", "1"
    )
    assert "yes  rewrite" in typed("doctor")
