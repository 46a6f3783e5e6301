"""What is asked of each engine, and which of its figures are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cuda import cuda_device
from engines.measure import Job, Measurement, Spread, measure
from engines.measure_tensorrt import TensorRTResult, measure_tensorrt, plan_tensorrt
from engines.onnxruntime_engine import OrtOptions
from engines.tensorrt_options import BuildOptions
from engines.timing import Timing

__all__ = ["CPU_ENGINES", "GPU_ENGINES", "Engine", "Figure", "Found", "Request"]


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


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an engine.

    Attributes:
        job: The model, its inputs, and the windows of its output to write.
        runs: Timed runs.
        timing_cache: TensorRT's, read and written.
        ask_anyway: Let TensorRT say itself what it thinks of tensors of 2^31 elements and more.
    """

    job: Job
    runs: int
    timing_cache: Path | None = None
    ask_anyway: bool = False


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
    """

    name: str
    title: str
    kind: str
    memory: str
    columns: tuple[tuple[str, str], ...]
    runs: bool
    scaled: bool
    ask: Callable[[Request], Found]


def _figures(
    unit: str, kind: str, values: Mapping[str, float | None], figures: dict[str, Figure]
) -> None:
    figures.update(
        {name: Figure(value, unit, kind) for name, value in values.items() if value is not None}
    )


def _latency(spread: Spread | None, figures: dict[str, Figure]) -> None:
    if spread is not None:
        shown = dataclasses.asdict(spread)
        _figures("s", "measured", {f"latency_{k}_s": v for k, v in shown.items()}, figures)


def _of_tensorrt(result: TensorRTResult) -> Found:
    figures: dict[str, Figure] = {}
    planned = ("planned_activation_bytes", "planned_scratch_bytes", "weights_bytes")
    _figures("bytes", "planned", {name: getattr(result, name) for name in planned}, figures)
    measured = ("peak_bytes", "peak_with_weights_bytes", "io_bytes", "process_bytes")
    _figures("bytes", "measured", {name: getattr(result, name) for name in measured}, figures)
    if result.kind == "measured":
        host = {"build_process_bytes": result.build_process_bytes}
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


def _plan(request: Request) -> Found:
    return _of_tensorrt(plan_tensorrt([request.job.model], [_BUILD])[0])


def _tensorrt(request: Request) -> Found:
    options = dataclasses.replace(
        _BUILD,
        timing_cache_file=request.timing_cache,
        refuse_oversized=not request.ask_anyway,
    )
    timing = Timing.of(request.runs)
    return _of_tensorrt(measure_tensorrt([request.job], [options], timing=timing)[0])


def _cuda(request: Request) -> Found:
    # One model at a time: two at once might not fit where each does.
    # In one process each: on a GPU opening a session searches algorithms anew, which takes long.
    options = [OrtOptions(provider="cuda")]
    result = measure([request.job], options, runs=request.runs, processes=1)[0]
    return _of_onnxruntime(result, cuda_device())


def _cpu(request: Request) -> Found:
    result = measure([request.job], [OrtOptions()], runs=request.runs, processes=1)[0]
    return _of_onnxruntime(result, result.device)


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
    ),
)
