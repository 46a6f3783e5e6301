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

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewriters.memory import Step

__all__ = ["Fragment", "NameScheme", "from_graphsurgeon", "splice", "to_graphsurgeon"]

Dims = Sequence[int | None] | None


@dataclass(frozen=True, slots=True)
class NameScheme:
    """Names of everything new: below ``<base>/<tag>/``, which no name of the model contains."""

    tag: str

    @classmethod
    def avoiding(cls, names: Collection[str]) -> NameScheme:
        """Return the scheme with the first free tag: patchconv, patchconv_2, ..."""
        number = 1
        while True:
            tag = "patchconv" if number == 1 else f"patchconv_{number}"
            inside, before = f"/{tag}/", f"{tag}/"
            if not any(inside in name or name.startswith(before) for name in names):
                return cls(tag)
            number += 1

    def shared(self, array: np.ndarray[Any, Any]) -> str:
        """Return the name of a shared integer constant: equal values, equal name."""
        values = "_".join(str(value) for value in array.reshape(-1).tolist())
        return f"{self.tag}/{array.dtype}/{'scalar/' if array.ndim == 0 else ''}{values}"


@dataclass
class Fragment:
    """A growing graph of new nodes. Every method adds one node and returns its output.

    Attributes:
        base: Names derive from it.
        opset: Operators are spelled for this version of the default domain.
        names: The name scheme.
        sizes: Bytes of every new tensor, None where unknown; for `rewriters.memory`.
    """

    base: str
    opset: int
    names: NameScheme
    sizes: dict[str, int | None] = field(default_factory=dict)
    _nodes: list[gs.Node] = field(default_factory=list)
    _outer: dict[str, gs.Variable] = field(default_factory=dict)
    _constants: dict[str, gs.Constant] = field(default_factory=dict)
    _originals: dict[int, tuple[onnx.NodeProto, Mapping[str, Any]]] = field(default_factory=dict)

    def outer(self, name: str) -> gs.Variable:
        """Return a tensor of the surrounding graph, the same object every time it is asked for."""
        return self._outer.setdefault(name, gs.Variable(name))

    @property
    def reads(self) -> frozenset[str]:
        """Tensors of the surrounding graph that the fragment reads."""
        return frozenset(tensor.name for node in self._nodes for tensor in node.inputs)

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
        size: int | None = 0,
        output: str | None = None,
    ) -> gs.Variable:
        """Add a node of one output.

        Args:
            op: Operator of the default domain.
            inputs: Its inputs.
            suffix: Names the node and its output.
            attrs: Its attributes.
            size: Bytes of the output; 0 for shape arithmetic.
            output: Name of the output where it is a tensor of the surrounding graph.
        """
        result = gs.Variable(output or self._name(suffix))
        self.sizes[result.name] = size
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
        carrier: int,
        x: gs.Variable,
        suffix: str,
        *,
        replaced: Mapping[str, Any],
        size: int | None,
    ) -> gs.Variable:
        """Add a copy of a node, attributes as they are, reading ``x`` in place of one input.

        Args:
            original: The node.
            carrier: Index of the input to replace.
            x: What the copy reads there.
            suffix: Names the node and its output.
            replaced: Attributes to change; None drops one.
            size: Bytes of the output.
        """
        inputs: list[gs.Tensor] = [self.outer(name) for name in original.input]
        inputs[carrier] = x
        result = self.add(original.op_type, inputs, suffix, size=size)
        self._originals[len(self._nodes) - 1] = (original, replaced)
        return result

    def slice(
        self,
        x: gs.Variable,
        axes: Sequence[int],
        begin: Sequence[int] | gs.Variable,
        end: Sequence[int] | gs.Variable,
        suffix: str,
        *,
        size: int | None = 0,
    ) -> gs.Variable:
        """Add a Slice; attributes up to opset 9, inputs from opset 10."""
        if self.opset < 10:
            attrs = {"axes": list(axes), "starts": begin, "ends": end}
            return self.add("Slice", [x], suffix, attrs=attrs, size=size)
        begin = begin if isinstance(begin, gs.Variable) else self.ints(begin)
        end = end if isinstance(end, gs.Variable) else self.ints(end)
        return self.add("Slice", [x, begin, end, self.ints(axes)], suffix, size=size)

    def concat(
        self,
        parts: Sequence[gs.Tensor],
        axis: int,
        suffix: str,
        *,
        size: int | None = 0,
        output: str | None = None,
    ) -> gs.Variable:
        """Add a Concat."""
        return self.add("Concat", parts, suffix, attrs={"axis": axis}, size=size, output=output)

    def reshape(
        self, x: gs.Variable, shape: gs.Tensor, suffix: str, *, size: int | None = 0
    ) -> gs.Variable:
        """Add a Reshape."""
        return self.add("Reshape", [x, shape], suffix, size=size)

    def squeeze(
        self, x: gs.Variable, axis: int, suffix: str, *, output: str | None = None
    ) -> gs.Variable:
        """Add a Squeeze of one axis; attribute up to opset 12, input from opset 13."""
        size = self.sizes[x.name]
        if self.opset < 13:
            return self.add(
                "Squeeze", [x], suffix, attrs={"axes": [axis]}, size=size, output=output
            )
        return self.add("Squeeze", [x, self.ints([axis])], suffix, size=size, output=output)

    def split(self, x: gs.Variable, count: int, suffix: str) -> list[gs.Variable]:
        """Add a Split of a vector of ``count`` integers into vectors of one."""
        results = [gs.Variable(self._name(f"{suffix}_{k}")) for k in range(count)]
        self.sizes.update((result.name, 0) for result in results)
        attrs: dict[str, Any] = {"axis": 0}
        if self.opset >= 18:
            attrs["num_outputs"] = count
        self._nodes.append(
            gs.Node("Split", name=self._name(suffix), attrs=attrs, inputs=[x], outputs=results)
        )
        return results

    def steps(self) -> list[Step]:
        """Return the nodes as steps of an execution order."""
        return [
            Step(
                node.name,
                node.op,
                tuple(tensor.name for tensor in node.inputs),
                tuple(tensor.name for tensor in node.outputs),
            )
            for node in self._nodes
        ]

    def export(self) -> tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto]]:
        """Return the nodes in order, and the constants they read by name."""
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
        return nodes, {tensor.name: tensor for tensor in model.graph.initializer}


def splice(
    model: onnx.ModelProto,
    fragments: Mapping[int, Fragment],
    removed: Collection[int],
) -> None:
    """Put fragments in place of nodes, in place; all other nodes stay as they are.

    Integer constants become initializers; Constant nodes before IR version 4, which lists every
    initializer among the model's inputs.

    Args:
        model: The model.
        fragments: Per node position the fragment that takes its place.
        removed: Positions of nodes to drop, those of ``fragments`` included.
    """
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    for position, node in enumerate(model.graph.node):
        if position in fragments:
            new, used = fragments[position].export()
            nodes.extend(new)
            for name, tensor in used.items():
                constants.setdefault(name, tensor)
        elif position not in removed:
            nodes.append(node)
    if model.ir_version >= 4:
        model.graph.initializer.extend(constants.values())
    else:
        nodes[:0] = [
            onnx.helper.make_node("Constant", [], [name], name=name, value=tensor)
            for name, tensor in constants.items()
        ]
    # Messages keep their content when the list they came from is emptied.
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def from_graphsurgeon(graph: gs.Graph) -> onnx.ModelProto:
    """Export a graphsurgeon graph."""
    exported: onnx.ModelProto = gs.export_onnx(graph.copy().toposort())
    return exported


def to_graphsurgeon(model: onnx.ModelProto) -> gs.Graph:
    """Import a model into graphsurgeon."""
    return gs.import_onnx(model)


def is_graphsurgeon(model: object) -> bool:
    """Tell whether an object is a graphsurgeon graph."""
    return isinstance(model, gs.Graph)


def drop_unused_value_info(graph: onnx.GraphProto, gone: Iterable[str]) -> None:
    """Drop the shapes of tensors that no longer exist, in place."""
    names = set(gone)
    if not any(value.name in names for value in graph.value_info):
        return
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)
