"""Rows of figures as a Markdown table: what each saves, and whether its floor is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.regions.networks import MIB, Floor

__all__ = ["markdown", "missed", "processes_of"]

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """Return the table.

    Args:
        rows: Those of `tools.benchmark_regions.rows_of`, networks one after the other.
    """
    lines = [
        "| network | | loading, MiB | running, MiB | running, of the best | whole process, MiB | "
        "whole, of the best | time | work | RTX plan, MiB | outputs | floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    original: Row = {}
    for row in rows:
        if row["model"] == "original":
            original = row
            cells = _original(row)
        else:
            cells = _rewritten(row, original)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _original(row: Row) -> list[str]:
    if row.get("predicted"):
        peak, whole = f"{_mib(row.get('predicted_peak_bytes'))} predicted", ""
    else:
        peak, whole = (
            f"{_mib(row[f'default_{of}'])} default, {_mib(row[f'best_{of}'])} best"
            for of in ("bytes", "whole_bytes")
        )
    load, plan = _mib(row.get("load_bytes")), _mib(row.get("planned_bytes"))
    return [row["network"], "original", load, peak, "1", whole, "1", "1", "1", plan, "", ""]


def _rewritten(row: Row, original: Row) -> list[str]:
    here, planned = row.get("planned_bytes"), original.get("planned_bytes")
    ratio = f" (1/{planned / here:.1f})" if here and planned else ""
    share, whole = _peak_share(row, original), _whole_share(row, original)
    time = _time(row)
    if row.get("predicted"):
        peak, seconds = f"{_mib(row['predicted_peak_bytes'])} predicted", f"{time:.2f} predicted"
        outputs = "not run"
    else:
        peak = _mib(row.get("peak_bytes"))
        seconds = f"{time:.2f}" if time else ""
        outputs = _outputs(row)
    failed = "failed" if row.get("error") else ""
    return [
        "",
        f"`{row['model']}`",
        _mib(row.get("load_bytes")),
        peak,
        f"1/{1 / share:.2f}" if share else failed,
        _mib(row.get("whole_bytes")),
        f"1/{1 / whole:.1f}" if whole else failed,
        seconds,
        f"{row['work']:.2f}" if row.get("work") else "",
        _mib(here) + ratio,
        outputs,
        _judged(row, original),
    ]


def _outputs(row: Row) -> str:
    if "equal" not in row:
        return "not made"
    return "equal to the bit" if row["equal"] else f"max rel {row['max_rel']:.0e}"


def missed(row: Row, original: Row) -> list[str]:
    """Return what of its floor a row misses, in words; none if it is met or nothing is asked.

    Args:
        row: A rewriting's.
        original: That of the network it is of.
    """
    floor = Floor(**row.get("floor", {}))
    reasons = []
    if row.get("error"):
        reasons.append(f"failed: {row['error']}")
    for name, bound, got in (
        ("peak", floor.peak, _peak_share(row, original)),
        ("plan", floor.plan, _plan_share(row, original)),
    ):
        if bound is not None and got is not None and got > bound:
            reasons.append(f"{name} 1/{1 / got:.2f}")
    time = _time(row)
    if floor.time is not None and time is not None and time > floor.time:
        reasons.append(f"time {time:.2f}x")
    return reasons


def _judged(row: Row, original: Row) -> str:
    floor = Floor(**row.get("floor", {}))
    if floor == Floor():
        return ""
    reasons = missed(row, original)
    known = {
        "peak": _peak_share(row, original),
        "time": _time(row),
        "plan": _plan_share(row, original),
    }
    unknown = [name for name, got in known.items() if getattr(floor, name) and got is None]
    verdict = f"**missed** ({', '.join(reasons)})" if reasons else "met"
    if unknown and not reasons:
        verdict = f"not known ({', '.join(unknown)})"
    return f"{floor.spelled()}: {verdict}"


def processes_of(rows: Sequence[Row], patches: int = 16) -> list[str]:
    """Return, for each network in so many patches, what its process needs against the original's.

    Args:
        rows: Those of `tools.benchmark_regions.rows_of`.
        patches: The number of patches.
    """
    lines: list[str] = []
    original: Row = {}
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


def _over(figure: Any, whole: Any) -> float | None:
    return figure / whole if figure and whole else None


def _whole_share(row: Row, original: Row) -> float | None:
    """Return a whole process over the original's lowest, None where one failed."""
    return _over(row.get("whole_bytes"), original.get("best_whole_bytes"))


def _peak_share(row: Row, original: Row) -> float | None:
    """Return a peak over the original's lowest, measured or predicted."""
    if row.get("predicted"):
        return _over(row["predicted_peak_bytes"], original.get("predicted_peak_bytes"))
    return _over(row.get("peak_bytes"), original.get("best_bytes"))


def _plan_share(row: Row, original: Row) -> float | None:
    return _over(row.get("planned_bytes"), original.get("planned_bytes"))


def _time(row: Row) -> float | None:
    found: float | None = row.get("predicted_time" if row.get("predicted") else "time_ratio")
    return found


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / MIB:,.0f}"
