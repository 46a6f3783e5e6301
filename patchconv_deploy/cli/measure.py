"""``patchconv measure``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cloup

from patchconv_deploy.cli.command import command, json_option
from patchconv_deploy.cli.progress import progress_bar
from patchconv_deploy.cli.types import ShapeType, SizeType, check_json_target, given, write_text
from patchconv_deploy.console import complain, stdout_console
from patchconv_deploy.engines.ort.measure import PROCESSES
from patchconv_deploy.engines.ort.options import GPU_FIELDS, PROVIDERS, SESSION_OPTIONS, OrtOptions
from patchconv_deploy.measure.run import (
    ENGINES,
    Result,
    measure_onnxruntime,
    measure_with_tensorrt,
    tune_onnxruntime,
)
from patchconv_deploy.measure.table import measurement_json, print_results, tuning_json
from patchconv_deploy.words import flag_of

__all__ = ["measure_command"]


_EVERY_ENGINE = frozenset({"models", "engine", "shapes", "runs", "seed", "json_file"})


@command(
    "measure",
    summary="Measure memory and time of models, side by side.",
    examples="""
    # each at the options that serve it best, the original too; takes minutes
    patchconv measure model.onnx model.patched.onnx --recommended
    # the same for a first look, in a minute
    patchconv measure m.onnx m.patched.onnx --recommended --runs 1 --processes 1
    # which session options serve this model best
    patchconv measure model.onnx --tune --shape x:1x3x1024x1024
    # what TensorRT for RTX plans, without a GPU
    patchconv measure model.onnx model.patched.onnx --engine tensorrt-rtx
    """,
)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@cloup.option_group(
    "What is measured",
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="onnxruntime",
        show_default=True,
        help="tensorrt-rtx plans without a GPU; tensorrt measures on one.",
    ),
    click.option(
        "--provider",
        type=click.Choice(list(PROVIDERS)),
        default="cpu",
        show_default=True,
        help="Where ONNX Runtime runs the models.",
    ),
    click.option(
        "--shape", "shapes", type=ShapeType(), multiple=True, help="Size of an input (repeatable)."
    ),
    click.option(
        "--runs",
        type=click.IntRange(min=1),
        default=5,
        show_default=True,
        help="Timed runs of each.",
        metavar="N",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1, 100),
        default=PROCESSES,
        show_default=True,
        help="Fresh processes that each peak is the largest of.",
        metavar="N",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of the inputs.",
        metavar="N",
    ),
    click.option(
        "--memory-limit", type=SizeType(), help="Address space of each measuring process."
    ),
)
@cloup.option_group(
    "Session options of ONNX Runtime",
    click.option(
        "--recommended",
        is_flag=True,
        help="Run each model with the session options it recommends in its metadata; the original, "
        "which recommends none, at its own best.",
    ),
    click.option(
        "--tune",
        is_flag=True,
        help="Run each model with and without memory reuse, memory pattern and arena; show the "
        "best.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(0, 1024),
        default=0,
        help="Threads; 0: the runtime's choice.",
        metavar="N",
    ),
    click.option("--arena/--no-arena", default=True, show_default=True, help="Keep freed memory."),
    click.option(
        "--mem-pattern/--no-mem-pattern",
        "memory_pattern",
        default=True,
        show_default=True,
        help="Reserve one block for all activations from the second run on.",
    ),
    click.option(
        "--mem-reuse/--no-mem-reuse",
        "memory_reuse",
        default=True,
        show_default=True,
        help="Plan static reuse of buffers.",
    ),
)
@cloup.option_group(
    "ONNX Runtime on CUDA",
    click.option(
        "--arena-extend-strategy",
        type=click.Choice(["kNextPowerOfTwo", "kSameAsRequested"]),
        default="kNextPowerOfTwo",
        show_default=True,
        help="How the CUDA arena grows.",
    ),
    click.option(
        "--cudnn-max-workspace/--no-cudnn-max-workspace",
        "cudnn_conv_use_max_workspace",
        default=True,
        show_default=True,
        help="Let cuDNN take the workspace that its fastest kernels ask for.",
    ),
    click.option(
        "--cudnn-algo-search",
        "cudnn_conv_algo_search",
        type=click.Choice(["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]),
        default="EXHAUSTIVE",
        show_default=True,
        help="How cuDNN chooses its kernels.",
    ),
    click.option(
        "--prefer-nhwc/--no-prefer-nhwc",
        default=False,
        show_default=True,
        help="Run convolutions on a GPU with the channels last.",
    ),
)
@cloup.option_group(
    "Output",
    json_option("Write figures as JSON."),
)
@click.pass_context
def measure_command(
    context: click.Context,
    models: tuple[Path, ...],
    engine: str,
    provider: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    runs: int,
    processes: int,
    threads: int,
    arena: bool,
    arena_extend_strategy: str,
    memory_pattern: bool,
    memory_reuse: bool,
    cudnn_conv_use_max_workspace: bool,
    cudnn_conv_algo_search: str,
    prefer_nhwc: bool,
    seed: int,
    memory_limit: int | None,
    recommended: bool,
    tune: bool,
    json_file: Path | None,
) -> None:
    """Measure MODELS side by side: peak memory and time, each in a fresh process.

    The first model is what the others are compared with.
    """
    check_json_target("--json", json_file)
    _check_fits(context, engine, provider, tune)
    console = stdout_console()
    options = OrtOptions(
        provider=provider,
        threads=threads,
        arena=arena,
        arena_extend_strategy=arena_extend_strategy,
        memory_pattern=memory_pattern,
        memory_reuse=memory_reuse,
        cudnn_conv_use_max_workspace=cudnn_conv_use_max_workspace,
        cudnn_conv_algo_search=cudnn_conv_algo_search,
        prefer_nhwc=prefer_nhwc,
    )
    common: dict[str, Any] = {"shapes": dict(shapes), "runs": runs, "seed": seed}
    tables: Sequence[Sequence[Result]]
    with progress_bar(what="measuring") as progress:
        if engine != "onnxruntime":
            tables = [measure_with_tensorrt(models, engine, **common)]
            data = measurement_json(tables[0])
        else:
            common |= {
                "processes": processes,
                "memory_limit": memory_limit,
                "progress": progress,
            }
            if tune:
                tuned = tune_onnxruntime(models, options, **common)
                tables, data = tuned, tuning_json(tuned)
            else:
                tables = [
                    measure_onnxruntime(
                        models, options, recommended=recommended, at_best=True, **common
                    )
                ]
                data = measurement_json(tables[0])
    if json_file is not None:
        write_text(json_file, json.dumps(data, indent=2) + "\n")
    for table in tables:
        print_results(table, console)
    failed = [result for table in tables for result in table if result.error]
    for result in failed:
        complain("error", f"{result.model}: {result.error}")
    if failed:
        sys.exit(1)


def _check_fits(context: click.Context, engine: str, provider: str, tune: bool) -> None:
    """Refuse options that were given and mean nothing here; what is ignored misleads.

    Raises:
        click.UsageError: It names the option.
    """
    for parameter in given(context):
        name = parameter.name or ""
        if engine != "onnxruntime" and name not in _EVERY_ENGINE:
            raise click.UsageError(f"{flag_of(parameter)} means nothing to --engine {engine}")
        if engine == "tensorrt-rtx" and name == "runs":
            raise click.UsageError("--runs means nothing to --engine tensorrt-rtx: nothing is run")
        if tune and name in ("recommended", *SESSION_OPTIONS.values()):
            raise click.UsageError(f"{flag_of(parameter)} and --tune exclude each other")
        if provider == "cpu" and name in GPU_FIELDS:
            raise click.UsageError(f"{flag_of(parameter)} means nothing to --provider cpu")
