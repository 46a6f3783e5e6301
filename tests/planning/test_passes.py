"""Plans of graphs that look at the whole image: whatever is taken computes the same."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from patchconv_deploy.rewriters.emission import handing_over
from patchconv_deploy.rewriters.emission.forms import REGIONAL_FORMS
from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph import new_nodes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.candidates import candidates_of
from patchconv_deploy.rewriters.planning.plan_file import plan_data
from patchconv_deploy.rewriters.planning.stages import Limits
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.random_graphs import random_graph
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise
from tests.support.tiers import slow

pytestmark = pytest.mark.usefixtures("less_weighed")

# Sums are made in another order, and a square root or a gate stands behind them.
REL = 2e-4

# A normalised constant is 0, and what rounding makes of numbers near 1.
LEAST = 1e-6


def _rewrite(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(Loaded(copy_of(made), None), Options(**options))


def _random(seed: int) -> tuple[onnx.ModelProto, dict[str, Array], list[dict[str, Any]]]:
    """Return a graph, inputs, and what to ask for."""
    draw = random.Random(seed).randint
    graph = random_graph(draw, most=10, statistics=True)
    made, feeds = graph.model(), graph.feeds()
    need = _rewrite(made, splits=1, axis=graph.axis).before.need
    asked: list[dict[str, Any]] = [
        {"memory_budget": max(1, need * draw(4, 9) // 10)},
        {"splits": draw(2, 7), "max_recompute": 3.0},
        {"memory_budget": max(1, need * 7 // 10), "form": REGIONAL_FORMS[draw(0, 2)]},
    ]
    target = ("onnxruntime", "triton")[draw(0, 1)]
    return made, feeds, [{"axis": graph.axis, "target": target, **each} for each in asked]


def _cut(seed: int) -> int:
    """Rewrite a random graph in some ways; return how many were cut."""
    made, feeds, asked = _random(seed)
    cut = 0
    for options in asked:
        try:
            outcome = _rewrite(made, **options)
        except BudgetError:
            continue
        if outcome.rewritten:
            assert_same(made, outcome.model, feeds, REL, LEAST)
            cut += 1
        else:
            assert outcome.model == made
    return cut


@pytest.mark.parametrize(("first", "last"), [(0, 4), slow(4, 1000)])
def test_plans_with_statistics_compute_the_same(first: int, last: int) -> None:
    """Normalisations, gates and reductions of all kinds, in regions of all forms."""
    assert sum(_cut(seed) for seed in range(first, last)) > (last - first) // 4


def _forced(seed: int) -> tuple[int, int]:
    """Cut a random graph in ways that nobody would take; return how many, and with a statistic."""
    draw = random.Random(seed).randint
    graph = random_graph(draw, most=10, statistics=True)
    made, feeds, axis = graph.model(), graph.feeds(), graph.axis
    predictor = look_at(Loaded(copy_of(made), None), Options(axis=axis))
    found = candidates_of(predictor, axis, frozenset(), "onnxruntime-tuned")
    labels, cut, within = predictor.facts.labels, 0, 0
    for stages in found.stage_graphs[-3:]:
        limits = Limits(alike=(2, 4, 8)[draw(0, 2)], budget=inf if stages.in_strips else draw(1, 9))
        if not stages.in_strips:
            limits = replace(limits, budget=found.plain_peak * draw(4, 9) // 10)
        regions = found.choose(limits, [stages])
        if not regions:
            continue
        form = REGIONAL_FORMS[draw(0, 2)]
        entries = [(each, form, [labels[at] for at in each.region.nodes]) for each in regions]
        plan = json.loads(json.dumps(plan_data(axis, "file", entries, "onnxruntime")))
        outcome = _rewrite(made, axis=axis, plan=plan)
        assert_same(made, outcome.model, feeds, REL, LEAST)
        cut += 1
        within += any("/rows" in name for _, _, names in entries for name in names)
    return cut, within


@pytest.mark.parametrize(("first", "last"), [(0, 30), slow(30, 3000)])
def test_strips_and_passes_compute_the_same(first: int, last: int) -> None:
    """Whatever is handed over and run twice, whether it gains anything or not."""
    found = [_forced(seed) for seed in range(first, last)]
    assert sum(cut for cut, _ in found) > (last - first) // 4
    assert sum(within for _, within in found) > (last - first) // 4


def _blocks(side: int = 64, channels: int = 16) -> onnx.ModelProto:
    """Make two residual blocks with InstanceNormalization."""
    weights = {"w": noise(channels, 3, 3, 3) / 5, "o": noise(3, channels, 3, 3) / 12}
    nodes, x = [node("Conv", "x w", "h", name="first", pads=[1] * 4)], "h"
    for k in range(2):
        weights |= {
            f"w{k}": noise(channels, channels, 3, 3, seed=k) / 12,
            f"g{k}": noise(channels, seed=k),
            f"b{k}": noise(channels, seed=9 + k),
        }
        nodes += [
            node("InstanceNormalization", f"{x} g{k} b{k}", f"n{k}", name=f"norm{k}"),
            node("Relu", f"n{k}", f"r{k}", name=f"relu{k}"),
            node("Conv", f"r{k} w{k}", f"c{k}", name=f"conv{k}", pads=[1] * 4),
            node("Add", f"c{k} {x}", f"s{k}", name=f"add{k}"),
        ]
        x = f"s{k}"
    nodes.append(node("Conv", f"{x} o", "y", name="last", pads=[1] * 4))
    return model(nodes, {"x": (1, 3, side, side)}, {"y": (1, 3, side, side)}, weights)


def test_strips_are_handed_over() -> None:
    """Nothing but the output is put together, and half the memory is enough."""
    made = _blocks()
    outcome = _rewrite(made, splits=8)
    assert outcome.after.need < 0.65 * outcome.before.need
    joined = {each.output[0] for each in outcome.model.graph.node if each.op_type == "Concat"}
    assert joined.isdisjoint({"h", "s0", "s1"})
    assert "y" in joined
    feeds = {"x": noise(1, 3, 64, 64)}
    assert_same(made, outcome.model, feeds, 1e-5)
    expected, got = (
        np.asarray(ReferenceEvaluator(each).run(None, dict(feeds)))[0]
        for each in (made, outcome.model)
    )
    assert abs(expected - got).max() < 1e-4 * abs(expected).max()


def _breaks(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Any) -> None:
    made = _blocks()
    monkeypatch.setattr(module, name, wrong)
    outcome = _rewrite(made, splits=8)
    assert outcome.rewritten
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, outcome.model, {"x": noise(1, 3, 64, 64)}, REL)


def test_a_strip_cut_a_row_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the second way to write a Slice is wrong by a row."""
    right = handing_over._pieces

    def wrong(window: Any, strips: Any) -> Any:
        pieces = right(window, strips)
        strip, begin, end = pieces[0]
        return [(strip, begin - 1, end - 1) if begin else (strip, begin, end), *pieces[1:]]

    _breaks(monkeypatch, handing_over, "_pieces", wrong)


def test_a_variance_without_the_rows_means_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: what the rows' means differ by is left out of the variance."""
    right = new_nodes.NewNodes.add

    def wrong(self: Any, op: str, inputs: Any, suffix: str, output: str = "", **given: Any) -> str:
        if suffix == "variance":
            inputs = [inputs[0], inputs[0]]
        return right(self, op, inputs, suffix, output, **given)

    _breaks(monkeypatch, new_nodes.NewNodes, "add", wrong)


@pytest.mark.parametrize(
    ("op", "attrs", "found"),
    [
        ("AveragePool", {"kernel_shape": [48, 40]}, True),
        ("AveragePool", {"kernel_shape": [48, 40], "strides": [48, 40]}, True),
        ("AveragePool", {"kernel_shape": [48, 40], "auto_pad": "VALID"}, True),
        ("MaxPool", {"kernel_shape": [48, 40]}, True),
        ("AveragePool", {"kernel_shape": [48, 39]}, False),
        ("AveragePool", {"kernel_shape": [48, 40], "pads": [1, 0, 0, 0]}, False),
        ("AveragePool", {"kernel_shape": [48, 40], "auto_pad": "SAME_UPPER"}, False),
        ("MaxPool", {"kernel_shape": [24, 20], "dilations": [2, 2]}, False),
        ("AveragePool", {"kernel_shape": [48, 40], "pads": [0, 0, 1, 0], "ceil_mode": 1}, False),
    ],
)
def test_pools_over_the_whole_image(op: str, attrs: dict[str, Any], found: bool) -> None:
    """A pool whose kernel is the image is a global one, and nothing else is."""
    nodes = [
        node("Conv", "x w", "h", name="first", pads=[1] * 4),
        node(op, "h", "p", name="pool", **attrs),
        node("ReduceMax", "p", "g", axes=[2, 3]) if not found else node("Identity", "p", "g"),
        node("Sigmoid", "g", "s"),
        node("Mul", "h s", "m"),
        node("Conv", "m v", "y", name="last", pads=[1] * 4),
    ]
    weights = {"w": noise(16, 3, 3, 3) / 5, "v": noise(3, 16, 3, 3) / 12}
    made = model(nodes, {"x": (1, 3, 48, 40)}, {"y": (1, 3, 48, 40)}, weights)
    facts = look_at(Loaded(copy_of(made), None), Options()).facts
    kinds = [entry.kind for entry in facts.statistics if entry.label == "pool"]
    assert kinds == (["global pooling"] if found else [])
    outcome = _rewrite(made, splits=6, max_recompute=3.0)
    assert bool(outcome.rewritten) or not found
    assert_same(made, outcome.model, {"x": noise(1, 3, 48, 40)})
