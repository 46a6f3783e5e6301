"""Small constants by value: what shapes, bounds and scales are made of.

Exporters spell the size of a Reshape or Resize as arithmetic on other sizes. Where all of it is
known it is worked out here, node by node, with onnx's reference implementation; weights are never
looked at. A file of a few bytes can ask for gigabytes, so it is known how large a result becomes
before it is made, and what is kept is bounded as a whole.

onnx's inference follows such arithmetic from opset 13 on, and not all of it. `infer_by_value` gives
it the values instead, so that the sizes behind a Reshape are known at any opset.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from math import ceil, prod
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.reference

from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.graph.use_def import Index, index
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["Constants", "infer_by_value"]


logger = logging.getLogger(__name__)

# The operators exporters do arithmetic on sizes with.
_ARITHMETIC = frozenset(
    "Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Floor Gather Greater GreaterOrEqual "
    "Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Range ReduceProd Reshape Slice Squeeze "
    "Sub Transpose Unsqueeze Where Xor".split()
)

# Of these the result has the broadcast shape of what they read.
_BROADCAST = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Sub Where "
    "Xor".split()
)

_DEEPEST = 50

# Elements of one constant, and of all that are kept.
_MOST_ELEMENTS = 1024

_MOST_TOGETHER = 1 << 23

# What becomes known makes more known behind it; networks have no more such stages in a row.
_MOST_ROUNDS = 64


def infer_by_value(
    slim: onnx.ModelProto, *, needed: Collection[str] = (), estimate: bool = False
) -> Shapes:
    """Infer the shapes of the main graph's tensors, sizes that are worked out inside it included.

    Args:
        slim: A skeleton; changed in place, and arguments, as `graph.inference` does and takes them.
        needed: As there.
        estimate: As there.

    Raises:
        CrashError: As there.
    """
    shapes = infer(slim, needed=needed, estimate=estimate)
    given: dict[tuple[int, int], onnx.TensorProto] = {}
    for _ in range(_MOST_ROUNDS):
        unsized = [at for at, node in enumerate(slim.graph.node) if _is_unsized(node, shapes)]
        if not unsized:
            break
        uses = index(slim)
        found = _values(unsized, uses, Constants(slim, uses, shapes))
        if found.keys() <= given.keys():
            break
        given |= found
        spelled, names = _spelled_out(slim, uses, given)
        shapes = infer(spelled, needed=needed, estimate=estimate)
        dims = {name: shape for name, shape in shapes.dims.items() if name not in names}
        elements = {name: kind for name, kind in shapes.elements.items() if name not in names}
        shapes = replace(shapes, dims=dims, elements=elements)
    return shapes


def _is_unsized(node: onnx.NodeProto, shapes: Shapes) -> bool:
    return any(name and None in shapes.dims.get(name, (None,)) for name in node.output)


def _values(
    nodes: Sequence[int], uses: Index, constants: Constants
) -> dict[tuple[int, int], onnx.TensorProto]:
    """Return what nodes read, by node and place, as far as it is worked out.

    Constants that stand in the file are not among it: inference knows them.
    """
    found = {}
    for at in nodes:
        for place, name in enumerate(uses.graph.node[at].input):
            maker = uses.producer.get(name)
            if maker is None or uses.graph.node[maker].op_type == "Constant":
                continue
            array = constants.array(name)
            if array is not None:
                found[at, place] = onnx.numpy_helper.from_array(array)
    return found


def _spelled_out(
    slim: onnx.ModelProto, uses: Index, given: Mapping[tuple[int, int], onnx.TensorProto]
) -> tuple[onnx.ModelProto, frozenset[str]]:
    """Return a copy whose nodes read the values that are given, and the names of these."""
    made = onnx.ModelProto()
    made.CopyFrom(slim)
    free = (f"value_{number}" for number in count())
    names = {}
    for (at, place), tensor in given.items():
        name = names[at, place] = next(name for name in free if name not in uses.names)
        made.graph.node[at].input[place] = name
        made.graph.initializer.add().CopyFrom(tensor)
        made.graph.initializer[-1].name = name
    return made, frozenset(names.values())


class Constants:
    """Values of a graph's small constants, worked out when first asked for.

    Args:
        slim: The skeleton of the model; its small tensors have their values.
        index: Use-def index of the model.
        shapes: Known shapes; a Shape node of a known shape is a constant.
    """

    def __init__(self, slim: onnx.ModelProto, index: Index, shapes: Shapes) -> None:
        overridable = {value.name for value in slim.graph.input}
        self._tensors: dict[str, onnx.TensorProto] = {
            tensor.name: tensor
            for tensor in slim.graph.initializer
            if tensor.name not in overridable
        }
        self._nodes = slim.graph.node
        self._index = index
        self._shapes = shapes
        self._opsets: Any = {entry.domain: entry.version for entry in slim.opset_import}
        self._known: dict[str, np.ndarray[Any, Any] | None] = {}
        self._left = _MOST_TOGETHER

    def numbers(self, name: str) -> tuple[Any, ...] | None:
        """Return a tensor's elements as Python numbers, None if they are not known."""
        array = self.array(name)
        return None if array is None else tuple(array.reshape(-1).tolist())

    def array(self, name: str, depth: int = 0) -> np.ndarray[Any, Any] | None:
        """Return a tensor's value, None if it is not known."""
        if name not in self._known:
            self._known[name] = None
            found = self._evaluate(name, depth)
            if found is not None and found.size <= self._left:
                self._left -= found.size
                self._known[name] = found
        return self._known[name]

    def learn(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Take a value that was worked out elsewhere."""
        self._known[name] = array

    def _evaluate(self, name: str, depth: int) -> np.ndarray[Any, Any] | None:
        if name in self._tensors:
            return _array(self._tensors[name])
        position = self._index.producer.get(name)
        if position is None or depth > _DEEPEST:
            return None
        node = self._nodes[position]
        if node.domain not in ONNX_DOMAINS:
            return None
        if node.op_type == "Constant":
            return self._constant(node)
        if node.op_type == "Shape":
            return self._shape(node)
        if node.op_type not in _ARITHMETIC:
            return None
        given: dict[str, np.ndarray[Any, Any]] = {}
        for read in node.input:
            value = self.array(read, depth + 1) if read else None
            if read and value is None:
                return None
            if value is not None:
                given[read] = value
        return self._run(node, given, name)

    def _constant(self, node: onnx.NodeProto) -> np.ndarray[Any, Any] | None:
        for attribute in node.attribute:
            match attribute.name:
                case "value":
                    return _array(attribute.t)
                case "value_int":
                    return np.asarray(attribute.i, dtype=np.int64)
                case "value_ints" if len(attribute.ints) <= _MOST_ELEMENTS:
                    return np.asarray(attribute.ints, dtype=np.int64)
                case "value_float":
                    return np.asarray(attribute.f, dtype=np.float32)
                case "value_floats" if len(attribute.floats) <= _MOST_ELEMENTS:
                    return np.asarray(attribute.floats, dtype=np.float32)
        return None

    def _shape(self, node: onnx.NodeProto) -> np.ndarray[Any, Any] | None:
        dims = self._shapes.dims.get(node.input[0])
        if dims is None or node.input[0] in self._shapes.doubtful or None in dims:
            return None
        bounds = attributes(node)
        return np.asarray(dims[bounds.get("start", 0) : bounds.get("end")], dtype=np.int64)

    def _run(
        self, node: onnx.NodeProto, given: Mapping[str, np.ndarray[Any, Any]], name: str
    ) -> np.ndarray[Any, Any] | None:
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            return None
        try:
            size = _result_size(node, [given.get(read) for read in node.input])
        except (IndexError, AttributeError, ValueError, TypeError, ArithmeticError):
            return None  # too few inputs, of the wrong kind, no number, a step of 0
        if size > _MOST_ELEMENTS:
            return None
        try:
            evaluator: Any = onnx.reference.ReferenceEvaluator(node, opsets=self._opsets)
            made = evaluator.run([name], dict(given))
        except Exception as error:  # noqa: BLE001 - any failure means: not known
            logger.debug("%s is not worked out: %s", name, error)
            return None
        array: np.ndarray[Any, Any] = np.asarray(made[0])
        return array if array.size <= _MOST_ELEMENTS else None


def _result_size(node: onnx.NodeProto, given: Sequence[Any]) -> int:
    """Return how many elements a result has at most, before it is made.

    Args:
        node: A node of an operator that is worked out.
        given: Arrays, None for an input that is left out.
    """
    arrays = [array for array in given if array is not None]
    if node.op_type in _BROADCAST:
        return _broadcast_size([array.shape for array in arrays])
    match node.op_type:
        case "Expand":
            return _broadcast_size([given[0].shape, given[1].reshape(-1).tolist()])
        case "ConstantOfShape":
            return int(prod(given[0].reshape(-1).tolist()))
        case "Range":
            start, limit, delta = (float(array.reshape(-1)[0]) for array in given[:3])
            return max(0, ceil((limit - start) / delta))
        case "Concat":
            return int(sum(array.size for array in arrays))
        case "Gather":
            data, axis = given[0], attributes(node).get("axis", 0)
            return int(data.size // max(1, data.shape[axis]) * given[1].size)
        case _:
            return int(max((array.size for array in arrays), default=0))


def _broadcast_size(shapes: Sequence[Sequence[int]]) -> int:
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [[1] * (rank - len(shape)) + list(shape) for shape in shapes]
    return prod(max(sizes) for sizes in zip(*padded, strict=True))


def _array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any] | None:
    """Return a small tensor's value; None for a weight, whose bytes a skeleton does not hold."""
    if 0 not in tensor.dims and not _has_values(tensor):
        return None
    try:
        array: np.ndarray[Any, Any] = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # noqa: BLE001 - bytes of another length, a type numpy does not know
        logger.debug("%r is no constant that can be read: %s", tensor.name, error)
        return None
    return array if array.size <= _MOST_ELEMENTS else None


def _has_values(tensor: onnx.TensorProto) -> bool:
    return any(descriptor.name.endswith("_data") for descriptor, _ in tensor.ListFields())
