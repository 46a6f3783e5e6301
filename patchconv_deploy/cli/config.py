"""``--config FILE.toml``: options from a file; what stands on the command line wins.

    splits = 8
    memory_budget = "512MiB"
    shapes = ["x:1x3x1024x1024"]
    verify = false

Keys are the keywords of Python's `rewrite`, or the flags without their dashes; what a flag such as
``--no-verify`` turns off is ``verify = false``. Values are what would be typed, numbers and
switches as TOML has them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from patchconv_deploy.cli.types import read_text

__all__ = ["config_option"]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def config_option() -> Callable[[CommandT], CommandT]:
    """Return the decorator that lets a command take its options from a file."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="Options from a file: splits = 8; memory_budget = '512MiB'. The command line wins.",
    )


def _read(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a file's options the command's defaults.

    Raises:
        click.UsageError: The file cannot be read, or holds what is no option, or no value of one.
    """
    if path is None:
        return
    try:
        data = tomllib.loads(read_text("--config", path))
    except (ValueError, RecursionError) as error:
        # Python reads no number of thousands of digits, which TOML's own error does not say.
        raise click.UsageError(f"--config {path}: not TOML: {error}") from None
    options = _options(context.command)
    found: dict[str, Any] = {}
    for key, value in data.items():
        option = options.get(key)
        if option is None or option.name is None:
            raise click.UsageError(f"--config {path}: there is no option {key!r}")
        if option.name in found:
            raise click.UsageError(f"--config {path}: {key!r} is given twice")
        found[option.name] = _typed(path, key, option, value)
    context.default_map = {**(context.default_map or {}), **found}


def _options(command: click.Command) -> Mapping[str, click.Option]:
    """Return a command's options by keyword, and by flag without dashes."""
    found = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.expose_value and parameter.name:
            found[parameter.name] = parameter
            for flag in parameter.opts:
                if flag.startswith("--"):
                    found[flag.removeprefix("--")] = parameter
    return found


def _typed(path: Path, key: str, option: click.Option, value: Any) -> Any:
    """Return a value as it would be typed; of a switch, whether it is on."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"--config {path}: {key} is true or false")
        return value
    values = value if option.multiple and isinstance(value, list) else [value]
    try:
        texts = [str(each) for each in values]
        said = repr(value)
    except ValueError:
        # Of hexadecimal digits Python reads any number, and writes few of them as decimal ones.
        raise click.UsageError(f"--config {path}: {key}: too long a number") from None
    if not all(
        isinstance(each, str | int | float) and not isinstance(each, bool) for each in values
    ) or any("\0" in text for text in texts):
        # No word on a command line holds a zero byte, and no name of a file can.
        raise click.UsageError(f"--config {path}: {key}: {said} is no value of it")
    return texts if option.multiple else texts[0]
