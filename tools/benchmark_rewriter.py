"""Time and memory of the rewriter itself, each measurement in a fresh process.

    nodes    a graph of 10,000 nodes, 100 of them Convs, cut in four without verification
    convs    graphs of 250 to 4,000 Convs, all cut: seconds (of the processor, so that neighbours
             on the machine count less) per emitted node, which must not grow
    weights  a graph of 1,000 nodes with 3 GB of external weights: peak resident memory
    search   networks of 300 and of 3,000 nodes (`tools.models.deep`), regions found for eight
             patches, for half the memory, and for a budget that nothing keeps: the slowest of the
             three, seconds of the processor

Run as ``python -m tools.benchmark_rewriter``; exits 1 if a bound is missed.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph.external_data import copy_external
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tools.models.deep import KINDS, make

__all__ = ["MAX_SEARCH", "SEARCHES", "main", "most_seconds", "search"]

ROOT = Path(__file__).resolve().parents[1]

MAX_SECONDS = 5.0
# Twice the sizes may cost this much more per node before the time counts as not linear.
MAX_GROWTH = 1.5
MAX_MEGABYTES = 300.0
# Nodes of a network, and seconds of the processor that its regions may take to find.
MAX_SEARCH = {300: 5.0, 3000: 30.0}
# Where statistics are, plans that hand strips over are weighed as well, and each doubling of the
# patches has effort of its own: with less than half of it a VAE decoder's lowest peak is 404 MiB of
# 1,028, and not 317.
MAX_TIMES = {"vae": 4.0}
# Eight patches, half the memory, and a budget that nothing keeps.
SEARCHES = ("splits", "half", "none")

CONV_COUNTS = (250, 500, 1000, 2000, 4000)
WEIGHT_BYTES = 3 * 10**9
FORMS = ("batch", "sequential")

Figures = dict[str, float]


# --- graphs ---------------------------------------------------------------------------------------


def _model(
    nodes: list[onnx.NodeProto], output: str, weights: list[onnx.TensorProto], channels: int
) -> onnx.ModelProto:
    dims = [1, channels, 64, 64]
    graph = helper.make_graph(
        nodes,
        "benchmark",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, dims)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def _mixed(nodes: int, convs: int) -> onnx.ModelProto:
    """Make Convs apart by chains of elementwise nodes, with a skip around each chain."""
    weight = numpy_helper.from_array(np.zeros((8, 8, 3, 3), np.float32), "w")
    made: list[onnx.NodeProto] = []
    x, every = "x", nodes // convs
    for position in range(nodes):
        y, name = f"t{position}", f"/block{position // every}/node{position}"
        at = position % every
        if at == 0:
            made.append(helper.make_node("Conv", [x, "w"], [y], name, pads=[1] * 4))
            skip = y
        elif at == every - 1:
            made.append(helper.make_node("Add", [x, skip], [y], name))
        else:
            made.append(helper.make_node(("Relu", "Sigmoid", "Neg")[at % 3], [x], [y], name))
        x = y
    return _model(made, x, [weight], 8)


def _external(convs: int, nodes: int, file: Path) -> onnx.ModelProto:
    """Make Convs with weights of 3 GB together in a sparse file, elementwise nodes between."""
    channels = int((WEIGHT_BYTES / convs / 4 / 9) ** 0.5)
    length = 4 * 9 * channels**2
    made: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    x, every = "x", nodes // convs
    for position in range(nodes):
        y, name = f"t{position}", f"node{position}"
        if position % every == 0:
            tensor = onnx.TensorProto(name=f"w{position}", data_type=onnx.TensorProto.FLOAT)
            tensor.dims.extend([channels, channels, 3, 3])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entries = (file.name, len(weights) * length, length)
            for key, entry in zip(("location", "offset", "length"), entries, strict=True):
                tensor.external_data.add(key=key, value=str(entry))
            weights.append(tensor)
            made.append(helper.make_node("Conv", [x, tensor.name], [y], name, pads=[1] * 4))
        else:
            made.append(helper.make_node("Relu", [x], [y], name))
        x = y
    with file.open("wb") as stream:
        stream.truncate(len(weights) * length)
    return _model(made, x, weights, channels)


# --- measurements, each run in a process of its own -----------------------------------------------


def _peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _rewrite(loaded: Loaded, form: str) -> tuple[float, int, int]:
    """Return seconds of this process's own work, regions cut, and nodes emitted."""
    options = Options(splits=4, form=form, selection=Selection(min_elements=0))
    before = len(loaded.model.graph.node)
    start = time.process_time()
    outcome = rewrite_model(loaded, options)
    seconds = time.process_time() - start
    cut = len(outcome.rewritten)
    return seconds, cut, len(outcome.model.graph.node) - before + cut


def _measure_nodes(form: str, count: int, folder: Path) -> Figures:
    path = folder / "nodes.onnx"
    path.write_bytes(_mixed(10_000, 100).SerializeToString())
    start = time.perf_counter()
    _, cut, emitted = _rewrite(load(path), form)
    return {"seconds": time.perf_counter() - start, "cut": cut, "emitted": emitted}


def _measure_convs(form: str, count: int, folder: Path) -> Figures:
    # A first, small rewrite keeps imports and caches out of the figure.
    _rewrite(Loaded(_mixed(50, 50), None), form)
    tries = [
        _rewrite(Loaded(_mixed(count, count), None), form) for _ in range(max(1, 1000 // count))
    ]
    seconds, cut, emitted = min(tries)
    return {"seconds": seconds, "cut": cut, "emitted": emitted, "each": seconds / emitted}


def _measure_weights(form: str, count: int, folder: Path) -> Figures:
    path = folder / "weights.onnx"
    path.write_bytes(_external(50, 1000, folder / "weights.bin").SerializeToString())
    start = time.perf_counter()
    loaded = load(path)
    _, cut, _ = _rewrite(loaded, form)
    # A sink that throws bytes away stands for the disk: what counts is this process's memory.
    with open(os.devnull, "wb") as stream:
        copy_external(loaded.model, folder, stream, "new.bin")
    return {
        "seconds": time.perf_counter() - start,
        "cut": cut,
        "megabytes": _peak_megabytes(),
    }


def most_seconds(kind: str, count: int) -> float:
    """Return the seconds of the processor that a network's regions may take to find.

    Args:
        kind: A key of `tools.models.deep.KINDS`.
        count: A key of `MAX_SEARCH`, about its nodes.
    """
    return MAX_SEARCH[count] * MAX_TIMES.get(kind, 1.0)


def search(kind: str, count: int, tasks: Collection[str] = SEARCHES) -> Figures:
    """Return what it takes to find regions in a network of about so many nodes.

    Args:
        kind: A key of `tools.models.deep.KINDS`.
        count: Nodes.
        tasks: Which of `SEARCHES`.

    Returns:
        Nodes, and seconds of the processor per task: ``splits``, ``half`` the peak as a budget, and
        a fiftieth, which nothing keeps (``none``). A budget is found infeasible in good time, too.
    """
    whole = rewrite_model(Loaded(make(kind, count), None), Options(splits=1)).before.bytes
    asked = {
        "splits": Options(splits=8),
        "half": Options(memory_budget=whole // 2),
        "none": Options(memory_budget=whole // 50),
    }
    figures: Figures = {}
    for name in tasks:
        options = asked[name]
        loaded = Loaded(make(kind, count), None)
        figures["nodes"] = len(loaded.model.graph.node)
        start = time.process_time()
        with suppress(BudgetError):
            rewrite_model(loaded, options)
        figures[name] = time.process_time() - start
    return figures


def _measure_search(form: str, count: int, folder: Path) -> Figures:
    return search(form, count)


MEASUREMENTS: Mapping[str, Callable[[str, int, Path], Figures]] = {
    "nodes": _measure_nodes,
    "convs": _measure_convs,
    "weights": _measure_weights,
    "search": _measure_search,
}


def _in_child(what: str, form: str, count: int = 0) -> Figures:
    command = [sys.executable, "-m", "tools.benchmark_rewriter", "--measure", what]
    command += ["--form", form, "--count", str(count)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"measurement {what} ({form}) failed: see above")
    figures: Figures = json.loads(done.stdout)
    return figures


# --- command line ---------------------------------------------------------------------------------


def _report() -> bool:
    table = Table("measurement", "form", "figure", "bound", "", title="The rewriter itself")
    met = []

    def row(what: str, form: str, figure: str, bound: str, good: bool) -> None:
        met.append(good)
        table.add_row(what, form, figure, bound, "met" if good else "[bold]MISSED[/]")

    for form in FORMS:
        found = _in_child("nodes", form)
        figure = f"{found['seconds']:.2f} s, {found['emitted']:.0f} nodes emitted"
        good = found["seconds"] < MAX_SECONDS and found["cut"] == 100
        row("10,000 nodes, 100 Convs", form, figure, f"< {MAX_SECONDS:g} s", good)
    for form in FORMS:
        first = 0.0
        for count in CONV_COUNTS:
            found = _in_child("convs", form, count)
            first = first or found["each"]
            growth = found["each"] / first
            figure = (
                f"{found['seconds']:.2f} s, {1e6 * found['each']:.0f} us per node, x{growth:.2f}"
            )
            good = growth < MAX_GROWTH and found["cut"] == count
            row(f"{count} Convs", form, figure, f"< x{MAX_GROWTH:g} per node", good)
    for form in FORMS:
        found = _in_child("weights", form)
        figure = f"{found['megabytes']:.0f} MB, {found['seconds']:.1f} s"
        good = found["megabytes"] < MAX_MEGABYTES and found["cut"] == 50
        row("1,000 nodes, 3 GB external", form, figure, f"< {MAX_MEGABYTES:g} MB", good)
    for count in MAX_SEARCH:
        for kind in KINDS:
            found = _in_child("search", kind, count)
            tasks = {name: found[name] for name in SEARCHES}
            figure = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in tasks.items())
            most = most_seconds(kind, count)
            good = max(tasks.values()) < most
            row(f"{found['nodes']:.0f} nodes, regions found", kind, figure, f"< {most:g} s", good)
    Console(width=110).print(table)
    return all(met)


@click.command()
@click.option("--measure", type=click.Choice(list(MEASUREMENTS)), hidden=True)
@click.option("--form", type=click.Choice([*FORMS, *KINDS]), default=FORMS[0], hidden=True)
@click.option("--count", type=int, default=0, hidden=True)
def main(measure: str | None, form: str, count: int) -> None:
    """Measure the rewriter's time and memory; exit 1 if a bound is missed."""
    if measure is None:
        sys.exit(0 if _report() else 1)
    with tempfile.TemporaryDirectory() as folder:
        click.echo(json.dumps(MEASUREMENTS[measure](form, count, Path(folder))))


if __name__ == "__main__":
    main()
