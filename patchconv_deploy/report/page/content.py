"""A page as plain data: texts for people, and lists for its plots.

Every figure is the report's (`patchconv_deploy.report.report`) or was measured, and has a word
beside it that says which: "predicted", "measured", "planned" (by a builder, nothing ran) or
"counted" (rows and operations, in integers). Names of models are made printable here; that they
are no markup is up to `render`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from patchconv_deploy.console import printable
from patchconv_deploy.report.page.cards import cards
from patchconv_deploy.report.page.drawing import drawing
from patchconv_deploy.report.page.figures import Row
from patchconv_deploy.report.page.holders import alive_at, causes, left_alone
from patchconv_deploy.report.page.naming import Regions
from patchconv_deploy.report.page.regions import regions_of
from patchconv_deploy.report.page.subject import Subject
from patchconv_deploy.report.page.summary import (
    advice,
    lead,
    measured_pair,
    measured_with,
    settings,
    verification,
)
from patchconv_deploy.report.page.timeline import timeline
from patchconv_deploy.report.report import ENGINE_NAMES
from patchconv_deploy.report.text import mebibytes, shape_text, with_unit
from patchconv_deploy.rewriters.graph.nodes import node_labels
from patchconv_deploy.rewriters.graph.shapes import has_shape, known_size, required_inputs
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.planning.offers import to_ask, typed_size
from patchconv_deploy.version import VERSION
from patchconv_deploy.words import in_flags

__all__ = ["content"]

_TENSORS = 12


def content(subject: Subject, commands: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Return the page as plain data.

    Args:
        subject: What it is about.
        commands: What to type to get each part again, each after what it is for.
    """
    outcome, data = subject.outcome, subject.report.data
    graph = subject.original.model.graph
    labels = node_labels(graph)
    operators = {labels[at]: node.op_type for at, node in enumerate(graph.node)}
    named = Regions(outcome.rewritten)
    shapes = {each.name: shape_text(each.shape) for each in subject.overview.tensors}
    cut = bool(outcome.rewritten)
    peaks = {"before": outcome.before, "after": outcome.after}
    source = subject.asked.source
    curve = _curve(subject)
    return {
        "title": printable(source.name),
        "patched": None if subject.asked.patched is None else printable(subject.asked.patched.name),
        "version": VERSION,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cut": cut,
        "lead": lead(subject),
        "engine": ENGINE_NAMES[outcome.engine],
        "graph": printable(graph.name),
        "opset": data["model"]["opset"],
        "node_count": len(graph.node),
        "sizes": _sizes(subject),
        "cards": cards(subject),
        "measured_with": measured_with(subject),
        "advice": advice(subject),
        "verification": verification(subject),
        "notes": [printable(in_flags(text)) for text in _notes(subject)],
        "axis": _axis(subject),
        "regions": regions_of(outcome.rewritten, data["rewritten"], operators),
        "causes": causes(subject.overview.reasons, outcome.before, cut=cut),
        "peaks": {
            when: {
                "bytes": with_unit(data["peak_activation_bytes"][when]),
                "at": named.of(peak.at)[1] if peak.at else "before the first node",
                "region": named.of(peak.at)[0],
                "alive": [] if peak.unknown else alive_at(peak, named, shapes),
            }
            for when, peak in peaks.items()
        },
        "left": left_alone(data["refused"], outcome.sizes, subject.overview.barriers, operators),
        "statistics": _statistics(subject),
        "tensors": [
            [printable(t.name), shape_text(t.shape), mebibytes(t.bytes), printable(t.maker)]
            for t in subject.overview.tensors[:_TENSORS]
        ],
        "rows": [_row(row) for row in subject.rows],
        "rows_by": _rows_by(subject.rows),
        "failed": [printable(text) for text in subject.failed],
        "curve": curve,
        "plans": [] if curve is None else _plans(curve),
        "choice": _choice(subject),
        "commands": list(commands),
        "plots": {
            "before": timeline(outcome.before, named),
            "after": timeline(outcome.after, named) if cut else None,
            "measured": _measured_lines(subject),
            "drawing": drawing(
                graph,
                [entry["nodes"] for entry in data["rewritten"]],
                subject.overview.tensors,
                outcome.assumed,
                {node.name for node in outcome.model.graph.node} if cut else None,
            ),
        },
    }


def _axis(subject: Subject) -> str:
    """Return what is cut, in a word; empty where that is not known."""
    axis = str(subject.axis)
    return axis if axis in ("height", "width") else ""


def _sizes(subject: Subject) -> list[tuple[str, str, str]]:
    """Return per input its name, its shape, and what is assumed of it."""
    outcome = subject.outcome
    found = []
    for value in required_inputs(subject.original.model):
        assumed = outcome.assumed.get(value.name)
        shape = None
        if has_shape(value):
            shape = tuple(known_size(dim) for dim in value.type.tensor_type.shape.dim)
        said = f"free ({shape_text(shape)}); assumed" if assumed else "fixed"
        found.append((printable(value.name), shape_text(assumed or shape), said))
    return found


def _notes(subject: Subject) -> list[str]:
    """Return what is to be known; what is said of the verification has its own place."""
    doubt = subject.report.doubt
    notes = [text for text in subject.report.warnings if text != doubt]
    return [subject.doubt, *notes] if subject.doubt else notes


def _measured_lines(subject: Subject) -> list[dict[str, Any]]:
    """Return measured peaks that are drawn beside the predicted runs."""
    original, best = measured_pair(subject)
    pairs = (("before", original), ("after", best))
    return [
        {"when": when, "bytes": row.peak, "kind": row.kind, "options": settings(row)}
        for when, row in pairs
        if row is not None
    ]


def _row(row: Row) -> dict[str, str]:
    return {
        "model": printable(row.model),
        "options": printable(row.options),
        "peak": mebibytes(row.peak),
        "whole": "" if row.whole is None else mebibytes(row.whole),
        "seconds": "" if row.seconds is None else f"{row.seconds:.3g}",
        "ratio": "" if row.ratio is None else f"{row.ratio:.2f}x",
        "by": printable(_by(row)),
    }


def _by(row: Row) -> str:
    """Return what a row was found with, and when, to the minute."""
    engine = row.engine if row.kind == "measured" else f"{row.engine} ({row.kind})"
    date = row.date[:16].replace("T", " ") + (" UTC" if row.date.endswith("+00:00") else "")
    return ", ".join(filter(None, (engine, row.device, date)))


def _rows_by(rows: Sequence[Row]) -> str:
    """Return what all rows were found with; empty where they differ."""
    found = {_by(row) for row in rows}
    return printable(found.pop()) if len(found) == 1 else ""


def _statistics(subject: Subject) -> list[list[str]]:
    return [
        [
            printable(each.node),
            printable(each.kind),
            mebibytes(each.bytes),
            f"+{each.share:.2f}x" if each.kept else "",
        ]
        for each in subject.overview.statistics
    ]


def _choice(subject: Subject) -> str:
    """Return why this plan was taken; of a file that holds one, that it is the file's."""
    said = subject.report.data["choice"]
    if said and subject.asked.patched is not None:
        return f"it is the one that {printable(subject.asked.patched.name)} was written by"
    return printable(in_flags(said))


def _curve(subject: Subject) -> dict[str, Any] | None:
    """Return the plans of the curve, others that were weighed, and the one that was taken."""
    outcome = subject.outcome
    weighed = [each for each in outcome.weighed if not each.unknown]
    if not subject.curve and not weighed:
        return None
    taken = next((_point(each) for each in weighed if each.taken), None)
    work, time = outcome.recompute, outcome.time
    if taken is None and outcome.rewritten and work is not None and time is not None:
        # Of a file that holds its plan nothing was weighed.
        taken = _point(
            Candidate(
                form=outcome.rewritten[0].form,
                regions=len(outcome.rewritten),
                splits=max(entry.splits for entry in outcome.rewritten),
                peak=outcome.after.need,
                recompute=work,
                time=time,
                fits=True,
                process=outcome.after.process,
            )
        )
    return {
        "points": [_point(each) for each in subject.curve],
        "weighed": [_point(each) for each in weighed if not each.taken],
        "taken": taken,
        "budget": subject.options.memory_budget,
    }


def _plans(curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the plans of the table, the least time first, the one that was taken among them.

    Each has the budget that asks for it.
    """
    taken = curve["taken"]
    found = [{**each, "taken": each == taken} for each in curve["points"] or curve["weighed"]]
    if taken is not None and not any(plan["taken"] for plan in found):
        found.append({**taken, "taken": True})
    found = [{**each, "budget": typed_size(to_ask(each["peak"]))} for each in found]
    return sorted(found, key=lambda each: (each["time"], -each["peak"]))


def _point(plan: Candidate) -> dict[str, Any]:
    return {
        "form": plan.form,
        "regions": plan.regions,
        "patches": plan.splits,
        "peak": plan.peak,
        "work": plan.recompute,
        "time": plan.time,
        "process": plan.process,
    }
