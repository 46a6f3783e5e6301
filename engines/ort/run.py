"""ONNX Runtime: open a model file under explicit options, run it, read its own memory figure.

Every option that decides memory has a field, and is reported. The providers a session really uses
are read back: asked for CUDA on a machine without a GPU, the runtime falls back to the CPU and
says nothing.

Source: the onnxruntime Python API (InferenceSession, SessionOptions, provider options).
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy.engines.errors import (
    DeviceMissing,
    EngineMissing,
    LoadError,
    NoKernel,
    OutOfMemory,
    RunError,
)
from patchconv_deploy.engines.ort.libraries import (
    Said,
    cuda_major,
    load_libraries,
    missing_library,
    watched,
)
from patchconv_deploy.engines.ort.options import PROVIDERS, OrtOptions

__all__ = ["Bound", "Session", "check_provider", "installed", "open_session", "runtime_peak"]


def installed() -> bool:
    """Tell whether ONNX Runtime can be imported, without importing it."""
    return importlib.util.find_spec("onnxruntime") is not None


_NO_MEMORY = re.compile(
    r"bad_alloc|failed to allocate memory|available memory of|out of memory|cudaErrorMemoryAlloc",
    re.IGNORECASE,
)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _run_error(error: Exception) -> RunError:
    message = _one_line(error)
    if _NO_MEMORY.search(message):
        return OutOfMemory(f"out of memory: {message}")
    return RunError(message)


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
            raise _run_error(error) from error
        return dict(zip(self.output_names, results, strict=True))

    def bind(self, feeds: Mapping[str, np.ndarray[Any, Any]], device: str = "cuda") -> Bound:
        """Copy inputs to the device the session runs on, and let its outputs stay there.

        Args:
            feeds: One array per input.
            device: The device, as ONNX Runtime calls it.

        Raises:
            RunError: There is no room for them.
        """
        import onnxruntime as ort

        binding = self._session.io_binding()
        try:
            for name, array in feeds.items():
                # Text stays on the host.
                place = device if array.dtype.kind in "biuf" else "cpu"
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, place))
        except Exception as error:
            raise _run_error(error) from error
        for output in self._session.get_outputs():
            binding.bind_output(output.name, device if output.type.startswith("tensor(") else "cpu")
        options = ort.RunOptions()
        # What records events on the stream waits for them itself.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return Bound(self._session, binding, options)

    def end_profiling(self) -> Path:
        """Stop profiling and return the file of records."""
        return Path(self._session.end_profiling())


class Bound:
    """A session with its inputs and outputs on its device. Made by `Session.bind`."""

    def __init__(self, session: Any, binding: Any, options: Any) -> None:
        self._session = session
        self._binding = binding
        self._options = options

    def run(self) -> None:
        """Put one run on the session's stream, without copies and without waiting.

        Raises:
            RunError: The model failed.
        """
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise _run_error(error) from error

    def fetch(self) -> list[np.ndarray[Any, Any]]:
        """Wait, and copy the outputs to the host, in order; not what is no tensor."""
        self._binding.synchronize_outputs()
        return [value.numpy() for value in self._binding.get_outputs() if value.is_tensor()]


def check_provider(options: OrtOptions) -> None:
    """Import ONNX Runtime and see that it has the provider asked for.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        DeviceMissing: It is another build of it.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineMissing(
            "ONNX Runtime is not installed; install patchconv-deploy[cpu]"
        ) from error
    wanted = PROVIDERS[options.provider]
    if wanted not in ort.get_available_providers():
        raise DeviceMissing(
            f"this ONNX Runtime has no {wanted}; install patchconv-deploy[gpu-cu12] in place of "
            "onnxruntime, on a machine with an NVIDIA GPU"
        )


@contextmanager
def open_session(
    path: Path,
    options: OrtOptions | None = None,
    *,
    profile: Path | None = None,
    stream: int | None = None,
    optimised: bool = True,
) -> Iterator[Session]:
    """Open a model.

    Args:
        path: The model file.
        options: Session options; the runtime's defaults on the CPU if None.
        profile: Write profiling records under this prefix.
        stream: The CUDA stream to run on; the provider's own if None.
        optimised: Let it fuse, fold and lay out the graph anew, as it does by default.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        DeviceMissing: The provider asked for is not the one that would run the model.
        NoKernel: It has no kernel for an operator at its element type.
        OutOfMemory: It does not fit into memory.
        LoadError: It refuses the model for another reason.
    """
    options = options or OrtOptions()
    check_provider(options)
    import onnxruntime as ort

    wanted = PROVIDERS[options.provider]
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4
    session_options.intra_op_num_threads = options.threads
    for name, value in options.session_options().items():
        setattr(session_options, name, value)
    if not optimised:
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(profile)
    on_gpu = options.provider != "cpu"
    if on_gpu:
        load_libraries(ort, options.provider)
    said = Said()
    try:
        # A provider that cannot be loaded is no error to the runtime: its log alone says why.
        with watched() if on_gpu else nullcontext(said) as said:
            session = ort.InferenceSession(
                str(path), session_options, providers=options.providers(stream)
            )
    except Exception as error:
        message = _one_line(error)
        if _NO_MEMORY.search(message):
            raise _run_error(error) from error
        missing = "NOT_IMPLEMENTED" in message or "Could not find an implementation" in message
        raise (NoKernel if missing else LoadError)(message) from error
    if wanted not in session.get_providers():
        raise DeviceMissing(_fell_back(ort, session.get_providers()[0], options, said))
    yield Session(session, ort.__version__)


def _fell_back(runtime: Any, used: str, options: OrtOptions, said: Said) -> str:
    """Return why a provider is not in use, in the runtime's own words where it has any."""
    why = said.last_error(options.provider) or "no reason given"
    version, library = cuda_major(runtime), missing_library(why)
    extra = "gpu" if version is None else f"gpu-cu{version}"
    advice = f"; {library} is missing: install patchconv-deploy[{extra}]" if library else ""
    wanted = PROVIDERS[options.provider]
    return f"ONNX Runtime fell back to {used}, {wanted} could not be used: {why}{advice}"


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
