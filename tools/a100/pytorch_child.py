"""The process that PyTorch runs a case in: ``python -m tools.a100.pytorch_child``.

    {"do": "measure", "model": ..., "inputs": FILE.npz, "benchmark": ..., "channels_last": ...,
     "timing": {...}, "windows": [...], "sampled": FILE.npz}

On a GPU: bytes allocated and reserved by PyTorch's allocator above the input and the weights, the
device's used memory through NVML, and time between CUDA events. Elsewhere time alone, wall clock:
PyTorch counts no memory there.

Source: the PyTorch documentation (torch.cuda.max_memory_allocated, torch.cuda.Event,
torch.backends.cudnn).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from patchconv_deploy.engines.errors import LoadError, OutOfMemory
from patchconv_deploy.engines.gpu.nvml import open_device_memory
from patchconv_deploy.engines.process.child import serve
from patchconv_deploy.engines.timing import Timing, take_times
from patchconv_deploy.engines.windows import write_windows

__all__ = ["main"]


def _layers(torch: Any, path: Path, place: Callable[[Any], Any]) -> list[Callable[[Any], Any]]:
    """Return a model's layers, one after the other.

    Raises:
        LoadError: It is not Convs and Relus in a row.
    """
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    x, layers = model.graph.input[0].name, []
    for node in model.graph.node:
        if node.input[0] != x or node.op_type not in ("Conv", "Relu"):
            raise LoadError(f"node {node.name} ({node.op_type}): not Convs and Relus in a row")
        x = node.output[0]
        if node.op_type == "Relu":
            layers.append(torch.relu)
            continue
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        given = [
            place(torch.from_numpy(numpy_helper.to_array(weights[name]).copy()))
            for name in node.input[1:]
        ]
        padding = tuple(attributes["pads"][:2])

        def conv(y: Any, given: list[Any] = given, padding: tuple[int, ...] = padding) -> Any:
            return torch.nn.functional.conv2d(y, *given, padding=padding)

        layers.append(conv)
    return layers


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    torch.backends.cudnn.benchmark = job["benchmark"]
    form = torch.channels_last if job["channels_last"] else torch.contiguous_format

    def place(tensor: Any) -> Any:
        tensor = tensor.to("cuda" if cuda else "cpu")
        return tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor

    with np.load(job["inputs"], allow_pickle=False) as data, torch.inference_mode():
        x = place(torch.from_numpy(data[data.files[0]]))
        layers = _layers(torch, Path(job["model"]), place)

        def run() -> Any:
            y = x
            for layer in layers:
                y = layer(y)
            return y

        try:
            figures = _memory(torch, run) if cuda else {}
            seconds = take_times(lambda: _time(torch, run, cuda), Timing(**job["timing"]))
            output = run().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(" ".join(str(error).split())) from error
    if job["sampled"]:
        write_windows(Path(job["sampled"]), output, job["windows"])
    device = torch.cuda.get_device_name() if cuda else "CPU"
    found = {"seconds": seconds, "version": torch.__version__, "device": device}
    return {**found, "cudnn": torch.backends.cudnn.version(), "figures": figures}


def _memory(torch: Any, run: Callable[[], Any]) -> dict[str, int]:
    """Return peaks of two runs above what the input and the weights take."""
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    with open_device_memory() as device:
        for _ in range(2):
            with device.run():
                run()
                torch.cuda.synchronize()
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated() - allocated,
        "reserved_bytes": torch.cuda.max_memory_reserved() - reserved,
        "peak_bytes": device.peak_bytes,
        "whole_allocated_bytes": torch.cuda.max_memory_allocated(),
    }


def _time(torch: Any, run: Callable[[], Any], cuda: bool) -> float:
    if not cuda:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def main() -> int:
    """Serve until standard input ends."""
    serve({"measure": _measure})
    return 0


if __name__ == "__main__":
    sys.exit(main())
