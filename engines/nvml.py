"""Used memory of the GPU, sampled through NVML while something runs.

The driver counts the whole device, whoever uses it. So each run is looked at by itself: what the
device has in use before it, at most during it, and after it. What others take or give back between
two runs is in none of the figures; the device must be left alone during a run.

A sample is taken every few milliseconds; memory taken and given back in between is not seen. An
arena gives nothing back, so nothing of it is missed.

Source: NVML API reference (nvmlDeviceGetMemoryInfo), through the package nvidia-ml-py.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engines.errors import DeviceMissing

__all__ = ["INTERVAL_S", "DeviceMemory", "open_device_memory", "pci_bus_id"]

INTERVAL_S = 0.002


def pci_bus_id() -> str:
    """Return the PCI bus id of the first CUDA device, which is how NVML is told which one.

    The two count devices differently: CUDA_VISIBLE_DEVICES is CUDA's alone.

    Raises:
        DeviceMissing: There is no driver, or no device.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise DeviceMissing("no NVIDIA driver on this machine (libcuda is not there)") from None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(32)
    if (
        driver.cuInit(0) != 0
        or driver.cuDeviceGet(ctypes.byref(device), 0) != 0
        or driver.cuDeviceGetPCIBusId(name, len(name), device) != 0
    ):
        raise DeviceMissing("no usable NVIDIA GPU on this machine (the driver is there)")
    return name.value.decode()


class DeviceMemory:
    """Follows the device's used memory over several runs. Made by `open_device_memory`.

    Attributes:
        peak_bytes: Most that the runs so far had in use above the level before the first.
        held_bytes: What they kept in use after they ended.
        samples: Number of samples taken.
    """

    def __init__(self, used: Callable[[], int], interval_s: float = INTERVAL_S) -> None:
        self._used = used
        self._interval_s = interval_s
        self.peak_bytes = 0
        self.held_bytes = 0
        self.samples = 0

    @contextmanager
    def run(self) -> Iterator[None]:
        """Sample in a thread until the context ends."""
        before = highest = self._used()
        done = threading.Event()

        def sample() -> None:
            nonlocal highest
            while not done.wait(self._interval_s):
                highest = max(highest, self._used())
                self.samples += 1

        thread = threading.Thread(target=sample, name="nvml", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            after = self._used()
            highest = max(highest, after)
            self.samples += 2
            self.peak_bytes = max(self.peak_bytes, self.held_bytes + highest - before)
            self.held_bytes += after - before


@contextmanager
def open_device_memory(
    find: Callable[[], str] = pci_bus_id, interval_s: float = INTERVAL_S
) -> Iterator[DeviceMemory]:
    """Open NVML on the first CUDA device.

    Args:
        find: Returns the device's PCI bus id.
        interval_s: Seconds between two samples.

    Raises:
        DeviceMissing: nvidia-ml-py, the driver or the device is not there.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise DeviceMissing(
            "device memory is read through NVML, and pynvml is not installed; "
            "pip install nvidia-ml-py"
        ) from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise DeviceMissing(f"NVML cannot be used on this machine ({error})") from error
    try:
        try:
            handle = nvml.nvmlDeviceGetHandleByPciBusId(find())
            nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            raise DeviceMissing(f"NVML does not know the GPU in use ({error})") from error
        yield DeviceMemory(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used), interval_s)
    finally:
        nvml.nvmlShutdown()
