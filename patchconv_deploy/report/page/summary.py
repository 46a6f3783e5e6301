"""The head of a page: what was done in a sentence, the summary's cards, what verification found."""

from __future__ import annotations

from typing import Any

from patchconv_deploy.console import printable
from patchconv_deploy.report.page.figures import Row
from patchconv_deploy.report.page.subject import Subject
from patchconv_deploy.report.report import all_sizes_text
from patchconv_deploy.report.text import mebibytes, with_unit
from patchconv_deploy.words import in_flags

__all__ = ["cards", "lead", "measured_pair", "settings", "verification"]


def _times_less(before: float | None, after: float | None) -> str:
    """Return how many times less the second is, or how many times more; empty where unknown."""
    if not before or not after:
        return ""
    if f"{before / after:.1f}" == "1.0":
        return "about the same"
    if before > after:
        return f"{before / after:.1f} times less"
    return f"{after / before:.1f} times more"


def lead(subject: Subject) -> str:
    """Return what was done, in a sentence."""
    outcome, peak = subject.outcome, subject.report.data["peak_activation_bytes"]
    if not outcome.rewritten:
        if subject.left and subject.asked.patched is not None:
            return (
                f"Nothing is cut: {printable(subject.asked.patched.name)} is the model as it was. "
                "It kept its budget already, or no cut gained anything."
            )
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


def cards(subject: Subject) -> list[dict[str, Any]]:
    """Return the summary's cards; the first says most."""
    pair = measured_pair(subject)
    found = [_peak_card(subject, *pair)]
    peak = subject.report.data["peak_activation_bytes"]
    if peak["before"] is not None and peak["after"] is not None:
        found.append(_process_card(subject, *pair))
    if subject.outcome.rewritten:
        found += _cost_cards(subject, pair[1])
    return [*found, _outputs_card(subject)]


def _peak_card(subject: Subject, original: Row | None, best: Row | None) -> dict[str, Any]:
    outcome, peak = subject.outcome, subject.report.data["peak_activation_bytes"]
    told = peak["before"] is not None and peak["after"] is not None
    cut = bool(outcome.rewritten)
    lines = []
    if told and cut:
        lines.append((_times_less(peak["before"], peak["after"]), ""))
    if told and peak["touched_after"] != peak["after"]:
        both = [mebibytes(each.need) for each in (outcome.before, outcome.after)]
        lines.append((f"{' → '.join(both) if cut else both[0]} MiB running", "predicted"))
    if cut and told and outcome.defaults is not None:
        was, now = map(mebibytes, outcome.defaults)
        lines.append((f"{was} → {now} MiB at default options", "predicted"))
    if best is not None:
        was = "" if original is None else f"{mebibytes(original.peak)} → "
        lines.append((f"{was}{mebibytes(best.peak)} MiB running", best.kind))
        said = f"before: {settings(original)}, " if original is not None else ""
        lines.append((f"{said}after: {settings(best)}", ""))
    return _card(
        "Activations",
        with_unit(peak["after"] if told else None),
        "predicted",
        *lines,
        before=mebibytes(peak["before"]) if cut and told else "",
    )


def settings(row: Row) -> str:
    """Return what a model was run under, in a word or two."""
    if not row.options:
        return row.engine
    return "default options" if row.options == "reuse on, pattern on" else row.options


def _process_card(subject: Subject, original: Row | None, best: Row | None) -> dict[str, Any]:
    process, cut = subject.report.data["process_bytes"], bool(subject.outcome.rewritten)
    before, after = (process[when] for when in ("before", "after"))
    loads = [mebibytes(part["loading"]) for part in (before, after)]
    lines = [(_times_less(before["together"], after["together"]) if cut else "", "")]
    lines.append((f"{' → '.join(loads) if cut else loads[0]} MiB loading", "predicted"))
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
    found = [_card("Work", value, "counted", ("operations after over before", ""))]
    if best is not None and best.ratio is not None:
        lines = [] if outcome.time is None else [(f"{outcome.time:.2f}x", "predicted")]
        found.append(_card("Time", f"{best.ratio:.2f}x", "measured", *lines, (best.device, "")))
    elif outcome.time is not None:
        said = "the work, and what is copied"
        found.append(_card("Time", f"{outcome.time:.2f}x", "predicted", (said, "")))
    regions = data["rewritten"]
    patches = sum(entry["splits"] for entry in regions)
    seams = sum(len(entry["seams"]) for entry in regions)
    nodes = sum(len(entry["nodes"]) for entry in regions)
    found.append(
        _card(
            "Regions",
            str(len(regions)),
            "counted",
            (f"{nodes:,} nodes in {patches:,} patches", ""),
            (f"{seams:,} seams" if seams else "seams where the height puts them", ""),
        )
    )
    return found


def _outputs_card(subject: Subject) -> dict[str, Any]:
    found = verification(subject)
    card = _card("Outputs", found["word"], found["kind"], (found["at"], ""))
    return {**card, "state": found["state"]}


def verification(subject: Subject) -> dict[str, Any]:
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


def measured_pair(subject: Subject) -> tuple[Row | None, Row | None]:
    """Return what was measured of the original and, at its lowest peak, of the result."""
    if not subject.outcome.rewritten:
        return None, None
    name = subject.asked.source.name
    originals = [row for row in subject.rows if row.model == name]
    others = [row for row in subject.rows if row.model != name]
    best = min(others, key=lambda row: row.peak, default=None)
    return (originals[0] if originals else None), best
