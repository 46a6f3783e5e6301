"""Predicted activation memory of an ONNX graph on an engine.

    predict(graph, shapes, "onnxruntime")  -> Peak
    profile(graph, shapes, "onnxruntime")  -> [(node, live bytes), ...] in execution order

This is where the graph of a file meets the arithmetic: `memory.lowering.lower` (what the engine
makes of the nodes) and `rewriters.memory` (order, buffers, allocator). An engine is a pair of the
two tables, in `ENGINES`:

    onnxruntime        ONNX Runtime's CPU provider, default session options: the most its arena has
                       in use (``mem_in_use_peak``), over two runs and more; outputs are in it
    onnxruntime-tuned  the same with ``enable_mem_reuse`` and ``enable_mem_pattern`` off
    onnxruntime-server the same with ``enable_mem_pattern`` off, reuse on: Triton's config.pbtxt can
                       turn off the one and not the other
    tensorrt           activation memory as TensorRT for RTX plans it; inputs and outputs are not
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod

import onnx
import onnx.helper
import onnx.numpy_helper

from patchconv_deploy.rewriters.graph.check import has_data
from patchconv_deploy.rewriters.graph.external_data import is_external
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.nodes import attributes, bodies, captured, node_label
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.memory.executed import Body
from patchconv_deploy.rewriters.memory.lowering.lower import lower
from patchconv_deploy.rewriters.memory.lowering.node import Lowered, Node, Tensors
from patchconv_deploy.rewriters.memory.peak import Peak, Weights, peak, timeline
from patchconv_deploy.rewriters.memory.targets import ENGINES, Engine
from patchconv_deploy.rewriters.operators.record import Shape

__all__ = [
    "Model",
    "Reading",
    "assemble",
    "bits_of",
    "predict",
    "profile",
    "read",
    "read_node",
    "sized_by_data",
    "small_tensors",
    "small_values",
    "uncollected",
    "weight_names",
]


# Constants of up to as many elements are read: scales, pads, scalars.
_SMALL = 16

# What a session of ONNX Runtime keeps beside weights, once and for each node of the file: measured
# with version 1.32 on chains of 4 to 16,000 nodes and on plans of networks, 2 to 8 KiB a node.
_SESSION = 6 << 20
_NODE = 4 << 10

# Operators whose results are as large as the data will have it: nobody can tell before.
_DATA_SIZED = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "StringSplit"})


@dataclass(frozen=True)
class Model:
    """A graph as the arithmetic wants it; read once, asked for any engine.

    Attributes:
        nodes: Its nodes.
        tensors: Its tensors.
        inputs: Graph inputs.
        outputs: Graph outputs.
        bodies: The bodies of a node, by its position.
        by_data: Tensors whose sizes depend on the data: those that are unknown count as nothing.
        inside: What the model is as a body, per engine, so that it is worked out once.
    """

    nodes: tuple[Node, ...]
    tensors: Tensors
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: Mapping[int, tuple[Model, ...]] = field(default_factory=dict)
    by_data: Collection[str] = ()
    inside: dict[Engine, tuple[Lowered, Peak]] = field(default_factory=dict, repr=False)

    def lowered(self, engine: Engine) -> Lowered:
        """Return what the engine runs.

        A node with bodies needs the live bytes of the largest while it runs. ONNX Runtime holds
        what a Loop scans twice, in pieces and put together.
        """
        if not self.bodies:
            return lower(self.nodes, self.tensors, self.outputs, engine.lowering)
        nodes, inside = list(self.nodes), Weights()
        for position, found in self.bodies.items():
            node = nodes[position]
            peaks = [body.as_body(engine)[1] for body in found]
            held = max(peak.bytes - peak.weights.packed for peak in peaks)
            inside = sum((self._inside(each, engine) for each in found), inside)
            body = None
            if node.op_type in ("Loop", "Scan"):
                if not engine.lowering.compiler:
                    held += sum(self.tensors.bytes(name) or 0 for name in node.makes if name)
                run, _ = found[0].as_body(engine)
                made = self.tensors.dims.get(node.makes[-1]) or (1,)
                body = Body(run.nodes, run.sizes, run.shapes, found[0].outputs, made[0] or 1)
            nodes[position] = replace(node, workspace=held, body=body)
        run = lower(nodes, self.tensors, self.outputs, engine.lowering)
        return replace(run, weights=run.weights + inside)

    def _inside(self, body: Model, engine: Engine) -> Weights:
        """Return what a body's own weights cost.

        ONNX Runtime keeps the body as it was read, weights included unless they are external, and
        what it has packed beside what it was packed from.
        """
        found = body.as_body(engine)[0].weights
        if engine.lowering.compiler:
            return found
        stored = 0 if self.tensors.external or body.tensors.external else found.held
        session = found.session + _NODE * len(body.nodes)
        return replace(found, held=found.held + stored + found.packed, session=session)

    def as_body(self, engine: Engine) -> tuple[Lowered, Peak]:
        """Return what the engine runs where the model is a body, and the peak of that."""
        if engine not in self.inside:
            run = self.lowered(engine.inner)
            self.inside[engine] = run, self._peak(run, engine.inner)
        return self.inside[engine]

    def _unknown(self, engine: Engine) -> int:
        """Return how many activations of its bodies are of unknown size, not by the data alone."""
        return sum(
            body.as_body(engine)[1].unknown
            for found in self.bodies.values()
            for body in found
            if not any(_by_data(node.op_type) for node in body.nodes)
        )

    def peak(self, engine: Engine) -> Peak:
        """Return the predicted peak."""
        return self.peaks([engine])[0]

    def peaks(self, engines: Sequence[Engine]) -> list[Peak]:
        """Return the predicted peak on each engine."""
        found = []
        run, made = None, None
        for engine in engines:
            # Bodies are held as the engine's target says.
            if run is None or self.bodies or engine.lowering is not made:
                run, made = self.lowered(engine), engine.lowering
            found.append(self._peak(run, engine))
        return found

    def _peak(self, run: Lowered, engine: Engine) -> Peak:
        nothing = {name: 0 for name in self.by_data if run.sizes.get(name, 0) is None}
        found = peak(
            run.nodes,
            {**run.sizes, **nothing} if nothing else run.sizes,
            inputs=self.inputs,
            outputs=self.outputs,
            target=engine.holding,
            shapes=run.shapes,
            weights=self._weights(run, engine),
        )
        within = self._unknown(engine) if self.bodies else 0
        return replace(found, unknown=found.unknown + within) if within else found

    def _weights(self, run: Lowered, engine: Engine) -> Weights:
        """Return what loading costs, by where the file has its weights."""
        found = run.weights
        if engine.lowering.compiler:
            return Weights(found.held)
        session = found.session + _SESSION + _NODE * len(self.nodes)
        originals = 0 if self.tensors.external else found.originals
        return replace(found, originals=originals, session=session)

    def profile(self, engine: Engine) -> list[tuple[str, int]]:
        """Return (node, live bytes) in execution order."""
        run = self.lowered(engine)
        return timeline(
            run.nodes,
            run.sizes,
            inputs=self.inputs,
            outputs=self.outputs,
            target=engine.holding,
            shapes=run.shapes,
        )


def predict(graph: onnx.GraphProto, shapes: Shapes, engine: str) -> Peak:
    """Return the predicted peak activation of a graph.

    Args:
        graph: The main graph; not changed.
        shapes: Its tensors, inferred at the sizes in question.
        engine: A key of `ENGINES`.

    Raises:
        KeyError: No such engine.
    """
    with uncollected():
        return read(graph, shapes).peak(ENGINES[engine])


def profile(graph: onnx.GraphProto, shapes: Shapes, engine: str) -> list[tuple[str, int]]:
    """Return (node, live bytes while it runs) in the engine's order. As `predict`."""
    with uncollected():
        return read(graph, shapes).profile(ENGINES[engine])


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's cyclic garbage collector from running.

    A prediction makes many objects, none of them in a circle, that are all gone at its end: walked
    time and again meanwhile, they would make it more than linear in the nodes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Reading:
    """A node as it is read, wherever it may stand.

    Attributes:
        node: The node.
        inputs: Its own inputs, without what bodies capture.
        bodies: Its bodies.
        values: What a small Constant holds.
    """

    node: Node
    inputs: int
    bodies: tuple[Model, ...]
    values: Mapping[str, tuple[float, ...]]


def read_node(
    node: onnx.NodeProto,
    shapes: Shapes,
    known: Mapping[str, onnx.TensorProto],
    *,
    opset: int,
    own: Collection[str] = (),
) -> Reading:
    """Read a node.

    Args:
        node: The node.
        shapes: Tensors around it.
        known: Small constants around it (`small_tensors`); bodies may make sizes of them.
        opset: Version of the default domain, for the shapes in bodies.
        own: Constants around it that its bodies will have of their own (`emission.bodies`).
    """
    graphs = tuple(bodies(node))
    reads = tuple(node.input)
    values: Mapping[str, tuple[float, ...]] = {}
    if node.op_type == "Constant":
        values = small_values([a.t for a in node.attribute if a.HasField("t")], node.output[0])
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}:"
    return Reading(
        Node(
            node_label(node),
            domain + node.op_type,
            (*reads, *(n for n in captured(node) if n not in own)) if graphs else reads,
            tuple(node.output),
            attributes(node),
        ),
        len(reads),
        tuple(_read_body(body, node, shapes, known, opset, own) for body in graphs),
        values,
    )


def assemble(
    readings: Iterable[Reading],
    tensors: Tensors,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    by_data: Collection[str] = (),
) -> Model:
    """Put nodes together; linear in them.

    Args:
        readings: The nodes, in order.
        tensors: Their tensors; of constants and their values those of the initializers.
        inputs: Graph inputs.
        outputs: Graph outputs.
        by_data: Tensors whose sizes depend on the data.
    """
    constants, values, dims = set(tensors.constants), dict(tensors.values), dict(tensors.dims)
    nodes: list[Node] = []
    inner: dict[int, tuple[Model, ...]] = {}
    for reading in readings:
        node = reading.node
        if reading.bodies:
            inner[len(nodes)] = reading.bodies
            dims.update(_scanned(node, reading.inputs, values, dims))
        for name in node.reads:
            if name and name not in constants:
                break
        else:
            constants.update(node.makes)
        values.update(reading.values)
        nodes.append(node)
    known = replace(tensors, dims=dims, constants=constants, values=values)
    return Model(tuple(nodes), known, inputs, outputs, inner, by_data)


def read(
    graph: onnx.GraphProto, shapes: Shapes, *, opset: int = 17, own: Collection[str] = ()
) -> Model:
    """Read a graph for any number of predictions; linear in its nodes.

    Args:
        graph: The main graph; not changed.
        shapes: Its tensors, inferred at the sizes in question.
        opset: Version of the default domain, for the shapes in bodies.
        own: Inputs that are weights, of value unknown.
    """
    weights, known = weight_names(graph).union(own), small_tensors(graph)
    return assemble(
        [read_node(node, shapes, known, opset=opset) for node in graph.node],
        Tensors(
            shapes.dims,
            bits_of(shapes),
            weights,
            small_values(graph.initializer),
            external=any(is_external(tensor) for tensor in graph.initializer),
        ),
        tuple(value.name for value in graph.input if value.name not in weights),
        tuple(value.name for value in graph.output),
    )


def _by_data(op_type: str) -> bool:
    # Plugins that suppress boxes go by many names: EfficientNMS_TRT, BatchedNMSDynamic_TRT.
    return op_type in _DATA_SIZED or "NMS" in op_type


def sized_by_data(node: onnx.NodeProto) -> bool:
    """Tell whether the sizes of a node's results depend on the values that it reads.

    So they do where that is true of a node in one of its bodies.
    """
    return _by_data(node.op_type) or any(
        sized_by_data(inner) for body in bodies(node) for inner in body.node
    )


def weight_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of a graph's initializers."""
    names = {tensor.name for tensor in graph.initializer}
    return names | {sparse.values.name for sparse in graph.sparse_initializer}


def bits_of(shapes: Shapes) -> dict[str, int]:
    """Return the bits of an element of every tensor, as far as they are known."""
    found = ((name, shapes.bits(name)) for name in shapes.elements)
    return {name: bits for name, bits in found if bits is not None}


def _read_body(
    body: onnx.GraphProto,
    node: onnx.NodeProto,
    outer: Shapes,
    known: Mapping[str, onnx.TensorProto],
    opset: int,
    own: Collection[str],
) -> Model:
    """Read a body, with the tensors it reads of the graph around it as inputs.

    Those of known value are its constants: sizes may be made of them, such as a Resize's scales.
    A weight of the graph around is none to an optimiser.
    """
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", opset)])
    for name in dict.fromkeys(captured(node)):
        if name in known:
            constant = model.graph.initializer.add()
            constant.CopyFrom(known[name])
            constant.name = name
        elif name in outer.dims:
            value = onnx.helper.make_tensor_value_info(
                name, outer.elements.get(name, 0), [size or "" for size in outer.dims[name]]
            )
            model.graph.input.append(value)
    _fold_differences(model.graph)
    return read(model.graph, infer(model, estimate=True), opset=opset, own=own)


def _fold_differences(graph: onnx.GraphProto) -> None:
    """Make constants of what a body subtracts of constants: ends of Slices, which inference needs.

    Args:
        graph: A copy of the body; changed in place.
    """
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Sub" and node.output[0] not in known and known.keys() >= {*node.input}:
            a, b = (onnx.numpy_helper.to_array(known[name]) for name in node.input)
            # The node stays: an initializer of its result's name is what inference looks at.
            known[node.output[0]] = onnx.numpy_helper.from_array(a - b, node.output[0])
            graph.initializer.add().CopyFrom(known[node.output[0]])


def _scanned(
    node: Node, inputs: int, values: Mapping[str, tuple[float, ...]], dims: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return the shapes of what a Loop scans, which inference leaves open along the iterations."""
    trips = values.get(node.reads[0], ()) if node.op_type == "Loop" else ()
    scanned = node.makes[inputs - 2 :] if trips else ()
    return {name: (int(trips[0]), *dims[name][1:]) for name in scanned if dims.get(name)}


def small_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return small constants of a graph, by name, Constant nodes included."""
    known = {tensor.name: tensor for tensor in graph.initializer if _is_small(tensor)}
    for node in graph.node:
        if node.op_type == "Constant":
            found = (a.t for a in node.attribute if a.HasField("t") and _is_small(a.t))
            known.update((node.output[0], tensor) for tensor in found)
    return known


def _is_small(tensor: onnx.TensorProto) -> bool:
    if is_external(tensor) or tensor.data_type == onnx.TensorProto.STRING:
        return False
    # A skeleton does not hold what lies out of reach.
    return prod(tensor.dims) <= _SMALL and (0 in tensor.dims or has_data(tensor))


def small_values(
    tensors: Iterable[onnx.TensorProto], name: str = ""
) -> dict[str, tuple[float, ...]]:
    """Return the values of small numeric tensors, by name or under one that is given."""
    values = {}
    for tensor in tensors:
        if _is_small(tensor):
            array = onnx.numpy_helper.to_array(tensor).reshape(-1)
            values[name or tensor.name] = tuple(float(value) for value in array)
    return values
