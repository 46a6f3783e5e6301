"""Say in clones what has to be said, and no more: a runtime keeps all of it for every node.

    patches    Conv(x_k, W) strides = [1, 1], dilations = [1, 1], pads = [0, 0, 0, 0]
    written    Conv(x_k, W)                                                           k = 0, 1, ...

Lists that state what is so without them are left out: strides and dilations of 1, padding of 0.
They are ONNX's defaults from opset 11 on; before that not all of them are written down, and nothing
is left out. ``kernel_shape`` stays, though it may be left out as well: some importers ask for it.

    patches    Concat(x_k) -> y_k, Conv(y_k, W)
    written    Conv(x_k, W)

Exporters write a Concat of one tensor for the first layer of a dense block. ONNX Runtime copies the
tensor there. A clone of it is left out where nobody knows its output by name.

    patches    /trunk/blocks/blocks.2/Add/patchconv/Concat.3_7 -> ...
    written    patchconv/1234 -> ...

In a file with very many patches the tensors that they pass on are numbered: ONNX Runtime holds the
name of a tensor about nine times, and one of at most 15 characters without memory of its own. Nodes
keep their names, so that errors and profiles say where they are.

Measured with ONNX Runtime 1.32: each list costs 1.3 KiB a node, a name of 60 characters 0.6 KiB, a
Concat 5 KiB.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableSequence

import onnx

from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.emission.splice import drop_unused_value_info
from patchconv_deploy.rewriters.graph.nodes import bodies
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["drop_copies", "drop_defaults", "number_tensors"]


# The first version of the default domain in which the defaults are written down for all.
_SINCE = 11

_WINDOWED = frozenset(
    "Conv ConvTranspose ConvInteger QLinearConv MaxPool AveragePool LpPool".split()
)

_DEFAULTS = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}

# Names of fewer nodes come to less than one MiB.
_MANY_NODES = 1000


def drop_defaults(model: onnx.ModelProto, clones: Collection[str]) -> None:
    """Leave out lists of defaults in the nodes of the main graph with these names, in place."""
    opset = next((e.version for e in model.opset_import if e.domain in ONNX_DOMAINS), 0)
    if opset < _SINCE:
        return
    for node in model.graph.node:
        if node.op_type not in _WINDOWED or node.domain not in ONNX_DOMAINS:
            continue
        if node.name not in clones:
            continue
        kept = [entry for entry in node.attribute if not _is_default(entry)]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def _is_default(entry: onnx.AttributeProto) -> bool:
    default = _DEFAULTS.get(entry.name)
    return (
        default is not None
        and entry.type == onnx.AttributeProto.INTS
        and all(number == default for number in entry.ints)
    )


def drop_copies(model: onnx.ModelProto, clones: Collection[str]) -> None:
    """Leave out clones that put one tensor together, in place; outputs of the model stay."""
    outputs = {value.name for value in model.graph.output}
    source: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        one = node.op_type == "Concat" and node.domain in ONNX_DOMAINS and len(node.input) == 1
        if one and node.name in clones and node.output[0] not in outputs:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    if source:
        del model.graph.node[:]
        model.graph.node.extend(kept)
        drop_unused_value_info(model.graph, source)
        _rename(model.graph, source)


def number_tensors(model: onnx.ModelProto, clones: Collection[str], names: NameScheme) -> None:
    """Number the tensors that clones make and that had no name before, in place.

    Only where there are many; what the surrounding graph reads keeps the name it has there.

    Args:
        model: A model with patches in its main graph.
        clones: Names of the nodes that were written.
        names: The scheme that they are named by.
    """
    if len(clones) < _MANY_NODES:
        return
    inside = f"/{names.tag}/"
    made = (
        name
        for node in model.graph.node
        if node.name in clones
        for name in node.output
        if inside in name
    )
    outputs = {value.name for value in model.graph.output}
    renamed = {
        name: f"{names.tag}/{number}" for number, name in enumerate(made) if name not in outputs
    }
    _rename(model.graph, renamed)


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Give tensors other names, in the bodies of nodes as well."""
    for value in (*graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        _replace(node.input, renamed)
        _replace(node.output, renamed)
        for body in bodies(node):
            _rename(body, renamed)


def _replace(names: MutableSequence[str], renamed: Mapping[str, str]) -> None:
    for at, name in enumerate(names):
        if name in renamed:
            names[at] = renamed[name]
