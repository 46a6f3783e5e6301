"""The few calls of CUDA that are needed: device memory, copies, streams, and times between events.

The device is asked for at the driver itself, which is there wherever a GPU is usable; the rest goes
through cuda-python. Nothing here falls back to something else: `DeviceMissing` says what is absent.

Source: the CUDA driver and runtime API references, and cuda-python.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from patchconv_deploy.engines.errors import DeviceMissing, EngineMissing, RunError

__all__ = ["DRIVERS", "Cuda", "check_driver", "cuda_device", "cuda_memory_bytes", "load_driver"]


# Major version of CUDA -> the first driver that runs it (CUDA release notes, minor version
# compatibility).
DRIVERS = {12: "r525", 13: "r580"}


def load_driver() -> Any:
    """Load the CUDA driver's library, started; it is there wherever a GPU is usable.

    Raises:
        DeviceMissing: There is no driver, or it finds no GPU it can use.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise DeviceMissing("no NVIDIA driver on this machine (libcuda is not there)") from None
    code = driver.cuInit(0)
    if code != 0:
        raise DeviceMissing(f"no usable NVIDIA GPU on this machine (cuInit: error {code})")
    return driver


def check_driver(cuda: int, what: str, extra: str) -> None:
    """See that the driver is new enough for a library.

    Args:
        cuda: Major version of CUDA that the library is built for.
        what: The library, for the message.
        extra: Extra of this project that installs it, without its version of CUDA: "gpu".

    Raises:
        DeviceMissing: There is no driver, or it is too old; the message says what to install.
    """
    version = ctypes.c_int()
    # The newest CUDA that the driver runs, as 1000 x major + 10 x minor.
    load_driver().cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    if major >= cuda:
        return
    fitting = ""
    if major in DRIVERS:
        fitting = f"install patchconv-deploy[{extra}-cu{major}] in its place, or "
    raise DeviceMissing(
        f"{what} is built for CUDA {cuda}, and this machine's NVIDIA driver runs CUDA "
        f"{major}.{minor} at most; {fitting}install driver {DRIVERS[cuda]} or later"
    )


def cuda_device() -> str:
    """Return the first CUDA device: name, compute capability, memory.

    It asks the driver itself, and no CUDA package.

    Raises:
        DeviceMissing: There is no driver, or no device; the message says which.
    """
    driver = load_driver()
    count, device = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        raise DeviceMissing("no NVIDIA GPU on this machine (the driver is there)")
    name = ctypes.create_string_buffer(128)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    driver.cuDeviceGetName(name, len(name), device)
    # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return (
        f"{name.value.decode()}, compute capability {major.value}.{minor.value}, "
        f"{memory.value / 2**30:.0f} GiB"
    )


def cuda_memory_bytes() -> int:
    """Return the memory of the first CUDA device, bytes.

    Raises:
        DeviceMissing: There is no driver, or no device.
    """
    driver = load_driver()
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    if (
        driver.cuDeviceGet(ctypes.byref(device), 0) != 0
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device) != 0
    ):
        raise DeviceMissing("no usable NVIDIA GPU on this machine (the driver is there)")
    return memory.value


class Cuda:
    """The few calls of the CUDA runtime that are needed, with errors raised. Made by `load`."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    @classmethod
    def load(cls) -> Cuda:
        """Load the CUDA runtime.

        Raises:
            DeviceMissing: There is no driver or no GPU.
            EngineMissing: cuda-python is not installed.
        """
        cuda_device()
        # Its place since version 12.6, and before that.
        for name in ("cuda.bindings.runtime", "cuda.cudart"):
            try:
                return cls(importlib.import_module(name))
            except ImportError:
                continue
        raise EngineMissing("cuda-python is not installed; pip install cuda-python")

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *results = getattr(self._runtime, name)(*arguments)
        if int(code) != 0:
            raise RunError(f"{name}: CUDA error {int(code)} ({getattr(code, 'name', code)})")
        return results[0] if results else None

    def initialise(self) -> None:
        """Make the CUDA context, which the first call that needs one would make."""
        self._call("cudaFree", 0)

    def malloc(self, size: int) -> int:
        """Allocate device memory; aligned to 256 bytes."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Release device memory, once the work that uses it is done."""
        self._call("cudaFree", address)

    def to_device(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy a contiguous array to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, array.ctypes.data, array.nbytes, kind)

    def to_host(self, array: np.ndarray[Any, Any], address: int) -> None:
        """Copy from the device into a contiguous array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpy", array.ctypes.data, address, array.nbytes, kind)

    @contextmanager
    def stream(self) -> Iterator[int]:
        """Open a stream."""
        made = self._call("cudaStreamCreate")
        try:
            yield int(made)
        finally:
            self._call("cudaStreamDestroy", made)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cudaStreamSynchronize", stream)

    def time(self, enqueue: Callable[[], None], stream: int, runs: int = 1) -> list[float]:
        """Enqueue work several times; return the seconds of each, between two events.

        Args:
            enqueue: Puts the work on the stream; need not wait for it.
            stream: The stream.
            runs: How often.
        """
        times = []
        with self.events() as (begin, end):
            for _ in range(runs):
                self.record(begin, stream)
                enqueue()
                self.record(end, stream)
                times.append(self.seconds(begin, end))
        return times

    @contextmanager
    def events(self) -> Iterator[tuple[Any, Any]]:
        """Open two events, begin and end."""
        begin, end = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        try:
            yield begin, end
        finally:
            self._call("cudaEventDestroy", begin)
            self._call("cudaEventDestroy", end)

    def record(self, event: Any, stream: int) -> None:
        """Record an event on a stream."""
        self._call("cudaEventRecord", event, stream)

    def seconds(self, begin: Any, end: Any) -> float:
        """Wait for an event and return the time since an earlier one."""
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", begin, end)) / 1e3
