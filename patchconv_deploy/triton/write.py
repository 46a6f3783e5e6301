"""A Triton model repository from a model file: configuration, memory, publishing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.ort.signature import runtime
from patchconv_deploy.errors import UsageError
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.saving import stage
from patchconv_deploy.triton.config import (
    MODEL_FILES,
    ONNX,
    PLAN,
    ConfigOptions,
    cpu_twin,
    make_config,
)
from patchconv_deploy.triton.memory import Capacity, footprint, plan_capacity
from patchconv_deploy.triton.plan import build_plan, check_plan, plan_files
from patchconv_deploy.triton.publish import Staged, check_name, stage_version, versions
from patchconv_deploy.triton.schema import to_text
from patchconv_deploy.triton.signature import Signature, batch_problem, read_signature
from patchconv_deploy.triton.target import planning
from patchconv_deploy.triton.validate.check import check_model, check_repository
from patchconv_deploy.triton.validate.finding import Finding

__all__ = ["PROVIDERS", "TritonResult", "check_triton_repository", "write_triton_repository"]


PROVIDERS = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class TritonResult:
    """What was published.

    Attributes:
        path: The folder of the version.
        name: The model's name.
        version: Its number.
        config: The configuration, a protobuf ModelConfig.
        capacity: What the budget of memory holds, None without one.
        notes: What the user should know, one line each.
        warnings: What he should do something about, one line each.
    """

    path: Path
    name: str
    version: int
    config: Any
    capacity: Capacity | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data; sizes in bytes."""
        from google.protobuf.json_format import MessageToDict

        memory = None
        if self.capacity is not None:
            memory = asdict(self.capacity)
            memory["instance_bytes"] = self.capacity.footprint.total
        return {
            "path": str(self.path),
            "name": self.name,
            "version": self.version,
            "config": MessageToDict(self.config, preserving_proto_field_name=True),
            "memory": memory,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def write_triton_repository(
    model: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    version: int | None = None,
    platform: str = ONNX,
    max_batch_size: int | None = None,
    dynamic_batching: bool = False,
    instances: int | None = None,
    memory: int | None = None,
    provider: str = "cpu",
    warmup: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    labels: Mapping[str, str | os.PathLike[str]] | None = None,
    plans: Mapping[str, str | os.PathLike[str]] | None = None,
    force: bool = False,
    staging: str | os.PathLike[str] | None = None,
) -> TritonResult:
    """Publish a model as a version of a Triton model repository, in one step.

    Args:
        model: The ONNX file, also for a plan: its inputs and outputs come from it.
        repository: The repository's folder; made if it is missing.
        name: The model's name there; the file's without ".onnx" if None.
        version: Its version; the next free one if None.
        platform: "onnxruntime_onnx" or "tensorrt_plan".
        max_batch_size: Largest batch; None: 0 (no batching), or what ``memory`` holds.
        dynamic_batching: Let the server put requests together.
        instances: Sessions; 1 if None and no ``memory`` is given.
        memory: Bytes the model may take; of each GPU where it runs on GPUs.
        provider: "cpu", "cuda" or "tensorrt": where ONNX Runtime runs it.
        warmup: Have the server run samples of batch 1 and of the largest before it is ready.
        shapes: Full shape of inputs with free dimensions: the largest to be expected.
        labels: Per output a file with its labels, one a line.
        plans: Per compute capability ("8.0") a plan that was built before; "" for any GPU. None:
            it is built here.
        force: Replace a version that exists.
        staging: A folder outside the repository on its file system; its parent if None.

    Raises:
        UsageError: The model cannot be served that way, or a name or folder will not do.
        RewriterError: The file is no model, or a shape does not fit it.
        DeviceMissing: A plan is to be built, and there is no GPU.
        OSError: The disk is full or failing; nothing was published.
    """
    source = Path(model)
    name = source.name.removesuffix(".onnx") if name is None else name
    check_name(name)
    _check_options(platform, provider, max_batch_size, instances, memory, shapes, warmup)
    loaded = load(source)
    with runtime() as opener:
        signature = read_signature(source, opener)
        given = _check_shapes(signature, shapes or {})
        batching = bool(max_batch_size) or dynamic_batching or memory is not None
        problem = batch_problem(source, signature, given, opener) if batching else None
        opener.close_model()  # what is measured next has the memory to itself
        batch, capacity, notes = _batch_and_instances(
            source, signature, given, problem, max_batch_size, dynamic_batching, memory, provider
        )
        said, warnings = planning(source, signature.metadata, platform, provider)
        notes += said
        options = ConfigOptions(
            name=name,
            platform=platform,
            provider=provider,
            max_batch_size=batch,
            dynamic_batching=dynamic_batching,
            instances=capacity.instances if capacity else instances or 1,
            shapes=_full_shapes(signature, given, required=warmup),
            warmup=warmup,
            labels=_label_names(signature, labels or {}),
            plans=plan_files(plans or {}),
        )
        config = make_config(signature, options)
        place = None if staging is None else Path(staging)
        with stage_version(Path(repository), name, version, force=force, staging=place) as staged:
            if platform == PLAN:
                notes += _put_plans(staged, source, signature, options, plans or {})
            else:
                _put_onnx(staged, source, loaded)
            for output, file in (labels or {}).items():
                target = staged.model / options.labels[output]
                target.unlink(missing_ok=True)  # it is linked to the folder that is being served
                shutil.copyfile(file, target)
            notes += _put_configs(staged, config, signature, options)
            found = check_model(staged.model, opener)
            if not found and (staged.model / "configs" / "cpu.pbtxt").is_file():
                found = check_model(staged.model, opener, gpu=False, config_name="cpu")
            if found:
                raise UsageError(f"{source}: a server would refuse it: {found[0].reason}")
            staged.publish()
    newest = versions(Path(repository) / name)[-1]
    if newest > staged.version:
        notes.append(f"version {newest} stands beside it, is newer, and is the one served")
    path = Path(repository) / name / str(staged.version)
    return TritonResult(path, name, staged.version, config, capacity, tuple(notes), tuple(warnings))


def _check_options(
    platform: str,
    provider: str,
    max_batch_size: int | None,
    instances: int | None,
    memory: int | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    warmup: bool,
) -> None:
    if platform not in MODEL_FILES:
        raise UsageError(f"platform {platform!r}: it can be {' or '.join(MODEL_FILES)}")
    if provider not in PROVIDERS:
        raise UsageError(f"provider {provider!r}: it can be {', '.join(PROVIDERS)}")
    if max_batch_size is not None and not 0 <= max_batch_size < 2**31:
        raise UsageError(f"max batch size {max_batch_size}: 0 turns batching off")
    if instances is not None and not 1 <= instances < 2**31:
        raise UsageError(f"{instances} instances: at least 1")
    if instances is not None and memory is not None:
        raise UsageError("give the number of instances or the memory they may take, not both")
    if memory is not None and platform == PLAN:
        raise UsageError(
            "the peak of a plan is measured with 'patchconv measure' on its GPU, under TensorRT; "
            "give instances= and max_batch_size="
        )


def _check_shapes(
    signature: Signature, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    known = {tensor.name: tensor for tensor in signature.inputs}
    for name, shape in shapes.items():
        if name not in known:
            raise UsageError(f"shapes[{name!r}]: the model's inputs are {', '.join(known)}")
        dims = known[name].dims
        fits = len(dims) == len(shape) and all(
            have > 0 and want in (-1, have) for have, want in zip(shape, dims, strict=True)
        )
        if not fits:
            raise UsageError(
                f"shapes[{name!r}]: {list(shape)} does not fit the model's {list(dims)}"
            )
    return {name: tuple(shape) for name, shape in shapes.items()}


def _full_shapes(
    signature: Signature, given: Mapping[str, tuple[int, ...]], *, required: bool
) -> dict[str, tuple[int, ...]]:
    """Return the full shape of every input; none at all where one is not known."""
    full = {}
    for tensor in signature.inputs:
        shape = given.get(tensor.name, tensor.dims)
        if tensor.name not in given and shape[:1] == (-1,):
            shape = (1, *shape[1:])
        if -1 in shape:
            if required:
                wanted = ", ".join("..." if size == -1 else str(size) for size in shape)
                wanted += "," * (len(shape) == 1)
                raise UsageError(
                    f"input {tensor.name!r} has free dimensions {list(tensor.dims)}; give the "
                    f"largest sizes to expect with shapes={{{tensor.name!r}: ({wanted})}}"
                )
            return {}
        full[tensor.name] = shape
    return full


def _batch_and_instances(
    source: Path,
    signature: Signature,
    shapes: Mapping[str, tuple[int, ...]],
    problem: str | None,
    max_batch_size: int | None,
    dynamic_batching: bool,
    memory: int | None,
    provider: str,
) -> tuple[int, Capacity | None, list[str]]:
    """Return the largest batch, what the memory holds, and notes."""
    if problem is not None and (max_batch_size or dynamic_batching):
        raise UsageError(
            f"{source}: the first dimension is no batch: {problem}; leave max_batch_size= and "
            "dynamic_batching=True out, or export the model with a free batch dimension"
        )
    if dynamic_batching and not max_batch_size and memory is None:
        raise UsageError("dynamic batching needs max_batch_size=, or memory= to find it")
    if memory is None:
        return max_batch_size or 0, None, []
    _full_shapes(signature, shapes, required=True)
    batching = problem is None and max_batch_size != 0
    capacity = plan_capacity(
        memory,
        partial(footprint, source, provider, shapes, batching),
        batching=batching,
        max_batch=max_batch_size if batching else 1,
    )
    notes = []
    if problem is not None:
        notes.append(f"no batching: {problem}")
    if capacity.holds > capacity.instances:
        notes.append(
            f"the memory holds {capacity.holds} instances, {capacity.instances} were written; "
            "instances= says otherwise"
        )
    if capacity.footprint.kind == "predicted":
        notes.append(f"memory is predicted, not measured ({provider} cannot be run here)")
    return capacity.footprint.batch if batching else 0, capacity, notes


def _label_names(
    signature: Signature, labels: Mapping[str, str | os.PathLike[str]]
) -> dict[str, str]:
    names = {}
    outputs = [tensor.name for tensor in signature.outputs]
    for output, file in labels.items():
        if output not in outputs:
            raise UsageError(f"labels[{output!r}]: the model's outputs are {', '.join(outputs)}")
        if not Path(file).is_file():
            raise UsageError(f"labels[{output!r}]: {os.fspath(file)}: no such file")
        names[output] = f"labels_{outputs.index(output)}.txt"
    return names


def _put_onnx(staged: Staged, source: Path, loaded: Loaded) -> None:
    """Write the model into the version's folder, its external weights in one file beside it."""
    target = staged.folder / MODEL_FILES[ONNX]
    if not loaded.has_external_data:
        shutil.copyfile(source, target)
        return
    with stage(loaded.model, loaded.folder, target) as made:
        made.publish()


def _put_plans(
    staged: Staged,
    source: Path,
    signature: Signature,
    options: ConfigOptions,
    plans: Mapping[str, str | os.PathLike[str]],
) -> list[str]:
    notes: list[str] = []
    if not plans:
        build_plan(source, staged.folder / MODEL_FILES[PLAN], signature, options)
    for capability, file in plans.items():
        notes += check_plan(Path(file), signature, options)
        shutil.copyfile(file, staged.folder / options.plans.get(capability, MODEL_FILES[PLAN]))
    return notes


def _put_configs(
    staged: Staged, config: Any, signature: Signature, options: ConfigOptions
) -> list[str]:
    """Write the configurations; return a note where one that stood said something else."""
    file, text, notes = staged.model / "config.pbtxt", to_text(config), []
    if file.exists() and file.read_bytes() != text.encode():
        notes.append("the model's config.pbtxt said something else and was replaced")
    _write(file, text)
    on_cpu = staged.model / "configs" / "cpu.pbtxt"
    on_cpu.unlink(missing_ok=True)
    if options.platform == ONNX and options.provider != "cpu":
        on_cpu.parent.mkdir(exist_ok=True)
        _write(on_cpu, to_text(cpu_twin(signature, options)))
    return notes


def _write(path: Path, text: str) -> None:
    # A new file: the old one is linked to the folder that is being served.
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def check_triton_repository(
    repository: str | os.PathLike[str], *, gpu: bool | None = None, config_name: str = ""
) -> list[Finding]:
    """Return what a server would refuse in a model repository.

    Args:
        repository: The repository's folder.
        gpu: Whether the server has a GPU; None: not known.
        config_name: The server's ``--model-config-name``.

    Raises:
        UsageError: It is no folder, or tritonclient is not installed.
    """
    return check_repository(Path(repository), gpu=gpu, config_name=config_name)
