"""``patchconv build``: a TensorRT plan from an ONNX model, with `trtexec`'s option names."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path

import click

from patchconv_deploy.cli.types import check_json_target, write_bytes, write_text
from patchconv_deploy.console import log_to_stderr, stdout_console, styled
from patchconv_deploy.engines.gpu.cuda import Cuda
from patchconv_deploy.engines.measurement import now
from patchconv_deploy.engines.trt.build import build, load_module
from patchconv_deploy.engines.trt.options import (
    HARDWARE_LEVELS,
    VERBOSITIES,
    BuildOptions,
    Profile,
    Shape,
    trtexec_command,
)
from patchconv_deploy.engines.trt.run import inspect, open_engine
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.graph.fixed_shapes import free_inputs
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.saving import check_target, external_files
from patchconv_deploy.words import Command, in_flags

__all__ = ["build_command", "parse_pools", "parse_shapes"]


_UNITS = {"B": 0, "K": 10, "M": 20, "G": 30}


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read ``a:1x3x8x8,b:1x4`` as trtexec does; a name may be quoted and hold colons.

    Raises:
        click.UsageError: The text is of another form.
    """
    shapes: dict[str, Shape] = {}
    for entry in filter(None, text.split(",")):
        name, _, dims = entry.rpartition(":")
        try:
            shapes[name.strip("'\"")] = tuple(int(size) for size in dims.lower().split("x"))
        except ValueError:
            name = ""
        if not name:
            raise click.UsageError(f"shape {entry!r} is not of the form NAME:1x3x512x512")
    return shapes


def parse_pools(text: str) -> dict[str, int]:
    """Read ``workspace:512,tacticSharedMem:64K``: MiB, or a number with B, K, M or G.

    Raises:
        click.UsageError: The text is of another form.
    """
    pools: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        name, _, size = entry.partition(":")
        unit = size[-1:].upper() if size[-1:].isalpha() else "M"
        digits = size[:-1] if size[-1:].isalpha() else size
        try:
            pools[name] = int(float(digits) * 2 ** _UNITS[unit])
        except (ValueError, KeyError) as error:
            raise click.UsageError(
                f"--memPoolSize {entry!r} is not of the form workspace:512 (MiB) or workspace:64K"
            ) from error
    return pools


def _profile(least: str, opt: str, most: str) -> tuple[Profile, ...]:
    given = [parse_shapes(text) for text in (least, opt, most)]
    named = next((shapes for shapes in given if shapes), None)
    if named is None:
        return ()
    # As trtexec: what is left out is what is given, the optimum first.
    filled = [shapes or given[1] or named for shapes in given]
    if any(set(shapes) != set(named) for shapes in filled):
        raise click.UsageError("--minShapes, --optShapes and --maxShapes name different inputs")
    return ({name: (filled[0][name], filled[1][name], filled[2][name]) for name in named},)


@click.command("build", cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True)
@click.option(
    "--engine",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="tensorrt-rtx builds without a GPU.",
)
@click.option("--minShapes", "min_shapes", default="", help="NAME:1x3x256x256,...")
@click.option("--optShapes", "opt_shapes", default="")
@click.option("--maxShapes", "max_shapes", default="")
@click.option("--memPoolSize", "pools", default="", help="workspace:MiB,...; or with B, K, M, G.")
@click.option(
    "--maxAuxStreams",
    "aux_streams",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Parallel streams would run patches side by side and undo the patching.",
)
@click.option("--timingCacheFile", "timing_cache", type=click.Path(path_type=Path))
@click.option("--fp16", is_flag=True, help="TensorRT 10 alone; later: cast the ONNX model.")
@click.option("--bf16", is_flag=True)
@click.option("--int8", is_flag=True)
@click.option("--stronglyTyped", "strongly_typed", is_flag=True)
@click.option("--noTF32", "no_tf32", is_flag=True)
@click.option("--tacticSources", "tactics", default="", help="-CUDNN,+CUBLAS")
@click.option("--builderOptimizationLevel", "level", type=click.IntRange(0, 5))
@click.option("--versionCompatible", "version_compatible", is_flag=True)
@click.option(
    "--hardwareCompatibilityLevel",
    "hardware",
    type=click.Choice(list(HARDWARE_LEVELS)),
    default="none",
)
@click.option("--refit", is_flag=True)
@click.option(
    "--profilingVerbosity", "verbosity", type=click.Choice(list(VERBOSITIES)), default="detailed"
)
@click.option("--computeCapability", "capability", default="SM80", help="For tensorrt-rtx.")
@click.option(
    "--exportLayerInfo",
    "layer_info",
    type=click.Path(path_type=Path),
    help="Write what the engine inspector says of each layer, as JSON; opens the plan on the GPU.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing plan.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures as JSON.")
def build_command(
    model: Path,
    out: Path,
    engine: str,
    min_shapes: str,
    opt_shapes: str,
    max_shapes: str,
    pools: str,
    aux_streams: int,
    timing_cache: Path | None,
    fp16: bool,
    bf16: bool,
    int8: bool,
    strongly_typed: bool,
    no_tf32: bool,
    tactics: str,
    level: int | None,
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
        profiles=_profile(min_shapes, opt_shapes, max_shapes),
        mem_pool_size=parse_pools(pools),
        max_aux_streams=aux_streams,
        timing_cache_file=timing_cache,
        fp16=fp16,
        bf16=bf16,
        int8=int8,
        strongly_typed=strongly_typed,
        no_tf32=no_tf32,
        tactic_sources=tuple(filter(None, tactics.split(","))),
        builder_optimization_level=level,
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
    if layer_info is not None:
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
    result = build(model, options, module)
    write_bytes(out, result.plan)
    command = trtexec_command(options, model, out)
    if layer_info is not None:
        command += f" --exportLayerInfo={shlex.quote(str(layer_info))}"
        with open_engine(result.plan, module) as opened:
            text = json.dumps(inspect(module, opened.engine), indent=2)
        write_text(layer_info, text + "\n")
    if json_file is not None:
        data = {
            "model": str(model),
            "plan": str(out),
            "trtexec": command,
            "date": now(),
            **result.as_json(),
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
    for note in result.notes:
        console.print(styled(("note:", "yellow"), " ", in_flags(note)))
    console.print(f"Written: {out}")
    console.print("The same with trtexec:")
    console.print(f"  {command}")
