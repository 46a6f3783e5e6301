"""The process that a network of one input runs in: ``python -m tools.side_by_side_child``.

    {"do": "load", "how": a key of `_HOW`, ...}, {"do": "run"}, ...,
    {"do": "finish", "output": FILE.npy}

Memory is the process's resident high-water mark above two levels, whatever runs in it: before the
network is loaded, with the runtime imported, and after that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy.engines.process.child import serve
from patchconv_deploy.engines.process.memory_probe import (
    high_water_bytes,
    reset_high_water,
    resident_bytes,
)

__all__ = ["main"]

Array = np.ndarray[Any, Any]


def _pytorch(job: Mapping[str, Any]) -> Callable[[], Callable[[Array], Array]]:
    import torch

    from tools.models.autoencoder import LatentDecoder, load_decoder

    torch.set_num_threads(job["threads"])
    # Imports what a network is made of, before the level that loading is counted from.
    LatentDecoder(8)

    def load() -> Callable[[Array], Array]:
        decoder = load_decoder(job["base"], Path(job["model"]), job["tile"])

        def run(x: Array) -> Array:
            with torch.inference_mode():
                found: Array = decoder(torch.from_numpy(x)).numpy()
            return found

        return run

    return load


def _onnxruntime(job: Mapping[str, Any]) -> Callable[[], Callable[[Array], Array]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    for name, value in job.get("options", {}).items():
        setattr(options, name, value)

    def load() -> Callable[[Array], Array]:
        providers = ["CPUExecutionProvider"]
        session: Any = ort.InferenceSession(job["model"], options, providers=providers)
        name = session.get_inputs()[0].name

        def run(x: Array) -> Array:
            found: Array = session.run(None, {name: x})[0]
            return found

        return run

    return load


def _openvino(job: Mapping[str, Any]) -> Callable[[], Callable[[Array], Array]]:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": job["threads"], "INFERENCE_PRECISION_HINT": "f32"}

    def load() -> Callable[[Array], Array]:
        request = core.compile_model(job["model"], "CPU", options).create_infer_request()

        def run(x: Array) -> Array:
            request.infer({0: x})
            found: Array = request.get_output_tensor(0).data.copy()
            return found

        return run

    return load


_HOW = {"pytorch": _pytorch, "onnxruntime": _onnxruntime, "openvino": _openvino}


class _Worker:
    """A network with its input, and what the process had in use."""

    def __init__(self) -> None:
        self._run: Callable[[Array], Array] | None = None
        self._x = np.empty(0)
        self._output = np.empty(0)
        self._before = self._loaded = self._loading = 0

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self._x = np.load(job["input"])
        load = _HOW[job["how"]](job)
        self._before = resident_bytes()
        reset_high_water()
        self._run = load()
        self._loading, self._loaded = high_water_bytes(), resident_bytes()
        reset_high_water()
        return {}

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert self._run is not None
        self._output = np.empty(0)  # the last one is not part of this run
        begin = time.perf_counter()
        self._output = self._run(self._x)
        return {"seconds": time.perf_counter() - begin}

    def finish(self, job: Mapping[str, Any]) -> dict[str, Any]:
        highest = high_water_bytes()
        np.save(job["output"], self._output)
        return {
            "load_bytes": self._loaded - self._before,
            "peak_bytes": highest - self._loaded,
            "whole_bytes": max(highest, self._loading) - self._before,
        }


def main() -> int:
    """Serve until standard input ends."""
    worker = _Worker()
    serve({"load": worker.load, "run": worker.run, "finish": worker.finish})
    return 0


if __name__ == "__main__":
    sys.exit(main())
