"""What ONNX Runtime's GPU providers need of the machine, looked for and loaded before a session.

    driver         new enough for the CUDA that this build of ONNX Runtime is for
    CUDA, cuDNN    installed by pip below site-packages/nvidia, where no loader looks: ONNX Runtime
                   loads them itself when asked to (`onnxruntime.preload_dlls`)
    TensorRT 10    for the provider "tensorrt", which no other version serves

A provider that cannot be loaded is no error to ONNX Runtime: it says so in its log, and falls back
to the CPU. The log's last error is what the user has to know, so it is caught (`watched`).

Source: ONNX Runtime's CUDA execution provider page, `preload_dlls` in onnxruntime/__init__.py, and
what the providers' libraries ask for (ELF, NEEDED) in the wheels 1.26 and 1.31.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from patchconv_deploy.engines.errors import DeviceMissing
from patchconv_deploy.engines.gpu.cuda import check_driver

__all__ = ["Said", "cuda_major", "load_libraries", "missing_library", "watched"]


logger = logging.getLogger(__name__)

# Both providers' libraries are linked against this one, in 1.23 to 1.31.
_TENSORRT = "libnvinfer.so.10"

# Terminal colours, then "date time [E:category, file:line function] ".
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_ERROR = re.compile(r"\[(?:E|F):[^\]]*\]\s*(?P<text>.*)")

_MISSING = re.compile(r"(?P<library>lib[\w.+-]+\.so[.\d]*): cannot open shared object file")


def cuda_major(runtime: Any) -> int | None:
    """Return the major version of CUDA that this ONNX Runtime is built for; None if for none."""
    version = str(getattr(runtime, "cuda_version", "") or "").partition(".")[0]
    return int(version) if version.isdecimal() else None


def load_libraries(runtime: Any, provider: str) -> None:
    """Load what a GPU provider is linked against.

    Args:
        runtime: The module onnxruntime.
        provider: "cuda" or "tensorrt".

    Raises:
        DeviceMissing: The driver is missing or too old, or TensorRT 10 is not there.
    """
    major = cuda_major(runtime)
    if major is not None:
        check_driver(major, f"onnxruntime-gpu {runtime.__version__}", "gpu")
    if hasattr(runtime, "preload_dlls"):
        # It prints what it does not find; what matters of it, the provider says again.
        with redirect_stdout(io.StringIO()) as said:
            runtime.preload_dlls()
        for line in said.getvalue().splitlines():
            logger.debug("%s", line)
    if provider == "tensorrt":
        _load_tensorrt(major)


def _load_tensorrt(cuda: int | None) -> None:
    """Load TensorRT 10, by importing it where pip installed it.

    Raises:
        DeviceMissing: It is not there, or in another version.
    """
    module: Any = None
    with suppress(ImportError):
        module = importlib.import_module("tensorrt")
    try:
        ctypes.CDLL(_TENSORRT)
    except OSError:
        there = "is not installed" if module is None else f"is here in version {module.__version__}"
        fitting = f"tensorrt-cu{cuda}" if cuda else "tensorrt"
        version = None if module is None else module.__version__
        other = "" if version is None else f"; the engine 'tensorrt' takes {version} as it is"
        raise DeviceMissing(
            f"ONNX Runtime's TensorRT provider needs TensorRT 10 ({_TENSORRT}), which {there}; "
            f"pip install '{fitting}>=10,<11'{other}"
        ) from None


class Said:
    """What was written to the standard streams, once `watched` has ended."""

    text = ""

    def last_error(self, provider: str = "") -> str:
        """Return the last error of ONNX Runtime's log, without its place; empty if there is none.

        Args:
            provider: Rather the last one that names it: "cuda" is tried where "tensorrt" fails.
        """
        lines = (_COLOURS.sub("", line) for line in self.text.splitlines())
        errors = [found["text"] for line in lines if (found := _ERROR.search(line)) is not None]
        own = [error for error in errors if f"_{provider}." in error]
        return " ".join((own or errors or [""])[-1].rpartition(" FAIL : ")[2].split())


def missing_library(error: str) -> str:
    """Return the shared library that an error says could not be opened; empty if none."""
    found = _MISSING.search(error)
    return "" if found is None else found["library"]


@contextmanager
def watched() -> Iterator[Said]:
    """Catch what native code writes to the standard streams of this process, and pass nothing on.

    The streams are the process's own: other threads' words are caught as well.
    """
    said = Said()
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            # Python's own prints go to the same place.
            with suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
            yield said
        finally:
            with suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
                sys.stderr.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
            file.seek(0)
            said.text = file.read().decode(errors="replace")
            if said.text:
                logger.debug("%s", said.text)
