"""What holds a model's peak, and why no patches make it smaller.

At the predicted peak some tensors are alive. Each is held by the nodes around it: one that makes or
reads it and is not row-local keeps it whole, whatever is cut before and after; so does one that
runs while it waits. What the model is given and returns nobody can cut. The bytes are counted by
such causes, in the words in which people speak of them, so that the first one says what it would
take.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from rewriters.memory.lowering.node import copied
from rewriters.memory.peak import Peak
from rewriters.planning.model_facts import ModelFacts
from rewriters.planning.predictor import MemoryPredictor
from rewriters.regions.refusal import Refusal

__all__ = ["Reason", "reasons_of", "size_advice", "unknown_sizes"]


# Operators that move or view elements: what they stand around says what they are for.
_LAYOUT = frozenset("Reshape Transpose Flatten Squeeze Unsqueeze Identity Cast Expand".split())

# How many of them stand in a row.
_FAR = 4

_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})

_ATTENTION = frozenset({"Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention"})

_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})

# What an engine adds to the tensors is told if it is more than this share of the peak.
_NOTABLE = 0.05

_SHAPED = (1, 3, 512, 512)


@dataclass(frozen=True, slots=True)
class Reason:
    """What holds part of a peak.

    Attributes:
        reason: What, in words: "GroupNorm statistics".
        code: The same as a word that stays the same from release to release: "barrier" (nodes that
            look at the whole image), "engine" (what it takes beside the tensors), "interface" (the
            model's own inputs and outputs), "excluded" (the user's choice), "size-unknown", or
            "no-gain" (patches could be made, and do not help), or that of a `Refusal`.
        bytes: Bytes of the tensors that it holds at the peak; None where those are unknown.
        nodes: The nodes it is about; of an interface its tensors.
        advice: What to do.
    """

    reason: str
    code: str
    bytes: int | None
    nodes: tuple[str, ...]
    advice: str

    @property
    def holds(self) -> str:
        """The reason with its verb: "global pooling holds"."""
        many = self.reason.startswith("layers") or self.reason.partition(" (")[0].endswith("s")
        return f"{self.reason} {'hold' if many else 'holds'}"


@dataclass(frozen=True)
class _Cause:
    """Why one tensor is whole; `Reason` without what is counted."""

    reason: str
    code: str
    advice: str


_INTERFACE = _Cause(
    "the model's own inputs and outputs",
    "interface",
    "no patches make them smaller: fix a smaller size with shapes=, or run the model on tiles",
)

_ENGINE = _Cause(
    "workspaces of kernels and an allocator's chunks",
    "engine",
    "form='sequential' lowers a Conv's workspace, and nothing else",
)

_EXCLUDED = _Cause("what was excluded", "excluded", "leave out exclude=, or widen include=")


def reasons_of(
    predictor: MemoryPredictor,
    peak: Peak,
    links: Collection[int],
    why: Mapping[int, str],
    kept: Collection[int],
    refused: Sequence[Refusal],
    engine: str,
) -> tuple[Reason, ...]:
    """Return what holds a model's peak, unknown sizes first, then by bytes.

    Args:
        predictor: Predicts the model's memory.
        peak: Its predicted peak.
        links: Positions of the nodes that may be in a region.
        why: Why others may not, as far as they were asked.
        kept: Positions of the nodes that the user wants left as they are.
        refused: Regions that turned out not to be provable.
        engine: A key of `memory.targets.ENGINES`.
    """
    held: dict[_Cause, int] = defaultdict(int)
    nodes: dict[_Cause, dict[str, None]] = defaultdict(dict)
    facts = predictor.facts
    looked = _Looked(facts, predictor.run(engine)[0], links, why, kept, refused)
    for name, size in peak.alive:
        tensor = _tensor(facts, name)
        cause, positions = looked.cause(tensor)
        held[cause] += size
        names = [facts.labels[at] for at in positions] if cause is not _INTERFACE else [tensor]
        nodes[cause].update(dict.fromkeys(names))
    rest = peak.bytes - sum(held.values())
    if rest > _NOTABLE * peak.bytes:
        held[_ENGINE] = rest
    found = [
        Reason(cause.reason, cause.code, size, tuple(nodes[cause]), cause.advice)
        for cause, size in sorted(held.items(), key=lambda entry: -entry[1])
    ]
    unknown = unknown_sizes(facts) if peak.unknown else None
    return tuple(found if unknown is None else [unknown, *found])


def unknown_sizes(facts: ModelFacts) -> Reason:
    """Return the reason why a peak is unknown: the first node whose result has no size."""
    index = facts.index
    makers = [index.producer[name] for name in facts.unsized if name in index.producer]
    first = min(makers, default=None)
    count = len(facts.unsized)
    words = f"sizes unknown: {count} tensors" if count else "sizes unknown inside a Loop or If"
    if first is not None:
        words += f", from the {index.graph.node[first].op_type} {facts.labels[first]!r} on"
    names = tuple(facts.labels[at] for at in sorted(set(makers)))
    advice = "export the model with constant sizes, or simplify it (onnxslim, onnxsim)"
    if facts.assumed:
        # Those that are assumed did not help.
        advice = f"{size_advice(facts)} or at other sizes that it takes; or {advice}"
    return Reason(words, "size-unknown", None, names, advice)


def size_advice(facts: ModelFacts) -> str:
    """Return how to fix sizes that are known once the inputs' are, as large as they are taken."""
    free = {name: tuple(sizes) or _SHAPED for name, sizes in facts.assumed.items()}
    return f"fix with shapes={free}" if free else "fix the inputs' with shapes="


def _tensor(facts: ModelFacts, name: str) -> str:
    """Return the model's tensor that one of an engine's run is, or is a copy of."""
    if name in facts.bytes:
        return name
    base = copied(name)
    return base if base in facts.bytes else name.rpartition("/")[0] or name


class _Looked:
    """A model as it is looked at for causes.

    Args:
        facts: The model.
        order: Its nodes, by position, as the engine runs them.
        links: Positions of the nodes that may be in a region.
        why: Why others may not, as far as they were asked.
        kept: Positions of the nodes that the user wants left as they are.
        refused: Regions that turned out not to be provable.
    """

    def __init__(
        self,
        facts: ModelFacts,
        order: Sequence[int],
        links: Collection[int],
        why: Mapping[int, str],
        kept: Collection[int],
        refused: Sequence[Refusal],
    ) -> None:
        self.facts = facts
        self.index = facts.index
        self.graph = facts.index.graph
        self.links = links
        self.why = why
        self.kept = kept
        self.refused = refused
        self.order = order
        self.run_rank = {at: rank for rank, at in enumerate(order)}

    def cause(self, name: str) -> tuple[_Cause, list[int]]:
        """Return why a tensor that is alive at the peak is whole, and the nodes it is about."""
        maker = self.index.producer.get(name)
        users = list(dict.fromkeys(self.index.users.get(name, ())))
        if maker is None or name in self.index.outputs:
            return _INTERFACE, []
        around = [maker, *users]
        barriers = [at for at in around if self._is_barrier(at)]
        if not barriers and any(at in self.kept for at in around):
            return _EXCLUDED, [at for at in around if at in self.kept]
        if not barriers and users:
            waits = self.order[self.run_rank[maker] : max(self.run_rank[at] for at in users) + 1]
            barriers = [at for at in waits if self._is_barrier(at) and self._bytes(at)]
        if barriers:
            worst = max(barriers, key=lambda at: (self._bytes(at), -at))
            kind, at = self._kind(worst)
            return _barrier(kind), [at]
        return self._no_gain(), [maker]

    def _is_barrier(self, at: int) -> bool:
        node = self.graph.node[at]
        constant = all(not name or name in self.index.constants for name in node.output)
        return at not in self.links and at not in self.kept and not constant

    def _bytes(self, at: int) -> int:
        """Return what a node reads and makes, without what is of unknown size."""
        node, sizes = self.graph.node[at], self.facts.bytes
        return sum(sizes.get(name) or 0 for name in {*node.input, *node.output})

    def _no_gain(self) -> _Cause:
        """Return why patches that could be made do not help."""
        found = Counter((refusal.reason, refusal.code) for refusal in self.refused)
        if found:
            (reason, code), _ = found.most_common(1)[0]
            unknown = code == "size-unknown"
            advice = size_advice(self.facts) if unknown else "try axis='width'"
            return _Cause(reason, code, advice)
        return _Cause(
            "layers whose patches would need as much",
            "no-gain",
            "try splits=16, max_recompute=3 or axis='width'",
        )

    # --- the words of the field ---------------------------------------------------------------

    def _kind(self, at: int) -> tuple[str, int]:
        """Return what a node that is not row-local is called, and the node that gives the name."""
        node = self.graph.node[at]
        for other in (at, *(self._beyond(at) if node.op_type in _LAYOUT else ())):
            known = self._known_as(other)
            if known is not None:
                return known, other
        reason = self.why.get(at)
        return (_UNREACHED if reason is None else f"{node.op_type} ({reason})"), at

    def _known_as(self, at: int) -> str | None:
        node = self.graph.node[at]
        op = node.op_type
        if op == "InstanceNormalization":
            before = self.index.producer.get(node.input[0])
            grouped = before is not None and self.graph.node[before].op_type == "Reshape"
            return f"{'GroupNorm' if grouped else 'InstanceNorm'} statistics"
        if op in ("GroupNormalization", "GroupNorm", "SkipGroupNorm"):
            return "GroupNorm statistics"
        if op in ("LayerNormalization", "MeanVarianceNormalization") and at in self.why:
            return f"{op} statistics"
        if op in _POOLS:
            return "global pooling"
        if op.startswith("Reduce") and at in self.why:
            return f"statistics over the image ({op})"
        if op in _ATTENTION or self._is_attention(at):
            return "attention (each row looks at all others)"
        if op in _BODIES:
            return f"{op} (a graph of its own)"
        return None

    def _is_attention(self, at: int) -> bool:
        """Tell a product of two activations, and the Softmax of one."""
        node = self.graph.node[at]
        if node.op_type in ("MatMul", "Einsum", "FusedMatMul"):
            return not any(name in self.index.constants for name in node.input)
        if node.op_type != "Softmax" or at in self.links:
            return False
        makers = (self.index.producer.get(name) for name in node.input)
        before = [maker for maker in makers if maker is not None]
        for _ in range(_FAR):
            if any(self.graph.node[p].op_type in ("MatMul", "Einsum") for p in before):
                return True
            names = [name for p in before for name in self.graph.node[p].input]
            before = [self.index.producer[name] for name in names if name in self.index.producer]
        return False

    def _beyond(self, at: int) -> Iterator[int]:
        """Yield the nodes after, then before, a node that only moves elements."""
        for step in (self._after, self._before):
            there = [at]
            for _ in range(_FAR):
                there = [other for here in there for other in step(self.graph.node[here])]
                yield from there
                there = [other for other in there if self.graph.node[other].op_type in _LAYOUT]

    def _after(self, node: onnx.NodeProto) -> list[int]:
        return [at for name in node.output for at in self.index.users.get(name, ())]

    def _before(self, node: onnx.NodeProto) -> list[int]:
        return [self.index.producer[name] for name in node.input if name in self.index.producer]


def _barrier(kind: str) -> _Cause:
    return _Cause(kind, "barrier", _ADVICE.get(kind, _WHOLE))


_UNREACHED = "layers that no Conv or pool leads to"

_WHOLE = "no patches reach through it: run the model on a smaller image"

_ADVICE: Mapping[str, str] = {_UNREACHED: "only layers around Convs and pools are cut"}
