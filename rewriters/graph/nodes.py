"""Nodes: their names for people, their attributes, the graphs inside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count as count_from
from typing import Any

import onnx

from patchconv_deploy.rewriters.operators.record import CONVOLUTIONS, ONNX_DOMAINS

__all__ = [
    "BODY_KINDS",
    "attributes",
    "bodies",
    "captured",
    "convolutions_in_bodies",
    "node_label",
    "node_labels",
]


LONGEST_LIST = 4096


def node_label(node: onnx.NodeProto) -> str:
    """Return the node's name, or its first output's name where it has none."""
    return node.name or next((name for name in node.output if name), node.op_type)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the node's numbers and strings as Python values; tensors and graphs are left out.

    A list is cut where it is longer than any that says how to compute (a Constant's values are).
    """
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        match attribute.type:
            case onnx.AttributeProto.INT:
                values[attribute.name] = attribute.i
            case onnx.AttributeProto.FLOAT:
                values[attribute.name] = attribute.f
            case onnx.AttributeProto.STRING:
                values[attribute.name] = attribute.s.decode("utf-8", "replace")
            case onnx.AttributeProto.INTS:
                values[attribute.name] = tuple(attribute.ints[:LONGEST_LIST])
            case onnx.AttributeProto.FLOATS:
                values[attribute.name] = tuple(attribute.floats[:LONGEST_LIST])
            case _:
                pass
    return values


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs a node holds as attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def convolutions_in_bodies(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Yield (label, place) of every convolution inside a subgraph or a model-local function."""

    def nested(node: onnx.NodeProto, place: str) -> Iterator[tuple[str, str]]:
        for body in bodies(node):
            for inner in body.node:
                if inner.op_type in CONVOLUTIONS and inner.domain in ONNX_DOMAINS:
                    yield node_label(inner), place
                yield from nested(inner, place)

    for node in model.graph.node:
        yield from nested(node, f"the body of {node.op_type} {node_label(node)!r}")
    for function in model.functions:
        place = f"the function {function.domain}::{function.name}"
        for node in function.node:
            if node.op_type in CONVOLUTIONS and node.domain in ONNX_DOMAINS:
                yield node_label(node), place
            yield from nested(node, place)


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the outer tensors that a node's bodies read."""
    for body in bodies(node):
        own = {value.name for value in body.input} | {value.name for value in body.initializer}
        own |= {sparse.values.name for sparse in body.sparse_initializer}
        for inner in body.node:
            yield from (name for name in inner.input if name and name not in own)
            yield from (name for name in captured(inner) if name not in own)
            own.update(inner.output)
        yield from (value.name for value in body.output if value.name not in own)


BODY_KINDS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def node_labels(graph: onnx.GraphProto) -> dict[int, str]:
    """Return a label per node, unique: its name, or its output's where that is not."""
    count = Counter(node.name for node in graph.node)
    taken = {name for name, times in count.items() if name and times == 1}
    labels = {}
    for position, node in enumerate(graph.node):
        label = node.name
        if not label or count[label] > 1:
            # Node and tensor names are two spaces: an output may be called like another node.
            base = next((name for name in node.output if name), node.op_type)
            free = (f"{base}_{number}" for number in count_from(2))
            label = base if base not in taken else next(n for n in free if n not in taken)
            taken.add(label)
        labels[position] = label
    return labels
