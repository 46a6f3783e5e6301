"""The command line and the Python API, from file to file: what is written, what is refused."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import patchconv_deploy
from patchconv_deploy import (
    ModelError,
    OptionError,
    SaveError,
    UsageError,
    VerificationError,
    convert_model,
    pareto,
    rewrite,
)
from patchconv_deploy.api import make_options
from patchconv_deploy.cli.main import rewrite_command
from patchconv_deploy.engines.process.child import Child
from patchconv_deploy.free_memory import Memory
from patchconv_deploy.options import OPTIONS, names_of
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.commands import run_command
from tests.support.small_models import file_names

ROOT = Path(__file__).resolve().parents[2]


def _model(
    height: int | str = 32,
    *,
    kind: int = TensorProto.FLOAT,
    channels: int = 8,
    domain: str = "",
) -> onnx.ModelProto:
    """Conv 3x3 - Relu - Conv 3x3, stride 2 in the second; random weights."""
    generator = np.random.default_rng(3)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {
        "w1": generator.standard_normal((channels, 3, 3, 3)),
        "w2": generator.standard_normal((4, channels, 3, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", strides=[2, 2]),
        helper.make_node("Identity", ["c"], ["y"], name="end", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, [1, 3, height, height])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )
    return helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 22)], producer_name="tests"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small model in a folder of its own."""
    file = tmp_path / "model.onnx"
    onnx.save(_model(), file)
    return file


def _command(
    *arguments: str | Path, do: str = "rewrite", **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "patchconv_deploy", do, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        **options,
    )


def _run(model: Path, feed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(None, {"x": feed})[0]
    return result


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_command_writes_a_model_that_computes_the_same(path: Path) -> None:
    """Default output, table, verification, report; no other file is left behind."""
    report = path.parent / "report.json"
    done = _command(path, "--min-elements", "0", "--report", report)
    assert done.returncode == 0, done.stderr
    assert "first" in done.stdout
    assert "equal" in done.stdout
    out = path.parent / "model.patched.onnx"
    assert sorted(_files(path.parent)) == ["model.onnx", "model.patched.onnx", "report.json"]
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(_run(out, x), _run(path, x), rtol=1e-5, atol=1e-4)
    data = json.loads(report.read_text())
    assert [entry["nodes"] for entry in data["rewritten"]] == [["first"], ["second"]]
    assert all(entry["splits"] == 4 for entry in data["rewritten"])
    assert data["peak_activation_bytes"]["before"] > 0
    assert data["verification"]["ran"]
    assert data["verification"]["passed"]
    assert data["verification"]["outputs"][0]["seam_max_abs"] is not None


def test_rewriting_twice_is_recognised(path: Path) -> None:
    """A rewritten model is said to be one and comes out the same."""
    first = rewrite(path, min_elements=0)
    assert first.path is not None
    done = _command(first.path, "-o", path.parent / "again.onnx")
    assert done.returncode == 0
    assert "was rewritten before" in done.stdout
    for limit in ("--memory-budget", "--max-buffer"):
        kept = run_command(
            "rewrite", first.path, limit, "1GiB", "-o", path.parent / f"{limit}.onnx"
        )
        assert kept.returncode == 0
        assert "MiB as it is" in kept.stdout or "It fits as it is" in kept.stdout
        assert "cut it anyway" not in kept.stdout
    assert (path.parent / "again.onnx").read_bytes() == first.path.read_bytes()


def test_nothing_large_is_said_and_the_model_written_unchanged(path: Path) -> None:
    """With a bound no Conv reaches, the largest Convs are shown."""
    done = _command(path, "--min-elements", "100000000")
    assert done.returncode == 0
    assert "No Conv was cut" in done.stdout
    assert "first: 1x3x32x32 -> 1x8x32x32" in done.stdout
    assert onnx.load(path.parent / "model.patched.onnx") == onnx.load(path)


def test_a_dry_run_writes_nothing(path: Path) -> None:
    """The table is shown, no file appears."""
    done = _command(path, "--dry-run", "--min-elements", "0")
    assert done.returncode == 0
    assert "not run (dry run)" in done.stdout
    assert list(_files(path.parent)) == ["model.onnx"]


BAD = {
    "no such file": ["{missing}"],
    "not an ONNX model": ["{garbage}"],
    "at least 1": ["{model}", "--splits", "0"],
    "no such input": ["{model}", "--shape", "z:1x3x8x8"],
    "fixed to 32": ["{model}", "--shape", "x:1x3x8x32"],
    "3 sizes given": ["{model}", "--shape", "x:1x3x8"],
    "not of the form": ["{model}", "--shape", "x"],
    "no such folder": ["{model}", "-o", "{folder}/none/out.onnx"],
    "never overwritten": ["{model}", "-o", "{model}", "--force"],
    "exists already": ["{model}", "-o", "{garbage}"],
    "is a folder": ["{model}", "-o", "{folder}", "--force"],
    "not one of": ["{model}", "--form", "spiral"],
    "batch and channels": ["{model}", "--axis", "1"],
    "neither height": ["{model}", "--axis", "time"],
    "No such option": ["{model}", "--frobnicate"],
    "Missing argument": [],
    "not an .npz": ["{model}", "--inputs", "{garbage}"],
    "no JSON stands there": ["{model}", "--report", "{model}"],
    "the output's own file": ["{model}", "-o", "{folder}/o.onnx", "--report", "{folder}/o.onnx"],
    "finite number": ["{model}", "--rtol", "nan"],
    "between 1 and 2^31": ["{model}", "--shape", "x:1x3x99999999999999999999x32"],
    "at most 4096": ["{model}", "--splits", "1000000"],
    "not in the range": ["{model}", "--seed", "-1"],
    "no such folder ": ["{model}", "--report", "{folder}/none/r.json"],
    "--verify-timeout": ["{model}", "--verify-timeout", "0"],
    "must be 0 or more": ["{model}", "--min-elements", "-1"],
    "onnx knows opsets": ["{model}", "--upgrade-opset", "999"],
}

BAD_BUILD = {
    "is a folder": ["{model}", "-o", "{folder}", "--force"],
    "exists already": ["{model}", "-o", "{garbage}"],
    "never overwritten": ["{model}", "-o", "{model}", "--force"],
    "no such folder": ["{model}", "-o", "{folder}/m.plan", "--timingCacheFile", "{folder}/no/c"],
    "name the same file": ["{model}", "-o", "{folder}/m", "--json", "{folder}/m"],
    "no NVIDIA": ["{model}", "-o", "{folder}/m", "--exportLayerInfo", "{folder}/l"],
    "not an ONNX model": ["{garbage}", "-o", "{folder}/m.plan"],
    "not of the form": ["{model}", "-o", "{folder}/m.plan", "--optShapes", "x"],
}


@pytest.mark.parametrize("words", list(BAD_BUILD))
def test_a_bad_build_ends_in_one_line_and_no_file(path: Path, words: str) -> None:
    """Exit code 2, whatever engine is installed; nothing written or changed."""
    garbage = path.parent / "garbage.onnx"
    garbage.write_bytes(b"\x08\x07 this is no model")
    names = {"model": path, "garbage": garbage, "folder": path.parent}
    before = _files(path.parent)
    done = run_command("build", *(a.format(**names) for a in BAD_BUILD[words]))
    if words == "no NVIDIA" and done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert _files(path.parent) == before


@pytest.mark.parametrize("words", list(BAD))
def test_bad_input_ends_in_one_line_and_no_file(path: Path, words: str) -> None:
    """Exit code 2, one line on standard error, nothing written or changed."""
    garbage = path.parent / "garbage.onnx"
    garbage.write_bytes(b"\x08\x07 this is no model")
    names = {
        "model": path,
        "garbage": garbage,
        "missing": path.parent / "missing.onnx",
        "folder": path.parent,
    }
    before = _files(path.parent)
    done = run_command("rewrite", *(argument.format(**names) for argument in BAD[words]))
    assert done.returncode == 2
    assert words.strip() in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert _files(path.parent) == before


def test_an_unknown_custom_operator_is_bad_input(tmp_path: Path) -> None:
    """It is named, and the flag to leave it alone too; with the flag nothing can run it."""
    file = tmp_path / "custom.onnx"
    model = _model(domain="my.domain")
    model.opset_import.add(domain="my.domain", version=1)
    onnx.save(model, file)
    done = _command(file, "--min-elements", "0")
    assert done.returncode == 2
    assert "my.domain::Identity" in done.stderr
    assert not (tmp_path / "custom.patched.onnx").exists()
    result = rewrite(file, min_elements=0, allow_custom_ops=True)
    assert not result.report.verification["ran"]
    assert any("not verified" in warning for warning in result.report.warnings)


def test_a_mismatch_writes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewriter that breaks the model is caught, and the old output stays."""
    real = rewrite_model

    def broken(*arguments: Any) -> Outcome:
        """Let the second window begin where the first one does."""
        outcome = real(*arguments)
        first, second = [n for n in outcome.model.graph.node if "/window_" in n.name][:2]
        del second.input[:]
        second.input.extend(first.input)
        return outcome

    monkeypatch.setattr("patchconv_deploy.api.rewrite_model", broken)
    out = path.parent / "model.patched.onnx"
    out.write_bytes(b"what stood there")
    with pytest.raises(VerificationError, match="does not compute the same"):
        rewrite(path, min_elements=0, force=True)
    assert _files(path.parent) == {
        "model.onnx": path.read_bytes(),
        "model.patched.onnx": b"what stood there",
    }


def test_a_full_disk_leaves_what_stood_there(path: Path) -> None:
    """A write that fails half-way: exit code 1, one line, the old file untouched."""
    out = path.parent / "model.patched.onnx"
    out.write_bytes(b"what stood there")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = _command(path, "--min-elements", "0", "--force", preexec_fn=limit)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nothing was written" in done.stderr
    assert sorted(_files(path.parent)) == ["model.onnx", "model.patched.onnx"]
    assert out.read_bytes() == b"what stood there"


def test_a_failed_rename_leaves_what_stood_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails at the last moment: model and weights stay as a pair."""
    onnx.save(_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    first = rewrite(path, min_elements=0)
    assert first.path is not None
    before = _files(path.parent)
    real = os.replace

    def failing(source: Any, target: Any) -> None:
        if str(target).endswith("model.patched.onnx"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space left"):
        rewrite(path, min_elements=0, splits=2, force=True)
    assert _files(path.parent) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cleans_up(path: Path, number: signal.Signals) -> None:
    """Ctrl-C during verification: one line, exit code 130, nothing written."""
    code = (
        # Whoever starts the tests in the background has Ctrl-C ignored, and it is inherited.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import time, sys, patchconv_deploy.api as api\n"
        "def wait(*a, **k):\n    print('ready', flush=True); time.sleep(60)\n"
        "api.verify = wait\n"
        "from patchconv_deploy.cli.main import main_rewrite\n"
        f"sys.argv = ['patchconv-rewrite', {str(path)!r}, '--min-elements', '0']\n"
        "main_rewrite()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "error: interrupted; nothing was written"
    assert list(_files(path.parent)) == ["model.onnx"]
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_without_a_runtime_the_file_is_written_and_said_not_to_be_verified(path: Path) -> None:
    """Rewriting needs no runtime; the report says verification did not run."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from patchconv_deploy import rewrite\n"
        f"r = rewrite({str(path)!r}, min_elements=0)\n"
        "v = r.report.verification\n"
        "assert not v['ran'] and 'not installed' in v['reason'], v\n"
        "assert any('not verified' in w for w in r.report.warnings)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (path.parent / "model.patched.onnx").exists()


def test_a_killed_runtime_is_reported_not_fatal(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child dies by a signal: not run, the reason names it, the file is written."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr("patchconv_deploy.engines.process.child.sys.executable", str(script))
    result = rewrite(path, min_elements=0)
    assert "SIGKILL" in result.report.verification["reason"]
    assert result.path is not None
    assert result.path.exists()


def test_a_slow_original_is_not_verified(path: Path) -> None:
    """Past its time limit it is stopped: the file is written, the reason says how to allow more."""
    result = rewrite(path, min_elements=0, timeout_s=0.001)
    assert not result.report.verification["ran"]
    reason = result.report.verification["reason"]
    assert "original model: no answer within 0.001 s; allow more with timeout_s=" in reason
    assert result.path is not None
    assert any("not verified" in warning for warning in result.report.warnings)


def test_a_hanging_result_is_a_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original ran and the rewritten model does not come back: nothing is written."""
    real = Child.ask

    def slow(child: Child, do: str, **command: Any) -> dict[str, Any]:
        if do == "rewritten":
            assert command["time_limit_s"] >= 1800
            command["time_limit_s"] = 0.0001
        return real(child, do, **command)

    monkeypatch.setattr(Child, "ask", slow)
    with pytest.raises(VerificationError, match="rewritten model does not run: no answer within"):
        rewrite(path, min_elements=0)
    assert list(_files(path.parent)) == ["model.onnx"]


def test_unknown_keywords_are_refused(path: Path) -> None:
    """A misspelt keyword is named, by both functions; nothing is written."""
    misspelt: dict[str, Any] = {"spilts": 3}
    only_of_rewrite: dict[str, Any] = {"dry_run": True}
    with pytest.raises(TypeError, match="unexpected keyword argument 'spilts'"):
        rewrite(path, **misspelt)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dry_run'"):
        convert_model(path, **only_of_rewrite)
    assert list(_files(path.parent)) == ["model.onnx"]


PUBLIC = (rewrite, convert_model, pareto)


@pytest.mark.parametrize("function", PUBLIC)
def test_signatures_are_as_declared(function: Callable[..., Any]) -> None:
    """Each keyword is spelled out, has its declared default, and no other function's are there."""
    parameters = inspect.signature(function).parameters
    arguments = {"path", "model", "example_inputs", "progress"}
    assert parameters.keys() - arguments == names_of(function.__name__)
    assert {each.kind for each in parameters.values()} <= {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    for name in parameters.keys() - arguments:
        default, declared = parameters[name].default, OPTIONS[name].default
        assert (name, type(default), default) == (name, type(declared), declared)


@pytest.mark.parametrize("function", PUBLIC)
def test_every_keyword_is_documented(function: Callable[..., Any]) -> None:
    """In the order of the signature, each with a sentence."""
    text = inspect.getdoc(function) or ""
    section = text.partition("Args:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^    (\w+): (?=[A-Z])", section, re.MULTILINE)
    assert documented == list(inspect.signature(function).parameters)


def test_the_command_has_what_is_declared() -> None:
    """All of it, by the same names, with the same defaults; a list is empty where none is given."""
    context = rewrite_command.make_context("rewrite", ["model.onnx"])
    defaults = {name: () if each.multiple else each.default for name, each in OPTIONS.items()}
    assert context.params == {**defaults, "model": Path("model.onnx")}


def test_the_rewriter_has_the_same_defaults() -> None:
    """What is asked for where nothing is said, is what the rewriter does by itself."""
    parameters = inspect.signature(make_options).parameters
    assert make_options(**{name: OPTIONS[name].default for name in parameters}) == Options()


# Options that a report repeats: what is given, and what the report then has.
REPORTED: dict[str, tuple[Any, Any]] = {
    "splits": (3, 3),
    "memory_budget": ("1GiB", 2**30),
    "max_recompute": (1.25, 1.25),
    "form": ("loop", "loop"),
    "patch_rows": (16, 16),
    "target": ("triton", "triton"),
    "max_tensor_elements": (2**20, 2**20),
    "max_buffer": ("1MiB", 2**20),
    "axis": ("width", "width"),
    "include": (("first", "s*"), ["first", "s*"]),
    "exclude": ("second", ["second"]),
    "min_elements": (0, 0),
    "shapes": ({"x": (1, 3, 32, 32)}, {"x": [1, 3, 32, 32]}),
    "fold": (False, False),
}

# What a report says elsewhere: what was written and cut, the opset, verification; or what decides
# whether there is a result and not which.
ELSEWHERE = {"out", "plan", "upgrade_opset", "verify", "allow_custom_ops", "force"}


@pytest.mark.parametrize("name", REPORTED)
def test_the_report_has_what_was_asked_for(path: Path, name: str) -> None:
    """By the declared key, beside all others at their defaults."""
    given, said = REPORTED[name]
    if name == "patch_rows":  # which a fixed height has none of
        onnx.save(_model("H"), path)
    arguments: dict[str, Any] = {name: given}
    usual = rewrite(path, dry_run=True).report.data["options"]
    asked = rewrite(path, dry_run=True, **arguments).report.data["options"]
    assert asked == {**usual, OPTIONS[name].reported: said}
    assert asked != usual


def test_every_option_that_changes_a_result_is_reported(path: Path) -> None:
    """Those of all functions; the report has no key beside them."""
    assert names_of("convert_model") == REPORTED.keys() | ELSEWHERE
    declared = {each.reported for each in OPTIONS.values() if each.reported}
    assert rewrite(path, dry_run=True).report.data["options"].keys() == declared
    assert {OPTIONS[name].reported for name in REPORTED} == declared


@pytest.mark.parametrize(
    "little", [Memory(2**40, 1000), Memory(2**40, 2**40, limit=2**30, held=2**30 - 1000)]
)
def test_a_model_that_does_not_fit_is_not_run(
    path: Path, little: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicted peak against what is free, here or in the container, before anything runs."""
    monkeypatch.setattr("patchconv_deploy.verify.verification.memory_here", lambda: little)
    result = rewrite(path, min_elements=0)
    assert not result.report.verification["ran"]
    assert "GiB" in result.report.verification["reason"]
    assert result.path is not None
    assert any("not verified" in warning for warning in result.report.warnings)


def test_free_dimensions_are_verified_at_a_size_that_runs(tmp_path: Path) -> None:
    """A symbolic height: seeded inputs of a plausible size, seams found at that size."""
    file = tmp_path / "free.onnx"
    onnx.save(_model("side"), file)
    result = rewrite(file, min_elements=0)
    found = result.report.verification
    assert found["passed"]
    assert found["shapes"]["x"][2] >= 32
    assert found["outputs"][0]["seam_max_abs"] is not None
    x = np.random.default_rng(1).standard_normal((1, 3, 41, 41)).astype(np.float32)
    assert result.path is not None
    np.testing.assert_allclose(_run(result.path, x), _run(file, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_types_without_a_kernel_are_verified_on_twins(tmp_path: Path, kind: int) -> None:
    """bfloat16 and double have no Conv on the CPU: float32 twins stand in, and are named."""
    file = tmp_path / "typed.onnx"
    onnx.save(_model(kind=kind), file)
    found = rewrite(file, min_elements=0).report.verification
    assert found["passed"], found
    assert ("twins" in found["via"]) == (kind != TensorProto.FLOAT16)


def test_given_inputs_are_used_and_checked(path: Path) -> None:
    """--inputs: names, types and shapes are held against the model."""
    good, bad = path.parent / "good.npz", path.parent / "bad.npz"
    np.savez(good, x=np.ones((1, 3, 32, 32), np.float32))
    np.savez(bad, x=np.ones((1, 3, 32, 31), np.float32))
    result = rewrite(path, min_elements=0, inputs=good)
    assert result.report.verification["passed"]
    assert result.report.verification["seed"] is None
    for wrong in ({"z": np.ones(1)}, {"x": np.ones((1, 3, 32, 32))}):
        np.savez(bad, **wrong)
        with pytest.raises(UsageError, match="inputs"):
            rewrite(path, path.parent / "other.onnx", min_elements=0, inputs=bad)


def test_external_weights_are_copied_or_shared(tmp_path: Path) -> None:
    """The output has its own copy, or on request refers to the same file; both run."""
    file = tmp_path / "big.onnx"
    onnx.save(_model(), file, save_as_external_data=True, location="w.bin", size_threshold=0)
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    want = _run(file, x)
    copied = rewrite(file, tmp_path / "copied.onnx", min_elements=0)
    shared = rewrite(file, tmp_path / "shared.onnx", min_elements=0, share_weights=True)
    assert copied.report.verification["passed"]
    assert shared.report.verification["passed"]
    assert file_names(tmp_path) == [
        "big.onnx", "copied.onnx", "copied.onnx.HASH.data", "shared.onnx", "w.bin",
    ]  # fmt: skip
    np.testing.assert_allclose(_run(tmp_path / "shared.onnx", x), want, rtol=1e-5, atol=1e-4)
    (tmp_path / "w.bin").unlink()
    np.testing.assert_allclose(_run(tmp_path / "copied.onnx", x), want, rtol=1e-5, atol=1e-4)
    with pytest.raises(ModelError, match="missing"):
        rewrite(file, tmp_path / "late.onnx")


def test_weights_are_shared_only_from_below(tmp_path: Path) -> None:
    """A model in another folder cannot refer up and out of it."""
    file, other = tmp_path / "big.onnx", tmp_path / "other"
    other.mkdir()
    onnx.save(_model(), file, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(SaveError, match="shared only below"):
        rewrite(file, other / "out.onnx", min_elements=0, share_weights=True)
    assert list(other.iterdir()) == []


def test_convert_model_returns_what_it_is_given(path: Path) -> None:
    """Path, str, ModelProto, graphsurgeon graph; the argument stays as it was."""
    proto = onnx.load(path)
    kept = proto.SerializeToString()
    converted = convert_model(proto, splits=3, min_elements=0)
    assert isinstance(converted, onnx.ModelProto)
    assert proto.SerializeToString() == kept
    assert len(converted.graph.node) > len(proto.graph.node)
    graph = gs.import_onnx(proto)
    assert isinstance(convert_model(graph, min_elements=0), gs.Graph)
    assert isinstance(convert_model(path, min_elements=0), Path)
    path.with_name("model.patched.onnx").unlink()
    assert isinstance(convert_model(str(path), min_elements=0), str)
    with pytest.raises(UsageError, match="no model"):
        convert_model(3)
    with pytest.raises(OptionError, match="splits"):
        convert_model(proto, splits=0)


def test_convert_model_takes_a_torch_module() -> None:
    """Exported, rewritten, and equal to what the module computes."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()).eval()
    x = torch.randn(1, 3, 24, 24)
    converted = convert_model(module, splits=3, min_elements=0, example_inputs=(x,))
    assert isinstance(converted, onnx.ModelProto)
    assert any("/patchconv/" in node.name for node in converted.graph.node)
    session = onnxruntime.InferenceSession(
        converted.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="example_inputs"):
        convert_model(module)


def test_help_and_version_say_what_there_is() -> None:
    """Help lists the options; the group lists its command."""
    done = _command("--help")
    assert done.returncode == 0
    assert "--min-elements" in done.stdout
    assert patchconv_deploy.__all__
