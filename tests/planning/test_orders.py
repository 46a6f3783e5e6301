"""Orders in which regions can hold attention: what is read whole is made before."""

from __future__ import annotations

import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning import candidate_regions, orders
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.random_sequences import CHANNELS, Sequences
from tests.support.small_models import assert_same, copy_of, model, node, noise

SIDE, KEYS = 64, 4


def _encoder(stages: int) -> onnx.ModelProto:
    """Every pixel looks at a smaller image, stage by stage."""
    made = Sequences(1, images=False)
    x = made.conv("x")
    for _ in range(stages):
        tokens = made.add("Transpose", made.reshape(x, 1, CHANNELS, SIDE * SIDE), perm=[0, 2, 1])
        q = made.linear(tokens)
        small = made.add("AveragePool", x, kernel_shape=[KEYS] * 2, strides=[KEYS] * 2)
        keys = made.reshape(small, 1, CHANNELS, (SIDE // KEYS) ** 2)
        k = made.add(
            "Transpose", made.linear(made.add("Transpose", keys, perm=[0, 2, 1])), perm=[0, 2, 1]
        )
        scores = made.add("Softmax", made.add("MatMul", f"{q} {k}"), axis=2)
        # As exporters write it: the values come right before they are read.
        v = made.linear(made.add("Transpose", keys, perm=[0, 2, 1]))
        y = made.add("Transpose", made.add("MatMul", f"{scores} {v}"), perm=[0, 2, 1])
        x = made.add("Add", f"{made.reshape(y, 1, CHANNELS, SIDE, SIDE)} {x}")
        x = made.conv(x)
    nodes = [*made.nodes, node("Conv", f"{x} {made.weight(2, CHANNELS, 1, 1)}", "y")]
    return model(nodes, {"x": (1, 3, SIDE, SIDE)}, {"y": (1, 2, SIDE, SIDE)}, made.weights)


def test_attention_of_every_stage_is_cut() -> None:
    """None of the scores is there as a whole."""
    made = _encoder(2)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=8))
    scores = 4 * SIDE**2 * (SIDE // KEYS) ** 2
    assert outcome.before.need > scores
    assert outcome.after is not None
    assert outcome.after.need < scores // 2
    named = {name for cut in outcome.rewritten for name in cut.nodes}
    assert sum(name.startswith("softmax") for name in named) == 2
    assert_same(made, outcome.model, {"x": noise(1, 3, SIDE, SIDE)}, 1e-5)


def test_keys_and_values_come_before_the_queries() -> None:
    """In the order that keeps row-local nodes together."""
    made = _encoder(2)
    facts = look_at(Loaded(made, None), Options()).facts
    links = find_locality(facts.certain, "height").links
    nodes = facts.certain.graph.node
    order = orders.run_orders(facts, range(len(nodes)), links)["runs"]
    rank = {at: place for place, at in enumerate(order)}
    products = [at for at, each in enumerate(nodes) if each.op_type == "MatMul" and at in links]
    for at in products:
        carried = {nodes[at].input[place] for place, _ in links[at].carriers}
        whole = [name for name in nodes[at].input if name not in carried | facts.index.constants]
        for name in whole:
            between = order[rank[facts.index.producer[name]] + 1 : rank[at]]
            assert all(
                nodes[each].op_type in ("MatMul", "Add", "Softmax", "Transpose", "Reshape")
                for each in between
            )
            assert facts.index.producer[next(iter(carried))] in between


def test_without_places_behind_the_keys_less_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: regions begin where little is alive alone, as they did."""
    monkeypatch.setattr(candidate_regions, "_MOST_CUTS", 8)
    few = rewrite_model(Loaded(_encoder(3), None), Options(splits=8)).after
    monkeypatch.setattr(candidate_regions, "_behind_keys", lambda *_: [])
    none = rewrite_model(Loaded(_encoder(3), None), Options(splits=8)).after
    assert few is not None
    assert none is None or few.need < none.need
