"""Predicted activation memory of an ONNX graph on an engine.

    predict(graph, shapes, "onnxruntime")  -> Peak
    profile(graph, shapes, "onnxruntime")  -> [(node, live bytes), ...] in execution order

This is where the graph of a file meets the arithmetic: `rewriters.lowering` (what the engine makes
of the nodes) and `rewriters.memory` (order, buffers, allocator). An engine is a pair of the two
tables, in `ENGINES`:

    onnxruntime        ONNX Runtime's CPU provider, default session options: the most its arena has
                       in use (``mem_in_use_peak``), over two runs and more; outputs are in it
    onnxruntime-tuned  the same with ``enable_mem_reuse`` and ``enable_mem_pattern`` off
    tensorrt           activation memory as TensorRT for RTX plans it; inputs and outputs are not
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import onnx
import onnx.helper
import onnx.numpy_helper

from rewriters.external_data import is_external
from rewriters.graph import attributes, bodies, captured, node_label
from rewriters.lowering import POINTWISE, Lowered, Lowering, Node, Tensors, lower
from rewriters.memory import VIEWS, Allocator, Body, Peak, Target, peak, timeline
from rewriters.operators import Shape
from rewriters.shapes import Shapes, infer

__all__ = ["ENGINES", "Engine", "Model", "predict", "profile", "read"]

# Constants of up to as many elements are read: scales, pads, scalars.
_SMALL = 16


@dataclass(frozen=True)
class Engine:
    """What an engine makes of a graph, and how it holds the tensors."""

    target: Target
    lowering: Lowering

    @property
    def in_place(self) -> frozenset[str]:
        """Operators whose result, as a rule, needs no bytes beside those of their first input."""
        return self.target.views | self.target.overwrites.keys() | self.lowering.activations


# Kernels that may write over their first input (ONNX Runtime's MayInplace), and the Convs that add
# their fourth input to the result in place. Add, Mul and most others are not among them.
_OVERWRITES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu"), (0,)),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Clip"), (0,)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Cast"), (0,)),
    **dict.fromkeys(("nchwc:Conv", "FusedConv"), (3,)),
}
_ORT = Lowering(
    activations=frozenset(
        {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Clip"}
    ),
    block=16,
    packed={"MatMul": 1, "Gemm": 1, "ConvTranspose": 1},
    widened={16: 32},
)


def _onnxruntime(name: str, *, tuned: bool) -> Engine:
    target = Target(
        name,
        depth_first=True,
        overwrites=_OVERWRITES,
        reuse=not tuned,
        pattern=not tuned,
        allocator=Allocator.ARENA,
        granule=256,
        counts_inputs=False,
    )
    return Engine(target, _ORT)


ENGINES: Mapping[str, Engine] = {
    "onnxruntime": _onnxruntime("onnxruntime", tuned=False),
    "onnxruntime-tuned": _onnxruntime("onnxruntime-tuned", tuned=True),
    "tensorrt": Engine(
        Target(
            "tensorrt",
            granule=512,
            views=VIEWS | {"Split"},
            overwrites=dict.fromkeys(POINTWISE, tuple(range(8))),
            counts_inputs=False,
            counts_outputs=False,
        ),
        Lowering(compiler=True, workspaces=dict.fromkeys(("Conv", "ConvTranspose"), 8192000)),
    ),
}


@dataclass(frozen=True)
class Model:
    """A graph as the arithmetic wants it; read once, asked for any engine.

    Attributes:
        nodes: Its nodes.
        tensors: Its tensors.
        inputs: Graph inputs.
        outputs: Graph outputs.
        bodies: The bodies of a node, by its position.
    """

    nodes: tuple[Node, ...]
    tensors: Tensors
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: Mapping[int, tuple[Model, ...]] = field(default_factory=dict)

    def lowered(self, engine: Engine) -> Lowered:
        """Return what the engine runs.

        A node with bodies needs the live bytes of the largest while it runs. ONNX Runtime holds
        what a Loop scans twice, in pieces and put together; and its blocked layout is not there in
        a body, whose weights belong to the graph around it.
        """
        if not self.bodies:
            return lower(self.nodes, self.tensors, self.outputs, engine.lowering)
        inner = Engine(
            replace(engine.target, allocator=Allocator.SUM, counts_outputs=True),
            replace(engine.lowering, block=0, packed={}),
        )
        nodes = list(self.nodes)
        for position, found in self.bodies.items():
            node = nodes[position]
            held = max(body.peak(inner).bytes for body in found)
            body = None
            if node.op_type in ("Loop", "Scan"):
                if not engine.lowering.compiler:
                    held += sum(self.tensors.bytes(name) or 0 for name in node.makes if name)
                run = found[0].lowered(inner)
                made = self.tensors.dims.get(node.makes[-1]) or (1,)
                body = Body(run.steps, run.sizes, run.shapes, found[0].outputs, made[0] or 1)
            nodes[position] = replace(node, workspace=held, body=body)
        return lower(nodes, self.tensors, self.outputs, engine.lowering)

    def peak(self, engine: Engine) -> Peak:
        """Return the predicted peak."""
        run = self.lowered(engine)
        return peak(
            run.steps,
            run.sizes,
            inputs=self.inputs,
            outputs=self.outputs,
            target=engine.target,
            shapes=run.shapes,
            resident=run.resident,
        )

    def profile(self, engine: Engine) -> list[tuple[str, int]]:
        """Return (node, live bytes) in execution order."""
        run = self.lowered(engine)
        return timeline(
            run.steps,
            run.sizes,
            inputs=self.inputs,
            outputs=self.outputs,
            target=engine.target,
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
    return read(graph, shapes).peak(ENGINES[engine])


def profile(graph: onnx.GraphProto, shapes: Shapes, engine: str) -> list[tuple[str, int]]:
    """Return (node, live bytes while it runs) in the engine's order. As `predict`."""
    return read(graph, shapes).profile(ENGINES[engine])


def read(graph: onnx.GraphProto, shapes: Shapes, *, opset: int = 17) -> Model:
    """Read a graph for any number of predictions; linear in its nodes.

    Args:
        graph: The main graph; not changed.
        shapes: Its tensors, inferred at the sizes in question.
        opset: Version of the default domain, for the shapes in bodies.
    """
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {sparse.values.name for sparse in graph.sparse_initializer}
    constants = set(weights)
    values = dict(_values(graph.initializer))
    known = {tensor.name: tensor for tensor in graph.initializer if tensor.name in values}
    nodes: list[Node] = []
    inner: dict[int, tuple[Model, ...]] = {}
    dims = dict(shapes.dims)
    for node in graph.node:
        if graphs := tuple(bodies(node)):
            inner[len(nodes)] = tuple(
                _read_body(body, node, shapes, known, opset) for body in graphs
            )
            dims.update(_scanned(node, values, dims))
        reads = (*node.input, *captured(node))
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}:"
        if all(name in constants for name in reads if name):
            constants.update(node.output)
        if node.op_type == "Constant":
            for each in [a.t for a in node.attribute if a.HasField("t")]:
                values.update(_values([each], node.output[0]))
                if node.output[0] in values:
                    known[node.output[0]] = each
        nodes.append(
            Node(
                node_label(node),
                domain + node.op_type,
                reads,
                tuple(node.output),
                attributes(node),
            )
        )
    bits = {name: found for name in shapes.elements if (found := shapes.bits(name)) is not None}
    return Model(
        tuple(nodes),
        Tensors(dims, bits, constants, values),
        tuple(value.name for value in graph.input if value.name not in weights),
        tuple(value.name for value in graph.output),
        inner,
    )


def _read_body(
    body: onnx.GraphProto,
    node: onnx.NodeProto,
    outer: Shapes,
    known: Mapping[str, onnx.TensorProto],
    opset: int,
) -> Model:
    """Read a body, with the tensors it reads of the graph around it as inputs.

    Those of known value are its constants: sizes may be made of them, such as a Resize's scales.
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
    return read(model.graph, infer(model, estimate=True), opset=opset)


def _scanned(
    node: onnx.NodeProto, values: Mapping[str, tuple[float, ...]], dims: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return the shapes of what a Loop scans, which inference leaves open along the iterations."""
    trips = values.get(node.input[0], ()) if node.op_type == "Loop" else ()
    scanned = node.output[len(node.input) - 2 :] if trips else ()
    return {name: (int(trips[0]), *dims[name][1:]) for name in scanned if dims.get(name)}


def _values(
    tensors: Iterable[onnx.TensorProto], name: str = ""
) -> Iterable[tuple[str, tuple[float, ...]]]:
    """Yield the values of small numeric tensors."""
    for tensor in tensors:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if (
            size <= _SMALL
            and not is_external(tensor)
            and tensor.data_type != onnx.TensorProto.STRING
        ):
            array = onnx.numpy_helper.to_array(tensor).reshape(-1)
            yield name or tensor.name, tuple(float(value) for value in array)
