"""External weights: checked, referred to, copied; never loaded whole.

A model file is untrusted. The `location` of an external tensor must name a regular file below the
model's folder, with no way out of it (absolute path, "..", symbolic link), and hold the bytes it
claims.

Weights that are those of such a file times some factors are not worked out in memory: a *pending*
tensor says where they lie and holds the factors, and gets its bytes when the model is saved. No
runtime can read it before that, so that it cannot be mistaken for the weights it is made of.

Source: the ONNX external data format (location, offset, length).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx.helper

from patchconv_deploy.rewriters.errors import ExternalDataError

__all__ = [
    "BITS",
    "ExternalRange",
    "bytes_of",
    "copy_external",
    "external_range",
    "is_external",
    "is_pending",
    "pending",
    "tensors",
]


# Large tensors start on a page, so that a runtime can map them.
_ALIGNMENT = 4096

_CHUNK = 1 << 20

# Location of weights that no file holds yet.
_PENDING = "patchconv.pending"

# Bits of one element.
BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.UINT64: 64,
    onnx.TensorProto.COMPLEX64: 64,
    onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.FLOAT8E4M3FN: 8,
    onnx.TensorProto.FLOAT8E4M3FNUZ: 8,
    onnx.TensorProto.FLOAT8E5M2: 8,
    onnx.TensorProto.FLOAT8E5M2FNUZ: 8,
}


@dataclass(frozen=True, slots=True)
class ExternalRange:
    """Where an external tensor's bytes lie: ``length`` bytes from ``offset`` in ``file``."""

    file: Path
    location: str
    offset: int
    length: int

    def read(self) -> bytes:
        """Return the bytes."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.length)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor stored in the model: initializers and attributes, bodies included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor.values
            yield attribute.sparse_tensor.indices
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Tell whether the tensor's bytes lie in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def is_pending(tensor: onnx.TensorProto) -> bool:
    """Tell whether the tensor's bytes are worked out when the model is saved."""
    return is_external(tensor) and any(
        entry.key == "location" and entry.value == _PENDING for entry in tensor.external_data
    )


def pending(source: onnx.TensorProto, factors: Sequence[np.ndarray[Any, Any]]) -> onnx.TensorProto:
    """Return a tensor that is an external one times factors; its bytes are made by `copy_external`.

    Args:
        source: The external tensor.
        factors: Arrays of the tensor's element type, of no dimensions or as many as it has, whose
            sizes are its own or 1; the product is rounded after each.
    """
    made = onnx.TensorProto(data_type=source.data_type, dims=source.dims)
    made.data_location = onnx.TensorProto.EXTERNAL
    made.external_data.add(key="location", value=_PENDING)
    for entry in source.external_data:
        made.external_data.add(key=f"{_PENDING}.{entry.key}", value=entry.value)
    shapes = json.dumps([factor.shape for factor in factors])
    made.external_data.add(key=f"{_PENDING}.factors", value=shapes)
    made.raw_data = b"".join(factor.tobytes() for factor in factors)
    return made


def bytes_of(tensor: onnx.TensorProto) -> int | None:
    """Return the bytes the tensor's shape asks for, None if its type has no fixed size."""
    bits = BITS.get(tensor.data_type)
    return None if bits is None else (prod(tensor.dims) * bits + 7) // 8


def external_range(tensor: onnx.TensorProto, folder: Path) -> ExternalRange:
    """Find and check the bytes of an external tensor.

    Args:
        tensor: A tensor for which `is_external` holds.
        folder: The folder of the model's file.

    Raises:
        ExternalDataError: The file is missing, too short, or outside the folder, or the length
            is not that of the tensor's shape.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"external data of tensor {tensor.name!r}"
    if location == _PENDING:
        raise ExternalDataError(f"{where}: no file holds it; its bytes are made on saving")
    pure = PurePosixPath(location.replace("\\", "/"))
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise ExternalDataError(
            f"{where}: location {location!r} must name a file below the model's own folder"
        )
    file = folder / Path(*pure.parts)
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
        found = file.is_file()
        size = file.stat().st_size if found else 0
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL byte
        raise ExternalDataError(f"{where}: {location!r} cannot be a file's name") from error
    if not inside:
        raise ExternalDataError(
            f"{where}: {location!r} leads out of the model's folder; copy the file there"
        )
    if not found:
        raise ExternalDataError(
            f"{where}: file {location!r} is missing beside the model; put it back"
        )
    needed = bytes_of(tensor)
    try:
        offset = int(entries.get("offset") or 0)
        rest = size - offset if needed is None else needed
        length = int(entries["length"]) if entries.get("length") else rest
    except ValueError as error:
        raise ExternalDataError(f"{where}: offset or length is not a number") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ExternalDataError(
            f"{where}: bytes {offset}..{offset + length} lie beyond the {size} bytes of "
            f"{location!r}; the file is truncated or not this model's"
        )
    if needed is not None and length != needed:
        raise ExternalDataError(
            f"{where}: {length} bytes, but its shape {list(tensor.dims)} asks for {needed}"
        )
    return ExternalRange(file, location, offset, length)


def copy_external(
    model: onnx.ModelProto,
    folder: Path,
    stream: BinaryIO,
    location: str,
    wanted: Callable[[onnx.TensorProto], bool] = is_external,
) -> None:
    """Copy every external range of the model into one stream and refer to it there, in place.

    Ranges used twice are written once; bytes are streamed, so memory stays flat. The order is the
    tensors' order in the model, so the same model gives the same bytes.

    Args:
        model: The model; its external tensors are pointed to ``location``.
        folder: The folder its locations are relative to.
        stream: Receives the bytes, from its position 0.
        location: Name under which the stream will lie beside the new model.
        wanted: Which external tensors; the others stay as they are.
    """
    written: dict[tuple[Path, int, int], int] = {}
    at = 0
    for tensor in tensors(model):
        if not is_external(tensor) or not wanted(tensor):
            continue
        new = is_pending(tensor)
        source = external_range(_source(tensor) if new else tensor, folder)
        key = (source.file, source.offset, source.length)
        begin = None if new else written.get(key)
        if begin is None:
            padding = -at % _ALIGNMENT
            stream.write(b"\0" * padding)
            begin = at + padding
            if new:
                _write_product(tensor, source, stream)
            else:
                written[key] = begin
                _copy_range(source, stream)
            at = begin + source.length
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        for name, value in (
            ("location", location),
            ("offset", str(begin)),
            ("length", str(source.length)),
        ):
            tensor.external_data.add(key=name, value=value)


def _copy_range(source: ExternalRange, stream: BinaryIO) -> None:
    with source.file.open("rb") as reader:
        reader.seek(source.offset)
        left = source.length
        while left:
            chunk = reader.read(min(left, _CHUNK))
            if not chunk:
                raise ExternalDataError(
                    f"{os.fspath(source.file)!r} became shorter while it was read"
                )
            stream.write(chunk)
            left -= len(chunk)


def _source(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Return the external tensor that a pending one is made of."""
    made = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = onnx.TensorProto.EXTERNAL
    for entry in tensor.external_data:
        made.external_data.add(key=entry.key.removeprefix(f"{_PENDING}."), value=entry.value)
    del made.external_data[0]
    return made


def _write_product(tensor: onnx.TensorProto, source: ExternalRange, stream: BinaryIO) -> None:
    """Write a pending tensor's bytes, some rows at a time."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shapes = json.loads(entries[f"{_PENDING}.factors"])
    ends = np.cumsum([prod(shape) for shape in shapes])[:-1]
    parts = np.split(np.frombuffer(tensor.raw_data, kind), ends)
    factors = [
        part.reshape(shape or (1,) * len(tensor.dims))
        for part, shape in zip(parts, shapes, strict=True)
    ]
    row = source.length // tensor.dims[0]
    at_once = max(1, _CHUNK // max(1, row))
    with source.file.open("rb") as reader, np.errstate(all="ignore"):
        reader.seek(source.offset)
        for begin in range(0, tensor.dims[0], at_once):
            count = min(at_once, tensor.dims[0] - begin)
            data = reader.read(count * row)
            if len(data) < count * row:
                raise ExternalDataError(
                    f"{os.fspath(source.file)!r} became shorter while it was read"
                )
            part = np.frombuffer(data, kind).reshape(count, *tensor.dims[1:])
            for factor in factors:
                whole = factor.shape[0] == 1
                part = part * (factor if whole else factor[begin : begin + count])
            stream.write(part.tobytes())
