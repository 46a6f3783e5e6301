"""The lowered graph as executed nodes, what kernels need beside tensors, and what loading costs."""

from __future__ import annotations

from math import prod

from patchconv_deploy.rewriters.memory.executed import ExecutedNode
from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import (
    NCHWC,
    Lowered,
    Lowering,
    Node,
    Tensors,
)
from patchconv_deploy.rewriters.memory.peak import Weights
from patchconv_deploy.rewriters.operators.record import Record, Shape, read_convolution

# Where a kernel expands windows segment by segment: bytes, for two threads.
_SEGMENT = 2 * 64 << 10


def lowered(graph: Graph, lowering: Lowering) -> Lowered:
    """Return the graph as it stands."""
    executed, sizes, shapes = [], {}, {}
    known = Tensors(graph.dims, graph.bits, graph.constants, {})
    for _, node in graph.present():
        if lowering.workspaces is None:
            workspace = node.workspace or _workspace(graph, node)
        else:
            workspace = node.workspace + lowering.workspaces.get(node.op_type, 0)
        makes = tuple(name for name in node.makes if name)
        executed.append(
            ExecutedNode(node.label, node.op_type, node.reads, makes, workspace, node.body)
        )
        for name in (*node.reads, *makes):
            if name and name not in sizes and name not in graph.constants:
                sizes[name] = known.bytes(name)
                shapes[name] = (graph.dims.get(name), graph.bits.get(name))
    return Lowered(tuple(executed), sizes, shapes, _weights(graph, lowering, known))


def _weights(graph: Graph, lowering: Lowering, known: Tensors) -> Weights:
    """Return what loading costs: every constant once in each layout it is read in."""
    held: dict[tuple[str, str], int] = {}
    packed: dict[str, int] = {}
    from_arena: list[tuple[str, int]] = []
    made: dict[str, int] = {}
    folded: dict[str, int] = {}
    originals: dict[str, int] = {}
    for _, node in graph.present():
        operand = lowering.packed.get(node.op_type)
        for at, name in enumerate(node.reads):
            if name not in graph.constants:
                continue
            layout, size = "", known.bytes(name) or 0
            source = graph.folded.get(name, name)
            if at == 1 and node.op_type == NCHWC + "Conv":
                layout, size = node.op_type, _in_blocks(graph, lowering.block, name, size)
                made[source] = size
            if source != name:
                folded[source] = known.bytes(source) or 0
            if source in made or source in folded:
                originals[source] = known.bytes(source) or 0
            if at == operand:
                packed[name] = size
                if size and node.op_type in lowering.arena_packed:
                    from_arena.append((name, size))
            held[name, layout] = size
    kept = sum(packed.values())
    # Packed one after the other: what the last was made of is given back.
    left = kept - max(packed.values(), default=0)
    anew = sum(made.values()) + sum(folded.values())
    return Weights(
        sum(held.values()), anew, sum(originals.values()) + left, kept, tuple(from_arena)
    )


def _in_blocks(graph: Graph, block: int, weight: str, size: int) -> int:
    """Return the bytes of a Conv's weight in the blocked layout."""
    dims = graph.dims.get(weight)
    if not dims or None in dims[:2]:
        return size
    made, taken = dims[0] or 0, dims[1] or 0
    more = -(-made // block) * block / max(made, 1)
    # What has few channels is read in the plain layout.
    if taken >= block:
        more *= -(-taken // block) * block / taken
    return int(size * more)


def _workspace(graph: Graph, node: Node) -> int:
    """Return the bytes a kernel needs beside its tensors."""
    made = graph.dims.get(node.makes[0]) if node.makes else None
    source = graph.dims.get(node.reads[0]) if node.reads else None
    if made is None or source is None or None in made or None in source:
        return 0
    match node.op_type:
        case "Conv" | "FusedConv" | "ConvTranspose":
            return _columns(graph, node, source, made)
        case "Softmax" | "LogSoftmax" if node.attributes.get("axis", -1) not in (
            -1,
            len(made) - 1,
        ):
            return 2 * prod(made) * graph.bits.get(node.makes[0], 0) // 8  # type: ignore[arg-type]
        case "Attention":
            return _scores(graph, node, source)
        case "com.microsoft:MultiHeadAttention" if _is_masked(node):
            # Without a mask its kernel goes over the keys block by block.
            return _scores(graph, node, source)
        case "LRN":
            return 3 * prod(made) * graph.bits.get(node.makes[0], 0) // 8  # type: ignore[arg-type]
        case _:
            return 0


def _is_masked(node: Node) -> bool:
    """Tell whether a MultiHeadAttention has a mask, or adds to its scores."""
    return bool(node.attributes.get("unidirectional", 0)) or any(node.reads[4:6])


def _scores(graph: Graph, node: Node, source: Shape) -> int:
    """Return the bytes of the scores of all queries and keys, which the kernel makes at once."""
    keys = graph.dims.get(node.reads[1]) if len(node.reads) > 1 else None
    if keys is None or None in keys or len(keys) != len(source) or len(source) < 3:
        return 0
    given = node.attributes.get("q_num_heads", node.attributes.get("num_heads", 1))
    heads = source[1] if len(source) > 3 else given
    sizes = (source[0], heads, source[-2], keys[-2])
    return prod(size or 0 for size in sizes) * graph.bits.get(node.makes[0], 0) // 8


def _columns(graph: Graph, node: Node, source: Shape, made: Shape) -> int:
    """Return the bytes of the matrix that windows are unfolded into."""
    weight = graph.dims.get(node.reads[1])
    op_type = "ConvTranspose" if node.op_type == "ConvTranspose" else "Conv"
    conv = read_convolution(Record(op_type, 11, node.attributes, (source, weight)))
    if isinstance(conv, str) or weight is None or None in weight:
        return 0
    taps = prod(conv.kernel)
    if op_type == "ConvTranspose":
        return (weight[1] or 0) * taps * prod(s or 0 for s in source[2:]) * 4
    pointwise = taps == 1 and set(conv.strides) == {1} and not any(conv.begins + conv.ends)
    if pointwise:
        return 0
    positions = prod(s or 0 for s in made[2:])
    if (weight[0] or 0) // conv.group > positions:
        return (weight[1] or 0) * taps * positions * 4
    return _SEGMENT
