"""What the user should know of a rewrite: what is assumed, unknown, or worse than before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from patchconv_deploy.report.text import mebibytes, shape_text
from patchconv_deploy.rewriters.emission.forms import SINGLE_FORMS
from patchconv_deploy.rewriters.emission.rounds import OLDEST_OPSET
from patchconv_deploy.rewriters.memory.peak import loads_more
from patchconv_deploy.rewriters.memory.targets import ENGINES
from patchconv_deploy.rewriters.operators.record import Shape
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.peak_holders import Reason
from patchconv_deploy.verify.verification import Verification

__all__ = ["doubt_of", "unknown_peak", "warnings_of"]


# A peak that rises by less is a few rows of halo.
_NOTABLE_RISE = 1.01


def warnings_of(
    outcome: Outcome, options: Options, source_free: Mapping[str, Shape]
) -> tuple[str, ...]:
    """Return what the user should know of a rewrite, one line each.

    Args:
        outcome: What the rewriter did.
        options: What it was asked for.
        source_free: Shapes of the inputs that had free dimensions before.
    """
    found = []
    if outcome.assumed and not outcome.before.unknown:
        sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in outcome.assumed.items())
        found.append(f"predictions and selection assume {sizes}; say what will come with shapes=")
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
    if _grows(outcome, options):
        found.append(
            "patches grow with the image, and the peak with them; with "
            f"upgrade_opset={OLDEST_OPSET} they are of a fixed height, as many as there are"
        )
    if _is_held_whole(outcome):
        found.append(
            "TensorRT gives a patch of a free size the memory of the largest: build with a profile "
            "whose least and largest size along the cut axis are the same (others may be free), "
            "an engine for each, or fix it with shapes="
        )
    if _is_between_loops(outcome):
        found.append(
            "a loop hands nothing over: what stands before a normalisation over the image is put "
            "together; the forms fused and shrinking hand it over in strips"
        )
    labels = list(outcome.sizes)
    for pattern in (*options.selection.include, *options.selection.exclude):
        if not outcome.already and not any(fnmatchcase(label, pattern) for label in labels):
            found.append(f"no Conv is named like {pattern!r}")
    return (*found, *_rises(outcome))


def _grows(outcome: Outcome, options: Options) -> bool:
    """Tell whether patches are shares of a height that is free, for want of a newer opset."""
    opset = next((each.version for each in outcome.model.opset_import if not each.domain), 0)
    return opset < OLDEST_OPSET and any(
        region.plan.tiling is None and region.form not in SINGLE_FORMS
        for region in outcome.rewritten
        if not ENGINES[outcome.engine].lowering.compiler and options.form == "auto"
    )


def _is_held_whole(outcome: Outcome) -> bool:
    """Tell whether a compiler is to lay out patches whose height is free."""
    compiled = ENGINES[outcome.engine].lowering.compiler
    return compiled and any(region.plan.tiling is None for region in outcome.rewritten)


def _is_between_loops(outcome: Outcome) -> bool:
    """Tell whether a node whose two halves lie in two regions has one of them in a loop."""
    seen = Counter(name for region in outcome.rewritten for name in set(region.nodes))
    return any(
        seen[name] > 1
        for region in outcome.rewritten
        if region.form == "loop"
        for name in region.nodes
    )


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
    pairs = {"activations": (before.bytes, after.bytes), "running": (before.need, after.need)}
    risen = [
        f"{what} from {mebibytes(was)} to {mebibytes(now)} MiB"
        for what, (was, now) in pairs.items()
        if now > _NOTABLE_RISE * was
    ]
    loads = before.weights.loading, after.weights.loading
    # A few copies of small weights are what a lower peak may well cost.
    if loads_more(after, before) > max(
        (_NOTABLE_RISE - 1) * before.process, before.need - after.need
    ):
        yield (
            f"the memory that loading takes is predicted to rise from {mebibytes(loads[0])} to "
            f"{mebibytes(loads[1])} MiB, by more than is saved while it runs: cut into "
            "fewer patches (splits=), with fold=True, or keep the original"
        )
    if risen:
        yield f"the predicted memory rises, {', '.join(risen)}: {_advice(outcome)}"
    elif outcome.defaults is not None and outcome.defaults[1] > _NOTABLE_RISE * outcome.defaults[0]:
        was, now = map(mebibytes, outcome.defaults)
        yield (
            "at ONNX Runtime's default session options the predicted activations rise from "
            f"{was} to {now} MiB: set the recommended ones, or plan with "
            "target='onnxruntime-default'"
        )


def _advice(outcome: Outcome) -> str:
    """Return what to do about a peak that rises."""
    if all(region.form in SINGLE_FORMS for region in outcome.rewritten):
        return (
            "cutting single Convs lowers a runtime's workspace, not its activations; keep the "
            "original unless that workspace is what does not fit"
        )
    return "keep the original, or leave the form open (form='auto') and name no plan"


def doubt_of(verification: Verification) -> str:
    """Return what the user should know of the verification, empty if all is well."""
    if not verification.ran:
        return "" if verification.declined else f"not verified: {verification.reason}"
    if verification.passed is None:
        return f"not verifiable: {verification.reason}"
    if verification.passed and verification.faint:
        on = "the inputs that were given" if verification.seed is None else "seeded inputs"
        return f"the outputs are nearly zero, or no numbers, on {on}; verify on real ones (inputs=)"
    return ""
