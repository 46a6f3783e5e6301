"""Values of `patchconv build`'s options, read as `trtexec` reads them."""

from __future__ import annotations

import click

from patchconv_deploy.cli.types import SizeType
from patchconv_deploy.engines.trt.options import AUTOMATIC, Profile, Shape

__all__ = ["WeightsType", "parse_formats", "parse_pools", "parse_shapes", "profile"]


_UNITS = {"B": 0, "K": 10, "M": 20, "G": 30}


class WeightsType(click.ParamType[int | str]):
    """A size, a share such as 40%, or auto."""

    name = "SIZE|N%|auto"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return bytes, or the text; whether the share is one is for the options to say."""
        if isinstance(value, int) or value == AUTOMATIC or value.endswith("%"):
            return value
        # SizeType takes nothing below a byte; none at all on the device is a budget here.
        return 0 if value == "0" else SizeType().convert(value, param, ctx)


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read ``a:1x3x8x8,b:1x4`` as trtexec does; a name may be quoted and hold colons.

    Raises:
        click.UsageError: The text is of another form.
    """
    shapes: dict[str, Shape] = {}
    for entry in filter(None, text.split(",")):
        name, _, dims = entry.rpartition(":")
        try:
            shapes[name.strip("'\"")] = tuple(int(size) for size in dims.lower().split("x"))
        except ValueError:
            name = ""
        if not name:
            raise click.UsageError(f"shape {entry!r} is not of the form NAME:1x3x512x512")
    return shapes


def parse_pools(text: str) -> dict[str, int]:
    """Read ``workspace:512,tacticSharedMem:64K``: MiB, or a number with B, K, M or G.

    Raises:
        click.UsageError: The text is of another form.
    """
    pools: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        name, _, size = entry.partition(":")
        unit = size[-1:].upper() if size[-1:].isalpha() else "M"
        digits = size[:-1] if size[-1:].isalpha() else size
        try:
            pools[name] = int(float(digits) * 2 ** _UNITS[unit])
        except (ValueError, KeyError) as error:
            raise click.UsageError(
                f"--memPoolSize {entry!r} is not of the form workspace:512 (MiB) or workspace:64K"
            ) from error
    return pools


def profile(least: str, opt: str, most: str) -> tuple[Profile, ...]:
    """Return what --minShapes, --optShapes and --maxShapes ask for: one profile, or none.

    Raises:
        click.UsageError: They are of another form, or name different inputs.
    """
    given = [parse_shapes(text) for text in (least, opt, most)]
    named = next((shapes for shapes in given if shapes), None)
    if named is None:
        return ()
    # As trtexec: what is left out is what is given, the optimum first.
    filled = [shapes or given[1] or named for shapes in given]
    if any(set(shapes) != set(named) for shapes in filled):
        raise click.UsageError("--minShapes, --optShapes and --maxShapes name different inputs")
    return ({name: (filled[0][name], filled[1][name], filled[2][name]) for name in named},)


def parse_formats(text: str) -> tuple[str, ...]:
    """Read ``fp16:hwc8,fp32:chw``: one format for all tensors, or one for each."""
    return tuple(filter(None, text.split(",")))
