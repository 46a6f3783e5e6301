"""Original and rewritten model, run on the same inputs in a process of their own and compared."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from patchconv_deploy.engines.errors import EngineError, TimeLimit
from patchconv_deploy.engines.process.child import child_process
from patchconv_deploy.free_memory import memory_here
from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.verify.inputs import save_inputs
from patchconv_deploy.verify.sums_in_steps import with_sums_in_steps
from patchconv_deploy.verify.twin import float32_twin, with_weights

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
        sizes = {name: tuple(array.shape) for name, array in arrays.items()}
        own = _Original(folder, file, sizes, peak, timeout_s)
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


def _fits(peak: int | None, times: int = 1) -> bool:
    """Tell whether there is room for a run of the original with so many times its peak."""
    return peak is not None and times * ARENA * peak <= memory_here().free


@dataclass(frozen=True, slots=True)
class _Original:
    """How the original is run in other ways, each in a process of its own.

    Attributes:
        folder: Takes what it gives.
        inputs: The file of inputs.
        sizes: Sizes of the inputs, by name.
        peak: Its predicted peak activation as it is, bytes; None if unknown.
        timeout_s: Seconds it may take.
    """

    folder: Path
    inputs: Path
    sizes: Mapping[str, tuple[int, ...]]
    peak: int | None
    timeout_s: float

    def without_optimisations(self, original: Path, ways: Mapping[str, Any]) -> Path | None:
        """Return the file of what it gave, scores of labels included; None if it did not run."""
        if not _fits(self.peak, _PLAIN):
            return None
        loaded = load(original)
        wanted = _missing_scores(loaded.model, ways)
        if not wanted or loaded.has_external_data:
            return self._run(original, "plain", optimised=False)
        loaded.model.graph.output.extend(wanted)
        return self._run(self._written(loaded.model, "scores"), "plain", optimised=False)

    def in_steps(self, original: Path, ways: Mapping[str, Any]) -> Path | None:
        """Return the same where its large sums are taken in steps; None, too, if it has none."""
        # That needs no more than the original as it is.
        if not _fits(self.peak):
            return None
        loaded = load(original)
        try:
            model = with_sums_in_steps(loaded, self.sizes)
        except RewriterError as error:
            logger.info("no sums of the original are known: %s", error)
            return None
        if model is None:
            return None
        model = with_weights(model, original.parent)
        model.graph.output.extend(_missing_scores(model, ways))
        return self._run(self._written(model, "steps"), "in_steps", optimised=True)

    def _written(self, model: onnx.ModelProto, name: str) -> Path | None:
        """Return the file of a model; None if it is too large for one."""
        path = self.folder / f"{name}.onnx"
        try:
            path.write_bytes(model.SerializeToString())
        except (ValueError, EncodeError) as error:
            logger.info("too large to be written in one file: %s", error)
            return None
        return path

    def _run(self, path: Path | None, name: str, *, optimised: bool) -> Path | None:
        """Return the file of what a model gave; None if there is no model or it did not run."""
        if path is None:
            return None
        out = self.folder / f"{name}.npz"
        try:
            with child_process("patchconv_deploy.verify.child") as child:
                child.ask(
                    "keep",
                    time_limit_s=self.timeout_s,
                    path=str(path),
                    inputs=str(self.inputs),
                    out=str(out),
                    optimised=optimised,
                )
        except (EngineError, OSError) as error:
            logger.info("the original does not run as %s: %s", name, error)
            return None
        return out


def _missing_scores(model: onnx.ModelProto, ways: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
    """Return tensors that labels are chosen from, as outputs, but for those that are some."""
    there = {value.name for value in model.graph.output}
    scores = dict.fromkeys(way["scores"] for way in ways.values())
    # Runtimes find the type out.
    return [onnx.ValueInfoProto(name=name) for name in scores if name and name not in there]


def _run_pair(
    models: tuple[Path, Path],
    inputs: Path,
    evaluator: str,
    job: Mapping[str, Any],
    timeout_s: float,
    own: _Original | None = None,
) -> dict[str, Any]:
    """Run original and rewritten model in a process of their own, and compare.

    What does not pass is compared again, with the original's own freedom in view; what does not
    pass even so, with what the original gives where its large sums are taken in steps.

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
            if own is None or job["rtol"] is not None or job["atol"] is not None:
                return answer
            others = {"plain": own.without_optimisations, "steps": own.in_steps}
            for name, run in others.items():
                if all(output["passed"] is not False for output in answer["outputs"]):
                    return answer
                found = run(models[0], job["ways"])
                job = {**job, name: found and str(found)}
                answer = child.ask(stage, final=True, **job)
            return answer
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
