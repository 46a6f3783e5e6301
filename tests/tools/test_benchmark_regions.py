"""The README's table: what its figures are of, from rows of known numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tools.benchmark_regions import MIB, markdown, processes_of

pytest.importorskip("torch", reason="torch is not installed")

ORIGINAL: dict[str, Any] = {
    "network": "net",
    "model": "original",
    "load_bytes": 50 * MIB,
    "peak_bytes": 1000 * MIB,
    "default_bytes": 1500 * MIB,
    "best_bytes": 800 * MIB,
    "default_whole_bytes": 1600 * MIB,
    "best_whole_bytes": 900 * MIB,
}


def _row(model: str, **figures: Any) -> dict[str, Any]:
    return {"network": "net", "model": model, "work": 1.2, "equal": True, **figures}


def test_what_a_row_saves_is_of_the_whole_process() -> None:
    """Against the original's lowest, loading included; a row that failed has no figures."""
    cut = _row("--splits 16", load_bytes=60 * MIB, peak_bytes=100 * MIB, whole_bytes=180 * MIB) | {
        "time_ratio": 1.1
    }
    lines = markdown([ORIGINAL, cut, _row("--splits 8", error="out of memory")]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(each) for each in cells}) == 1
    head = cells[0]
    original, first, failed = (dict(zip(head, each, strict=True)) for each in cells[2:])
    assert original["whole process, MiB"] == "1,600 default, 900 best"
    assert (original["load, MiB"], first["load, MiB"]) == ("50", "60")
    assert (first["peak, MiB"], first["whole process, MiB"]) == ("100", "180")
    assert first["whole, of the best"] == "1/5.0"
    assert failed["whole, of the best"] == "failed"


def test_the_two_figures_of_the_process() -> None:
    """One line for each network in 16 patches: loading against loading, whole against the best."""
    cut = _row("--splits 16", load_bytes=55 * MIB, whole_bytes=225 * MIB)
    rows = [ORIGINAL, _row("--splits 8", load_bytes=1, whole_bytes=1), cut]
    assert processes_of(rows) == [
        "net, 16 patches: loads at 1.10 of the original, whole process 0.25 of the original's at "
        "its best options"
    ]
    assert processes_of([ORIGINAL, _row("--splits 16", error="out of memory")]) == []
