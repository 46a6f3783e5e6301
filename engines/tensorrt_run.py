"""Open a TensorRT plan on a GPU, run it, and measure: memory and time.

    open_engine      plan -> engine, its allocator recording every byte TensorRT asks for
      open_context   engine, profile, shapes -> context with buffers for inputs and outputs
        run, time_runs

Peaks are bytes TensorRT asked of the allocator: exact, and without what the driver, the CUDA
context and cuBLAS take beside them. The bookkeeping (`Ledger`) knows no CUDA.

Source: the TensorRT Python API (IGpuAllocator, IGpuAsyncAllocator, Runtime, ICudaEngine,
IExecutionContext, EngineInspector).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engines.cuda import Cuda, cuda_device
from engines.errors import LoadError, OptionError, RunError
from engines.tensorrt_build import collect
from engines.tensorrt_options import Shape

__all__ = [
    "Allocator",
    "Context",
    "Engine",
    "EngineMemory",
    "Ledger",
    "aligned",
    "engine_memory",
    "inspect",
    "open_context",
    "open_engine",
    "recording_allocator",
]

logger = logging.getLogger(__name__)

# What cudaMalloc aligns to, and more than TensorRT asks for.
ALIGNMENT = 256


# --- bookkeeping ----------------------------------------------------------------------------------


def aligned(size: int, alignment: int) -> int:
    """Return the smallest multiple of an alignment (a power of two, 0 for none) of that size.

    Raises:
        ValueError: The alignment is not a power of two.
    """
    if alignment & (alignment - 1) or alignment < 0:
        raise ValueError(f"alignment {alignment} is not a power of two")
    return size if alignment == 0 else -(-size // alignment) * alignment


@dataclass
class Ledger:
    """Bytes that are allocated now, and the most that ever were.

    Attributes:
        live: Address -> bytes.
        live_bytes: Sum over ``live``.
        peak_bytes: The most ``live_bytes`` was since the last `mark`.
        allocations: Number of allocations.
        refused: Bytes of requests that could not be met.
    """

    live: dict[int, int] = field(default_factory=dict)
    live_bytes: int = 0
    peak_bytes: int = 0
    allocations: int = 0
    refused: list[int] = field(default_factory=list)

    def add(self, address: int, size: int) -> None:
        """Note an allocation."""
        if address in self.live:
            raise ValueError(f"address {address:#x} is allocated already")
        self.live[address] = size
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.allocations += 1

    def remove(self, address: int) -> bool:
        """Note a release; False if nothing is allocated there."""
        size = self.live.pop(address, None)
        if size is None:
            return False
        self.live_bytes -= size
        return True

    def mark(self) -> int:
        """Begin a new peak at what is allocated now, and return that, in bytes."""
        self.peak_bytes = self.live_bytes
        return self.live_bytes


# --- the allocator --------------------------------------------------------------------------------


class Allocator:
    """What a recording allocator does, without TensorRT's base class.

    TensorRT calls ``allocate`` and ``deallocate``, or the ``_async`` pair, from a thread of its
    own, and takes no exception from them: a request that fails is answered with 0.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.ledger = Ledger()

    def allocate(self, size: int, alignment: int, flags: int = 0) -> int:
        """Allocate; 0 for nothing, or where it cannot be."""
        del flags  # resizing is not offered, and TensorRT does without
        # cudaMalloc's own alignment covers what TensorRT asks for.
        if size == 0 or alignment > ALIGNMENT:
            return 0
        try:
            address = self.cuda.malloc(size)
        except RunError as error:
            logger.warning("%d bytes: %s", size, error)
            self.ledger.refused.append(size)
            return 0
        self.ledger.add(address, aligned(size, ALIGNMENT))
        return address

    def deallocate(self, memory: int) -> bool:
        """Release; True also for 0, which is nothing."""
        if memory == 0:
            return True
        if not self.ledger.remove(memory):
            return False
        try:
            self.cuda.free(memory)
        except RunError as error:
            logger.warning("%s", error)
            return False
        return True

    def reallocate(self, address: int, alignment: int, new_size: int) -> int:
        """Decline: TensorRT then allocates anew."""
        del address, alignment, new_size
        return 0

    # cudaFree waits for the device, so the plain pair is right on any stream. Bindings differ in
    # the order of flags and stream, and neither is needed.

    def allocate_async(self, size: int, alignment: int, *flags_and_stream: int) -> int:
        """Allocate."""
        del flags_and_stream
        return self.allocate(size, alignment)

    def deallocate_async(self, memory: int, stream: int = 0) -> bool:
        """Release."""
        del stream
        return self.deallocate(memory)

    def reallocate_async(self, address: int, alignment: int, new_size: int) -> int:
        """Decline."""
        return self.reallocate(address, alignment, new_size)


def recording_allocator(module: Any, cuda: Cuda) -> Any:
    """Return an allocator for `Runtime.gpu_allocator` that records: an `Allocator` of the module.

    Its base is the module's `IGpuAsyncAllocator`, or `IGpuAllocator` where there is no other.
    """
    base = getattr(module, "IGpuAsyncAllocator", None) or module.IGpuAllocator

    # Allocator comes first, so that its methods are the ones the binding finds.
    class Recording(Allocator, base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            Allocator.__init__(self, cuda)

    return Recording()


# --- engine ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What an engine says it needs, bytes.

    Attributes:
        device_memory_bytes: Memory of a context: the largest over its profiles.
        profiles: The same per profile.
        weights_bytes: Weights; None where the module does not tell.
    """

    device_memory_bytes: int
    profiles: tuple[int, ...]
    weights_bytes: int | None


@dataclass(frozen=True, slots=True)
class Engine:
    """An open engine. Made by `open_engine`.

    Attributes:
        engine: TensorRT's.
        module: The module it came from.
        cuda: The CUDA runtime.
        allocator: Records what TensorRT allocates.
        weights_peak_bytes: Most that was allocated while it was opened.
        weights_live_bytes: What stayed allocated then: its weights, mostly.
        device: The GPU.
    """

    engine: Any
    module: Any
    cuda: Cuda
    allocator: Any
    weights_peak_bytes: int
    weights_live_bytes: int
    device: str


def engine_memory(module: Any, engine: Any) -> EngineMemory:
    """Read an engine's own figures; the v2 names are in 10.1 and later, the first ones before."""
    suffix = "_v2" if hasattr(engine, "device_memory_size_v2") else ""
    per_profile = getattr(engine, f"get_device_memory_size_for_profile{suffix}")
    weights = None
    if hasattr(module, "EngineStat"):
        weights = int(engine.get_engine_stat(module.EngineStat.TOTAL_WEIGHTS_SIZE))
    return EngineMemory(
        device_memory_bytes=int(getattr(engine, f"device_memory_size{suffix}")),
        profiles=tuple(int(per_profile(k)) for k in range(engine.num_optimization_profiles)),
        weights_bytes=weights,
    )


def inspect(module: Any, engine: Any) -> Any:
    """Return the engine inspector's JSON, parsed; per layer if built with "detailed"."""
    text = engine.create_engine_inspector().get_engine_information(
        module.LayerInformationFormat.JSON
    )
    return json.loads(text)


@contextmanager
def open_engine(plan: bytes, module: Any) -> Iterator[Engine]:
    """Open a plan.

    Args:
        plan: The serialized engine.
        module: `tensorrt` or `tensorrt_rtx`.

    Raises:
        DeviceMissing: There is no driver or no GPU.
        EngineMissing: cuda-python is not installed.
        LoadError: TensorRT refuses the plan.
    """
    device = cuda_device()
    cuda = Cuda.load()
    with collect(module) as (made_logger, messages):
        allocator = recording_allocator(module, cuda)
        runtime = module.Runtime(made_logger)
        runtime.gpu_allocator = allocator
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            why = "; ".join(m.text for m in messages if m.is_error) or "no reason given"
            raise LoadError(f"TensorRT {module.__version__} refuses the plan: {why}")
        ledger = allocator.ledger
        yield Engine(engine, module, cuda, allocator, ledger.peak_bytes, ledger.live_bytes, device)


# --- context --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Context:
    """A context with its buffers. Made by `open_context`.

    Attributes:
        opened: The engine.
        context: TensorRT's.
        stream: The stream it runs on.
        inputs: Input name -> array on the host.
        outputs: Output name -> array on the host, filled by `fetch`.
        addresses: Name -> address on the device.
        memory_bytes: Memory given to the context for these shapes; None if TensorRT allocated it.
    """

    opened: Engine
    context: Any
    stream: int
    inputs: Mapping[str, np.ndarray[Any, Any]]
    outputs: Mapping[str, np.ndarray[Any, Any]]
    addresses: Mapping[str, int]
    memory_bytes: int | None

    @property
    def io_bytes(self) -> int:
        """Bytes of inputs and outputs; in no other figure."""
        return sum(a.nbytes for a in (*self.inputs.values(), *self.outputs.values()))

    def run(self) -> None:
        """Run once and wait.

        Raises:
            RunError: It failed.
        """
        self._enqueue()
        self.opened.cuda.synchronize(self.stream)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream):
            raise RunError("TensorRT did not run the engine; its log says why")

    def fetch(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Copy the outputs to the host."""
        for name, array in self.outputs.items():
            self.opened.cuda.to_host(array, self.addresses[name])
        return self.outputs

    def time_runs(self, runs: int) -> list[float]:
        """Run several times; return the seconds of each, between two events on the stream."""
        return self.opened.cuda.time(self._enqueue, self.stream, runs)


@contextmanager
def open_context(
    opened: Engine, inputs: Mapping[str, np.ndarray[Any, Any]], *, profile: int = 0
) -> Iterator[Context]:
    """Open a context on given inputs, with just the memory that their shapes need.

    Where the module has USER_MANAGED, the memory is allocated here, by the recording allocator,
    for these shapes; elsewhere TensorRT allocates what the largest shapes of the profile need.

    Args:
        opened: The engine.
        inputs: One array per input.
        profile: Number of the optimisation profile.

    Raises:
        OptionError: An input is missing, or its shape is outside the profile.
        RunError: There is not enough memory, or the context cannot be made.
    """
    module, engine, cuda = opened.module, opened.engine, opened.cuda
    with ExitStack() as stack:
        stream = stack.enter_context(cuda.stream())
        strategies = getattr(module, "ExecutionContextAllocationStrategy", None)
        managed = hasattr(strategies, "USER_MANAGED")
        arguments = (strategies.USER_MANAGED,) if managed and strategies is not None else ()
        context = engine.create_execution_context(*arguments)
        if context is None:
            raise RunError("TensorRT made no context; its log says why (memory, most often)")
        if not context.set_optimization_profile_async(profile, stream):
            raise OptionError(f"the engine has no optimisation profile {profile}")
        cuda.synchronize(stream)
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        taken = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
        for name in taken:
            if name not in given:
                raise OptionError(f"input {name} is missing")
            if not context.set_input_shape(name, given[name].shape):
                raise OptionError(
                    f"input {name}: shape {given[name].shape} is outside profile {profile}"
                )
        outputs = {
            name: np.empty(
                _known(name, tuple(context.get_tensor_shape(name))),
                module.nptype(engine.get_tensor_dtype(name)),
            )
            for name in names
            if name not in taken
        }
        addresses = {}
        for name, array in {**{n: given[n] for n in taken}, **outputs}.items():
            # Straight from CUDA, not from the allocator: inputs and outputs are counted apart.
            addresses[name] = cuda.malloc(max(array.nbytes, 1))
            stack.callback(cuda.free, addresses[name])
            context.set_tensor_address(name, addresses[name])
        for name in taken:
            cuda.to_device(addresses[name], given[name])
        memory = None
        if managed:
            memory = _give_memory(stack, opened, context, profile)
        yield Context(opened, context, stream, given, outputs, addresses, memory)
        cuda.synchronize(stream)


def _known(name: str, shape: Shape) -> Shape:
    if any(size < 0 for size in shape):
        raise RunError(f"output {name}: its shape {shape} depends on the inputs' values")
    return shape


def _give_memory(stack: ExitStack, opened: Engine, context: Any, profile: int) -> int:
    """Give a context its memory; what these shapes need, where it can be told."""
    needed = engine_memory(opened.module, opened.engine).profiles[profile]
    if hasattr(context, "update_device_memory_size_for_shapes"):
        # 0 where nothing is needed, and where the engine cannot tell.
        needed = int(context.update_device_memory_size_for_shapes()) or needed
    address = opened.allocator.allocate(needed, ALIGNMENT)
    if needed and not address:
        raise RunError(f"the context needs {needed} bytes, which the device does not have")
    stack.callback(opened.allocator.deallocate, address)
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, needed)
    else:  # before 10.1
        context.device_memory = address
    return needed
