"""Analysis of a model before it is changed: facts, sizes, and predicted memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
import onnx.version_converter

from rewriters.constants import Constants
from rewriters.errors import OptionError
from rewriters.graph import Index, captured, check, index, node_label, opset_of
from rewriters.locality import Facts
from rewriters.memory import Peak, Step, peak
from rewriters.regions import candidates
from rewriters.shapes import Shapes, fix_shapes, infer, nominal_shapes

__all__ = ["Analysis", "analyse", "upgrade"]


@dataclass(frozen=True)
class Analysis:
    """Everything known of a model before it is changed.

    Attributes:
        facts: What is certain.
        sizing: Shapes with free dimensions as assumed.
        assumed: The sizes that were assumed.
        steps: The nodes in file order, as the memory model reads them.
        inputs: Inputs of the graph that are no weights.
        bytes: Bytes of every activation, None where unknown.
    """

    facts: Facts
    sizing: Shapes
    assumed: Mapping[str, tuple[int, ...]]
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    bytes: Mapping[str, int | None]

    @property
    def index(self) -> Index:
        """Use-def index of the main graph."""
        return self.facts.index

    @cached_property
    def assumes(self) -> bool:
        """Whether sizes had to be assumed."""
        return self.sizing is not self.facts.shapes

    def peak(self, steps: Sequence[Step], more: Mapping[str, int | None]) -> Peak:
        """Return the predicted peak of an execution order.

        Args:
            steps: The nodes.
            more: Bytes of tensors the model did not have before.
        """
        return peak(steps, {**self.bytes, **more}, inputs=self.inputs, outputs=self.index.outputs)


def upgrade(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert the default domain's opset; node metadata the converter drops is put back."""
    old = opset_of(model)
    if not 1 <= version <= onnx.defs.onnx_opset_version():
        raise OptionError(
            f"--upgrade-opset {version}: onnx knows opsets 1 to {onnx.defs.onnx_opset_version()}"
        )
    if model.functions or model.training_info:
        raise OptionError(
            f"--upgrade-opset {version}: onnx's converter drops model-local functions and training "
            "information; inline the functions first (onnx.inliner)"
        )
    if version < old:
        raise OptionError(f"--upgrade-opset {version}: the model is at {old} already")
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, version)
    except Exception as error:
        raise OptionError(
            f"--upgrade-opset {version}: onnx cannot convert the model from {old}: "
            + " ".join(str(error).split())[:200]
        ) from error
    origin = {name: node for node in model.graph.node for name in node.output if name}
    for node in converted.graph.node:
        source = origin.get(node.output[0]) if node.output else None
        if source is not None and source.op_type == node.op_type:
            del node.metadata_props[:]
            node.metadata_props.extend(source.metadata_props)
            node.doc_string = source.doc_string
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def analyse(
    model: onnx.ModelProto, slim: onnx.ModelProto, *, allow_custom_ops: bool = False
) -> Analysis:
    """Analyse a model, given with its skeleton, which is changed in place."""
    checked = onnx.ModelProto()
    checked.CopyFrom(slim)
    check(checked, allow_custom_ops=allow_custom_ops)
    found = index(model)
    needed = [model.graph.node[position].input[0] for position in candidates(model.graph)]
    assumed = nominal_shapes(model)
    sizing_slim = onnx.ModelProto()
    sizing_slim.CopyFrom(slim)
    facts = infer(slim, needed=needed)
    sizing = facts
    if assumed or any(None in facts.dims.get(name, (None,)) for name in needed):
        fix_shapes(sizing_slim, assumed)
        sizing = infer(sizing_slim, needed=needed, estimate=True)
    steps = []
    for node in model.graph.node:
        reads = (*(name for name in node.input if name), *captured(node))
        steps.append(
            Step(node_label(node), node.op_type, reads, tuple(n for n in node.output if n))
        )
    inputs = tuple(v.name for v in model.graph.input if v.name not in found.constants)
    activations = [*inputs, *(name for step in steps for name in step.makes)]
    sizes = {name: sizing.bytes(name) for name in activations if name not in found.constants}
    certain = Facts(found, opset_of(model), facts, Constants(slim, found, facts))
    return Analysis(certain, sizing, assumed, tuple(steps), inputs, sizes)
