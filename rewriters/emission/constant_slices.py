"""Windows of constants, cut when the model is written.

    patches    Slice(M, rows of patch k) -> m_k, read by patch k    k = 0, 1, ...
    written    m_k, constants; equal ones once

A constant that varies along the axis, such as the masks of shifted window attention, is read in
windows as any other input of a region. ONNX Runtime works these out when it loads, and holds the
constant and all its windows until it is done. Cut beforehand the constant is gone; and windows that
are equal, as the masks of all patches but the last one are, are there once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.emission.constants import constants_of, replace_nodes, values_of
from patchconv_deploy.rewriters.graph.external_data import is_external
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.use_def import Index, index

__all__ = ["cut_constants"]


Array = np.ndarray[Any, Any]

# Less is not worth a constant of its own, and windows of a constant may come to so many times it.
_LEAST, _MOST_TIMES = 1 << 10, 1.5


def cut_constants(
    model: onnx.ModelProto, slices: Collection[str], folder: Path | None = None
) -> int:
    """Put windows of constants in the place of Slices, in place.

    Only where nothing else reads the constant, so that it goes; constants in another file are left
    alone.

    Args:
        model: A model with patches in its main graph.
        slices: Names of nodes that were written; others are left alone.
        folder: The folder that its external weights lie in.

    Returns:
        Bytes that the model's constants are smaller by; less than 0 where windows overlap by more.
    """
    graph = model.graph
    found, constants = index(model), constants_of(graph)
    cut: dict[str, list[int]] = {}
    for at, node in enumerate(graph.node):
        if node.op_type == "Slice" and node.name in slices and node.input[0] in constants:
            cut.setdefault(node.input[0], []).append(at)
    made: dict[bytes, onnx.TensorProto] = {}
    renamed: dict[str, str] = {}
    gone: set[int] = set()
    read: list[str] = []
    saved = 0
    for name, places in cut.items():
        windows = _windows(found, constants, name, places, folder)
        if windows is None:
            continue
        saved += values_of(constants[name], folder).nbytes
        for at, window in zip(places, windows, strict=True):
            node = graph.node[at]
            tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(window), node.output[0])
            same = made.setdefault(_digest(tensor), tensor)
            if same is tensor:
                saved -= window.nbytes
            else:
                renamed[node.output[0]] = same.name
            read += node.input
            gone.add(at)
    if not gone:
        return 0
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]
    replace_nodes(model, gone, list(made.values()), read)
    return saved


def _windows(
    found: Index,
    constants: Mapping[str, onnx.TensorProto],
    name: str,
    places: Sequence[int],
    folder: Path | None,
) -> list[Array] | None:
    """Return the windows of a constant, None where it is to stay."""
    tensor = constants[name]
    if is_external(tensor) or set(found.users.get(name, ())) != set(places):
        return None
    if any(_is_looked_at(found, found.graph.node[at].output[0]) for at in places):
        return None
    whole, windows = values_of(tensor, folder), []
    if whole.dtype.hasobject:
        return None
    for at in places:
        window = _sliced(found.graph.node[at], whole, constants)
        if window is None:
            return None
        windows.append(window)
    distinct = {(w.shape, sha256(w.tobytes()).digest()): w.nbytes for w in windows}
    if whole.nbytes < _LEAST or sum(distinct.values()) > _MOST_TIMES * whole.nbytes:
        return None
    return windows


def _is_looked_at(found: Index, name: str) -> bool:
    """Tell whether a tensor is an output of the graph or read in a body, and so keeps its name."""
    readers = (found.graph.node[at] for at in found.users.get(name, ()))
    return name in found.outputs or any(name not in node.input for node in readers)


def _sliced(
    node: onnx.NodeProto, whole: Array, constants: Mapping[str, onnx.TensorProto]
) -> Array | None:
    """Return what a Slice makes, None where its bounds are not known."""
    if len(node.input) > 1:
        if any(name not in constants for name in node.input[1:]):
            return None
        bounds = [onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:]]
    else:
        given = attributes(node)
        bounds = [np.asarray(given[name]) for name in ("starts", "ends", "axes")]
    if len(bounds) != 3:  # without axes or with steps it is none that was written for a window
        return None
    taken = [slice(None)] * whole.ndim
    for begin, end, axis in zip(*bounds, strict=True):
        taken[axis] = slice(int(begin), int(end))
    return whole[tuple(taken)]


def _digest(tensor: onnx.TensorProto) -> bytes:
    what = f"{tensor.data_type} {list(tensor.dims)} ".encode()
    return sha256(what + tensor.raw_data).digest()
