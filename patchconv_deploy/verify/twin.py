"""A float32 twin: the same graph with bfloat16 and double replaced by float32.

ONNX Runtime has no Conv on the CPU for these types. The twins of the original and of the rewritten
model differ where the models do, and both run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper

from patchconv_deploy.rewriters.graph.external_data import is_external, tensors
from patchconv_deploy.rewriters.graph.nodes import bodies

__all__ = ["float32_twin", "with_weights"]


_REPLACED = (onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)

# Attributes that hold an element type: of Cast, of generators, of DequantizeLinear.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type"})


def float32_twin(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the twin; its weights are loaded.

    Args:
        model: The model; not changed.
        folder: The folder its external data lies in.
    """
    twin = with_weights(model, folder)
    for tensor in tensors(twin):
        if tensor.data_type in _REPLACED:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    _retype(twin.graph)
    for function in twin.functions:
        for node in function.node:
            _retype_node(node)
    return twin


def with_weights(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return a copy that holds its weights.

    Args:
        model: The model; not changed.
        folder: The folder its external data lies in.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in tensors(made):
        if is_external(tensor):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return made


def _retype(graph: onnx.GraphProto) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.elem_type in _REPLACED:
            tensor.elem_type = onnx.TensorProto.FLOAT
    for node in graph.node:
        _retype_node(node)


def _retype_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _REPLACED:
            attribute.i = onnx.TensorProto.FLOAT
    for body in bodies(node):
        _retype(body)
