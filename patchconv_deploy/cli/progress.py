"""Progress of a command, shown on a terminal alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from patchconv_deploy.console import printable, stderr_console

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show progress on a terminal; nothing elsewhere.

    Args:
        quiet: Show nothing at all.

    Yields:
        What is called with (what, done, total); None where nothing is shown.
    """
    console = stderr_console()
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(
            task, description=printable(what), completed=done, total=total if total > 1 else None
        )
