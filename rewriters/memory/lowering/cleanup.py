"""Nodes that engines drop, and nodes that they spell out in simpler ones."""

from __future__ import annotations

from collections.abc import Mapping

from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import (
    Lowering,
    Node,
    with_fields,
)

_SPELLED: Mapping[str, tuple[str, ...]] = {
    "HardSwish": ("HardSigmoid", "Mul"),
    "Mish": ("Softplus", "Tanh", "Mul"),
}


# Results that are known when shapes are: no run time tensor of any size.
_SHAPES = frozenset({"Shape", "Size", "Constant"})


def eliminate_copies(graph: Graph, lowering: Lowering) -> None:
    """Drop nodes that no engine runs; a result that is a graph output stays."""
    for position, node in list(graph.present()):
        made = node.makes[0] if node.makes else ""
        needed = [name for name in node.reads if name]
        if node.op_type in _SHAPES or all(name in graph.constants for name in needed):
            graph.constants.update(node.makes)
            graph.nodes[position] = None
        elif made not in graph.outputs and _is_copy(graph, node):
            source = node.reads[0]
            graph.renamed[made] = graph.renamed.get(source, source)
            graph.nodes[position] = None
    for position, node in list(graph.present()):
        if any(name in graph.renamed for name in node.reads):
            reads = tuple(graph.renamed.get(name, name) for name in node.reads)
            graph.nodes[position] = with_fields(node, reads=reads)
    graph.index()


def _is_copy(graph: Graph, node: Node) -> bool:
    if not node.reads or not node.reads[0]:
        return False
    source, made = node.reads[0], node.makes[0]
    match node.op_type:
        case "Identity" | "Dropout":
            return True
        case "Cast":
            return source in graph.bits and graph.bits.get(source) == graph.bits.get(made)
        case "Concat":
            return False
        case "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Slice" | "Pad":
            same = graph.dims.get(source) == graph.dims.get(made)
            return same and None not in (graph.dims.get(made) or (None,))
        case _:
            return False


def decompose(graph: Graph, lowering: Lowering) -> None:
    """Replace operators that the engine runs as several."""
    for position, node in list(graph.present()):
        steps = _SPELLED.get(node.op_type)
        if steps is None:
            continue
        graph.remove(position)
        inner = node.reads[0]
        for number, op_type in enumerate(steps):
            last = number == len(steps) - 1
            made = node.makes[0] if last else f"{node.makes[0]}/{number}"
            graph.like(made, node.makes[0])
            reads = (node.reads[0], inner) if op_type == "Mul" else (inner,)
            attributes = {"alpha": 1 / 6, "beta": 0.5} if op_type == "HardSigmoid" else {}
            graph.append(Node(node.label, op_type, reads, (made,), attributes))
            inner = made
