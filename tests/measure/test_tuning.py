"""Session options found by measuring: which are chosen, where they are written, what can fail."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from patchconv_deploy import rewrite
from patchconv_deploy.cli.main import patchconv
from patchconv_deploy.engines.errors import EngineMissing
from patchconv_deploy.engines.measurement import Job, Measurement, Spread
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.errors import PatchConvError
from patchconv_deploy.measure import tuning
from patchconv_deploy.measure.tuning import least_changed
from patchconv_deploy.rewriters.outcome import SESSION_OPTIONS_KEY as METADATA_KEY
from tests.support.small_models import assert_same, chain, file_names, noise

DIMS = (1, 2, 64, 32)

Peak = Callable[[bool, bool, bool], int | None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A chain of three convolutions, its weights in a file of their own."""
    file = tmp_path / "m.onnx"
    onnx.save(chain(3, DIMS), file, save_as_external_data=True, location="w.bin", size_threshold=0)
    return file


def _row(model: str, options: OrtOptions, peak: int | None) -> Measurement:
    return Measurement(
        model,
        options=dataclasses.asdict(options),
        peak_bytes=peak,
        whole_bytes=None if peak is None else peak + 50,
        latency_s=None if peak is None else Spread.of([1.0]),
        ratio=None if peak is None else Spread.of([1.0]),
        error="" if peak is not None else f"out of memory in {model}",
        date="2026",
    )


def _measuring(monkeypatch: pytest.MonkeyPatch, peak: Peak) -> list[list[tuple[str, bool, bool]]]:
    """Let peaks be a function of (is the original, reuse, pattern); return the calls' jobs."""
    calls: list[list[tuple[str, bool, bool]]] = []

    def measure(jobs: Sequence[Job], options: Sequence[OrtOptions], **_: Any) -> list[Measurement]:
        pairs = list(zip(jobs, options, strict=True))
        assert all(job.model.is_file() and job.inputs.is_file() for job, _ in pairs)
        calls.append([(job.model.name, o.memory_reuse, o.memory_pattern) for job, o in pairs])
        return [
            _row(
                str(job.model),
                wanted,
                peak(job.model.name == "m.onnx", wanted.memory_reuse, wanted.memory_pattern),
            )
            for job, wanted in pairs
        ]

    monkeypatch.setattr(tuning, "measure", measure)
    return calls


def _recommended(model: Path) -> Any:
    entries = [e.value for e in onnx.load(model).metadata_props if e.key == METADATA_KEY]
    assert len(entries) <= 1
    return json.loads(entries[0]) if entries else None


def _peaks(on_on: int, pattern_off: int, reuse_off: int, off_off: int) -> dict[Any, int]:
    return {
        (True, True): on_on,
        (True, False): pattern_off,
        (False, True): reuse_off,
        (False, False): off_off,
    }


@pytest.mark.parametrize(
    ("peaks", "chosen"),
    [
        ((200, 150, 180, 100), (False, False)),
        ((200, 102, 180, 100), (True, False)),
        ((101, 100, 100, 100), (True, True)),
        ((200, 101, 100, 100), (False, True)),
        ((200, 103, 180, 100), (False, False)),
    ],
)
def test_the_least_change_of_the_lowest_is_chosen(
    peaks: tuple[int, int, int, int], chosen: tuple[bool, bool]
) -> None:
    """Within 2 % peaks count as equal; then fewer changes of the defaults win, then the peak."""
    rows = [
        _row("m", OrtOptions(memory_reuse=reuse, memory_pattern=pattern), peak)
        for (reuse, pattern), peak in _peaks(*peaks).items()
    ]
    found = least_changed([*rows, _row("m", OrtOptions(), None)])
    assert found is not None
    assert (found.options["memory_reuse"], found.options["memory_pattern"]) == chosen
    assert least_changed([_row("m", OrtOptions(), None)]) is None


def test_what_was_found_is_recorded_and_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the metadata and the report the pair that was measured best, not the predicted one."""
    cut = _peaks(900, 500, 800, 500)
    calls = _measuring(
        monkeypatch, lambda original, *pair: 2 * cut[pair] if original else cut[pair]
    )
    result = rewrite(path, splits=4, form="fused", measure=True, max_recompute=9)
    out = path.parent / "m.patched.onnx"
    assert result.path == out
    pairs = list(cut)
    assert calls == [
        [("m.onnx", True, True), *((out.name, *pair) for pair in pairs)],
        [("m.onnx", True, False)],
    ]
    wanted = {"enable_mem_reuse": True, "enable_mem_pattern": False}
    assert _recommended(out) == wanted
    assert result.report.data["recommended_session_options"] == {
        **wanted,
        "kind": "measured",
        "measured_peak_bytes": 500,
        "measured_peak_bytes_at_defaults": 900,
        "original_measured_peak_bytes": 1000,
        "original_measured_peak_bytes_at_defaults": 1800,
        # Loading takes 50 in each.
        "measured_whole_bytes": 550,
        "measured_whole_bytes_at_defaults": 950,
        "original_measured_whole_bytes": 1050,
        "original_measured_whole_bytes_at_defaults": 1850,
    }
    rows = result.report.data["measured"]
    # The place where it was measured before it was there is nobody's business.
    assert [row["model"] for row in rows] == [str(path)] * 2 + [str(out)] * 4
    assert [row["ratio"] is None for row in rows] == [False, True, *[False] * 4]
    assert [row.note for row in result.measured if row.note] == [
        "recommended: memory_reuse=True, memory_pattern=False"
    ]
    assert not result.report.warnings
    assert file_names(path.parent) == [
        "m.onnx", "m.patched.onnx", "m.patched.onnx.HASH.data", "w.bin",
    ]  # fmt: skip
    assert_same(onnx.load(path), onnx.load(out), {"x": noise(*DIMS)})


def test_for_a_server_memory_reuse_stays_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model planned for Triton only what its configuration can say is tried."""
    calls = _measuring(monkeypatch, lambda original, reuse, pattern: 100 + 50 * pattern + reuse)
    rewrite(path, splits=4, form="fused", measure=True, max_recompute=9, target="triton")
    tried = [pair for name, *pair in calls[0] if name != "m.onnx"]
    assert tried == [[True, True], [True, False]]
    out = path.parent / "m.patched.onnx"
    assert _recommended(out) == {"enable_mem_reuse": True, "enable_mem_pattern": False}


def test_without_measuring_it_is_predicted_and_said(path: Path) -> None:
    """The rewriter's pair, with peaks that are called predicted, in the report and the table."""
    report = path.parent / "r.json"
    arguments = ["rewrite", str(path), "--splits", "4", "--max-recompute", "9"]
    done = CliRunner().invoke(patchconv, [*arguments, "--report", str(report)])
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())["recommended_session_options"]
    assert found["kind"] == "predicted"
    assert found["predicted_peak_bytes"] <= found["predicted_peak_bytes_at_defaults"]
    assert not any(name.startswith("measured") for name in found)
    (line,) = (text for text in done.output.splitlines() if "session options" in text)
    assert "enable_mem_reuse=False, enable_mem_pattern=False; predicted activations: " in line


def test_single_convolutions_are_recommended_what_was_measured(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prediction stands for them, but a measurement does; the defaults can be the best."""
    calls = _measuring(monkeypatch, lambda original, *pair: 100)
    result = rewrite(path, min_elements=0, form="sequential", measure=True)
    assert result.path is not None
    assert _recommended(result.path) == {"enable_mem_reuse": True, "enable_mem_pattern": True}
    assert [len(call) for call in calls] == [5]
    found = result.report.data["recommended_session_options"]
    assert found["original_measured_peak_bytes"] == 100


def test_a_model_that_cannot_be_measured_keeps_what_is_predicted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It verified, so it is written, with a warning; the command's exit code is 1."""
    _measuring(monkeypatch, lambda original, *pair: 100 if original else None)
    arguments = ["rewrite", str(path), "--splits", "4", "--max-recompute", "9", "--measure"]
    done = CliRunner().invoke(patchconv, arguments)
    out = path.parent / "m.patched.onnx"
    assert isinstance(done.exception, PatchConvError)
    assert done.exception.exit_code == 1
    # Four times the same is said once, and names the file that is there.
    assert str(done.exception) == (
        f"{out} was written, but not measured: {out}: out of memory in {out}"
    )
    assert "found by measuring; what is recommended is predicted" in done.output
    assert "; predicted activations: " in done.output
    assert _recommended(out) == {"enable_mem_reuse": False, "enable_mem_pattern": False}


def test_an_original_that_does_not_fit_hinders_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the rewritten model is for; its peaks are unknown."""
    calls = _measuring(
        monkeypatch, lambda original, reuse, pattern: None if original else 100 + pattern * 50
    )
    result = rewrite(path, splits=4, max_recompute=9, measure=True)
    found = result.report.data["recommended_session_options"]
    assert found["measured_peak_bytes"] == 100
    assert found["original_measured_peak_bytes_at_defaults"] is None
    assert len(calls) == 1


def test_nothing_is_written_where_nothing_can_be_measured(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No runtime: said before any work. A full disk or Ctrl-C while measuring: no file either."""
    before = sorted(path.parent.iterdir())

    def missing(engine: str) -> None:
        raise EngineMissing("ONNX Runtime is not installed")

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("patchconv_deploy.api.check_engine", missing)
        with pytest.raises(EngineMissing):
            rewrite(path, splits=4, measure=True)
    monkeypatch.setattr(tuning, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        rewrite(path, splits=4, max_recompute=9, measure=True)
    assert sorted(path.parent.iterdir()) == before


def test_nothing_is_measured_of_what_was_not_cut(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a dry run nor a model that is left as it is."""
    calls = _measuring(monkeypatch, lambda original, *pair: 100)
    assert not rewrite(path, splits=4, measure=True, dry_run=True).measured
    assert not rewrite(path, splits=1, measure=True).measured
    assert not calls
