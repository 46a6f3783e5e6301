"""Convolutions with an activation inside, as ONNX Runtime writes them, in ONNX's own operators.

    x, w, b, z -- FusedConv -- y        ->        x, w, b -- Conv -- Add (z) -- activation -- y

A file that ONNX Runtime saved has ``com.microsoft.FusedConv``, which no other engine takes and
shape inference does not know. The runtime fuses what is written here again when it loads it.

Not done where the activation is none of those below, or the type of a Clip's bounds is unknown.

Source: ONNX Runtime's contrib operator FusedConv.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import onnx

from patchconv_deploy.rewriters.graph.nodes import attributes

__all__ = ["write_out_fused_convs"]


_DOMAIN, _OP = "com.microsoft", "FusedConv"

# The activation's parameters, in the order in which they are given.
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}

# From here on a Clip's bounds are inputs.
_CLIP_INPUTS = 11


def write_out_fused_convs(graph: onnx.GraphProto, opset: int) -> bool:
    """Write every FusedConv of a main graph as the nodes that it stands for, in place.

    Args:
        graph: The graph.
        opset: Version of the default domain.

    Returns:
        Whether there was any.
    """
    if not any(node.op_type == _OP and node.domain == _DOMAIN for node in graph.node):
        return False
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output)} | kinds.keys()
    nodes: list[onnx.NodeProto] = []
    for node in tuple(graph.node):
        written = None
        if node.op_type == _OP and node.domain == _DOMAIN:
            written = _written_out(node, opset, kinds.get(node.input[1]), taken)
        nodes.extend([node] if written is None else written)
    done = len(nodes) != len(graph.node) or any(
        new is not old for new, old in zip(nodes, graph.node, strict=True)
    )
    del graph.node[:]
    graph.node.extend(nodes)
    return done


def _written_out(
    node: onnx.NodeProto, opset: int, kind: int | None, taken: set[str]
) -> list[onnx.NodeProto] | None:
    """Return the nodes that a FusedConv stands for, None where it has to stay.

    Args:
        node: The FusedConv.
        opset: Version of the default domain.
        kind: Its element type, None where it is unknown.
        taken: Names that are taken; those that are made are added.
    """
    values = attributes(node)
    activation = values.get("activation", "")
    given = values.get("activation_params", ())
    names = _PARAMETERS.get(activation)
    if activation and (names is None or len(given) != len(names)):
        return None
    bounds = activation == "Clip" and opset >= _CLIP_INPUTS
    if bounds and kind is None:
        return None
    z = node.input[3] if len(node.input) > 3 else ""
    steps = ["Conv", *(["Add"] if z else []), *([activation] if activation else [])]
    base = node.name or node.output[0]
    made = [_free(f"{base}/{step}", taken) for step in steps[:-1]] + [node.output[0]]
    conv = onnx.NodeProto()
    conv.CopyFrom(node)
    conv.op_type, conv.domain = "Conv", ""
    del conv.input[:], conv.output[:], conv.attribute[:]
    conv.input.extend(node.input[: 3 if len(node.input) > 2 and node.input[2] else 2])
    conv.output.append(made[0])
    conv.attribute.extend(_other_than(node.attribute, ("activation", "activation_params")))
    written = [conv]
    if z:
        name = _free(f"{base}/Add", taken)
        written.append(onnx.helper.make_node("Add", [made[0], z], [made[1]], name=name))
    if activation:
        name = _free(f"{base}/{activation}", taken)
        parameters: dict[str, Any] = dict(
            zip(names or (), (float(each) for each in given), strict=True)
        )
        inputs = [made[-2]]
        if bounds:
            for key, number in parameters.items():
                written.append(_constant(number, kind or 0, _free(f"{base}/{key}", taken)))
                inputs.append(written[-1].output[0])
            parameters = {}
        written.append(
            onnx.helper.make_node(activation, inputs, [made[-1]], name=name, **parameters)
        )
    return written


def _constant(number: float, kind: int, name: str) -> onnx.NodeProto:
    array = np.array(number, onnx.helper.tensor_dtype_to_np_dtype(kind))
    tensor = onnx.numpy_helper.from_array(array, name)
    return onnx.helper.make_node("Constant", [], [name], name=name, value=tensor)


def _other_than(
    held: Iterable[onnx.AttributeProto], names: tuple[str, ...]
) -> Iterator[onnx.AttributeProto]:
    return (each for each in held if each.name not in names)


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    found = next(each for each in names if each not in taken)
    taken.add(found)
    return found
