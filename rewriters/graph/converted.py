"""What onnx's version converter gets wrong, put right or refused.

    Upsample, Resize   until opset 10 a row of the output is mapped to the row over the scale, and
                       ONNX Runtime rounds that down (up where the scale is below 1). From 11 on the
                       operator says what it does, and the converter leaves its defaults in place:
                       half_pixel, round_prefer_floor. Only nearest by a whole factor is the same
    Hardmax            until opset 12 over all dimensions from the axis on; Softmax and LogSoftmax
                       are converted right
    Pad                reflect and edge keep the attribute `value`, which opset 11 does not know
    Dropout            what its mask holds where nothing is dropped is another thing in each opset
    GroupNormalization from opset 21 scale and bias are per channel, before per group

Tried with one small model per operator, opset 7 to 21, run under ONNX Runtime before and after
(``tests/test_converted.py``).

Source: onnxruntime/core/providers/cpu/tensor/upsamplebase.h (ResizeNearestMode::SIMPLE).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.external_data import is_external
from patchconv_deploy.rewriters.graph.model import opset_of
from patchconv_deploy.rewriters.graph.nodes import attributes, bodies, node_label
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["put_right"]


@dataclass(frozen=True, slots=True)
class _Change:
    """A conversion.

    Attributes:
        old: Opset of the original.
        new: Opset of the converted model.
        resized: Tensors that a Resize makes in the original.
    """

    old: int
    new: int
    resized: frozenset[str]

    def crosses(self, version: int) -> bool:
        """Tell whether an operator that changed with a version is affected."""
        return self.old < version <= self.new


def put_right(converted: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Make a converted model compute what the original does, in place.

    Args:
        converted: What onnx's version converter made.
        original: What it was made from.

    Raises:
        OptionError: That cannot be said in the new opset.
    """
    resized = {name for name, op in _makers(original.graph).items() if op == "Resize"}
    change = _Change(opset_of(original), opset_of(converted), frozenset(resized))
    _refuse(original.graph, change)
    _put_right(converted.graph, change, {})


def _refuse(graph: onnx.GraphProto, change: _Change) -> None:
    """Refuse what has no counterpart.

    Raises:
        OptionError: A node of the original is such.
    """
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    for node in graph.node:
        for body in bodies(node):
            _refuse(body, change)
        if node.domain not in ONNX_DOMAINS:
            continue
        if node.op_type == "Dropout" and read & set(node.output[1:]) and change.crosses(12):
            raise OptionError(
                f"upgrade_opset=: the mask of Dropout {node_label(node)!r} is read, and holds "
                "something else in later opsets; export the model anew, for inference"
            )
        if node.op_type == "GroupNormalization" and change.crosses(21):
            raise OptionError(
                f"upgrade_opset=: GroupNormalization {node_label(node)!r} has a scale per group, "
                "from opset 21 on it is per channel; ask for opset 20"
            )


def _makers(graph: onnx.GraphProto) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in graph.node:
        found.update(dict.fromkeys(node.output, node.op_type))
        for body in bodies(node):
            found.update(_makers(body))
    return found


def _put_right(
    graph: onnx.GraphProto, change: _Change, outer: Mapping[str, onnx.TensorProto]
) -> None:
    constants = {**outer, **dict(_constants(graph))}
    hardmax = []
    for node in graph.node:
        for body in bodies(node):
            _put_right(body, change, constants)
        if node.domain not in ONNX_DOMAINS:
            continue
        if node.op_type == "Resize" and change.crosses(11):
            _set(node, "coordinate_transformation_mode", "asymmetric")
            _set(node, "nearest_mode", _rounding(node, change, constants))
        elif node.op_type == "Pad" and change.crosses(11):
            _drop(node, "value")
        elif node.op_type == "Hardmax" and change.crosses(13):
            hardmax.append(node)
    for node in hardmax:
        _flatten_around(graph, node)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    inputs = {value.name for value in graph.input}
    # A default value that a caller may override says nothing.
    yield from ((t.name, t) for t in graph.initializer if t.name not in inputs)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t


def _rounding(
    node: onnx.NodeProto, change: _Change, constants: Mapping[str, onnx.TensorProto]
) -> str:
    """Return how opset 10 rounds to the nearest; of Resize that depends on the scale.

    Raises:
        OptionError: The scales are not known, or both above and below 1.
    """
    nearest = attributes(node).get("mode", "nearest") == "nearest"
    if node.output[0] not in change.resized or not nearest:
        return "floor"
    scales = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scales is None or is_external(scales):
        raise OptionError(_REFUSED.format(node_label(node), "scales that are computed"))
    given = onnx.numpy_helper.to_array(scales).reshape(-1)
    if not (given < 1).any():
        return "floor"
    if (given > 1).any():
        raise OptionError(_REFUSED.format(node_label(node), "scales above and below 1"))
    return "ceil"


_REFUSED = (
    "upgrade_opset=: Resize {!r} takes the nearest value by {}, which opset 10 rounds as no later "
    "opset can; export the model anew, at opset 11 or above"
)


def _flatten_around(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Let a node work on a matrix: the dimensions from its axis on are one."""
    axis = attributes(node).get("axis", 1)
    x, y = node.input[0], node.output[0]
    shape, flat, matrix = (f"{y}/patchconv/{what}" for what in ("shape", "flat", "matrix"))
    made = [
        onnx.helper.make_node("Shape", [x], [shape]),
        onnx.helper.make_node("Flatten", [x], [flat], axis=axis),
        onnx.NodeProto.FromString(node.SerializeToString()),
        onnx.helper.make_node("Reshape", [matrix, shape], [y]),
    ]
    _drop(made[2], "axis")
    made[2].input[0], made[2].output[0] = flat, matrix
    at = next(at for at, other in enumerate(graph.node) if y in other.output)
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in graph.node]
    nodes[at : at + 1] = made
    del graph.node[:]
    graph.node.extend(nodes)


def _set(node: onnx.NodeProto, name: str, text: str) -> None:
    _drop(node, name)
    node.attribute.append(onnx.helper.make_attribute(name, text))


def _drop(node: onnx.NodeProto, name: str) -> None:
    for at in reversed(range(len(node.attribute))):
        if node.attribute[at].name == name:
            del node.attribute[at]
