"""Used memory of the GPU, sampled through NVML while something runs.

The driver counts the whole device, whoever uses it. So each run is looked at by itself: what the
device has in use before it, at most during it, and after it. What others take or give back between
two runs is in none of the figures; the device must be left alone during a run.

A sample is taken every few milliseconds; memory taken and given back in between is not seen. An
arena gives nothing back, so nothing of it is missed.

How fast the device is at the time (clocks, power, what slows it down) is read beside: a latency
without it says little.

Source: NVML API reference (nvmlDeviceGetMemoryInfo, nvmlDeviceGetClockInfo,
nvmlDeviceGetCurrentClocksEventReasons), through the package nvidia-ml-py.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from patchconv_deploy.engines.errors import DeviceMissing
from patchconv_deploy.engines.gpu.cuda import load_driver

__all__ = [
    "INTERVAL_S",
    "Device",
    "DeviceMemory",
    "DeviceRun",
    "device_state",
    "devices",
    "open_device_memory",
    "pci_bus_id",
]


INTERVAL_S = 0.002


def pci_bus_id() -> str:
    """Return the PCI bus id of the first CUDA device, which is how NVML is told which one.

    The two count devices differently: CUDA_VISIBLE_DEVICES is CUDA's alone.

    Raises:
        DeviceMissing: There is no driver, or no device.
    """
    driver = load_driver()
    device, name = ctypes.c_int(), ctypes.create_string_buffer(32)
    if (
        driver.cuDeviceGet(ctypes.byref(device), 0) != 0
        or driver.cuDeviceGetPCIBusId(name, len(name), device) != 0
    ):
        raise DeviceMissing("no usable NVIDIA GPU on this machine (the driver is there)")
    return name.value.decode()


@dataclass
class DeviceRun:
    """The device's used memory over one run, bytes; known once the run has ended.

    Attributes:
        peak_bytes: Most above the level before it.
        held_bytes: What it kept in use.
    """

    peak_bytes: int = 0
    held_bytes: int = 0


class DeviceMemory:
    """Follows the device's used memory over several runs. Made by `open_device_memory`.

    Attributes:
        peak_bytes: Most that the runs so far had in use above the level before the first.
        held_bytes: What they kept in use after they ended.
        samples: Number of samples taken.
        state: What the device is doing now, `device_state`.
    """

    def __init__(
        self,
        used: Callable[[], int],
        interval_s: float = INTERVAL_S,
        state: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._used = used
        self.state = state
        self._interval_s = interval_s
        self.peak_bytes = 0
        self.held_bytes = 0
        self.samples = 0

    @contextmanager
    def run(self) -> Iterator[DeviceRun]:
        """Sample in a thread until the context ends."""
        found = DeviceRun()
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
            yield found
        finally:
            done.set()
            thread.join()
            after = self._used()
            highest = max(highest, after)
            self.samples += 2
            self.peak_bytes = max(self.peak_bytes, self.held_bytes + highest - before)
            self.held_bytes += after - before
            found.peak_bytes, found.held_bytes = highest - before, after - before


def device_state(nvml: Any, handle: Any) -> dict[str, Any]:
    """Return clocks, power, temperature, and what slows the device down, where it tells.

    Args:
        nvml: The module pynvml.
        handle: The device's.
    """
    readings: dict[str, Callable[[], Any]] = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "slowed_by": lambda: _reasons(nvml, handle),
    }
    found = {}
    for name, read in readings.items():
        # A driver or a card need not have all of them.
        with suppress(nvml.NVMLError, AttributeError):
            found[name] = read()
    return found


def _reasons(nvml: Any, handle: Any) -> list[str]:
    """Return why the clocks are lower than they could be, by NVML's names."""
    # NVML called them "throttle reasons" before 12.2.
    for word in ("Event", "Throttle"):
        ask = getattr(nvml, f"nvmlDeviceGetCurrentClocks{word}Reasons", None)
        if ask is not None:
            break
    else:
        raise AttributeError("nvmlDeviceGetCurrentClocksEventReasons")
    bits, prefix = int(ask(handle)), f"nvmlClocks{word}Reason"
    names = (name for name in dir(nvml) if name.startswith(prefix))
    known = {name.removeprefix(prefix): int(getattr(nvml, name)) for name in names}
    # Those of one bit: the others are sums ("All"), or nothing ("None").
    return sorted(n for n, bit in known.items() if bit & bits and bit & (bit - 1) == 0)


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
        yield DeviceMemory(
            lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
            interval_s,
            lambda: device_state(nvml, handle),
        )
    finally:
        nvml.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as NVML knows it.

    Attributes:
        name: Its name.
        total_bytes: Its memory.
        free_bytes: What of it nobody uses.
        capability: Its compute capability, "9.0"; empty where it does not tell.
    """

    name: str
    total_bytes: int
    free_bytes: int
    capability: str = ""


def devices() -> tuple[str, tuple[Device, ...]]:
    """Return the driver's version and the GPUs, in NVML's order.

    Raises:
        DeviceMissing: nvidia-ml-py or the driver is not there, or does not answer.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise DeviceMissing("pynvml is not installed") from error
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError) as error:
        raise DeviceMissing(f"NVML cannot be used on this machine ({error})") from error
    try:
        found = []
        for number in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            capability = ""
            with suppress(nvml.NVMLError, AttributeError):
                capability = ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle)))
            name = _text(nvml.nvmlDeviceGetName(handle))
            found.append(Device(name, int(memory.total), int(memory.free), capability))
        return _text(nvml.nvmlSystemGetDriverVersion()), tuple(found)
    except (nvml.NVMLError, AttributeError) as error:
        raise DeviceMissing(f"NVML does not answer ({error})") from error
    finally:
        with suppress(nvml.NVMLError, AttributeError):
            nvml.nvmlShutdown()


def _text(name: str | bytes) -> str:
    """Return a name, which older packages hand out as bytes."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name
