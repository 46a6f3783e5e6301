"""A page as plain data: texts for people, and lists for its plots.

Every figure is the report's (`patchconv_deploy.report.report`) or was measured, and has a word
beside it that says which: "predicted", "measured", "planned" (by a builder, nothing ran) or
"counted" (rows and operations, in integers). Names of models are made printable here; that they
are no markup is up to `render`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from patchconv_deploy.console import printable
from patchconv_deploy.report.page.drawing import drawing
from patchconv_deploy.report.page.figures import Row
from patchconv_deploy.report.page.holders import alive_at, causes, left_alone
from patchconv_deploy.report.page.naming import Regions
from patchconv_deploy.report.page.regions import regions_of
from patchconv_deploy.report.page.subject import Subject
from patchconv_deploy.report.page.timeline import timeline
from patchconv_deploy.report.report import ENGINE_NAMES, all_sizes_text
from patchconv_deploy.report.text import mebibytes, shape_text
from patchconv_deploy.rewriters.graph.nodes import node_labels
from patchconv_deploy.rewriters.graph.shapes import has_shape, known_size, required_inputs
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
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
    return {
        "title": printable(source.name),
        "patched": None if subject.asked.patched is None else printable(subject.asked.patched.name),
        "version": VERSION,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cut": cut,
        "lead": _lead(subject),
        "engine": ENGINE_NAMES[outcome.engine],
        "graph": printable(graph.name),
        "opset": data["model"]["opset"],
        "node_count": len(graph.node),
        "sizes": _sizes(subject),
        "cards": _cards(subject),
        "verification": _verification(subject),
        "notes": [printable(in_flags(text)) for text in _notes(subject)],
        "regions": regions_of(outcome.rewritten, data["rewritten"], operators),
        "causes": causes(subject.overview.reasons, outcome.before, cut=cut),
        "peaks": {
            when: {
                "bytes": _known(data["peak_activation_bytes"][when]),
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
        "failed": [printable(text) for text in subject.failed],
        "curve": _curve(subject),
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
            ),
        },
    }


def _known(size: int | None) -> str:
    return "unknown" if size is None else f"{mebibytes(size)} MiB"


def _times_less(before: float | None, after: float | None) -> str:
    """Return how many times less the second is, or how many times more; empty where unknown."""
    if not before or not after:
        return ""
    if f"{before / after:.1f}" == "1.0":
        return "about the same"
    if before > after:
        return f"{before / after:.1f} times less"
    return f"{after / before:.1f} times more"


def _lead(subject: Subject) -> str:
    """Return what was done, in a sentence."""
    outcome, peak = subject.outcome, subject.report.data["peak_activation_bytes"]
    if not outcome.rewritten:
        if outcome.fits:
            return "Nothing is cut: the model keeps the budget as it is."
        return "Nothing is cut. What holds the peak, and why, stands below."
    count = len(outcome.rewritten)
    said = f"Cut into {count} region{'s' if count > 1 else ''}"
    if peak["before"] is None or peak["after"] is None:
        return f"{said}; the predicted peak is unknown."
    before, after = mebibytes(peak["before"]), mebibytes(peak["after"])
    said += f", it is predicted to need {after} MiB for activations instead of {before} MiB"
    if outcome.recompute is not None:
        said += f", at {outcome.recompute:.2f}x the work"
    return said + "."


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


def _card(
    title: str, value: str, kind: str, *lines: tuple[str, str], before: str = ""
) -> dict[str, Any]:
    """Return a card: a figure, the one before, and lines below, each with its own kind."""
    return {
        "title": title,
        "before": before,
        "value": value,
        "kind": kind,
        "lines": [line for line in lines if line[0]],
        "state": "",
    }


def _cards(subject: Subject) -> list[dict[str, Any]]:
    """Return the summary's cards; the first says most."""
    pair = _measured_pair(subject)
    cards = [_peak_card(subject, *pair)]
    peak = subject.report.data["peak_activation_bytes"]
    if peak["before"] is not None and peak["after"] is not None:
        cards.append(_process_card(subject, *pair))
    if subject.outcome.rewritten:
        cards += _cost_cards(subject, pair[1])
    return [*cards, _outputs_card(subject)]


def _peak_card(subject: Subject, original: Row | None, best: Row | None) -> dict[str, Any]:
    outcome, peak = subject.outcome, subject.report.data["peak_activation_bytes"]
    known = peak["before"] is not None and peak["after"] is not None
    cut = bool(outcome.rewritten)
    lines = []
    if known and cut:
        lines.append((_times_less(peak["before"], peak["after"]), ""))
    if known and peak["touched_after"] != peak["after"]:
        both = [mebibytes(peak[f"touched_{when}"]) for when in ("before", "after")]
        lines.append((f"{' → '.join(both) if cut else both[0]} MiB written to", "predicted"))
    if cut and known and outcome.defaults is not None:
        was, now = map(mebibytes, outcome.defaults)
        lines.append((f"{was} → {now} MiB at default options", "predicted"))
    if best is not None:
        was = "" if original is None else f"{mebibytes(original.peak)} → "
        lines.append((f"{was}{mebibytes(best.peak)} MiB", best.kind))
        said = f"before: {_settings(original)}, " if original is not None else ""
        lines.append((f"{said}after: {_settings(best)}", ""))
    return _card(
        "Peak of activations",
        _known(peak["after"] if known else None),
        "predicted",
        *lines,
        before=mebibytes(peak["before"]) if cut and known else "",
    )


def _settings(row: Row) -> str:
    """Return what a model was run under, in a word or two."""
    if not row.options:
        return row.engine
    return "default options" if row.options == "reuse on, pattern on" else row.options


def _process_card(subject: Subject, original: Row | None, best: Row | None) -> dict[str, Any]:
    process, cut = subject.report.data["process_bytes"], bool(subject.outcome.rewritten)
    before, after = (process[when] for when in ("before", "after"))
    loads = [mebibytes(part["loading"]) for part in (before, after)]
    lines = [(_times_less(before["together"], after["together"]) if cut else "", "")]
    lines.append((f"{' → '.join(loads) if cut else loads[0]} MiB to load", "predicted"))
    if best is not None and best.whole is not None:
        was = "" if original is None else f"{mebibytes(original.whole)} → "
        lines.append((f"{was}{mebibytes(best.whole)} MiB", best.kind))
    return _card(
        "Whole process",
        f"{mebibytes(after['together'])} MiB",
        "predicted",
        *lines,
        before=mebibytes(before["together"]) if cut else "",
    )


def _cost_cards(subject: Subject, best: Row | None) -> list[dict[str, Any]]:
    """Return what the cut costs: work, time, and seams."""
    outcome, data = subject.outcome, subject.report.data
    work = data["recompute"]
    value = "at run time" if work is None else f"{work:.3f}x"
    cards = [_card("Work", value, "counted", ("operations after over before", ""))]
    if best is not None and best.ratio is not None:
        lines = [] if outcome.time is None else [(f"{outcome.time:.2f}x", "predicted")]
        cards.append(_card("Time", f"{best.ratio:.2f}x", "measured", *lines, (best.device, "")))
    elif outcome.time is not None:
        said = "the work, and what is copied"
        cards.append(_card("Time", f"{outcome.time:.2f}x", "predicted", (said, "")))
    regions = data["rewritten"]
    patches = sum(entry["splits"] for entry in regions)
    seams = sum(len(entry["seams"]) for entry in regions)
    nodes = sum(len(entry["nodes"]) for entry in regions)
    cards.append(
        _card(
            "Regions",
            str(len(regions)),
            "counted",
            (f"{nodes:,} nodes in {patches:,} patches", ""),
            (f"{seams:,} seams" if seams else "seams where the height puts them", ""),
        )
    )
    return cards


def _outputs_card(subject: Subject) -> dict[str, Any]:
    found = _verification(subject)
    card = _card("Outputs", found["word"], found["kind"], (found["at"], ""))
    return {**card, "state": found["state"]}


def _verification(subject: Subject) -> dict[str, Any]:
    """Return what verification found, for people."""
    found = subject.verification
    outputs = [
        {
            "name": printable(each["name"]),
            "max_abs": f"{each['max_abs']:.3g}",
            "max_rel": f"{each['max_rel']:.3g}",
            "seam": "" if each["seam_max_abs"] is None else f"{each['seam_max_abs']:.3g}",
            "tolerance": f"{each['tolerance']:.3g}",
            "differing": f"{100 * each['differing']:.3g} %",
        }
        for each in found["outputs"]
    ]
    same = bool(outputs) and all(each["differing"] == 0 for each in found["outputs"])
    if not found["ran"]:
        state, word = "none", "not verified"
    else:
        state, word = {
            True: ("good", "equal to the bit" if same else "equal within tolerance"),
            False: ("bad", "mismatch"),
            None: ("none", "not verifiable"),
        }[found["passed"]]
    reason = "not asked for" if found["declined"] else found["doubt"] or found["reason"]
    at = printable(f"at {all_sizes_text(found)}") if found["ran"] else printable(in_flags(reason))
    return {
        "state": state,
        "word": word,
        "kind": "measured" if found["ran"] else "",
        "at": at,
        "via": printable(found["via"]),
        "outputs": outputs,
        "reason": printable(in_flags(reason)) if found["ran"] else "",
        "by": printable(subject.verified_by),
    }


def _measured_pair(subject: Subject) -> tuple[Row | None, Row | None]:
    """Return what was measured of the original and, at its lowest peak, of the result."""
    if not subject.outcome.rewritten:
        return None, None
    name = subject.asked.source.name
    originals = [row for row in subject.rows if row.model == name]
    others = [row for row in subject.rows if row.model != name]
    best = min(others, key=lambda row: row.peak, default=None)
    return (originals[0] if originals else None), best


def _measured_lines(subject: Subject) -> list[dict[str, Any]]:
    """Return measured peaks that are drawn beside the predicted runs."""
    original, best = _measured_pair(subject)
    pairs = (("before", original), ("after", best))
    return [
        {"when": when, "bytes": row.peak, "kind": row.kind, "options": _settings(row)}
        for when, row in pairs
        if row is not None
    ]


def _row(row: Row) -> dict[str, str]:
    return {
        "model": printable(row.model),
        "engine": printable(row.engine),
        "kind": row.kind,
        "device": printable(row.device),
        "options": printable(row.options),
        "peak": mebibytes(row.peak),
        "whole": "" if row.whole is None else mebibytes(row.whole),
        "seconds": "" if row.seconds is None else f"{row.seconds:.3g}",
        "ratio": "" if row.ratio is None else f"{row.ratio:.2f}x",
        "date": printable(row.date),
    }


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


def _curve(subject: Subject) -> dict[str, Any] | None:
    """Return the plans of the curve, others that were weighed, and the one that was taken."""
    outcome = subject.outcome
    weighed = [each for each in outcome.weighed if not each.unknown]
    if not subject.curve and not weighed:
        return None
    taken = next((_point(each) for each in weighed if each.taken), None)
    if taken is None and outcome.rewritten and outcome.time is not None:
        taken = {
            "form": outcome.rewritten[0].form,
            "regions": len(outcome.rewritten),
            "patches": max(entry.splits for entry in outcome.rewritten),
            "peak": outcome.after.need,
            "work": outcome.recompute,
            "time": outcome.time,
            "process": outcome.after.process,
        }
    return {
        "points": [_point(each) for each in subject.curve],
        "weighed": [_point(each) for each in weighed if not each.taken],
        "taken": taken,
        "budget": subject.options.memory_budget,
    }


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
