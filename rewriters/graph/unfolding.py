"""Images that are folded into sequences, written as images.

    x [N, C, H, W] -- Reshape -- [N, C, H * W] -- Transpose -- MatMul -- ... -- Reshape -- y
    x [N, C, H, W] ----------------------------- Transpose -- MatMul -- ... ------------- y

Transformers fold rows and columns, or rows and columns of windows, into one dimension. What they do
to it is mostly done to each of its elements, and as well to each row and column. Where both sizes
are free, the folded one is a product that says nothing of rows, so that nothing there could be
cut; unfolded, the rows are those of the image. What does need the sequence (keys of attention, a
class token put in front) gets it by a Reshape.

    stays unfolded                               is given the sequence
    arithmetic, activations, Cast, Where         where another operand is as long
    MatMul: rows, batch; Gemm: rows              MatMul: columns, sums
    LayerNormalization, Softmax, Reduce*,        along the sequence
    Concat, Split, Slice, Gather
    Transpose, Squeeze, Unsqueeze, Reshape       all other operators
    BatchNormalization, Shape

Where no region reaches a sequence, its nodes stay as they were (`graph.respelling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import attributes, node_label
from patchconv_deploy.rewriters.graph.respelling import (
    SIZE_NODES,
    Respelling,
    copied,
    free_word,
)
from patchconv_deploy.rewriters.graph.unfolded import (
    Layout,
    Part,
    Unfolded,
    is_one,
    plain,
    reshaped,
)
from patchconv_deploy.rewriters.operators.channelwise import REDUCTIONS
from patchconv_deploy.rewriters.operators.elementwise import BROADCAST
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["find_folded"]


_LAYOUTS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Shape"})


@dataclass
class _Written:
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


def find_folded(facts: CertainFacts) -> list[Respelling]:
    """Find sequences that are images, and write them as such; the model is not changed.

    Args:
        facts: The model, whose sizes are followed.
    """
    if not facts.free.dims:
        return []
    walk = _Walk(ReadGraph(facts, {}, free_word("unfolded", facts.index.names)))
    for position in range(len(facts.graph.node)):
        walk.visit(position)
    return walk.respellings()


class _Walk:
    """One walk over the nodes of a graph.

    Args:
        found: What is known of it.
    """

    def __init__(self, found: ReadGraph) -> None:
        self.found = found
        self._unfolded: dict[str, Unfolded] = {}
        self._written: dict[int, _Written] = {}
        # Tensors that are needed as the model has them, too.
        self._needed: set[str] = set()

    def visit(self, position: int) -> None:
        """Write a node with what is unfolded so far."""
        node, index = self.found.node(position), self.found.index
        reads = index.ends[position][0]
        folded = [name for name in reads if name in self._unfolded]
        if not folded and node.op_type != "Reshape":
            return
        rule = _RULES.get(node.op_type) if node.domain in ONNX_DOMAINS else None
        apart = {name for name in reads if name not in node.input}
        doubtful = self.found.shapes.doubtful.intersection((*reads, *node.output))
        written = None
        if rule is not None and node.input and not doubtful and apart.isdisjoint(folded):
            written = _Written(self.found.new(position, node.input[0], "a sequence"))
            if not rule(_Node(self, node, written)):
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
                and node.op_type in SIZE_NODES
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
    new.add("Reshape", [made.name, _target(new, made.name, wanted, "folded", rest)], "folded", name)


def _target(
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
        pieces.append(_size(new, shape, size, f"{suffix}/size_{at}"))
    close()
    return new.add("Concat", pieces, f"{suffix}/target", axis=0)


def _size(new: NewNodes, shape: str, places: Sequence[int], suffix: str) -> str:
    """Write the product of some sizes of a shape."""
    sizes = new.add("Gather", [shape, new.ints(places, f"{suffix}/places")], suffix, axis=0)
    return sizes if len(places) == 1 else new.reduce("ReduceProd", sizes, [0], f"{suffix}/product")


class _Node:
    """A node that is to be written with unfolded inputs, as a rule sees it.

    Args:
        walk: What is known so far.
        node: The node.
        written: Takes what is written.
    """

    def __init__(self, walk: _Walk, node: onnx.NodeProto, written: _Written) -> None:
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

    def is_of(self, index: int, kind: int) -> bool:
        """Tell whether an input is certainly of an element type."""
        facts, name = self._walk.found.facts, self.node.input[index]
        known = self._walk.found.shapes.elements.get(name, facts.free.elements.get(name))
        return known == kind

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
                # With nothing but ones before it, it may as well have less dimensions.
                if not is_small:
                    axes += range(at, at + len(those) - 1)
                    at += len(those) - 1
            is_small = is_small and len(parts) == 1 and is_one(parts[0])
            at += len(parts)
        if not axes:
            return read.name
        return self.new.over("Unsqueeze", read.name, axes, suffix)


def _aligned(layouts: Sequence[Layout], sizes: Sequence[Part]) -> Layout | None:
    """Return the layout of what operands are broadcast to, None where they are folded otherwise."""
    rank, made = len(sizes), list[tuple[Part, ...]]()
    for axis, size in enumerate(sizes):
        folded = {
            layout[axis - rank]
            for layout in layouts
            if axis - rank >= -len(layout) and len(layout[axis - rank]) > 1
        }
        if len(folded) > 1:
            return None
        made.append(folded.pop() if folded else (size,))
    return tuple(made)


def _broadcast(at: _Node) -> bool:
    sizes = at.sizes()
    given = [index for index in range(len(at.node.input)) if at.has(index)]
    operands = [at.read(index) for index in given]
    known = [operand for operand in operands if operand is not None]
    if sizes is None or len(known) < len(given):
        return False
    if any(len(operand.layout) > len(sizes) for operand in known):
        return False
    wanted = _aligned([operand.layout for operand in known], sizes)
    if wanted is None:
        return False
    inputs = [""] * len(at.node.input)
    for index, operand in zip(given, known, strict=True):
        those = wanted[len(wanted) - len(operand.layout) :]
        name = at.spread(operand, those, f"operand_{index}")
        if name is None:
            return False
        inputs[index] = name
    return at.write(inputs, [wanted])


def _matmul(at: _Node) -> bool:
    a, b, sizes = at.read(0), at.read(1), at.sizes()
    if a is None or b is None or sizes is None or min(len(a.layout), len(b.layout)) < 2:
        return False
    if a.is_folded(len(a.layout) - 1):
        return False
    if any(b.is_folded(len(b.layout) + axis) for axis in (-2, -1)):
        # Keys and values are read whole.
        b = at.own(1)
        if b is None or not at.is_unfolded(0):
            return False
    batch = _aligned([a.layout[:-2], b.layout[:-2]], sizes[:-2])
    if batch is None:
        return False
    rows = a.layout[-2]
    wanted = (*batch[len(batch) + 2 - len(a.layout) :], *a.layout[-2:])
    first = at.spread(a, wanted, "first")
    wanted = (*batch[len(batch) + 2 - len(b.layout) :], *b.layout[-2:])
    second = at.spread(b, wanted, "second", len(rows) - 1)
    if first is None or second is None:
        return False
    return at.write([first, second], [(*batch, rows, (sizes[-1],))])


def _gemm(at: _Node) -> bool:
    """Gemm of rows: as MatMul and Add, which take more dimensions than two."""
    x, w, sizes = at.read(0), at.own(1), at.sizes()
    plain_numbers = at.given.get("alpha", 1.0) == at.given.get("beta", 1.0) == 1.0
    if x is None or w is None or sizes is None or at.given.get("transA", 0) or not plain_numbers:
        return False
    added = at.own(2) if at.has(2) else None
    # What is added to each row has one dimension, or one row.
    rows = () if added is None else tuple(parts[0] for parts in added.layout)
    if x.is_folded(1) or not x.is_folded(0) or at.is_unfolded(1):
        return False
    if at.has(2) and (added is None or at.is_unfolded(2) or not all(map(is_one, rows[:-1]))):
        return False
    weight = w.name
    if at.given.get("transB", 0):
        weight = at.new.add("Transpose", [weight], "weight", perm=[1, 0])
    layout = (x.layout[0], (sizes[1],))
    made = at.make(layout)
    product = at.new.add("MatMul", [x.name, weight], "MatMul", "" if at.has(2) else made)
    if at.has(2):
        at.new.add("Add", [product, at.node.input[2]], "Add", made)
    return True


def _transpose(at: _Node) -> bool:
    x = at.read(0)
    if x is None:
        return False
    perm = at.given.get("perm") or tuple(reversed(range(len(x.layout))))
    if sorted(perm) != list(range(len(x.layout))):
        return False
    places = [x.at(axis) + part for axis in perm for part in range(len(x.layout[axis]))]
    return at.write([x.name], [tuple(x.layout[axis] for axis in perm)], perm=places)


def _reshape(at: _Node) -> bool:
    x, y = at.read(0), at.sizes()
    if x is None or y is None:
        return False
    made = reshaped(x.parts, y)
    if made is None:
        return False
    layout, wanted = list[tuple[Part, ...]](), list[int | tuple[int, ...]]()
    for size, those in zip(y, made, strict=True):
        parts = tuple(x.parts[each] for each in those)
        if size is not None and size.constant is not None:
            parts, those = (size,), (0,)
        elif len(those) == 1:
            parts = (size if size is not None else parts[0],)
        layout.append(parts)
        for part, place in zip(parts, those, strict=True):
            number = None if part is None else part.constant
            wanted.append((place,) if number is None else number)
    # A product of one free size and numbers is followed as it is.
    free = [sum(part is not None and part.constant is None for part in parts) for parts in layout]
    if not at.is_unfolded(0) and max(free, default=0) < 2:
        return False
    if any(not parts for parts in layout):
        return False
    if [part for parts in layout for part in parts] == list(x.parts):
        name = at.make(tuple(layout))
        at.new.add("Identity", [x.name], "Identity", name)
        return True
    target = _target(at.new, x.name, wanted, "Reshape")
    at.new.add("Reshape", [x.name, target], "Reshape", at.make(tuple(layout)))
    return True


def _axis_of(at: _Node, x: Unfolded, default: int) -> int | None:
    """Return the dimension that a node works along, None where it is folded or not there."""
    axis, rank = int(at.given.get("axis", default)), len(x.layout)
    return None if not -rank <= axis < rank or x.is_folded(axis % rank) else axis % rank


def _normalize(at: _Node) -> bool:
    x = at.read(0)
    if x is None or any(at.is_used(output) for output in (1, 2)):
        return False
    axis = at.given.get("axis", -1) % len(x.layout)
    if any(x.is_folded(each) for each in range(axis, len(x.layout))):
        return False
    # Runtimes take a scale of each element, too.
    scales = [at.own(index) for index in range(1, len(at.node.input)) if at.has(index)]
    for scale in scales:
        if scale is None or not all(map(is_one, scale.parts[: axis - len(x.layout)])):
            return False
    return at.write([x.name, *at.node.input[1:]], [x.layout], axis=axis - len(x.layout))


def _softmax(at: _Node) -> bool:
    x = at.read(0)
    axis = None if x is None else _axis_of(at, x, -1 if at.opset >= 13 else 1)
    # Before opset 13 it takes the dimensions behind its own together.
    if x is None or axis is None or (at.opset < 13 and axis != len(x.layout) - 1):
        return False
    return at.write([x.name], [x.layout], axis=x.at(axis))


def _reduce(at: _Node) -> bool:
    x, axes = at.read(0), at.reduced_axes()
    if x is None or axes is None or any(x.is_folded(axis) for axis in axes):
        return False
    kept = int(bool(at.given.get("keepdims", 1)))
    layout = [
        (Size.number(1),) if axis in axes else parts
        for axis, parts in enumerate(x.layout)
        if kept or axis not in axes
    ]
    return _with_axes(at, x, tuple(layout), [x.at(axis) for axis in axes], keepdims=kept)


def _concat(at: _Node) -> bool:
    sizes = at.sizes()
    operands = [at.read(index) for index in range(len(at.node.input))]
    first = operands[0]
    axis = None if first is None else _axis_of(at, first, 0)
    if first is None or axis is None or sizes is None:
        return False
    for operand in operands:
        if operand is None or len(operand.layout) != len(first.layout) or operand.is_folded(axis):
            return False
        pairs = zip(operand.layout, first.layout, strict=True)
        if any(a != b and max(len(a), len(b)) > 1 for a, b in pairs):
            return False
    layout = (*first.layout[:axis], (sizes[axis],), *first.layout[axis + 1 :])
    names = [operand.name for operand in operands if operand is not None]
    return at.write(names, [layout], axis=first.at(axis))


def _split(at: _Node) -> bool:
    x = at.read(0)
    axis = None if x is None else _axis_of(at, x, 0)
    if x is None or axis is None or not all(at.node.output):
        return False
    layouts = []
    for output in range(len(at.node.output)):
        sizes = at.sizes(output)
        size = None if sizes is None else sizes[axis]
        layouts.append((*x.layout[:axis], (size,), *x.layout[axis + 1 :]))
    return at.write([x.name, *at.node.input[1:]], layouts, axis=x.at(axis))


def _gather(at: _Node) -> bool:
    x, indices = at.read(0), at.own(1)
    axis = None if x is None else _axis_of(at, x, 0)
    if x is None or axis is None or indices is None or at.is_unfolded(1):
        return False
    layout = (*x.layout[:axis], *indices.layout, *x.layout[axis + 1 :])
    return at.write([x.name, at.node.input[1]], [layout], axis=x.at(axis))


def _slice(at: _Node) -> bool:
    x, sizes = at.read(0), at.sizes()
    if x is None or sizes is None or at.opset < 10:
        return False
    axes = at.numbers(3) if at.has(3) else range(len(at.numbers(1) or ()))
    if axes is None:
        return False
    over = [axis % len(x.layout) for axis in axes]
    # All that says what is taken is of one element type.
    if not over or any(x.is_folded(axis) for axis in over) or not at.is_of(1, TensorProto.INT64):
        return False
    inputs = [x.name, *at.node.input[1:3], at.new.ints([x.at(axis) for axis in over], "axes")]
    layout = tuple((sizes[axis],) if axis in over else parts for axis, parts in enumerate(x.layout))
    return at.write([*inputs, *at.node.input[4:]], [layout])


def _axes_given(at: _Node, rank: int) -> list[int] | None:
    """Return the axes of a Squeeze or Unsqueeze, ascending."""
    axes: Any = at.numbers(1) if at.opset >= 13 else at.given.get("axes")
    return sorted(axis % rank for axis in axes) if axes else None


def _squeeze(at: _Node) -> bool:
    x = at.read(0)
    axes = None if x is None else _axes_given(at, len(x.layout))
    if x is None or axes is None or any(x.is_folded(axis) for axis in axes):
        return False
    layout = tuple(parts for axis, parts in enumerate(x.layout) if axis not in axes)
    return _with_axes(at, x, layout, [x.at(axis) for axis in axes])


def _unsqueeze(at: _Node) -> bool:
    x, sizes = at.read(0), at.sizes()
    axes = None if x is None or sizes is None else _axes_given(at, len(sizes))
    if x is None or sizes is None or axes is None or len({*axes}) + len(x.layout) != len(sizes):
        return False
    own = iter(x.layout)
    layout = tuple((Size.number(1),) if axis in axes else next(own) for axis in range(len(sizes)))
    made = Unfolded("", layout)
    return _with_axes(at, x, layout, [made.at(axis) for axis in axes])


def _with_axes(at: _Node, x: Unfolded, layout: Layout, axes: Sequence[int], **given: int) -> bool:
    op = at.node.op_type
    at.new.over(op, x.name, axes, op, at.make(layout), **given)
    return True


def _normalize_batch(at: _Node) -> bool:
    x = at.read(0)
    if x is None or at.given.get("training_mode", 0) or at.is_used(1):
        return False
    if len(x.layout) < 3 or x.is_folded(0) or x.is_folded(1):
        return False
    return at.write([x.name, *at.node.input[1:]], [x.layout])


def _shape(at: _Node) -> bool:
    x = at.read(0)
    if x is None or at.given.get("start", 0) or "end" in at.given:
        return False
    shape = at.new.add("Shape", [x.name], "sizes")
    ranges = [range(x.at(axis), x.at(axis) + len(parts)) for axis, parts in enumerate(x.layout)]
    pieces = [_size(at.new, shape, each, f"size_{axis}") for axis, each in enumerate(ranges)]
    at.new.add("Concat", pieces, "Concat", at.node.output[0], axis=0)
    return True


_RULES: Mapping[str, Callable[[_Node], bool]] = {
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "BatchNormalization": _normalize_batch,
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _normalize,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
