"""Seeded inputs for a model whose meaning is not known.

Floating inputs are standard normal. Integers that index a table (the indices of a Gather on a
tensor of known size) stay inside it; others count 0 or 1. Booleans, and integer or flat inputs
called mask or length, are ones, so that nothing is masked away.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx

from patchconv_deploy.errors import UsageError
from patchconv_deploy.free_memory import memory_here
from patchconv_deploy.rewriters.graph.shapes import Shapes, required_inputs

__all__ = ["element_dtype", "load_inputs", "make_inputs", "save_inputs"]


Array = np.ndarray[Any, Any]


def element_dtype(element: int) -> np.dtype[Any]:
    """Return the numpy type that carries an ONNX element type; float32 stands for bfloat16."""
    if element == onnx.TensorProto.BFLOAT16:
        return np.dtype(np.float32)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))


def _table_sizes(model: onnx.ModelProto, shapes: Shapes) -> dict[str, int]:
    """Return, per tensor used as indices of a Gather, the smallest table it points into."""
    sizes: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.domain in ("", "ai.onnx"):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            table = shapes.dims.get(node.input[0])
            fits = table is not None and -len(table) <= axis < len(table)
            size = table[axis] if table is not None and fits else None
            if size:
                sizes[node.input[1]] = min(size, sizes.get(node.input[1], size))
    return sizes


def make_inputs(
    model: onnx.ModelProto, shapes: Shapes, sizes: Mapping[str, tuple[int, ...]], seed: int
) -> dict[str, Array]:
    """Make one array per input.

    Args:
        model: The model.
        shapes: Its known shapes; those of its inputs are used where ``sizes`` has none.
        sizes: Shapes of inputs with free dimensions.
        seed: Seed of the random numbers.

    Raises:
        UsageError: An input is not a tensor, its shape is unknown, or there is no memory for it.
    """
    _check_room(model, shapes, sizes)
    generator = np.random.default_rng(seed)
    tables = _table_sizes(model, shapes)
    arrays: dict[str, Array] = {}
    for value in required_inputs(model):
        shape = sizes.get(value.name) or shapes.dims.get(value.name)
        if not value.type.HasField("tensor_type") or shape is None or None in shape:
            raise UsageError(
                f"input {value.name!r} is no tensor of known rank; give its values with inputs="
            )
        dims = tuple(size or 0 for size in shape)
        dtype = element_dtype(value.type.tensor_type.elem_type)
        name = value.name.lower()
        if dtype.kind == "O":
            arrays[value.name] = np.full(dims, "text")
        elif dtype.kind == "b" or (
            ("mask" in name or "length" in name) and (dtype.kind in "iu" or len(dims) <= 2)
        ):
            arrays[value.name] = np.ones(dims, dtype)
        elif dtype.kind in "iu":
            high = tables.get(value.name, 256 if dtype.itemsize == 1 else 2)
            low = -128 if dtype == np.int8 and value.name not in tables else 0
            array = generator.integers(low, min(high, high + low), size=dims)
            arrays[value.name] = np.asarray(array).astype(dtype)
        else:
            arrays[value.name] = generator.standard_normal(dims, dtype=np.float32).astype(dtype)
    return arrays


def _check_room(
    model: onnx.ModelProto, shapes: Shapes, sizes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse inputs that memory does not hold, before one is made."""
    needed = 0
    for value in required_inputs(model):
        shape = sizes.get(value.name) or shapes.dims.get(value.name) or ()
        # Random numbers are made in single precision and then converted.
        width = element_dtype(value.type.tensor_type.elem_type).itemsize + 4
        needed += prod(size or 0 for size in shape) * width
    available = memory_here().free
    if needed > available:
        raise UsageError(
            f"the inputs take {needed / 2**30:.1f} GiB to make, {available / 2**30:.1f} GiB are "
            "available; fix free dimensions to smaller sizes, or use a larger machine"
        )


def load_inputs(path: Path, model: onnx.ModelProto) -> dict[str, Array]:
    """Read inputs from an .npz file and hold them against the model.

    Raises:
        UsageError: The file cannot be read, a name is missing or unknown, or a type is wrong.
    """
    wanted, where = {value.name: value for value in required_inputs(model)}, f"inputs={str(path)!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            # Names first: an entry that is not asked for is not unpacked.
            entries = {name.removesuffix(".npy"): name for name in archive.namelist()}
            for name in wanted.keys() - entries.keys():
                raise UsageError(f"{where}: no array for the input {name!r}")
            for name in entries.keys() - wanted.keys():
                raise UsageError(f"{where}: the model has no input {name!r}")
            # Headers next: what a few bytes unpack to is known before any of it is.
            left = memory_here().free
            for name, value in wanted.items():
                with archive.open(entries[name]) as stream:
                    left -= _check_header(f"{where}: {name!r}", stream, value, left)
            return {name: _read(archive, entries[name]) for name in wanted}
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where}: not an .npz file of plain arrays") from error


def _read(archive: zipfile.ZipFile, entry: str) -> Array:
    with archive.open(entry) as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _check_header(where: str, stream: IO[bytes], value: onnx.ValueInfoProto, left: int) -> int:
    """Hold the header of an .npy file against an input; return the bytes of its array."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, found = read[np.lib.format.read_magic(stream)](stream)
    tensor = value.type.tensor_type
    dtype = element_dtype(tensor.elem_type)
    # Text is an array of objects in onnx, and one of characters in a file without pickles.
    if found != dtype and not (dtype.kind == "O" and found.kind == "U"):
        raise UsageError(f"{where} is {found}, the model takes {dtype}")
    dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
    fits = len(dims) == len(shape) and all(
        want < 0 or want == have for want, have in zip(dims, shape, strict=False)
    )
    if tensor.HasField("shape") and not fits:
        raise UsageError(f"{where} has shape {list(shape)}, not {dims}")
    size = prod(shape) * found.itemsize
    if size > left:
        raise UsageError(
            f"{where} unpacks to {size / 2**30:.1f} GiB, {max(left, 0) / 2**30:.1f} GiB are "
            "available; use a smaller one"
        )
    return size


def save_inputs(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write inputs to an .npz file, whatever their names are."""
    # Entry by entry: an input may be called like an argument of numpy.savez.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
