"""Constants of a model: by name, and taking out nodes and what nobody reads any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx

from patchconv_deploy.rewriters.emission.splice import drop_unused_value_info
from patchconv_deploy.rewriters.graph.use_def import index

__all__ = ["constants_of", "replace_nodes"]


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return what cannot change, by every name it goes by; initializers and Constant nodes."""
    inputs = {value.name for value in graph.input}
    known = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            known.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        elif node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
    return known


def replace_nodes(
    model: onnx.ModelProto,
    gone: Collection[int],
    made: Sequence[onnx.TensorProto],
    read: Iterable[str],
    behind: Mapping[int, Sequence[onnx.NodeProto]] | None = None,
) -> None:
    """Take out nodes, add constants, and drop those that nobody reads any more.

    Args:
        model: The model, changed in place.
        gone: Positions of the nodes to take out.
        made: New constants.
        read: Names of the constants that are dropped if nobody reads them.
        behind: Nodes to put in, by the position of the node that they go behind.
    """
    graph, behind = model.graph, behind or {}
    between = {graph.node[at].input[0] for at in gone}
    nodes: list[onnx.NodeProto] = []
    for at, node in enumerate(graph.node):
        nodes += [] if at in gone else [node]
        nodes += behind.get(at, ())
    if model.ir_version >= 4:
        graph.initializer.extend(made)
    else:  # every initializer is listed among the inputs there
        nodes[:0] = [
            onnx.helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
            for tensor in made
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused_value_info(graph, between)
    _drop_unread(model, read)


def _drop_unread(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Drop the constants among ``names`` that nobody reads, with the nodes they came by."""
    graph = model.graph
    found = index(model)
    inputs = {value.name for value in graph.input}
    readers = {name: len(found.users.get(name, ())) for name in names}
    nodes: set[int] = set()
    dead: set[str] = set()
    queue = [name for name, users in readers.items() if not users]
    for name in queue:
        if name in dead or name in found.outputs or name in inputs:
            continue
        dead.add(name)
        at = found.producer.get(name)
        if at is not None:
            nodes.add(at)
            queue += [
                source for source in graph.node[at].input if set(found.users[source]) <= nodes
            ]
    for at in sorted(nodes, reverse=True):
        del graph.node[at]
    for at in reversed(range(len(graph.initializer))):
        if graph.initializer[at].name in dead:
            del graph.initializer[at]
    drop_unused_value_info(graph, dead)
