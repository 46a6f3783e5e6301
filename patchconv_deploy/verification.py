"""Verify a rewritten model: run it and the original on the same inputs, in a child process.

1. inputs     given, or seeded; free dimensions get plausible sizes, and others if those fail
2. fit        the predicted peak of both models against the memory that is available
3. run        the original twice (its own noise), the rewritten model once
4. stand-ins  ONNX Runtime has no CPU kernel for the type: float32 twins of both, else the
              reference evaluator of onnx for small models
5. compare    `patchconv_deploy.comparison`
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil

from engines.child import child_process
from engines.errors import EngineError, TimeLimit
from engines.onnxruntime_engine import installed
from patchconv_deploy.errors import UsageError
from patchconv_deploy.inputs import load_inputs, make_inputs, save_inputs
from patchconv_deploy.twin import float32_twin
from rewriters.errors import RewriterError
from rewriters.external_data import external_range, is_external, tensors
from rewriters.graph import Loaded, load, skeleton
from rewriters.rewrite import Outcome, analyse_memory
from rewriters.shapes import fix_shapes, infer, nominal_shapes

__all__ = ["TIMEOUT_S", "Verification", "not_run", "verify"]

logger = logging.getLogger(__name__)

# Rows and columns tried for free spatial dimensions, in this order: small, then what networks with
# fixed heads or many strides ask for.
_SPATIAL = (64, 96, 128, 224, 256, 48, 32, 512)
# A runtime's arena grows by powers of two and keeps what it has: measured peaks reach twice the
# live bytes.
_ARENA = 2.2
# Seconds a model may take to be opened and run, and how much longer the rewritten one may take.
TIMEOUT_S = 1800.0
_SLOWER = 10
_REFERENCE_BYTES = 64 << 20
_INTEGER_CONVS = frozenset({"QLinearConv", "ConvInteger"})

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Verification:
    """What verification found.

    Attributes:
        ran: Both models ran.
        passed: Every output is within tolerance; None if they did not run, or if the original
            differs from itself.
        reason: Why not run, or not passed.
        via: What ran them.
        seed: Seed of the inputs, None if they were given.
        shapes: Shapes of the inputs.
        outputs: One `comparison.OutputComparison` as a dictionary per output.
        declined: It did not run because nobody wanted it to.
    """

    ran: bool
    passed: bool | None
    reason: str = ""
    via: str = ""
    seed: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: tuple[Mapping[str, Any], ...] = ()
    declined: bool = False

    @property
    def faint(self) -> bool:
        """Whether every floating output is so small that agreement says little."""
        floats = [o for o in self.outputs if "float" in o["dtype"] or o["faint"]]
        return bool(floats) and all(output["faint"] for output in floats)


def not_run(reason: str, *, declined: bool = False) -> Verification:
    """Return the verification that did not happen."""
    return Verification(ran=False, passed=None, reason=reason, declined=declined)


@dataclass(frozen=True, slots=True)
class _Case:
    """One set of inputs to run on, made when it is known that the models fit into memory."""

    make: Callable[[], Mapping[str, Array]]
    peak: int | None


def verify(
    original: Path,
    rewritten: Path,
    outcome: Outcome,
    *,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    inputs: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Verification:
    """Run both models and compare.

    Args:
        original: The original model's file.
        rewritten: The rewritten model's file.
        outcome: What the rewriter reported.
        seed: Seed of the inputs.
        rtol: Tolerance relative to an output's spread; by element type if None.
        atol: Absolute tolerance, added; by element type if None.
        inputs: An .npz file of inputs to use instead.
        timeout_s: Seconds that the original may take to be opened and run twice; the rewritten
            model may take as long, or ten times what the original took.

    Raises:
        UsageError: The given inputs do not fit the model.
    """
    loaded = load(rewritten)
    if inputs is not None:
        load_inputs(inputs, loaded.model)
    if not installed():
        return not_run("onnxruntime is not installed; install patchconv-deploy[cpu]")
    last = not_run("no input size was found that the original runs at; give one with --inputs")
    source = load(original)
    for case in _cases(loaded, source, seed, inputs):
        short = _does_not_fit(case.peak, outcome, loaded)
        if short is not None:
            return not_run(short)
        try:
            arrays = case.make()
        except UsageError as error:
            return not_run(str(error))
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        job = {
            "seams": _seams((source, loaded), outcome, shapes),
            "exact_integers": all(r.op_type in _INTEGER_CONVS for r in outcome.rewritten),
            "rtol": rtol,
            "atol": atol,
        }
        try:
            found = _run(
                (original, rewritten), arrays, case.peak, job, None if inputs else seed, timeout_s
            )
        except TimeLimit as error:
            return not_run(
                f"the original model: {error}; allow more with --verify-timeout, or verify a copy "
                "with smaller fixed shapes"
            )
        if found.ran and not (found.passed and found.faint):
            return found
        # Outputs near zero prove little: another size may say more, and else this stands.
        if found.ran or not last.ran:
            last = found
    return last


def _cases(loaded: Loaded, source: Loaded, seed: int, inputs: Path | None) -> Iterator[_Case]:
    """Yield sets of inputs to try until the original runs."""
    if inputs is not None:
        arrays = load_inputs(inputs, loaded.model)
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        yield _Case(lambda: arrays, _predict(source, shapes))
        return
    for spatial in _SPATIAL:
        sizes = nominal_shapes(loaded.model, spatial)
        slim = skeleton(loaded)
        fix_shapes(slim, sizes)
        shapes_known = infer(slim)
        make = partial(make_inputs, loaded.model, shapes_known, sizes, seed)
        yield _Case(make, _predict(source, sizes))
        if not sizes:
            return


def _predict(source: Loaded, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    try:
        return analyse_memory(source, shapes)
    except RewriterError as error:
        logger.debug("no prediction of the original's peak: %s", error)
        return None


def _weight_bytes(loaded: Loaded) -> int:
    total = 0
    for tensor in tensors(loaded.model):
        if is_external(tensor) and loaded.folder is not None:
            total += external_range(tensor, loaded.folder).length
        else:
            total += tensor.ByteSize()
    return total


def _does_not_fit(peak: int | None, outcome: Outcome, loaded: Loaded) -> str | None:
    if peak is None:
        return None
    growth = max(1.0, outcome.after.bytes / outcome.before.bytes) if outcome.before.bytes else 1.0
    needed = int(_ARENA * peak * growth) + 2 * _weight_bytes(loaded)
    available = psutil.virtual_memory().available
    if needed <= available:
        return None
    return (
        f"both models need about {needed / 2**30:.1f} GiB to run, {available / 2**30:.1f} GiB are "
        "available; verify a copy with smaller fixed shapes, or on a larger machine"
    )


def _seams(
    models: Sequence[Loaded], outcome: Outcome, shapes: Mapping[str, tuple[int, ...]]
) -> list[dict[str, Any]]:
    """Return the seams of all regions; those worked out at run time, as they are at these sizes.

    Args:
        models: The original and the rewritten model; either may know the rows of a region's input.
        outcome: What was cut.
        shapes: Sizes of the inputs.
    """
    found = set()
    pending = list(outcome.rewritten)
    for loaded in models:
        if not pending:
            break
        slim = skeleton(loaded)
        try:
            fix_shapes(slim, shapes)
            known = infer(slim)
        except RewriterError as error:
            logger.debug("the sizes of inner tensors are unknown: %s", error)
            continue
        at = [(region, region.seams_at(known)) for region in pending]
        found |= {(region.axis, *seams) for region, seams in at if seams is not None}
        pending = [region for region, seams in at if seams is None]
    return [{"axis": axis, "rows": rows, "at": list(at)} for axis, rows, at in sorted(found)]


def _run(
    models: tuple[Path, Path],
    arrays: Mapping[str, Array],
    peak: int | None,
    job: Mapping[str, Any],
    seed: int | None,
    timeout_s: float,
) -> Verification:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}

    def verdict(result: Mapping[str, Any], via: str) -> Verification:
        error = result.get("error")
        if error is not None:
            ran = error["stage"] == "rewritten"
            what = "comparison" if error["stage"] == "compare" else f"{error['stage']} model"
            reason = f"the {what} does not run: {error['message']}"
            return Verification(ran, False if ran else None, reason, via, seed, shapes)
        outputs = tuple(result["outputs"])
        bad = [o for o in outputs if o["passed"] is False]
        unstable = [o for o in outputs if o["passed"] is None]
        reason = "; ".join(f"{o['name']}: {o['reason']}" for o in bad or unstable)
        passed = False if bad else (None if unstable else True)
        return Verification(True, passed, reason, via, seed, shapes, outputs)

    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        folder = Path(name)
        save_inputs(folder / "inputs.npz", arrays)
        file = folder / "inputs.npz"
        result = _run_pair(models, file, "onnxruntime", job, timeout_s)
        if not _lacks_kernel(result):
            return verdict(result, "ONNX Runtime, CPU")
        logger.info("ONNX Runtime has no kernel for the type: %s", result["error"]["message"])
        twins = _twins(models, folder)
        floats = {
            key: array.astype(np.float32) if array.dtype == np.float64 else array
            for key, array in arrays.items()
        }
        save_inputs(file, floats)
        result = _run_pair(twins, file, "onnxruntime", job, timeout_s)
        if "error" not in result or result["error"]["stage"] != "original":
            return verdict(result, "ONNX Runtime, CPU, on float32 twins of both models")
        if peak is None or peak > _REFERENCE_BYTES:
            return verdict(result, "")
        result = _run_pair(twins, file, "reference", job, timeout_s)
        return verdict(result, "the reference evaluator of onnx, on float32 twins of both models")


def _run_pair(
    models: tuple[Path, Path],
    inputs: Path,
    evaluator: str,
    job: Mapping[str, Any],
    timeout_s: float,
) -> dict[str, Any]:
    """Run original and rewritten model in a process of their own, and compare.

    Raises:
        TimeLimit: The original takes longer than it may.
    """
    stage = "original"
    common = {"inputs": str(inputs), "evaluator": evaluator}
    try:
        with child_process("patchconv_deploy.verify_child") as child:
            begin = time.monotonic()
            child.ask(stage, time_limit_s=timeout_s, path=str(models[0]), **common)
            allowed = max(timeout_s, _SLOWER * (time.monotonic() - begin))
            stage = "rewritten"
            child.ask(stage, time_limit_s=allowed, path=str(models[1]), **common)
            stage = "compare"
            return child.ask(stage, **job)
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


def check_inputs(path: Path | None, model: onnx.ModelProto) -> None:
    """Check given inputs before the work begins.

    Raises:
        UsageError: They do not fit the model.
    """
    if path is not None:
        if not path.is_file():
            why = "is a folder" if path.is_dir() else "no such file"
            raise UsageError(f"--inputs {path}: {why}")
        load_inputs(path, model)
