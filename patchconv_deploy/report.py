"""The report of a rewrite: as data for machines, as a table for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from rich.console import Console
from rich.table import Table

from patchconv_deploy.console import printable, styled
from patchconv_deploy.verification import Verification
from patchconv_deploy.words import in_flags
from rewriters.frontier import Candidate
from rewriters.graph import opset_of
from rewriters.memory import Peak
from rewriters.operators import Shape
from rewriters.reasons import Reason
from rewriters.regional import MARGIN
from rewriters.regions import Refusal
from rewriters.rewrite import SESSION_OPTIONS, Options, Outcome, Rewritten
from rewriters.single import SINGLE_FORMS

if TYPE_CHECKING:
    from patchconv_deploy.tuning import Tuned

__all__ = [
    "Report",
    "candidate_json",
    "make_report",
    "mebibytes",
    "print_report",
    "shape_text",
    "sizes_text",
    "unknown_peak",
]

_ENGINE_NAMES = {
    "onnxruntime-tuned": "ONNX Runtime, recommended options",
    "onnxruntime": "ONNX Runtime, default options",
    "onnxruntime-server": "ONNX Runtime in a Triton server",
    "tensorrt": "TensorRT",
}
_SHOWN_REFUSALS = 8
_SHOWN_SIZES = 5
_SHOWN_REASONS = 4
# Codes of refusals that are shown together, one line for all of the same words.
_ALIKE = ("no-gain", "size-unknown", "excluded", "not-included", "opset-too-old")
# Plans shown on either side of the one taken.
_BESIDE = 3
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


def mebibytes(size: float | None) -> str:
    """Return a size in MiB for people; of less than a tenth the first figures, never 0.0."""
    if size is None:
        return "unknown"
    found = size / 2**20
    if found >= 0.1 or not size:
        return f"{found:,.1f}"
    return f"{found:.3f}" if found >= 0.001 else "<0.001"


def shape_text(shape: Shape | None) -> str:
    """Return a shape for people: 1x3x?x?."""
    return "unknown" if shape is None else "x".join("?" if d is None else str(d) for d in shape)


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


def _print_process(outcome: Outcome, console: Console) -> None:
    """Print what the whole process is predicted to need."""
    both = outcome.before, outcome.after
    if any(peak.unknown for peak in both):
        return
    figures = (
        ("loading", [peak.weights.loading for peak in both]),
        ("running", [peak.need for peak in both]),
        ("together", [peak.process for peak in both]),
    )
    console.print(
        "Predicted process, MiB: "
        + ", ".join(
            f"{what} {' -> '.join(mebibytes(size) for size in sizes)}" for what, sizes in figures
        ),
        highlight=False,
    )


def print_report(report: Report, outcome: Outcome, console: Console, *, all_rows: bool) -> None:
    """Print the table, the peaks and the verification.

    Args:
        report: The report.
        outcome: What it was made from.
        console: Where to print.
        all_rows: Show every refused Conv, not the first few.
    """
    if outcome.already:
        console.print("This model was rewritten before (it holds a plan); it is left as it is.")
        _print_fits(report, outcome, console)
        return
    if outcome.rewritten:
        _print_table(outcome, console)
    _print_refusals(outcome, console, all_rows=all_rows)
    _print_peak(report, outcome, console)
    if not outcome.rewritten:
        _print_uncut(report, outcome, console)
    _print_process(outcome, console)
    fixing = report.data["peak_activation_bytes"]["before_fixing"]
    if fixing is not None and not outcome.before.unknown:
        console.print(
            f"Fixing sizes alone changes the original's predicted peak: "
            f"{mebibytes(fixing)} -> {mebibytes(outcome.before.bytes)} MiB",
        )
    if outcome.folded.nodes:
        console.print(
            f"Folded once for all patches: {outcome.folded.nodes} BatchNormalization, Mul or Add "
            f"into {outcome.folded.convolutions} Convs",
        )
    _print_candidates(outcome, console)
    recommended = report.data["recommended_session_options"]
    if recommended is not None:
        said = ", ".join(f"{name}={recommended[name]}" for name in SESSION_OPTIONS)
        kind = recommended["kind"]
        least, usual = (recommended[f"{kind}_peak_bytes{at}"] for at in ("", "_at_defaults"))
        console.print(
            f"Recommended session options (in the model's metadata): {said}; {kind}: "
            f"{_with_unit(least)}, {mebibytes(usual)} at the defaults",
        )
    if outcome.rewritten or not report.verification["declined"]:
        _print_verification(report.verification, console)


def _with_unit(size: int | None) -> str:
    return "unknown" if size is None else f"{mebibytes(size)} MiB"


def _print_peak(report: Report, outcome: Outcome, console: Console) -> None:
    """Print the predicted peak before and after; where nothing was cut, what it is."""
    peak = report.data["peak_activation_bytes"]
    title = f"Predicted peak activation ({_ENGINE_NAMES[outcome.engine]})"
    work = "" if outcome.recompute is None else f", {outcome.recompute:.2f}x the work"
    if peak["before"] is None or peak["after"] is None:
        known = f" (at least {_with_unit(peak['known_part_before'])} before)"
        console.print(f"{title}: unknown{known if peak['known_part_before'] else ''}{work}")
        return
    uncut = not outcome.rewritten

    def figures(key: str) -> str:
        before, after = (mebibytes(peak[name]) for name in (f"{key}before", f"{key}after"))
        return f"{before} MiB" if uncut else f"{before} -> {after} MiB"

    written = ""
    if peak["touched_after"] != peak["after"]:
        written = f" in use, {figures('touched_')} written to"
    forms = ", ".join(f"{form} {mebibytes(size)}" for form, size in peak["by_form"].items())
    console.print(
        f"{title}: {figures('')}{written}{work}"
        + (f" (these regions {forms})" if len(peak["by_form"]) > 1 else ""),
    )


def _print_fits(report: Report, outcome: Outcome, console: Console) -> None:
    budget = report.data["options"]["memory_budget_bytes"]
    if outcome.fits and budget is not None:
        console.print(
            f"It fits as it is ({mebibytes(outcome.before.need)} of {mebibytes(budget)} MiB); cut "
            f"it anyway with {in_flags('splits=N')} in place of the budget.",
        )


def _print_uncut(report: Report, outcome: Outcome, console: Console) -> None:
    """Print why nothing was cut, what holds the peak first, and what to do."""
    if outcome.fits:
        _print_fits(report, outcome, console)
        return
    if not outcome.reasons:
        _print_largest(outcome, console)
        return
    console.print("No Conv was cut. What holds the peak:")
    need = outcome.before.need
    total = "MiB" if outcome.before.unknown else f"of {mebibytes(need)} MiB"
    shown = outcome.reasons[:_SHOWN_REASONS]
    for reason in shown:
        said = reason.reason
        if reason.bytes is not None:
            said = f"{reason.holds} {mebibytes(reason.bytes)} {total}"
        first = f", first {reason.nodes[0]}" if reason.nodes and reason.bytes is not None else ""
        count = f" ({len(reason.nodes)} nodes{first})" if len(reason.nodes) > 1 else ""
        one = f" ({reason.nodes[0]})" if len(reason.nodes) == 1 else ""
        console.print(f"  {printable(in_flags(said) + (count or one))}")
    rest = sum(reason.bytes or 0 for reason in outcome.reasons[_SHOWN_REASONS:])
    if rest:
        console.print(f"  other causes hold {mebibytes(rest)} MiB")
    console.print(f"What to do: {printable(in_flags(shown[0].advice))}.")


def _print_candidates(outcome: Outcome, console: Console) -> None:
    """Print the plans beside the one taken, so that the choice is no riddle."""
    # Every candidate is in the JSON; here, those that no other beats in both peak and time.
    best, least = list[Candidate](), inf
    for each in sorted(outcome.weighed, key=lambda each: (each.time, each.peak)):
        if each.taken or each.peak < least:
            best.append(each)
            least = min(least, each.peak)
    at = next((number for number, each in enumerate(best) if each.taken), 0)
    shown = best[max(0, at - _BESIDE) : at + _BESIDE + 1]
    if len(shown) < 2:
        return
    console.print(
        f"Weighed: {len(outcome.weighed)} plans (the larger of what is in use and written to; of a "
        f"budget {MARGIN:.0%} are kept back). The best around the one taken:",
    )
    for candidate in shown:
        console.print(
            f"  {candidate.form} x{candidate.splits}, regions {candidate.regions}: "
            f"{_with_unit(None if candidate.unknown else candidate.peak)}, "
            f"{candidate.recompute:.3f}x the work, "
            f"{candidate.time:.3f}x the time"
            + ("" if candidate.fits else ", above the limits")
            + (", taken" if candidate.taken else ""),
        )


def _print_regions(outcome: Outcome, console: Console) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("region", overflow="fold", min_width=10)
    for name in ("nodes", "recompute"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("first input -> first output", overflow="fold", min_width=10)
    table.add_column("form x patches", no_wrap=True)
    for region in outcome.rewritten:
        table.add_row(
            printable(" .. ".join(dict.fromkeys((region.nodes[0], region.nodes[-1])))),
            str(len(region.nodes)),
            "run time" if region.recompute is None else f"{region.recompute:.2f}x",
            f"{shape_text(region.size.input)} -> {shape_text(region.size.output)}",
            f"{region.form} x{region.splits}",
        )
    console.print(table)
    for region in outcome.rewritten:
        for note in region.notes:
            console.print(f"  {printable(region.nodes[0])}: {in_flags(note)}")


def _print_table(outcome: Outcome, console: Console) -> None:
    if any(region.form not in SINGLE_FORMS for region in outcome.rewritten):
        _print_regions(outcome, console)
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("Conv", overflow="fold", min_width=10)
    table.add_column("input -> output", overflow="fold", min_width=10)
    for name in ("MiB", "recompute"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("form x patches", no_wrap=True)
    for name in ("peak: batch", "sequential"):
        table.add_column(name, justify="right", no_wrap=True)
    for region in outcome.rewritten:
        table.add_row(
            printable(" + ".join(region.nodes)),
            f"{shape_text(region.size.input)} -> {shape_text(region.size.output)}",
            mebibytes(region.size.bytes),
            "run time" if region.recompute is None else f"{region.recompute:.2f}x",
            f"{region.form} x{region.splits}",
            *_peaks_of(region),
        )
    console.print(table)
    for region in outcome.rewritten:
        for note in region.notes:
            console.print(f"  {printable(region.nodes[0])}: {in_flags(note)}")


def _peaks_of(region: Rewritten) -> Iterator[str]:
    """Yield the peak of a single Conv in each form that was weighed, "-" for others."""
    for form in SINGLE_FORMS:
        size = region.peak_by_form.get(form)
        unknown = size is None and form == region.form
        yield mebibytes(size) if size is not None or unknown else "-"


def _print_refusals(outcome: Outcome, console: Console, *, all_rows: bool) -> None:
    """Print what was left alone: small Convs as one line, all others by name."""
    small = [refusal for refusal in outcome.refused if refusal.code == "not-large"]
    useless = [r for r in outcome.refused if r.code in _ALIKE]
    shown = [r for r in outcome.refused if r.code not in (*_ALIKE, "not-large")]
    if all_rows:
        small, useless, shown = [], [], list(outcome.refused)
    if not outcome.refused:
        return
    console.print(f"Left alone ({len(outcome.refused)}):")
    if small:
        sized = [(outcome.sizes[r.node].bytes or 0, r) for r in small if r.node in outcome.sizes]
        largest = max(sized, key=lambda entry: entry[0])[1] if sized else small[0]
        console.print(
            f"  {len(small)} not large; the largest, {printable(largest.node)}: "
            f"{largest.reason.removeprefix('not large: ')}",
        )
    for refusals in _alike(useless):
        count = f"{len(refusals)} Conv{'' if len(refusals) == 1 else 's'}"
        console.print(f"  {count}: {printable(in_flags(refusals[0].reason))}")
    for refusal in shown if all_rows else shown[:_SHOWN_REFUSALS]:
        console.print(f"  {printable(refusal.node)}: {printable(in_flags(refusal.reason))}")
    if not all_rows and len(shown) > _SHOWN_REFUSALS:
        console.print(f"  ... and {len(shown) - _SHOWN_REFUSALS} more (-v shows all)")


def _alike(refusals: Sequence[Refusal]) -> Iterator[list[Refusal]]:
    """Yield refusals of the same words together."""
    for words in dict.fromkeys(refusal.reason for refusal in refusals):
        yield [refusal for refusal in refusals if refusal.reason == words]


def _print_largest(outcome: Outcome, console: Console) -> None:
    sized = [(size.bytes or 0, label, size) for label, size in outcome.sizes.items()]
    if not sized:
        console.print("The model has no Conv in its main graph.")
        return
    console.print("No Conv was cut. The largest Convs:")
    for _, label, size in sorted(sized, key=lambda entry: -entry[0])[:_SHOWN_SIZES]:
        console.print(
            f"  {printable(label)}: {shape_text(size.input)} -> {shape_text(size.output)}, "
            f"{_with_unit(size.bytes)}, {size.elements or 'unknown'} elements",
        )
    codes = {refusal.code for refusal in outcome.refused}
    if codes & {"not-large", "size-unknown"}:
        console.print(in_flags("Cut more with min_elements=N (0: every Conv) or include=NAME."))


def _print_verification(found: Mapping[str, Any], console: Console) -> None:
    if not found["ran"]:
        console.print(f"Verification: not run ({printable(in_flags(found['reason']))})")
        return
    same = all(output["differing"] == 0 for output in found["outputs"])
    word = {
        True: ("equal to the bit" if same else "equal within tolerance", "green"),
        False: ("MISMATCH", "red"),
        None: ("not verifiable", "yellow"),
    }[found["passed"]]
    at = sizes_text(found["shapes"])
    console.print(styled(f"Verification ({found['via']}; {at}): ", word))
    for output in found["outputs"]:
        seam = output["seam_max_abs"]
        console.print(
            f"  {printable(output['name'])}: max abs {output['max_abs']:.3g}, "
            f"max rel {output['max_rel']:.3g}"
            + ("" if seam is None else f", at seams {seam:.3g}")
            + f" (tolerance {output['tolerance']:.3g}, "
            + f"{100 * output['differing']:.3g} % differ)",
        )
    if not found["passed"]:
        console.print(f"  {printable(in_flags(found['reason']))}")
