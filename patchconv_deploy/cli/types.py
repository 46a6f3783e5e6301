"""What the command lines share: types of arguments, and writing of results."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from patchconv_deploy.sizes import SIZES, doubted, parse_size

__all__ = [
    "AUTO",
    "AxisType",
    "BudgetType",
    "ShapeType",
    "SizeType",
    "check_json_target",
    "given",
    "read_text",
    "shapes_keyword",
    "spelled_ranges",
    "write_bytes",
    "write_text",
]


_LONGEST_TEXT = 64 << 20

# The budget that is what is free on this machine.
AUTO = "auto"


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


class RangesType(click.ParamType[tuple[str, tuple[tuple[int, int], ...]]]):
    """NAME:1x3x256..4096x512: a size, or the least and the largest, for each dimension."""

    name = "NAME:DIMS"

    def convert(
        self,
        value: str | tuple[str, tuple[tuple[int, int], ...]],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """Return (name, least and largest sizes)."""
        if isinstance(value, tuple):
            return value
        name, colon, dims = value.rpartition(":")
        sizes = []
        try:
            for size in dims.lower().split("x"):
                low, dots, high = size.partition("..")
                sizes.append((int(low), int(high if dots else low)))
        except ValueError:
            sizes = []
        if not colon or not name or not sizes:
            self.fail(f"{value!r} is not of the form NAME:1x3x512x512", param, ctx)
        return name, tuple(sizes)


def spelled_ranges(name: str, ranges: Iterable[tuple[int, int]]) -> str:
    """Return what `RangesType` reads: NAME:1x3x256..4096x512."""
    dims = (str(low) if low == high else f"{low}..{high}" for low, high in ranges)
    return f"{name}:{'x'.join(dims)}"


def shapes_keyword(
    shapes: Iterable[tuple[str, Sequence[tuple[int, int]]]],
) -> dict[str, list[int | tuple[int, int]]]:
    """Return what was typed as the keyword ``shapes`` of `patchconv_deploy.rewrite`."""
    return {
        name: [low if low == high else (low, high) for low, high in ranges]
        for name, ranges in shapes
    }


class AxisType(click.ParamType[str | int]):
    """height, width, depth, auto, or a dimension."""

    name = "height|width|depth|auto|INDEX"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """Return the name or the index."""
        if isinstance(value, int) or value in ("height", "width", "depth", "auto"):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither height, width, depth, auto nor an index", param, ctx)


class SizeType(click.ParamType[int]):
    """Bytes, with an optional unit (`patchconv_deploy.sizes`): 512MiB, 2G, 300MB, 100000."""

    name = "SIZE"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        size, question = parse_size(value), doubted(value)
        if size is None:
            self.fail(f"{value!r} is not a size such as {SIZES}", param, ctx)
        if question is not None:
            self.fail(question, param, ctx)
        return size


class BudgetType(click.ParamType[int | str]):
    """A size, or "auto" for what is free on this machine."""

    name = "SIZE|auto"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return bytes, or "auto"."""
        return value if value == AUTO else SizeType().convert(value, param, ctx)


def read_text(option: str, path: Path) -> str:
    """Return what a file holds.

    Raises:
        click.UsageError: It cannot be read as text.
    """
    try:
        # A pipe is read as well; what never ends is not.
        with path.open("rb") as stream:
            data = stream.read(_LONGEST_TEXT + 1)
        if len(data) > _LONGEST_TEXT:
            raise click.UsageError(f"{option} {path}: too long for such a file")
        return data.decode("utf-8")
    except OSError as error:
        raise click.UsageError(f"{option} {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise click.UsageError(f"{option} {path}: not a text file") from None


def given(context: click.Context) -> list[click.Parameter]:
    """Return the options that were given, in a file of options too; those at their defaults not."""
    source = click.core.ParameterSource
    said = (source.COMMANDLINE, source.DEFAULT_MAP)
    return [
        parameter
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        and parameter.expose_value
        and context.get_parameter_source(parameter.name or "") in said
    ]


def check_json_target(option: str, path: Path | None) -> None:
    """Refuse a file for JSON that cannot be written, or holds something else.

    Raises:
        click.UsageError: The folder is missing, or a file that is no JSON stands there.
    """
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise click.UsageError(f"{option} {path}: no such folder {path.parent}")
    if path.is_dir():
        raise click.UsageError(f"{option} {path}: is a folder")
    if path.is_file():
        try:
            with path.open("rb") as stream:
                # Weights can begin with any byte, but they do not parse; few bytes tell most apart.
                if stream.read(1) not in (b"{", b""):
                    raise ValueError("no JSON object")
                text = path.read_bytes()
            if text:
                json.loads(text)
        except ValueError:
            raise click.UsageError(
                f"{option} {path}: a file that is no JSON stands there; name another one"
            ) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; a device or pipe is written to as it is."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
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
