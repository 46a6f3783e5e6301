"""Sizes that shape inference gets wrong or runtimes compute differently: not relied on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.graph.check import UNKNOWN_DOMAIN
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, Shape

__all__ = ["hide_doubtful", "less_known", "wrong_ranks"]


logger = logging.getLogger(__name__)


def less_known(plain: Shapes, derived: Shapes) -> frozenset[str]:
    """Return the tensors of which one inference knows more than the other."""
    return frozenset(
        name
        for name, dims in plain.dims.items()
        if any(
            a is not None and b is None
            for a, b in zip(dims, derived.dims.get(name, (None,) * len(dims)), strict=False)
        )
    )


def wrong_ranks(graph: onnx.GraphProto, plain: Shapes) -> frozenset[str]:
    """Return outputs of ConvTranspose that inference gives other than their inputs' rank.

    It does so for an `output_shape` that does not list every dimension it expects.
    """
    wrong = set()
    for node in graph.node:
        made = plain.dims.get(node.output[0]) if node.op_type == "ConvTranspose" else None
        taken = plain.dims.get(node.input[0]) if made is not None else None
        if made is not None and (len(made) < 3 or (taken is not None and len(made) != len(taken))):
            wrong.add(node.output[0])
    return frozenset(wrong)


def hide_doubtful(model: onnx.ModelProto, plain: Shapes, wrong: Collection[str]) -> bool:
    """Hide, in place, nodes whose output size runtimes and onnx's inference disagree on.

    A size computed in floating point is rounded down on either side of a whole number (Resize and
    Upsample by a fractional scale), a pooling window that begins in the padding counts or not
    (ceil_mode), a dilated pool's SAME padding counts the dilation or not, and a Cast to few bits
    wraps around.

    Args:
        model: Its doubtful nodes move to a domain that inference knows nothing of.
        plain: Shapes as inference sees them; they say whether the doubt makes a difference.
        wrong: Tensors it is mistaken about; what makes them is hidden, too.

    Returns:
        Whether there were any.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    hidden = False
    for node in model.graph.node:
        if node.domain not in ONNX_DOMAINS or not node.output:
            continue
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
        dims = plain.dims.get(node.input[0]) if node.input else None
        if node.output[0] in wrong or _is_doubtful(node, attributes(node), dims, constants):
            node.domain, hidden = UNKNOWN_DOMAIN, True
    if hidden:
        model.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)
    return hidden


_FEW_BITS = (
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
)


def _is_doubtful(
    node: onnx.NodeProto,
    values: Mapping[str, Any],
    dims: Shape | None,
    constants: Mapping[str, onnx.TensorProto],
) -> bool:
    match node.op_type:
        case "MaxPool" | "AveragePool" | "LpPool" if (
            values.get("auto_pad", "NOTSET").startswith("SAME")
            and max(values.get("dilations", (1,))) > 1
        ):
            return True
        case "MaxPool" | "AveragePool" | "LpPool" if values.get("ceil_mode") and dims:
            return any(_last_window_in_padding(values, i, d) for i, d in enumerate(dims[2:]))
        case "Cast":
            return bool(values.get("to") in _FEW_BITS and dims is not None and len(dims) == 1)
        case "Resize" | "Upsample":
            if len(node.input) > 3 and node.input[3]:
                return bool(values.get("keep_aspect_ratio_policy", "stretch") != "stretch")
            given: Any = values.get("scales")
            if given is None:
                # Resize-10 and Upsample-9 have the scales second, Resize-11 third.
                tensor = constants.get(node.input[2 if len(node.input) > 2 else 1])
                if tensor is None or dims is None:
                    return False
                given = _scales(tensor, len(dims))
            return any(_rounds_apart(d, s) for d, s in zip(dims or (), given, strict=False))
        case _:
            return False


def _scales(tensor: onnx.TensorProto, rank: int) -> list[float]:
    """Return the values of a tensor that holds a scale for each dimension; none if it does not."""
    if list(tensor.dims) != [rank]:
        return []
    try:
        scales: list[float] = onnx.numpy_helper.to_array(tensor).tolist()
    except Exception as error:  # noqa: BLE001 - bytes of another length, a type numpy does not know
        logger.debug("scales %r cannot be read: %s", tensor.name, error)
        return []
    return scales


def _rounds_apart(size: int | None, scale: float) -> bool:
    """Tell whether a scaled size may be rounded down to different numbers."""
    if size is None:
        return False
    exact = size * scale
    near = abs(exact - round(exact)) < 1e-3
    return near and exact != int(exact)


def _last_window_in_padding(values: Mapping[str, Any], i: int, size: int | None) -> bool:
    """Tell whether a pool's last window begins beyond the input, so that it may count or not."""
    kernel = values.get("kernel_shape", ())
    if size is None or i >= len(kernel):
        return False
    rank = len(kernel)
    if values.get("auto_pad", "NOTSET") != "NOTSET":
        return True
    pads = values.get("pads", (0,) * 2 * rank)
    stride = values.get("strides", (1,) * rank)[i]
    reach = values.get("dilations", (1,) * rank)[i] * (kernel[i] - 1) + 1
    out = -(-(size + pads[i] + pads[rank + i] - reach) // stride) + 1
    return bool((out - 1) * stride >= size + pads[i])
