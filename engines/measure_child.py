"""The process that one model is measured in: ``python -m engines.measure_child``.

It reads one JSON command a line and answers each with one JSON line:

    {"do": "open", "model": ..., "engine": ..., "options": {...}, "inputs": FILE.npz}
    {"do": "run"}        -> {"seconds": ...}
    {"do": "finish"}     -> {"peak_bytes": ..., "runtime_peak_bytes": ..., ...}

Between "open" and the first "run" the high-water mark is reset, so the peak is what running adds to
an open session with its inputs made. On a GPU the peak is the device's used memory above its level
before the first run, sampled through NVML (`engines.nvml`), and the resident one is reported apart,
as ``host_peak_bytes``.
"""

from __future__ import annotations

import gc
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engines.child import serve
from engines.memory_probe import high_water_bytes, reset_high_water, resident_bytes
from engines.nvml import DeviceMemory, open_device_memory
from engines.onnxruntime_engine import OrtOptions, Session, open_session, runtime_peak

__all__ = ["main"]


class _Worker:
    """One model, open from "open" to "finish"."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._base = 0
        self._session: Session | None = None
        self._device: DeviceMemory | None = None
        self._feeds: dict[str, np.ndarray[Any, Any]] = {}
        self._outputs = 0

    def open(self, job: Mapping[str, Any]) -> dict[str, Any]:
        limit = job.get("memory_limit")
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with np.load(job["inputs"], allow_pickle=False) as data:
            self._feeds = {name: data[name] for name in data.files}
        options = OrtOptions(**job["options"])
        self._session = self._stack.enter_context(open_session(Path(job["model"]), options))
        if options.provider != "cpu":
            self._device = self._stack.enter_context(open_device_memory())
        gc.collect()
        self._base = resident_bytes()
        reset_high_water()
        return {"providers": self._session.providers, "version": self._session.version}

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert self._session is not None
        with nullcontext() if self._device is None else self._device.run():
            begin = time.perf_counter()
            results = self._session.run(self._feeds)
            seconds = time.perf_counter() - begin
        self._outputs = sum(getattr(value, "nbytes", 0) for value in results.values())
        return {"seconds": seconds}

    def finish(self, job: Mapping[str, Any]) -> dict[str, Any]:
        host_peak = max(0, high_water_bytes() - self._base)
        return {
            "peak_bytes": host_peak if self._device is None else self._device.peak_bytes,
            "host_peak_bytes": host_peak,
            "base_bytes": self._base,
            "input_bytes": sum(array.nbytes for array in self._feeds.values()),
            "output_bytes": self._outputs,
        }

    def profile(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run in a profiled session, for the runtime's own figure."""
        with np.load(job["inputs"], allow_pickle=False) as data:
            feeds = {name: data[name] for name in data.files}
        options = OrtOptions(**job["options"])
        with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
            peak = runtime_peak(Path(job["model"]), options, feeds, job["runs"], Path(folder))
        return {"runtime_peak_bytes": peak, "options": asdict(options)}


def main() -> int:
    """Serve until standard input ends."""
    with ExitStack() as stack:
        worker = _Worker(stack)
        serve(
            {
                "open": worker.open,
                "run": worker.run,
                "finish": worker.finish,
                "profile": worker.profile,
            }
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
