"""A process that a runtime lives in: commands in, answers out, one JSON object a line.

A crash or an out-of-memory kill ends that process and not the caller; what it could not answer
becomes a `RunError` that names the signal. Errors of this package pass through as what they are.
This is the one place that says how a process ended. It ends with the one that started it, however
that ends: at once on Linux (prctl(2), PR_SET_PDEATHSIG), within a second on other POSIX systems or
where a thread started it, on Windows when it next waits for a command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from patchconv_deploy.engines import errors
from patchconv_deploy.engines.errors import EngineError, OutOfMemory, RunError, TimeLimit

__all__ = ["Child", "child_process", "module_command", "serve", "time_limit"]


# Tells a process which one started it; negative where a thread did that may end before it.
_PARENT = "PATCHCONV_PARENT"

_PR_SET_PDEATHSIG = 1

# (what it was, when it is over); of the calls that are made within `time_limit`.
_limit: ContextVar[tuple[float, float] | None] = ContextVar("time_limit", default=None)

Verb = Callable[[Mapping[str, Any]], dict[str, Any]]


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Limit the time of all that is asked of processes within; None for no limit of its own.

    What is waited for when it is over is ended, and `Child.ask` raises `TimeLimit`. Of several,
    one within the other, the one that is over first holds.
    """
    inner = None if seconds is None else (seconds, time.monotonic() + seconds)
    limits = [limit for limit in (_limit.get(), inner) if limit is not None]
    token = _limit.set(min(limits, key=lambda limit: limit[1], default=None))
    try:
        yield
    finally:
        _limit.reset(token)


def _sooner(seconds: float | None) -> tuple[float | None, str]:
    """Return how long an answer is waited for, and what to say when that is over."""
    limit = _limit.get()
    left = None if limit is None else max(0.0, limit[1] - time.monotonic())
    if limit is None or left is None or (seconds is not None and seconds < left):
        return seconds, f"no answer within {seconds:g} s" if seconds is not None else ""
    return left, f"the time limit of {limit[0]:g} s is over"


class Child:
    """A process that answers commands. Made by `child_process`."""

    def __init__(self, process: subprocess.Popen[str], said: IO[bytes]) -> None:
        self._process = process
        self._said = said

    def ask(self, do: str, *, time_limit_s: float | None = None, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Args:
            do: The verb.
            time_limit_s: Seconds to wait; then the process is ended. None: for ever.
            **command: What goes with it, as JSON data.

        Raises:
            EngineError: What the process raised; `RunError` if it died, `TimeLimit` if it took
                too long.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        seconds, words = _sooner(time_limit_s)
        timer = None if seconds is None else threading.Timer(seconds, end)
        try:
            if timer is not None:
                timer.start()
            process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            if timer is not None:
                timer.cancel()
        if not line.endswith("\n"):  # nothing, or what it died at the middle of
            code = process.wait()
            if late.is_set():
                raise TimeLimit(words)
            raise _obituary(code, self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"], EngineError)(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 2000))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""


def _obituary(code: int, words: str) -> RunError:
    how = f"the process was ended by {signal.Signals(-code).name}" if code < 0 else ""
    how = how or f"the process ended with exit code {code}"
    if code == -signal.SIGKILL:
        return OutOfMemory(f"{how}, likely for want of memory")
    # What a C++ program says before it aborts.
    if "bad_alloc" in words or "MemoryError" in words:
        return OutOfMemory(f"out of memory: {how}")
    return RunError(f"{how}: {words}" if words else how)


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment that run a module of this installation as a process."""
    package = sys.modules[__name__.partition(".")[0]]
    root = str(Path(str(package.__file__)).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    # -P: a folder the user stands in must not provide modules.
    command = [sys.executable, "-P", "-m", module, *arguments]
    lasting = threading.current_thread() is threading.main_thread()
    parent = str(os.getpid() if lasting else -os.getpid())
    return command, {**os.environ, "PYTHONPATH": path, _PARENT: parent}


@contextmanager
def child_process(module: str, *arguments: str) -> Iterator[Child]:
    """Start ``python -m module``, which calls `serve`; it ends with the context."""
    command, environment = module_command(module, *arguments)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
        )
        try:
            yield Child(process, said)
        finally:
            # Not asked politely: it holds nothing, and a runtime deep in a kernel does not hear.
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                # What was not sent any more is of no use to a process that is gone.
                with suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()


def _end_with_parent() -> None:
    """See to it that this process ends with the one that started it."""
    parent = int(os.environ.pop(_PARENT, "0"))
    if not parent or sys.platform == "win32":
        return
    if sys.platform == "linux" and parent > 0:
        import ctypes

        # It comes with the end of the thread that started us.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(abs(parent),), daemon=True).start()
    if os.getppid() != abs(parent):  # it ended before this was set up
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(verbs: Mapping[str, Verb]) -> None:
    """Answer commands from standard input until it ends."""
    _end_with_parent()
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
            answer = {"error": "out of memory", "kind": "OutOfMemory"}
        except Exception as error:  # noqa: BLE001 - the caller is told, and prints no traceback
            answer = {
                "error": " ".join(f"{type(error).__name__}: {error}".split()),
                "kind": "RunError",
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
