"""What all commands have in common: examples in their help, and errors in their own words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any, TypeVar

import click
import cloup

from patchconv_deploy.engines.errors import EngineError
from patchconv_deploy.errors import PatchConvError
from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.words import in_flags

__all__ = ["HELP_OPTIONS", "Command", "command", "json_option"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class Command(cloup.Command):
    """A command with examples, whose errors leave in its own words.

    Args:
        examples: Lines of what is typed, each below a comment of what it does.
        arguments: What is known of click's commands.
    """

    def __init__(self, *arguments: Any, examples: str = "", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.examples = inspect.cleandoc(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples at the end of the help."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write(indent(self.examples, "  ") + "\n")
        super().format_epilog(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it.

        Raises:
            PatchConvError, RewriterError, EngineError: The library's own, its options as flags.
        """
        try:
            return super().invoke(ctx)
        except (PatchConvError, RewriterError, EngineError) as error:
            error.args = (in_flags(str(error)), *error.args[1:])
            raise


def command(name: str, *, summary: str, examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Return the decorator that makes a command of a function; its docstring is the help.

    Args:
        name: What is typed.
        summary: What stands beside the name in a list of commands.
        examples: As those of `Command`.
    """

    def made(function: Callable[..., Any]) -> Command:
        decorated: Command = cloup.command(
            name,
            cls=Command,
            short_help=summary,
            help=inspect.getdoc(function),
            examples=examples,
            context_settings=HELP_OPTIONS,
        )(function)
        return decorated

    return made


def json_option(text: str) -> Callable[[FunctionT], FunctionT]:
    """Return the decorator that lets a command write what it found as JSON.

    Args:
        text: What is written, for the help.
    """
    return click.option(
        "--json",
        "json_file",
        type=click.Path(path_type=Path),
        metavar="FILE.json",
        help=text,
    )
