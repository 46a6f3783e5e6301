"""The rows as a table, and the two totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tools.coverage.rows import AIM, Row

__all__ = ["Totals", "as_json", "markdown", "totals_of"]

MIB = 1 << 20

# What free may need over static at the same size, and what is wanted.
WITHIN, WANTED = 1.25, 1.1


@dataclass(frozen=True)
class Totals:
    """Sums over the rows.

    Attributes:
        pairs: Networks, by exporter, of which both forms are known.
        within: Of these, free is within `WITHIN` of static.
        wanted: Of these, within `WANTED`.
        rows: Rows.
        reached: Rows that reach half their peak, or their own floor.
        verified: Rows of which the result was verified.
        failed: Rows of which it was not equal, or something went wrong.
    """

    pairs: int
    within: int
    wanted: int
    rows: int
    reached: int
    verified: int
    failed: int


def _over(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the peak of the free form over that of the static one."""
    static = {(r.network, r.exporter): r.after for r in rows if r.form == "static"}
    return {
        key: row.after / fixed
        for row in rows
        if row.form == "free"
        and row.after is not None
        and (fixed := static.get(key := (row.network, row.exporter)))
    }


def totals_of(rows: Sequence[Row]) -> Totals:
    """Return the totals; a pair of which one peak is unknown counts as missed."""
    over = _over(rows)
    free = {(row.network, row.exporter) for row in rows if row.form == "free"}
    both = {(row.network, row.exporter) for row in rows if row.form == "static"} & free
    return Totals(
        pairs=len(both),
        within=sum(share <= WITHIN for share in over.values()),
        wanted=sum(share <= WANTED for share in over.values()),
        rows=len(rows),
        reached=sum(row.reached for row in rows),
        verified=sum(row.verified == "yes" for row in rows),
        failed=sum(bool(row.error) or row.verified == "NO" for row in rows),
    )


def _mib(size: int | None) -> str:
    return "?" if size is None else f"{size / MIB:,.0f}"


def _cells(row: Row, over: dict[tuple[str, str], float]) -> list[str]:
    share = over.get((row.network, row.exporter)) if row.form == "free" else None
    left = "; ".join(
        f"{words[:90]} ({code}{f' {_mib(size)}' if size else ''})"
        for size, code, words in row.left[:3]
    )
    return [
        row.network, row.exporter, row.form, _mib(row.before), _mib(row.after),
        "?" if row.ratio is None else f"{row.ratio:.2f}", _mib(row.floor),
        "" if share is None else f"{share:.2f}",
        "" if row.recompute is None else f"{row.recompute:.2f}",
        ",".join(row.forms), row.verified, row.fault,
        (row.error or left).replace("|", "/").replace("\n", " "),
    ]  # fmt: skip


_HEAD = (
    "network", "exporter", "form", "before, MiB", "after", "ratio", "floor", "free over static",
    "work", "cut as", "verified", "fault", "left alone",
)  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """Return the table and the totals."""
    over, found = _over(rows), totals_of(rows)
    measured = any(row.measured for row in rows)
    head = [*_HEAD, "measured before", "measured after"] if measured else [*_HEAD]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = _cells(row, over)
        if measured:
            cells += [_mib(size) for size in row.measured or (None, None)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", totals_text(found)]
    return "\n".join(lines) + "\n"


def totals_text(found: Totals) -> str:
    """Return the totals for people."""
    pairs, rows = max(1, found.pairs), max(1, found.rows)
    return (
        f"Free within {WITHIN}x of static: {found.within} of {found.pairs} "
        f"({found.within / pairs:.0%}); within {WANTED}x: {found.wanted}.\n"
        f"{AIM:.0%} of the peak or the graph's own floor: {found.reached} of {found.rows} "
        f"({found.reached / rows:.0%}). Verified: {found.verified}; failed: {found.failed}."
    )


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything as JSON-ready data."""
    return {"rows": [asdict(row) for row in rows], "totals": asdict(totals_of(rows))}
