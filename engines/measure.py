"""Measure models side by side: peak memory and time, each model in a fresh process.

All models are open at once, each in its own process, and run in turn, round after round: what
slows the machine down slows all of them, and the ratio is taken round by round. The peak is the
process's resident high-water mark above its level before the first run (`engines.memory_probe`);
the runtime's own figure comes from one more fresh process, since profiling costs time.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines import errors
from engines.child import child_process
from engines.cuda import cuda_device
from engines.errors import EngineError
from engines.onnxruntime_engine import OrtOptions

__all__ = ["Job", "Measurement", "Spread", "cpu_name", "measure"]

_MODULE = "engines.measure_child"


@dataclass(frozen=True, slots=True)
class Job:
    """A model and the file that holds its inputs (.npz)."""

    model: Path
    inputs: Path


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and largest of several figures."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one figure."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        model: The file.
        engine: "onnxruntime".
        version: Its version.
        device: The processor, or the GPU.
        providers: The providers really in use.
        options: Every option of the session.
        runs: Number of timed runs, after one that is not timed.
        peak_bytes: Peak above the level before the first run, over all runs: on the CPU the
            process's resident high-water mark, on a GPU the device's used memory.
        host_peak_bytes: The resident high-water mark, whatever the device.
        runtime_peak_bytes: The runtime's own figure; None where it keeps none (no arena).
        input_bytes: Bytes of all inputs; not in ``peak_bytes``, they are there before.
        output_bytes: Bytes of all outputs; in ``peak_bytes``.
        latency_s: Seconds per run.
        ratio: Time over the first model's, round by round.
        date: When, UTC.
        error: Why there are no figures; empty if there are.
    """

    model: str
    engine: str = "onnxruntime"
    version: str = ""
    device: str = ""
    providers: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 0
    peak_bytes: int | None = None
    host_peak_bytes: int | None = None
    runtime_peak_bytes: int | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    latency_s: Spread | None = None
    ratio: Spread | None = None
    date: str = ""
    error: str = ""


def cpu_name() -> str:
    """Return the processor's name and its number of cores in use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def measure(
    jobs: Sequence[Job],
    options: OrtOptions,
    *,
    runs: int = 5,
    memory_limit: int | None = None,
) -> list[Measurement]:
    """Measure models under ONNX Runtime, the first as the one others are compared with.

    Args:
        jobs: Models and their inputs.
        options: Session options, the same for all.
        runs: Timed runs of each, at least 1; one more comes before, untimed but in the peak.
        memory_limit: Address space of each process in bytes, None for no limit.

    Returns:
        One measurement per model; one that crashed or ran out of memory says so in ``error``.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        DeviceMissing: The provider cannot be used here.
    """
    settings = asdict(options)
    failed: dict[int, str] = {}
    opened: dict[int, dict[str, Any]] = {}
    seconds: dict[int, list[float]] = {number: [] for number in range(len(jobs))}
    finished: dict[int, dict[str, Any]] = {}
    with ExitStack() as stack:
        children = [stack.enter_context(child_process(_MODULE)) for _ in jobs]

        def ask(number: int, **command: Any) -> dict[str, Any] | None:
            if number in failed:
                return None
            try:
                return children[number].ask(**command)
            except (errors.EngineMissing, errors.DeviceMissing):
                raise
            except EngineError as error:
                failed[number] = str(error)
                return None

        for number, job in enumerate(jobs):
            answer = ask(
                number,
                do="open",
                model=str(job.model),
                inputs=str(job.inputs),
                options=settings,
                memory_limit=memory_limit,
            )
            opened[number] = answer or {}
        for turn in range(runs + 1):
            for number in range(len(jobs)):
                answer = ask(number, do="run")
                if answer is not None and turn:
                    seconds[number].append(answer["seconds"])
        for number in range(len(jobs)):
            finished[number] = ask(number, do="finish") or {}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    results = []
    for number, job in enumerate(jobs):
        common: dict[str, Any] = {
            "model": str(job.model),
            "device": cpu_name() if options.provider == "cpu" else cuda_device(),
            "options": settings,
            "date": date,
            "version": opened[number].get("version", ""),
            "providers": tuple(opened[number].get("providers", ())),
        }
        if number in failed:
            results.append(Measurement(**common, error=failed[number]))
            continue
        figures = {key: finished[number][key] for key in ("peak_bytes", "input_bytes")}
        pairs = [a / b for a, b in zip(seconds[number], seconds[0], strict=False)]
        results.append(
            Measurement(
                **common,
                **figures,
                host_peak_bytes=finished[number]["host_peak_bytes"],
                output_bytes=finished[number]["output_bytes"],
                runs=runs,
                runtime_peak_bytes=_runtime_peak(job, settings, runs),
                latency_s=Spread.of(seconds[number]),
                ratio=Spread.of(pairs) if pairs else None,
            )
        )
    return results


def _runtime_peak(job: Job, settings: Mapping[str, Any], runs: int) -> int | None:
    with child_process(_MODULE) as child:
        try:
            answer = child.ask(
                do="profile",
                model=str(job.model),
                inputs=str(job.inputs),
                options=settings,
                runs=runs + 1,
            )
        except EngineError:
            return None
    found: int | None = answer["runtime_peak_bytes"]
    return found
