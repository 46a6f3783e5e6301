"""The process TensorRT builds and runs in: ``python -m engines.tensorrt_child``.

{"do": "build", "engine": ..., "model": ..., "options": {...}, "plan": FILE or null}
{"do": "measure", "engine": ..., "plan": FILE, "inputs": FILE.npz, "runs": N}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engines.child import serve
from engines.tensorrt_build import build, load_module
from engines.tensorrt_options import BuildOptions
from engines.tensorrt_run import engine_memory, inspect, open_context, open_engine

__all__ = ["main"]


def _build(job: Mapping[str, Any]) -> dict[str, Any]:
    result = build(
        Path(job["model"]), BuildOptions.from_json(job["options"]), load_module(job["engine"])
    )
    if job.get("plan"):
        Path(job["plan"]).write_bytes(result.plan)
    return result.as_json()


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a plan on the GPU under the recording allocator."""
    module = load_module(job["engine"])
    with np.load(job["inputs"], allow_pickle=False) as data:
        inputs = {name: data[name] for name in data.files}
    with open_engine(Path(job["plan"]).read_bytes(), module) as opened:
        memory = engine_memory(module, opened.engine)
        with open_context(opened, inputs) as context:
            context.run()
            seconds = context.time_runs(job["runs"])
            peak = opened.allocator.ledger.peak_bytes
            return {
                "device": opened.device,
                "version": module.__version__,
                "seconds": seconds,
                "peak_bytes": peak - opened.weights_live_bytes,
                "peak_with_weights_bytes": peak,
                "device_memory_bytes": memory.device_memory_bytes,
                "device_memory_per_profile_bytes": list(memory.profiles),
                "io_bytes": context.io_bytes,
                "layer_information": inspect(module, opened.engine),
            }


def main() -> int:
    """Serve until standard input ends."""
    serve({"build": _build, "measure": _measure})
    return 0


if __name__ == "__main__":
    sys.exit(main())
