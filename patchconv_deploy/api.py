"""The Python API: `convert_model` and `rewrite`."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import onnx

from patchconv_deploy.errors import UsageError, VerificationError
from patchconv_deploy.report import Report, make_report
from patchconv_deploy.saving import check_target, external_files, stage
from patchconv_deploy.verification import Verification, check_inputs, not_run, verify
from rewriters.fragment import from_graphsurgeon, is_graphsurgeon, to_graphsurgeon
from rewriters.graph import Loaded, load
from rewriters.regions import Selection
from rewriters.rewrite import Options, Outcome, rewrite_model
from rewriters.shapes import free_inputs

if TYPE_CHECKING:
    import torch

__all__ = ["RewriteResult", "convert_model", "default_output", "rewrite"]

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
ModelT = TypeVar("ModelT")


@dataclass(frozen=True)
class RewriteResult:
    """The result of `rewrite`.

    Attributes:
        path: The file that was written, None for a dry run.
        report: What was done.
        outcome: The same as objects, the rewritten model included.
    """

    path: Path | None
    report: Report
    outcome: Outcome


def default_output(model: Path) -> Path:
    """Return MODEL.patched.onnx beside MODEL.onnx."""
    stem = model.name[: -len(".onnx")] if model.name.endswith(".onnx") else model.name
    return model.with_name(f"{stem}.patched.onnx")


def make_options(
    splits: int,
    form: str,
    axis: str | int,
    min_elements: int | None,
    include: Sequence[str],
    exclude: Sequence[str],
    shapes: Mapping[str, Sequence[int]] | None,
    upgrade_opset: int | None,
    allow_custom_ops: bool,
) -> Options:
    """Return the rewriter's options from keywords.

    Raises:
        UsageError: A value is of the wrong type.
        OptionError: A value is out of range.
    """
    if not isinstance(splits, int):
        raise UsageError(f"splits is {splits!r}; it must be a whole number")
    include, exclude = (
        (patterns,) if isinstance(patterns, str) else patterns for patterns in (include, exclude)
    )
    return Options(
        splits=splits,
        form=form,
        axis=axis,
        selection=Selection(min_elements, tuple(include), tuple(exclude)),
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        upgrade_opset=upgrade_opset,
        allow_custom_ops=allow_custom_ops,
    )


def rewrite(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    splits: int = 4,
    form: str = "auto",
    axis: str | int = "height",
    min_elements: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    upgrade_opset: int | None = None,
    allow_custom_ops: bool = False,
    share_weights: bool = False,
    verify: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    inputs: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RewriteResult:
    """Rewrite a model file: the large convolutions run patch by patch, the numbers stay the same.

    Args:
        path: The model's file.
        out: The file to write; ``MODEL.patched.onnx`` beside it if None.
        splits: Patches per convolution, at least 1.
        form: "batch" (windows stacked in the batch dimension), "sequential" (one after the
            other), or "auto": the one with the lower predicted peak.
        axis: The axis to cut: "height", "width", "depth", or a dimension of the tensor (>= 2).
        min_elements: Cut convolutions whose larger side has at least this many elements
            (channels x height x width; 0: all). None: those whose input and output are at least
            half of the predicted peak activation.
        include: Name patterns (fnmatch); only matches are cut, large or not.
        exclude: Name patterns that are never cut.
        shapes: Per input the shape to fix its free dimensions to.
        upgrade_opset: Convert the model to this opset first.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.
        share_weights: Refer to the original's external weight files instead of copying them.
        verify: Run original and result on the same inputs in a child process and compare.
        rtol: Tolerance relative to an output's spread; by element type if None.
        atol: Absolute tolerance, added; by element type if None.
        seed: Seed of the inputs.
        inputs: An .npz file with inputs to verify on.
        force: Overwrite an existing output file.
        dry_run: Do everything but run and write.
        progress: Called with (what, done, total) from time to time.

    Returns:
        The written file, the report, and the outcome.

    Raises:
        RewriterError: The model is not valid, an option does not fit it, or it cannot be saved.
        UsageError: The given inputs do not fit.
        VerificationError: The result does not compute the same; nothing was written.
        OSError: The disk is full or failing; nothing was written.

    Source of the method: PatchConv (https://github.com/mit-han-lab/patch_conv).
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} is {value}; it must be a finite number, 0 or more")
    if seed < 0:
        raise UsageError(f"seed is {seed}; it must be 0 or more")
    source = Path(path)
    target = default_output(source) if out is None else Path(out)
    options = make_options(
        splits, form, axis, min_elements, include, exclude, shapes, upgrade_opset, allow_custom_ops
    )
    loaded = load(source)
    if not dry_run:
        check_target(target, [source, *external_files(loaded)], force=force)
    given = None if inputs is None else Path(inputs)
    check_inputs(given, loaded.model)
    free = free_inputs(loaded.model)
    outcome = rewrite_model(loaded, options, progress)
    if dry_run:
        checked = not_run("dry run", declined=True)
        report = make_report(outcome, options, checked, source=source, source_free=free)
        return RewriteResult(None, report, outcome)
    with stage(outcome.model, loaded.folder, target, share_weights=share_weights) as staged:
        checked = _verify_staged(
            source, staged.path, outcome, options, verify, seed, rtol, atol, given, progress
        )
        written = None if checked.passed is False else target
        report = make_report(
            outcome, options, checked, source=source, out=written, source_free=free
        )
        if checked.passed is False:
            raise VerificationError(
                f"{source}: the rewritten model does not compute the same: {checked.reason}; "
                "nothing was written",
                report,
            )
        staged.publish()
    return RewriteResult(target, report, outcome)


def _verify_staged(
    source: Path,
    staged: Path,
    outcome: Outcome,
    options: Options,
    wanted: bool,
    seed: int,
    rtol: float | None,
    atol: float | None,
    inputs: Path | None,
    progress: Progress | None,
) -> Verification:
    if not wanted:
        return not_run("not asked for", declined=True)
    if not outcome.rewritten:
        return not_run("nothing was changed", declined=True)
    if progress is not None:
        progress("verifying", 0, 1)
    return verify(source, staged, outcome, options, seed=seed, rtol=rtol, atol=atol, inputs=inputs)


def convert_model(
    model: ModelT,
    splits: int = 4,
    *,
    form: str = "auto",
    axis: str | int = "height",
    min_elements: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    upgrade_opset: int | None = None,
    allow_custom_ops: bool = False,
    verify: bool = True,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    example_inputs: Sequence[torch.Tensor] | torch.Tensor | None = None,
) -> ModelT | onnx.ModelProto:
    """Rewrite a model and return the same kind.

    Args:
        model: A path (the result is written beside it and its path returned), an
            `onnx.ModelProto`, an `onnx_graphsurgeon.Graph`, or a `torch.nn.Module` (exported
            with ``example_inputs``; the result is a ModelProto). It is not changed.
        splits: Patches per convolution.
        form: As in `rewrite`, like all other keywords.
        axis: The axis to cut.
        min_elements: Least size of a convolution to cut.
        include: Name patterns to cut.
        exclude: Name patterns not to cut.
        shapes: Shapes to fix free dimensions to.
        upgrade_opset: Convert the model to this opset first.
        allow_custom_ops: Let unknown operators pass.
        verify: Run original and result and compare; skipped, with a log message, where the
            model cannot run (no runtime, or weights that lie elsewhere).
        out: For a path: the file to write.
        force: For a path: overwrite an existing output file.
        example_inputs: Inputs to export a torch module with.

    Raises:
        RewriterError: The model is not valid, or an option does not fit it.
        UsageError: The model is of no known kind.
        VerificationError: The result does not compute the same.
    """
    if isinstance(model, (str, os.PathLike)):
        result = rewrite(
            model,
            out,
            force=force,
            splits=splits,
            form=form,
            axis=axis,
            min_elements=min_elements,
            include=include,
            exclude=exclude,
            shapes=shapes,
            upgrade_opset=upgrade_opset,
            allow_custom_ops=allow_custom_ops,
            verify=verify,
        )
        return type(model)(str(result.path))  # type: ignore[call-arg]
    options = make_options(
        splits, form, axis, min_elements, include, exclude, shapes, upgrade_opset, allow_custom_ops
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
    loaded = Loaded(copy, None)
    outcome = rewrite_model(loaded, options)
    if not wanted or not outcome.rewritten:
        return outcome.model
    if loaded.has_external_data:
        logger.warning("not verified: the weights lie in other files; use rewrite() on the file")
        return outcome.model
    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        paths = Path(name) / "original.onnx", Path(name) / "rewritten.onnx"
        for path, proto in zip(paths, (model, outcome.model), strict=True):
            path.write_bytes(proto.SerializeToString())
        checked = verify(*paths, outcome, options)
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
    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        path = Path(name) / "model.onnx"
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
