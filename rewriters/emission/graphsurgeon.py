"""To graphsurgeon's graphs and back."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

__all__ = ["from_graphsurgeon", "to_graphsurgeon"]


def from_graphsurgeon(graph: gs.Graph) -> onnx.ModelProto:
    """Export a graphsurgeon graph."""
    exported: onnx.ModelProto = gs.export_onnx(graph.copy().toposort())
    return exported


def to_graphsurgeon(model: onnx.ModelProto) -> gs.Graph:
    """Import a model into graphsurgeon."""
    return gs.import_onnx(model)


def is_graphsurgeon(model: object) -> bool:
    """Tell whether an object is a graphsurgeon graph."""
    return isinstance(model, gs.Graph)
