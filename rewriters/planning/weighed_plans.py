"""The plans of a model that were weighed so far, and what is left to weigh more."""

from __future__ import annotations

from collections.abc import Sequence

from patchconv_deploy.rewriters.emission.forms import FORMS, REGIONAL_FORMS, UNROLLED_FORMS
from patchconv_deploy.rewriters.memory.reader import uncollected
from patchconv_deploy.rewriters.planning.candidates import Candidates
from patchconv_deploy.rewriters.planning.effort import EMITTED, Effort
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion
from patchconv_deploy.rewriters.planning.evaluated_plan import EvaluatedPlan, choices_of
from patchconv_deploy.rewriters.planning.evaluator import PlanEvaluator
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.stage_graph import StageGraph
from patchconv_deploy.rewriters.planning.stages import (
    ANY_TENSOR,
    LargestTensor,
    Limits,
    RegionChoice,
)
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["OTHER_FORMS", "WeighedPlans"]


# Share of the effort for the best plans in other forms.
OTHER_FORMS = 0.1


class WeighedPlans:
    """A set of plans that grows, and answers every budget.

    Args:
        predictor: Predicts the model's memory.
        candidates: What there is to choose from.
        engine: A key of `memory.targets.ENGINES`.
        tensor: How large a tensor may be.
        forms: Forms of regions.

    Attributes:
        evaluator: Works out what a plan comes to.
        effort: What that may cost.
        limits: What plans of the present level keep.
        too_large: The model as it is has tensors that are too large.
        searched_forms: Forms in which plans of the search are weighed; a loop is weighed of the
            best.
        handed: Per number of patches the plans that hand strips over, by the stages and the form.
    """

    def __init__(
        self,
        predictor: MemoryPredictor,
        candidates: Candidates,
        engine: str,
        tensor: LargestTensor = ANY_TENSOR,
        forms: Sequence[str] = REGIONAL_FORMS,
    ) -> None:
        self.candidates = candidates
        self.forms = forms
        self.searched_forms = [form for form in forms if form in UNROLLED_FORMS] or forms
        self.limits = Limits(splits=1, tensor=tensor)
        self.too_large = candidates.stage_graphs[0].too_large(tensor)
        self.effort = Effort(len(predictor.facts.uncut))
        self.evaluator = PlanEvaluator(predictor, engine, candidates.links, self.effort.spend)
        self.handed: dict[int, dict[tuple[StageGraph, str], EvaluatedPlan]] = {}
        self._plans: dict[tuple[tuple[RegionChoice, ...], str], EvaluatedPlan | None] = {}

    def weigh(
        self, regions: tuple[RegionPlan, ...], form: str, orders: Sequence[str]
    ) -> EvaluatedPlan | None:
        """Take up a plan in a form and the best of some orders; None if it cannot be done.

        Where no window can shrink, or no height is free, the plainer form is taken. A plan that was
        weighed in that form stays in the order that it has.
        """
        if self.evaluator.cost_of(regions) > self.effort.whole:
            return None
        with uncollected():
            emitted = self.evaluator.emitted(regions, form)
            plainer = FORMS[form].falls_back
            if plainer in self.forms and not _differs(emitted):
                return self.weigh(regions, plainer, orders)
            key = choices_of(regions), form
            if key not in self._plans:
                self._plans[key] = self._best(regions, form, orders)
            return self._plans[key]

    def _best(
        self, regions: tuple[RegionPlan, ...], form: str, orders: Sequence[str]
    ) -> EvaluatedPlan | None:
        best: EvaluatedPlan | None = None
        for order in orders:
            if best is not None and self.effort.left <= 0:
                break
            plan = self.evaluator.evaluate(regions, form, order)
            if plan is not None and (best is None or plan.peak.need < best.peak.need):
                best = plan
        return best

    @property
    def count(self) -> int:
        """How many plans were weighed, with those that cannot be done."""
        return len(self._plans)

    def all(self) -> list[EvaluatedPlan]:
        """Return all plans, those weighed first first."""
        return [plan for plan in self._plans.values() if plan is not None]

    def by_time(self) -> list[EvaluatedPlan]:
        """Return all plans, those of least time first."""
        return sorted(
            self.all(),
            key=lambda p: (p.figures.time, p.peak.need, REGIONAL_FORMS.index(p.figures.form)),
        )

    def in_forms(self, plan: EvaluatedPlan) -> dict[str, tuple[EmittedRegion, ...]]:
        """Return a plan's regions as nodes, in every form that they can have.

        In the forms that they were weighed in alone, if more would cost too much.
        """
        dear = EMITTED * self.evaluator.cost_of(plan.regions) > OTHER_FORMS * self.effort.whole
        known = {form for choices, form in self._plans if choices == choices_of(plan.regions)}
        forms = [form for form in self.forms if form in known or not dear]
        found = {form: self.evaluator.emitted(plan.regions, form) for form in forms}
        same = [
            form
            for form, emitted in found.items()
            if FORMS[form].falls_back in found and not _differs(emitted)
        ]
        return {form: emitted for form, emitted in found.items() if form not in same}


def _differs(emitted: Sequence[EmittedRegion]) -> bool:
    """Tell whether a form that falls back did not for all regions."""
    return any(
        entry.plan.shrinking is not None or entry.plan.stride is not None for entry in emitted
    )
