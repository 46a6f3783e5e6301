"""The cards of a page's head: each a figure, how it is known, and what stands beside it."""

from __future__ import annotations

from typing import Any

from patchconv_deploy.report.page.figures import Row
from patchconv_deploy.report.page.subject import Subject
from patchconv_deploy.report.page.summary import measured_pair, verification
from patchconv_deploy.report.text import mebibytes

__all__ = ["cards"]

# Of sizes that take more letters their number is told.
_LONG = 60


def cards(subject: Subject) -> list[dict[str, Any]]:
    """Return the summary's cards; the first says most."""
    found = _memory_cards(subject, *measured_pair(subject))
    if subject.outcome.rewritten:
        found += _cost_cards(subject, measured_pair(subject)[1])
    return [*found, _outputs_card(subject)]


def _memory_cards(subject: Subject, original: Row | None, best: Row | None) -> list[dict[str, Any]]:
    """Return whole process, running and activations; what was measured is in the first line."""
    outcome, data = subject.outcome, subject.report.data
    if outcome.before.unknown or outcome.after.unknown:
        lines = [(_arrow(original, best, "peak"), best.kind)] if best is not None else []
        return [_card("Activations", "unknown", "predicted", *lines)]
    process = data["process_bytes"]
    together, loading, running = (
        tuple(process[when][part] for when in ("before", "after"))
        for part in ("together", "loading", "running")
    )
    activations = (outcome.before.bytes, outcome.after.bytes)
    cut = bool(outcome.rewritten)
    was, now = map(mebibytes, loading)
    more = (f"{f'{was} → ' if cut else ''}{now} MiB loading", "predicted")
    planned = best is not None and best.kind != "measured"
    ran = (None, None) if planned else (original, best)
    found = [_memory_card("Whole process", together, *ran, more, part="whole", cut=cut)]
    shown = list(map(mebibytes, running)) != list(map(mebibytes, activations))
    if shown or ran[1] is not None:
        found.append(_memory_card("Running", running, *ran, part="peak", cut=cut))
    lines = []
    if cut and outcome.defaults is not None:
        was, now = map(mebibytes, outcome.defaults)
        lines.append((f"{was} → {now} MiB at default options", "predicted"))
    asked = (original, best) if planned else (None, None)
    return [
        *found,
        _memory_card("Activations", activations, *asked, *lines, part="peak", cut=cut),
    ]


def _memory_card(
    title: str,
    predicted: tuple[int, ...],
    original: Row | None,
    best: Row | None,
    *lines: tuple[str, str],
    part: str,
    cut: bool,
) -> dict[str, Any]:
    """Return a card of memory before and after; what was measured of both goes first.

    Args:
        title: What is counted.
        predicted: Bytes before and after.
        original: What was measured before, None for nothing.
        best: What was measured after.
        lines: Further lines, each with how it is known.
        part: Which figure of a row is of this kind.
        cut: Something was cut.
    """
    was, now = map(mebibytes, predicted)
    if not cut:
        return _card(title, f"{now} MiB", "predicted", *lines)
    less = (_times_less(*predicted), "")
    if best is None or getattr(best, part) is None:
        return _card(title, f"{now} MiB", "predicted", less, *lines, before=was)
    if best.kind != "measured" or original is None or getattr(original, part) is None:
        ran = (_arrow(original, best, part), best.kind)
        return _card(title, f"{now} MiB", "predicted", less, ran, *lines, before=was)
    ran_before, ran_after = (getattr(row, part) for row in (original, best))
    return _card(
        title,
        f"{mebibytes(ran_after)} MiB",
        "measured",
        (_times_less(ran_before, ran_after), ""),
        (f"{was} → {now} MiB", "predicted"),
        *lines,
        before=mebibytes(ran_before),
    )


def _arrow(original: Row | None, best: Row, part: str) -> str:
    was = None if original is None else getattr(original, part)
    return f"{'' if was is None else f'{mebibytes(was)} → '}{mebibytes(getattr(best, part))} MiB"


def _cost_cards(subject: Subject, best: Row | None) -> list[dict[str, Any]]:
    """Return what the cut costs: time and work, and what it is cut into."""
    outcome, data = subject.outcome, subject.report.data
    work = "at run time" if data["recompute"] is None else f"{data['recompute']:.3f}x"
    counted = (f"{work} the work", "counted")
    if best is not None and best.ratio is not None:
        lines = [] if outcome.time is None else [(f"{outcome.time:.2f}x", "predicted")]
        found = [_card("Time", f"{best.ratio:.2f}x", "measured", *lines, counted)]
    elif outcome.time is not None:
        copied = ("and what is copied on top", "")
        found = [_card("Time", f"{outcome.time:.2f}x", "predicted", counted, copied)]
    else:
        found = [_card("Work", work, "counted", ("operations after over before", ""))]
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
    at = found["at"] if len(found["at"]) < _LONG else f"at {found['count']} sizes"
    card = _card("Outputs", found["word"], found["kind"], (at, ""))
    return {**card, "state": found["state"], "note": found["reason"]}


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
        "note": "",
    }


def _times_less(before: float | None, after: float | None) -> str:
    """Return how much less the second is, or how much more; empty where unknown.

    Where it is less than 1.5 times, the percents of the first say more.
    """
    if not before or not after:
        return ""
    if abs(before - after) < 0.01 * before:
        return "about the same"
    if before > after:
        return (
            f"{before / after:.1f} times less"
            if before >= 1.5 * after
            else _percents(before, after)
        )
    return f"{after / before:.1f} times more" if after >= 1.5 * before else _percents(before, after)


def _percents(before: float, after: float) -> str:
    share = 100 * abs(before - after) / before
    return f"{share:.0f} % {'less' if after < before else 'more'}"
