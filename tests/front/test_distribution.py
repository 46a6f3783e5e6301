"""What is released: a wheel and a source distribution that hold all, and the wheel alone works."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import onnx
import pytest

from tests.support.small_models import conv

ROOT = Path(__file__).parents[2]

# Where packages lie in the repository, and where they are installed.
_ROOMS = {
    "patchconv_deploy": "patchconv_deploy",
    "rewriters": "patchconv_deploy/rewriters",
    "engines": "patchconv_deploy/engines",
}


def _tracked(*folders: str) -> set[str]:
    """Return the files of folders that are in the repository; links are left out."""
    done = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name for name in done.stdout.split("\0") if name and not (ROOT / name).is_symlink()}


@pytest.mark.slow
def test_a_wheel_and_a_source_distribution_hold_everything(tmp_path: Path) -> None:
    """Both pass `twine check --strict`; the wheel rewrites and verifies without the repository."""
    source = tmp_path / "source"
    for name in _tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    venv.create(tmp_path / "tools", with_pip=True)
    python = tmp_path / "tools/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "build", "twine"], check=True)
    out = tmp_path / "dist"
    subprocess.run([python, "-m", "build", "-o", out, source], check=True, capture_output=True)
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    checked = subprocess.run(
        [python, "-m", "twine", "check", "--strict", wheel, archive],
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout

    wanted = {
        f"{where}/{name.partition('/')[2]}"
        for room, where in _ROOMS.items()
        for name in _tracked(room)
    }
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
        licences = [name for name in opened.namelist() if name.endswith("LICENSE")]
    assert held == wanted
    assert len(licences) > 1
    with tarfile.open(archive) as packed:
        held = {name.partition("/")[2] for name in packed.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", *_tracked(*_ROOMS)} <= held

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    # Not even pip may see the repository: it would say that all is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [str(python), "-m", "pip", "install", "-q", f"{wheel}[cpu]"]
    subprocess.run(install, check=True, timeout=900, env=environment)
    onnx.save(conv((1, 2, 512, 512)), tmp_path / "conv.onnx")
    done = subprocess.run(
        [tmp_path / "env/bin/patchconv-rewrite", "conv.onnx", "--form", "sequential"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert ", verified at" in done.stdout
