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
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.emission.constants import constants_of, replace_nodes
from patchconv_deploy.rewriters.graph.external_data import is_external
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.use_def import Index, index

__all__ = ["cut_constants"]


Array = np.ndarray[Any, Any]

# Element type, shape and content of a window: equal windows have the same.
_Key: TypeAlias = tuple[str, tuple[int, ...], bytes]

# Less is not worth a constant of its own, and windows of a constant may come to so many times it.
_LEAST, _MOST_TIMES = 1 << 10, 1.5


def cut_constants(model: onnx.ModelProto, slices: Collection[str]) -> int:
    """Put windows of constants in the place of Slices, in place.

    Only where nothing else reads the constant, so that it goes; constants in another file are left
    alone.

    Args:
        model: A model with patches in its main graph.
        slices: Names of nodes that were written; others are left alone.

    Returns:
        Bytes that the model's constants are smaller by; less than 0 where windows overlap by more.
    """
    graph, constants = model.graph, constants_of(model.graph)
    cut: dict[str, list[int]] = {}
    for at, node in enumerate(graph.node):
        if node.op_type == "Slice" and node.name in slices and node.input[0] in constants:
            cut.setdefault(node.input[0], []).append(at)
    if not cut:
        return 0
    found = index(model)
    made: dict[_Key, onnx.TensorProto] = {}
    renamed: dict[str, str] = {}
    gone: list[int] = []
    saved = 0
    for name, places in cut.items():
        if is_external(constants[name]) or not _is_free_to_go(found, name, places):
            continue
        whole = np.asarray(onnx.numpy_helper.to_array(constants[name]))
        windows = _windows([graph.node[at] for at in places], whole, constants)
        if not windows:
            continue
        saved += whole.nbytes
        for at, (key, window) in zip(places, windows, strict=True):
            output = graph.node[at].output[0]
            if key not in made:
                made[key] = onnx.numpy_helper.from_array(np.ascontiguousarray(window), output)
                saved -= window.nbytes
            else:
                renamed[output] = made[key].name
            gone.append(at)
    if not gone:
        return 0
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]
    read = [name for at in gone for name in graph.node[at].input]
    replace_nodes(model, set(gone), list(made.values()), read)
    return saved


def _is_free_to_go(found: Index, name: str, places: Sequence[int]) -> bool:
    """Tell whether a constant is read by some Slices alone, whose windows may change their names.

    They may not where they are outputs of the graph or are read in a body.
    """
    if set(found.users.get(name, ())) != set(places):
        return False
    for at in places:
        window = found.graph.node[at].output[0]
        readers = (found.graph.node[user] for user in found.users.get(window, ()))
        if window in found.outputs or any(window not in node.input for node in readers):
            return False
    return True


def _windows(
    nodes: Sequence[onnx.NodeProto], whole: Array, constants: Mapping[str, onnx.TensorProto]
) -> list[tuple[_Key, Array]]:
    """Return what Slices make of a constant, each with what equal ones share; none if it stays."""
    windows = []
    for node in nodes:
        window = None if whole.dtype.hasobject else _sliced(node, whole, constants)
        if window is None:
            return []
        key = str(window.dtype), window.shape, sha256(window.tobytes()).digest()
        windows.append((key, window))
    total = sum(window.nbytes for window in dict(windows).values())
    return [] if whole.nbytes < _LEAST or total > _MOST_TIMES * whole.nbytes else windows


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
