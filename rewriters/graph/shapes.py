"""Shapes and element types of tensors, as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.graph.external_data import BITS
from patchconv_deploy.rewriters.operators.record import Shape

__all__ = ["ANONYMOUS", "Shapes", "has_shape", "known_size", "required_inputs"]


ANONYMOUS = frozenset({"", "?", "None", "unk"})


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shape and element type of the main graph's tensors, as far as they are known.

    Attributes:
        dims: Shape of a tensor, None for each unknown size.
        elements: Element type of a tensor.
        doubtful: Tensors whose sizes a runtime may compute otherwise than onnx infers them. A
            runtime that folds inferred shapes contradicts itself there, so that not even
            arithmetic at run time is safe.
    """

    dims: Mapping[str, Shape]
    elements: Mapping[str, int]
    doubtful: frozenset[str] = frozenset()

    def bits(self, name: str) -> int | None:
        """Return the bits of one element, None if the type is unknown or has no fixed size."""
        return BITS.get(self.elements.get(name, 0))

    def bytes(self, name: str) -> int | None:
        """Return the tensor's size in bytes, None if it is unknown."""
        shape, bits = self.dims.get(name), self.bits(name)
        if shape is None or bits is None or any(size is None for size in shape):
            return None
        return (prod(size or 0 for size in shape) * bits + 7) // 8


def known_size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """Return a dimension's size, None if it is free."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def has_shape(value: onnx.ValueInfoProto) -> bool:
    """Return whether a value says its rank."""
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def required_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that no initializer gives a value to."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]
