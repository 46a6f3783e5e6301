"""Regions on whole networks, measured: ``python -m tools.benchmark_regions [--only NAME]``.

For each network of `NETWORKS`: exported with seeded weights (or taken from an installed package),
rewritten, and measured under ONNX Runtime on the CPU, every model in fresh processes: the original
at the default session options and at each choice of memory reuse and memory pattern, the rewritten
model at the options it recommends, both in one call so that times compare; then both as TensorRT
for RTX plans them for SM80. Prints the README's table as Markdown: what the session holds after
loading, the peak of the runs above that, and the whole process (`engines.ort.measure`); what a row
saves is told of the whole, against the original's lowest of all choices. Below it a line for each
network in 16 patches: loading and the whole process against the original's.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx

from engines.measurement import Measurement
from engines.ort.options import OrtOptions
from patchconv_deploy import rewrite
from patchconv_deploy.measure.run import (
    measure_onnxruntime,
    measure_with_tensorrt,
    tune_onnxruntime,
)
from tools.calibrate_memory import OCR, conv_chain
from tools.export_models import export

MIB = 1 << 20
TUNED: Mapping[str, Any] = {"memory_pattern": False, "memory_reuse": False}


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        title: What the table calls it.
        make: Architecture and size for `tools.export_models`; "chain" and "det" are their own.
        size: Height and width of the input.
        options: Options of the architecture.
        rewritings: Per row the keywords of `patchconv_deploy.rewrite`.
    """

    title: str
    make: str
    size: tuple[int, int]
    options: Mapping[str, Any]
    rewritings: tuple[Mapping[str, Any], ...]


NETWORKS: Mapping[str, Network] = {
    "chain": Network(
        "8 x Conv3x3+Relu, 64 ch, 1024x1024",
        "chain",
        (1024, 1024),
        {},
        ({"splits": 4}, {"splits": 8}, {"splits": 16}, {"memory_budget": 70 * MIB}),
    ),
    "rrdbnet": Network(
        "RRDBNet, 6 blocks, x4, 256 -> 1024",
        "rrdbnet",
        (256, 256),
        {"base": 64, "growth": 32, "blocks": 6},
        ({"splits": 8}, {"splits": 16}, {"memory_budget": 120 * MIB}),
    ),
    "unet": Network(
        "U-Net, 1024x1024",
        "unet",
        (1024, 1024),
        {},
        ({"splits": 8}, {"splits": 16}, {"memory_budget": 170 * MIB}),
    ),
    "unet-bn": Network(
        "U-Net, 1024x1024, BatchNormalization in the file",
        "unet",
        (1024, 1024),
        {"fold": False},
        ({"splits": 16},),
    ),
    "det": Network("PP-OCR v4 detector, 2048x2048", "det", (2048, 2048), {}, ({"splits": 8},)),
    "srvgg": Network("SRVGG, x4, 256 -> 1024", "srvgg", (256, 256), {}, ({"splits": 8},)),
    "mobilenet": Network("MobileNet, 1024x1024", "mobilenet", (1024, 1024), {}, ({"splits": 8},)),
}


def make(network: Network, path: Path) -> Mapping[str, tuple[int, ...]]:
    """Write a network's model; return the shapes to fix.

    Args:
        network: The network.
        path: The file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if network.make == "chain":
        onnx.save(conv_chain(network.size[0]), path)
    elif network.make == "det":
        found = importlib.util.find_spec("rapidocr_onnxruntime")
        if found is None or found.origin is None:
            raise click.ClickException("pip install --no-deps rapidocr-onnxruntime==1.4.4")
        source = Path(found.origin).parent / "models" / f"{OCR['ppocr_det']}.onnx"
        path.write_bytes(source.read_bytes())
        shapes["x"] = (1, 3, *network.size)
    else:
        export(network.make, path, size=network.size, **network.options)
    return shapes


def rows_of(name: str, runs: int, processes: int, rtx: bool, folder: Path) -> list[dict[str, Any]]:
    """Measure one network; return a row for the original and one for each rewriting."""
    network = NETWORKS[name]
    path = folder / f"{name}.onnx"
    shapes = make(network, path)
    paths, rows = [path], [{"network": network.title, "model": "original", "work": 1.0}]
    for number, keywords in enumerate(network.rewritings):
        out = folder / f"{name}.{number}.onnx"
        result = rewrite(path, out, shapes=shapes, **keywords)
        paths.append(out)
        outcome = result.outcome
        outputs = result.report.verification["outputs"]
        spelled = " ".join(
            f"--{k.replace('_', '-')} {f'{v // MIB}MiB' if k == 'memory_budget' else v}"
            for k, v in keywords.items()
        )
        rows.append(
            {
                "network": network.title,
                "model": spelled,
                "work": outcome.recompute,
                "regions": [(r.form, r.splits, len(r.nodes)) for r in outcome.rewritten],
                "predicted_bytes": outcome.after.bytes,
                "equal": all(output["differing"] == 0 for output in outputs),
                "max_rel": max((output["max_rel"] for output in outputs), default=0.0),
            }
        )
    common: dict[str, Any] = {"runs": runs, "shapes": shapes, "processes": processes}
    (tuned,) = tune_onnxruntime([path], OrtOptions(threads=2), **common)
    best = min((m for m in tuned if m.peak_bytes is not None), key=lambda m: m.peak_bytes or 0)
    wholes = [m.whole_bytes for m in tuned if m.whole_bytes is not None]
    usual = next(m for m in tuned if m.options["memory_pattern"] and m.options["memory_reuse"])
    rows[0]["default_bytes"] = usual.peak_bytes
    rows[0]["best_bytes"] = best.peak_bytes
    rows[0]["default_whole_bytes"] = usual.whole_bytes
    rows[0]["best_whole_bytes"] = min(wholes)
    rows[0]["best_options"] = {name: best.options[name] for name in TUNED}
    found: list[Measurement] = measure_onnxruntime(
        paths, OrtOptions(threads=2, **TUNED), recommended=True, **common
    )
    for row, measured in zip(rows, found, strict=True):
        if measured.error:
            row["error"] = measured.error
            continue
        row["load_bytes"] = measured.load_bytes
        row["whole_bytes"] = measured.whole_bytes
        row["peak_bytes"] = measured.peak_bytes
        row["arena_bytes"] = measured.runtime_peak_bytes
        row["time_ratio"] = None if measured.ratio is None else measured.ratio.median
        row["seconds"] = None if measured.latency_s is None else measured.latency_s.median
    if rtx:
        plans = measure_with_tensorrt(paths, "tensorrt-rtx", shapes=shapes, runs=1)
        for row, plan in zip(rows, plans, strict=True):
            row["planned_bytes"] = plan.planned_activation_bytes
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        "| network | | load, MiB | peak, MiB | whole process, MiB | whole, of the best | time | "
        "work | RTX plan, MiB | outputs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    original: dict[str, Any] = {}
    for row in rows:
        if row["model"] == "original":
            original = row
            peak, whole = (
                f"{_mib(row[f'default_{of}'])} default, {_mib(row[f'best_{of}'])} best"
                for of in ("bytes", "whole_bytes")
            )
            load, plan = _mib(row.get("load_bytes")), _mib(row.get("planned_bytes"))
            cells = [row["network"], "original", load, peak, whole, "1", "1", "1", plan]
            lines.append("| " + " | ".join([*cells, ""]) + " |")
            continue
        share = _whole_share(row, original)
        here, planned = row.get("planned_bytes"), original.get("planned_bytes")
        ratio = f" (1/{planned / here:.1f})" if here and planned else ""
        cells = [
            "",
            f"`{row['model']}`",
            _mib(row.get("load_bytes")),
            _mib(row.get("peak_bytes")),
            _mib(row.get("whole_bytes")),
            f"1/{1 / share:.1f}" if share else "failed",
            f"{row['time_ratio']:.2f}" if row.get("time_ratio") else "",
            f"{row['work']:.2f}" if row.get("work") else "",
            _mib(here) + ratio,
            "equal to the bit" if row["equal"] else f"max rel {row['max_rel']:.0e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def processes_of(rows: list[dict[str, Any]], patches: int = 16) -> list[str]:
    """Return, for each network in so many patches, what its process needs against the original's.

    Args:
        rows: Rows of `rows_of`.
        patches: The number of patches.
    """
    lines, original = [], dict[str, Any]()
    for row in rows:
        if row["model"] == "original":
            original = row
        elif row["model"] == f"--splits {patches}":
            share = _whole_share(row, original)
            if share is None or not original.get("load_bytes"):
                continue
            load = row["load_bytes"] / original["load_bytes"]
            lines.append(
                f"{row['network']}, {patches} patches: loads at {load:.2f} of the original, whole "
                f"process {share:.2f} of the original's at its best options"
            )
    return lines


def _whole_share(row: Mapping[str, Any], original: Mapping[str, Any]) -> float | None:
    """Return a whole process over the original's lowest, None where one failed."""
    if not row.get("whole_bytes"):
        return None
    share: float = row["whole_bytes"] / original["best_whole_bytes"]
    return share


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / MIB:,.0f}"


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(NETWORKS)), help="Networks to take.")
@click.option("--runs", default=3, show_default=True, help="Timed runs of each.")
@click.option("--processes", default=1, show_default=True, help="Processes of each peak.")
@click.option("--rtx/--no-rtx", default=True, help="Plans of TensorRT for RTX, too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
def main(
    only: tuple[str, ...], runs: int, processes: int, rtx: bool, json_file: Path | None
) -> None:
    """Measure whole networks with and without regions."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
        for name in only or NETWORKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += rows_of(name, runs, processes, rtx, Path(folder))
            if json_file is not None:
                json_file.write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown(rows))
    print("\n".join(processes_of(rows)))


if __name__ == "__main__":
    main()
