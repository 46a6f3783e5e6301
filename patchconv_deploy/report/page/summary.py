"""The head of a page: what was done in a sentence, what was measured, what verification found."""

from __future__ import annotations

from typing import Any

from patchconv_deploy.console import printable
from patchconv_deploy.report.page.figures import Row
from patchconv_deploy.report.page.subject import Subject
from patchconv_deploy.report.report import all_sizes_text
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.words import in_flags

__all__ = [
    "advice",
    "lead",
    "measured_pair",
    "measured_with",
    "settings",
    "verification",
]


def lead(subject: Subject) -> str:
    """Return what was done, in a sentence or two: what was measured where that is known."""
    outcome = subject.outcome
    if not outcome.rewritten:
        return _lead_of_nothing(subject)
    count = len(outcome.rewritten)
    said = f"Cut into {count} region{'s' if count > 1 else ''}"
    process = subject.report.data["process_bytes"]
    original, best = measured_pair(subject)
    if original and best and original.whole and best.whole:
        before, after, how = mebibytes(original.whole), mebibytes(best.whole), "measured"
    elif outcome.before.unknown or outcome.after.unknown:
        return f"{said}; the predicted peak is unknown."
    else:
        before, after = (mebibytes(process[when]["together"]) for when in ("before", "after"))
        how = "predicted"
    said += f": the whole process needs {after} MiB instead of {before} MiB"
    if best is not None and best.ratio is not None:
        cost, known = f"{best.ratio:.2f}x the time", "measured"
    elif outcome.time is not None:
        cost, known = f"{outcome.time:.2f}x the time", "predicted"
    elif outcome.recompute is not None:
        cost, known = f"{outcome.recompute:.2f}x the work", "counted"
    else:
        return f"{said} ({how})."
    return f"{said}{'' if how == known else f' ({how})'}, at {cost} ({known})."


def _lead_of_nothing(subject: Subject) -> str:
    """Return why nothing is cut: what holds most of the peak, and what no cut can lower."""
    outcome, process = subject.outcome, subject.report.data["process_bytes"]["before"]
    if subject.left and subject.asked.patched is not None:
        return (
            f"Nothing is cut: {printable(subject.asked.patched.name)} is the model as it was. "
            "It kept its budget already, or no cut gained anything."
        )
    if outcome.fits:
        return "Nothing is cut: the model keeps the budget as it is."
    reasons = [each for each in outcome.reasons or subject.overview.reasons if each.bytes]
    if outcome.before.unknown or not reasons:
        return "Nothing is cut. What holds the peak, and why, stands below."
    most = max(reasons, key=lambda each: each.bytes or 0)
    said = (
        f"Nothing is cut: no plan that was tried gains. At the peak of "
        f"{mebibytes(outcome.before.bytes)} MiB, {printable(in_flags(most.holds))} "
        f"{mebibytes(most.bytes)} MiB."
    )
    if process["loading"] > process["running"]:
        said += (
            f" Of the {mebibytes(process['together'])} MiB that the whole process is predicted to "
            f"need, {mebibytes(process['loading'])} MiB are loading, which no cut lowers."
        )
    return said


def advice(subject: Subject) -> str:
    """Return what to try where nothing was cut, by what holds most; empty if nothing is known."""
    outcome = subject.outcome
    if outcome.rewritten or outcome.fits or subject.left or outcome.before.unknown:
        return ""
    reasons = [each for each in outcome.reasons or subject.overview.reasons if each.bytes]
    most = max(reasons, key=lambda each: each.bytes or 0, default=None)
    return "" if most is None else printable(in_flags(most.advice))


def measured_with(subject: Subject) -> str:
    """Return what the measured figures of the cards were measured with; empty if none were."""
    original, best = measured_pair(subject)
    if best is None:
        return ""
    said = f"{best.kind.capitalize()} with {best.engine}"
    said += f" on {best.device}" if best.device else ""
    if original is None or original.options == best.options:
        return printable(f"{said}{f'; {_options(best)}' if best.options else ''}")
    return printable(f"{said}; the original with {_options(original)}; cut, {_options(best)}")


def _options(row: Row) -> str:
    said = settings(row)
    return said.replace("reuse", "memory reuse").replace("pattern", "memory pattern")


def settings(row: Row) -> str:
    """Return what a model was run under, in a word or two."""
    if not row.options:
        return row.engine
    return "default options" if row.options == "reuse on, pattern on" else row.options


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
        "count": len(found["sizes"] or [found["shapes"]]),
        "reason": printable(in_flags(reason)) if found["ran"] else "",
        "by": printable(subject.verified_by),
    }


def measured_pair(subject: Subject) -> tuple[Row | None, Row | None]:
    """Return what was measured of the original and of the result, each where it takes least."""
    if not subject.outcome.rewritten:
        return None, None
    name = subject.asked.source.name
    originals = [row for row in subject.rows if row.model == name]
    others = [row for row in subject.rows if row.model != name]
    best = min(others, key=lambda row: (row.kind != "measured", row.peak), default=None)
    if best is None:
        return (originals[0] if originals else None), None
    # Only what was found in the same way is compared.
    alike = [row for row in originals if (row.kind, row.engine) == (best.kind, best.engine)]
    return min(alike, key=lambda row: row.whole or row.peak, default=None), best
