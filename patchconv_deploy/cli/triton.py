"""``patchconv triton``: publish a model into a Triton model repository, or check one."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click
import cloup
from rich.console import Console

from patchconv_deploy.cli.command import command, json_option
from patchconv_deploy.cli.progress import progress_bar
from patchconv_deploy.cli.types import ShapeType, SizeType, check_json_target, write_text
from patchconv_deploy.console import complain, log_to_stderr, stdout_console
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.triton.config import MODEL_FILES, ONNX
from patchconv_deploy.triton.write import (
    PROVIDERS,
    TritonResult,
    check_triton_repository,
    write_triton_repository,
)
from patchconv_deploy.words import in_flags

__all__ = ["triton_command"]


class _PairType(click.ParamType[tuple[str, str]]):
    """KEY=FILE; with ``optional``, FILE alone too. The key may hold equals signs."""

    def __init__(self, name: str, *, optional: bool = False) -> None:
        self.name = name
        self._optional = optional

    def convert(
        self,
        value: str | tuple[str, str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, str]:
        """Return (key, file)."""
        if isinstance(value, tuple):
            return value
        key, equals, file = value.rpartition("=")
        if not file or (not equals and not self._optional):
            self.fail(f"{value!r} is not of the form {self.name}", param, ctx)
        return key, file


@command(
    "triton",
    summary="Publish a model into a Triton model repository; check one.",
    examples="""
    # publish the next version
    patchconv triton model.patched.onnx --repository models
    # as many instances as 8 GiB hold, requests put together
    patchconv triton m.onnx --repository models --memory 8GiB --dynamic-batching
    # check a repository as the server would read it
    patchconv triton --check models
    """,
)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@cloup.option_group(
    "Repository",
    click.option(
        "--repository",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Made if it is missing.",
    ),
    click.option("--name", metavar="NAME", help="The model's name there. Default: the file's."),
    click.option(
        "--version", type=click.IntRange(min=1), metavar="N", help="Default: the next free one."
    ),
    click.option(
        "--staging",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Default: the repository's parent.",
    ),
    click.option("--force", is_flag=True, help="Replace a version that exists."),
    json_option("Write it as JSON."),
)
@cloup.option_group(
    "How it is served",
    click.option(
        "--platform",
        type=click.Choice(list(MODEL_FILES)),
        default=ONNX,
        show_default=True,
        help="What the server is given.",
    ),
    click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        help="Where it runs; other than cpu, a "
        "configs/cpu.pbtxt is written as well. Default: cpu. With --check: cpu refuses GPU groups.",
    ),
    click.option(
        "--instances",
        type=click.IntRange(min=1),
        metavar="N",
        help="Sessions (per GPU). Default: 1.",
    ),
    click.option(
        "--memory", type=SizeType(), help="Memory (of each GPU) to fill: sets batch and instances."
    ),
    click.option(
        "--max-batch-size",
        type=click.IntRange(min=0),
        metavar="N",
        help="Default: 0, or what --memory holds.",
    ),
    click.option("--dynamic-batching", is_flag=True, help="Let the server put requests together."),
    click.option("--warmup", is_flag=True, help="Run batch 1 and the largest before it is ready."),
    click.option(
        "--shape",
        "shapes",
        type=ShapeType(),
        multiple=True,
        help="Largest size of an input to expect.",
    ),
    click.option(
        "--labels",
        type=_PairType("OUTPUT=FILE"),
        multiple=True,
        help="Labels of an output, one a line.",
    ),
    click.option(
        "--plan",
        "plans",
        type=_PairType("[CAPABILITY=]FILE", optional=True),
        multiple=True,
        help="A plan built before, 8.0=FILE for GPUs of that compute capability alone.",
    ),
)
@cloup.option_group(
    "Check",
    click.option(
        "--check",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Check a repository, write none.",
    ),
    click.option(
        "--config-name",
        default="",
        metavar="NAME",
        help="With --check: the server's --model-config-name.",
    ),
)
def triton_command(
    model: Path | None,
    repository: Path | None,
    check: Path | None,
    name: str | None,
    version: int | None,
    platform: str,
    max_batch_size: int | None,
    dynamic_batching: bool,
    instances: int | None,
    memory: int | None,
    provider: str | None,
    warmup: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    labels: tuple[tuple[str, str], ...],
    plans: tuple[tuple[str, str], ...],
    config_name: str,
    staging: Path | None,
    force: bool,
    json_file: Path | None,
) -> None:
    """Publish MODEL (ONNX) as a version of a Triton model repository; or --check one."""
    log_to_stderr(logging.ERROR)
    check_json_target("--json", json_file)
    console = stdout_console()
    if check is not None:
        if model is not None or repository is not None:
            raise click.UsageError("--check DIR stands alone; MODEL and --repository write one")
        _check(check, provider, config_name, json_file, console)
        return
    if model is None or repository is None:
        raise click.UsageError("give MODEL and --repository DIR, or --check DIR")
    with progress_bar(what="publishing"):
        result = write_triton_repository(
            model,
            repository,
            name=name,
            version=version,
            platform=platform,
            max_batch_size=max_batch_size,
            dynamic_batching=dynamic_batching,
            instances=instances,
            memory=memory,
            provider=provider or "cpu",
            warmup=warmup,
            shapes=dict(shapes),
            labels=dict(labels),
            plans=dict(plans),
            force=force,
            staging=staging,
        )
    if json_file is not None:
        write_text(json_file, json.dumps(result.as_json(), indent=2) + "\n")
    _print(result, console)


def _print(result: TritonResult, console: Console) -> None:
    config = result.config
    lines = [f"Published: {result.path} (model {result.name!r}, version {result.version})"]
    batch = f"up to {config.max_batch_size}" if config.max_batch_size else "off"
    lines.append(f"batching {batch}, instances {config.instance_group[0].count}")
    if result.capacity is not None:
        need = result.capacity.footprint
        lines.append(
            f"memory of an instance at batch {need.batch}, {need.kind}: "
            f"{mebibytes(need.total)} MiB ({need})"
        )
    lines += [f"note: {in_flags(note)}" for note in result.notes]
    for line in lines:
        console.print(line)
    for warning in result.warnings:
        complain("warning", warning)


def _check(
    repository: Path,
    provider: str | None,
    config_name: str,
    json_file: Path | None,
    console: Console,
) -> None:
    gpu = None if provider is None else provider != "cpu"
    found = check_triton_repository(repository, gpu=gpu, config_name=config_name)
    if json_file is not None:
        data = [{"model": f.model, "file": f.file, "reason": f.reason} for f in found]
        write_text(json_file, json.dumps({"refused": data}, indent=2) + "\n")
    models = sum(entry.is_dir() for entry in repository.iterdir())
    for finding in found:
        console.print(f"refused: {in_flags(str(finding))}")
    refused = len({finding.model for finding in found})
    console.print(f"{models} models, {refused} refused")
    if found:
        sys.exit(1)
