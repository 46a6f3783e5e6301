"""What holds a model's peak, and why no patches make it smaller.

At the predicted peak some tensors are alive. Each is held by the nodes around it: one that makes or
reads it and is not row-local keeps it whole, whatever is cut before and after; so does one that
runs while it waits. What the model is given and returns nobody can cut. The bytes are counted by
such causes, in the words in which people speak of them, so that the first one says what it would
take.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from patchconv_deploy.rewriters.memory.lowering.node import copied
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.planning.barrier_names import UNREACHED, BarrierNames
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.regions.refusal import Refusal

__all__ = ["Reason", "fixing_advice", "reasons_of", "size_advice", "unknown_sizes"]


# What an engine adds to the tensors is told if it is more than this share of the peak.
_NOTABLE = 0.05

# What holds less than this share of the peak is not shown to people.
_SHOWN = 0.01

_SHAPED = (1, 3, 512, 512)


@dataclass(frozen=True, slots=True)
class Reason:
    """What holds part of a peak.

    Attributes:
        reason: What, in words: "GroupNorm statistics".
        code: The same as a word that stays the same from release to release: "barrier" (nodes that
            look at the whole image), "engine" (what it takes beside the tensors), "weights" (those
            that lie among the tensors), "interface" (the model's own inputs and outputs),
            "excluded" (the user's choice), "size-unknown", or "no-gain" (patches could be made, and
            do not help), or that of a `Refusal`.
        bytes: Bytes of the tensors that it holds at the peak; None where those are unknown.
        nodes: The nodes it is about; of an interface its tensors.
        advice: What to do.
    """

    reason: str
    code: str
    bytes: int | None
    nodes: tuple[str, ...]
    advice: str

    def shows(self, peak: int) -> bool:
        """Tell whether it is worth a line: what holds next to nothing of a peak is not."""
        return self.bytes is None or self.bytes >= _SHOWN * peak

    @property
    def holds(self) -> str:
        """The reason with its verb: "global pooling holds"."""
        noun = self.reason.partition(" (")[0].partition(",")[0]
        many = self.reason.startswith("layers") or noun.endswith("s")
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

_WEIGHTS = _Cause(
    "weights, laid out for their kernels,",
    "weights",
    "no patches make weights smaller, fewer bits do (float16, 8-bit values)",
)

_WHOLE = "no patches reach through it: run the model on a smaller image"

_STATISTIC = (
    "give a memory budget, or max_recompute=2.5: what stands before it is run a second time behind "
    "it, and not kept"
)

_ADVICE: Mapping[str, str] = {UNREACHED: "only layers around Convs, pools and attention are cut"}

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
        tensor = looked.tensor(name)
        cause, positions = looked.cause(tensor)
        held[cause] += size
        names = [facts.own_label(at) for at in positions] if cause is not _INTERFACE else [tensor]
        nodes[cause].update(dict.fromkeys(names))
    rest = peak.bytes - sum(held.values())
    weights = min(rest, peak.weights.packed)
    if weights > _NOTABLE * peak.bytes:
        held[_WEIGHTS] = weights
        rest -= weights
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
        words += f", from the {index.graph.node[first].op_type} {facts.own_label(first)!r} on"
    names = tuple(facts.own_label(at) for at in sorted(set(makers)))
    advice = "export the model with constant sizes, or simplify it (onnxslim, onnxsim)"
    if facts.assumed:
        # Those that are assumed did not help.
        advice = f"{size_advice(facts)} or at other sizes that it takes; or {advice}"
    return Reason(words, "size-unknown", None, names, advice)


def size_advice(facts: ModelFacts) -> str:
    """Return how to fix sizes that are known once the inputs' are, as large as they are taken."""
    free = {name: tuple(sizes) or _SHAPED for name, sizes in facts.assumed.items()}
    return f"fix with shapes={free}" if free else "fix the inputs' with shapes="


def fixing_advice(facts: ModelFacts) -> str:
    """Return how to fix sizes where height or width is free, since more may be cut then; or ""."""
    dims = facts.certain.shapes.dims
    free = any(None in (dims.get(name) or (None,))[2:] for name in facts.assumed)
    return f"at a fixed size more may be cut: {size_advice(facts)}" if free else ""


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
        self.names = BarrierNames(facts.index, links, why)
        self.kept = kept
        self.refused = refused
        self.order = order
        self.run_rank = {at: rank for rank, at in enumerate(order)}
        respelled = facts.respelled
        # Tensors that are there where something is as the model spells it, not cut.
        self.inside = {
            name: place[0]
            for entry, place in zip(respelled.entries, respelled.places, strict=True)
            for node in entry.originals
            for name in node.output
            if name not in facts.index.producer
        }

    def tensor(self, name: str) -> str:
        """Return the model's tensor that one of an engine's run is, or is a copy of."""
        # What an engine adds is called after what it copies.
        after = (name, copied(name), name.rpartition("/")[0])
        known = (one for one in after if one in self.facts.bytes or one in self.inside)
        return next(known, after[-1] or name)

    def cause(self, name: str) -> tuple[_Cause, list[int]]:
        """Return why a tensor that is alive at the peak is whole, and the nodes it is about."""
        if name in self.inside:
            at = self.inside[name]
            found = self.facts.statistic_of.get(at)
            if found is None:
                return self._no_gain(), [at]
            return _Cause(found.kind, "barrier", self._statistic_advice()), [at]
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
            entry = self.facts.statistic_of.get(worst)
            if entry is not None:
                return _Cause(entry.kind, "barrier", self._statistic_advice()), [worst]
            name, at = self.names.of(worst)
            return _Cause(name, "barrier", _ADVICE.get(name, _WHOLE)), [at]
        return self._no_gain(), [maker]

    def _is_barrier(self, at: int) -> bool:
        node, certain = self.graph.node[at], self.facts.certain
        constant = all(not name or name in self.index.constants for name in node.output)
        sizes = certain.free.makes_sizes(node) or all(
            certain.constants.array(name) is not None for name in node.output if name
        )
        return at not in self.links and at not in self.kept and not constant and not sizes

    def _bytes(self, at: int) -> int:
        """Return what a node reads and makes, without what is of unknown size."""
        node, sizes = self.graph.node[at], self.facts.bytes
        return sum(sizes.get(name) or 0 for name in {*node.input, *node.output})

    def _statistic_advice(self) -> str:
        """Return what to do about a statistic: more can be done at a fixed height."""
        fixing = fixing_advice(self.facts)
        return f"{fixing}; or {_STATISTIC}" if fixing else _STATISTIC

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
            "try more patches (splits=16 or more), more work (max_recompute=3) or axis='width'",
        )
