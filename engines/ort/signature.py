"""What ONNX Runtime itself says a model takes and gives, asked in a process of its own.

The runtime's view is what a server holds a configuration against: it knows sizes that the file does
not declare. ``python -m patchconv_deploy.engines.ort.signature`` is that process; an open model can
be run there too, on inputs from an .npz file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy.engines.errors import EngineMissing, LoadError, RunError
from patchconv_deploy.engines.process.child import Child, child_process, serve

__all__ = ["Opened", "Runtime", "Value", "runtime"]


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output as the runtime describes it.

    Attributes:
        name: Its name.
        type: The runtime's own word, "tensor(float)".
        shape: Sizes; a symbol or None for a free one. Empty for a scalar and for an unknown rank.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class Opened:
    """A model open in its process until the next one is. Made by `Runtime.open`."""

    def __init__(self, child: Child, answer: Mapping[str, Any]) -> None:
        self._child = child
        self.inputs, self.outputs, self.overridable = (
            tuple(Value(v["name"], v["type"], tuple(v["shape"])) for v in answer[kind])
            for kind in ("inputs", "outputs", "overridable")
        )

    def run(self, inputs: Path, outputs: Path) -> None:
        """Run on the arrays of one .npz file and write the outputs, in order, to another.

        Raises:
            RunError: The model failed, or its process died.
        """
        self._child.ask(do="run", inputs=str(inputs), outputs=str(outputs))


class Runtime:
    """Opens models, one at a time, in one process; in a new one if that dies."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._child: Child | None = None

    def open(self, path: Path) -> Opened:
        """Open a model under ONNX Runtime (CPU).

        Raises:
            EngineMissing: ONNX Runtime is not installed.
            LoadError: It refuses the model.
            RunError: The process died, for example for want of memory.
        """
        if self._child is None:
            self._child = self._stack.enter_context(
                child_process("patchconv_deploy.engines.ort.signature")
            )
        try:
            return Opened(self._child, self._child.ask(do="open", model=str(path)))
        except RunError:
            self.close()
            raise

    def close_model(self) -> None:
        """Give the memory of the open model back."""
        if self._child is not None:
            self._child.ask(do="close")

    def close(self) -> None:
        """End the process."""
        self._child = None
        self._stack.close()


@contextmanager
def runtime() -> Iterator[Runtime]:
    """Return what opens models; its process ends with the context."""
    opener = Runtime()
    try:
        yield opener
    finally:
        opener.close()


def _describe(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"name": v.name, "type": v.type, "shape": list(v.shape)} for v in values]


class _Worker:
    def __init__(self) -> None:
        self._session: Any = None

    def open(self, job: Mapping[str, Any]) -> dict[str, Any]:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise EngineMissing(
                "ONNX Runtime is not installed; install patchconv-deploy[cpu]"
            ) from error
        self._session = None
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(
                job["model"], options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise LoadError(" ".join(str(error).split())) from error
        return {
            "inputs": _describe(self._session.get_inputs()),
            "outputs": _describe(self._session.get_outputs()),
            "overridable": _describe(self._session.get_overridable_initializers()),
        }

    def close(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self._session = None
        return {}

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        with np.load(job["inputs"], allow_pickle=False) as data:
            feeds = {name: data[name] for name in data.files}
        try:
            results = self._session.run(None, feeds)
        except Exception as error:
            raise RunError(" ".join(str(error).split())) from error
        arrays = [np.asarray(result) for result in results]
        plain = [a.astype(np.str_) if a.dtype.kind == "O" else a for a in arrays]
        np.savez(job["outputs"], *plain)
        return {}


def main() -> int:
    """Serve until standard input ends."""
    worker = _Worker()
    serve({"open": worker.open, "run": worker.run, "close": worker.close})
    return 0


if __name__ == "__main__":
    sys.exit(main())
