"""The graph that is read where nodes are written in other words, and a builder of the new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as count_from
from typing import Any

import onnx
from onnx import TensorProto, helper

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.nodes import attributes, node_label
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.graph.use_def import Index

__all__ = ["NewNodes", "ReadGraph"]


# Their axes are an input from opset 13 on, those of other reductions from 18.
_EARLY = frozenset({"ReduceSum", "Squeeze", "Unsqueeze"})


@dataclass
class NewNodes:
    """New nodes, whose names begin with those of the node they stand for.

    Attributes:
        base: What their names begin with.
        opset: Version of the default domain.
        image: The tensor that is looked at as a whole.
        kind: What people call what looks at it.
        nodes: The nodes, in order.
    """

    base: str
    opset: int
    image: str
    kind: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(
        self, op: str, inputs: Sequence[str], suffix: str, output: str = "", **given: Any
    ) -> str:
        """Add a node; return its output, called after the suffix where no name is given."""
        made = output or f"{self.base}/{suffix}"
        name = f"{self.base}/{suffix}"
        self.nodes.append(helper.make_node(op, list(inputs), [made], name=name, **given))
        return made

    def ints(self, values: Sequence[int], suffix: str) -> str:
        """Add a constant of whole numbers."""
        tensor = helper.make_tensor("value", TensorProto.INT64, [len(values)], list(values))
        return self.add("Constant", [], suffix, value=tensor)

    def floats(self, values: Sequence[float], suffix: str) -> str:
        """Add a constant vector of single precision."""
        tensor = helper.make_tensor("value", TensorProto.FLOAT, [len(values)], list(values))
        return self.add("Constant", [], suffix, value=tensor)

    def number(self, value: float, kind: int, suffix: str) -> str:
        """Add a constant of one number without dimensions, of an element type."""
        tensor = helper.make_tensor("value", kind, [], [value])
        return self.add("Constant", [], suffix, value=tensor)

    def over(
        self, op: str, x: str, axes: Sequence[int], suffix: str, output: str = "", **given: Any
    ) -> str:
        """Add a reduction, a Squeeze or an Unsqueeze, with its axes where the opset has them."""
        if self.opset >= (13 if op in _EARLY else 18):
            return self.add(op, [x, self.ints(axes, f"{suffix}/axes")], suffix, output, **given)
        return self.add(op, [x], suffix, output, axes=list(axes), **given)

    def reduce(self, op: str, x: str, axes: Sequence[int], suffix: str, *, output: str = "") -> str:
        """Add a reduction that keeps its dimensions."""
        return self.over(op, x, axes, suffix, output, keepdims=1)

    def reshape(self, x: str, dims: Sequence[int], suffix: str) -> str:
        """Add a Reshape to given dimensions."""
        return self.add("Reshape", [x, self.ints(dims, f"{suffix}/shape")], suffix)

    def squeeze(self, x: str, axes: Sequence[int], suffix: str, output: str) -> str:
        """Add a Squeeze."""
        return self.over("Squeeze", x, axes, suffix, output)

    def halves(
        self, x: str, size: int, suffix: str, what: tuple[str, str], axis: int = 1
    ) -> tuple[str, str]:
        """Split a dimension, of twice ``size``, in two."""
        names = [f"{self.base}/{suffix}_{which}" for which in what]
        name = f"{self.base}/{suffix}"
        inputs = [x, self.ints([size, size], f"{suffix}/sizes")] if self.opset >= 13 else [x]
        node = helper.make_node("Split", inputs, names, name=name, axis=axis)
        if self.opset < 13:
            node.attribute.append(helper.make_attribute("split", [size, size]))
        self.nodes.append(node)
        return names[0], names[1]


@dataclass(frozen=True)
class ReadGraph:
    """What is known of the graph that is read.

    Attributes:
        facts: What is certain of it.
        axes: Which dimension of a tensor is the tiled axis, where that is known.
        word: What new names have between slashes, and no other has.
        taken: What new names begin with so far.
    """

    facts: CertainFacts
    axes: Mapping[str, int]
    word: str
    taken: set[str] = field(default_factory=set)

    @property
    def index(self) -> Index:
        """Who makes and reads what."""
        return self.facts.index

    @property
    def shapes(self) -> Shapes:
        """Shapes that are certain."""
        return self.facts.shapes

    def node(self, position: int) -> onnx.NodeProto:
        """Return a node of the graph."""
        return self.index.graph.node[position]

    def only_user(self, name: str) -> int | None:
        """Return the position of the only node that reads a tensor, None if there are others."""
        users = self.index.users.get(name, ())
        return users[0] if len(users) == 1 and name not in self.index.outputs else None

    def is_read(self, name: str) -> bool:
        """Tell whether anybody reads a tensor."""
        return name in self.index.users or name in self.index.outputs

    def new(self, position: int, image: str, kind: str) -> NewNodes:
        """Return a place for the new nodes that stand for a node.

        Args:
            position: The node's.
            image: The tensor that it looks at as a whole.
            kind: What people call it.
        """
        label = node_label(self.node(position))
        # Two nodes may have one name, or one the name that another's output has.
        free = (label if number == 1 else f"{label}_{number}" for number in count_from(1))
        base = next(name for name in free if name not in self.taken)
        self.taken.add(base)
        return NewNodes(f"{base}/{self.word}", self.facts.opset, image, kind)

    def reduced_axes(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """Return the axes that a reduction is over, None if it is not known."""
        rank = len(self.shapes.dims.get(node.input[0], ()))
        given = attributes(node)
        axes: Any = given.get("axes")
        if len(node.input) > 1 and node.input[1]:
            axes = self.facts.constants.numbers(node.input[1])
            if axes is None:
                return None
        if not axes and given.get("noop_with_empty_axes", 0):
            return None
        return tuple(sorted({at % rank for at in axes} if axes else range(rank))) if rank else None
