"""What is cut, and why the rest is not: by a plan file, single convolutions, or by search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import onnx

from patchconv_deploy.rewriters.graph.nodes import convolutions_in_bodies
from patchconv_deploy.rewriters.memory.peak import Peak, size_text
from patchconv_deploy.rewriters.memory.targets import ENGINES
from patchconv_deploy.rewriters.options import OLDEST_OPSET, TOO_OLD, Options
from patchconv_deploy.rewriters.planning.apply_plan import apply_plan
from patchconv_deploy.rewriters.planning.choose import ChosenRegions, Goal, choose_regions
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion, ordered
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.planning.evaluator import costs_of
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.peak_holders import Reason, reasons_of, size_advice
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.planning.single_convs import cut_singles
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.selection import ConvSize, Selection, candidates, select

__all__ = ["Decision", "decide", "kept_nodes", "left_in_bodies"]


@dataclass(frozen=True)
class Decision:
    """What is to be cut.

    Attributes:
        regions: Regions.
        refused: Convolutions left alone.
        forms: Per form that was weighed the regions in it.
        peaks: Per place of a region and form the predicted peak of the region alone.
        weighed: Plans that were weighed.
        recompute: Work after over before.
        time: Predicted time after over before.
        order: Name of the order of the nodes, `planning.orders.run_rank_of`.
        run_rank: When each node is wanted to run, by position; None for the order of the file.
        axis: The axis that is cut.
        reasons: What holds the peak where nothing is cut.
        goal: What the search chose by, None where nothing was searched or is cut.
    """

    regions: Sequence[EmittedRegion]
    refused: Sequence[Refusal]
    forms: Mapping[str, Sequence[EmittedRegion]] = field(default_factory=dict)
    peaks: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    weighed: tuple[Candidate, ...] = ()
    recompute: float | None = None
    time: float | None = None
    order: str = "file"
    run_rank: list[int] | None = None
    axis: str | int = "height"
    reasons: tuple[Reason, ...] = ()
    goal: Goal | None = None


def decide(
    predictor: MemoryPredictor,
    options: Options,
    engine: str,
    before: Peak,
    sizes: Mapping[str, ConvSize],
    progress: Progress,
) -> Decision:
    """Decide what is cut.

    Args:
        predictor: Predicts the model's memory.
        options: What is asked for.
        engine: A key of `memory.targets.ENGINES`.
        before: Predicted peak of the model as it is.
        sizes: Sizes of its convolutions, by label.
        progress: Called with (what, done, total) from time to time.

    Raises:
        BudgetError: No plan keeps the memory budget.
        OptionError: A plan that is given does not fit the model.
    """
    facts = predictor.facts
    if facts.certain.opset < OLDEST_OPSET:
        reason = TOO_OLD.format(facts.certain.opset)
        convolutions = candidates(facts.certain.graph)
        return Decision(
            (), [Refusal(facts.labels[at], reason, "opset-too-old") for at in convolutions]
        )
    if options.plan is not None:
        regions, run_rank = apply_plan(predictor, options.plan, engine)
        arrangement = ordered(facts, regions, run_rank, sized=True)
        compiled = ENGINES[engine].lowering.compiler
        costs = None
        if arrangement is not None:
            costs = costs_of(facts, regions, arrangement, compiled=compiled)
        work, time = costs or (None, None)
        return Decision(
            regions,
            (),
            recompute=work,
            time=time,
            order=options.plan["order"],
            run_rank=run_rank,
            axis=options.plan["axis"],
        )
    if not options.by_region:
        found = cut_singles(
            facts,
            options.selection,
            options.axes[0],
            options.patches,
            options.form,
            sizes,
            progress,
        )
        return Decision(
            found.regions, found.refused, found.forms, found.peaks, axis=options.axes[0]
        )
    return _by_region(predictor, options, engine, before, sizes, progress)


def _by_region(
    predictor: MemoryPredictor,
    options: Options,
    engine: str,
    before: Peak,
    sizes: Mapping[str, ConvSize],
    progress: Progress,
) -> Decision:
    """Decide on whole regions, as `decide`."""
    facts = predictor.facts
    kept, refused = kept_nodes(facts, options, sizes)
    axis = options.axes[0]
    cut = choose_regions(predictor, options.limits, axis, options.form, engine, kept, progress)
    reasons: tuple[Reason, ...] = ()
    if not cut.regions:
        reasons = reasons_of(predictor, before, cut.links, cut.reasons, kept, cut.refused, engine)
    useless = _useless(options, before, reasons, cut=bool(cut.regions))
    inside = {at for entry in cut.regions for at in entry.plan.region.nodes}
    failed = {refusal.node: refusal for refusal in cut.refused}
    for at in candidates(facts.certain.graph):
        if at not in inside and at not in kept:
            label = facts.labels[at]
            refused.append(failed.get(label) or _why_uncut(facts, cut, at, sizes, useless))
    return Decision(
        cut.regions,
        refused,
        cut.forms,
        weighed=cut.weighed,
        recompute=cut.recompute,
        time=cut.time if cut.regions else None,
        order=cut.order,
        run_rank=cut.run_rank,
        axis=axis,
        reasons=reasons,
        goal=cut.goal,
    )


def _why_uncut(
    facts: ModelFacts, cut: ChosenRegions, at: int, sizes: Mapping[str, ConvSize], useless: Refusal
) -> Refusal:
    """Return why a convolution is in no region, although none with it failed.

    Args:
        facts: The model.
        cut: What is cut of it.
        at: The convolution's position.
        sizes: Sizes of all convolutions, by label.
        useless: What is said of one that could be in a region.
    """
    label = facts.labels[at]
    if sizes[label].bytes is None and (at in cut.links or at not in cut.reasons):
        reason = "its size is unknown"
        if facts.assumed:
            reason += f"; {size_advice(facts)}"
        return Refusal(label, reason, "size-unknown")
    if at in cut.links:
        return replace(useless, node=label)
    reason = cut.reasons.get(at, "where its rows are is unknown")
    return Refusal(label, reason, "not-provable")


def _useless(options: Options, before: Peak, reasons: Sequence[Reason], *, cut: bool) -> Refusal:
    """Return why a convolution that could be in a region is in none; it names no node yet."""
    if cut:
        return Refusal("", "no region with it lowers the peak further", "no-gain")
    if before.unknown:
        words = "the peak is unknown, as sizes elsewhere are"
        return Refusal("", words, "size-unknown")
    if options.memory_budget is not None or options.max_buffer is not None:
        return Refusal("", "the model keeps the budget as it is", "no-gain")
    words = "cutting it lowers no peak"
    if reasons:
        held = f"{size_text(reasons[0].bytes or 0)} of {size_text(before.need)}"
        words += f"; {reasons[0].holds} {held}"
    return Refusal("", words, "no-gain")


def kept_nodes(
    facts: ModelFacts,
    options: Options,
    sizes: Mapping[str, ConvSize],
) -> tuple[frozenset[int], list[Refusal]]:
    """Return the nodes that the user wants left as they are, and why."""
    chosen = options.selection
    kept = {
        at
        for at, label in facts.labels.items()
        if any(fnmatchcase(label, pattern) for pattern in chosen.exclude)
    }
    refused = []
    for position in candidates(facts.certain.graph):
        label = facts.labels[position]
        if chosen != Selection():
            reason = select(label, sizes[label], 0, chosen)
            if reason is not None and reason.code != "size-unknown":
                kept.add(position)
                refused.append(replace(reason, node=label))
    return frozenset(kept), refused


def left_in_bodies(model: onnx.ModelProto) -> Iterator[Refusal]:
    """Yield convolutions inside If, Loop and functions: they are left as they are."""
    for inner, place in convolutions_in_bodies(model):
        yield Refusal(inner, f"it lies in {place}", "in-subgraph")
