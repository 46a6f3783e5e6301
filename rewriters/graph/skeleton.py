"""A model without its weights' numbers."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import Message

from patchconv_deploy.rewriters.graph.check import check_length, check_size, check_tensor
from patchconv_deploy.rewriters.graph.external_data import external_range, is_external, is_pending
from patchconv_deploy.rewriters.graph.model import Loaded

__all__ = ["skeleton"]


# Tensors above this many bytes hold weights, not shapes: analysis never needs their values.
_WEIGHT_BYTES = 4096


def skeleton(loaded: Loaded) -> onnx.ModelProto:
    """Return the model without the bytes of its weights: structure, types and shapes alone."""
    slim = onnx.ModelProto()
    _copy_fields(loaded.model, slim, skip=("graph", "functions"))
    _slim_graph(loaded.model.graph, slim.graph, loaded.folder)
    for function in loaded.model.functions:
        target = slim.functions.add()
        _copy_fields(function, target, skip=("node",))
        for node in function.node:
            _slim_node(node, target.node.add(), loaded.folder)
    return slim


def _copy_fields(source: Message, target: Message, skip: tuple[str, ...]) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name in skip:
            continue
        if descriptor.is_repeated:
            getattr(target, descriptor.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _slim_graph(source: onnx.GraphProto, target: onnx.GraphProto, folder: Path | None) -> None:
    _copy_fields(source, target, skip=("node", "initializer", "sparse_initializer"))
    for value in source.input:
        check_size(value)
    for tensor in source.initializer:
        _slim_tensor(tensor, target.initializer.add(), folder)
    for sparse in source.sparse_initializer:
        # A weight like any other to whoever reads it: its name, its type, its shape.
        check_tensor(sparse.values)
        dense = target.initializer.add(name=sparse.values.name, data_type=sparse.values.data_type)
        dense.dims.extend(sparse.dims)
        check_tensor(dense)
    for node in source.node:
        _slim_node(node, target.node.add(), folder)


_HEAVY = (
    onnx.AttributeProto.TENSOR,
    onnx.AttributeProto.TENSORS,
    onnx.AttributeProto.GRAPH,
    onnx.AttributeProto.GRAPHS,
)


def _slim_node(source: onnx.NodeProto, target: onnx.NodeProto, folder: Path | None) -> None:
    if not any(attribute.type in _HEAVY for attribute in source.attribute):
        target.CopyFrom(source)
        return
    _copy_fields(source, target, skip=("attribute",))
    for attribute in source.attribute:
        copy = target.attribute.add()
        _copy_fields(attribute, copy, skip=("t", "tensors", "g", "graphs"))
        if attribute.HasField("t"):
            _slim_tensor(attribute.t, copy.t, folder)
        for tensor in attribute.tensors:
            _slim_tensor(tensor, copy.tensors.add(), folder)
        if attribute.HasField("g"):
            _slim_graph(attribute.g, copy.g, folder)
        for graph in attribute.graphs:
            _slim_graph(graph, copy.graphs.add(), folder)


def _slim_tensor(source: onnx.TensorProto, target: onnx.TensorProto, folder: Path | None) -> None:
    external = is_external(source)
    check_tensor(source)
    if not external:
        check_length(source)
    if not external and source.ByteSize() <= _WEIGHT_BYTES:
        target.CopyFrom(source)
        return
    target.name, target.data_type = source.name, source.data_type
    target.dims.extend(source.dims)
    if external and folder is not None and not is_pending(source):
        where = external_range(source, folder)
        if where.length <= _WEIGHT_BYTES:
            target.raw_data = where.read()
