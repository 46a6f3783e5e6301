"""Regions that begin at a place, found by growing one node by node.

Of all tensors of the region it is carried along which rows of an interior window are valid
(`tiling.network.valid_rows`), so that what a region needs and leaves free is known wherever it may
end. Windows are taken far taller than the whole meanwhile, so that their two edges do not meet.

Where windows shrink (`tiling.shrinking`), a node does the less of its work the more rows were
dropped before it; that is estimated here, and exact for a plan that is emitted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import gcd

from patchconv_deploy.rewriters.planning.growing_nodes import GrowingNode, tall
from patchconv_deploy.rewriters.planning.schedule import Schedule, Tensor
from patchconv_deploy.rewriters.planning.stages import CandidateRegion
from patchconv_deploy.rewriters.tiling.patches import Rows

__all__ = ["grow"]


# Tensors that are walked back past, for each place a region begins at, to find what shrinking
# windows lose where branches join.
_DEEP = 30_000


def grow(
    schedule: Schedule,
    nodes: Sequence[GrowingNode | None],
    begin: int,
    end: int,
    ends: Collection[int],
) -> tuple[list[CandidateRegion], int]:
    """Return the regions that begin at a place.

    Args:
        schedule: The nodes in order.
        nodes: `planning.growing_nodes` of it, row-local from ``begin`` to ``end``.
        begin: The place.
        end: Where a region must end.
        ends: Places where it may end.

    Returns:
        The regions, by rising end; and how many tensors were walked past, nodes included.
    """
    found: list[CandidateRegion] = []
    region = _GrowingRegion(schedule, begin)
    for place in range(begin, end):
        node = nodes[place]
        assert node is not None
        if not region.add(node):
            break
        if place + 1 in ends and region.connection.parts == 1:
            candidate = region.candidate(place + 1)
            if candidate is not None:
                found.append(candidate)
    return found, region.walked + region.shortening.walked


class _Connection:
    """The tensors of a growing region: the parts they are in, and their rows per step.

    Attributes:
        parts: Parts of tensors that nodes of the region connect.
        step: What the tensors' rows per step have as common divisor.
    """

    __slots__ = ("_parents", "parts", "step")

    def __init__(self) -> None:
        self.parts = self.step = 0
        self._parents: dict[int, int] = {}

    def add(self, touched: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Connect what a node reads and makes."""
        parents, anchor = self._parents, -1
        for number in touched:
            if number not in parents:
                self.step = gcd(self.step, tensors[number].step)
                if anchor < 0:
                    anchor = number
                    self.parts += 1
                parents[number] = anchor
                continue
            root = self._root(number)
            if anchor < 0:
                anchor = root
            elif root != anchor:
                parents[root] = anchor
                self.parts -= 1

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number


class _Shortening:
    """How much shorter the tensors of a growing region are where its windows shrink.

    Attributes:
        saved: Work of all nodes, each times the steps that its output is shorter by.
        walked: Tensors that were walked back past.
    """

    __slots__ = ("_left", "_schedule", "_shorter", "saved", "walked")

    def __init__(self, schedule: Schedule) -> None:
        self.saved, self.walked = 0.0, 0
        self._schedule, self._left = schedule, _DEEP
        # Steps that each tensor is shorter by; nothing is dropped of what is read from outside.
        self._shorter: dict[int, float] = {}

    def add(self, node: GrowingNode) -> None:
        """Shorten what a node makes by what it drops, and by what is dropped before it."""
        shorter, carried = self._shorter, node.carried
        if len(carried) == 1:
            bound = shorter.setdefault(carried[0], 0.0)
        else:
            known = [shorter[number] for number in carried if number in shorter]
            bound = min(known, default=0.0)
            if len(known) > 1 and max(known) > bound and self._left > 0:
                self.saved -= self._lengthen(carried, bound)
            for number in carried:
                shorter[number] = bound
        made = bound + node.shortening
        self.saved += node.work * made
        for number in node.makes:
            shorter[number] = made

    def _lengthen(self, joined: Sequence[int], bound: float) -> float:
        """Let operands, and all they are made of, be shorter by no more than the least of them.

        Args:
            joined: The operands.
            bound: Steps that the least of them is shorter by.

        Returns:
            The work so lost; what is made further back than there is effort left counts as it did.
        """
        schedule, shorter = self._schedule, self._shorter
        lost, pending, passed = 0.0, list(joined), 0
        while pending and passed < self._left:
            number = pending.pop()
            passed += 1
            there = shorter.get(number, 0.0)
            if there <= bound:
                continue
            node = schedule.nodes[schedule.tensors[number].made_at]
            lost += node.work * (there - bound)
            shorter.update(dict.fromkeys(node.makes, bound))
            pending.extend(node.carried)
        self.walked += passed
        self._left -= passed
        return lost


class _GrowingRegion:
    """The nodes from a place on, as a region that may end behind each.

    Attributes:
        connection: Its tensors, and how they are connected.
        shortening: What shrinking windows save.
        walked: Tensors that were walked past, nodes included.
    """

    __slots__ = (
        "_alive",
        "_begin",
        "_buffer",
        "_bytes",
        "_component",
        "_elements",
        "_input_bytes",
        "_inside",
        "_schedule",
        "_tensors",
        "_valid",
        "_windows",
        "_work",
        "connection",
        "shortening",
        "walked",
    )

    def __init__(self, schedule: Schedule, begin: int) -> None:
        self.connection, self.shortening = _Connection(), _Shortening(schedule)
        self.walked = 0
        self._schedule, self._tensors, self._begin = schedule, schedule.tensors, begin
        self._component = -1
        self._work = 0.0
        # Bytes of what is alive at full height, now and at most; bytes of inputs; elements of the
        # largest tensor made.
        self._bytes = self._inside = self._input_bytes = self._elements = self._buffer = 0
        # Valid rows of every tensor, those that are inputs, and the bytes of those alive.
        self._valid: dict[int, Rows] = {}
        self._windows: set[int] = set()
        self._alive: dict[int, int] = {}

    def add(self, node: GrowingNode) -> bool:
        """Take in the next node; tell whether it can be, or else no region goes past it."""
        self.walked += node.edges
        if node.whole and not self._valid.keys().isdisjoint(node.whole):
            return False  # a tensor made inside is used whole
        if self._component not in (-1, node.component):
            return False
        self._component = node.component
        self._work += node.work
        self._read(node)
        self.connection.add(node.touches, self._tensors)
        self.shortening.add(node)
        self._make(node)
        return True

    def _read(self, node: GrowingNode) -> None:
        valid = self._valid
        for number in node.carried:
            if number not in valid:
                tensor = self._tensors[number]
                valid[number] = Rows(0, tall(tensor))
                self._windows.add(number)
                self._alive[number] = tensor.size
                self._input_bytes += tensor.size
                self._bytes += tensor.size

    def _make(self, node: GrowingNode) -> None:
        valid, alive, tensors, carried = self._valid, self._alive, self._tensors, node.carried
        made = valid[carried[0]]
        if len(carried) > 1:
            begins, ends = zip(*map(valid.__getitem__, carried), strict=True)
            made = Rows(max(begins), min(ends))
        if node.valid_rows is not None:
            made = node.valid_rows[made]
        for number in node.makes:
            valid[number] = made
            alive[number] = tensors[number].size
        now = self._bytes + node.size
        self._elements = max(self._elements, node.elements)
        self._buffer = max(self._buffer, node.buffer)
        self._inside = max(self._inside, now - alive.get(node.takes_over, 0))
        for number in node.ends:
            if number in alive:
                now -= alive.pop(number)
        self._bytes = now

    def candidate(self, end: int) -> CandidateRegion | None:
        """Return the nodes up to a place as a region; None if they cannot be one."""
        outputs = [number for number in self._alive if number not in self._windows]
        if not outputs or not self._schedule.rematerialised.isdisjoint(outputs):
            return None
        self.walked += len(outputs)
        common, free = self.connection.step, None
        # The most rows per step, as a fraction: compared without making one of each.
        most, per, output_bytes, largest, joined = 0, 1, 0, 0, 0
        broadest, broadest_buffer = 0, 0
        for number in outputs:
            tensor, valid = self._tensors[number], self._valid[number]
            step = tensor.step // common
            wrong = valid.begin + tall(tensor) - valid.end
            steps = max(0, tensor.rows - wrong) // step
            if steps < 2:
                return None
            free = steps if free is None else min(free, steps)
            if tensor.rows * per > most * step:
                most, per = tensor.rows, step
            output_bytes += tensor.size
            largest = max(largest, tensor.size)
            if not tensor.in_strips:
                joined = max(joined, tensor.size)
            if not tensor.untileable:
                broadest = max(broadest, tensor.elements)
                broadest_buffer = max(broadest_buffer, tensor.size)
        shared = gcd(most, per)
        read = [self._tensors[number] for number in self._windows]
        dying = sum(t.bytes for t in read if t.in_strips and t.last_use < end)
        return CandidateRegion(
            begin=self._begin,
            end=end,
            work=self._work,
            saved=self.shortening.saved * common,
            before=self._schedule.live[self._begin],
            inside=self._inside,
            inputs=self._input_bytes,
            outputs=output_bytes,
            largest=largest,
            joined=joined,
            dying=dying,
            free=free,
            rows=most // shared,
            step=per // shared,
            elements=self._elements,
            buffer=self._buffer,
            broadest=broadest,
            broadest_buffer=broadest_buffer,
        )
