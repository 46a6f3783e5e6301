"""The curve of predicted peak against work, as ``inspect`` and ``patchconv-rewrite`` print it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

from patchconv_deploy.cli.types import given
from patchconv_deploy.options import names_of
from patchconv_deploy.report.report import candidate_json
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.planning.offers import to_ask, typed_size
from patchconv_deploy.tables import Row, print_table
from patchconv_deploy.words import flag_of

__all__ = ["check_pareto", "pareto_json", "print_pareto"]


# What the curve depends on, and what says how to show it.
_LOOKED_AT = names_of("pareto") | {"pareto_only", "report", "verbose", "quiet"}


def check_pareto(context: click.Context) -> None:
    """Refuse what was given beside ``--pareto`` and means nothing to it.

    Raises:
        click.UsageError: It names the option.
    """
    for parameter in given(context):
        if parameter.name not in _LOOKED_AT:
            raise click.UsageError(
                f"{flag_of(parameter)} means nothing to --pareto, which shows what regions cost "
                "at every budget and writes no model; leave one of the two out"
            )


def pareto_json(points: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return the points as JSON-ready data; peaks in bytes, work and time over the original's."""
    return [candidate_json(point) for point in points]


def print_pareto(points: Sequence[Candidate], console: Console) -> None:
    """Print one row a point, the model as it is first, with the least budget that keeps it."""
    rows = [
        Row(
            point.form + ("" if point.regions == 0 else f" x{point.splits}"),
            (
                str(point.regions),
                mebibytes(None if point.unknown else point.peak),
                mebibytes(point.loading),
                mebibytes(None if point.unknown else point.process),
                f"{point.recompute:.3f}x",
                f"{point.time:.3f}x",
                "-" if point.unknown else typed_size(to_ask(point.peak)),
            ),
        )
        for point in points
    ]
    columns = ("regions", "running,\nMiB", "loading", "process", "work", "time", "--memory-budget")
    print_table(console, "plan", columns, rows)
