"""Search: which nodes to run patch by patch, in how many patches, for a memory budget.

The nodes stand in the order they run. A *stage* is a run of neighbouring nodes: one node as it is,
or a region in P patches. What lives across a stage's ends does not depend on how the nodes before
it were staged, so each stage's peak can be told alone:

    as it is     live before + what the node makes
    P patches    live before + all outputs + max(window x most live inside, largest output)

(While the patches run, their cores pile up; then they are joined, each output beside its cores.)
So the least extra work under a budget is a shortest path over the places between nodes, found by
dynamic programming; the least peak is the smallest budget with a path. All windows of a region are
of one height: P patches of window share w do P*w times the work, where w follows from the rows that
stay right (`tiling.patches`), walked once from every place a region may begin. Where windows
shrink (`tiling.shrinking`), each node does the less of it the more rows were dropped before it;
that is estimated on the way, and exact for a plan that is emitted.

Tensors that live long (skip connections, what a pool over the whole image reads before the rest
does) hold a peak that no stage can lower. They may be made twice instead: the nodes that make one,
repeated right before a later user, become part of the region there, and all users from there on
read what is made again. Which ones is found greedily: of those that hold the least peak, the
largest first.

Related work: MCUNetV2 (arXiv:2110.15352) patches the head of a network; TVM's Ethos-U cascader
(apache/tvm-rfcs 0037) searches stripes for on-chip memory with Pareto sets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from math import gcd, inf
from typing import NamedTuple

import numpy as np

from rewriters.memory.targets import ENGINES
from rewriters.operators.record import RowLocal
from rewriters.planning.analysis import Analysis
from rewriters.planning.rematerialisation import Rematerialised, ways_to_rematerialise
from rewriters.planning.schedule import Schedule, ScheduledNode, Tensor, late_order, make_schedule
from rewriters.planning.stages import (
    TALL,
    USUAL,
    CandidateRegion,
    Figure,
    Limits,
    Plan,
    RegionChoice,
    patch_counts,
)
from rewriters.tiling.network import valid_rows
from rewriters.tiling.patches import Rows
from rewriters.tiling.row_maps import Pointwise, RowMap

__all__ = ["StageGraph", "run_rank_of", "stage_graphs"]


# Places where regions of one run of nodes may begin or end; the graph is tried at all of them if
# they are no more than that.
_MOST_CUTS = 56

# Tensors read and made that are walked past for the regions of one order of the nodes, and of all
# together: where each node reads many tensors, regions begin at fewer places, and less is tried.
_WALKED = 1_000_000

_WALKED_IN_ALL = 2_000_000

_FEWEST_CUTS = 8

# The same for what shrinking windows lose where branches join, of each place a region begins at.
_DEEP = 30_000

# Tensors that are made twice at most, those tried each time, and what it has to bring.
_MOST_REPEATS = 6

_WORTH = 0.97

# Whole numbers from here on are not counted in 64 bits.
_MOST_WHOLE = 1 << 61

# What there is where there is no further region: begin, end, patches and cost.
_NO_REGION = -1, -1, 0, 0.0


@lru_cache(maxsize=1 << 16)
def _valid_rows(row_map: RowMap, right: Rows, rows: int, count: int) -> Rows:
    """Return `tiling.network.valid_rows` inside the image: asked for again from each place."""
    return valid_rows(row_map, right, rows, count, first=False, last=False)


class _Table:
    """The regions of a stage graph, by rising end.

    A plan looks at every region, and many plans are looked for: so all are judged at once.

    Args:
        segments: The regions.
    """

    def __init__(self, segments: Sequence[CandidateRegion]) -> None:
        found = sorted(segments, key=lambda segment: segment.end)
        places = range(len(found))
        # Products of these are taken: of more than 64 bits in numbers of any size.
        most = max((max(s.inside, s.elements, s.free) * s.rows for s in found), default=0)
        whole = np.int64 if most < _MOST_WHOLE else np.object_
        kinds = [
            np.float64 if name in ("work", "saved") else whole for name in CandidateRegion._fields
        ]
        self.all = CandidateRegion(
            *(
                np.array([segment[at] for segment in found], dtype=kind)
                for at, kind in enumerate(kinds)
            )
        )
        self._at = {(found[at].begin, found[at].end): at for at in places}
        self._allowed = np.ones(len(found), dtype=bool)
        # Per number of patches the bytes alive at once, and the elements of the largest tensor.
        self._peaks: dict[int, Figure] = {}
        self._elements: dict[int, Figure] = {}

    def __len__(self) -> int:
        return len(self._at)

    def one(self, begin: int, end: int) -> CandidateRegion:
        """Return the region between two places."""
        return self.all.at(self._at[begin, end])

    def forbid(self, begin: int, end: int) -> None:
        """Have no more of the region between two places."""
        self._allowed[self._at[begin, end]] = False

    def _peak(self, splits: int) -> Figure:
        if splits not in self._peaks:
            self._peaks[splits] = self.all.peak(np.minimum(splits, self.all.free))
        return self._peaks[splits]

    def _widest(self, splits: int) -> Figure:
        if splits not in self._elements:
            fewest = np.minimum(splits, self.all.free)
            self._elements[splits] = self.all.of_window(self.all.elements, fewest)
        return self._elements[splits]

    def fewest(self, limits: Limits) -> tuple[list[int], list[int], list[int], list[float]]:
        """Return the regions that keep the limits, each in the fewest patches that do.

        Returns:
            Their begins, their ends, which rise, their patches and their costs.
        """
        tried = patch_counts(limits.splits)
        if not tried or not len(self):
            return [], [], [], []
        budget = limits.budget if limits.budget < _MOST_WHOLE else inf
        # In more patches a region holds less: the first number that does is the number of those
        # that do not.
        missed = sum((self._peak(splits) > budget).astype(np.int64) for splits in tried)
        allowed = self._allowed
        if limits.elements is not None:
            wide = [self._widest(splits) > limits.elements for splits in tried]
            missed = np.maximum(missed, sum(each.astype(np.int64) for each in wide))
            allowed = allowed & (self.all.broadest <= limits.elements)
        rows = np.flatnonzero(allowed & (missed < len(tried)))
        found = self.all.at(rows)
        splits = np.minimum(np.array(tried)[missed[rows]], found.free)
        cost = found.cost(splits, shrinks=limits.shrinks)
        return found.begin.tolist(), found.end.tolist(), splits.tolist(), cost.tolist()


class _Node(NamedTuple):
    """A row-local node as regions grow past it: what does not depend on where they begin.

    Attributes:
        carried: Tensors it reads along the tiled axis.
        makes: Tensors it makes.
        touches: Both, each once.
        whole: Tensors that it reads whole.
        ends: Those of what it touches that nobody reads any more.
        takes_over: The tensor whose bytes its output has from here on, -1 for none.
        component: Number of the set of row-local nodes it is one of.
        row_map: Its rows, None if they stay as they are.
        tall: Rows of what it reads and makes, far taller than the whole.
        room: Steps that its output is shorter by where its window shrinks.
        work: Its work.
        size: Bytes of what it makes.
        elements: Elements of the largest tensor that it makes.
        edges: Tensors that it reads and makes, and one more.
    """

    carried: tuple[int, ...]
    makes: tuple[int, ...]
    touches: tuple[int, ...]
    whole: tuple[int, ...]
    ends: tuple[int, ...]
    takes_over: int
    component: int
    row_map: RowMap | None
    tall: tuple[int, int]
    room: float
    work: float
    size: int
    elements: int
    edges: int


def _tall(tensor: Tensor) -> int:
    return tensor.rows + TALL * tensor.step


def _node(place: int, node: ScheduledNode, tensors: Sequence[Tensor]) -> _Node | None:
    """Return a node as regions grow past it, None where it is not row-local."""
    link = node.link
    if link is None:
        return None
    made = [tensors[number] for number in node.makes]
    touches = tuple(dict.fromkeys((*node.carried, *node.makes)))
    return _Node(
        node.carried,
        node.makes,
        touches,
        node.whole,
        tuple(number for number in touches if tensors[number].last_use == place),
        node.takes_over,
        made[0].component,
        None if isinstance(link.row_map, Pointwise) else link.row_map,
        (_tall(tensors[node.carried[0]]), _tall(made[0])),
        sum(link.removable_padding) / made[0].step,
        node.work,
        sum(tensor.size for tensor in made),
        max(tensor.elements for tensor in made),
        1 + len(node.reads) + len(node.makes),
    )


class StageGraph:
    """All stages of one order of the nodes, and plans made of them.

    Args:
        laid: The nodes in order.
        engine_overhead: Bytes an engine has alive while a node runs, by position, beyond those
            counted here: what it copies and lays out anew.
        order: Name of the order of the nodes (`run_rank_of`).
        stages: Find the regions there are.
        progress: Called with `walked` from time to time.
    """

    def __init__(
        self,
        laid: Schedule,
        engine_overhead: Mapping[int, int],
        order: str,
        *,
        stages: bool = True,
        progress: Callable[[int], None] = lambda walked: None,
    ) -> None:
        self.schedule = laid
        self.order = order
        self.engine_overhead = engine_overhead
        self._nodes = [
            _node(place, node, laid.tensors) if stages else None
            for place, node in enumerate(laid.nodes)
        ]
        segments: list[CandidateRegion] = []
        # Tensors read and made by the nodes that were walked past, the nodes included.
        self.walked = self._edges(0, len(laid.nodes))
        runs = list(self.runs()) if stages else []
        edges = sum(self._edges(begin, end) for begin, end in runs)
        most = max(_FEWEST_CUTS, min(_MOST_CUTS, _WALKED // max(1, edges)))
        for begin, end in runs:
            cuts = self._cuts(begin, end, most)
            for at in cuts[:-1]:
                progress(self.walked)
                segments += self._grow(at, end, cuts)
        self._table = _Table(segments)
        # Per limit on elements the bytes alive while each node runs; None of one that must be cut.
        self._held_alone: dict[int | None, list[int | None]] = {}

    # --- stages -----------------------------------------------------------------------------

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield maximal runs of row-local nodes."""
        begin = 0
        nodes = self.schedule.nodes
        for place, node in enumerate(nodes):
            if node.link is None:
                if place > begin:
                    yield begin, place
                begin = place + 1
        if begin < len(nodes):
            yield begin, len(nodes)

    def _edges(self, begin: int, end: int) -> int:
        """Return how many tensors nodes read and make, each node one more."""
        own = self.schedule.nodes[begin:end]
        return sum(1 + len(o.reads) + len(o.makes) for o in own)

    def _cuts(self, begin: int, end: int, most: int) -> list[int]:
        """Return at most so many places, and the ends, of a run where little is alive.

        None is between a Conv and its fold.
        """
        live = self.schedule.live
        inner: list[int] = []
        first = end
        for place in range(end - 1, begin, -1):
            folded = self.schedule.nodes[place].folded
            if folded >= 0:
                first = min(first, self.schedule.tensors[folded].made_at + 1)
            if place < first:
                inner.append(place)
        inner.reverse()
        if len(inner) > most:
            best = sorted(inner, key=lambda place: (live[place], place))[: most // 2]
            size = -(-len(inner) // (most // 2))
            parts = [inner[at : at + size] for at in range(0, len(inner), size)]
            # Of each part the place with least alive too: regions of every length.
            inner = sorted({*best, *(min(part, key=lambda at: live[at]) for part in parts)})
        return [begin, *inner, end]

    def _grow(self, begin: int, end: int, cuts: Collection[int]) -> Iterator[CandidateRegion]:
        """Yield every region that begins at a place and ends at one of the cuts."""
        tensors, wanted = self.schedule.tensors, set(cuts)
        right: dict[int, Rows] = {}
        windows: set[int] = set()
        alive: dict[int, int] = {}
        sets: dict[int, int] = {}
        shorter: dict[int, float] = {}
        parts = inside = inputs = now = common = widest = 0
        work = saved = 0.0
        component, deep = -1, _DEEP

        def root(number: int) -> int:
            while sets[number] != number:
                sets[number] = number = sets[sets[number]]
            return number

        for place in range(begin, end):
            node = self._nodes[place]
            assert node is not None
            self.walked += node.edges
            if node.whole and not right.keys().isdisjoint(node.whole):
                return  # a tensor made inside is used whole
            if component not in (-1, node.component):
                return
            component = node.component
            for number in node.carried:
                if number not in right:
                    size = tensors[number].size
                    right[number] = Rows(0, _tall(tensors[number]))
                    windows.add(number)
                    alive[number] = size
                    inputs += size
                    now += size
            source = node.carried[0]
            read = right[source]
            if len(node.carried) > 1:
                begins, ends = zip(*map(right.__getitem__, node.carried), strict=True)
                read = Rows(max(begins), min(ends))
            made = read
            if node.row_map is not None:
                made = _valid_rows(node.row_map, read, *node.tall)
            anchor = -1
            for number in node.touches:
                if number not in sets:
                    common = gcd(common, tensors[number].step)
                    if anchor < 0:
                        anchor = number
                        parts += 1
                    sets[number] = anchor
                elif anchor < 0:
                    anchor = root(number)
                else:
                    other = root(number)
                    if other != anchor:
                        sets[other] = anchor
                        parts -= 1
            work += node.work
            # Nothing is dropped yet of what is read from outside.
            known = [shorter[number] for number in node.carried if number in shorter]
            held = min(known, default=0.0)
            if len(known) > 1 and max(known) > held and deep > 0:
                lost, passed = self._held(node.carried, held, shorter, deep)
                saved, deep = saved - lost, deep - passed
            least = held + node.room
            for number in node.carried:
                shorter[number] = held
            saved += node.work * least
            for number in node.makes:
                shorter[number] = least
                right[number] = made
                alive[number] = tensors[number].size
            now += node.size
            widest = max(widest, node.elements)
            inside = max(inside, now - alive.get(node.takes_over, 0))
            for number in node.ends:
                if number in alive:
                    now -= alive.pop(number)
            if place + 1 in wanted and parts == 1:
                found = self._segment(begin, place + 1, right, windows, alive, common)
                if found is not None:
                    free, rows, step, outputs, largest, broadest = found
                    yield CandidateRegion(
                        begin,
                        place + 1,
                        work,
                        saved * common,
                        self.schedule.live[begin],
                        inside,
                        inputs,
                        outputs,
                        largest,
                        free,
                        rows,
                        step,
                        widest,
                        broadest,
                    )

    def _held(
        self, joined: Sequence[int], bound: float, shorter: dict[int, float], most: int
    ) -> tuple[float, int]:
        """Lower what operands, and all they are made of, are shorter by.

        Args:
            joined: The operands.
            bound: Steps that the least of them is shorter by.
            shorter: Steps that every tensor of the region is shorter by, changed in place.
            most: Tensors to walk past; what is made further back counts as it did.

        Returns:
            The work so lost, and the tensors walked past.
        """
        lost, pending, passed = 0.0, list(joined), 0
        while pending and passed < most:
            number = pending.pop()
            passed += 1
            there = shorter.get(number, 0.0)
            if there <= bound:
                continue
            node = self.schedule.nodes[self.schedule.tensors[number].made_at]
            lost += node.work * (there - bound)
            shorter.update(dict.fromkeys(node.makes, bound))
            pending.extend(node.carried)
        self.walked += passed
        return lost, passed

    def _segment(
        self,
        begin: int,
        end: int,
        right: Mapping[int, Rows],
        windows: Collection[int],
        alive: Collection[int],
        common: int,
    ) -> tuple[int, int, int, int, int, int] | None:
        """Return what `CandidateRegion` says of a region's outputs; None if it cannot be one."""
        tensors, nodes = self.schedule.tensors, self.schedule.nodes
        outputs = [number for number in alive if number not in windows]
        if not outputs or any(nodes[tensors[n].made_at].again for n in outputs):
            return None
        self.walked += len(outputs)
        # The most rows per step, as a fraction: compared without making one of each.
        free, most, per = [], 0, 1
        for number in outputs:
            tensor, rows = tensors[number], right[number]
            step = tensor.step // common
            wrong = rows.begin + tensor.rows + TALL * tensor.step - rows.end
            free.append(max(0, tensor.rows - wrong) // step)
            if tensor.rows * per > most * step:
                most, per = tensor.rows, step
        if min(free) < 2:
            return None
        sizes = [tensors[number].size for number in outputs]
        broadest = max(
            (tensors[number].elements for number in outputs if not tensors[number].exempt),
            default=0,
        )
        shared = gcd(most, per)
        return min(free), most // shared, per // shared, sum(sizes), max(sizes), broadest

    # --- plans ------------------------------------------------------------------------------

    @cached_property
    def size(self) -> int:
        """Places and stages that a plan is looked for at."""
        return len(self.schedule.nodes) + len(self._table)

    def forbid(self, begin: int, end: int) -> None:
        """Have no region between two places: it was found not to be provable."""
        self._table.forbid(begin, end)

    @cached_property
    def work(self) -> float:
        """Multiply-accumulates of all nodes, each once."""
        return sum(o.work for o in self.schedule.nodes if not o.again)

    @cached_property
    def plain_peaks(self) -> list[int]:
        """Bytes alive while each node runs as it is."""
        peaks = []
        for place, node in enumerate(self.schedule.nodes):
            made = sum(self.schedule.tensors[number].bytes for number in node.makes)
            if node.takes_over >= 0:
                made = 0
            there = self.schedule.live[place] + made
            peaks.append(there + self.engine_overhead.get(node.position, 0))
        return peaks

    @cached_property
    def bound(self) -> int:
        """Bytes below which no plan goes: what nodes that cannot be cut read and make at once."""
        schedule = self.schedule
        whole = [
            sum(schedule.tensors[number].bytes for number in {*o.reads, *o.makes} - {o.takes_over})
            for o in schedule.nodes
            if o.link is None
        ]
        end = len(schedule.nodes)
        outputs = sum(t.bytes for t in schedule.tensors if t.last_use >= end)
        return max([outputs, *whole])

    def too_large(self, most: int) -> bool:
        """Tell whether a tensor between nodes has more elements than that."""
        return any(t.elements > most and t.made_at >= 0 for t in self.schedule.tensors)

    def untileable(self, most: int) -> list[str]:
        """Return tensors of more elements that no tiling makes smaller."""
        return [t.name for t in self.schedule.tensors if t.elements > most and t.exempt]

    def plan(self, limits: Limits) -> Plan | None:
        """Return the plan of least extra work that keeps the limits, None if there is none.

        The limit on recompute is checked on the result: less work is not to be had.
        """
        # The least cost up to every place, and the stage that ends there: its begin, its patches.
        best, begins, splits = [0.0], [-1], [0]
        alone = self._alone(limits)
        found = zip(*self._table.fewest(limits), strict=True)
        begin, end, patches, cost = next(found, _NO_REGION)
        for place, fits in enumerate(alone):
            least, first, fewest = (best[place], place, 1) if fits else (inf, -1, 0)
            while end == place + 1:
                if best[begin] + cost < least:
                    least, first, fewest = best[begin] + cost, begin, patches
                begin, end, patches, cost = next(found, _NO_REGION)
            best.append(least)
            begins.append(first)
            splits.append(fewest)
        if best[-1] == inf:
            return None
        stages, at = [], len(alone)
        while at:
            if splits[at] > 1:
                stages.append((begins[at], at, splits[at]))
            at = begins[at]
        plan = self._plan(best[-1], stages[::-1], shrinks=limits.shrinks)
        return plan if plan.recompute <= limits.recompute else None

    def _alone(self, limits: Limits) -> list[bool]:
        """Tell of every node whether it may be left as it is."""
        if limits.elements not in self._held_alone:
            most, tensors = limits.elements or inf, self.schedule.tensors
            wide = {n for n, t in enumerate(tensors) if t.elements > most and not t.exempt}
            self._held_alone[limits.elements] = [
                None if node.again or not wide.isdisjoint(node.makes) else held
                for held, node in zip(self.plain_peaks, self.schedule.nodes, strict=True)
            ]
        budget = limits.budget
        return [held is not None and held <= budget for held in self._held_alone[limits.elements]]

    def _plan(self, cost: float, spans: Sequence[tuple[int, int, int]], *, shrinks: bool) -> Plan:
        stages = []
        extra = 0.0
        peak = 0
        covered: set[int] = set()
        for begin, end, splits in spans:
            segment = self._table.one(begin, end)
            own = sum(o.work for o in self.schedule.nodes[begin:end] if o.again)
            extra += float(segment.extra(splits, shrinks=shrinks)) + own
            peak = max(peak, int(segment.peak(splits)))
            covered.update(range(begin, end))
            stages.append(self._choice(begin, end, splits))
        plain = [p for at, p in enumerate(self.plain_peaks) if at not in covered]
        return Plan(
            tuple(stages),
            tuple(spans),
            cost + sum(o.work for o in self.schedule.nodes if o.again),
            1 + extra / self.work if self.work else 1.0,
            max([peak, *plain]),
        )

    def held(self, plan: Plan, base: Schedule) -> list[tuple[int, int]]:
        """Return tensors that hold a plan's peak, and the users before which to make them again.

        They are alive where the peak is. A user is the first one after the peak that may be in a
        region, what reads the tensor whole (a pool) standing before it; or else the last one.

        Args:
            plan: A plan of this stage graph.
            base: The order of the nodes before any was repeated.

        Returns:
            Numbers of tensors and places of users in ``base``, the largest tensor first.
        """
        peaks = dict(enumerate(self.plain_peaks))
        for begin, end, splits in plan.spans:
            segment = self._table.one(begin, end)
            peaks.update(dict.fromkeys(range(begin, end), 0))
            peaks[begin] = int(segment.peak(splits))
        if not peaks:
            return []
        worst = max(peaks, key=lambda place: peaks[place])
        numbers = {tensor.name: number for number, tensor in enumerate(base.tensors)}
        places = {node.position: place for place, node in enumerate(base.nodes)}
        there = places[next(o.position for o in self.schedule.nodes[worst:] if not o.again)]
        alive = [
            tensor
            for tensor in self.schedule.tensors
            if 0 <= tensor.made_at <= worst
            and tensor.last_use >= worst
            and tensor.bytes
            and self.schedule.nodes[tensor.made_at].link is not None
        ]
        alive.sort(key=lambda tensor: -tensor.bytes)
        found = []
        for number in (numbers[tensor.name] for tensor in alive if tensor.name in numbers):
            made = base.tensors[number].made_at
            users = [
                place
                for place in base.users.get(number, ())
                if place >= max(there, made + 2) and base.nodes[place].link is not None
            ]
            found += [(number, user) for user in dict.fromkeys((*users[:1], *users[-1:]))]
        return found

    def _choice(self, begin: int, end: int, splits: int) -> RegionChoice:
        tensors = self.schedule.tensors
        own = self.schedule.nodes[begin:end]
        wanted = [
            tensors[number].name
            for node in own
            for number in node.makes
            if tensors[number].last_use >= end
        ]
        nodes = sorted({node.position for node in own})
        return RegionChoice(tuple(nodes), tuple(wanted), splits)

    def least_peak(self, limits: Limits) -> Plan | None:
        """Return the plan of least peak that keeps the other limits, None if there is none.

        Args:
            limits: What to keep; the budget is not looked at.
        """
        low, high = 0, max(self.plain_peaks, default=0)
        found = self.plan(replace(limits, budget=high))
        if found is None:
            return None
        # The peak of a plan is a sum of whole tensors: a hundredth is near enough.
        while high - low > max(1, high // 100):
            middle = (low + high) // 2
            plan = self.plan(replace(limits, budget=middle))
            if plan is None:
                low = middle
            else:
                found, high = plan, plan.peak
        return found


def stage_graphs(
    analysis: Analysis,
    links: Mapping[int, RowLocal],
    skipped: Collection[int],
    engine: str,
    progress: Callable[[int, int], None],
) -> Iterator[StageGraph]:
    """Yield the nodes in their own order, then with long-lived tensors made twice.

    Args:
        analysis: The model.
        links: Row-local nodes that may be in a region.
        skipped: Nodes that compute constants.
        engine: A key of `memory.targets.ENGINES`.
        progress: Called with (done, most) after each order that was looked at.
    """
    counted = ENGINES[engine]
    run, alive = analysis.run(engine)
    orders = {
        "engine": run,
        "file": sorted(run),
        "late": late_order(analysis),
        "runs": late_order(analysis, links.keys()),
    }
    found, walked = list[StageGraph](), 0

    def walking(here: int) -> None:
        progress(min(walked + here, _WALKED_IN_ALL), _WALKED_IN_ALL)

    laid = {}
    for name, nodes in orders.items():
        if name == "engine" or nodes != run:
            kept = [(at, False) for at in nodes if at not in skipped]
            laid[name] = make_schedule(analysis, links, kept, engine=counted)
            walking(0)
    engine_overhead = _engine_overhead(laid["engine"], alive)
    for name, base in laid.items():
        found.append(StageGraph(base, engine_overhead, name, progress=walking))
        walked += found[-1].walked
    yield from found
    usual = Limits(recompute=USUAL)
    plans = [(plan, graph) for graph in found if (plan := graph.least_peak(usual)) is not None]
    if not plans:
        return
    plan, graph = min(plans, key=lambda entry: entry[0].peak)
    base, order, chosen = graph.schedule, graph.order, dict[int, Rematerialised]()
    for _ in range(_MOST_REPEATS):
        better = None
        for wanted, again in ways_to_rematerialise(base, chosen, graph.held(plan, base)):
            if walked >= _WALKED_IN_ALL:
                return
            tried_schedule = make_schedule(analysis, links, again, engine=counted)
            tried = StageGraph(
                tried_schedule, _shorter(base, wanted, engine_overhead), order, progress=walking
            )
            walked += tried.walked
            lower = tried.least_peak(usual)
            if lower is not None and lower.peak < _WORTH * plan.peak:
                better = wanted, tried, lower
                break
        if better is None:
            return
        chosen, graph, plan = better
        yield graph


def run_rank_of(
    analysis: Analysis, order: str, engine: str, links: Collection[int]
) -> list[int] | None:
    """Return when each node runs in an order, by position; None for the order of the file.

    Args:
        analysis: The model.
        order: "file", "engine" (as the engine runs the graph as it is), "late" or "runs"
            (`late_order`, in the second with row-local nodes together).
        engine: A key of `memory.targets.ENGINES`.
        links: Positions of the row-local nodes.
    """
    if order == "file":
        return None
    if order == "engine":
        nodes = analysis.run(engine)[0]
    else:
        nodes = late_order(analysis, links if order == "runs" else ())
    run_rank = [0] * len(nodes)
    for rank, at in enumerate(nodes):
        run_rank[at] = rank
    return run_rank


def _engine_overhead(laid: Schedule, alive: Mapping[int, int]) -> dict[int, int]:
    """Return what an engine has alive beyond the bytes of tensors, by position of the node."""
    peaks = StageGraph(laid, {}, "engine", stages=False).plain_peaks
    return {
        node.position: max(0, alive.get(node.position, 0) - peak)
        for node, peak in zip(laid.nodes, peaks, strict=True)
    }


def _shorter(
    laid: Schedule, chosen: Mapping[int, Rematerialised], engine_overhead: Mapping[int, int]
) -> dict[int, int]:
    """Return the overhead without the copies of tensors that are made again before those users.

    A copy in another layout is for the users, and those are in a region now.
    """
    left = dict(engine_overhead)
    for number, way in chosen.items():
        tensor = laid.tensors[number]
        for node in laid.nodes[tensor.made_at : way.use]:
            if number in (*node.makes, *node.reads) and node.position in left:
                left[node.position] = max(0, left[node.position] - tensor.bytes)
    return left
