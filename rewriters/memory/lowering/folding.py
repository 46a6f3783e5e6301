"""What engines fold into weights: BatchNormalization, constant Mul and Add, zero padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from patchconv_deploy.rewriters.memory.executed import VIEWS
from patchconv_deploy.rewriters.memory.lowering.graph import Graph
from patchconv_deploy.rewriters.memory.lowering.node import (
    Lowering,
    Node,
    with_fields,
)
from patchconv_deploy.rewriters.operators.record import is_channelwise


def _swaps_last(perm: Sequence[int]) -> bool:
    """Tell whether a permutation exchanges the last two axes alone."""
    rank = len(perm)
    return rank > 1 and list(perm) == [*range(rank - 2), rank - 1, rank - 2]


def fold_into_convolutions(graph: Graph, lowering: Lowering) -> None:
    """Fold what is a change of weights, and zero padding."""
    convs = [(at, node) for at, node in graph.present() if node.op_type == "Conv"]
    readers = Counter(node.reads[1] for _, node in convs)
    for position, node in convs:
        weight = node.reads[1]
        if weight in graph.constants:
            shared = lowering.shares and readers[weight] > 1
            _fold(graph, position, node, shared=shared, compiler=lowering.compiler)


def _fold(graph: Graph, position: int, node: Node, *, shared: bool, compiler: bool) -> None:
    padded = graph.producer(node.reads[0])
    if padded is not None and padded[1].op_type == "Pad" and graph.uses(node.reads[0]) == 1:
        pad = padded[1]
        zero = len(pad.reads) < 3 or graph.value(pad.reads[2]) in ((), (0.0,))
        mode = pad.attributes.get("mode", "constant")
        if mode == "constant" and zero and pad.reads[0] not in graph.constants:
            graph.remove(padded[0])
            # The window's size does not matter from here on.
            node = with_fields(node, reads=(pad.reads[0], *node.reads[1:]))
            graph.put(position, node)
    while True:
        follower = graph.single_user(node.makes[0])
        if follower is None or not _is_affine(graph, follower[1], node.makes[0], compiler):
            return
        graph.remove(follower[0])
        node = with_fields(node, makes=follower[1].makes)
        if not shared and follower[1].op_type != "Add":
            node = with_fields(node, reads=(node.reads[0], _own(graph, node), *node.reads[2:]))
        graph.put(position, node)


def _own(graph: Graph, conv: Node) -> str:
    """Return a weight of a Conv's own in place of the one that others may read too."""
    weight = conv.reads[1]
    if weight in graph.folded:
        return weight
    own = f"{weight}/of/{conv.makes[0]}"
    graph.like(own, weight)
    graph.constants.add(own)
    graph.folded[own] = weight
    return own


def _is_affine(graph: Graph, node: Node, name: str, compiler: bool) -> bool:
    """Tell whether a node scales or shifts whole channels by constants that its engine folds.

    A compiler folds constants of any spelling; ONNX Runtime looks at the second operand alone, and
    leaves one number that has a dimension: a model may compute with hundreds of such.
    """
    if node.op_type not in ("BatchNormalization", "Mul", "Add"):
        return False  # before the reads of a wide Concat are walked, from each that it joins
    others = [read for read in node.reads if read and read != name]
    if not others or any(read not in graph.constants for read in others):
        return False
    if node.op_type == "BatchNormalization":
        return node.reads[0] == name and len(node.makes) == 1
    dims, result = graph.dims.get(others[0]), graph.dims.get(name)
    if not compiler:
        return node.reads[0] == name and is_channelwise(node.op_type, dims, result)
    return dims is not None and all(
        size == 1 for axis, size in enumerate(reversed(dims)) if axis != len(result or ()) - 2
    )


def fold_into_products(graph: Graph, lowering: Lowering) -> None:
    """Fold bias, transposes and constant factors into the MatMul beside them."""
    for position in graph.in_order():
        node = graph.nodes[position]
        if node is None or node.op_type != "MatMul":
            continue
        user = graph.single_user(node.makes[0])
        if node.reads[1] in graph.constants:
            if user is not None and user[1].op_type == "Add" and _is_bias(graph, user[1], node):
                _make_gemm(graph, position, node, user)
            continue
        reads, makes = tuple(_unscaled(graph, name) for name in node.reads), node.makes
        if user is not None and _is_scale(graph, user[1], makes[0]):
            graph.remove(user[0])
            makes = user[1].makes
        if (reads, makes) != (node.reads, node.makes):
            graph.remove(position)
            graph.append(with_fields(node, op_type="FusedMatMul", reads=reads, makes=makes))
    for position, node in list(graph.present()):
        if node.op_type == "Transpose" and node.attributes.get("perm") == (0, 2, 1):
            _unflatten(graph, position, node)


def _is_scale(graph: Graph, node: Node, scaled: str) -> bool:
    """Tell whether a node multiplies a tensor by one number, or divides it by one."""
    if node.op_type not in ("Mul", "Div") or (node.op_type == "Div" and node.reads[0] != scaled):
        return False
    others = [name for name in node.reads if name in graph.constants]
    return len(others) == 1 and prod(s or 0 for s in graph.dims.get(others[0]) or ()) == 1


def _unflatten(graph: Graph, position: int, node: Node) -> None:
    """Move the Reshape behind (N, HW, C) -> (N, C, HW) before it, as attention ends."""
    user = graph.single_user(node.makes[0])
    if user is not None and user[1].op_type == "Reshape":
        graph.remove(user[0])
        graph.put(position, with_fields(node, makes=user[1].makes))


def _make_gemm(graph: Graph, position: int, node: Node, bias: tuple[int, Node]) -> None:
    """Replace MatMul and bias, and a view behind them, which the engine makes anew."""
    graph.remove(position)
    graph.remove(bias[0])
    graph.append(Node(node.label, "Gemm", node.reads, bias[1].makes))
    view = graph.single_user(bias[1].makes[0])
    if view is not None and view[1].op_type in VIEWS:
        graph.remove(view[0])
        graph.append(view[1])


def _is_bias(graph: Graph, node: Node, product: Node) -> bool:
    others = [name for name in node.reads if name != product.makes[0]]
    return (
        len(others) == 1
        and others[0] in graph.constants
        and len(graph.dims.get(others[0]) or ()) == 1
    )


def _unscaled(graph: Graph, name: str) -> str:
    """Return what a product reads where constant factors and transposes before it are folded.

    The nodes in between are removed.
    """
    gone = []
    while graph.uses(name) == 1 and (found := graph.producer(name)) is not None:
        position, node = found
        if node.op_type in ("Mul", "Div"):
            if not any(_is_scale(graph, node, read) for read in node.reads):
                break
        elif node.op_type != "Transpose" or not _swaps_last(node.attributes.get("perm", ())):
            break
        gone.append(position)
        name = next(read for read in node.reads if read not in graph.constants)
    for position in gone:
        graph.remove(position)
    return name
