"""``patchconv measure``: inputs for the models, figures from an engine, a table and JSON."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engines.measure import Job, Measurement, measure
from engines.measure_tensorrt import TensorRTResult, measure_tensorrt, plan_tensorrt
from engines.onnxruntime_engine import OrtOptions
from engines.tensorrt_options import BuildOptions
from patchconv_deploy.inputs import make_inputs, save_inputs
from patchconv_deploy.report import mebibytes
from rewriters.graph import load, skeleton
from rewriters.shapes import fix_shapes, free_inputs, infer, nominal_shapes

__all__ = [
    "ENGINES",
    "Result",
    "measure_models",
    "measure_onnxruntime",
    "measure_with_tensorrt",
    "measurement_json",
    "model_inputs",
    "print_measurements",
    "print_results",
    "print_tensorrt",
]

ENGINES = ("onnxruntime", "tensorrt", "tensorrt-rtx")


def model_inputs(
    path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Make seeded inputs for a model file.

    Args:
        path: The model.
        shapes: Sizes of inputs with free dimensions; what is still free after that counts as
            batch 1 and the nominal number of rows and columns.
        seed: Seed of the random numbers.

    Raises:
        ModelError: The file is no model.
        OptionError: A shape does not fit it.
    """
    loaded = load(path)
    slim = skeleton(loaded)
    known = {value.name for value in slim.graph.input}
    fix_shapes(slim, {name: shape for name, shape in shapes.items() if name in known})
    fix_shapes(slim, nominal_shapes(slim) if free_inputs(slim) else {})
    return make_inputs(loaded.model, infer(slim), {}, seed)


def measure_onnxruntime(
    models: Sequence[Path],
    options: OrtOptions,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int,
    seed: int = 0,
    memory_limit: int | None = None,
) -> list[Measurement]:
    """Measure model files side by side on seeded inputs.

    Args:
        models: The files; the first is what the others are compared with.
        options: Session options.
        shapes: Sizes of inputs with free dimensions.
        runs: Timed runs of each.
        seed: Seed of the inputs.
        memory_limit: Address space of each measuring process, bytes.
    """
    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        jobs = []
        for number, model in enumerate(models):
            file = Path(name) / f"inputs_{number}.npz"
            save_inputs(file, model_inputs(model, shapes, seed))
            jobs.append(Job(model, file))
        return measure(jobs, options, runs=runs, memory_limit=memory_limit)


def measure_with_tensorrt(
    models: Sequence[Path],
    engine: str,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int,
    seed: int = 0,
) -> list[TensorRTResult]:
    """Plan (TensorRT for RTX, without a GPU) or measure (TensorRT, on one) model files.

    Args:
        models: The files; the first is what the others are compared with.
        engine: "tensorrt-rtx" or "tensorrt".
        shapes: Sizes of inputs with free dimensions; a profile for just these is built.
        runs: Timed runs of each.
        seed: Seed of the inputs.
    """
    arrays = [model_inputs(model, shapes, seed) for model in models]
    options = [
        BuildOptions(profiles=_profiles(model, made))
        for model, made in zip(models, arrays, strict=True)
    ]
    if engine == "tensorrt-rtx":
        return plan_tensorrt(models, options, engine)
    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        jobs = []
        for number, (model, made) in enumerate(zip(models, arrays, strict=True)):
            file = Path(name) / f"inputs_{number}.npz"
            save_inputs(file, made)
            jobs.append(Job(model, file))
        return measure_tensorrt(jobs, options, runs=runs, engine=engine)


Result: TypeAlias = Measurement | TensorRTResult


def measure_models(
    models: Sequence[Path],
    engine: str,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int = 5,
    seed: int = 0,
    options: OrtOptions | None = None,
    memory_limit: int | None = None,
) -> Sequence[Result]:
    """Measure, or for TensorRT for RTX plan, model files side by side.

    Args:
        models: The files; the first is what the others are compared with.
        engine: One of `ENGINES`.
        shapes: Sizes of inputs with free dimensions.
        runs: Timed runs of each.
        seed: Seed of the inputs.
        options: Session options of ONNX Runtime.
        memory_limit: Address space of each process that measures ONNX Runtime, bytes.

    Raises:
        EngineMissing: The engine is not installed.
        DeviceMissing: It needs a GPU, and there is none.
    """
    if engine == "onnxruntime":
        return measure_onnxruntime(
            models,
            options or OrtOptions(),
            shapes=shapes,
            runs=runs,
            seed=seed,
            memory_limit=memory_limit,
        )
    return measure_with_tensorrt(models, engine, shapes=shapes, runs=runs, seed=seed)


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print what `measure_models` returned."""
    plans = [result for result in results if isinstance(result, TensorRTResult)]
    if plans:
        print_tensorrt(plans, console)
    else:
        print_measurements([r for r in results if isinstance(r, Measurement)], console)


def _profiles(
    model: Path, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...]:
    free = free_inputs(load(model).model)
    profile = {
        name: (array.shape, array.shape, array.shape)
        for name, array in arrays.items()
        if name in free
    }
    return (profile,) if profile else ()


def print_tensorrt(results: Sequence[TensorRTResult], console: Console) -> None:
    """Print one row a model; what is planned is called planned."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("planned activation MiB", "x first", "planned scratch MiB", "weights MiB"):
        table.add_column(name, justify="right")
    measured = any(result.kind == "measured" for result in results)
    for name in ("measured peak MiB", "x first", "median s", "x first") if measured else ():
        table.add_column(name, justify="right")
    first = results[0]
    for result in results:
        if result.error:
            table.add_row(escape(result.model), f"[red]failed[/]: {escape(result.error)}")
            continue
        cells = [
            mebibytes(result.planned_activation_bytes),
            _over(result.planned_activation_bytes, first.planned_activation_bytes),
            mebibytes(result.planned_scratch_bytes),
            mebibytes(result.weights_bytes),
        ]
        if measured and result.latency_s is not None:
            base = None if first.latency_s is None else first.latency_s.median
            cells += [
                mebibytes(result.peak_bytes),
                _over(result.peak_bytes, first.peak_bytes),
                f"{result.latency_s.median:.4f}",
                "-" if base is None else f"{result.latency_s.median / base:.2f}",
            ]
        table.add_row(escape(result.model), *cells)
    console.print(table)
    found = next((result for result in results if not result.error), first)
    how = (
        "planned by the builder, nothing was run"
        if found.kind == "planned"
        else "measured; inputs and outputs not in the peak"
    )
    console.print(
        f"{found.engine} {found.version}; {found.device}; {how}; maxAuxStreams=0; {found.date}",
        style="dim",
        highlight=False,
        markup=False,
    )


def measurement_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return measurements as JSON-ready data; sizes in bytes, times in seconds."""
    return {"results": [dataclasses.asdict(result) for result in results]}


def print_measurements(results: Sequence[Measurement], console: Console) -> None:
    """Print one row a model, each beside the first."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("peak MiB", "x first", "arena MiB", "x first"):
        table.add_column(name, justify="right")
    for name in ("median s", "min .. max", "x first"):
        table.add_column(name, justify="right")
    first = results[0]
    for result in results:
        if result.error or result.latency_s is None:
            table.add_row(escape(result.model), f"[red]failed[/]: {escape(result.error)}")
            continue
        table.add_row(
            escape(result.model),
            mebibytes(result.peak_bytes),
            _over(result.peak_bytes, first.peak_bytes),
            mebibytes(result.runtime_peak_bytes) if result.runtime_peak_bytes else "-",
            _over(result.runtime_peak_bytes, first.runtime_peak_bytes),
            f"{result.latency_s.median:.3f}",
            f"{result.latency_s.min:.3f} .. {result.latency_s.max:.3f}",
            "-" if result.ratio is None else f"{result.ratio.median:.2f}",
        )
    console.print(table)
    found = next((result for result in results if not result.error), first)
    if found.error:
        return
    # Options of other providers say nothing about a run on the CPU.
    on_cpu = found.options["provider"] == "cpu"
    shown = ", ".join(
        f"{name}={value}"
        for name, value in found.options.items()
        if not (on_cpu and name.startswith(("cudnn", "arena_extend")))
    )
    console.print(
        f"ONNX Runtime {found.version}, {', '.join(found.providers)}; {found.device}; "
        f"{found.runs} runs; {shown}; {found.date}",
        style="dim",
        highlight=False,
    )
    sizes = {result.input_bytes for result in results if not result.error}
    if len(sizes) > 1:
        console.print("[yellow]note:[/] the models ran on inputs of different sizes; fix --shape")


def _over(value: int | None, reference: int | None) -> str:
    return "-" if not value or not reference else f"{value / reference:.2f}"
