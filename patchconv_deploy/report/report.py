"""The report of a rewrite as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchconv_deploy.report.choice import choice_of
from patchconv_deploy.report.text import shape_text
from patchconv_deploy.report.warnings import doubt_of, warnings_of
from patchconv_deploy.rewriters.graph.model import opset_of
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.rewriters.operators.record import Shape
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome, Rewritten
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.verify.verification import Verification

if TYPE_CHECKING:
    from patchconv_deploy.measure.tuning import Tuned

__all__ = [
    "ENGINE_NAMES",
    "Report",
    "all_sizes_text",
    "candidate_json",
    "make_report",
    "sizes_text",
]


# Of `patchconv_deploy.schemas`.
VERSION = 1

ENGINE_NAMES = {
    "onnxruntime-tuned": "ONNX Runtime, recommended options",
    "onnxruntime": "ONNX Runtime, default options",
    "onnxruntime-server": "ONNX Runtime in a Triton server",
    "tensorrt": "TensorRT",
}


@dataclass(frozen=True)
class Report:
    """What was done to a model.

    Attributes:
        data: The report as JSON-ready data; docs/report.md has its keys.
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


def sizes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return the sizes of inputs for people: x 1x3x96x64, mask 1x1x96x64."""
    return ", ".join(f"{name} {shape_text(tuple(shape))}" for name, shape in shapes.items())


def all_sizes_text(verification: Mapping[str, Any]) -> str:
    """Return the sizes that a model was verified at: x 1x3x64x64; x 1x3x67x64.

    Where the height or the width is free and it was verified at one alone, that is said.
    """
    sizes = verification["sizes"] or [verification["shapes"]]
    alone = [side for side in ("height", "width") if verification.get(f"one_{side}")]
    return "; ".join([*map(sizes_text, sizes), *(f"at no other {side}" for side in alone)])


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
    warnings = warnings_of(outcome, options, source_free or {})
    recommended = _recommended(outcome, options)
    if tuned is not None and tuned.chosen is None:
        so = "what is recommended is predicted" if recommended else "nothing is recommended"
        warnings += (f"no session options were found by measuring; {so}",)
    warnings += tuple(f"the model does not keep to the specification: {n}" for n in normalised)
    # Last, where it is seen.
    doubt = doubt_of(verification)
    warnings += (doubt,) if doubt else ()
    data: dict[str, Any] = {
        "version": VERSION,
        "model": _model_json(outcome, source),
        "output": None if out is None else str(out),
        "options": _options_json(options),
        "rewritten": [_region_json(region) for region in outcome.rewritten],
        "refused": [dataclasses.asdict(refusal) for refusal in outcome.refused],
        "peak_activation_bytes": _peak_json(outcome),
        "process_bytes": _process_json(outcome),
        "largest_tensor": {
            when: None if found is None else found._asdict()
            for when, found in zip(("before", "after"), outcome.largest, strict=True)
        },
        "recompute": outcome.recompute,
        "folded": {
            "convolutions": outcome.folded.convolutions,
            "nodes": outcome.folded.nodes,
        },
        "choice": choice_of(outcome, options),
        "candidates": [candidate_json(each) for each in outcome.weighed],
        "recommended_session_options": (tuned and tuned.as_json()) or recommended,
        "verification": {**dataclasses.asdict(verification), "doubt": doubt},
        "warnings": list(warnings),
    }
    if tuned is not None:
        data["measured"] = [row.as_json() for row in tuned.results]
    return Report(data, warnings)


def _model_json(outcome: Outcome, source: Path | None) -> dict[str, Any]:
    model = outcome.model
    return {
        "path": None if source is None else str(source),
        "graph": model.graph.name,
        "ir_version": model.ir_version,
        "opset": opset_of(model),
        "nodes": len(model.graph.node),
        "already_rewritten": outcome.already,
    }


def _options_json(options: Options) -> dict[str, Any]:
    return {
        "splits": options.splits,
        "form": options.form,
        "memory_budget_bytes": options.memory_budget,
        "max_recompute": options.max_recompute,
        "max_tensor_elements": options.max_tensor_elements,
        "max_buffer_bytes": options.max_buffer,
        "patch_rows": options.patch_rows,
        "target": options.target,
        "axis": options.axis,
        "min_elements": options.selection.min_elements,
        "include": list(options.selection.include),
        "exclude": list(options.selection.exclude),
        "shapes": {name: list(shape) for name, shape in options.shapes.items()},
        "fold": options.fold,
    }


def _region_json(region: Rewritten) -> dict[str, Any]:
    return {
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
        **({} if region.plan.stride is None else {"patch_rows": region.plan.patch_rows}),
    }


def _peak_json(outcome: Outcome) -> dict[str, Any]:
    before, after = outcome.before, outcome.after
    return {
        "before": _known(before, before.bytes),
        "after": _known(after, after.bytes),
        "by_form": dict(outcome.after_by_form)
        or {region.form: None for region in outcome.rewritten},
        "before_at": before.at,
        "after_at": after.at,
        "before_fixing": outcome.unfixed,
        "touched_before": _known(before, before.touched),
        "touched_after": _known(after, after.touched),
        "unknown_tensors": before.unknown,
        "known_part_before": before.bytes,
        "data_sized_tensors": len(outcome.data_sized),
        "fits_as_it_is": outcome.fits,
        "held_by": [dataclasses.asdict(reason) for reason in outcome.reasons],
        "assumed_shapes": {name: list(shape) for name, shape in outcome.assumed.items()},
        "engine": outcome.engine,
        "kind": "predicted",
    }


def _process_json(outcome: Outcome) -> dict[str, Any]:
    peaks = {"before": outcome.before, "after": outcome.after}
    figures: dict[str, Any] = {
        when: {
            "loading": peak.weights.loading,
            "weights": peak.weights.held,
            "running": peak.need,
            "together": peak.process,
        }
        for when, peak in peaks.items()
    }
    return {**figures, "kind": "predicted"}


def _known(peak: Peak, size: int) -> int | None:
    return None if peak.unknown else size


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """Return a plan's figures as JSON-ready data; the peak in bytes, None if it is unknown."""
    data = dataclasses.asdict(candidate)
    return {**data, "peak": None} if candidate.unknown else data


def _recommended(outcome: Outcome, options: Options) -> dict[str, Any] | None:
    """Return the session options of the target, with the predicted peaks with and without them.

    None where nothing is known of how it is without them.
    """
    target = TARGETS[options.target]
    if not (outcome.rewritten and options.by_region and target.session_options and target.beside):
        return None
    before, after = outcome.defaults or (None, None)
    return {
        **target.session_options,
        "kind": "predicted",
        "predicted_peak_bytes": _known(outcome.after, outcome.after.bytes),
        "predicted_peak_bytes_at_defaults": after,
        "original_predicted_peak_bytes": _known(outcome.before, outcome.before.bytes),
        "original_predicted_peak_bytes_at_defaults": before,
    }
