"""Sizes in tables: what exporters turn around before it is a vector again.

    pads (w0, w1, h0, h1, ..) -- Reshape [-1, 2] -- Slice, backwards -- Transpose -- Reshape [-1]

PyTorch names padding from the last dimension on, ONNX from the first, begins before ends:
exporters write the one as the other with a matrix. Such tables of sizes are followed here, element
by element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from patchconv_deploy.rewriters.graph.nodes import attributes

__all__ = ["Table", "turned"]


# Elements are sizes (`tiling.sizes.Size`), or None where one is not known.
Table = npt.NDArray[np.object_]

Read = Callable[[str], Table | None]
Numbers = Callable[[str], Sequence[int] | None]


def turned(node: onnx.NodeProto, read: Read, numbers: Numbers) -> Table | None:
    """Return what a node makes of tables by moving their elements alone, None for another node.

    Args:
        node: The node.
        read: Returns a tensor as a table, None if it is none.
        numbers: Returns a tensor's elements as whole numbers, None if not all are known.
    """
    if node.op_type not in _MOVES:
        return None
    data = read(node.input[0])
    if data is None:
        return None
    try:
        return _MOVES[node.op_type](node, data, read, numbers)
    except (IndexError, ValueError):  # it is not valid, and runs at no size
        return None


def _reshaped(node: onnx.NodeProto, data: Table, read: Read, numbers: Numbers) -> Table | None:
    shape = numbers(node.input[1])
    if shape is None or 0 in shape:
        return None
    return data.reshape(tuple(shape))


def _transposed(node: onnx.NodeProto, data: Table, read: Read, numbers: Numbers) -> Table | None:
    return data.transpose(attributes(node).get("perm"))


def _sliced(node: onnx.NodeProto, data: Table, read: Read, numbers: Numbers) -> Table | None:
    values = attributes(node)
    if len(node.input) > 1:
        given = [numbers(name) if name else () for name in node.input[1:]]
    else:
        given = [values.get(name, ()) for name in ("starts", "ends", "axes")]
    if len(given) < 2 or any(each is None for each in given):
        return None
    starts, ends, axes, steps = [tuple(each or ()) for each in (*given, (), ())][:4]
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    cut: list[Any] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, end, step)
    made: Table = data[tuple(cut)]
    return made


def _gathered(node: onnx.NodeProto, data: Table, read: Read, numbers: Numbers) -> Table | None:
    at, indices = numbers(node.input[1]), read(node.input[1])
    if at is None or indices is None:
        return None
    chosen = np.array(at, np.int64).reshape(indices.shape)
    return np.take(data, chosen, axis=attributes(node).get("axis", 0))


def _joined(node: onnx.NodeProto, data: Table, read: Read, numbers: Numbers) -> Table | None:
    parts = [read(name) for name in node.input]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return np.concatenate(known, axis=attributes(node)["axis"])


def _squeezed(node: onnx.NodeProto, data: Table, read: Read, numbers: Numbers) -> Table | None:
    axes = numbers(node.input[1]) if len(node.input) > 1 else attributes(node).get("axes")
    if axes is None:
        return None
    if node.op_type == "Squeeze":
        return np.squeeze(data, tuple(axes))
    return np.expand_dims(data, tuple(axes))


def _same(node: onnx.NodeProto, data: Table, read: Read, numbers: Numbers) -> Table | None:
    return data


_MOVES: dict[str, Callable[[onnx.NodeProto, Table, Read, Numbers], Table | None]] = {
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "Slice": _sliced,
    "Gather": _gathered,
    "Concat": _joined,
    "Squeeze": _squeezed,
    "Unsqueeze": _squeezed,
    "Identity": _same,
}
