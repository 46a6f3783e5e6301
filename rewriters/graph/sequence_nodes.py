"""Walk over a graph and write the nodes that work on folded images, by a rule for each operator.

The rules are in `graph.unfolding`. Here is what they see of a node (`SequenceNode`), and the walk
that collects what they write (`SequenceWalk`): a sequence that other nodes read as the model has it
is folded again, nodes that only served those replaced are left out, and connected nodes are
replaced all or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from patchconv_deploy.rewriters.graph.broadcasts import without_expands
from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import attributes, node_label
from patchconv_deploy.rewriters.graph.respelling import SIZE_NODES, Respelling, copied
from patchconv_deploy.rewriters.graph.unfolded import Layout, Part, Unfolded, is_one, plain
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["SequenceNode", "SequenceWalk", "size_of", "sizes_to"]


# Left out with the nodes that read them, where nothing else does.
_SERVANTS = SIZE_NODES | {"Expand", "Reshape"}

# They move numbers and compute none: to replace them alone is of no use.
_LAYOUTS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Shape"})


@dataclass
class Written:
    """A node of the model as it is written.

    Attributes:
        new: Its new nodes.
        made: Its outputs that are unfolded.
    """

    new: NewNodes
    made: dict[str, Unfolded] = field(default_factory=dict)

    def reads(self) -> set[str]:
        """Return what its new nodes read."""
        return {name for node in self.new.nodes for name in node.input}


class SequenceWalk:
    """One walk over the nodes of a graph, which writes them by rules.

    Args:
        found: What is known of it.
        rules: Per operator what writes a node, or tells that it cannot.
    """

    def __init__(
        self, found: ReadGraph, rules: Mapping[str, Callable[[SequenceNode], bool]]
    ) -> None:
        self.found = found
        self._rules = rules
        self._unfolded: dict[str, Unfolded] = {}
        self._written: dict[int, Written] = {}
        # Tensors that are needed as the model has them, too.
        self._needed: set[str] = set()

    def visit(self, position: int) -> None:
        """Write a node with what is unfolded so far."""
        node, index = self.found.node(position), self.found.index
        reads = index.ends[position][0]
        folded = [name for name in reads if name in self._unfolded]
        if not folded and node.op_type != "Reshape":
            return
        rule = self._rules.get(node.op_type) if node.domain in ONNX_DOMAINS else None
        apart = {name for name in reads if name not in node.input}
        doubtful = self.found.shapes.doubtful.intersection((*reads, *node.output))
        written = None
        if rule is not None and node.input and not doubtful and apart.isdisjoint(folded):
            written = Written(self.found.new(position, node.input[0], "a sequence"))
            if not rule(SequenceNode(self, node, written)):
                written = None
        if written is None:
            self._needed.update(folded)
            return
        self._written[position] = written
        self._unfolded.update(written.made)
        self._needed.update(written.reads().intersection(folded))
        self._needed.update(name for name in written.made if name in index.outputs)

    def sizes(self, name: str) -> tuple[Part, ...] | None:
        """Return the sizes of a tensor of the model, None where its rank is unknown."""
        facts = self.found.facts
        dims = facts.shapes.dims.get(name, facts.free.dims.get(name))
        return None if dims is None else tuple(facts.size(name, axis) for axis in range(len(dims)))

    def unfolded(self, name: str) -> Unfolded | None:
        """Return a tensor as it is written; of unknown rank none is."""
        if name in self._unfolded:
            return self._unfolded[name]
        return self.own(name)

    def own(self, name: str) -> Unfolded | None:
        """Return a tensor as the model has it."""
        sizes = self.sizes(name)
        return None if sizes is None else Unfolded(name, plain(sizes))

    def is_unfolded(self, name: str) -> bool:
        """Tell whether a tensor is written in another way."""
        return name in self._unfolded

    def respellings(self) -> list[Respelling]:
        """Return what was written, but for sequences that nothing is done to."""
        for written in self._written.values():
            for name, made in written.made.items():
                if name in self._needed:
                    _fold(written.new, name, made)
        sections = self._sections()
        useful = {
            section
            for position, section in sections.items()
            if self.found.node(position).op_type not in _LAYOUTS
        }
        kept = {at: section for at, section in sections.items() if section in useful}
        servants = self._servants(kept)
        return [self._respelling(at, servants.get(at, []), kept) for at in sorted(kept)]

    def _sections(self) -> dict[int, int]:
        """Return the first node of each connected set of written nodes, by position."""
        first: dict[int, int] = {}

        def root(at: int) -> int:
            while first[at] != at:
                first[at] = at = first[first[at]]
            return at

        maker = {
            made.name: self.found.index.producer[name] for name, made in self._unfolded.items()
        }
        for position, written in self._written.items():
            first[position] = position
            for name in written.reads() & maker.keys():
                if maker[name] != position:
                    a, b = root(position), root(maker[name])
                    first[max(a, b)] = min(a, b)
        return {at: root(at) for at in first}

    def _servants(self, kept: Mapping[int, int]) -> dict[int, list[int]]:
        """Return nodes that work out sizes for written ones alone, by the first that they serve."""
        index = self.found.index
        read = set[str]().union(*(self._written[at].reads() for at in kept))
        owner = {at: at for at in kept}
        found: dict[int, list[int]] = {}
        for at in reversed(range(len(self.found.facts.graph.node))):
            node = self.found.node(at)
            users = {user for name in node.output for user in index.users.get(name, ())}
            if (
                at not in owner
                and node.op_type in _SERVANTS
                and users
                and users <= owner.keys()
                and len({kept[owner[user]] for user in users}) == 1
                and read.isdisjoint(node.output)
                and index.outputs.isdisjoint(node.output)
            ):
                owner[at] = min(owner[user] for user in users)
                found.setdefault(owner[at], []).insert(0, at)
        return found

    def _respelling(
        self, position: int, servants: Sequence[int], kept: Mapping[int, int]
    ) -> Respelling:
        covered = (*servants, position)
        names = [name for at in covered for name in self.found.node(at).output if name]
        users = self.found.index.users
        outputs = [
            name
            for name in names
            if name in self.found.index.outputs or set(users.get(name, ())) - {*covered}
        ]
        return Respelling(
            covered=covered,
            originals=tuple(copied(self.found.node(at)) for at in covered),
            nodes=tuple(self._written[position].new.nodes),
            outputs=tuple(outputs or names[-1:]),
            label=node_label(self.found.node(position)),
            section=f"{self.found.word} {kept[position]}",
        )


def _fold(new: NewNodes, name: str, made: Unfolded) -> None:
    """Write a tensor as the model has it, from its unfolded form."""
    wanted: list[int | tuple[int, ...]] = []
    for axis, parts in enumerate(made.layout):
        first = parts[0].constant if len(parts) == 1 and parts[0] is not None else None
        places = tuple(range(made.at(axis), made.at(axis) + len(parts)))
        wanted.append(places if first is None else first)
    rest = next(axis for axis, parts in enumerate(made.layout) if len(parts) > 1)
    new.add(
        "Reshape", [made.name, sizes_to(new, made.name, wanted, "folded", rest)], "folded", name
    )


def sizes_to(
    new: NewNodes,
    x: str,
    wanted: Sequence[int | tuple[int, ...]],
    suffix: str,
    rest: int | None = None,
) -> str:
    """Write the sizes that a tensor is reshaped to.

    Args:
        new: Takes the nodes.
        x: The tensor.
        wanted: The sizes: a number, or the dimensions of its own whose product it is.
        suffix: What new names end with.
        rest: The size that follows from the others; None for the first that is no number.

    Returns:
        The name of the vector of sizes.
    """
    free = [at for at, size in enumerate(wanted) if not isinstance(size, int)]
    rest = free[0] if rest is None and free else rest
    if not set(free) - {rest}:
        sizes = [-1 if at == rest else size for at, size in enumerate(wanted)]
        return new.ints([size for size in sizes if isinstance(size, int)], f"{suffix}/sizes")
    shape = new.add("Shape", [x], f"{suffix}/shape")
    pieces, numbers = list[str](), list[int]()

    def close() -> None:
        if numbers:
            pieces.append(new.ints(numbers, f"{suffix}/sizes_{len(pieces)}"))
            numbers.clear()

    for at, size in enumerate(wanted):
        if at == rest or isinstance(size, int):
            numbers.append(size if at != rest and isinstance(size, int) else -1)
            continue
        close()
        pieces.append(size_of(new, shape, size, f"{suffix}/size_{at}"))
    close()
    return new.add("Concat", pieces, f"{suffix}/target", axis=0)


def size_of(new: NewNodes, shape: str, places: Sequence[int], suffix: str) -> str:
    """Write the product of some sizes of a shape; return the name of a vector of one number."""
    sizes = new.add("Gather", [shape, new.ints(places, f"{suffix}/places")], suffix, axis=0)
    return sizes if len(places) == 1 else new.reduce("ReduceProd", sizes, [0], f"{suffix}/product")


class SequenceNode:
    """A node that is to be written with unfolded inputs, as a rule sees it.

    Args:
        walk: What is known so far.
        node: The node.
        written: Takes what is written.
    """

    def __init__(self, walk: SequenceWalk, node: onnx.NodeProto, written: Written) -> None:
        self.node = node
        self.given: Mapping[str, Any] = attributes(node)
        self.new = written.new
        self._walk = walk
        self._written = written

    @property
    def opset(self) -> int:
        """Version of the default domain."""
        return self._walk.found.facts.opset

    def has(self, index: int) -> bool:
        """Tell whether an optional input is there."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def read(self, index: int) -> Unfolded | None:
        """Return an input as it is written."""
        return self._walk.unfolded(self.node.input[index])

    def operands(self, indices: Sequence[int]) -> list[Unfolded | None]:
        """Return inputs as they are written; behind an Expand that can be left out, its input."""
        walk = self._walk

        def layout(name: str) -> Layout | None:
            read = walk.unfolded(name)
            return None if read is None else read.layout

        instead = without_expands(walk.found, self.node, layout)
        return [walk.unfolded(instead.get(each, self.node.input[each])) for each in indices]

    def own(self, index: int) -> Unfolded | None:
        """Return an input as the model has it."""
        return self._walk.own(self.node.input[index])

    def is_unfolded(self, index: int) -> bool:
        """Tell whether an input is written in another way."""
        return self._walk.is_unfolded(self.node.input[index])

    def sizes(self, output: int = 0) -> tuple[Part, ...] | None:
        """Return the sizes of what it makes in the model."""
        return self._walk.sizes(self.node.output[output])

    def numbers(self, index: int) -> tuple[Any, ...] | None:
        """Return the numbers of an input that is a small constant."""
        if not self.has(index):
            return None
        found: tuple[Any, ...] | None = self._walk.found.facts.constants.numbers(
            self.node.input[index]
        )
        return found

    def kind(self, index: int) -> int:
        """Return the element type of an input, 0 where it is not known."""
        facts, name = self._walk.found.facts, self.node.input[index]
        return self._walk.found.shapes.elements.get(name, facts.free.elements.get(name, 0))

    def reduced_axes(self) -> tuple[int, ...] | None:
        """Return the dimensions that a reduction is over."""
        found = self._walk.found
        name = self.node.input[0]
        if name not in found.shapes.dims:
            return None
        return found.reduced_axes(self.node)

    def is_used(self, output: int) -> bool:
        """Tell whether anybody reads one of its outputs."""
        name = self.node.output[output] if output < len(self.node.output) else ""
        return bool(name) and self._walk.found.is_read(name)

    def make(self, layout: Layout, output: int = 0) -> str:
        """Return the name of an output that is written with a layout; a folded one's is new."""
        name = self.node.output[output]
        if all(len(parts) == 1 for parts in layout):
            return name
        made = Unfolded(f"{name}/{self._walk.found.word}", layout)
        self._written.made[name] = made
        return made.name

    def write(self, inputs: Sequence[str], layouts: Sequence[Layout], **changed: Any) -> bool:
        """Write the node with other inputs, layouts of its outputs and attributes."""
        node = copied(self.node)
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(self.make(layout, at) for at, layout in enumerate(layouts))
        node.name = f"{self.new.base}/{self.node.op_type}"
        kept = [each for each in node.attribute if each.name not in changed]
        del node.attribute[:]
        node.attribute.extend(kept)
        for name, value in changed.items():
            node.attribute.append(onnx.helper.make_attribute(name, value))
        self.new.nodes.append(node)
        return True

    def spread(self, read: Unfolded, wanted: Layout, suffix: str, behind: int = 0) -> str | None:
        """Return an operand whose dimensions of one are as many as what they are broadcast to.

        Args:
            read: The operand.
            wanted: What is wanted of each of its dimensions.
            suffix: What new names end with.
            behind: Dimensions of one to put in before its last two.

        Returns:
            Its name, None where it cannot be broadcast so.
        """
        axes, at, is_small = list[int](), 0, True
        for axis, (parts, those) in enumerate(zip(read.layout, wanted, strict=True)):
            if axis == len(read.layout) - 2 and not is_small:
                axes += range(at, at + behind)
                at += behind
            if len(parts) > 1 and parts != those:
                return None
            if len(parts) == 1 and len(those) > 1:
                if not is_one(parts[0]):
                    return None
                # Behind nothing but ones it may as well have fewer dimensions.
                if not is_small:
                    axes += range(at, at + len(those) - 1)
                    at += len(those) - 1
            is_small = is_small and len(parts) == 1 and is_one(parts[0])
            at += len(parts)
        if not axes:
            return read.name
        return self.new.over("Unsqueeze", read.name, axes, suffix)
