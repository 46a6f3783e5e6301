"""``patchconv measure``: inputs for the models, figures from an engine, a table and JSON.

Memory is shown three times: while *loading* (growth of the process while the session is created),
*running* (its peak above that level) and *whole* (peak of both together, above the level before the
runtime loads the model). What a model costs is the last, so ratios are of that one;
`engines.measure` says how each is taken.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.measure import PROCESSES, Job, Measurement, measure
from engines.measure_tensorrt import TensorRTResult, measure_tensorrt, plan_tensorrt
from engines.onnxruntime_engine import GPU_FIELDS, OrtOptions, check_provider
from engines.tensorrt_build import check_machine, load_module
from engines.tensorrt_options import BuildOptions, Profile
from engines.timing import Timing
from patchconv_deploy.console import styled
from patchconv_deploy.errors import UsageError
from patchconv_deploy.inputs import make_inputs, save_inputs
from patchconv_deploy.report import mebibytes
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.session_options import recommended_options, unlike_recommended
from patchconv_deploy.words import in_flags
from rewriters.graph import load, skeleton
from rewriters.shapes import fix_shapes, free_inputs, infer, nominal_shapes

__all__ = [
    "ENGINES",
    "Prepared",
    "Result",
    "best",
    "check_engine",
    "lowest_of",
    "measure_models",
    "measure_onnxruntime",
    "measure_with_tensorrt",
    "measurement_json",
    "memory_pairs",
    "noted",
    "prepared",
    "print_measurements",
    "print_results",
    "print_tensorrt",
    "spelled",
    "tune_onnxruntime",
    "tuning_json",
]

ENGINES = ("onnxruntime", "tensorrt", "tensorrt-rtx")

Result: TypeAlias = Measurement | TensorRTResult
ResultT = TypeVar("ResultT", Measurement, TensorRTResult)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What measuring needs to know of a model.

    Attributes:
        job: The model and the file of its inputs.
        arrays: The inputs.
        free: Inputs with free dimensions.
        metadata: The model's.
        note: What free dimensions were taken as, where nobody said.
    """

    job: Job
    arrays: Mapping[str, np.ndarray[Any, Any]]
    free: frozenset[str]
    metadata: Mapping[str, str]
    note: str


def _prepare(path: Path, file: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Prepared:
    """Make seeded inputs for a model, and write them to a file.

    What is still free when ``shapes`` are put in counts as batch 1 and the nominal number of rows
    and columns.
    """
    loaded = load(path)
    slim = skeleton(loaded)
    known = {value.name for value in slim.graph.input}
    free = frozenset(free_inputs(slim))
    fix_shapes(slim, {name: shape for name, shape in shapes.items() if name in known})
    fix_shapes(slim, nominal_shapes(slim) if free_inputs(slim) else {})
    arrays = make_inputs(loaded.model, infer(slim), {}, seed)
    save_inputs(file, arrays)
    taken = sorted((free & arrays.keys()) - shapes.keys())
    sizes = " ".join(f"{name}:{'x'.join(map(str, arrays[name].shape))}" for name in taken)
    note = f"free dimensions taken as {sizes}; give shapes= for others" if taken else ""
    metadata = {entry.key: entry.value for entry in loaded.model.metadata_props}
    return Prepared(Job(path, file), arrays, free, metadata, note)


@contextmanager
def prepared(
    models: Sequence[Path], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> Iterator[list[Prepared]]:
    """Prepare models; the files of their inputs are there as long as the context.

    Raises:
        ModelError: A file is no model.
        OptionError: A shape does not fit.
        UsageError: No model has an input of that name.
    """
    with temporary_folder() as folder:
        made = [
            _prepare(model, folder / f"inputs_{number}.npz", shapes, seed)
            for number, model in enumerate(models)
        ]
        names = sorted({name for one in made for name in one.arrays})
        for name in shapes.keys() - set(names):
            raise UsageError(
                f"shapes[{name!r}]: there is no such input; the inputs are {', '.join(names)}"
            )
        yield made


def noted(result: ResultT, *notes: str) -> ResultT:
    """Return a result with more to say about it; empty notes are none."""
    return dataclasses.replace(result, note="; ".join(filter(None, (result.note, *notes))))


def measure_onnxruntime(
    models: Sequence[Path],
    options: OrtOptions,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int,
    processes: int = PROCESSES,
    seed: int = 0,
    memory_limit: int | None = None,
    recommended: bool = False,
) -> list[Measurement]:
    """Measure model files side by side on seeded inputs.

    Args:
        models: The files; the first is what the others are compared with.
        options: Session options.
        shapes: Sizes of inputs with free dimensions.
        runs: Timed runs of each.
        processes: Fresh processes that each one's peak is measured in.
        seed: Seed of the inputs.
        memory_limit: Address space of each measuring process, bytes.
        recommended: Put in the options that a model recommends for itself; one that recommends
            none says so in its ``note``. Without it, one that recommends others says that.

    Raises:
        UsageError: What a model recommends is not understood.
    """
    with prepared(models, shapes, seed) as made:
        found = [
            recommended_options(one.job.model, one.metadata, options) if recommended else None
            for one in made
        ]
        results = measure(
            [one.job for one in made],
            [each or options for each in found],
            runs=runs,
            processes=processes,
            memory_limit=memory_limit,
        )
    none = "recommends no session options: at defaults" if recommended else ""
    notes = [
        (none if each is None else "") if recommended else unlike_recommended(one.metadata, options)
        for each, one in zip(found, made, strict=True)
    ]
    return [
        noted(result, note, one.note)
        for result, note, one in zip(results, notes, made, strict=True)
    ]


def tune_onnxruntime(
    models: Sequence[Path],
    options: OrtOptions,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int,
    processes: int = PROCESSES,
    seed: int = 0,
    memory_limit: int | None = None,
) -> list[list[Measurement]]:
    """Measure each model under the four pairs of memory reuse and memory pattern, arena on.

    The four run in turn, so that their times can be compared; one model comes after the other.

    Args:
        models: The files.
        options: Session options; the three named ones are overridden.
        shapes: Sizes of inputs with free dimensions.
        runs: Timed runs of each.
        processes: Fresh processes that each peak is measured in.
        seed: Seed of the inputs.
        memory_limit: Address space of each measuring process, bytes.

    Returns:
        Per model four results, the runtime's defaults first; the best one says so in ``note``.
    """
    pairs = memory_pairs(options)
    tuned = []
    with prepared(models, shapes, seed) as made:
        for one in made:
            results = measure(
                [one.job] * len(pairs),
                pairs,
                runs=runs,
                processes=processes,
                memory_limit=memory_limit,
            )
            chosen = best(results)
            if chosen is not None:
                text = f"best: {spelled(chosen, ('memory_pattern', 'memory_reuse'))}"
                results[results.index(chosen)] = noted(chosen, text, one.note)
            tuned.append(results)
    return tuned


def memory_pairs(options: OrtOptions) -> list[OrtOptions]:
    """Return options with memory reuse and memory pattern on and off, arena on; defaults first."""
    return [
        dataclasses.replace(options, arena=True, memory_reuse=reuse, memory_pattern=pattern)
        for reuse, pattern in itertools.product((True, False), repeat=2)
    ]


def best(results: Sequence[Measurement]) -> Measurement | None:
    """Return the fastest of those whose peak is within 2 % of the lowest; None if all failed."""
    fast = [
        (result.latency_s.median, result)
        for result in lowest_of(results)
        if result.latency_s is not None
    ]
    return min(fast, key=lambda pair: pair[0])[1] if fast else None


def lowest_of(results: Sequence[Measurement]) -> list[Measurement]:
    """Return those whose peak is within 2 % of the lowest; none if all failed."""
    ran = [(result.peak_bytes, result) for result in results if result.peak_bytes is not None]
    lowest = min((peak for peak, _ in ran), default=0)
    return [result for peak, result in ran if peak <= 1.02 * lowest]


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
    with prepared(models, shapes, seed) as made:
        options = [BuildOptions(profiles=_profiles(each)) for each in made]
        if engine == "tensorrt-rtx":
            results = plan_tensorrt(models, options, engine)
        else:
            jobs = [each.job for each in made]
            results = measure_tensorrt(jobs, options, timing=Timing.of(runs), engine=engine)
        return [noted(result, one.note) for result, one in zip(results, made, strict=True)]


def check_engine(engine: str) -> None:
    """See, before any work, that an engine is there for the default provider.

    Raises:
        EngineMissing: It is not installed.
        DeviceMissing: It needs a GPU, and there is none.
    """
    if engine == "onnxruntime":
        check_provider(OrtOptions())
        return
    module = load_module(engine)
    if engine == "tensorrt":
        check_machine(module)


def measure_models(
    models: Sequence[Path],
    engine: str,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int = 5,
    seed: int = 0,
) -> Sequence[Result]:
    """Measure, or for TensorRT for RTX plan, model files side by side, at default options.

    Args:
        models: The files; the first is what the others are compared with.
        engine: One of `ENGINES`.
        shapes: Sizes of inputs with free dimensions.
        runs: Timed runs of each.
        seed: Seed of the inputs.

    Raises:
        EngineMissing: The engine is not installed.
        DeviceMissing: It needs a GPU, and there is none.
    """
    if engine == "onnxruntime":
        return measure_onnxruntime(models, OrtOptions(), shapes=shapes, runs=runs, seed=seed)
    return measure_with_tensorrt(models, engine, shapes=shapes, runs=runs, seed=seed)


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print what `measure_models` returned."""
    plans = [result for result in results if isinstance(result, TensorRTResult)]
    if plans:
        print_tensorrt(plans, console)
    else:
        print_measurements([r for r in results if isinstance(r, Measurement)], console)


def _profiles(one: Prepared) -> tuple[Profile, ...]:
    shapes = {name: one.arrays[name].shape for name in one.free & one.arrays.keys()}
    return ({name: (shape, shape, shape) for name, shape in shapes.items()},) if shapes else ()


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
            table.add_row(result.model, styled(("failed", "red")))
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
                _seconds(result.latency_s.median),
                "-" if base is None else f"{result.latency_s.median / base:.2f}",
            ]
        table.add_row(result.model, *cells)
    console.print(table)
    _print_notes(results, console)
    found = next((result for result in results if not result.error), first)
    how = (
        "planned by the builder, nothing was run"
        if found.kind == "planned"
        else "measured; inputs and outputs not in the peak"
    )
    console.print(
        f"{found.engine} {found.version}; {found.device}; {how}; maxAuxStreams=0; {found.date}",
        style="dim",
    )


def measurement_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return measurements as JSON-ready data; sizes in bytes, times in seconds."""
    return {"results": [result.as_json() for result in results]}


def tuning_json(tuned: Sequence[Sequence[Measurement]]) -> dict[str, Any]:
    """Return what `tune_onnxruntime` found as JSON-ready data, the best of each model apart."""
    chosen = [best(results) for results in tuned]
    return {
        **measurement_json([result for results in tuned for result in results]),
        "best": [
            {
                "model": one.model,
                "session_options": OrtOptions(**one.options).session_options(),
                "peak_bytes": one.peak_bytes,
                "load_bytes": one.load_bytes,
                "whole_bytes": one.whole_bytes,
                "latency_s": None if one.latency_s is None else dataclasses.asdict(one.latency_s),
            }
            for one in chosen
            if one is not None
        ],
    }


def print_measurements(results: Sequence[Measurement], console: Console) -> None:
    """Print one row a model, each beside the first."""
    shared, differing = _options(results)
    several = any(result.processes > 1 for result in results)
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    if differing:
        table.add_column("options", no_wrap=True)
    least = ["least"] if several else []
    for name in ("load MiB", "peak MiB", *least, "whole MiB", "x first", "arena MiB"):
        table.add_column(name, justify="right")
    for name in ("median s", "min .. max", "x first"):
        table.add_column(name, justify="right")
    first = results[0]
    for result in results:
        cells = [result.model]
        if differing:
            cells.append(spelled(result, differing))
        if result.error or result.latency_s is None:
            table.add_row(*cells, styled(("failed", "red")))
            continue
        cells += [mebibytes(result.load_bytes), mebibytes(result.peak_bytes)]
        if several:
            cells.append(mebibytes(min(result.peaks_bytes)))
        table.add_row(
            *cells,
            mebibytes(result.whole_bytes),
            _over(result.whole_bytes, first.whole_bytes),
            mebibytes(result.runtime_peak_bytes) if result.runtime_peak_bytes else "-",
            _seconds(result.latency_s.median),
            f"{_seconds(result.latency_s.min)} .. {_seconds(result.latency_s.max)}",
            "-" if result.ratio is None else f"{result.ratio.median:.2f}",
        )
    console.print(table)
    _print_notes(results, console)
    found = next((result for result in results if not result.error), None)
    if found is None:
        return
    fixed = "fixed" if found.fixed_addresses else "random"
    of = "the process" if found.options["provider"] == "cpu" else "the device's used memory"
    console.print(
        f"load: growth of {of} while the session is created; peak: of the runs, above that; whole: "
        "of loading and running together, above the level before the runtime loads the model",
        style="dim",
        highlight=False,
    )
    rounds = f" in {found.rounds} rounds of processes" if found.rounds else ""
    console.print(
        f"ONNX Runtime {found.version}, {', '.join(found.providers)}; {found.device}; "
        f"{found.runs} runs{rounds}, {found.timing}; largest figures of {found.processes} "
        f"processes, {fixed} addresses; {shared}; {found.date}",
        style="dim",
    )
    sizes = {result.input_bytes for result in results if not result.error}
    if len(sizes) > 1:
        console.print(_note("the models ran on inputs of different sizes; fix them with shapes="))


def _options(results: Sequence[Measurement]) -> tuple[str, list[str]]:
    """Return the options that all results share, spelled out, and the names of the others."""
    options = results[0].options
    # Options of other providers say nothing about a run on the CPU.
    idle = GPU_FIELDS if options["provider"] == "cpu" else ()
    names = [name for name in options if name not in idle]
    differing = [n for n in names if any(r.options[n] != options[n] for r in results)]
    return spelled(results[0], [name for name in names if name not in differing]), differing


def spelled(result: Measurement, names: Sequence[str]) -> str:
    """Return options that a model was measured under, for people."""
    return ", ".join(f"{name}={result.options[name]}" for name in names)


def _print_notes(results: Sequence[Result], console: Console) -> None:
    for result in results:
        if result.note:
            console.print(_note(f"{result.model}: {result.note}"))


def _note(text: str) -> Text:
    return styled(("note:", "yellow"), " ", in_flags(text))


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 1 else f"{value:#.3g}"


def _over(value: int | None, reference: int | None) -> str:
    return "-" if not value or not reference else f"{value / reference:.2f}"
