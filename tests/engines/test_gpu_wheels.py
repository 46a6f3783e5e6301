"""The packages of a GPU that install without one: names, answers, what libraries need."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from patchconv_deploy.engines.errors import RunError
from patchconv_deploy.engines.gpu import cuda as cuda_module
from patchconv_deploy.engines.gpu import nvml as nvml_module
from patchconv_deploy.engines.gpu.cuda import Cuda


def test_every_call_of_cuda_has_that_name_in_its_bindings() -> None:
    """What `engines.gpu.cuda` calls by name is in cuda-bindings, and an error comes back as one."""
    runtime = import_module("cuda.bindings.runtime")
    source = Path(cuda_module.__file__).read_text()
    names = re.findall(r'_call\(\s*"(\w+)"', source)
    assert len(names) > 8
    assert [name for name in names if not hasattr(runtime, name)] == []
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(dir(runtime.cudaMemcpyKind))
    code, count = runtime.cudaGetDeviceCount()
    if int(code) == 0 and count:
        pytest.skip("there is a GPU, and the calls succeed on it")
    # Without a driver every call answers with an error, and that is what is raised.
    with pytest.raises(RunError, match="cudaMalloc: CUDA error"):
        Cuda(runtime).malloc(8)


def test_every_call_of_nvml_has_that_name_in_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `engines.gpu.nvml` calls is in nvidia-ml-py, and so are the reasons of lower clocks."""
    nvml = import_module("pynvml")
    source = Path(nvml_module.__file__).read_text()
    names = set(re.findall(r"\bnvml\.(nvml\w+|NVML\w+)", source))
    assert len(names) > 6
    assert [name for name in names if not hasattr(nvml, name)] == []
    for reasons, expected in (
        (0, []),
        (4, ["SwPowerCap"]),
        (0x48, ["HwSlowdown", "HwThermalSlowdown"]),
    ):
        monkeypatch.setattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", lambda _, r=reasons: r)
        assert nvml_module._reasons(nvml, None) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("wheel", "cuda"), [("onnxruntime-gpu<1.27", 12), ("onnxruntime-gpu", 13)])
def test_what_the_providers_are_linked_against(wheel: str, cuda: int, tmp_path: Path) -> None:
    """The wheels of both extras: their CUDA, and TensorRT 10 alone."""
    elf = import_module("elftools.elf.elffile")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(tmp_path),
        wheel,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot download {wheel}: {done.stderr.strip().splitlines()[-1:]}")
    needs = {}
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        for provider in ("cuda", "tensorrt"):
            name = f"onnxruntime/capi/libonnxruntime_providers_{provider}.so"
            path = Path(archive.extract(name, tmp_path))
            with path.open("rb") as stream:
                section = elf.ELFFile(stream).get_section_by_name(".dynamic")
                tags = section.iter_tags("DT_NEEDED")
                needs[provider] = {tag.needed for tag in tags}
    assert f"libcudart.so.{cuda}" in needs["cuda"]
    assert f"libcublas.so.{cuda}" in needs["cuda"]
    assert {"libnvinfer.so.10", f"libcudart.so.{cuda}"} <= needs["tensorrt"]
