"""A plan as it is written in a file, applied again."""

from __future__ import annotations

import json

import pytest

from patchconv_deploy.report.warnings import warnings_of
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.planning.test_peak_holders import vae_decoder
from tests.support.small_models import copy_of, model, node, noise

pytestmark = pytest.mark.usefixtures("less_weighed")

SIDE = 64


def _cut(**options: object) -> Outcome:
    made = copy_of(vae_decoder((SIDE, SIDE)))
    return rewrite_model(Loaded(made, None), Options(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def once() -> Outcome:
    """A rewrite whose plan is applied again."""
    return _cut(splits=8, max_recompute=4.0)


def test_a_plan_with_statistics_gives_the_same_model_again(once: Outcome) -> None:
    """Both halves of a normalisation go by its name; each region finds its own again."""
    labels = [set(entry.nodes) for entry in once.rewritten]
    assert any(a & b for n, a in enumerate(labels) for b in labels[n + 1 :])
    again = _cut(plan=read_plan(json.dumps(once.plan)))
    assert again.model.SerializeToString(deterministic=True) == once.model.SerializeToString(
        deterministic=True
    )


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
