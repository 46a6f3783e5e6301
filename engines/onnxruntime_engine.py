"""ONNX Runtime: open a model file under explicit options, run it, read its own memory figure.

Every option that decides memory has a field, and is reported. The providers a session really uses
are read back: asked for CUDA on a machine without a GPU, the runtime falls back to the CPU and
says nothing.

Source: the onnxruntime Python API (InferenceSession, SessionOptions, provider options).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import DeviceMissing, EngineMissing, LoadError, NoKernel, RunError

__all__ = ["PROVIDERS", "OrtOptions", "Session", "installed", "open_session", "runtime_peak"]

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class OrtOptions:
    """Session options that decide memory and time.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt".
        threads: Threads within an operator; 0 leaves it to the runtime.
        arena: Keep freed memory in an arena that grows and is never given back.
        arena_extend_strategy: How the CUDA arena grows: "kNextPowerOfTwo" or "kSameAsRequested".
        memory_pattern: Reserve one block for all activations from the second run on.
        memory_reuse: Plan static reuse of buffers.
        cudnn_conv_use_max_workspace: Let cuDNN take as much workspace as it wants.
        cudnn_conv_algo_search: "EXHAUSTIVE", "HEURISTIC" or "DEFAULT".
    """

    provider: str = "cpu"
    threads: int = 0
    arena: bool = True
    arena_extend_strategy: str = "kNextPowerOfTwo"
    memory_pattern: bool = True
    memory_reuse: bool = True
    cudnn_conv_use_max_workspace: bool = True
    cudnn_conv_algo_search: str = "EXHAUSTIVE"

    def providers(self) -> list[Any]:
        """Return the providers to ask for, with their options."""
        cuda = {
            "arena_extend_strategy": self.arena_extend_strategy,
            "cudnn_conv_use_max_workspace": "1" if self.cudnn_conv_use_max_workspace else "0",
            "cudnn_conv_algo_search": self.cudnn_conv_algo_search,
        }
        wanted: dict[str, list[Any]] = {
            "cpu": [PROVIDERS["cpu"]],
            "cuda": [(PROVIDERS["cuda"], cuda)],
            "tensorrt": [PROVIDERS["tensorrt"], (PROVIDERS["cuda"], cuda)],
        }
        return wanted[self.provider]


def installed() -> bool:
    """Tell whether ONNX Runtime can be imported, without importing it."""
    return importlib.util.find_spec("onnxruntime") is not None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class Session:
    """An open model. Made by `open_session`."""

    def __init__(self, session: Any, version: str) -> None:
        self._session = session
        self.version = version

    @property
    def providers(self) -> list[str]:
        """The providers really in use."""
        return list(self._session.get_providers())

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

    def end_profiling(self) -> Path:
        """Stop profiling and return the file of records."""
        return Path(self._session.end_profiling())


@contextmanager
def open_session(
    path: Path, options: OrtOptions | None = None, *, profile: Path | None = None
) -> Iterator[Session]:
    """Open a model.

    Args:
        path: The model file.
        options: Session options; the runtime's defaults on the CPU if None.
        profile: Write profiling records under this prefix.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        DeviceMissing: The provider asked for is not the one that would run the model.
        NoKernel: It has no kernel for an operator at its element type.
        LoadError: It refuses the model for another reason.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineMissing(
            "ONNX Runtime is not installed; install patchconv-deploy[cpu]"
        ) from error
    options = options or OrtOptions()
    wanted = PROVIDERS[options.provider]
    if wanted not in ort.get_available_providers():
        raise DeviceMissing(
            f"this ONNX Runtime has no {wanted}; install patchconv-deploy[gpu] in place of "
            "onnxruntime, on a machine with an NVIDIA GPU"
        )
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4
    session_options.intra_op_num_threads = options.threads
    session_options.enable_cpu_mem_arena = options.arena
    session_options.enable_mem_pattern = options.memory_pattern
    session_options.enable_mem_reuse = options.memory_reuse
    if profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(profile)
    try:
        session = ort.InferenceSession(str(path), session_options, providers=options.providers())
    except Exception as error:
        message = _one_line(error)
        missing = "NOT_IMPLEMENTED" in message or "Could not find an implementation" in message
        raise (NoKernel if missing else LoadError)(message) from error
    if wanted not in session.get_providers():
        raise DeviceMissing(
            f"ONNX Runtime fell back to {session.get_providers()[0]}: {wanted} found no usable GPU "
            "(driver, CUDA or cuDNN missing)"
        )
    yield Session(session, ort.__version__)


def runtime_peak(
    path: Path,
    options: OrtOptions,
    feeds: Mapping[str, np.ndarray[Any, Any]],
    runs: int,
    folder: Path,
) -> int | None:
    """Return the runtime's own figure: the most its arena had in use, in bytes.

    Profiling slows a session down, so this is a session of its own.

    Args:
        path: The model file.
        options: Session options; without an arena the runtime keeps no figure.
        feeds: One array per input.
        runs: Number of runs; the second can need more than the first.
        folder: Takes the records.

    Returns:
        Bytes, or None where this version of the runtime records none.
    """
    if not options.arena:
        return None
    with open_session(path, options, profile=folder / "profile") as session:
        for _ in range(runs):
            session.run(feeds)
        records = json.loads(session.end_profiling().read_text())
    peaks = [
        int(record["args"]["mem_in_use_peak"])
        for record in records
        if "mem_in_use_peak" in record.get("args", {})
    ]
    return max(peaks, default=None)
