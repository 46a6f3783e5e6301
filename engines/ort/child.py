"""The process that one model is measured in, started with the number of its memory layout.

``python -m patchconv_deploy.engines.ort.child LAYOUT``.

It reads one JSON command a line and answers each with one JSON line:

    {"do": "open", "model": ..., "options": {...}, "inputs": FILE.npz}
    {"do": "run"}        -> {"seconds": ...}
    {"do": "warm_up", "seconds": ...}  -> {}
    {"do": "time", "timing": {...}}    -> {"seconds": [...], "state": {...}}, memory not watched
    {"do": "finish"}     -> {"peak_bytes": ..., "load_bytes": ..., "whole_bytes": ..., ...}
    {"do": "sample", "windows": ..., "file": FILE.npz}  -> {}, after "finish": it runs once more
    {"do": "profile", ...}  -> {"runtime_peak_bytes": ...}

LAYOUT is the number of its memory layout (`engines.process.addresses`). Three figures, all of
resident memory:

    before   the runtime imported, the inputs made, the high-water mark reset
    load     the level with the session open, above "before"
    peak     high-water mark of the runs above the level with the session open
    whole    high-water mark of loading and running above "before": what loading passes through
             counts, and what it leaves free and running uses again counts once

Time is wall clock around the run. On a GPU it is between two CUDA events on the session's stream,
inputs and outputs bound to the device, so that no copy is in it; the three figures are then the
device's used memory, sampled through NVML (`engines.gpu.nvml`), and the resident peak of the runs
is reported apart, as ``host_peak_bytes``.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy.engines.gpu.cuda import Cuda
from patchconv_deploy.engines.gpu.nvml import DeviceMemory, open_device_memory
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.engines.ort.run import Session, check_provider, open_session, runtime_peak
from patchconv_deploy.engines.process.addresses import fix_addresses
from patchconv_deploy.engines.process.child import serve
from patchconv_deploy.engines.process.memory_probe import (
    high_water_bytes,
    reset_high_water,
    resident_bytes,
)
from patchconv_deploy.engines.timing import Timing, take_times
from patchconv_deploy.engines.windows import write_windows

__all__ = ["main"]


class _Worker:
    """One model, open from "open" to "finish"."""

    def __init__(self, stack: ExitStack, fixed: bool) -> None:
        self._stack = stack
        self._fixed = fixed
        self._start = 0
        self._base = 0
        self._highest_loading = 0
        self._device: DeviceMemory | None = None
        self._loading: DeviceMemory | None = None
        self._runs: list[int] = []
        self._feeds: dict[str, np.ndarray[Any, Any]] = {}
        self._time: Callable[[], float] = float
        self._output_bytes: Callable[[], int] = int
        self._first_output: Callable[[], Any] = int

    def open(self, job: Mapping[str, Any]) -> dict[str, Any]:
        options, self._feeds = _begin(job)
        prepare = self._prepare_cpu if options.provider == "cpu" else self._prepare_gpu
        gc.collect()
        self._start = resident_bytes()
        reset_high_water()
        session = prepare(Path(job["model"]), options)
        gc.collect()
        self._highest_loading = high_water_bytes()
        self._base = resident_bytes()
        reset_high_water()
        return {
            "providers": session.providers,
            "version": session.version,
            "timing": "wall clock" if options.provider == "cpu" else "CUDA events",
            "fixed_addresses": self._fixed,
        }

    def _prepare_cpu(self, model: Path, options: OrtOptions) -> Session:
        session = self._stack.enter_context(open_session(model, options))
        size = 0

        def time_run() -> float:
            nonlocal size
            begin = time.perf_counter()
            results = session.run(self._feeds)
            seconds = time.perf_counter() - begin
            size = sum(getattr(value, "nbytes", 0) for value in results.values())
            return seconds

        self._time = time_run
        self._output_bytes = lambda: size
        self._first_output = lambda: next(iter(session.run(self._feeds).values()))
        return session

    def _prepare_gpu(self, model: Path, options: OrtOptions) -> Session:
        cuda = Cuda.load()
        stream = self._stack.enter_context(cuda.stream())
        self._loading = self._stack.enter_context(open_device_memory())
        with self._loading.run():
            session = self._stack.enter_context(open_session(model, options, stream=stream))
        bound = session.bind(self._feeds)
        self._device = self._stack.enter_context(open_device_memory())
        self._time = lambda: cuda.time(bound.run, stream)[0]
        self._output_bytes = lambda: sum(array.nbytes for array in bound.fetch())
        # What the last run left there.
        self._first_output = lambda: bound.fetch()[0]
        return session

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        if self._device is None:
            return {"seconds": self._time()}
        with self._device.run() as found:
            seconds = self._time()
        self._runs.append(found.peak_bytes)
        return {"seconds": seconds}

    def warm_up(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run until the device is at its clocks, on a GPU; memory is watched as in any run."""
        begin = time.monotonic()
        while self._device is not None and time.monotonic() - begin < job["seconds"]:
            self.run({})
        return {}

    def time(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Take times, warmed up first."""
        seconds = take_times(self._time, Timing(**job["timing"]))
        return {"seconds": seconds, "state": self._state()}

    def _state(self) -> Mapping[str, Any]:
        return {} if self._device is None else self._device.state()

    def finish(self, job: Mapping[str, Any]) -> dict[str, Any]:
        highest = high_water_bytes()
        host_peak = max(0, highest - self._base)
        load = max(0, self._base - self._start)
        whole = max(self._highest_loading, highest) - self._start
        peak = host_peak
        if self._device is not None and self._loading is not None:
            peak, load = self._device.peak_bytes, self._loading.held_bytes
            whole = max(self._loading.peak_bytes, load + peak)
        return {
            "peak_bytes": peak,
            "load_bytes": load,
            "whole_bytes": whole,
            "host_peak_bytes": host_peak,
            "process_bytes": max(self._highest_loading, highest),
            "input_bytes": sum(array.nbytes for array in self._feeds.values()),
            "output_bytes": self._output_bytes(),
            # Kernels are loaded, and algorithms searched, in the first run alone.
            "first_run_bytes": self._runs[0] if self._runs else None,
            "later_runs_bytes": max(self._runs[1:], default=None),
            "state": self._state(),
        }

    def sample(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Write windows of the first output."""
        write_windows(Path(job["file"]), np.asarray(self._first_output()), job["windows"])
        return {}

    def profile(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run in a profiled session, for the runtime's own figure."""
        options, feeds = _begin(job)
        folder = Path(job["folder"])
        peak = runtime_peak(Path(job["model"]), options, feeds, job["runs"], folder)
        return {"runtime_peak_bytes": peak}


def _begin(job: Mapping[str, Any]) -> tuple[OrtOptions, dict[str, np.ndarray[Any, Any]]]:
    """Return options and inputs, with the process's memory limited."""
    options = OrtOptions(**job["options"])
    # Imported before the limit: the model is to be what does not fit, not the runtime.
    check_provider(options)
    limit = job.get("memory_limit")
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with np.load(job["inputs"], allow_pickle=False) as data:
        return options, {name: data[name] for name in data.files}


def main() -> int:
    """Serve until standard input ends."""
    fixed = fix_addresses(int(sys.argv[1]))
    with ExitStack() as stack:
        worker = _Worker(stack, fixed)
        serve(
            {
                "open": worker.open,
                "run": worker.run,
                "warm_up": worker.warm_up,
                "time": worker.time,
                "finish": worker.finish,
                "sample": worker.sample,
                "profile": worker.profile,
            }
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
