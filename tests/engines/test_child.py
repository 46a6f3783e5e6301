"""A runtime's process: what its end is called, how long it may take."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from patchconv_deploy.engines.errors import OutOfMemory, ParseError, RunError, TimeLimit
from patchconv_deploy.engines.process import addresses
from patchconv_deploy.engines.process.child import Child, child_process, module_command

_CHILD = """
import os, sys, time
sys.path.insert(0, {root!r})
from patchconv_deploy.engines.process.child import serve
from patchconv_deploy.engines.errors import ParseError
def refuse(job): raise ParseError("node x")
def large(job): return {{"got": len(job["text"]), "text": job["text"]}}
def words(job): print(job["text"], file=sys.stderr, flush=True); os.abort()
serve({{
    "kill": lambda job: os.kill(os.getpid(), 9),
    "leave": lambda job: os._exit(3),
    "sleep": lambda job: time.sleep(60),
    "memory": lambda job: bytearray(1 << 60),
    "bug": lambda job: 1 // 0,
    "refuse": refuse, "large": large, "words": words,
}})
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that serves ways to die."""
    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "dying.py").write_text(_CHILD.format(root=root))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "dying"


def test_a_process_finds_this_repository_and_no_room_of_it() -> None:
    """`engines` itself on the path would make modules of its rooms: `errors`, `timing`."""
    _, environment = module_command("m")
    first = environment["PYTHONPATH"].split(os.pathsep)[0]
    assert first == str(Path(__file__).resolve().parents[2])


@pytest.mark.parametrize(
    ("do", "command", "kind", "words"),
    [
        ("kill", {}, OutOfMemory, "ended by SIGKILL, likely for want of memory"),
        ("leave", {}, RunError, "ended with exit code 3"),
        ("words", {"text": "oh no"}, RunError, "ended by SIGABRT: oh no"),
        ("words", {"text": "what():  std::bad_alloc"}, OutOfMemory, "out of memory: .* SIGABRT"),
        ("memory", {}, OutOfMemory, "^out of memory$"),
        ("bug", {}, RunError, "ZeroDivisionError: "),
        ("refuse", {}, ParseError, "node x"),
    ],
)
def test_an_end_has_one_name(
    do: str, command: dict[str, Any], kind: type[RunError], words: str, module: str
) -> None:
    """A signal, a code, the last words, and errors of this package as what they are."""
    with child_process(module) as child, pytest.raises(kind, match=words) as caught:
        child.ask(do, **command)
    assert type(caught.value) is kind


def test_an_answer_has_a_time_limit(module: str) -> None:
    """The process is ended then; what answers in time is not touched."""
    begin = time.monotonic()
    with child_process(module) as child:
        text = "x" * 1_000_000
        assert child.ask("large", text=text, time_limit_s=60)["text"] == text
        with pytest.raises(TimeLimit, match=r"no answer within 0\.2 s"):
            child.ask("sleep", time_limit_s=0.2)
    assert time.monotonic() - begin < 20


_PARENT = """
import os, sys, threading
from patchconv_deploy.engines.process.child import child_process
def work():
    with child_process("dying") as child:
        print(child._process.pid, flush=True)
        child.ask("large", text="x")
        print("ready", flush=True)
        if sys.argv[1] == "busy":
            child.ask("sleep")
        threading.Event().wait()
if sys.argv[2] == "main":
    work()
else:
    threading.Thread(target=work).start()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there it ends with its next command")
@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("state", ["busy", "idle"])
def test_it_ends_with_the_process_that_started_it(state: str, thread: str, module: str) -> None:
    """Killed without a chance to say so; a child deep in its work does not go on alone."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ["PYTHONPATH"]])}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, state, thread],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "ready\n"
        time.sleep(0.2)
        assert child.is_running()
        parent.kill()
    assert not psutil.wait_procs([child], timeout=20)[1], module


def test_it_outlives_the_thread_that_started_it(module: str) -> None:
    """A child is handed from thread to thread."""
    started: list[Child] = []
    with ExitStack() as stack:
        start = threading.Thread(
            target=lambda: started.append(stack.enter_context(child_process(module)))
        )
        start.start()
        start.join()
        time.sleep(0.3)
        assert started[0].ask("large", text="x")["got"] == 1


def test_where_the_system_forbids_it_addresses_stay_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sandbox that refuses the call, or does nothing: no second start, and it is said."""

    class Refusing:
        @staticmethod
        def personality(wanted: int) -> int:
            return 0 if wanted == 0xFFFFFFFF else -1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Refusing)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started over"))
    assert not addresses.fix_addresses(0)


def test_fixed_addresses_are_the_same_in_the_next_process(tmp_path: Path) -> None:
    """Twice the same address, and another one in another layout; random ones where it cannot be."""
    root = str(Path(__file__).resolve().parents[2])
    code = (
        "import sys\n"
        f"sys.path.insert(0, {root!r})\n"
        "from patchconv_deploy.engines.process.addresses import fix_addresses\n"
        "print(fix_addresses(int(sys.argv[1])), id(bytearray(5000)), id(object()))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)

    def said(layout: int) -> list[str]:
        command = [sys.executable, str(script), str(layout)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    first, again, other = said(0), said(0), said(1)
    if first[0] == "False":
        pytest.skip("this system does not let a process turn address randomisation off")
    assert first == again
    assert first != other
