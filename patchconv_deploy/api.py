"""The Python API: `convert_model`, `rewrite` and `pareto`."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import onnx

from patchconv_deploy.engines.measurement import Measurement
from patchconv_deploy.errors import UsageError, VerificationError
from patchconv_deploy.measure.run import check_engine
from patchconv_deploy.measure.session_options import recommend
from patchconv_deploy.measure.tuning import Tuned, tune_rewritten
from patchconv_deploy.report.report import Report, make_report
from patchconv_deploy.rewriters.emission.graphsurgeon import (
    from_graphsurgeon,
    is_graphsurgeon,
    to_graphsurgeon,
)
from patchconv_deploy.rewriters.graph.fixed_shapes import free_inputs
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.graph.normalise import normalise
from patchconv_deploy.rewriters.look import pareto_of
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.saving import StagedModel, check_target, external_files, stage
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.sizes import SIZES, parse_size
from patchconv_deploy.verify.verification import (
    TIMEOUT_S,
    Verification,
    check_inputs,
    not_run,
    verify,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "RewriteResult",
    "convert_model",
    "default_output",
    "make_options",
    "pareto",
    "rewrite",
]

logger = logging.getLogger(__name__)

# Per input a size, or the least and the largest, for each dimension.
InputShapes = Mapping[str, Sequence[int | tuple[int, int]]]
ModelT = TypeVar("ModelT")


@dataclass(frozen=True)
class RewriteResult:
    """The result of `rewrite`.

    Attributes:
        path: The file that was written, None for a dry run.
        weights: The file that holds its weights beside it, None where it holds them itself, or
            shares those of the original.
        report: What was done.
        outcome: The same as objects, the rewritten model included.
        measured: What was measured, a row a model and set of session options, the original at the
            defaults first; empty if that was not asked for, or nothing was cut.
    """

    path: Path | None
    report: Report
    outcome: Outcome
    measured: tuple[Measurement, ...] = ()
    weights: Path | None = None


def default_output(model: Path) -> Path:
    """Return MODEL.patched.onnx beside MODEL.onnx."""
    return model.parent / f"{model.name.removesuffix('.onnx')}.patched.onnx"


def _fixed(shape: Sequence[int | tuple[int, int]]) -> tuple[int, ...] | None:
    """Return a shape of one size per dimension, None if there is a range in it."""
    sizes = tuple(size for size in shape if not isinstance(size, tuple))
    return sizes if len(sizes) == len(shape) else None


def _pairs(shape: Sequence[int | tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(size if isinstance(size, tuple) else (size, size) for size in shape)


def make_options(
    *,
    splits: int | None,
    memory_budget: int | str | None,
    max_recompute: float | None,
    form: str,
    patch_rows: int | None,
    target: str,
    max_tensor_elements: int | None,
    max_buffer: int | str | None,
    plan: Mapping[str, Any] | None,
    axis: str | int,
    include: Sequence[str],
    exclude: Sequence[str],
    min_elements: int | None,
    shapes: InputShapes | None,
    fold: bool,
    upgrade_opset: int | None,
    allow_custom_ops: bool,
) -> Options:
    """Return the rewriter's options from keywords of `rewrite`.

    Raises:
        UsageError: A value is of the wrong type.
        OptionError: A value is out of range.
    """
    whole = {
        "splits": splits,
        "patch_rows": patch_rows,
        "max_tensor_elements": max_tensor_elements,
        "min_elements": min_elements,
        "upgrade_opset": upgrade_opset,
    }
    for name, given in whole.items():
        if given is not None and (not isinstance(given, int) or isinstance(given, bool)):
            raise UsageError(f"{name} is {given!r}; it must be a whole number")
    cut, left = ((each,) if isinstance(each, str) else tuple(each) for each in (include, exclude))
    shapes = shapes or {}
    return Options(
        splits=splits,
        form=form,
        patch_rows=patch_rows,
        axis=axis,
        selection=Selection(min_elements, cut, left),
        shapes={n: each for n, shape in shapes.items() if (each := _fixed(shape)) is not None},
        ranges={n: _pairs(shape) for n, shape in shapes.items() if _fixed(shape) is None},
        upgrade_opset=upgrade_opset,
        allow_custom_ops=allow_custom_ops,
        memory_budget=_bytes("memory_budget", memory_budget),
        max_recompute=max_recompute,
        max_tensor_elements=max_tensor_elements,
        max_buffer=_bytes("max_buffer", max_buffer),
        target=target,
        plan=None if plan is None else read_plan(json.dumps(plan)),
        fold=fold,
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


@dataclass(frozen=True, kw_only=True)
class _Verifying:
    """How a result is verified.

    Attributes:
        wanted: Whether it is.
        required: Write nothing that could not be verified.
        rtol: Tolerance relative to an output's spread; None: by element type.
        atol: Absolute tolerance, added; None: by element type.
        seed: Seed of the inputs.
        inputs: An .npz file with inputs, None for seeded ones.
        timeout_s: Seconds for the original.

    Raises:
        UsageError: A value is out of range.
    """

    wanted: bool
    required: bool
    rtol: float | None
    atol: float | None
    seed: int
    inputs: Path | None
    timeout_s: float

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}; it must be a finite number, 0 or more")
        if self.required and not self.wanted:
            raise UsageError(
                "what is required to be verified has to be verified: no dry run, verify on"
            )
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must be 0 or more")
        if not 0 < self.timeout_s <= threading.TIMEOUT_MAX:
            raise UsageError(f"the time limit is {self.timeout_s} s; it must be more than 0")


def rewrite(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    splits: int | None = None,
    memory_budget: int | str | None = None,
    max_recompute: float | None = None,
    form: str = "auto",
    patch_rows: int | None = None,
    target: str = "onnxruntime",
    max_tensor_elements: int | None = None,
    max_buffer: int | str | None = None,
    plan: Mapping[str, Any] | None = None,
    axis: str | int = "height",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_elements: int | None = None,
    shapes: InputShapes | None = None,
    fold: bool = True,
    upgrade_opset: int | None = None,
    allow_custom_ops: bool = False,
    share_weights: bool = False,
    verify: bool = True,
    require_verified: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    inputs: str | os.PathLike[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    measure: bool = False,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> RewriteResult:
    """Rewrite a model file: what is large runs patch by patch, the numbers stay the same.

    Args:
        path: The model's file. `ModelError` if it cannot be read or is not valid.
        out: The file to write; ``MODEL.patched.onnx`` beside it if None. `SaveError` if it cannot
            be written, is an input of the rewrite, or exists already (see ``force``).
        splits: Patches per region or convolution, 1 to 4096 (`OptionError`); at most so many where
            a budget is given. None: 4, or more where 4 gain nothing; as many as a budget asks for.
        memory_budget: Most bytes that runs may add to the process, a number of 1 or more
            (`OptionError`) or text such as "512MiB" or "2GB" (`UsageError` if it is no size), as
            predicted for ``target``: in use at once and, in an arena, ever written to. Of the plans
            weighed that of least predicted time that keeps it is taken; `BudgetError` if none does.
            Without one the need is made as low as ``splits`` and ``max_recompute`` allow.
        max_recompute: Most work after over before, a ratio of 1 or more (`OptionError`). None: 1.5
            without a budget, ``max_tensor_elements``, ``max_buffer`` or ``patch_rows``, else any.
        form: How to cut: "fused" (whole regions of layers, one patch after the other), "shrinking"
            (the same with less recompute, layers of a patch of many heights), "loop" (an ONNX
            Loop), "rounds" (where the height is free, a Loop of as many patches of a fixed height
            as an image needs; not for "tensorrt"), "batch" and "sequential" (single convolutions:
            windows stacked in the batch dimension, or one after the other), or "auto": regions, or,
            where convolutions are named by ``include`` or ``min_elements``, single ones.
            `OptionError` for any other, and for single convolutions beside a budget or
            ``max_recompute``.
        patch_rows: Where the height is free, the rows of a region's first output that each patch
            has of its own, 1 or more, in the form "rounds"; of whole steps of the region, as many
            or a few less. `OptionError` where they are fewer than a step, the height is fixed, the
            form is another one, or beside ``splits``, ``memory_budget``,
            ``max_tensor_elements``, ``max_buffer`` or ``plan``.
        target: The engine that memory is predicted for: "onnxruntime" (at the session options that
            the report recommends), "onnxruntime-default" (at its own defaults), "triton" (at the
            options that a Triton server can be told) or "tensorrt". `OptionError` for any other.
        max_tensor_elements: Most elements of a tensor, 1 or more (`OptionError`). None: 2^31 - 1
            for "tensorrt", else any.
        max_buffer: Most bytes of a tensor, inputs, outputs and weights among them, a number or text
            such as "128MiB" (`UsageError` if it is no size): what WebGPU and Vulkan bind as one
            buffer. `BudgetError` where it cannot be kept, with what can.
        plan: A plan as `RewriteResult.outcome.plan` has it, to do just that. `OptionError` if it is
            no plan, or not one of this model.
        axis: The axis to cut: "height", "width", "depth", a dimension of the tensor, 2 or above, or
            "auto": of height and width the one that serves better. `OptionError` for any other.
        include: Name patterns (fnmatch) of convolutions; only matches are cut, large or not.
        exclude: Name patterns of nodes that are left as they are.
        min_elements: Cut single convolutions whose larger side has at least this many elements
            (channels x height x width), 0 or more (`OptionError`); 0 for all. None, for "batch" and
            "sequential": those whose input and output are at least half of the peak of live
            activations.
        shapes: Per input the shape to fix its free dimensions to, 1 to 2^31 each; a pair (least,
            largest) in place of a size leaves that dimension free, and memory is predicted for the
            largest. `OptionError` if there is no such input, or a shape does not fit it.
        fold: Fold BatchNormalization, Mul and Add into the convolutions before them once, as an
            engine would do for each patch by itself, so that all patches share one set of weights.
        upgrade_opset: Convert the model to this opset first. `OptionError` if onnx cannot, or the
            model's is newer.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define; without it
            they are a `ModelError`.
        share_weights: Refer to the original's external weight files instead of copying them.
            `SaveError` if the output does not lie in the model's folder or below.
        verify: Run original and result on the same inputs in a child process and compare.
            `VerificationError` if they differ; where they cannot run the report says so.
        require_verified: Write nothing that could not be verified: no runtime, too large for the
            memory, an original that does not run or differs from itself, outputs near zero.
            `VerificationError` then; `UsageError` beside ``dry_run`` or without ``verify``.
        rtol: Tolerance relative to an output's spread, finite and 0 or more (`UsageError`). None:
            by element type.
        atol: Absolute tolerance in the output's own unit, added; finite and 0 or more
            (`UsageError`). None: by element type.
        seed: Seed of the inputs, 0 or more (`UsageError`).
        inputs: An .npz file with an array per input to verify on, in place of seeded ones.
            `UsageError` if names, types or shapes do not fit.
        timeout_s: Seconds that verification may take to run the original, more than 0
            (`UsageError`); the result may take as long, or ten times what the original took. An
            original that takes longer is not verified; a result that does is a `VerificationError`.
        measure: Measure the result under ONNX Runtime on the CPU before it is written, with memory
            reuse and memory pattern on and off, beside the original. The pair of the lowest peak
            (of those within 2 %: the one nearest the defaults) becomes the session options that the
            written model recommends; without it what it recommends is predicted. `EngineMissing` if
            ONNX Runtime is not installed.
        dry_run: Do everything but run and write.
        force: Overwrite an existing output file; the input never is.
        progress: Called with (what, done, total) from time to time.

    Returns:
        The written file, the report, and the outcome.

    Raises:
        RewriterError: The model is not valid, an option does not fit it, or it cannot be saved.
        UsageError: A value is of the wrong type or out of range, or the given inputs do not fit.
        VerificationError: The result does not compute the same, or was required to be verified and
            could not be; nothing was written.
        BudgetError: No plan keeps the memory budget; nothing was written.
        EngineMissing: It is to be measured, and ONNX Runtime is not installed; nothing was written.
        OSError: The disk is full or failing; nothing was written.

    Source of the method: PatchConv (https://github.com/mit-han-lab/patch_conv).
    """
    verifying = _Verifying(
        wanted=verify and not dry_run,
        required=require_verified,
        rtol=rtol,
        atol=atol,
        seed=seed,
        inputs=None if inputs is None else Path(inputs),
        timeout_s=timeout_s,
    )
    source = Path(path)
    written = default_output(source) if out is None else Path(out)
    options = make_options(
        splits=splits,
        memory_budget=memory_budget,
        max_recompute=max_recompute,
        form=form,
        patch_rows=patch_rows,
        target=target,
        max_tensor_elements=max_tensor_elements,
        max_buffer=max_buffer,
        plan=plan,
        axis=axis,
        include=include,
        exclude=exclude,
        min_elements=min_elements,
        shapes=shapes,
        fold=fold,
        upgrade_opset=upgrade_opset,
        allow_custom_ops=allow_custom_ops,
    )
    loaded = load(source)
    if measure and not dry_run:
        check_engine("onnxruntime")
    sources = [source, *external_files(loaded)]
    if not dry_run:
        check_target(written, sources, force=force)
    check_inputs(verifying.inputs, loaded.model)
    free = free_inputs(loaded.model)
    outcome = rewrite_model(loaded, options, progress)
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
    staging = stage(
        outcome.model, loaded.folder, written, share_weights=share_weights, keep=sources
    )
    with staging as staged:
        checked = _verify_staged(
            source,
            staged.path,
            outcome,
            options,
            verifying,
            progress,
            normalised=bool(loaded.normalised),
        )
        unproven = _unproven(checked) if require_verified else ""
        wrong = checked.passed is False or bool(unproven)
        tuned = None
        if measure and outcome.rewritten and not wrong:
            tuned = _tune_staged(source, staged, outcome, options, seed, progress)
            tuned = tuned.renamed(staged.path, written)
        report = make_report(
            outcome,
            options,
            checked,
            source=source,
            out=None if wrong else written,
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
    results = () if tuned is None else tuned.results
    return RewriteResult(written, report, outcome, results, staged.weights)


def pareto(
    path: str | os.PathLike[str],
    *,
    max_recompute: float | None = None,
    target: str = "onnxruntime",
    max_tensor_elements: int | None = None,
    max_buffer: int | str | None = None,
    axis: str | int = "height",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_elements: int | None = None,
    shapes: InputShapes | None = None,
    upgrade_opset: int | None = None,
    allow_custom_ops: bool = False,
) -> list[Candidate]:
    """Return what ever lower peaks cost in work, for a model file; nothing is written or run.

    Args:
        path: The model's file. `ModelError` if it cannot be read or is not valid.
        max_recompute: Most work after over before, a ratio of 1 or more (`OptionError`); None: any.
        target: The engine that memory is predicted for: "onnxruntime", "onnxruntime-default",
            "triton" or "tensorrt", as for `rewrite`. `OptionError` for any other.
        max_tensor_elements: Most elements of a tensor, 1 or more (`OptionError`). None: 2^31 - 1
            for "tensorrt", else any.
        max_buffer: Most bytes of a tensor, inputs, outputs and weights among them, a number or text
            such as "128MiB" (`UsageError` if it is no size): what WebGPU and Vulkan bind as one
            buffer. `BudgetError` where it cannot be kept, with what can.
        axis: The axis to cut: "height", "width", "depth", or a dimension of the tensor, 2 or above.
            `OptionError` for any other: a curve is along one axis, so "auto" is none.
        include: Name patterns (fnmatch) of convolutions; of these only matches are cut.
        exclude: Name patterns of nodes that are left as they are.
        min_elements: Cut convolutions whose larger side has at least this many elements (channels x
            height x width), 0 or more (`OptionError`). None: any.
        shapes: Per input the shape to fix its free dimensions to, 1 to 2^31 each; a pair (least,
            largest) in place of a size leaves that dimension free, and memory is predicted for the
            largest. `OptionError` if there is no such input, or a shape does not fit it.
        upgrade_opset: Convert the model to this opset first. `OptionError` if onnx cannot, or the
            model's is newer.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define; without it
            they are a `ModelError`.

    Returns:
        Plans of whole regions, the model as it is first, and alone where its peak is unknown
        (`Candidate.unknown`); predicted peaks in bytes fall, work over the original's rises.
        `rewrite` leaves a margin of 5 % below its ``memory_budget``: ask for that much more than a
        peak to get there.

    Raises:
        RewriterError: The model is not valid, was rewritten before, or an option does not fit it.
        UsageError: A value is of the wrong type.
    """
    options = make_options(
        splits=None,
        memory_budget=None,
        max_recompute=max_recompute,
        form="auto",
        patch_rows=None,
        target=target,
        max_tensor_elements=max_tensor_elements,
        max_buffer=max_buffer,
        plan=None,
        axis=axis,
        include=include,
        exclude=exclude,
        min_elements=min_elements,
        shapes=shapes,
        fold=True,
        upgrade_opset=upgrade_opset,
        allow_custom_ops=allow_custom_ops,
    )
    return pareto_of(load(Path(path)), options)


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
    verifying: _Verifying,
    progress: Progress | None,
    *,
    normalised: bool,
) -> Verification:
    if not verifying.wanted:
        return not_run("not asked for", declined=True)
    # Not the options: an opset or a shape that was asked for may be what the model has already.
    if not outcome.rewritten and outcome.model == load(source).model and not normalised:
        return not_run("nothing was changed", declined=True)
    if progress is not None:
        progress("verifying", 0, 1)
    return verify(
        source,
        staged,
        outcome,
        seed=verifying.seed,
        rtol=verifying.rtol,
        atol=verifying.atol,
        inputs=verifying.inputs,
        timeout_s=verifying.timeout_s,
        ranges=options.ranges,
    )


def _tune_staged(
    source: Path,
    staged: StagedModel,
    outcome: Outcome,
    options: Options,
    seed: int,
    progress: Progress | None,
) -> Tuned:
    """Measure a staged model; record the session options that serve it best in it."""
    ranges = {name: tuple(high for _, high in sizes) for name, sizes in options.ranges.items()}
    tuned = tune_rewritten(
        source,
        staged.path,
        shapes={**options.shapes, **ranges},
        seed=seed,
        served=options.target == "triton",
        progress=progress,
    )
    if tuned.chosen is not None:
        recommend(outcome.model, tuned.session_options)
        staged.write(outcome.model)
    return tuned


def convert_model(
    model: ModelT,
    splits: int | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    example_inputs: Sequence[torch.Tensor] | torch.Tensor | None = None,
    memory_budget: int | str | None = None,
    max_recompute: float | None = None,
    form: str = "auto",
    patch_rows: int | None = None,
    target: str = "onnxruntime",
    max_tensor_elements: int | None = None,
    max_buffer: int | str | None = None,
    plan: Mapping[str, Any] | None = None,
    axis: str | int = "height",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_elements: int | None = None,
    shapes: InputShapes | None = None,
    fold: bool = True,
    upgrade_opset: int | None = None,
    allow_custom_ops: bool = False,
    verify: bool = True,
    force: bool = False,
) -> ModelT | onnx.ModelProto:
    """Rewrite a model and return the same kind.

    Args:
        model: A path (the result is written beside it and its path returned), an
            `onnx.ModelProto`, an `onnx_graphsurgeon.Graph`, or a `torch.nn.Module` (exported
            with ``example_inputs``; the result is a ModelProto). It is not changed. `UsageError`
            for anything else.
        splits: Patches per region or convolution, 1 to 4096 (`OptionError`); at most so many where
            a budget is given. None: 4, or more where 4 gain nothing; as many as a budget asks for.
        out: For a path: the file to write, ``MODEL.patched.onnx`` beside it if None. `SaveError` if
            it cannot be written, or exists already (see ``force``).
        example_inputs: A tensor, or one per input, to export a torch module with. `UsageError`
            where a module comes without.
        memory_budget: Most bytes that runs may add to the process, a number of 1 or more
            (`OptionError`) or text such as "512MiB" or "2GB" (`UsageError` if it is no size), as
            predicted for ``target``. `BudgetError` if no plan keeps it.
        max_recompute: Most work after over before, a ratio of 1 or more (`OptionError`). None: 1.5
            without a budget, ``max_tensor_elements``, ``max_buffer`` or ``patch_rows``, else any.
        form: How to cut: "fused", "shrinking", "loop", "rounds", "batch", "sequential" or "auto",
            as for `rewrite`. `OptionError` for any other, and for single convolutions beside a
            budget or ``max_recompute``.
        patch_rows: Where the height is free, the rows of a region's first output that each patch
            has of its own, 1 or more, in the form "rounds"; of whole steps of the region, as many
            or a few less. `OptionError` where they are fewer than a step, the height is fixed, the
            form is another one, or beside ``splits``, ``memory_budget``,
            ``max_tensor_elements``, ``max_buffer`` or ``plan``.
        target: The engine that memory is predicted for: "onnxruntime", "onnxruntime-default",
            "triton" or "tensorrt", as for `rewrite`. `OptionError` for any other.
        max_tensor_elements: Most elements of a tensor, 1 or more (`OptionError`). None: 2^31 - 1
            for "tensorrt", else any.
        max_buffer: Most bytes of a tensor, inputs, outputs and weights among them, a number or text
            such as "128MiB" (`UsageError` if it is no size): what WebGPU and Vulkan bind as one
            buffer. `BudgetError` where it cannot be kept, with what can.
        plan: A plan as `RewriteResult.outcome.plan` has it, to do just that. `OptionError` if it is
            no plan, or not one of this model.
        axis: The axis to cut: "height", "width", "depth", a dimension of the tensor, 2 or above, or
            "auto": of height and width the one that serves better. `OptionError` for any other.
        include: Name patterns (fnmatch) of convolutions; only matches are cut, large or not.
        exclude: Name patterns of nodes that are left as they are.
        min_elements: Cut single convolutions whose larger side has at least this many elements
            (channels x height x width), 0 or more (`OptionError`); 0 for all. None: as for
            `rewrite`.
        shapes: Per input the shape to fix its free dimensions to, 1 to 2^31 each; a pair (least,
            largest) in place of a size leaves that dimension free, and memory is predicted for the
            largest. `OptionError` if there is no such input, or a shape does not fit it.
        fold: Fold BatchNormalization, Mul and Add into the convolutions before them once, so that
            all patches share one set of weights.
        upgrade_opset: Convert the model to this opset first. `OptionError` if onnx cannot, or the
            model's is newer.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define; without it
            they are a `ModelError`.
        verify: Run original and result on the same inputs in a child process and compare.
            `VerificationError` if they differ. Skipped, with a log message, where a model that is
            no file cannot run (no runtime, or weights that lie elsewhere).
        force: For a path: overwrite an existing output file.

    Returns:
        For a path the written file's, of the same type; for a module the ModelProto; else a new
        model of the same kind.

    Raises:
        RewriterError: The model is not valid, or an option does not fit it.
        UsageError: The model is of no known kind, or a value is of the wrong type.
        VerificationError: The result does not compute the same.
        BudgetError: No plan keeps the memory budget.
    """
    if isinstance(model, (str, os.PathLike)):
        result = rewrite(
            model,
            out,
            splits=splits,
            memory_budget=memory_budget,
            max_recompute=max_recompute,
            form=form,
            patch_rows=patch_rows,
            target=target,
            max_tensor_elements=max_tensor_elements,
            max_buffer=max_buffer,
            plan=plan,
            axis=axis,
            include=include,
            exclude=exclude,
            min_elements=min_elements,
            shapes=shapes,
            fold=fold,
            upgrade_opset=upgrade_opset,
            allow_custom_ops=allow_custom_ops,
            verify=verify,
            force=force,
        )
        return type(model)(str(result.path))  # type: ignore[call-arg]
    options = make_options(
        splits=splits,
        memory_budget=memory_budget,
        max_recompute=max_recompute,
        form=form,
        patch_rows=patch_rows,
        target=target,
        max_tensor_elements=max_tensor_elements,
        max_buffer=max_buffer,
        plan=plan,
        axis=axis,
        include=include,
        exclude=exclude,
        min_elements=min_elements,
        shapes=shapes,
        fold=fold,
        upgrade_opset=upgrade_opset,
        allow_custom_ops=allow_custom_ops,
    )
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
