"""What is measured of a model, whatever the engine: a job, a spread of times, a row of figures."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.windows import Window

__all__ = ["Job", "Measurement", "Spread", "cpu_name", "now"]


@dataclass(frozen=True, slots=True)
class Job:
    """A model and the file that holds its inputs (.npz).

    Attributes:
        model: The ONNX file.
        inputs: One array per input.
        windows: Windows of the first output that are written, after the last timed run.
        sampled: The file (.npz) they are written to.
    """

    model: Path
    inputs: Path
    windows: tuple[Window, ...] = ()
    sampled: Path | None = None


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
        rounds: Rounds of fresh processes that they were taken in, one model after the other; 0
            where all were open at once.
        processes: Number of processes that the peaks are from.
        fixed_addresses: They had the same addresses as they will have the next time.
        peak_bytes: Peak above the level before the first run, over all runs and processes: on the
            CPU the process's resident high-water mark, or what the arena had in use where that is
            more; on a GPU the device's used memory.
        peaks_bytes: That of each process.
        load_bytes: Growth while the session is created; the largest of all processes.
        loads_bytes: That of each process.
        whole_bytes: Peak of loading and running above the level before the runtime loads the
            model; the largest of all processes.
        wholes_bytes: That of each process.
        process_bytes: The largest resident high-water mark, all of the process counted: the
            interpreter, the runtime and the inputs.
        host_peak_bytes: The largest resident high-water mark, whatever the device.
        runtime_peak_bytes: The runtime's own figure; None where it keeps none (no arena).
        runtime_peaks_bytes: That of each process.
        input_bytes: Bytes of all inputs; not in ``peak_bytes``, they are there before.
        output_bytes: Bytes of all outputs; in ``peak_bytes``.
        timing: How time was taken: "wall clock", or "CUDA events" on a GPU.
        latency_s: Seconds per run.
        ratio: Time over the first model's, round by round.
        first_run_bytes: On a GPU: used memory of the first run above the level before it.
        later_runs_bytes: On a GPU: the most of any later run.
        device_state: On a GPU: clocks, power and what slowed it down, after the last run.
        date: When, UTC.
        error: Why there are no figures; empty if there are.
        note: What a caller has to say about it.
    """

    model: str
    engine: str = "onnxruntime"
    version: str = ""
    device: str = ""
    providers: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 0
    rounds: int = 0
    processes: int = 0
    fixed_addresses: bool = False
    peak_bytes: int | None = None
    peaks_bytes: tuple[int, ...] = ()
    load_bytes: int | None = None
    loads_bytes: tuple[int, ...] = ()
    whole_bytes: int | None = None
    wholes_bytes: tuple[int, ...] = ()
    process_bytes: int | None = None
    host_peak_bytes: int | None = None
    runtime_peak_bytes: int | None = None
    runtime_peaks_bytes: tuple[int, ...] = ()
    input_bytes: int | None = None
    output_bytes: int | None = None
    timing: str = ""
    latency_s: Spread | None = None
    ratio: Spread | None = None
    first_run_bytes: int | None = None
    later_runs_bytes: int | None = None
    device_state: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""
    error: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


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


def now() -> str:
    """Return the date and time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
