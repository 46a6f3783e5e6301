"""What is gained on networks as they are exported: ``python -m tools.coverage [--only NAME]``.

Each network of `tools.coverage.networks` passes through both of PyTorch's exporters, at a fixed
size and with height and width free, or is a file of an installed package. It is rewritten in at
most eight patches with default options, predicted before and after at the same size, and verified.
A row says what was left alone, why, and whether the graph itself (outputs and one patch), the
method (a node that looks at all rows) or the rewriter is to blame. Ends with exit code 1 where a
result is not equal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tools.coverage.networks import EXPORTERS, FORMS, NETWORKS
from tools.coverage.rows import Row, row_of
from tools.coverage.table import as_json, markdown, totals_of, totals_text


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(NETWORKS)), help="Networks to take.")
@click.option("--exporter", multiple=True, type=click.Choice(EXPORTERS), help="Exporters to take.")
@click.option("--form", multiple=True, type=click.Choice(FORMS), help="Forms to take.")
@click.option("--predict", is_flag=True, help="Predict alone, verify nothing.")
@click.option("--measure", is_flag=True, help="Measure both models, in processes of their own.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the table (.md, .json).")
def main(
    only: tuple[str, ...],
    exporter: tuple[str, ...],
    form: tuple[str, ...],
    predict: bool,
    measure: bool,
    report: Path | None,
) -> None:
    """Tell what is gained on networks as the field exports them."""
    if predict and measure:
        raise click.UsageError("--predict measures nothing: leave out one of the two")
    rows: list[Row] = []
    for name in only or NETWORKS:
        for made in NETWORKS[name].exporters:
            for one in NETWORKS[name].forms:
                if (exporter and made not in exporter) or (form and one not in form):
                    continue
                row = row_of(name, made, one, predict=predict, measure=measure)
                rows.append(row)
                ratio = "?" if row.ratio is None else f"{row.ratio:.2f}"
                words = (
                    f"{name} {made} {one}: {ratio} {row.fault} {row.error} ({row.seconds:.0f} s)"
                )
                print(words, file=sys.stderr, flush=True)
                if report is not None:
                    _write(rows, report)
    print(markdown(rows) if report is None else totals_text(totals_of(rows)))
    sys.exit(any(row.verified == "NO" for row in rows))


def _write(rows: list[Row], report: Path) -> None:
    as_text = report.suffix != ".json"
    report.write_text(markdown(rows) if as_text else json.dumps(as_json(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
