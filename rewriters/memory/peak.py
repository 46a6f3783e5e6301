"""Predicted activation memory: an execution order, buffers that live in it, an allocator.

    order      the sequence in which the engine runs the nodes
    buffers    which tensors share bytes: views, results written over a dying input, and, where the
               engine plans it, a freed buffer taken by a tensor of the same shape
    allocator  what those buffers cost: their plain sum, or whole chunks of an arena whose regions
               double, some of them in one block with an offset for each

What differs between engines is data: a `Holding`. Steps are those the engine runs: what its
optimisers fuse, fold and insert is applied before (`memory.lowering.lower`). A tensor lives from
the node that makes it to its last use. Weights are not activations.

`IDEAL` knows no engine: file order, plain sum, inputs alive from the start, outputs to the end.

Sources: the public allocation planner, memory pattern planner and arena of ONNX Runtime, and its
profile (``mem_in_use_peak``), read and measured with version 1.32; plans of TensorRT for RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from patchconv_deploy.rewriters.memory.buffers import LiveBuffers
from patchconv_deploy.rewriters.memory.executed import IDEAL, Allocator, ExecutedNode, Holding

__all__ = ["Peak", "Weights", "loads_more", "peak", "size_text", "timeline"]


# Bytes of nodes that few would miss, about a thousand nodes: so many are not weighed.
_FEW_NODES = 4 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """What loading a model costs.

    Attributes:
        held: Bytes of weights that are held from then on, in the layouts they are used in.
        made: Bytes of those that were folded or laid out anew, each counted once however many
            clones have one of their own: the allocator keeps what passed through.
        originals: Bytes of what these were made of, which a file with its weights inside leaves.
        packed: Of what is held, bytes that lie with the activations and are in `Peak.bytes` too.
        from_arena: Of what is packed, every piece that is taken from the arena, in order, by the
            weight's name and bytes. One of a name that was before is given back at once: equal
            pieces are held once. The rest is taken beside the arena's regions.
        session: Bytes of what a session keeps beside weights, most of it for each node.
    """

    held: int = 0
    made: int = 0
    originals: int = 0
    packed: int = 0
    from_arena: tuple[tuple[str, int], ...] = ()
    session: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.held + other.held,
            self.made + other.made,
            self.originals + other.originals,
            self.packed + other.packed,
            self.from_arena + other.from_arena,
            self.session + other.session,
        )

    @property
    def loading(self) -> int:
        """Bytes that the process grows by while it loads."""
        return self.held + self.made + self.originals + self.session

    @property
    def beside(self) -> int:
        """Bytes of what is packed that no region of the arena holds."""
        return self.packed - sum(dict(self.from_arena).values())


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest figure of a run, and what makes it.

    Attributes:
        bytes: The peak; of the tensors of known size alone where others are unknown.
        at: Label of the node with the most live bytes; "" if that is before the first.
        unknown: Activations of unknown size, counted as nothing; while there are any, the peak is
            not known, and must not be shown or compared.
        alive: The largest tensors alive at that node, with their bytes, largest first.
        touched: Bytes that are ever written: of an arena's chunks what was asked for. The system
            gives a process no page before.
        live_bytes: Label of every node and bytes held while it runs, in the order they run: in an
            arena the chunks in use, else what is alive (`timeline`).
        weights: What loading costs; apart from all the figures above, but for `Weights.packed`.
    """

    bytes: int
    at: str
    unknown: int
    alive: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    touched: int = field(default=0, compare=False)
    live_bytes: Sequence[tuple[str, int]] = field(default=(), compare=False, repr=False)
    weights: Weights = field(default=Weights(), compare=False)

    @property
    def process(self) -> int:
        """Bytes that a process grows by, loading and running together."""
        return self.weights.loading - self.weights.packed + self.need

    @property
    def need(self) -> int:
        """Bytes to provide: what is in use at once, or what was ever written to if that is more."""
        return max(self.bytes, self.touched)


def loads_more(after: Peak, before: Peak) -> int:
    """Return the bytes that loading takes more than before; what is packed counts as activations.

    Of nodes those that few would miss are free: a session takes more by itself.
    """
    more, was = after.weights, before.weights
    nodes = more.session - was.session
    weights = more.loading - more.packed - (was.loading - was.packed) - nodes
    return max(0, weights) + max(0, nodes - _FEW_NODES)


def size_text(size: float) -> str:
    """Return a size for people: 1,027.0 MiB, 10.0 KiB, 12 bytes; never 0 for what is more."""
    if size >= 2**20 / 10:
        return f"{size / 2**20:,.1f} MiB"
    return f"{size / 2**10:.1f} KiB" if size >= 2**10 else f"{size:.0f} bytes"


def peak(
    nodes: Sequence[ExecutedNode],
    sizes: Mapping[str, int | None],
    *,
    inputs: Iterable[str],
    outputs: Collection[str],
    target: Holding = IDEAL,
    shapes: Mapping[str, Hashable] | None = None,
    weights: Weights | None = None,
) -> Peak:
    """Return the peak of a graph; n log n in the nodes, as a rule linear.

    Args:
        nodes: The nodes, in the file's order.
        sizes: Bytes per activation. A tensor that is missing is a weight and costs nothing; None
            is an activation of unknown size, counted in `Peak.unknown`.
        inputs: Graph inputs.
        outputs: Graph outputs.
        target: The engine.
        shapes: What must be equal for two tensors to share a buffer; their bytes where missing.
        weights: What loading costs; what the engine packs anew is held throughout.
    """
    run = LiveBuffers(nodes, sizes, tuple(inputs), outputs, target, shapes or {})
    live_bytes = run.live()
    figure, at, alive = run.highest(live_bytes)
    loaded = weights or Weights()
    touched, packed = figure, loaded.packed
    if target.allocator is Allocator.ARENA:
        arena = run.in_arena(loaded.from_arena)
        live_bytes = run.used()
        figure, touched = max((size for _, size in live_bytes), default=0), arena.touched()
        packed = loaded.beside
    return Peak(figure + packed, at, run.unknown, alive, touched + packed, live_bytes, loaded)


def timeline(
    nodes: Sequence[ExecutedNode],
    sizes: Mapping[str, int | None],
    *,
    inputs: Iterable[str],
    outputs: Collection[str],
    target: Holding = IDEAL,
    shapes: Mapping[str, Hashable] | None = None,
) -> list[tuple[str, int]]:
    """Return (label, live bytes while it runs) of every node, in execution order.

    Live bytes are the plain sum of what is held, so their largest can be below `Peak.bytes`, which
    has the allocator's waste in it. The arguments are those of `peak`.
    """
    run = LiveBuffers(nodes, sizes, tuple(inputs), outputs, target, shapes or {})
    return run.live()
