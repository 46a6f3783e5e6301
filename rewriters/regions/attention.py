"""Attention: which dimension of the scores is that of the queries, and which that of the keys.

    q --+                                                       v
        MatMul -- scores -- scale, mask -- Softmax -- weights -- MatMul -- y
    k --+         [.., queries, keys]     (over keys)            [.., queries, ..]

Each query is by itself: a block of queries, with all keys and values, gives a block of the result,
exactly. Queries and keys are mostly made of the same image, so that both dimensions of the scores
come from its rows; the Softmax says which of them has to stay whole.

Source: Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021 (the blocks of queries).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.operators.channelwise import REDUCTIONS
from patchconv_deploy.rewriters.operators.elementwise import BROADCAST
from patchconv_deploy.rewriters.operators.products import PRODUCTS
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, RowLocal
from patchconv_deploy.rewriters.operators.rules import CONTRIB_DOMAIN, OverAllRows

__all__ = ["KEYS", "Ask", "is_weighed", "products", "queries"]


# Returns a node's rows if a dimension of its output is the tiled axis, or why it has none.
Ask: TypeAlias = Callable[[int, int], RowLocal | str]

KEYS = OverAllRows("the tiled axis is that of the keys, which each query needs whole")

# What may stand between the scores and their Softmax.
_BETWEEN = frozenset({*BROADCAST, "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})

_WEIGHING = frozenset({"Softmax", "LogSoftmax", "Hardmax", *REDUCTIONS})

# What has the products and the Softmax inside.
_INSIDE = frozenset({"Attention", "MultiHeadAttention"})

_PRODUCTS = frozenset(
    {(domain, op) for domain in ONNX_DOMAINS for op in (*PRODUCTS, "Attention")}
    | {(CONTRIB_DOMAIN, "MultiHeadAttention")}
)

# Nodes that are looked at for the Softmax.
_FAR = 32


def products(facts: CertainFacts) -> Iterator[int]:
    """Yield the positions of the products of two activations, and of what has them inside."""
    constants = facts.index.constants
    for position, node in enumerate(facts.graph.node):
        if (
            (node.domain, node.op_type) in _PRODUCTS
            and len(node.input) > 1
            and not any(name in constants for name in node.input[:2])
        ):
            yield position


def queries(facts: CertainFacts, ask: Ask, position: int) -> int | None:
    """Return which dimension of a product's result is that of attention's queries, None if none is.

    Args:
        facts: The model.
        ask: The table of operators.
        position: One of `products`.
    """
    made = facts.graph.node[position].output[0]
    sizes = facts.shapes.dims.get(made, ())
    if facts.graph.node[position].op_type in _INSIDE:
        return len(sizes) - 2 if len(sizes) > 2 else None
    factor = dict[int, int]()
    for at in range(len(sizes)):
        found = ask(position, at)
        if isinstance(found, RowLocal) and len(found.carriers) == 1:
            factor[at] = found.carriers[0][0]
    keys = [at for at in factor if is_weighed(facts, ask, made, at)]
    if len(keys) != 1:
        return None
    # Heads may be one factor's alone: there are fewer of them.
    others = [at for at in factor if factor[at] != factor[keys[0]] and sizes[at] != 1]
    return max(others, key=lambda at: sizes[at] or 0, default=None)


def is_weighed(facts: CertainFacts, ask: Ask, name: str, axis: int) -> bool:
    """Tell whether a Softmax, or a reduction, goes over a dimension of a tensor further on.

    Args:
        facts: The model.
        ask: The table of operators.
        name: The tensor.
        axis: The dimension.
    """
    graph, users = facts.graph, facts.index.users
    pending, looked_at = [(name, axis)], 0
    while pending and looked_at < _FAR:
        name, axis = pending.pop()
        for user in users.get(name, ()):
            looked_at += 1
            node = graph.node[user]
            if node.op_type in _WEIGHING and name == node.input[0]:
                if not any(_beyond(facts, ask, user, name, axis)):
                    return True
            elif node.op_type in _BETWEEN:
                pending += _beyond(facts, ask, user, name, axis)
    return False


def _beyond(
    facts: CertainFacts, ask: Ask, position: int, name: str, axis: int
) -> Iterator[tuple[str, int]]:
    """Yield where a dimension of what a node reads is in what it makes."""
    node = facts.graph.node[position]
    for at in range(len(facts.shapes.dims.get(node.output[0], ()))):
        found = ask(position, at)
        if isinstance(found, RowLocal) and any(
            node.input[i] == name and a == axis for i, a in found.carriers
        ):
            yield node.output[0], at
