"""ONNX Runtime on a GPU: stream, bindings and events on a stand-in; a marked test for a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from patchconv_deploy.cli import measure as cli_measure
from patchconv_deploy.engines.errors import DeviceMissing, EngineMissing, OptionError, RunError
from patchconv_deploy.engines.gpu.cuda import Cuda
from patchconv_deploy.engines.gpu.nvml import DeviceMemory
from patchconv_deploy.engines.measurement import Job, Measurement
from patchconv_deploy.engines.ort import child as measure_child
from patchconv_deploy.engines.ort import libraries as onnxruntime_gpu
from patchconv_deploy.engines.ort import measure as measuring
from patchconv_deploy.engines.ort import run as running
from patchconv_deploy.engines.ort.measure import measure
from patchconv_deploy.engines.ort.options import GPU_FIELDS, PROVIDERS, OrtOptions
from patchconv_deploy.engines.ort.run import open_session
from patchconv_deploy.verify.inputs import save_inputs
from tests.engines.test_trt_run import FakeCuda
from tests.support.small_models import chain, noise

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
            used[0] += 70
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
    monkeypatch.setattr(running, "load_libraries", lambda *_: None)
    monkeypatch.setattr(Cuda, "load", lambda: Events(calls))

    class Opened:
        def __enter__(self) -> DeviceMemory:
            return DeviceMemory(lambda: used[0])

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
        worker.warm_up({"seconds": 0.0})
        seconds = [worker.run({})["seconds"] for _ in range(2)]
        found = worker.finish({})
        timing = {"warm_up_s": 0.0, "runs": 2, "least": 2, "seconds": 0.0}
        timed = worker.time({"timing": timing})
    asked = dict(calls[0][1])
    assert {options["user_compute_stream"] for options in asked.values()} == {"5"}
    assert (PROVIDERS["tensorrt"] in asked) == (provider == "tensorrt")
    assert calls[1:7] == [
        ("copy", (2, 3), "cuda"), ("bind", "x"), ("copy", (1,), "cpu"), ("bind", "text"),
        ("bind", "y", "cuda"), ("bind", "z", "cpu"),
    ]  # fmt: skip
    run = [("event", 5), "run", ("event", 5)]
    # Two that count, and one before them, of which memory is not watched.
    assert calls[7:] == run * 2 + ["wait", "fetch"] + run * 3
    assert (timed["seconds"], worker._runs) == ([1.0, 1.0], [30, 30])
    # The stand-in's clock goes on by a second with each event.
    assert seconds == [1.0, 1.0]
    assert opened["timing"] == "CUDA events"
    assert (found["load_bytes"], found["peak_bytes"], found["whole_bytes"]) == (70, 60, 130)
    assert found["host_peak_bytes"] != 60
    assert (found["input_bytes"], found["output_bytes"]) == (28, 24)


# What onnxruntime-gpu 1.31 writes to standard error where CUDA's libraries are not found.
_FAILED = (
    "\x1b[1;31m2026-11-25 21:20:24.07 [E:onnxruntime:Default, bridge.cc:2430 operator()] "
    "/src/bridge.cc:2043 Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/x/libonnxruntime_providers_{}.so with error: {}: cannot open shared object file: "
    "No such file or directory\n\x1b[m\n"
)

_LOG = (
    _FAILED.format("tensorrt", "libnvinfer.so.10")
    + _FAILED.format("cuda", "libcublasLt.so.13")
    + "\x1b[0;93m2026-11-25 21:20:24.09 [W:onnxruntime:Default, state.cc:1295 Create] "
    "Failed to create CUDAExecutionProvider.\x1b[m\n"
)


@pytest.mark.parametrize(
    ("provider", "library"), [("cuda", "libcublasLt.so.13"), ("tensorrt", "libnvinfer.so.10")]
)
def test_a_library_that_is_missing_is_named(
    provider: str, library: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """CUDA's libraries are loaded beforehand; the runtime's log is in the message, not shown."""
    calls: list[Any] = []
    module = stand_in(calls, [0])
    module.cuda_version = "13.0"

    def preload() -> None:
        calls.append("preload")
        print("Failed to load libcublasLt.so.13")  # noqa: T201 - as the runtime does

    class FallsBack(module.InferenceSession):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            os.write(2, _LOG.encode())
            super().__init__(*arguments, **keywords)

        def get_providers(self) -> list[str]:
            return [PROVIDERS["cpu"]]

    module.preload_dlls, module.InferenceSession = preload, FallsBack
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    checked: list[int] = []
    monkeypatch.setattr(
        onnxruntime_gpu, "check_driver", lambda cuda, what, extra: checked.append(cuda)
    )
    monkeypatch.setattr(onnxruntime_gpu, "_load_tensorrt", lambda cuda: calls.append("tensorrt"))
    with (
        pytest.raises(DeviceMissing) as raised,
        open_session(Path("model.onnx"), OrtOptions(provider=provider)),
    ):
        pass
    assert f"{library}: cannot open shared object file" in str(raised.value)
    assert f"{library} is missing: install patchconv-deploy[gpu-cu13]" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert checked == [13]
    assert calls[:2] == ["preload", "tensorrt" if provider == "tensorrt" else calls[1]]
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_the_provider_of_tensorrt_takes_version_10_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 11 installed, or none: what to install, and what takes 11."""

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0"))
    with pytest.raises(
        DeviceMissing, match=r"is here in version 11\.4\.0.*'tensorrt-cu13>=10,<11'"
    ):
        onnxruntime_gpu._load_tensorrt(13)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceMissing, match="which is not installed"):
        onnxruntime_gpu._load_tensorrt(None)
    monkeypatch.setattr("ctypes.CDLL", lambda name: name)
    onnxruntime_gpu._load_tensorrt(12)


def test_what_is_written_meanwhile_is_caught_and_streams_are_put_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Native words and Python's; also when something is raised."""
    with pytest.raises(KeyError), onnxruntime_gpu.watched() as said:  # noqa: PT012
        os.write(1, b"native ")
        print("python", file=sys.__stdout__, flush=True)
        os.write(2, b"[E:onnxruntime:x, a.cc:1 f] broken\n")
        raise KeyError
    os.write(1, b"after")
    assert "native" in said.text
    assert said.last_error() == "broken"
    assert capfd.readouterr() == ("after", "")


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


_ON_A_GPU = [
    (
        ["--arena-extend-strategy", "kSameAsRequested"],
        {"arena_extend_strategy": "kSameAsRequested"},
    ),
    (["--prefer-nhwc"], {"prefer_nhwc": True}),
    (["--no-cudnn-max-workspace"], {"cudnn_conv_use_max_workspace": False}),
    (["--cudnn-algo-search", "DEFAULT"], {"cudnn_conv_algo_search": "DEFAULT"}),
]


@pytest.mark.parametrize(("words", "fields"), _ON_A_GPU, ids=lambda value: str(value))
def test_the_command_asks_for_what_only_a_gpu_has(
    words: list[str], fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option comes to the provider under its own name; on the CPU it is refused by name."""
    seen: list[OrtOptions] = []

    def measured(models: Any, options: OrtOptions, **_: Any) -> list[Any]:
        seen.append(options)
        return []

    monkeypatch.setattr(cli_measure, "measure_onnxruntime", measured)
    monkeypatch.setattr(cli_measure, "print_results", lambda *_: None)
    done = CliRunner().invoke(cli_measure.measure_command, ["m.onnx", "--provider", "cuda", *words])
    assert done.exit_code == 0, done.output
    assert seen == [OrtOptions(provider="cuda", **fields)]
    ((_, asked),) = seen[0].providers()
    ((name, value),) = fields.items()
    assert name in GPU_FIELDS
    assert asked[name] == (str(int(value)) if isinstance(value, bool) else value)
    assert asked != OrtOptions(provider="cuda").providers()[0][1]
    done = CliRunner().invoke(cli_measure.measure_command, ["m.onnx", *words])
    assert done.exit_code == 2
    assert "means nothing to --provider cpu" in done.output


class Processes:
    """Stands for the processes of models: notes what is asked, and how many there are at once."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.asked: list[str] = []
        self.most = 0
        self._open = 0
        self._seconds = seconds

    @contextmanager
    def start(self, module: str, layout: str) -> Iterator[Any]:
        """Stand for `engines.process.child.child_process`."""
        self._open += 1
        self.most = max(self.most, self._open)
        model = ""

        def ask(do: str, **command: Any) -> dict[str, Any]:
            nonlocal model
            model = command.get("model", model)
            self.asked.append(f"{do} {model}")
            if do == "time":
                times = self._seconds[model]
                if not times:
                    raise RunError("the process is gone")
                return {"seconds": [times.pop(0)] * command["timing"]["runs"], "state": {"x": 1}}
            names = (
                "peak_bytes", "load_bytes", "whole_bytes", "process_bytes", "input_bytes",
                "host_peak_bytes", "output_bytes", "first_run_bytes", "later_runs_bytes",
            )  # fmt: skip
            return {
                **dict.fromkeys(names, 7), "version": "1", "providers": [], "state": {},
                "fixed_addresses": True, "timing": "x", "seconds": 1.0, "runtime_peak_bytes": 5,
            }  # fmt: skip

        yield SimpleNamespace(ask=ask)
        self._open -= 1


def _measured(
    seconds: dict[str, list[float]], provider: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Processes, list[Measurement]]:
    processes = Processes(seconds)
    monkeypatch.setattr(measuring, "child_process", processes.start)
    monkeypatch.setattr(measuring, "cuda_device", lambda: "GPU")
    jobs = [Job(Path(name), Path("x.npz")) for name in seconds]
    options = [OrtOptions(provider=provider)] * len(jobs)
    return processes, measure(jobs, options, runs=2, processes=1)


def test_on_a_gpu_models_take_turns_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two arenas may not fit: one process at a time; original, cut, original, cut, ..."""
    seconds = {"whole": [1.0, 2.0, 4.0], "cut": [1.5, 3.0, 6.0]}
    processes, (whole, cut) = _measured(seconds, "cuda", monkeypatch)
    assert processes.most == 1
    timed = [each for each in processes.asked if each.startswith("time")]
    assert timed == ["time whole", "time cut"] * 3
    # The clock of the last round is at a quarter of the first one's speed: the ratio is not.
    assert cut.ratio is not None
    assert (cut.ratio.min, cut.ratio.max) == (1.5, 1.5)
    assert whole.latency_s is not None
    assert (whole.latency_s.min, whole.latency_s.median, whole.latency_s.max) == (1.0, 2.0, 4.0)
    assert (whole.rounds, whole.runs, whole.peak_bytes, whole.device_state) == (3, 6, 7, {"x": 1})


def test_one_that_fails_in_a_later_round_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no ratio is taken over it; the other one is timed to the end."""
    seconds = {"whole": [1.0], "cut": [1.5, 3.0, 6.0]}
    _, (whole, cut) = _measured(seconds, "cuda", monkeypatch)
    assert (whole.error, whole.latency_s) == ("the process is gone", None)
    assert (cut.error, cut.ratio, cut.rounds) == ("", None, 3)


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_what_fits_at_once_takes_turns_run_by_run(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU all are open at once; one model alone has nothing to take turns with."""
    seconds: dict[str, list[float]] = {"whole": [], **({"cut": []} if provider == "cpu" else {})}
    processes, found = _measured(seconds, provider, monkeypatch)
    assert processes.most == len(seconds)
    assert [each for each in processes.asked if each.startswith("run")] == [
        f"run {name}" for name in seconds
    ] * 3
    assert {(each.rounds, each.runs, each.error) for each in found} == {(0, 2, "")}


def test_a_limit_of_address_space_is_refused_on_a_gpu() -> None:
    """CUDA reserves address space for all memory there is: every model would fail."""
    jobs, options = [Job(Path("m.onnx"), Path("x.npz"))], [OrtOptions(provider="cuda")]
    with pytest.raises(OptionError, match="address space"):
        measure(jobs, options, memory_limit=1 << 30)


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
