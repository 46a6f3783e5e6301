"""A model is planned for what a Triton server does, and publishing says where it was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from patchconv_deploy import rewrite, write_triton_repository
from patchconv_deploy.engines.measurement import Job
from patchconv_deploy.engines.ort.measure import measure
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.memory.reader import predict
from patchconv_deploy.rewriters.memory.targets import ENGINES, TARGETS
from patchconv_deploy.rewriters.outcome import SESSION_OPTIONS_KEY as OPTIONS_KEY
from patchconv_deploy.rewriters.planning.plan_file import METADATA_KEY as PLAN_KEY
from patchconv_deploy.triton.config import memory_options
from patchconv_deploy.triton.memory import Footprint, footprint
from patchconv_deploy.triton.target import planning
from patchconv_deploy.verify.inputs import make_inputs, save_inputs
from tests.support.small_models import chain
from tools.calibrate_memory import BOUNDS, conv_chain, engine_here, measured, predicted

MIB = 1 << 20

SERVER = {"enable_mem_reuse": True, "enable_mem_pattern": False}


def _plan(target: str | None) -> str:
    return json.dumps({"version": 2} | ({} if target is None else {"target": target}))


def _cut(folder: Path, target: str) -> Path:
    source = folder / "chain.onnx"
    onnx.save(conv_chain(64, channels=16, layers=4), source)
    out = folder / f"{target}.onnx"
    result = rewrite(source, out, splits=4, target=target, verify=False)
    assert result.outcome.rewritten
    return out


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-default", "triton", "tensorrt"])
def test_a_model_holds_what_it_was_planned_for(tmp_path: Path, target: str) -> None:
    """The plan names the target; session options stand beside it where it was planned for some."""
    found = _metadata(_cut(tmp_path, target))
    assert json.loads(found[PLAN_KEY])["target"] == target
    wanted = {
        "onnxruntime": {"enable_mem_reuse": False, "enable_mem_pattern": False},
        "triton": SERVER,
    }
    options = found.get(OPTIONS_KEY)
    assert (None if options is None else json.loads(options)) == wanted.get(target)


def test_the_target_is_what_the_configuration_asks_for() -> None:
    """The table that memory is predicted by has just the options that are written and measured."""
    options = memory_options("cpu")
    target = ENGINES[TARGETS["triton"].engine].holding
    assert (target.reuse, target.pattern) == (options.memory_reuse, options.memory_pattern)
    assert options.arena
    assert options.session_options().items() >= SERVER.items()


@pytest.mark.parametrize(
    ("metadata", "platform", "provider", "says"),
    [
        ({}, "onnxruntime_onnx", "cpu", "note: it was not rewritten"),
        ({}, "tensorrt_plan", "cpu", "note: it was not rewritten"),
        (
            {PLAN_KEY: _plan("triton"), OPTIONS_KEY: json.dumps(SERVER)},
            *("onnxruntime_onnx", "cpu", "note: it was planned for what the server does"),
        ),
        (
            {PLAN_KEY: _plan("onnxruntime"), OPTIONS_KEY: '{"enable_mem_reuse": false}'},
            *("onnxruntime_onnx", "cpu", "warning: it was planned for enable_mem_reuse=False; the"),
        ),
        (
            {PLAN_KEY: _plan("onnxruntime"), OPTIONS_KEY: '{"enable_cpu_mem_arena": false}'},
            *("onnxruntime_onnx", "cuda", "warning: it was planned for enable_cpu_mem_arena=False"),
        ),
        (
            {PLAN_KEY: _plan(None), OPTIONS_KEY: '{"enable_mem_reuse": false}'},
            *("onnxruntime_onnx", "cpu", "warning: it was planned for enable_mem_reuse=False; the"),
        ),
        (
            {PLAN_KEY: _plan("onnxruntime-default")},
            *("onnxruntime_onnx", "cpu", "note: it was planned for ONNX Runtime's default"),
        ),
        (
            {PLAN_KEY: "no JSON"},
            *("onnxruntime_onnx", "cpu", "note: its plan says nothing of session options"),
        ),
        (
            {PLAN_KEY: _plan("onnxruntime"), OPTIONS_KEY: "[]"},
            *("onnxruntime_onnx", "cpu", "warning: what it was planned for is not known"),
        ),
        (
            {PLAN_KEY: _plan("tensorrt")},
            *("onnxruntime_onnx", "cpu", "warning: it was planned for tensorrt, and ONNX Runtime"),
        ),
        ({PLAN_KEY: _plan("tensorrt")}, "tensorrt_plan", "cpu", "note: it was planned for Tensor"),
        ({PLAN_KEY: _plan("tensorrt")}, "onnxruntime_onnx", "tensorrt", "note: it was planned for"),
        (
            {PLAN_KEY: _plan("triton"), OPTIONS_KEY: json.dumps(SERVER)},
            *("tensorrt_plan", "cpu", "warning: it was planned for triton, and TensorRT runs it"),
        ),
    ],
)
def test_what_is_said(metadata: dict[str, str], platform: str, provider: str, says: str) -> None:
    """One line, a warning only where the server does something else than was planned for."""
    notes, warnings = planning(Path("m.onnx"), metadata, platform, provider)
    (said,) = [f"note: {note}" for note in notes] + [f"warning: {each}" for each in warnings]
    assert said.startswith(says)
    assert "\n" not in said
    if warnings:
        wanted = "tensorrt" if "tensorrt" in (provider, platform.split("_")[0]) else "triton"
        assert f"rewrite(MODEL, target={wanted!r})" in said


def test_publishing_says_it(tmp_path: Path) -> None:
    """On standard error, with exit code 0; in the JSON as well."""
    path, target = _cut(tmp_path, "onnxruntime"), tmp_path / "out.json"
    command = [sys.executable, "-m", "patchconv_deploy", "triton", str(path), "--json", str(target)]
    done = subprocess.run(
        [*command, "--repository", str(tmp_path / "repository")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "warning: it was planned for enable_mem_reuse=False; the server cannot turn memory reuse"
    )
    # On the command line as a command, for programs as a call.
    (said,) = json.loads(target.read_text())["warnings"]
    assert "--target triton" in line
    assert "--" not in said
    assert "target='triton')" in said
    assert line.startswith("warning: " + said.partition("rewrite(")[0][:60])
    fits = write_triton_repository(_cut(tmp_path, "triton"), tmp_path / "repository")
    assert fits.warnings == ()
    assert any("planned for what the server does" in note for note in fits.notes)
    plain = write_triton_repository(tmp_path / "chain.onnx", tmp_path / "repository")
    assert any("it was not rewritten" in note for note in plain.notes)


def test_a_plan_for_a_server_needs_less_there(tmp_path: Path) -> None:
    """Of the two plans, the one made for the server's options has the lower peak under them."""
    peaks = {}
    for target in ("onnxruntime", "triton"):
        source, out = tmp_path / "chain.onnx", tmp_path / f"{target}.onnx"
        onnx.save(conv_chain(256, channels=32), source)
        rewrite(source, out, splits=16, target=target, verify=False)
        model = onnx.load(out)
        shapes = infer(skeleton(Loaded(model, None)))
        peaks[target] = predict(model.graph, shapes, TARGETS["triton"].engine).bytes
    assert peaks["triton"] <= peaks["onnxruntime"]


def test_predictions_for_a_server_are_near_what_is_measured(tmp_path: Path) -> None:
    """Original and cut, the most that the arena has in use under the server's options."""
    source, out = tmp_path / "chain.onnx", tmp_path / "cut.onnx"
    onnx.save(conv_chain(192, channels=32, layers=6), source)
    rewrite(source, out, splits=4, target="triton", verify=False)
    for path in (source, out):
        found = measured(path, "onnxruntime-server")
        guess = predicted(onnx.load(path), "onnxruntime-server").bytes
        assert abs(guess / found - 1) <= BOUNDS["onnxruntime-server"], path
    assert not engine_here("onnxruntime-server").holding.pattern


def test_the_capacity_is_that_of_the_whole_process(tmp_path: Path) -> None:
    """Loading, running and inputs, under the options that the configuration asks for."""
    model = chain(3, (1, 2, 128, 128))
    path, inputs = tmp_path / "m.onnx", tmp_path / "inputs.npz"
    onnx.save(model, path)
    need = footprint(path, "cpu", {}, batching=False, batch=1)
    assert need.kind == "measured"
    assert need.load_bytes is not None
    assert need.whole_bytes is not None
    assert need.total == need.whole_bytes + need.input_bytes
    assert need.whole_bytes >= need.load_bytes > 0
    save_inputs(inputs, make_inputs(model, infer(skeleton(Loaded(model, None))), {}, 0))
    (found,) = measure([Job(path, inputs)], [memory_options("cpu")], runs=1, processes=1)
    assert found.whole_bytes is not None
    assert 0.5 < need.whole_bytes / found.whole_bytes < 2
    # Where nothing could be run, what the file holds stands for loading.
    guess = Footprint("predicted", 1, 30 * MIB, 2 * MIB, 5 * MIB)
    assert guess.total == 37 * MIB
