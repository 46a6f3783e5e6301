"""The report of a rewrite as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

from rich.console import Console

from patchconv_deploy.console import printable, styled
from patchconv_deploy.engines.ort.options import SESSION_OPTIONS
from patchconv_deploy.report.report import ENGINE_NAMES, Report, all_sizes_text
from patchconv_deploy.report.text import mebibytes, shape_text, with_unit
from patchconv_deploy.rewriters.emission.forms import SINGLE_FORMS
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.outcome import Outcome, Rewritten
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.tables import Row, print_table
from patchconv_deploy.words import in_flags

__all__ = ["print_report"]


_SHOWN_REFUSALS = 8

_SHOWN_SIZES = 5

_SHOWN_REASONS = 4

# Codes of refusals that are shown together, one line for all of the same words.
_ALIKE = ("no-gain", "size-unknown", "excluded", "not-included", "opset-too-old")

# Plans shown on either side of the one taken.
_BESIDE = 3

# The figures of a model's memory, in the words that `patchconv measure` uses, too.
_FIGURES: tuple[tuple[str, Callable[[Peak], int], str], ...] = (
    ("activations", lambda peak: peak.bytes, "tensors in use at once, at most"),
    ("running", lambda peak: peak.need, "added by runs; memory_budget= limits it"),
    ("loading", lambda peak: peak.weights.loading, "added by opening the model"),
    ("whole process", lambda peak: peak.process, "both; what they share counts once"),
)

# What session options are recommended by.
_RECOMMENDED_FOR = {"predicted": "activations", "measured": "running"}


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
    _print_memory(report, outcome, console)
    if outcome.rewritten:
        _print_largest_tensor(report, outcome, console)
    else:
        _print_uncut(report, outcome, console)
    fixing = report.data["peak_activation_bytes"]["before_fixing"]
    if fixing is not None and not outcome.before.unknown:
        console.print(
            f"Fixing sizes alone changes the original's predicted activations: "
            f"{mebibytes(fixing)} -> {mebibytes(outcome.before.bytes)} MiB",
        )
    if outcome.folded.nodes:
        console.print(
            f"Folded once for all patches: {outcome.folded.nodes} BatchNormalization, Mul or Add "
            f"into {outcome.folded.convolutions} Convs",
        )
    _print_choice(report, outcome, console)
    recommended = report.data["recommended_session_options"]
    if recommended is not None:
        said = ", ".join(
            f"{name}={v}" for name, v in recommended.items() if name in SESSION_OPTIONS
        )
        kind = recommended["kind"]
        least, usual = (recommended[f"{kind}_peak_bytes{at}"] for at in ("", "_at_defaults"))
        console.print(
            f"Recommended session options (in the model's metadata): {said}; {kind} "
            f"{_RECOMMENDED_FOR[kind]}: {with_unit(least)}, {mebibytes(usual)} at the defaults",
        )
    if outcome.rewritten or not report.verification["declined"]:
        _print_verification(report.verification, console)


def _print_memory(report: Report, outcome: Outcome, console: Console) -> None:
    """Print the predicted memory before and after, each figure with what it is."""
    peak = report.data["peak_activation_bytes"]
    engine = ENGINE_NAMES[outcome.engine]
    work = "" if outcome.recompute is None else f"Work: {outcome.recompute:.2f}x"
    if peak["before"] is None or peak["after"] is None:
        known = peak["known_part_before"]
        least = f" (at least {with_unit(known)} before)" if known else ""
        console.print(f"Predicted memory ({engine}): unknown{least}")
        if work:
            console.print(work)
        return
    cut, both = bool(outcome.rewritten), (outcome.before, outcome.after)
    console.print(f"Predicted memory ({engine}); docs/measuring.md has more of each figure:")
    columns = ("before", "after") if cut else ("as it is",)
    rows = [
        Row(
            f"  {name}",
            tuple(mebibytes(of(each)) for each in both[: len(columns)]),
            in_flags(what),
        )
        for name, of, what in _FIGURES
    ]
    print_table(console, "  MiB", columns, rows, tail="what it is")
    forms = ", ".join(f"{form} {mebibytes(size)}" for form, size in peak["by_form"].items())
    others = f"activations of these regions in each form, MiB: {forms}" * (len(peak["by_form"]) > 1)
    if work or others:
        console.print("; ".join(filter(None, (work, others))), highlight=False)


def _print_fits(report: Report, outcome: Outcome, console: Console) -> None:
    budget = report.data["options"]["memory_budget_bytes"]
    limit = report.data["options"]["max_buffer_bytes"]
    largest, _ = outcome.largest
    if not outcome.fits:
        return
    if budget is not None:
        what = "budget"
        said = f"It fits as it is ({mebibytes(outcome.before.need)} of {mebibytes(budget)} MiB)"
    elif limit is not None and largest is not None:
        what = "limit"
        said = (
            f"No activation is larger than {mebibytes(limit)} MiB as it is (the largest, "
            f"{largest.name}, has {mebibytes(largest.bytes)})"
        )
    else:
        return
    # A model that was rewritten before is not cut again.
    anyway = f"; cut it anyway with {in_flags('splits=N')} in place of the {what}"
    console.print(f"{said}{'' if outcome.already else anyway}.")


def _print_largest_tensor(report: Report, outcome: Outcome, console: Console) -> None:
    """Print the largest tensor before and after, where its size was limited."""
    limit, (before, after) = report.data["options"]["max_buffer_bytes"], outcome.largest
    if limit is not None and before is not None and after is not None:
        console.print(
            f"Largest activation: {mebibytes(before.bytes)} -> {mebibytes(after.bytes)} MiB of "
            f"{mebibytes(limit)} ({after.name})",
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
    shown = [each for each in outcome.reasons if each.shows(need)][:_SHOWN_REASONS]
    shown = shown or list(outcome.reasons[:1])
    for reason in shown:
        said = reason.reason
        if reason.bytes is not None:
            said = f"{reason.holds} {mebibytes(reason.bytes)} {total}"
        first = f", first {reason.nodes[0]}" if reason.nodes and reason.bytes is not None else ""
        count = f" ({len(reason.nodes)} nodes{first})" if len(reason.nodes) > 1 else ""
        one = f" ({reason.nodes[0]})" if len(reason.nodes) == 1 else ""
        console.print(f"  {printable(in_flags(said) + (count or one))}")
    rest = sum(reason.bytes or 0 for reason in outcome.reasons if reason not in shown)
    if rest >= need / 100:
        console.print(f"  other causes hold {mebibytes(rest)} MiB")
    console.print(f"What to do: {printable(in_flags(shown[0].advice))}.")


def _print_choice(report: Report, outcome: Outcome, console: Console) -> None:
    """Print why this plan was taken, and those beside it, so that the choice is no riddle."""
    if report.data["choice"]:
        more = "; pareto_only=True shows what other budgets cost" if outcome.goal else ""
        said = in_flags(report.data["choice"] + more)
        console.print(f"Why this plan: {said}", highlight=False)
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
    rows = [
        Row(
            f"  {each.form} x{each.splits}, regions {each.regions}",
            (
                mebibytes(None if each.unknown else each.peak),
                f"{each.recompute:.3f}x",
                f"{each.time:.3f}x",
            ),
            _said_of(each, shown),
        )
        for each in shown
    ]
    title = "Plans beside it" if outcome.rewritten else "Weighed"
    print_table(console, title, ("running, MiB", "work", "time"), rows)


def _said_of(candidate: Candidate, shown: Sequence[Candidate]) -> str:
    """Return what is to be said of a plan beside others."""
    if not candidate.taken:
        return "" if candidate.fits else "above the limits"
    better = any(
        each.fits and each.peak < candidate.peak and each.time < candidate.time for each in shown
    )
    return "taken, the plainest of nearly equal ones" if better else "taken"


def _print_regions(outcome: Outcome, console: Console) -> None:
    rows = [
        Row(
            " .. ".join(dict.fromkeys((region.nodes[0], region.nodes[-1]))),
            (
                str(len(region.nodes)),
                _recompute(region),
                f"{shape_text(region.size.input)} -> {shape_text(region.size.output)}",
                _patches(region),
            ),
        )
        for region in outcome.rewritten
    ]
    columns = ("nodes", "recompute", "first input -> first output", "form x patches")
    print_table(console, "region", columns, rows, words=columns[2:])
    _print_region_notes(outcome, console)


def _recompute(region: Rewritten) -> str:
    return "at run time" if region.recompute is None else f"{region.recompute:.2f}x"


def _print_region_notes(outcome: Outcome, console: Console) -> None:
    for region in outcome.rewritten:
        for note in region.notes:
            console.print(f"  {printable(region.nodes[0])}: {in_flags(note)}")


def _patches(region: Rewritten) -> str:
    rows = region.plan.patch_rows
    return f"{region.form} x{region.splits}" if rows is None else f"{region.form} of {rows} rows"


def _print_table(outcome: Outcome, console: Console) -> None:
    if any(region.form not in SINGLE_FORMS for region in outcome.rewritten):
        _print_regions(outcome, console)
        return
    rows = [
        Row(
            " + ".join(region.nodes),
            (
                f"{shape_text(region.size.input)} -> {shape_text(region.size.output)}",
                mebibytes(region.size.bytes),
                _recompute(region),
                f"{region.form} x{region.splits}",
                *_peaks_of(region),
            ),
        )
        for region in outcome.rewritten
    ]
    shapes, forms = "input -> output", "form x patches"
    columns = (shapes, "MiB", "recompute", forms, "peak:\nbatch", "sequential")
    print_table(console, "Conv", columns, rows, words=(shapes, forms))
    _print_region_notes(outcome, console)


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
            f"{with_unit(size.bytes)}, {size.elements or 'unknown'} elements",
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
    at = all_sizes_text(found)
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
        if output["sums"] is not None:
            console.print(
                "  compared with the original in steps, as its large sums are off by "
                f"{output['sums']:.3g} (docs/verification.md#large-sums)"
            )
    if not found["passed"]:
        console.print(f"  {printable(in_flags(found['reason']))}")
