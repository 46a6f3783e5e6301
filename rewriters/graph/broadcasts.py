"""Leave out an Expand before an operator that broadcasts by itself.

    Div(x, Expand(norm, Shape(x)))  ->  Div(x, norm)

Exporters write `expand_as` so. The expanded tensor is as large as the image, but its rows are
copies of one, so no patch of it can be made from a patch of its input.

    left out                                     kept
    before arithmetic and comparisons whose      where the sizes are not known to be those of the
    other operand has the sizes it expands to    operand, or 1

What is not cut keeps its own nodes (`graph.respelling`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.new_nodes import ReadGraph
from patchconv_deploy.rewriters.graph.nodes import node_label
from patchconv_deploy.rewriters.graph.respelling import (
    Respelling,
    copied,
    free_word,
    with_servants,
)
from patchconv_deploy.rewriters.graph.unfolded import Layout, Part, is_one, plain
from patchconv_deploy.rewriters.operators.elementwise import BROADCAST
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["find_broadcasts", "without_expands"]


# PRelu's slope is broadcast to its input, never the input to the slope.
_BROADCAST = frozenset(BROADCAST) - {"PRelu"}

# What passes a number on, with other dimensions or as another type.
_SAME_NUMBER = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity"})


def find_broadcasts(facts: CertainFacts) -> list[Respelling]:
    """Find operators that read what is expanded for them alone; the model is not changed.

    Args:
        facts: The model, whose sizes are followed.
    """
    found = ReadGraph(facts, {}, free_word("broadcast", facts.index.names))
    entries = (_entry(found, at) for at in range(len(facts.graph.node)))
    return [entry for entry in entries if entry is not None]


def without_expands(
    found: ReadGraph, node: onnx.NodeProto, layout: Callable[[str], Layout | None]
) -> dict[int, str]:
    """Return what a node may read in place of what is expanded, by input.

    Args:
        found: The graph.
        node: A node of it.
        layout: Tells what each dimension of a tensor is made of, None if its rank is unknown.

    Returns:
        By the input's index what the Expand before it reads; nothing for inputs that stay.
    """
    if node.op_type not in _BROADCAST or node.domain not in ONNX_DOMAINS:
        return {}
    inputs = list(node.input)
    for index, name in enumerate(node.input):
        maker = found.index.producer.get(name)
        if maker is None or not _is(found.node(maker), "Expand"):
            continue
        if any(
            other != name and _has_sizes(found, other, layout(other), found.node(maker).input[1])
            for other in inputs
            if other
        ):
            inputs[index] = found.node(maker).input[0]
    pairs = enumerate(zip(node.input, inputs, strict=True))
    return {index: now for index, (was, now) in pairs if was != now}


def _is(node: onnx.NodeProto, op: str) -> bool:
    return node.op_type == op and node.domain in ONNX_DOMAINS


def _entry(found: ReadGraph, position: int) -> Respelling | None:
    """Return a node without the Expands that nobody else reads, None if it has none."""
    node, facts = found.node(position), found.facts

    def layout(name: str) -> Layout | None:
        dims = facts.shapes.dims.get(name, facts.free.dims.get(name))
        return None if dims is None else plain([facts.size(name, at) for at in range(len(dims))])

    instead = without_expands(found, node, layout)
    alone = [index for index in instead if found.only_user(node.input[index]) == position]
    if not alone:
        return None
    new = found.new(position, node.input[0], "an expanded tensor")
    made = copied(node)
    for index in alone:
        made.input[index] = instead[index]
    made.name = f"{new.base}/{node.op_type}"
    new.nodes.append(made)
    makers = [found.index.producer[node.input[index]] for index in alone]
    covered = with_servants(found, [*makers, position], new)
    return Respelling(
        covered=covered,
        originals=tuple(copied(found.node(at)) for at in covered),
        nodes=tuple(new.nodes),
        outputs=tuple(node.output),
        label=node_label(node),
    )


def _has_sizes(found: ReadGraph, name: str, layout: Layout | None, sizes: str) -> bool:
    """Tell whether a tensor has given sizes, or these are 1, whatever the model's free sizes are.

    Args:
        found: The graph.
        name: The tensor.
        layout: What each of its dimensions is made of, None if its rank is unknown.
        sizes: The tensor of the given sizes.
    """
    facts, maker = found.facts, found.index.producer.get(sizes)
    if maker is not None and _is(found.node(maker), "Shape"):
        shape = found.node(maker)
        if shape.input[0] == name and not shape.attribute:
            return True
    numbers = facts.constants.numbers(sizes)
    stated = facts.free.values.get(sizes) if numbers is None else map(Size.number, numbers)
    if layout is None or stated is None:
        return False
    wanted = list(stated)
    pieces = [""] * len(wanted)
    if maker is not None and _is(found.node(maker), "Concat"):
        each = found.node(maker).input
        pieces = list(each) if len(each) == len(wanted) else pieces
    if len(wanted) > len(layout):
        return False
    rows = zip(layout[len(layout) - len(wanted) :], wanted, pieces, strict=True)
    return all(
        is_one(size)
        or (size is not None and parts == (size,))
        or (size is None and None not in parts and Counter(parts) == _factors(found, piece))
        for parts, size, piece in rows
    )


def _factors(found: ReadGraph, name: str) -> Counter[Part]:
    """Return the sizes that a number is a product of; nothing where one of them is unknown."""
    known = found.facts.free.values.get(name, ())
    maker = found.index.producer.get(name)
    if len(known) == 1 and known[0] is not None:
        return Counter(known)
    if maker is None or found.node(maker).domain not in ONNX_DOMAINS:
        return Counter()
    node = found.node(maker)
    if node.op_type in _SAME_NUMBER:
        return _factors(found, node.input[0])
    if node.op_type != "Mul":
        return Counter()
    first, second = (_factors(found, each) for each in node.input)
    return first + second if first and second else Counter()
