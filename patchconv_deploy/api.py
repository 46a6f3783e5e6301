"""The Python API: `convert_model`, `rewrite` and `pareto`."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, cast

import onnx

from engines.measure import Measurement
from patchconv_deploy.errors import UsageError, VerificationError
from patchconv_deploy.measuring import check_engine
from patchconv_deploy.report import Report, make_report, unknown_peak
from patchconv_deploy.saving import StagedModel, check_target, external_files, stage
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.session_options import recommend
from patchconv_deploy.sizes import SIZES, parse_size
from patchconv_deploy.tuning import Tuned, tune_rewritten
from patchconv_deploy.verification import (
    TIMEOUT_S,
    Verification,
    check_inputs,
    not_run,
    verify,
)
from rewriters.fragment import from_graphsurgeon, is_graphsurgeon, to_graphsurgeon
from rewriters.frontier import Candidate
from rewriters.graph import Loaded, load
from rewriters.normalise import normalise
from rewriters.planner import read_plan
from rewriters.regions import Selection
from rewriters.rewrite import Options, Outcome, pareto_of, rewrite_model, unknown_of
from rewriters.shapes import free_inputs

if TYPE_CHECKING:
    import torch

__all__ = [
    "CutKeywords",
    "ParetoKeywords",
    "RewriteKeywords",
    "RewriteResult",
    "convert_model",
    "default_output",
    "pareto",
    "rewrite",
    "why_unknown",
]

logger = logging.getLogger(__name__)

# Keywords that are whole numbers.
_WHOLE = ("max_tensor_elements", "min_elements", "upgrade_opset")
Progress = Callable[[str, int, int], None]
ModelT = TypeVar("ModelT")


@dataclass(frozen=True)
class RewriteResult:
    """The result of `rewrite`.

    Attributes:
        path: The file that was written, None for a dry run.
        report: What was done.
        outcome: The same as objects, the rewritten model included.
        measured: What was measured, a row a model and set of session options, the original at the
            defaults first; empty if that was not asked for, or nothing was cut.
    """

    path: Path | None
    report: Report
    outcome: Outcome
    measured: tuple[Measurement, ...] = ()


def default_output(model: Path) -> Path:
    """Return MODEL.patched.onnx beside MODEL.onnx."""
    return model.parent / f"{model.name.removesuffix('.onnx')}.patched.onnx"


class ParetoKeywords(TypedDict, total=False):
    """Keywords of `pareto`, `rewrite` and `convert_model`.

    Attributes:
        axis: The axis to cut: "height" (default), "width", "depth", a dimension of the tensor
            (>= 2), or, but for `pareto`, "auto": of height and width the one that serves better.
        max_recompute: Most work after over before; 1.5 for a rewrite without a budget, else any.
        max_tensor_elements: Most elements of a tensor; 2^31 - 1 for TensorRT by default.
        target: The engine that memory is predicted for: "onnxruntime" (default; at the session
            options that the report recommends), "onnxruntime-default" (at its own defaults),
            "triton" (at the options that a Triton server can be told) or "tensorrt".
        min_elements: Cut single convolutions whose larger side has at least this many elements
            (channels x height x width; 0: all). Default for "batch" and "sequential": those whose
            input and output are at least half of the peak of live activations.
        include: Name patterns (fnmatch) of convolutions; only matches are cut, large or not.
        exclude: Name patterns of nodes that are left as they are.
        shapes: Per input the shape to fix its free dimensions to; a pair (least, largest) in place
            of a size leaves that dimension free, and memory is predicted for the largest.
        upgrade_opset: Convert the model to this opset first.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.
    """

    axis: str | int
    max_recompute: float | None
    max_tensor_elements: int | None
    target: str
    min_elements: int | None
    include: Sequence[str]
    exclude: Sequence[str]
    shapes: Mapping[str, Sequence[int | tuple[int, int]]] | None
    upgrade_opset: int | None
    allow_custom_ops: bool


class CutKeywords(ParetoKeywords, total=False):
    """Keywords of both `rewrite` and `convert_model`, beside `ParetoKeywords`.

    Attributes:
        form: "fused" (whole regions of layers, one patch after the other), "shrinking" (the same
            with less recompute, layers of a patch of many heights), "loop" (an ONNX Loop), "batch"
            and "sequential" (single convolutions: windows stacked in the batch dimension, or one
            after the other), or "auto" (default): regions, or, where convolutions are named by
            ``include`` or ``min_elements``, single ones.
        memory_budget: Most bytes of activations, a number or text such as "512MiB" or "2GB", as
            predicted for ``target``, in use at once and, in an arena, ever written to; of the plans
            weighed that of least predicted time that keeps it is taken. Without one the need is
            made as low as ``splits`` and ``max_recompute`` allow.
        plan: A plan as `RewriteResult.outcome.plan` has it, to do just that.
        fold: Fold BatchNormalization, Mul and Add into the convolutions before them once, as an
            engine would do for each patch by itself, so that all patches share one set of weights
            (default).
        verify: Run original and result on the same inputs in a child process and compare
            (default). `convert_model` skips it, with a log message, where a model that is no file
            cannot run (no runtime, or weights that lie elsewhere).
        force: Overwrite an existing output file.
    """

    form: str
    memory_budget: int | str | None
    plan: Mapping[str, Any] | None
    fold: bool
    verify: bool
    force: bool


class RewriteKeywords(CutKeywords, total=False):
    """Keywords of `rewrite` alone.

    Attributes:
        share_weights: Refer to the original's external weight files instead of copying them.
        require_verified: Write nothing that could not be verified: no runtime, too large for the
            memory, an original that does not run or differs from itself, outputs near zero.
        rtol: Tolerance relative to an output's spread; by element type by default.
        atol: Absolute tolerance, added; by element type by default.
        seed: Seed of the inputs, 0 by default.
        inputs: An .npz file with inputs to verify on.
        timeout_s: Seconds that verification may take to run the original, 1800 by default; the
            result may take as long, or ten times what the original took.
        measure: Measure the result under ONNX Runtime on the CPU before it is written, with memory
            reuse and memory pattern on and off, beside the original. The pair of the lowest peak
            (of those within 2 %: the one nearest the defaults) becomes the session options that the
            written model recommends. Off by default: what it recommends is then predicted.
        dry_run: Do everything but run and write.
        progress: Called with (what, done, total) from time to time.
    """

    share_weights: bool
    require_verified: bool
    rtol: float | None
    atol: float | None
    seed: int
    inputs: str | os.PathLike[str] | None
    timeout_s: float
    measure: bool
    dry_run: bool
    progress: Progress | None


def _check_known(keywords: Mapping[str, object], known: type) -> None:
    """Refuse what a type checker would have refused.

    Raises:
        TypeError: A keyword is unknown.
    """
    names: frozenset[str] = known.__optional_keys__  # type: ignore[attr-defined]
    for name in keywords.keys() - names:
        raise TypeError(f"unknown keyword {name!r}; there are {', '.join(sorted(names))}")


def _fixed(shape: Sequence[int | tuple[int, int]]) -> tuple[int, ...] | None:
    """Return a shape of one size per dimension, None if there is a range in it."""
    sizes = tuple(size for size in shape if not isinstance(size, tuple))
    return sizes if len(sizes) == len(shape) else None


def _pairs(shape: Sequence[int | tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(size if isinstance(size, tuple) else (size, size) for size in shape)


def _make_options(splits: int | None, keywords: CutKeywords) -> Options:
    """Return the rewriter's options from keywords.

    Raises:
        UsageError: A value is of the wrong type.
        OptionError: A value is out of range.
    """
    whole = {"splits": splits, **{name: keywords.get(name) for name in _WHOLE}}
    for name, given in whole.items():
        if given is not None and (not isinstance(given, int) or isinstance(given, bool)):
            raise UsageError(f"{name} is {given!r}; it must be a whole number")
    patterns = (keywords.get("include", ()), keywords.get("exclude", ()))
    include, exclude = ((each,) if isinstance(each, str) else tuple(each) for each in patterns)
    shapes, plan = keywords.get("shapes") or {}, keywords.get("plan")
    return Options(
        splits=splits,
        form=keywords.get("form", "auto"),
        axis=keywords.get("axis", "height"),
        selection=Selection(keywords.get("min_elements"), include, exclude),
        shapes={n: each for n, shape in shapes.items() if (each := _fixed(shape)) is not None},
        ranges={n: _pairs(shape) for n, shape in shapes.items() if _fixed(shape) is None},
        upgrade_opset=keywords.get("upgrade_opset"),
        allow_custom_ops=keywords.get("allow_custom_ops", False),
        memory_budget=_bytes("memory_budget", keywords.get("memory_budget")),
        max_recompute=keywords.get("max_recompute"),
        max_tensor_elements=keywords.get("max_tensor_elements"),
        target=keywords.get("target", "onnxruntime"),
        plan=None if plan is None else read_plan(json.dumps(plan)),
        fold=keywords.get("fold", True),
    )


def _bytes(name: str, given: int | str | None) -> int | None:
    """Return bytes from a number of them, or from text such as 512MiB.

    Raises:
        UsageError: It is neither.
    """
    size = parse_size(given) if isinstance(given, str) else given
    if given is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise UsageError(f"{name} is {given!r}; it must be a number of bytes, or {SIZES}")
    return size


def rewrite(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    splits: int | None = None,
    **keywords: Unpack[RewriteKeywords],
) -> RewriteResult:
    """Rewrite a model file: what is large runs patch by patch, the numbers stay the same.

    Args:
        path: The model's file.
        out: The file to write; ``MODEL.patched.onnx`` beside it if None.
        splits: Patches per region or convolution, at least 1; at most so many where a budget is
            given. Default: 4, or as many as the budget asks for.
        **keywords: See `ParetoKeywords`, `CutKeywords` and `RewriteKeywords`.

    Returns:
        The written file, the report, and the outcome.

    Raises:
        RewriterError: The model is not valid, an option does not fit it, or it cannot be saved.
        UsageError: The given inputs do not fit.
        VerificationError: The result does not compute the same, or was required to be verified and
            could not be; nothing was written.
        BudgetError: No plan keeps the memory budget; nothing was written.
        EngineMissing: It is to be measured, and ONNX Runtime is not installed; nothing was written.
        OSError: The disk is full or failing; nothing was written.

    Source of the method: PatchConv (https://github.com/mit-han-lab/patch_conv).
    """
    _check_known(keywords, RewriteKeywords)
    _check_numbers(keywords)
    source = Path(path)
    target = default_output(source) if out is None else Path(out)
    options = _make_options(splits, keywords)
    loaded = load(source)
    dry_run = keywords.get("dry_run", False)
    if keywords.get("measure", False) and not dry_run:
        check_engine("onnxruntime")
    sources = [source, *external_files(loaded)]
    if not dry_run:
        check_target(target, sources, force=keywords.get("force", False))
    inputs = keywords.get("inputs")
    check_inputs(None if inputs is None else Path(inputs), loaded.model)
    free = free_inputs(loaded.model)
    outcome = rewrite_model(loaded, options, keywords.get("progress"))
    if dry_run:
        checked = not_run("dry run", declined=True)
        report = make_report(
            outcome,
            options,
            checked,
            source=source,
            source_free=free,
            normalised=loaded.normalised,
        )
        return RewriteResult(None, report, outcome)
    share = keywords.get("share_weights", False)
    staging = stage(outcome.model, loaded.folder, target, share_weights=share, keep=sources)
    with staging as staged:
        checked = _verify_staged(
            source, staged.path, outcome, options, keywords, normalised=bool(loaded.normalised)
        )
        unproven = _unproven(checked) if keywords.get("require_verified", False) else ""
        wrong = checked.passed is False or bool(unproven)
        tuned = None if wrong else _tune_staged(source, staged, target, outcome, keywords)
        report = make_report(
            outcome,
            options,
            checked,
            source=source,
            out=None if wrong else target,
            source_free=free,
            tuned=tuned,
            normalised=loaded.normalised,
        )
        if checked.passed is False:
            raise VerificationError(
                f"{source}: the rewritten model does not compute the same: {checked.reason}; "
                "nothing was written",
                report,
            )
        if unproven:
            raise VerificationError(
                f"{source}: not verified: {unproven}; nothing was written", report
            )
        staged.publish()
    return RewriteResult(target, report, outcome, () if tuned is None else tuned.results)


def pareto(path: str | os.PathLike[str], **keywords: Unpack[ParetoKeywords]) -> list[Candidate]:
    """Return what ever lower peaks cost in work, for a model file; nothing is written or run.

    Args:
        path: The model's file.
        **keywords: See `ParetoKeywords`.

    Returns:
        Plans of whole regions, the model as it is first, and alone where its peak is unknown
        (`Candidate.unknown`); predicted peaks in bytes fall, work over the original's rises.
        `rewrite` leaves a margin of 5 % below its ``memory_budget``: ask for that much more than a
        peak to get there.

    Raises:
        RewriterError: The model is not valid, was rewritten before, or an option does not fit it.
    """
    _check_known(keywords, ParetoKeywords)
    # Every keyword of the one is one of the other's; mypy wants all of them named.
    options = _make_options(None, cast("CutKeywords", keywords))
    return pareto_of(load(Path(path)), options)


def why_unknown(path: str | os.PathLike[str], **keywords: Unpack[ParetoKeywords]) -> str | None:
    """Return why a model's predicted peak is unknown, and what to do; None if it is known.

    Args:
        path: The model's file.
        **keywords: As for `pareto`.
    """
    reason = unknown_of(load(Path(path)), _make_options(None, cast("CutKeywords", keywords)))
    return None if reason is None else unknown_peak(reason)


def _check_numbers(keywords: RewriteKeywords) -> None:
    for name, value in (("rtol", keywords.get("rtol")), ("atol", keywords.get("atol"))):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} is {value}; it must be a finite number, 0 or more")
    seed, timeout_s = keywords.get("seed", 0), keywords.get("timeout_s", TIMEOUT_S)
    asked = keywords.get("verify", True) and not keywords.get("dry_run", False)
    if keywords.get("require_verified", False) and not asked:
        raise UsageError(
            "what is required to be verified has to be verified: no dry run, verify on"
        )
    if seed < 0:
        raise UsageError(f"seed is {seed}; it must be 0 or more")
    if not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise UsageError(f"the time limit is {timeout_s} s; it must be more than 0")


def _unproven(checked: Verification) -> str:
    """Return why a result counts as not verified, empty if it does, or if there is no change."""
    if checked.declined or (checked.passed is not None and not checked.faint):
        return ""
    return checked.reason or "the outputs are nearly zero on these inputs; give others"


def _verify_staged(
    source: Path,
    staged: Path,
    outcome: Outcome,
    options: Options,
    keywords: RewriteKeywords,
    *,
    normalised: bool,
) -> Verification:
    if not keywords.get("verify", True):
        return not_run("not asked for", declined=True)
    # Not the options: an opset or a shape that was asked for may be what the model has already.
    if not outcome.rewritten and outcome.model == load(source).model and not normalised:
        return not_run("nothing was changed", declined=True)
    progress, inputs = keywords.get("progress"), keywords.get("inputs")
    if progress is not None:
        progress("verifying", 0, 1)
    return verify(
        source,
        staged,
        outcome,
        seed=keywords.get("seed", 0),
        rtol=keywords.get("rtol"),
        atol=keywords.get("atol"),
        inputs=None if inputs is None else Path(inputs),
        timeout_s=keywords.get("timeout_s", TIMEOUT_S),
        ranges=options.ranges,
    )


def _tune_staged(
    source: Path, staged: StagedModel, target: Path, outcome: Outcome, keywords: RewriteKeywords
) -> Tuned | None:
    """Measure a staged model if asked for; record the session options that serve it best in it."""
    if not keywords.get("measure", False) or not outcome.rewritten:
        return None
    progress, shapes = keywords.get("progress"), keywords.get("shapes") or {}
    if progress is not None:
        progress("measuring", 0, 1)
    largest = {name: tuple(high for _, high in _pairs(shape)) for name, shape in shapes.items()}
    tuned = tune_rewritten(
        source,
        staged.path,
        shapes=largest,
        seed=keywords.get("seed", 0),
        served=keywords.get("target") == "triton",
    )
    if tuned.chosen is not None:
        recommend(outcome.model, tuned.session_options)
        staged.write(outcome.model)
    return tuned.renamed(staged.path, target)


def convert_model(
    model: ModelT,
    splits: int | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    example_inputs: Sequence[torch.Tensor] | torch.Tensor | None = None,
    **keywords: Unpack[CutKeywords],
) -> ModelT | onnx.ModelProto:
    """Rewrite a model and return the same kind.

    Args:
        model: A path (the result is written beside it and its path returned), an
            `onnx.ModelProto`, an `onnx_graphsurgeon.Graph`, or a `torch.nn.Module` (exported
            with ``example_inputs``; the result is a ModelProto). It is not changed.
        splits: As in `rewrite`.
        out: For a path: the file to write.
        example_inputs: Inputs to export a torch module with.
        **keywords: See `ParetoKeywords` and `CutKeywords`.

    Raises:
        RewriterError: The model is not valid, or an option does not fit it.
        UsageError: The model is of no known kind.
        VerificationError: The result does not compute the same.
    """
    _check_known(keywords, CutKeywords)
    if isinstance(model, (str, os.PathLike)):
        result = rewrite(model, out, splits=splits, **keywords)
        return type(model)(str(result.path))  # type: ignore[call-arg]
    options, verify = _make_options(splits, keywords), keywords.get("verify", True)
    if isinstance(model, onnx.ModelProto):
        return _convert_proto(model, options, verify)
    if is_graphsurgeon(model):
        converted = _convert_proto(from_graphsurgeon(model), options, verify)
        graph: ModelT = to_graphsurgeon(converted)
        return graph
    if hasattr(model, "state_dict") and hasattr(model, "forward"):
        return _convert_proto(_export_torch(model, example_inputs), options, verify)
    raise UsageError(
        f"{type(model).__name__} is no model: give a path, an onnx.ModelProto, an "
        "onnx_graphsurgeon.Graph or a torch.nn.Module"
    )


def _convert_proto(model: onnx.ModelProto, options: Options, wanted: bool) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    loaded = Loaded(copy, None, normalise(copy))
    outcome = rewrite_model(loaded, options)
    if not wanted or (not outcome.rewritten and outcome.model == model):
        return outcome.model
    if loaded.has_external_data:
        logger.warning("not verified: the weights lie in other files; use rewrite() on the file")
        return outcome.model
    with temporary_folder() as folder:
        paths = folder / "original.onnx", folder / "rewritten.onnx"
        for path, proto in zip(paths, (model, outcome.model), strict=True):
            path.write_bytes(proto.SerializeToString())
        checked = verify(*paths, outcome, ranges=options.ranges)
    if not checked.ran:
        logger.warning("not verified: %s", checked.reason)
    elif checked.passed is None:
        logger.warning("not verifiable: %s", checked.reason)
    elif not checked.passed:
        report = make_report(outcome, options, checked)
        raise VerificationError(
            f"the rewritten model does not compute the same: {checked.reason}", report
        )
    return outcome.model


def _export_torch(module: Any, example_inputs: Sequence[Any] | None) -> onnx.ModelProto:
    try:
        import torch
    except ImportError as error:
        raise UsageError("PyTorch is not installed; install patchconv-deploy[torch]") from error
    if example_inputs is None:
        raise UsageError("a torch.nn.Module needs example_inputs to be exported with")
    if module.training:
        raise UsageError("the module is in training mode; call .eval() on it first")
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        # Pinned: the newest opset an exporter writes may be ahead of the runtimes.
        torch.onnx.export(
            module,
            tuple(example_inputs),
            str(path),
            dynamo=True,
            opset_version=18,
            external_data=False,
            verbose=False,
        )
        return load(path).model
