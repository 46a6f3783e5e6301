"""Progress of a command: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from patchconv_deploy.console import printable, stderr_console

__all__ = ["progress_bar"]

# Seconds between lines where there is no terminal: what ends sooner says nothing.
EVERY_S = 30.0


@contextmanager
def progress_bar(
    quiet: bool = False, what: str = "reading"
) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show progress: a bar on a terminal, elsewhere a line every half minute, on standard error.

    Args:
        quiet: Show nothing at all.
        what: What is done, until something else is said.

    Yields:
        What is called with (what, done, total); None where nothing is shown.
    """
    console = stderr_console()
    if quiet:
        yield None
        return
    if not console.is_terminal:
        with _lines(console, what) as told:
            yield told
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda what, done, total: bar.update(
            task, description=printable(what), completed=done, total=total if total > 1 else None
        )


@contextmanager
def _lines(console: Console, what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Say what is being done while it lasts."""
    begun, over = monotonic(), Event()
    now = [(what, 0, 1)]

    def say() -> None:
        while not over.wait(EVERY_S):
            doing, done, total = now[0]
            share = f", {done} of {total}" if total > 1 else ""
            console.print(f"{doing}{share}: {monotonic() - begun:.0f} s so far")

    def told(doing: str, done: int, total: int) -> None:
        now[0] = doing, done, total

    thread = Thread(target=say, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        over.set()
        thread.join()
