"""The same addresses in every run of a process, so that its peak is the same. Linux alone.

ONNX Runtime's layout optimiser (NCHWc) walks tables keyed by pointers. Under address space
randomisation independent patches therefore come in another order in every process, and with it
what is alive together: peaks of one model lie up to a quarter apart. With randomisation off they
repeat; how far another order is away is seen by starting at other, equally fixed addresses.

Source: personality(2), ADDR_NO_RANDOMIZE.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["fix_addresses"]


_ADDR_NO_RANDOMIZE, _ASK = 0x0040000, 0xFFFFFFFF

_HELD: list[bytearray] = []


def fix_addresses(layout: int) -> bool:
    """Start this process over without randomisation, if it is on; move the heap on.

    To be called first: what ran before runs twice.

    Args:
        layout: Number of the layout, 0 and up; each has addresses of its own.

    Returns:
        Whether addresses are fixed; False where the system forbids it (some containers do).
    """
    try:
        personality = ctypes.CDLL(None).personality
    except (AttributeError, OSError, TypeError):
        return False
    now = personality(_ASK)
    if not now & _ADDR_NO_RANDOMIZE:
        personality(now | _ADDR_NO_RANDOMIZE)
        # Asked again: a sandbox may take the call and do nothing, and this would never end.
        if not personality(_ASK) & _ADDR_NO_RANDOMIZE:
            return False
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    # Blocks of many sizes, above those that Python keeps pools for.
    _HELD.extend(bytearray(1000 + 16 * k) for k in range(50 * layout))
    return True
