"""The rooms: who may import whom, and that no runtime is loaded unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNTIMES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "torch", "tritonclient")


def modules() -> list[str]:
    """Return every module of the package, `__main__` files left out."""
    found = []
    for folder in ("patchconv_deploy", "patchconv_deploy/rewriters", "patchconv_deploy/engines"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.stem != "__main__":
                found.append(name.removesuffix(".__init__"))
    return sorted(set(found))


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


@pytest.mark.parametrize(
    "name", ["patchconv_deploy", "patchconv_deploy.rewriters.rewrite", "patchconv_deploy.engines"]
)
def test_importing_loads_no_runtime(name: str) -> None:
    """In a fresh interpreter, the import works and leaves every runtime unloaded."""
    loaded = python(f"import {name}, sys; print([m for m in {RUNTIMES} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_no_module_loads_a_runtime() -> None:
    """The same for every single module, front and engines included."""
    names = modules()
    assert "patchconv_deploy.rewriters.rewrite" in names
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


def test_what_is_installed_is_every_package() -> None:
    """The list in pyproject.toml, which is by hand, has every folder of modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in ROOT.joinpath("patchconv_deploy").rglob("__init__.py")}
    for linked in ("patchconv_deploy/rewriters", "patchconv_deploy/engines"):
        folders |= {path.parent for path in ROOT.joinpath(linked).rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(listed) == sorted(found)


@pytest.mark.parametrize("child", ["ort.child", "ort.signature", "trt.child"])
def test_a_process_that_is_measured_loads_no_front(child: str) -> None:
    """Its memory is what is measured: neither the front nor onnx comes with its package."""
    heavy = ("onnx", "onnx_graphsurgeon", "click", "rich", "patchconv_deploy.public")
    loaded = python(
        f"import patchconv_deploy.engines.{child}, sys; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_a_folder_of_the_same_name_is_in_nobodys_way(tmp_path: Path) -> None:
    """Who keeps plans in `engines/` and scripts in `rewriters/` can still import the package."""
    for name in ("engines", "rewriters"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user\\'s own')\n")
    code = "import patchconv_deploy as p; print(p.convert_model.__name__, p.OutOfMemory.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["", str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["convert_model", "OutOfMemory"], done.stderr
