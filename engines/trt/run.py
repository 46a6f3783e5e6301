"""Open a TensorRT plan on a GPU, run it, and measure: memory and time.

    open_engine      plan -> engine, its allocator recording every byte TensorRT asks for
      open_context   engine, profile, shapes -> context with buffers for inputs and outputs
        run, time_runs

Peaks are bytes TensorRT asked of the allocator: exact, and without what the driver, the CUDA
context and cuBLAS take beside them (`engines.trt.allocator`).

Source: the TensorRT Python API (IGpuAllocator, IGpuAsyncAllocator, Runtime, ICudaEngine,
IExecutionContext, EngineInspector).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchconv_deploy.engines.errors import LoadError, OptionError, RunError
from patchconv_deploy.engines.gpu.cuda import Cuda
from patchconv_deploy.engines.tensorrt_layout import LAYOUTS, Layout
from patchconv_deploy.engines.trt.allocator import ALIGNMENT, recording_allocator
from patchconv_deploy.engines.trt.build import check_machine, collect
from patchconv_deploy.engines.trt.options import AUTOMATIC, Shape, share_of_weights

__all__ = [
    "Context",
    "Engine",
    "EngineMemory",
    "WeightStreaming",
    "engine_memory",
    "inspect",
    "open_context",
    "open_engine",
]


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
class WeightStreaming:
    """Weights that an open engine may leave on the host.

    Attributes:
        streamable_bytes: All of them.
        budget_bytes: What of them the device keeps.
        scratch_bytes: What a context needs for their copies, in its memory.
    """

    streamable_bytes: int
    budget_bytes: int
    scratch_bytes: int


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
        streaming: How its weights are streamed; None where no budget was given.
    """

    engine: Any
    module: Any
    cuda: Cuda
    allocator: Any
    weights_peak_bytes: int
    weights_live_bytes: int
    device: str
    streaming: WeightStreaming | None = None


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
    """Return the engine inspector's JSON, parsed; per layer if built with "detailed".

    Layer names are not escaped in some versions. What is no JSON comes back as the text it is:
    what else was found out about the engine does not depend on it.
    """
    try:
        text = engine.create_engine_inspector().get_engine_information(
            module.LayerInformationFormat.JSON
        )
    except RuntimeError as error:
        return {"error": " ".join(str(error).split())}
    try:
        return json.loads(text)
    except ValueError as error:
        return {"error": f"not JSON: {error}", "text": text}


@contextmanager
def open_engine(
    plan: bytes,
    module: Any,
    *,
    host_code: bool = False,
    weight_streaming_budget: int | str | None = None,
) -> Iterator[Engine]:
    """Open a plan.

    Args:
        plan: The serialized engine.
        module: `tensorrt` or `tensorrt_rtx`.
        host_code: Let code in the plan run on the host: a version-compatible plan carries its own
            runtime. For plans that were built here alone; one from elsewhere may do anything.
        weight_streaming_budget: What of the streamable weights the device keeps
            (`BuildOptions.weight_streaming_budget`).

    Raises:
        OptionError: This TensorRT takes no such budget, or not this one.
        DeviceMissing: There is no driver or no GPU.
        EngineMissing: cuda-python is not installed.
        LoadError: TensorRT refuses the plan.
    """
    device = check_machine(module)
    cuda = Cuda.load()
    with collect(module) as (made_logger, messages):
        allocator = recording_allocator(module, cuda)
        runtime = module.Runtime(made_logger)
        runtime.gpu_allocator = allocator
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            why = "; ".join(m.text for m in messages if m.is_error) or "no reason given"
            if not host_code and "host code" in why.lower().replace("_", " "):
                why += (
                    " (a version-compatible plan carries code, which is run only where the plan "
                    "was built in the same command)"
                )
            raise LoadError(f"TensorRT {module.__version__} refuses the plan: {why}")
        # Before any context is made: afterwards it cannot be changed.
        streaming = _stream_weights(module, engine, weight_streaming_budget)
        ledger = allocator.ledger
        yield Engine(
            engine, module, cuda, allocator, ledger.peak_bytes, ledger.live_bytes, device, streaming
        )


def _stream_weights(module: Any, engine: Any, budget: int | str | None) -> WeightStreaming | None:
    """Leave weights on the host, but for a budget; None where none is given.

    Raises:
        OptionError: This TensorRT takes no such budget, or not this one.
    """
    if budget is None:
        return None
    if not hasattr(engine, "weight_streaming_budget_v2"):
        raise OptionError(
            f"--weightStreamingBudget: TensorRT {module.__version__} takes none; TensorRT 10.1 and "
            "later do"
        )
    streamable = int(engine.streamable_weights_size)
    if streamable == 0:
        return WeightStreaming(0, 0, 0)
    if isinstance(budget, int):
        wanted = min(budget, streamable)
    elif budget == AUTOMATIC:
        wanted = int(engine.get_weight_streaming_automatic_budget())
    else:
        wanted = int((share_of_weights(budget) or 0.0) * streamable)
    engine.weight_streaming_budget_v2 = wanted
    kept = int(engine.weight_streaming_budget_v2)
    if kept != wanted:
        raise OptionError(
            f"--weightStreamingBudget {budget}: TensorRT refuses {wanted} of {streamable} "
            f"streamable bytes and keeps {kept}"
        )
    return WeightStreaming(streamable, kept, int(engine.weight_streaming_scratch_memory_size))


@dataclass(frozen=True, slots=True)
class Context:
    """A context with its buffers. Made by `open_context`.

    Attributes:
        opened: The engine.
        context: TensorRT's.
        stream: The stream it runs on.
        inputs: Input name -> array on the host, laid out as on the device.
        outputs: Output name -> array on the host, laid out as on the device, filled by `fetch`.
        layouts: Output name -> its layout, and its shape without one.
        addresses: Name -> address on the device; not of tensors on the host.
        memory_bytes: Memory given to the context for these shapes; None if TensorRT allocated it.
    """

    opened: Engine
    context: Any
    stream: int
    inputs: Mapping[str, np.ndarray[Any, Any]]
    outputs: Mapping[str, np.ndarray[Any, Any]]
    layouts: Mapping[str, tuple[Layout, Shape]]
    addresses: Mapping[str, int]
    memory_bytes: int | None

    @property
    def io_bytes(self) -> int:
        """Bytes of inputs and outputs, with what a layout pads; in no other figure."""
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
        """Copy the outputs to the host; return them in the model's own shapes."""
        for name in self.outputs.keys() & self.addresses.keys():
            self.opened.cuda.to_host(self.outputs[name], self.addresses[name])
        return {
            name: layout.from_device(self.outputs[name], shape)
            for name, (layout, shape) in self.layouts.items()
        }

    def time_runs(self, runs: int) -> list[float]:
        """Run several times; return the seconds of each, between two events on the stream."""
        return self.opened.cuda.time(self._enqueue, self.stream, runs)


@contextmanager
def open_context(
    opened: Engine,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    *,
    profile: int = 0,
    record_temporary: bool = False,
) -> Iterator[Context]:
    """Open a context on given inputs, with just the memory that their shapes need.

    Where the module has USER_MANAGED, the memory is allocated here, by the recording allocator,
    for these shapes; elsewhere TensorRT allocates what the largest shapes of the profile need.

    Args:
        opened: The engine.
        inputs: One array per input, of the engine's own types, in the model's shapes; they are laid
            out as the engine wants them.
        profile: Number of the optimisation profile.
        record_temporary: Let what TensorRT needs for a moment while it runs come from the recording
            allocator too. It waits for the device there, so not where time is taken.

    Raises:
        OptionError: An input is missing, or its type or shape is not the engine's or the profile's;
            a tensor has a layout that is not known here.
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
        if record_temporary:
            context.temporary_allocator = opened.allocator
        if not context.set_optimization_profile_async(profile, stream):
            raise OptionError(f"the engine has no optimisation profile {profile}")
        cuda.synchronize(stream)
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        taken = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
        given = {name: _given(opened, inputs, name) for name in taken}
        for name, array in given.items():
            if not context.set_input_shape(name, array.shape):
                raise OptionError(f"input {name}: shape {array.shape} is outside profile {profile}")
        # Laid out once shapes are set: they are the model's own.
        given = {n: _layout(opened, n, profile).to_device(a) for n, a in given.items()}
        # Values that decide shapes are read on the host, and have to be there before these are.
        _place(stack, opened, context, {n: a for n, a in given.items() if _on_host(opened, n)})
        layouts = {
            name: (
                _layout(opened, name, profile),
                _known(name, tuple(context.get_tensor_shape(name))),
            )
            for name in names
            if name not in taken
        }
        outputs = {
            name: np.empty(layout.shape(shape), _type(opened, name))
            for name, (layout, shape) in layouts.items()
        }
        left = {n: a for n, a in given.items() if not _on_host(opened, n)}
        addresses = _place(stack, opened, context, {**left, **outputs})
        for name in addresses.keys() & given.keys():
            cuda.to_device(addresses[name], given[name])
        memory = None
        if managed:
            memory = _give_memory(stack, opened, context, profile)
        yield Context(opened, context, stream, given, outputs, layouts, addresses, memory)
        cuda.synchronize(stream)


def _on_host(opened: Engine, name: str) -> bool:
    """Tell whether TensorRT reads or writes a tensor in the host's memory: one of shapes."""
    if not hasattr(opened.engine, "get_tensor_location"):
        return False
    host = opened.module.TensorLocation.HOST
    return bool(opened.engine.get_tensor_location(name) == host)


def _layout(opened: Engine, name: str, profile: int) -> Layout:
    """Return how a tensor lies on the device.

    Raises:
        OptionError: It is not one of `LAYOUTS`.
    """
    kind = opened.engine.get_tensor_format(name, profile)
    found = {getattr(opened.module.TensorFormat, each): each for each in LAYOUTS}.get(kind)
    if found is None:
        raise OptionError(f"tensor {name}: its layout {kind} is none of {', '.join(LAYOUTS)}")
    return LAYOUTS[found]


def _type(opened: Engine, name: str) -> Any:
    """Return the numpy type of a tensor.

    Raises:
        OptionError: numpy has none.
    """
    kind = opened.engine.get_tensor_dtype(name)
    try:
        return np.dtype(opened.module.nptype(kind))
    except TypeError as error:
        raise OptionError(
            f"tensor {name}: numpy has no type for {kind}; let the model take and give float32 or "
            "float16 (a Cast at its ends)"
        ) from error


def _given(
    opened: Engine, inputs: Mapping[str, np.ndarray[Any, Any]], name: str
) -> np.ndarray[Any, Any]:
    """Return an input, contiguous.

    Raises:
        OptionError: It is missing, or of another type: TensorRT would read its bytes as they are.
    """
    if name not in inputs:
        raise OptionError(f"input {name} is missing")
    # Not ascontiguousarray, which makes a vector of a scalar.
    array, wanted = np.asarray(inputs[name], order="C"), _type(opened, name)
    if array.dtype != wanted:
        raise OptionError(f"input {name}: {array.dtype} is given, the engine takes {wanted}")
    return array


def _place(
    stack: ExitStack,
    opened: Engine,
    context: Any,
    tensors: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, int]:
    """Tell a context where tensors are; allocate those that are on the device.

    Returns:
        Name -> address on the device, of those.
    """
    addresses = {}
    for name, array in tensors.items():
        if _on_host(opened, name):
            address = array.ctypes.data
        else:
            # Straight from CUDA, not from the allocator: inputs and outputs are counted apart.
            address = addresses[name] = opened.cuda.malloc(max(array.nbytes, 1))
            stack.callback(opened.cuda.free, address)
        if not context.set_tensor_address(name, address):
            raise RunError(f"TensorRT refuses the address of {name}; its log says why")
    return addresses


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
