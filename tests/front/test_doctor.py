"""`patchconv doctor`: what is found, what can be done, what is missing; it always ends well."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from patchconv_deploy import doctor
from patchconv_deploy.doctor import Findings, Module, examine, probe
from patchconv_deploy.engines.errors import DeviceMissing
from patchconv_deploy.engines.gpu.nvml import Device, devices
from patchconv_deploy.free_memory import Memory, memory_here
from tests.support.commands import run_command

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
GPU = Device("A GPU", 80 << 30, 79 << 30, "9.0")


def _examined(
    *missing: str, providers: tuple[str, ...] = (CPU,), gpus: tuple[Device, ...] | None = None
) -> Findings:
    """Examine a machine on which some modules are missing, and on which there may be a GPU."""

    def look(name: str) -> Module:
        found = name not in missing
        return Module(name, found, "1" if found else "", providers=providers if found else ())

    def find() -> tuple[str, tuple[Device, ...]]:
        if gpus is None:
            raise DeviceMissing("there is no driver")
        return "580.1", gpus

    return examine(look, find, lambda: Memory(8 << 30, 4 << 30))


def _can(found: Findings) -> dict[str, bool]:
    return {each.what.partition(" (")[0]: each.possible for each in found.abilities}


def test_without_a_runtime_a_model_can_be_rewritten_alone() -> None:
    """Each other thing says what is missing, and what to install."""
    found = _examined(*(name for name in doctor.MODULES if name != "onnx"))
    can = _can(found)
    assert [what for what, possible in can.items() if possible] == ["rewrite"]
    verify = next(each for each in found.abilities if each.what == "verify")
    assert verify.missing == ("onnxruntime is not installed",)
    assert verify.install == "patchconv-deploy[cpu]"
    assert all(each.install for each in found.abilities if not each.possible)


def test_a_build_without_cuda_is_told_from_a_machine_without_a_gpu() -> None:
    """The one is a matter of packages, the other is not."""
    on_gpu = _examined(gpus=(GPU,))
    cuda = next(each for each in on_gpu.abilities if each.what == "measure on CUDA")
    assert cuda.missing == (f"this ONNX Runtime has no {CUDA}",)
    assert cuda.install == "patchconv-deploy[gpu]"
    no_gpu = _examined(providers=(CPU, CUDA))
    cuda = next(each for each in no_gpu.abilities if each.what == "measure on CUDA")
    assert cuda.missing == ("no NVIDIA GPU is found",)
    assert cuda.install == ""


def test_with_everything_everything_can_be_done() -> None:
    """Nothing is missing where all modules and a GPU are there."""
    found = _examined(providers=(CPU, CUDA), gpus=(GPU,))
    assert all(_can(found).values())
    assert (found.driver, found.gpus, found.gpu_problem) == ("580.1", (GPU,), "")


def test_a_driver_without_a_gpu_is_none() -> None:
    """As in a container that was given none."""
    assert _examined(gpus=()).gpu_problem == "the driver knows no GPU"


def test_the_command_prints_and_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """As text and as JSON; exit code 0 whatever is missing."""
    monkeypatch.setattr("patchconv_deploy.cli.doctor.examine", lambda: _examined("onnxruntime"))
    done = run_command("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Memory: 4,096.0 MiB free of 8,192.0 MiB" in done.stdout
    assert "GPU: none (there is no driver)" in done.stdout
    assert "no   verify" in done.stdout
    assert "pip install 'patchconv-deploy[cpu]'" in done.stdout
    done = run_command("doctor", "--json")
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert data["memory"]["free"] == 4 << 30
    assert {each["name"] for each in data["modules"]} == doctor.MODULES.keys()
    assert {each["what"]: each["possible"] for each in data["abilities"]}["rewrite"]


def _stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a module in front of the one that is installed."""
    (folder / "onnxruntime.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libcudart.so.12: cannot open')", "libcudart.so.12: cannot open"),
        ("import os; os.abort()", "exit code -6"),
        ("import time; time.sleep(60)", "does not end well"),
        ("def get_available_providers(): return [object()]", "cannot be imported"),
    ],
    ids=["library missing", "crash", "hang", "nonsense"],
)
def test_a_broken_runtime_is_said_to_be(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no more down with it than the process that looked."""
    _stand_in(tmp_path, monkeypatch, code)
    found = probe("onnxruntime", timeout_s=3)
    assert not found.found
    assert said in found.problem


def test_a_runtime_tells_its_version_and_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints while it is imported does not matter."""
    code = "print('hello')\n__version__ = '9.9'\ndef get_available_providers(): return ['One']"
    _stand_in(tmp_path, monkeypatch, code)
    found = probe("onnxruntime")
    assert (found.found, found.version, found.providers) == (True, "9.9", ("One",))


def test_what_is_not_installed_is_no_problem() -> None:
    """A module that nobody installed is just not there."""
    with mock.patch.object(doctor, "MODULES", {"no_such_module": ("no-such-package",)}):
        assert probe("no_such_module") == Module("no_such_module", False)


class _Error(Exception):
    """NVML's error, of a stand-in."""


def _nvml(**more: Any) -> SimpleNamespace:
    """A stand-in for pynvml with one GPU."""
    given = {
        "NVMLError": _Error,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 << 30, free=79 << 30),
        "nvmlDeviceGetName": lambda handle: b"A GPU",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
        "nvmlSystemGetDriverVersion": lambda: "580.1",
    }
    return SimpleNamespace(**{**given, **more})


def _fail(*_: object) -> Any:
    raise _Error("no answer")


def test_nvml_tells_of_the_gpu() -> None:
    """Names may be bytes; what a card does not tell is left out."""
    with mock.patch.dict(sys.modules, {"pynvml": _nvml()}):
        assert devices() == ("580.1", (GPU,))
    silent = _nvml(nvmlDeviceGetCudaComputeCapability=_fail)
    with mock.patch.dict(sys.modules, {"pynvml": silent}):
        assert devices()[1][0].capability == ""


@pytest.mark.parametrize(
    "stand_in",
    [
        None,
        _nvml(nvmlInit=_fail),
        _nvml(nvmlDeviceGetCount=_fail),
        _nvml(nvmlDeviceGetName=_fail, nvmlShutdown=_fail),
        SimpleNamespace(NVMLError=_Error, nvmlInit=lambda: None),
    ],
    ids=["not installed", "no driver", "no count", "no name", "nothing"],
)
def test_nvml_that_does_not_answer_is_no_crash(stand_in: SimpleNamespace | None) -> None:
    """Whatever fails, there is no GPU, and a reason."""
    with mock.patch.dict(sys.modules, {"pynvml": stand_in}):
        found = examine(lambda name: Module(name, False), memory=lambda: Memory(1, 1))
    assert found.gpus == ()
    assert found.gpu_problem


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_containers_limit_counts(
    folder: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    """Less what its processes hold; cached files are given back."""
    place = tmp_path / folder
    place.mkdir(parents=True)
    limit, usage, cached = names
    (place / limit).write_text("1000\n")
    (place / usage).write_text("700\n")
    (place / "memory.stat").write_text(f"anon 400\n{cached} 300\n")
    found = memory_here(tmp_path)
    assert (found.limit, found.held, found.free) == (1000, 400, 600)
    (place / limit).write_text("max\n")
    assert memory_here(tmp_path).limit is None
