"""The version of this package, installed or run from a checkout."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["VERSION"]

_NAME = "patchconv-deploy"


def _version() -> str:
    try:
        return version(_NAME)
    except PackageNotFoundError:
        pass
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    try:
        found: str = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    except (OSError, ValueError, KeyError):
        return "unknown"
    return found


VERSION = _version()
