"""``patchconv inspect``: what holds a model's memory, and what could be cut."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import cloup
from rich.console import Console

from patchconv_deploy.cli.command import command, json_option
from patchconv_deploy.cli.pareto import pareto_json, print_pareto
from patchconv_deploy.cli.progress import progress_bar
from patchconv_deploy.cli.types import check_json_target, write_text
from patchconv_deploy.console import printable, stdout_console
from patchconv_deploy.options import declared_options
from patchconv_deploy.report.text import mebibytes, shape_text
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.inspection import Inspection
from patchconv_deploy.rewriters.look import check_one_axis, inspection_of
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.tables import Row, print_table
from patchconv_deploy.words import in_flags

__all__ = ["inspect_command"]


_SHOWN = 8

# Numbers of patches that are shown of a region.
_WAYS = 4

_REASONS = 3

# What the kinds of nodes mean that no region holds.
_KINDS = {
    "barrier": "each of its output rows depends on all input rows",
    "refused": "it cannot be proven patch by patch as it is spelled, or at these sizes",
}


@command(
    "inspect",
    summary="Show what holds a model's peak, and what could be cut.",
    examples="""
    # at the sizes of the file
    patchconv inspect model.onnx
    # at a size of its free input, with the curve of budgets
    patchconv inspect model.onnx --shape x:1x3x1024x1024 --pareto
    # reach, step and scale of each output, for tiling outside of the graph
    patchconv inspect model.onnx --json model.json
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@declared_options("shapes", "target", "axis")
@cloup.option_group(
    "Output",
    click.option("--pareto", is_flag=True, help="Print predicted peak against work, too."),
    json_option("Write all as JSON."),
)
def inspect_command(
    model: Path,
    shapes: tuple[tuple[str, tuple[tuple[int, int], ...]], ...],
    target: str,
    axis: str | int,
    pareto: bool,
    json_file: Path | None,
) -> None:
    """Show MODEL's largest tensors, its peak, what no region holds, and what could be cut."""
    check_json_target("--json", json_file)
    loaded = load(model)
    options = Options(target=target, axis=axis, ranges=dict(shapes), allow_custom_ops=True)
    if pareto:
        check_one_axis(options)
    with progress_bar(what="analysing"):
        found = inspection_of(loaded, options)
        points = found.curve if pareto else ()
    if json_file is not None:
        data = {
            **data_of(found),
            "target": target,
            "pareto": pareto_json(points),
        }
        write_text(json_file, json.dumps(data, indent=2) + "\n")
    console = stdout_console()
    _print(found, target, console)
    if points:
        print_pareto(points, console)


def data_of(found: Inspection) -> dict[str, Any]:
    """Return what was found as JSON-ready data; an unknown peak has no bytes."""
    data = dataclasses.asdict(found)
    del data["curve"]  # it is shown where it is asked for
    if found.peak.unknown:
        data["peak"].update(bytes=None, touched=None, known_part=found.peak.bytes)
    return data


def _print(found: Inspection, target: str, console: Console) -> None:
    peak = found.peak
    held = ", ".join(f"{printable(name)} {mebibytes(size)}" for name, size in peak.alive[:4])
    if peak.weights.packed > peak.bytes / 100:
        held += f"; weights, laid out for their kernels, {mebibytes(peak.weights.packed)}"
    if found.unknown is not None:
        part = f" (at least {mebibytes(found.peak.bytes)} MiB)" if found.peak.bytes else ""
        console.print(
            f"Predicted activations ({target}): unknown{part}; {in_flags(found.unknown.reason)}"
        )
        console.print(f"What to do: {in_flags(found.unknown.advice)}.")
    else:
        console.print(
            f"Predicted activations ({target}): {mebibytes(found.peak.bytes)} MiB at most, the "
            f"peak, while {printable(found.peak.at)} runs; alive there, MiB: {held}"
        )
    for name, shape in found.assumed.items():
        console.print(f"  assuming {printable(name)} {shape_text(shape)}")
    _print_tensors(found, console)
    _print_barriers(found, console)
    _print_statistics(found, console)
    _print_reach(found, console)
    _print_runs(found, console)
    if found.runs:
        return
    if found.left:
        console.print(f"Nothing would be cut: {in_flags(found.left)}.")
    elif found.unknown is None:
        console.print("Nothing would be cut: no region along this axis lowers the peak.")
        for reason in [each for each in found.reasons if each.shows(found.peak.need)][:_REASONS]:
            console.print(f"  {in_flags(reason.holds)} {mebibytes(reason.bytes)} MiB of it")


def _print_tensors(found: Inspection, console: Console) -> None:
    rows = [
        Row(
            tensor.name,
            (shape_text(tensor.shape), mebibytes(tensor.bytes)),
            tensor.maker,
        )
        for tensor in found.tensors[:_SHOWN]
    ]
    print_table(
        console, "largest tensors", ("shape", "MiB"), rows, tail="made by", words=("shape",)
    )


def _print_barriers(found: Inspection, console: Console) -> None:
    if not found.barriers:
        return
    rows = [
        Row(
            barrier.node,
            (barrier.kind, barrier.op_type, mebibytes(barrier.bytes)),
            in_flags(barrier.reason),
        )
        for barrier in found.barriers[:_SHOWN]
    ]
    columns = ("kind", "operator", "MiB held for it")
    print_table(console, "run whole", columns, rows, tail="why", words=columns[:2])
    _print_more(len(found.barriers), console)
    kinds = {barrier.kind for barrier in found.barriers}
    said = "; ".join(f"{kind}: {what}" for kind, what in _KINDS.items() if kind in kinds)
    console.print(
        "Regions end before these nodes and begin again behind them, so what they read and make is "
        f"in memory whole (MiB held for it). {said}.",
    )


def _print_statistics(found: Inspection, console: Console) -> None:
    """Say of each statistic what stays in memory for it, or what it is to make that again."""
    if found.statistics:
        rows = [
            Row(
                each.node,
                (
                    each.kind,
                    mebibytes(each.bytes),
                    f"+{each.share:.2f}" if each.kept else "",
                    printable(each.image),
                ),
            )
            for each in found.statistics[:_SHOWN]
        ]
        columns = ("kind", "kept,\nMiB", "or made again,\nx the work", "of")
        print_table(console, "statistics", columns, rows, words=("kind", "of"))
        _print_more(len(found.statistics), console)
        console.print(
            "A statistic is a reduction over the whole image, merged from the patches' own: what "
            "is read before it and behind it again is kept whole, or made again."
        )


def _print_more(count: int, console: Console) -> None:
    """Say how many rows a table leaves out."""
    if count > _SHOWN:
        console.print(f"... and {count - _SHOWN} more (--json has all)")


def _print_reach(found: Inspection, console: Console) -> None:
    """Say how far each output looks, or what in the image all of it depends on."""
    for each in found.reach:
        name = printable(each.output)
        if not each.bounded:
            first = each.unbounded_by[0]
            more = len(each.unbounded_by) - 1
            what = f"{printable(first.node)}: " if first.node else ""
            also = f" and {more} more" if more else ""
            console.print(
                f"Output {name} has no reach: {what}{printable(in_flags(first.reason))}{also}"
            )
        for read in each.inputs:
            up, down = read.scale
            console.print(
                f"Output {name} looks {read.above} rows above and {read.below} below into "
                f"{printable(read.input)}, steps of {read.step} rows, {up}/{down} of its rows"
            )


def _print_runs(found: Inspection, console: Console) -> None:
    rows = []
    for run in found.runs[:_SHOWN]:
        ways = list(run.tiled.items())
        shown = ways[:: -(-len(ways) // _WAYS)]
        rows.append(
            Row(
                " .. ".join(dict.fromkeys((run.first, run.last))),
                (str(run.nodes), mebibytes(run.peak)),
                "; ".join(f"x{n} {mebibytes(size)} {work:.2f}x" for n, (size, work) in shown),
            )
        )
    if rows:
        columns = ("nodes", "MiB as it is")
        tail = "as one region: patches, MiB, work"
        print_table(console, "could be cut", columns, rows, tail=tail)
