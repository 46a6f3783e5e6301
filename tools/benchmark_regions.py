"""Regions on whole networks, measured: ``python -m tools.benchmark_regions [--only NAME]``.

For each network of a set (`tools.regions.networks.SETS`; ``--set whole-image`` is of those that
normalise, gate or attend over the whole image): exported with seeded weights (or taken from an
installed package), rewritten, and measured under ONNX Runtime on the CPU, every model in fresh
processes: the original at the default session options and at each choice of memory reuse and memory
pattern, the rewritten model at the options it recommends, beside the original at its best, in one
call so that times compare; then both as TensorRT for RTX plans them for SM80. Prints a Markdown
table: what the session holds after loading, the peak of the runs above that, and the whole process
(`engines.ort.measure`); what a row saves is told of the peak and of the whole, against the
original's lowest of all choices. A row that has to reach something says what, and whether it is
met. Below it a line for each network in 16 patches: loading and the whole process against the
original's.

What is too large to be run at every turn is predicted, and says so; ``--measure-all`` runs it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from patchconv_deploy import rewrite
from patchconv_deploy.api import RewriteResult
from patchconv_deploy.engines.measurement import Measurement
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.measure.run import (
    measure_onnxruntime,
    measure_with_tensorrt,
    tune_onnxruntime,
)
from patchconv_deploy.rewriters.errors import BudgetError
from tools.regions.networks import NETWORKS, SETS, Network, Rewriting, make
from tools.regions.table import markdown, processes_of

Row = dict[str, Any]

_TUNED = ("memory_pattern", "memory_reuse")


def rows_of(
    network: Network, runs: int, processes: int, rtx: bool, run_all: bool, folder: Path
) -> list[Row]:
    """Rewrite and measure one network; return a row for the original and one for each rewriting.

    Args:
        network: The network.
        runs: Timed runs of each model.
        processes: Fresh processes that each one's peak is measured in.
        rtx: Whether TensorRT for RTX plans it, too.
        run_all: Run what is predicted otherwise.
        folder: Where the models are put.
    """
    path = folder / "original.onnx"
    shapes = make(network, path)
    predicted = network.predicted and not run_all
    first: Row = {"network": network.title, "model": "original", "work": 1.0}
    rows, made = [first], {path: first}
    for number, rewriting in enumerate(network.rewritings):
        out = folder / f"{number}.onnx"
        try:
            result = rewrite(path, out, shapes=shapes, verify=not predicted, **rewriting.keywords)
        except BudgetError as error:
            rows.append(_asked(network, rewriting) | {"error": str(error)})
            continue
        row = _asked(network, rewriting) | _done(result)
        made[out] = row
        rows.append(row)
        first.setdefault("predicted_peak_bytes", result.outcome.before.need)
    if predicted:
        for row in made.values():
            row["predicted"] = True
    else:
        # A plan for TensorRT says nothing of a run here.
        ran = {path: row for path, row in made.items() if "tensorrt" not in str(row.get("target"))}
        _run(ran, shapes, runs, processes)
    if rtx:
        plans = measure_with_tensorrt([*made], "tensorrt-rtx", shapes=shapes, runs=1)
        for row, plan in zip(made.values(), plans, strict=True):
            row["planned_bytes"] = plan.planned_activation_bytes
    return rows


def _asked(network: Network, rewriting: Rewriting) -> Row:
    return {
        "network": network.title,
        "model": rewriting.spelled(),
        "target": rewriting.keywords.get("target"),
        "floor": asdict(rewriting.floor),
    }


def _done(result: RewriteResult) -> Row:
    """Return what is known of a rewriting before it is run."""
    outcome = result.outcome
    outputs = result.report.verification["outputs"]
    return {
        "work": outcome.recompute,
        "regions": [(r.form, r.splits, len(r.nodes)) for r in outcome.rewritten],
        "predicted_bytes": outcome.after.bytes,
        "predicted_peak_bytes": outcome.after.need,
        "predicted_time": next((plan.time for plan in outcome.weighed if plan.taken), None),
        "equal": all(output["differing"] == 0 for output in outputs),
        "max_rel": max((output["max_rel"] for output in outputs), default=0.0),
    }


def _run(
    models: Mapping[Path, Row],
    shapes: Mapping[str, tuple[int, ...]],
    runs: int,
    processes: int,
) -> None:
    """Measure models under ONNX Runtime, the original first; put the figures in their rows."""
    paths, rows = list(models), list(models.values())
    common: dict[str, Any] = {"runs": runs, "shapes": shapes, "processes": processes}
    # Of these the memory alone is looked at.
    (tuned,) = tune_onnxruntime(paths[:1], OrtOptions(threads=2), **common | {"runs": 1})
    best = min((m for m in tuned if m.peak_bytes is not None), key=lambda m: m.peak_bytes or 0)
    usual = next(m for m in tuned if all(m.options[name] for name in _TUNED))
    options = {name: best.options[name] for name in _TUNED}
    rows[0] |= {
        "default_bytes": usual.peak_bytes,
        "best_bytes": best.peak_bytes,
        "default_whole_bytes": usual.whole_bytes,
        "best_whole_bytes": min(m.whole_bytes for m in tuned if m.whole_bytes is not None),
        "best_options": options,
    }
    found: list[Measurement] = measure_onnxruntime(
        paths, OrtOptions(threads=2, **options), recommended=True, **common
    )
    for row, measured in zip(rows, found, strict=True):
        if measured.error:
            row["error"] = measured.error
            continue
        row |= {
            "load_bytes": measured.load_bytes,
            "whole_bytes": measured.whole_bytes,
            "peak_bytes": measured.peak_bytes,
            "arena_bytes": measured.runtime_peak_bytes,
            "time_ratio": None if measured.ratio is None else measured.ratio.median,
            "seconds": None if measured.latency_s is None else measured.latency_s.median,
        }


@click.command()
@click.option(
    "--set",
    "which",
    type=click.Choice(list(SETS)),
    default="regions",
    show_default=True,
    help="Networks to take.",
)
@click.option(
    "--only", multiple=True, type=click.Choice(list(NETWORKS)), help="Of all, take these."
)
@click.option("--runs", default=3, show_default=True, help="Timed runs of each.")
@click.option("--processes", default=1, show_default=True, help="Processes of each peak.")
@click.option("--rtx/--no-rtx", default=True, help="Plans of TensorRT for RTX, too.")
@click.option("--measure-all", is_flag=True, help="Run what is predicted otherwise: many minutes.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
def main(
    which: str,
    only: tuple[str, ...],
    runs: int,
    processes: int,
    rtx: bool,
    measure_all: bool,
    json_file: Path | None,
) -> None:
    """Measure whole networks with and without regions."""
    rows: list[Row] = []
    for name in only or SETS[which]:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
            rows += rows_of(NETWORKS[name], runs, processes, rtx, measure_all, Path(folder))
        if json_file is not None:
            json_file.write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown(rows))
    print("\n".join(processes_of(rows)))


if __name__ == "__main__":
    main()
