"""Triton's real server for the tests, and a real model."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tools.serve import VARIABLE, Server, default_environment, serve, unsupported

__all__ = ["PROTOCOLS", "detector", "running", "skip_without_server"]


PROTOCOLS = ("http", "grpc")


def skip_without_server() -> None:
    """Skip where the machine cannot run the server; elsewhere it must be set up."""
    reason = unsupported()
    if reason is not None:
        pytest.skip(reason)
    if not (default_environment() / "installed").is_file():
        message = f"{default_environment()} is not set up; run the tests with tools/dev.py test"
        if VARIABLE in os.environ:
            pytest.fail(message)
        pytest.skip(message)


def detector() -> Path:
    """Return the file of PP-OCR's text detector."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "models/ch_PP-OCRv4_det_infer.onnx"


@contextmanager
def running(repository: Path, **options: Any) -> Iterator[Server]:
    """Run the server on a repository."""
    skip_without_server()
    with serve(repository, **options) as server:
        yield server
