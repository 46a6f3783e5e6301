"""Analysis of a model before it is changed: facts, sizes, and predicted memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import onnx

from rewriters.emission.bodies import Movable, own_constants
from rewriters.emission.fragment import Fragment
from rewriters.emission.splice import sorted_by
from rewriters.graph.check import check
from rewriters.graph.constant_folding import Constants, infer_by_value
from rewriters.graph.external_data import BITS, is_external
from rewriters.graph.facts import Facts
from rewriters.graph.fixed_shapes import fix_shapes, nominal_shapes
from rewriters.graph.model import opset_of
from rewriters.graph.nodes import captured, node_label
from rewriters.graph.shapes import Shapes
from rewriters.graph.use_def import Index, index
from rewriters.memory.executed import ExecutedNode
from rewriters.memory.lowering.node import Tensors, copied
from rewriters.memory.peak import Peak, peak
from rewriters.memory.reader import (
    Model,
    Reading,
    assemble,
    bits_of,
    read_node,
    sized_by_data,
    small_tensors,
    small_values,
    uncollected,
    weight_names,
)
from rewriters.memory.targets import ENGINES, sharing
from rewriters.operators.record import Shape
from rewriters.planning.work import node_work
from rewriters.regions.selection import candidates

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True, slots=True)
class _Part:
    """A fragment as it is read: its nodes, its tensors, its constants and their values."""

    readings: Sequence[Reading]
    dims: Mapping[str, Shape]
    bits: Mapping[str, int | None]
    constants: AbstractSet[str]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Analysis:
    """Everything known of a model before it is changed.

    Attributes:
        facts: What is certain.
        sizing: Shapes with free dimensions as assumed.
        assumed: The sizes that were assumed.
        executed: The nodes in file order, as the memory model reads them.
        inputs: Inputs of the graph that are no weights.
        bytes: Bytes of every activation, None where unknown.
        slim: The model without its weights.
        folds: What is cut is folded once beforehand (`emission.conv_folding`).
    """

    facts: Facts
    sizing: Shapes
    assumed: Mapping[str, tuple[int, ...]]
    executed: tuple[ExecutedNode, ...]
    inputs: tuple[str, ...]
    bytes: Mapping[str, int | None]
    slim: onnx.ModelProto
    folds: bool = True

    @property
    def index(self) -> Index:
        """Use-def index of the main graph."""
        return self.facts.index

    @cached_property
    def assumes(self) -> bool:
        """Whether sizes had to be assumed."""
        return self.sizing is not self.facts.shapes

    @cached_property
    def work(self) -> list[float]:
        """Multiply-accumulates of each node, by position (`planning.work`)."""
        return [node_work(node, self.sizing) for node in self.facts.graph.node]

    @cached_property
    def ideal_peak(self) -> Peak:
        """The most bytes alive over the file's order, inputs and outputs included."""
        return peak(self.executed, self.bytes, inputs=self.inputs, outputs=self.index.outputs)

    @cached_property
    def _tensors(self) -> Tensors:
        """The tensors, of constants the weights."""
        graph = self.slim.graph
        values = small_values(graph.initializer)
        dims, sure = self.sizing.dims, self.facts.shapes.dims
        assumed = (name for name in dims if None in (sure.get(name) or (None,)))
        unknown = frozenset(assumed if self.assumes else ())
        external = any(is_external(tensor) for tensor in self.index.graph.initializer)
        return Tensors(dims, bits_of(self.sizing), weight_names(graph), values, unknown, external)

    @cached_property
    def data_sized(self) -> tuple[str, ...]:
        """Activations whose sizes depend on the data, as those of NonZero: counted as nothing."""
        makers = {at for at, node in enumerate(self.slim.graph.node) if sized_by_data(node)}
        made: set[str] = set()
        for at, node in enumerate(self.executed) if makers else ():
            if at in makers or not made.isdisjoint(node.reads):
                made.update(node.makes)
        return tuple(name for name in self.bytes if name in made and self.bytes[name] is None)

    @cached_property
    def unsized(self) -> tuple[str, ...]:
        """Other activations of unknown size: while there are any, no peak is known."""
        known = {*self.data_sized}
        return tuple(n for n, size in self.bytes.items() if size is None and n not in known)

    @cached_property
    def _readings(self) -> list[Reading]:
        return [read_node(node, self.sizing, self._known) for node in self.slim.graph.node]

    @cached_property
    def _known(self) -> Mapping[str, onnx.TensorProto]:
        return small_tensors(self.slim.graph)

    @cached_property
    def _movable(self) -> Movable:
        return Movable(self.index, self.slim.ir_version)

    @cached_property
    def _parts(self) -> WeakKeyDictionary[Fragment, dict[frozenset[str], _Part]]:
        return WeakKeyDictionary()

    def _part(self, fragment: Fragment, own: frozenset[str] = frozenset()) -> _Part:
        """Return a fragment as it is read, whatever else is in the graph.

        Args:
            fragment: The fragment.
            own: The graph's constants that its bodies will have of their own.
        """
        parts = self._parts.setdefault(fragment, {})
        if own not in parts:
            nodes, constants = fragment.export()
            dims = {name: shape for name, (shape, _) in fragment.shapes.items()}
            elements = {name: kind for name, (_, kind) in fragment.shapes.items()}
            bits = {name: BITS.get(kind) for name, kind in elements.items()}
            outer = [name for name in fragment.reads if name in self.sizing.dims]
            around = Shapes(
                {**{name: self.sizing.dims[name] for name in outer}, **dims},
                {**{name: self.sizing.elements.get(name, 0) for name in outer}, **elements},
            )
            known = {**self._known, **constants}
            parts[own] = _Part(
                [read_node(node, around, known, own=own) for node in nodes],
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
        outputs = tuple(value.name for value in self.slim.graph.output)
        inputs = (value.name for value in self.slim.graph.input)
        return assemble(
            readings,
            replace(known, dims=dims, bits=bits, constants=constants, values=values),
            tuple(name for name in inputs if name not in constants),
            outputs,
            self.data_sized,
        )

    def run(self, engine: str) -> tuple[list[int], dict[int, int]]:
        """Return the order in which an engine runs the nodes, and what is alive meanwhile.

        Args:
            engine: A key of `memory.targets.ENGINES`.

        Returns:
            Positions of all nodes in an order they can run in, as the engine's as can be; and by
            position the bytes alive, for nodes that are not fused into others.
        """
        nodes = self.slim.graph.node
        labels = {node_label(node): at for at, node in enumerate(nodes)}
        alive: dict[int, int] = {}
        run_rank: dict[int, int] = {}
        with uncollected():
            steps = self.model(range(len(nodes))).profile(ENGINES[engine])
        for number, (label, size) in enumerate(steps):
            at = labels.get(label)
            if at is None:
                at = self.index.producer.get(copied(label))
            if at is not None:
                alive[at] = max(alive.get(at, 0), size)
                run_rank.setdefault(at, number)
        makers = self.index.producer
        before = [
            {makers[name] for name in node.reads if name in makers} - {at}
            for at, node in enumerate(self.executed)
        ]
        for at in range(len(nodes)):
            # What is fused runs with the last of what it reads.
            run_rank.setdefault(at, max((run_rank[other] for other in before[at]), default=0))
        return sorted_by(before, lambda at: (run_rank[at], at)), alive

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
            model = self.model(range(len(self.slim.graph.node)) if order is None else order)
            found = [ENGINES[engine] for engine in engines]
            return model.peaks([sharing(engine) for engine in found] if self.folds else found)

    def labels(self, fragment: Fragment) -> Iterator[str]:
        """Yield the names that a fragment's nodes, and copies of what they make, go by in a run."""
        for reading in self._part(fragment).readings:
            yield reading.node.label
            yield from reading.node.makes


def analyse(
    model: onnx.ModelProto,
    slim: onnx.ModelProto,
    *,
    allow_custom_ops: bool = False,
    largest: Mapping[str, Sequence[int]] | None = None,
) -> Analysis:
    """Analyse a model, given with its skeleton, which is changed in place."""
    checked = onnx.ModelProto()
    checked.CopyFrom(slim)
    check(checked, allow_custom_ops=allow_custom_ops)
    found = index(model)
    needed = [model.graph.node[position].input[0] for position in candidates(model.graph)]
    assumed = nominal_shapes(model, given=largest)
    sizing_slim = onnx.ModelProto()
    sizing_slim.CopyFrom(slim)
    facts = infer_by_value(slim, needed=needed)
    sizing = facts
    if assumed or any(None in facts.dims.get(name, (None,)) for name in needed):
        fix_shapes(sizing_slim, assumed)
        sizing = infer_by_value(sizing_slim, needed=needed, estimate=True)
    executed = []
    for node in model.graph.node:
        reads = (*(name for name in node.input if name), *captured(node))
        executed.append(
            ExecutedNode(node_label(node), node.op_type, reads, tuple(n for n in node.output if n))
        )
    inputs = tuple(v.name for v in model.graph.input if v.name not in found.constants)
    activations = [*inputs, *(name for node in executed for name in node.makes)]
    sizes = {name: sizing.bytes(name) for name in activations if name not in found.constants}
    certain = Facts(found, opset_of(model), facts, Constants(slim, found, facts))
    return Analysis(certain, sizing, assumed, tuple(executed), inputs, sizes, slim)
