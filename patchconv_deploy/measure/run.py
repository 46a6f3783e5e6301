"""Models measured under an engine, on inputs made for them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from patchconv_deploy.engines.measurement import Measurement
from patchconv_deploy.engines.ort.measure import PROCESSES, Progress, measure
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.engines.ort.run import check_provider
from patchconv_deploy.engines.timing import Timing
from patchconv_deploy.engines.trt.build import check_machine, load_module
from patchconv_deploy.engines.trt.measure import TensorRTResult, measure_tensorrt, plan_tensorrt
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.measure.prepared import Prepared, prepared, profiles
from patchconv_deploy.measure.session_options import recommended_options, unlike_recommended

__all__ = [
    "ENGINES",
    "Result",
    "best",
    "check_engine",
    "lowest_of",
    "measure_models",
    "measure_onnxruntime",
    "measure_with_tensorrt",
    "memory_pairs",
    "noted",
    "spelled",
    "tune_onnxruntime",
]


ENGINES = ("onnxruntime", "tensorrt", "tensorrt-rtx")

Result: TypeAlias = Measurement | TensorRTResult

_NO_OPTIONS = "recommends no session options: at defaults; tuning may find better"

_AT_ITS_BEST = (
    "recommends no session options: at its best of memory reuse and memory pattern, each on and off"
)

_WITHOUT_ARENA = "the same without the arena, which takes longer: the least memory it was seen at"

ResultT = TypeVar("ResultT", Measurement, TensorRTResult)


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
    at_best: bool = False,
    progress: Progress | None = None,
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
        recommended: Put in the options that a model recommends for itself. Without it, one that
            recommends others says so in its ``note``.
        at_best: With ``recommended``, one that recommends none beside one that does runs at the
            pair of memory reuse and memory pattern that it needs least memory at, and says so,
            without the arena where it needs less so, then at ``options``: what was cut is compared
            with the original at its best.
        progress: Called with (what, done, total) from time to time.

    Returns:
        A result a model; of one that runs at its best as many as that names, in this order.

    Raises:
        UsageError: What a model recommends is not understood.
    """
    with prepared(models, shapes, seed) as made:
        rows = [(one, options, "") for one in made]
        if recommended:
            rows = _rows(made, options, memory_limit, at_best=at_best, progress=progress)
        results = measure(
            [one.job for one, _, _ in rows],
            [each for _, each, _ in rows],
            runs=runs,
            processes=processes,
            memory_limit=memory_limit,
            progress=progress,
        )
    notes = [
        note if recommended else unlike_recommended(one.metadata, options) for one, _, note in rows
    ]
    return [
        noted(result, note, one.note)
        for result, note, (one, _, _) in zip(results, notes, rows, strict=True)
    ]


def _rows(
    made: Sequence[Prepared],
    options: OrtOptions,
    memory_limit: int | None,
    *,
    at_best: bool,
    progress: Progress | None,
) -> list[tuple[Prepared, OrtOptions, str]]:
    """Return which model is to run under which options, and what is to be said of it.

    Args:
        made: The models.
        options: What holds for all that no model says anything of.
        memory_limit: Address space of each measuring process, bytes.
        at_best: Look for the options that those need least memory at that recommend none.
        progress: Called with (what, done, total) from time to time.

    Raises:
        UsageError: What a model recommends is not understood.
    """
    found = [recommended_options(one.job.model, one.metadata, options) for one in made]
    alone = all(own is None for own in found)
    rows: list[tuple[Prepared, OrtOptions, str]] = []
    for one, own in zip(made, found, strict=True):
        if own is not None:
            rows.append((one, own, ""))
        elif alone or not at_best:
            rows.append((one, options, _NO_OPTIONS))
        else:
            lowest, without = _lowest(one, options, memory_limit, progress)
            rows.append((one, lowest, _AT_ITS_BEST))
            rows += [] if without is None else [(one, without, _WITHOUT_ARENA)]
            rows += [(one, options, "")] * (lowest != options)
    return rows


def _lowest(
    one: Prepared, options: OrtOptions, memory_limit: int | None, progress: Progress | None
) -> tuple[OrtOptions, OrtOptions | None]:
    """Return options with memory reuse and memory pattern as a model needs least memory.

    One process each says which that is.

    Returns:
        The best pair with the arena as asked for, ``options`` themselves if none runs; the best
        pair without the arena, None where that needs no less memory.
    """
    pairs = [dataclasses.replace(each, arena=options.arena) for each in memory_pairs(options)]
    others = _without_arena(options) if options.arena else []
    found = measure(
        [one.job] * (len(pairs) + len(others)),
        [*pairs, *others],
        runs=1,
        processes=1,
        rounds=1,
        memory_limit=memory_limit,
        progress=_told_as(f"looking for the best options of {one.job.model.name}", progress),
    )
    chosen, without = best(found[: len(pairs)]), best(found[len(pairs) :])
    if chosen is None:
        return options, None
    lowest = pairs[found.index(chosen)]
    # Time is compared with the first row, and a model is slower without the arena: both are shown.
    if without is None or (without.whole_bytes or 0) > 0.98 * (chosen.whole_bytes or 0):
        return lowest, None
    return lowest, others[found.index(without) - len(pairs)]


def _told_as(what: str, progress: Progress | None) -> Progress | None:
    """Return a progress that says what is done in words of its own."""
    return None if progress is None else lambda _, done, total: progress(what, done, total)


def tune_onnxruntime(
    models: Sequence[Path],
    options: OrtOptions,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int,
    processes: int = PROCESSES,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> list[list[Measurement]]:
    """Measure each model with memory reuse, memory pattern and the arena each on and off.

    The pairs of the first two run in turn, so that their times can be compared; those without the
    arena afterwards, in turn with the defaults again, since each holds its memory meanwhile. One
    model comes after the other.

    Args:
        models: The files.
        options: Session options; the three named ones are overridden.
        shapes: Sizes of inputs with free dimensions.
        runs: Timed runs of each.
        processes: Fresh processes that each peak is measured in.
        seed: Seed of the inputs.
        memory_limit: Address space of each measuring process, bytes.
        progress: Called with (what, done, total) from time to time.

    Returns:
        Per model four results with the arena, the runtime's defaults first, then, on the CPU, four
        without; the best one says so in ``note``.
    """
    pairs, others = memory_pairs(options), _without_arena(options)
    groups = [pairs, [pairs[0], *others]] if others else [pairs]
    tuned = []
    with prepared(models, shapes, seed) as made:
        for one in made:
            results: list[Measurement] = []
            for settings in groups:
                found = measure(
                    [one.job] * len(settings),
                    settings,
                    runs=runs,
                    processes=processes,
                    memory_limit=memory_limit,
                    progress=progress,
                )
                # The defaults are there once.
                results += found[1:] if results else found
            chosen = best(results)
            if chosen is not None:
                text = f"best: {spelled(chosen, ('arena', 'memory_pattern', 'memory_reuse'))}"
                results[results.index(chosen)] = noted(chosen, text, one.note)
            tuned.append(results)
    return tuned


def memory_pairs(options: OrtOptions) -> list[OrtOptions]:
    """Return options with memory reuse and memory pattern on and off, arena on; defaults first."""
    return [
        dataclasses.replace(options, arena=True, memory_reuse=reuse, memory_pattern=pattern)
        for reuse, pattern in itertools.product((True, False), repeat=2)
    ]


def _without_arena(options: OrtOptions) -> list[OrtOptions]:
    """Return `memory_pairs` without the arena; none under a provider of a GPU, whose it is not."""
    if options.provider != "cpu":
        return []
    return [dataclasses.replace(pair, arena=False) for pair in memory_pairs(options)]


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
        options = [BuildOptions(profiles=profiles(each)) for each in made]
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


def spelled(result: Measurement, names: Sequence[str]) -> str:
    """Return options that a model was measured under, for people."""
    return ", ".join(f"{name}={result.options[name]}" for name in names)
