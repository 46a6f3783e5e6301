"""Verify a rewritten model: run it and the original on the same inputs, in a child process.

1. inputs     given, or seeded; free dimensions get plausible sizes (of a range, those inside it),
              and others if the original does not run at those (`cases`)
2. fit        the predicted peak of both models against the memory that is available
3. run        the original twice (its own noise), the rewritten model once (`pairs`)
   again      where the height is free: at an odd one, the least, the assumed one; where the width
              is: at an odd one (`further`)
4. stand-ins  ONNX Runtime has no CPU kernel for the type: float32 twins of both, else the
              reference evaluator of onnx for small models
5. compare    `patchconv_deploy.verify.comparison`, by the coarsest type on the way (`ways`)
6. freedom    only what does not pass: the original without graph optimisations, compared again;
   steps      and, if need be, the original with its large sums in steps (`sums_in_steps`)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx

from patchconv_deploy.engines.errors import TimeLimit
from patchconv_deploy.engines.ort.run import installed
from patchconv_deploy.errors import UsageError
from patchconv_deploy.free_memory import memory_here
from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.external_data import external_range, is_external, tensors
from patchconv_deploy.rewriters.graph.model import Loaded, load, opset_of
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.graph.use_def import index
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.verify.cases import Case, Ranges, case_at, cases, shapes_at
from patchconv_deploy.verify.further import further_sizes
from patchconv_deploy.verify.inputs import load_inputs
from patchconv_deploy.verify.pairs import ARENA, compare_pair
from patchconv_deploy.verify.ways import ways_of

__all__ = ["TIMEOUT_S", "Verification", "not_run", "verify"]


logger = logging.getLogger(__name__)

# Seconds a model may take to be opened and run, and how much longer the rewritten one may take.
TIMEOUT_S = 1800.0

# Seconds that the original may take at a further size, and sizes of a kind that are tried.
_FURTHER_S, _TRIES = 20.0, 4

_INTEGER_CONVS = frozenset({"QLinearConv", "ConvInteger"})


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
        sizes: All shapes of the inputs at which it passed, the first of them first.
        one_height: The height is free, and it was verified at one alone: the original runs at no
            other that was tried, or takes too long.
        one_width: The same of the width.
    """

    ran: bool
    passed: bool | None
    reason: str = ""
    via: str = ""
    seed: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: tuple[Mapping[str, Any], ...] = ()
    declined: bool = False
    sizes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    one_height: bool = False
    one_width: bool = False

    @property
    def faint(self) -> bool:
        """Whether every floating output is so small that agreement says little."""
        floats = [o for o in self.outputs if "float" in o["dtype"] or o["faint"]]
        return bool(floats) and all(output["faint"] for output in floats)


def not_run(reason: str, *, declined: bool = False) -> Verification:
    """Return the verification that did not happen."""
    return Verification(False, None, reason, declined=declined)


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
    pair = _Pair(original, rewritten, load(original), loaded, outcome, rtol, atol)
    own_seed = None if inputs else seed
    for case in cases(loaded, pair.source, seed, inputs, ranges or {}):
        found, final = pair.compare(case, timeout_s, own_seed)
        if final:
            return found
        if found.ran and not (found.passed and found.faint):
            return (
                found if inputs else _at_further_sizes(pair, found, seed, ranges or {}, timeout_s)
            )
        # Outputs near zero prove little: another size may say more, and else this stands.
        if found.ran or not last.ran:
            last = found
    return last


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two models to compare.

    Attributes:
        original: The original's file.
        rewritten: The rewritten model's file.
        source: The original.
        loaded: The rewritten model.
        outcome: What was cut.
        rtol: Tolerance relative to an output's spread; by element type if None.
        atol: Absolute tolerance, added; by element type if None.
    """

    original: Path
    rewritten: Path
    source: Loaded
    loaded: Loaded
    outcome: Outcome
    rtol: float | None
    atol: float | None

    def rows_at(self, sizes: Mapping[str, tuple[int, ...]]) -> list[Any]:
        """Return the rows of each region's inputs at some sizes of the model's, None if unknown."""
        known = [_known(each, sizes) for each in (self.source, self.loaded)]
        regions = [cut.plan.region for cut in self.outcome.rewritten]
        return [next(filter(None, map(region.rows, known)), None) for region in regions]

    def compare(self, case: Case, timeout_s: float, seed: int | None) -> tuple[Verification, bool]:
        """Compare on one set of inputs.

        Args:
            case: The inputs.
            timeout_s: Seconds that the original may take.
            seed: Seed of the inputs, None if they were given.

        Returns:
            What was found, and whether there is no use in trying other sizes.
        """
        short = _does_not_fit(case.peak, self.outcome, self.loaded)
        if short is not None:
            return not_run(short), True
        try:
            arrays = case.make()
        except UsageError as error:
            return not_run(str(error)), True
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        job = _job(self.source, self.loaded, self.outcome, shapes, rtol=self.rtol, atol=self.atol)
        models = self.original, self.rewritten
        try:
            result, via = compare_pair(models, arrays, case.peak, job, timeout_s)
        except TimeLimit as error:
            reason = (
                f"the original model: {error}; allow more with timeout_s=, or verify a copy "
                "with smaller fixed shapes"
            )
            return not_run(reason), True
        return _verdict(result, via, seed, shapes), False


def _at_further_sizes(
    pair: _Pair, first: Verification, seed: int, ranges: Ranges, timeout_s: float
) -> Verification:
    """Verify at other heights as well, where patches are placed when the model runs, and widths.

    Args:
        pair: The models.
        first: What was found at the first sizes.
        seed: Seed of the inputs.
        ranges: Sizes that may be used, where they are given.
        timeout_s: Seconds that the original may take; at further sizes it gets no more than some.

    Returns:
        The first that fails; else the first, with the largest differences of all.
    """
    if not first.passed or not pair.outcome.rewritten:
        return first
    groups = further_sizes(
        pair.source,
        pair.loaded.model,
        first.shapes,
        pair.rows_at,
        ranges,
        pair.outcome.assumed,
    )
    found, sizes = [first], [first.shapes]
    alone = {"height": any(cut.plan.tiling is None for cut in pair.outcome.rewritten)}
    for group in groups:
        alone.setdefault(group.kind, True)
        for tried in islice(group.sizes, _TRIES):
            case = case_at(pair.loaded, pair.source, tried, seed)
            here, _ = pair.compare(case, min(timeout_s, _FURTHER_S), seed)
            if here.ran and here.passed is False:
                return here
            if here.passed:
                found.append(here)
                sizes.append(here.shapes)
                alone[group.kind] = False
                break
    outputs = zip(*(each.outputs for each in found), strict=True)
    worst = tuple(max(each, key=lambda o: float(o["max_rel"])) for each in outputs)
    return replace(
        first,
        outputs=worst,
        sizes=tuple(sizes),
        one_height=alone["height"],
        one_width=alone.get("width", False),
    )


def _job(
    source: Loaded,
    loaded: Loaded,
    outcome: Outcome,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rtol: float | None,
    atol: float | None,
) -> dict[str, Any]:
    """Return how the outputs are to be compared (`verify.child`).

    Args:
        source: The original.
        loaded: The rewritten model.
        outcome: What was cut.
        shapes: Shapes of the inputs.
        rtol: Tolerance relative to an output's spread; by element type if None.
        atol: Absolute tolerance, added; by element type if None.
    """
    known = [_known(each, shapes) for each in (source, loaded)]
    cut = bool(outcome.rewritten)
    return {
        "seams": _seams(known, outcome),
        "ways": _ways(source, loaded, known[0], outcome, twins=False),
        "twin_ways": _ways(source, loaded, known[0], outcome, twins=True),
        "exact_integers": cut and all(r.op_type in _INTEGER_CONVS for r in outcome.rewritten),
        "rtol": rtol,
        "atol": atol,
    }


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
    needed = int(ARENA * peak * growth) + 2 * _weight_bytes(loaded)
    available = memory_here().free
    if needed <= available:
        return None
    return (
        f"both models need about {needed / 2**30:.1f} GiB to run, {available / 2**30:.1f} GiB are "
        "available; verify a copy with smaller fixed shapes, or on a larger machine"
    )


def _known(loaded: Loaded, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return what is known of a model's tensors at the sizes of its inputs."""
    try:
        return shapes_at(loaded, shapes)
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


def _verdict(
    result: Mapping[str, Any], via: str, seed: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> Verification:
    """Return what the process that compared them answered, as what was found."""
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
    sizes = (shapes,) if passed else ()
    return Verification(True, passed, reason, via, seed, shapes, outputs, sizes=sizes)


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
