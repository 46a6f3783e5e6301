"""Sampled windows of an output against a reference worked out on the CPU.

A Conv looks at its surroundings alone. So a window of the output needs no more of the input than
the window and a margin; on that crop the original runs in float32 on the CPU, in seconds, whatever
the size of the image. The windows: the four corners, and a strip over all rows, which is across
every seam; each in the first and the last channels, in one between, and in those where the output
passes 2^31 elements.

The decoder normalises over the whole image and has no such reference: what was cut is compared with
the windows of the original's own output, where the original ran.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from patchconv_deploy.engines.ort.run import open_session
from patchconv_deploy.engines.windows import Window, name_of
from tools.a100.cases import CHAIN, Case

__all__ = [
    "ORIGINAL_HERE",
    "Compared",
    "compare",
    "load_windows",
    "read_input",
    "reference",
    "windows_of",
]

# What a decoder's cut rows are compared with.
ORIGINAL_HERE = "the original on this engine"
_SIDE = 8
_STRIP = 4
# Beyond it 32-bit indices of elements turn negative.
_INDEX = 1 << 31
# Largest difference, over the larger of 1 and the reference: outputs have about unit variance.
# Float16 is summed in float16 by some kernels, over up to 25,088 products.
TOLERANCE = {"float16": 0.05, "float32": 1e-3}


@dataclass(frozen=True, slots=True)
class Compared:
    """How an output compares.

    Attributes:
        windows: Number of windows.
        largest_error: Largest difference, over the larger of 1 and the reference; infinite for
            what is no number.
        tolerance: What is allowed.
        against: What it was compared with.
    """

    windows: int
    largest_error: float
    tolerance: float
    against: str

    @property
    def agrees(self) -> bool:
        """Tell whether it is the reference's within the tolerance."""
        return self.largest_error <= self.tolerance


def _channels(case: Case) -> list[int]:
    """Return the channels of the output that are looked at."""
    count = case.output_shape[1]
    found = {0, count // 2, count - 1}
    beyond = _INDEX // case.side**2
    found |= {channel for channel in (beyond - 1, beyond) if channel < count}
    return sorted(found)


def windows_of(case: Case) -> tuple[Window, ...]:
    """Return the windows of a case's output: place after place, in each the channels."""
    side, edge = case.side, min(_SIDE, case.side)
    middle = (side - _STRIP) // 2
    ends = ((0, edge), (side - edge, side))
    places = [(rows, columns) for rows in ends for columns in ends]
    places.append(((0, side), (middle, middle + _STRIP)))
    return tuple(
        ((0, 1), (channel, channel + 1), rows, columns)
        for rows, columns in places
        for channel in _channels(case)
    )


def read_input(path: Path) -> np.ndarray[Any, Any]:
    """Return the input of a file of `write_inputs`, mapped and not read: it can be 8 GiB."""
    with zipfile.ZipFile(path) as archive, archive.open("input.npy") as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        info, header = archive.getinfo("input.npy"), stream.tell()
    with path.open("rb") as whole:
        # Lengths of the name and of the extra field, in the member's own header of 30 bytes.
        whole.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", whole.read(4))
    offset = info.header_offset + 30 + name + extra + header
    return np.memmap(path, dtype, "r", offset, shape)


def _in_float32(path: Path, channels: list[int], shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return an original for an input of another size, in float32, of some output channels."""
    model = onnx.load(path)
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        if tensor.name in last.input[1:]:
            array = array[channels]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    sizes = (shape, (1, len(channels), *shape[2:]))
    for value, size in zip((model.graph.input[0], model.graph.output[0]), sizes, strict=True):
        kind = value.type.tensor_type
        kind.elem_type = TensorProto.FLOAT
        for dim, length in zip(kind.shape.dim, size, strict=True):
            dim.dim_value = length
    return model


def reference(case: Case, original: Path, inputs: Path) -> list[np.ndarray[Any, Any]]:
    """Work out the windows of a case on the CPU, in float32, from the input around each.

    What is computed is kept beside the original and serves its other rows.

    Args:
        case: A single Conv, or the chain.
        original: The original's file.
        inputs: Its input.
    """
    windows = windows_of(case)
    kept = original.with_suffix(".reference.npz")
    if not kept.exists():
        channels = _channels(case)
        margin = CHAIN if case.family == "chain" else int(case.family[-1]) // 2
        x, found = read_input(inputs), {}
        for first in range(0, len(windows), len(channels)):
            _, _, rows, columns = windows[first]
            top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
            crop = x[:, :, top : rows[1] + margin, left : columns[1] + margin].astype(np.float32)
            made = original.with_suffix(".crop.onnx")
            onnx.save(_in_float32(original, channels, crop.shape), made)
            with open_session(made) as session:
                (y,) = session.run({"input": crop}).values()
            # Zeros beyond the crop are right at the image's edge; elsewhere the margin takes them.
            y = y[:, :, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
            for number in range(len(channels)):
                found[name_of(first + number)] = y[:, number : number + 1]
            made.unlink()
        with kept.open("wb") as stream:
            np.savez(stream, **found)
    return load_windows(kept, len(windows))


def load_windows(path: Path, count: int) -> list[np.ndarray[Any, Any]]:
    """Return the windows of a file."""
    with np.load(path, allow_pickle=False) as data:
        return [data[name_of(number)] for number in range(count)]


def compare(
    found: list[np.ndarray[Any, Any]],
    wanted: list[np.ndarray[Any, Any]],
    dtype: str,
    against: str,
) -> Compared:
    """Compare windows with those of a reference."""
    largest = 0.0
    for a, b in zip(found, wanted, strict=True):
        x, y = a.astype(np.float64), b.astype(np.float64)
        same = x.shape == y.shape and bool(np.isfinite(x).all())
        error = np.abs(x - y) / np.maximum(1.0, np.abs(y)) if same else np.array(np.inf)
        largest = max(largest, float(error.max()))
    return Compared(len(found), largest, TOLERANCE[dtype], against)
