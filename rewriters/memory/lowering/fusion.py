"""Gates and activations that engines run inside another node."""

from __future__ import annotations

from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import (
    Lowering,
    Node,
)


def fuse_swish_and_gelu(graph: Graph, lowering: Lowering) -> None:
    """Fuse x * Sigmoid(x) and the spelled out Gelu into one node."""
    for _, node in list(graph.present()):
        if node.op_type == "Sigmoid":
            user = graph.single_user(node.makes[0])
            if user is not None and user[1].op_type == "Mul" and node.reads[0] in user[1].reads:
                _replace(graph, (node.makes[0],), user, "QuickGelu", node.reads[0])
        elif node.op_type == "Erf":
            _fuse_gelu(graph, node)


def _fuse_gelu(graph: Graph, node: Node) -> None:
    """Fuse Mul(Mul(x, Add(Erf(Div(x, c)), 1)), 0.5), in either order of the Muls."""
    chain = [node.reads[0], node.makes[0]]
    start = graph.producer(node.reads[0])
    if start is None or start[1].op_type not in ("Div", "Mul"):
        return
    source = start[1].reads[0]
    user = None
    for op_type in ("Add", "Mul", "Mul"):
        user = graph.single_user(chain[-1])
        if user is None or user[1].op_type != op_type:
            return
        chain.append(user[1].makes[0])
    assert user is not None
    _replace(graph, tuple(chain[:-1]), user, "Gelu", source)


def _replace(
    graph: Graph, inner: tuple[str, ...], last: tuple[int, Node], op_type: str, source: str
) -> None:
    for name in inner:
        graph.remove(graph.maker[name])
    position, node = last
    graph.remove(position)
    graph.append(Node(node.label, op_type, (source,), node.makes))


def fuse_activations(graph: Graph, lowering: Lowering) -> None:
    """Run an activation inside the Conv before it, and HardSwish where it is spelled out."""
    for position, node in list(graph.present()):
        if node.op_type != "Conv":
            continue
        made = node.makes[0]
        user = graph.single_user(made)
        if user is not None and user[1].op_type in lowering.activations:
            fused, last = user[1].op_type, user
        else:
            found = _hard_swish(graph, made)
            if found is None or "HardSwish" not in lowering.activations:
                continue
            graph.remove(found[0])
            fused, last = "HardSwish", found[1]
        graph.remove(last[0])
        graph.remove(position)
        attributes = {**node.attributes, "activation": fused}
        graph.append(Node(node.label, "FusedConv", node.reads, last[1].makes, attributes))


def _hard_swish(graph: Graph, name: str) -> tuple[int, tuple[int, Node]] | None:
    """Return the position of HardSigmoid and the Mul of x * HardSigmoid(x)."""
    users = sorted(set(graph.users.get(name, ())))
    if len(users) != 2 or name in graph.outputs:
        return None
    for position in users:
        node = graph.nodes[position]
        if node is None or node.op_type != "HardSigmoid":
            continue
        if abs(node.attributes.get("alpha", 0.2) - 1 / 6) > 1e-6:
            return None
        last = graph.single_user(node.makes[0])
        if last is not None and last[1].op_type == "Mul" and last[0] in users:
            return position, last
    return None
