"""Nodes written in other words, so that they can be cut; what is not cut keeps its own.

    nodes that look at all rows -- other nodes that make the same output, row-local but for a few

What is found (`graph.statistics`, `graph.resizing`) is written into the graph before it is
analysed, and taken back where no region reached it: a model never changes for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count

import onnx

from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph

__all__ = [
    "NO_RESPELLINGS",
    "SIZE_NODES",
    "Respelling",
    "Respellings",
    "copied",
    "free_word",
    "respell",
    "with_servants",
]


# What sizes are worked out with.
SIZE_NODES = frozenset("Shape Gather Concat Unsqueeze Squeeze Slice Cast Constant Mul Div".split())


@dataclass(frozen=True)
class Respelling:
    """Nodes of a model, and what is written in their place.

    Attributes:
        covered: Their positions, ascending, with those of nodes that only serve them.
        originals: The nodes themselves.
        nodes: The new ones, in order; they make the same output.
        outputs: What they make for others.
        label: The name, for people, of the node that this is about.
        section: Of several that read what another one makes in other words: they stand together or
            not at all. Empty for one that stands alone.
    """

    covered: tuple[int, ...]
    originals: tuple[onnx.NodeProto, ...]
    nodes: tuple[onnx.NodeProto, ...]
    outputs: tuple[str, ...]
    label: str
    section: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Respellings:
    """Respellings as they stand in a graph.

    Attributes:
        entries: What is written in other words.
        places: The positions of each one's new nodes.
        before: The graph's nodes as they were.
    """

    entries: tuple[Respelling, ...] = ()
    places: tuple[range, ...] = ()
    before: tuple[onnx.NodeProto, ...] = ()

    def undo(self, graph: onnx.GraphProto) -> None:
        """Give the graph its own nodes back, in place."""
        if self.entries:
            del graph.node[:]
            graph.node.extend(self.before)


# Of a model that has none, or is not written in other words.
NO_RESPELLINGS = Respellings()


def respell(
    graph: onnx.GraphProto, entries: Sequence[Respelling], earlier: Respellings = NO_RESPELLINGS
) -> Respellings:
    """Put new nodes where the last of those stood that they stand for, in place.

    Args:
        graph: The graph they were found in, or its skeleton.
        entries: What was found there.
        earlier: What is written in other words there already, and stays so: it is returned as well.
    """
    gone = {at for entry in entries for at in entry.covered}
    # What serves an entry comes before what it is read by.
    at_last = {entry.covered[-1]: number for number, entry in enumerate(entries)}
    places = [range(0)] * len(entries)
    before, nodes, moved = tuple(graph.node), list[onnx.NodeProto](), dict[int, int]()
    for position, node in enumerate(before):
        moved[position] = len(nodes)
        number = at_last.get(position)
        if number is not None:
            places[number] = range(len(nodes), len(nodes) + len(entries[number].nodes))
            nodes.extend(entries[number].nodes)
        elif position not in gone:
            nodes.append(node)
    # Messages keep their content when the list they came from is emptied.
    del graph.node[:]
    graph.node.extend(nodes)
    stayed = [range(moved[place[0]], moved[place[0]] + len(place)) for place in earlier.places]
    return Respellings((*earlier.entries, *entries), (*stayed, *places), earlier.before or before)


def with_servants(found: ReadGraph, positions: Sequence[int], new: NewNodes) -> tuple[int, ...]:
    """Return positions with those of nodes that work out sizes for them and for nobody else."""
    covered, read = {*positions}, {name for node in new.nodes for name in node.input}
    pending = list(positions)
    while pending:
        for name in found.node(pending.pop()).input:
            maker = found.index.producer.get(name)
            if maker is None or maker in covered or found.node(maker).op_type not in SIZE_NODES:
                continue
            made = found.node(maker).output
            users = {at for each in made for at in found.index.users.get(each, ())}
            if users <= covered and found.index.outputs.isdisjoint(made) and read.isdisjoint(made):
                covered.add(maker)
                pending.append(maker)
    return tuple(sorted(covered))


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of a node."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def free_word(word: str, names: Collection[str]) -> str:
    """Return the first of word, word_2, ... that no name has as a part behind a slash."""
    words = (word if number == 1 else f"{word}_{number}" for number in count(1))
    return next(each for each in words if not any(f"/{each}/" in f"{name}/" for name in names))
