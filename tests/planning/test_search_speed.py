"""Regions are found in good time: seconds of the processor, on networks of realistic kinds.

The bounds of `tools.benchmark_rewriter`, doubled: neighbours on a machine slow the processor, too.
"""

from __future__ import annotations

from itertools import pairwise

import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.planning import candidate_regions, growing
from patchconv_deploy.rewriters.planning import search as searching
from patchconv_deploy.rewriters.planning.candidates import candidates_of
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from tests.support.small_models import model, node, noise
from tools.benchmark_rewriter import MAX_SEARCH, SEARCHES, most_seconds, search
from tools.models.deep import KINDS, make

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


def _assert_in_time(kind: str, count: int, *tasks: str) -> None:
    found = search(kind, count, tasks)
    assert max(found[task] for task in tasks) < SLACK * most_seconds(kind, count), found


def test_regions_of_300_nodes_are_found_in_time() -> None:
    """For eight patches, in the kind that takes longest; all else is among the slow tests.

    A budget is answered from plans of all numbers of patches, which take three times as long.
    """
    _assert_in_time("rrdbnet", 300, "splits")


@pytest.mark.slow
@pytest.mark.parametrize("count", MAX_SEARCH)
@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_found_in_time(kind: str, count: int) -> None:
    """All kinds, of up to 3,000 nodes, budgets too."""
    _assert_in_time(kind, count, *SEARCHES)


def _dense(layers: int) -> onnx.ModelProto:
    """Make layers that each read all before."""
    nodes, weights = [node("Conv", "x w0", "t0", pads=[1] * 4)], {"w0": noise(2, 2, 3, 3)}
    for at in range(1, layers):
        before = " ".join(f"t{k}" for k in range(at))
        nodes.append(node("Concat", before, f"c{at}", axis=1))
        nodes.append(node("Conv", f"c{at} w{at}", f"t{at}", pads=[1] * 4))
        weights[f"w{at}"] = noise(2, 2 * at, 3, 3)
    last = f"t{layers - 1}"
    return model(nodes, {"x": (1, 2, 64, 64)}, {last: (None,) * 4}, weights)


def test_effort_is_bounded_where_each_node_reads_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors walked past are bounded, by orders and in all; progress moves on the way."""
    edges = 40 * 40 // 2 + 3 * 40
    monkeypatch.setattr(candidate_regions, "_WALKED", 12 * edges)
    monkeypatch.setattr(searching, "_WALKED_IN_ALL", 30 * edges)
    monkeypatch.setattr(growing, "_DEEP", edges)
    made = _dense(40)
    told: list[tuple[int, int]] = []
    found = candidates_of(
        MemoryPredictor(analyse(made, skeleton(Loaded(made, None)))),
        "height",
        frozenset(),
        "onnxruntime-tuned",
        lambda what, done, total: told.append((done, total)),
    )
    # A few starts, each walking past every tensor, and past as many again where branches join.
    assert all(graph.walked < 30 * edges for graph in found.stage_graphs)
    assert len(found.stage_graphs) < 8
    assert len(told) > 8
    assert all(one[0] <= other[0] <= other[1] for one, other in pairwise(told))
