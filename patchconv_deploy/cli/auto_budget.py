"""``--memory-budget auto``: what is free on this machine, less what loading the model takes."""

from __future__ import annotations

from pathlib import Path

import click

from patchconv_deploy.console import stdout_console
from patchconv_deploy.free_memory import memory_here
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.look import loading_of
from patchconv_deploy.rewriters.options import Options

__all__ = ["auto_budget"]


def auto_budget(model: Path, options: Options, *, quiet: bool) -> int:
    """Return the budget in bytes, and say how it comes about.

    Args:
        model: The model's file.
        options: The target and the sizes are looked at.
        quiet: Do not say it.

    Raises:
        click.UsageError: Loading takes all that is free.
        ModelError, OptionError: As `rewrite`.
    """
    free = memory_here().free
    loading, inputs = loading_of(load(model), options)
    budget = free - loading - inputs
    parts = (
        f"{mebibytes(free)} MiB free here, less {mebibytes(loading)} to load the model and "
        f"{mebibytes(inputs)} for its inputs"
    )
    if budget < 1:
        raise click.UsageError(f"--memory-budget auto: nothing is left of {parts}")
    if not quiet:
        stdout_console().print(f"Memory budget: {mebibytes(budget)} MiB ({parts})")
    return budget
