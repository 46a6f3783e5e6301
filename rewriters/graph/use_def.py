"""Who makes and who reads each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from patchconv_deploy.rewriters.errors import ModelError
from patchconv_deploy.rewriters.graph.nodes import BODY_KINDS, bodies, captured, node_label

__all__ = ["Index", "index"]


@dataclass(frozen=True)
class Index:
    """Use and definition of every tensor of the main graph.

    Attributes:
        graph: The main graph, not changed while the index is in use.
        producer: Position of the node that makes a tensor.
        users: Positions of the nodes that read a tensor, bodies included, ascending.
        outputs: Names of the graph's outputs.
        constants: Initializers, and whatever is computed from constants alone.
        functions: The model's local functions; inlined, their names come into the graph.
    """

    graph: onnx.GraphProto
    producer: Mapping[str, int]
    users: Mapping[str, list[int]]
    outputs: frozenset[str]
    constants: frozenset[str]
    functions: Sequence[onnx.FunctionProto] = ()

    @cached_property
    def ends(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """What each node reads, bodies included, and makes."""
        return [((*n.input, *captured(n)), tuple(n.output)) for n in self.graph.node]

    @cached_property
    def names(self) -> frozenset[str]:
        """Every tensor and node name in the graph, its bodies and the model's functions.

        Stale shapes' names are included.
        """
        found: set[str] = set()

        def collect_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
            for node in nodes:
                found.add(node.name)
                found.update(node.input)
                found.update(node.output)
                for body in bodies(node):
                    collect(body)

        def collect(graph: onnx.GraphProto) -> None:
            found.update(value.name for value in graph.input)
            found.update(value.name for value in graph.output)
            found.update(value.name for value in graph.value_info)
            found.update(tensor.name for tensor in graph.initializer)
            for sparse in graph.sparse_initializer:
                found.update((sparse.values.name, sparse.indices.name))
            collect_nodes(graph.node)

        collect(self.graph)
        for function in self.functions:
            found.update((function.name, *function.input, *function.output))
            found.update(value.name for value in function.value_info)
            collect_nodes(function.node)
        return frozenset(found)


_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
    | {"Multinomial", "Bernoulli"}
)


def index(model: onnx.ModelProto) -> Index:
    """Index the main graph.

    Raises:
        ModelError: A node reads a tensor that a later node makes.
    """
    graph = model.graph
    producer: dict[str, int] = {}
    users: dict[str, list[int]] = {}
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {sparse.values.name for sparse in graph.sparse_initializer}
    for position, node in enumerate(graph.node):
        reads = [name for name in node.input if name]
        if any(attribute.type in BODY_KINDS for attribute in node.attribute):
            reads += captured(node)
        for name in reads:
            uses = users.setdefault(name, [])
            if not uses or uses[-1] != position:
                uses.append(position)
        if node.op_type not in _RANDOM and all(name in constants for name in reads):
            constants.update(node.output)
        for name in node.output:
            if name:
                producer[name] = position
    for name, uses in users.items():
        if producer.get(name, -1) >= uses[0]:
            raise ModelError(
                f"node {node_label(graph.node[uses[0]])!r} reads {name!r} before it is made; "
                "sort the graph topologically (onnx_graphsurgeon: graph.toposort())"
            )
    return Index(
        graph,
        producer,
        users,
        frozenset(v.name for v in graph.output),
        frozenset(constants),
        tuple(model.functions),
    )
