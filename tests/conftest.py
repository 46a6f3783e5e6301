"""Fixtures of several modules."""

from __future__ import annotations

from typing import Any

import pytest

from patchconv_deploy.engines.errors import EngineMissing
from patchconv_deploy.engines.trt.build import load_module
from tests.support.networks import exported, ocr

__all__ = ["exported", "ocr", "rtx"]


@pytest.fixture(scope="session")
def rtx() -> Any:
    """Return the module of TensorRT for RTX."""
    try:
        return load_module("tensorrt-rtx")
    except EngineMissing as error:
        pytest.skip(str(error))
