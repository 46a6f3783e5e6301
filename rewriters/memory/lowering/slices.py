"""Slices of one tensor as engines run them: at once, as a Split, or where a Concat wants them."""

from __future__ import annotations

from itertools import accumulate

from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import (
    POINTWISE,
    Lowering,
    Node,
    with_fields,
)


def split_at_once(graph: Graph, lowering: Lowering) -> None:
    """Replace Slices that take a tensor apart by one Split, which makes all parts at once."""
    for name in list(graph.users):
        parts = parts_of(graph, name)
        if parts:
            makes = tuple(node.makes[0] for _, node in parts)
            for position, _ in parts:
                graph.remove(position)
            graph.append(Node(parts[0][1].label, "Split", (name,), makes))


def parts_of(graph: Graph, name: str) -> list[tuple[int, Node]]:
    """Return the Slices of a tensor if together they are it, one behind the other."""
    slices = slices_of(graph, name)
    cuts = [(cut, n, node) for n, node in slices if (cut := cut_of(graph, n)) is not None]
    dims = graph.dims.get(name)
    if len(cuts) < 2 or len(cuts) < len(slices) or dims is None:
        return []
    cuts.sort(key=lambda item: item[:2])
    axis, reached = cuts[0][0][0], 0
    for cut, _, _ in cuts:
        if cut[:2] != (axis, reached):
            return []
        reached = cut[2]
    return [(n, node) for _, n, node in cuts] if reached == dims[axis] else []


def slices_of(graph: Graph, name: str) -> list[tuple[int, Node]]:
    """Return the Slices of a tensor, by position."""
    if name in graph.constants:
        return []
    found = ((n, graph.nodes[n]) for n in dict.fromkeys(graph.users.get(name, ())))
    return [
        (n, node)
        for n, node in found
        if node is not None and node.op_type == "Slice" and node.reads[0] == name
    ]


def cut_of(graph: Graph, position: int) -> tuple[int, int, int] | None:
    """Return (axis, begin, end) of a Slice along one axis, None of any other node."""
    node = graph.nodes[position]
    if node is None or node.op_type != "Slice" or len(node.reads) < 3:
        return None
    dims = graph.dims.get(node.reads[0])
    values = [graph.value(name) for name in node.reads[1:]]
    if dims is None or any(len(value) != 1 for value in values):
        return None
    begin, end = (int(value[0]) for value in values[:2])
    axis = int(values[2][0]) if len(values) > 2 else 0
    size = dims[axis] if -len(dims) <= axis < len(dims) else None
    if size is None or (len(values) > 3 and values[3] != (1.0,)):
        return None
    begin, end = (min(max(e + size if e < 0 else e, 0), size) for e in (begin, end))
    return axis % len(dims), begin, end


def merge_slices(graph: Graph, lowering: Lowering) -> None:
    """Run all Slices of a tensor where the first one stands; parts that tile it are views."""
    for name in list(graph.users):
        slices = slices_of(graph, name)
        if len(slices) < 2:
            continue
        op_type = "Split" if parts_of(graph, name) else "Slices"
        for position, _ in slices:
            graph.remove(position)
        makes = tuple(made for _, node in slices for made in node.makes)
        first, node = slices[0]
        graph.put(first, Node(node.label, op_type, (name,), makes))


def slice_pieces(graph: Graph, lowering: Lowering) -> None:
    """Let Slices of a Concat read the pieces they need, so that the whole is never made."""
    for position, node in list(graph.present()):
        axis, made = node.attributes.get("axis"), node.makes[0]
        sizes = [(graph.dims.get(name) or ())[axis : axis + 1] for name in node.reads if axis]
        if (
            node.op_type != "Concat"
            or made in graph.outputs
            or any(s in ((), (None,)) for s in sizes)
        ):
            continue
        whole = _behind_pointwise(graph, made)
        cuts = [(n, cut_of(graph, n)) for n in graph.users.get(whole, ())]
        if not cuts or any(cut is None or cut[0] != axis for _, cut in cuts):
            continue
        if any(_is_read_by_concat(graph, user) for user, _ in cuts):
            continue
        ends = list(accumulate(size[0] or 0 for size in sizes))
        for user, cut in cuts:
            reader = graph.nodes[user]
            assert reader is not None
            assert cut is not None
            begin, end = cut[1:]
            reads = tuple(
                name
                for name, size, stop in zip(node.reads, sizes, ends, strict=True)
                if begin < stop and stop - (size[0] or 0) < end
            )
            graph.put(user, with_fields(reader, op_type="Window", reads=reads))
        if whole != made:
            graph.remove(graph.maker[whole])
        graph.remove(position)


def _is_read_by_concat(graph: Graph, position: int) -> bool:
    node = graph.nodes[position]
    user = None if node is None else graph.single_user(node.makes[0])
    return user is not None and user[1].op_type == "Concat"


def _behind_pointwise(graph: Graph, name: str) -> str:
    """Return what the one pointwise reader of a tensor makes of it, or the tensor."""
    user = graph.single_user(name)
    if user is None or user[1].op_type not in POINTWISE:
        return name
    others = [read for read in user[1].reads if read and read not in graph.constants]
    return user[1].makes[0] if others == [name] and user[1].makes[0] not in graph.outputs else name
