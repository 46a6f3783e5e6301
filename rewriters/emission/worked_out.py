"""Constants that the graph works out of others, as ONNX Runtime does when it loads a model.

    file       Reshape(Constant) -> k    Cast(float16 weights) -> W    Mul(g, v / |v|) -> W
    loaded     k, W: tensors like any other

What is small, a number per channel, is worked out here. A large weight is not: nothing large is
loaded, and what a sum in another order comes to is not asked. It is known only that the runtime
makes one tensor of it, and of which type.

ONNX Runtime works out whatever its CPU kernels compute of constants. It has no arithmetic in
float16: such nodes stay, between Casts. DequantizeLinear stays as well, for it belongs to the
quantised operator behind it. Neither counts as worked out.

Source: ONNX Runtime, ``core/optimizer/constant_folding.cc``; version 1.32's graphs in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.graph.constant_folding import Constants
from patchconv_deploy.rewriters.graph.external_data import external_range, is_external
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.use_def import Index
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["WorkedOut", "values_of"]


# What moves numbers of any type.
_MOVES = frozenset("Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())

# What gives the same bits wherever it is computed: each number by itself, correctly rounded.
_EXACT = frozenset("Add Div Mul Neg Sub".split())

# What exporters normalise and scale weights with.
_COMPUTES = _EXACT | frozenset(
    "Abs Pow Reciprocal ReduceL2 ReduceMean ReduceSum ReduceSumSquare Sqrt".split()
)

_COMPUTED = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64})

# Constant nodes that hold numbers and no tensor.
_NUMBERS = {
    "value_float": onnx.TensorProto.FLOAT,
    "value_floats": onnx.TensorProto.FLOAT,
    "value_int": onnx.TensorProto.INT64,
    "value_ints": onnx.TensorProto.INT64,
}

# Elements of what is worked out here, and of what it is made of.
_MOST_ELEMENTS = 1024

_DEEPEST = 30


class WorkedOut:
    """Constants by name: those of the file, and small ones that are worked out when asked for.

    Args:
        given: Those of the file.
        found: The graph; not changed while this is in use.
        constants: Values of its small constants; learns those that lie in another file.
        folder: The folder of that file; None: it is out of reach.
    """

    def __init__(
        self,
        given: Mapping[str, onnx.TensorProto],
        found: Index,
        constants: Constants,
        folder: Path | None,
    ) -> None:
        self._given = given
        self._found = found
        self._constants = constants
        self._folder = folder
        self._kinds: dict[str, int | None] = {}
        self._small: dict[str, bool] = {}
        self._made: dict[str, onnx.TensorProto | None] = {}

    def __getitem__(self, name: str) -> onnx.TensorProto:
        tensor = self.get(name)
        assert tensor is not None, name
        return tensor

    def get(self, name: str) -> onnx.TensorProto | None:
        """Return a constant, None for what is none or is large and worked out."""
        if name in self._given:
            return self._given[name]
        if name not in self._made:
            self._made[name] = self._work_out(name)
        return self._made[name]

    def kind(self, name: str, depth: int = 0) -> int | None:
        """Return the element type of what the runtime makes a tensor of, None if it does not."""
        if name in self._given:
            return self._given[name].data_type
        if name not in self._kinds:
            self._kinds[name] = self._kind(name, depth)
        return self._kinds[name]

    def _kind(self, name: str, depth: int) -> int | None:
        node = self._maker(name)
        if node is None or depth > _DEEPEST:
            return None
        given = attributes(node)
        if node.op_type == "Constant":
            return next((_NUMBERS[key] for key in given if key in _NUMBERS), None)
        kinds = [self.kind(read, depth + 1) for read in node.input if read]
        if not kinds or None in kinds:
            return None
        if node.op_type == "Cast":
            return int(given.get("to", 0))
        computed = node.op_type in _COMPUTES and _COMPUTED.issuperset(kinds)
        return kinds[0] if computed or node.op_type in _MOVES else None

    def _work_out(self, name: str) -> onnx.TensorProto | None:
        kind = self.kind(name)
        if kind is None or not self._is_small(name):
            return None
        array = self._constants.array(name)
        if array is None or onnx.helper.np_dtype_to_tensor_dtype(array.dtype) != kind:
            return None
        return onnx.numpy_helper.from_array(array, name)

    def _is_small(self, name: str) -> bool:
        """Tell whether all behind a constant is small and exact; what lies elsewhere is read."""
        if name not in self._small:
            given = self._given.get(name)
            self._small[name] = self._learn(given) if given else self._is_exact(name)
        return self._small[name]

    def _learn(self, tensor: onnx.TensorProto) -> bool:
        """Tell whether the numbers of a tensor are few and at hand; read them if need be."""
        if prod(tensor.dims) > _MOST_ELEMENTS:
            return False
        if is_external(tensor):
            if self._folder is None:
                return False
            self._constants.learn(tensor.name, values_of(tensor, self._folder))
        return True

    def _is_exact(self, name: str) -> bool:
        node = self._maker(name)
        assert node is not None  # its type is known
        if node.op_type == "Constant":
            return True
        exact = node.op_type in _EXACT or node.op_type in _MOVES or node.op_type == "Cast"
        return exact and all(self._is_small(read) for read in node.input if read)

    def _maker(self, name: str) -> onnx.NodeProto | None:
        at = self._found.producer.get(name)
        node = None if at is None else self._found.graph.node[at]
        return node if node is not None and node.domain in ONNX_DOMAINS else None


def values_of(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray[Any, Any]:
    """Return a tensor's numbers; those in another file are read.

    Raises:
        ExternalDataError: They are not there.
    """
    if not is_external(tensor):
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    assert folder is not None
    read = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type)
    read.raw_data = external_range(tensor, folder).read()
    return np.asarray(onnx.numpy_helper.to_array(read))
