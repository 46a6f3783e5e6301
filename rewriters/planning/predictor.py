"""What an engine would hold while it runs a model, its nodes and fragments arranged in some way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.emission.bodies import Movable, own_constants
from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.splice import sorted_by
from patchconv_deploy.rewriters.graph.external_data import BITS, is_external
from patchconv_deploy.rewriters.graph.nodes import node_label
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.memory.lowering.node import Tensors, copied
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.memory.reader import (
    Model,
    Reading,
    assemble,
    bits_of,
    read_node,
    small_tensors,
    small_values,
    uncollected,
    weight_names,
)
from patchconv_deploy.rewriters.memory.targets import ENGINES, sharing
from patchconv_deploy.rewriters.operators.record import Shape
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts

__all__ = ["MemoryPredictor"]


@dataclass(frozen=True, slots=True)
class _Part:
    """A fragment as it is read: its nodes, its tensors, its constants and their values."""

    readings: Sequence[Reading]
    dims: Mapping[str, Shape]
    bits: Mapping[str, int | None]
    constants: AbstractSet[str]
    values: Mapping[str, tuple[float, ...]]


class MemoryPredictor:
    """Predicts what an engine holds; nodes and fragments are read once, whatever is asked.

    Args:
        facts: The model.
        folds: What is cut is folded once beforehand (`emission.conv_folding`).
    """

    def __init__(self, facts: ModelFacts, *, folds: bool = True) -> None:
        self.facts = facts
        self.folds = folds
        self._parts: WeakKeyDictionary[Fragment, dict[frozenset[str], _Part]] = WeakKeyDictionary()
        self._runs: dict[str, tuple[Sequence[int], Mapping[int, int]]] = {}

    @cached_property
    def _tensors(self) -> Tensors:
        """The tensors, of constants the weights."""
        facts, graph = self.facts, self.facts.slim.graph
        values = small_values(graph.initializer)
        dims, sure = facts.sizing.dims, facts.certain.shapes.dims
        assumed = (name for name in dims if None in (sure.get(name) or (None,)))
        unknown = frozenset(assumed if facts.assumes else ())
        external = any(is_external(tensor) for tensor in facts.index.graph.initializer)
        return Tensors(dims, bits_of(facts.sizing), weight_names(graph), values, unknown, external)

    @cached_property
    def _readings(self) -> list[Reading]:
        facts = self.facts
        opset = facts.certain.opset
        nodes = facts.slim.graph.node
        return [read_node(node, facts.sizing, self._known, opset=opset) for node in nodes]

    @cached_property
    def _known(self) -> Mapping[str, onnx.TensorProto]:
        return small_tensors(self.facts.slim.graph)

    @cached_property
    def _movable(self) -> Movable:
        return Movable(self.facts.index, self.facts.slim.ir_version)

    def _worked_out(self, names: Collection[str]) -> dict[str, onnx.TensorProto]:
        """Return what the graph works out of sizes, which shapes in bodies may be made of."""
        arrays = {name: self._at_assumed_sizes(name) for name in names}
        return {
            name: onnx.numpy_helper.from_array(array, name)
            for name, array in arrays.items()
            if array is not None
        }

    def _at_assumed_sizes(self, name: str) -> np.ndarray[Any, Any] | None:
        certain, dims = self.facts.certain, self.facts.sizing.dims
        free = certain.free
        array, sizes = certain.constants.array(name), free.values.get(name)
        if array is not None or sizes is None:
            return array
        found = []
        for size in sizes:
            read, axis = free.places[size.symbol] if size and size.symbol else ("", 0)
            assumed = dims[read][axis] if read in dims else 0
            if size is None or assumed is None:
                return None
            found.append(size.at(assumed))
        return np.array(found, np.int64).reshape(() if dims.get(name) == () else (-1,))

    def _part(self, fragment: Fragment, own: frozenset[str] = frozenset()) -> _Part:
        """Return a fragment as it is read, whatever else is in the graph.

        Args:
            fragment: The fragment.
            own: The graph's constants that its bodies will have of their own.
        """
        parts = self._parts.setdefault(fragment, {})
        if own not in parts:
            nodes, constants = fragment.export()
            sizing = self.facts.sizing
            dims = {name: shape for name, (shape, _) in fragment.shapes.items()}
            elements = {name: kind for name, (_, kind) in fragment.shapes.items()}
            bits = {name: BITS.get(kind) for name, kind in elements.items()}
            outer = [name for name in fragment.reads if name in sizing.dims]
            around = Shapes(
                {**{name: sizing.dims[name] for name in outer}, **dims},
                {**{name: sizing.elements.get(name, 0) for name in outer}, **elements},
            )
            known, opset = {**self._known, **constants}, self.facts.certain.opset
            if fragment.loops:
                known |= self._worked_out(fragment.reads - known.keys())
            parts[own] = _Part(
                [read_node(node, around, known, opset=opset, own=own) for node in nodes],
                dims,
                bits,
                constants.keys(),
                small_values(constants.values()),
            )
        return parts[own]

    def model(self, order: Sequence[int | Fragment]) -> Model:
        """Return an arrangement of the graph as predictions read it.

        Args:
            order: Nodes by position, and fragments.
        """
        known = self._tensors
        dims, bits, values = dict(known.dims), dict(known.bits), dict(known.values)
        constants = set(known.constants)
        readings: list[Reading] = []
        own = own_constants(self._movable, order)
        for item in order:
            if isinstance(item, Fragment):
                part = self._part(item, own.get(item, frozenset()))
                readings += part.readings
                dims.update(part.dims)
                for name, size in part.bits.items():
                    if size is not None:
                        bits[name] = size
                    else:
                        bits.pop(name, None)
                constants |= part.constants
                values.update(part.values)
            else:
                readings.append(self._readings[item])
        graph = self.facts.slim.graph
        outputs = tuple(value.name for value in graph.output)
        inputs = (value.name for value in graph.input)
        return assemble(
            readings,
            replace(known, dims=dims, bits=bits, constants=constants, values=values),
            tuple(name for name in inputs if name not in constants),
            outputs,
            self.facts.data_sized,
        )

    def run(self, engine: str) -> tuple[Sequence[int], Mapping[int, int]]:
        """Return the order in which an engine runs the nodes, and what is alive meanwhile.

        Args:
            engine: A key of `memory.targets.ENGINES`.

        Returns:
            Positions of all nodes in an order they can run in, as the engine's as can be; and by
            position the bytes alive, for nodes that are not fused into others.
        """
        if engine not in self._runs:
            self._runs[engine] = self._run(engine)
        return self._runs[engine]

    def _run(self, engine: str) -> tuple[list[int], dict[int, int]]:
        nodes, producer = self.facts.slim.graph.node, self.facts.index.producer
        labels = {node_label(node): at for at, node in enumerate(nodes)}
        alive: dict[int, int] = {}
        rank: dict[int, int] = {}
        with uncollected():
            steps = self.model(range(len(nodes))).profile(ENGINES[engine])
        for number, (label, size) in enumerate(steps):
            at = labels.get(label)
            if at is None:
                at = producer.get(copied(label))
            if at is not None:
                alive[at] = max(alive.get(at, 0), size)
                rank.setdefault(at, number)
        before = [
            {producer[name] for name in node.reads if name in producer} - {at}
            for at, node in enumerate(self.facts.executed)
        ]
        for at in range(len(nodes)):
            # What is fused runs with the last of what it reads.
            rank.setdefault(at, max((rank[other] for other in before[at]), default=0))
        return sorted_by(before, lambda at: (rank[at], at)), alive

    def predict(self, order: Sequence[int | Fragment] | None, engine: str) -> Peak:
        """Return the predicted peak on an engine (`memory.reader`).

        Args:
            order: An arrangement of the graph, None for the graph as it is.
            engine: A key of `memory.targets.ENGINES`.
        """
        return self.predict_all(order, [engine])[0]

    def predict_all(
        self, order: Sequence[int | Fragment] | None, engines: Sequence[str]
    ) -> list[Peak]:
        """Return the predicted peak on each engine, as `predict`."""
        with uncollected():
            model = self.model(self.facts.uncut if order is None else order)
            found = [ENGINES[engine] for engine in engines]
            return model.peaks([sharing(engine) for engine in found] if self.folds else found)

    def labels(self, fragment: Fragment) -> Iterator[str]:
        """Yield the names that a fragment's nodes, and copies of what they make, go by in a run."""
        for reading in self._part(fragment).readings:
            yield reading.node.label
            yield from reading.node.makes
