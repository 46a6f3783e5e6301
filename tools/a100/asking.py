"""What is asked of each engine, and which of its figures are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.gpu.cuda import cuda_device
from patchconv_deploy.engines.measurement import Job, Measurement, Spread
from patchconv_deploy.engines.ort.measure import Turns, measure, time_in_turns
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.engines.process.child import time_limit
from patchconv_deploy.engines.timing import Timing
from patchconv_deploy.engines.trt.measure import TensorRTResult, measure_tensorrt, plan_tensorrt
from patchconv_deploy.engines.trt.options import BuildOptions
from tools.a100.compared import Compared

__all__ = [
    "CPU_ENGINES",
    "DEFAULT",
    "GPU_ENGINES",
    "Engine",
    "Figure",
    "Found",
    "Request",
    "Setting",
    "latency_figures",
    "sampled_of",
]

# What the setting is called that a row's own figures are of.
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, its unit ("bytes", "s"), and whether it was "measured" or "planned"."""

    value: float
    unit: str
    kind: str


@dataclass(frozen=True, slots=True)
class Found:
    """What an engine says of a model: figures, or an error."""

    figures: Mapping[str, Figure]
    version: str
    device: str
    options: Mapping[str, Any]
    date: str
    error: str = ""
    device_state: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an engine.

    Attributes:
        job: The model, its inputs, and the windows of its output to write.
        runs: Timed runs.
        timing_cache: TensorRT's, read and written.
        sweep: Ask under each of the engine's other settings, too.
        ask_anyway: Let TensorRT say itself what it thinks of tensors of 2^31 elements and more.
        time_limit_s: Seconds that the model may take, under each setting anew; None for no limit.
        rounds: Rounds in which models take turns in being timed.
    """

    job: Job
    runs: int
    timing_cache: Path | None = None
    ask_anyway: bool = False
    sweep: bool = False
    time_limit_s: float | None = None
    rounds: int = 0

    def jobs(self, count: int) -> list[Job]:
        """Return the job and as many others of the same model; each writes windows of its own."""
        first = self.job.sampled
        return [
            dataclasses.replace(
                self.job, sampled=None if first is None else sampled_of(first, number)
            )
            for number in range(count)
        ]


def sampled_of(first: Path, number: int) -> Path:
    """Return the file of the windows of a setting; the default's is number 0."""
    return first.with_name(f"{first.name}-{number}.npz") if number else first


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine says of the model under another setting than the default.

    Attributes:
        name: The setting.
        figures: What it says.
        skipped: Tactics that asked for more memory than they may have; TensorRT alone.
        error: Why there are no figures; empty if there are.
        compared: How sampled windows of its output compare with a reference.
        not_compared: Why they were not, where it ran.
        rounds: Rounds of turns with the other models that its time is from; 0: it was timed alone.
        device_state: Clocks, power and what slowed the device down, when time was taken.
    """

    name: str
    figures: Mapping[str, Figure]
    skipped: int | None = None
    error: str = ""
    compared: Compared | None = None
    not_compared: str = ""
    rounds: int = 0
    device_state: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to get figures of a model.

    Attributes:
        name: "tensorrt", "tensorrt-rtx" or "onnxruntime".
        title: The same for people, with what its memory figure is.
        kind: "measured" or "planned": what its memory figure is.
        memory: Name of the figure that plots show and ratios are taken of.
        columns: Headings of tables, with the name of their figure.
        runs: It runs the model, so it needs inputs.
        scaled: It takes stand-ins.
        ask: Returns what it says of a model.
        turns: Times models, each under the setting of that name, in turns; the request says how.
            None where nothing runs, or there is one model of a case alone.
        settings_too: Other settings than the default take turns as well.
    """

    name: str
    title: str
    kind: str
    memory: str
    columns: tuple[tuple[str, str], ...]
    runs: bool
    scaled: bool
    ask: Callable[[Request], Found]
    turns: Callable[[Request, Sequence[tuple[Job, str]]], list[Turns]] | None = None
    settings_too: bool = False


def _figures(
    unit: str, kind: str, values: Mapping[str, float | None], figures: dict[str, Figure]
) -> None:
    figures.update(
        {name: Figure(value, unit, kind) for name, value in values.items() if value is not None}
    )


def latency_figures(spread: Spread) -> dict[str, Figure]:
    """Return the figures of a model's time."""
    return {
        f"latency_{name}_s": Figure(value, "s", "measured")
        for name, value in dataclasses.asdict(spread).items()
    }


def _latency(spread: Spread | None, figures: dict[str, Figure]) -> None:
    if spread is not None:
        figures.update(latency_figures(spread))


def _of_tensorrt(result: TensorRTResult) -> Found:
    figures: dict[str, Figure] = {}
    planned = ("planned_activation_bytes", "planned_scratch_bytes", "weights_bytes")
    _figures("bytes", "planned", {name: getattr(result, name) for name in planned}, figures)
    measured = ("peak_bytes", "peak_with_weights_bytes", "io_bytes", "process_bytes")
    _figures("bytes", "measured", {name: getattr(result, name) for name in measured}, figures)
    if result.kind == "measured":
        names = ("build_process_bytes", "builder_peak_bytes")
        host = {name: getattr(result, name) for name in names}
        _figures("bytes", "measured", host, figures)
    if result.peak_with_weights_bytes is not None and result.io_bytes is not None:
        total = result.peak_with_weights_bytes + result.io_bytes
        _figures("bytes", "measured", {"device_bytes": total}, figures)
    _figures("s", "measured", {"build_s": result.build_s}, figures)
    _latency(result.latency_s, figures)
    return Found(
        figures,
        result.version,
        result.device,
        result.options,
        result.date,
        result.error,
        result.device_state,
    )


def _of_onnxruntime(result: Measurement, device: str) -> Found:
    figures: dict[str, Figure] = {}
    names = (
        "peak_bytes", "runtime_peak_bytes", "input_bytes", "output_bytes", "process_bytes",
        "host_peak_bytes",
    )  # fmt: skip
    _figures("bytes", "measured", {name: getattr(result, name) for name in names}, figures)
    _latency(result.latency_s, figures)
    return Found(
        figures,
        result.version,
        device,
        result.options,
        result.date,
        result.error,
        result.device_state,
    )


# Float16 all through, as the model says, and not what a builder makes of it.
_BUILD = BuildOptions(strongly_typed=True)


# Peak workspace is what a card asks for: what a model costs with less, and with more of it. And the
# layout that tensor cores want, at both ends, which cutting must not be credited for.
_CHANNELS_LAST = ("fp16:hwc8",)
_TENSORRT_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"workspace {size}": {"mem_pool_size": {"workspace": bytes_}}
        for size, bytes_ in (("0", 0), ("256 MiB", 1 << 28), ("1 GiB", 1 << 30), ("4 GiB", 1 << 32))
    },
    "hwc8 I/O": {"input_io_formats": _CHANNELS_LAST, "output_io_formats": _CHANNELS_LAST},
}


def _swept(request: Request, base: BuildOptions) -> list[BuildOptions]:
    """Return the options of the default and of each setting."""
    # Of a tactic that is in a timing cache nothing is said.
    plain = dataclasses.replace(base, timing_cache_file=None)
    others = _TENSORRT_SETTINGS.values() if request.sweep else ()
    return [base, *(dataclasses.replace(plain, **other) for other in others)]


def _with_settings(results: Sequence[TensorRTResult]) -> Found:
    settings = tuple(
        Setting(
            name,
            _of_tensorrt(each).figures,
            len(each.skipped_tactics),
            each.error,
            device_state=each.device_state,
        )
        for name, each in zip(_TENSORRT_SETTINGS, results[1:], strict=False)
    )
    return dataclasses.replace(_of_tensorrt(results[0]), settings=settings)


def _plan(request: Request) -> Found:
    results = []
    for wanted in _swept(request, _BUILD):
        with time_limit(request.time_limit_s):
            results += plan_tensorrt([request.job.model], [wanted])
    return _with_settings(results)


def _built(request: Request) -> BuildOptions:
    return dataclasses.replace(
        _BUILD, timing_cache_file=request.timing_cache, refuse_oversized=not request.ask_anyway
    )


def _tensorrt(request: Request) -> Found:
    options = _swept(request, _built(request))
    # All settings take turns in being timed; each has its weights on the device meanwhile.
    timing, jobs = Timing.of(request.runs), request.jobs(len(options))
    limit = request.time_limit_s
    return _with_settings(measure_tensorrt(jobs, options, timing=timing, time_limit_s=limit))


def _tensorrt_turns(request: Request, timed: Sequence[tuple[Job, str]]) -> list[Turns]:
    """Build once more, out of the timing cache; all keep their weights on the device meanwhile."""
    results = measure_tensorrt(
        [job for job, _ in timed],
        [_built(request)] * len(timed),
        timing=Timing.of(request.runs),
        time_limit_s=request.time_limit_s,
        rounds=request.rounds,
    )
    return [
        Turns(each.latency_s, request.rounds, each.device_state, each.error) for each in results
    ]


# How the arena grows, and the layout that convolutions run in, each and both: cutting must not be
# credited for what they do. Plans are made for sessions without memory reuse and pattern, which
# they recommend: many regions at the defaults hold more than was planned. On the CPU the runtime's
# own defaults, and no arena, beside those.
_CUDA = OrtOptions(provider="cuda")
_AS_REQUESTED = OrtOptions("cuda", arena_extend_strategy="kSameAsRequested")
_NO_REUSE = dataclasses.replace(_AS_REQUESTED, memory_pattern=False, memory_reuse=False)
_CUDA_SETTINGS = {
    "kSameAsRequested": _AS_REQUESTED,
    "prefer_nhwc": OrtOptions("cuda", prefer_nhwc=True),
    "kSameAsRequested, prefer_nhwc": dataclasses.replace(_AS_REQUESTED, prefer_nhwc=True),
    "kSameAsRequested, no reuse": _NO_REUSE,
    "kSameAsRequested, no reuse, prefer_nhwc": dataclasses.replace(_NO_REUSE, prefer_nhwc=True),
}
_CPU = OrtOptions(memory_pattern=False, memory_reuse=False)
_CPU_SETTINGS = {"defaults": OrtOptions(), "no arena": dataclasses.replace(_CPU, arena=False)}


def _onnxruntime(
    request: Request, base: OrtOptions, others: Mapping[str, OrtOptions], device: str
) -> Found:
    """Measure one setting after the other: two arenas at once might not fit where each does."""
    options = [base, *(others.values() if request.sweep else ())]
    # In one process each: on a GPU opening a session searches algorithms anew, which takes long.
    results: list[Measurement] = []
    for job, wanted in zip(request.jobs(len(options)), options, strict=True):
        with time_limit(request.time_limit_s):
            results += measure([job], [wanted], runs=request.runs, processes=1)
    settings = tuple(
        Setting(
            name,
            _of_onnxruntime(each, "").figures,
            None,
            each.error,
            device_state=each.device_state,
        )
        for name, each in zip(others, results[1:], strict=False)
    )
    first = _of_onnxruntime(results[0], device or results[0].device)
    return dataclasses.replace(first, settings=settings)


def _cuda(request: Request) -> Found:
    return _onnxruntime(request, _CUDA, _CUDA_SETTINGS, cuda_device())


def _cpu(request: Request) -> Found:
    return _onnxruntime(request, _CPU, _CPU_SETTINGS, "")


def _onnxruntime_turns(
    base: OrtOptions, others: Mapping[str, OrtOptions]
) -> Callable[[Request, Sequence[tuple[Job, str]]], list[Turns]]:
    options = {DEFAULT: base, **others}

    def take(request: Request, timed: Sequence[tuple[Job, str]]) -> list[Turns]:
        return time_in_turns(
            [job for job, _ in timed],
            [options[setting] for _, setting in timed],
            runs=request.runs,
            rounds=request.rounds,
            time_limit_s=request.time_limit_s,
        )

    return take


_LATENCY = ("latency, s (measured)", "latency_median_s")
_BUILT = ("build, s (measured)", "build_s")

GPU_ENGINES: tuple[Engine, ...] = (
    Engine(
        "tensorrt",
        "TensorRT, measured",
        "measured",
        "peak_bytes",
        (
            ("peak, MiB (measured)", "peak_bytes"),
            ("whole device, MiB (measured)", "device_bytes"),
            ("workspace, MiB (planned)", "planned_scratch_bytes"),
            _BUILT,
            _LATENCY,
        ),
        runs=True,
        scaled=False,
        ask=_tensorrt,
        turns=_tensorrt_turns,
    ),
    Engine(
        "onnxruntime",
        "ONNX Runtime CUDA, measured",
        "measured",
        "peak_bytes",
        (
            ("peak on the device, MiB (measured)", "peak_bytes"),
            ("arena's own, MiB (measured)", "runtime_peak_bytes"),
            _LATENCY,
        ),
        runs=True,
        scaled=False,
        ask=_cuda,
        turns=_onnxruntime_turns(_CUDA, _CUDA_SETTINGS),
        settings_too=True,
    ),
)
CPU_ENGINES: tuple[Engine, ...] = (
    Engine(
        "tensorrt-rtx",
        "TensorRT for RTX, planned for SM80; nothing ran",
        "planned",
        "planned_activation_bytes",
        (
            ("activation, MiB (planned)", "planned_activation_bytes"),
            ("workspace, MiB (planned)", "planned_scratch_bytes"),
            ("weights, MiB (planned)", "weights_bytes"),
            _BUILT,
        ),
        runs=False,
        scaled=False,
        ask=_plan,
    ),
    Engine(
        "onnxruntime",
        "ONNX Runtime on the CPU, measured on stand-ins",
        "measured",
        "peak_bytes",
        (
            ("peak, MiB (measured)", "peak_bytes"),
            ("arena's own, MiB (measured)", "runtime_peak_bytes"),
            _LATENCY,
        ),
        runs=True,
        scaled=True,
        ask=_cpu,
        turns=_onnxruntime_turns(_CPU, _CPU_SETTINGS),
        settings_too=True,
    ),
)
