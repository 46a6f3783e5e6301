"""A Triton model configuration, complete: what the server would fill in is written out.

    model     x: float [N,3,-1,-1]  ->  y: float [N,1,-1,-1], n: int64 [N]
    batching  dims [3,-1,-1]            dims [1,-1,-1], dims [1] reshape []
    without   dims [-1,3,-1,-1]         dims [-1,1,-1,-1], dims [-1]

A scalar is dims [1]; the backend knows it from the model.

Source: model_config.proto and its normalisation in triton-inference-server/core; the parameters of
triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.triton.schema import schema
from patchconv_deploy.triton.signature import Signature, Tensor

__all__ = [
    "MODEL_FILES",
    "ONNX",
    "PLAN",
    "ConfigOptions",
    "cpu_twin",
    "make_config",
    "memory_options",
]


ONNX, PLAN = "onnxruntime_onnx", "tensorrt_plan"

MODEL_FILES: Mapping[str, str] = {ONNX: "model.onnx", PLAN: "model.plan"}

_BACKENDS = {ONNX: "onnxruntime", PLAN: "tensorrt"}


@dataclass(frozen=True)
class ConfigOptions:
    """What a configuration says beside the model's own inputs and outputs.

    Attributes:
        name: The model's name, that of its folder.
        platform: "onnxruntime_onnx" or "tensorrt_plan".
        provider: "cpu", "cuda" or "tensorrt": where an ONNX model runs.
        max_batch_size: Largest batch; 0: the server does not batch.
        dynamic_batching: Let the server put requests together.
        instances: Sessions; per GPU on a machine with GPUs.
        shapes: Full shape of every input, of one item where the server batches; may be empty.
        warmup: Run samples of these shapes before the model counts as ready.
        labels: Per output the file in the model's folder with its labels.
        plans: Per compute capability ("8.0") the name of its plan file.
    """

    name: str
    platform: str = ONNX
    provider: str = "cpu"
    max_batch_size: int = 0
    dynamic_batching: bool = False
    instances: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    warmup: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, str] = field(default_factory=dict)


def memory_options(provider: str) -> OrtOptions:
    """Return the session options a configuration asks for, to measure under the same.

    The memory pattern would reserve a second block beside what is live; the GPU arena grows by what
    is asked for and not by doubling. The CPU arena stays on: it holds its first peak for good;
    without it the C library's heap goes on growing from run to run, at twice the time.
    """
    return OrtOptions(
        provider=provider, arena_extend_strategy="kSameAsRequested", memory_pattern=False
    )


def _set_tensor(entry: Any, tensor: Tensor, batching: bool) -> None:
    entry.name = tensor.name
    entry.data_type = schema().DataType.Value(tensor.data_type)
    dims = tensor.dims[1:] if batching else tensor.dims
    entry.dims.extend(dims or (1,))
    if batching and not dims:
        entry.reshape.SetInParent()


def make_config(signature: Signature, options: ConfigOptions) -> Any:
    """Return the ModelConfig of a model.

    Args:
        signature: Its inputs and outputs.
        options: The rest.

    Raises:
        UsageError: tritonclient is not installed.
    """
    proto = schema()
    config = proto.ModelConfig()
    config.name = options.name
    config.platform = options.platform
    config.backend = _BACKENDS[options.platform]
    config.default_model_filename = MODEL_FILES[options.platform]
    for capability, file in options.plans.items():
        config.cc_model_filenames[capability] = file
    config.version_policy.latest.num_versions = 1
    config.max_batch_size = options.max_batch_size
    batching = options.max_batch_size > 0
    for tensor in signature.inputs:
        _set_tensor(config.input.add(), tensor, batching)
    for tensor in signature.outputs:
        entry = config.output.add()
        _set_tensor(entry, tensor, batching)
        entry.label_filename = options.labels.get(tensor.name, "")
    on_gpu = options.platform == PLAN or options.provider != "cpu"
    group = config.instance_group.add()
    group.name = f"{options.name}_0"
    group.kind = proto.ModelInstanceGroup.KIND_GPU if on_gpu else proto.ModelInstanceGroup.KIND_CPU
    group.count = options.instances
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    if options.dynamic_batching:
        config.dynamic_batching.preferred_batch_size.append(options.max_batch_size)
    if options.platform == ONNX:
        _set_memory(config, options)
    for key, text in signature.metadata.items():
        config.parameters[f"metadata.{key}"].string_value = text
    if options.warmup:
        _set_warmup(config, signature, options.shapes)
    return config


def _set_memory(config: Any, options: ConfigOptions) -> None:
    """Ask ONNX Runtime for what `memory_options` measured under."""
    wanted = memory_options(options.provider)
    config.parameters["enable_mem_pattern"].string_value = str(int(wanted.memory_pattern))
    config.parameters["enable_mem_arena"].string_value = str(int(wanted.arena))
    if options.provider == "cpu":
        return
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if options.provider == "tensorrt":
        tensorrt = accelerators.add(name="tensorrt")
        # On parallel streams patches are alive side by side.
        tensorrt.parameters["trt_auxiliary_streams"] = "0"
        tensorrt.parameters["trt_context_memory_sharing_enable"] = "true"
        if options.shapes:
            least = _profile(options.shapes, 1 if options.max_batch_size else None)
            most = _profile(options.shapes, options.max_batch_size or None)
            tensorrt.parameters["trt_profile_min_shapes"] = least
            tensorrt.parameters["trt_profile_opt_shapes"] = most
            tensorrt.parameters["trt_profile_max_shapes"] = most
    cuda = accelerators.add(name="cuda")
    cuda.parameters["arena_extend_strategy"] = wanted.arena_extend_strategy


def _profile(shapes: Mapping[str, tuple[int, ...]], batch: int | None) -> str:
    return ",".join(
        f"{name}:" + "x".join(map(str, shape if batch is None else (batch, *shape[1:])))
        for name, shape in shapes.items()
    )


def _set_warmup(config: Any, signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Add a sample of batch 1 and one of the largest batch; without batching, one sample."""
    proto = schema()
    most = config.max_batch_size
    for batch in sorted({1, most}) if most else [1]:
        sample = config.model_warmup.add()
        sample.name = f"batch {batch}" if most else "one request"
        sample.batch_size = batch
        sample.count = 1
        for tensor, entry in zip(signature.inputs, config.input, strict=True):
            made = sample.inputs[tensor.name]
            made.data_type = proto.DataType.Value(tensor.data_type)
            shape = shapes[tensor.name]
            # As a client sends it: by dims, whatever the reshape.
            made.dims.extend((shape[1:] if most else shape) or tuple(entry.dims))
            made.zero_data = True


def cpu_twin(signature: Signature, options: ConfigOptions) -> Any:
    """Return the configuration under which an ONNX model loads on a machine without a GPU."""
    return make_config(signature, replace(options, provider="cpu", instances=1))
