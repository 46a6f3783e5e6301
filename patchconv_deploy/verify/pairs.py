"""Original and rewritten model, run on the same inputs in a process of their own and compared."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from patchconv_deploy.engines.errors import EngineError, TimeLimit
from patchconv_deploy.engines.process.child import child_process
from patchconv_deploy.free_memory import memory_here
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.verify.inputs import save_inputs
from patchconv_deploy.verify.twin import float32_twin

__all__ = ["ARENA", "compare_pair"]


logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

# A runtime's arena grows by powers of two and keeps what it has: measured peaks reach twice the
# live bytes.
ARENA = 2.2

# How much longer than the original the rewritten model may take.
_SLOWER = 10

# Peaks without graph optimisations over those with them.
_PLAIN = 2

# Peak activation up to which the reference evaluator is asked.
_REFERENCE_BYTES = 64 << 20


def compare_pair(
    models: tuple[Path, Path],
    arrays: Mapping[str, Array],
    peak: int | None,
    job: Mapping[str, Any],
    timeout_s: float,
) -> tuple[dict[str, Any], str]:
    """Run both models and compare; stand-ins where ONNX Runtime has no kernel for the type.

    Args:
        models: The files of the original and of the rewritten model.
        arrays: The inputs.
        peak: Predicted peak activation of the original, bytes; None if unknown.
        job: How to compare (`verify.child`); "twin_ways" are those of stand-ins.
        timeout_s: Seconds that the original may take.

    Returns:
        What the process answered, and what ran the models, in words.

    Raises:
        TimeLimit: The original takes longer than it may.
    """
    with temporary_folder() as folder:
        file = folder / "inputs.npz"
        save_inputs(file, arrays)
        own = _OwnFreedom(folder, file, _fits(peak), timeout_s)
        result = _run_pair(models, file, "onnxruntime", job, timeout_s, own)
        if not _lacks_kernel(result):
            return result, "ONNX Runtime, CPU"
        logger.info("ONNX Runtime has no kernel for the type: %s", result["error"]["message"])
        twins = _twins(models, folder)
        floats = {
            key: array.astype(np.float32) if array.dtype == np.float64 else array
            for key, array in arrays.items()
        }
        save_inputs(file, floats)
        job = {**job, "ways": job["twin_ways"]}
        result = _run_pair(twins, file, "onnxruntime", job, timeout_s, own)
        if "error" not in result or result["error"]["stage"] != "original":
            return result, "ONNX Runtime, CPU, on float32 twins of both models"
        if peak is None or peak > _REFERENCE_BYTES:
            return result, ""
        result = _run_pair(twins, file, "reference", job, timeout_s)
        return result, "the reference evaluator of onnx, on float32 twins of both models"


def _fits(peak: int | None) -> bool:
    """Tell whether the original has room to run without graph optimisations."""
    return peak is not None and _PLAIN * ARENA * peak <= memory_here().free


@dataclass(frozen=True, slots=True)
class _OwnFreedom:
    """How the original is run without graph optimisations.

    Attributes:
        folder: Takes what it gives.
        inputs: The file of inputs.
        fits: There is room for it.
        timeout_s: Seconds it may take.
    """

    folder: Path
    inputs: Path
    fits: bool
    timeout_s: float

    def run(self, original: Path, ways: Mapping[str, Any]) -> Path | None:
        """Return the file of what it gave, scores of labels included; None if it did not run."""
        if not self.fits:
            return None
        out = self.folder / "plain.npz"
        try:
            path = self._with_scores(original, [way["scores"] for way in ways.values()])
            with child_process("patchconv_deploy.verify.child") as child:
                child.ask(
                    "plain",
                    time_limit_s=self.timeout_s,
                    path=str(path),
                    inputs=str(self.inputs),
                    out=str(out),
                )
        except (EngineError, OSError) as error:
            logger.info("the original does not run without graph optimisations: %s", error)
            return None
        return out

    def _with_scores(self, original: Path, names: Sequence[str]) -> Path:
        """Return the original with tensors as outputs; as it is if its weights lie elsewhere."""
        loaded = load(original)
        there = {value.name for value in loaded.model.graph.output}
        wanted = dict.fromkeys(name for name in names if name and name not in there)
        if not wanted or loaded.has_external_data:
            return original
        loaded.model.graph.output.extend(
            # Runtimes find the type out.
            onnx.ValueInfoProto(name=name)
            for name in wanted
        )
        path = self.folder / "scores.onnx"
        path.write_bytes(loaded.model.SerializeToString())
        return path


def _run_pair(
    models: tuple[Path, Path],
    inputs: Path,
    evaluator: str,
    job: Mapping[str, Any],
    timeout_s: float,
    own: _OwnFreedom | None = None,
) -> dict[str, Any]:
    """Run original and rewritten model in a process of their own, and compare.

    What does not pass is compared again, with the original's own freedom in view.

    Raises:
        TimeLimit: The original takes longer than it may.
    """
    stage = "original"
    common = {"inputs": str(inputs), "evaluator": evaluator}
    try:
        with child_process("patchconv_deploy.verify.child") as child:
            begin = time.monotonic()
            child.ask(stage, time_limit_s=timeout_s, path=str(models[0]), **common)
            allowed = max(timeout_s, _SLOWER * (time.monotonic() - begin))
            stage = "rewritten"
            child.ask(stage, time_limit_s=allowed, path=str(models[1]), **common)
            stage = "compare"
            answer = child.ask(stage, final=own is None, **job)
            failed = [o for o in answer["outputs"] if o["passed"] is False]
            if own is None or not failed or job["rtol"] is not None or job["atol"] is not None:
                return answer
            plain = own.run(models[0], job["ways"])
            return child.ask(stage, final=True, plain=plain and str(plain), **job)
    except EngineError as error:
        if stage == "original" and isinstance(error, TimeLimit):
            raise
        kind = type(error).__name__
        return {"error": {"stage": stage, "kind": kind, "message": str(error)}}


def _lacks_kernel(result: Mapping[str, Any]) -> bool:
    error = result.get("error")
    if error is None or error["stage"] != "original":
        return False
    # A double or bfloat16 model may also be refused for the type of its inputs.
    return error["kind"] == "NoKernel" or "Unexpected input data type" in error["message"]


def _twins(models: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    twins = folder / "original.onnx", folder / "rewritten.onnx"
    for path, target in zip(models, twins, strict=True):
        target.write_bytes(float32_twin(load(path).model, path.parent).SerializeToString())
    return twins
