"""What a server would refuse in a model repository, said beforehand and in words to act on.

Rules come in three layers, each a function that yields findings: the configuration alone (Triton's
core, `config_problems`), the folder (versions and files, `folder_problems`), and the configuration
against the model (the ONNX Runtime backend, `model_problems`). Auto-completion counts as off.

A repository is not trusted. Whatever a configuration names is opened only where it lies in the
folder it belongs to, by name, and in the repository, links followed; each model is checked in a
process of its own (`patchconv_deploy.triton_check_child`), and one that cannot be checked, whatever
the cause, is a finding and no end of the check of the others.

Left to the server: ensembles, sequence batching beyond its names, and models of other backends,
whose files are not looked into.

Source: the checks of triton-inference-server/core and triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from engines.child import Child, child_process
from engines.errors import EngineError
from engines.signature import Runtime
from patchconv_deploy.console import printable
from patchconv_deploy.errors import UsageError
from patchconv_deploy.triton_schema import read_config, schema
from patchconv_deploy.triton_signature import Signature, Tensor, read_signature
from rewriters.errors import RewriterError

__all__ = ["Finding", "check_model", "check_repository"]

_PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
    "pytorch": "pytorch_libtorch",
}
_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
# Folders of a model that are no versions.
_RESERVED = frozenset({"configs", "warmup", "initial_state"})
_BOOLEANS = frozenset({"true", "1", "false", "0"})
# A configuration of a thousand inputs is a tenth of it.
_LARGEST_CONFIG = 1 << 20
_TIME_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a server refuses.

    Attributes:
        model: Name of the model's folder.
        file: The file that is wrong, relative to the repository.
        reason: What is wrong, and what to do.
    """

    model: str
    file: str
    reason: str

    def __str__(self) -> str:
        """Return it as one line."""
        return printable(f"{self.file}: {self.reason}")


def check_repository(
    repository: Path, *, gpu: bool | None = None, config_name: str = ""
) -> list[Finding]:
    """Check every model of a repository.

    Args:
        repository: The repository's folder.
        gpu: Whether the server has a GPU; None: not known, so either will do.
        config_name: The server's ``--model-config-name``.

    Raises:
        UsageError: It is no folder, or tritonclient is not installed.
    """
    if not repository.is_dir():
        raise UsageError(f"{repository}: no such folder")
    schema()
    found = []
    with ExitStack() as stack:
        apart = _Apart(stack)
        for model in sorted(entry for entry in repository.iterdir() if entry.is_dir()):
            found += apart.check(model, gpu, config_name)
    return found


class _Apart:
    """Checks models, one at a time, in one process; in a new one if that dies."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._child: Child | None = None

    def check(self, model: Path, gpu: bool | None, config_name: str) -> list[Finding]:
        """Check a model's folder; that it cannot be checked is a finding."""
        if self._child is None:
            self._child = self._stack.enter_context(
                child_process("patchconv_deploy.triton_check_child")
            )
        try:
            answer = self._child.ask(
                "check",
                time_limit_s=_TIME_LIMIT_S,
                model=str(model),
                gpu=gpu,
                config_name=config_name,
            )
        except EngineError as error:
            self._child = None
            self._stack.close()
            return [
                Finding(
                    model.name, model.name, f"it could not be checked, take it for refused: {error}"
                )
            ]
        return [Finding(**finding) for finding in answer["findings"]]


def check_model(
    model: Path, opener: Runtime, *, gpu: bool | None = None, config_name: str = ""
) -> list[Finding]:
    """Check one model's folder; arguments as of `check_repository`."""
    if not _within(model, model.parent):
        reason = "it is a link out of the repository and was not opened; put the folder itself here"
        return [Finding(model.name, model.name, reason)]
    file = model / "config.pbtxt"
    named = model / "configs" / f"{config_name}.pbtxt"
    if config_name and named.is_file():
        file = named

    def finding(reason: str) -> Finding:
        return Finding(model.name, str(file.relative_to(model.parent)), reason)

    if not file.is_file():
        return [
            finding(
                "missing; a server without auto-completion needs it (write it with "
                "'patchconv triton')"
            )
        ]
    if not _within(file, model.parent):
        return [finding("it is a link out of the repository and was not opened; put the file here")]
    if file.stat().st_size > _LARGEST_CONFIG:
        return [finding(f"it is larger than {_LARGEST_CONFIG >> 10} KiB, so it was not read")]
    try:
        config = read_config(file)
    except (ValueError, RecursionError) as error:
        return [finding(f"not a model configuration: {error}")]
    _fill(config, model)
    found = [finding(reason) for reason in config_problems(config, model.name, gpu)]
    # A configuration that is wrong in itself says nothing reliable about files.
    if not found:
        found = [finding(reason) for reason in folder_problems(config, model, opener)]
    return found


def _fill(config: Any, model: Path) -> None:
    """Fill in what the server does, auto-completion or not: name, backend, platform, file name."""
    config.name = config.name or model.name
    if not config.backend:
        by_platform = {platform: backend for backend, platform in _PLATFORMS.items()}
        by_file = {file: backend for backend, file in _FILES.items()}
        config.backend = by_platform.get(config.platform, "") or by_file.get(
            config.default_model_filename, ""
        )
        if not config.backend and not config.platform and not config.default_model_filename:
            first = next(iter(sorted(e for e in model.iterdir() if e.is_dir())), None)
            for file, backend in by_file.items():
                if first is not None and (first / file).exists():
                    config.backend = backend
    if config.backend in _FILES:
        config.platform = config.platform or _PLATFORMS[config.backend]
        config.default_model_filename = config.default_model_filename or _FILES[config.backend]


# --- the configuration alone ---------------------------------------------------------------------


def config_problems(config: Any, folder: str, gpu: bool | None) -> Iterator[str]:
    """Yield what Triton's core refuses in a configuration by itself."""
    if config.name != folder:
        yield f"name is {config.name!r}, the folder is {folder!r}; make them equal"
    if not config.backend and config.platform != "ensemble":
        known = ", ".join(_PLATFORMS.values())
        yield (
            f"platform {config.platform!r} is none Triton knows; set platform to one of {known}, "
            "or name a backend"
        )
    expected = _PLATFORMS.get(config.backend)
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


# --- the folder -----------------------------------------------------------------------------------


def folder_problems(config: Any, model: Path, opener: Runtime) -> Iterator[str]:
    """Yield what is wrong with versions and files, and with the models in them."""
    serving, problem = _serving(config, model)
    if problem is not None:
        yield problem
    yield from _other_file_problems(config, model)
    names = {config.default_model_filename, *config.cc_model_filenames.values()}
    for version in serving:
        folder = model / str(version)
        for name in sorted(names):
            escape = _escape(folder, name, model.parent)
            if escape is not None:
                yield f"model file {name!r} {escape}; name a file in the version's folder"
            if escape is not None or config.backend not in _FILES:
                continue
            file = folder / name
            if config.backend == "onnxruntime" and file.is_dir():
                file /= "model.onnx"
                if not _within(file, model.parent):
                    yield f"{name}/model.onnx is a link out of the repository and was not opened"
                    continue
            if not file.is_file():
                yield (
                    f"version {version} has no file {name!r}; put the model there, or name its "
                    "file in default_model_filename"
                )
            elif config.backend == "onnxruntime":
                where = file.relative_to(model)
                yield from (f"{where}: {p}" for p in _onnx_problems(config, file, opener))


def _other_file_problems(config: Any, model: Path) -> Iterator[str]:
    """Yield what is wrong with the files beside the model that a configuration names."""
    for output in config.output:
        if output.label_filename:
            what = f"output {output.name!r}: label_filename"
            yield from _file_problem(what, model, output.label_filename, model.parent)
    for sample in config.model_warmup:
        for name, made in sample.inputs.items() if sample.batch_size else ():
            if made.WhichOneof("input_data_type") == "input_data_file":
                what = f"model_warmup {sample.name!r}, input {name!r}: input_data_file"
                yield from _file_problem(what, model / "warmup", made.input_data_file, model.parent)
    for state in config.sequence_batching.state:
        for initial in state.initial_state:
            if initial.WhichOneof("state_data") == "data_file":
                what = f"state {state.input_name!r}: data_file"
                folder = model / "initial_state"
                yield from _file_problem(what, folder, initial.data_file, model.parent)


def _file_problem(what: str, folder: Path, name: str, repository: Path) -> Iterator[str]:
    escape = _escape(folder, name, repository)
    if escape is not None:
        yield f"{what} {name!r} {escape}; name a file in the folder"
    elif not (folder / name).is_file():
        where = "the model's folder" if folder.parent == repository else f"{folder.name}/"
        yield f"{what} {name!r} is not in {where}; put it there or leave it out"


def _escape(folder: Path, name: str, repository: Path) -> str | None:
    """Return how a name leads out of the folder it belongs to, None if it does not.

    Nothing is opened. Links may lead to another place of the repository, not out of it.
    """
    if not name.isprintable():
        return "holds control characters and was not opened"
    pure = PurePath(name)
    if pure.is_absolute():
        return "is an absolute path and was not opened"
    if ".." in pure.parts:
        return "leads out of its folder and was not opened"
    if not _within(folder / name, repository):
        return "is a link out of the repository and was not opened"
    return None


def _within(path: Path, repository: Path) -> bool:
    """Tell whether a path lies in the repository when every link is followed."""
    try:
        return path.resolve().is_relative_to(repository.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name that is too long
        return False


def _serving(config: Any, model: Path) -> tuple[list[int], str | None]:
    """Return the versions the server would load, and what is wrong with them."""
    standing: dict[int, str] = {}
    odd = []
    for entry in sorted(e for e in model.iterdir() if e.is_dir() and e.name not in _RESERVED):
        if len(entry.name) > 1 and entry.name.startswith("0"):
            odd.append(entry.name)
        elif number := re.match(r"\s*[+-]?[0-9]+", entry.name, re.ASCII):
            standing.setdefault(int(number[0]), entry.name)
        else:
            odd.append(entry.name)
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    wanted = sorted(standing)
    if choice == "specific":
        missing = sorted(set(policy.specific.versions) - set(standing))
        wanted = [version for version in policy.specific.versions if version in standing]
        if missing and not wanted:
            return [], (
                f"version_policy asks for {missing}, there are {sorted(standing) or 'none'}; "
                "publish them or change the policy"
            )
    elif choice != "all":
        wanted = wanted[-max(1, policy.latest.num_versions) :]
    for version in wanted:
        name = standing[version]
        if name != str(version) or not 0 <= version < 2**63:
            return [], (
                f"folder {name!r} begins like a version and is none; the server reads it as a "
                "number and looks for a folder of that name. Rename it"
            )
    if not wanted:
        seen = f" ({', '.join(map(repr, odd))}: a version is a number without leading zeros)"
        return [], (
            "the model has no version: put its file into a folder named 1" + (seen if odd else "")
        )
    return wanted, None


# --- against the model ----------------------------------------------------------------------------


def _onnx_problems(config: Any, file: Path, opener: Runtime) -> Iterator[str]:
    try:
        signature = read_signature(file, opener)
    except (RewriterError, UsageError) as error:
        yield str(error).removeprefix(f"{file}: ")
        return
    yield from model_problems(config, signature)


def model_problems(config: Any, signature: Signature) -> Iterator[str]:
    """Yield what the ONNX Runtime backend refuses in a configuration for a model."""
    required = [entry for entry in config.input if not entry.optional]
    fed = {name for entry in config.batch_input for name in entry.target_name}
    fed |= {control.name for control in config.sequence_batching.control_input}
    fed |= {state.input_name for state in config.sequence_batching.state}
    taken = {tensor.name for tensor in signature.inputs} - fed
    if len(required) != len(taken):
        missing = sorted(taken - {entry.name for entry in required})
        extra = sorted({entry.name for entry in required} - taken)
        if missing:
            yield f"the model also takes {', '.join(map(repr, missing))}; add it to input"
        elif extra:
            yield (
                f"{', '.join(map(repr, extra))} is no required input of the model; take it out of "
                "input"
            )
        else:
            names = [entry.name for entry in required]
            twice = next((name for name in names if names.count(name) > 1), "")
            yield f"input {twice!r} is listed twice; list it once"
    inputs = {tensor.name: tensor for tensor in (*signature.inputs, *signature.overridable)}
    outputs = {tensor.name: tensor for tensor in signature.outputs}
    for entry in config.input:
        if entry.optional and config.max_batch_size:
            yield (
                f"input {entry.name!r}: optional inputs need max_batch_size 0; leave the input "
                "out, or batching"
            )
        yield from _tensor_problems("input", entry, inputs, config, exact=False)
    scattered = {name for entry in config.batch_output for name in entry.target_name}
    for entry in config.output:
        exact = signature.from_runtime
        yield from _tensor_problems(
            "output", entry, outputs, config, exact=exact, shaped=entry.name not in scattered
        )
    if not config.output:
        yield "no output is listed; list those of the model to serve"
    yield from _parameter_problems(config)
    yield from _warmup_problems(config, signature)


def _tensor_problems(
    kind: str,
    entry: Any,
    known: Mapping[str, Tensor],
    config: Any,
    *,
    exact: bool,
    shaped: bool = True,
) -> Iterator[str]:
    what = f"{kind} {entry.name!r}"
    tensor = known.get(entry.name)
    if tensor is None:
        names = ", ".join(map(repr, sorted(known))) or "none"
        yield f"{what} is not in the model; its {kind}s are {names}"
        return
    given = schema().DataType.Name(entry.data_type)
    if given != tensor.data_type:
        yield f"{what} is {given}, in the model {tensor.data_type}; change data_type"
    if not shaped:
        return
    dims = list(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
    ragged = kind == "input" and entry.allow_ragged_batch
    if ragged:
        if tensor.dims != (-1,):
            yield f"{what}: allow_ragged_batch needs shape [-1] in the model, it is {_text(tensor)}"
        return
    if not tensor.dims:
        if any(size != 1 for size in dims):
            yield f"{what} is a scalar in the model; its dims must be [ 1 ], not {dims}"
        return
    if config.max_batch_size and tensor.dims[0] != -1:
        yield (
            f"{what}: max_batch_size is {config.max_batch_size}, but the first dimension of the "
            f"model's shape {_text(tensor)} is fixed; set max_batch_size: 0 and give all dims, or "
            "export the model with a free batch"
        )
        return
    full = [-1, *dims] if config.max_batch_size else dims
    same = len(full) == len(tensor.dims) and all(
        have == want or (want == -1 and not exact)
        for have, want in zip(full, tensor.dims, strict=True)
    )
    if not same:
        right = list(tensor.dims[1:] if config.max_batch_size else tensor.dims)
        batch = "the batch and " if config.max_batch_size else ""
        yield (
            f"{what}: the model's shape is {_text(tensor)}, the configuration says {batch}{dims}; "
            f"set dims: {right}" + ("" if right else " by dims: [ 1 ] and reshape: { shape: [ ] }")
        )


def _text(tensor: Tensor) -> str:
    return str(list(tensor.dims))


def _parameter_problems(config: Any) -> Iterator[str]:
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


def _warmup_problems(config: Any, signature: Signature) -> Iterator[str]:
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
            elif not _fits(list(made.dims), list(entry.dims)):
                yield (
                    f"{what}: input {name!r} has dims {list(made.dims)}, the configuration "
                    f"{list(entry.dims)}; make them fit"
                )


def _fits(dims: list[int], pattern: list[int]) -> bool:
    return len(dims) == len(pattern) and all(
        want in (-1, have) for have, want in zip(dims, pattern, strict=True)
    )
