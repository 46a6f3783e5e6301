"""A process that a runtime lives in: commands in, answers out, one JSON object a line.

A crash or an out-of-memory kill ends that process and not the caller; what it could not answer
becomes a `RunError` that names the signal. Errors of this package pass through as what they are.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines import errors
from engines.errors import EngineError, RunError

__all__ = ["Child", "child_process", "module_command", "serve"]

Verb = Callable[[Mapping[str, Any]], dict[str, Any]]


class Child:
    """A process that answers commands. Made by `child_process`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Args:
            do: The verb.
            **command: What goes with it, as JSON data.

        Raises:
            EngineError: What the process raised; `RunError` if it died.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunError(_obituary(process.wait(), do))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"], EngineError)(answer["error"])
        return answer


def _obituary(code: int, doing: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (likely out of memory)" if name in ("SIGKILL", "SIGABRT") else ""
        return f"the process was ended by {name} during {doing!r}{hint}"
    return f"the process ended with code {code} during {doing!r}"


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment that run a module of this installation as a process."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    # -P: a folder the user stands in must not provide modules.
    command = [sys.executable, "-P", "-m", module, *arguments]
    return command, {**os.environ, "PYTHONPATH": path}


@contextmanager
def child_process(module: str) -> Iterator[Child]:
    """Start ``python -m module``, which calls `serve`; it ends with the context."""
    command, environment = module_command(module)
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        yield Child(process)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.terminate()
        process.wait()


def serve(verbs: Mapping[str, Verb]) -> None:
    """Answer commands from standard input until it ends."""
    # A runtime may print; the answers keep standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = verbs[job["do"]](job)
        except EngineError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        except MemoryError:
            answer = {"error": "out of memory", "kind": "RunError"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
