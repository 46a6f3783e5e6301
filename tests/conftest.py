"""Fixtures of several modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from patchconv_deploy.engines.errors import EngineMissing
from patchconv_deploy.engines.trt.build import load_module
from tests.support.networks import exported, ocr
from tests.support.tiers import weighing_less

__all__ = ["exported", "less_weighed", "ocr", "rtx"]


@pytest.fixture
def less_weighed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Weigh fewer plans, where a test is not about which plan is taken; slow tests weigh all."""
    if request.node.get_closest_marker("slow") is not None:
        yield
        return
    with weighing_less():
        yield


@pytest.fixture(scope="session")
def rtx() -> Any:
    """Return the module of TensorRT for RTX."""
    try:
        return load_module("tensorrt-rtx")
    except EngineMissing as error:
        pytest.skip(str(error))
