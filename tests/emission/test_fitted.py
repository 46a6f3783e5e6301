"""Networks of any size: halved and padded to the skip, padded to a multiple and cropped back."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import assert_same, copy_of, model, node, noise
from tests.support.tiers import weighing_less

HEIGHTS = (16, 17, 31, 61, 94)


def exported(network: str, options: dict[str, Any], path: Path) -> onnx.ModelProto:
    """Export a network with free height and width."""
    import torch

    from tools.models.layers import initialise
    from tools.models.quiet import quiet
    from tools.models.restoration import NAFNet
    from tools.models.segmentation import SkipUNet

    module = {"SkipUNet": SkipUNet, "NAFNet": NAFNet}[network](**options)
    initialise(module, torch.randn(2, 3, 32, 32), 3)
    with quiet():
        torch.onnx.export(
            module,
            (torch.randn(1, 3, 40, 48),),
            path,
            input_names=["x"],
            opset_version=17,
            dynamic_axes={"x": {2: "h", 3: "w"}},
            dynamo=False,
        )
    return load(path).model


def cut(original: onnx.ModelProto, **options: Any) -> Outcome:
    """Rewrite a copy."""
    return rewrite_model(Loaded(copy_of(original), None), Options(max_recompute=9.0, **options))


@pytest.mark.parametrize(
    ("network", "options", "target"),
    [
        ("SkipUNet", {"base": 8, "levels": 2, "fit": "pad"}, "onnxruntime"),
        ("SkipUNet", {"base": 8, "levels": 2, "fit": "pad"}, "tensorrt"),
        ("SkipUNet", {"base": 8, "levels": 2, "fit": "crop"}, "onnxruntime"),
        ("NAFNet", {"base": 4, "levels": 1}, "onnxruntime"),
    ],
    ids=["padded to the skip", "for TensorRT", "cropped back", "cropped back, with statistics"],
)
def test_a_network_of_any_size(
    network: str, options: dict[str, Any], target: str, tmp_path: Path
) -> None:
    """What is padded and cropped by the model's height is row-local, and right at every height."""
    original = exported(network, options, tmp_path / "x.onnx")
    facts = look_at(Loaded(copy_of(original), None), Options()).facts.certain
    left = {facts.graph.node[at].op_type for at in find_locality(facts, "height").reasons}
    assert left.isdisjoint({"Pad", "Slice"})
    # With statistics there is most to weigh, and any plan will do.
    with weighing_less() if network == "NAFNet" else nullcontext():
        outcome = cut(original, splits=4, target=target)
    assert outcome.rewritten
    for height in HEIGHTS:
        assert_same(original, outcome.model, {"x": noise(1, 3, height, 20)}, 2e-5)


def _padded(mode: str, above: int) -> onnx.ModelProto:
    """Convs, then the half doubled and padded to what it was halved from, added; a Conv behind."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p b", "d", name="deep", pads=[1] * 4),
        node("MaxPool", "d", "q", kernel_shape=[2, 2], strides=[2, 2]),
        node("ConvTranspose", "q t", "u", name="up", strides=[2, 2]),
        node("Shape", "d", "s"),
        node("Gather", "s rows", "sh", axis=0),
        node("Shape", "u", "v"),
        node("Gather", "v rows", "vh", axis=0),
        node("Sub", "sh vh", "missing"),
        node("Concat", "front missing back", "pads", axis=0)
        if not above
        else node("Concat", "head missing tail", "pads", axis=0),
        node("Pad", "u pads", "f", name="fit", mode=mode),
        node("Add", "d f", "e"),
        node("Conv", "e b", "y", name="last", pads=[1] * 4),
    ]
    weights: dict[str, Any] = {
        "a": noise(16, 3, 3, 3),
        "b": noise(16, 16, 3, 3),
        "t": noise(16, 16, 2, 2),
        "rows": np.array([2]),
        "front": np.array([0] * 6),
        "back": np.array([0]),
        "head": np.array([0] * 2),
        "tail": np.array([0] * 5),
    }
    read = {name for each in nodes for name in each.input}
    kept = {name: array for name, array in weights.items() if name in read}
    return model(nodes, {"x": (1, 3, "H", 16)}, {"y": (None,) * 4}, kept)


@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_rows_that_are_missing_come_from_the_model(mode: str, above: int) -> None:
    """Above or below, of every kind: the Pad is in a region, and each height is right."""
    original = _padded(mode, above)
    outcome = cut(original, splits=5)
    assert any("fit" in region.nodes for region in outcome.rewritten)
    for height in (8, 9, 10, 11, 33, 46, 63, 90):
        assert_same(original, outcome.model, {"x": noise(1, 3, height, 16)}, 5e-6)


def test_what_depends_on_the_width_ends_no_rows() -> None:
    """Rows that are added by the width follow from no height: the Pad is left alone."""
    original = _padded("constant", 0)
    dims = original.graph.input[0].type.tensor_type.shape.dim
    dims[3].dim_param = "W"
    for each in original.graph.node:
        if each.op_type == "Gather":
            each.input[1] = "columns"
    original.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3]), "columns"))
    outcome = cut(original, splits=5)
    assert not any("fit" in region.nodes for region in outcome.rewritten)
