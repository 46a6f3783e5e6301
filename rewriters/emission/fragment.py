"""New nodes, built with onnx-graphsurgeon and spliced into the model. All contact is here.

Importing a whole model into graphsurgeon and exporting it again loses metadata and doc strings,
changes some element types and touches every node. So only the *new* nodes of a region are built
with it, as a small graph of their own (a `Fragment`); their export replaces the region's nodes in
the model, and nothing else of the model is rewritten. Cloned nodes take their attributes,
metadata and doc string from the original node itself.

Names: everything new of a node ``conv1`` is called ``conv1/patchconv/...``, integers shared by
all regions ``patchconv/int64/...``. `NameScheme` picks a tag no name in the model uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.names import Like, NameScheme
from patchconv_deploy.rewriters.graph.external_data import BITS
from patchconv_deploy.rewriters.graph.nodes import captured, node_label
from patchconv_deploy.rewriters.graph.shapes import Shapes

__all__ = ["Fragment", "Join", "Pieces", "Window", "fold", "own_nodes", "size_of"]


# What only moves bytes.
_MOVES = frozenset({"Slice", "Concat"})


def size_of(like: Like) -> int | None:
    """Return the bytes of a tensor, None if they are unknown."""
    dims, kind = like
    if None in dims or kind not in BITS:
        return None
    return (prod(size or 0 for size in dims) * BITS[kind] + 7) // 8


@dataclass(frozen=True, slots=True)
class Window:
    """A Slice that takes a patch's rows of a tensor around.

    Attributes:
        source: The tensor.
        name: The window.
        suffix: What its node is named by.
        axis: The axis that is cut.
        begin: First row.
        end: One past the last row.
        of: Rows of the tensor.
        like: Shape and element type of the window.
    """

    source: str
    name: str
    suffix: str
    axis: int
    begin: int
    end: int
    of: int | None
    like: Like


@dataclass(frozen=True, slots=True)
class Join:
    """A Concat that puts patches' rows together to a tensor of the surrounding graph.

    Attributes:
        name: The tensor.
        axis: The axis that was cut.
        parts: Its strips, in order.
        rows: Rows of each strip.
        like: Shape and element type of the tensor.
    """

    name: str
    axis: int
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    like: Like


@dataclass(frozen=True, slots=True)
class Pieces:
    """A tensor that a Loop leaves in pieces, one of each round (`emission.pieces`).

    Attributes:
        axis: The axis that is cut.
        rows_each: Rows of each piece; the last one may have fewer or more.
        top: How many more the first one has.
        name: The sequence of them.
        rows: What holds the tensor's rows, a vector of one number.
        count: What holds the number of pieces, the same.
        parts: In place of these three, at assumed sizes, the pieces one by one, with their shapes
            and element types (`emission.loop.add_assumed_loop`).
        done: A small tensor that is there once they are complete.
    """

    axis: int
    rows_each: int
    top: int
    name: str = ""
    rows: str = ""
    count: str = ""
    parts: tuple[tuple[str, Like], ...] = ()
    done: str = ""


@dataclass(eq=False)
class Fragment:
    """A growing graph of new nodes.

    Attributes:
        base: Names derive from it.
        opset: Operators are spelled for this version of the default domain.
        names: The name scheme.
        covers: Positions of the nodes that it makes the outputs of.
        makes: Tensors of the surrounding graph that it makes.
        shapes: Shape and element type of every new activation; the rest is shape arithmetic.
        moved: Bytes, as far as known, of what is cut out of tensors and put together.
        windows: What it cuts out of tensors of the surrounding graph at known rows.
        joins: What it puts together at known rows.
        variants: The same that reads or makes strips (`emission.handing_over`), or pieces.
        pieces: What its Loop may leave in pieces, by tensor.
        in_windows: What it reads in windows of rounds alone, and the axis that is cut.
        rewrite: Returns the same that leaves some tensors in pieces, and is given others in pieces;
            None where there are none.
    """

    base: str
    opset: int
    names: NameScheme
    covers: tuple[int, ...] = ()
    makes: tuple[str, ...] = ()
    shapes: dict[str, Like] = field(default_factory=dict)
    moved: int = 0
    windows: list[Window] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    variants: dict[Any, Any] = field(default_factory=dict)
    pieces: dict[str, Pieces] = field(default_factory=dict)
    in_windows: dict[str, int] = field(default_factory=dict)
    rewrite: Callable[[frozenset[str], Mapping[str, Pieces]], Fragment] | None = None
    _nodes: list[gs.Node] = field(default_factory=list)
    _outer: dict[str, gs.Variable] = field(default_factory=dict)
    _constants: dict[str, gs.Constant] = field(default_factory=dict)
    _originals: dict[int, tuple[onnx.NodeProto, Mapping[str, Any]]] = field(default_factory=dict)
    _bodies: dict[int, tuple[onnx.GraphProto, Fragment]] = field(default_factory=dict)
    _inner: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _exported: tuple[Sequence[onnx.NodeProto], Mapping[str, onnx.TensorProto]] | None = None
    _reads: frozenset[str] = frozenset()

    def outer(self, name: str) -> gs.Variable:
        """Return a tensor of the surrounding graph, the same object every time it is asked for."""
        found = self._outer.get(name)
        if found is None:
            found = self._outer[name] = gs.Variable(name)
        return found

    @property
    def sizes(self) -> dict[str, int | None]:
        """Bytes of every new activation, None where unknown."""
        return {name: size_of(like) for name, like in self.shapes.items()}

    @property
    def count(self) -> int:
        """Number of nodes so far."""
        return len(self._nodes) if self._exported is None else len(self._exported[0])

    @property
    def reads(self) -> frozenset[str]:
        """Tensors of the surrounding graph that the fragment reads."""
        if self._exported is not None:
            return self._reads
        own = frozenset(tensor.name for node in self._nodes for tensor in node.inputs)
        return own.union(*(body.reads for _, body in self._bodies.values()))

    @cached_property
    def captures(self) -> frozenset[str]:
        """Tensors around that the fragment's bodies read; it is whole."""
        return frozenset(name for node in self.export()[0] for name in captured(node))

    @cached_property
    def around(self) -> frozenset[str]:
        """Tensors that the fragment's nodes read outside of bodies; it is whole."""
        return frozenset(name for node in self.export()[0] for name in node.input)

    @cached_property
    def read_whole(self) -> frozenset[str]:
        """Tensors around that it reads otherwise than in windows; it is whole."""
        windows = {window.name for window in self.windows}
        whole = set(self.captures)
        for node in self.export()[0]:
            if not node.output or node.output[0] not in windows:
                whole.update(node.input)
        return frozenset(whole)

    @cached_property
    def read_strips(self) -> frozenset[str]:
        """Strips that it makes and that its own nodes read on, besides putting them together."""
        parts = {part for join in self.joins for part in join.parts}
        whole = {join.name for join in self.joins}
        read = {
            name
            for node in self.export()[0]
            if not node.output or node.output[0] not in whole
            for name in node.input
        }
        return frozenset(parts & read)

    def rewritten(
        self,
        nodes: Sequence[onnx.NodeProto],
        constants: Mapping[str, onnx.TensorProto],
        makes: tuple[str, ...],
        shapes: dict[str, Like],
        moved: int,
    ) -> Fragment:
        """Return the same with other nodes; it is whole."""
        made = Fragment(self.base, self.opset, self.names, self.covers, makes, shapes, moved)
        own = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in (*node.input, *captured(node))}
        made._reads = frozenset(read - own - {""})
        used = {name: tensor for name, tensor in constants.items() if name in made._reads}
        made._exported = nodes, {**used, **self._inner}
        made._inner = self._inner
        made.windows = self.windows
        made.joins = self.joins
        return made

    @property
    def loops(self) -> list[str]:
        """Names of the fragment's Loops; it is whole."""
        return [node.name for node in self.export()[0] if node.op_type == "Loop"]

    def ints(self, values: Any) -> gs.Constant:
        """Return an int64 constant, shared with every other region."""
        array = np.asarray(values, dtype=np.int64)
        name = self.names.shared(array)
        if name not in self._constants:
            self._constants[name] = gs.Constant(name, array)
        return self._constants[name]

    def name(self, suffix: str) -> str:
        """Return the name of something new."""
        return f"{self.base}/{self.names.tag}/{suffix}"

    def add(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        suffix: str,
        *,
        attrs: Mapping[str, Any] | None = None,
        like: Like | None = None,
        output: str | None = None,
    ) -> gs.Variable:
        """Add a node of one output.

        Args:
            op: Operator of the default domain.
            inputs: Its inputs.
            suffix: Names the node and its output.
            attrs: Its attributes.
            like: Shape and element type of the output; None for shape arithmetic.
            output: Name of the output where it is a tensor of the surrounding graph.
        """
        result = gs.Variable(output or self.name(suffix))
        if like is not None:
            self.shapes[result.name] = like
            if op in _MOVES:
                self.moved += size_of(like) or 0
        self.place(op, inputs, [result], suffix, attrs=attrs)
        return result

    def place(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        outputs: Sequence[gs.Variable],
        suffix: str,
        *,
        attrs: Mapping[str, Any] | None = None,
        body: tuple[onnx.GraphProto, Fragment] | None = None,
    ) -> None:
        """Add a node whose outputs are there.

        Args:
            op: Its operator.
            inputs: Its inputs.
            outputs: Its outputs.
            suffix: Names it.
            attrs: Its attributes.
            body: What it runs inside, as a graph and as the fragment that it was.
        """
        name = self.name(suffix)
        self._nodes.append(gs.Node(op, name, dict(attrs or {}), list(inputs), list(outputs)))
        if body is not None:
            graph, fragment = body
            self._bodies[len(self._nodes) - 1] = graph, fragment
            self._inner.update(fragment.export()[1])
            self.shapes.update(fragment.shapes)

    def clone(
        self,
        original: onnx.NodeProto,
        replaced: Mapping[int, gs.Tensor],
        suffix: str,
        *,
        attributes: Mapping[str, Any],
        likes: Sequence[Like],
    ) -> list[gs.Variable]:
        """Add a copy of a node, attributes as they are, reading other tensors in some places.

        Args:
            original: The node.
            replaced: What the copy reads in place of inputs, by index.
            suffix: Names the node and its outputs.
            attributes: Attributes to change; None drops one.
            likes: Shape and element type of each output that has a name.

        Returns:
            The outputs that have a name.
        """
        inputs: list[gs.Tensor] = [self.outer(name) for name in original.input]
        # An optional input may be given where there was none: those between stay absent.
        inputs += [self.outer("")] * (max(replaced, default=-1) + 1 - len(inputs))
        for i, tensor in replaced.items():
            inputs[i] = tensor
        made = []
        outputs = []
        for at, name in enumerate(original.output):
            suffixed = self.name(suffix if at == 0 else f"{suffix}/{at}")
            outputs.append(gs.Variable(suffixed if name else ""))
            if name:
                made.append(outputs[-1])
        self.shapes.update(zip((tensor.name for tensor in made), likes, strict=True))
        self.place(original.op_type, inputs, outputs, suffix)
        self._originals[len(self._nodes) - 1] = (original, attributes)
        return made

    def export(self) -> tuple[Sequence[onnx.NodeProto], Mapping[str, onnx.TensorProto]]:
        """Return the nodes in order, and the constants they read by name; the fragment is whole."""
        if self._exported is None:
            self._reads = self.reads
            self._exported = self._export()
            # graphsurgeon's nodes and tensors hold each other, so that only the garbage collector
            # frees them: kept, they would make each of its walks longer.
            for held in (self._nodes, self._outer, self._constants, self._originals, self._bodies):
                held.clear()
        return self._exported

    def _export(self) -> tuple[Sequence[onnx.NodeProto], Mapping[str, onnx.TensorProto]]:
        model = gs.export_onnx(
            gs.Graph(nodes=self._nodes, opset=self.opset, name=self.base), do_type_check=False
        )
        nodes = list(model.graph.node)
        for position, (original, replaced) in self._originals.items():
            node = nodes[position]
            node.doc_string = original.doc_string
            node.domain = original.domain
            node.overload = original.overload
            node.metadata_props.extend(original.metadata_props)
            node.attribute.extend(a for a in original.attribute if a.name not in replaced)
            node.attribute.extend(
                onnx.helper.make_attribute(name, value)
                for name, value in replaced.items()
                if value is not None
            )
        for position, (body, _) in self._bodies.items():
            nodes[position].attribute.append(onnx.helper.make_attribute("body", body))
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        return nodes, {**constants, **self._inner}


def fold(position: int, node: onnx.NodeProto, value: Any, like: Fragment) -> Fragment:
    """Return a fragment that makes a node's output of integers from a constant.

    Args:
        position: The node's position.
        node: The node; its input need not exist any more.
        value: What it makes.
        like: A fragment whose opset and names are the model's.
    """
    name = node.output[0]
    made = Fragment(name, like.opset, like.names, covers=(position,), makes=(name,))
    made.add("Identity", [made.ints(value)], "shape", output=name)
    return made


def own_nodes(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    covers: Sequence[int],
    shapes: Shapes,
    names: NameScheme,
) -> Fragment:
    """Return a fragment of a model's own nodes, which were written in another way.

    Args:
        nodes: The nodes, in order.
        outputs: What they make for others.
        covers: Positions of the nodes that they take the place of.
        shapes: Shapes of the model's own tensors.
        names: The name scheme.
    """
    made = Fragment(node_label(nodes[-1]), 0, names, covers=tuple(covers), makes=tuple(outputs))
    inner = {name for node in nodes for name in node.output if name}
    made.shapes.update(
        (name, (shapes.dims[name], shapes.elements.get(name, 0)))
        for name in inner
        if name in shapes.dims
    )
    read = {name for node in nodes for name in (*node.input, *captured(node)) if name}
    made._reads = frozenset(read - inner)
    made._exported = (nodes, {})
    return made
