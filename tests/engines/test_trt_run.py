"""TensorRT on a GPU: the bookkeeping here, the rest on a stand-in, and marked tests for a GPU."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from patchconv_deploy.cli import build as cli_build
from patchconv_deploy.engines.errors import (
    DeviceMissing,
    EngineMissing,
    LoadError,
    OptionError,
    RunError,
)
from patchconv_deploy.engines.gpu import cuda as cuda_module
from patchconv_deploy.engines.gpu.cuda import Cuda, check_driver, cuda_device
from patchconv_deploy.engines.gpu.nvml import DeviceMemory
from patchconv_deploy.engines.measurement import Job
from patchconv_deploy.engines.tensorrt_layout import LAYOUTS
from patchconv_deploy.engines.timing import Timing, take_times
from patchconv_deploy.engines.trt import child as tensorrt_child
from patchconv_deploy.engines.trt import measure as measure_tensorrt_module
from patchconv_deploy.engines.trt import run as tensorrt_run
from patchconv_deploy.engines.trt.allocator import Allocator, Ledger, aligned, recording_allocator
from patchconv_deploy.engines.trt.build import BuildResult, build, load_module
from patchconv_deploy.engines.trt.measure import _MEASURED
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.engines.trt.run import (
    WeightStreaming,
    engine_memory,
    inspect,
    open_context,
    open_engine,
)
from patchconv_deploy.verify.inputs import save_inputs
from tests.support.pages import blocks_of, commands_of
from tests.support.small_models import chain, cut, noise, run

__all__ = ["FakeCuda"]


@pytest.mark.parametrize(
    ("size", "alignment", "expected"),
    [(0, 256, 0), (1, 256, 256), (256, 256, 256), (257, 256, 512), (5, 0, 5), (5, 1, 5)],
)
def test_aligned(size: int, alignment: int, expected: int) -> None:
    """Sizes go up to the next multiple; 0 asks for none."""
    assert aligned(size, alignment) == expected


@pytest.mark.parametrize("alignment", [3, 96, -8])
def test_alignment_is_a_power_of_two(alignment: int) -> None:
    """What is no power of two is no alignment."""
    with pytest.raises(ValueError, match="not a power of two"):
        aligned(10, alignment)


def test_ledger() -> None:
    """Live bytes follow what is there; the peak stays, until a new one is begun."""
    ledger = Ledger()
    ledger.add(1, 100)
    ledger.add(2, 50)
    assert ledger.remove(1)
    ledger.add(3, 20)
    assert (ledger.live_bytes, ledger.peak_bytes, ledger.allocations) == (70, 150, 3)
    assert ledger.mark() == 70
    assert ledger.remove(3)
    ledger.add(3, 10)
    assert (ledger.live_bytes, ledger.peak_bytes) == (60, 70)
    assert not ledger.remove(9)
    assert ledger.live_bytes == sum(ledger.live.values())
    with pytest.raises(ValueError, match="allocated already"):
        ledger.add(2, 1)


class FakeCuda(Cuda):
    """Addresses without memory behind them; more than ``limit`` bytes cannot be had."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.next = 1 << 12
        self.live: dict[int, int] = {}
        self.clock = 0.0

    def initialise(self) -> None:
        """Make no context."""

    def malloc(self, size: int) -> int:
        """Give the next address."""
        if sum(self.live.values()) + size > self.limit:
            raise RunError("cudaMalloc: CUDA error 2 (cudaErrorMemoryAllocation)")
        self.next += aligned(size, 256)
        self.live[self.next] = size
        return self.next

    def free(self, address: int) -> None:
        """Forget an address."""
        del self.live[address]

    def to_device(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Check the size."""
        assert self.live[address] == array.nbytes

    def to_host(self, array: np.ndarray[Any, Any], address: int) -> None:
        """Fill with ones."""
        assert self.live[address] == array.nbytes
        array.fill(1)

    @contextmanager
    def stream(self) -> Iterator[int]:
        """Open nothing."""
        yield 5

    def synchronize(self, stream: int) -> None:
        """Wait for nothing."""
        assert stream == 5

    @contextmanager
    def events(self) -> Iterator[tuple[Any, Any]]:
        """Two lists of times."""
        yield [], []

    def record(self, event: Any, stream: int) -> None:
        """Note the time, a second later than the last."""
        self.clock += 1
        event.append(self.clock)

    def seconds(self, begin: Any, end: Any) -> float:
        """Subtract."""
        return float(end[-1] - begin[-1])


def test_allocator() -> None:
    """What TensorRT asks for is counted, aligned; what cannot be had is answered with 0."""
    cuda = FakeCuda(limit=1000)
    allocator = Allocator(cuda)
    first = allocator.allocate(100, 256, 0)
    second = allocator.allocate_async(300, 0, 7, 0)
    assert first % 256 == second % 256 == 0
    assert allocator.ledger.live_bytes == 256 + 512
    assert allocator.allocate(900, 256) == 0
    assert allocator.ledger.refused == [900]
    assert allocator.reallocate(first, 256, 200) == allocator.reallocate_async(first, 256, 2) == 0
    assert allocator.deallocate_async(second, 7)
    assert allocator.deallocate(first)
    assert not allocator.deallocate(first)
    assert allocator.deallocate(0)
    assert allocator.allocate(0, 256) == 0
    assert not cuda.live
    assert (allocator.ledger.live_bytes, allocator.ledger.peak_bytes) == (0, 768)


@pytest.mark.parametrize("alignment", [512, 4096, 1 << 16])
def test_an_alignment_above_that_of_cuda_is_met(alignment: int) -> None:
    """More is allocated, so that an address of that kind lies inside; all of it is released."""
    cuda = FakeCuda()
    cuda.malloc(256)
    allocator = Allocator(cuda)
    address = allocator.allocate(100, alignment)
    assert address % alignment == 0
    (begin,) = [at for at, size in cuda.live.items() if size > 256]
    assert begin <= address
    assert address + 100 <= begin + cuda.live[begin]
    assert allocator.ledger.live_bytes == aligned(100 + alignment, 256)
    assert allocator.deallocate(address)
    assert list(cuda.live.values()) == [256]


def test_allocator_of_the_module() -> None:
    """The base is the module's asynchronous allocator where it has one, and is set up."""

    class Base:
        def __init__(self) -> None:
            self.ready = True

        def allocate(self, size: int, alignment: int, flags: int) -> int:
            raise AssertionError("the binding would call its own")

    class AsyncBase(Base):
        pass

    module = SimpleNamespace(IGpuAllocator=Base, IGpuAsyncAllocator=AsyncBase)
    made: Any = recording_allocator(module, FakeCuda())
    base: type[Any] = AsyncBase
    assert isinstance(made, base)
    assert made.ready
    assert made.allocate(1, 0, 0)
    assert made.ledger.peak_bytes == 256
    assert isinstance(recording_allocator(SimpleNamespace(IGpuAllocator=Base), FakeCuda()), Base)


def test_allocator_of_rtx() -> None:
    """The real base class of TensorRT for RTX can be derived from."""
    try:
        module = load_module("tensorrt-rtx")
    except EngineMissing as error:
        pytest.skip(str(error))
    made = recording_allocator(module, FakeCuda())
    assert isinstance(made, module.IGpuAllocator)
    assert made.deallocate(made.allocate(1000, 256, 0))
    assert made.ledger.peak_bytes == 1024


class FakeContext:
    """A context of one input x [n, 2] and one output y [n, 3], n at most 4."""

    def __init__(self, calls: list[Any], *, resizes: bool) -> None:
        self.calls = calls
        self.shapes: dict[str, tuple[int, ...]] = {"x": (-1, 2), "y": (-1, 3)}
        if resizes:
            self.update_device_memory_size_for_shapes = lambda: 128 * self.shapes["x"][0]

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        """Take profiles 0 and 1."""
        self.calls.append(("profile", profile))
        return profile < 2

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Take up to 4 rows."""
        self.shapes = {"x": shape, "y": (shape[0], 3)}
        return shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return a shape."""
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Note an address; none is a bad one."""
        self.calls.append(("address", name))
        return address != 0

    def set_device_memory(self, address: int, size: int) -> None:
        """Note the memory."""
        self.calls.append(("memory", size))

    temporary_allocator: Any = None

    def execute_async_v3(self, stream: int) -> bool:
        """Run; take 1,000 bytes for a moment where they can be recorded."""
        self.calls.append(("run",))
        if self.temporary_allocator is not None:
            address = self.temporary_allocator.allocate_async(1000, 256, 0, stream)
            self.temporary_allocator.deallocate_async(address, stream)
        return True


def fake_module(calls: list[Any], *, v2: bool = True, resizes: bool = True) -> Any:
    """Make a TensorRT that opens any plan but an empty one."""
    names = ["x", "y"]
    suffix = "_v2" if v2 else ""

    def create(*strategy: Any) -> FakeContext:
        calls.append(("context", *strategy))
        return FakeContext(calls, resizes=resizes)

    engine = SimpleNamespace(
        num_optimization_profiles=2,
        num_io_tensors=2,
        get_tensor_name=lambda k: names[k],
        get_tensor_mode=lambda name: "in" if name == "x" else "out",
        get_tensor_dtype=lambda name: "float",
        get_tensor_format=lambda name, profile: "LINEAR",
        get_engine_stat=lambda stat: 77,
        create_execution_context=create,
        create_engine_inspector=lambda: SimpleNamespace(
            get_engine_information=lambda form: json.dumps({"Layers": [form]})
        ),
        **{
            f"device_memory_size{suffix}": 4000,
            f"get_device_memory_size_for_profile{suffix}": lambda k: 3000 + 1000 * k,
        },
    )

    class Base:
        pass

    class Runtime:
        gpu_allocator: Any = None
        engine: Any = None

        def __init__(self, made_logger: Any) -> None:
            self.logger = made_logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if not plan:
                self.logger.log("Severity.ERROR", "too short")
                return None
            self.gpu_allocator.allocate(500, 256, 0)
            return self.engine

    Runtime.engine = engine
    return SimpleNamespace(
        __name__="tensorrt",
        __version__="11.1" if v2 else "10.0",
        ILogger=Base,
        IGpuAllocator=Base,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        TensorFormat=SimpleNamespace(**{name: name for name in ("CHW4", *LAYOUTS)}),
        EngineStat=SimpleNamespace(TOTAL_WEIGHTS_SIZE=0),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        nptype=lambda kind: np.float32,
    )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Let a GPU be found that is not there."""
    made = FakeCuda()
    monkeypatch.setattr(tensorrt_run, "check_machine", lambda module: "stand-in")
    monkeypatch.setattr(Cuda, "load", lambda: made)
    return made


@pytest.mark.parametrize("resizes", [True, False])
def test_run_and_measure(resizes: bool, cuda: FakeCuda) -> None:
    """Weights, the context's memory, inputs and outputs are each counted apart; all is released."""
    calls: list[Any] = []
    module = fake_module(calls, resizes=resizes)
    with open_engine(b"plan", module) as opened:
        assert opened.weights_peak_bytes == opened.weights_live_bytes == 512
        assert opened.device == "stand-in"
        weights = opened.allocator.ledger.mark()
        with open_context(opened, {"x": np.zeros((3, 2), np.float32)}, profile=1) as context:
            context.run()
            assert context.fetch()["y"].tolist() == [[1.0] * 3] * 3
            assert context.time_runs(2) == [1.0, 1.0]
            # 3 rows of 128 bytes; without the call that tells, all that profile 1 may need.
            needed = 384 if resizes else 4000
            assert context.memory_bytes == needed
            assert context.io_bytes == 3 * 2 * 4 + 3 * 3 * 4
        ledger = opened.allocator.ledger
        assert ledger.peak_bytes - weights == aligned(needed, 256)
        assert ledger.live_bytes == weights
    assert calls[:4] == [("context", "user"), ("profile", 1), ("address", "x"), ("address", "y")]
    assert calls[4:] == [("memory", needed), ("run",), ("run",), ("run",)]
    assert sum(cuda.live.values()) == 500


class Copying(FakeCuda):
    """Memory with bytes in it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[int, bytes] = {}

    def to_device(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Keep the bytes."""
        super().to_device(address, array)
        self.bytes[address] = array.tobytes()

    def to_host(self, array: np.ndarray[Any, Any], address: int) -> None:
        """Give them back."""
        super().to_host(array, address)
        array[...] = np.frombuffer(self.bytes[address], array.dtype).reshape(array.shape)


@pytest.mark.parametrize(
    ("layout", "channels"), [("LINEAR", 3), ("HWC", 3), ("HWC8", 8), ("HWC16", 16)]
)
def test_tensors_lie_as_the_engine_wants_them(
    layout: str, channels: int, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the device is channels last and padded; what comes back is in the model's shape.

    The engine copies its input; its output is laid out alike.
    """
    memory = Copying()
    monkeypatch.setattr(Cuda, "load", lambda: memory)
    module, x = fake_module([]), np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    at: dict[str, int] = {}

    def run(context: FakeContext, stream: int) -> bool:
        memory.bytes[at["y"]] = memory.bytes[at["x"]]
        return True

    monkeypatch.setattr(FakeContext, "get_tensor_shape", lambda *_: x.shape)
    monkeypatch.setattr(
        FakeContext, "set_tensor_address", lambda _, name, to: at.update({name: to}) or True
    )
    monkeypatch.setattr(FakeContext, "execute_async_v3", run)
    with open_engine(b"plan", module) as opened:
        opened.engine.get_tensor_format = lambda name, profile: layout
        with open_context(opened, {"x": x}) as context:
            context.run()
            (y,) = context.fetch().values()
            lies = np.frombuffer(memory.bytes[at["x"]], np.float32)
            # Padding is memory: it counts.
            assert context.io_bytes == 2 * (2 * channels * 4 * 5) * 4
    np.testing.assert_array_equal(y, x)
    if layout == "LINEAR":
        np.testing.assert_array_equal(lies, x.ravel())
        return
    lies = lies.reshape(2, 4, 5, channels)
    np.testing.assert_array_equal(lies[..., :3], x.transpose(0, 2, 3, 1))
    assert not lies[..., 3:].any()


def test_a_layout_that_is_not_known_is_refused(cuda: FakeCuda) -> None:
    """Bytes in another order would be a wrong result, and no error."""
    with open_engine(b"plan", fake_module([])) as opened:
        opened.engine.get_tensor_format = lambda name, profile: "CHW4"
        before = dict(cuda.live)
        with (
            pytest.raises(OptionError, match="tensor x: its layout CHW4 is none of LINEAR, HWC"),
            open_context(opened, {"x": np.zeros((3, 2), np.float32)}),
        ):
            pass
        assert cuda.live == before


def test_engine_s_own_figures() -> None:
    """The v2 names, and the first ones of TensorRT 10.0."""
    for v2 in (True, False):
        module = fake_module([], v2=v2)
        engine = module.Runtime(None)
        engine.gpu_allocator = Allocator(FakeCuda())
        memory = engine_memory(module, engine.deserialize_cuda_engine(b"plan"))
        assert memory.device_memory_bytes == 4000
        assert memory.profiles == (3000, 4000)
        assert memory.weights_bytes == 77


def test_inspector(cuda: FakeCuda) -> None:
    """The inspector's JSON comes back as data."""
    module = fake_module([])
    with open_engine(b"plan", module) as opened:
        assert inspect(module, opened.engine) == {"Layers": ["json"]}


def test_the_measuring_process_reports_all_of_it(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phases, peaks with and without weights, the engine's own figures, its layers; then time."""
    calls: list[Any] = []
    module = fake_module(calls)
    _streams(module)
    monkeypatch.setattr(tensorrt_child, "load_module", lambda engine: module)
    used = [100]
    memory = DeviceMemory(lambda: used[0], state=lambda: {"power_w": 250.0})
    monkeypatch.setattr(cuda, "initialise", lambda: used.append(used.pop() + 40))
    monkeypatch.setattr(tensorrt_child, "open_device_memory", lambda: nullcontext(memory))
    (tmp_path / "plan").write_bytes(b"plan")
    save_inputs(tmp_path / "inputs.npz", {"x": np.zeros((3, 2), np.float32)})
    with ExitStack() as stack:
        worker = tensorrt_child._Worker(stack)
        found = worker.measure(
            {
                "engine": "tensorrt",
                "plan": str(tmp_path / "plan"),
                "inputs": str(tmp_path / "inputs.npz"),
                "host_code": False,
                "weight_streaming_budget": "25%",
                "sampled": str(tmp_path / "windows.npz"),
                "windows": [[[2, 3], [0, 2]]],
            }
        )
        timing = {"warm_up_s": 0.0, "runs": 2, "least": 2, "seconds": 0.0}
        runs = calls.count(("run",))
        timed = worker.time({"timing": timing})
    with np.load(tmp_path / "windows.npz") as windows:
        assert windows["window0"].tolist() == [[1.0, 1.0]]
    phases = found.pop("phases")
    assert found == {
        "device": "stand-in",
        "version": "11.1",
        "peak_bytes": 512 + 1024,
        "peak_with_weights_bytes": 512 + 512 + 1024,
        "device_memory_bytes": 4000,
        "device_memory_per_profile_bytes": [3000, 4000],
        "io_bytes": 3 * 2 * 4 + 3 * 3 * 4,
        "process_bytes": found["process_bytes"],
        "layer_information": {"Layers": ["json"]},
        "weight_streaming": {"streamable_bytes": 1000, "budget_bytes": 250, "scratch_bytes": 64},
    }
    # The CUDA context is the device's alone; a moment's memory is in the runs', not in the context.
    assert [(name, p["peak_bytes"], p["held_bytes"]) for name, p in phases.items()] == [
        ("cuda_context", None, None),
        ("open", 512, 512),
        ("context", 512, 512),
        ("first_run", 1024, 0),
        ("later_runs", 1024, 0),
    ]
    assert [p["device_held_bytes"] for p in phases.values()] == [40, 0, 0, 0, 0]
    assert (runs, calls.count(("run",)) - runs) == (3, 3)
    assert timed == {"seconds": [1.0, 1.0], "state": {"power_w": 250.0}}
    assert set(_MEASURED) <= {*found, "phases"}


def test_models_take_turns_in_being_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory one after the other; times in rounds; one that fails then has no figures."""
    asked: list[tuple[str, str]] = []

    class Process:
        def __init__(self, number: int) -> None:
            self.name = f"p{number}"

        def ask(self, do: str, **command: Any) -> dict[str, Any]:
            asked.append((self.name, do))
            if (self.name, do) == ("p1", "time"):
                raise RunError("gone")
            figures = dict.fromkeys(_MEASURED, 1)
            return {"time": {"seconds": [float(len(asked))], "state": {}}}.get(do, figures)

    numbers = iter(range(9))
    monkeypatch.setattr(
        measure_tensorrt_module, "child_process", lambda name: nullcontext(Process(next(numbers)))
    )
    shared: dict[str, Any] = {**dict.fromkeys(measure_tensorrt_module._SHARED), "notes": []}
    monkeypatch.setattr(measure_tensorrt_module, "_planned", lambda *_: shared)
    jobs = [Job(tmp_path / f"{name}.onnx", tmp_path / "x.npz") for name in "abc"]
    found = measure_tensorrt_module.measure_tensorrt(jobs, [BuildOptions()] * 3)
    assert asked == [
        *((f"p{k}", "measure") for k in range(3)),
        *((f"p{k}", "time") for k in range(3)),
        *((f"p{k}", "time") for k in (0, 2) * 2),
    ]
    assert [each.error for each in found] == ["", "gone", ""]
    first = found[0].latency_s
    assert first is not None
    assert (first.min, first.max) == (4.0, 9.0)


def test_how_often_a_model_is_timed() -> None:
    """A second of warm-up; ten runs, or those of three seconds, and three at the least."""
    now = [0.0]

    def run_for(seconds: float) -> int:
        def run() -> float:
            now[0] += seconds
            return seconds

        return len(take_times(run, Timing(), clock=lambda: now[0]))

    assert [run_for(seconds) for seconds in (0.01, 0.2, 0.5, 2.0)] == [10, 10, 6, 3]
    assert Timing.of(2) == Timing(runs=2, least=2)
    now[0] = 0.0
    run_for(0.01)
    assert now[0] == pytest.approx(1.1, abs=0.02)


def test_what_the_inspector_cannot_say_costs_nothing_else() -> None:
    """Text that is no JSON comes back as it is; an inspector that fails is named."""

    def engine(answer: Any) -> Any:
        return SimpleNamespace(
            create_engine_inspector=lambda: SimpleNamespace(get_engine_information=answer)
        )

    def fail(form: str) -> str:
        raise RuntimeError("no\nlayers")

    found = inspect(fake_module([]), engine(lambda form: '{"a": "b"c"}'))
    assert found["text"] == '{"a": "b"c"}'
    assert inspect(fake_module([]), engine(fail)) == {"error": "no layers"}


def test_shapes_are_read_on_the_host_and_types_are_checked(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor of shapes stays on the host; fp32 is not read as fp16; no refusal is overlooked."""
    calls: list[Any] = []
    module = fake_module(calls)
    module.TensorLocation = SimpleNamespace(HOST="host")
    module.nptype = lambda kind: {"float": np.float32, "half": np.float16}[kind]
    x = np.zeros((3, 2), np.float32)
    with open_engine(b"plan", module) as opened:
        opened.engine.get_tensor_location = lambda name: "host" if name == "x" else "device"
        with open_context(opened, {"x": x}) as context:
            assert set(context.addresses) == {"y"}
            assert set(context.fetch()) == {"y"}
        opened.engine.get_tensor_location = lambda name: "device"
        opened.engine.get_tensor_dtype = lambda name: "half" if name == "x" else "float"
        with (
            pytest.raises(OptionError, match="float32 is given, the engine takes float16"),
            open_context(opened, {"x": x}),
        ):
            pass
        opened.engine.get_tensor_dtype = lambda name: "float"
        before = dict(cuda.live)
        with monkeypatch.context() as patch:
            patch.setattr(FakeContext, "set_tensor_address", lambda *_: False)
            with (
                pytest.raises(RunError, match="refuses the address"),
                open_context(opened, {"x": x}),
            ):
                pass
        assert cuda.live == before


def test_code_in_a_plan_runs_where_it_was_built_alone(cuda: FakeCuda) -> None:
    """The switch of version-compatible plans is set for those, and for no plan from elsewhere."""
    seen: list[bool] = []
    module = fake_module([])
    plain = module.Runtime

    class Runtime(plain):  # type: ignore[misc, valid-type]
        engine_host_code_allowed = False

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            seen.append(self.engine_host_code_allowed)
            if not self.engine_host_code_allowed:
                self.logger.log("Severity.ERROR", "engine host code is not allowed")
                return None
            return super().deserialize_cuda_engine(plan)

    module.Runtime = Runtime
    with open_engine(b"plan", module, host_code=True):
        pass
    with (
        pytest.raises(LoadError, match="carries code"),
        open_engine(b"plan", module),
    ):
        pass
    assert seen == [True, False]


_RESULT = BuildResult(
    plan=b"plan", seconds=1.0, engine="tensorrt", version="11.1", device="stand-in",
    planned_activation_bytes=1, planned_scratch_bytes=1, weights_bytes=1, layers=(),
    skipped_tactics=(), notes=(), messages=(), options=BuildOptions(),
)  # fmt: skip


def _streams(module: Any, *, streamable: int = 1000) -> Any:
    """Let a stand-in's plans stream weights, and choose 300 bytes by itself; return its engine."""
    engine = module.Runtime.engine
    engine.streamable_weights_size = streamable
    engine.weight_streaming_budget_v2 = streamable
    engine.weight_streaming_scratch_memory_size = 64
    engine.get_weight_streaming_automatic_budget = lambda: 300
    return engine


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(400, 400), (0, 0), (5000, 1000), ("25%", 250), ("100%", 1000), ("auto", 300)],
)
def test_weights_stay_on_the_host_but_for_a_budget(
    budget: int | str, kept: int, cuda: FakeCuda
) -> None:
    """Bytes, a share of what can be streamed, or TensorRT's choice; more than all is all."""
    module = fake_module([])
    engine = _streams(module)
    with open_engine(b"plan", module, weight_streaming_budget=budget) as opened:
        assert engine.weight_streaming_budget_v2 == kept
        assert opened.streaming == WeightStreaming(1000, kept, 64)
    engine.weight_streaming_budget_v2 = 77
    with open_engine(b"plan", module) as opened:
        assert opened.streaming is None
    assert engine.weight_streaming_budget_v2 == 77


def test_budgets_of_weights_that_do_not_take(cuda: FakeCuda) -> None:
    """TensorRT 10.0 has another call; what it refuses is read back; no weights, no budget."""
    module = fake_module([], v2=False)
    with (
        pytest.raises(OptionError, match=r"TensorRT 10\.0 takes none; TensorRT 10\.1 and later do"),
        open_engine(b"plan", module, weight_streaming_budget=5),
    ):
        pass
    module = fake_module([])

    class Stubborn:
        streamable_weights_size = 1000
        weight_streaming_budget_v2 = property(lambda self: 9, lambda self, value: None)

    module.Runtime.engine = Stubborn()
    with (
        pytest.raises(OptionError, match="refuses 5 of 1000 streamable bytes and keeps 9"),
        open_engine(b"plan", module, weight_streaming_budget=5),
    ):
        pass
    module = fake_module([])
    _streams(module, streamable=0)
    with open_engine(b"plan", module, weight_streaming_budget=5) as opened:
        assert opened.streaming == WeightStreaming(0, 0, 0)


def test_the_command_shows_what_is_streamed(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``build --weightStreamingBudget`` opens the plan, and says how much stays on the device."""
    model, plan, figures = (tmp_path / name for name in ("model.onnx", "model.plan", "f.json"))
    onnx.save(chain(1, (1, 2, 16, 8)), model)
    asked: list[BuildOptions] = []
    module = fake_module([])
    _streams(module, streamable=8 << 20)

    def made(_: Path, options: BuildOptions, __: Any) -> BuildResult:
        asked.append(options)
        return replace(_RESULT, options=options)

    monkeypatch.setattr(cli_build, "load_module", lambda engine: module)
    monkeypatch.setattr(cli_build, "build", made)
    command = [str(model), "-o", str(plan), "--json", str(figures), "--allow-weight-streaming"]
    command += ["--weight-streaming-budget", "2MiB", "--tiling-optimization-level", "1"]
    command += ["--l2-limit-for-tiling", "3MiB", "--input-formats", "fp32:chw"]
    done = CliRunner().invoke(cli_build.build_command, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "streamed weights: 2.0 of 8.0 MiB stay on the device" in done.output
    assert "--allowWeightStreaming --weightStreamingBudget=2M" in " ".join(done.output.split())
    (options,) = asked
    assert options.tiling_optimization_level == 1
    assert options.l2_limit_for_tiling == 3 << 20
    assert options.input_io_formats == ("fp32:chw",)
    (data,) = json.loads(figures.read_text())["results"]
    assert data["weight_streaming"]["budget_bytes"] == 2 << 20
    assert data["options"]["weight_streaming_budget"] == 2 << 20


@pytest.mark.parametrize(
    ("least", "plan", "said"),
    [
        ("1x2x16x8", '{"version": 2, "axis": "height", "regions": []}', True),
        ("1x2x64x8", '{"version": 2, "axis": "height", "regions": []}', False),
        ("1x2x64x8", '{"version": 2, "axis": "width", "regions": []}', True),
        ("1x2x16x8", "{}", False),
        ("1x2x16x8", "", False),
    ],
)
def test_a_profile_of_many_heights_is_said(
    least: str, plan: str, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a rewritten model alone, and along the axis that is cut."""
    model = chain(1, (1, 2, "H", "W"))
    if plan:
        model.metadata_props.add(key="patchconv.plan", value=plan)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(cli_build, "load_module", lambda engine: fake_module([]))
    monkeypatch.setattr(cli_build, "build", lambda *_: _RESULT)
    command = [str(tmp_path / "model.onnx"), "-o", str(tmp_path / "model.plan")]
    command += ["--minShapes", f"x:{least}", "--optShapes", "x:1x2x64x16"]
    command += ["--maxShapes", "x:1x2x64x16"]
    done = CliRunner().invoke(cli_build.build_command, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert ("a plan for each such size" in " ".join(done.output.split())) == said


def test_the_documentation_s_trtexec_lines_are_those_that_are_printed(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `patchconv build` of the page stands over the `trtexec` line that it prints."""
    onnx.save(chain(1, (1, 2, 16, 8)), tmp_path / "model.patched.onnx")
    monkeypatch.chdir(tmp_path)
    module = fake_module([])
    _streams(module)
    monkeypatch.setattr(cli_build, "load_module", lambda engine: module)
    monkeypatch.setattr(cli_build, "build", lambda *_: _RESULT)
    pairs = 0
    for block in blocks_of("docs/tensorrt.md"):
        words = [shlex.split(line) for line in commands_of(block)]
        if [each[0] for each in words] != ["patchconv", "trtexec"]:
            continue
        (_, _, *arguments), told = words
        arguments.append("--force")
        done = CliRunner().invoke(cli_build.build_command, arguments, catch_exceptions=False)
        printed = shlex.split(done.output.partition("trtexec:\n")[2].replace("\n", " "))
        assert sorted(printed) == sorted(told)
        pairs += 1
    assert pairs == 2


def test_layers_are_exported_by_the_command(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``build --exportLayerInfo``, as trtexec names it: the inspector's JSON, in a file."""
    model, plan, layers = (tmp_path / name for name in ("model.onnx", "model.plan", "layers.json"))
    onnx.save(chain(1, (1, 2, 16, 8)), model)
    module, runtimes = fake_module([]), []

    class Runtime(module.Runtime):  # type: ignore[misc, name-defined]
        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            runtimes.append(self)
            return super().deserialize_cuda_engine(plan)

    module.Runtime = Runtime
    monkeypatch.setattr(cli_build, "load_module", lambda engine: module)
    monkeypatch.setattr(cli_build, "build", lambda *_: _RESULT)
    command = [str(model), "-o", str(plan), "--exportLayerInfo", str(layers), "--versionCompatible"]
    done = CliRunner().invoke(cli_build.build_command, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(layers.read_text()) == {"Layers": ["json"]}
    assert f"--exportLayerInfo={layers}" in done.output
    assert plan.read_bytes() == b"plan"
    # Such a plan carries code, which was built a moment ago.
    assert [each.engine_host_code_allowed for each in runtimes] == [True]


def test_refusals(cuda: FakeCuda) -> None:
    """A bad plan, a missing input, a shape or profile there is not, too little memory."""
    with (
        pytest.raises(LoadError, match="refuses the plan: too short"),
        open_engine(b"", fake_module([])),
    ):
        pass
    x = np.zeros((3, 2), np.float32)
    with open_engine(b"plan", fake_module([])) as opened:
        before = dict(cuda.live)
        with pytest.raises(OptionError, match="input x is missing"), open_context(opened, {}):
            pass
        with (
            pytest.raises(OptionError, match="no optimisation profile 2"),
            open_context(opened, {"x": x}, profile=2),
        ):
            pass
        with (
            pytest.raises(OptionError, match="outside profile 0"),
            open_context(opened, {"x": np.zeros((5, 2), np.float32)}),
        ):
            pass
        cuda.limit = sum(cuda.live.values()) + 100
        with pytest.raises(RunError, match="needs 384 bytes"), open_context(opened, {"x": x}):
            pass
        assert cuda.live == before


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver: one line that says so, and nothing is loaded."""

    def none(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", none)
    for attempt in (lambda: open_engine(b"plan", fake_module([])).__enter__(), Cuda.load):
        with pytest.raises(DeviceMissing, match="no NVIDIA driver on this machine"):
            attempt()


def test_no_device_behind_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without a GPU, and one that does not start, are told apart."""

    class Driver:
        code = 100

        def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
            return self.code

        def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
            return 0

    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    with pytest.raises(DeviceMissing, match="cuInit: error 100"):
        cuda_device()
    Driver.code = 0
    with pytest.raises(DeviceMissing, match="no NVIDIA GPU"):
        cuda_device()


@pytest.mark.parametrize(
    ("runs", "cuda_major", "advice"),
    [
        (13000, 12, ""),
        (12040, 12, ""),
        (12040, 13, r"CUDA 12\.4 at most; install patchconv-deploy\[gpu-cu12\] in its place, or "
         "install driver r580"),
        (11080, 12, r"runs CUDA 11\.8 at most; install driver r525 or later"),
    ],
)  # fmt: skip
def test_a_driver_too_old_is_named_with_what_fits_it(
    runs: int, cuda_major: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is looked at first: a library that is too new for it fails in other words."""

    class Driver:
        def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
            return 0

        def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
            version._obj.value = runs
            return 0

    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    if not advice:
        check_driver(cuda_major, "onnxruntime-gpu 1.31", "gpu")
        return
    with pytest.raises(DeviceMissing, match=advice):
        check_driver(cuda_major, "onnxruntime-gpu 1.31", "gpu")


def test_no_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without cuda-python: the message says what to install."""

    def none(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(cuda_module, "cuda_device", lambda: "stand-in")
    monkeypatch.setattr("importlib.import_module", none)
    with pytest.raises(EngineMissing, match="cuda-python is not installed"):
        Cuda.load()


def test_errors_of_cuda() -> None:
    """A CUDA call that fails is an error that names it."""
    failed = SimpleNamespace(cudaMalloc=lambda size: (2, None))
    with pytest.raises(RunError, match="cudaMalloc: CUDA error 2"):
        Cuda(failed).malloc(8)
    assert Cuda(SimpleNamespace(cudaMalloc=lambda size: (0, 512))).malloc(8) == 512


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["original", "sequential", "batch"])
@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_gpu(engine: str, form: str, tmp_path: Path) -> None:
    """Build, run and measure on a GPU; the numbers are ONNX Runtime's."""
    try:
        module = load_module(engine)
        Cuda.load()
    except (EngineMissing, DeviceMissing) as error:
        pytest.skip(str(error))
    options = BuildOptions(no_tf32=True)
    if engine == "tensorrt-rtx":
        # A plan is for one compute capability, and there are GPUs that it has none for (Hopper).
        found = re.search(r"compute capability (\d+)\.(\d+)", cuda_device())
        assert found is not None
        capability = f"SM{found[1]}{found[2]}"
        if not hasattr(module.ComputeCapability, capability):
            pytest.skip(f"TensorRT for RTX {module.__version__} runs on no GPU of {capability}")
        options = replace(options, compute_capability=capability)
    original = chain(2, (1, 2, 64, 40))
    made = original if form == "original" else cut(original, form).model
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    x = noise(1, 2, 64, 40)
    # TF32 keeps 10 bits of a product; without it the engines differ in the order of sums alone.
    result = build(path, options, module)
    with open_engine(result.plan, module) as opened:
        assert inspect(module, opened.engine)
        weights = opened.allocator.ledger.mark()
        with open_context(opened, {"x": x}) as context:
            context.run()
            got = dict(context.fetch())
            assert all(seconds > 0 for seconds in context.time_runs(3))
        assert opened.allocator.ledger.peak_bytes >= weights
        assert engine_memory(module, opened.engine).profiles
    expected = run(original, {"x": x})
    np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-4, atol=1e-4)
