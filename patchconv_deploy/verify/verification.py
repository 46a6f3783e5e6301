"""Verify a rewritten model: run it and the original on the same inputs, in a child process.

1. inputs     given, or seeded; free dimensions get plausible sizes (of a range, those inside it),
              and others if the original does not run at those
2. fit        the predicted peak of both models against the memory that is available
3. run        the original twice (its own noise), the rewritten model once
4. stand-ins  ONNX Runtime has no CPU kernel for the type: float32 twins of both, else the
              reference evaluator of onnx for small models
5. compare    `patchconv_deploy.verify.comparison`, by the coarsest type on the way (`ways`)
6. freedom    only what does not pass: the original without graph optimisations, compared again
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil

from engines.errors import EngineError, TimeLimit
from engines.ort.run import installed
from engines.process.child import child_process
from patchconv_deploy.errors import UsageError
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.verify.inputs import load_inputs, make_inputs, save_inputs
from patchconv_deploy.verify.twin import float32_twin
from patchconv_deploy.verify.ways import ways_of
from rewriters.errors import RewriterError
from rewriters.graph.constant_folding import infer_by_value
from rewriters.graph.external_data import external_range, is_external, tensors
from rewriters.graph.fixed_shapes import fix_shapes, free_inputs, nominal_shapes
from rewriters.graph.model import Loaded, load, opset_of
from rewriters.graph.shapes import Shapes
from rewriters.graph.skeleton import skeleton
from rewriters.graph.use_def import index
from rewriters.look import analyse_memory
from rewriters.outcome import Outcome

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

# Peaks without graph optimisations over those with them.
_PLAIN = 2

_REFERENCE_BYTES = 64 << 20

_INTEGER_CONVS = frozenset({"QLinearConv", "ConvInteger"})

Array = np.ndarray[Any, Any]

Ranges = Mapping[str, tuple[tuple[int, int], ...]]


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
    ranges: Ranges | None = None,
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
        ranges: Per input the least and the largest of each dimension; sizes inside are used.

    Raises:
        UsageError: The given inputs do not fit the model.
    """
    loaded = load(rewritten)
    if inputs is not None:
        load_inputs(inputs, loaded.model)
    if not installed():
        return not_run("onnxruntime is not installed; install patchconv-deploy[cpu]")
    last = not_run("no input size was found that the original runs at; give one with inputs=")
    source = load(original)
    for case in _cases(loaded, source, seed, inputs, ranges or {}):
        short = _does_not_fit(case.peak, outcome, loaded)
        if short is not None:
            return not_run(short)
        try:
            arrays = case.make()
        except UsageError as error:
            return not_run(str(error))
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        known = [_known(each, shapes) for each in (source, loaded)]
        cut = bool(outcome.rewritten)
        job = {
            "seams": _seams(known, outcome),
            "ways": _ways(source, loaded, known[0], outcome, twins=False),
            "twin_ways": _ways(source, loaded, known[0], outcome, twins=True),
            "exact_integers": cut and all(r.op_type in _INTEGER_CONVS for r in outcome.rewritten),
            "rtol": rtol,
            "atol": atol,
        }
        try:
            found = _run(
                (original, rewritten), arrays, case.peak, job, None if inputs else seed, timeout_s
            )
        except TimeLimit as error:
            return not_run(
                f"the original model: {error}; allow more with timeout_s=, or verify a copy "
                "with smaller fixed shapes"
            )
        if found.ran and not (found.passed and found.faint):
            return found
        # Outputs near zero prove little: another size may say more, and else this stands.
        if found.ran or not last.ran:
            last = found
    return last


def _cases(
    loaded: Loaded, source: Loaded, seed: int, inputs: Path | None, ranges: Ranges
) -> Iterator[_Case]:
    """Yield sets of inputs to try until the original runs."""
    if inputs is not None:
        arrays = load_inputs(inputs, loaded.model)
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        yield _Case(lambda: arrays, _predict(source, shapes))
        return
    tried: list[Mapping[str, tuple[int, ...]]] = []
    for sizes in _sizes(loaded.model, ranges):
        if sizes in tried:
            continue
        tried.append(sizes)
        slim = skeleton(loaded)
        fix_shapes(slim, sizes)
        shapes_known = infer_by_value(slim)
        make = partial(make_inputs, loaded.model, shapes_known, sizes, seed)
        yield _Case(make, _predict(source, sizes))


def _sizes(model: onnx.ModelProto, ranges: Ranges) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield sizes of the inputs with free dimensions, a bounded number of them.

    First as an image with its channels before its rows, and with its channels last; the other way
    round where the last dimension is known and the second is not.
    """
    free = free_inputs(model)

    def inside(name: str, spatial: int) -> tuple[int, ...] | None:
        given = ranges.get(name)
        if given is None:
            return None
        return tuple(min(max(spatial, low), high) for low, high in given)

    def first() -> Iterator[dict[str, tuple[int, ...]]]:
        for spatial in _SPATIAL:
            limits = {n: sizes for n in free if (sizes := inside(n, spatial)) is not None}
            yield nominal_shapes(model, spatial, limits)

    def last() -> Iterator[dict[str, tuple[int, ...]]]:
        for spatial in _SPATIAL:
            limits = {
                name: inside(name, spatial)
                or tuple(size or (1 if axis == 0 else spatial) for axis, size in enumerate(shape))
                for name, shape in free.items()
            }
            yield nominal_shapes(model, spatial, limits)

    flat = any(len(s) > 3 and s[1] is None and s[-1] is not None for s in free.values())
    for each in (last, first) if flat else (first, last):
        yield from each()


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


def _known(loaded: Loaded, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return what is known of a model's tensors at the sizes of its inputs."""
    slim = skeleton(loaded)
    try:
        fix_shapes(slim, shapes)
        return infer_by_value(slim)
    except RewriterError as error:
        logger.debug("the sizes of inner tensors are unknown: %s", error)
        return Shapes({}, {})


def _seams(known: Sequence[Shapes], outcome: Outcome) -> list[dict[str, Any]]:
    """Return the seams of all regions; those worked out at run time, as they are at these sizes.

    Args:
        known: Shapes of the original and of the rewritten model; either may have the rows of a
            region's input.
        outcome: What was cut.
    """
    found = set()
    for region in outcome.rewritten:
        at = next((seams for each in known if (seams := region.seams_at(each))), None)
        if at is not None:
            found.add((region.axis, *at))
    return [{"axis": axis, "rows": rows, "at": list(at)} for axis, rows, at in sorted(found)]


def _ways(
    source: Loaded, loaded: Loaded, known: Shapes, outcome: Outcome, *, twins: bool
) -> dict[str, Any]:
    """Return what lies between the cuts and each output of the original, as JSON data."""
    regions = None
    if outcome.rewritten and opset_of(source.model) == opset_of(loaded.model):
        regions = [done.plan.region for done in outcome.rewritten]
    found = ways_of(index(source.model), known.elements, regions, twins=twins)
    return {name: asdict(way) for name, way in found.items()}


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

    with temporary_folder() as folder:
        save_inputs(folder / "inputs.npz", arrays)
        file = folder / "inputs.npz"
        own = _OwnFreedom(folder, file, _fits(peak), timeout_s)
        result = _run_pair(models, file, "onnxruntime", job, timeout_s, own)
        if not _lacks_kernel(result):
            return verdict(result, "ONNX Runtime, CPU")
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
            return verdict(result, "ONNX Runtime, CPU, on float32 twins of both models")
        if peak is None or peak > _REFERENCE_BYTES:
            return verdict(result, "")
        result = _run_pair(twins, file, "reference", job, timeout_s)
        return verdict(result, "the reference evaluator of onnx, on float32 twins of both models")


def _fits(peak: int | None) -> bool:
    """Tell whether the original has room to run without graph optimisations."""
    return peak is not None and _PLAIN * _ARENA * peak <= psutil.virtual_memory().available


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


def check_inputs(path: Path | None, model: onnx.ModelProto) -> None:
    """Check given inputs before the work begins.

    Raises:
        UsageError: They do not fit the model.
    """
    if path is not None:
        if not path.is_file():
            why = "is a folder" if path.is_dir() else "no such file"
            raise UsageError(f"inputs={str(path)!r}: {why}")
        load_inputs(path, model)
