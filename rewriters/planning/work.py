"""How much work a node is, counted in multiply-accumulates.

Good enough to weigh plans against each other: convolutions and matrix products by their definition,
everything else by what it reads and writes.

Source: ONNX operator definitions of Conv, ConvTranspose, MatMul and Attention.
"""

from __future__ import annotations

from math import prod

import onnx

from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.operators.record import CONVOLUTIONS

__all__ = ["COPY", "node_work"]


# Multiply-accumulates in the time of moving one byte, for a processor of some ten GB/s and some
# hundred Gflop/s. Only the order of magnitude matters.
COPY = 6.0


def _elements(shapes: Shapes, name: str) -> int:
    dims = shapes.dims.get(name)
    return 0 if dims is None else prod(size or 1 for size in dims)


def node_work(node: onnx.NodeProto, shapes: Shapes) -> float:
    """Return a node's multiply-accumulates, or what moving its tensors comes to if that is more.

    Args:
        node: The node.
        shapes: Shapes; an unknown size counts as 1.
    """
    made = sum(_elements(shapes, name) for name in node.output if name)
    read = sum(_elements(shapes, name) for name in node.input if name)
    products = 0
    # A custom operator may be called like one of these.
    if node.op_type in CONVOLUTIONS and len(node.input) > CONVOLUTIONS[node.op_type]:
        weight = shapes.dims.get(node.input[CONVOLUTIONS[node.op_type]])
        if weight and len(weight) > 1:
            # Each output (transposed: input) element meets one filter.
            transposed = node.op_type == "ConvTranspose"
            many = _elements(shapes, node.input[0]) if transposed else made
            products = many * prod(size or 1 for size in weight[1:])
    elif node.op_type in ("MatMul", "Gemm") and node.input:
        dims = shapes.dims.get(node.input[0])
        products = made * ((dims[-1] or 1) if dims else 1)
    elif node.op_type == "Attention" and len(node.input) > 1:
        dims = shapes.dims.get(node.input[1])
        # Scores, and what they weigh: each query meets each key twice.
        products = 2 * made * ((dims[-2] or 1) if dims and len(dims) > 2 else 1)
    return max(float(products), COPY * (made + read))
