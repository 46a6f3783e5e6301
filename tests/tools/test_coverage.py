"""`tools.coverage`: its networks run and are exported, its rows blame who is to blame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner

from tools.coverage import networks, plans, rows
from tools.coverage.__main__ import main
from tools.coverage.networks import NETWORKS, Network, write
from tools.coverage.plans import plan_of
from tools.coverage.rows import Row, row_of
from tools.coverage.table import markdown, totals_of
from tools.models.restoration import DnCNN
from tools.models.segmentation import SkipUNet


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.make])
def test_a_network_runs_at_other_sizes(name: str) -> None:
    """Each takes sizes that it is not told at, and its output is finite."""
    network = NETWORKS[name]
    assert network.make is not None
    module = network.make().eval()
    by = network.multiple
    size = (8, 16, 24) if len(network.size) == 3 else (by * -(-35 // by), by * -(-44 // by))
    if network.fixed_height:
        size = (network.size[0], size[1])
    with torch.no_grad():
        made = module(torch.randn(1, network.channels, *size))
    for each in made if isinstance(made, tuple) else (made,):
        assert each.isfinite().all()


@pytest.mark.parametrize("fit", ["interpolate", "corners", "pad", "crop"])
def test_a_unet_returns_the_size_it_was_given(fit: str) -> None:
    """Sizes that halve with a remainder come back as they were."""
    with torch.no_grad():
        assert SkipUNet(base=4, fit=fit).eval()(torch.zeros(1, 3, 37, 41)).shape[2:] == (37, 41)


def _small(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    small = Network(lambda: DnCNN(base=8, layers=2), channels=1, size=(96, 80), **fields)  # type: ignore[arg-type]
    for module in (networks, rows):
        monkeypatch.setattr(module, "NETWORKS", {"small": small})


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_free_network_has_free_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exporter: str
) -> None:
    """Both exporters leave height and width open, and nothing else."""
    _small(monkeypatch)
    shapes = write("small", exporter, "free", tmp_path / "x.onnx")
    dims = onnx.load(tmp_path / "x.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.HasField("dim_value") for dim in dims] == [True, True, False, False]
    assert shapes == {"input": (1, 1, (32, 96), (32, 80))}


def test_a_row_is_verified_and_reaches_its_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of Convs comes to less than half, in both forms, and computes the same."""
    _small(monkeypatch)
    for form in ("static", "free"):
        row = row_of("small", "torchscript", form)
        assert not row.error
        assert row.verified == "yes"
        assert row.reached
        assert row.fault == ""


def test_what_cannot_be_exported_is_an_error_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of which the exporter gives up does not end the table."""

    def fails() -> torch.nn.Module:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(networks, "NETWORKS", {"bad": Network(fails)})
    row = row_of("bad", "torchscript", "static")
    assert row.error == "no export: no such layer"
    assert not row.reached


def _row(form: str, after: int, floor: int = 10, exporter: str = "dynamo") -> Row:
    return Row("n", exporter, form, before=100, after=after, floor=floor, verified="yes")


def test_totals_count_pairs_and_rows() -> None:
    """Free over static by network and exporter; half the peak, or near the floor."""
    found = totals_of(
        [
            _row("static", 40),
            _row("free", 48),
            _row("static", 60, exporter="file"),
            _row("free", 90, floor=85, exporter="file"),
        ]
    )
    assert (found.pairs, found.within, found.wanted) == (2, 1, 0)
    assert (found.rows, found.reached) == (4, 3)


def test_an_unknown_peak_is_a_pair_that_is_missed() -> None:
    """A row without a peak is not left out of what is counted."""
    found = totals_of([_row("static", 40), Row("n", "dynamo", "free", error="x")])
    assert (found.pairs, found.within, found.reached, found.failed) == (1, 0, 1, 1)


@pytest.mark.parametrize(
    ("floor", "barriers", "fault"),
    [
        (60, [], "floor"),
        (10, [(90, "MatMul", "it sums")], "method"),
        (10, [(90, "MatMul", "it sums"), (80, "Resize", "its mode")], "ours"),
        (10, [(90, "MatMul", "it sums"), (80, "Reshape", "it takes rows apart")], "method"),
        (10, [(90, "Reshape", "it takes rows apart")], "ours"),
        (10, [], "ours"),
    ],
)
def test_who_is_to_blame(floor: int, barriers: list[tuple[int, str, str]], fault: str) -> None:
    """The graph's floor first, then nodes that look at all rows, else the rewriter."""
    assert rows._fault(_row("static", 90, floor), barriers) == fault


def test_the_table_has_a_line_a_row_and_what_was_left() -> None:
    """A bar in a reason does not make another column."""
    row = Row("n", "dynamo", "free", left=((1 << 20, "barrier", "a|b"),), fault="ours")
    line = markdown([row]).splitlines()[2]
    assert line.count("|") == markdown([row]).splitlines()[0].count("|")
    assert "a/b (barrier 1)" in line


def test_the_command_writes_its_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``--report`` has every row, as JSON, and the totals."""
    _small(monkeypatch)
    monkeypatch.setattr("tools.coverage.__main__.NETWORKS", networks.NETWORKS)
    report = tmp_path / "r.json"
    args = ["--predict", "--exporter", "torchscript", "--form", "static", "--report", str(report)]
    assert CliRunner().invoke(main, args).exit_code == 0
    data = json.loads(report.read_text())
    assert [each["network"] for each in data["rows"]] == ["small"]
    assert data["totals"]["rows"] == 1


def test_a_plan_of_one_height_holds_what_was_cut(rtx: Any) -> None:
    """Of many heights TensorRT gives each patch the memory of the whole."""
    found = plan_of("espcn")
    assert found.forms
    assert not found.words
    assert not found.failed
    assert found.before is not None
    assert found.after is not None
    assert found.ranged is not None
    assert found.after < 0.5 * found.before < found.ranged


def test_a_builder_that_takes_too_long_is_ended() -> None:
    """Its row says so, and the next network comes."""
    found = plans._within("espcn", 1e-4)
    assert "not planned within" in found.words
    assert not found.failed
