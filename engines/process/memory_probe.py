"""The process's own high-water mark of resident memory, resettable. Linux alone.

Source: proc(5): VmHWM in /proc/self/status, and the value 5 written to /proc/self/clear_refs, which
sets it back to the present resident size.
"""

from __future__ import annotations

from pathlib import Path

from patchconv_deploy.engines.errors import DeviceMissing

__all__ = ["high_water_bytes", "reset_high_water", "resident_bytes"]


_STATUS = Path("/proc/self/status")

_CLEAR = Path("/proc/self/clear_refs")


def _field(name: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError as error:
        raise DeviceMissing(
            "peak memory is read from /proc, which this system lacks; measure on Linux"
        ) from error
    found = next(line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    return _field("VmRSS")


def high_water_bytes() -> int:
    """Return the largest resident memory since the last reset, in bytes."""
    return _field("VmHWM")


def reset_high_water() -> None:
    """Set the high-water mark back to the present resident memory.

    Raises:
        DeviceMissing: The system does not allow it; a figure would count the process's whole past.
    """
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        raise DeviceMissing(
            "the high-water mark cannot be reset here (/proc/self/clear_refs); measure outside "
            "this container"
        ) from error
