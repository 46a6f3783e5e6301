"""Which tensors share bytes while a graph runs, and for how long."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain

from patchconv_deploy.rewriters.memory.arena import Arena, Chunk
from patchconv_deploy.rewriters.memory.executed import Body, ExecutedNode, Holding
from patchconv_deploy.rewriters.memory.order import execution_order

__all__ = ["LiveBuffers"]


# Tensors named in `Peak.alive`.
NAMED = 32


class LiveBuffers:
    """One graph laid out for one target: its order, its buffers, when each begins and ends.

    A buffer is known by the tensor that it was made for.
    """

    def __init__(
        self,
        nodes: Sequence[ExecutedNode],
        sizes: Mapping[str, int | None],
        inputs: tuple[str, ...],
        outputs: Collection[str],
        target: Holding,
        shapes: Mapping[str, Hashable],
    ) -> None:
        self.nodes = execution_order(nodes, depth_first=target.depth_first)
        self._sizes = sizes
        self._target = target
        self._shapes = shapes
        self._counted_inputs = inputs if target.counts_inputs else ()
        self._outputs = set(outputs)
        # Most bytes an arena had in use while each node ran.
        self._used = [0] * len(self.nodes)
        # What bodies run, by the identity of the body: the nodes hold them.
        self._inner: dict[int, LiveBuffers] = {}
        self.unknown = 0
        self._assign(inputs)

    def _size(self, name: str) -> int:
        granule = self._target.granule
        return -(-(self._sizes.get(name) or 0) // granule) * granule

    def _shape(self, name: str) -> Hashable:
        return self._shapes.get(name, self._sizes.get(name))

    def _assign(self, inputs: tuple[str, ...]) -> None:
        """Give every tensor its buffer, and every buffer its first and last node."""
        target, sizes = self._target, self._sizes
        # A tensor is held once by each reader, by the node that makes it, and by the caller.
        held = Counter(chain.from_iterable((*node.reads, *node.makes) for node in self.nodes))
        held.update(inputs)
        held.update(self._outputs)
        owner: dict[str, str] = {}
        free: dict[Hashable, list[str]] = {}
        begins: list[list[str]] = [[] for _ in self.nodes]
        last: dict[str, int] = {}
        known = set(inputs)
        caller = set(inputs) | self._outputs
        self.unknown = sum(sizes[n] is None for n in set(inputs) if n in sizes)
        for number, node in enumerate(self.nodes):
            for position, name in enumerate(node.makes):
                if name not in sizes or name in known:
                    continue
                known.add(name)
                taken = self._over(node, position, name, owner, held)
                if taken is None and target.reuse and name not in self._outputs and sizes[name]:
                    candidates = free.get(self._shape(name))
                    taken = candidates.pop() if candidates else None
                if taken is None:
                    begins[number].append(name)
                    self.unknown += sizes[name] is None
                else:
                    owner[name] = taken
                    held[taken] += held[name]
            for name in chain(node.reads, node.makes):
                root = owner.get(name, name)
                if root not in known:
                    continue
                last[root] = number
                held[root] -= 1
                if target.reuse and not held[root] and root not in caller:
                    free.setdefault(self._shape(root), []).append(root)
        # A view of an output, and an output that is a view, are the output's bytes.
        for name in self._outputs:
            if name in known:
                last[owner.get(name, name)] = len(self.nodes)
        self._begins = begins
        self._ends: list[list[str]] = [[] for _ in self.nodes]
        for name, number in last.items():
            if number < len(self.nodes):
                self._ends[number].append(name)
        # Bytes of every buffer, rounded up.
        self._bytes = {name: self._size(name) for names in begins for name in names}

    def _over(
        self,
        node: ExecutedNode,
        number: int,
        name: str,
        owner: Mapping[str, str],
        held: Mapping[str, int],
    ) -> str | None:
        """Return the buffer that a node's result shares with an input, None if there is none.

        An engine that hands outputs to the caller copies where an output is a view.
        """
        target, sizes = self._target, self._sizes
        if not target.counts_inputs and name in self._outputs:
            return None
        if node.op_type in target.views and node.reads and node.reads[0] in sizes:
            return owner.get(node.reads[0], node.reads[0])
        if number:
            return None
        for position in target.overwrites.get(node.op_type, ()):
            if position < len(node.reads) and node.reads[position] in sizes:
                read = node.reads[position]
                root = owner.get(read, read)
                if held[root] == 1 and self._shape(read) == self._shape(name):
                    return root
        return None

    def _counts(self, name: str) -> bool:
        return self._target.counts_outputs or name not in self._outputs

    def live(self) -> list[tuple[str, int]]:
        """Return the live bytes at every node."""
        held = {name: self._size(name) for name in self._counted_inputs}
        alive = sum(held.values())
        result = []
        for node, begins, ends in zip(self.nodes, self._begins, self._ends, strict=True):
            for name in begins:
                if self._counts(name):
                    held[name] = self._bytes[name]
                    alive += held[name]
            result.append((node.label, alive + node.workspace))
            for name in ends:
                alive -= held.get(name, 0)
        return result

    def highest(
        self, live: Sequence[tuple[str, int]]
    ) -> tuple[int, str, tuple[tuple[str, int], ...]]:
        """Return the most live bytes, the node they occur at, and the largest tensors alive."""
        start = sum(self._size(n) for n in dict.fromkeys(self._counted_inputs))
        best, where = start, -1
        for number, (_, alive) in enumerate(live):
            if alive > best:
                best, where = alive, number
        held = dict.fromkeys(self._counted_inputs)
        for number in range(where + 1):
            held.update(dict.fromkeys(n for n in self._begins[number] if self._counts(n)))
            if number < where:
                for name in self._ends[number]:
                    held.pop(name, None)
        named = sorted(((n, self._size(n)) for n in held), key=lambda item: -item[1])[:NAMED]
        label = self.nodes[where].label if where >= 0 else ""
        return best, label, tuple(item for item in named if item[1])

    def block(self) -> int:
        """Return the size of one block that holds all buffers but outputs, best fit first."""
        placed: list[tuple[int, int, str]] = []
        where: dict[str, tuple[int, int, str]] = {}
        top = 0

        def place(name: str, size: int) -> None:
            nonlocal top
            best, waste, cursor = -1, -1, 0
            for begin, end, _ in placed:
                gap = begin - cursor
                if gap >= size and (waste < 0 or gap - size < waste):
                    best, waste = cursor, gap - size
                cursor = max(cursor, end)
            gap = top - cursor
            if best < 0 or (gap >= size and gap - size < waste):
                best = cursor
            where[name] = (best, best + size, name)
            insort(placed, where[name])
            top = max(top, best + size)

        def take(name: str) -> None:
            entry = where.pop(name, None)
            if entry is not None:
                del placed[bisect_left(placed, entry)]

        for begins, ends in zip(self._begins, self._ends, strict=True):
            for name in begins:
                if name not in self._outputs and self._bytes[name]:
                    place(name, self._bytes[name])
            for name in ends:
                take(name)
        return top

    def in_arena(self, packed: Iterable[tuple[str, int]] = ()) -> Arena:
        """Run twice in an arena, and return it.

        Args:
            packed: Weights that are packed in it beforehand (`Weights.from_arena`). However small,
                they make its first region, and small tensors lie there instead of between large.
        """
        arena = Arena()
        known = set()
        for name, size in packed:
            chunk = arena.take(size)
            if name in known:
                arena.give(chunk)
            known.add(name)
        self._run_in(arena, frozenset())
        self._run_again(arena)
        return arena

    def used(self) -> list[tuple[str, int]]:
        """Return the most bytes the arena had in use while each node ran."""
        return [(node.label, used) for node, used in zip(self.nodes, self._used, strict=True)]

    @cached_property
    def _block(self) -> int:
        return self.block() if self._target.pattern else 0

    @cached_property
    def _in_block(self) -> frozenset[str]:
        return frozenset(name for begins in self._begins for name in begins) - self._outputs

    def _run_again(self, arena: Arena, *, keep: bool = False) -> list[Chunk]:
        """Run once more; the block is there now, if the target has one."""
        if not self._block:
            return self._run_in(arena, frozenset(), keep=keep)
        block = arena.take(self._block)
        kept = self._run_in(arena, self._in_block, keep=keep)
        arena.give(block)
        return kept

    def _run_in(
        self, arena: Arena, elsewhere: Collection[str], *, keep: bool = False
    ) -> list[Chunk]:
        """Run once; tensors ``elsewhere`` are not the arena's.

        Returns:
            What is still taken: the outputs, if they are to be kept.
        """
        held: dict[str, Chunk] = {}
        sizes, used = self._bytes, self._used
        for number, (node, begins, ends) in enumerate(
            zip(self.nodes, self._begins, self._ends, strict=True)
        ):
            outer = arena.start()
            pieces = self._iterate(arena, node.body) if node.body is not None else ()
            for name in begins:
                if sizes[name] and name not in elsewhere:
                    held[name] = arena.take(sizes[name])
            for piece in pieces:
                arena.give(piece)
            if node.workspace and node.body is None:
                arena.give(arena.take(node.workspace))
            used[number] = max(used[number], arena.most)
            arena.most = max(arena.most, outer)
            for name in ends:
                if name in held:
                    arena.give(held.pop(name))
        kept = [held.pop(name) for name in self._outputs if name in held] if keep else []
        for chunk in held.values():
            arena.give(chunk)
        return kept

    def _iterate(self, arena: Arena, body: Body) -> list[Chunk]:
        """Run a body as often as it runs; return its outputs, which are taken still."""
        run = self._inner.get(id(body))
        if run is None:
            run = LiveBuffers(body.nodes, body.sizes, (), body.outputs, self._target, body.shapes)
            self._inner[id(body)] = run
        pieces = run._run_in(arena, frozenset(), keep=True)
        for _ in range(1, body.trips):
            pieces += run._run_again(arena, keep=True)
        return pieces
