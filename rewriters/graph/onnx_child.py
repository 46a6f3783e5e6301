"""The process that onnx's C++ code runs in: ``python onnx_child.py EXTENSION PARENT LIMITS``.

It is run as a file and imports the standard library and onnx's extension module alone, so that it
starts in some 40 ms. `graph.guarded` starts it and speaks with it. A question is a `QUESTION`
header and a serialized model, an answer an `ANSWER` header and bytes:

    b"+"  the result, a serialized model or nothing
    b"-"  what onnx said against the model, as text
    b"m"  nothing: it wanted more memory than it may have

It ends when its input ends, and when its parent does. On Windows nothing bounds memory and time.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

__all__ = ["ANSWER", "CHECK", "CONVERT", "INFER", "QUESTION", "READY", "answer", "main"]


# What to do, the opset to convert to, bytes of the model.
QUESTION = struct.Struct("<cqQ")

# How it went, bytes that follow.
ANSWER = struct.Struct("<cQ")

READY = b"onnx\n"

INFER, CHECK, CONVERT = b"i", b"c", b"v"

# What a byte of the model adds to the memory that may be had, and the most a result may be.
_MEMORY_PER_BYTE = 24

_RESULT, _RESULT_PER_BYTE = 64 << 20, 16


def answer(onnx: Any, do: bytes, version: int, data: bytes) -> tuple[bytes, bytes]:
    """Return how a question went and what comes of it.

    Args:
        onnx: onnx's extension module.
        do: INFER, CHECK or CONVERT.
        version: The opset to convert to.
        data: A serialized model.
    """
    try:
        made = b""
        if do == INFER:
            made = onnx.shape_inference.infer_shapes(data, False, False, True)
        elif do == CHECK:
            onnx.checker.check_model(data, False, False, False)
        else:
            made = onnx.version_converter.convert_version(data, version)
    except MemoryError:
        return b"m", b""
    except Exception as error:  # noqa: BLE001 - whatever onnx raises is its verdict on the model
        # A message that quotes a name which is not UTF-8 arrives as a UnicodeDecodeError.
        return b"-", f"{error}".encode("utf-8", "replace")
    fits = len(made) <= _RESULT + _RESULT_PER_BYTE * len(data)
    return (b"+", made) if fits else (b"m", b"")


def _bound(seconds: int, memory: int) -> None:
    """Bound the processor time and address space of an answer; beyond it the system ends us."""
    try:
        import resource
    except ImportError:
        return
    spent = resource.getrusage(resource.RUSAGE_SELF)
    # The limit is in whole seconds: rounded up, so that no answer gets less than it may have.
    until = int(spent.ru_utime + spent.ru_stime) + 1 + seconds
    for what, wanted in ((resource.RLIMIT_CPU, until), (resource.RLIMIT_AS, memory)):
        _, most = resource.getrlimit(what)
        if most != resource.RLIM_INFINITY:
            wanted = min(wanted, most)
        resource.setrlimit(what, (wanted, most))


def _end_with_parent(parent: int) -> None:
    """Let the system end this process with the one that started it, where it can."""
    if sys.platform == "linux":
        import ctypes

        # PR_SET_PDEATHSIG, see prctl(2).
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if hasattr(os, "getppid") and os.getppid() != parent:
        sys.exit()


def _no_core_file() -> None:
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def _serve(onnx: Any, questions: BinaryIO, answers: BinaryIO, seconds: int, memory: int) -> None:
    while len(head := questions.read(QUESTION.size)) == QUESTION.size:
        do, version, size = QUESTION.unpack(head)
        _bound(seconds, memory + _MEMORY_PER_BYTE * size)
        try:
            data = questions.read(size)
            if len(data) < size:
                return
            how, made = answer(onnx, do, version, data)
        except MemoryError:
            return
        answers.write(ANSWER.pack(how, len(made)))
        answers.write(made)
        answers.flush()


def main() -> None:
    """Answer until standard input ends."""
    # Ctrl-C is the parent's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    extension = sys.argv[1]
    parent, seconds, memory = map(int, sys.argv[2:])
    if parent:
        _end_with_parent(parent)
    _no_core_file()
    # Answers keep standard output to themselves.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    name = "onnx_cpp2py_export"
    loader = importlib.machinery.ExtensionFileLoader(name, extension)
    spec = importlib.util.spec_from_file_location(name, extension, loader=loader)
    assert spec is not None
    onnx = importlib.util.module_from_spec(spec)
    loader.exec_module(onnx)
    answers.write(READY)
    answers.flush()
    _serve(onnx, sys.stdin.buffer, answers, seconds, memory)


if __name__ == "__main__":
    main()
