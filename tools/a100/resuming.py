"""What a report that was stopped has already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.a100.cases import Cell
from tools.a100.report import SCHEMA
from tools.a100.rows import Row, row_of

__all__ = ["NotThisReport", "rows_so_far"]


class NotThisReport(ValueError):  # noqa: N818 - named for what is wrong
    """The report that is there cannot be continued; the message says why."""


def rows_so_far(path: Path, cells: Sequence[Cell], settings: Mapping[str, Any]) -> dict[str, Row]:
    """Return the rows of a report.json that need not be made again, by cell.

    A decoder's rows are compared with its original's windows, which a run keeps to itself: an
    engine's rows of a decoder are taken over all together or not at all.

    Args:
        path: The file; one that is not there has no rows.
        cells: The cells that are wanted.
        settings: What a report must have in common with this one: its keys of the file.

    Raises:
        NotThisReport: It was made with other settings, or is no report.
    """
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        differing = [
            f"{name} {data.get(name)!r} (now {value!r})"
            for name, value in {"schema": SCHEMA, **settings}.items()
            if data.get(name) != value
        ]
        if differing:
            raise NotThisReport(f"{path}: made with {', '.join(differing)}; take another folder")
        rows = {row.cell: row for row in map(row_of, data["rows"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, NotThisReport):
            raise
        raise NotThisReport(f"{path}: no report of this program; take another folder") from error
    half = {
        (cell.engine, cell.case)
        for cell in cells
        if cell.case.family == "vae" and cell.name not in rows
    }
    return {
        cell.name: rows[cell.name]
        for cell in cells
        if cell.name in rows and (cell.engine, cell.case) not in half
    }
