"""Measuring under ONNX Runtime: what the figures are, and what happens when a model fails."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy.engines.errors import DeviceMissing
from patchconv_deploy.engines.measurement import Job, Measurement, Spread
from patchconv_deploy.engines.ort.measure import measure
from patchconv_deploy.engines.ort.options import SESSION_OPTIONS, OrtOptions
from patchconv_deploy.engines.ort.run import open_session
from patchconv_deploy.engines.process.memory_probe import (
    high_water_bytes,
    reset_high_water,
    resident_bytes,
)
from patchconv_deploy.measure import run as measure_run
from patchconv_deploy.measure import tuning
from patchconv_deploy.measure.run import best, tune_onnxruntime
from patchconv_deploy.rewriters.outcome import SESSION_OPTIONS_KEY as METADATA_KEY
from patchconv_deploy.verify.inputs import save_inputs
from tests.support.commands import run_command

ROOT = Path(__file__).resolve().parents[2]

MIB = 1 << 20


def _chain(folder: Path, side: int, layers: int = 3, channels: int = 16) -> Job:
    """A chain of Conv 3x3 + Relu and its input."""
    generator = np.random.default_rng(0)
    nodes, weights, name, depth = [], [], "x", 3
    for layer in range(layers):
        kernel = generator.standard_normal((channels, depth, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes += [
            helper.make_node("Conv", [name, f"w{layer}"], [f"c{layer}"], pads=[1] * 4),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        name, depth = f"r{layer}", channels
    shape = [1, 3, side, side]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        weights,
    )
    model = folder / f"chain_{side}.onnx"
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), model
    )
    inputs = folder / f"chain_{side}.npz"
    save_inputs(inputs, {"x": generator.standard_normal(shape).astype(np.float32)})
    return Job(model, inputs)


def test_the_high_water_mark_is_reset_and_sees_a_passing_allocation() -> None:
    """40 MiB taken and given back show in the mark; after a reset they do not."""
    reset_high_water()
    base = resident_bytes()
    # Pages of its own: the heap of a process that ran many tests may hold as much, free.
    with mmap.mmap(-1, 40 * MIB) as block:
        for page in range(0, 40 * MIB, mmap.PAGESIZE):
            block[page] = 1
    assert high_water_bytes() - base > 35 * MIB
    reset_high_water()
    assert high_water_bytes() - resident_bytes() < 10 * MIB


def test_figures_of_two_models_side_by_side(tmp_path: Path) -> None:
    """Twice the side is four times the memory; inputs and outputs are counted apart."""
    small, large = _chain(tmp_path, 256), _chain(tmp_path, 512)
    told: list[tuple[str, int, int]] = []
    found = measure(
        [small, large],
        [OrtOptions(threads=2)] * 2,
        runs=2,
        processes=2,
        progress=lambda *what: told.append(what),
    )
    assert [result.error for result in found] == ["", ""]
    # Three runs of each in turn, then two processes of each.
    assert [(done, total) for _, done, total in told] == [(done, 10) for done in range(10)]
    sides = (*(256, 512) * 3, 256, 256, 512, 512)
    assert [what for what, _, _ in told] == [f"measuring chain_{side}.onnx" for side in sides]
    # Two live tensors of 16 channels are 8 and 32 MiB.
    peaks = [result.peak_bytes or 0 for result in found]
    assert 8 * MIB < peaks[0] < 40 * MIB
    assert 2.5 < peaks[1] / peaks[0] < 6
    assert [result.input_bytes for result in found] == [3 * s * s * 4 for s in (256, 512)]
    assert [result.output_bytes for result in found] == [16 * s * s * 4 for s in (256, 512)]
    assert found[1].runtime_peak_bytes is not None
    assert found[1].latency_s is not None
    assert found[1].latency_s.min <= found[1].latency_s.median <= found[1].latency_s.max
    assert found[0].ratio is not None
    assert found[0].ratio.median == 1
    assert found[1].ratio is not None
    assert found[1].ratio.median > 1.5
    assert found[1].providers == ("CPUExecutionProvider",)
    assert found[1].options["arena"] is True


def test_a_peak_is_never_below_what_the_arena_held(tmp_path: Path) -> None:
    """Loading leaves memory free that running uses again; what runs need is the arena's figure.

    128 channels: weights of 4.5 MiB, which the heap holds free after loading.
    """
    options = OrtOptions(threads=1, memory_reuse=False, memory_pattern=False)
    job = _chain(tmp_path, 48, layers=8, channels=128)
    (found,) = measure([job], [options], runs=1, processes=2)
    assert found.error == ""
    assert len(found.peaks_bytes) == len(found.runtime_peaks_bytes) == 2
    for peak, held in zip(found.peaks_bytes, found.runtime_peaks_bytes, strict=True):
        assert peak >= held > 0
    # What the process itself shows is less: it is this that was reported.
    assert (found.host_peak_bytes or 0) < min(found.runtime_peaks_bytes)


def test_loading_and_the_whole_process(tmp_path: Path) -> None:
    """Weights of 32 MiB are in loading and in the whole, the activations of 8 MiB are not twice."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            generator.standard_normal((512, 512, 4, 4), dtype=np.float32), f"w{layer}"
        )
        for layer in range(2)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], pads=[1, 1, 2, 2]),
        helper.make_node("Conv", ["c", "w1"], ["y"], pads=[1, 1, 2, 2]),
    ]
    shape = [1, 512, 32, 32]
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    path, inputs = tmp_path / "heavy.onnx", tmp_path / "inputs.npz"
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path
    )
    save_inputs(inputs, {"x": generator.standard_normal(shape).astype(np.float32)})
    light = _chain(tmp_path, 64)
    found, other = measure(
        [Job(path, inputs), light], [OrtOptions(threads=1)] * 2, runs=1, processes=2
    )
    for each in (found, other):
        assert each.error == ""
        assert each.load_bytes is not None
        assert each.whole_bytes is not None
        assert each.process_bytes is not None
        assert (len(each.loads_bytes), len(each.wholes_bytes)) == (2, 2)
        assert each.load_bytes == max(each.loads_bytes)
        assert each.whole_bytes == max(each.wholes_bytes)
        assert each.whole_bytes >= each.load_bytes
        # The interpreter and the runtime are no part of what a model costs.
        assert each.process_bytes > each.whole_bytes + 20 * MIB
    assert found.load_bytes is not None
    assert other.load_bytes is not None
    assert found.load_bytes > other.load_bytes + 30 * MIB
    assert found.whole_bytes is not None
    assert found.peak_bytes is not None
    assert found.whole_bytes >= found.load_bytes + 2 * MIB


def test_a_missing_gpu_is_refused_not_worked_around(tmp_path: Path) -> None:
    """Asked for CUDA on a machine without, nothing falls back to the CPU."""
    with pytest.raises(DeviceMissing, match="CUDA"):
        measure([_chain(tmp_path, 64)], [OrtOptions(provider="cuda")], runs=1)
    with (
        pytest.raises(DeviceMissing, match="CUDA"),
        open_session(_chain(tmp_path, 64).model, OrtOptions(provider="cuda")),
    ):
        pass


def test_running_out_of_memory_is_reported_and_survived(tmp_path: Path) -> None:
    """One process hits its limit; the other's figures stand, the parent goes on."""
    small, large = _chain(tmp_path, 64), _chain(tmp_path, 1024, layers=4, channels=64)
    options = [OrtOptions(threads=1)] * 2
    found = measure([small, large], options, runs=1, processes=1, memory_limit=700 * MIB)
    assert found[0].error == ""
    assert found[1].error.startswith("out of memory")
    assert found[1].peak_bytes is None


def test_a_crash_is_reported_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring process dies by a signal: the error names it."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nread line\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr("patchconv_deploy.engines.process.child.sys.executable", str(script))
    found: list[Measurement] = measure([_chain(tmp_path, 64)], [OrtOptions()], runs=1)
    assert "SIGKILL" in found[0].error


def _command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command("measure", *arguments)


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    """Ratios to the first model, every option in the JSON."""
    model = _chain(tmp_path, 128).model
    target = tmp_path / "figures.json"
    # In a process of its own, as a user does.
    command = [sys.executable, "-m", "patchconv_deploy", "measure", str(model), str(model)]
    done = subprocess.run(
        [*command, "--runs", "1", "--processes", "2", "--no-arena", "--json", str(target)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "x first" in done.stdout
    head = re.split(r" {2,}", done.stdout.splitlines()[0].strip())
    assert head[:7] == [
        "model", "loading", "running", "whole process", "x first", "activations", "median s",
    ]  # fmt: skip
    assert "MiB. loading: what creating the session adds" in done.stdout
    assert "whole process: both, what they share once" in done.stdout
    assert "2 processes, of which running differs by" in done.stdout
    results = json.loads(target.read_text())["results"]
    assert len(results) == 2
    assert set(results[0]) >= {
        "model", "engine", "version", "device", "date", "options", "peak_bytes", "peaks_bytes",
        "runtime_peak_bytes", "latency_s", "input_bytes", "output_bytes", "timing",
        "load_bytes", "loads_bytes", "whole_bytes", "wholes_bytes", "process_bytes",
    }  # fmt: skip
    assert set(results[0]["latency_s"]) == {"median", "min", "max"}
    assert results[0]["peak_bytes"] == max(results[0]["peaks_bytes"])
    assert results[0]["options"]["arena"] is False
    assert results[0]["runtime_peak_bytes"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{model}", "--engine", "tensorrt-rtx", "--no-arena"], 2, "--arena means nothing to"),
        (["{model}", "--engine", "tensorrt-rtx", "--runs", "2"], 2, "nothing is run"),
        (["{model}", "--cudnn-algo-search", "DEFAULT"], 2, "nothing to --provider cpu"),
        (["{model}", "--tune", "--recommended"], 2, "exclude each other"),
        (["{model}", "--tune", "--no-mem-reuse"], 2, "--mem-reuse and --tune exclude"),
        (["{model}", "--json", "{missing}/x.json"], 2, "no such folder"),
        (["{model}", "--provider", "cuda"], 2, "CUDA"),
        (["{missing}"], 2, "no such file"),
        (["{folder}"], 2, "is a folder"),
        (["{model}", "--shape", "z:1x3x9x9"], 2, "no such input; the inputs are x"),
        (["{model}", "--shape", "x:1x3x9x9"], 2, "fixed to"),
        (["{model}", "--memory-limit", "much"], 2, "not a size"),
        (["{broken}"], 1, "failed"),
    ],
)
def test_failures_have_their_exit_codes(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    """2 for what is asked wrongly or cannot be had here, 1 for a model that fails."""
    model = _chain(tmp_path, 64).model
    broken = onnx.load(model)
    broken.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(broken, tmp_path / "broken.onnx")
    names = {
        "folder": tmp_path,
        "model": model,
        "missing": tmp_path / "none.onnx",
        "broken": tmp_path / "broken.onnx",
    }
    done = _command(*(argument.format(**names) for argument in arguments))
    assert done.returncode == code
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt-rtx"])
def test_sizes_nobody_gave_are_said(tmp_path: Path, engine: str) -> None:
    """Free dimensions count as a plausible size, and the table says which."""
    if engine == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = onnx.load(_chain(tmp_path, 64).model)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "rows"
    path = tmp_path / "free.onnx"
    onnx.save(model, path)
    runs = ["--runs", "1", "--processes", "1"] if engine == "onnxruntime" else []
    done = _command(path, "--engine", engine, *runs)
    assert f"note: {path}: free dimensions taken as x:1x3x512x64; give --shape" in done.stdout
    done = _command(path, "--engine", engine, "--shape", "x:1x3x80x64", *runs)
    assert "note:" not in done.stdout
    assert done.returncode == 0


def _recommending(folder: Path, entry: str) -> Path:
    """A model that recommends session options."""
    model = onnx.load(_chain(folder, 64).model)
    model.metadata_props.add(key=METADATA_KEY, value=entry)
    path = folder / "recommending.onnx"
    onnx.save(model, path)
    return path


def test_a_model_runs_with_what_it_recommends(tmp_path: Path) -> None:
    """Each with its own options; one without any at its best, then at the defaults.

    So what was cut is compared with the original as good as that can be.
    """
    plain = _chain(tmp_path, 64).model
    target = tmp_path / "figures.json"
    wanted = _recommending(tmp_path, '{"enable_mem_reuse": false, "enable_mem_pattern": false}')
    done = _command(
        plain, wanted, "--recommended", "--runs", "1", "--processes", "1", "--json", target
    )
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("note:")]
    assert said.startswith(f"note: {plain}: recommends no session options: at its best of ")
    assert "memory_pattern=False, memory_reuse=False" in done.stdout
    results = json.loads(target.read_text())["results"]
    # So small a model may need a little less without the arena, and then has a row for that.
    found = [each for each in results if each["options"]["arena"]]
    names = ("arena", "memory_pattern", "memory_reuse")
    options = [[each["options"][name] for name in names] for each in found]
    defaults = [True, True, True]
    # Its best may be the defaults.
    assert options[1:] in ([[True, False, False]], [defaults, [True, False, False]])
    assert (options[0] == defaults) == (len(found) == 2)
    assert [Path(each["model"]) for each in found] == [plain] * (len(found) - 1) + [wanted]
    assert found[0]["ratio"]["median"] == 1
    alone = _command(plain, "--recommended", "--runs", "1", "--processes", "1")
    assert "recommends no session options: at defaults" in alone.stdout


@pytest.mark.parametrize("without", [None, 5, 7])
@pytest.mark.parametrize("lowest", range(4))
def test_the_original_runs_at_its_best_beside_what_recommends_options(
    lowest: int, without: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the four pairs the one of least memory comes first, and the defaults once.

    Where the arena is what takes memory, a row without it is beside that.
    """
    plain = _chain(tmp_path, 64).model
    wanted = _recommending(tmp_path, '{"enable_mem_reuse": false, "enable_mem_pattern": false}')
    asked: list[list[tuple[str, OrtOptions]]] = []

    def measured(jobs: Any, options: Any, **others: Any) -> list[Measurement]:
        asked.append([(job.model.name, each) for job, each in zip(jobs, options, strict=True)])
        return [
            Measurement(
                model=str(job.model),
                device="",
                options=dataclasses.asdict(each),
                date="",
                version="",
                providers=(),
                peak_bytes=100 if at in (lowest, without) else 200,
                whole_bytes={lowest: 100, without: 90}.get(at, 300),
                latency_s=Spread.of([1.0]),
            )
            for at, (job, each) in enumerate(zip(jobs, options, strict=True))
        ]

    monkeypatch.setattr(measure_run, "measure", measured)
    keywords: dict[str, Any] = {"shapes": {}, "runs": 1, "recommended": True}
    found = measure_run.measure_onnxruntime([plain, wanted], OrtOptions(), at_best=True, **keywords)
    tried, rows = asked
    pairs = measure_run.memory_pairs(OrtOptions())
    others = [dataclasses.replace(each, arena=False) for each in pairs]
    assert tried == [(plain.name, each) for each in (*pairs, *others)]
    off = OrtOptions(memory_reuse=False, memory_pattern=False)
    defaults = [] if lowest == 0 else [(plain.name, OrtOptions())]
    more = [] if without is None else [(plain.name, others[without - 4])]
    assert rows == [(plain.name, pairs[lowest]), *more, *defaults, (wanted.name, off)]
    assert "at its best of" in found[0].note
    assert [each.note.startswith("the same without") for each in found] == [
        bool(more) and at == 1 for at in range(len(found))
    ]
    # Otherwise a model is a row: whoever asks for two has two.
    assert len(measure_run.measure_onnxruntime([plain, wanted], OrtOptions(), **keywords)) == 2


def test_a_model_that_runs_without_what_it_recommends_says_so(tmp_path: Path) -> None:
    """One line, where the options differ and only there; a bad entry is said, not fatal."""
    plain = _chain(tmp_path, 64).model
    wanted = _recommending(tmp_path, '{"enable_mem_reuse": false, "enable_mem_pattern": false}')
    runs = ["--runs", "1", "--processes", "1"]
    done = _command(plain, wanted, *runs)
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("note:")]
    assert said == (
        f"note: {wanted}: ran without the session options it recommends (enable_mem_reuse=False, "
        "enable_mem_pattern=False); --recommended runs it so"
    )
    half = _command(wanted, *runs, "--no-mem-reuse")
    assert "recommends (enable_mem_pattern=False)" in half.stdout
    same = _command(wanted, *runs, "--no-mem-reuse", "--no-mem-pattern")
    assert "note:" not in same.stdout
    bad = _command(_recommending(tmp_path, "[]"), *runs)
    assert bad.returncode == 0, bad.stderr
    assert "what it recommends is not known: its metadata entry" in bad.stdout


@pytest.mark.parametrize(
    "entry",
    ["no JSON", "[]", '{"enable_profiling": true}', '{"enable_mem_reuse": 1}', "[" * 100000],
)
def test_what_a_model_recommends_is_not_trusted(entry: str, tmp_path: Path) -> None:
    """Only options that decide memory, only true or false; all else is refused in one line."""
    done = _command(_recommending(tmp_path, entry), "--recommended")
    assert done.returncode == 2
    assert (
        "JSON object of enable_cpu_mem_arena, enable_mem_pattern, enable_mem_reuse" in done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1


def test_tuning_tries_eight_and_names_the_best(tmp_path: Path) -> None:
    """The pairs of reuse and pattern, with the arena and without; the best is of the lowest."""
    model, target = _chain(tmp_path, 256).model, tmp_path / "figures.json"
    done = _command(model, "--tune", "--runs", "1", "--processes", "1", "--json", target)
    assert done.returncode == 0, done.stderr
    best = rf"^note: {re.escape(str(model))}: best: --(no-)?arena, --(no-)?mem-pattern"
    assert len(re.findall(best, done.stdout, re.MULTILINE)) == 1
    data = json.loads(target.read_text())
    options = [each["options"] for each in data["results"]]
    assert [(each["memory_reuse"], each["memory_pattern"]) for each in options] == [
        (True, True), (True, False), (False, True), (False, False),
    ] * 2  # fmt: skip
    assert [each["arena"] for each in options] == [True] * 4 + [False] * 4
    (chosen,) = data["best"]
    assert set(chosen["session_options"]) == set(SESSION_OPTIONS)
    assert chosen["peak_bytes"] <= 1.02 * min(each["peak_bytes"] for each in data["results"])


@pytest.mark.parametrize(("provider", "turns"), [("cpu", [4, 5]), ("cuda", [4])])
def test_settings_without_the_arena_are_held_against_the_defaults(
    provider: str, turns: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than five hold their memory at once; the arena is not what a GPU's memory lies in."""
    asked: list[list[OrtOptions]] = []

    def measured(jobs: Any, options: list[OrtOptions], **_: Any) -> list[Measurement]:
        asked.append(options)
        return [
            Measurement("m", options=dataclasses.asdict(each), peak_bytes=100 + each.arena)
            for each in options
        ]

    monkeypatch.setattr(measure_run, "measure", measured)
    model = _chain(tmp_path, 16).model
    (rows,) = tune_onnxruntime(
        [model], OrtOptions(provider=provider, arena=False), shapes={}, runs=1
    )
    assert [len(each) for each in asked] == turns
    assert all(each[0] == OrtOptions(provider=provider) for each in asked)
    assert len(rows) == len({tuple(row.options.items()) for row in rows}) == 4 * len(turns)


def test_the_best_is_the_fastest_of_the_lowest() -> None:
    """Within 2 % peaks count as equal; a failed one is none; nothing is best where all failed."""

    def made(peak: int | None, seconds: float) -> Measurement:
        return Measurement("m", peak_bytes=peak, latency_s=Spread.of([seconds]))

    results = [made(200, 1), made(100, 3), made(102, 2), made(103, 1), made(None, 0)]
    assert best(results) is results[2]
    assert best(results[4:]) is None


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt-rtx"])
def test_a_rewrite_can_be_measured_at_once(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--measure adds rows to the table and to the report; ONNX Runtime's options are found."""
    if engine == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model, report = _chain(tmp_path, 64).model, tmp_path / "report.json"

    def once(*jobs: Any, **how: Any) -> list[Measurement]:
        return measure(*jobs, **{**how, "processes": 1})

    monkeypatch.setattr(tuning, "measure", once)
    options = ["--engine", engine, "--min-elements", "0", "--report", str(report)]
    done = run_command("rewrite", model, "--measure", *options)
    assert done.returncode == 0, done.stderr
    assert "x first" in done.stdout
    rows = json.loads(report.read_text())["measured"]
    key = "peak_bytes" if engine == "onnxruntime" else "planned_activation_bytes"
    original, patched = str(model), str(tmp_path / f"{model.stem}.patched.onnx")
    models = [row["model"] for row in rows]
    assert {row["engine"] for row in rows} == {engine}
    if engine == "tensorrt-rtx":
        assert models == [original, patched]
    else:
        # The original at the defaults, and where others serve better, at those too.
        assert models in ([original] * k + [patched] * 4 for k in (1, 2))
        found = json.loads(report.read_text())["recommended_session_options"]
        entries = {e.key: e.value for e in onnx.load(patched).metadata_props}
        recommended = json.loads(entries[METADATA_KEY])
        assert found["kind"] == "measured"
        assert recommended == {name: found[name] for name in recommended}
        assert found["measured_peak_bytes"] <= 1.02 * min(row["peak_bytes"] for row in rows[-4:])
        again = _command(patched, "--recommended", "--runs", "1", "--processes", "1")
        assert again.returncode == 0, again.stderr
        assert "recommends no session options" not in again.stdout
    assert all(row[key] > 0 for row in rows)
    # A plan holds no figure that looks measured.
    assert all(("peak_bytes" in row) == (engine == "onnxruntime") for row in rows)
