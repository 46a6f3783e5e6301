"""The report of a rewrite as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from patchconv_deploy.report.text import mebibytes, shape_text
from patchconv_deploy.verify.verification import Verification
from rewriters.emission.forms import SINGLE_FORMS
from rewriters.graph.model import opset_of
from rewriters.memory.peak import Peak
from rewriters.operators.record import Shape
from rewriters.options import Options
from rewriters.outcome import SESSION_OPTIONS, Outcome
from rewriters.planning.evaluated_plan import Candidate
from rewriters.planning.peak_holders import Reason

if TYPE_CHECKING:
    from patchconv_deploy.measure.tuning import Tuned

__all__ = ["ENGINE_NAMES", "Report", "candidate_json", "make_report", "sizes_text", "unknown_peak"]


ENGINE_NAMES = {
    "onnxruntime-tuned": "ONNX Runtime, recommended options",
    "onnxruntime": "ONNX Runtime, default options",
    "onnxruntime-server": "ONNX Runtime in a Triton server",
    "tensorrt": "TensorRT",
}

# A peak that rises by less is a few rows of halo.
_NOTABLE_RISE = 1.01


@dataclass(frozen=True)
class Report:
    """What was done to a model.

    Attributes:
        data: The report as JSON-ready data; see the README for its keys.
        warnings: What the user should know, one line each; what is to be known of the verification
            last.
    """

    data: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def rewritten(self) -> Sequence[Mapping[str, Any]]:
        """The regions that were cut."""
        entries: Sequence[Mapping[str, Any]] = self.data["rewritten"]
        return entries

    @property
    def refused(self) -> Sequence[Mapping[str, Any]]:
        """The convolutions left alone: node, reason, code."""
        entries: Sequence[Mapping[str, Any]] = self.data["refused"]
        return entries

    @property
    def doubt(self) -> str:
        """What is to be known of the verification; empty if all is well."""
        text: str = self.data["verification"]["doubt"]
        return text

    @property
    def verification(self) -> Mapping[str, Any]:
        """What verification found: ran, passed, reason, outputs."""
        found: Mapping[str, Any] = self.data["verification"]
        return found


def _warnings(
    outcome: Outcome, options: Options, source_free: Mapping[str, Shape]
) -> tuple[str, ...]:
    found = []
    if outcome.assumed and not outcome.before.unknown:
        sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in outcome.assumed.items())
        found.append(f"predictions and selection assume {sizes}")
    for name, shape in options.shapes.items():
        if name in source_free:
            was = shape_text(source_free[name])
            found.append(f"input {name} is now fixed to {shape_text(shape)} (was {was})")
    if outcome.data_sized:
        found.append(
            f"{len(outcome.data_sized)} tensors are as large as the data will have it and not in "
            f"the predicted peak (first {outcome.data_sized[0]})"
        )
    if outcome.before.unknown or outcome.after.unknown:
        # Where nothing was cut, the table has the reason.
        uncut = not outcome.rewritten and not outcome.already
        found.append("the predicted peak is unknown" if uncut else unknown_peak(outcome.unknown))
    labels = list(outcome.sizes)
    for pattern in (*options.selection.include, *options.selection.exclude):
        if not outcome.already and not any(fnmatchcase(label, pattern) for label in labels):
            found.append(f"no Conv is named like {pattern!r}")
    return (*found, *_rises(outcome))


def unknown_peak(reason: Reason | None) -> str:
    """Return that a predicted peak is unknown, why, and what to do."""
    if reason is None:
        return "the predicted peak is unknown: sizes of what is cut are; fix them with shapes="
    return f"the predicted peak is unknown; {reason.reason}: {reason.advice}"


def _rises(outcome: Outcome) -> Iterator[str]:
    """Yield what is predicted to need more than before, of whatever form the regions are."""
    before, after = outcome.before, outcome.after
    if not outcome.rewritten or before.unknown or after.unknown:
        return
    pairs = {"in use": (before.bytes, after.bytes), "written to": (before.touched, after.touched)}
    risen = [
        f"{what} from {mebibytes(was)} to {mebibytes(now)} MiB"
        for what, (was, now) in pairs.items()
        if now > _NOTABLE_RISE * was
    ]
    loads = before.weights.loading, after.weights.loading
    # A few copies of small weights are what a lower peak may well cost.
    if loads[1] - loads[0] > max((_NOTABLE_RISE - 1) * before.process, before.need - after.need):
        yield (
            f"the memory that loading takes is predicted to rise from {mebibytes(loads[0])} to "
            f"{mebibytes(loads[1])} MiB, by more than is saved while it runs: cut into "
            "fewer patches (splits=), with fold=True, or keep the original"
        )
    if risen:
        yield f"the predicted peak rises, {', '.join(risen)}: {_advice(outcome)}"
    elif outcome.defaults is not None and outcome.defaults[1] > _NOTABLE_RISE * outcome.defaults[0]:
        was, now = map(mebibytes, outcome.defaults)
        yield (
            f"at ONNX Runtime's default session options the predicted peak rises from {was} to "
            f"{now} MiB: set the recommended ones, or plan with target='onnxruntime-default'"
        )


def _advice(outcome: Outcome) -> str:
    """Return what to do about a peak that rises."""
    if all(region.form in SINGLE_FORMS for region in outcome.rewritten):
        return (
            "cutting single Convs lowers a runtime's workspace, not its activations; keep the "
            "original unless that workspace is what does not fit"
        )
    return "keep the original, or leave the form open (form='auto') and name no plan"


def _doubt(verification: Verification) -> str:
    """Return what the user should know of the verification, empty if all is well."""
    if not verification.ran:
        return "" if verification.declined else f"not verified: {verification.reason}"
    if verification.passed is None:
        return f"not verifiable: {verification.reason}"
    if verification.passed and verification.faint:
        return "the outputs are nearly zero on seeded inputs; verify on real ones (inputs=)"
    return ""


def sizes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return the sizes of inputs for people: x 1x3x96x64, mask 1x1x96x64."""
    return ", ".join(f"{name} {shape_text(tuple(shape))}" for name, shape in shapes.items())


def make_report(
    outcome: Outcome,
    options: Options,
    verification: Verification,
    *,
    source: Path | None = None,
    out: Path | None = None,
    source_free: Mapping[str, Shape] | None = None,
    tuned: Tuned | None = None,
    normalised: Sequence[str] = (),
) -> Report:
    """Put together the report of a rewrite.

    Args:
        outcome: What the rewriter did.
        options: What it was asked for.
        verification: What verification found.
        source: The model's file.
        out: The file that was written, None if none was.
        source_free: Shapes of the inputs that had free dimensions before.
        tuned: What was measured of it, None if nothing was.
        normalised: What was brought into the specification's form when it was read.
    """
    model: onnx.ModelProto = outcome.model
    warnings = _warnings(outcome, options, source_free or {})
    recommended = _recommended(outcome, options)
    if tuned is not None and tuned.chosen is None:
        so = "what is recommended is predicted" if recommended else "nothing is recommended"
        warnings += (f"no session options were found by measuring; {so}",)
    warnings += tuple(f"the model does not keep to the specification: {n}" for n in normalised)
    # Last, where it is seen.
    doubt = _doubt(verification)
    warnings += (doubt,) if doubt else ()
    data: dict[str, Any] = {
        "model": {
            "path": None if source is None else str(source),
            "graph": model.graph.name,
            "ir_version": model.ir_version,
            "opset": opset_of(model),
            "nodes": len(model.graph.node),
            "already_rewritten": outcome.already,
        },
        "output": None if out is None else str(out),
        "options": {
            "splits": options.splits,
            "form": options.form,
            "memory_budget_bytes": options.memory_budget,
            "max_recompute": options.max_recompute,
            "max_tensor_elements": options.max_tensor_elements,
            "target": options.target,
            "axis": options.axis,
            "min_elements": options.selection.min_elements,
            "include": list(options.selection.include),
            "exclude": list(options.selection.exclude),
            "shapes": {name: list(shape) for name, shape in options.shapes.items()},
            "fold": options.fold,
        },
        "rewritten": [
            {
                "nodes": list(region.nodes),
                "op_type": region.op_type,
                "form": region.form,
                "axis": region.axis,
                "splits": region.splits,
                "recompute": region.recompute,
                "seams": list(region.seams),
                "input_shape": region.size.input,
                "output_shape": region.size.output,
                "bytes": region.size.bytes,
                "region_peak_bytes": dict(region.peak_by_form),
                "notes": list(region.notes),
            }
            for region in outcome.rewritten
        ],
        "refused": [dataclasses.asdict(refusal) for refusal in outcome.refused],
        "peak_activation_bytes": {
            "before": _known(outcome.before, outcome.before.bytes),
            "after": _known(outcome.after, outcome.after.bytes),
            "by_form": dict(outcome.after_by_form)
            or {region.form: None for region in outcome.rewritten},
            "before_at": outcome.before.at,
            "after_at": outcome.after.at,
            "before_fixing": outcome.unfixed,
            "touched_before": _known(outcome.before, outcome.before.touched),
            "touched_after": _known(outcome.after, outcome.after.touched),
            "unknown_tensors": outcome.before.unknown,
            "known_part_before": outcome.before.bytes,
            "data_sized_tensors": len(outcome.data_sized),
            "fits_as_it_is": outcome.fits,
            "held_by": [dataclasses.asdict(reason) for reason in outcome.reasons],
            "assumed_shapes": {name: list(shape) for name, shape in outcome.assumed.items()},
            "engine": outcome.engine,
            "kind": "predicted",
        },
        "process_bytes": {
            when: {
                "loading": peak.weights.loading,
                "weights": peak.weights.held,
                "running": peak.need,
                "together": peak.process,
            }
            for when, peak in (("before", outcome.before), ("after", outcome.after))
        }
        | {"kind": "predicted"},
        "recompute": outcome.recompute,
        "folded": {
            "convolutions": outcome.folded.convolutions,
            "nodes": outcome.folded.nodes,
        },
        "candidates": [candidate_json(each) for each in outcome.weighed],
        "recommended_session_options": (tuned and tuned.as_json()) or recommended,
        "verification": {**dataclasses.asdict(verification), "doubt": doubt},
        "warnings": list(warnings),
    }
    if tuned is not None:
        data["measured"] = [row.as_json() for row in tuned.results]
    return Report(data, warnings)


def _known(peak: Peak, size: int) -> int | None:
    return None if peak.unknown else size


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """Return a plan's figures as JSON-ready data; the peak in bytes, None if it is unknown."""
    data = dataclasses.asdict(candidate)
    return {**data, "peak": None} if candidate.unknown else data


def _recommended(outcome: Outcome, options: Options) -> dict[str, Any] | None:
    """Return session options for ONNX Runtime, with the predicted peaks with and without them."""
    if not outcome.rewritten or options.target != "onnxruntime" or not options.by_region:
        return None
    before, after = outcome.defaults or (None, None)
    return {
        **SESSION_OPTIONS,
        "kind": "predicted",
        "predicted_peak_bytes": _known(outcome.after, outcome.after.bytes),
        "predicted_peak_bytes_at_defaults": after,
        "original_predicted_peak_bytes": _known(outcome.before, outcome.before.bytes),
        "original_predicted_peak_bytes_at_defaults": before,
    }
