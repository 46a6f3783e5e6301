"""Random decoders that resize to the sizes of their skips, at any height and at one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.engines.trt.build import build
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import (
    assert_same_where_it_runs,
    copy_of,
    model,
    node,
    noise,
)

CHANNELS = 16


def decoder(seed: int, dims: tuple[Any, ...]) -> onnx.ModelProto:
    """Scales of any stride and padding, each resized to the one above; some to the image."""
    drawn = random.Random(seed)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Any] = {"first": np.array([0, 1]), "last": np.array([2, 3])}

    def conv(x: str, name: str, channels: int, **attributes: Any) -> str:
        kernel = attributes.pop("kernel", 3)
        weights[f"{name}/w"] = noise(CHANNELS, channels, kernel, kernel, seed=seed) / 9
        pads = attributes.pop("pads", [kernel // 2] * 4)
        nodes.append(node("Conv", f"{x} {name}/w", name, name=name, pads=pads, **attributes))
        return name

    def resized(x: str, like: str, name: str) -> str:
        mode, coordinates = (
            drawn.choice(["linear", "linear", "nearest"]),
            drawn.choice(["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]),
        )
        attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
        if mode == "nearest":
            attributes["nearest_mode"] = drawn.choice(["floor", "ceil"])
        nodes.extend(
            [
                node("Shape", x, f"{name}/own"),
                node("Gather", f"{name}/own first", f"{name}/images"),
                node("Shape", like, f"{name}/other"),
                node("Gather", f"{name}/other last", f"{name}/size"),
                node("Concat", f"{name}/images {name}/size", f"{name}/sizes", axis=0),
                node("Resize", f"{x} _ _ {name}/sizes", name, name=name, **attributes),
            ]
        )
        return name

    scales = [conv("x", "stem", 3)]
    for level in range(drawn.randint(1, 3)):
        stride, kernel = drawn.choice([2, 2, 3, 4]), drawn.choice([1, 2, 3, 3])
        above, below = drawn.randint(0, kernel // 2), drawn.randint(0, kernel // 2)
        pads = [above, kernel // 2, below, kernel // 2]
        name = f"down{level}"
        down = conv(scales[-1], name, CHANNELS, kernel=kernel, strides=[stride] * 2, pads=pads)
        nodes.append(node("Relu", down, f"{name}/relu"))
        scales.append(f"{name}/relu")
    at = conv(scales[-1], "deep", CHANNELS)
    for level, skip in reversed(list(enumerate(scales[:-1]))):
        at = resized(at, skip, f"up{level}")
        if drawn.random() < 0.7:
            nodes.append(node("Add", f"{at} {skip}", f"join{level}"))
            at = f"join{level}"
        at = conv(at, f"out{level}", CHANNELS)
    if drawn.random() < 0.5:
        at = resized(at, "x", "whole")
    weights["head"] = noise(2, CHANNELS, 1, 1, seed=seed) / 4
    nodes.append(node("Conv", f"{at} head", "y", name="head"))
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights)


def _compare(seed: int, dims: tuple[Any, ...], **options: Any) -> int:
    """Cut a decoder and compare it; return whether a Resize is in a region."""
    made = decoder(seed, dims)
    given = {"splits": 5, "max_recompute": 5.0, **options}
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(**given))
    heights = (1, 2, 3, 5, 9, 16, 37, 64, 101, 203) if isinstance(dims[2], str) else (dims[2],)
    width = dims[3] if isinstance(dims[3], int) else 9
    feeds = [{"x": noise(1, 3, height, width, seed=seed)} for height in heights]
    ran = assert_same_where_it_runs(made, outcome.model, feeds, 1e-5)
    assert ran >= 0.3 * len(feeds)
    names = {name for cut in outcome.rewritten for name in cut.nodes}
    return any(name.startswith(("up", "whole")) for name in names)


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 150), marks=pytest.mark.slow)])
def test_any_height(seeds: range) -> None:
    """At ten heights from one row up."""
    assert sum(_compare(seed, (1, 3, "H", "W")) for seed in seeds) > 0.5 * len(seeds)


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 50), marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_any_height_unrolled(target: str, seeds: range) -> None:
    """As many patches at every height, as TensorRT has to have them."""
    options = {"form": "fused", "target": target, "splits": 3}
    cut = sum(_compare(seed, (1, 3, "H", "W"), **options) for seed in seeds)
    assert cut > 0.2 * len(seeds)


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 150), marks=pytest.mark.slow)])
def test_one_height(seeds: range) -> None:
    """At heights that no stride divides."""
    cut = sum(_compare(seed, (1, 3, 150 + seed % 23, 33)) for seed in seeds)
    assert cut > 0.5 * len(seeds)


def test_rtx_plans_it_at_any_height(rtx: Any, tmp_path: Path) -> None:
    """Its builder takes no sizes of which one is worked out: the width is resized by scales."""
    made = decoder(1, (1, 3, "H", 64))
    options = Options(splits=3, max_recompute=5.0, form="fused", target="tensorrt")
    outcome = rewrite_model(Loaded(copy_of(made), None), options)
    assert any(name.startswith("up") for cut in outcome.rewritten for name in cut.nodes)
    path = tmp_path / "model.onnx"
    onnx.save(outcome.model, path)
    shapes = {"x": ((1, 3, 64, 64), (1, 3, 256, 64), (1, 3, 512, 64))}
    result = build(path, BuildOptions(profiles=(shapes,)), rtx)
    assert not any(message.is_error for message in result.messages)
