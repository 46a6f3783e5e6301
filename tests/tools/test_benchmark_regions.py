"""The table of docs/results.md: what its figures are of, from rows of known numbers."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from click.testing import CliRunner

from tools import benchmark_regions
from tools.regions.networks import MIB, NETWORKS, SETS, Floor, Network, Rewriting
from tools.regions.table import markdown, missed, processes_of

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
    assert (original["loading, MiB"], first["loading, MiB"]) == ("50", "60")
    assert (first["running, MiB"], first["whole process, MiB"]) == ("100", "180")
    assert first["whole, of the best"] == "1/5.0"
    assert first["running, of the best"] == "1/8.00"
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


def test_a_floor_is_met_or_missed_and_why() -> None:
    """Peak and time of the run, shares of a plan; a row of no floor says nothing."""
    asked = asdict(Floor(peak=1 / 4, time=1.10))
    good = _row("a", peak_bytes=200 * MIB, time_ratio=1.10, floor=asked)
    slow = _row("b", peak_bytes=200 * MIB, time_ratio=1.11, floor=asked)
    large = _row("c", peak_bytes=201 * MIB, time_ratio=1.0, floor=asked)
    plan = _row("d", planned_bytes=60 * MIB, floor=asdict(Floor(plan=1 / 2)), equal=False) | {
        "max_rel": 1e-7
    }
    broken = _row("e", error="out of memory", floor=asked)
    rows = [ORIGINAL | {"planned_bytes": 100 * MIB}, good, slow, large, plan, broken]
    assert [missed(row, rows[0]) for row in rows[1:]] == [
        [], ["time 1.11x"], ["peak 1/3.98"], ["plan 1/1.67"], ["failed: out of memory"],
    ]  # fmt: skip
    cells = [line.strip("| ").split(" | ")[-1].strip() for line in markdown(rows).splitlines()[3:]]
    assert cells == [
        "1/4 at 1.10x: met",
        "1/4 at 1.10x: **missed** (time 1.11x)",
        "1/4 at 1.10x: **missed** (peak 1/3.98)",
        "plan 1/2: **missed** (plan 1/1.67)",
        "1/4 at 1.10x: **missed** (failed: out of memory)",
    ]
    without = _row("--splits 8", peak_bytes=1, whole_bytes=1, time_ratio=1.0)
    assert markdown([ORIGINAL, without]).splitlines()[3].endswith("|  |")


def test_what_is_not_known_is_not_met() -> None:
    """A plan nobody made is neither met nor missed."""
    row = _row("a", floor=asdict(Floor(plan=1 / 2)))
    assert "not known (plan)" in markdown([ORIGINAL, row])


def test_every_row_that_is_asked_for_is_there() -> None:
    """The sets name networks that exist; what looks at the whole image has a floor each."""
    assert {name for names in SETS.values() for name in names} == set(NETWORKS)
    for name in SETS["whole-image"]:
        floors = [rewriting.floor for rewriting in NETWORKS[name].rewritings]
        assert any(floor != Floor() for floor in floors), name
    assert Floor(peak=1 / 3.5, time=1.55).spelled() == "1/3.5 at 1.55x"


@pytest.mark.slow
def test_a_small_network_from_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten, verified, measured beside the original; another one only predicted."""
    rewritings = (Rewriting({"splits": 4}, Floor(peak=1e-6, time=1.0)),)
    small = Network("small", "attention", (256,), rewritings, {"channels": 16})
    large = replace(small, title="large", predicted=True)
    monkeypatch.setattr(benchmark_regions, "NETWORKS", {"chain": small, "unet": large})
    command = ["--only", "chain", "--only", "unet", "--runs", "1", "--no-rtx"]
    done = CliRunner().invoke(benchmark_regions.main, command)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("|")]
    assert len(lines) == 6
    assert "**missed** (peak" in lines[3]
    assert "default" in lines[2]
    assert "predicted" in lines[4]
    assert "predicted" in lines[5]
