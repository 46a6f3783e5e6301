"""What a prediction has to know of the processor: how many channels ONNX Runtime lays out together.

Its Convs keep channels in blocks of a few: 16 with AVX-512 and on other architectures, 8 on an x86
processor without AVX-512. A tensor of 24 channels takes 32 in the one case and 24 in the other. The
processor at hand is taken for the one that the model will run on.

Source: ONNX Runtime, onnxruntime/core/mlas/lib/platform.cpp (NchwcBlockSize).
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from functools import cache

import numpy as np

__all__ = ["channel_block"]


_X86 = frozenset({"x86_64", "amd64", "x86", "i386", "i686"})

# numpy's names, by version, of instruction sets that include AVX-512's foundation.
_AVX512 = frozenset({"AVX512F", "AVX512_SKX", "X86_V4"})


@cache
def channel_block() -> int:
    """Return the channels of a block on this processor."""
    config: object = np.show_config(mode="dicts")  # type: ignore[no-untyped-call, unused-ignore]
    found: list[str] = []
    if isinstance(config, dict):
        extensions = config.get("SIMD Extensions", {})
        found = [*extensions.get("baseline", ()), *extensions.get("found", ())]
    return block_of(platform.machine(), found)


def block_of(machine: str, extensions: Collection[str]) -> int:
    """Return the channels of a block.

    Args:
        machine: The architecture, as `platform.machine` says it.
        extensions: The instruction sets that numpy finds.
    """
    return 8 if machine.lower() in _X86 and _AVX512.isdisjoint(extensions) else 16
