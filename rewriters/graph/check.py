"""What is refused at the door: claims no tensor can keep, operators nobody defines."""

from __future__ import annotations

from math import prod

import onnx

from patchconv_deploy.rewriters.errors import ModelError
from patchconv_deploy.rewriters.graph.external_data import BITS, bytes_of, is_external, tensors
from patchconv_deploy.rewriters.graph.guarded import Refused, check_model
from patchconv_deploy.rewriters.graph.nodes import node_label
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["UNKNOWN_DOMAIN", "check", "check_length", "check_size", "check_tensor", "has_data"]


# Domains whose operators ONNX Runtime or ONNX itself define.
KNOWN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"}
    | {"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)

UNKNOWN_DOMAIN = "patchconv.unknown"

# Where a tensor without raw_data keeps its elements, one entry each.
_TYPED: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.INT32: "int32_data",
    onnx.TensorProto.INT8: "int32_data",
    onnx.TensorProto.UINT8: "int32_data",
    onnx.TensorProto.FLOAT16: "int32_data",
    onnx.TensorProto.BFLOAT16: "int32_data",
}

# More elements than any memory holds; arithmetic on them is far from 2^63.
_MOST_ELEMENTS = 1 << 53

_KINDS = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Refuse a weight of a type or shape that there is none of."""
    if tensor.data_type not in _KINDS:
        raise ModelError(
            f"not a valid ONNX model: tensor {tensor.name!r} is of the element type "
            f"{tensor.data_type}, which this onnx does not know; export the model again"
        )
    if any(size < 0 for size in tensor.dims) or prod(tensor.dims) > _MOST_ELEMENTS:
        raise ModelError(
            f"not a valid ONNX model: tensor {tensor.name!r} has the shape {list(tensor.dims)}; "
            "export the model again"
        )


def check_size(value: onnx.ValueInfoProto) -> None:
    """Refuse an input of a size that no memory holds."""
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0]
    if prod(sizes) > _MOST_ELEMENTS:
        raise ModelError(
            f"not a valid ONNX model: input {value.name!r} has the sizes {sizes}, more than 2^53 "
            "elements; export the model again"
        )


def check_length(tensor: onnx.TensorProto) -> None:
    """Refuse a weight whose bytes do not fit its shape; the checker never sees them."""
    needed, held = bytes_of(tensor), None
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
    elif needed is not None and tensor.data_type in _TYPED:
        held = len(getattr(tensor, _TYPED[tensor.data_type])) * BITS[tensor.data_type] // 8
    if held is not None and needed is not None and held != needed:
        raise ModelError(
            f"not a valid ONNX model: tensor {tensor.name!r} holds {held} bytes, "
            f"its shape {list(tensor.dims)} asks for {needed}"
        )


def unknown_operators(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the main graph's nodes whose operator no one here defines."""
    functions = {(function.domain, function.name) for function in model.functions}
    found = []
    for node in model.graph.node:
        if (node.domain, node.op_type) in functions:
            continue
        known = node.domain in KNOWN_DOMAINS
        if node.domain in ONNX_DOMAINS:
            known = onnx.defs.has(node.op_type)
        if not known:
            found.append(node)
    return found


def has_data(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor holds bytes; weights out of reach hold none in a skeleton."""
    return any(descriptor.name.endswith("_data") for descriptor, _ in tensor.ListFields())


def check(slim: onnx.ModelProto, *, allow_custom_ops: bool = False) -> None:
    """Check a skeleton against the ONNX specification.

    Args:
        slim: A `skeleton`; changed in place: its large weights lose their shapes, and custom
            operators move to a domain the checker does not look into.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.

    Raises:
        ModelError: The first thing that is wrong.
        CrashError: The checker crashes on the model.
    """
    unknown = unknown_operators(slim)
    if unknown and not allow_custom_ops:
        first = unknown[0]
        raise ModelError(
            f"node {node_label(first)!r} is the custom operator "
            f"{first.domain or 'ai.onnx'}::{first.op_type}, which ONNX does not define; "
            "pass allow_custom_ops=True to leave such nodes as they are"
        )
    if len({o.version for o in slim.opset_import if o.domain in ONNX_DOMAINS}) > 1:
        raise ModelError("not a valid ONNX model: it imports two versions of the default domain")
    if unknown:
        for node in unknown:
            node.domain = UNKNOWN_DOMAIN
        slim.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)
    for tensor in tensors(slim):
        # Weights without their bytes: to the checker they are empty, whatever their shape.
        if is_external(tensor) or not has_data(tensor):
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            del tensor.dims[:]
            tensor.dims.append(0)
    for value in [*slim.graph.input, *slim.graph.output]:
        # Runtimes take inputs and outputs of unknown rank; the checker asks for a shape.
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        check_model(slim)
    except Refused as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ModelError(f"not a valid ONNX model: {reason}") from error
