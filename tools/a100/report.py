"""The report of some rows: as JSON, for people, and as plots with their data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchconv_deploy.cli.types import write_bytes, write_text
from patchconv_deploy.engines.measurement import now
from tools.a100.asking import DEFAULT, Engine
from tools.a100.cases import CHAIN, PUBLISHED, PUBLISHED_BY
from tools.a100.compared import ORIGINAL_HERE
from tools.a100.plots import LATENCY_PLOT, MEMORY_PLOT, csv_text, draw, plot_data
from tools.a100.rows import Report, Row

__all__ = [
    "SCHEMA",
    "mib",
    "over",
    "over_best",
    "report_json",
    "report_markdown",
    "write_json",
    "write_report",
]

SCHEMA = 2
_LATENCY = "latency_median_s"
MIB = 1 << 20

WORDS: Mapping[str, str] = {
    "activation": "bytes of the largest tensor a Conv of the model reads or writes, from its shape",
    "tensorrt peak": "most that TensorRT allocated on the device while it ran, by a recording "
    "allocator; weights, inputs and outputs not in it",
    "tensorrt whole device": "the same with weights, inputs and outputs",
    "tensorrt workspace": "largest scratch memory of a layer, as the builder plans it",
    "tensorrt-rtx activation": "activation memory as the builder plans it, scratch in it, inputs "
    "and outputs not; a plan, not a measurement, and not TensorRT's peak",
    "onnxruntime peak": "CUDA: used memory of the device above its level before the first run, "
    "sampled through NVML: outputs and cuDNN's workspace in it; inputs are there before, nothing "
    "is copied. It is what the arena reserved, and at the default the arena grows by doubling "
    "(kNextPowerOfTwo): up to twice of what is in use, so that a cut model can take more than its "
    "original that needs more. CPU: the same of the process's resident memory, outputs in it",
    "onnxruntime arena's own": "mem_in_use_peak of the runtime's profile, what is in use and not "
    "what is reserved. On a GPU it is of other runs than the peak: inputs are copied to the device "
    "in them, and in it",
    "latency": "median of the runs. Once all models of a case are measured they take turns in "
    "being timed, round after round (Timed runs: of each round): ONNX Runtime's each in a fresh "
    "process at a time, for two arenas may not fit, under every setting; TensorRT's, built once "
    "more, all open, at the default. Rounds 0, and a ratio that was not taken in turns: each was "
    "timed alone, minutes apart. TensorRT: between CUDA events, nothing copied. ONNX Runtime: "
    "the same on a GPU, wall clock on the CPU",
    "output": "sampled windows (the corners, and a strip over all rows, so across every seam; "
    "first, middle and last channels, and those at 2^31 elements) against the original on the CPU "
    "in float32; largest error over the larger of 1 and the value. A row that was not compared is "
    "no result, and in no ratio",
    "needed": "needed_bytes in report.json: input and output, without which no form runs; a cell "
    "that needs more than the device has is skipped, and says so",
    "host memory": "process_bytes, build_process_bytes in report.json: resident high-water mark of "
    "the process that ran it, and that it was built in",
    "other settings": "with --sweep. TensorRT: the workspace pool, and inputs and outputs with "
    "the channels last and padded to 8 (hwc8 I/O), which are in no peak; they take turns in being "
    "timed. ONNX Runtime CUDA: the arena that grows as requested (kSameAsRequested), channels last "
    "(prefer_nhwc), and both; and both ways of the latter without memory reuse and memory pattern "
    "(no reuse), which is what plans are made for and recommend. Same setting: over the original "
    "under that setting. Its best setting: over the least memory, or time, that the original takes "
    "under any of them, which is what cutting is to be judged by: the rest is what a setting does. "
    "The builder's own peak is by a recording allocator",
    "pytorch": "allocated, reserved: most of PyTorch's allocator above the input and the weights; "
    "device: used memory through NVML. The published 44.0 GB are the input and output (4 GiB each) "
    "and the matrix that all windows are unfolded into (36 GiB), an inference from the figures: "
    "PyTorch's fallback above 2^31 elements, which other engines have not, nor PyTorch with cuDNN "
    "9.3 and later needs: on an H100 it takes 16 GiB for that cell, the input in them "
    "(docs/gpu.md). So the column of what was published is no baseline of today's",
    "x original": "over the original of the same model on the same engine, both at the engine's "
    "default options",
    "attention in the decoder": "one head over all positions of the latent; kept whole in float16, "
    "its scores are 0.5 GiB at 1024, 8 GiB at 2048 and 128 GiB at 4096. Regions of layers take it "
    "in blocks of queries; batch and sequential leave it whole",
    "form": "batch, sequential: single Convs of at least half the largest tensor. Of one Conv "
    "alone the input and output are most of what there is: sequential saves what the engine needs "
    "beside them, batch holds all windows stacked as well and can take more than the original; it "
    "is there since it is the published form. fused, shrinking, loop: whole regions of layers, "
    "chosen for the engine's predicted peak, which is where cutting saves; the decoder's "
    "normalisation in them as well. ONNX Runtime runs every form at its "
    "default options on a GPU, and on the CPU at those that plans are made for",
    "recompute": "output rows computed over output rows there are, the largest of what was cut",
    PUBLISHED_BY: "GB as printed there, as it is and cut (number of patches not given), at 24 to "
    "60 % more time when cut; not ours, and PyTorch's: beside the original and the batch form, "
    "which is the published one",
}


def report_json(report: Report) -> dict[str, Any]:
    """Return everything as JSON data; nothing is rounded."""
    cases = {row.case for row in report.rows}
    return {
        "schema": SCHEMA,
        "made": now(),
        "command": report.command,
        "mode": "cpu" if report.cpu else "gpu",
        "runs": report.runs,
        "ask_anyway": report.ask_anyway,
        "sweep": report.sweep,
        "cells": report.wanted,
        "words": dict(WORDS),
        "stand_ins": _stand_ins(report),
        "published": {
            "by": PUBLISHED_BY,
            "unit": "GB as printed",
            "cases": [
                {"case": name, "original": uncut, "cut": cut}
                for name, (uncut, cut) in PUBLISHED.items()
                if name in cases
            ],
        },
        "rows": [dataclasses.asdict(row) for row in report.rows],
    }


def _stand_ins(report: Report) -> list[dict[str, str]]:
    found = {row.stands_for: f"{row.model}, {row.dtype}" for row in report.rows if row.stands_for}
    return [{"case": case, "stand_in": model} for case, model in found.items()]


def mib(value: float | None, name: str) -> str:
    """Return a figure for people: bytes in MiB, seconds as they are."""
    if value is None:
        return "-"
    return f"{value / MIB:,.1f}" if name.endswith("_bytes") else f"{value:.4f}"


def over(row: Row, first: Row | None, name: str) -> str:
    """Return a figure over the original's; "-" where one of the two was not compared."""
    value, base = row.value(name), None if first is None else first.value(name)
    if value is None or first is None or not base or not row.counts:
        return "-"
    # What was compared with the original itself has one to be measured against.
    with_it = row.compared is not None and row.compared.against == ORIGINAL_HERE
    if not (first.counts or with_it):
        return "-"
    ratio = f"{value / base:.2f}"
    in_turns = row.rounds and first.rounds
    return ratio if name != _LATENCY or in_turns or row == first else f"{ratio} (not in turns)"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [[text.replace("|", "\\|") for text in line] for line in lines]
    rows = [heads, ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _engine_table(engine: Engine, rows: Sequence[Row]) -> str:
    heads = ["model", "activation, MiB", "form", "patches", *(head for head, _ in engine.columns)]
    heads += [
        "memory x original",
        "time x original",
        "recompute",
        "output",
        PUBLISHED_BY,
        "date (UTC)",
    ]
    originals = {row.model: row for row in rows if row.form == "original"}
    lines = []
    for row in rows:
        first = originals.get(row.model)
        figures = [mib(row.value(name), name) for _, name in engine.columns]
        if row.error:
            figures[0] = f"**failed**: {_short(row.error)}"
        lines.append(
            [
                f"{row.model} (for {row.stands_for})" if row.stands_for else row.model,
                f"{row.activation_bytes / MIB:,.1f}",
                row.form,
                str(row.splits if row.error else row.patches),
                *figures,
                over(row, first, engine.memory),
                over(row, first, "latency_median_s"),
                f"{row.recompute:.2f}" if row.regions else "-",
                _compared(row),
                row.published or "-",
                row.date,
            ]
        )
    return _table(heads, lines)


def _compared(row: Row) -> str:
    if row.compared is not None:
        return f"{row.compared.windows} windows, largest error {row.compared.largest_error:.2g}"
    return "not compared" if row.kind == "measured" and not row.error else "-"


def _clock(row: Row) -> str:
    return str(row.device_state.get("sm_clock_mhz", "-"))


def _short(error: str) -> str:
    return error if len(error) <= 60 else error[:57] + "..."


def _under(row: Row) -> list[tuple[str, Row]]:
    """Return a row as it is at the default and under each other setting, by the setting's name."""
    return [
        (DEFAULT, row),
        *(
            (
                each.name,
                replace(
                    row,
                    figures=each.figures,
                    compared=each.compared,
                    not_compared=each.not_compared,
                    error=each.error,
                    rounds=each.rounds,
                    device_state=each.device_state,
                ),
            )
            for each in row.settings
        ),
    ]


def over_best(row: Row, firsts: Iterable[Row], name: str) -> str:
    """Return a figure over the least that the original has under any setting that counts."""
    counting = [first for first in firsts if over(row, first, name) != "-"]
    best = min(counting, key=lambda first: first.value(name) or 0.0, default=None)
    return over(row, best, name)


def _settings_table(report: Report, swept: Sequence[Row]) -> str:
    """Return a table: each cell's figures at the default and under every other setting.

    Each is beside those of the original under the same setting, and beside the original's best.
    """
    names = {engine.name: engine.memory for engine in report.engines}
    heads = ["cell", "setting", "memory, MiB", "latency, s"]
    for what in ("memory", "time"):
        heads += [f"{what} x original, same setting", f"{what} x original, its best setting"]
    heads += ["builder's own peak, MiB", "skipped tactics", "output"]
    originals = {
        (row.engine, row.model): dict(_under(row)) for row in swept if row.form == "original"
    }
    lines = []
    for row in swept:
        firsts, memory = originals.get((row.engine, row.model), {}), names[row.engine]
        skipped = {each.name: each.skipped for each in row.settings}
        for setting, each in _under(row):
            ratios = [
                text
                for name in (memory, _LATENCY)
                for text in (
                    over(each, firsts.get(setting), name),
                    over_best(each, firsts.values(), name),
                )
            ]
            failed = f"**failed**: {_short(each.error)}" if each.error else ""
            lines.append(
                [
                    row.cell,
                    setting,
                    mib(each.value(memory), memory),
                    mib(each.value(_LATENCY), _LATENCY),
                    *ratios,
                    mib(each.value("builder_peak_bytes"), "builder_peak_bytes"),
                    "-" if skipped.get(setting) is None else str(skipped[setting]),
                    failed or _compared(each),
                ]
            )
    return _table(heads, lines)


def _distinct(values: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value)) or "-"


def _options(rows: Sequence[Row]) -> str:
    shown = (", ".join(f"{name}={value}" for name, value in row.options.items()) for row in rows)
    return _distinct(shown)


def report_markdown(report: Report, plots: Sequence[str]) -> str:
    """Return the report for people."""
    parts = ["# Memory and time of patched convolutions, per engine"]
    if report.cpu:
        parts.append(
            "**No GPU was used.** Rows of TensorRT for RTX are plans of its builder: nothing ran. "
            "Rows of ONNX Runtime were measured on the CPU, on smaller models in float32 that "
            "stand for those of the matrix. No figure here is one of an A100, but for the column "
            f"of what was {PUBLISHED_BY}."
        )
    parts.append(
        f"Made {now()} by `{report.command}`; {len(report.rows)} of {report.wanted} cells."
    )
    stand_ins = _stand_ins(report)
    if stand_ins:
        lines = [[pair["case"], pair["stand_in"]] for pair in stand_ins]
        parts += ["## Stand-ins", _table(["of the matrix (float16)", "measured instead"], lines)]
    for engine in report.engines:
        rows = report.of(engine)
        if not rows:
            continue
        parts.append(f"## {engine.title}")
        runs = _distinct(str(row.runs) for row in rows if row.runs)
        rounds = _distinct(str(row.rounds) for row in rows if row.runs and not row.error)
        parts.append(
            f"Version: {_distinct(row.version for row in rows)}. Device: "
            f"{_distinct(row.device for row in rows)}. Timed runs: {runs}; rounds: {rounds}. "
            f"Options: {_options(rows)}."
        )
        for family in dict.fromkeys(row.family for row in rows):
            single = f"Conv {family[-1]}x{family[-1]}"
            titles = {"vae": "VAE decoder", "chain": f"{CHAIN} x Conv 3x3 + Relu"}
            parts.append(f"### {titles.get(family, single)}")
            parts.append(_engine_table(engine, [row for row in rows if row.family == family]))
    alone = [row for row in report.rows if row.not_compared]
    if alone:
        parts.append("## What was not compared")
        parts.append("No ratio is taken of these rows; over one only of what was compared with it.")
        lines = [[row.cell, row.not_compared] for row in alone]
        parts.append(_table(["cell", "why"], lines))
    swept = [row for row in report.rows if row.settings]
    if swept:
        parts += ["## Other settings", _settings_table(report, swept)]
    slowed = [
        [row.cell, setting, _clock(each), ", ".join(each.device_state["slowed_by"])]
        for row in report.rows
        for setting, each in _under(row)
        if each.device_state.get("slowed_by")
    ]
    if slowed:
        parts.append("## What was slowed down")
        parts.append(
            "A ratio of times over, or of, one of these is one of the machine's power and cooling, "
            "too: look at the clock of the other."
        )
        clocks = _distinct(
            _clock(each)
            for row in report.rows
            for _, each in _under(row)
            if each.device_state and not each.device_state.get("slowed_by")
        )
        parts.append(f"Clock of the others, MHz: {clocks}.")
        parts.append(_table(["cell", "setting", "clock, MHz", "by"], slowed))
    failed = [
        [row.cell, setting, each.error]
        for row in report.rows
        for setting, each in _under(row)
        if each.error
    ]
    if failed:
        parts += ["## What failed", _table(["cell", "setting", "why"], failed)]
    parts.append("## What the figures are")
    parts.append("\n".join(f"- {word}: {meaning}." for word, meaning in WORDS.items()))
    if plots:
        parts.append("## Plots")
        parts += [f"![{name}]({name}.png)\n\nData: [{name}.csv]({name}.csv)" for name in plots]
    return "\n\n".join(parts) + "\n"


def write_report(report: Report, out: Path) -> None:
    """Write report.json, the plots with their data, and report.md, each whole or not at all."""
    plots = []
    for name in (MEMORY_PLOT, LATENCY_PLOT):
        points = plot_data(report, name)
        if points:
            write_text(out / f"{name}.csv", csv_text(points))
            write_bytes(out / f"{name}.png", draw(points, name, report.engines))
            plots.append(name)
        else:
            # One of an earlier run would be taken for this one's.
            for suffix in ("csv", "png"):
                (out / f"{name}.{suffix}").unlink(missing_ok=True)
    write_json(report, out)
    write_text(out / "report.md", report_markdown(report, plots))


def write_json(report: Report, out: Path) -> None:
    """Write report.json, whole or not at all."""
    write_text(out / "report.json", json.dumps(report_json(report), indent=2) + "\n")
