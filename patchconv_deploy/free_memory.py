"""How much memory is free here: of the machine, and within the limit of a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Memory", "memory_here"]

# Limits above are none: what a group without one says.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this machine, bytes.

    Attributes:
        total: Of the machine.
        available: What the system can give without swapping.
        limit: Most that this process's control group may hold, None for no limit.
        held: What the group holds that it cannot give back, None without a limit.
    """

    total: int
    available: int
    limit: int | None = None
    held: int | None = None

    @property
    def free(self) -> int:
        """Bytes that this process can still take."""
        if self.limit is None:
            return self.available
        return max(0, min(self.available, self.limit - (self.held or 0)))


def memory_here(root: Path = Path("/")) -> Memory:
    """Return the memory of this machine.

    Args:
        root: Where the system's files are.
    """
    machine = psutil.virtual_memory()
    limit, held = _group(root)
    return Memory(machine.total, machine.available, limit, held)


def _group(root: Path) -> tuple[int | None, int | None]:
    """Return the limit of the control group and what it holds, version 2 before version 1."""
    places = (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    )
    for folder, limit, usage, cached in places:
        try:
            most = int((root / folder / limit).read_text())
            used = int((root / folder / usage).read_text())
            lines = (root / folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if most < _NO_LIMIT:
            # Pages of files that were read are given back when they are asked for.
            pages = (line.split() for line in lines)
            back = next((int(size) for name, size in pages if name == cached), 0)
            return most, max(0, used - back)
    return None, None
