"""An If whose condition is known: the branch that is taken, in its place.

    c (known) -- If ( then: ... -- t ; else: ... -- e ) -- y        ->        ... -- y

Exporters write an If where a model asks for a size: whether a dimension is one, whether rows have
to be added. Where the sizes decide it, what is in the branch is cut as all else is.

Names of the branch are kept where nothing else has them. Not done for a branch with sparse weights,
or with weights in a model from before IR version 4, where they would have to be inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count

import onnx

from patchconv_deploy.rewriters.graph.nodes import bodies
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["inline_branches"]


def inline_branches(
    graph: onnx.GraphProto, condition: Callable[[str], bool | None], ir_version: int
) -> bool:
    """Put the branches that are taken in the place of a graph's Ifs, in place.

    Args:
        graph: The main graph.
        condition: Returns what a condition is, None where that is not known.
        ir_version: The model's.

    Returns:
        Whether there was any.
    """
    if not any(node.op_type == "If" and node.domain in ONNX_DOMAINS for node in graph.node):
        return False
    taken = _Taken(graph)
    nodes: list[onnx.NodeProto] = []
    done = False
    for at, node in enumerate(tuple(graph.node)):
        known = None
        if node.op_type == "If" and node.domain in ONNX_DOMAINS:
            known = condition(node.input[0])
        wanted = "then_branch" if known else "else_branch"
        branch = next((a.g for a in node.attribute if a.name == wanted), None)
        if known is None or branch is None or not _fits(branch, node, ir_version):
            nodes.append(node)
            continue
        done = True
        names = _names(branch, node, partial(taken.take, at))
        for tensor in branch.initializer:
            weight = graph.initializer.add()
            weight.CopyFrom(tensor)
            weight.name = names.get(tensor.name, tensor.name)
        for inner in branch.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(inner)
            _rename(copy, names)
            copy.output[:] = [names.get(name, name) for name in copy.output]
            nodes.append(copy)
        # What is no node's own output of that name: a tensor from outside, a weight, one twice.
        made = {name for inner in branch.node for name in inner.output if name}
        given: set[str] = set()
        for value, name in zip(branch.output, node.output, strict=True):
            source = names.get(value.name, value.name)
            if name and not (value.name in made and source == name and name not in given):
                nodes.append(onnx.helper.make_node("Identity", [source], [name], name=name))
            given.add(name)
    if done:
        del graph.node[:]
        graph.node.extend(nodes)
    return done


def _fits(branch: onnx.GraphProto, node: onnx.NodeProto, ir_version: int) -> bool:
    if branch.input or branch.sparse_initializer or len(branch.output) != len(node.output):
        return False
    return ir_version >= 4 or not branch.initializer


class _Taken:
    """Names that a tensor of a branch cannot have outside of it.

    Those of the other branch do not count: only one of them is taken, and they are often alike.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._own: list[frozenset[str]] = []
        self._count = Counter(_own_names(graph))
        for node in graph.node:
            self._count.update({*node.input, *node.output})
            inside = {name for body in bodies(node) for name in _all_names(body)}
            self._count.update(inside)
            self._own.append(frozenset(inside))

    def take(self, at: int, name: str) -> str:
        """Return a name for a tensor of a branch of an If: its own, if nothing else has it.

        Args:
            at: The If's position.
            name: What the branch calls it.
        """
        own = self._own[at]
        if self._count[name] > int(name in own):
            free = (f"{name}_{number}" for number in count(2))
            name = next(each for each in free if not self._count[each])
        self._count[name] += 1 + int(name in own)
        return name


def _names(
    branch: onnx.GraphProto, node: onnx.NodeProto, take: Callable[[str], str]
) -> Mapping[str, str]:
    """Return what a branch's own tensors are called outside of it; names are taken on the way.

    Args:
        branch: The branch.
        node: Its If.
        take: Returns a name that is free outside of it, for one of its own.
    """
    names: dict[str, str] = {}
    made = {name for inner in branch.node for name in inner.output if name}
    for value, name in zip(branch.output, node.output, strict=True):
        if value.name in made and name:
            names.setdefault(value.name, name)
    own = [tensor.name for tensor in branch.initializer]
    for name in (*own, *(name for inner in branch.node for name in inner.output if name)):
        if name not in names:
            names[name] = take(name)
    return names


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node and its bodies read, but for names that a body has of its own."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for body in bodies(node):
        own = {*(value.name for value in body.input), *(value.name for value in body.initializer)}
        own |= {name for inner in body.node for name in inner.output}
        outer = {name: new for name, new in names.items() if name not in own}
        for inner in body.node:
            _rename(inner, outer)
        for value in body.output:
            value.name = outer.get(value.name, value.name)


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of a graph's tensors and of those of its bodies."""
    yield from _own_names(graph)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for body in bodies(node):
            yield from _all_names(body)


def _own_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of what goes into a graph and out of it."""
    yield from (value.name for value in graph.input)
    yield from (value.name for value in graph.output)
    yield from (tensor.name for tensor in graph.initializer)
