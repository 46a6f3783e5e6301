"""Independent arithmetic for the tests: Conv and ConvTranspose from the ONNX operator definitions.

Nothing here is taken from the packages under test. The oracle computes in float64, one kernel tap
at a time, in any number of spatial dimensions:

    Conv            y[n, m, o]  = b[m] + sum over c, k of  x[n, c, o*s - p + d*k] * w[m, c, k]
    ConvTranspose   y[n, m, i*s - p + d*k]  +=  x[n, c, i] * w[c, m, k];  then + b[m]

`oracle_session` is the ONNX reference evaluator with these two put in place of its own: it runs
rewritten graphs in float64, float16 and bfloat16, and what ONNX Runtime refuses (SAME padding with
a dilation). Models made here pin their opset and an IR version every runtime reads.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model

__all__ = [
    "IR_VERSION",
    "Array",
    "conv",
    "conv_model",
    "conv_padding",
    "conv_transpose",
    "integers",
    "make_model",
    "ops",
    "oracle_run",
    "oracle_session",
    "ort_run",
    "ort_session",
    "rewrite",
    "value",
]


Array: TypeAlias = np.ndarray[Any, Any]

IR_VERSION = 10


def conv_padding(
    size: int, reach: int, stride: int, pads: tuple[int, int], auto_pad: str
) -> tuple[int, int]:
    """Return the padding (before, after) of a Conv along one axis."""
    if auto_pad == "VALID":
        return 0, 0
    if auto_pad == "NOTSET":
        return pads
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    half = total // 2
    return (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)


def transpose_padding(
    size: int,
    reach: int,
    stride: int,
    pads: tuple[int, int],
    auto_pad: str,
    extra: int,
    wanted: int | None,
) -> tuple[int, int]:
    """Return what a ConvTranspose crops (before, after) along one axis; negative: it adds zeros."""
    if wanted is None:
        if auto_pad == "NOTSET":
            return pads
        if auto_pad == "VALID":
            return 0, 0
        wanted = size * stride
    total = stride * (size - 1) + extra + reach - wanted
    half = total // 2
    return (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)


def _defaults(attributes: Mapping[str, Any], kernel: Sequence[int]) -> dict[str, Any]:
    rank = len(kernel)
    filled = {
        "strides": [1] * rank,
        "dilations": [1] * rank,
        "pads": [0] * (2 * rank),
        "group": 1,
        "auto_pad": "NOTSET",
        "output_padding": [0] * rank,
        "output_shape": None,
    }
    filled.update({name: value for name, value in attributes.items() if value is not None})
    return filled


def conv(x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Array:
    """Return Conv in float64.

    Args:
        x: [N, C, *spatial].
        w: [M, C / group, *kernel].
        b: [M], or None.
        attributes: The node's attributes; those left out take the operator's defaults.
    """
    kernel = w.shape[2:]
    a = _defaults(attributes, kernel)
    strides, dilations, groups = a["strides"], a["dilations"], a["group"]
    rank = len(kernel)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    padding = [
        conv_padding(
            x.shape[2 + i], reach[i], strides[i], (a["pads"][i], a["pads"][rank + i]), a["auto_pad"]
        )
        for i in range(rank)
    ]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *padding])
    sizes = [(padded.shape[2 + i] - reach[i]) // strides[i] + 1 for i in range(rank)]
    images, channels = x.shape[:2]
    grouped = padded.reshape(images, groups, channels // groups, *padded.shape[2:])
    filters = w.astype(np.float64).reshape(groups, w.shape[0] // groups, *w.shape[1:])
    y = np.zeros((images, groups, filters.shape[1], *sizes))
    for tap in itertools.product(*map(range, kernel)):
        at = tuple(
            slice(d * k, d * k + (size - 1) * s + 1, s)
            for d, k, s, size in zip(dilations, tap, strides, sizes, strict=True)
        )
        taken = grouped[(slice(None),) * 3 + at]
        y += np.einsum("ngc...,gmc->ngm...", taken, filters[(slice(None),) * 3 + tap])
    y = y.reshape(images, w.shape[0], *sizes)
    return y if b is None else y + b.astype(np.float64).reshape(-1, *[1] * rank)


def conv_transpose(x: Array, w: Array, b: Array | None = None, **attributes: Any) -> Array:
    """Return ConvTranspose in float64.

    Args:
        x: [N, C, *spatial].
        w: [C, M / group, *kernel].
        b: [M], or None.
        attributes: The node's attributes; those left out take the operator's defaults.
    """
    kernel = w.shape[2:]
    a = _defaults(attributes, kernel)
    strides, dilations, groups = a["strides"], a["dilations"], a["group"]
    extra, wanted = a["output_padding"], a["output_shape"]
    rank = len(kernel)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    images, channels = x.shape[:2]
    grouped = x.astype(np.float64).reshape(images, groups, channels // groups, *x.shape[2:])
    filters = w.astype(np.float64).reshape(groups, channels // groups, *w.shape[1:])
    sizes = [strides[i] * (x.shape[2 + i] - 1) + reach[i] + extra[i] for i in range(rank)]
    full = np.zeros((images, groups, w.shape[1], *sizes))
    for tap in itertools.product(*map(range, kernel)):
        at = tuple(
            slice(d * k, d * k + (size - 1) * s + 1, s)
            for d, k, s, size in zip(dilations, tap, strides, x.shape[2:], strict=True)
        )
        full[(slice(None),) * 3 + at] += np.einsum(
            "ngc...,gcm->ngm...", grouped, filters[(slice(None),) * 3 + tap]
        )
    y = full.reshape(images, groups * w.shape[1], *sizes)
    for i in range(rank):
        before, after = transpose_padding(
            x.shape[2 + i],
            reach[i],
            strides[i],
            (a["pads"][i], a["pads"][rank + i]),
            a["auto_pad"],
            extra[i],
            None if wanted is None else wanted[i],
        )
        y = np.pad(y, [(max(0, -before), max(0, -after)) if j == i + 2 else (0, 0)
                       for j in range(y.ndim)])  # fmt: skip
        y = y[(slice(None),) * (i + 2) + (slice(max(0, before), y.shape[i + 2] - max(0, after)),)]
    return y if b is None else y + b.astype(np.float64).reshape(-1, *[1] * rank)


def node_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


class _OracleRun(OpRun):  # type: ignore[misc, unused-ignore]
    def _attributes(self) -> dict[str, Any]:
        return {n: v for n, v in node_attributes(self.onnx_node).items() if n != "kernel_shape"}


class Conv(_OracleRun):
    """The oracle's Conv as an operator of the reference evaluator."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **_: Any) -> tuple[Array]:
        return (conv(x, w, b, **self._attributes()).astype(x.dtype),)


class ConvTranspose(_OracleRun):
    """The oracle's ConvTranspose as an operator of the reference evaluator."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **_: Any) -> tuple[Array]:
        return (conv_transpose(x, w, b, **self._attributes()).astype(x.dtype),)


class LRN(_OracleRun):
    """LRN as ONNX defines it: onnx's own sums of as many channels as there are images alone."""

    op_domain = ""

    def _run(self, x: Array, **_: Any) -> tuple[Array]:
        given = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **self._attributes()}
        before, channels = (given["size"] - 1) // 2, x.shape[1]
        wide = x.astype(np.float64)
        sums = np.empty_like(wide)
        for at in range(channels):
            taken = slice(max(0, at - before), at - before + given["size"])
            sums[:, at] = np.square(wide[:, taken]).sum(axis=1)
        scale = given["bias"] + given["alpha"] / given["size"] * sums
        return ((wide / scale ** given["beta"]).astype(x.dtype),)


class BatchNormalization(_OracleRun):
    """BatchNormalization as it is at run time: before opset 14 onnx's own takes it for training."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, **_: Any
    ) -> tuple[Array]:
        shape = (-1, *[1] * (x.ndim - 2))
        wide = [each.astype(np.float64).reshape(shape) for each in (scale, bias, mean, variance)]
        root = np.sqrt(wide[3] + self._attributes().get("epsilon", 1e-5))
        return (((x - wide[2]) / root * wide[0] + wide[1]).astype(x.dtype),)


def oracle_session(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return the reference evaluator with the oracle's own operators."""
    return ReferenceEvaluator(model, new_ops=[Conv, ConvTranspose, LRN, BatchNormalization])


def oracle_run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a model with the oracle's convolutions."""
    return list(oracle_session(model).run(None, dict(feeds)))


def ort_options(threads: int = 1) -> ort.SessionOptions:
    """Return session options with few threads; errors are raised, not logged."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def ort_session(
    model: onnx.ModelProto, threads: int = 1, *, optimised_path: str | None = None
) -> ort.InferenceSession:
    """Open a model on ONNX Runtime's CPU provider.

    Args:
        model: The model.
        threads: Threads inside one operator.
        optimised_path: File to save the optimised graph to.
    """
    options = ort_options(threads)
    if optimised_path is not None:
        options.optimized_model_filepath = optimised_path
        # Off on x86 unless asked for: without it int8 activations stay in float.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def ort_run(model: onnx.ModelProto, feeds: Mapping[str, Array], threads: int = 1) -> list[Array]:
    """Run a model once on ONNX Runtime's CPU provider."""
    return list(ort_session(model, threads).run(None, dict(feeds)))


def value(
    name: str, shape: Sequence[int | str | None] | None, element: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    """Return a tensor's name, element type and shape; a string or None is a free dimension."""
    return helper.make_tensor_value_info(name, element, shape)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array],
    *,
    opset: int = 17,
    ir_version: int = IR_VERSION,
) -> onnx.ModelProto:
    """Return a model with its opset and IR version pinned."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="patchconv-tests",
    )


def conv_model(
    shape: Sequence[int | str | None],
    weight: Array,
    bias: Array | None = None,
    *,
    op: str = "Conv",
    opset: int = 17,
    element: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one convolution ``conv``: input ``x``, output ``y``.

    Args:
        shape: Shape of ``x``; a string or None is a free dimension.
        weight: The kernel.
        bias: The bias, or None.
        op: "Conv" or "ConvTranspose".
        opset: Version of the default domain.
        element: Element type of ``x`` and ``y``.
        attributes: Attributes to write; None leaves one out.
    """
    weights = {"w": weight} if bias is None else {"w": weight, "b": bias}
    given = {name: v for name, v in attributes.items() if v is not None}
    node = helper.make_node(op, ["x", *weights], ["y"], name="conv", **given)
    return make_model(
        [node],
        [value("x", shape, element)],
        [value("y", [None] * len(shape), element)],
        weights,
        opset=opset,
    )


def integers(
    rng: np.random.Generator, shape: Sequence[int], dtype: Any = np.float32, most: int = 4
) -> Array:
    """Return small whole numbers: sums of their products are exact in whatever order.

    So two right results are equal to the bit, and one misplaced row is off by at least 1.
    """
    return rng.integers(-most, most + 1, size=tuple(shape)).astype(dtype)


def rewrite(
    model: onnx.ModelProto,
    *,
    splits: int = 4,
    form: str = "batch",
    axis: str | int = "height",
    upgrade_opset: int | None = None,
) -> Outcome:
    """Cut every convolution of a copy of the model."""
    options = Options(
        splits=splits,
        form=form,
        axis=axis,
        selection=Selection(min_elements=0),
        upgrade_opset=upgrade_opset,
    )
    return rewrite_model(Loaded(copy.deepcopy(model), None), options)


def ops(model: onnx.ModelProto) -> list[str]:
    """Return the operators of the main graph in order."""
    return [node.op_type for node in model.graph.node]
