"""Models in double precision, run by onnx's reference evaluator.

What is left of a difference there is no rounding: a model that is cut wrongly is as wrong as it
was, one that is cut right agrees to the last places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.support.small_models import Array, copy_of, operators

__all__ = ["assert_same_in_double", "in_double"]


def in_double(made: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of float32, without Casts and bodies, in float64."""
    double = copy_of(made)
    graph = double.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for each in (*graph.input, *graph.output, *graph.value_info):
        if each.type.tensor_type.elem_type == TensorProto.FLOAT:
            each.type.tensor_type.elem_type = TensorProto.DOUBLE
    return double


def assert_same_in_double(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Array]
) -> None:
    """Assert equal outputs within 1e-12 of the largest; the evaluator cannot run Loops.

    Args:
        before: A model of float32.
        after: The same, cut.
        feeds: Inputs of float32.
    """
    if "Loop" in operators(after):
        return
    exact = {name: array.astype(np.float64) for name, array in feeds.items()}
    found: list[Any] = [
        ReferenceEvaluator(in_double(each)).run(None, exact) for each in (before, after)
    ]
    for wanted, got in zip(*found, strict=True):
        assert wanted.shape == got.shape
        largest = float(np.max(np.abs(wanted)))
        error = float(np.max(np.abs(wanted - got)))
        assert error <= 1e-12 * largest, f"off by {error}, largest {largest}"
