"""ONNX models as files and as use-def graphs.

`load` reads a model and leaves external weights on disk. `index` answers who makes and who uses a
tensor. `skeleton` is the model without its weights' bytes, small enough to check and to infer
shapes on whatever the model's size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from rewriters.errors import ModelError
from rewriters.external_data import (
    BITS,
    bytes_of,
    external_range,
    is_external,
    is_pending,
    tensors,
)
from rewriters.guarded import Refused, check_model
from rewriters.normalise import normalise
from rewriters.operators import CONVOLUTIONS

__all__ = [
    "Index",
    "Loaded",
    "attributes",
    "check",
    "convolutions_in_bodies",
    "has_data",
    "index",
    "load",
    "node_label",
    "opset_of",
    "record",
    "skeleton",
]

logger = logging.getLogger(__name__)

# Domains whose operators ONNX Runtime or ONNX itself define.
KNOWN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"}
    | {"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
# Tensors above this many bytes hold weights, not shapes: analysis never needs their values.
_WEIGHT_BYTES = 4096
_LONGEST_LIST = 4096
_PROTOBUF_LIMIT = 2**31 - 1
UNKNOWN_DOMAIN = "patchconv.unknown"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and the folder its external data lies in (None: it came from memory).

    Attributes:
        model: The model.
        folder: The folder.
        normalised: What was brought into the specification's form, a sentence each.
    """

    model: onnx.ModelProto
    folder: Path | None
    normalised: tuple[str, ...] = ()

    @property
    def has_external_data(self) -> bool:
        """Whether any weight lies in another file."""
        return any(is_external(tensor) for tensor in tensors(self.model))


def load(path: Path) -> Loaded:
    """Read a model file; external weights are checked to be there and left on disk.

    What runtimes take and the specification does not is normalised (`rewriters.normalise`).

    Args:
        path: The model file.

    Raises:
        ModelError: Not a file, not an ONNX model, truncated, or without a graph or opset.
        ExternalDataError: An external weight file is missing, too short, or outside the folder.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no regular file"
        raise ModelError(f"{path}: {kind if path.exists() else 'no such file'}")
    try:
        size = path.stat().st_size
        if size > _PROTOBUF_LIMIT:
            raise ModelError(f"{path}: above 2 GiB; save it with its weights as external data")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated") from error
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model, or truncated (no graph or no opset)")
    if not _is_text(model):
        raise ModelError(f"{path}: damaged: it holds a name that is not UTF-8 text")
    for tensor in tensors(model):
        if is_external(tensor):
            external_range(tensor, path.parent)
    normalised = normalise(model)
    for text in normalised:
        logger.info("%s: %s", path, text)
    return Loaded(model, path.parent, normalised)


def _is_text(message: Message) -> bool:
    """Tell whether every string is UTF-8; protobuf hands others out as bytes."""
    if isinstance(message, onnx.TensorProto):
        own: tuple[Any, ...] = (message.name, message.doc_string)
        parts: Iterable[Any] = (*message.external_data, *message.metadata_props)
        return all(isinstance(text, str) for text in own) and all(map(_is_text, parts))
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None and descriptor.type != descriptor.TYPE_STRING:
            continue
        for part in value if descriptor.is_repeated else (value,):
            if isinstance(part, Message):
                if not _is_text(part):
                    return False
            elif not isinstance(part, str):
                return False
    return True


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default domain, 0 if the model imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def record(model: onnx.ModelProto, key: str, data: Mapping[str, Any]) -> None:
    """Write an entry of the model's metadata as JSON, in place of those under the same key.

    Args:
        model: The model; changed in place.
        key: The entry's key; a runtime refuses a model that has one twice.
        data: What to write.
    """
    held = model.metadata_props
    for at in reversed([at for at, entry in enumerate(held) if entry.key == key]):
        del held[at]
    held.add(key=key, value=json.dumps(data, separators=(",", ":")))


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
                values[attribute.name] = tuple(attribute.ints[:_LONGEST_LIST])
            case onnx.AttributeProto.FLOATS:
                values[attribute.name] = tuple(attribute.floats[:_LONGEST_LIST])
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
                if inner.op_type in CONVOLUTIONS and inner.domain in ("", "ai.onnx"):
                    yield node_label(inner), place
                yield from nested(inner, place)

    for node in model.graph.node:
        yield from nested(node, f"the body of {node.op_type} {node_label(node)!r}")
    for function in model.functions:
        place = f"the function {function.domain}::{function.name}"
        for node in function.node:
            if node.op_type in CONVOLUTIONS and node.domain in ("", "ai.onnx"):
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
        if any(attribute.type in _BODIES for attribute in node.attribute):
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


_BODIES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


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
        _check_size(value)
    for tensor in source.initializer:
        _slim_tensor(tensor, target.initializer.add(), folder)
    for sparse in source.sparse_initializer:
        # A weight like any other to whoever reads it: its name, its type, its shape.
        _check_tensor(sparse.values)
        dense = target.initializer.add(name=sparse.values.name, data_type=sparse.values.data_type)
        dense.dims.extend(sparse.dims)
        _check_tensor(dense)
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
    _check_tensor(source)
    if not external:
        _check_length(source)
    if not external and source.ByteSize() <= _WEIGHT_BYTES:
        target.CopyFrom(source)
        return
    target.name, target.data_type = source.name, source.data_type
    target.dims.extend(source.dims)
    if external and folder is not None and not is_pending(source):
        where = external_range(source, folder)
        if where.length <= _WEIGHT_BYTES:
            target.raw_data = where.read()


# Where a tensor without raw_data keeps its elements, one entry each.
_TYPED: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.INT32: "int32_data",
    onnx.TensorProto.INT8: "int32_data",
    onnx.TensorProto.UINT8: "int32_data",
    onnx.TensorProto.FLOAT16: "int32_data",
    onnx.TensorProto.BFLOAT16: "int32_data",
}


# More elements than any memory holds; arithmetic on them is far from 2^63.
_MOST_ELEMENTS = 1 << 53
_KINDS = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def _check_tensor(tensor: onnx.TensorProto) -> None:
    """Refuse a weight of a type or shape that there is none of."""
    if tensor.data_type not in _KINDS:
        raise ModelError(
            f"not a valid ONNX model: tensor {tensor.name!r} is of the element type "
            f"{tensor.data_type}, which this onnx does not know; export the model again"
        )
    if any(size < 0 for size in tensor.dims) or prod(tensor.dims) > _MOST_ELEMENTS:
        raise ModelError(
            f"not a valid ONNX model: tensor {tensor.name!r} has the shape {list(tensor.dims)}; "
            "export the model again"
        )


def _check_size(value: onnx.ValueInfoProto) -> None:
    """Refuse an input of a size that no memory holds."""
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0]
    if prod(sizes) > _MOST_ELEMENTS:
        raise ModelError(
            f"not a valid ONNX model: input {value.name!r} has the sizes {sizes}, more than 2^53 "
            "elements; export the model again"
        )


def _check_length(tensor: onnx.TensorProto) -> None:
    """Refuse a weight whose bytes do not fit its shape; the checker never sees them."""
    needed, held = bytes_of(tensor), None
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
    elif needed is not None and tensor.data_type in _TYPED:
        held = len(getattr(tensor, _TYPED[tensor.data_type])) * BITS[tensor.data_type] // 8
    if held is not None and needed is not None and held != needed:
        raise ModelError(
            f"not a valid ONNX model: tensor {tensor.name!r} holds {held} bytes, "
            f"its shape {list(tensor.dims)} asks for {needed}"
        )


def unknown_operators(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the main graph's nodes whose operator no one here defines."""
    functions = {(function.domain, function.name) for function in model.functions}
    found = []
    for node in model.graph.node:
        if (node.domain, node.op_type) in functions:
            continue
        known = node.domain in KNOWN_DOMAINS
        if node.domain in ("", "ai.onnx"):
            known = onnx.defs.has(node.op_type)
        if not known:
            found.append(node)
    return found


def has_data(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor holds bytes; weights out of reach hold none in a skeleton."""
    return any(descriptor.name.endswith("_data") for descriptor, _ in tensor.ListFields())


def check(slim: onnx.ModelProto, *, allow_custom_ops: bool = False) -> None:
    """Check a skeleton against the ONNX specification.

    Args:
        slim: A `skeleton`; changed in place: its large weights lose their shapes, and custom
            operators move to a domain the checker does not look into.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.

    Raises:
        ModelError: The first thing that is wrong.
        CrashError: The checker crashes on the model.
    """
    unknown = unknown_operators(slim)
    if unknown and not allow_custom_ops:
        first = unknown[0]
        raise ModelError(
            f"node {node_label(first)!r} is the custom operator "
            f"{first.domain or 'ai.onnx'}::{first.op_type}, which ONNX does not define; "
            "pass allow_custom_ops=True to leave such nodes as they are"
        )
    if len({o.version for o in slim.opset_import if o.domain in ("", "ai.onnx")}) > 1:
        raise ModelError("not a valid ONNX model: it imports two versions of the default domain")
    if unknown:
        for node in unknown:
            node.domain = UNKNOWN_DOMAIN
        slim.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)
    for tensor in tensors(slim):
        # Weights without their bytes: to the checker they are empty, whatever their shape.
        if is_external(tensor) or not has_data(tensor):
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            del tensor.dims[:]
            tensor.dims.append(0)
    for value in [*slim.graph.input, *slim.graph.output]:
        # Runtimes take inputs and outputs of unknown rank; the checker asks for a shape.
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        check_model(slim)
    except Refused as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ModelError(f"not a valid ONNX model: {reason}") from error
