"""The `trtexec` command line that asks for what a build's options ask for.

Source of the flags and of their spelling: NVIDIA/TensorRT, samples/common/sampleOptions.cpp
(10.16 and 11.1).
"""

from __future__ import annotations

import shlex
from pathlib import Path

from patchconv_deploy.engines.trt.options import AUTOMATIC, BuildOptions, Profile, spelled_shape

__all__ = ["trtexec_command"]


def _size(size: int) -> str:
    """Spell bytes as trtexec reads them: one letter. It takes "64MiB" for 64 bytes."""
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return f"{size}B"


def _shape_flags(profile: Profile) -> list[str]:
    flags = []
    for position, flag in enumerate(("min", "opt", "max")):
        spec = ",".join(
            f"{name}:{spelled_shape(shapes[position])}" for name, shapes in profile.items()
        )
        flags.append(f"--{flag}Shapes={spec}")
    return flags


def _streaming_flags(options: BuildOptions) -> list[str]:
    budget, flags = options.weight_streaming_budget, list[str]()
    if options.allow_weight_streaming:
        flags.append("--allowWeightStreaming")
    if budget is not None:
        spelled = _size(budget) if isinstance(budget, int) else budget
        # -1 is trtexec's word for TensorRT's own choice.
        flags.append(f"--weightStreamingBudget={'-1' if budget == AUTOMATIC else spelled}")
    return flags


def trtexec_command(options: BuildOptions, model: Path, plan: Path) -> str:
    """Return the `trtexec` command line that asks TensorRT for the same.

    It stops after the build, as the build here does, but for a budget of streamed weights: that is
    used where a plan runs. `compute_capability` has no flag: `trtexec` builds for the GPU it runs
    on.

    Args:
        options: What to ask for.
        model: The ONNX model.
        plan: Where the plan goes.
    """
    words = ["trtexec", f"--onnx={model}", f"--saveEngine={plan}"]
    if options.weight_streaming_budget is None:
        words.append("--skipInference")
    for number, profile in enumerate(options.profiles):
        # Several sets of shapes are accepted behind --profile alone.
        if len(options.profiles) > 1:
            words.append(f"--profile={number}")
        words += _shape_flags(profile)
    if options.mem_pool_size:
        pools = (f"{pool}:{_size(size)}" for pool, size in options.mem_pool_size.items())
        words.append("--memPoolSize=" + ",".join(pools))
    if options.max_aux_streams is not None:
        words.append(f"--maxAuxStreams={options.max_aux_streams}")
    words += [f"{flag}={','.join(wanted)}" for flag, wanted in options.io_formats.items() if wanted]
    if options.timing_cache_file is not None:
        words.append(f"--timingCacheFile={options.timing_cache_file}")
    switches = (
        (options.fp16, "--fp16"),
        (options.bf16, "--bf16"),
        (options.int8, "--int8"),
        (options.strongly_typed, "--stronglyTyped"),
        (options.no_tf32, "--noTF32"),
        (options.version_compatible, "--versionCompatible"),
        (options.refit, "--refit"),
    )
    words += [flag for on, flag in switches if on]
    if options.tactic_sources:
        words.append("--tacticSources=" + ",".join(options.tactic_sources))
    if options.builder_optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.builder_optimization_level}")
    if options.tiling_optimization_level is not None:
        words.append(f"--tilingOptimizationLevel={options.tiling_optimization_level}")
    if options.l2_limit_for_tiling is not None:
        # Bytes; a letter behind them is not read by every version.
        words.append(f"--l2LimitForTiling={options.l2_limit_for_tiling}")
    words += _streaming_flags(options)
    if options.hardware_compatibility_level != "none":
        words.append(f"--hardwareCompatibilityLevel={options.hardware_compatibility_level}")
    words.append(f"--profilingVerbosity={options.profiling_verbosity}")
    return shlex.join(words)
