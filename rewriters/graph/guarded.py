"""onnx's shape inference, checker and version converter, where a crash is an exception.

They are C++: on some models they abort, and with them the process that called. So they run in a
process of their own (`graph.onnx_child`), which starts with the first question and is asked
again as long as it lives; it gets models without their weights. It may spend two gigabytes and two
minutes of processor time on an answer, and ends with this process, however that ends.

Where no such process can be had (a frozen program, an interpreter that cannot be started again),
they run in this one, with a warning.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from typing import IO

import onnx
import onnx.onnx_cpp2py_export as extension
from google.protobuf.message import DecodeError, EncodeError

from patchconv_deploy.rewriters.errors import CrashError
from patchconv_deploy.rewriters.graph import onnx_child
from patchconv_deploy.rewriters.graph.external_data import tensors
from patchconv_deploy.rewriters.graph.onnx_child import (
    ANSWER,
    CHECK,
    CONVERT,
    INFER,
    QUESTION,
    READY,
)

__all__ = ["Refused", "check_model", "convert_version", "infer_shapes"]


logger = logging.getLogger(__name__)

# What C++, Python and the loader say when there is none.
_NO_MEMORY = ("bad_alloc", "MemoryError", "annot allocate memory")

_NAMES = {INFER: "shape inference", CHECK: "checker", CONVERT: "version converter"}

# Tensors above this many bytes are not sent to be converted.
_WEIGHT_BYTES = 4096

_PLACE = "patchconv.weight."

_CHUNK = 1 << 24

# Seconds it may take to start.
_START_S = 60

# What an answer may cost, in seconds of processor time and bytes of address space (and some for
# each byte of the model). 10,000 nodes take half a second and 100 MiB.
_SECONDS = 120

_MEMORY = 2 << 30


class Refused(Exception):  # noqa: N818 - a verdict on the model, not a failure of ours
    """Onnx refuses the model; the message is its own."""


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the shapes that onnx infers, sizes worked out where it can.

    Raises:
        Refused: Inference fails.
        CrashError: It crashes, or wants more memory or time than it may have.
    """
    try:
        return _parsed(_ask(INFER, model))
    except CrashError as error:
        culprit = _first_to_crash(model) if "crashes" in str(error) else None
        if culprit is None:
            raise
        label = culprit.name or next((name for name in culprit.output if name), "")
        raise CrashError(
            f"node {label!r} ({culprit.op_type}): {error}; the usual reason is a size that falls "
            "below zero there: give larger input shapes"
        ) from error


def check_model(model: onnx.ModelProto) -> None:
    """Check a model against the ONNX specification.

    Raises:
        Refused: It is not valid.
        CrashError: The checker crashes, or wants more memory or time than it may have.
    """
    _ask(CHECK, model)


def convert_version(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return the model with its default domain at another opset.

    Raises:
        Refused: It cannot be converted.
        CrashError: The converter crashes, or wants more memory or time than it may have.
    """
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    kept: dict[str, onnx.TensorProto] = {}
    for tensor, own in zip(tensors(slim), tensors(model), strict=True):
        if own.ByteSize() > _WEIGHT_BYTES:
            place = f"{_PLACE}{len(kept)}"
            kept[place] = own
            _keep_back(tensor, place)
    converted = _parsed(_ask(CONVERT, slim, version))
    for tensor in tensors(converted):
        place = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if place in kept:
            name = tensor.name
            tensor.CopyFrom(kept[place])
            tensor.name = name
    return converted


def _keep_back(tensor: onnx.TensorProto, place: str) -> None:
    """Take a tensor's bytes away, in place; where they are is written instead."""
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    bare.data_location = onnx.TensorProto.EXTERNAL
    bare.external_data.add(key="location", value=place)
    tensor.CopyFrom(bare)


def _parsed(data: bytes) -> onnx.ModelProto:
    try:
        return onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise Refused("what onnx made of the model cannot be read") from error


def _first_to_crash(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """Return the node of the main graph that inference crashes at."""
    nodes = list(model.graph.node)
    low, high = 0, len(nodes)  # it does not crash on so many nodes, it does on so many
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    while high - low > 1:
        middle = (low + high) // 2
        del part.graph.node[:]
        part.graph.node.extend(nodes[:middle])
        try:
            _ask(INFER, part)
        except Refused:
            low = middle
        except CrashError:
            high = middle
        else:
            low = middle
    return nodes[high - 1] if nodes else None


def _ask(do: bytes, model: onnx.ModelProto, version: int = 0) -> bytes:
    try:
        data = model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise Refused(f"it cannot be written as a message: {error}") from error
    how, made = _onnx.ask(do, version, data)
    if how == b"m":
        raise CrashError(f"onnx's {_NAMES[do]} wants more memory than it may have for this model")
    if how == b"-":
        raise Refused(made.decode("utf-8", "replace"))
    return made


class _Ended(Exception):  # noqa: N818 - never seen outside
    """The process ended before it answered."""


class _Process:
    """The process, started; it can be asked."""

    def __init__(self) -> None:
        # The system can end a process with the thread that started it: too early, unless that is
        # the main thread. The end of its input ends it in any case.
        lasting = threading.current_thread() is threading.main_thread()
        flags = ("-s", "-S", "-P") if "PYTHONHOME" in os.environ else ("-I", "-S")
        numbers = (os.getpid() if lasting else 0, _SECONDS, _MEMORY)
        with ExitStack() as stack:
            self._said: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            # Unbuffered, so that a fork of this process can close its copies and send nothing.
            self._process = subprocess.Popen(
                [sys.executable, *flags, onnx_child.__file__, extension.__file__]
                + [str(number) for number in numbers],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
            )
            stack.callback(self.end)
            self._greet()
            stack.pop_all()

    def _greet(self) -> None:
        # What is no Python interpreter (a program that embeds one) says nothing.
        timer = threading.Timer(_START_S, self._process.kill)
        timer.start()
        try:
            ready = self._read(len(READY))
        finally:
            timer.cancel()
        if ready != READY:
            raise _Ended

    def is_alive(self) -> bool:
        """Tell whether it can still be asked."""
        return self._process.poll() is None

    def ask(self, do: bytes, version: int, data: bytes) -> tuple[bytes, bytes]:
        """Send a question and return the answer.

        Raises:
            _Ended: It died over it.
        """
        questions = self._process.stdin
        assert questions is not None
        try:
            for part in (QUESTION.pack(do, version, len(data)), data):
                left = memoryview(part)
                while left:
                    left = left[questions.write(left) :]
        except BrokenPipeError:
            raise _Ended from None
        how, size = ANSWER.unpack(self._read(ANSWER.size))
        return how, self._read(size)

    def _read(self, size: int) -> bytes:
        answers = self._process.stdout
        assert answers is not None
        parts: list[bytes] = []
        while size:
            part = answers.read(min(size, _CHUNK))
            if not part:
                raise _Ended
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def end(self) -> tuple[int, str]:
        """End it; return its exit code and what it said last."""
        self._process.kill()
        code = self._process.wait()
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 2000))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        self._close()
        return code, lines[-1].strip() if lines else ""

    def leave(self) -> None:
        """Let go of it in a fork of the process that it belongs to."""
        self._process.returncode = 0  # it is not ours to wait for
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                stream.close()


class _Onnx:
    """The process of this process, started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._hopeless = False
        atexit.register(self._end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave)

    def ask(self, do: bytes, version: int, data: bytes) -> tuple[bytes, bytes]:
        """Return the answer to a question.

        Raises:
            CrashError: The process died over it.
        """
        with self._lock:
            process = self._started()
            if process is None:
                return onnx_child.answer(extension, do, version, data)
            try:
                return process.ask(do, version, data)
            except _Ended:
                code, words = self._end()
                logger.debug("onnx's process ended with %d: %s", code, words)
                raise CrashError(f"onnx's {_NAMES[do]} {_end_of(code, words)}") from None
            except BaseException:
                # Interrupted between question and answer: the next one would get this answer.
                self._end()
                raise

    def _started(self) -> _Process | None:
        if self._process is not None and not self._process.is_alive():
            self._end()
        if self._process is None and not self._hopeless:
            if getattr(sys, "frozen", False) or not sys.executable:
                self._hopeless = True
            else:
                try:
                    self._process = _Process()
                except _Ended:
                    self._hopeless = True
                except (OSError, RuntimeError) as error:  # no process, no thread to be had now
                    logger.debug("onnx's process does not start: %s", error)
            if self._process is None:
                logger.warning(
                    "onnx runs in this process, since it cannot be started in one of its own: "
                    "a model that onnx crashes on would end both"
                )
        return self._process

    def _end(self) -> tuple[int, str]:
        process, self._process = self._process, None
        return (0, "") if process is None else process.end()

    def _leave(self) -> None:
        process, self._process, self._lock = self._process, None, threading.Lock()
        if process is not None:
            process.leave()


def _end_of(code: int, words: str) -> str:
    """Say how the process ended, as a predicate."""
    if not code or any(sign in words for sign in _NO_MEMORY):
        return "wants more memory than it may have for this model"
    if code == -getattr(signal, "SIGXCPU", 0):
        return f"takes more than {_SECONDS} s for this model"
    if code == -getattr(signal, "SIGKILL", 0):
        return "was ended by SIGKILL on this model, likely for want of memory"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"crashes on this model ({how})"


_onnx = _Onnx()
