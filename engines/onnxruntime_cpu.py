"""ONNX Runtime on the CPU: open a model file, run it.

Source: the onnxruntime Python API (InferenceSession, SessionOptions).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineMissing, LoadError, NoKernel, RunError

__all__ = ["Session", "installed", "open_session"]

_PROVIDER = "CPUExecutionProvider"


def installed() -> bool:
    """Tell whether ONNX Runtime can be imported, without importing it."""
    return importlib.util.find_spec("onnxruntime") is not None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class Session:
    """An open model. Made by `open_session`."""

    def __init__(self, session: Any) -> None:
        self._session = session

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """Run once.

        Args:
            feeds: One array per input.

        Returns:
            One array per output (a list of arrays for a sequence).

        Raises:
            RunError: The model failed.
        """
        try:
            results = self._session.run(None, dict(feeds))
        except Exception as error:
            raise RunError(_one_line(error)) from error
        return dict(zip(self.output_names, results, strict=True))


@contextmanager
def open_session(path: Path, *, threads: int = 0) -> Iterator[Session]:
    """Open a model on the CPU.

    Args:
        path: The model file.
        threads: Threads within an operator; 0 leaves it to the runtime.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        NoKernel: It has no CPU kernel for an operator at its element type.
        LoadError: It refuses the model for another reason.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineMissing(
            "ONNX Runtime is not installed; install patchconv-deploy[cpu]"
        ) from error
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=[_PROVIDER])
    except Exception as error:
        message = _one_line(error)
        missing = "NOT_IMPLEMENTED" in message or "Could not find an implementation" in message
        raise (NoKernel if missing else LoadError)(message) from error
    yield Session(session)
