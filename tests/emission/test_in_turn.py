"""Patches that a compiler has to run in turn: who waits for whom, the numbers, what is planned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.engines.errors import EngineMissing
from patchconv_deploy.engines.trt.build import load_module
from patchconv_deploy.rewriters.emission import in_turn
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import assert_same, copy_of, model, node, noise, run
from tools.calibrate_memory import planned

SPLITS = 4


def _blocks(side: int = 64, channels: int = 16, opset: int = 17) -> onnx.ModelProto:
    """Up-sampling, then two residual blocks that normalise; the first begins at the up-sampling."""
    weights: dict[str, Any] = {
        "e": noise(channels, 3, 3, 3) / 5,
        "roi": np.zeros(0, np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
        "l": noise(3, channels, 3, 3) / 12,
    }
    nodes = [
        node("Conv", "x e", "f", name="first", pads=[1] * 4),
        node("Resize", "f roi s", "u", name="up", mode="nearest"),
    ]
    x = "u"
    for k in range(2):
        weights |= {
            f"g{k}": 1 + noise(channels, seed=k) / 4,
            f"b{k}": noise(channels, seed=5 + k),
            f"c{k}": noise(channels, channels, 3, 3, seed=k) / 12,
        }
        nodes += [
            node("InstanceNormalization", f"{x} g{k} b{k}", f"n{k}", name=f"norm{k}"),
            node("Relu", f"n{k}", f"r{k}", name=f"relu{k}"),
            node("Conv", f"r{k} c{k}", f"k{k}", name=f"conv{k}", pads=[1] * 4),
            node("Add", f"{x} k{k}", f"y{k}", name=f"add{k}"),
        ]
        x = f"y{k}"
    nodes.append(node("Conv", f"{x} l", "y", name="last", pads=[1] * 4))
    return model(
        nodes,
        {"x": (1, 3, side, side)},
        {"y": (1, 3, 2 * side, 2 * side)},
        weights,
        opset=opset,
        ir=8 if opset < 21 else 10,
    )


def _cut(made: onnx.ModelProto, target: str = "tensorrt", **options: Any) -> Outcome:
    chosen = {"splits": SPLITS, "max_recompute": 3.0, "form": "fused", **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(target=target, **chosen))


def _patches(outcome: Outcome) -> Iterator[tuple[list[set[str]], dict[str, onnx.NodeProto]]]:
    """Yield of each region what the clones of each patch make, and all nodes by what they make."""
    makers = {name: n for n in outcome.model.graph.node for name in n.output}
    for cut in outcome.rewritten:
        patches: list[set[str]] = [set() for _ in range(cut.splits)]
        for n in outcome.model.graph.node:
            label, _, number = n.name.rpartition("_")
            scope, _, op = label.rpartition("/patchconv/")
            if scope == cut.plan.region.label and op.split(".")[0] == n.op_type and "/" not in op:
                patches[int(number)].update(n.output)
        yield patches, makers


def _behind(name: str, makers: dict[str, onnx.NodeProto]) -> set[str]:
    """Return all tensors that one is made of."""
    found, todo = set[str](), [name]
    while todo:
        at = todo.pop()
        if at not in found and at in makers:
            found.add(at)
            todo += makers[at].input
    return found


@pytest.mark.parametrize("form", ["fused", "shrinking"])
def test_every_node_of_a_patch_waits_for_the_patch_before(form: str) -> None:
    """Whether the patch begins with a normalisation, a skip, a Resize or a Conv."""
    outcome = _cut(_blocks(), form=form)
    assert outcome.rewritten
    regions = 0
    for patches, makers in _patches(outcome):
        regions += 1
        assert all(patches)
        for before, here in pairwise(patches):
            for name in here:
                assert not before.isdisjoint(_behind(name, makers)), name
    assert regions == len(outcome.rewritten)


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-default", "triton"])
def test_a_runtime_that_keeps_the_order_gets_nothing(target: str) -> None:
    """There it would only be more to do."""
    outcome = _cut(_blocks(), target)
    assert outcome.rewritten
    assert not [n for n in outcome.model.graph.node if "/after_" in n.name]


def test_networks_without_statistics_get_nothing() -> None:
    """Their patches were measured to run in turn by themselves."""
    made = _blocks()
    for n in made.graph.node:
        if n.op_type == "InstanceNormalization":
            n.op_type = "Identity"
            del n.input[1:]
    outcome = _cut(made)
    assert outcome.rewritten
    assert not [n for n in outcome.model.graph.node if "/after_" in n.name]


@pytest.mark.parametrize("opset", [11, 13, 21])
def test_the_numbers(opset: int) -> None:
    """As they were, in every spelling."""
    made = _blocks(opset=opset)
    assert_same(made, _cut(made).model, {"x": noise(1, 3, 64, 64)}, 1e-5)


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_none_do_not_spread(odd: float) -> None:
    """A patch that makes infinities or NaN adds nothing to the next: no statistic is in between."""
    made = model(
        [
            node("Conv", "x a", "h", name="a", pads=[1] * 4),
            node("Relu", "h", "r", name="r"),
            node("Conv", "r b", "y", name="b", pads=[1] * 4),
            node("GlobalMaxPool", "x", "m", name="m"),
            node("Mul", "m zero", "z", name="z"),
        ],
        {"x": (1, 2, 512, 256)},
        {"y": (1, 2, 512, 256), "z": (1, 2, 1, 1)},
        {"a": noise(32, 2, 3, 3), "b": noise(2, 32, 3, 3) / 9, "zero": np.zeros(1, np.float32)},
    )
    outcome = _cut(made)
    assert [n for n in outcome.model.graph.node if "/after_" in n.name]
    x = noise(1, 2, 512, 256)
    x[0, 0, 0, 0] = odd
    right, found = run(made, {"x": x})["y"], run(outcome.model, {"x": x})["y"]
    assert not np.isfinite(right[..., :2, :2]).all()
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)


def test_a_builder_plans_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX, with and without: what is planned comes near to what is predicted."""
    try:
        rtx = load_module("tensorrt-rtx")
    except EngineMissing as missing:
        pytest.skip(str(missing))
    made = _blocks(side=128, channels=32)
    waiting = _cut(made, splits=8)
    monkeypatch.setattr(in_turn.Turn, "inputs", lambda *_: {})
    side_by_side = _cut(made, splits=8)
    sizes = {}
    for name, outcome in (("in turn", waiting), ("side by side", side_by_side)):
        onnx.save(outcome.model, tmp_path / "m.onnx")
        sizes[name] = planned(tmp_path / "m.onnx", rtx)
    assert sizes["in turn"] < 0.9 * sizes["side by side"], sizes
