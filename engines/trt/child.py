"""The process TensorRT builds and runs in: ``python -m patchconv_deploy.engines.trt.child``.

{"do": "build", "engine": ..., "model": ..., "options": {...}, "plan": FILE or null}
{"do": "measure", "engine": ..., "plan": FILE, "inputs": FILE.npz, "host_code": false}
    with "weight_streaming_budget": what of streamable weights the device keeps
    with "windows" and "sampled": windows of the first output are written to that file
{"do": "time", "timing": {...}}    after "measure": the same plan, as often as asked

Memory and time are taken in contexts of their own: what records every allocation waits for the
device at each, which would be in the time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy.engines.errors import DeviceMissing
from patchconv_deploy.engines.gpu.cuda import Cuda
from patchconv_deploy.engines.gpu.nvml import DeviceMemory, DeviceRun, open_device_memory
from patchconv_deploy.engines.process.child import serve
from patchconv_deploy.engines.process.memory_probe import high_water_bytes
from patchconv_deploy.engines.timing import Timing, take_times
from patchconv_deploy.engines.trt.build import build, load_module
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.engines.trt.run import (
    Engine,
    engine_memory,
    inspect,
    open_context,
    open_engine,
)
from patchconv_deploy.engines.windows import write_windows

__all__ = ["main"]


# Runs after the first while memory is recorded.
_LATER = 2


def _build(job: Mapping[str, Any]) -> dict[str, Any]:
    result = build(
        Path(job["model"]), BuildOptions.from_json(job["options"]), load_module(job["engine"])
    )
    if job.get("plan"):
        Path(job["plan"]).write_bytes(result.plan)
    return {**result.as_json(), "build_process_bytes": high_water_bytes()}


class _Worker:
    """One plan on the GPU, open from "measure" to the end of the process."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._opened: Engine | None = None
        self._device: DeviceMemory | None = None
        self._inputs: dict[str, np.ndarray[Any, Any]] = {}

    def measure(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Open a plan, run it, and count what was allocated, phase by phase."""
        module = load_module(job["engine"])
        with np.load(job["inputs"], allow_pickle=False) as data:
            self._inputs = {name: data[name] for name in data.files}
        with suppress(DeviceMissing):  # no NVML: the allocator's figures stand alone
            self._device = self._stack.enter_context(open_device_memory())
        plan = Path(job["plan"]).read_bytes()
        phases: dict[str, dict[str, int | None]] = {}
        with self._watched() as device:
            # The first call makes the CUDA context, which no allocator sees.
            Cuda.load().initialise()
        phases["cuda_context"] = _phase(device)
        with self._watched() as device:
            opened = self._stack.enter_context(
                open_engine(
                    plan,
                    module,
                    host_code=job["host_code"],
                    weight_streaming_budget=job.get("weight_streaming_budget"),
                )
            )
        self._opened, ledger = opened, opened.allocator.ledger
        phases["open"] = _phase(device, opened.weights_peak_bytes, opened.weights_live_bytes)
        weights = ledger.mark()
        with ExitStack() as inner:
            with self._watched() as device:
                context = inner.enter_context(
                    open_context(opened, self._inputs, record_temporary=True)
                )
            phases["context"] = _phase(
                device, ledger.peak_bytes - weights, ledger.live_bytes - weights
            )
            peak = ledger.peak_bytes
            # Kernels are loaded when they first run (CUDA's lazy loading): that run is apart.
            for name, runs in (("first_run", 1), ("later_runs", _LATER)):
                before = ledger.mark()
                with self._watched() as device:
                    for _ in range(runs):
                        context.run()
                phases[name] = _phase(
                    device, ledger.peak_bytes - before, ledger.live_bytes - before
                )
                peak = max(peak, ledger.peak_bytes)
            io_bytes = context.io_bytes
            if job.get("sampled"):
                output = next(iter(context.fetch().values()))
                write_windows(Path(job["sampled"]), output, job["windows"])
        memory = engine_memory(module, opened.engine)
        return {
            "device": opened.device,
            "version": module.__version__,
            "peak_bytes": peak - weights,
            "peak_with_weights_bytes": peak,
            "phases": phases,
            "device_memory_bytes": memory.device_memory_bytes,
            "device_memory_per_profile_bytes": list(memory.profiles),
            "io_bytes": io_bytes,
            "process_bytes": high_water_bytes(),
            "weight_streaming": None if opened.streaming is None else asdict(opened.streaming),
            "layer_information": inspect(module, opened.engine),
        }

    def time(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Take times, in a context that TensorRT serves for a moment's memory in its own way."""
        assert self._opened is not None
        timing = Timing(**job["timing"])
        with open_context(self._opened, self._inputs) as context:
            seconds = take_times(lambda: context.time_runs(1)[0], timing)
            state = {} if self._device is None else self._device.state()
        return {"seconds": seconds, "state": state}

    @contextmanager
    def _watched(self) -> Iterator[DeviceRun | None]:
        if self._device is None:
            yield None
        else:
            with self._device.run() as found:
                yield found


def _phase(
    device: DeviceRun | None, peak: int | None = None, held: int | None = None
) -> dict[str, int | None]:
    """Return what a phase took: by the allocator, and by the device's own figure."""
    return {
        "peak_bytes": peak,
        "held_bytes": held,
        "device_peak_bytes": None if device is None else device.peak_bytes,
        "device_held_bytes": None if device is None else device.held_bytes,
    }


def main() -> int:
    """Serve until standard input ends."""
    with ExitStack() as stack:
        worker = _Worker(stack)
        serve({"build": _build, "measure": worker.measure, "time": worker.time})
    return 0


if __name__ == "__main__":
    sys.exit(main())
