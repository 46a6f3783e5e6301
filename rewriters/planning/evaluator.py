"""Plans of a model that were weighed: what each needs against how long it takes.

The search counts live bytes; an engine holds more (its order, its arena). So a plan is judged by
the prediction for the engine in view, on the nodes that would be written. Which plans are weighed
depends on the model, the axis, the engine and the forms, and not on a budget or a limit on work.
Those are answered from what was weighed: a larger budget never takes longer, and each point of the
curve is met by a budget. Plans of few patches come first, level by level, and a limit on patches
ends that early: what is weighed under it is the beginning of what is weighed without, so that
leave to take more patches is never worse.

    search   what `planning.search` finds for budgets from the model's own peak down to the least;
             where two neighbours differ, one between them
    refit    of a plan that is beaten by little or not at all: its regions, each in as few patches
             as keep what the plan holds, or somewhat less. What a region would hold in other
             patches follows from what it was predicted to hold in these
    step     of a plan that nothing beats: one region in a few patches more or less

The effort is bounded by the nodes that are searched, proven, emitted and predicted, so that it is
the same on every machine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, isqrt, log
from typing import Any

from rewriters.emission.forms import FORMS, REGIONAL_FORMS, UNROLLED_FORMS
from rewriters.emission.fragment import Fragment
from rewriters.emission.names import NameScheme
from rewriters.memory.lowering.node import copied
from rewriters.memory.peak import Peak
from rewriters.memory.reader import uncollected
from rewriters.memory.targets import ENGINES
from rewriters.planning.candidates import Candidates, choice_of
from rewriters.planning.emitted_region import Draft, draft, ordered
from rewriters.planning.evaluated_plan import (
    LITTLE,
    Candidate,
    Point,
    front,
    recompute_of,
)
from rewriters.planning.model_facts import ModelFacts
from rewriters.planning.orders import run_rank_of
from rewriters.planning.predictor import MemoryPredictor
from rewriters.planning.progress import Progress
from rewriters.planning.shortest_path import least_peak
from rewriters.planning.stages import Limits, RegionChoice, patch_counts
from rewriters.planning.work import COPY
from rewriters.regions.tiled_region import ORDERS, RegionPlan

__all__ = ["Frontier"]


# The first plans are weighed in every form and order, the rest in those that did best.
_FIRST = 4

# Budgets are no nearer to each other than that.
_NEAR = 1.05

# What is spent, in nodes predicted (20 to 30 us each), with what a node costs that is emitted
# first. Of a level's, half is for the search; what the search leaves, and the rest, for plans near
# the best; a tenth for the best ones in other forms.
_EFFORT = 100_000

_EFFORT_PER_NODE = 60

_EMITTED = 3

# What a region costs that is looked for, a place or a region, and proven, a node of a patch.
_LOOKED_FOR = 0.01

_PROVEN = 0.05

# Tensors that a node reads without costing more, and what each further one costs.
_FEW = 3

_READ = 1 / 6

# Most patches of each level, and its share of the effort: most where people ask for so many.
_LEVELS = (
    *((2, 0.03), (3, 0.03), (4, 0.2), (5, 0.02), (6, 0.03), (8, 0.15), (10, 0.03), (12, 0.03)),
    *((14, 0.02), (16, 0.15), (32, 0.1), (64, 0.1), (patch_counts(1 << 30)[-1], 0.3)),
)

_SEARCHED = 0.5

_OTHERS = 0.1

# More work than this is hardly wanted.
_USUAL = 2.0

# What a plan is refitted to, in terms of its own, and how often a refit is corrected.
_REFITTED = (1.0, 0.94, 0.8)

_CORRECTED = 3

_ROUNDED = 1.001

# A plan is refitted if its extra time is no more than this many times that of a plan that holds no
# more.
_BEATEN = 1.5


class Frontier:
    """The plans of a model that were weighed.

    Args:
        predictor: Predicts the model's memory.
        found: What there is to choose from.
        engine: A key of `memory.targets.ENGINES`.
        elements: Most elements of a tensor, None for any number.
        forms: Forms of regions.
    """

    def __init__(
        self,
        predictor: MemoryPredictor,
        found: Candidates,
        engine: str,
        elements: int | None = None,
        forms: Sequence[str] = REGIONAL_FORMS,
    ) -> None:
        self.predictor = predictor
        self.facts = facts = predictor.facts
        self.found = found
        self.engine = engine
        self.forms = forms
        # Those of the level that is weighed.
        self.limits = Limits(splits=1, elements=elements)
        self.too_large = elements is not None and found.stage_graphs[0].too_large(elements)
        self._points: dict[tuple[tuple[RegionChoice, ...], str], Point | None] = {}
        self._names = NameScheme.avoiding(facts.index.names)
        self._drafts: dict[tuple[RegionChoice, str], Draft] = {}
        self._run_ranks: dict[str, list[int] | None] = {}
        self._progress: Progress = lambda what, done, total: None
        # Plans of a level that were weighed in every form and order.
        self._first: list[list[Point]] = []
        self._whole = float(_EFFORT + _EFFORT_PER_NODE * len(facts.certain.graph.node))
        # Of the effort, what the levels so far were given and have left; and what all will have.
        self._given = self._left = self._total = 0.0
        self._levels = deque(_LEVELS)
        self._more_reads = [_READ * max(0, len(node.reads) - _FEW) for node in facts.executed]

    @cached_property
    def _alive(self) -> Mapping[int, int]:
        """Bytes alive while a node runs in the model as it is, by position."""
        return self.predictor.run(self.engine)[1]

    @property
    def compiled(self) -> bool:
        """Whether the engine in view is a compiler."""
        return ENGINES[self.engine].lowering.compiler

    # --- what was weighed -------------------------------------------------------------------

    def weighed(self) -> list[Point]:
        """Return all plans, those of least time first."""
        return sorted(
            self._all(),
            key=lambda p: (p.candidate.time, p.peak.need, REGIONAL_FORMS.index(p.candidate.form)),
        )

    def _all(self) -> list[Point]:
        return [point for point in self._points.values() if point is not None]

    def in_forms(self, point: Point) -> dict[str, tuple[Draft, ...]]:
        """Return a plan's regions as nodes, in every form that they can have.

        In the forms that they were weighed in alone, if more would cost too much.
        """
        dear = _EMITTED * self._size(point.regions) > _OTHERS * self._whole
        known = {form for choices, form in self._points if choices == _choices(point.regions)}
        forms = [form for form in self.forms if form in known or not dear]
        found = {form: self.drafts(point.regions, form) for form in forms}
        same = [
            form
            for form, drafts in found.items()
            if FORMS[form].falls_back in found and not _shrinks(drafts)
        ]
        return {form: drafts for form, drafts in found.items() if form not in same}

    # --- weighing ---------------------------------------------------------------------------

    def explore(self, splits: int = _LEVELS[-1][0], progress: Progress | None = None) -> None:
        """Weigh plans, level by level, until the effort is spent or there are no more.

        Args:
            splits: Patches up to which levels are weighed; the last one may go beyond.
            progress: Called with (what, done, total) from time to time.
        """
        self._progress = progress or self._progress
        wanted, below = [], self.limits.splits
        while self._levels and below < splits:
            wanted.append(self._levels.popleft())
            below = wanted[-1][0]
        self._total = self._given + self._whole * sum(share for _, share in wanted)
        for most, share in wanted:
            self.limits = replace(self.limits, splits=most)
            # What a level leaves is not for the next: each has what it is worth.
            self._given += share * self._whole - max(0.0, self._left)
            self._left = min(0.0, self._left) + share * self._whole
            self._explore_level(share * self._whole)

    def explore_next(self, progress: Progress | None = None) -> bool:
        """Weigh the plans of one level more; tell whether there was one."""
        there = bool(self._levels)
        if there:
            self.explore(self._levels[0][0], progress)
        return there

    def _explore_level(self, given: float) -> None:
        self._first = []
        self._search(given * (1 - _SEARCHED))
        self._polish(given * _OTHERS)
        for form in self.forms[::-1]:
            for point in front(self.weighed())[::-1]:
                if self._left > 0:
                    self._weigh(point.regions, form, (point.candidate.order,))
        self._polish(0)

    def _spend(self, effort: float) -> None:
        self._left -= effort
        spent = int(max(0.0, min(self._given - self._left, self._total)))
        self._progress("weighing plans", spent, int(self._total))

    def run_rank_of(self, order: str) -> list[int] | None:
        """Return when each node runs in an order, None for that of the file."""
        if order not in self._run_ranks:
            links = self.found.links.keys()
            self._run_ranks[order] = run_rank_of(self.predictor, order, self.engine, links)
        return self._run_ranks[order]

    def _search(self, reserve: float) -> None:
        """Weigh what the search finds, from coarse to fine, until no more effort is left than that.

        Args:
            reserve: Effort to leave.
        """
        for regions in self._plans(reserve):
            if self._left <= reserve:
                break
            if len(self._first) < _FIRST:
                found: list[Point] = []
                for form in self._searched:
                    point = self._weigh(regions, form, ORDERS) if self._left > 0 else None
                    found += () if point is None else (point,)
                self._first.append(found)
            else:
                form, order = self._usual()
                self._weigh(regions, form, (order,))

    @property
    def _searched(self) -> Sequence[str]:
        """Forms in which plans of the search are weighed; a loop is weighed of the best."""
        return [form for form in self.forms if form in UNROLLED_FORMS] or self.forms

    def _plans(self, reserve: float) -> Iterator[tuple[RegionPlan, ...]]:
        """Yield plans for budgets from the model's own peak down to the least, coarse to fine.

        Args:
            reserve: Effort to leave.
        """
        usual = replace(self.limits, recompute=_USUAL)
        stage_graphs = self.found.stage_graphs
        least = [plan.peak for graph in stage_graphs if (plan := least_peak(graph, usual))]
        low, high = max(1, min(least, default=0)), max(1, self.found.plain_peak)
        seen: set[tuple[RegionChoice, ...]] = {()}

        def new(plans: Mapping[tuple[RegionChoice, ...], tuple[RegionPlan, ...]]) -> Iterator[Any]:
            for key, regions in plans.items():
                if key not in seen:
                    seen.add(key)
                    yield regions

        lowest = self._at(low)
        yield from new(lowest)
        if self.too_large:
            # What a limit on elements asks for may hold more than the model as it is.
            yield from new(self._at(inf))
        higher = self._at(high)
        yield from new(higher)
        levels = deque([(low, lowest, high, higher)])
        while levels and self._left > reserve:
            low, lower, high, higher = levels.popleft()
            # What no plan keeps at either end none keeps between; what two ends have in common is
            # the best in between, too.
            if high > _NEAR * low and lower.keys() != higher.keys():
                middle = isqrt(low * high)
                found = self._at(middle)
                yield from new(found)
                levels += (middle, found, high, higher), (low, lower, middle, found)

    def _at(self, budget: float) -> dict[tuple[RegionChoice, ...], tuple[RegionPlan, ...]]:
        """Return what the search finds for a budget: no regions where the model keeps it as it is.

        Empty where no plan keeps the budget, which is another thing.
        """
        plans = {}
        # What shrinking windows save is counted too high where branches join.
        for shrinks in (True, False):
            limits = replace(self.limits, budget=budget, shrinks=shrinks)
            regions = self.found.choose(limits)
            self._spend(_LOOKED_FOR * self.found.looked_at + _PROVEN * self.found.proved)
            self.found.looked_at = self.found.proved = 0
            if regions is not None:
                plans[_choices(regions)] = regions
        return plans

    def _usual(self) -> tuple[str, str]:
        """The form and the order of the nodes that did best by the first plans."""

        def score(form: str) -> float:
            own = [[p for p in found if p.candidate.form == form] or found for found in self._first]
            return sum(log(p.peak.need * p.candidate.time) for found in own for p in found[:1])

        orders = Counter(p.candidate.order for found in self._first for p in found)
        order = max(orders, key=lambda name: orders[name], default="file")
        return min(self._searched, key=score), order

    def _draft(self, plan: RegionPlan, form: str) -> Draft:
        """Emit a region; plans that are near each other share most of theirs."""
        key = choice_of(plan.region, plan.splits), form
        if key not in self._drafts:
            made = draft(plan, form, self.facts, self._names, plan.region.label)
            self._drafts[key] = made
            further = plan.splits * self._further(plan.region.nodes)
            self._spend(_EMITTED * (made.fragment.count + further))
        return self._drafts[key]

    def drafts(self, regions: Sequence[RegionPlan], form: str) -> tuple[Draft, ...]:
        """Return regions as nodes."""
        return tuple(self._draft(plan, form) for plan in regions)

    def _weigh(
        self, regions: tuple[RegionPlan, ...], form: str, orders: Sequence[str]
    ) -> Point | None:
        """Predict a plan in a form and the best of some orders; None if it cannot be done.

        Where no window can shrink, the plainer form is taken.
        """
        if self._size(regions) > self._whole:
            return None
        with uncollected():
            drafts = self.drafts(regions, form)
            plainer = FORMS[form].falls_back
            if plainer in self.forms and not _shrinks(drafts):
                return self._weigh(regions, plainer, orders)
            key = _choices(regions), form
            if key not in self._points:
                self._points[key] = self._judge(regions, drafts, form, orders)
            return self._points[key]

    def _further(self, nodes: Iterable[int]) -> float:
        """Return what nodes cost that read many tensors, beyond one each."""
        return sum(self._more_reads[at] for at in nodes)

    def _size(self, regions: Sequence[RegionPlan]) -> float:
        """Return what one prediction of a plan costs, about."""
        return sum(
            plan.splits * (len(plan.region.nodes) + self._further(plan.region.nodes))
            for plan in regions
        )

    def _judge(
        self,
        regions: tuple[RegionPlan, ...],
        drafts: tuple[Draft, ...],
        form: str,
        orders: Sequence[str],
    ) -> Point | None:
        best: tuple[Peak, str, list[int | Fragment]] | None = None
        tried: list[list[int | Fragment]] = []
        inside = {at for plan in regions for at in plan.region.nodes}
        further = self._further(at for at in range(len(self._more_reads)) if at not in inside)
        further += sum(plan.splits * self._further(plan.region.nodes) for plan in regions)
        for name in orders:
            order = ordered(self.facts, drafts, self.run_rank_of(name), sized=True)
            if order is None or order in tried:
                continue
            tried.append(order)
            if best is not None and self._left <= 0:
                break
            found = self.predictor.predict(order, self.engine)
            self._spend(len(found.live_bytes) + further)
            if best is None or found.need < best[0].need:
                best = found, name, order
        if best is None:
            return None
        peak, name, order = best
        work = recompute_of(self.facts, drafts, order)
        if work is None:
            return None
        copied = copied_of(self.facts, drafts)
        candidate = Candidate(
            form,
            len(regions),
            max(plan.splits for plan in regions),
            peak.need,
            work,
            (work + copied) * FORMS[form].time[self.compiled],
            fits=True,
            order=name,
            unknown=peak.unknown,
            touched=peak.touched,
            loading=peak.weights.loading,
            process=peak.process,
        )
        needs, around = self._needs(drafts, peak)
        level = max(around, *(most for most, _ in needs))
        return Point(regions, drafts, candidate, replace(peak, live_bytes=()), level, needs, around)

    def _needs(
        self, drafts: Sequence[Draft], peak: Peak
    ) -> tuple[tuple[tuple[int, int], ...], int]:
        """Return `Point.needs` and `Point.around`."""
        own = {
            label: at
            for at, entry in enumerate(drafts)
            for label in self.predictor.labels(entry.sized or entry.fragment)
        }
        most, least, around = [0] * len(drafts), [inf] * len(drafts), 0
        for label, size in peak.live_bytes:
            at = own.get(label, own.get(copied(label)))
            if at is None:
                around = max(around, size)
            else:
                most[at] = max(most[at], size)
                least[at] = min(least[at], size)
        pairs = zip(most, least, strict=True)
        return tuple((high, int(min(high, low))) for high, low in pairs), around

    # --- refitting --------------------------------------------------------------------------

    def _polish(self, reserve: float) -> None:
        """Weigh plans near the best ones, until all are done or no more effort is left than that.

        Args:
            reserve: Effort to leave.
        """
        refitted: set[Point] = set()
        stepped: set[Point] = set()
        # Fewer patches would bring back a tensor above the limit.
        while self._left > reserve and not self.too_large:
            near = self._near(refitted)
            if near:
                refitted.add(near[0])
                for share in _REFITTED:
                    self._refit(near[0], share * near[0].level)
                continue
            pending = [point for point in front(self.weighed()) if point not in stepped]
            if not pending:
                break
            stepped.add(pending[0])
            self._step(pending[0])

    def _near(self, done: Collection[Point]) -> list[Point]:
        """Return plans that are hardly beaten by one that needs no more, the best first."""
        found: list[tuple[float, int, Point]] = []
        best = inf
        for point in sorted(self._all(), key=lambda p: (p.peak.need, p.candidate.time)):
            best = min(best, point.candidate.time)
            beaten = (point.candidate.time - 1 + LITTLE) / (best - 1 + LITTLE)
            if beaten <= _BEATEN and point not in done:
                found.append((beaten, -point.peak.need, point))
        return [point for *_, point in sorted(found, key=lambda entry: entry[:2])]

    def _refit(self, point: Point, level: float) -> None:
        """Weigh a plan's regions in as few patches as are expected to keep a level of bytes."""
        fewest = [self._fewest(point, at, level) for at in range(len(point.regions))]
        splits = [count for count in fewest if count is not None]
        if point.around > level * _ROUNDED or len(splits) < len(fewest):
            return
        for _ in range(_CORRECTED):
            if self._left <= 0:
                return
            made = {
                at: plan
                for at, (old, count) in enumerate(zip(point.regions, splits, strict=True))
                if (plan := self._in_patches(old, count)) is not None
            }
            if not made:
                return
            found = self._weigh(
                tuple(made.values()), point.candidate.form, (point.candidate.order,)
            )
            if found is None:
                return
            above = [
                at
                for at, (most, _) in zip(made, found.needs, strict=True)
                if most > level * _ROUNDED
            ]
            # What is not cut any more may be what needs too much.
            if not above and found.around > level * _ROUNDED:
                above = [at for at in range(len(splits)) if at not in made]
            if not above:
                return
            for at in above:
                splits[at] = self._more(splits[at], point.regions[at].splits)

    def _step(self, point: Point) -> None:
        """Weigh a plan with each region in a few patches less, and in a few more."""
        tried = (1, *patch_counts(self.limits.splits))
        for at, plan in enumerate(point.regions):
            below = [count for count in tried if count < plan.splits][-1:]
            above = [count for count in tried if count > plan.splits][:1]
            for count in (*below, *above):
                changed = self._in_patches(plan, count)
                if count > 1 and changed is None:
                    continue
                middle = () if changed is None else (changed,)
                regions = (*point.regions[:at], *middle, *point.regions[at + 1 :])
                if regions and self._left > 0:
                    self._weigh(regions, point.candidate.form, (point.candidate.order,))

    def _in_patches(self, plan: RegionPlan, splits: int) -> RegionPlan | None:
        """Return a region in so many patches, None for one, or where it cannot be cut so."""
        if splits in (1, plan.splits):
            return plan if splits == plan.splits else None
        return self.found.in_patches(plan, splits)

    def _more(self, splits: int, known: int) -> int:
        """Return the next number of patches; at most that of the plan, if that is more."""
        higher = (count for count in (*patch_counts(self.limits.splits), known) if count > splits)
        return min(higher, default=splits)

    def _fewest(self, point: Point, at: int, level: float) -> int | None:
        """Return the fewest patches of a region that keep a level, 1 for leaving it as it is.

        In more patches the rows that each has of its own are fewer; its halo stays, and so do the
        bytes held before the region and its outputs, whose cores pile up.

        Returns:
            None if no number of patches is expected to.
        """
        plan, entry = point.regions[at], point.drafts[at]
        most, least = point.needs[at]
        share = _share(entry)
        if share is None:
            return plan.splits if most <= level * _ROUNDED else None
        outputs = sum(self.facts.bytes[edge.name] or 0 for edge in plan.region.outputs)
        fixed = min(most, least + outputs)
        halo = max(0.0, share - 1 / plan.splits)
        for splits in (1, *patch_counts(self.limits.splits)):
            if splits == 1:
                expected: float = self.plain(plan)
            else:
                expected = fixed + (most - fixed) * min(1.0, 1 / splits + halo) / share
            if expected <= level * _ROUNDED:
                return splits
        return plan.splits if most <= level * _ROUNDED else None

    def plain(self, plan: RegionPlan) -> int:
        """Return the most bytes alive while a region's nodes run uncut."""
        return max(self._alive.get(at, 0) for at in plan.region.nodes)


def _shrinks(drafts: Iterable[Draft]) -> bool:
    return any(entry.plan.shrinking is not None for entry in drafts)


def _choices(regions: Sequence[RegionPlan]) -> tuple[RegionChoice, ...]:
    return tuple(choice_of(plan.region, plan.splits) for plan in regions)


def _share(entry: Draft) -> float | None:
    """Return the share of the rows that a window has, None if known at run time alone."""
    plan = entry.assumed or entry.plan
    if plan.tiling is None:
        return None
    number = plan.region.network.outputs[0]
    return 1 - plan.tiling.trim * plan.steps[number] / plan.heights[number]


def copied_of(facts: ModelFacts, drafts: Sequence[Draft]) -> float:
    """Return what copying windows and cores takes, in terms of the work before."""
    moved = sum((entry.sized or entry.fragment).moved for entry in drafts)
    return COPY * moved / (sum(facts.work) or 1.0)
