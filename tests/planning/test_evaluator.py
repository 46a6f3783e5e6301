"""Plans evaluated: an answer is the same whatever was asked before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import onnx
import pytest

from patchconv_deploy.rewriters.emission.forms import REGIONAL_FORMS
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.planning.candidates import candidates_of
from patchconv_deploy.rewriters.planning.effort import Effort
from patchconv_deploy.rewriters.planning.evaluated_plan import choices_of
from patchconv_deploy.rewriters.planning.evaluator import PlanEvaluator
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.stages import Limits
from patchconv_deploy.rewriters.regions.tiled_region import ORDERS, RegionPlan
from tests.support.random_graphs import random_graph

ENGINE = "onnxruntime-tuned"

Question = tuple[tuple[RegionPlan, ...], str, str]


def _predictor(made: onnx.ModelProto) -> MemoryPredictor:
    return MemoryPredictor(analyse(made, skeleton(Loaded(made, None))))


def _answers(predictor: MemoryPredictor, questions: Sequence[Question]) -> tuple[list[Any], float]:
    """Return what a fresh evaluator answers, and the effort that it tells of."""
    spent: list[float] = []
    found = candidates_of(predictor, "height", frozenset(), ENGINE)
    evaluator = PlanEvaluator(predictor, ENGINE, found.links, spent.append)
    answers = []
    for regions, form, order in questions:
        plan = evaluator.evaluate(regions, form, order)
        assert plan is not None
        assert plan is evaluator.evaluate(regions, form, order)
        assert choices_of(plan.regions) == choices_of(regions)
        assert (plan.figures.form, plan.figures.order) == (form, order)
        answers.append((plan.figures, plan.level, plan.needs, plan.around))
    return answers, sum(spent)


@pytest.mark.parametrize("seed", [15, 21, 22])
def test_an_answer_does_not_depend_on_what_was_asked_before(seed: int) -> None:
    """Forwards, backwards, and each question put to an evaluator that was asked nothing else."""
    predictor = _predictor(random_graph(random.Random(seed).randint, most=12).model())
    found = candidates_of(predictor, "height", frozenset(), ENGINE)
    plans = [
        regions
        for splits in (2, 4)
        if (regions := found.choose(Limits(budget=0.8 * found.plain_peak, splits=splits)))
    ]
    questions = [
        (regions, form, order) for regions in plans for form in REGIONAL_FORMS for order in ORDERS
    ]
    answers, effort = _answers(predictor, questions)
    backwards, again = _answers(predictor, questions[::-1])
    assert backwards[::-1] == answers
    assert again == effort
    assert [_answers(predictor, [each])[0][0] for each in questions] == answers
    # The order of the nodes matters here, or else nothing would have been tried.
    assert len({figures.peak for figures, *_ in answers[-len(ORDERS) :]}) > 1


def test_what_a_level_leaves_is_not_for_the_next() -> None:
    """What it spends too much is; who is told of progress is told no more than all."""
    effort = Effort(0)
    told: list[tuple[int, int]] = []
    effort.progress = lambda what, done, total: told.append((done, total))
    effort.expect(0.5)
    given = effort.give(0.25)
    effort.spend(given / 2)
    effort.give(0.25)
    assert effort.left == given
    effort.spend(3 * given)
    effort.give(0.25)
    assert effort.left == -given
    assert all(0 <= done <= total == int(effort.whole / 2) for done, total in told)
