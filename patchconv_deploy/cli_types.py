"""What the command lines share: types of arguments, and writing of results."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
from rich.console import Console

__all__ = ["AxisType", "ShapeType", "SizeType", "stdout_console", "write_bytes", "write_text"]


class ShapeType(click.ParamType[tuple[str, tuple[int, ...]]]):
    """NAME:1x3x512x512; the name may hold colons."""

    name = "NAME:DIMS"

    def convert(
        self,
        value: str | tuple[str, tuple[int, ...]],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, tuple[int, ...]]:
        """Return (name, sizes)."""
        if isinstance(value, tuple):
            return value
        name, colon, dims = value.rpartition(":")
        try:
            sizes = tuple(int(size) for size in dims.lower().split("x"))
        except ValueError:
            sizes = ()
        if not colon or not name or not sizes:
            self.fail(f"{value!r} is not of the form NAME:1x3x512x512", param, ctx)
        return name, sizes


class AxisType(click.ParamType[str | int]):
    """height, width, depth, or a dimension."""

    name = "height|width|depth|INDEX"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """Return the name or the index."""
        if isinstance(value, int) or value in ("height", "width", "depth"):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither height, width, depth nor an index", param, ctx)


class SizeType(click.ParamType[int]):
    """Bytes, with an optional unit: 512MiB, 2GiB, 100000."""

    name = "SIZE"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        units = {"kib": 10, "mib": 20, "gib": 30, "": 0, "b": 0}
        digits = value.rstrip("KMGiIBbkmg")
        unit = value[len(digits) :].lower()
        try:
            size = int(float(digits) * 2 ** units[unit])
        except (ValueError, KeyError, OverflowError):
            size = 0
        if size < 1:
            self.fail(f"{value!r} is not a size such as 512MiB or 2GiB", param, ctx)
        return size


def stdout_console() -> Console:
    """Return a console for results: pipes and files get whole lines, a terminal its own width."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(width=200, soft_wrap=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
