"""TensorRT: plan or measure models, each in a fresh process.

TensorRT for RTX builds without a GPU, and its builder says what memory it plans: that is a plan,
and labelled so. TensorRT proper builds and runs on the GPU: its peak is what a recording allocator
saw.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.errors import DeviceMissing, EngineError, EngineMissing
from patchconv_deploy.engines.measurement import Job, Spread, now
from patchconv_deploy.engines.ort.measure import ROUNDS
from patchconv_deploy.engines.process.child import Child, child_process, time_limit
from patchconv_deploy.engines.timing import Timing
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.engines.windows import as_json

__all__ = ["TensorRTResult", "measure_tensorrt", "plan_tensorrt"]


_MODULE = "patchconv_deploy.engines.trt.child"


@dataclass(frozen=True)
class TensorRTResult:
    """What TensorRT plans for a model, and, on a GPU, what was measured.

    Attributes:
        model: The file.
        kind: "planned" (TensorRT for RTX, no GPU used) or "measured".
        engine: "tensorrt-rtx" or "tensorrt".
        version: Its version.
        device: The GPU, or what the plan is for.
        options: Every option of the build.
        planned_activation_bytes: Activation memory the builder plans; inputs, outputs not in it.
        planned_scratch_bytes: Largest scratch memory of a layer, as planned.
        weights_bytes: Weights in the plan.
        build_s: Seconds of the build.
        skipped_tactics: Tactics that asked for more workspace than allowed: layer and bytes.
        phases: Measured: what was allocated while the CUDA context was made, the plan opened, its
            context made, and in the first and in later runs; bytes above the phase's beginning,
            by the allocator (``peak_bytes``, ``held_bytes``) and by the device's own figure.
        device_state: Measured: clocks, power and what slowed the device down when time was taken.
        device_memory_bytes: Measured: context memory as the engine says, its largest profile's.
        device_memory_per_profile_bytes: Measured: the same of each profile.
        layer_information: Measured: the engine inspector's, per layer.
        weight_streaming: Measured: bytes of weights that may be streamed, those that the device
            keeps, and what their copies need; None where no budget was given.
        peak_bytes: Measured: most the allocator had out while running, without the weights.
        peak_with_weights_bytes: Measured: the same with them.
        process_bytes: Measured: the process's resident high-water mark.
        builder_peak_bytes: Most that the builder had allocated on the device.
        build_process_bytes: That of the process it was built in.
        io_bytes: Measured: inputs and outputs, counted apart.
        latency_s: Measured: seconds per run, by CUDA events.
        date: When, UTC.
        error: Why there are no figures; empty if there are.
        note: What a caller has to say about it.
    """

    model: str
    kind: str
    engine: str
    version: str = ""
    device: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    planned_activation_bytes: int | None = None
    planned_scratch_bytes: int | None = None
    weights_bytes: int | None = None
    build_s: float | None = None
    skipped_tactics: Sequence[Mapping[str, Any]] = ()
    device_memory_bytes: int | None = None
    device_memory_per_profile_bytes: Sequence[int] = ()
    layer_information: Any = None
    weight_streaming: Mapping[str, int] | None = None
    phases: Mapping[str, Any] = field(default_factory=dict)
    device_state: Mapping[str, Any] = field(default_factory=dict)
    peak_bytes: int | None = None
    peak_with_weights_bytes: int | None = None
    process_bytes: int | None = None
    build_process_bytes: int | None = None
    builder_peak_bytes: int | None = None
    io_bytes: int | None = None
    latency_s: Spread | None = None
    date: str = ""
    error: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data; a plan has no measured figures, not even empty ones."""
        data = asdict(self)
        if self.kind == "planned":
            for name in (*_MEASURED, "latency_s", "device_state"):
                if name != "device":
                    del data[name]
        return data


def _planned(model: Path, options: BuildOptions, engine: str, plan: Path | None) -> dict[str, Any]:
    with child_process(_MODULE) as child:
        return child.ask(
            "build",
            engine=engine,
            model=str(model),
            options=options.as_json(),
            plan=None if plan is None else str(plan),
        )


_SHARED = (
    "version",
    "device",
    "options",
    "build_s",
    "weights_bytes",
    "planned_activation_bytes",
    "planned_scratch_bytes",
    "skipped_tactics",
    "build_process_bytes",
    "builder_peak_bytes",
)

_MEASURED = (
    "device",
    "peak_bytes",
    "peak_with_weights_bytes",
    "io_bytes",
    "phases",
    "device_memory_bytes",
    "device_memory_per_profile_bytes",
    "process_bytes",
    "weight_streaming",
    "layer_information",
)


def plan_tensorrt(
    models: Sequence[Path], options: Sequence[BuildOptions], engine: str = "tensorrt-rtx"
) -> list[TensorRTResult]:
    """Build models and read what the builder plans; nothing runs.

    Args:
        models: ONNX files.
        options: Options of each build.
        engine: "tensorrt-rtx", or "tensorrt" on a machine with a GPU.

    Returns:
        One result a model; a model that is refused says why in ``error``.

    Raises:
        EngineMissing: The module is not installed.
        DeviceMissing: It builds on a GPU, and there is none.
    """
    results = []
    for model, wanted in zip(models, options, strict=True):
        common: dict[str, Any] = {"model": str(model), "kind": "planned", "engine": engine}
        try:
            found = _planned(model, wanted, engine, None)
        except (EngineMissing, DeviceMissing):
            raise
        except EngineError as error:
            results.append(TensorRTResult(**common, date=now(), error=str(error)))
            continue
        figures = {name: found[name] for name in _SHARED}
        note = "; ".join(found["notes"])
        results.append(TensorRTResult(**common, **figures, date=now(), note=note))
    return results


def measure_tensorrt(
    jobs: Sequence[Job],
    options: Sequence[BuildOptions],
    *,
    timing: Timing | None = None,
    engine: str = "tensorrt",
    time_limit_s: float | None = None,
    rounds: int = ROUNDS,
) -> list[TensorRTResult]:
    """Build and run models on the GPU, each in a fresh process.

    Memory is measured one model after the other; then they take turns in being timed. Meanwhile
    each keeps its weights on the device, and its CUDA context.

    Args:
        jobs: ONNX files and their inputs.
        options: Options of each build.
        timing: Runs of each in a round, `Timing` if None.
        engine: "tensorrt" or "tensorrt-rtx".
        time_limit_s: Seconds that each may take to be built and have its memory measured, and
            again in each round; None for no limit. One that takes longer costs no other its time.
        rounds: Rounds in which they are timed, at least 1.

    Raises:
        EngineMissing: The module or cuda-python is not installed.
        DeviceMissing: There is no GPU.
    """
    found: list[TensorRTResult | _Measuring] = []
    with ExitStack() as stack:
        for job, wanted in zip(jobs, options, strict=True):
            with time_limit(time_limit_s):
                found.append(_begin(stack, job, wanted, engine))
        # Round after round, so that what slows the device down slows all of them.
        for _ in range(rounds):
            for number, each in enumerate(found):
                if isinstance(each, _Measuring):
                    with time_limit(time_limit_s):
                        found[number] = each.timed(timing or Timing())
    return [each.result() if isinstance(each, _Measuring) else each for each in found]


@dataclass
class _Measuring:
    """A model whose memory is measured and whose time is being taken."""

    child: Child
    common: Mapping[str, Any]
    figures: Mapping[str, Any]
    note: str
    seconds: list[float] = field(default_factory=list)
    state: Mapping[str, Any] = field(default_factory=dict)

    def timed(self, timing: Timing) -> _Measuring | TensorRTResult:
        """Take times once more; a model that fails has no figures."""
        try:
            answer = self.child.ask("time", timing=asdict(timing))
        except EngineError as error:
            return TensorRTResult(**self.common, date=now(), error=str(error))
        self.seconds += answer["seconds"]
        self.state = answer["state"]
        return self

    def result(self) -> TensorRTResult:
        """Return what was found."""
        return TensorRTResult(
            **self.common,
            **self.figures,
            latency_s=Spread.of(self.seconds),
            device_state=self.state,
            date=now(),
            note=self.note,
        )


def _begin(
    stack: ExitStack, job: Job, wanted: BuildOptions, engine: str
) -> TensorRTResult | _Measuring:
    """Build a model and measure its memory; its process stays, for its time."""
    common: dict[str, Any] = {"model": str(job.model), "kind": "measured", "engine": engine}
    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        plan = Path(name) / "model.plan"
        try:
            built = _planned(job.model, wanted, engine, plan)
            child = stack.enter_context(child_process(_MODULE))
            measured = child.ask(
                "measure",
                engine=engine,
                plan=str(plan),
                inputs=str(job.inputs),
                # It was built a moment ago from a model: its code is TensorRT's own.
                host_code=wanted.version_compatible,
                weight_streaming_budget=wanted.weight_streaming_budget,
                windows=as_json(job.windows),
                sampled=None if job.sampled is None else str(job.sampled),
            )
        except (EngineMissing, DeviceMissing):
            raise
        except EngineError as error:
            return TensorRTResult(**common, date=now(), error=str(error))
    figures = {name: built[name] for name in _SHARED}
    figures |= {name: measured[name] for name in _MEASURED}
    return _Measuring(child, common, figures, "; ".join(built["notes"]))
