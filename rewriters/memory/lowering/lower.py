"""What an engine makes of a graph before it runs it: nodes folded, fused and laid out anew.

    drop      nodes that copy nothing (Identity, Dropout, Cast to the same type) and constants
    fold      BatchNormalization, a constant Mul or Add, and zero Pad into the Conv beside them
    fuse      x * Sigmoid(x), Gelu and HardSwish spelled out; an activation into its Conv
    block     ONNX Runtime's blocked channel layout: Convs and what stands between them, with a copy
              where the layout begins and ends

Which passes an engine has, and which operators they take, is data: a `Lowering`. The result are
nodes of `memory.executed` with the sizes of the tensors in the layouts they really have. Only what
changes memory is modelled.

Steps stand in the order in which ONNX Runtime numbers its nodes: those of the file first, made ones
behind, since its execution order goes by that number.

Source: ONNX Runtime's optimised graphs (``optimized_model_filepath``) and their public sources,
version 1.32; measured operator by operator (``tools/calibrate_memory.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import Lowered, Lowering, Node, Tensors
from patchconv_deploy.rewriters.memory.lowering.result import lowered

__all__ = ["lower"]


def lower(
    nodes: Sequence[Node], tensors: Tensors, outputs: Collection[str], lowering: Lowering
) -> Lowered:
    """Return what the engine runs in place of a graph; linear in its nodes.

    Args:
        nodes: The nodes in the file's order.
        tensors: Their tensors.
        outputs: Graph outputs.
        lowering: What the engine does.
    """
    bits = {name: lowering.widened.get(size, size) for name, size in tensors.bits.items()}
    graph = Graph(nodes, replace(tensors, bits=bits), outputs)
    for change in lowering.passes:
        change(graph, lowering)
    return lowered(graph, lowering)
