"""What looks at the whole image, written as one reduction over each row and one over the rows.

A normalisation, a global pool or a reduction over the image holds the whole image until it has seen
the last row. Written in two, only its second half does, and that reads a few numbers a row:

    x --+-- reduce each row -- rows --- reduce over the rows --- mean, scale, shift
        |      (row-local)   [N, C, H, 1]      (tiny)                    |
        +----------------------------------------------------------- apply -- y
                                                                  (row-local)

What is row-local can be cut into patches like any other layer. All rows have equally many elements,
so that the second half needs no counts, and is right at any height:

    mean     = mean of the rows' means
    variance = mean of the rows' variances + mean of (row's mean - mean)^2

which is Chan, Golub and LeVeque's merge of equal counts ("Updating formulae and a pairwise
algorithm for computing sample variances", 1979): never the difference of two large sums. Half
precision is reduced in float32. Groups are merged from their channels in the same way.

    written in two                                             not
    InstanceNormalization, its Mul and Add behind it           of a signal of no even blocks
    Reshape [N, G, -1], InstanceNormalization, Reshape back    whose sizes are unknown
    GroupNormalization; com.microsoft's, too                   SkipGroupNorm whose sum is read
    LayerNormalization over the tiled axis                     over the batch or that axis alone
    GlobalAveragePool, GlobalMaxPool
    AveragePool, MaxPool whose kernel is the image             with padding, Indices
    Reduce* over the tiled axis and others                     over the tiled axis alone
    Softmax over an image that was reshaped to one dimension   LogSoftmax

The rows of a signal [N, C, L] are blocks of neighbours, where its length has a divisor of 8 to 64.

What is not cut in the end gets its own nodes back (`Statistic.originals`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.nodes import node_label
from patchconv_deploy.rewriters.graph.normalisations import (
    fused_group,
    group,
    grouped,
    instance,
    layer,
)
from patchconv_deploy.rewriters.graph.reductions import REDUCTIONS, reduction
from patchconv_deploy.rewriters.graph.softmax import softmax
from patchconv_deploy.rewriters.graph.statistic_nodes import InTwo, NewNodes, ReadGraph
from patchconv_deploy.rewriters.operators.rules import CONTRIB_DOMAIN

__all__ = ["NO_STATISTICS", "Statistic", "Statistics", "find_statistics", "write_in_two"]

# Per operator how it is written in two: the first that can.
_SPELLED: Mapping[str, Sequence[Callable[[ReadGraph, int], InTwo | None]]] = {
    "InstanceNormalization": (grouped, instance),
    "GroupNormalization": (group,),
    "LayerNormalization": (layer,),
    "Softmax": (softmax,),
    **dict.fromkeys(REDUCTIONS, (reduction,)),
}

# The same of ONNX Runtime's own operators.
_CONTRIB: Mapping[str, Sequence[Callable[[ReadGraph, int], InTwo | None]]] = {
    "GroupNorm": (fused_group,),
    "SkipGroupNorm": (fused_group,),
}

_SPELLED_BY_DOMAIN = {"": _SPELLED, "ai.onnx": _SPELLED, CONTRIB_DOMAIN: _CONTRIB}

# What sizes are worked out with.
_SIZES = frozenset("Shape Gather Concat Unsqueeze Squeeze Slice Cast Constant Mul Div".split())


@dataclass(frozen=True)
class Statistic:
    """Nodes that look at the whole image, and what is written in their place.

    Attributes:
        covered: Their positions, ascending, with those of nodes that only serve them.
        originals: The nodes themselves.
        nodes: The new ones, in order; they make the same output.
        output: What they make for others.
        rows: What the new ones make of each row.
        label: The name, for people, of the node that looks at the whole image.
        kind: What people call it.
        image: What it looks at.
    """

    covered: tuple[int, ...]
    originals: tuple[onnx.NodeProto, ...]
    nodes: tuple[onnx.NodeProto, ...]
    output: str
    rows: str
    label: str
    kind: str
    image: str


def find_statistics(facts: CertainFacts, axes: Mapping[str, int]) -> list[Statistic]:
    """Find what looks at the whole image, and write it in two; the model is not changed.

    Args:
        facts: The model.
        axes: Which dimension of a tensor is the tiled axis, where that is known.
    """
    found = ReadGraph(facts, axes, _free_word(facts.index.names))
    statistics: list[Statistic] = []
    for position, node in enumerate(facts.graph.node):
        table = _SPELLED_BY_DOMAIN.get(node.domain)
        if table is None or not node.input or not node.output:
            continue
        tried = (spelled(found, position) for spelled in table.get(node.op_type, ()))
        made = next((each for each in tried if each is not None), None)
        if made is not None:
            statistics.append(_statistic(found, position, *made))
    return statistics


def _statistic(
    found: ReadGraph, position: int, positions: Sequence[int], new: NewNodes
) -> Statistic:
    nodes = found.facts.graph.node
    covered = _with_servants(found, positions, new)
    return Statistic(
        covered=covered,
        originals=tuple(_copy(nodes[at]) for at in covered),
        nodes=tuple(new.nodes),
        output=nodes[max(positions)].output[0],
        rows=f"{new.base}/rows",
        label=node_label(nodes[position]),
        kind=new.kind,
        image=new.image,
    )


def _with_servants(found: ReadGraph, positions: Sequence[int], new: NewNodes) -> tuple[int, ...]:
    """Return positions with those of nodes that work out sizes for them and for nobody else."""
    covered, read = {*positions}, {name for node in new.nodes for name in node.input}
    pending = list(positions)
    while pending:
        for name in found.node(pending.pop()).input:
            maker = found.index.producer.get(name)
            if maker is None or maker in covered or found.node(maker).op_type not in _SIZES:
                continue
            made = found.node(maker).output
            users = {at for each in made for at in found.index.users.get(each, ())}
            if users <= covered and found.index.outputs.isdisjoint(made) and read.isdisjoint(made):
                covered.add(maker)
                pending.append(maker)
    return tuple(sorted(covered))


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def _free_word(names: Collection[str]) -> str:
    """Return the first of statistic, statistic_2, ... that no name has between slashes."""
    number = 1
    while True:
        word = "statistic" if number == 1 else f"statistic_{number}"
        if not any(f"/{word}/" in name for name in names):
            return word
        number += 1


@dataclass(frozen=True)
class Statistics:
    """Statistics as they stand in a graph.

    Attributes:
        entries: What is written in two.
        places: The positions of each one's new nodes.
        before: The graph's nodes as they were.
    """

    entries: tuple[Statistic, ...] = ()
    places: tuple[range, ...] = ()
    before: tuple[onnx.NodeProto, ...] = ()

    def undo(self, graph: onnx.GraphProto) -> None:
        """Give the graph its own nodes back, in place."""
        if self.entries:
            del graph.node[:]
            graph.node.extend(self.before)


# Of a model that has none, or is not written in another way.
NO_STATISTICS = Statistics()


def write_in_two(graph: onnx.GraphProto, entries: Sequence[Statistic]) -> Statistics:
    """Put new nodes where the last of those stood that they stand for, in place.

    Args:
        graph: The graph they were found in, or its skeleton.
        entries: What `find_statistics` found there.
    """
    gone = {at for entry in entries for at in entry.covered}
    # What serves a statistic comes before what it is read by.
    at_last = {entry.covered[-1]: number for number, entry in enumerate(entries)}
    places = [range(0)] * len(entries)
    before, nodes = tuple(graph.node), list[onnx.NodeProto]()
    for position, node in enumerate(before):
        number = at_last.get(position)
        if number is not None:
            places[number] = range(len(nodes), len(nodes) + len(entries[number].nodes))
            nodes.extend(entries[number].nodes)
        elif position not in gone:
            nodes.append(node)
    # Messages keep their content when the list they came from is emptied.
    del graph.node[:]
    graph.node.extend(nodes)
    return Statistics(tuple(entries), tuple(places), before)
