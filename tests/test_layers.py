"""The rooms: who may import whom, and that no runtime is loaded unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "torch", "tritonclient")
PACKAGES = ("patchconv_deploy", "rewriters", "engines")


def modules() -> list[str]:
    """Return every module of the three packages, `__main__` files left out."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem != "__main__"
    ]


def python(code: str) -> str:
    """Run code in a fresh interpreter that finds the repository, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["patchconv_deploy", "rewriters.rewrite", "engines"])
def test_importing_loads_no_runtime(name: str) -> None:
    """In a fresh interpreter, the import works and leaves every runtime unloaded."""
    loaded = python(f"import {name}, sys; print([m for m in {RUNTIMES} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_no_module_loads_a_runtime() -> None:
    """The same for every single module, front and engines included."""
    names = modules()
    assert "rewriters.rewrite" in names
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        f"    found = [m for m in {RUNTIMES} if m in sys.modules]\n"
        "    assert not found, (name, found)\n"
    )
    python(code)


def test_importing_works_with_no_runtime_installed() -> None:
    """Every module imports where importing a runtime fails."""
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({RUNTIMES}))\n"
        f"for name in {modules()}:\n"
        "    importlib.import_module(name)\n"
    )
    python(code)


def test_import_contracts() -> None:
    """The contracts in pyproject.toml hold."""
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    command = command or shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed (dependency group lint)")
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
