"""The report of the published matrix: run here on small stand-ins; a marked test for a GPU."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from patchconv_deploy.engines.errors import DeviceMissing, EngineMissing, RunError
from patchconv_deploy.engines.measurement import Job, Measurement, Spread
from patchconv_deploy.engines.ort.measure import Turns, time_in_turns
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.engines.ort.run import open_session
from patchconv_deploy.engines.process import child
from patchconv_deploy.engines.trt import measure as measure_tensorrt
from patchconv_deploy.engines.trt.build import load_module
from patchconv_deploy.engines.trt.measure import TensorRTResult
from tools import a100_report
from tools.a100 import asking, models, pytorch
from tools.a100.asking import CPU_ENGINES, GPU_ENGINES, Figure, Setting
from tools.a100.cases import (
    CASES,
    FITTING,
    PUBLISHED,
    PUBLISHED_BY,
    REGIONAL,
    Case,
    Cell,
    matrix,
    stand_in,
)
from tools.a100.compared import ORIGINAL_HERE, Compared, compare, read_input, reference, windows_of
from tools.a100.models import write_inputs, write_model, write_variant
from tools.a100.report import over, report_markdown
from tools.a100.rows import Report, Row, Run, row_of, run_cell, take_turns
from tools.a100_report import main, missing

CONV = CASES[0]

ENGINES = {engine.name: engine for engine in CPU_ENGINES}


def _report(out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--out", str(out), *arguments])


def _json(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def _check_row(row: dict[str, Any]) -> None:
    """Everything a figure must carry is there."""
    for name in ("cell", "case", "model", "form", "engine", "version", "device", "date", "dtype"):
        assert isinstance(row[name], str)
        assert row[name]
    assert row["kind"] in ("measured", "planned")
    assert row["options"]
    assert row["activation_bytes"] > 0
    assert row["error"] == ""
    for name, figure in row["figures"].items():
        assert set(figure) == {"value", "unit", "kind"}
        assert figure["unit"] == ("bytes" if name.endswith("_bytes") else "s")
        assert figure["kind"] in ("measured", "planned")
        assert figure["value"] >= 0


def test_the_matrix_is_the_published_one() -> None:
    """Three kernels at two sizes, the decoder, a chain; every form, patches and engine.

    Regions of layers are cut where there are several.
    """
    assert [case.name for case in CASES if case.family.startswith("conv")] == list(PUBLISHED)
    assert [case.name for case in CASES[6:]] == [
        "vae-1024", "vae-2048", "vae-4096", "chain-2048x2048x64", "chain-4096x4096x64",
    ]  # fmt: skip
    cells = matrix(("a", "b"), (2, 4, 8), ())
    assert len(cells) == len({cell.name for cell in cells}) == (15 * 7 + 5 * 16) * 2
    regional = {cell.case.family for cell in cells if cell.form in REGIONAL}
    assert regional == {"vae", "chain"}
    assert matrix(("a", "b"), (2, 4), ("b/vae-1024/batch-*",)) == [
        Cell(CASES[6], "batch", count, "b") for count in (2, 4)
    ]
    # 2048 x 2048 x 512 in two bytes each; the decoder's widest level has 256 channels.
    assert CASES[0].activation_bytes == 2**32
    assert CASES[6].elements == 256 * 1024**2


def test_with_and_without_a_gpu_the_cells_are_called_the_same() -> None:
    """The same places of the matrix, whatever engine fills them."""
    names = [
        [cell.name.partition("/")[2] for cell in matrix([e.name for e in engines], (2,), ())]
        for engines in (GPU_ENGINES, CPU_ENGINES)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stand_ins_are_smaller_models_of_the_same_family(case: Case) -> None:
    """They fit this machine, and differ from each other as the cases do."""
    small = stand_in(case)
    assert (small.family, small.dtype) == (case.family, "float32")
    assert small.activation_bytes <= 64 << 20
    assert len({stand_in(other).name for other in CASES}) == len(CASES)


def test_models_and_inputs_are_seeded(tmp_path: Path) -> None:
    """The same bytes each time; the input fits the model."""
    small = stand_in(CONV)
    paths = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        paths.append((write_model(small, folder), write_inputs(small, folder)))
    assert paths[0][0].read_bytes() == paths[1][0].read_bytes()
    with np.load(paths[0][1]) as first, np.load(paths[1][1]) as second:
        x = first["input"]
        np.testing.assert_array_equal(x, second["input"])
    assert (x.shape, x.dtype) == (small.input_shape, np.float32)
    assert 0.99 < x.std() < 1.01
    model = onnx.load(paths[0][0])
    onnx.checker.check_model(model, full_check=True)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == list(x.shape)


def test_a_cell_measured_on_the_cpu(tmp_path: Path) -> None:
    """The files are there, and say what was measured, on what, and that it is a stand-in."""
    result = _report(
        tmp_path,
        "--cpu",
        "--runs",
        "1",
        "--rounds",
        "1",
        "--splits",
        "2",
        "--only",
        "onnxruntime/conv3-2048x2048x512/*2",
    )
    assert result.exit_code == 0, result.output
    names = ["memory_against_latency", "memory_over_activation"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{name}.{suffix}" for name in names for suffix in ("csv", "png")]
        + ["report.json", "report.md"]
    )
    found = _json(tmp_path)
    assert (found["schema"], found["mode"], found["cells"]) == (2, "cpu", 2)
    assert [row["form"] for row in found["rows"]] == ["batch", "sequential"]
    for row in found["rows"]:
        _check_row(row)
        assert (row["model"], row["stands_for"]) == ("conv3-256x256x64", "conv3-2048x2048x512")
        assert (row["kind"], row["regions"], row["patches"]) == ("measured", 1, 2)
        assert {figure["kind"] for figure in row["figures"].values()} == {"measured"}
        assert row["figures"]["peak_bytes"]["value"] >= row["figures"]["output_bytes"]["value"]
        assert row["published"] == ""
    text = (tmp_path / "report.md").read_text()
    assert "**No GPU was used.**" in text
    assert "conv3-256x256x64, float32" in text
    assert str(tmp_path) not in text + json.dumps(found)
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        with (tmp_path / f"{name}.csv").open(newline="") as stream:
            points = list(csv.DictReader(stream))
        assert [float(point["memory_bytes"]) for point in points] == [
            row["figures"]["peak_bytes"]["value"] for row in found["rows"]
        ]


def test_whole_regions_are_in_the_matrix(tmp_path: Path) -> None:
    """Of the chain: all eight layers as one region, and less memory for it, measured."""
    only = [f"onnxruntime/chain-2048*/{how}" for how in ("original", "fused-x8", "loop-x8")]
    # Of times in turns another test speaks.
    common = ("--cpu", "--runs", "1", "--rounds", "0", "--splits", "8")
    result = _report(tmp_path, *common, *(word for one in only for word in ("--only", one)))
    assert result.exit_code == 0, result.output
    original, *cut = _json(tmp_path)["rows"]
    assert [row["form"] for row in cut] == ["fused", "loop"]
    for row in cut:
        _check_row(row)
        assert (row["regions"], row["published"]) == (1, "")
        # At most so many: at this size a loop of fewer rounds holds less.
        assert row["patches"] == 8 if row["form"] == "fused" else 2 <= row["patches"] <= 8
        assert 1 < row["recompute"] < 2
        name = "runtime_peak_bytes"
        assert row["figures"][name]["value"] < original["figures"][name]["value"]
    assert "### 8 x Conv 3x3 + Relu" in (tmp_path / "report.md").read_text()


def test_regions_are_chosen_for_the_engine_in_view(tmp_path: Path) -> None:
    """In the model's metadata: session options where ONNX Runtime is to run it, else none."""
    found = {}
    for predicted in ("onnxruntime", "tensorrt"):
        made = write_variant(stand_in(CASES[9]), "fused", 4, tmp_path, predicted)
        found[predicted] = {entry.key for entry in onnx.load(made.path).metadata_props}
    assert found["onnxruntime"] - found["tensorrt"] == {"patchconv.session_options"}


def test_a_plan_is_called_one(tmp_path: Path) -> None:
    """TensorRT for RTX plans the full size; what MIT published stands beside, as MIT's."""
    try:
        load_module("tensorrt-rtx")
    except EngineMissing as error:
        pytest.skip(str(error))
    only = "tensorrt-rtx/conv3-2048x2048x512/original"
    result = _report(tmp_path, "--cpu", "--only", only)
    assert result.exit_code == 0, result.output
    (row,) = _json(tmp_path)["rows"]
    _check_row(row)
    assert (row["model"], row["dtype"], row["kind"]) == (CONV.name, "float16", "planned")
    assert row["stands_for"] == ""
    kinds = {name: figure["kind"] for name, figure in row["figures"].items()}
    assert kinds.pop("build_s") == "measured"
    assert set(kinds.values()) == {"planned"}
    assert "SM80" in row["device"]
    assert row["published"] == "44.0 GB"
    text = (tmp_path / "report.md").read_text()
    assert "nothing ran" in text
    assert f"| {PUBLISHED_BY} |" in text
    # Nothing ran, so there is no latency to plot.
    assert not (tmp_path / "memory_against_latency.png").exists()


def test_a_refusal_of_the_rewriter_is_a_row(tmp_path: Path) -> None:
    """More patches than can be: the row has the rewriter's reason, and nothing else fails."""
    result = _report(
        tmp_path, "--cpu", "--runs", "1", "--splits", "2,9999",
        "--only", "onnxruntime/conv3-2048x2048x512/batch-*",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    good, bad = _json(tmp_path)["rows"]
    _check_row(good)
    assert "9999" in bad["error"]
    assert bad["figures"] == {}
    text = (tmp_path / "report.md").read_text()
    assert "**failed**: " in text
    assert bad["error"] in text


def test_a_convolution_that_cannot_be_cut_is_an_error(tmp_path: Path) -> None:
    """A model that is the original under another name would be measured as a patched one."""
    with pytest.raises(ValueError, match="nothing was cut: "):
        write_variant(Case("conv7", 1, 8, "float32"), "batch", 2, tmp_path)


@pytest.mark.parametrize("error", [RunError("out of memory\nat {}/m.onnx"), MemoryError()])
def test_any_failure_is_a_row(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one line, without the place where the models lay; alone, it is exit code 1."""

    def fail(jobs: Any, options: Any, runs: int, processes: int) -> Any:
        folder = jobs[0].model.parent
        raise type(error)(*(str(argument).format(folder) for argument in error.args))

    monkeypatch.setattr(asking, "measure", fail)
    result = _report(tmp_path, "--cpu", "--only", "onnxruntime/conv3-2048x2048x512/original")
    assert result.exit_code == 1
    (row,) = _json(tmp_path)["rows"]
    assert row["error"] == ("out of memory at m.onnx" if error.args else "MemoryError")
    assert not list(tmp_path.glob("*.png"))
    assert not list(tmp_path.glob(".work*"))


def test_a_model_that_cannot_be_made_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails before the engine is asked is a row too."""

    def fail(case: Any, folder: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "write_model", fail)
    row = run_cell(Cell(CONV, "batch", 2, "onnxruntime"), ENGINES["onnxruntime"], Run(1, tmp_path))
    assert "No space left" in row.error
    assert row.regions == 0


def test_stopped_half_way_the_report_has_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second cell: the first one's row is kept, and the count says it is not all."""
    calls = []

    def stop(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_cell(*arguments)

    monkeypatch.setattr(a100_report, "run_cell", stop)
    only = "onnxruntime/conv3-2048x2048x512/batch-*"
    result = _report(tmp_path, "--cpu", "--runs", "1", "--splits", "2,4", "--only", only)
    assert result.exit_code == 0, result.output
    assert len(_json(tmp_path)["rows"]) == 1
    assert "1 of 2 cells" in (tmp_path / "report.md").read_text()


def _no_gpu() -> str:
    raise DeviceMissing("no NVIDIA GPU on this machine")


def test_without_a_gpu_it_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, what is missing by name, nothing written."""
    monkeypatch.setattr(a100_report, "cuda_device", _no_gpu)
    out = tmp_path / "report"
    result = _report(out)
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
    assert "no NVIDIA GPU on this machine" in result.output
    assert "--cpu" in result.output
    assert not out.exists()


def test_what_is_missing_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the chosen cells need is asked for."""
    monkeypatch.setattr(a100_report, "cuda_device", _no_gpu)
    monkeypatch.setattr("tools.a100_report.Cuda.load", _no_gpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cells = [Cell(CASES[0], "original", 1, "onnxruntime")]
    found = missing(cells, cpu=True)
    assert [text.split()[0] for text in found] == ["ONNX", "matplotlib"]
    found = missing([Cell(CASES[6], "original", 1, "onnxruntime")], cpu=False)
    assert found.count("no NVIDIA GPU on this machine") == 1
    assert [text.split()[0] for text in found[1:]] == ["ONNX", "pynvml", "matplotlib", "torch"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--splits", "2,x"], "not of the form 2,4,8"),
        (["--splits", "1"], "each 2 or more"),
        (["--only", "nothing/*"], "no cell is called like that"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    """The message says what would do."""
    result = _report(tmp_path, "--cpu", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_cases_that_fit_uncut_and_the_largest_last() -> None:
    """Nine below 2^31 elements; the order is by size, a case's cells together."""
    assert len(FITTING) == 9
    assert max(case.elements for case in FITTING) < 2**31
    cells = matrix(("a", "b"), (2, 4), ())
    sizes = [cell.case.elements for cell in cells]
    assert sizes == sorted(sizes)
    changes = sum(one.case != other.case for one, other in pairwise(cells))
    assert changes == len({cell.case for cell in cells}) - 1


def test_windows_are_at_edges_over_every_seam_and_beyond_2_31() -> None:
    """Corners, all rows, and the channels around 2^31 elements."""
    found = windows_of(Case("conv3", 4096, 256))
    channels = {window[1][0] for window in found}
    # 4096 x 4096 x 128 are 2^31.
    assert channels == {0, 127, 128, 255}
    assert {window[2] for window in found} == {(0, 8), (4088, 4096), (0, 4096)}
    assert windows_of(Case("vae", 1024, 128))[-1][1] == (2, 3)


@pytest.mark.parametrize("case", [Case("conv5", 40, 8), Case("chain", 48, 8)], ids=str)
def test_the_reference_is_the_model_s_own_output(case: Case, tmp_path: Path) -> None:
    """From crops of the input: what the whole image gives, in float32, where float16 is close."""
    original, inputs = write_model(case, tmp_path), write_inputs(case, tmp_path)
    np.testing.assert_array_equal(read_input(inputs), np.load(inputs)["input"])
    with open_session(original) as session:
        (whole,) = session.run({"input": read_input(inputs)}).values()
    windows = windows_of(case)
    found = [whole[tuple(slice(*pair) for pair in window)] for window in windows]
    compared = compare(found, reference(case, original, inputs), case.dtype, "it")
    assert compared.windows == len(windows)
    assert compared.largest_error < 0.01
    assert compared.agrees


@pytest.mark.parametrize("family", ["conv3", "chain"])
def test_a_wrong_row_is_caught_and_is_no_result(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut model with a seam planted wrong (the last patch reads a row too early) is an error."""
    case = next(c for c in CASES if c.family == family)
    made = write_variant

    def planted(*arguments: Any) -> Any:
        variant = made(*arguments)
        model = onnx.load(variant.path)
        slices = [node for node in model.graph.node if node.op_type == "Slice"]
        node = slices[-1]
        starts = next(t for t in model.graph.initializer if t.name == node.input[1])
        ends = next(t for t in model.graph.initializer if t.name == node.input[2])
        for tensor in (starts, ends):
            moved = numpy_helper.to_array(tensor) - 1
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
        onnx.save(model, variant.path)
        return variant

    cell = Cell(case, "sequential", 2, "onnxruntime")
    run = Run(1, tmp_path)
    good = run_cell(cell, ENGINES["onnxruntime"], run)
    assert (good.error, good.not_compared) == ("", "")
    assert good.compared is not None
    assert good.compared.largest_error < 1e-4
    monkeypatch.setattr("tools.a100.rows.write_variant", planted)
    bad = run_cell(cell, ENGINES["onnxruntime"], run)
    assert "its output is wrong" in bad.error
    assert (bad.figures, bad.counts) == ({}, True)


def test_what_is_no_number_agrees_with_nothing() -> None:
    """Not-a-number is an infinite error."""
    ones = [np.ones((1, 1, 2, 2), np.float32)]
    assert not compare([ones[0] * np.nan], ones, "float32", "it").agrees
    assert not compare([np.ones((1, 1, 1, 1))], ones, "float32", "it").agrees


def test_a_row_that_was_not_compared_is_in_no_ratio() -> None:
    """Its figures stand; what they are over the original's is not said."""
    row = row_of(
        {
            **dict.fromkeys(("cell", "case", "model", "stands_for", "family", "form"), "x"),
            **dict.fromkeys(("engine", "version", "device", "dtype", "date"), "x"),
            **dict.fromkeys(("splits", "patches", "activation_bytes", "regions", "runs"), 1),
            "recompute": 1.0, "kind": "measured", "options": {}, "compared": None,
            "figures": {"peak_bytes": {"value": 8, "unit": "bytes", "kind": "measured"}},
        }
    )  # fmt: skip
    compared = replace(row, compared=Compared(1, 0.0, 0.1, "it"))
    assert over(row, compared, "peak_bytes") == over(compared, row, "peak_bytes") == "-"
    assert over(compared, compared, "peak_bytes") == "1.00"
    # A decoder's original has no reference, and is the one of what was cut.
    with_it = replace(row, compared=Compared(1, 0.0, 0.1, ORIGINAL_HERE))
    assert over(with_it, row, "peak_bytes") == "1.00"


def test_a_cell_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """Its row says so, and the next cell has the whole time."""
    only = "onnxruntime/conv3-2048x2048x512/batch-x2"
    result = _report(tmp_path, "--cpu", "--runs", "1", "--time-limit", "0.01", "--only", only)
    assert result.exit_code == 1
    (row,) = _json(tmp_path)["rows"]
    assert row["error"] == "the time limit of 0.01 s is over"


def test_of_limits_within_each_other_the_sooner_holds() -> None:
    """An inner one that is longer, or none, takes nothing off the outer one."""
    for inner, least, most in ((None, 1, 3), (9.0, 1, 3), (1.0, 0, 1)):
        with child.time_limit(3.0), child.time_limit(inner):
            seconds, words = child._sooner(None)
            assert seconds is not None
            assert least < seconds <= most
            assert words == f"the time limit of {most} s is over"
    assert child._sooner(None) == (None, "")


def test_a_stopped_report_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are there are not made again; other settings are refused, and a file of others."""
    # Of times in turns another test speaks: with a third model they are all taken anew.
    common = ("--cpu", "--runs", "1", "--splits", "2,4", "--rounds", "0")
    name = "onnxruntime/conv3-2048x2048x512/batch-"
    assert _report(tmp_path, *common, "--only", f"{name}x2").exit_code == 0
    first = _json(tmp_path)["rows"]
    asked = []

    def run(cell: Cell, *arguments: Any) -> Any:
        asked.append(cell.name)
        return run_cell(cell, *arguments)

    monkeypatch.setattr(a100_report, "run_cell", run)
    result = _report(tmp_path, *common, "--resume", "--only", f"{name}*")
    assert result.exit_code == 0, result.output
    rows = _json(tmp_path)["rows"]
    assert asked == [f"{name}x4"]
    assert [row["cell"] for row in rows] == [f"{name}x2", f"{name}x4"]
    assert rows[0] == first[0]
    before = (tmp_path / "report.json").read_bytes()
    result = _report(tmp_path, "--cpu", "--runs", "2", "--resume", "--only", f"{name}*")
    assert result.exit_code == 2
    assert "made with runs 1 (now 2)" in result.output
    assert (tmp_path / "report.json").read_bytes() == before
    (tmp_path / "report.json").write_text("{")
    assert "no report of this program" in _report(tmp_path, "--cpu", "--resume").output


@pytest.mark.slow
def test_a_decoder_that_was_stopped_half_way_is_taken_over_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cut rows are compared with the original's windows, which a run keeps to itself.

    So an original that is there already runs again, and what was cut is compared; other models'
    rows stay, and a decoder that is there whole.
    """
    pytest.importorskip("torch")
    asked: list[str] = []

    def run(cell: Cell, *arguments: Any) -> Any:
        asked.append(cell.name)
        return run_cell(cell, *arguments)

    monkeypatch.setattr(a100_report, "run_cell", run)
    conv = "onnxruntime/conv3-1024x1024x512/original"
    decoder = [f"onnxruntime/vae-1024/{form}" for form in ("original", "batch-x2", "sequential-x2")]

    def report(*names: str) -> dict[str, dict[str, Any]]:
        asked.clear()
        only = [word for name in names for word in ("--only", name)]
        common = ("--cpu", "--runs", "1", "--splits", "2", "--rounds", "0", "--resume")
        result = _report(tmp_path, *common, *only)
        assert result.exit_code == 0, result.output
        return {row["cell"]: row for row in _json(tmp_path)["rows"]}

    first = report(conv, *decoder[:2])
    assert sorted(asked) == sorted([conv, *decoder[:2]])
    then = report(conv, *decoder)
    assert asked == decoder
    assert then[conv] == first[conv]
    for name in decoder[1:]:
        assert then[name]["error"] == then[name]["not_compared"] == ""
        assert then[name]["compared"]["against"] == ORIGINAL_HERE
        assert then[name]["compared"]["largest_error"] < 1e-3
    assert report(conv, *decoder) == then
    assert asked == []


@pytest.mark.slow
def test_the_whole_matrix_without_a_gpu(tmp_path: Path) -> None:
    """Every cell in four patches has figures, is compared, and timed in turns.

    But for regions of the decoder: ONNX Runtime's have nothing to gain, nor has a Loop, which hands
    nothing over between the halves of a normalisation, and at 4096 TensorRT for RTX plans none.
    """
    cells = matrix([engine.name for engine in CPU_ENGINES], (4,), ())
    lacking = missing(cells, cpu=True)
    if lacking:
        pytest.skip("; ".join(lacking))
    result = _report(tmp_path, "--cpu", "--runs", "1", "--splits", "4", "--rounds", "1")
    assert result.exit_code == 0, result.output
    rows = _json(tmp_path)["rows"]
    assert [row["cell"] for row in rows] == [cell.name for cell in cells]
    failed = {row["cell"]: row["error"] for row in rows if row["error"]}
    reasons = {
        ("onnxruntime", "vae-1024"): "nothing was cut: ",
        ("onnxruntime", "vae-2048"): "nothing was cut: ",
        ("onnxruntime", "vae-4096"): "nothing was cut: ",
        ("tensorrt-rtx", "vae-1024"): "nothing was cut: ",
        ("tensorrt-rtx", "vae-4096"): ("layer ", "tensors of more than 2147483647 elements stay"),
    }
    for name, error in failed.items():
        engine, case, form = name.split("/")
        assert error.startswith(reasons[engine, case]), (name, error)
        assert (engine, case) != ("tensorrt-rtx", "vae-1024") or form == "loop-x4"
        assert engine == "tensorrt-rtx" or form.partition("-")[0] in REGIONAL, name
    by_name = {row["cell"]: row for row in rows}
    for row in rows:
        if row["error"]:
            continue
        _check_row(row)
        if row["engine"] == "onnxruntime":
            assert row["rounds"] == 1, row["cell"]
            alone = row["family"] == "vae" and row["form"] == "original"
            assert bool(row["not_compared"]) == alone, row["cell"]
            assert alone or row["compared"]["largest_error"] < 1e-3, row["cell"]
    # What regions are for, in both engines' own figures.
    for engine, memory in (("onnxruntime", "runtime_peak_bytes"), ("tensorrt-rtx", None)):
        name = memory or "planned_activation_bytes"
        for side in (2048, 4096):
            whole, cut = (
                by_name[f"{engine}/chain-{side}x{side}x64/{form}"]["figures"][name]["value"]
                for form in ("original", "fused-x4")
            )
            assert cut < 0.7 * whole, (engine, side)


@pytest.mark.slow
def test_settings_are_swept_and_compared(tmp_path: Path) -> None:
    """On the CPU the defaults, and no arena, where the runtime keeps no figure of its own."""
    cells = [f"onnxruntime/conv3-2048x2048x512/{form}" for form in ("original", "batch-x2")]
    only = [word for cell in cells for word in ("--only", cell)]
    result = _report(tmp_path, "--cpu", "--runs", "1", "--sweep", *only)
    assert result.exit_code == 0, result.output
    original, row = _json(tmp_path)["rows"]
    usual, setting = row["settings"]
    assert (usual["name"], usual["error"]) == ("defaults", "")
    assert "runtime_peak_bytes" in usual["figures"]
    assert (setting["name"], setting["error"]) == ("no arena", "")
    assert setting["compared"]["largest_error"] < 1e-4
    assert "runtime_peak_bytes" in row["figures"]
    assert "runtime_peak_bytes" not in setting["figures"]
    shown = (tmp_path / "report.md").read_text().partition("## Other settings")[2].splitlines()
    cut = [line.split(" | ") for line in shown if line.startswith(f"| {cells[1]} ")]
    # Over the original under the same setting, not over that at the defaults.
    there = original["settings"][0]["figures"]["peak_bytes"]["value"]
    assert cut[1][1] == "defaults"
    assert cut[1][4] == f"{usual['figures']['peak_bytes']['value'] / there:.2f}"
    assert row_of(row).settings[0].figures["peak_bytes"].unit == "bytes"


def _as_found(peak: float, latency: float) -> dict[str, Figure]:
    """Figures of MiB and milliseconds."""
    return {
        "peak_bytes": Figure(peak * (1 << 20), "bytes", "measured"),
        "latency_median_s": Figure(latency / 1e3, "s", "measured"),
    }


def test_cutting_is_judged_against_the_original_s_best_setting() -> None:
    """Over the same setting's, and over the least of any; never over what failed.

    The figures are those of an H100, but for the pair of settings, which is made up.
    """
    good = Compared(1, 0.0, 0.1, "it")
    engine = next(each for each in GPU_ENGINES if each.name == "onnxruntime")
    figures = {
        "original": ((5644, 21.7), (3114, 21.7), (4138, 10.2), None),
        "fused": ((1040, 24.6), (592, 24.6), (530, 10.7), (520, 10.7)),
    }
    names = ("kSameAsRequested", "prefer_nhwc", "kSameAsRequested, prefer_nhwc")
    rows = []
    for form, (default, *others) in figures.items():
        settings = tuple(
            Setting(name, _as_found(*found), compared=good, rounds=3)
            if found
            else Setting(name, {}, error="it does not fit, " + "and this takes many words " * 9)
            for name, found in zip(names, others, strict=True)
        )
        data: dict[str, Any] = {
            **dict.fromkeys(("case", "model", "stands_for", "family", "version"), "x"),
            **dict.fromkeys(("device", "dtype", "date"), "x"),
            **dict.fromkeys(("splits", "patches", "activation_bytes", "regions", "runs"), 1),
        }
        row = Row(
            **data, cell=form, form=form, engine=engine.name, recompute=1.0, kind="measured",
            options={}, figures=_as_found(*default), compared=good, settings=settings, rounds=3,
        )  # fmt: skip
        rows.append(row)
    text = report_markdown(Report("x", False, (engine,), 2, tuple(rows)), ())
    table = text.split("## Other settings")[1].split("##")[0]
    lines = [[part.strip() for part in line.split("|")[1:9]] for line in table.splitlines()]
    found = {(line[0], line[1]): line[2:] for line in lines if len(line) == 8}
    assert found["original", "default"] == ["5,644.0", "0.0217", "1.00", "1.81", "1.00", "2.13"]
    assert found["fused", "default"] == ["1,040.0", "0.0246", "0.18", "0.33", "1.13", "2.41"]
    assert found["fused", names[1]] == ["530.0", "0.0107", "0.13", "0.17", "1.05", "1.05"]
    assert found["fused", names[2]] == ["520.0", "0.0107", "-", "0.17", "-", "1.05"]
    assert found["original", names[2]] == ["-"] * 6
    # Its whole words are in a table of their own, once.
    assert text.count("and this takes many words " * 9) == 1
    assert f"| original | {names[2]} | it does not fit, and" in text
    # A ratio of times that were taken apart says so; one of memory has no need to.
    alone = replace(rows[1], rounds=0)
    assert over(alone, rows[0], "latency_median_s") == "1.13 (not in turns)"
    assert over(alone, alone, "latency_median_s") == "1.00"
    assert over(alone, rows[0], "peak_bytes") == "0.18"


PAIR = [f"onnxruntime/conv3-2048x2048x512/{form}" for form in ("original", "batch-x2")]


def _pair(out: Path, *arguments: str) -> list[dict[str, Any]]:
    only = [word for cell in PAIR for word in ("--only", cell)]
    result = _report(out, "--cpu", "--runs", "2", "--splits", "2", *only, *arguments)
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = _json(out)["rows"]
    assert [row["error"] for row in rows] == ["", ""]
    return rows


def test_an_original_and_its_cuts_are_timed_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all are measured; under every setting; what the report had whole already stays."""
    asked: list[list[tuple[str, OrtOptions]]] = []

    def noted(jobs: Any, options: Any, **how: Any) -> Any:
        models = [job.model.name for job in jobs]
        asked.append(list(zip(models, options, strict=True)))
        assert {job.sampled for job in jobs} == {None}
        assert (how["runs"], how["rounds"], how["time_limit_s"]) == (2, 1, 3600)
        return time_in_turns(jobs, options, **how)

    monkeypatch.setattr(asking, "time_in_turns", noted)
    rows = _pair(tmp_path, "--sweep", "--rounds", "1")
    (timed,) = asked
    models = ["conv3-256x256x64-float32.onnx", "conv3-256x256x64-float32-batch-x2-onnxruntime.onnx"]
    assert [model for model, _ in timed] == [model for model in models for _ in range(3)]
    assert timed[0][1].memory_pattern is False
    assert [each for _, each in timed[:3]] == [each for _, each in timed[3:]]
    assert len({each for _, each in timed}) == 3
    for row in rows:
        assert [row["rounds"], *(each["rounds"] for each in row["settings"])] == [1, 1, 1]
    text = (tmp_path / "report.md").read_text()
    assert "(not in turns)" not in text.split("## What the figures are")[0]
    assert "Timed runs: 2; rounds: 1." in text
    assert _pair(tmp_path, "--sweep", "--rounds", "1", "--resume") == rows
    assert len(asked) == 1


def test_without_turns_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --rounds 0, and where they fail: each time is of its own, and what is measured stays."""
    rows = _pair(tmp_path, "--rounds", "0")
    assert [row["rounds"] for row in rows] == [0, 0]
    assert (tmp_path / "report.md").read_text().count("(not in turns) |") == 1

    def fails(jobs: Any, options: Any, **how: Any) -> Any:
        if how["rounds"] == 2:
            raise RunError("the device is gone")
        # One of two, in a later round.
        latency = Spread(7.0, 7.0, 7.0)
        return [Turns(None, 0, error="out of memory"), Turns(latency, 1)]

    monkeypatch.setattr(asking, "time_in_turns", fails)
    # What the report has is timed in turns now, out of models that are made anew.
    for rounds, times in ((2, [False, False]), (1, [False, True])):
        found = _pair(tmp_path, "--resume", "--rounds", str(rounds))
        assert [row["rounds"] for row in found] == [int(each) for each in times]
        name = "latency_median_s"
        assert [row["figures"][name]["value"] == 7.0 for row in found] == times
        assert [row["figures"]["peak_bytes"] for row in found] == [
            row["figures"]["peak_bytes"] for row in rows
        ]


def test_tensorrt_takes_turns_at_its_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Built out of the timing cache; workspaces of --sweep are timed beside each other alone."""
    seen: list[Any] = []

    def measured(jobs: Any, options: Any, **how: Any) -> Any:
        seen.append((len(jobs), options, how.get("rounds"), how["time_limit_s"]))
        latency = Spread(1.0, 1.0, 1.0)
        return [TensorRTResult("m", "measured", "tensorrt", latency_s=latency) for _ in jobs]

    monkeypatch.setattr(asking, "measure_tensorrt", measured)
    engine = next(each for each in GPU_ENGINES if each.name == "tensorrt")
    cells = [Cell(FITTING[3], "original", 1, "tensorrt"), Cell(FITTING[3], "batch", 2, "tensorrt")]
    run = Run(2, tmp_path, 9.0, timing_cache=tmp_path / "cache", sweep=True, rounds=4)
    monkeypatch.setattr("tools.a100.rows.write_inputs", lambda *_: tmp_path / "x.npz")
    monkeypatch.setattr("tools.a100.rows.write_variant", lambda *_: models.Variant(tmp_path / "m"))
    monkeypatch.setattr("tools.a100.rows._compare", lambda *_: (Compared(1, 0.0, 0.1, "it"), ""))
    rows = {cell.name: run_cell(cell, engine, run) for cell in cells}
    assert [len(row.settings) for row in rows.values()] == [5, 5]
    seen.clear()
    found = take_turns(cells, rows, engine, run)
    ((count, options, rounds, limit),) = seen
    assert (count, rounds, limit) == (2, 4, 9.0)
    assert {each.timing_cache_file for each in options} == {tmp_path / "cache"}
    assert [row.rounds for row in found.values()] == [4, 4]
    assert {each.rounds for row in found.values() for each in row.settings} == {0}
    # One alone has nothing to take turns with.
    assert take_turns(cells[:1], rows, engine, run) == {}


def test_what_was_slowed_down_is_said() -> None:
    """An original under a power cap flatters its cuts: the clocks stand side by side."""
    capped = {"sm_clock_mhz": 1845, "slowed_by": ["SwPowerCap"]}
    free = {"sm_clock_mhz": 1980, "slowed_by": []}
    common = dict.fromkeys(("case", "model", "stands_for", "family", "version"), "x")
    common |= dict.fromkeys(("device", "dtype", "date"), "x")
    numbers = dict.fromkeys(("splits", "patches", "activation_bytes", "regions", "runs"), 1)
    data: dict[str, Any] = {**common, **numbers, "engine": "onnxruntime", "kind": "measured"}
    setting = Setting("prefer_nhwc", _as_found(1, 1), device_state=capped)
    rows = (
        Row(**data, cell="o", form="original", recompute=1.0, options={}, device_state=capped),
        Row(**data, cell="c", form="fused", recompute=1.0, options={}, device_state=free,
            settings=(setting,)),
    )  # fmt: skip
    engine = next(each for each in GPU_ENGINES if each.name == "onnxruntime")
    text = report_markdown(Report("x", False, (engine,), 2, rows), ())
    part = text.split("## What was slowed down")[1].split("## ")[0]
    assert "Clock of the others, MHz: 1980." in part
    assert "| o | default | 1845 | SwPowerCap |\n| c | prefer_nhwc | 1845 | SwPowerCap |" in part
    assert row_of(json.loads(json.dumps(asdict(rows[1])))) == rows[1]
    alone = report_markdown(Report("x", False, (engine,), 1, (replace(rows[1], settings=()),)), ())
    assert "slowed down" not in alone.split("## What the figures are")[0]


def test_a_setting_runs_where_the_default_does_not(tmp_path: Path) -> None:
    """What the default cannot do does not take the others' comparison with it."""

    def ask(request: asking.Request) -> asking.Found:
        found = ENGINES["onnxruntime"].ask(request)
        return replace(found, figures={}, error="out of memory")

    row = run_cell(
        Cell(CONV, "batch", 2, "onnxruntime"),
        replace(ENGINES["onnxruntime"], ask=ask),
        Run(1, tmp_path, sweep=True),
    )
    assert (row.error, row.compared) == ("out of memory", None)
    assert [bool(each.compared and each.compared.agrees) for each in row.settings] == [True, True]


def test_each_setting_has_the_whole_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What one of them uses up is not taken from the others, whatever the engine."""
    left: list[float] = []

    def wait() -> None:
        seconds, _ = child._sooner(None)
        assert seconds is not None
        left.append(seconds)
        time.sleep(0.2)

    def measured(jobs: Any, options: Any, **_: Any) -> Any:
        wait()
        return [Measurement("m", error="x") for _ in jobs]

    def planned(models: Any, options: Any, **_: Any) -> Any:
        wait()
        return [TensorRTResult("m", "planned", "tensorrt-rtx") for _ in models]

    @contextmanager
    def process(*_: Any) -> Iterator[Any]:
        def ask(do: str, **_: Any) -> Any:
            wait()
            raise RunError("x")

        yield SimpleNamespace(ask=ask)

    monkeypatch.setattr(asking, "measure", measured)
    monkeypatch.setattr(asking, "plan_tensorrt", planned)
    monkeypatch.setattr(asking, "cuda_device", lambda: "GPU")
    for module in (pytorch, measure_tensorrt):
        monkeypatch.setattr(module, "child_process", process)
    job = Job(tmp_path / "m", tmp_path / "i")
    for engine in (*GPU_ENGINES, *CPU_ENGINES, pytorch.PYTORCH):
        left.clear()
        found = engine.ask(asking.Request(job, 1, sweep=True, time_limit_s=5.0))
        assert len(left) == 1 + len(found.settings) > 2, engine.name
        assert min(left) > 4.9, engine.name


def test_pytorch_has_rows_of_originals(tmp_path: Path) -> None:
    """Benchmark on and off in both layouts, each compared; on the CPU no memory is claimed."""
    pytest.importorskip("torch")
    only = "pytorch/conv3-2048x2048x512/*"
    result = _report(tmp_path, "--cpu", "--pytorch", "--runs", "1", "--only", only)
    assert result.exit_code == 0, result.output
    (row,) = _json(tmp_path)["rows"]
    assert (row["form"], row["error"], row["device"]) == ("original", "", "CPU")
    assert row["compared"]["largest_error"] < 1e-4
    assert set(row["figures"]) == {f"latency_{each}_s" for each in ("median", "min", "max")}
    names = ["benchmark", "channels_last", "benchmark, channels_last"]
    assert [each["name"] for each in row["settings"]] == names
    assert all(each["compared"]["largest_error"] < 1e-4 for each in row["settings"])


def test_the_workspace_is_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of TensorRT: sizes and a layout beside the default, which alone uses the timing cache."""
    seen: list[Any] = []

    def measured(jobs: Any, options: Any, timing: Any, time_limit_s: Any) -> Any:
        seen.extend(zip(jobs, options, strict=True))
        return [
            TensorRTResult("m", "measured", "tensorrt", peak_bytes=k, builder_peak_bytes=9)
            for k in range(len(jobs))
        ]

    monkeypatch.setattr(asking, "measure_tensorrt", measured)
    job = Job(tmp_path / "m", tmp_path / "i", (), tmp_path / "w")
    engine = next(each for each in GPU_ENGINES if each.name == "tensorrt")
    found = engine.ask(asking.Request(job, 1, tmp_path / "cache", sweep=True))
    pools = [options.mem_pool_size.get("workspace") for _, options in seen]
    assert pools == [None, 0, 1 << 28, 1 << 30, 1 << 32, None]
    ends = [options.input_io_formats + options.output_io_formats for _, options in seen]
    assert ends == [()] * 5 + [("fp16:hwc8", "fp16:hwc8")]
    assert [bool(options.timing_cache_file) for _, options in seen] == [True] + [False] * 5
    assert len({job.sampled for job, _ in seen}) == 6
    assert [each.figures["peak_bytes"].value for each in found.settings] == [1, 2, 3, 4, 5]
    assert [each.name for each in found.settings][-2:] == ["workspace 4 GiB", "hwc8 I/O"]
    assert found.figures["builder_peak_bytes"].value == 9


def test_what_cannot_fit_is_skipped_with_the_reason(tmp_path: Path) -> None:
    """Input and output alone are more than the device has."""
    cell = Cell(CONV, "original", 1, "onnxruntime")
    run = Run(1, tmp_path, device_bytes=1 << 20)
    row = run_cell(cell, ENGINES["onnxruntime"], run)
    assert row.error.startswith("skipped: input and output alone need")
    assert row.needed_bytes == 2 * 64 * 256**2 * 4


@pytest.mark.gpu
@pytest.mark.parametrize("engine", [engine.name for engine in GPU_ENGINES])
def test_gpu(engine: str, tmp_path: Path) -> None:
    """The decoder at 1024, as it is and in four patches, is measured on the device."""
    only = [f"{engine}/vae-1024/original", f"{engine}/vae-1024/sequential-x4"]
    cells = matrix((engine,), (4,), only)
    lacking = missing(cells, cpu=False)
    if lacking:
        pytest.skip("; ".join(lacking))
    result = _report(tmp_path, "--splits", "4", "--only", only[0], "--only", only[1])
    assert result.exit_code == 0, result.output
    for row in _json(tmp_path)["rows"]:
        _check_row(row)
        assert row["figures"]["peak_bytes"]["kind"] == "measured"
        assert row["figures"]["peak_bytes"]["value"] > 0
        assert row["figures"]["latency_median_s"]["value"] > 0
