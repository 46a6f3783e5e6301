"""Nodes and tensors as the memory model reads them, and what an engine makes of them: data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from patchconv_deploy.rewriters.memory.executed import Body, ExecutedNode
from patchconv_deploy.rewriters.memory.peak import Weights
from patchconv_deploy.rewriters.operators.record import Shape


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph, as far as it matters to memory.

    Attributes:
        label: Its name.
        op_type: Its operator, "domain:" in front unless it is of the default domain.
        reads: Inputs by position, "" for one left out; what bodies capture comes last.
        makes: Outputs by position, "" for one left out.
        attributes: Numbers, strings and tuples.
        workspace: Bytes it needs while it runs, if known beforehand.
        body: What a Loop runs, lowered.
    """

    label: str
    op_type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    workspace: int = 0
    body: Body | None = None


@dataclass(frozen=True)
class Tensors:
    """What is known of tensors.

    Attributes:
        dims: Shape of each, None for an unknown size.
        bits: Bits of one element of each.
        constants: Initializers and what is computed from constants alone.
        values: Values of small constants, flat.
        open: Tensors whose shape is assumed: an engine does not know it when it loads the model.
        external: Weights lie in files of their own.
    """

    dims: Mapping[str, Shape]
    bits: Mapping[str, int]
    constants: Collection[str]
    values: Mapping[str, tuple[float, ...]]
    open: Collection[str] = frozenset()
    external: bool = False

    def bytes(self, name: str) -> int | None:
        """Return a tensor's size, None if it is unknown."""
        dims, bits = self.dims.get(name), self.bits.get(name)
        if dims is None or bits is None or None in dims:
            return None
        return (prod(dims) * bits + 7) // 8  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lowering:
    """What an engine folds and fuses.

    Attributes:
        activations: Operators that run inside the Conv before them.
        block: Channels of a block of the blocked layout; 0 if there is none.
        packed: Operators whose constant operand of that position is packed anew and held.
        arena_packed: Those of them that take the room for it from the arena.
        passes: What it does, in order; each changes the graph and nothing else.
        compiler: It knows every size when it builds: what holds a place for sizes costs nothing.
        widened: Bits an element of so many bits is computed in, where there are no such kernels.
        workspaces: Bytes per operator that a kernel takes; given, they replace the formulas of
            ONNX Runtime's kernels.
        shares: Convs of one weight that are folded alike have one weight afterwards.
    """

    passes: tuple[Callable[[Any, Lowering], None], ...]
    activations: frozenset[str] = frozenset()
    block: int = 0
    packed: Mapping[str, int] = field(default_factory=dict)
    arena_packed: frozenset[str] = frozenset()
    compiler: bool = False
    workspaces: Mapping[str, int] | None = None
    widened: Mapping[int, int] = field(default_factory=dict)
    shares: bool = False


@dataclass(frozen=True)
class Lowered:
    """Steps for `memory.peak.peak`, with their tensors.

    Attributes:
        nodes: In the order of the engine's node numbers.
        sizes: Bytes of every activation, None where unknown.
        shapes: What must be equal for two tensors to share a buffer.
        weights: What loading costs.
    """

    nodes: tuple[ExecutedNode, ...]
    sizes: Mapping[str, int | None]
    shapes: Mapping[str, Hashable]
    weights: Weights


def copied(label: str) -> str:
    """Return the tensor that a node which an engine adds copies: the node is called after it."""
    return label.rpartition(" (")[0] or label


# Operators that compute each element from the elements at its place.
POINTWISE = frozenset(
    {"Relu", "LeakyRelu", "Elu", "Selu", "Celu", "PRelu", "ThresholdedRelu", "Clip", "Gelu", "Mish"}
    | {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Erf", "Sqrt", "Exp"}
    | {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Neg", "Abs", "Log", "Reciprocal"}
    | {"Floor", "Ceil", "Round", "Sign", "Where", "Cast", "BatchNormalization", "Identity"}
)


CONV_LIKE = ("Conv", "FusedConv")


NCHWC = "nchwc:"


def with_fields(node: Node, **changes: Any) -> Node:
    """Return a node with some fields replaced."""
    return replace(node, **changes)
