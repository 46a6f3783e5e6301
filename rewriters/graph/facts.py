"""What is certain of a graph's nodes and tensors, for the table of operators and for proofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx

from patchconv_deploy.rewriters.graph.constant_folding import Constants, infer_by_value
from patchconv_deploy.rewriters.graph.free_sizes import NO_SIZES, FreeSizes, follow_sizes
from patchconv_deploy.rewriters.graph.model import opset_of
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.graph.use_def import Index, index
from patchconv_deploy.rewriters.operators.record import Record
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["CertainFacts", "facts_of", "record_of"]


@dataclass(frozen=True)
class CertainFacts:
    """What holds of a model at every size of its free dimensions, before it is changed.

    Attributes:
        index: Use-def index of its main graph.
        opset: Version of the default domain.
        shapes: Known shapes; assumed sizes are not in it.
        constants: Values of small constants.
        free: Sizes of tensors in terms of the model's free sizes.
    """

    index: Index
    opset: int
    shapes: Shapes
    constants: Constants
    free: FreeSizes = NO_SIZES

    @property
    def graph(self) -> onnx.GraphProto:
        """The main graph."""
        return self.index.graph

    def size(self, name: str, axis: int) -> Size | None:
        """Return a tensor's size along a dimension, as far as it is known."""
        dims = self.shapes.dims.get(name, ())
        number = dims[axis] if axis < len(dims) else None
        return self.free.size(name, axis) if number is None else Size.number(number)

    def followed(self) -> CertainFacts:
        """Return the same with what follows from the model's free sizes.

        Constants that are found on the way are learned by those of both.
        """
        free = follow_sizes(self.graph, self.shapes, self.constants, partial(record_of, self))
        return replace(self, shapes=free.certain(self.shapes), free=free)


def facts_of(slim: onnx.ModelProto) -> CertainFacts:
    """Return what is certain of a model without its weights, free sizes not followed.

    Raises:
        RewriterError: Nothing can be known of it.
    """
    found, shapes = index(slim), infer_by_value(slim)
    return CertainFacts(found, opset_of(slim), shapes, Constants(slim, found, shapes))


def record_of(facts: CertainFacts, position: int) -> Record:
    """Return what a table entry may know of a node."""
    node, shapes, index = facts.graph.node[position], facts.shapes, facts.index
    return Record(
        op_type=node.op_type,
        opset=facts.opset,
        attributes=attributes(node),
        shapes=tuple(shapes.dims.get(name) if name else None for name in node.input),
        outputs=tuple(shapes.dims.get(name) if name else None for name in node.output),
        values=_Values(facts.constants, node.input),
        used=tuple(name in index.users or name in index.outputs for name in node.output),
        absent=frozenset(i for i, name in enumerate(node.input) if not name),
        free=tuple(facts.free.dims.get(name, ()) for name in node.input),
        free_output=facts.free.dims.get(node.output[0], ()) if node.output else (),
        stated=tuple(facts.free.values.get(name) for name in node.input),
    )


class _Values(Sequence[tuple[Any, ...] | None]):
    """Values of a node's inputs, looked up when asked for: most entries never ask."""

    def __init__(self, constants: Constants, names: Sequence[str]) -> None:
        self._constants, self._names = constants, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._constants.numbers(self._names[index]) if self._names[index] else None
