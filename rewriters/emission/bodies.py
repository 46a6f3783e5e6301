"""Constants of Loop bodies: moved into the body from the graph around it.

    w -----------------+                              +------ body -------+
    x -- windows -- Loop(Conv(window, w))   ->   x ...| w                 |
                                                      | Conv(window, w)   |
                                                      +-------------------+

To a runtime's optimiser a tensor of the graph around is no constant inside a body: ONNX Runtime
neither folds it nor lays its Convs out in blocks, and takes nearly twice as long. As the body's own
initializer it is one.

What only the body uses moves: initializers, external ones too, Constant nodes, and nodes that
compute constants from them, such as DequantizeLinear. What others use too is copied while it is
small, and stays where it is if it is not. So does what cannot stand in a body: initializers that
are inputs of the graph, which a caller may replace, sparse ones, custom operators. Before IR
version 4 every initializer is an input, which none replaces: the inputs stay as they are, and the
body has Constant nodes, which are never external.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import onnx

from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.graph.external_data import bytes_of, is_external
from patchconv_deploy.rewriters.graph.nodes import bodies, captured
from patchconv_deploy.rewriters.graph.use_def import Index, index

__all__ = ["Movable", "move_into_bodies", "own_constants"]


# Constants of up to so many bytes are copied where others use them as well.
_COPIED = 1 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """What a constant is made of: tensors, by name, and the nodes that compute it from them."""

    leaves: frozenset[str]
    nodes: frozenset[int]


@dataclass(frozen=True)
class Movable:
    """Constants of a graph that can stand in a body.

    Attributes:
        index: The graph.
        ir_version: Of its model.
    """

    index: Index
    ir_version: int

    @cached_property
    def tensors(self) -> Mapping[str, onnx.TensorProto]:
        """Initializers, and what Constant nodes hold, by name."""
        graph = self.index.graph
        kept = {value.name for value in graph.input} if self.ir_version >= 4 else set[str]()
        found = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in kept}
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        if self.ir_version < 4:
            found = {name: each for name, each in found.items() if not is_external(each)}
        return found

    @cached_property
    def _origins(self) -> dict[str, Origin | None]:
        return {name: Origin(frozenset({name}), frozenset()) for name in self.tensors}

    def origin(self, name: str) -> Origin | None:
        """Return what a constant is made of, None if it cannot stand in a body."""
        pending = [name]
        while pending:
            name = pending[-1]
            if name in self._origins:
                pending.pop()
                continue
            at = self.index.producer.get(name)
            reads = self._sources(at) if at is not None and name in self.index.constants else None
            missing = [read for read in reads or () if read not in self._origins]
            if missing:
                pending += missing
                continue
            self._origins[name] = None if at is None or reads is None else self._computed(at, reads)
        return self._origins[name]

    def _sources(self, at: int) -> list[str] | None:
        """Return what a node computes a constant from, None if it must not move."""
        node = self.index.graph.node[at]
        if node.domain not in ("", "ai.onnx") or next(bodies(node), None) is not None:
            return None
        return [name for name in node.input if name]

    def _computed(self, at: int, reads: Sequence[str]) -> Origin | None:
        origins = [self._origins[name] for name in reads]
        known = [origin for origin in origins if origin is not None]
        if len(known) < len(origins):
            return None
        return Origin(
            frozenset().union(*(origin.leaves for origin in known)),
            frozenset({at}).union(*(origin.nodes for origin in known)),
        )

    def may_copy(self, leaf: str) -> bool:
        """Tell whether a tensor is small."""
        return (bytes_of(self.tensors[leaf]) or 0) <= _COPIED


@dataclass(frozen=True, slots=True)
class _Item:
    """A node or fragment in the graph's order.

    Attributes:
        reads: What it reads outside of bodies that take constants.
        inside: What these bodies read of the graph around; empty if it has none.
        makes: What it makes.
    """

    reads: Collection[str]
    inside: Collection[str]
    makes: Collection[str]


@dataclass(frozen=True, slots=True)
class _Homes:
    """Where constants stand.

    Attributes:
        users: By constant the items whose bodies use it in the end, None for all else.
        taken: By item the constants that its body gets of its own, with what they are made of.
    """

    users: Mapping[str, set[int | None]]
    taken: Mapping[int, Mapping[str, Origin]]

    def moves(self, name: str, number: int) -> bool:
        """Tell whether nobody but an item's body uses a constant."""
        return self.users[name] <= {number}


def _homes(movable: Movable, items: Sequence[_Item]) -> _Homes:
    """Find out which bodies get which constants."""
    fixed: set[str] = set()
    while True:
        users = _users(movable, items, fixed)
        taken: dict[int, dict[str, Origin]] = {}
        staying: set[int] = set()
        for number, item in enumerate(items):
            for name in sorted(item.inside):
                origin = movable.origin(name)
                if origin is None:
                    continue
                if all(users[o] <= {number} or movable.may_copy(o) for o in origin.leaves):
                    taken.setdefault(number, {})[name] = origin
                else:
                    staying |= origin.nodes
        # What computes a constant that stays keeps what it reads.
        made = {name for at in staying for name in movable.index.graph.node[at].output}
        if made <= fixed:
            return _Homes(users, taken)
        fixed |= made


def _users(
    movable: Movable, items: Sequence[_Item], fixed: Collection[str]
) -> Mapping[str, set[int | None]]:
    """Return `_Homes.users`.

    Args:
        movable: The graph.
        items: All of it, in order.
        fixed: Constants that are computed where they are.
    """
    found: dict[str, set[int | None]] = defaultdict(set)
    for name in movable.index.outputs:
        found[name].add(None)
    # Readers stand behind what they read.
    for number in range(len(items) - 1, -1, -1):
        item = items[number]
        made = [name for name in item.makes if name]
        if item.inside or not all(
            name in movable.index.constants and name not in fixed and movable.origin(name)
            for name in made
        ):
            users: set[int | None] = {None}
        else:
            users = set().union(*(found[name] for name in made))
        for name in item.reads:
            found[name] |= users
        for name in item.inside:
            found[name].add(number)
    return found


def own_constants(
    movable: Movable, order: Sequence[int | Fragment]
) -> dict[Fragment, frozenset[str]]:
    """Return the graph's constants that the bodies of each fragment would get of their own.

    Args:
        movable: The graph without the fragments.
        order: `emission.splice.arrange` of it.

    Returns:
        Nothing of fragments without bodies.
    """
    if not any(isinstance(item, Fragment) and item.captures for item in order):
        return {}
    ends = movable.index.ends
    items = [
        _Item(item.around, item.captures, item.makes)
        if isinstance(item, Fragment)
        else _Item(ends[item][0], (), ends[item][1])
        for item in order
    ]
    taken = _homes(movable, items).taken
    return {
        item: frozenset(taken.get(number, ()))
        for number, item in enumerate(order)
        if isinstance(item, Fragment) and item.captures
    }


def move_into_bodies(model: onnx.ModelProto, loops: Collection[str]) -> None:
    """Give Loops constants of their own, in place.

    Args:
        model: The model, its nodes in order.
        loops: Names of the Loops; a body's tensors and nodes are named after its graph, which no
            other graph is named like.
    """
    if not loops:
        return
    movable = Movable(index(model), model.ir_version)
    nodes = list(model.graph.node)
    inside = [frozenset(captured(n)) if n.name in loops else frozenset[str]() for n in nodes]
    items = [
        _Item(tuple(node.input) if found else ends[0], found, ends[1])
        for node, found, ends in zip(nodes, inside, movable.index.ends, strict=True)
    ]
    homes = _homes(movable, items)
    inputs = {value.name for value in model.graph.input}
    all_taken: set[str] = set()
    for number, taken in homes.taken.items():
        origins = taken.values()
        leaves = sorted(frozenset().union(*(origin.leaves for origin in origins)))
        computing = [nodes[at] for at in sorted(set().union(*(o.nodes for o in origins)))]
        moved = {leaf for leaf in leaves if homes.moves(leaf, number)} - inputs
        for node in computing:
            if all(homes.moves(name, number) for name in node.output if name):
                moved.update(node.output)
        (body,) = bodies(nodes[number])
        tensors = [movable.tensors[leaf] for leaf in leaves]
        _furnish(body, dict(zip(leaves, tensors, strict=True)), computing, moved, model.ir_version)
        all_taken.update(leaves, *(node.output for node in computing))
    _drop(model, all_taken)


def _furnish(
    body: onnx.GraphProto,
    tensors: Mapping[str, onnx.TensorProto],
    computing: Sequence[onnx.NodeProto],
    moved: Collection[str],
    ir_version: int,
) -> None:
    """Put constants into a body; those that are not moved are copies, under new names."""
    made = [name for node in computing for name in node.output if name]
    names = {n: f"{body.name}/constants/{n}" for n in (*tensors, *made) if n not in moved}
    for node in body.node:
        _rename(node, names)
    before = list(body.node)
    del body.node[:]
    for leaf, source in tensors.items():
        name = names.get(leaf, leaf)
        if ir_version >= 4:
            tensor = body.initializer.add()
        else:
            constant = body.node.add(op_type="Constant", name=name, output=[name])
            attribute = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
            tensor = attribute.t
        tensor.CopyFrom(source)
        tensor.name = name
    for node in computing:
        copy = body.node.add()
        copy.CopyFrom(node)
        _rename(copy, names)
        if any(name in names for name in node.output):
            copy.output[:] = [names.get(name, name) for name in node.output]
            copy.name = f"{body.name}/constants/{node.name}" if node.name else ""
    body.node.extend(before)


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Let a node and its bodies read tensors under other names, in place."""
    if any(name in names for name in node.input):
        node.input[:] = [names.get(name, name) for name in node.input]
    for body in bodies(node):
        for inner in body.node:
            _rename(inner, names)


def _drop(model: onnx.ModelProto, taken: AbstractSet[str]) -> None:
    """Drop constants that nobody reads any more, and what is said of them, in place.

    Args:
        model: The model.
        taken: Constants that bodies have of their own now.
    """
    graph = model.graph
    used = {value.name for value in graph.output}
    for at in range(len(graph.node) - 1, -1, -1):
        node = graph.node[at]
        made = {name for name in node.output if name}
        if made and made <= taken and not made & used:
            del graph.node[at]
        else:
            used.update(node.input, captured(node))
    gone = taken - used - {value.name for value in graph.input}
    for held in (graph.initializer, graph.value_info):
        # From the end, as positions change.
        for at in range(len(held) - 1, -1, -1):
            if held[at].name in gone:
                del held[at]
