"""Sizes that are assumed for what is free: of an image, wherever its channels are."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from patchconv_deploy.rewriters.graph.fixed_shapes import nominal_shapes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import model, node, noise


def _made(dims: tuple[Any, ...]) -> onnx.ModelProto:
    outputs: dict[str, Any] = {"y": (None,) * len(dims)}
    return model([node("Identity", "x", "y")], {"x": dims}, outputs)


@pytest.mark.parametrize(
    ("dims", "assumed"),
    [
        (("n", "c", "h", "w"), (1, 4, 512, 512)),
        (("n", 3, "h", "w"), (1, 3, 512, 512)),
        (("n", "h", "w", 3), (1, 512, 512, 3)),
        (("n", "d", "h", "w", 1), (1, 512, 512, 512, 1)),
        # Columns are known, rows are not: no channels last.
        (("n", 3, "h", 64), (1, 3, 512, 64)),
        (("n", "t", 80), (1, 4, 80)),
        (("n", "features"), (1, 16)),
    ],
)
def test_what_is_assumed(dims: tuple[Any, ...], assumed: tuple[int, ...]) -> None:
    """One image, 512 rows and columns, four channels where they are unknown."""
    assert nominal_shapes(_made(dims)) == {"x": assumed}


def test_a_network_of_channels_last_is_cut() -> None:
    """At an image of four rows nothing would be worth it, and layers without padding have none."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t a", "p", name="first"),
        node("Relu", "p", "q", name="relu"),
        node("Conv", "q b", "r", name="second"),
        node("Conv", "r c", "s", name="third"),
        node("Transpose", "s", "y", perm=[0, 2, 3, 1]),
    ]
    weights = {
        "a": noise(16, 3, 3, 3),
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(4, 16, 3, 3) / 9,
    }
    outputs: dict[str, Any] = {"y": (None,) * 4}
    made = model(nodes, {"x": ("n", "h", "w", 3)}, outputs, weights)
    outcome = rewrite_model(Loaded(made, None), Options(splits=4))
    assert {"first", "second", "third"} <= {n for cut in outcome.rewritten for n in cut.nodes}
    assert outcome.after.bytes < 0.6 * outcome.before.bytes
