"""What a TensorRT build is asked for, under the names `trtexec` users know.

A field is `trtexec`'s flag in snake case: ``mem_pool_size`` is ``--memPoolSize``. Sizes are bytes.
Source of the flags and of their spelling: NVIDIA/TensorRT, samples/common/sampleOptions.cpp
(10.16 and 11.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from patchconv_deploy.engines.errors import OptionError
from patchconv_deploy.engines.tensorrt_layout import FORMATS

__all__ = [
    "AUTOMATIC",
    "HARDWARE_LEVELS",
    "POOLS",
    "TACTICS",
    "TILING_LEVELS",
    "TYPES",
    "VERBOSITIES",
    "BuildOptions",
    "Profile",
    "Shape",
    "share_of_weights",
    "spelled_shape",
]


Shape: TypeAlias = tuple[int, ...]

Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]

# trtexec's word -> the module's enumerator.
POOLS = {
    "workspace": "WORKSPACE",
    "dlaSRAM": "DLA_MANAGED_SRAM",
    "dlaLocalDRAM": "DLA_LOCAL_DRAM",
    "dlaGlobalDRAM": "DLA_GLOBAL_DRAM",
    "tacticSharedMem": "TACTIC_SHARED_MEMORY",
}

VERBOSITIES = {"layer_names_only": "LAYER_NAMES_ONLY", "detailed": "DETAILED", "none": "NONE"}

HARDWARE_LEVELS = {
    "none": "NONE",
    "ampere+": "AMPERE_PLUS",
    "sameComputeCapability": "SAME_COMPUTE_CAPABILITY",
}

# The first three went with TensorRT 11.
TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")

# trtexec's word -> the module's enumerator.
TYPES = {
    "fp32": "FLOAT",
    "fp16": "HALF",
    "bf16": "BF16",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}

_LEVELS = range(6)

# trtexec's number of a tiling level -> the module's enumerator.
TILING_LEVELS = ("NONE", "FAST", "MODERATE", "FULL")

# A budget of streamed weights that TensorRT chooses.
AUTOMATIC = "auto"

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options of a build; what is left at its default is left to TensorRT, but for three.

    Those three are ``max_aux_streams``, ``refit`` and ``profiling_verbosity``.

    Attributes:
        profiles: Optimisation profiles: input name -> (min, opt, max) shape. One for every input
            with free dimensions.
        mem_pool_size: Bytes per memory pool: workspace, dlaSRAM, dlaLocalDRAM, dlaGlobalDRAM,
            tacticSharedMem.
        max_aux_streams: Streams TensorRT may open beside the caller's; None leaves it to TensorRT.
            0 here, since patches are independent of each other: on parallel streams several are
            alive at once, and what the cutting saved is spent again.
        input_io_formats: Type and layout of the inputs, one for all or one for each in order:
            "fp16:hwc8" (channels last, rounded up to 8), "hwc16", "hwc", "chw"; "fp16:chw+hwc8"
            leaves TensorRT the choice of two. The type is the network's own. Empty leaves it to
            TensorRT: chw. A baseline of cutting: it must not be credited for what a layout does.
        output_io_formats: The same of the outputs.
        timing_cache_file: Timing cache, read if there and written after the build.
        fp16: Allow fp16 kernels in an fp32 network (TensorRT 10 alone).
        bf16: The same for bf16.
        int8: The same for int8.
        strongly_typed: Keep to the types of the ONNX model; TensorRT 11 and TensorRT for RTX
            always do.
        no_tf32: Multiply fp32 in full, without TF32.
        tactic_sources: "+NAME" to add a source to TensorRT's own, "-NAME" to take one off.
        builder_optimization_level: 0 (fast build) to 5 (longest search).
        tiling_optimization_level: 0 (none) to 3 (longest search): whether TensorRT looks for tiles
            of layers that follow each other, which stay in the GPU's L2 cache. TensorRT 10.8 and
            later.
        l2_limit_for_tiling: Bytes of that cache that this engine may count on. The same versions.
        allow_weight_streaming: Build a plan whose weights may stay on the host and be copied when
            they are needed. TensorRT 10 asks for ``strongly_typed`` with it.
        weight_streaming_budget: What of such weights the device keeps where the plan is opened:
            bytes, a share such as "40%", or "auto", TensorRT's choice. It is no part of the plan.
            None keeps all of them. TensorRT 10.1 and later.
        version_compatible: Let later TensorRT versions load the plan.
        hardware_compatibility_level: "none", "ampere+" or "sameComputeCapability".
        refit: Let weights be exchanged in the built engine. Off, since it bars fusions.
        profiling_verbosity: "layer_names_only", "detailed" (for the engine inspector) or "none".
        refuse_oversized: Refuse a convolution of 2^31 elements or more before TensorRT is asked;
            off, it is asked, and what it says is its own.
        compute_capability: GPU a TensorRT for RTX plan is for, such as "SM80".

    Raises:
        OptionError: A value TensorRT would refuse or, worse, leave out with a message in its log.
    """

    profiles: tuple[Profile, ...] = ()
    mem_pool_size: Mapping[str, int] = field(default_factory=dict)
    max_aux_streams: int | None = 0
    input_io_formats: tuple[str, ...] = ()
    output_io_formats: tuple[str, ...] = ()
    timing_cache_file: Path | None = None
    fp16: bool = False
    bf16: bool = False
    int8: bool = False
    strongly_typed: bool = False
    no_tf32: bool = False
    tactic_sources: tuple[str, ...] = ()
    builder_optimization_level: int | None = None
    tiling_optimization_level: int | None = None
    l2_limit_for_tiling: int | None = None
    allow_weight_streaming: bool = False
    weight_streaming_budget: int | str | None = None
    version_compatible: bool = False
    hardware_compatibility_level: str = "none"
    refit: bool = False
    profiling_verbosity: str = "detailed"
    refuse_oversized: bool = True
    compute_capability: str = "SM80"

    def __post_init__(self) -> None:
        for profile in self.profiles:
            _check_profile(profile)
        for pool, size in self.mem_pool_size.items():
            _one_of("--memPoolSize", pool, POOLS)
            if size < 0:
                raise OptionError(f"--memPoolSize {pool}:{size}: a size is 0 bytes or more")
        if self.max_aux_streams is not None and self.max_aux_streams < 0:
            raise OptionError(f"--maxAuxStreams {self.max_aux_streams}: must be 0 or more")
        for flag, wanted in self.io_formats.items():
            for spec in wanted:
                kind, colon, layout = spec.partition(":")
                if not colon:
                    raise OptionError(f"{flag} {spec}: is not of the form fp16:hwc8")
                _one_of(flag, kind, TYPES)
                for each in layout.split("+"):
                    _one_of(flag, each, FORMATS)
        level = self.builder_optimization_level
        if level is not None and level not in _LEVELS:
            raise OptionError(f"--builderOptimizationLevel {level}: must be 0 to {_LEVELS[-1]}")
        level = self.tiling_optimization_level
        if level is not None and level not in range(len(TILING_LEVELS)):
            raise OptionError(
                f"--tilingOptimizationLevel {level}: must be 0 to {len(TILING_LEVELS) - 1}"
            )
        if self.l2_limit_for_tiling is not None and self.l2_limit_for_tiling < 0:
            raise OptionError(f"--l2LimitForTiling {self.l2_limit_for_tiling}: is 0 bytes or more")
        self._check_budget()
        signs: dict[str, str] = {}
        for tactic in self.tactic_sources:
            sign, name = tactic[:1], tactic[1:]
            if sign not in ("+", "-"):
                raise OptionError(f"--tacticSources {tactic}: begins with + (add) or - (take off)")
            _one_of("--tacticSources", name, TACTICS)
            if signs.setdefault(name, sign) != sign:
                raise OptionError(f"--tacticSources {tactic}: both added and taken off")
        _one_of("--profilingVerbosity", self.profiling_verbosity, VERBOSITIES)
        level_name = self.hardware_compatibility_level
        _one_of("--hardwareCompatibilityLevel", level_name, HARDWARE_LEVELS)
        if self.strongly_typed and self.precisions:
            raise OptionError(
                f"--{self.precisions[0]} and --stronglyTyped: a strongly typed network keeps the "
                "types of the ONNX model; give one of the two"
            )

    def _check_budget(self) -> None:
        budget = self.weight_streaming_budget
        if budget is None:
            return
        if not self.allow_weight_streaming:
            raise OptionError(
                "--weightStreamingBudget: only a plan built with --allowWeightStreaming streams "
                "its weights; give both"
            )
        if isinstance(budget, str):
            good = budget == AUTOMATIC or share_of_weights(budget) is not None
        else:
            good = budget >= 0
        if not good:
            raise OptionError(
                f"--weightStreamingBudget {budget}: must be a size, a share of the weights such as "
                f"40%, or {AUTOMATIC}"
            )

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precision flags that are on."""
        return tuple(name for name in ("fp16", "bf16", "int8") if getattr(self, name))

    @property
    def io_formats(self) -> dict[str, tuple[str, ...]]:
        """Formats of inputs and of outputs, by trtexec's flag."""
        return {
            "--inputIOFormats": self.input_io_formats,
            "--outputIOFormats": self.output_io_formats,
        }

    def as_json(self) -> dict[str, Any]:
        """Return the options as JSON data, for reports."""
        return {
            "profiles": [
                {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}
                for profile in self.profiles
            ],
            "mem_pool_size": dict(self.mem_pool_size),
            "max_aux_streams": self.max_aux_streams,
            "input_io_formats": list(self.input_io_formats),
            "output_io_formats": list(self.output_io_formats),
            "timing_cache_file": _text(self.timing_cache_file),
            "fp16": self.fp16,
            "bf16": self.bf16,
            "int8": self.int8,
            "strongly_typed": self.strongly_typed,
            "no_tf32": self.no_tf32,
            "tactic_sources": list(self.tactic_sources),
            "builder_optimization_level": self.builder_optimization_level,
            "tiling_optimization_level": self.tiling_optimization_level,
            "l2_limit_for_tiling": self.l2_limit_for_tiling,
            "allow_weight_streaming": self.allow_weight_streaming,
            "weight_streaming_budget": self.weight_streaming_budget,
            "version_compatible": self.version_compatible,
            "hardware_compatibility_level": self.hardware_compatibility_level,
            "refit": self.refit,
            "profiling_verbosity": self.profiling_verbosity,
            "refuse_oversized": self.refuse_oversized,
            "compute_capability": self.compute_capability,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildOptions:
        """Return the options that `as_json` wrote."""
        profiles = tuple(
            {
                name: (tuple(shapes[0]), tuple(shapes[1]), tuple(shapes[2]))
                for name, shapes in profile.items()
            }
            for profile in data["profiles"]
        )
        cache = data["timing_cache_file"]
        return cls(
            **{
                **data,
                "profiles": profiles,
                "tactic_sources": tuple(data["tactic_sources"]),
                "input_io_formats": tuple(data["input_io_formats"]),
                "output_io_formats": tuple(data["output_io_formats"]),
                "timing_cache_file": None if cache is None else Path(cache),
            }
        )


def share_of_weights(text: str) -> float | None:
    """Return the share, 0 to 1, that a text such as "40%" is; None if it is none."""
    found = _PERCENT.fullmatch(text)
    share = None if found is None else float(found[1]) / 100
    return share if share is None or share <= 1 else None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _one_of(flag: str, value: str, known: Mapping[str, str] | Sequence[str]) -> None:
    if value not in known:
        raise OptionError(f"{flag} {value}: must be one of {', '.join(known)}")


def _check_profile(profile: Profile) -> None:
    for name, (least, opt, most) in profile.items():
        if not len(least) == len(opt) == len(most):
            raise OptionError(f"profile of input {name}: min, opt and max have different ranks")
        if any(not 0 <= a <= b <= c for a, b, c in zip(least, opt, most, strict=True)):
            shapes = ", ".join(spelled_shape(shape) for shape in (least, opt, most))
            raise OptionError(
                f"profile of input {name}: {shapes} are not min <= opt <= max in every dimension"
            )


def spelled_shape(shape: Shape) -> str:
    """Return a shape as trtexec reads it: 1x3x8x8, or scalar."""
    return "x".join(str(size) for size in shape) if shape else "scalar"
