"""What was measured, as a table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from patchconv_deploy.console import styled
from patchconv_deploy.engines.measurement import Measurement
from patchconv_deploy.engines.ort.options import GPU_FIELDS, OrtOptions
from patchconv_deploy.engines.trt.measure import TensorRTResult
from patchconv_deploy.measure.run import Result, best, spelled
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.tables import Row, print_table
from patchconv_deploy.words import in_flags

__all__ = [
    "measurement_json",
    "print_measurements",
    "print_results",
    "print_tensorrt",
    "tuning_json",
]


# A unit or a second word stands below, so that all fit a terminal of 80 columns.
_COLUMNS = (
    "loading",
    "running",
    "whole\nprocess",
    "x\nfirst",
    "activations",
    "median\ns",
    "min .. max",
    "x\nfirst",
)


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print what `measure_models` returned."""
    plans = [result for result in results if isinstance(result, TensorRTResult)]
    if plans:
        print_tensorrt(plans, console)
    else:
        print_measurements([r for r in results if isinstance(r, Measurement)], console)


def print_tensorrt(results: Sequence[TensorRTResult], console: Console) -> None:
    """Print one row a model; what is planned is called planned."""
    columns = ["activations", "x first", "scratch", "weights"]
    measured = any(result.kind == "measured" for result in results)
    if measured:
        columns += ["measured\npeak", "x first", "median s", "x first"]
    first, rows = results[0], []
    for result in results:
        if result.error:
            rows.append(Row(result.model, (styled(("failed", "red")),)))
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
        rows.append(Row(result.model, tuple(cells)))
    print_table(console, "model", columns, rows)
    _print_notes(results, console)
    found = next((result for result in results if not result.error), first)
    how = (
        "planned by the builder, nothing was run"
        if found.kind == "planned"
        else "measured; inputs and outputs not in the peak"
    )
    console.print(
        "MiB. activations, scratch, weights: as planned by the builder, for the engine's memory",
        style="dim",
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
    first, rows = results[0], []
    for result in results:
        head = ", ".join(filter(None, (result.model, spelled(result, differing))))
        if result.error or result.latency_s is None:
            rows.append(Row(head, (styled(("failed", "red")),)))
            continue
        cells = (
            mebibytes(result.load_bytes),
            mebibytes(result.peak_bytes),
            mebibytes(result.whole_bytes),
            _over(result.whole_bytes, first.whole_bytes),
            mebibytes(result.runtime_peak_bytes) if result.runtime_peak_bytes else "-",
            _seconds(result.latency_s.median),
            f"{_seconds(result.latency_s.min)} .. {_seconds(result.latency_s.max)}",
            "-" if result.ratio is None else f"{result.ratio.median:.2f}",
        )
        rows.append(Row(head, cells))
    print_table(console, "model", _COLUMNS, rows)
    _print_notes(results, console)
    found = next((result for result in results if not result.error), None)
    if found is None:
        return
    fixed = "fixed" if found.fixed_addresses else "random"
    of = "the process" if found.options["provider"] == "cpu" else "the device's used memory"
    console.print(
        f"MiB. loading: what creating the session adds to {of}; running: what the runs add, at "
        "most; whole process: both, what they share once; activations: tensors in use at once in "
        "the runtime's own pool; docs/measuring.md has more of each",
        style="dim",
        highlight=False,
    )
    rounds = f" in {found.rounds} rounds of processes" if found.rounds else ""
    console.print(
        f"ONNX Runtime {found.version}, {', '.join(found.providers)}; {found.device}; "
        f"{found.runs} runs{rounds}, {found.timing}; largest figures of {found.processes} "
        f"processes{_apart(results)}, {fixed} addresses; {shared}; {found.date}",
        style="dim",
    )
    sizes = {result.input_bytes for result in results if not result.error}
    if len(sizes) > 1:
        console.print(_note("the models ran on inputs of different sizes; fix them with shapes="))


def _apart(results: Sequence[Measurement]) -> str:
    """Return by how much the peaks of processes of one model differ at most."""
    peaks = [result.peaks_bytes for result in results if len(result.peaks_bytes) > 1]
    most = max((max(each) - min(each) for each in peaks), default=0)
    return f", of which running differs by {mebibytes(most)} MiB at most" if peaks else ""


def _options(results: Sequence[Measurement]) -> tuple[str, list[str]]:
    """Return the options that all results share, spelled out, and the names of the others."""
    options = results[0].options
    # Options of other providers say nothing about a run on the CPU.
    idle = GPU_FIELDS if options["provider"] == "cpu" else ()
    names = [name for name in options if name not in idle]
    differing = [n for n in names if any(r.options[n] != options[n] for r in results)]
    return spelled(results[0], [name for name in names if name not in differing]), differing


def _print_notes(results: Sequence[Result], console: Console) -> None:
    for result in results:
        if result.note:
            console.print(_note(f"{result.model}: {result.note}"))


def _note(text: str) -> Text:
    return styled(("note:", "yellow"), " ", in_flags(text))


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:#.3g}"


def _over(value: int | None, reference: int | None) -> str:
    return "-" if not value or not reference else f"{value / reference:.2f}"
