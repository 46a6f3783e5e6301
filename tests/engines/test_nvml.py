"""The device's used memory: the bookkeeping and a stand-in for pynvml; a marked test for a GPU."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from patchconv_deploy.engines.errors import DeviceMissing, EngineMissing
from patchconv_deploy.engines.gpu.nvml import DeviceMemory, open_device_memory, pci_bus_id

MIB = 1 << 20


class Device:
    """A GPU with some memory in use."""

    def __init__(self, used: int) -> None:
        self.used = used

    def read(self) -> int:
        """Return what is in use."""
        return self.used


def _wait(memory: DeviceMemory) -> None:
    """Wait for two more samples."""
    wanted, deadline = memory.samples + 2, time.monotonic() + 10
    while memory.samples < wanted and time.monotonic() < deadline:
        time.sleep(0.001)


def test_the_peak_is_above_the_level_before() -> None:
    """Memory taken and given back within a run is seen; what was in use before is not counted."""
    device = Device(500)
    memory = DeviceMemory(device.read, 0.001)
    with memory.run():
        device.used = 900
        _wait(memory)
        device.used = 600
    assert (memory.peak_bytes, memory.held_bytes) == (400, 100)


def test_what_others_take_between_runs_is_not_counted() -> None:
    """The second run adds to what the first kept, not to what others took meanwhile."""
    device = Device(0)
    memory = DeviceMemory(device.read, 0.001)
    with memory.run():
        device.used += 100
    device.used += 1000
    with memory.run():
        device.used += 30
    assert (memory.peak_bytes, memory.held_bytes) == (130, 130)


def test_a_failing_run_is_counted_and_its_error_passes() -> None:
    """The thread ends with the run, and the error is the caller's."""
    device = Device(0)
    memory = DeviceMemory(device.read, 0.001)
    with pytest.raises(MemoryError), memory.run():  # noqa: PT012 - memory, then the failure
        device.used = 70
        raise MemoryError
    assert memory.peak_bytes == 70


class NVMLError(Exception):
    """The stand-in's error."""


@pytest.fixture
def pynvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a stand-in for pynvml in place."""
    calls: list[str] = []
    device = Device(10)

    def handle(bus: str) -> str:
        calls.append(bus)
        if bus == "none":
            raise NVMLError("Not Found")
        return bus

    module = SimpleNamespace(
        NVMLError=NVMLError,
        calls=calls,
        device=device,
        nvmlInit=lambda: calls.append("init"),
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetHandleByPciBusId=handle,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=device.used),
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml_is_opened_on_the_device_and_closed(pynvml: Any) -> None:
    """The device is found by its PCI bus id."""
    with open_device_memory(lambda: "0000:01:00.0") as memory, memory.run():
        pynvml.device.used = 25
    assert memory.peak_bytes == 15
    assert pynvml.calls == ["init", "0000:01:00.0", "shutdown"]


def test_an_unknown_device_is_refused(pynvml: Any) -> None:
    """NVML's own word is in the message, and NVML is closed."""
    with (
        pytest.raises(DeviceMissing, match=r"does not know the GPU in use \(Not Found\)"),
        open_device_memory(lambda: "none"),
    ):
        pass
    assert pynvml.calls[-1] == "shutdown"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pynvml the message says what to install."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(DeviceMissing, match="pip install nvidia-ml-py"), open_device_memory():
        pass


@pytest.mark.gpu
def test_gpu() -> None:
    """A block of 256 MiB taken on the device shows."""
    from patchconv_deploy.engines.gpu.cuda import Cuda

    try:
        pci_bus_id()
        cuda = Cuda.load()
        with open_device_memory() as memory:
            cuda.free(cuda.malloc(MIB))  # the first call makes the CUDA context
            with memory.run():
                address = cuda.malloc(256 * MIB)
                time.sleep(0.05)
                cuda.free(address)
    except (DeviceMissing, EngineMissing) as error:
        pytest.skip(str(error))
    assert 256 * MIB <= memory.peak_bytes < 300 * MIB
