"""Plans of graphs that look at the whole image, computed in float64: next to nothing may differ.

In float32 a wrong row can hide in what sums in another order differ by. In float64 that is some
1e-13, so that here nothing else is allowed for. Both models are run by the reference evaluator with
the oracle's convolutions: no engine's rewriting stands in between.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from patchconv_deploy.rewriters.emission import handing_over
from patchconv_deploy.rewriters.graph import new_nodes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.nodes import bodies
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.candidates import candidates_of
from patchconv_deploy.rewriters.planning.plan_file import plan_data
from patchconv_deploy.rewriters.planning.stages import Limits
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.oracle import oracle_run
from tests.support.random_graphs import random_graph
from tests.support.small_models import Array, copy_of, run
from tests.support.tiers import slow

# Of the largest number: some hundreds of sums, products and roots, each right to 1e-16.
REL = 1e-12

_MOST_NUMBERS = 200_000

# The reference evaluator runs no Loop that has no condition.
_FORMS = ("fused", "shrinking")


@dataclass(frozen=True)
class _Case:
    """A random graph and one plan of it."""

    made: onnx.ModelProto
    rewritten: onnx.ModelProto
    feeds: Mapping[str, Array]
    nodes: tuple[str, ...]


def _in_double(made: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with float64 in place of float32."""
    wide = copy_of(made)
    resized = (each for each in _nodes(wide.graph) if each.op_type == "Resize")
    narrow = {name for each in resized for name in each.input[1:]}
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in narrow:
            _widen(tensor)
    for entry in (*wide.graph.input, *wide.graph.output):
        kind = entry.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT:
            kind.elem_type = TensorProto.DOUBLE
    for each in _nodes(wide.graph):
        for attribute in each.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            elif attribute.t.data_type == TensorProto.FLOAT:
                _widen(attribute.t)
    del wide.graph.value_info[:]
    return wide


def _widen(tensor: TensorProto) -> None:
    array = numpy_helper.to_array(tensor).astype(np.float64)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for each in graph.node:
        yield each
        for body in bodies(each):
            yield from _nodes(body)


def _agree(made: onnx.ModelProto, feeds: Mapping[str, Array]) -> bool:
    """Tell whether the reference evaluator can be trusted with a graph: ONNX Runtime says the same.

    It pads by no less than zero, and rounds some pools' sizes otherwise. What rounds to whole
    numbers is left out, too: there a last place decides on one more.
    """
    if any(each.op_type == "QuantizeLinear" for each in made.graph.node):
        return False
    try:
        found = oracle_run(made, feeds)
    except ValueError:
        return False
    pairs = zip(run(made, feeds).values(), found, strict=True)
    return all(
        right.shape == array.shape
        and np.allclose(right, array, rtol=0, atol=1e-3 * float(np.abs(right).max(initial=1.0)))
        for right, array in pairs
    )


def _cases(seed: int) -> Iterator[_Case]:
    """Cut a random graph along either axis, in strips and not, in a form that is drawn."""
    draw = random.Random(seed).randint
    graph = random_graph(draw, most=10, statistics=True)
    made, feeds = graph.model(), graph.feeds()
    if not _agree(made, feeds):
        return
    for axis in ("height", "width"):
        target = ("onnxruntime", "triton")[draw(0, 1)]
        predictor = look_at(Loaded(copy_of(made), None), Options(axis=axis, target=target))
        found = candidates_of(predictor, axis, frozenset(), "onnxruntime-tuned")
        labels = predictor.facts.labels
        for stages in found.stage_graphs[-3:]:
            share = found.plain_peak * draw(3, 9) // 10
            budget = inf if stages.in_strips else share
            limits = Limits(alike=(2, 3, 4, 8)[draw(0, 3)], budget=budget)
            regions = found.choose(limits, [stages])
            form = _FORMS[draw(0, 1)]
            if not regions:
                continue
            entries = [(each, form, [labels[at] for at in each.region.nodes]) for each in regions]
            plan = json.loads(json.dumps(plan_data(axis, "file", entries, target)))
            options = Options(axis=axis, plan=plan, target=target, fold=False)
            outcome = rewrite_model(Loaded(copy_of(made), None), options)
            nodes = tuple(name for _, _, names in entries for name in names)
            yield _Case(made, outcome.model, feeds, nodes)


def _off(case: _Case) -> float:
    """Return how far results are apart, of the largest number of each."""
    wide = {name: array.astype(np.float64) for name, array in case.feeds.items()}
    worst = 0.0
    results = [oracle_run(_in_double(each), wide) for each in (case.made, case.rewritten)]
    for before, after in zip(*results, strict=True):
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        assert before.size < _MOST_NUMBERS
        if before.dtype != np.float64:
            worst = max(worst, float(np.any(before != after)))
            continue
        np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
        largest = float(np.nanmax(np.abs(before), initial=0.0))
        error = float(np.nanmax(np.abs(before - after), initial=0.0))
        worst = max(worst, error / largest if largest else error)
    return worst


@pytest.mark.parametrize(("first", "last"), [(0, 10), slow(10, 600)])
def test_plans_compute_the_same_in_double(first: int, last: int) -> None:
    """Strips, passes and whole tensors; both axes; either form that is unrolled."""
    cut = within = 0
    for seed in range(first, last):
        for case in _cases(seed):
            assert _off(case) <= REL, (seed, case.nodes)
            cut += 1
            within += any("/statistic/" in name for name in case.nodes)
    assert cut > (last - first) // 2
    assert within > (last - first) // 4


def _worst(seeds: range) -> float:
    return max(_off(case) for seed in seeds for case in _cases(seed))


def test_a_merge_without_the_rows_means_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the variance is that of the rows alone."""
    right = new_nodes.NewNodes.add

    def wrong(self: Any, op: str, inputs: Any, suffix: str, output: str = "", **given: Any) -> str:
        if suffix == "variance":
            op, inputs = "Identity", inputs[:1]
        return right(self, op, inputs, suffix, output, **given)

    monkeypatch.setattr(new_nodes.NewNodes, "add", wrong)
    assert _worst(range(5)) > REL


def test_strips_in_another_order_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a window of several strips is put together from below."""
    right: Callable[..., list[Any]] = handing_over._pieces
    monkeypatch.setattr(handing_over, "_pieces", lambda window, strips: right(window, strips)[::-1])
    assert _worst(range(5)) > REL


def test_what_nothing_is_cut_of_comes_back() -> None:
    """Random graphs that are left as they are, byte for byte, with their statistics undone."""
    undone = 0
    for seed in range(12):
        graph = random_graph(random.Random(seed).randint, most=10, statistics=True)
        made = graph.model()
        as_it_was = made.SerializeToString()
        asked = Options(axis=graph.axis, splits=1)
        predictor = look_at(Loaded(copy_of(made), None), asked)
        undone += bool(predictor.facts.statistics)
        outcome = rewrite_model(Loaded(made, None), asked)
        assert not outcome.rewritten
        assert outcome.model.SerializeToString() == as_it_was
    assert undone > 5
