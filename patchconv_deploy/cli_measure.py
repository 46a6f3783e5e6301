"""``patchconv measure``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from engines.onnxruntime_engine import PROVIDERS, OrtOptions
from patchconv_deploy.cli_types import (
    ShapeType,
    SizeType,
    check_json_target,
    stdout_console,
    write_text,
)
from patchconv_deploy.measuring import ENGINES, measure_models, measurement_json, print_results

__all__ = ["measure_command"]


@click.command("measure", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="onnxruntime",
    show_default=True,
    help="tensorrt-rtx plans without a GPU; tensorrt measures on one.",
)
@click.option("--provider", type=click.Choice(list(PROVIDERS)), default="cpu", show_default=True)
@click.option(
    "--shape", "shapes", type=ShapeType(), multiple=True, help="Size of an input (repeatable)."
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Timed runs of each."
)
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Threads; 0: the runtime's choice."
)
@click.option("--arena/--no-arena", default=True, show_default=True, help="Keep freed memory.")
@click.option(
    "--arena-extend-strategy",
    type=click.Choice(["kNextPowerOfTwo", "kSameAsRequested"]),
    default="kNextPowerOfTwo",
    show_default=True,
    help="How the CUDA arena grows.",
)
@click.option(
    "--mem-pattern/--no-mem-pattern",
    default=True,
    show_default=True,
    help="Reserve one block for all activations from the second run on.",
)
@click.option(
    "--mem-reuse/--no-mem-reuse",
    default=True,
    show_default=True,
    help="Plan static reuse of buffers.",
)
@click.option("--cudnn-max-workspace/--no-cudnn-max-workspace", default=True, show_default=True)
@click.option(
    "--cudnn-algo-search",
    type=click.Choice(["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]),
    default="EXHAUSTIVE",
    show_default=True,
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the inputs."
)
@click.option("--memory-limit", type=SizeType(), help="Address space of each measuring process.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures as JSON.")
def measure_command(
    models: tuple[Path, ...],
    engine: str,
    provider: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    runs: int,
    threads: int,
    arena: bool,
    arena_extend_strategy: str,
    memory_pattern: bool,
    memory_reuse: bool,
    cudnn_max_workspace: bool,
    cudnn_algo_search: str,
    seed: int,
    memory_limit: int | None,
    json_file: Path | None,
) -> None:
    """Measure MODELS side by side: peak memory and time, each in a fresh process.

    The first model is what the others are compared with.
    """
    check_json_target("--json", json_file)
    console = stdout_console()
    options = OrtOptions(
        provider=provider,
        threads=threads,
        arena=arena,
        arena_extend_strategy=arena_extend_strategy,
        memory_pattern=memory_pattern,
        memory_reuse=memory_reuse,
        cudnn_conv_use_max_workspace=cudnn_max_workspace,
        cudnn_conv_algo_search=cudnn_algo_search,
    )
    results = measure_models(
        models,
        engine,
        shapes=dict(shapes),
        runs=runs,
        seed=seed,
        options=options,
        memory_limit=memory_limit,
    )
    if json_file is not None:
        write_text(json_file, json.dumps(measurement_json(results), indent=2) + "\n")
    print_results(results, console)
    if any(result.error for result in results):
        sys.exit(1)
