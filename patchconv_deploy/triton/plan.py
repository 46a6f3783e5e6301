"""TensorRT plans in a repository: one file a compute capability, profiles that match the batch.

A plan is built on the GPU it is for. Its inputs and outputs are those of the ONNX file; its one
profile reaches from batch 1 to the largest. A plan that was built before is held against both where
TensorRT and a GPU are at hand, and said to be unchecked elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.errors import DeviceMissing, EngineMissing, LoadError
from patchconv_deploy.engines.gpu.cuda import cuda_device
from patchconv_deploy.engines.trt.build import build, load_module
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.engines.trt.run import open_engine
from patchconv_deploy.errors import UsageError
from patchconv_deploy.triton.config import ConfigOptions
from patchconv_deploy.triton.signature import Signature

__all__ = ["build_plan", "check_plan", "engine_problems", "plan_files"]


def plan_files(plans: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Return, per compute capability, the name of its plan's file; a plan for any GPU has none.

    Raises:
        UsageError: A capability is not of the form 8.0, or a file is missing.
    """
    names = {}
    for capability, file in plans.items():
        if not Path(file).is_file():
            raise UsageError(f"plans={os.fspath(file)!r}: no such file")
        if capability and not re.fullmatch(r"[0-9]{1,2}\.[0-9]", capability):
            raise UsageError(f"plans[{capability!r}]: a compute capability is of the form 8.0")
        if capability:
            names[capability] = f"model_{capability.replace('.', '')}.plan"
    return names


def build_plan(source: Path, target: Path, signature: Signature, options: ConfigOptions) -> None:
    """Build a plan on this machine's GPU whose profile holds every batch the server may send.

    Raises:
        EngineMissing: TensorRT is not installed.
        DeviceMissing: There is no GPU.
        UsageError: A size is not known.
    """
    module = load_module("tensorrt")
    cuda_device()
    free = [tensor for tensor in signature.inputs if -1 in tensor.dims]
    profile = {}
    for tensor in free:
        shape = options.shapes.get(tensor.name)
        if shape is None:
            raise UsageError(f"input {tensor.name!r} has free dimensions; give shapes=")
        least, most = shape, shape
        if options.max_batch_size:
            least, most = (1, *shape[1:]), (options.max_batch_size, *shape[1:])
        profile[tensor.name] = (least, most, most)
    made = build(source, BuildOptions(profiles=(profile,) if profile else ()), module)
    target.write_bytes(made.plan)


def check_plan(file: Path, signature: Signature, options: ConfigOptions) -> list[str]:
    """Hold a plan against the model and the batch; return notes.

    Raises:
        UsageError: It does not fit.
    """
    try:
        with open_engine(file.read_bytes(), load_module("tensorrt")) as opened:
            problems = list(engine_problems(opened.engine, signature, options.max_batch_size))
    except (EngineMissing, DeviceMissing) as error:
        return [f"{file} was not opened, only copied: {error}"]
    except LoadError as error:
        return [f"{file} was not built for the GPU here, only copied: {error}"]
    if problems:
        raise UsageError(f"{file}: {problems[0]}")
    return []


def engine_problems(engine: Any, signature: Signature, max_batch_size: int) -> Iterator[str]:
    """Yield where a TensorRT engine does not agree with a model and a largest batch."""
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    known = {tensor.name: tensor for tensor in (*signature.inputs, *signature.outputs)}
    if names != set(known):
        yield f"the plan has the tensors {sorted(names)}, the model {sorted(known)}"
        return
    for name, tensor in known.items():
        shape = tuple(engine.get_tensor_shape(name))
        if shape != tensor.dims:
            yield f"{name!r} is {list(shape)} in the plan, {list(tensor.dims)} in the model"
    for tensor in signature.inputs if max_batch_size else ():
        for number in range(engine.num_optimization_profiles):
            least, _, most = engine.get_tensor_profile_shape(tensor.name, number)
            if least[0] > 1 or most[0] < max_batch_size:
                yield (
                    f"profile {number} takes batches of {least[0]} to {most[0]} for "
                    f"{tensor.name!r}, the configuration allows 1 to {max_batch_size}; "
                    "build it with --minShapes and --maxShapes to match"
                )
