"""``patchconv build``: a TensorRT plan from an ONNX model, with `trtexec`'s option names."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import asdict
from pathlib import Path

import click
import cloup
import onnx

from patchconv_deploy.cli.command import command, json_option
from patchconv_deploy.cli.progress import progress_bar
from patchconv_deploy.cli.trtexec import WeightsType, parse_formats, parse_pools, profile
from patchconv_deploy.cli.types import SizeType, check_json_target, write_bytes, write_text
from patchconv_deploy.console import log_to_stderr, stdout_console, styled
from patchconv_deploy.engines.gpu.cuda import Cuda
from patchconv_deploy.engines.measurement import now
from patchconv_deploy.engines.trt.build import build, load_module
from patchconv_deploy.engines.trt.options import (
    HARDWARE_LEVELS,
    TILING_LEVELS,
    VERBOSITIES,
    BuildOptions,
)
from patchconv_deploy.engines.trt.run import WeightStreaming, inspect, open_engine
from patchconv_deploy.engines.trt.trtexec import trtexec_command
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.fixed_shapes import free_inputs
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.planning.plan_file import METADATA_KEY, read_plan
from patchconv_deploy.rewriters.regions.row_locality import tiled_axis
from patchconv_deploy.saving import check_target, external_files
from patchconv_deploy.words import in_flags

__all__ = ["build_command"]


@command(
    "build",
    summary="Build a TensorRT plan; options are named as trtexec's.",
    examples="""
    # on the GPU that it will run on
    patchconv build model.patched.onnx -o model.plan
    # without a GPU, for TensorRT for RTX
    patchconv build model.patched.onnx -o model.plan --engine tensorrt-rtx
    # a free size
    patchconv build m.onnx -o m.plan --minShapes x:1x3x64x64 \\
        --optShapes x:1x3x512x512 --maxShapes x:1x3x512x512
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@cloup.option_group(
    "Output",
    click.option(
        "-o",
        "--output",
        "out",
        type=click.Path(path_type=Path),
        required=True,
        metavar="PLAN",
        help="The plan to write.",
    ),
    click.option("--force", is_flag=True, help="Overwrite an existing plan."),
    click.option(
        "--exportLayerInfo",
        "layer_info",
        type=click.Path(path_type=Path),
        metavar="FILE.json",
        help="Write what the engine inspector says of each layer, as JSON; opens the plan on the "
        "GPU.",
    ),
    json_option("Write figures as JSON."),
)
@cloup.option_group(
    "Engine",
    click.option(
        "--engine",
        type=click.Choice(["tensorrt", "tensorrt-rtx"]),
        default="tensorrt",
        show_default=True,
        help="tensorrt-rtx builds without a GPU.",
    ),
    click.option(
        "--computeCapability",
        "capability",
        default="SM80",
        show_default=True,
        metavar="SM",
        help="The GPU that tensorrt-rtx builds for.",
    ),
    click.option(
        "--hardwareCompatibilityLevel",
        "hardware",
        type=click.Choice(list(HARDWARE_LEVELS)),
        default="none",
        show_default=True,
        help="Other GPUs that the plan is to run on.",
    ),
    click.option(
        "--versionCompatible",
        "version_compatible",
        is_flag=True,
        help="Let newer versions of TensorRT load the plan.",
    ),
    click.option("--refit", is_flag=True, help="Let weights be replaced in the plan."),
    click.option(
        "--profilingVerbosity",
        "verbosity",
        type=click.Choice(list(VERBOSITIES)),
        default="detailed",
        show_default=True,
        help="What the plan tells of its layers.",
    ),
)
@cloup.option_group(
    "Sizes and layouts",
    click.option(
        "--minShapes",
        "min_shapes",
        default="",
        metavar="NAME:DIMS,...",
        help="Least sizes of inputs that are free: x:1x3x64x64.",
    ),
    click.option(
        "--optShapes",
        "opt_shapes",
        default="",
        metavar="NAME:DIMS,...",
        help="The sizes that kernels are chosen at.",
    ),
    click.option(
        "--maxShapes",
        "max_shapes",
        default="",
        metavar="NAME:DIMS,...",
        help="The largest sizes; memory is planned for these.",
    ),
    click.option(
        "--inputIOFormats",
        "--input-formats",
        "input_formats",
        default="",
        metavar="TYPE:LAYOUT,...",
        help="Layout of the inputs, one for all or one each: fp16:hwc8 (also hwc16, hwc, chw).",
    ),
    click.option(
        "--outputIOFormats",
        "--output-formats",
        "output_formats",
        default="",
        metavar="TYPE:LAYOUT,...",
        help="The same of the outputs.",
    ),
)
@cloup.option_group(
    "Number formats",
    click.option(
        "--fp16", is_flag=True, help="Allow float16. TensorRT 10 alone; later: cast the ONNX model."
    ),
    click.option("--bf16", is_flag=True, help="The same with bfloat16."),
    click.option("--int8", is_flag=True, help="The same with 8-bit integers."),
    click.option(
        "--stronglyTyped",
        "strongly_typed",
        is_flag=True,
        help="Compute in the types of the model alone.",
    ),
    click.option("--noTF32", "no_tf32", is_flag=True, help="Keep all 24 bits of float32."),
)
@cloup.option_group(
    "Memory",
    click.option(
        "--memPoolSize",
        "pools",
        default="",
        metavar="POOL:SIZE,...",
        help="Most of a pool: workspace:512, in MiB, or with B, K, M, G.",
    ),
    click.option(
        "--maxAuxStreams",
        "aux_streams",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        help="Parallel streams would run patches side by side and undo the patching.",
    ),
    click.option(
        "--tilingOptimizationLevel",
        "--tiling-optimization-level",
        "tiling",
        type=click.IntRange(0, len(TILING_LEVELS) - 1),
        metavar="N",
        help="How long to look for tiles of layers that stay in the GPU's L2 cache; 0: do not.",
    ),
    click.option(
        "--l2LimitForTiling",
        "--l2-limit-for-tiling",
        "l2_limit",
        type=SizeType(),
        help="What of that cache this plan may count on.",
    ),
    click.option(
        "--allowWeightStreaming",
        "--allow-weight-streaming",
        "stream_weights",
        is_flag=True,
        help="Let weights stay on the host and be copied when they are needed.",
    ),
    click.option(
        "--weightStreamingBudget",
        "--weight-streaming-budget",
        "weights_budget",
        type=WeightsType(),
        help="Open the plan on the GPU with so much of these weights there, and show what it "
        "needs.",
    ),
)
@cloup.option_group(
    "Search for kernels",
    click.option(
        "--builderOptimizationLevel",
        "level",
        type=click.IntRange(0, 5),
        metavar="N",
        help="How long to look for fast kernels.",
    ),
    click.option(
        "--tacticSources",
        "tactics",
        default="",
        metavar="SOURCES",
        help="Libraries of kernels to use or not: -CUDNN,+CUBLAS.",
    ),
    click.option(
        "--timingCacheFile",
        "timing_cache",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Read and write the times of kernels, so that the next build is faster.",
    ),
)
def build_command(
    model: Path,
    out: Path,
    engine: str,
    min_shapes: str,
    opt_shapes: str,
    max_shapes: str,
    pools: str,
    aux_streams: int,
    input_formats: str,
    output_formats: str,
    timing_cache: Path | None,
    fp16: bool,
    bf16: bool,
    int8: bool,
    strongly_typed: bool,
    no_tf32: bool,
    tactics: str,
    level: int | None,
    tiling: int | None,
    l2_limit: int | None,
    stream_weights: bool,
    weights_budget: int | str | None,
    version_compatible: bool,
    hardware: str,
    refit: bool,
    verbosity: str,
    capability: str,
    layer_info: Path | None,
    force: bool,
    json_file: Path | None,
) -> None:
    """Build a TensorRT plan from MODEL; options are named as trtexec's."""
    log_to_stderr(logging.ERROR)
    check_json_target("--json", json_file)
    check_json_target("--exportLayerInfo", layer_info)
    if timing_cache is not None and not timing_cache.absolute().parent.is_dir():
        raise click.UsageError(
            f"--timingCacheFile {timing_cache}: no such folder {timing_cache.parent}"
        )
    options = BuildOptions(
        profiles=profile(min_shapes, opt_shapes, max_shapes),
        mem_pool_size=parse_pools(pools),
        max_aux_streams=aux_streams,
        input_io_formats=parse_formats(input_formats),
        output_io_formats=parse_formats(output_formats),
        timing_cache_file=timing_cache,
        fp16=fp16,
        bf16=bf16,
        int8=int8,
        strongly_typed=strongly_typed,
        no_tf32=no_tf32,
        tactic_sources=tuple(filter(None, tactics.split(","))),
        builder_optimization_level=level,
        tiling_optimization_level=tiling,
        l2_limit_for_tiling=l2_limit,
        allow_weight_streaming=stream_weights,
        weight_streaming_budget=weights_budget,
        version_compatible=version_compatible,
        hardware_compatibility_level=hardware,
        refit=refit,
        profiling_verbosity=verbosity,
        compute_capability=capability,
    )
    loaded = load(model)
    check_target(out, [model, *external_files(loaded)], force=force)
    written = [path.resolve() for path in (out, json_file, layer_info) if path is not None]
    if len(set(written)) < len(written):
        raise click.UsageError("-o, --json and --exportLayerInfo name the same file")
    if layer_info is not None or weights_budget is not None:
        # Before the build, which may take long.
        Cuda.load()
    free = set(free_inputs(loaded.model))
    missing = free - {name for profile in options.profiles for name in profile}
    if missing:
        raise click.UsageError(
            f"input {min(missing)!r} has free dimensions; give its sizes with --optShapes (and "
            "--minShapes, --maxShapes)"
        )
    module = load_module(engine)
    with progress_bar(what="building"):
        result = build(model, options, module)
    write_bytes(out, result.plan)
    command = trtexec_command(options, model, out)
    streaming = None
    if layer_info is not None:
        command += f" --exportLayerInfo={shlex.quote(str(layer_info))}"
    if layer_info is not None or weights_budget is not None:
        with open_engine(
            result.plan,
            module,
            host_code=version_compatible,
            weight_streaming_budget=weights_budget,
        ) as opened:
            streaming = opened.streaming
            layers = inspect(module, opened.engine)
        if layer_info is not None:
            write_text(layer_info, json.dumps(layers, indent=2) + "\n")
    if json_file is not None:
        data = {
            "model": str(model),
            "plan": str(out),
            "trtexec": command,
            "date": now(),
            **result.as_json(),
            "weight_streaming": None if streaming is None else asdict(streaming),
        }
        write_text(json_file, json.dumps({"results": [data]}, indent=2) + "\n")
    console = stdout_console()
    console.print(f"{engine} {result.version}, {result.device}: built in {result.seconds:.1f} s")
    console.print(
        f"planned activation memory {mebibytes(result.planned_activation_bytes)} MiB (a plan of "
        f"the builder, inputs and outputs not in it), scratch "
        f"{mebibytes(result.planned_scratch_bytes)} MiB, weights "
        f"{mebibytes(result.weights_bytes)} MiB",
    )
    if streaming is not None:
        console.print(_streaming_line(streaming))
    for words in _held_whole(loaded.model, options):
        console.print(styled(("note:", "yellow"), " ", words))
    for note in result.notes:
        console.print(styled(("note:", "yellow"), " ", in_flags(note)))
    console.print(f"Written: {out}")
    console.print("The same with trtexec:")
    console.print(f"  {command}")


def _held_whole(model: onnx.ModelProto, options: BuildOptions) -> list[str]:
    """Return what to know of a rewritten model's inputs whose cut axis varies in a profile."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    try:
        axes = {read_plan(text)["axis"] for text in texts}
    except OptionError:
        return []  # a file may say anything
    found = []
    for shapes in options.profiles:
        for name, (least, _, most) in shapes.items():
            places = {tiled_axis(axis, len(least)) for axis in axes if len(least) > 2}
            found += [
                f"input {name} has {least[at]} to {most[at]} rows along the cut axis: TensorRT "
                "gives each patch the memory of the whole; build a plan for each such size"
                for at in places
                if at is not None and least[at] != most[at]
            ]
    return found


def _streaming_line(streaming: WeightStreaming) -> str:
    if not streaming.streamable_bytes:
        return "streamed weights: none, the plan has no weights that can be streamed"
    return (
        f"streamed weights: {mebibytes(streaming.budget_bytes)} of "
        f"{mebibytes(streaming.streamable_bytes)} MiB stay on the device, their copies need "
        f"{mebibytes(streaming.scratch_bytes)} MiB"
    )
