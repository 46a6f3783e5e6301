"""A plan as it is written in a file, applied again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import onnx
import pytest

from patchconv_deploy.report.warnings import warnings_of
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.emission.test_resizing import decoder
from tests.planning.test_passes import _forced
from tests.planning.test_peak_holders import vae_decoder
from tests.support.random_sequences import random_sequences
from tests.support.small_models import copy_of, in_half, model, node, noise
from tests.support.tiers import slow

pytestmark = pytest.mark.usefixtures("less_weighed")

SIDE = 64


def _cut(
    copied: Callable[[onnx.ModelProto], onnx.ModelProto] = copy_of,
    side: int = SIDE,
    **options: object,
) -> Outcome:
    made = copied(vae_decoder((side, side)))
    return rewrite_model(Loaded(made, None), Options(**options))  # type: ignore[arg-type]


def _same(found: Outcome, right: Outcome) -> None:
    a, b = (each.model.SerializeToString(deterministic=True) for each in (found, right))
    assert a == b


@pytest.fixture(scope="module")
def once() -> Outcome:
    """A rewrite whose plan is applied again."""
    return _cut(splits=8, max_recompute=4.0)


def test_a_plan_with_statistics_gives_the_same_model_again(once: Outcome) -> None:
    """Both halves of a normalisation go by its name; each region finds its own again."""
    labels = [set(entry.nodes) for entry in once.rewritten]
    assert any(a & b for n, a in enumerate(labels) for b in labels[n + 1 :])
    _same(_cut(plan=read_plan(json.dumps(once.plan))), once)


@pytest.mark.parametrize("axis", ["width", "auto"])
def test_a_plan_says_along_which_axis_statistics_are(axis: str) -> None:
    """Cut along the width, a mean is over columns first: who applies the plan need not say so."""
    nodes = [
        node("Conv", "x w", "c", name="first", pads=[1] * 4),
        node("GlobalAveragePool", "c", "g", name="pool"),
        node("Add", "c g", "a", name="add"),
        node("Conv", "a v", "y", name="last", pads=[1] * 4),
    ]
    weights = {"w": noise(16, 3, 3, 3), "v": noise(2, 16, 3, 3)}
    made = model(nodes, {"x": (1, 3, 8, 192)}, {"y": (1, 2, 8, 192)}, weights)
    given = Options(splits=4, max_recompute=9.0, axis=axis)
    once = rewrite_model(Loaded(copy_of(made), None), given)
    assert any("pool" in done.nodes for done in once.rewritten)
    plan = read_plan(json.dumps(once.plan))
    assert plan["axis"] == "width"
    _same(rewrite_model(Loaded(copy_of(made), None), Options(plan=plan)), once)


def test_what_a_statistic_reads_in_single_precision_is_of_one_region() -> None:
    """A region may read it of another, though it is told by the name of the statistic."""
    once = _cut(in_half, 2 * SIDE, splits=8, max_recompute=4.0)
    assert once.plan is not None
    made = [name for entry in once.plan["regions"] for name in entry["outputs"]]
    assert any(name.endswith("/single") for name in made)
    _same(_cut(in_half, 2 * SIDE, plan=read_plan(json.dumps(once.plan))), once)


@pytest.mark.parametrize("seeds", [range(6), slow(range(6, 60))])
@pytest.mark.parametrize(
    "make",
    [lambda seed: decoder(seed, (1, 3, "H", "W")), random_sequences],
    ids=["resized", "folded"],
)
def test_what_is_written_in_other_words_is_found_again(
    make: Callable[[int], onnx.ModelProto], seeds: range
) -> None:
    """Resizes and sequences go by their names in the model, in part by names of their own."""
    parts = 0
    for seed in seeds:
        options: dict[str, Any] = {"ranges": {"x": ((1, 1), (3, 3), (16, 256), (16, 64))}}
        asked = Options(splits=5, max_recompute=5.0, **options)
        outcome = rewrite_model(Loaded(make(seed), None), asked)
        if not outcome.rewritten:
            continue
        plan = read_plan(json.dumps(outcome.plan))
        again = rewrite_model(Loaded(make(seed), None), Options(plan=plan, **options))
        _same(again, outcome)
        parts += 1
    assert parts > len(seeds) // 2


def test_a_region_with_a_dead_end_is_found_again() -> None:
    """Nodes that nobody reads the result of are named as they are, and stay in their region."""
    _forced(1624)


@pytest.mark.parametrize("form", ["loop", "shrinking"])
def test_a_loop_says_that_it_hands_nothing_over(once: Outcome, form: str) -> None:
    """Where the halves of a normalisation lie in two regions, and only of a Loop."""
    plan = dict(once.plan or {})
    plan["regions"] = [{**entry, "form": form} for entry in plan["regions"]]
    outcome = _cut(plan=read_plan(json.dumps(plan)))
    assert len(outcome.rewritten) > 1
    said = [each for each in warnings_of(outcome, Options(), {}) if "hands nothing" in each]
    assert len(said) == (form == "loop")


def test_a_plan_names_nodes_that_there_are(once: Outcome) -> None:
    """A name that no node has is said."""
    assert once.plan
    plan = dict(once.plan)
    plan["regions"] = [{**plan["regions"][0], "nodes": ["nowhere"]}]
    with pytest.raises(OptionError, match="no node 'nowhere'"):
        _cut(plan=plan)


def test_a_statistic_alone_is_no_region() -> None:
    """What is made of all rows no patch makes: said of the node that the plan names."""
    nodes = [
        node("Conv", "x w", "p", name="conv", pads=[1] * 4),
        node("GlobalAveragePool", "p", "g", name="pool"),
        node("Mul", "p g", "y", name="gate"),
    ]
    made = model(nodes, {"x": (1, 3, "H", 8)}, {"y": (None,) * 4}, {"w": noise(4, 3, 3, 3)})
    region = {"nodes": ["pool"], "outputs": ["g"], "form": "rounds", "splits": 2}
    plan = {"version": 2, "axis": "height", "regions": [region]}
    with pytest.raises(OptionError, match="node 'pool' cannot be in a region that makes 'g'"):
        rewrite_model(Loaded(made, None), Options(plan=read_plan(json.dumps(plan))))
