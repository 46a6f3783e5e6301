"""Predicted activation memory: an execution order, buffers that live in it, an allocator.

    order      the sequence in which the engine runs the steps
    buffers    which tensors share bytes: views, results written over a dying input, and, where the
               engine plans it, a freed buffer taken by a tensor of the same shape
    allocator  what those buffers cost: their plain sum, or whole chunks of an arena whose regions
               double, some of them in one block with an offset for each

What differs between engines is data: a `Target`. Steps are those the engine runs: what its
optimisers fuse, fold and insert is applied before (`rewriters.lowering`). A tensor lives from the
step that makes it to its last use. Weights are not activations.

`IDEAL` knows no engine: file order, plain sum, inputs alive from the start, outputs to the end.

Sources: the public allocation planner, memory pattern planner and arena of ONNX Runtime, and its
profile (``mem_in_use_peak``), read and measured with version 1.32; plans of TensorRT for RTX 1.7.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import chain
from typing import TypeAlias

__all__ = [
    "IDEAL",
    "VIEWS",
    "Allocator",
    "Body",
    "Peak",
    "Step",
    "Target",
    "Weights",
    "execution_order",
    "peak",
    "size_text",
    "timeline",
    "walk",
]

# Operators whose output shares its first input's bytes on every runtime in view.
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})

# Tensors named in `Peak.alive`.
_NAMED = 32


@dataclass(frozen=True, slots=True)
class Body:
    """What a step runs inside, over and over; its outputs are held until the step ends.

    Attributes:
        steps: Its steps.
        sizes: Bytes of its activations.
        shapes: As for `peak`.
        outputs: Its outputs.
        trips: How often it runs.
    """

    steps: tuple[Step, ...]
    sizes: Mapping[str, int | None]
    shapes: Mapping[str, Hashable]
    outputs: tuple[str, ...]
    trips: int


@dataclass(frozen=True, slots=True)
class Step:
    """One node of an execution order: the tensors it reads and makes.

    Attributes:
        label: Its name.
        op_type: Its operator; tables of a `Target` are looked up by it.
        reads: Tensors it reads.
        makes: Tensors it makes.
        workspace: Bytes it needs while it runs, beside what it reads and makes.
        body: What it runs inside, for an allocator to which the workspace is not one piece.
    """

    label: str
    op_type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    workspace: int = 0
    body: Body | None = None


class Allocator(Enum):
    """How buffers cost memory."""

    SUM = "sum"
    ARENA = "arena"


@dataclass(frozen=True)
class Target:
    """How an engine orders steps and holds their tensors.

    Attributes:
        name: What people call it.
        depth_first: The order is a walk from the results to what they need, the newest step
            first; otherwise the steps run as they stand.
        views: Operators whose outputs are their first input's bytes.
        overwrites: Per operator, positions of inputs whose bytes its first output takes over where
            the input dies there and has the output's shape.
        reuse: A freed buffer is taken by a later tensor of the same shape, and lives on until that
            one's last use.
        pattern: From the second run on one block holds all buffers but outputs and workspaces.
        allocator: What buffers cost.
        granule: Sizes are rounded up to multiples of it, bytes.
        counts_inputs: Graph inputs are part of the figure.
        counts_outputs: Graph outputs are part of the figure.
    """

    name: str
    depth_first: bool = False
    views: frozenset[str] = VIEWS
    overwrites: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reuse: bool = False
    pattern: bool = False
    allocator: Allocator = Allocator.SUM
    granule: int = 1
    counts_inputs: bool = True
    counts_outputs: bool = True


IDEAL = Target("ideal")


@dataclass(frozen=True, slots=True)
class Weights:
    """What loading a model costs.

    Attributes:
        held: Bytes of weights that are held from then on, in the layouts they are used in.
        made: Bytes of those that were folded or laid out anew, each counted once however many
            clones have one of their own: the allocator keeps what passed through.
        originals: Bytes of what these were made of, which a file with its weights inside leaves.
        packed: Of what is held, bytes that lie with the activations and are in `Peak.bytes` too.
    """

    held: int = 0
    made: int = 0
    originals: int = 0
    packed: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.held + other.held,
            self.made + other.made,
            self.originals + other.originals,
            self.packed + other.packed,
        )

    @property
    def loading(self) -> int:
        """Bytes that the process grows by while it loads."""
        return self.held + self.made + self.originals


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest figure of a run, and what makes it.

    Attributes:
        bytes: The peak; of the tensors of known size alone where others are unknown.
        at: Label of the step with the most live bytes; "" if that is before the first.
        unknown: Activations of unknown size, counted as nothing; while there are any, the peak is
            not known, and must not be shown or compared.
        alive: The largest tensors alive at that step, with their bytes, largest first.
        touched: Bytes that are ever written: of an arena's chunks what was asked for. The system
            gives a process no page before.
        held: Label of every step and bytes held while it runs, in the order they run: in an arena
            the chunks in use, else what is alive (`timeline`).
        weights: What loading costs; apart from all the figures above, but for `Weights.packed`.
    """

    bytes: int
    at: str
    unknown: int
    alive: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    touched: int = field(default=0, compare=False)
    held: Sequence[tuple[str, int]] = field(default=(), compare=False, repr=False)
    weights: Weights = field(default=Weights(), compare=False)

    @property
    def process(self) -> int:
        """Bytes that a process grows by, loading and running together."""
        return self.weights.loading - self.weights.packed + self.need

    @property
    def need(self) -> int:
        """Bytes to provide: what is in use at once, or what was ever written to if that is more."""
        return max(self.bytes, self.touched)


def size_text(size: float) -> str:
    """Return a size for people: 1,027.0 MiB, 10.0 KiB, 12 bytes; never 0 for what is more."""
    if size >= 2**20 / 10:
        return f"{size / 2**20:,.1f} MiB"
    return f"{size / 2**10:.1f} KiB" if size >= 2**10 else f"{size:.0f} bytes"


def peak(
    steps: Sequence[Step],
    sizes: Mapping[str, int | None],
    *,
    inputs: Iterable[str],
    outputs: Collection[str],
    target: Target = IDEAL,
    shapes: Mapping[str, Hashable] | None = None,
    weights: Weights | None = None,
) -> Peak:
    """Return the peak of a graph; n log n in the steps, as a rule linear.

    Args:
        steps: The nodes, in the file's order.
        sizes: Bytes per activation. A tensor that is missing is a weight and costs nothing; None
            is an activation of unknown size, counted in `Peak.unknown`.
        inputs: Graph inputs.
        outputs: Graph outputs.
        target: The engine.
        shapes: What must be equal for two tensors to share a buffer; their bytes where missing.
        weights: What loading costs; what the engine packs anew is held throughout.
    """
    run = _Run(steps, sizes, tuple(inputs), outputs, target, shapes or {})
    held = run.live()
    figure, at, alive = run.highest(held)
    touched = figure
    if target.allocator is Allocator.ARENA:
        arena = run.in_arena()
        held = run.used()
        figure, touched = max((size for _, size in held), default=0), arena.touched()
    loaded = weights or Weights()
    packed = loaded.packed
    return Peak(figure + packed, at, run.unknown, alive, touched + packed, held, loaded)


def timeline(
    steps: Sequence[Step],
    sizes: Mapping[str, int | None],
    *,
    inputs: Iterable[str],
    outputs: Collection[str],
    target: Target = IDEAL,
    shapes: Mapping[str, Hashable] | None = None,
) -> list[tuple[str, int]]:
    """Return (label, live bytes while it runs) of every step, in execution order.

    Live bytes are the plain sum of what is held, so their largest can be below `Peak.bytes`, which
    has the allocator's waste in it. The arguments are those of `peak`.
    """
    run = _Run(steps, sizes, tuple(inputs), outputs, target, shapes or {})
    return run.live()


def execution_order(steps: Sequence[Step], *, depth_first: bool) -> list[Step]:
    """Return the steps as they are run.

    Depth first: from the steps that nothing reads, the last one first; of the steps that make a
    step's inputs the last one first. A step runs when all it needs have run.
    """
    if not depth_first:
        return list(steps)
    order = walk([step.reads for step in steps], [step.makes for step in steps])
    return [steps[number] for number in order]


def walk(reads: Sequence[Sequence[str]], makes: Sequence[Sequence[str]]) -> list[int]:
    """Return the numbers of steps in their order depth first, as `execution_order`."""
    maker = {name: number for number, names in enumerate(makes) for name in names}
    needs: list[Sequence[int]] = []
    needed: set[int] = set()
    for names in reads:
        found = {maker[name] for name in names if name in maker}
        needed |= found
        needs.append(sorted(found) if len(found) > 1 else tuple(found))
    stack = [number for number in range(len(reads)) if number not in needed]
    entered = [False] * len(reads)
    result = []
    while stack:
        number = stack.pop()
        if number < 0:
            result.append(~number)
        elif not entered[number]:
            entered[number] = True
            stack.append(~number)
            for need in needs[number]:
                if not entered[need]:
                    stack.append(need)
    return result


class _Run:
    """One graph laid out for one target: its order, its buffers, when each begins and ends.

    A buffer is known by the tensor that it was made for.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        sizes: Mapping[str, int | None],
        inputs: tuple[str, ...],
        outputs: Collection[str],
        target: Target,
        shapes: Mapping[str, Hashable],
    ) -> None:
        self.steps = execution_order(steps, depth_first=target.depth_first)
        self._sizes = sizes
        self._target = target
        self._shapes = shapes
        self._counted_inputs = inputs if target.counts_inputs else ()
        self._outputs = set(outputs)
        # Most bytes an arena had in use while each step ran.
        self._used = [0] * len(self.steps)
        # What bodies run, by the identity of the body: the steps hold them.
        self._inner: dict[int, _Run] = {}
        self.unknown = 0
        self._assign(inputs)

    def _size(self, name: str) -> int:
        granule = self._target.granule
        return -(-(self._sizes.get(name) or 0) // granule) * granule

    def _shape(self, name: str) -> Hashable:
        return self._shapes.get(name, self._sizes.get(name))

    def _assign(self, inputs: tuple[str, ...]) -> None:
        """Give every tensor its buffer, and every buffer its first and last step."""
        target, sizes = self._target, self._sizes
        # A tensor is held once by each reader, by the step that makes it, and by the caller.
        held = Counter(chain.from_iterable((*step.reads, *step.makes) for step in self.steps))
        held.update(inputs)
        held.update(self._outputs)
        owner: dict[str, str] = {}
        free: dict[Hashable, list[str]] = {}
        begins: list[list[str]] = [[] for _ in self.steps]
        last: dict[str, int] = {}
        known = set(inputs)
        caller = set(inputs) | self._outputs
        self.unknown = sum(sizes[n] is None for n in set(inputs) if n in sizes)
        for number, step in enumerate(self.steps):
            for position, name in enumerate(step.makes):
                if name not in sizes or name in known:
                    continue
                known.add(name)
                taken = self._over(step, position, name, owner, held)
                if taken is None and target.reuse and name not in self._outputs and sizes[name]:
                    candidates = free.get(self._shape(name))
                    taken = candidates.pop() if candidates else None
                if taken is None:
                    begins[number].append(name)
                    self.unknown += sizes[name] is None
                else:
                    owner[name] = taken
                    held[taken] += held[name]
            for name in chain(step.reads, step.makes):
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
                last[owner.get(name, name)] = len(self.steps)
        self._begins = begins
        self._ends: list[list[str]] = [[] for _ in self.steps]
        for name, number in last.items():
            if number < len(self.steps):
                self._ends[number].append(name)
        # Bytes of every buffer, rounded up.
        self._bytes = {name: self._size(name) for names in begins for name in names}

    def _over(
        self,
        step: Step,
        number: int,
        name: str,
        owner: Mapping[str, str],
        held: Mapping[str, int],
    ) -> str | None:
        """Return the buffer that a step's result shares with an input, None if there is none.

        An engine that hands outputs to the caller copies where an output is a view.
        """
        target, sizes = self._target, self._sizes
        if not target.counts_inputs and name in self._outputs:
            return None
        if step.op_type in target.views and step.reads and step.reads[0] in sizes:
            return owner.get(step.reads[0], step.reads[0])
        if number:
            return None
        for position in target.overwrites.get(step.op_type, ()):
            if position < len(step.reads) and step.reads[position] in sizes:
                read = step.reads[position]
                root = owner.get(read, read)
                if held[root] == 1 and self._shape(read) == self._shape(name):
                    return root
        return None

    def _counts(self, name: str) -> bool:
        return self._target.counts_outputs or name not in self._outputs

    def live(self) -> list[tuple[str, int]]:
        """Return the live bytes at every step."""
        held = {name: self._size(name) for name in self._counted_inputs}
        alive = sum(held.values())
        result = []
        for step, begins, ends in zip(self.steps, self._begins, self._ends, strict=True):
            for name in begins:
                if self._counts(name):
                    held[name] = self._bytes[name]
                    alive += held[name]
            result.append((step.label, alive + step.workspace))
            for name in ends:
                alive -= held.get(name, 0)
        return result

    def highest(
        self, live: Sequence[tuple[str, int]]
    ) -> tuple[int, str, tuple[tuple[str, int], ...]]:
        """Return the most live bytes, the step they occur at, and the largest tensors alive."""
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
        named = sorted(((n, self._size(n)) for n in held), key=lambda item: -item[1])[:_NAMED]
        label = self.steps[where].label if where >= 0 else ""
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

    def in_arena(self) -> _Arena:
        """Run twice in an arena, and return it."""
        arena = _Arena()
        self._run_in(arena, frozenset())
        self._run_again(arena)
        return arena

    def used(self) -> list[tuple[str, int]]:
        """Return the most bytes the arena had in use while each step ran."""
        return [(step.label, used) for step, used in zip(self.steps, self._used, strict=True)]

    @cached_property
    def _block(self) -> int:
        return self.block() if self._target.pattern else 0

    @cached_property
    def _in_block(self) -> frozenset[str]:
        return frozenset(name for begins in self._begins for name in begins) - self._outputs

    def _run_again(self, arena: _Arena, *, keep: bool = False) -> list[_Chunk]:
        """Run once more; the block is there now, if the target has one."""
        if not self._block:
            return self._run_in(arena, frozenset(), keep=keep)
        block = arena.take(self._block)
        kept = self._run_in(arena, self._in_block, keep=keep)
        arena.give(block)
        return kept

    def _run_in(
        self, arena: _Arena, elsewhere: Collection[str], *, keep: bool = False
    ) -> list[_Chunk]:
        """Run once; tensors ``elsewhere`` are not the arena's.

        Returns:
            What is still taken: the outputs, if they are to be kept.
        """
        held: dict[str, _Chunk] = {}
        sizes, used = self._bytes, self._used
        for number, (step, begins, ends) in enumerate(
            zip(self.steps, self._begins, self._ends, strict=True)
        ):
            outer = arena.start()
            pieces = self._iterate(arena, step.body) if step.body is not None else ()
            for name in begins:
                if sizes[name] and name not in elsewhere:
                    held[name] = arena.take(sizes[name])
            for piece in pieces:
                arena.give(piece)
            if step.workspace and step.body is None:
                arena.give(arena.take(step.workspace))
            used[number] = max(used[number], arena.most)
            arena.most = max(arena.most, outer)
            for name in ends:
                if name in held:
                    arena.give(held.pop(name))
        kept = [held.pop(name) for name in self._outputs if name in held] if keep else []
        for chunk in held.values():
            arena.give(chunk)
        return kept

    def _iterate(self, arena: _Arena, body: Body) -> list[_Chunk]:
        """Run a body as often as it runs; return its outputs, which are taken still."""
        run = self._inner.get(id(body))
        if run is None:
            run = _Run(body.steps, body.sizes, (), body.outputs, self._target, body.shapes)
            self._inner[id(body)] = run
        pieces = run._run_in(arena, frozenset(), keep=True)
        for _ in range(1, body.trips):
            pieces += run._run_again(arena, keep=True)
        return pieces


# A chunk that is taken: where it begins, and its bytes.
_Chunk: TypeAlias = tuple[int, int]


class _Arena:
    """ONNX Runtime's arena: best fit in regions that double; a chunk is split where half is left.

    What is in use are whole chunks, so a chunk of up to twice what was asked for counts whole.
    """

    _GRANULE = 256
    _FIRST_REGION = 1 << 20
    _MOST_WASTE = 128 << 20

    def __init__(self) -> None:
        self.most = 0
        self._in_use = 0
        self._next_region = self._FIRST_REGION
        self._bottom = 0
        # Parts of chunks that were asked for: where they begin, and the last of their ends.
        self._asked: dict[int, int] = {}
        # Free chunks by size then address, and by address; regions never touch.
        self._free: list[tuple[int, ...]] = []
        self._free_at: dict[int, int] = {}
        self._free_end: dict[int, int] = {}

    def touched(self) -> int:
        """Return the bytes that were ever part of what was asked for."""
        total, reached = 0, min(self._asked, default=0)
        for begin, end in sorted(self._asked.items()):
            if end > reached:
                total += end - max(begin, reached)
                reached = end
        return total

    def start(self) -> int:
        """Begin to count the most bytes in use anew; return what they were so far."""
        most, self.most = self.most, self._in_use
        return most

    def _insert(self, begin: int, size: int) -> None:
        insort(self._free, (size, begin))
        self._free_at[begin] = size
        self._free_end[begin + size] = begin

    def _remove(self, begin: int) -> int:
        size = self._free_at.pop(begin)
        del self._free_end[begin + size]
        del self._free[bisect_left(self._free, (size, begin))]
        return size

    def take(self, size: int) -> _Chunk:
        """Allocate."""
        size = -(-size // self._GRANULE) * self._GRANULE
        found = bisect_left(self._free, (size,))
        if found == len(self._free):
            grown = False
            while self._next_region < size:
                self._next_region *= 2
                grown = True
            # The system maps a new region below the last one; the lowest of equal chunks is taken.
            self._bottom -= self._next_region + 1
            self._insert(self._bottom, self._next_region)
            if not grown:
                self._next_region *= 2
            found = bisect_left(self._free, (size,))
        chunk, begin = self._free.pop(found)
        del self._free_at[begin]
        if chunk >= 2 * size or chunk - size >= self._MOST_WASTE:
            # What is left ends where the chunk ended.
            left = chunk - size
            insort(self._free, (left, begin + size))
            self._free_at[begin + size] = left
            self._free_end[begin + chunk] = begin + size
            chunk = size
        else:
            del self._free_end[begin + chunk]
        end = begin + size
        if self._asked.get(begin, end) <= end:
            self._asked[begin] = end
        self._in_use += chunk
        if self._in_use > self.most:
            self.most = self._in_use
        return begin, chunk

    def give(self, chunk: _Chunk) -> None:
        """Free; neighbours that are free too become one chunk."""
        begin, size = chunk
        self._in_use -= size
        if begin + size in self._free_at:
            size += self._remove(begin + size)
        before = self._free_end.get(begin)
        if before is not None:
            size += self._remove(before)
            begin = before
        self._insert(begin, size)
