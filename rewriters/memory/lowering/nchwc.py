"""ONNX Runtime's blocked channel layout, with a copy where it begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import (
    CONV_LIKE,
    NCHWC,
    Lowering,
    Node,
    with_fields,
)

# Run in the blocked layout as they stand, element by element.
_BLOCKED_ELEMENTWISE = frozenset({"Gelu", "QuickGelu"})


# The same, or inside the blocked Conv before them if its result has no other reader.
_BLOCKED_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "HardSigmoid"})


_POOLS = frozenset({"MaxPool", "AveragePool"})


_GLOBAL_POOLS = frozenset({"GlobalMaxPool", "GlobalAveragePool"})


@dataclass
class _Blocked:
    """A tensor that exists in the blocked layout.

    Attributes:
        name: Its name there.
        maker: Position of the node that makes it.
        channels: Channels before padding to whole blocks.
        only: It has one reader.
        left: Readers that still want the plain layout.
    """

    name: str
    maker: int
    channels: int
    only: bool
    left: int


@dataclass
class _Layout:
    """The layout while it is made.

    Attributes:
        graph: The graph.
        block: Channels of a block.
        blocked: Tensors in the layout, by the name they have in the plain one.
        reordered: Tensors that were brought into it, by the same.
    """

    graph: Graph
    block: int
    blocked: dict[str, _Blocked] = field(default_factory=dict)
    reordered: dict[str, str] = field(default_factory=dict)


def to_nchwc(graph: Graph, lowering: Lowering) -> None:
    """Move Convs, and what stands between them, to the blocked channel layout."""
    if not lowering.block:
        return
    layout = _Layout(graph, lowering.block)
    for position in graph.in_order():
        node = graph.nodes[position]
        if node is not None:
            _to_blocks(layout, position, node)
    for name, blocked in layout.blocked.items():
        if blocked.left > 0:
            graph.append(Node(f"{name} (plain layout)", "ReorderOutput", (blocked.name,), (name,)))


def _to_blocks(layout: _Layout, position: int, node: Node) -> None:
    sources = [name for name in node.reads if name and name not in layout.graph.constants]
    inside = [layout.blocked.get(name) for name in sources]
    op_type = node.op_type
    if op_type in CONV_LIKE:
        _block_conv(layout, position, node)
    elif op_type in _POOLS:
        channels = layout.graph.channels(node.reads[0])
        if (
            _is_plain(layout, node.reads[0])
            and channels
            and channels % layout.block == 0
            and len(node.makes) == 1
        ):
            _make(
                layout, position, node, NCHWC + op_type, channels, (_enter(layout, node.reads[0]),)
            )
    elif not inside or any(entry is None for entry in inside):
        return
    else:
        entries = [entry for entry in inside if entry is not None]
        _block_other(layout, position, node, entries)


def _block_other(layout: _Layout, position: int, node: Node, entries: list[_Blocked]) -> None:
    """Lay out a node all of whose inputs are in blocks."""
    op_type, made = node.op_type, node.makes[0]
    first = entries[0]
    if op_type in ("Add", "Sum", "Mul") and len(entries) == len(node.reads):
        shapes = {layout.graph.dims.get(name) for name in node.reads}
        if len(shapes) == 1 and None not in shapes:
            if op_type != "Mul" and len(entries) == 2 and _add_in_conv(layout, position, node):
                return
            _keep(layout, position, node, first.channels)
    elif op_type == "Concat" and node.attributes.get("axis") == 1:
        if all(entry.channels % layout.block == 0 for entry in entries):
            _keep(layout, position, node, sum(entry.channels for entry in entries))
    elif op_type in _BLOCKED_ACTIVATIONS:
        conv = layout.graph.nodes[first.maker]
        if (
            conv is not None
            and conv.op_type == NCHWC + "Conv"
            and first.only
            and "activation" not in conv.attributes
        ):
            _absorb(layout, position, node, first, {"activation": op_type})
        else:
            _keep(layout, position, node, first.channels)
    elif op_type in _BLOCKED_ELEMENTWISE:
        _keep(layout, position, node, first.channels)
    elif op_type == "BatchNormalization":
        _make(
            layout, position, node, NCHWC + "Conv", first.channels, (_enter(layout, node.reads[0]),)
        )
    elif op_type in ("Resize", "Upsample"):
        if _is_blocked_resize(layout, node):
            _make(
                layout,
                position,
                node,
                NCHWC + op_type,
                first.channels,
                (_enter(layout, node.reads[0]),),
            )
    elif op_type in _GLOBAL_POOLS and first.channels % layout.block == 0:
        _make(
            layout,
            position,
            node,
            NCHWC + op_type,
            first.channels,
            (_enter(layout, node.reads[0]),),
        )
    elif op_type == "Transpose" and node.attributes.get("perm") == (0, 2, 3, 1):
        layout.graph.remove(position)
        layout.graph.append(
            Node(node.label, "ReorderOutput", (_enter(layout, node.reads[0]),), (made,))
        )


def _is_plain(layout: _Layout, name: str) -> bool:
    dims = layout.graph.dims.get(name)
    return layout.graph.bits.get(name) == 32 and dims is not None and len(dims) == 4


def _block_conv(layout: _Layout, position: int, node: Node) -> None:
    weight = layout.graph.dims.get(node.reads[1])
    bias = node.reads[2] if len(node.reads) > 2 else ""
    if node.reads[1] not in layout.graph.constants or (bias and bias not in layout.graph.constants):
        return
    if weight is None or len(weight) != 4 or None in weight or not _is_plain(layout, node.makes[0]):
        return
    made, taken = weight[0] or 0, weight[1] or 0
    group = node.attributes.get("group", 1)
    direct = group == 1 and taken < layout.block
    if group == 1:
        fits = direct or taken % 4 == 0
    elif taken == 1 and made == group:
        fits = made % 4 == 0 and made >= 8
    else:
        fits = taken % layout.block == 0 and made // group % layout.block == 0
    if not fits:
        return
    source = node.reads[0] if direct else _enter(layout, node.reads[0])
    _make(layout, position, node, NCHWC + "Conv", made, (source, *node.reads[1:]))


def _enter(layout: _Layout, name: str) -> str:
    """Return the blocked twin of a tensor, with a copy into the layout where there is none."""
    found = layout.blocked.get(name)
    if found is not None:
        found.left -= 1
        return found.name
    if name not in layout.reordered:
        twin = f"{name}/blocked"
        _describe(layout, twin, name, layout.graph.channels(name) or 0)
        layout.reordered[name] = twin
        layout.graph.append(Node(f"{name} (blocked layout)", "ReorderInput", (name,), (twin,)))
    return layout.reordered[name]


def _describe(layout: _Layout, twin: str, name: str, channels: int) -> None:
    layout.graph.like(twin, name)
    dims = layout.graph.dims.get(twin)
    if dims is not None:
        layout.graph.dims[twin] = (dims[0], -(-channels // layout.block) * layout.block, *dims[2:])


def _enroll(layout: _Layout, name: str, maker: int, channels: int) -> str:
    twin = f"{name}/blocks"
    _describe(layout, twin, name, channels)
    uses = layout.graph.uses(name)
    layout.blocked[name] = _Blocked(twin, maker, channels, uses == 1, uses)
    return twin


def _make(
    layout: _Layout, position: int, node: Node, op_type: str, channels: int, reads: tuple[str, ...]
) -> None:
    """Put a new node of the blocked layout in a node's place."""
    layout.graph.remove(position)
    twin = _enroll(layout, node.makes[0], len(layout.graph.nodes), channels)
    layout.graph.append(Node(node.label, op_type, reads, (twin,), node.attributes))


def _keep(layout: _Layout, position: int, node: Node, channels: int) -> None:
    """Let a node run in the blocked layout as it stands."""
    twin = _enroll(layout, node.makes[0], position, channels)
    reads = tuple(_enter(layout, name) if name in layout.blocked else name for name in node.reads)
    layout.graph.nodes[position] = with_fields(node, reads=reads, makes=(twin,))


def _absorb(
    layout: _Layout, position: int, node: Node, into: _Blocked, attributes: Mapping[str, Any]
) -> None:
    """Let the blocked Conv that makes a tensor do its reader's work too."""
    conv = layout.graph.nodes[into.maker]
    assert conv is not None
    layout.graph.remove(position)
    into.left -= 1
    twin = _enroll(layout, node.makes[0], into.maker, into.channels)
    layout.graph.nodes[into.maker] = with_fields(
        conv, makes=(twin,), attributes={**conv.attributes, **attributes}
    )


def _add_in_conv(layout: _Layout, position: int, node: Node) -> bool:
    """Let a Conv add the other operand to its result; tell whether one can."""
    for name, other in (node.reads, node.reads[::-1]):
        entry = layout.blocked[name]
        conv = layout.graph.nodes[entry.maker]
        if conv is None or conv.op_type != NCHWC + "Conv" or not entry.only:
            continue
        if "activation" in conv.attributes or len(conv.reads) > 3:
            continue
        reads = (*conv.reads, *("",) * (3 - len(conv.reads)), _enter(layout, other))
        layout.graph.nodes[entry.maker] = with_fields(conv, reads=reads)
        _absorb(layout, position, node, entry, {})
        return True
    return False


def _is_blocked_resize(layout: _Layout, node: Node) -> bool:
    """Tell whether a Resize by whole factors has a kernel in the blocked layout."""
    scales = _scales(layout, node)
    if len(scales) != 4 or scales[:2] != (1.0, 1.0):
        return False
    if any(scale < 1 or scale != int(scale) for scale in scales):
        return False
    where = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample":
        where = "asymmetric"
    match node.attributes.get("mode", "nearest"):
        case "nearest":
            rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
            return where == "asymmetric" and (node.op_type == "Upsample" or rounding == "floor")
        case "linear":
            return where in ("asymmetric", "align_corners", "half_pixel")
        case _:
            return False


def _scales(layout: _Layout, node: Node) -> tuple[float, ...]:
    """Return the scales of a Resize as far as the engine knows them when it loads the model."""
    if len(node.reads) > 3 and node.reads[3]:
        ends = node.reads[0], node.makes[0]
        source, made = (layout.graph.dims.get(name) for name in ends)
        if not source or not made or any(name in layout.graph.tensors.open for name in ends):
            return ()
        sizes = zip(source, made, strict=True)
        return tuple(new / old if old and new else 0.0 for old, new in sizes)
    position = 2 if node.op_type == "Resize" and len(node.reads) > 2 else 1
    return layout.graph.value(node.reads[position]) if position < len(node.reads) else ()
