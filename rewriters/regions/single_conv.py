"""The smallest region: one convolution, with what belongs to it."""

from __future__ import annotations

from patchconv_deploy.rewriters.graph.facts import CertainFacts, record_of
from patchconv_deploy.rewriters.graph.nodes import node_label
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, RowLocal, read_convolution
from patchconv_deploy.rewriters.operators.table import TABLE, rows_of
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region, make_region
from patchconv_deploy.rewriters.regions.row_locality import tiled_axis

__all__ = ["find_region"]


_BETWEEN = frozenset({"Relu", "Clip", "LeakyRelu"})


def find_region(facts: CertainFacts, position: int, axis_name: str | int) -> Region | Refusal:
    """Find the region of one convolution, its Q/DQ pair included.

    Args:
        facts: The model.
        position: Position of the convolution.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
    """
    conv = facts.graph.node[position]
    label = node_label(conv)
    record = record_of(facts, position)
    read = read_convolution(record)
    if isinstance(read, str):
        return Refusal(label, read, "kernel-unknown")
    axis = tiled_axis(axis_name, read.rank + 2)
    if axis is None:
        return Refusal(label, f"a {read.rank}-D Conv has no axis {axis_name}", "no-such-axis")
    if conv.input[0] in facts.index.constants:
        return Refusal(label, "its input is a constant", "constant-input")
    link = rows_of(TABLE[conv.op_type], record, axis)
    if isinstance(link, str):
        return Refusal(label, link, "not-provable")
    head = _dequantize_before(facts, conv.input[0], axis)
    tail = _quantize_after(facts, conv.output[0], axis) if head else {}
    if head and tail:
        last = facts.graph.node[max(tail)].output[0]
        links = {**head, position: link, **tail}
        region = make_region(facts, links, links, [last], label, read.rank + 2)
        # The pair's type may not be cut at this opset: cut the Conv alone, or nothing.
        if isinstance(region, Region):
            return region
    return make_region(facts, {position: link}, [position], conv.output, label, read.rank + 2)


def _dequantize_before(facts: CertainFacts, name: str, axis: int) -> dict[int, RowLocal]:
    position = facts.index.producer.get(name)
    if position is None:
        return {}
    node = facts.graph.node[position]
    if node.op_type != "DequantizeLinear" or node.domain not in ONNX_DOMAINS:
        return {}
    link = rows_of(TABLE["DequantizeLinear"], record_of(facts, position), axis)
    return {} if isinstance(link, str) else {position: link}


def _quantize_after(facts: CertainFacts, name: str, axis: int) -> dict[int, RowLocal]:
    """Return the nodes from the tensor's only user down to QuantizeLinear, or none."""
    found: dict[int, RowLocal] = {}
    while True:
        users = facts.index.users.get(name, [])
        if name in facts.index.outputs or len(users) != 1:
            return {}
        node = facts.graph.node[users[0]]
        if node.domain not in ONNX_DOMAINS or node.input[0] != name:
            return {}
        if node.op_type not in _BETWEEN and node.op_type != "QuantizeLinear":
            return {}
        link = rows_of(TABLE[node.op_type], record_of(facts, users[0]), axis)
        if isinstance(link, str) or name in node.input[1:]:
            return {}
        found[users[0]] = link
        if node.op_type == "QuantizeLinear":
            return found
        name = node.output[0]
