"""TensorRT: its options, the calls a build makes on each module, and builds of TensorRT for RTX.

TensorRT 10 and 11 are recording stand-ins. TensorRT for RTX is the real one: it parses and plans
for a GPU without having one. Its figures are a plan, and are printed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.engines.errors import (
    BuildError,
    DeviceMissing,
    EngineMissing,
    LoadError,
    OptionError,
    ParseError,
    WorkspaceError,
)
from patchconv_deploy.engines.gpu.cuda import Cuda, cuda_device
from patchconv_deploy.engines.trt import build as tensorrt_build
from patchconv_deploy.engines.trt.allocator import Ledger
from patchconv_deploy.engines.trt.build import BuildResult, build, collect, load_module
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.engines.trt.trtexec import trtexec_command
from tests.support.small_models import cut, model, node, noise, value

SHAPES = {"x": ((1, 2, 8, 8), (1, 2, 64, 40), (2, 2, 128, 80))}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mem_pool_size": {"worksapce": 1}}, "--memPoolSize worksapce: must be one of workspace"),
        ({"mem_pool_size": {"workspace": -1}}, "--memPoolSize workspace:-1"),
        ({"max_aux_streams": -1}, "--maxAuxStreams -1"),
        ({"input_io_formats": ("hwc8",)}, "--inputIOFormats hwc8: is not of the form fp16:hwc8"),
        ({"tiling_optimization_level": 4}, "--tilingOptimizationLevel 4: must be 0 to 3"),
        ({"l2_limit_for_tiling": -1}, "--l2LimitForTiling -1: is 0 bytes or more"),
        ({"weight_streaming_budget": 5}, "built with --allowWeightStreaming streams"),
        (
            {"allow_weight_streaming": True, "weight_streaming_budget": "101%"},
            "--weightStreamingBudget 101%: must be a size, a share of the weights such as 40%",
        ),
        (
            {"allow_weight_streaming": True, "weight_streaming_budget": -1},
            "--weightStreamingBudget -1: must be a size",
        ),
        ({"input_io_formats": ("fp16:chw+nchw",)}, "--inputIOFormats nchw: must be one of chw"),
        ({"input_io_formats": ("half:hwc8",)}, "--inputIOFormats half: must be one of fp32, fp16"),
        ({"output_io_formats": ("fp16:nhwc",)}, "--outputIOFormats nhwc: must be one of chw, hwc"),
        ({"builder_optimization_level": 6}, "--builderOptimizationLevel 6: must be 0 to 5"),
        ({"tactic_sources": ("CUDNN",)}, "begins with"),
        ({"tactic_sources": ("+CUDA",)}, "must be one of CUBLAS"),
        ({"tactic_sources": ("+CUDNN", "-CUDNN")}, "both added and taken off"),
        ({"profiling_verbosity": "verbose"}, "--profilingVerbosity verbose: must be one of"),
        ({"hardware_compatibility_level": "ampere"}, "must be one of none, ampere"),
        ({"fp16": True, "strongly_typed": True}, "--fp16 and --stronglyTyped"),
        ({"profiles": ({"x": ((1, 2), (1,), (1,))},)}, "different ranks"),
        ({"profiles": ({"x": ((2,), (1,), (3,))},)}, "2, 1, 3 are not min <= opt <= max"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    """What TensorRT would refuse, or leave out without a word, is refused by name."""
    with pytest.raises(OptionError) as refusal:
        BuildOptions(**options)
    assert words in str(refusal.value)


def test_command_of_the_defaults() -> None:
    """The defaults that are not TensorRT's own are spelled out."""
    command = trtexec_command(BuildOptions(), Path("a.onnx"), Path("a.plan"))
    assert command == (
        "trtexec --onnx=a.onnx --saveEngine=a.plan --skipInference --maxAuxStreams=0 "
        "--profilingVerbosity=detailed"
    )


def test_command_spells_every_option() -> None:
    """Every option has trtexec's flag; names with blanks are quoted."""
    options = BuildOptions(
        profiles=(SHAPES | {"s": ((), (), ())},),
        mem_pool_size={"workspace": 64 << 20, "tacticSharedMem": 48 << 10, "dlaSRAM": 1000},
        max_aux_streams=None,
        input_io_formats=("fp16:hwc8",),
        output_io_formats=("fp16:hwc8", "fp32:chw"),
        timing_cache_file=Path("my cache"),
        fp16=True,
        bf16=True,
        int8=True,
        no_tf32=True,
        tactic_sources=("-CUDNN", "+JIT_CONVOLUTIONS"),
        builder_optimization_level=5,
        tiling_optimization_level=2,
        l2_limit_for_tiling=4 << 20,
        allow_weight_streaming=True,
        version_compatible=True,
        hardware_compatibility_level="ampere+",
        refit=True,
        profiling_verbosity="none",
    )
    command = trtexec_command(options, Path("my model.onnx"), Path("a.plan"))
    assert shlex.split(command) == [
        "trtexec",
        "--onnx=my model.onnx",
        "--saveEngine=a.plan",
        "--skipInference",
        "--minShapes=x:1x2x8x8,s:scalar",
        "--optShapes=x:1x2x64x40,s:scalar",
        "--maxShapes=x:2x2x128x80,s:scalar",
        # trtexec reads the last letter alone: "64MiB" would be 64 bytes.
        "--memPoolSize=workspace:64M,tacticSharedMem:48K,dlaSRAM:1000B",
        "--inputIOFormats=fp16:hwc8",
        "--outputIOFormats=fp16:hwc8,fp32:chw",
        "--timingCacheFile=my cache",
        "--fp16",
        "--bf16",
        "--int8",
        "--noTF32",
        "--versionCompatible",
        "--refit",
        "--tacticSources=-CUDNN,+JIT_CONVOLUTIONS",
        "--builderOptimizationLevel=5",
        "--tilingOptimizationLevel=2",
        "--l2LimitForTiling=4194304",
        "--allowWeightStreaming",
        "--hardwareCompatibilityLevel=ampere+",
        "--profilingVerbosity=none",
    ]
    typed = trtexec_command(BuildOptions(strongly_typed=True), Path("a"), Path("b"))
    assert "--stronglyTyped" in typed.split()


@pytest.mark.parametrize(
    ("budget", "said"), [(512 << 20, "512M"), (0, "0M"), ("40%", "40%"), ("auto", "-1")]
)
def test_command_spells_a_budget_of_weights(budget: int | str, said: str) -> None:
    """It is used where a plan runs: trtexec is not told to stop before that."""
    options = BuildOptions(allow_weight_streaming=True, weight_streaming_budget=budget)
    words = shlex.split(trtexec_command(options, Path("a"), Path("b")))
    assert f"--weightStreamingBudget={said}" in words
    assert "--allowWeightStreaming" in words
    assert "--skipInference" not in words


def test_options_as_json() -> None:
    """Options come back from JSON as they were."""
    options = BuildOptions(
        profiles=(SHAPES,),
        mem_pool_size={"workspace": 5},
        timing_cache_file=Path("cache"),
        tactic_sources=("+CUDNN",),
        input_io_formats=("fp16:hwc8",),
        output_io_formats=("fp16:chw",),
        tiling_optimization_level=1,
        l2_limit_for_tiling=9,
        allow_weight_streaming=True,
        weight_streaming_budget="40%",
        bf16=True,
    )
    assert BuildOptions.from_json(json.loads(json.dumps(options.as_json()))) == options
    assert BuildOptions.from_json(BuildOptions().as_json()) == BuildOptions()


def test_command_numbers_several_profiles() -> None:
    """Several profiles each follow a --profile."""
    options = BuildOptions(profiles=(SHAPES, SHAPES))
    words = trtexec_command(options, Path("a"), Path("b")).split()
    assert [w.split("=")[0] for w in words[4:12]] == [
        *("--profile", "--minShapes", "--optShapes", "--maxShapes") * 2
    ]
    assert "--profile=1" in words


class Recorder:
    """Attributes and calls, in order: ("config.set_flag", "FP16")."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def named(self, what: str) -> list[Any]:
        """Return the arguments of every call of that name."""
        return [call[1:] for call in self.calls if call[0] == what]


class Kind(int):
    """A value of a stand-in's enumeration: a number with a name."""

    name: str

    def __repr__(self) -> str:
        return self.name


def enumeration(names: str) -> SimpleNamespace:
    """Make an enumeration: names in the order of their values."""
    made = {}
    for number, name in enumerate(names.split()):
        made[name] = Kind(number)
        made[name].name = name
    return SimpleNamespace(**made)


def stand_in(
    version: str,
    *,
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (SimpleNamespace(name="y"),),
    layers: Sequence[Any] = (),
    say: Sequence[tuple[str, str]] = (),
    plan: bytes | None = b"plan",
    errors: Sequence[Any] = (),
    cache_fits: bool = True,
    l2_cache: int = 40 << 20,
) -> tuple[Any, Recorder]:
    """Make a TensorRT of a version.

    Args:
        version: "10..." or "11...".
        inputs: The parsed network's inputs.
        outputs: Its outputs.
        layers: Its layers.
        say: Severity and text of the messages of a build.
        plan: What the build gives.
        errors: The parser's.
        cache_fits: Whether a timing cache that is not empty is accepted.
        l2_cache: Limit above which one for tiling does not take.
    """
    recorder, old = Recorder(), version.startswith("10")
    record = recorder.calls.append
    pools: dict[Any, int] = {}

    class ILogger:
        Severity = enumeration("INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

        def __init__(self) -> None:
            record(("logger",))

    class Config:
        def __setattr__(self, name: str, given: Any) -> None:
            record((f"config.{name}", given))
            if name == "l2_limit_for_tiling" and given > l2_cache:
                given = 0
            object.__setattr__(self, name, given)

        def set_flag(self, flag: Any) -> None:
            record(("config.set_flag", flag.name))

        def clear_flag(self, flag: Any) -> None:
            record(("config.clear_flag", flag.name))

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            record(("config.set_memory_pool_limit", pool.name, size))
            pools[pool] = size

        def get_memory_pool_limit(self, pool: Any) -> int:
            return pools.get(pool, 80 << 30)

        def get_tactic_sources(self) -> int:
            return 0b01000

        def set_tactic_sources(self, sources: int) -> None:
            record(("config.set_tactic_sources", sources))

        def add_optimization_profile(self, profile: Any) -> int:
            record(("config.add_optimization_profile",))
            return 0

        def create_timing_cache(self, data: bytes) -> bytes:
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            record(("config.set_timing_cache", cache, ignore_mismatch))
            return cache_fits or not cache

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: b"timings")

    class Profile:
        def set_shape(self, *arguments: Any) -> None:
            record(("profile.set_shape", *arguments))

        def set_shape_input(self, *arguments: Any) -> None:
            record(("profile.set_shape_input", *arguments))

    network = SimpleNamespace(
        num_inputs=len(inputs),
        get_input=lambda k: inputs[k],
        num_outputs=len(outputs),
        get_output=lambda k: outputs[k],
        num_layers=len(layers),
        get_layer=lambda k: layers[k],
    )

    class Builder:
        def __init__(self, made_logger: Any) -> None:
            self.logger = made_logger
            record(("builder",))

        def create_network(self, flags: int) -> Any:
            record(("create_network", flags))
            return network

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, given: Any, config: Config) -> bytes | None:
            record(("build",))
            for severity, text in say:
                self.logger.log(f"Severity.{severity}", text)
            return plan

    class OnnxParser:
        num_errors = len(errors)

        def __init__(self, given: Any, made_logger: Any) -> None:
            pass

        def parse_from_file(self, path: str) -> bool:
            record(("parse", path))
            return not errors

        def get_error(self, k: int) -> Any:
            return errors[k]

    sources = "CUBLAS CUBLAS_LT CUDNN " if old else ""
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        NetworkDefinitionCreationFlag=enumeration("EXPLICIT_BATCH STRONGLY_TYPED"),
        BuilderFlag=enumeration(
            ("FP16 BF16 INT8 " if old else "") + "REFIT VERSION_COMPATIBLE TF32 WEIGHT_STREAMING"
        ),
        MemoryPoolType=enumeration(
            "WORKSPACE DLA_MANAGED_SRAM DLA_LOCAL_DRAM DLA_GLOBAL_DRAM TACTIC_SHARED_MEMORY"
        ),
        TacticSource=enumeration(sources + "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS"),
        ProfilingVerbosity=enumeration("LAYER_NAMES_ONLY NONE DETAILED"),
        HardwareCompatibilityLevel=enumeration("NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY"),
        TensorFormat=enumeration("LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 DHWC8 CDHW32 HWC"),
        LayerType=enumeration("CONVOLUTION DECONVOLUTION ACTIVATION"),
    )
    if not version.startswith("10.0"):
        module.TilingOptimizationLevel = enumeration("NONE FAST MODERATE FULL")
    return module, recorder


def tensor(name: str, *shape: int, shapes: bool = False) -> Any:
    """Make a tensor of a network; ``shapes``: its values are sizes."""
    return SimpleNamespace(name=name, shape=shape, is_shape_tensor=shapes)


def convolution(name: str, before: Sequence[int], after: Sequence[int]) -> Any:
    """Make a convolution's layer."""
    return SimpleNamespace(
        name=name,
        type=0,
        get_input=lambda k: tensor("x", *before),
        get_output=lambda k: tensor("y", *after),
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the builder find a GPU that is not there."""
    name = "NVIDIA Stand-in, compute capability 8.0, 80 GiB"
    monkeypatch.setattr(tensorrt_build, "cuda_device", lambda: name)
    return name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file for stand-ins, which do not read it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    return path


BOTH = pytest.mark.parametrize("version", ["10.16.0.72", "11.1.0.106"])


@BOTH
def test_calls_are_the_same(version: str, gpu: str, file: Path) -> None:
    """TensorRT 10 and 11 get the same calls: network, parser, configuration, build."""
    module, recorder = stand_in(version, inputs=[tensor("x", -1, 2, -1, -1)])
    options = BuildOptions(
        profiles=(SHAPES,),
        mem_pool_size={"workspace": 1 << 20},
        no_tf32=True,
        builder_optimization_level=4,
        version_compatible=True,
        hardware_compatibility_level="sameComputeCapability",
        refit=True,
    )
    result = build(file, options, module)
    assert recorder.calls == [
        ("logger",),
        ("builder",),
        ("create_network", 0),
        ("parse", str(file)),
        ("config.max_aux_streams", 0),
        ("config.builder_optimization_level", 4),
        ("config.profiling_verbosity", 2),
        ("config.hardware_compatibility_level", 2),
        ("config.set_flag", "VERSION_COMPATIBLE"),
        ("config.set_flag", "REFIT"),
        ("config.clear_flag", "TF32"),
        ("config.set_memory_pool_limit", "WORKSPACE", 1 << 20),
        ("profile.set_shape", "x", *SHAPES["x"]),
        ("config.add_optimization_profile",),
        ("build",),
    ]
    assert result.plan == b"plan"
    assert (result.engine, result.version, result.device) == ("tensorrt", version, gpu)
    assert result.planned_activation_bytes is None


def _ends(*kinds: str) -> list[Any]:
    """Make tensors of types."""
    return [
        SimpleNamespace(
            name=f"t{k}", shape=(1, 3, 8, 8), dtype=SimpleNamespace(name=kind), allowed_formats=0
        )
        for k, kind in enumerate(kinds)
    ]


@BOTH
def test_layouts_of_inputs_and_outputs(version: str, gpu: str, file: Path) -> None:
    """One for all, or one for each; what is not asked for is left alone."""
    inputs, outputs = _ends("HALF", "HALF"), _ends("HALF", "FLOAT")
    module, _ = stand_in(version, inputs=inputs, outputs=outputs)
    build(file, BuildOptions(), module)
    assert {each.allowed_formats for each in (*inputs, *outputs)} == {0}
    wanted = BuildOptions(
        input_io_formats=("fp16:hwc8",), output_io_formats=("fp16:hwc", "fp32:chw")
    )
    build(file, wanted, module)
    # Bits of the module's own numbers.
    assert [each.allowed_formats for each in (*inputs, *outputs)] == [1 << 2, 1 << 2, 1 << 8, 1]
    build(file, BuildOptions(input_io_formats=("fp16:chw+hwc8+chw",)), module)
    assert [each.allowed_formats for each in inputs] == [1 | 1 << 2] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_io_formats": ("fp32:chw",)}, "fp32:chw: t0 is of type HALF in the model"),
        ({"output_io_formats": ("fp16:chw",) * 3}, "one for all, or one for each of t0, t1"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(
    options: dict[str, Any], words: str, gpu: str, file: Path
) -> None:
    """A type is the model's; TensorRT would take another in some versions, and cast."""
    module, recorder = stand_in("11.1.0", inputs=_ends("HALF"), outputs=_ends("HALF", "HALF"))
    with pytest.raises(OptionError, match=words):
        build(file, BuildOptions(**options), module)
    assert not recorder.named("build")


def test_defaults_touch_little(gpu: str, file: Path) -> None:
    """By default one thing differs from TensorRT's own choice that changes the engine's work."""
    module, recorder = stand_in("10.16")
    build(file, BuildOptions(), module)
    assert recorder.calls[4:-1] == [
        ("config.max_aux_streams", 0),
        ("config.profiling_verbosity", 2),
    ]
    module, recorder = stand_in("10.16")
    build(file, BuildOptions(max_aux_streams=None), module)
    assert not recorder.named("config.max_aux_streams")


def test_precision_of_10(gpu: str, file: Path) -> None:
    """TensorRT 10 takes precision flags, or a strongly typed network."""
    module, recorder = stand_in("10.16")
    build(file, BuildOptions(fp16=True, bf16=True, int8=True), module)
    assert recorder.named("create_network") == [(0,)]
    assert recorder.named("config.set_flag") == [("FP16",), ("BF16",), ("INT8",)]
    module, recorder = stand_in("10.16")
    build(file, BuildOptions(strongly_typed=True), module)
    assert recorder.named("create_network") == [(0b10,)]
    assert not recorder.named("config.set_flag")


@pytest.mark.parametrize("flag", ["fp16", "bf16", "int8"])
def test_precision_of_11(flag: str, gpu: str, file: Path) -> None:
    """TensorRT 11 is strongly typed: precision flags are refused before anything is made."""
    module, recorder = stand_in("11.1")
    options: dict[str, Any] = {flag: True}
    with pytest.raises(OptionError, match=f"--{flag}: TensorRT 11.1 .* cast the ONNX model"):
        build(file, BuildOptions(**options), module)
    assert not recorder.calls
    build(file, BuildOptions(strongly_typed=True), module)
    assert recorder.named("create_network") == [(0,)]


@BOTH
def test_tiling_in_the_cache(version: str, gpu: str, file: Path) -> None:
    """The level's number becomes the module's own; a limit that does not take is refused."""
    module, recorder = stand_in(version)
    build(file, BuildOptions(tiling_optimization_level=2, l2_limit_for_tiling=3 << 20), module)
    (level,) = recorder.named("config.tiling_optimization_level")
    assert level == (module.TilingOptimizationLevel.MODERATE,)
    assert recorder.named("config.l2_limit_for_tiling") == [(3 << 20,)]
    module, recorder = stand_in(version, l2_cache=1 << 20)
    with pytest.raises(OptionError, match=r"--l2LimitForTiling 3145728: refused by .* keeps 0"):
        build(file, BuildOptions(l2_limit_for_tiling=3 << 20), module)
    assert not recorder.named("build")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"tiling_optimization_level": 0}, "--tilingOptimizationLevel"),
        ({"l2_limit_for_tiling": 1 << 20}, "--l2LimitForTiling"),
    ],
)
def test_tiling_came_with_10_8(options: dict[str, Any], flag: str, gpu: str, file: Path) -> None:
    """An earlier TensorRT has no such attribute: refused before anything is made."""
    module, recorder = stand_in("10.0.1")
    with pytest.raises(OptionError, match=f"{flag}: TensorRT 10.0.1 has none; TensorRT 10.8"):
        build(file, BuildOptions(**options), module)
    assert not recorder.calls


def test_weight_streaming(gpu: str, file: Path) -> None:
    """TensorRT 10 streams weights of strongly typed networks; later ones know no others."""
    module, recorder = stand_in("10.16")
    with pytest.raises(OptionError, match="strongly typed networks alone; add --stronglyTyped"):
        build(file, BuildOptions(allow_weight_streaming=True), module)
    assert not recorder.calls
    build(file, BuildOptions(allow_weight_streaming=True, strongly_typed=True), module)
    assert recorder.named("config.set_flag") == [("WEIGHT_STREAMING",)]
    module, recorder = stand_in("11.1")
    build(file, BuildOptions(allow_weight_streaming=True), module)
    assert recorder.named("config.set_flag") == [("WEIGHT_STREAMING",)]
    del module.BuilderFlag.WEIGHT_STREAMING
    with pytest.raises(OptionError, match=r"--allowWeightStreaming: TensorRT 11\.1 streams no"):
        build(file, BuildOptions(allow_weight_streaming=True), module)


def test_tactic_sources(gpu: str, file: Path) -> None:
    """Sources are added to TensorRT's own or taken off; cuDNN's went with 11."""
    options = BuildOptions(tactic_sources=("-EDGE_MASK_CONVOLUTIONS", "+CUDNN"))
    module, recorder = stand_in("10.16")
    build(file, options, module)
    assert recorder.named("config.set_tactic_sources") == [(0b00100,)]
    module, _ = stand_in("11.1")
    with pytest.raises(OptionError, match=r"\+CUDNN: TensorRT 11.1 has no such source"):
        build(file, options, module)


@pytest.mark.parametrize("fits", [True, False], ids=["fits", "of another GPU"])
def test_timing_cache(fits: bool, gpu: str, file: Path, tmp_path: Path) -> None:
    """The cache is read, and written whole; one that does not fit is replaced."""
    path = tmp_path / "cache"
    path.write_bytes(b"old")
    module, recorder = stand_in("10.16", cache_fits=fits)
    build(file, BuildOptions(timing_cache_file=path), module)
    taken = [(b"old", False)] if fits else [(b"old", False), (b"", False)]
    assert recorder.named("config.set_timing_cache") == taken
    assert path.read_bytes() == b"timings"
    assert sorted(tmp_path.iterdir()) == [path, file]


def test_timing_cache_survives_a_failure(gpu: str, file: Path, tmp_path: Path) -> None:
    """A build that fails leaves the cache as it was."""
    path = tmp_path / "cache"
    path.write_bytes(b"old")
    module, _ = stand_in("10.16", plan=None)
    with pytest.raises(BuildError, match="no reason given"):
        build(file, BuildOptions(timing_cache_file=path), module)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ((), r"input x: free dimensions need a profile; give --minShapes=x:\.\.\."),
        (({},), "input x: has free dimensions and no shapes in a profile"),
        (({"z": ((1,),) * 3},), "profile of input z: the inputs are x, s"),
        (({"x": ((1, 3),) * 3},), "does not fit its shape"),
        (({"x": ((1, 2, 8),) * 3},), "does not fit its shape"),
    ],
)
def test_profiles_are_checked(profiles: Any, words: str, gpu: str, file: Path) -> None:
    """TensorRT takes most of these without a word, and fails or misbehaves later."""
    inputs = [tensor("x", -1, 2), tensor("s", 1, shapes=True)]
    module, _ = stand_in("10.16", inputs=inputs)
    with pytest.raises(OptionError, match=words):
        build(file, BuildOptions(profiles=profiles), module)


def test_profile_of_a_shape_input(gpu: str, file: Path) -> None:
    """An input that holds sizes gets values, not a shape."""
    inputs = [tensor("x", -1, 2), tensor("s", 1, shapes=True)]
    module, recorder = stand_in("10.16", inputs=inputs)
    profile = {"x": ((1, 2), (2, 2), (3, 2)), "s": ((1,), (2,), (3,))}
    build(file, BuildOptions(profiles=(profile,)), module)
    assert recorder.named("profile.set_shape") == [("x", (1, 2), (2, 2), (3, 2))]
    assert recorder.named("profile.set_shape_input") == [("s", (1,), (2,), (3,))]


def test_figures_of_the_messages(gpu: str, file: Path) -> None:
    """Bytes, layers and skipped tactics come from the messages; the largest of several counts."""
    say = [
        ("VERBOSE", "=============== Computing costs for conv_1 + relu_1\n"),
        (
            "WARNING",
            "Skipping tactic 0x0 due to insufficient memory on requested size of 4096 detected.",
        ),
        (
            "VERBOSE",
            "Layer: conv_1 + relu_1 Host Persistent: 80 bytes Device Persistent: 512 bytes "
            "Scratch Memory: 1024 bytes",
        ),
        ("INFO", "Max Scratch Memory: 1024 bytes"),
        ("INFO", "Total Activation Memory: 2048 bytes"),
        ("INFO", "Total Activation Memory: 8192 bytes"),
        ("INFO", "Total Weights Memory: 300 bytes"),
    ]
    module, _ = stand_in("10.16", say=say)
    result = build(file, BuildOptions(), module)
    assert result.planned_activation_bytes == 8192
    assert result.planned_scratch_bytes == 1024
    assert result.weights_bytes == 300
    (layer,) = result.layers
    assert (layer.name, layer.device_persistent, layer.scratch) == ("conv_1 + relu_1", 512, 1024)
    (request,) = result.skipped_tactics
    assert (request.layer, request.bytes) == ("conv_1 + relu_1", 4096)
    assert [(m.severity, m.text) for m in result.messages] == say
    data = result.as_json()
    assert data["planned_activation_bytes"] == 8192
    assert data["options"]["max_aux_streams"] == 0


NO_KERNEL = "Error Code 10: Internal Error (Could not find any implementation for node "


@pytest.mark.parametrize(
    ("text", "layer", "limit"),
    [
        (f"IBuilder::buildSerializedNetwork: {NO_KERNEL}big.conv + relu_1. In computeCosts at "
         "/_src/optimizer/common/tactic/optimizer.cpp:4115)", "big.conv + relu_1", "workspace"),
        (f"10: [optimizer.cpp::computeCosts::2011] {NO_KERNEL}big.conv.)", "big.conv", "workspace"),
        (f"10: {NO_KERNEL}big.conv due to insufficient workspace. See verbose log for requested "
         "sizes.)", "big.conv", "workspace"),
        ("Internal error: could not find any implementation for node big.conv, try increasing the "
         "workspace size with IBuilder::setMaxWorkspaceSize()", "big.conv", "workspace"),
        ("Error Code 1: Myelin (no tactics to implement the operation within workspace limit.)",
         "big.conv + relu_1", "workspace"),
        ("Error Code 2: OutOfMemory (Requested size was 34359738368 bytes.)",
         "big.conv + relu_1", "device"),
    ],
)  # fmt: skip
def test_too_little_workspace(text: str, layer: str, limit: str, gpu: str, file: Path) -> None:
    """The layer, the limit, and what would help: its largest convolution is the one to cut."""
    say = [("VERBOSE", "=============== Computing costs for big.conv + relu_1"), ("ERROR", text)]
    layers = [
        convolution("big", (1, 3, 900, 900), (1, 64, 900, 900)),
        convolution("big.conv", (1, 64, 900, 900), (1, 64, 900, 900)),
        convolution("conv_2", (1, 640, 900, 900), (1, 64, 900, 900)),
    ]
    module, _ = stand_in("10.16", say=say, plan=None, layers=layers)
    with pytest.raises(WorkspaceError) as failure:
        build(file, BuildOptions(mem_pool_size={"workspace": 64 << 20}), module)
    assert failure.value.layer == layer
    message = str(failure.value)
    assert message.startswith(f"layer {layer} needs more than the {limit}")
    assert message.endswith(f"rewrite({str(file)!r}, include=['big.conv'], splits=8)")
    assert ("of 64 MiB allows; raise --memPoolSize" in message) == (limit == "workspace")


def test_other_failures_keep_their_words(gpu: str, file: Path) -> None:
    """An error that is not about memory is passed on, once, in one line."""
    say = [("ERROR", "a\nb"), ("ERROR", "a\nb"), ("ERROR", "[x::catchCudaError::250] no driver")]
    module, _ = stand_in("11.1", say=say, plan=None)
    with pytest.raises(BuildError) as failure:
        build(file, BuildOptions(), module)
    assert not isinstance(failure.value, WorkspaceError)
    assert str(failure.value) == f"{file}: TensorRT 11.1 builds no engine: a b"


def test_parser_names_the_user_s_node(gpu: str, file: Path) -> None:
    """A node of a patch is shown as the node it came from; one without a name by its number."""

    def error(name: str, operator: str, why: str, number: int) -> Any:
        return SimpleNamespace(
            node_name=lambda: name,
            node_operator=lambda: operator,
            desc=lambda: why,
            node=lambda: number,
        )

    errors = [
        error("mix/patchconv_2/Conv_0", "Conv", "Bad\nthing", 3),
        error("mix/patchconv_2/Conv_1", "Conv", "Bad thing", 4),
        error("", "Foo", "false", 7),
    ]
    module, _ = stand_in("10.16", errors=errors)
    with pytest.raises(ParseError) as failure:
        build(file, BuildOptions(), module)
    assert failure.value.nodes == ("mix/patchconv_2/Conv_0", "mix/patchconv_2/Conv_1", "")
    assert str(failure.value).endswith(
        "refuses node mix (Conv): Bad thing; node 7 (Foo): not supported"
    )


def test_oversized_convolutions(gpu: str, file: Path) -> None:
    """More than 2^31 - 1 elements on a side are found before the build, and the splits named."""
    layers = [
        convolution("fits", (1, 1, 1, 2**31 - 1), (1, 1, 1, 1)),
        convolution("wide", (1, 64, 8192, 8192), (1, 1, 8192, 8192)),
        convolution("free", (-1, 64, 8192, 8192), (-1, 64, 8192, 8192)),
    ]
    module, recorder = stand_in("10.16", layers=layers)
    with pytest.raises(BuildError, match=r"^wide: more .* include=\['wide'\], .* splits=3\)$"):
        build(file, BuildOptions(), module)
    assert not recorder.named("build")
    # TensorRT is asked all the same where its own words are wanted.
    result = build(file, BuildOptions(refuse_oversized=False), module)
    assert recorder.named("build")
    assert "more than 2^31 - 1 elements" in result.notes[0]


def test_what_the_builder_allocates_is_recorded(
    gpu: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an allocator of its own; without cuda-python there is no figure."""
    module, _ = stand_in("10.16")
    assert build(file, BuildOptions(), module).builder_peak_bytes is None
    allocator = SimpleNamespace(ledger=Ledger())
    monkeypatch.setattr(Cuda, "load", lambda: None)
    monkeypatch.setattr(tensorrt_build, "recording_allocator", lambda *_: allocator)
    run = tensorrt_build.run_build

    def allocating(builder: Any, network: Any, config: Any) -> Any:
        assert builder.gpu_allocator is allocator
        allocator.ledger.add(256, 1 << 20)
        allocator.ledger.remove(256)
        return run(builder, network, config)

    monkeypatch.setattr(tensorrt_build, "run_build", allocating)
    result = build(file, BuildOptions(), module)
    assert result.builder_peak_bytes == result.as_json()["builder_peak_bytes"] == 1 << 20


def test_module_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which extra to install."""
    monkeypatch.setitem(tensorrt_build.ENGINES, "tensorrt", ("no_such_module", "tensorrt"))
    with pytest.raises(EngineMissing, match=r"install patchconv-deploy\[tensorrt\]"):
        load_module("tensorrt")
    with pytest.raises(OptionError, match="must be one of tensorrt, tensorrt-rtx"):
        load_module("openvino")


@BOTH
def test_no_gpu(version: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT needs a GPU to build: one line, before anything is made."""

    def none(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", none)
    module, recorder = stand_in(version)
    with pytest.raises(DeviceMissing, match=r"^TensorRT builds on the GPU .* no NVIDIA driver"):
        build(file, BuildOptions(), module)
    assert not recorder.calls


@pytest.mark.gpu
def test_gpu_builds(tmp_path: Path) -> None:
    """TensorRT itself, on a GPU."""
    try:
        module = load_module("tensorrt")
        cuda_device()
    except (EngineMissing, DeviceMissing) as error:
        pytest.skip(str(error))
    path = save(tmp_path, convolutions(2, (1, 4, 64, 64)))
    result = build(path, BuildOptions(mem_pool_size={"workspace": 64 << 20}), module)
    assert show("on a GPU", result).plan


def convolutions(count: int, dims: Sequence[int | str]) -> onnx.ModelProto:
    """Make conv0 -> relu0 -> conv1 ...: 4 channels throughout, size kept."""
    channels = dims[1]
    assert isinstance(channels, int)
    nodes, weights, x = [], {}, "x"
    for k in range(count):
        last = k == count - 1
        out = "y" if last else f"c{k}"
        weights[f"w{k}"] = noise(channels, channels, 3, 3, seed=k)
        nodes.append(node("Conv", f"{x} w{k}", out, name=f"conv{k}", pads=[1] * 4))
        if not last:
            x = f"r{k}"
            nodes.append(node("Relu", out, x, name=f"relu{k}"))
    return model(nodes, {"x": tuple(dims)}, {"y": (None,) * 4}, weights)


def transposed(dims: Sequence[int | str]) -> onnx.ModelProto:
    """Make one ConvTranspose, twice the size."""
    weights = {"w": noise(4, 3, 4, 4, seed=1), "b": noise(3, seed=2)}
    up = node("ConvTranspose", "x w b", "y", name="up", strides=[2, 2], pads=[1] * 4)
    return model([up], {"x": tuple(dims)}, {"y": (None,) * 4}, weights)


def quantised(dims: Sequence[int | str], *, zero: int = 0) -> onnx.ModelProto:
    """Make Q -> DQ -> Conv, the weights behind a DequantizeLinear too."""
    weights: dict[str, Any] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(zero, np.int8),
        "w": np.random.default_rng(1).integers(-90, 90, (4, 4, 3, 3)).astype(np.int8),
        "ws": np.full(4, 0.02, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "q", name="quantise"),
        node("DequantizeLinear", "q s z", "d", name="dequantise"),
        node("DequantizeLinear", "w ws wz", "f", name="weights", axis=0),
        node("Conv", "d f", "y", name="conv", pads=[1] * 4),
    ]
    return model(nodes, {"x": tuple(dims)}, {"y": (None,) * 4}, weights)


def save(folder: Path, made: onnx.ModelProto, name: str = "model.onnx") -> Path:
    """Save a model."""
    path = folder / name
    onnx.save(made, path)
    return path


def show(label: str, result: BuildResult) -> BuildResult:
    """Print a plan's figures into the test's output."""
    activation = (result.planned_activation_bytes or 0) / 2**20
    line = f"{label}: planned activation {activation:.2f} MiB, {result.device}"
    print(line)  # noqa: T201 - figures belong in the test's output
    return result


GRAPHS: dict[str, Callable[[Sequence[int | str]], onnx.ModelProto]] = {
    "conv": lambda dims: convolutions(2, dims),
    "transpose": transposed,
    "qdq": quantised,
}

STATIC = (1, 4, 96, 40)

FREE = ("n", 4, "h", "w")

FREE_SHAPES = {"x": ((1, 4, 2, 8), (1, 4, 96, 40), (2, 4, 160, 64))}


@pytest.mark.parametrize("form", ["original", "batch", "sequential"])
@pytest.mark.parametrize("free", [False, True], ids=["static", "free"])
@pytest.mark.parametrize("name", list(GRAPHS))
def test_rtx_takes_every_form(name: str, free: bool, form: str, rtx: Any, tmp_path: Path) -> None:
    """Parser and builder accept what is emitted, at known sizes and at run-time bounds."""
    made = GRAPHS[name](FREE if free else STATIC)
    if form != "original":
        outcome = cut(made, form, splits=3)
        assert outcome.rewritten
        made = outcome.model
    options = BuildOptions(profiles=(FREE_SHAPES,) if free else ())
    result = show(f"{name} {form}", build(save(tmp_path, made), options, rtx))
    assert len(result.plan) > 1000
    assert result.engine == "tensorrt-rtx"
    assert result.device == "none used; planned for SM80"
    assert result.weights_bytes
    assert result.layers
    activation, scratch = result.planned_activation_bytes, result.planned_scratch_bytes
    assert activation is not None
    assert scratch is not None
    assert scratch <= activation
    assert not any(message.is_error for message in result.messages)


def test_rtx_plan_is_repeatable(rtx: Any, tmp_path: Path) -> None:
    """The same file gives the same figures, also while an earlier failure is still held."""
    path = save(tmp_path, convolutions(3, STATIC))
    refused = save(tmp_path, model([node("Foo", "x", "y")], {"x": (1,)}, {"y": None}), "foo.onnx")
    first = build(path, BuildOptions(), rtx)
    # An exception holds the frames, and so the builder, that the first logger went to.
    with pytest.raises(ParseError) as held:
        build(refused, BuildOptions(), rtx)
    second = build(path, BuildOptions(), rtx)
    assert held.value is not None
    assert second.planned_activation_bytes == first.planned_activation_bytes is not None
    assert second.layers == first.layers != ()


def test_rtx_aux_streams(rtx: Any, tmp_path: Path) -> None:
    """With TensorRT's own number of streams patches are alive side by side: over 1.5 x the plan."""
    made = cut(convolutions(3, (1, 16, 512, 256)), "sequential").model
    path = save(tmp_path, made)
    one = show("no auxiliary stream", build(path, BuildOptions(), rtx))
    own = show("TensorRT's own number", build(path, BuildOptions(max_aux_streams=None), rtx))
    assert one.planned_activation_bytes is not None
    assert own.planned_activation_bytes is not None
    assert own.planned_activation_bytes > 1.5 * one.planned_activation_bytes


def test_rtx_refusal_names_the_node(rtx: Any, tmp_path: Path) -> None:
    """A node the parser does not take, in the original and in the rewritten model."""
    weights: dict[str, Any] = {
        "xs": np.array(0.04, np.float32),
        "xz": np.array(0, np.int8),
        "w": np.ones((2, 2, 3, 3), np.int8),
        "ws": np.array(0.02, np.float32),
        "wz": np.array(0, np.int8),
        "ys": np.array(0.9, np.float32),
        "yz": np.array(0, np.int8),
    }
    whole = model(
        [node("QLinearConv", "x xs xz w ws wz ys yz", "y", name="mixer", pads=[1] * 4)],
        [value("x", (1, 2, 24, 8), onnx.TensorProto.INT8)],
        [value("y", (None,) * 4, onnx.TensorProto.INT8)],
        weights,
    )
    said = []
    for made in (whole, cut(whole, "sequential").model):
        with pytest.raises(ParseError, match=r"node mixer \(QLinearConv\): not supported") as each:
            build(save(tmp_path, made), BuildOptions(), rtx)
        said.append(str(each.value))
    assert said[0] == said[1]


def test_rtx_refuses_an_asymmetric_zero_point(rtx: Any, tmp_path: Path) -> None:
    """The parser's words about a node are passed on, in one line."""
    path = save(tmp_path, quantised(STATIC, zero=5))
    with pytest.raises(ParseError, match=r"node quantise .*[Nn]on-zero zero point") as refusal:
        build(path, BuildOptions(), rtx)
    assert "\n" not in str(refusal.value)


def test_rtx_workspace(rtx: Any, tmp_path: Path) -> None:
    """A workspace that no kernel fits names the layer and the convolution to cut."""
    path = save(tmp_path, convolutions(2, (1, 4, 64, 40)))
    with pytest.raises(WorkspaceError, match="the workspace of 1 MiB allows") as failure:
        build(path, BuildOptions(mem_pool_size={"workspace": 1 << 20}), rtx)
    assert "include=['conv0'], splits=8)" in str(failure.value)
    assert "conv0" in failure.value.layer


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fp16": True}, "--fp16: TensorRT for RTX .* cast the ONNX model instead"),
        ({"mem_pool_size": {"dlaSRAM": 1 << 20}}, "refused by TensorRT for RTX"),
        ({"tactic_sources": ("-CUDNN",)}, "has no such source"),
        ({"hardware_compatibility_level": "ampere+"}, "for a compute capability"),
        ({"compute_capability": "SM90"}, "builds for SM120, SM121, SM75, SM80"),
    ],
)
def test_rtx_options(options: dict[str, Any], words: str, rtx: Any, tmp_path: Path) -> None:
    """What TensorRT for RTX does not have is refused, not left out."""
    path = save(tmp_path, convolutions(1, (1, 4, 8, 8)))
    with pytest.raises(OptionError, match=words):
        build(path, BuildOptions(**options), rtx)


@pytest.mark.parametrize(
    ("layout", "shown"),
    [("chw", "3072,1024,32,1"), ("hwc8", "1024,1:8,32,1"), ("hwc", "3072,1,96,3")],
)
def test_rtx_plans_the_layout(layout: str, shown: str, rtx: Any, tmp_path: Path) -> None:
    """The builder's own words for both ends, 3 channels in and 5 out: strides, 1:8 by eights."""
    weights = {"w": noise(5, 3, 3, 3).astype(np.float16)}
    conv = node("Conv", "x w", "y", name="conv", pads=[1] * 4)
    made = model([conv], {"x": (1, 3, 32, 32)}, {"y": (1, 5, 32, 32)}, weights)
    for end in (*made.graph.input, *made.graph.output):
        end.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    spec = (f"fp16:{layout}",)
    options = BuildOptions(input_io_formats=spec, output_io_formats=spec)
    result = build(save(tmp_path, made), options, rtx)
    combination = "Autotuning format combination: "
    (found,) = {m.text.split(combination)[1] for m in result.messages if combination in m.text}
    before, _, after = found.rstrip("* ").partition(" -> ")
    assert before == f"Half({shown})"
    assert after == f"Half({shown.replace('3072', '5120').replace('96,3', '160,5')})"


def test_rtx_takes_the_other_options(rtx: Any, tmp_path: Path) -> None:
    """The other options go through; a timing cache is noted as left out."""
    path = save(tmp_path, convolutions(1, (1, 4, 8, 8)))
    options = BuildOptions(
        mem_pool_size={"workspace": 1 << 28, "tacticSharedMem": 48 << 10},
        timing_cache_file=tmp_path / "cache",
        strongly_typed=True,
        no_tf32=True,
        tactic_sources=("-JIT_CONVOLUTIONS",),
        builder_optimization_level=5,
        tiling_optimization_level=1,
        l2_limit_for_tiling=1 << 20,
        allow_weight_streaming=True,
        input_io_formats=("fp32:chw+hwc",),
        profiling_verbosity="none",
        compute_capability="SM89",
    )
    result = build(path, options, rtx)
    assert result.device == "none used; planned for SM89"
    (note,) = result.notes
    assert "no timing cache" in note
    assert not (tmp_path / "cache").exists()


def test_rtx_reads_back_what_is_set_for_tiling(rtx: Any) -> None:
    """A limit that does not take is said in its log alone; it can be read back."""
    with collect(rtx) as (made_logger, _):
        config = rtx.Builder(made_logger).create_builder_config()
        tensorrt_build.set_tiling(rtx, config, BuildOptions(tiling_optimization_level=3))
        assert config.tiling_optimization_level == rtx.TilingOptimizationLevel.FULL
        config.l2_limit_for_tiling = -5
        assert config.l2_limit_for_tiling == 0


def test_rtx_files_that_are_no_models(rtx: Any, tmp_path: Path) -> None:
    """A missing file, and bytes that parse into nothing."""
    with pytest.raises(LoadError, match="no such file"):
        build(tmp_path / "none.onnx", BuildOptions(), rtx)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(LoadError, match="not an ONNX model"):
        build(tmp_path / "text.onnx", BuildOptions(), rtx)


def test_messages_of_an_inner_collection(rtx: Any) -> None:
    """One logger per process: the inner list gets the messages, then the outer one again."""
    with collect(rtx) as (made, outer):
        made.log(rtx.ILogger.Severity.INFO, "a")
        with collect(rtx) as (again, inner):
            assert again is made
            made.log(rtx.ILogger.Severity.ERROR, "b")
        made.log(rtx.ILogger.Severity.INFO, "c")
    made.log(rtx.ILogger.Severity.INFO, "nobody listens")
    assert [message.text for message in outer] == ["a", "c"]
    assert [(message.severity, message.is_error) for message in inner] == [("ERROR", True)]
