r"""Where text leaves: consoles, lines on standard error, and the log.

Names of models, files and devices are printed by all commands, and none of them is trusted: a name
may hold a terminal's control sequences, a line break that makes a line of its own, an override of
the writing direction, or what rich takes for markup or an emoji. So everything that is printed goes
through here, where what is not printable is written as Python would (``\x1b``, ``\u202e``), and
where nothing is markup. A string is one line: who has several prints them one by one. JSON does not
pass: it has escapes of its own.
"""

from __future__ import annotations

import io
import logging
import sys
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from patchconv_deploy.words import in_flags

__all__ = [
    "PlainConsole",
    "complain",
    "log_to_stderr",
    "printable",
    "stderr_console",
    "stdout_console",
    "styled",
]


def printable(text: str) -> str:
    r"""Return a text as one line for people: what is not printable as ``\x1b`` or ``\u202e``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class PlainConsole(Console):
    """A console on which every string is one line, as it is: no markup, no emoji, no colours."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string (a line, a cell of a table) as it is shown."""
        return super().render_str(printable(text), **options)


def stdout_console() -> PlainConsole:
    """Return a console for results: a terminal gets words, pipes and files whole lines."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=200, soft_wrap=True)


def stderr_console() -> PlainConsole:
    """Return a console for progress and the log."""
    return PlainConsole(stderr=True)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Return a line of which some parts have a style: ("note:", "yellow")."""
    return Text.assemble(
        *(
            printable(part) if isinstance(part, str) else (printable(part[0]), part[1])
            for part in parts
        )
    )


def complain(kind: str, message: str) -> None:
    """Print "error: ..." or the like as one line on standard error.

    Args:
        kind: What stands before the colon.
        message: The message; its line breaks become blanks, its options the flags of the command.
    """
    click.echo(f"{kind}: {printable(in_flags(' '.join(message.split())))}", err=True)


class _OneLine(logging.Formatter):
    """Records as one line each; below it, where there is one, the traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(in_flags(super().formatMessage(record)))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


class _Handler(RichHandler):
    """The handler of `log_to_stderr`, told apart from those of others."""


def log_to_stderr(level: int) -> None:
    """Show the log of all packages on standard error, from a level on; called again, from that."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(handler)
    shown = _Handler(console=stderr_console(), show_path=False, markup=False)
    shown.setFormatter(_OneLine("%(message)s"))
    # The handler holds back what is below; the root, which is everybody's, is only opened further.
    shown.setLevel(level)
    root.addHandler(shown)
    if level < root.level:
        root.setLevel(level)
