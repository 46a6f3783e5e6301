"""The command line inside the tests' own process.

A process of its own takes a second to start, and what it adds is tested once
(`tests.front.test_front`).
"""

from __future__ import annotations

import io
import logging
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from patchconv_deploy.cli.main import main

__all__ = ["run_command"]


def run_command(
    *arguments: str | Path, program: Callable[[], None] = main
) -> subprocess.CompletedProcess[str]:
    """Run ``patchconv`` with these arguments.

    Returns:
        Exit code, standard output and standard error, as of a process.
    """
    words = ["patchconv", *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    code: object = None
    try:
        with (
            mock.patch("sys.argv", words),
            mock.patch("signal.signal"),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            program()
    except SystemExit as stop:
        code = stop.code
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    said = []
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        said.append(stream.read())
    assert code is None or isinstance(code, int)
    return subprocess.CompletedProcess(words, code or 0, *said)
