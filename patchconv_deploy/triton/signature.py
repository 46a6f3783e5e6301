"""A model's inputs and outputs in Triton's terms, and whether its first dimension is a batch.

Sizes come from the file and from shape inference, and from ONNX Runtime where it is installed:
Triton's backend holds a configuration against what the runtime says, outputs to the last size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from patchconv_deploy.engines.errors import EngineError, EngineMissing
from patchconv_deploy.engines.ort.run import installed
from patchconv_deploy.engines.ort.signature import Opened, Runtime, Value
from patchconv_deploy.errors import UsageError
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes, free_inputs, nominal_shapes
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.graph.shapes import required_inputs
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.verify.inputs import make_inputs, save_inputs

__all__ = ["DATA_TYPES", "Signature", "Tensor", "batch_problem", "read_signature", "sized_inputs"]


logger = logging.getLogger(__name__)

_TENSOR = onnx.TensorProto

# ONNX element type -> Triton's name; what is not here, Triton cannot carry.
DATA_TYPES: dict[int, str] = {
    _TENSOR.BOOL: "TYPE_BOOL",
    _TENSOR.UINT8: "TYPE_UINT8",
    _TENSOR.UINT16: "TYPE_UINT16",
    _TENSOR.UINT32: "TYPE_UINT32",
    _TENSOR.UINT64: "TYPE_UINT64",
    _TENSOR.INT8: "TYPE_INT8",
    _TENSOR.INT16: "TYPE_INT16",
    _TENSOR.INT32: "TYPE_INT32",
    _TENSOR.INT64: "TYPE_INT64",
    _TENSOR.FLOAT16: "TYPE_FP16",
    _TENSOR.FLOAT: "TYPE_FP32",
    _TENSOR.DOUBLE: "TYPE_FP64",
    _TENSOR.STRING: "TYPE_STRING",
    _TENSOR.BFLOAT16: "TYPE_BF16",
}

# Rows and columns to try where the model does not say; many take multiples of 32 alone.
_SPATIAL = (64, 224, 48, 32, 512)

# Two batches of the same items may use other kernels: last bits differ, mixed-up items do not.
_ALIKE = 1e-2


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    Attributes:
        name: Its name.
        data_type: Triton's name of the element type.
        dims: Sizes, -1 for a free one.
        symbol: Name of the first dimension where it has one.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    symbol: str = ""


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        inputs: The required inputs.
        outputs: The outputs.
        overridable: Inputs that have a default value (an initializer of the same name).
        metadata: The model's own key-value pairs.
        from_runtime: Whether ONNX Runtime was asked.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    overridable: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    from_runtime: bool


def _tensor(
    value: onnx.ValueInfoProto,
    inferred: tuple[int | None, ...] | None,
    runtime: Value | None,
    what: str,
) -> Tensor:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        name = {"sequence_type": "a sequence", "optional_type": "an optional"}.get(kind or "", "")
        raise UsageError(
            f"{what} {value.name!r} is {name or 'no tensor'}; Triton serves tensors alone"
        )
    tensor = value.type.tensor_type
    if tensor.elem_type not in DATA_TYPES:
        word = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UsageError(f"{what} {value.name!r} is of type {word}, which Triton does not have")
    declared = list(tensor.shape.dim) if tensor.HasField("shape") else None
    if inferred is None and declared is None and not (runtime and runtime.shape):
        raise UsageError(
            f"{what} {value.name!r} has no known rank; declare its shape in the model "
            "(dimensions may be free)"
        )
    symbol = declared[0].dim_param if declared else ""
    sizes: Sequence[int | str | None]
    if runtime is not None and runtime.shape:
        sizes = runtime.shape
        symbol = sizes[0] if isinstance(sizes[0], str) else symbol
    elif inferred is not None:
        sizes = inferred
    else:
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in declared or ()]
    dims = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in sizes)
    if 0 in dims:
        raise UsageError(
            f"{what} {value.name!r} has a dimension of size 0 ({list(dims)}); Triton refuses that"
        )
    return Tensor(value.name, DATA_TYPES[tensor.elem_type], dims, symbol)


def describe(loaded: Loaded, opened: Opened | None = None) -> Signature:
    """Return the signature of a model.

    Args:
        loaded: The model.
        opened: The same under ONNX Runtime, if that is at hand.

    Raises:
        UsageError: An input or output is nothing Triton can carry.
    """
    shapes = infer(skeleton(loaded)).dims
    graph = loaded.model.graph
    required = {value.name for value in required_inputs(loaded.model)}

    def known(values: Sequence[Value] | None) -> dict[str, Value]:
        return {value.name: value for value in values or ()}

    takes = known(opened.inputs if opened else None) | known(opened.overridable if opened else None)
    gives = known(opened.outputs if opened else None)
    inputs = {
        v.name: _tensor(v, shapes.get(v.name), takes.get(v.name), "input")
        for v in graph.input
        if v.name in required
    }
    # Before IR version 4 every weight is listed as an input and none can be given.
    listed = [v for v in graph.input if v.name not in required and loaded.model.ir_version >= 4]
    overridable = []
    for value in listed:
        try:
            overridable.append(
                _tensor(value, shapes.get(value.name), takes.get(value.name), "input")
            )
        except UsageError as error:
            logger.debug("left out: %s", error)
    return Signature(
        tuple(inputs.values()),
        tuple(_tensor(v, shapes.get(v.name), gives.get(v.name), "output") for v in graph.output),
        tuple(overridable),
        {entry.key: entry.value for entry in loaded.model.metadata_props},
        opened is not None,
    )


def read_signature(path: Path, opener: Runtime) -> Signature:
    """Read the signature of a model file; external weights stay on disk.

    Args:
        path: The file.
        opener: Asks ONNX Runtime, where that is installed.

    Raises:
        ModelError: The file is no model.
        UsageError: ONNX Runtime refuses it, or an input or output is nothing Triton can carry.
    """
    loaded = load(path)
    if not installed():
        return describe(loaded)
    try:
        return describe(loaded, opener.open(path))
    except EngineMissing:
        return describe(loaded)
    except EngineError as error:
        # A clear reason first, where the model holds what Triton cannot carry anyway.
        describe(loaded)
        raise UsageError(f"{path}: ONNX Runtime does not load it: {error}") from error


def sized_inputs(
    loaded: Loaded, shapes: Mapping[str, tuple[int, ...]], batch: int | None, spatial: int = 512
) -> dict[str, tuple[int, ...]]:
    """Return the full shape of every input that has free dimensions.

    Args:
        loaded: The model.
        shapes: Shapes given by the user.
        batch: Size of the first dimension, None to leave it.
        spatial: Rows and columns where nothing is given.
    """
    found = {}
    nominal = nominal_shapes(loaded.model, spatial)
    for name, free in free_inputs(loaded.model).items():
        shape = shapes.get(name, nominal[name])
        if batch is not None and free and free[0] is None:
            shape = (batch, *shape[1:])
        found[name] = tuple(shape)
    return found


def _static_problem(signature: Signature) -> str | None:
    for what, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for tensor in tensors:
            if not tensor.dims:
                return f"{what} {tensor.name!r} is a scalar"
            if tensor.dims[0] != -1:
                return f"{what} {tensor.name!r} has the fixed size {tensor.dims[0]} there"
    return None


def batch_problem(
    path: Path, signature: Signature, shapes: Mapping[str, tuple[int, ...]], opener: Runtime
) -> str | None:
    """Return why the first dimension is no batch, None if it is one.

    It is free in every input and output; and, where ONNX Runtime is at hand, two items in one batch
    give what they give alone.

    Args:
        path: The model.
        signature: As read from it.
        shapes: Shapes of inputs with free dimensions, as far as the user gave them.
        opener: Runs the model under ONNX Runtime, where that is installed.
    """
    problem = _static_problem(signature)
    if problem is not None:
        return problem
    everything = (*signature.inputs, *signature.outputs)
    if not signature.from_runtime or any(t.data_type == "TYPE_BF16" for t in everything):
        symbols = {tensor.symbol for tensor in everything}
        if len(symbols) > 1:
            return f"it goes by different names: {', '.join(sorted(map(repr, symbols)))}"
        return None
    return _run_problem(path, signature, shapes, opener.open(path))


def _run_problem(
    path: Path, signature: Signature, shapes: Mapping[str, tuple[int, ...]], opened: Opened
) -> str | None:
    loaded = load(path)
    problem = "the model does not run"
    with temporary_folder() as folder:
        for spatial in _SPATIAL:
            try:
                slim = skeleton(loaded)
                fix_shapes(slim, sized_inputs(loaded, shapes, 2, spatial))
                pair = make_inputs(loaded.model, infer(slim), {}, 0)
                alone = [
                    _run(opened, {k: a[i : i + 1] for k, a in pair.items()}, folder) for i in (0, 1)
                ]
            except EngineError as error:
                problem = f"the model does not run: {error}"
                continue
            try:
                both = _run(opened, pair, folder)
            except EngineError as error:
                return f"the model does not run on a batch of 2: {error}"
            for tensor, one, two, together in zip(signature.outputs, *alone, both, strict=True):
                if together.shape[:1] != (2,) or not _alike(np.concatenate([one, two]), together):
                    return f"output {tensor.name!r} of two items is not that of each one alone"
            return None
    return problem


def _run(opened: Opened, arrays: Mapping[str, Any], folder: Path) -> list[np.ndarray[Any, Any]]:
    save_inputs(folder / "in.npz", arrays)
    opened.run(folder / "in.npz", folder / "out.npz")
    with np.load(folder / "out.npz", allow_pickle=False) as data:
        return [data[name] for name in data.files]


def _alike(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> bool:
    if expected.shape != got.shape:
        return False
    if expected.dtype.kind not in "fc":
        return bool(np.mean(expected == got) > 1 - _ALIKE) if expected.size else True
    finite = np.isfinite(expected) & np.isfinite(got)
    largest = float(np.max(np.abs(expected), where=finite, initial=0.0))
    difference = float(np.max(np.abs(expected - got), where=finite, initial=0.0))
    return bool(np.all(np.isfinite(expected) == np.isfinite(got))) and (
        difference <= _ALIKE * largest
    )
