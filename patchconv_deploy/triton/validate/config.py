"""What a server would refuse in a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchconv_deploy.triton.schema import schema
from patchconv_deploy.triton.signature import Signature
from patchconv_deploy.triton.validate.finding import FILES, PLATFORMS, fits

__all__ = ["config_problems", "fill", "parameter_problems", "warmup_problems"]


_BOOLEANS = frozenset({"true", "1", "false", "0"})


def fill(config: Any, model: Path) -> None:
    """Fill in what the server does, auto-completion or not: name, backend, platform, file name."""
    config.name = config.name or model.name
    if not config.backend:
        by_platform = {platform: backend for backend, platform in PLATFORMS.items()}
        by_file = {file: backend for backend, file in FILES.items()}
        config.backend = by_platform.get(config.platform, "") or by_file.get(
            config.default_model_filename, ""
        )
        if not config.backend and not config.platform and not config.default_model_filename:
            first = next(iter(sorted(e for e in model.iterdir() if e.is_dir())), None)
            for file, backend in by_file.items():
                if first is not None and (first / file).exists():
                    config.backend = backend
    if config.backend in FILES:
        config.platform = config.platform or PLATFORMS[config.backend]
        config.default_model_filename = config.default_model_filename or FILES[config.backend]


def config_problems(config: Any, folder: str, gpu: bool | None) -> Iterator[str]:
    """Yield what Triton's core refuses in a configuration by itself."""
    if config.name != folder:
        yield f"name is {config.name!r}, the folder is {folder!r}; make them equal"
    if not config.backend and config.platform != "ensemble":
        known = ", ".join(PLATFORMS.values())
        yield (
            f"platform {config.platform!r} is none Triton knows; set platform to one of {known}, "
            "or name a backend"
        )
    expected = PLATFORMS.get(config.backend)
    if expected is not None and config.platform != expected:
        yield (
            f"platform {config.platform!r} does not go with backend {config.backend!r}; set "
            f"platform: {expected!r} or leave it out"
        )
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}; 0 turns batching off"
    yield from _batching_problems(config)
    yield from _sequence_problems(config)
    for kind, entries in (("input", config.input), ("output", config.output)):
        for entry in entries:
            yield from _io_problems(kind, entry, config)
    yield from _batch_io_problems(config)
    for group in config.instance_group:
        yield from _group_problems(group, config, gpu)
    policy = config.version_policy
    if policy.HasField("latest") and policy.latest.num_versions < 1:
        yield "version_policy latest: num_versions is 0, so nothing is served; set 1 or more"
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        yield "response_cache does not go with a decoupled transaction policy; turn one off"
    if config.HasField("model_metrics"):
        yield from _metric_problems(config)


def _batching_problems(config: Any) -> Iterator[str]:
    if not config.HasField("dynamic_batching"):
        return
    batching = config.dynamic_batching
    for size in batching.preferred_batch_size:
        if size <= 0:
            yield f"preferred_batch_size {size}: must be 1 or more"
        elif size > config.max_batch_size:
            yield (
                f"preferred_batch_size {size} is above max_batch_size {config.max_batch_size}; "
                "lower the one or raise the other"
            )
    levels = batching.priority_levels
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            yield (
                f"default_priority_level is {batching.default_priority_level}; with "
                f"priority_levels {levels} it must be from 1 to {levels}"
            )
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                yield f"priority_queue_policy for level {level}; levels are 1 to {levels}"
    if batching.preserve_ordering:
        if levels > 1:
            yield "preserve_ordering allows one priority level alone; lower priority_levels"
        delay = schema().ModelQueuePolicy.DELAY
        policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
        if any(p.default_timeout_microseconds and p.timeout_action == delay for p in policies):
            yield "preserve_ordering does not go with timeout_action DELAY; use REJECT"


def _sequence_problems(config: Any) -> Iterator[str]:
    if not config.HasField("sequence_batching"):
        return
    if config.response_cache.enable:
        yield "response_cache does not go with sequence_batching; turn one off"
    seen: set[str] = set()
    kinds: set[int] = set()
    for control in config.sequence_batching.control_input:
        if not control.name:
            yield "sequence_batching: a control_input has no name"
        elif control.name in seen:
            yield f"sequence_batching: control_input {control.name!r} appears twice"
        seen.add(control.name)
        for entry in control.control:
            word = schema().ModelSequenceBatching.Control.Kind.Name(entry.kind)
            if entry.kind in kinds:
                yield f"sequence_batching: {word} appears twice"
            kinds.add(entry.kind)
            lists = (entry.int32_false_true, entry.fp32_false_true, entry.bool_false_true)
            given = [values for values in lists if len(values)]
            if word == "CONTROL_SEQUENCE_CORRID":
                if given:
                    yield f"sequence_batching: {word} takes a data_type and no false/true values"
            elif len(given) != 1 or len(given[0]) != 2:
                yield (
                    f"sequence_batching: {word} takes exactly one of int32_false_true, "
                    "fp32_false_true and bool_false_true, with two values"
                )
    for size in config.sequence_batching.oldest.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            yield f"sequence_batching: preferred_batch_size {size} is not in 1..max_batch_size"


def _io_problems(kind: str, entry: Any, config: Any) -> Iterator[str]:
    proto = schema()
    if not entry.name:
        yield f"an {kind} has no name; give the name of the model's tensor"
        return
    what = f"{kind} {entry.name!r}"
    if entry.data_type == proto.TYPE_INVALID:
        yield f"{what} has no data_type; give it, as TYPE_FP32"
    if not entry.dims:
        yield f"{what} has no dims; give the sizes, -1 for a free one, [ 1 ] for a scalar"
    for size in entry.dims:
        if size < 1 and size != -1:
            yield f"{what} has {size} among its dims; sizes are 1 or more, or -1 for a free one"
    if entry.HasField("reshape"):
        yield from _reshape_problems(what, entry, config.max_batch_size)
    on_tensorrt = config.platform == "tensorrt_plan"
    if kind == "input" and entry.format != proto.ModelInput.FORMAT_NONE and len(entry.dims) != 3:
        yield f"{what}: format NHWC or NCHW needs 3 dims, it has {len(entry.dims)}"
    if entry.is_shape_tensor and not on_tensorrt:
        yield f"{what}: is_shape_tensor is for TensorRT alone; leave it out"
    if entry.is_non_linear_format_io:
        if not on_tensorrt:
            yield f"{what}: is_non_linear_format_io is for TensorRT alone; leave it out"
        elif len(entry.dims) != 3:
            yield f"{what}: is_non_linear_format_io needs 3 dims"


def _reshape_problems(what: str, entry: Any, max_batch_size: int) -> Iterator[str]:
    shape = list(entry.reshape.shape)
    if not shape and not max_batch_size:
        yield f"{what}: an empty reshape needs max_batch_size above 0; leave reshape out"
        return
    if any(size < 1 and size != -1 for size in shape):
        yield f"{what}: reshape {shape} holds a size that is neither 1 or more nor -1"
        return
    if _parts(list(entry.dims)) != _parts(shape):
        yield (
            f"{what}: dims {list(entry.dims)} and reshape {shape} do not hold the same number of "
            "elements between free dimensions"
        )


def _parts(dims: list[int]) -> list[int]:
    """Return the elements before, between and after free dimensions."""
    parts = [1]
    for size in dims:
        if size == -1:
            parts.append(1)
        else:
            parts[-1] *= size
    return parts


def _batch_io_problems(config: Any) -> Iterator[str]:
    proto = schema()
    inputs = {entry.name for entry in config.input}
    outputs = {entry.name for entry in config.output}
    for entry in config.batch_input:
        if len(entry.source_input) != 1:
            yield f"batch_input {list(entry.target_name)}: needs exactly one source_input"
        if entry.data_type not in (proto.TYPE_INT32, proto.TYPE_FP32):
            yield f"batch_input {list(entry.target_name)}: data_type is not TYPE_INT32 or TYPE_FP32"
    for entry in config.batch_output:
        if len(entry.source_input) != 1:
            yield f"batch_output {list(entry.target_name)}: needs exactly one source_input"
        for name in entry.target_name:
            if name not in outputs:
                yield f"batch_output: {name!r} is none of the outputs"
    for entry in (*config.batch_input, *config.batch_output):
        for name in entry.source_input:
            if name not in inputs:
                yield f"source_input {name!r} is none of the inputs"


def _group_problems(group: Any, config: Any, gpu: bool | None) -> Iterator[str]:
    proto = schema().ModelInstanceGroup
    kind = proto.Kind.Name(group.kind)
    what = f"instance_group {group.name!r}"
    if group.kind in (proto.KIND_CPU, proto.KIND_MODEL) and len(group.gpus):
        yield f"{what} is {kind} but lists gpus; leave gpus out, or set kind: KIND_GPU"
    if group.kind == proto.KIND_GPU and gpu is False:
        yield (
            f"{what} is KIND_GPU, and this server has no GPU; start it with "
            "--model-config-name=cpu where the model has a configs/cpu.pbtxt, or set KIND_CPU"
        )
    if config.platform == "tensorrt_plan" and group.kind == proto.KIND_CPU:
        yield f"{what}: a TensorRT plan runs on a GPU alone; set kind: KIND_GPU"
    for profile in group.profile:
        if config.platform != "tensorrt_plan":
            yield f"{what}: profile is for TensorRT alone; leave it out"
        elif not re.match(r"\s*\+?\d", profile):
            yield f"{what}: profile {profile!r} is no number from 0"


def _metric_problems(config: Any) -> Iterator[str]:
    for control in config.model_metrics.metric_control:
        if not control.metric_identifier.family:
            yield "model_metrics: a metric_control names no family"
        if not control.histogram_options.buckets:
            yield "model_metrics: a metric_control has no histogram buckets"


def parameter_problems(config: Any) -> Iterator[str]:
    """Yield parameters that the ONNX Runtime backend cannot read."""
    for name in ("enable_mem_arena", "enable_mem_pattern"):
        text = config.parameters[name].string_value if name in config.parameters else "1"
        if text.lower() not in _BOOLEANS:
            yield f"parameter {name} is {text!r}; use 0 or 1"
    for name in ("intra_op_thread_count", "inter_op_thread_count", "execution_mode"):
        text = config.parameters[name].string_value if name in config.parameters else "0"
        if not re.match(r"\s*[+-]?[0-9]", text):
            yield f"parameter {name} is {text!r}; it must be a whole number"
        elif name == "execution_mode" and text not in ("0", "1"):
            yield f"parameter execution_mode is {text!r}; use 0 (sequential) or 1 (parallel)"
    on_gpu = any(
        group.kind == schema().ModelInstanceGroup.KIND_GPU for group in config.instance_group
    )
    accelerators = config.optimization.execution_accelerators
    for accelerator in accelerators.gpu_execution_accelerator if on_gpu else ():
        if accelerator.name not in ("tensorrt", "cuda"):
            yield f"gpu_execution_accelerator {accelerator.name!r}; it can be tensorrt or cuda"


def warmup_problems(config: Any, signature: Signature) -> Iterator[str]:
    """Yield what is wrong with the samples a model is warmed up on."""
    proto = schema()
    entries = {entry.name: entry for entry in config.input}
    for sample in config.model_warmup:
        what = f"model_warmup {sample.name!r}"
        if not sample.batch_size:
            continue
        if sample.batch_size > max(1, config.max_batch_size):
            yield f"{what}: batch_size {sample.batch_size} is above max_batch_size; lower it"
        for name in sorted({e.name for e in config.input if not e.optional} - set(sample.inputs)):
            yield f"{what}: no data for input {name!r}; add it"
        for name, made in sample.inputs.items():
            entry = entries.get(name)
            if entry is None:
                yield f"{what}: {name!r} is none of the inputs; take it out"
                continue
            if made.data_type != entry.data_type:
                word = proto.DataType.Name(entry.data_type)
                yield f"{what}: input {name!r} must be {word} as in input"
            if made.WhichOneof("input_data_type") is None:
                yield f"{what}: input {name!r} has no data; set zero_data: true"
            if any(size < 0 for size in made.dims):
                yield f"{what}: input {name!r} has a free dimension; give its size"
            elif not fits(list(made.dims), list(entry.dims)):
                yield (
                    f"{what}: input {name!r} has dims {list(made.dims)}, the configuration "
                    f"{list(entry.dims)}; make them fit"
                )
