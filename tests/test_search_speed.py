"""Regions are found in good time: seconds of the processor, on networks of realistic kinds.

The bounds of `tools.benchmark_rewriter`, doubled: neighbours on a machine slow the processor, too.
"""

from __future__ import annotations

import onnx
import pytest

from tools.benchmark_rewriter import MAX_SEARCH, search
from tools.deep_models import KINDS, make

SLACK = 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_what_they_say(kind: str) -> None:
    """Valid, of about as many nodes as asked for, and the same every time."""
    model = make(kind, 300)
    onnx.checker.check_model(model, full_check=True)
    assert 250 <= len(model.graph.node) <= 360
    assert make(kind, 300).SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


def _assert_in_time(kind: str, count: int) -> None:
    found = search(kind, count)
    assert max(found["splits"], found["half"], found["none"]) < SLACK * MAX_SEARCH[count], found


def test_regions_of_300_nodes_are_found_in_time() -> None:
    """The kind that takes longest; the others are among the slow tests."""
    _assert_in_time("rrdbnet", 300)


@pytest.mark.slow
@pytest.mark.parametrize("count", MAX_SEARCH)
@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_found_in_time(kind: str, count: int) -> None:
    """All kinds, of up to 3,000 nodes."""
    _assert_in_time(kind, count)
