"""A model with QuantizeLinear and DequantizeLinear around its operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tools.models.layers import Size
from tools.models.quiet import quiet

__all__ = ["quantize_qdq"]


def quantize_qdq(
    source: str | Path,
    path: str | Path,
    *,
    size: Size | None = None,
    samples: int = 4,
    seed: int = 0,
) -> Path:
    """Write a statically quantised (QDQ, int8, per-channel weights) copy of a float32 model.

    It is calibrated on ``samples`` seeded normal inputs. Symbolic dimensions are taken as a batch
    of 1 and, for height and width, ``size`` (64x64 unless given). Normalisations stay in float.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    graph = onnx.load(source, load_external_data=False).graph
    value = graph.input[0]
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise ValueError("only float32 models can be quantised")
    fallback = (1, 0, *(size or (64, 64)))
    shape = [
        dim.dim_value if dim.HasField("dim_value") else fallback[axis]
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    rng = np.random.default_rng(seed)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = samples

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            if not self.left:
                return None
            self.left -= 1
            return {value.name: rng.standard_normal(shape, dtype=np.float32)}

    path = Path(path)
    with quiet():
        quantize_static(
            str(source),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            # Weights of 7 bits: on x86 without VNNI sums of two products of 8 bits saturate in 16,
            # and what a network computes depends on the kernel that is chosen.
            reduce_range=True,
            # The quantiser copies a bias that several of them share under the next free number
            # among the initializers, which may be a node's output already ("val_150").
            nodes_to_exclude=[
                node.name for node in graph.node if node.op_type == "InstanceNormalization"
            ],
        )
    return path
