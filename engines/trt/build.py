"""An ONNX file to a TensorRT plan, over the module passed in.

`tensorrt` 10, `tensorrt` 11 and `tensorrt_rtx` share their API; what differs:

    |                        | tensorrt 10      | tensorrt 11  | tensorrt_rtx                    |
    |------------------------|------------------|--------------|---------------------------------|
    | needs a GPU to build   | yes              | yes          | no                              |
    | types                  | flags, or strong | strong alone | strong alone                    |
    | GPU a plan is for      | the one it is on | the same     | compute capability, set         |
    | timing cache           | yes              | yes          | none; its calls do nothing      |
    | hardware compatibility | yes              | yes          | a warning, then ignored         |
    | tiling in the L2 cache | from 10.8 on     | yes          | yes                             |
    | weights streamed       | if strong        | yes          | yes                             |

Figures read from the build messages are a plan: what the builder lays out, not what a device was
seen to use. Network inputs and outputs are not in them.

A build is `collect` -> `make_network` -> `parse` -> `set_formats` -> `make_config` -> `run_build`,
one after the other in `build`.

Source: the TensorRT Python API (Builder, IBuilderConfig, OnnxParser), and NVIDIA/TensorRT,
samples/common/sampleEngines.cpp.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.errors import (
    BuildError,
    DeviceMissing,
    EngineMissing,
    LoadError,
    OptionError,
    ParseError,
    WorkspaceError,
)
from patchconv_deploy.engines.gpu.cuda import DRIVERS, Cuda, check_driver, cuda_device
from patchconv_deploy.engines.tensorrt_layout import FORMATS
from patchconv_deploy.engines.trt.allocator import Ledger, recording_allocator
from patchconv_deploy.engines.trt.options import (
    HARDWARE_LEVELS,
    POOLS,
    TILING_LEVELS,
    TYPES,
    VERBOSITIES,
    BuildOptions,
    Shape,
)

__all__ = [
    "ENGINES",
    "BuildResult",
    "LayerMemory",
    "Message",
    "TacticRequest",
    "build",
    "check_machine",
    "collect",
    "engine_of",
    "load_module",
    "oversized",
]


logger = logging.getLogger(__name__)

# Engine -> (module, extra of this project that installs it).
ENGINES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx")}

# TensorRT's convolution refuses tensors with more (NVIDIA/TensorRT issues 4123 and 4408).
MAX_ELEMENTS = 2**31 - 1

# Nodes of a rewritten model are named below the node they came from.
_BELOW = re.compile(r"/patchconv(_\d+)?/")


def load_module(engine: str) -> Any:
    """Import TensorRT.

    Args:
        engine: "tensorrt" or "tensorrt-rtx".

    Raises:
        EngineMissing: It is not installed.
        OptionError: There is no such engine.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine={engine!r}: must be one of {', '.join(ENGINES)}")
    name, extra = ENGINES[engine]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineMissing(
            f"{name} is not installed; install patchconv-deploy[{extra}]"
        ) from error


def check_machine(module: Any) -> str:
    """See that the machine has what TensorRT runs on; return the GPU.

    Raises:
        DeviceMissing: There is no driver, none new enough for this TensorRT, or no GPU.
    """
    for cuda in DRIVERS if engine_of(module) == "tensorrt" else ():
        # The module does not say what CUDA it is for; the package that brought it does.
        with suppress(PackageNotFoundError):
            version(f"tensorrt-cu{cuda}")
            check_driver(cuda, _label(module), "tensorrt")
            break
    return cuda_device()


def engine_of(module: Any) -> str:
    """Return the engine a module is: "tensorrt" or "tensorrt-rtx"."""
    return "tensorrt-rtx" if module.__name__ == "tensorrt_rtx" else "tensorrt"


def _label(module: Any) -> str:
    words = "TensorRT for RTX" if engine_of(module) == "tensorrt-rtx" else "TensorRT"
    return f"{words} {module.__version__}"


def _always_strongly_typed(module: Any) -> bool:
    return engine_of(module) == "tensorrt-rtx" or int(module.__version__.split(".")[0]) >= 11


@dataclass(frozen=True, slots=True)
class Message:
    """A message of TensorRT.

    Attributes:
        severity: "INTERNAL_ERROR", "ERROR", "WARNING", "INFO" or "VERBOSE".
        text: The message.
    """

    severity: str
    text: str

    @property
    def is_error(self) -> bool:
        """Tell whether it reports a failure."""
        return self.severity.endswith("ERROR")


# TensorRT keeps the first logger it is given for the whole process, and later ones get nothing
# while anything made with the first is alive. So there is one per module, and its list changes.
_loggers: dict[int, tuple[Any, Any]] = {}


def _logger_of(module: Any) -> Any:
    if id(module) in _loggers:
        return _loggers[id(module)][1]

    class Collector(module.ILogger):  # type: ignore[misc]
        """Keeps every message; severities are left to the reader."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.sink: list[Message] | None = None

        def log(self, severity: Any, text: str) -> None:
            message = Message(str(severity).rpartition(".")[2], text)
            logger.debug("%s: %s", message.severity, message.text)
            if self.sink is not None:
                self.sink.append(message)

    made = Collector()
    _loggers[id(module)] = (module, made)
    return made


@contextmanager
def collect(module: Any) -> Iterator[tuple[Any, list[Message]]]:
    """Collect TensorRT's messages: yields the logger to pass it, and the list that fills.

    One at a time: an inner `collect` takes the messages until it ends.
    """
    made = _logger_of(module)
    outer, made.sink = made.sink, []
    try:
        yield made, made.sink
    finally:
        made.sink = outer


def _errors(messages: Sequence[Message]) -> list[str]:
    """Return what went wrong; every error without a driver is followed by one that says so."""
    texts = [_clean(message.text) for message in messages if message.is_error]
    return [text for text in dict.fromkeys(texts) if text]


def _clean(text: str) -> str:
    lines = (line for line in text.splitlines() if "catchCudaError" not in line)
    return " ".join(" ".join(lines).split())


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """Memory a layer is planned to need, bytes, from a line of the build messages."""

    name: str
    host_persistent: int
    device_persistent: int
    scratch: int


@dataclass(frozen=True, slots=True)
class TacticRequest:
    """A tactic that was skipped as it asked for more memory than it may have.

    Attributes:
        layer: The layer being timed; empty where it is not known.
        bytes: What it asked for.
    """

    layer: str
    bytes: int


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A plan, and what the builder said about it.

    Attributes:
        plan: The serialized engine.
        seconds: Time of the build, parsing included.
        engine: "tensorrt" or "tensorrt-rtx".
        version: Version of the module.
        device: The GPU it was built on, or for.
        planned_activation_bytes: Activation memory of a context, scratch included, without network
            inputs and outputs. A plan of the builder, not a measurement. None if not printed.
        planned_scratch_bytes: Largest scratch memory of a layer, planned; None if not printed.
        weights_bytes: Weights in the plan; None if not printed.
        layers: Planned memory per layer; empty if not printed.
        skipped_tactics: Requests for memory that were too large.
        notes: Options that this engine leaves out.
        messages: All messages, in order.
        options: What was asked for.
        builder_peak_bytes: Most that the builder had allocated on the device, by a recording
            allocator; None where it used none, or cuda-python is not installed.
    """

    plan: bytes
    seconds: float
    engine: str
    version: str
    device: str
    planned_activation_bytes: int | None
    planned_scratch_bytes: int | None
    weights_bytes: int | None
    layers: tuple[LayerMemory, ...]
    skipped_tactics: tuple[TacticRequest, ...]
    notes: tuple[str, ...]
    messages: tuple[Message, ...]
    options: BuildOptions
    builder_peak_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON data; the plan and the messages are left out."""
        return {
            "engine": self.engine,
            "version": self.version,
            "device": self.device,
            "build_s": self.seconds,
            "plan_bytes": len(self.plan),
            "planned_activation_bytes": self.planned_activation_bytes,
            "planned_scratch_bytes": self.planned_scratch_bytes,
            "weights_bytes": self.weights_bytes,
            "builder_peak_bytes": self.builder_peak_bytes,
            "layers": [
                {
                    "name": layer.name,
                    "host_persistent_bytes": layer.host_persistent,
                    "device_persistent_bytes": layer.device_persistent,
                    "scratch_bytes": layer.scratch,
                }
                for layer in self.layers
            ],
            "skipped_tactics": [
                {"layer": request.layer, "bytes": request.bytes} for request in self.skipped_tactics
            ],
            "notes": list(self.notes),
            "options": self.options.as_json(),
        }


_LAYER = re.compile(
    r"Layer: (?P<name>.*) Host Persistent: (?P<host>\d+)(?: bytes)? "
    r"Device Persistent: (?P<device>\d+)(?: bytes)? Scratch Memory: (?P<scratch>\d+)"
)

_TIMED = re.compile(r"Computing costs for (?P<name>.*?)\s*$", re.MULTILINE)

_REQUEST = re.compile(r"insufficient memory on requested size of (?P<bytes>\d+)", re.IGNORECASE)


def _largest(messages: Sequence[Message], what: str) -> int | None:
    """Return the largest figure of that name: one line is printed per engine in the plan."""
    pattern = re.compile(re.escape(what) + r":\s*(\d+)")
    figures = [int(found) for m in messages for found in pattern.findall(m.text)]
    return max(figures, default=None)


def _layers(messages: Sequence[Message]) -> tuple[LayerMemory, ...]:
    found = (_LAYER.search(message.text) for message in messages)
    return tuple(
        LayerMemory(m["name"], int(m["host"]), int(m["device"]), int(m["scratch"]))
        for m in found
        if m is not None
    )


def _skipped(messages: Sequence[Message]) -> tuple[TacticRequest, ...]:
    layer, requests = "", []
    for message in messages:
        timed, request = _TIMED.search(message.text), _REQUEST.search(message.text)
        if timed is not None:
            layer = timed["name"]
        if request is not None:
            requests.append(TacticRequest(layer, int(request["bytes"])))
    return tuple(requests)


def check_options(options: BuildOptions, module: Any) -> tuple[str, ...]:
    """Refuse what this module cannot do; return what it will leave out.

    Raises:
        OptionError: The options ask for what the module does not have.
    """
    notes = []
    if options.precisions and _always_strongly_typed(module):
        raise OptionError(
            f"--{options.precisions[0]}: {_label(module)} keeps to the types of the ONNX model; "
            "cast the ONNX model instead"
        )
    for tactic in options.tactic_sources:
        if not hasattr(module.TacticSource, tactic[1:]):
            raise OptionError(f"--tacticSources {tactic}: {_label(module)} has no such source")
    _check_newer_options(options, module)
    if engine_of(module) == "tensorrt-rtx":
        if options.hardware_compatibility_level != "none":
            raise OptionError(
                "--hardwareCompatibilityLevel: TensorRT for RTX builds for a compute capability "
                f"({options.compute_capability}), not for levels"
            )
        if not hasattr(module.ComputeCapability, options.compute_capability):
            known = [name for name in dir(module.ComputeCapability) if name.startswith("SM")]
            raise OptionError(
                f"compute capability {options.compute_capability}: {_label(module)} builds for "
                + ", ".join(sorted(known))
            )
        if options.timing_cache_file is not None:
            notes.append("--timingCacheFile: TensorRT for RTX keeps no timing cache; left out")
    return tuple(notes)


def _check_newer_options(options: BuildOptions, module: Any) -> None:
    """Refuse what came with a later TensorRT than this one, or needs more than is asked for.

    Raises:
        OptionError: It names the option, and what has it.
    """
    tiling = options.tiling_optimization_level, options.l2_limit_for_tiling
    for flag, value in zip(
        ("--tilingOptimizationLevel", "--l2LimitForTiling"), tiling, strict=True
    ):
        # Both came with the enumeration.
        if value is not None and not hasattr(module, "TilingOptimizationLevel"):
            raise OptionError(f"{flag}: {_label(module)} has none; TensorRT 10.8 and later have")
    if not options.allow_weight_streaming:
        return
    if not hasattr(module.BuilderFlag, "WEIGHT_STREAMING"):
        raise OptionError(f"--allowWeightStreaming: {_label(module)} streams no weights")
    if not (options.strongly_typed or _always_strongly_typed(module)):
        raise OptionError(
            f"--allowWeightStreaming: {_label(module)} streams the weights of strongly typed "
            "networks alone; add --stronglyTyped"
        )


def make_network(module: Any, builder: Any, options: BuildOptions) -> Any:
    """Make an empty network with its creation flags.

    Flags are 0 where the module knows one kind of network alone: explicit batch since 10, strongly
    typed since 11.
    """
    flags = 0
    if options.strongly_typed and not _always_strongly_typed(module):
        flags |= 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder.create_network(flags)


def parse(module: Any, network: Any, made_logger: Any, model_path: Path) -> None:
    """Read an ONNX file into a network; external data is found beside it.

    Raises:
        ParseError: The parser refuses a node; the message names it.
        LoadError: The file is no ONNX model.
    """
    if not model_path.is_file():
        raise LoadError(f"{model_path}: no such file")
    parser = module.OnnxParser(network, made_logger)
    if not parser.parse_from_file(str(model_path)):
        errors = [parser.get_error(k) for k in range(parser.num_errors)]
        raise _parse_error(model_path, errors, _label(module))
    # A file of other bytes may parse without an error, into a network without outputs.
    if network.num_outputs == 0:
        raise LoadError(f"{model_path}: not an ONNX model, or one without outputs")


def _parse_error(model_path: Path, errors: Sequence[Any], label: str) -> LoadError:
    said, nodes = [], []
    for error in errors:
        name, operator, why = error.node_name(), error.node_operator(), _clean(error.desc())
        if not operator:
            said.append(why)
            continue
        nodes.append(name)
        # Unsupported operators are reported without a word.
        reason = why if why not in ("", "false") else "not supported"
        said.append(f"node {_user_node(name) or error.node()} ({operator}): {reason}")
    text = "; ".join(dict.fromkeys(said)) or "refused without a reason"
    if not nodes:
        return LoadError(f"{model_path}: {label}: {text}")
    return ParseError(f"{model_path}: the parser of {label} refuses {text}", tuple(nodes))


def _user_node(name: str) -> str:
    """Return the node of the user's model that a node of a rewritten one came from."""
    return _BELOW.split(name)[0]


def add_profiles(builder: Any, config: Any, network: Any, options: BuildOptions) -> None:
    """Add the optimisation profiles.

    Raises:
        OptionError: A profile does not fit the inputs, or an input with free dimensions has none.
    """
    inputs = {tensor.name: tensor for tensor in _inputs(network)}
    free = [name for name, tensor in inputs.items() if -1 in tuple(tensor.shape)]
    if free and not options.profiles:
        flags = " ".join(f"--{side}Shapes={free[0]}:..." for side in ("min", "opt", "max"))
        raise OptionError(
            f"input {', '.join(free)}: free dimensions need a profile; give {flags}, or fix them "
            "with rewrite(MODEL, shapes={...})"
        )
    for given in options.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, opt, most) in given.items():
            # TensorRT takes shapes for an input there is not, and wrong ranks, without a word.
            if name not in inputs:
                raise OptionError(f"profile of input {name}: the inputs are {', '.join(inputs)}")
            dims = tuple(inputs[name].shape)
            if inputs[name].is_shape_tensor and len(dims) <= 1 and -1 not in dims:
                _set_profile(profile.set_shape_input, name, given[name])
                continue
            if len(dims) != len(opt) or any(
                d not in (-1, a) or (d != -1 and not a == b == c)
                for d, a, b, c in zip(dims, least, opt, most, strict=True)
            ):
                raise OptionError(f"profile of input {name}: does not fit its shape {dims}")
            _set_profile(profile.set_shape, name, given[name])
        missing = [name for name in free if name not in given]
        if missing:
            raise OptionError(f"input {missing[0]}: has free dimensions and no shapes in a profile")
        if config.add_optimization_profile(profile) < 0:
            raise OptionError("TensorRT refuses the optimisation profile")


def _set_profile(put: Callable[..., object], name: str, shapes: Sequence[Shape]) -> None:
    """Put an input's shapes, or its values, into a profile.

    Raises:
        OptionError: TensorRT refuses them, which its binding raises.
    """
    try:
        put(name, *shapes)
    except (RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise OptionError(f"profile of input {name}: TensorRT refuses it: {why}") from error


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(k) for k in range(network.num_inputs)]


def set_pools(module: Any, config: Any, options: BuildOptions) -> None:
    """Limit memory pools.

    Raises:
        OptionError: A limit did not take, which TensorRT says in its log alone.
    """
    for pool, size in options.mem_pool_size.items():
        kind = getattr(module.MemoryPoolType, POOLS[pool])
        config.set_memory_pool_limit(kind, size)
        if config.get_memory_pool_limit(kind) != size:
            raise OptionError(
                f"--memPoolSize {pool}:{size}: refused by {_label(module)}, which keeps "
                f"{config.get_memory_pool_limit(kind)} bytes"
            )


def set_tactics(module: Any, config: Any, options: BuildOptions) -> None:
    """Add tactic sources to TensorRT's own, or take them off."""
    if not options.tactic_sources:
        return
    sources = config.get_tactic_sources()
    for tactic in options.tactic_sources:
        bit = 1 << int(getattr(module.TacticSource, tactic[1:]))
        sources = sources | bit if tactic[0] == "+" else sources & ~bit
    config.set_tactic_sources(sources)


def set_tiling(module: Any, config: Any, options: BuildOptions) -> None:
    """Say how long to look for tiles that stay in the L2 cache, and what there is of it.

    Raises:
        OptionError: It did not take, which TensorRT says in its log alone.
    """
    wanted: dict[str, tuple[str, Any]] = {}
    if options.tiling_optimization_level is not None:
        name = TILING_LEVELS[options.tiling_optimization_level]
        level = getattr(module.TilingOptimizationLevel, name)
        wanted["tiling_optimization_level"] = ("--tilingOptimizationLevel", level)
    if options.l2_limit_for_tiling is not None:
        wanted["l2_limit_for_tiling"] = ("--l2LimitForTiling", options.l2_limit_for_tiling)
    for attribute, (flag, value) in wanted.items():
        setattr(config, attribute, value)
        kept = getattr(config, attribute)
        if kept != value:
            raise OptionError(f"{flag} {value}: refused by {_label(module)}, which keeps {kept}")


def set_precision(module: Any, config: Any, options: BuildOptions) -> None:
    """Set what numbers kernels may use."""
    for name in options.precisions:
        config.set_flag(getattr(module.BuilderFlag, name.upper()))
    if options.no_tf32:
        config.clear_flag(module.BuilderFlag.TF32)


def make_config(module: Any, builder: Any, network: Any, options: BuildOptions) -> Any:
    """Make the builder's configuration.

    Raises:
        OptionError: An option does not fit the module or the network.
    """
    config = builder.create_builder_config()
    if engine_of(module) == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        capability = getattr(module.ComputeCapability, options.compute_capability)
        config.set_compute_capability(capability, 0)
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    config.profiling_verbosity = getattr(
        module.ProfilingVerbosity, VERBOSITIES[options.profiling_verbosity]
    )
    if options.hardware_compatibility_level != "none":
        config.hardware_compatibility_level = getattr(
            module.HardwareCompatibilityLevel, HARDWARE_LEVELS[options.hardware_compatibility_level]
        )
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(module.BuilderFlag.REFIT)
    if options.allow_weight_streaming:
        config.set_flag(module.BuilderFlag.WEIGHT_STREAMING)
    set_precision(module, config, options)
    set_pools(module, config, options)
    set_tiling(module, config, options)
    set_tactics(module, config, options)
    add_profiles(builder, config, network, options)
    return config


@contextmanager
def timing_cache(module: Any, config: Any, options: BuildOptions) -> Iterator[None]:
    """Read the timing cache before the build, and write it, whole or not at all, after it.

    A cache of another TensorRT or GPU is not used, and replaced.
    """
    path = options.timing_cache_file
    if path is None or engine_of(module) == "tensorrt-rtx":
        yield
        return
    data = path.read_bytes() if path.is_file() else b""
    # None for what is no timing cache at all, False for one of another TensorRT or GPU.
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        logger.warning("%s: no timing cache of this TensorRT and GPU; begun anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    _write(path, bytes(config.get_timing_cache().serialize()))


def _write(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def set_formats(module: Any, network: Any, options: BuildOptions) -> None:
    """Ask for the layouts of inputs and outputs.

    Raises:
        OptionError: They are not one for all or one for each, or of another type than the tensor.
    """
    outputs = [network.get_output(k) for k in range(network.num_outputs)]
    for (flag, wanted), tensors in zip(
        options.io_formats.items(), (_inputs(network), outputs), strict=True
    ):
        if not wanted:
            continue
        if len(wanted) not in (1, len(tensors)):
            raise OptionError(
                f"{flag} {','.join(wanted)}: give one for all, or one for each of "
                + ", ".join(tensor.name for tensor in tensors)
            )
        each = wanted if len(wanted) == len(tensors) else wanted * len(tensors)
        for tensor, spec in zip(tensors, each, strict=True):
            kind, _, layout = spec.partition(":")
            if tensor.dtype.name != TYPES[kind]:
                raise OptionError(
                    f"{flag} {spec}: {tensor.name} is of type {tensor.dtype.name} in the model, "
                    "which is kept; cast the ONNX model instead"
                )
            kinds = {getattr(module.TensorFormat, FORMATS[each]) for each in layout.split("+")}
            tensor.allowed_formats = sum(1 << int(each) for each in kinds)


def run_build(builder: Any, network: Any, config: Any) -> bytes | None:
    """Build; None where TensorRT fails, which says why in its log alone."""
    plan = builder.build_serialized_network(network, config)
    return None if plan is None else bytes(plan)


@dataclass(frozen=True, slots=True)
class Oversized:
    """A convolution with more elements on a side than TensorRT's take.

    Attributes:
        layer: Name of its layer.
        elements: Elements of its larger side.
        splits: Patches that bring each one under the limit, run one after the other.
    """

    layer: str
    elements: int
    splits: int


def _elements(tensor: Any) -> int:
    dims = tuple(tensor.shape)
    return math.prod(dims) if dims and min(dims) >= 0 else 0


def _convolutions(module: Any, network: Any) -> list[tuple[str, int]]:
    """Return name and elements of the larger side of every convolution; 0 with free dimensions."""
    kinds = (module.LayerType.CONVOLUTION, module.LayerType.DECONVOLUTION)
    layers = (network.get_layer(k) for k in range(network.num_layers))
    return [
        (layer.name, max(_elements(layer.get_input(0)), _elements(layer.get_output(0))))
        for layer in layers
        if layer.type in kinds
    ]


def oversized(module: Any, network: Any) -> tuple[Oversized, ...]:
    """Return the convolutions of a network that hold more than 2^31 - 1 elements on a side.

    Free dimensions are not looked into. A tenth of the limit is left for the patches' halos.
    """
    return tuple(
        Oversized(name, elements, math.ceil(elements / (0.9 * MAX_ELEMENTS)))
        for name, elements in _convolutions(module, network)
        if elements > MAX_ELEMENTS
    )


def _check_sizes(
    module: Any, network: Any, model_path: Path, options: BuildOptions
) -> tuple[str, ...]:
    """Refuse what TensorRT cannot run; TensorRT for RTX plans it, so there it is a note."""
    found = oversized(module, network)
    if not found:
        return ()
    worst = max(found, key=lambda each: each.elements)
    names = [_user_node(each.layer) for each in found]
    text = (
        f"{', '.join(names)}: more than 2^31 - 1 elements "
        f"(up to {worst.elements}), which TensorRT's convolutions do not take; cut: "
        f"rewrite({str(model_path)!r}, target='tensorrt'), or these alone: "
        f"rewrite({str(model_path)!r}, include={names}, form='sequential', splits={worst.splits})"
    )
    if engine_of(module) == "tensorrt-rtx" or not options.refuse_oversized:
        return (text,)
    raise BuildError(text)


_NO_KERNEL = re.compile(
    r"could not find any implementation for node (?P<layer>.*?)"
    r"(?:\s+due to insufficient workspace.*|, try increasing.*|\.?\)?\s+In \w+ at .*|\.?\)?\s*)$",
    re.IGNORECASE | re.DOTALL,
)

_NO_WORKSPACE = re.compile(r"within workspace limit|insufficient workspace", re.IGNORECASE)

_NO_MEMORY = re.compile(
    r"out\s?of\s?memory|insufficient memory|cudaErrorMemoryAllocation|requested size was",
    re.IGNORECASE,
)


def _build_error(
    module: Any, network: Any, config: Any, messages: Sequence[Message], model_path: Path
) -> BuildError:
    errors = _errors(messages)
    for text in errors:
        # Without a name in the error, it is the layer whose tactics were tried last.
        no_kernel = _NO_KERNEL.search(text)
        if no_kernel is not None:
            layer = no_kernel["layer"]
        elif _NO_WORKSPACE.search(text) or _NO_MEMORY.search(text):
            timed = [found["name"] for m in messages for found in _TIMED.finditer(m.text)]
            layer = timed[-1] if timed else ""
        else:
            continue
        limit = config.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE)
        device = no_kernel is None and not _NO_WORKSPACE.search(text)
        where = (
            "the device (or the one planned for) has"
            if device
            else f"the workspace of {limit / 2**20:g} MiB allows"
        )
        asked = [r.bytes for r in _skipped(messages) if r.layer == layer]
        least = f" (its tactics asked for {min(asked) / 2**20:.0f} MiB or more)" if asked else ""
        raising = "cut it" if device else "raise --memPoolSize=workspace:... or cut it"
        return WorkspaceError(
            f"layer {_shown(layer) or '(not named)'} needs more than {where}{least}; {raising}: "
            f"rewrite({str(model_path)!r}, "
            f"include=[{_to_cut(module, network, messages, layer)!r}], splits=8)",
            layer,
        )
    why = "; ".join(errors) or "no reason given"
    return BuildError(f"{model_path}: {_label(module)} builds no engine: {why}")


def _shown(layer: str) -> str:
    return layer if len(layer) <= 200 else f"{layer[:197]}..."


def _to_cut(module: Any, network: Any, messages: Sequence[Message], layer: str) -> str:
    """Return the user's convolution to cut: the largest of those the layer was fused from."""
    # A fused region is shown as its first and last node; this message lists the ones between.
    listed = [m.text for m in messages if layer and layer in m.text and "[ONNX Layer: " in m.text]
    held = set(re.findall(r"\[ONNX Layer: (.*?)\]", "\n".join(listed)))
    # A fused layer's name holds several: "conv + relu", "{ForeignNode[first...last]}".
    held |= set(re.split(r"\.\.\.| \+ |[{}\[\](), ]", layer))
    convolutions = _convolutions(module, network)
    inside = [each for each in convolutions if each[0] in held] or convolutions
    if not inside:
        return "NODE"
    return _user_node(max(inside, key=lambda each: each[1])[0])


def build(model_path: Path, options: BuildOptions, module: Any) -> BuildResult:
    """Build a plan.

    Args:
        model_path: The ONNX file.
        options: What to ask for.
        module: `tensorrt` or `tensorrt_rtx`, as `load_module` returns it.

    Raises:
        DeviceMissing: `tensorrt` builds on a GPU, and there is none.
        OptionError: An option does not fit the module or the model.
        LoadError: The file is no ONNX model.
        ParseError: The parser refuses a node.
        WorkspaceError: A layer needs more memory than it may have.
        BuildError: No engine comes of it for another reason.
    """
    notes = check_options(options, module)
    if engine_of(module) == "tensorrt-rtx":
        device = f"none used; planned for {options.compute_capability}"
    else:
        try:
            device = check_machine(module)
        except DeviceMissing as error:
            raise DeviceMissing(
                f"TensorRT builds on the GPU it is for: {error}; engine='tensorrt-rtx' plans "
                "without one"
            ) from None
    started = time.perf_counter()
    with collect(module) as (made_logger, messages), warnings.catch_warnings():
        # Calls that a version calls deprecated are the ones the other versions have.
        warnings.simplefilter("ignore", DeprecationWarning)
        builder = module.Builder(made_logger)
        ledger = _recorded(module, builder)
        network = make_network(module, builder, options)
        parse(module, network, made_logger, model_path)
        notes += _check_sizes(module, network, model_path, options)
        set_formats(module, network, options)
        config = make_config(module, builder, network, options)
        with timing_cache(module, config, options):
            plan = run_build(builder, network, config)
            if plan is None:
                raise _build_error(module, network, config, messages, model_path)
    for note in notes:
        logger.warning("%s", note)
    return BuildResult(
        plan=plan,
        seconds=time.perf_counter() - started,
        engine=engine_of(module),
        version=module.__version__,
        device=device,
        planned_activation_bytes=_largest(messages, "Total Activation Memory"),
        planned_scratch_bytes=_largest(messages, "Max Scratch Memory"),
        weights_bytes=_largest(messages, "Total Weights Memory"),
        layers=_layers(messages),
        skipped_tactics=_skipped(messages),
        notes=notes,
        messages=tuple(messages),
        options=options,
        builder_peak_bytes=None if ledger is None else ledger.peak_bytes,
    )


def _recorded(module: Any, builder: Any) -> Ledger | None:
    """Record what a builder allocates on the device; None where it uses none, or that cannot be."""
    if engine_of(module) == "tensorrt-rtx":
        return None
    try:
        allocator = recording_allocator(module, Cuda.load())
    except (EngineMissing, DeviceMissing) as error:
        logger.info("the builder's own memory is not recorded: %s", error)
        return None
    builder.gpu_allocator = allocator
    ledger: Ledger = allocator.ledger
    return ledger
