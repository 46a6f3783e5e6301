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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewriters.emission.names import Like, NameScheme
from rewriters.graph.external_data import BITS
from rewriters.graph.nodes import captured

__all__ = ["Fragment", "fold"]


# What only moves bytes.
_MOVES = frozenset({"Slice", "Concat"})


def _bytes(like: Like) -> int | None:
    dims, kind = like
    if None in dims or kind not in BITS:
        return None
    return (prod(size or 0 for size in dims) * BITS[kind] + 7) // 8


@dataclass(eq=False)
class Fragment:
    """A growing graph of new nodes. Every method adds one node and returns its output.

    Attributes:
        base: Names derive from it.
        opset: Operators are spelled for this version of the default domain.
        names: The name scheme.
        covers: Positions of the nodes that it makes the outputs of.
        makes: Tensors of the surrounding graph that it makes.
        shapes: Shape and element type of every new activation; the rest is shape arithmetic.
        moved: Bytes, as far as known, of what is cut out of tensors and put together.
    """

    base: str
    opset: int
    names: NameScheme
    covers: tuple[int, ...] = ()
    makes: tuple[str, ...] = ()
    shapes: dict[str, Like] = field(default_factory=dict)
    moved: int = 0
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
        return {name: _bytes(like) for name, like in self.shapes.items()}

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

    def _name(self, suffix: str) -> str:
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
        result = gs.Variable(output or self._name(suffix))
        if like is not None:
            self.shapes[result.name] = like
            if op in _MOVES:
                self.moved += _bytes(like) or 0
        self._nodes.append(
            gs.Node(
                op=op,
                name=self._name(suffix),
                attrs=dict(attrs or {}),
                inputs=list(inputs),
                outputs=[result],
            )
        )
        return result

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
            suffixed = self._name(suffix if at == 0 else f"{suffix}/{at}")
            outputs.append(gs.Variable(suffixed if name else ""))
            if name:
                made.append(outputs[-1])
        self.shapes.update(zip((tensor.name for tensor in made), likes, strict=True))
        self._nodes.append(
            gs.Node(op=original.op_type, name=self._name(suffix), inputs=inputs, outputs=outputs)
        )
        self._originals[len(self._nodes) - 1] = (original, attributes)
        return made

    def loop(
        self,
        body: Fragment,
        step: gs.Variable,
        count: int,
        results: Sequence[tuple[gs.Variable, Sequence[int | None], int]],
        *,
        likes: Sequence[Like],
    ) -> list[gs.Variable]:
        """Add a Loop of a fixed number of rounds without state.

        Args:
            body: Nodes of one round; it may read any tensor of the surrounding graph.
            step: What the body reads the number of the round from.
            count: Rounds.
            results: Per output of a round the tensor, its shape and its element type.
            likes: Shape and element type of each stacked output.

        Returns:
            Per result all rounds' tensors, stacked along a new first dimension.
        """
        inner, constants = body.export()
        nodes = list(inner)
        # A condition that is always true is left out: TensorRT takes none. Before opset 11 a Loop
        # must have a state.
        kept: list[tuple[str, str, int, list[int]]] = [
            ("going", "still_going", onnx.TensorProto.BOOL, [])
        ]
        if self.opset < 11:
            kept.append(("state", "same_state", onnx.TensorProto.INT64, [1]))
        states = [[f"{body.base}/{name}" for name in names] for *names, _, _ in kept]
        # Made here, not passed on: TensorRT knows no condition where none is given.
        true = onnx.helper.make_tensor("going", onnx.TensorProto.BOOL, [], [True])
        nodes.append(onnx.helper.make_node("Constant", [], [states[0][1]], value=true))
        for before, after in states[1:]:
            nodes.append(onnx.helper.make_node("Identity", [before], [after], name=after))
        befores, afters = (
            [
                onnx.helper.make_tensor_value_info(names[at], kind, dims)
                for names, (*_, kind, dims) in zip(states, kept, strict=True)
            ]
            for at in (0, 1)
        )
        graph = onnx.helper.make_graph(
            nodes,
            body.base,
            [
                onnx.helper.make_tensor_value_info(step.name, onnx.TensorProto.INT64, []),
                *befores,
            ],
            [
                *afters,
                *(
                    onnx.helper.make_tensor_value_info(tensor.name, kind, dims)
                    for tensor, dims, kind in results
                ),
            ],
        )
        self._inner.update(constants)
        rounds = gs.Constant(self.names.shared(np.asarray(count)), np.asarray(count, np.int64))
        inputs: list[gs.Tensor] = [rounds, gs.Variable("")]
        outputs = [gs.Variable(self._name(f"loop/{k}")) for k in range(len(results))]
        self.shapes.update(zip((tensor.name for tensor in outputs), likes, strict=True))
        self.shapes.update(body.shapes)
        final = [gs.Variable(self._name(f"loop/{name}")) for _, name, *_ in kept[1:]]
        inputs += [self.ints([0]) for _ in final]
        self._nodes.append(
            gs.Node(op="Loop", name=self._name("loop"), inputs=inputs, outputs=[*final, *outputs])
        )
        self._bodies[len(self._nodes) - 1] = (graph, body)
        return outputs

    def slice(
        self,
        x: gs.Variable,
        axes: Sequence[int],
        begin: Sequence[int] | gs.Variable,
        end: Sequence[int] | gs.Variable,
        suffix: str,
        *,
        like: Like | None = None,
    ) -> gs.Variable:
        """Add a Slice; attributes up to opset 9, inputs from opset 10."""
        if self.opset < 10:
            attrs = {"axes": list(axes), "starts": begin, "ends": end}
            return self.add("Slice", [x], suffix, attrs=attrs, like=like)
        begin = begin if isinstance(begin, gs.Variable) else self.ints(begin)
        end = end if isinstance(end, gs.Variable) else self.ints(end)
        return self.add("Slice", [x, begin, end, self.ints(axes)], suffix, like=like)

    def concat(
        self,
        parts: Sequence[gs.Tensor],
        axis: int,
        suffix: str,
        *,
        like: Like | None = None,
        output: str | None = None,
    ) -> gs.Variable:
        """Add a Concat."""
        return self.add("Concat", parts, suffix, attrs={"axis": axis}, like=like, output=output)

    def reshape(
        self, x: gs.Variable, shape: gs.Tensor, suffix: str, *, like: Like | None = None
    ) -> gs.Variable:
        """Add a Reshape."""
        return self.add("Reshape", [x, shape], suffix, like=like)

    def squeeze(
        self, x: gs.Variable, axis: int, suffix: str, *, output: str | None = None
    ) -> gs.Variable:
        """Add a Squeeze of one axis; attribute up to opset 12, input from opset 13."""
        like = self.shapes.get(x.name)
        if like is not None:
            dims, kind = like
            like = (*dims[:axis], *dims[axis + 1 :]), kind
        if self.opset < 13:
            return self.add(
                "Squeeze", [x], suffix, attrs={"axes": [axis]}, like=like, output=output
            )
        return self.add("Squeeze", [x, self.ints([axis])], suffix, like=like, output=output)

    def unsqueeze(
        self, x: gs.Variable, axis: int, suffix: str, *, like: Like | None = None
    ) -> gs.Variable:
        """Add an Unsqueeze of one axis; attribute up to opset 12, input from opset 13."""
        if self.opset < 13:
            return self.add("Unsqueeze", [x], suffix, attrs={"axes": [axis]}, like=like)
        return self.add("Unsqueeze", [x, self.ints([axis])], suffix, like=like)

    def split(self, x: gs.Variable, count: int, suffix: str) -> list[gs.Variable]:
        """Add a Split of a vector of ``count`` integers into vectors of one."""
        results = [gs.Variable(self._name(f"{suffix}_{k}")) for k in range(count)]
        attrs: dict[str, Any] = {"axis": 0}
        if self.opset >= 18:
            attrs["num_outputs"] = count
        self._nodes.append(
            gs.Node("Split", name=self._name(suffix), attrs=attrs, inputs=[x], outputs=results)
        )
        return results

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
