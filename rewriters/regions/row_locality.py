"""Which nodes are row-local, and along which dimension of which tensor.

Convolutions and pools say where an image's rows are; from there the tiled axis is followed through
the graph in both directions, as far as the table of operators knows the way: through a Transpose it
becomes another dimension, at a barrier it ends. Behind a Concat along it (a class token, a roll of
windows) and behind a Softmax over it it begins anew. Attention that no such way leads to has rows
of its own: its queries (`regions.attention`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from patchconv_deploy.rewriters.graph.facts import CertainFacts, record_of
from patchconv_deploy.rewriters.operators.channelwise import JOINED, SOFTMAX
from patchconv_deploy.rewriters.operators.elementwise import BROADCAST
from patchconv_deploy.rewriters.operators.products import PRODUCTS
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, Record, RowLocal, Shape
from patchconv_deploy.rewriters.operators.rules import CONTRIB_DOMAIN, OverAllRows
from patchconv_deploy.rewriters.operators.table import (
    BARRIERS,
    SPATIAL,
    TABLE,
    rows_of,
    table_of,
)
from patchconv_deploy.rewriters.regions.attention import KEYS, is_weighed, products, queries

__all__ = ["AXES", "Locality", "find_locality", "tiled_axes", "tiled_axis"]


# Spatial axes by name, counted from the last dimension; a 1-D Conv's only one answers to all.
AXES = {"width": 1, "height": 2, "depth": 3}

_RANKLESS = "the rank of its output is unknown"

_UNKNOWN = "no rule says how this operator is cut"

# What is said of operators that read some of their inputs whole, as a rule.
_WHOLE = {
    **dict.fromkeys(PRODUCTS, OverAllRows("it sums products over the tiled axis")),
    "Attention": KEYS,
    "MultiHeadAttention": KEYS,
}

# What vectors are worked out with.
_OF_SIZES = frozenset({*BROADCAST, "Range", "Reshape", "Unsqueeze", "Squeeze"})

# Reasons of nodes whose result has the tiled axis all the same.
_SAME_AXIS = (JOINED, SOFTMAX)


@dataclass(frozen=True, slots=True)
class Locality:
    """The row-local nodes of a graph, by position, and why others are not.

    Attributes:
        links: The row-local nodes.
        reasons: Why others are not.
        vectors: Nodes that make a few numbers of sizes alone, as many as there are rows at most:
            they stand in no region, and in the way of none.
    """

    links: Mapping[int, RowLocal]
    reasons: Mapping[int, str]
    vectors: frozenset[int] = frozenset()


def tiled_axis(name: str | int, rank: int) -> int | None:
    """Return the tensor dimension a name or an index stands for, None if there is none."""
    if isinstance(name, int):
        axis = name
    elif rank == 3:
        axis = 2
    else:
        axis = rank - AXES[name]
    return axis if 2 <= axis < rank else None


def tiled_axes(facts: CertainFacts, axis_name: str | int) -> dict[str, int]:
    """Return which dimension of each tensor is the tiled axis, where that is known.

    Args:
        facts: The model.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
    """
    graph, axes = facts.graph, dict[str, int]()
    for position, link in find_locality(facts, axis_name).links.items():
        node = graph.node[position]
        axes.update((node.input[i], axis) for i, axis in link.carriers)
        axes.update(dict.fromkeys(node.output, link.axis))
    for node in graph.node:
        if node.op_type in SPATIAL and node.domain in ONNX_DOMAINS:
            shape = facts.shapes.dims.get(node.input[0])
            axis = None if shape is None else tiled_axis(axis_name, len(shape))
            if axis is not None:
                axes.setdefault(node.input[0], axis)
    return axes


def find_locality(facts: CertainFacts, axis_name: str | int) -> Locality:
    """Find every row-local node.

    Args:
        facts: The model.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
    """
    walk = _Walk(facts)
    for position, node in enumerate(facts.graph.node):
        if node.op_type in SPATIAL and node.domain in ONNX_DOMAINS:
            shape = facts.shapes.dims.get(node.input[0])
            axis = None if shape is None else tiled_axis(axis_name, len(shape))
            if axis is None:
                continue
            if not walk.assign(position, axis) and node.op_type not in TABLE:
                # A barrier still says where the axes of what it reads are.
                producer = facts.index.producer.get(node.input[0])
                if producer is not None and not _is_groups(facts, position, producer):
                    walk.assign(producer, axis)
    walk.run()
    walk.keep_axes()
    walk.run_on()
    for position in products(facts):
        if position not in walk.links:
            axis = queries(facts, walk.ask, position)
            if axis is not None:
                walk.assign(position, axis)
                walk.run_on()
    vectors = _vectors(facts)
    links = {at: link for at, link in walk.links.items() if at not in vectors}
    reasons = {at: why for at, why in walk.reasons.items() if at not in vectors}
    return Locality(links, reasons, vectors)


def _vectors(facts: CertainFacts) -> frozenset[int]:
    """Return the nodes that make numbers or vectors of sizes alone, and not sizes."""
    sizes, found = set[str](), set[int]()
    for position, node in enumerate(facts.graph.node):
        read = [name for name in node.input if name]
        if facts.free.makes_sizes(node):
            sizes.update(node.output)
        elif (
            node.op_type in _OF_SIZES
            and node.domain in ONNX_DOMAINS
            and any(name in sizes for name in read)
            and all(name in sizes or _is_constant(facts, name) for name in read)
            and all(_is_vector(facts.shapes.dims.get(name)) for name in node.output)
        ):
            sizes.update(node.output)
            found.add(position)
    return frozenset(found)


def _is_constant(facts: CertainFacts, name: str) -> bool:
    return name in facts.index.constants or facts.constants.array(name) is not None


def _is_vector(dims: Shape | None) -> bool:
    """Tell whether no more than one dimension is not one."""
    return dims is not None and sum(size != 1 for size in dims) <= 1


def _is_groups(facts: CertainFacts, position: int, producer: int) -> bool:
    """Tell an InstanceNormalization of groups of channels: its axis is that of no image."""
    node, before = facts.graph.node[position], facts.graph.node[producer]
    rank = len(facts.shapes.dims.get(node.input[0], ()))
    return node.op_type == "InstanceNormalization" and before.op_type == "Reshape" and rank == 3


class _Walk:
    """The tiled axis as it is followed through a graph.

    Args:
        facts: The model.

    Attributes:
        links: Nodes that are row-local, by position.
        reasons: Why others are not.
    """

    def __init__(self, facts: CertainFacts) -> None:
        self.links: dict[int, RowLocal] = {}
        self.reasons: dict[int, str] = {}
        self._facts = facts
        self._records: dict[int, Record] = {}
        self._queue: deque[int] = deque()
        # Products that could be read in another way as well: taken where no better way was found,
        # columns of the second factor first.
        self._later: tuple[list[tuple[int, RowLocal]], ...] = ([], [])
        # Tensors of nodes that are not row-local, and have the tiled axis all the same.
        self._joined: list[tuple[str, int]] = []
        # The tiled axis of each tensor, once it may be no other.
        self._axes: dict[str, int] | None = None

    def ask(self, position: int, axis: int) -> RowLocal | str:
        """Return a node's rows if a dimension of its output is the tiled axis, or why not."""
        graph, index, shapes = self._facts.graph, self._facts.index, self._facts.shapes
        node = graph.node[position]
        if node.domain not in (*ONNX_DOMAINS, CONTRIB_DOMAIN):
            return f"it is of the domain {node.domain}"
        entry = table_of(node.domain).get(node.op_type)
        if entry is None:
            return BARRIERS.get(node.op_type, _UNKNOWN)
        if not shapes.doubtful.isdisjoint((*node.input, *node.output)):
            return "runtimes disagree on the size of what it reads or makes"
        read = [n for n in node.output if n in index.users or n in index.outputs]
        if any(len(shapes.dims.get(name, ())) <= axis for name in read):
            return _RANKLESS
        if position not in self._records:
            self._records[position] = record_of(self._facts, position)
        return rows_of(entry, self._records[position], axis)

    def assign(self, position: int, axis: int) -> bool:
        """Let a dimension of a node's output be the tiled axis; tell whether it is row-local so."""
        if position in self.links:
            return True
        found = self.ask(position, axis)
        if isinstance(found, RowLocal) and self._facts.graph.node[position].op_type in PRODUCTS:
            rank = self._rank_of_product(position, found)
            if isinstance(rank, int):
                self._later[rank].append((position, found))
                return False
            found = rank
        if isinstance(found, RowLocal) and not self._keeps_axes(position, found):
            found = "it is cut along another dimension on its other side"
        if isinstance(found, str):
            self.reasons.setdefault(position, found)
            return False
        self._take(position, found)
        return True

    def run(self) -> None:
        """Follow the tiled axis from every node that was assigned, as far as it goes."""
        while True:
            if self._queue:
                self._spread(self._queue.popleft())
                continue
            waiting = next((later for later in self._later if later), None)
            if waiting is None:
                return
            position, link = waiting.pop(0)
            if position not in self.links and self._keeps_axes(position, link):
                self._take(position, link)

    def run_on(self) -> None:
        """Follow the tiled axis, and on from where tensors are put together along it."""
        self.run()
        while self._joined:
            self._to_users(*self._joined.pop(0))
            self.run()

    def keep_axes(self) -> None:
        """Let no tensor have another tiled axis from here on than it has so far."""
        self._axes = {}
        for position, link in self.links.items():
            self._axes.update(self._edges(position, link))

    def _take(self, position: int, link: RowLocal) -> None:
        self.links[position] = link
        self.reasons.pop(position, None)
        self._queue.append(position)
        if self._axes is not None:
            self._axes.update(self._edges(position, link))

    def _edges(self, position: int, link: RowLocal) -> dict[str, int]:
        """Return the tiled axis of what a node reads along it and makes."""
        node, constants = self._facts.graph.node[position], self._facts.index.constants
        made = {name: link.axis for name in node.output if name}
        read = {node.input[i]: axis for i, axis in link.carriers}
        return made | {name: axis for name, axis in read.items() if name not in constants}

    def _keeps_axes(self, position: int, link: RowLocal) -> bool:
        axes = self._axes
        if axes is None:
            return True
        edges = self._edges(position, link)
        return all(axes.get(name, axis) == axis for name, axis in edges.items())

    def _rank_of_product(self, position: int, link: RowLocal) -> RowLocal | str | int:
        """Return a product's link where it is to be read so, how much later to try, or why not."""
        node, constants = self._facts.graph.node[position], self._facts.index.constants
        carried = {i for i, _ in link.carriers}
        if all(node.input[i] in constants for i in carried):
            return "the tiled axis is that of its weights"
        others = {name for i, name in enumerate(node.input[:2]) if i not in carried}
        weighed = not others <= constants and is_weighed(
            self._facts, self.ask, node.output[0], link.axis
        )
        if 0 in carried:
            return 1 if weighed else link
        return KEYS if weighed else 0

    def _spread(self, position: int) -> None:
        index, link = self._facts.index, self.links[position]
        node = self._facts.graph.node[position]
        for i, axis in link.carriers:
            producer = index.producer.get(node.input[i])
            if producer is not None and producer not in self.links:
                self.assign(producer, axis)
        for name in node.output:
            self._to_users(name, link.axis)

    def _to_users(self, name: str, axis: int) -> None:
        for user in self._facts.index.users.get(name, ()):
            if user not in self.links:
                self._follow(user, name, axis)

    def _follow(self, position: int, name: str, axis: int) -> None:
        """Look for the output dimension whose rows come from this input's dimension."""
        node, shapes = self._facts.graph.node[position], self._facts.shapes
        # Where the rank is unknown it is asked once, for the reason why not.
        rank = len(shapes.dims.get(node.output[0]) or (0,) * (axis + 1)) if node.output else 0
        for at in sorted(range(rank), key=lambda at: (at != axis, at)):
            found = self.ask(position, at)
            if isinstance(found, str):
                # Of a product that has not this dimension it is of no interest why not another.
                if at == axis or node.op_type not in _WHOLE:
                    self.reasons.setdefault(position, found)
                if found in _SAME_AXIS and at == axis:
                    self._joined.append((node.output[0], axis))
                    return
                if found in (_UNKNOWN, BARRIERS.get(node.op_type)):
                    return
            elif any(node.input[i] == name and a == axis for i, a in found.carriers):
                self.assign(position, at)
                return
        if node.op_type in _WHOLE:
            self.reasons.setdefault(position, _WHOLE[node.op_type])
