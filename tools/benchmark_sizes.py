"""One file for every size, measured: ``python -m tools.benchmark_sizes [--only NAME]``.

Each network of `CASES` is exported with free sizes (or taken from an installed package) and
rewritten once, for a budget that has to hold at the largest of a range of heights. Original and
rewritten are then measured under ONNX Runtime on the CPU at several heights, in fresh processes and
one call for each height, without memory pattern and reuse. Prints a Markdown table: the peaks of
the runs above what loading leaves, and times over the original's. Ends with exit code 1 where a
peak is more than a tenth above the budget, which is of activations: a process has more.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx

from patchconv_deploy import rewrite
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.measure.run import measure_onnxruntime
from tools.calibrate_memory import conv_chain, ocr_file
from tools.export_models import export

__all__ = ["CASES", "Case", "markdown", "rows_of"]

MIB = 1 << 20

# Of a budget, what a measured peak may be above it.
ROOM = 1.1


@dataclass(frozen=True)
class Case:
    """A network of free sizes.

    Attributes:
        title: What the table calls it.
        width: The width that it is measured at.
        heights: The heights, the largest last.
        least: The least height of the range.
        budget: Bytes of activations at the largest.
    """

    title: str
    width: int
    heights: tuple[int, ...]
    least: int
    budget: int


CASES: Mapping[str, Case] = {
    "chain": Case("8 x Conv3x3+Relu, 64 ch", 1024, (512, 1000, 2048, 4096), 64, 170 * MIB),
    "rrdbnet": Case("RRDBNet, 2 blocks, x4", 256, (128, 256, 512), 32, 230 * MIB),
    "unet": Case("U-Net", 512, (512, 1024, 2048), 64, 260 * MIB),
    "det": Case("PP-OCR v4 detector", 1024, (512, 1024, 2048), 64, 220 * MIB),
}


def make(case: str, path: Path) -> None:
    """Write a network with free sizes."""
    if case == "chain":
        model = conv_chain(64)
        for value in (*model.graph.input, *model.graph.output):
            for at, word in ((2, "height"), (3, "width")):
                value.type.tensor_type.shape.dim[at].dim_param = word
        del model.graph.value_info[:]
        onnx.save(model, path)
    elif case == "det":
        path.write_bytes(ocr_file("ppocr_det").read_bytes())
    elif case == "rrdbnet":
        export(case, path, size=(64, 64), dynamic=True, base=64, growth=32, blocks=2)
    else:
        export(case, path, size=(64, 64), dynamic=True)


def rows_of(case: str, runs: int, folder: Path) -> list[dict[str, Any]]:
    """Rewrite a network once; return a row for each height.

    Args:
        case: A key of `CASES`.
        runs: Timed runs of each model.
        folder: Where the models are put.
    """
    entry = CASES[case]
    source, out = folder / f"{case}.onnx", folder / f"{case}.patched.onnx"
    make(case, source)
    model = onnx.load(source, load_external_data=False)
    declared = model.graph.input[0]
    channels = declared.type.tensor_type.shape.dim[1].dim_value or 3
    most = entry.heights[-1]
    result = rewrite(
        source,
        out,
        shapes={declared.name: (1, channels, (entry.least, most), entry.width)},
        memory_budget=entry.budget,
        # Below it a Loop takes no sequences.
        upgrade_opset=13 if model.opset_import[0].version < 13 else None,
    )
    forms = sorted({region.form for region in result.outcome.rewritten})
    rows = []
    for height in entry.heights:
        before, after = measure_onnxruntime(
            [source, out],
            OrtOptions(threads=2, memory_pattern=False, memory_reuse=False),
            shapes={declared.name: (1, channels, height, entry.width)},
            runs=runs,
            processes=1,
            recommended=True,
        )
        rows.append(
            {
                "network": entry.title,
                "size": f"{height}x{entry.width}",
                "before_bytes": before.peak_bytes,
                "after_bytes": after.peak_bytes,
                "time": None if after.ratio is None else after.ratio.median,
                "budget_bytes": entry.budget,
                "forms": forms,
                "error": before.error or after.error,
            }
        )
    return rows


def above(row: Mapping[str, Any]) -> bool:
    """Tell whether a peak is above the budget, or was not measured."""
    return row["after_bytes"] is None or row["after_bytes"] > ROOM * row["budget_bytes"]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        "| network, one file | size | original, MiB | rewritten, MiB | budget, MiB | time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        before, after, budget = (
            "failed" if row[f"{of}_bytes"] is None else f"{row[f'{of}_bytes'] / MIB:,.0f}"
            for of in ("before", "after", "budget")
        )
        time = "" if row["time"] is None else f"{row['time']:.2f}"
        mark = " **above**" if above(row) else ""
        cells = [row["network"], row["size"], before, after + mark, budget, time]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Networks to take.")
@click.option("--runs", default=2, show_default=True, help="Timed runs of each.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
def main(only: tuple[str, ...], runs: int, json_file: Path | None) -> None:
    """Measure networks of free sizes, one rewritten file for all sizes."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
        for name in only or CASES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += rows_of(name, runs, Path(folder))
            if json_file is not None:
                json_file.write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown(rows))
    sys.exit(any(above(row) for row in rows))


if __name__ == "__main__":
    main()
