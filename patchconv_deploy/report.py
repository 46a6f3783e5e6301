"""The report of a rewrite: as data for machines, as a table for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from patchconv_deploy.verification import Verification
from rewriters.graph import opset_of
from rewriters.operators import Shape
from rewriters.rewrite import Options, Outcome

__all__ = ["Report", "make_report", "print_report"]

_SHOWN_REFUSALS = 8
_SHOWN_SIZES = 5


@dataclass(frozen=True)
class Report:
    """What was done to a model.

    Attributes:
        data: The report as JSON-ready data; see the README for its keys.
        warnings: What the user should know, one line each.
    """

    data: Mapping[str, Any]
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
    def verification(self) -> Mapping[str, Any]:
        """What verification found: ran, passed, reason, outputs."""
        found: Mapping[str, Any] = self.data["verification"]
        return found


def mebibytes(size: int | None) -> str:
    """Return a size in MiB for people."""
    return "?" if size is None else f"{size / 2**20:,.1f}"


def _shape(shape: Shape | None) -> str:
    return "?" if shape is None else "x".join("?" if d is None else str(d) for d in shape)


def _warnings(outcome: Outcome, verification: Verification) -> tuple[str, ...]:
    found = []
    before, after = outcome.before.bytes, outcome.after.bytes
    if outcome.rewritten and after > before:
        found.append(
            f"predicted peak activation rises from {mebibytes(before)} to {mebibytes(after)} MiB: "
            "patching single Convs lowers a runtime's convolution workspace, not its activations. "
            "Keep the original unless that workspace is what does not fit; fewer splits, "
            "--form sequential or --exclude lower the rise."
        )
    if outcome.rewritten and outcome.before.unknown:
        found.append(
            f"{outcome.before.unknown} tensors are of unknown size and not in the predicted peak"
        )
    if outcome.assumed and outcome.before.bytes:
        sizes = ", ".join(f"{name} {_shape(shape)}" for name, shape in outcome.assumed.items())
        found.append(f"sizes assume {sizes}; fix them with --shape")
    if outcome.rewritten and not verification.ran:
        found.append(f"not verified: {verification.reason}")
    if verification.passed and verification.faint:
        found.append("the outputs are nearly zero on seeded inputs; verify on real ones (--inputs)")
    return tuple(found)


def make_report(
    outcome: Outcome,
    options: Options,
    verification: Verification,
    *,
    source: Path | None = None,
    out: Path | None = None,
) -> Report:
    """Put together the report of a rewrite.

    Args:
        outcome: What the rewriter did.
        options: What it was asked for.
        verification: What verification found.
        source: The model's file.
        out: The file that was written, None if none was.
    """
    model: onnx.ModelProto = outcome.model
    warnings = _warnings(outcome, verification)
    data = {
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
            "axis": options.axis,
            "min_elements": options.selection.min_elements,
            "include": list(options.selection.include),
            "exclude": list(options.selection.exclude),
            "shapes": {name: list(shape) for name, shape in options.shapes.items()},
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
            "before": outcome.before.bytes,
            "after": outcome.after.bytes,
            "by_form": dict(outcome.after_by_form),
            "before_at": outcome.before.at,
            "after_at": outcome.after.at,
            "unknown_tensors": outcome.before.unknown,
            "assumed_shapes": {name: list(shape) for name, shape in outcome.assumed.items()},
            "kind": "predicted",
        },
        "verification": dataclasses.asdict(verification),
        "warnings": list(warnings),
    }
    return Report(data, warnings)


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
        return
    if outcome.rewritten:
        _print_table(outcome, console)
    _print_refusals(outcome, console, all_rows=all_rows)
    if not outcome.rewritten:
        _print_largest(outcome, console)
    peak = report.data["peak_activation_bytes"]
    forms = ", ".join(f"{form} {mebibytes(size)}" for form, size in peak["by_form"].items())
    console.print(
        f"Predicted peak activation: {mebibytes(peak['before'])} -> {mebibytes(peak['after'])} MiB"
        + (f"   (all Convs in one form: {forms})" if forms else "")
    )
    _print_verification(report.verification, console)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {_escape(warning)}", highlight=False)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _print_table(outcome: Outcome, console: Console) -> None:
    table = Table(title=None, header_style="bold", box=None, pad_edge=False)
    table.add_column("Conv", overflow="fold")
    table.add_column("input")
    table.add_column("output")
    for name in ("MiB", "form", "patches", "recompute", "peak MiB batch / seq."):
        table.add_column(name, justify="right" if name != "form" else "left")
    for region in outcome.rewritten:
        forms = [mebibytes(region.peak_by_form.get(f)) for f in ("batch", "sequential")]
        table.add_row(
            _escape(" + ".join(region.nodes)),
            _shape(region.size.input),
            _shape(region.size.output),
            mebibytes(region.size.bytes),
            region.form,
            str(region.splits),
            "at run time" if region.recompute is None else f"{region.recompute:.2f}x",
            " / ".join(forms),
        )
        for note in region.notes:
            table.add_row(f"  [dim]{_escape(note)}[/]")
    console.print(table)


def _print_refusals(outcome: Outcome, console: Console, *, all_rows: bool) -> None:
    shown = outcome.refused if all_rows else outcome.refused[:_SHOWN_REFUSALS]
    if not shown:
        return
    console.print(f"Left alone ({len(outcome.refused)}):")
    for refusal in shown:
        console.print(f"  {_escape(refusal.node)}: {_escape(refusal.reason)}", highlight=False)
    if len(shown) < len(outcome.refused):
        console.print(f"  ... and {len(outcome.refused) - len(shown)} more (-v shows all)")


def _print_largest(outcome: Outcome, console: Console) -> None:
    sized = [(size.bytes or 0, label, size) for label, size in outcome.sizes.items()]
    if not sized:
        console.print("The model has no Conv in its main graph; it is left as it is.")
        return
    console.print("No Conv was cut; the model is left as it is. The largest Convs:")
    for _, label, size in sorted(sized, key=lambda entry: -entry[0])[:_SHOWN_SIZES]:
        console.print(
            f"  {_escape(label)}: {_shape(size.input)} -> {_shape(size.output)}, "
            f"{mebibytes(size.bytes)} MiB, {size.elements or '?'} elements",
            highlight=False,
        )
    console.print("Cut more with --min-elements N (0: every Conv) or --include NAME.")


def _print_verification(found: Mapping[str, Any], console: Console) -> None:
    if not found["ran"]:
        if found["reason"]:
            console.print(f"Verification: not run ({_escape(found['reason'])})")
        return
    word = "[green]equal[/]" if found["passed"] else "[red]MISMATCH[/]"
    console.print(f"Verification ({found['via']}): {word}")
    for output in found["outputs"]:
        seam = output["seam_max_abs"]
        console.print(
            f"  {_escape(output['name'])}: max abs {output['max_abs']:.3g}, "
            f"max rel {output['max_rel']:.3g}"
            + ("" if seam is None else f", at seams {seam:.3g}")
            + f", tolerance {output['tolerance']:.3g}, "
            + f"{100 * output['differing']:.3g} % of elements differ",
            highlight=False,
        )
    if not found["passed"]:
        console.print(f"  {_escape(found['reason'])}", highlight=False)
