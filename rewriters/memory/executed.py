"""What an engine runs, node by node, and what an engine is to the memory model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["IDEAL", "VIEWS", "Allocator", "Body", "ExecutedNode", "Holding"]


# Operators whose output shares its first input's bytes on every runtime in view.
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True, slots=True)
class Body:
    """What a node runs inside, over and over; its outputs are held until the node ends.

    Attributes:
        nodes: Its nodes.
        sizes: Bytes of its activations.
        shapes: As for `peak`.
        outputs: Its outputs.
        trips: How often it runs.
    """

    nodes: tuple[ExecutedNode, ...]
    sizes: Mapping[str, int | None]
    shapes: Mapping[str, Hashable]
    outputs: tuple[str, ...]
    trips: int


@dataclass(frozen=True, slots=True)
class ExecutedNode:
    """One node of an execution order: the tensors it reads and makes.

    Attributes:
        label: Its name.
        op_type: Its operator; tables of a `Holding` are looked up by it.
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
class Holding:
    """How an engine orders nodes and holds their tensors.

    Attributes:
        name: What people call it.
        depth_first: The order is a walk from the results to what they need, the newest node
            first; otherwise the nodes run as they stand.
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


IDEAL = Holding("ideal")
