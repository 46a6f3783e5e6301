"""ONNX Runtime on a GPU: stream, bindings and events on a stand-in; a marked test for a GPU."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from engines import measure_child
from engines.cuda import Cuda
from engines.errors import DeviceMissing, EngineMissing
from engines.measure import Job, measure
from engines.nvml import DeviceMemory
from engines.onnxruntime_engine import PROVIDERS, OrtOptions, open_session
from patchconv_deploy.inputs import save_inputs
from tests.small_models import chain, noise
from tests.test_tensorrt_run import FakeCuda

MIB = 1 << 20


class Events(FakeCuda):
    """Writes down when events are recorded, and on which stream."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def record(self, event: Any, stream: int) -> None:
        """Note it."""
        self.calls.append(("event", stream))
        super().record(event, stream)


def stand_in(calls: list[Any], used: list[int]) -> Any:
    """Make an onnxruntime with GPU providers: inputs x and text, a tensor y, a sequence z."""

    class Value:
        def __init__(self, array: Any) -> None:
            self.array = array

        @classmethod
        def ortvalue_from_numpy(cls, array: Any, device: str) -> Any:
            calls.append(("copy", array.shape, device))
            return cls(array)

        def is_tensor(self) -> bool:
            return self.array is not None

        def numpy(self) -> Any:
            calls.append("fetch")
            return self.array

    class Binding:
        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            calls.append(("bind", name))

        def bind_output(self, name: str, device: str) -> None:
            calls.append(("bind", name, device))

        def synchronize_outputs(self) -> None:
            calls.append("wait")

        def get_outputs(self) -> list[Any]:
            return [Value(np.zeros(6, np.float32)), Value(None)]

    class RunOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, name: str, value: str) -> None:
            self.entries[name] = value

    class InferenceSession:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            self.asked = providers
            calls.append(("open", providers))

        def get_providers(self) -> list[str]:
            return [name for name, _ in self.asked] + [PROVIDERS["cpu"]]

        def get_outputs(self) -> list[Any]:
            return [
                SimpleNamespace(name="y", type="tensor(float)"),
                SimpleNamespace(name="z", type="seq(tensor(float))"),
            ]

        def io_binding(self) -> Binding:
            return Binding()

        def run_with_iobinding(self, binding: Binding, options: Any) -> None:
            assert options.entries == {"disable_synchronize_execution_providers": "1"}
            used[0] += 30
            calls.append("run")

    return SimpleNamespace(
        __version__="stand-in",
        InferenceSession=InferenceSession,
        SessionOptions=SimpleNamespace,
        RunOptions=RunOptions,
        OrtValue=Value,
        get_available_providers=lambda: list(PROVIDERS.values()),
    )


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_time_is_between_events_on_the_session_s_stream(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session runs on the stream of the events; copies are before and after, not between."""
    calls: list[Any] = []
    used = [100]
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in(calls, used))
    monkeypatch.setattr(Cuda, "load", lambda: Events(calls))
    memory = DeviceMemory(lambda: used[0])

    class Opened:
        def __enter__(self) -> DeviceMemory:
            return memory

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(measure_child, "open_device_memory", Opened)
    inputs = tmp_path / "inputs.npz"
    save_inputs(inputs, {"x": np.zeros((2, 3), np.float32), "text": np.array(["a"])})
    with ExitStack() as stack:
        worker = measure_child._Worker(stack, fixed=True)
        opened = worker.open(
            {"model": "m.onnx", "inputs": str(inputs), "options": {"provider": provider}}
        )
        seconds = [worker.run({})["seconds"] for _ in range(2)]
        found = worker.finish({})
    asked = dict(calls[0][1])
    assert {options["user_compute_stream"] for options in asked.values()} == {"5"}
    assert (PROVIDERS["tensorrt"] in asked) == (provider == "tensorrt")
    assert calls[1:7] == [
        ("copy", (2, 3), "cuda"), ("bind", "x"), ("copy", (1,), "cpu"), ("bind", "text"),
        ("bind", "y", "cuda"), ("bind", "z", "cpu"),
    ]  # fmt: skip
    assert calls[7:] == [("event", 5), "run", ("event", 5)] * 2 + ["wait", "fetch"]
    # The stand-in's clock goes on by a second with each event.
    assert seconds == [1.0, 1.0]
    assert opened["timing"] == "CUDA events"
    assert found["peak_bytes"] == 60
    assert found["host_peak_bytes"] != 60
    assert (found["input_bytes"], found["output_bytes"]) == (28, 24)


def test_bindings_are_those_of_the_real_runtime(tmp_path: Path) -> None:
    """The calls that the stand-in records are taken by ONNX Runtime, and give what a run gives."""
    path, feeds = tmp_path / "model.onnx", {"x": noise(1, 2, 64, 40)}
    onnx.save(chain(2, (1, 2, 64, 40)), path)
    with open_session(path) as session:
        expected = session.run(feeds)
        bound = session.bind(feeds, device="cpu")
        bound.run()
        bound.run()
        (found,) = bound.fetch()
    np.testing.assert_array_equal(found, expected["y"])


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_gpu(provider: str, tmp_path: Path) -> None:
    """Measured on a GPU: a peak on the device, time by events."""
    job = Job(tmp_path / "model.onnx", tmp_path / "inputs.npz")
    onnx.save(chain(2, (1, 2, 64, 40)), job.model)
    save_inputs(job.inputs, {"x": noise(1, 2, 64, 40)})
    try:
        Cuda.load()
        found = measure([job], [OrtOptions(provider=provider)], runs=2, processes=1)[0]
    except (DeviceMissing, EngineMissing) as error:
        pytest.skip(str(error))
    assert found.error == ""
    assert found.timing == "CUDA events"
    assert found.latency_s is not None
    assert found.latency_s.min > 0
