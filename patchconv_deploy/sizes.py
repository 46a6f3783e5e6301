"""Sizes in bytes, as people write them.

    512MiB  1.5GiB      powers of 1024
    512M    2G          the same, as docker and trtexec take one letter
    300 MB  2GB         powers of 1000 (IEC 80000-13, GNU coreutils, libvirt)
    512B    100000      bytes

The command line asks back about a plain number that is small: who writes 512 means mebibytes.
"""

from __future__ import annotations

import math
import re

__all__ = ["SIZES", "doubted", "parse_size", "spelled_size"]

# What an error or a help text says of them.
SIZES = "512MiB, 2GiB (512M, 2G are the same), or 2GB (10^9 bytes)"
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)
_UNITS = {
    "": 1,
    "b": 1,
    **{letter: 1024**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
}
# Nobody's activations fit into less; a plain number below is a number of something else.
_DOUBTED = 1024


def parse_size(text: str) -> int | None:
    """Return bytes, at least 1; None if the text is no size."""
    found = _WRITTEN.fullmatch(text)
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None:
        return None
    size = float(found[1]) * unit
    if not 1 <= size < math.inf:
        return None
    # A whole number of units stays one: a float has 53 bits.
    return int(found[1]) * unit if found[1].isdigit() else int(size)


def spelled_size(size: int) -> str:
    """Return bytes as people would type them: 512MiB, 100000B; `parse_size` reads it back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        whole, rest = divmod(size, _UNITS[unit.lower()])
        if whole and not rest:
            return f"{whole}{unit}"
    return f"{size}B"


def doubted(text: str) -> str | None:
    """Return what to ask about a plain number hardly meant as bytes, None if all is well."""
    plain = text.strip()
    size = parse_size(plain) if plain[-1:].isdigit() or plain[-1:] == "." else None
    if size is None or size >= _DOUBTED:
        return None
    return f"{plain} bytes? Write {plain}MiB, or {plain}B if bytes are meant"
