"""What lies between the cuts of a model and each of its outputs: the coarsest type, roundings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import onnx

from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.use_def import Index
from patchconv_deploy.rewriters.regions.region import Region
from patchconv_deploy.verify.tolerances import Way, coarsest

__all__ = ["ways_of"]


_T = onnx.TensorProto

_FLOATING: Mapping[int, str] = {
    _T.DOUBLE: "float64",
    _T.FLOAT: "float32",
    _T.FLOAT16: "float16",
    _T.BFLOAT16: "bfloat16",
}

# What a quantised tensor counts as.
_QUANTISED: Mapping[int, str] = {
    _T.INT8: "int8",
    _T.UINT8: "int8",
    _T.INT16: "float16",
    _T.UINT16: "float16",
}

_ROUNDINGS = frozenset({"Round", "Floor", "Ceil", "Sign", "Mod", "ArgMax", "ArgMin", "TopK"})

_COMPARISONS = frozenset({"Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "NonZero"})

# Values pass through these as they are; through the first ones in the same order as well.
_ORDERED = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"})

_MOVED = _ORDERED | {"Transpose", "Slice", "Concat", "Gather", "DepthToSpace", "Expand", "Clip"}


def ways_of(
    index: Index,
    elements: Mapping[str, int],
    regions: Sequence[Region] | None,
    *,
    twins: bool = False,
) -> dict[str, Way]:
    """Return the way to each output of the graph.

    Args:
        index: The original's graph.
        elements: Element type of its tensors.
        regions: What was cut of it; None if all of it was changed.
        twins: float32 takes the place of double and bfloat16.
    """
    changed = None if regions is None else _after(index, regions)
    found = {}
    for value in index.graph.output:
        nodes = [index.graph.node[at] for at in sorted(_before(index, {value.name}, frozenset()))]
        if changed is not None:
            nodes = [node for node in nodes if changed & set(node.output)]
        types, stepped = [], False
        for node in nodes:
            quantises = _quantises(node, elements)
            stepped = stepped or quantises or _rounds(node, elements)
            for name in node.output:
                kind = elements.get(name, 0)
                types.append(_FLOATING.get(kind, ""))
                if quantises and kind not in _FLOATING:
                    types.append(_QUANTISED.get(kind, "int4"))
        if twins:
            types = ["float32" if t in ("float64", "bfloat16") else t for t in types]
        found[value.name] = _integers(index, elements, value.name, coarsest(*types), stepped)
    return found


def _before(index: Index, names: AbstractSet[str], stop: AbstractSet[str]) -> set[int]:
    """Return the nodes that tensors are made from, back to some other tensors."""
    nodes: set[int] = set()
    pending = list(names)
    while pending:
        at = index.producer.get(pending.pop())
        if at is not None and at not in nodes:
            nodes.add(at)
            pending += [name for name in index.ends[at][0] if name and name not in stop]
    return nodes


def _after(index: Index, regions: Sequence[Region]) -> frozenset[str]:
    """Return the tensors inside regions, and whatever is made from what they make."""
    ends: set[str] = set()
    changed: set[str] = set()
    for region in regions:
        outputs = {edge.name for edge in region.outputs}
        ends |= outputs
        inputs = {edge.name for edge in region.inputs} - outputs
        for at in _before(index, outputs, inputs | index.constants):
            changed.update(index.ends[at][1])
    pending = list(ends)
    while pending:
        for at in index.users.get(pending.pop(), ()):
            # A size says nothing of the values.
            if index.graph.node[at].op_type not in ("Shape", "Size"):
                new = set(index.ends[at][1]) - changed
                pending += [*new]
                changed |= new
    return frozenset(changed | ends)


def _quantises(node: onnx.NodeProto, elements: Mapping[str, int]) -> bool:
    if node.op_type.startswith(("QLinear", "QGemm", "QAttention")):
        return True
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return True
    # A Cast to eight bits of floating point.
    kind = elements.get(node.output[0], 0) if node.output else 0
    return node.op_type == "Cast" and "FLOAT8" in _T.DataType.Name(kind)


def _rounds(node: onnx.NodeProto, elements: Mapping[str, int]) -> bool:
    if node.op_type == "Cast":
        return (
            elements.get(node.input[0]) in _FLOATING
            and elements.get(node.output[0]) not in _FLOATING
        )
    if node.op_type in _COMPARISONS:
        return elements.get(node.input[0]) in _FLOATING
    return node.op_type in _ROUNDINGS


def _integers(
    index: Index, elements: Mapping[str, int], name: str, kind: str, stepped: bool
) -> Way:
    """Return the way, with what an integer output is made of."""
    ordered = True
    while (at := index.producer.get(name)) is not None:
        node = index.graph.node[at]
        source = node.input[0] if node.input else ""
        if node.op_type in ("ArgMax", "ArgMin") and ordered:
            return Way(
                kind,
                stepped,
                "labels",
                source,
                attributes(node).get("axis", 0),
                node.op_type == "ArgMin",
            )
        if _quantises(node, elements) or (
            node.op_type == "Cast"
            and elements.get(source) in _FLOATING
            and elements.get(name) != _T.BOOL
        ):
            return Way(kind, stepped, "levels")
        if node.op_type not in _MOVED:
            break
        ordered = ordered and node.op_type in _ORDERED
        name = source
    return Way(kind, stepped)
