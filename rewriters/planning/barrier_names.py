"""What people call a node that is not row-local: attention, GroupNorm statistics, pooling."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from patchconv_deploy.rewriters.graph.use_def import Index

__all__ = ["UNREACHED", "BarrierNames"]


# What is said of a node that nobody asked whether it is row-local.
UNREACHED = "layers that no Conv, pool or attention leads to"

# Operators that move or view elements: what they stand around says what they are for.
_LAYOUT = frozenset("Reshape Transpose Flatten Squeeze Unsqueeze Identity Cast Expand".split())

# How many of them stand in a row.
_FAR = 4

_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})

_ATTENTION = frozenset({"Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention"})

_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@dataclass(frozen=True, slots=True)
class BarrierNames:
    """Names of the nodes of a graph that are not row-local.

    Attributes:
        index: The graph.
        links: Positions of the nodes that may be in a region.
        why: Why others may not, as far as they were asked.
    """

    index: Index
    links: Collection[int]
    why: Mapping[int, str]

    def of(self, at: int) -> tuple[str, int]:
        """Return what a node that is not row-local is called, and the node that gives the name."""
        node = self.index.graph.node[at]
        for other in (at, *(self._beyond(at) if node.op_type in _LAYOUT else ())):
            known = self._known_as(other)
            if known is not None:
                return known, other
        reason = self.why.get(at)
        return (UNREACHED if reason is None else f"{node.op_type} ({reason})"), at

    def _known_as(self, at: int) -> str | None:
        node = self.index.graph.node[at]
        op = node.op_type
        if op == "InstanceNormalization":
            before = self.index.producer.get(node.input[0])
            grouped = before is not None and self.index.graph.node[before].op_type == "Reshape"
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
        node = self.index.graph.node[at]
        if node.op_type in ("MatMul", "Einsum", "FusedMatMul"):
            return not any(name in self.index.constants for name in node.input)
        if node.op_type != "Softmax" or at in self.links:
            return False
        makers = (self.index.producer.get(name) for name in node.input)
        before = [maker for maker in makers if maker is not None]
        for _ in range(_FAR):
            if any(self.index.graph.node[p].op_type in ("MatMul", "Einsum") for p in before):
                return True
            names = [name for p in before for name in self.index.graph.node[p].input]
            before = [self.index.producer[name] for name in names if name in self.index.producer]
        return False

    def _beyond(self, at: int) -> Iterator[int]:
        """Yield the nodes after, then before, a node that only moves elements."""
        for step in (self._after, self._before):
            there = [at]
            for _ in range(_FAR):
                there = [other for here in there for other in step(self.index.graph.node[here])]
                yield from there
                there = [
                    other for other in there if self.index.graph.node[other].op_type in _LAYOUT
                ]

    def _after(self, node: onnx.NodeProto) -> list[int]:
        return [at for name in node.output for at in self.index.users.get(name, ())]

    def _before(self, node: onnx.NodeProto) -> list[int]:
        return [self.index.producer[name] for name in node.input if name in self.index.producer]
