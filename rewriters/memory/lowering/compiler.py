"""What a compiling engine does: pointwise operators inside their readers, results made in place."""

from __future__ import annotations

from patchconv_deploy.rewriters.memory.executed import VIEWS
from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import (
    POINTWISE,
    Lowering,
    Node,
    with_fields,
)

# Operators that put elements elsewhere.
_MOVES = frozenset({"DepthToSpace", "SpaceToDepth", "Transpose"})


def inline_pointwise(graph: Graph, lowering: Lowering) -> None:
    """Run pointwise operators, and moves, inside the pointwise operators that read them."""
    for position, node in list(graph.present()):
        if not _is_cheap(graph, node) or node.makes[0] in graph.outputs:
            continue
        made, node = node.makes[0], graph.nodes[position] or node
        users = [graph.nodes[user] for user in graph.users.get(made, ())]
        if not users or any(user is None or user.op_type not in POINTWISE for user in users):
            continue
        for user in set(graph.users[made]):
            reader = graph.nodes[user]
            assert reader is not None
            kept = [name for name in reader.reads if name != made]
            reads = tuple(dict.fromkeys((*kept, *node.reads)))
            graph.put(user, with_fields(reader, reads=reads))
        graph.remove(position)


def _is_cheap(graph: Graph, node: Node) -> bool:
    """Tell whether a node can be done element by element in what reads it."""
    if node.op_type in ("Resize", "Upsample"):
        return bool(node.attributes.get("mode", "nearest") == "nearest")
    return node.op_type in POINTWISE or node.op_type in _MOVES


def make_in_place(graph: Graph, lowering: Lowering) -> None:
    """Let the inputs of a Concat be made inside its result, if each is in that Concat alone."""
    concats: dict[str, int] = {}
    for _, node in graph.present():
        if node.op_type == "Concat":
            for name in node.reads:
                concats[name] = concats.get(name, 0) + 1
    for position, node in list(graph.present()):
        made = node.makes[0]
        if node.op_type != "Concat":
            continue
        makers = [graph.maker.get(name) for name in node.reads]
        if any(concats[name] > 1 or name in graph.outputs for name in node.reads):
            continue
        if any(maker is None or not _makes_one(graph, maker) for maker in makers):
            continue
        graph.remove(position)
        if made in graph.outputs:
            # It is put together in the compiler's layout first.
            whole = f"{made}/whole"
            graph.like(whole, made)
            graph.put(position, with_fields(node, reads=(whole,)))
            made = whole
        first = min(maker for maker in makers if maker is not None)
        for name, maker in zip(node.reads, makers, strict=True):
            assert maker is not None
            source = graph.nodes[maker]
            assert source is not None
            # The first one's step makes the whole; the others write into it.
            if maker == first:
                graph.put(maker, with_fields(source, makes=(made,)))
            else:
                graph.put(maker, with_fields(source, reads=(*source.reads, made), makes=()))
            for user in set(graph.users.get(name, ())):
                reader = graph.nodes[user]
                assert reader is not None
                reads = tuple(made if read == name else read for read in reader.reads)
                graph.put(user, with_fields(reader, reads=reads))


def _makes_one(graph: Graph, position: int) -> bool:
    node = graph.nodes[position]
    return node is not None and len(node.makes) == 1 and node.op_type not in VIEWS
