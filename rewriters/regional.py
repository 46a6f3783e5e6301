"""Whole regions for a memory budget: search, emit, predict, and try again where it does not fit.

The search counts live bytes; an engine holds more (its order, its arena). So a plan is judged by
the prediction for the engine in view, on the nodes that would be written; if it is above the
budget, the search goes on with a smaller one. What is taken and what was not is kept as figures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from rewriters.analysis import Analysis
from rewriters.choice import Candidates, Chosen, candidates_of, row_local
from rewriters.draft import Draft, draft, ordered, predict
from rewriters.errors import BudgetError, OptionError
from rewriters.fragment import NameScheme
from rewriters.locality import find_locality
from rewriters.memory import Peak
from rewriters.planner import ORDERS, RegionPlan, plan_region
from rewriters.regions import Refusal, make_region
from rewriters.search import Limits, turns_of

__all__ = ["Candidate", "Regional", "apply_plan", "cut_regions", "pareto"]

Progress = Callable[[str, int, int], None]

# Budgets for the search, in terms of the one that is asked for: live bytes are what an engine needs
# at least, and now and then it needs half of them again.
_TRIED = (1.25, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# The prediction is this much too low at worst on the models of the tests.
_MARGIN = 0.05
# Forms that "auto" chooses from, the plainest first.
_UNROLLED = ("fused", "shrinking")
_AUTO = (*_UNROLLED, "loop")
# A loop is worth its copies where it saves more than a quarter.
_LOOP_SAVES = 0.75
_LOOP_TIME = 1.4
# Above so many times the budget, another form does not fit either.
_HOPELESS = 1.5
# Budgets of `_TRIED` that are tried even if an earlier one fits, and tried between the first one
# that fits and the last before it.
_ENOUGH = 7
_HALVED = 3
# A peak that falls by less is not worth a change.
_GAIN = 0.98
# Work is counted in ways that differ by so much: of the region's outputs, or of every node.
_ROUNDED = 1.005
_POINTS = 12
# Plans of the search that are emitted and predicted, of those for different orders of the nodes.
_WEIGHED = 3
# Regions that are tried to be left out again, and what that may cost where there is no budget.
_MOST_PRUNED = 24
_SAME = 1.005
_ANY = 1e300


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that was weighed.

    Attributes:
        form: The form of its regions.
        regions: Number of regions.
        splits: Most patches of a region.
        peak: Predicted peak on the engine in view, bytes.
        recompute: Work after over before.
        fits: It keeps the budget.
        taken: It is the one that was taken.
        order: Name of the order of the nodes, `rewriters.search.turns_of`.
    """

    form: str
    regions: int
    splits: int
    peak: int
    recompute: float
    fits: bool
    taken: bool = False
    order: str = "file"


@dataclass(frozen=True)
class Regional:
    """Regions that are cut.

    Attributes:
        drafts: The regions.
        forms: Per form that was weighed the same regions in it.
        weighed: Every candidate's figures.
        recompute: Work after over before.
        order: Name of the order of the nodes.
        turns: When each node is wanted to run, by position; None for the order of the file.
        refused: Regions that the search wanted and that could not be proven.
        links: Positions of the row-local nodes.
        reasons: Why other nodes are not, by position.
    """

    drafts: tuple[Draft, ...]
    forms: Mapping[str, tuple[Draft, ...]]
    weighed: tuple[Candidate, ...]
    recompute: float
    order: str
    turns: list[int] | None
    refused: tuple[Refusal, ...]
    links: Collection[int]
    reasons: Mapping[int, str]


def cut_regions(
    analysis: Analysis,
    limits: Limits,
    axis: str | int,
    form: str,
    engine: str,
    kept: frozenset[int],
    labels: Mapping[int, str],
    report: Progress,
) -> Regional:
    """Choose regions and emit them.

    Args:
        analysis: The model.
        limits: What to keep; without a budget the peak is made as low as the others allow.
        axis: The axis to cut.
        form: "fused", "shrinking", "loop", or "auto".
        engine: A key of `rewriters.activation.ENGINES`.
        kept: Positions of nodes to leave as they are.
        labels: Names of the nodes.
        report: Called with (what, done, total) from time to time.

    Raises:
        BudgetError: No plan keeps the limits.
    """
    report("searching", 0, 1)
    found = candidates_of(analysis, axis, kept, engine)
    plain = analysis.predict(None, engine)
    forms_tried = _AUTO if form == "auto" else (form,)
    limits = replace(
        limits, shrinks=form == "shrinking" or (form == "auto" and limits.budget < inf)
    )
    search = _Search(analysis, found, plain, engine, forms_tried, labels, limits)
    too_large = limits.elements is not None and found.spaces[0].too_large(limits.elements)
    search.prunes = not too_large
    taken = None
    if limits.budget == inf and not too_large:
        taken = search.least(limits, always=False)
    elif too_large or plain.bytes > limits.budget:
        taken = search.within_budget()
    forms: Mapping[str, tuple[Draft, ...]] = {} if taken is None else taken.forms
    return Regional(
        drafts=() if taken is None else taken.drafts,
        forms=forms,
        weighed=tuple(search.weighed),
        recompute=1.0 if taken is None else taken.candidate.recompute,
        order="file" if taken is None else taken.candidate.order,
        turns=None if taken is None else search.turns_of(taken.candidate.order),
        refused=tuple(found.refused),
        links=found.links.keys(),
        reasons=found.reasons,
    )


@dataclass(frozen=True)
class _Taken:
    chosen: Chosen
    drafts: tuple[Draft, ...]
    forms: Mapping[str, tuple[Draft, ...]]
    peak: int
    candidate: Candidate


def recompute_of(analysis: Analysis, drafts: Sequence[Draft], unknown: float) -> float:
    """Return the work after over before, at assumed sizes where a height is known at run time.

    Args:
        analysis: The model.
        drafts: Its regions.
        unknown: What to return where not even assumed sizes are known.
    """
    order = ordered(analysis, drafts)
    shares = [entry.recompute(analysis, assume=True) for entry in drafts]
    if order is None or None in shares:
        return unknown
    work = analysis.work
    after = sum(work[item] for item in order if isinstance(item, int))
    for entry, share in zip(drafts, shares, strict=True):
        region = sum(work[at] for at in entry.plan.region.nodes)
        after += region * (share or 1.0)
    return after / sum(work) if sum(work) else 1.0


def _time(candidate: Candidate) -> float:
    """Return the predicted time, in terms of the original's: a loop copies what it stacks."""
    return candidate.recompute * (_LOOP_TIME if candidate.form == "loop" else 1.0)


def _cost(taken: _Taken) -> float:
    return _time(taken.candidate)


def _best_form(fitting: Sequence[Candidate], budget: float) -> Candidate:
    """Return the form to take: the plainest, unless another saves time or, if all fit, memory."""
    taken = fitting[0]
    for candidate in fitting[1:]:
        saves = _LOOP_SAVES if candidate.form == "loop" else _GAIN
        if budget < inf:
            better = _time(candidate) < _GAIN * _time(taken)
        else:
            better = candidate.peak < saves * taken.peak
        if better:
            taken = candidate
    return taken


def _before(taken: _Taken, other: _Taken, budget: float) -> bool:
    """Tell whether a plan is better: less time under a budget, else a lower peak."""
    return _cost(taken) < _cost(other) if budget < inf else taken.peak < other.peak


def _same(candidate: Candidate, other: Candidate) -> bool:
    return replace(candidate, taken=False) == replace(other, taken=False)


def _extra(analysis: Analysis, entry: Draft) -> float:
    region = sum(analysis.work[at] for at in entry.plan.region.nodes)
    return region * ((entry.recompute(analysis) or 1.0) - 1)


@dataclass
class _Search:
    """The state of one search: the plans weighed so far."""

    analysis: Analysis
    found: Candidates
    plain: Peak
    engine: str
    forms: Sequence[str]
    labels: Mapping[int, str]
    limits: Limits
    prunes: bool = True

    def __post_init__(self) -> None:
        self.weighed: list[Candidate] = []
        self.turns: dict[str, list[int] | None] = {}
        self.known: dict[Hashable, _Taken | None] = {}
        self.names = NameScheme.avoiding(self.analysis.index.names)
        self.drafts: dict[tuple[Any, ...], Draft] = {}

    def _draft(self, plan: RegionPlan, form: str) -> Draft:
        """Emit a region; plans for budgets near each other share most of theirs."""
        region = plan.region
        outputs = tuple(edge.name for edge in region.outputs)
        key = region.nodes, outputs, plan.splits, plan.tiling, form
        if key not in self.drafts:
            self.drafts[key] = draft(plan, form, self.analysis, self.names, region.label)
        return self.drafts[key]

    def least(
        self, limits: Limits, *, always: bool, budget: float = inf, prune: bool = True
    ) -> _Taken | None:
        """Weigh the best few plans the search has; return the one of least peak on the engine.

        Args:
            limits: What the search has to keep.
            always: Take it even if the peak does not fall.
            budget: Only plans that keep it on the engine; of them the one of least work.
            prune: Leave out what the engine's peak does not need.
        """
        best: _Taken | None = None
        # What shrinking windows save is counted too high where branches join.
        for counted in (limits, replace(limits, shrinks=False)) if limits.shrinks else (limits,):
            for chosen in self.found.choose(counted, self.labels)[:_WEIGHED]:
                taken = self._weigh(chosen, budget)
                if taken is not None and (best is None or _before(taken, best, budget)):
                    best = taken
            if best is not None:
                break
        if best is None or (not always and best.peak > _GAIN * self.plain.bytes):
            return None
        if prune:
            best = self._pruned(best, budget)
        self.weighed = [replace(c, taken=_same(c, best.candidate)) for c in self.weighed]
        return best

    def _weigh(self, chosen: Chosen, budget: float) -> _Taken | None:
        """Emit a plan in every form; return it in the best one, None if none keeps the budget."""
        if not chosen.regions:
            return None
        key = chosen.plan.stages, chosen.order, budget
        if key not in self.known:
            self.known[key] = self._emit(chosen, budget)
        return self.known[key]

    def _emit(self, chosen: Chosen, budget: float) -> _Taken | None:
        forms: dict[str, tuple[Draft, ...]] = {}
        figures: dict[str, Candidate] = {}
        for form in self.forms:
            if form == "loop" and budget < inf and any(each.fits for each in figures.values()):
                continue  # it takes more time
            if any(each.peak > _HOPELESS * budget for each in figures.values()):
                break
            drafts = tuple(self._draft(plan, form) for plan in chosen.regions)
            if form == "shrinking" and figures and not any(d.plan.shrinking for d in drafts):
                continue
            found = predict(self.analysis, drafts, self.engine)
            if found is None:
                continue
            order = "file"
            # What the fused form is best run in will do for the loop.
            tried = ORDERS if not figures else [each.order for each in figures.values()]
            for name in tried:
                if found.bytes <= budget < inf:
                    break
                turns = self.turns_of(name)
                other = predict(self.analysis, drafts, self.engine, turns) if turns else None
                if other is not None and other.bytes < _GAIN * found.bytes:
                    found, order = other, name
            work = recompute_of(self.analysis, drafts, chosen.plan.recompute)
            forms[form] = drafts
            figures[form] = Candidate(
                form,
                len(chosen.regions),
                max(plan.splits for plan in chosen.regions),
                found.bytes,
                work,
                found.bytes <= budget and work <= _ROUNDED * self.limits.recompute,
                order=order,
            )
            self.weighed.append(figures[form])
        fitting = [candidate for candidate in figures.values() if candidate.fits]
        if not fitting:
            return None
        taken = _best_form(fitting, budget)
        return _Taken(chosen, forms[taken.form], forms, taken.peak, taken)

    def _pruned(self, taken: _Taken, budget: float) -> _Taken:
        """Return a plan without the regions that the engine's peak does not need."""
        allowed = budget if budget < inf else _SAME * taken.peak
        turns, drafts, peak = self.turns_of(taken.candidate.order), taken.drafts, taken.peak
        if len(drafts) > _MOST_PRUNED or not self.prunes:
            return taken
        for entry in sorted(drafts, key=lambda each: -_extra(self.analysis, each)):
            rest = tuple(each for each in drafts if each is not entry)
            found = predict(self.analysis, rest, self.engine, turns) if rest else None
            if found is not None and found.bytes <= allowed:
                drafts, peak = rest, found.bytes
        if len(drafts) == len(taken.drafts):
            return taken
        places = {each.place for each in drafts}
        forms = {
            form: tuple(each for each in whole if each.place in places)
            for form, whole in taken.forms.items()
        }
        candidate = replace(
            taken.candidate,
            regions=len(drafts),
            splits=max(each.plan.splits for each in drafts),
            peak=peak,
            recompute=recompute_of(self.analysis, drafts, taken.candidate.recompute),
        )
        self.weighed.append(candidate)
        return replace(taken, drafts=drafts, forms=forms, peak=peak, candidate=candidate)

    def turns_of(self, order: str) -> list[int] | None:
        """Return when each node runs in an order, None for that of the file."""
        if order not in self.turns:
            self.turns[order] = turns_of(self.analysis, order, self.engine, self.found.links.keys())
        return self.turns[order]

    def within_budget(self) -> _Taken:
        """Return the plan of least work that keeps the budget on the engine.

        Raises:
            BudgetError: There is none.
        """
        if self.limits.budget == inf:
            # Any memory, but no tensor above the limit.
            taken = self.least(replace(self.limits, budget=_ANY), always=True, budget=_ANY)
            if taken is None:
                raise BudgetError(self._too_large())
            return taken
        budget = self.limits.budget * (1 - _MARGIN)
        fitting: list[_Taken] = []
        failed, fits = inf, 0.0

        def fitting_at(share: float) -> bool:
            limits = replace(self.limits, budget=self.limits.budget * share)
            taken = self.least(limits, always=True, budget=budget, prune=False)
            if taken is None:
                return False
            fitting.append(taken)
            return True

        for number, share in enumerate(_TRIED):
            if fitting_at(share):
                fits = fits or share
            elif not fitting:
                failed = share
            # A smaller budget for the search may do with less work: the engine counts otherwise.
            if fitting and number >= _ENOUGH:
                break
        for _ in range(_HALVED if fitting and failed < inf else 0):
            middle = (failed + fits) / 2
            if fitting_at(middle):
                fits = middle
            else:
                failed = middle
        if fitting:
            best = self._pruned(min(fitting, key=_cost), budget)
            self.weighed = [replace(c, taken=_same(c, best.candidate)) for c in self.weighed]
            return best
        taken = self.least(replace(self.limits, budget=inf), always=True)
        self.weighed = [replace(c, fits=c.fits and c.peak <= budget) for c in self.weighed]
        if taken is not None and taken.peak <= budget:
            return taken
        raise BudgetError(self._infeasible(taken))

    def _infeasible(self, least: _Taken | None) -> str:
        smallest, there = self.plain.bytes, self.plain
        if least is not None and least.peak < smallest:
            smallest = least.peak
            turns = self.turns_of(least.candidate.order)
            there = predict(self.analysis, least.drafts, self.engine, turns) or self.plain
        bound = self.found.spaces[0].bound
        held = ", ".join(f"{name} ({_mib(size)} MiB)" for name, size in there.alive[:3])
        return (
            f"a budget of {_mib(self.limits.budget)} MiB, less {_MARGIN:.0%} for the prediction's "
            f"error, cannot be met: the smallest peak found is "
            f"{_mib(smallest)} MiB (predicted, at {there.at!r}, held by {held}); no plan goes "
            f"below {_mib(bound)} MiB. Raise --memory-budget"
            + ("" if self.limits.recompute == inf else " or --max-recompute")
        )

    def _too_large(self) -> str:
        """Return why no tensor can be brought under the limit."""
        names = ", ".join(self.found.spaces[0].helpless(self.limits.elements or 0)[:3])
        return f"tensors of more than {self.limits.elements} elements stay, whatever is cut" + (
            f": {names}" if names else ""
        )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f}"


def pareto(
    analysis: Analysis,
    limits: Limits,
    axis: str | int,
    engine: str,
    kept: frozenset[int],
    labels: Mapping[int, str],
) -> list[Candidate]:
    """Return plans of ever lower peak and ever more work, from the model as it is.

    Args:
        analysis: The model.
        limits: What every plan has to keep; its budget is not looked at.
        axis: The axis to cut.
        engine: A key of `rewriters.activation.ENGINES`.
        kept: Positions of nodes to leave as they are.
        labels: Names of the nodes.
    """
    found = candidates_of(analysis, axis, kept, engine)
    plain = analysis.predict(None, engine)
    limits = replace(limits, shrinks=True)
    search = _Search(analysis, found, plain, engine, _UNROLLED, labels, limits)
    points = [Candidate("original", 0, 1, plain.bytes, 1.0, True)]
    least = search.least(replace(limits, budget=inf), always=True)
    if least is None:
        return points
    low, high = max(1, least.chosen.plan.peak), max(found.plain_peak, 1)
    for step in range(1, _POINTS + 1):
        budget = high * (low / high) ** (step / _POINTS)
        search.least(replace(limits, budget=budget), always=True)
    for candidate in sorted(search.weighed, key=lambda c: (c.recompute, c.peak)):
        if candidate.fits and candidate.peak < points[-1].peak:
            points.append(replace(candidate, taken=False))
    return points


def apply_plan(
    analysis: Analysis, data: Mapping[str, Any], labels: Mapping[int, str], engine: str
) -> tuple[tuple[Draft, ...], list[int] | None]:
    """Return the regions of a plan as it is written in a file, and when each node is to run.

    Args:
        analysis: The model.
        data: The plan, `planner.plan_data`.
        labels: Names of the nodes.
        engine: A key of `rewriters.activation.ENGINES`.

    Raises:
        OptionError: The plan does not fit the model, or a region of it cannot be proven.
    """
    positions = {label: at for at, label in labels.items()}
    names = NameScheme.avoiding(analysis.index.names)
    facts = analysis.facts
    links = find_locality(facts, data["axis"]).links
    turns = turns_of(analysis, data["order"], engine, row_local(analysis, links))
    drafts = []
    for entry in data["regions"]:
        unknown = [label for label in entry["nodes"] if label not in positions]
        if unknown:
            raise OptionError(f"--plan: the model has no node {unknown[0]!r}")
        nodes = sorted({positions[label] for label in entry["nodes"]})
        made = {name for at in nodes for name in facts.graph.node[at].output}
        strange = [name for name in entry["outputs"] if name not in made]
        if strange:
            raise OptionError(f"--plan: no node of its region makes {strange[0]!r}")
        outside = [label for label in entry["nodes"] if positions[label] not in links]
        if outside:
            raise OptionError(f"--plan: node {outside[0]!r} cannot be in a region")
        label = labels[max(nodes)]
        region = make_region(facts, links, nodes, entry["outputs"], label)
        plan = (
            region
            if isinstance(region, Refusal)
            else plan_region(region, facts.shapes, entry["splits"], facts.opset)
        )
        if not isinstance(plan, RegionPlan):
            raise OptionError(f"--plan: the region of {label!r} cannot be cut: {plan.reason}")
        base = labels[nodes[0]] if len(nodes) == 1 else label
        drafts.append(draft(plan, entry["form"], analysis, names, base))
    return tuple(drafts), turns
