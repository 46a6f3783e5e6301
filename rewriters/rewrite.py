"""The rewrite of a model, from analysis to the spliced graph.

    prepare    opset raised and shapes fixed, where asked for
    analyse    skeleton checked, use-def index, known shapes, sizes of free dimensions assumed
    plan       regions for a budget (`rewriters.regional`), convolutions one by one
               (`rewriters.single`), or a plan that is given
    splice     regions replaced by their fragments, the plan recorded, the result checked
    fold       what engines fold into each clone of a convolution is folded once

A model that holds a plan already is left as it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import count as count_from
from math import inf, prod
from operator import is_
from typing import Any

import onnx

from rewriters.analysis import Analysis, analyse, upgrade
from rewriters.bodies import move_into_bodies
from rewriters.conv_folding import Folded, fold_clones
from rewriters.draft import Draft, ordered, predict, predict_all
from rewriters.errors import BudgetError, OptionError
from rewriters.fragment import drop_unused_value_info, splice
from rewriters.graph import (
    Loaded,
    check,
    convolutions_in_bodies,
    index,
    record,
    skeleton,
)
from rewriters.inspection import Inspection, inspect_model
from rewriters.locality import AXES
from rewriters.memory import Peak, size_text
from rewriters.planner import FORMS, METADATA_KEY, RegionPlan, plan_data
from rewriters.reasons import Reason, reasons_of, size_advice, unknown_sizes
from rewriters.regional import Candidate, Regional, apply_plan, cut_regions, pareto
from rewriters.regions import (
    ConvSize,
    Refusal,
    Selection,
    candidates,
    conv_size,
    region_size,
    select,
)
from rewriters.search import Limits
from rewriters.shapes import Shapes, correct_claims, fix_shapes
from rewriters.single import SINGLE_FORMS, cut_singles

__all__ = [
    "SESSION_OPTIONS",
    "TARGETS",
    "Options",
    "Outcome",
    "Rewritten",
    "analyse_memory",
    "check_one_axis",
    "inspection_of",
    "pareto_of",
    "rewrite_model",
    "unknown_of",
]

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]

# Engines that a plan may be made for, and the table memory is predicted by.
TARGETS: Mapping[str, str] = {
    "onnxruntime": "onnxruntime-tuned",
    "onnxruntime-default": "onnxruntime",
    "triton": "onnxruntime-server",
    "tensorrt": "tensorrt",
}
# ONNX Runtime's session options that the predictions above are made for.
SESSION_OPTIONS_KEY = "patchconv.session_options"
SESSION_OPTIONS = {"enable_mem_reuse": False, "enable_mem_pattern": False}
# Per target those that a model is to run under, where they are not the runtime's own. Triton's
# backend reads enable_mem_arena and enable_mem_pattern, and nothing of reuse.
_RUN_UNDER: Mapping[str, Mapping[str, bool]] = {
    "onnxruntime": SESSION_OPTIONS,
    "triton": {"enable_mem_reuse": True, "enable_mem_pattern": False},
}
_OLDEST_OPSET = 9
_TOO_OLD = f"opset {{}} is older than {_OLDEST_OPSET}; convert it with upgrade_opset=13"
# A graph of more nodes per Conv serves nobody.
_MOST_SPLITS = 4096
_SPLITS = 4
# Without a budget: no more than half as much work again for a lower peak.
_RECOMPUTE = 1.5
# TensorRT's convolutions take no tensor of more elements (NVIDIA/TensorRT#4123).
_TENSORRT_ELEMENTS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Options:
    """What to cut, and how.

    Attributes:
        splits: Patches per region, at least 1; with a budget: at most so many. None: 4, or as many
            as the budget asks for.
        form: "batch" and "sequential" cut convolutions one by one, "fused", "shrinking" and
            "loop" whole regions; "auto" chooses among the last three.
        axis: "height", "width", "depth", a dimension of the tensor (2 or above), or "auto": of
            height and width the one that serves better; height for convolutions one by one.
        selection: Which convolutions.
        shapes: Sizes to fix the inputs' free dimensions to.
        ranges: Least and largest size of each dimension of an input; it stays free where they
            differ, and memory is predicted for the largest.
        upgrade_opset: Version to convert the default domain to first, None to keep it.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.
        memory_budget: Most bytes of activations (`memory.Peak.need`), None for as few as can be.
        max_recompute: Most work after over before; None: 1.5 without a budget, else any.
        max_tensor_elements: Most elements of a tensor, None for any number.
        target: The engine whose memory is predicted: "onnxruntime" (at the session options that are
            recommended for the model), "onnxruntime-default" (at its own), "triton" (at those that
            a Triton server can be told: the memory pattern is off, reuse is on), or "tensorrt".
        plan: What to do, as `planner.read_plan` returns it; nothing is searched then.
        fold: Fold what stands behind clones of a convolution once (`rewriters.conv_folding`).
    """

    splits: int | None = None
    form: str = "auto"
    axis: str | int = "height"
    selection: Selection = field(default_factory=Selection)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    upgrade_opset: int | None = None
    allow_custom_ops: bool = False
    memory_budget: int | None = None
    max_recompute: float | None = None
    max_tensor_elements: int | None = None
    target: str = "onnxruntime"
    plan: Mapping[str, Any] | None = None
    fold: bool = True

    @property
    def axes(self) -> tuple[str | int, ...]:
        """The axes in question, the usual one first."""
        return ("height", "width") if self.axis == "auto" else (self.axis,)

    @property
    def patches(self) -> int:
        """Patches per convolution cut on its own."""
        return _SPLITS if self.splits is None else self.splits

    @property
    def limits(self) -> Limits:
        """What a plan of regions has to keep."""
        free = self.memory_budget is None and self.max_tensor_elements is None
        recompute = self.max_recompute
        if recompute is None:
            recompute = _RECOMPUTE if free else inf
        return Limits(
            budget=inf if self.memory_budget is None else self.memory_budget,
            recompute=recompute,
            splits=self.patches if free or self.splits is not None else _MOST_SPLITS,
            elements=self._elements,
            more=free and self.splits is None,
        )

    @property
    def _elements(self) -> int | None:
        if self.max_tensor_elements is None and self.target == "tensorrt":
            return _TENSORRT_ELEMENTS
        return self.max_tensor_elements

    @property
    def by_region(self) -> bool:
        """Whether whole regions are cut, not convolutions one by one.

        Who names convolutions and leaves the form open means these convolutions.
        """
        named = self.selection.include or self.selection.min_elements is not None
        free = self.memory_budget is None and self.max_tensor_elements is None
        if self.form == "auto":
            return not (named and free)
        return self.form not in SINGLE_FORMS

    def __post_init__(self) -> None:
        if self.splits is not None and self.splits < 1:
            raise OptionError(f"splits={self.splits}: the number of patches is at least 1")
        if self.splits is not None and self.splits > _MOST_SPLITS:
            raise OptionError(f"splits={self.splits}: at most {_MOST_SPLITS} patches")
        if self.form not in ("auto", *FORMS):
            raise OptionError(f"form={self.form!r}: must be auto, {' or '.join(FORMS)}")
        if isinstance(self.axis, str) and self.axis not in (*AXES, "auto"):
            raise OptionError(f"axis={self.axis!r}: must be height, width, depth, auto or an index")
        if isinstance(self.axis, int) and self.axis < 2:
            raise OptionError(
                f"axis={self.axis!r}: dimensions 0 and 1 are batch and channels; spatial ones "
                "begin at 2"
            )
        if self.memory_budget is not None and self.memory_budget < 1:
            raise OptionError(f"memory_budget={self.memory_budget}: must be 1 byte or more")
        if self.max_recompute is not None and not self.max_recompute >= 1:
            raise OptionError(f"max_recompute={self.max_recompute}: must be 1 or more")
        if self.max_recompute is not None and self.plan is not None:
            raise OptionError(
                "max_recompute= is for choosing a plan, and plan= is one that is chosen: leave out "
                "one of the two"
            )
        if self.max_tensor_elements is not None and self.max_tensor_elements < 1:
            raise OptionError(f"max_tensor_elements={self.max_tensor_elements}: must be 1 or more")
        if self.target not in TARGETS:
            raise OptionError(f"target={self.target!r}: must be {' or '.join(TARGETS)}")
        if self.form in SINGLE_FORMS and (self.memory_budget or self.max_recompute):
            raise OptionError(
                f"form={self.form!r} cuts convolutions one by one, which meets no budget; "
                "use form='auto'"
            )
        low = self.selection.min_elements
        if low is not None and low < 0:
            raise OptionError(f"min_elements={low}: must be 0 or more")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A region that was cut.

    Attributes:
        nodes: Labels of its nodes.
        op_type: Operator of its convolution, "region" if it has several.
        form: One of `rewriters.planner.FORMS`.
        axis: The tiled axis.
        splits: Number of patches.
        recompute: Work after over before; None if known at run time alone.
        seams: Rows of the first output at which a core begins; empty if known at run time alone.
        rows: Rows of the first output, None if known at run time alone.
        size: Sizes of its first input and output (free dimensions as assumed), bytes of all.
        peak_by_form: Predicted peak while the region runs, bytes per form.
        notes: What the user should know.
        plan: The plan it was cut by.
    """

    nodes: tuple[str, ...]
    op_type: str
    form: str
    axis: int
    splits: int
    recompute: float | None
    seams: tuple[int, ...]
    rows: int | None
    size: ConvSize
    peak_by_form: Mapping[str, int]
    notes: tuple[str, ...]
    plan: RegionPlan

    def seams_at(self, shapes: Shapes) -> tuple[int, tuple[int, ...]] | None:
        """Return the first output's rows and its seams, None if they are not known.

        Args:
            shapes: Shapes of the model's tensors at the sizes in question.
        """
        if self.rows is not None:
            return self.rows, self.seams
        rows = self.plan.region.rows(shapes)
        return None if rows is None else self.plan.seams_at(rows)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A rewritten model and what was done to it.

    Attributes:
        model: The result; the model as it was (shapes fixed if asked for) if nothing was cut.
        rewritten: Regions that were cut.
        refused: Convolutions left alone, each with its reason.
        engine: The engine that memory is predicted for, `rewriters.activation.ENGINES`.
        before: Predicted peak activation of the model.
        after: The same of the result.
        after_by_form: The same with every region in one form, bytes.
        assumed: Sizes that free dimensions were counted as in these predictions.
        sizes: Sizes of every convolution of the main graph, by label.
        already: The model held a plan and was left alone.
        weighed: Figures of every plan of regions that was weighed.
        recompute: Work after over before, None if it is not known.
        plan: What was done, as `planner.plan_data`.
        defaults: Predicted peaks before and after at ONNX Runtime's default session options, None
            where another engine is in view, or they are unknown.
        fits: The model keeps the memory budget as it is, so nothing was cut.
        reasons: What holds the peak where nothing was cut, the most bytes first.
        unknown: Why the peak is unknown, None if it is known.
        data_sized: Activations whose sizes depend on the data, counted as nothing.
        folded: What was folded into weights that the clones of a convolution share.
        unfixed: Predicted peak of the model as it was given, at the sizes that were fixed, bytes;
            None where that changes nothing. An engine that knows sizes when it loads a model may
            lay it out otherwise.
    """

    model: onnx.ModelProto
    rewritten: tuple[Rewritten, ...]
    refused: tuple[Refusal, ...]
    engine: str
    before: Peak
    after: Peak
    after_by_form: Mapping[str, int]
    assumed: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, ConvSize]
    already: bool = False
    weighed: tuple[Candidate, ...] = ()
    recompute: float | None = None
    plan: Mapping[str, Any] | None = None
    defaults: tuple[int, int] | None = None
    fits: bool = False
    reasons: tuple[Reason, ...] = ()
    unknown: Reason | None = None
    data_sized: tuple[str, ...] = ()
    folded: Folded = field(default_factory=Folded)
    unfixed: int | None = None


def analyse_memory(loaded: Loaded, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the predicted peak activation at the given input sizes, None if it is unknown.

    Args:
        loaded: A model; not changed.
        shapes: Sizes of inputs with free dimensions.
    """
    slim = skeleton(loaded)
    fix_shapes(slim, shapes)
    model = onnx.ModelProto()
    model.CopyFrom(slim)
    found = analyse(model, slim, allow_custom_ops=True).ideal_peak
    return None if found.unknown else found.bytes


def _look(loaded: Loaded, options: Options) -> tuple[Analysis, dict[int, str]]:
    """Analyse a copy of a model without its weights; return the names of its nodes, too."""
    if options.upgrade_opset is not None:
        loaded = Loaded(upgrade(loaded.model, options.upgrade_opset), loaded.folder)
    slim, copy = skeleton(loaded), onnx.ModelProto()
    _fix(slim, options)
    copy.CopyFrom(slim)
    return _analyse(copy, slim, options), node_labels(copy.graph)


def inspection_of(loaded: Loaded, options: Options) -> Inspection:
    """Return what holds a model's memory and what could be cut; the model is not changed.

    Args:
        loaded: The model; external weights stay on disk.
        options: Shapes, axis and target are looked at.
    """
    analysis, labels = _look(loaded, options)
    left = "the model was rewritten before (it holds a plan)" if _holds_plan(loaded.model) else ""
    if not left and analysis.facts.opset < _OLDEST_OPSET:
        left = _TOO_OLD.format(analysis.facts.opset)
    limits = replace(options.limits, splits=_MOST_SPLITS, recompute=options.max_recompute or inf)
    engine = TARGETS[options.target]
    return inspect_model(analysis, options.axes[0], engine, labels, limits, left)


def unknown_of(loaded: Loaded, options: Options) -> Reason | None:
    """Return why a model's peak is unknown, and what to do; None if it is known.

    Args:
        loaded: The model; not changed.
        options: As for `pareto_of`.
    """
    analysis, labels = _look(loaded, options)
    known = not analysis.predict(None, TARGETS[options.target]).unknown
    return None if known else unknown_sizes(analysis, labels)


def pareto_of(loaded: Loaded, options: Options) -> list[Candidate]:
    """Return plans of ever lower peak and ever more work; the model is not changed.

    Args:
        loaded: The model; external weights stay on disk.
        options: As for `rewrite_model`; form, splits, budget and plan are not looked at.

    Returns:
        The model as it is first; alone where its peak is unknown (`Candidate.unknown`).

    Raises:
        OptionError: Both axes are in question, the model was rewritten before, or its opset is too
            old to be cut.
    """
    check_one_axis(options)
    if _holds_plan(loaded.model):
        raise OptionError("the model was rewritten before (it holds a plan); give the original")
    analysis, labels = _look(loaded, options)
    if analysis.facts.opset < _OLDEST_OPSET:
        raise OptionError(_TOO_OLD.format(analysis.facts.opset))
    kept, _ = _kept(analysis, options, labels, _sizes(analysis, labels))
    limits = replace(options.limits, splits=_MOST_SPLITS, recompute=options.max_recompute or inf)
    return pareto(analysis, limits, options.axes[0], TARGETS[options.target], kept, labels)


def check_one_axis(options: Options) -> None:
    """Refuse two axes where a curve is wanted.

    Raises:
        OptionError: Both are in question.
    """
    if len(options.axes) > 1:
        raise OptionError("axis='auto': a curve is along one axis; name height or width")


def _holds_plan(model: onnx.ModelProto) -> bool:
    return any(entry.key == METADATA_KEY for entry in model.metadata_props)


def _fix(model: onnx.ModelProto, options: Options) -> None:
    """Fix what the user gave one size for, in place."""
    fixed: dict[str, Sequence[int | None]] = dict(options.shapes)
    for name, sizes in options.ranges.items():
        if any(not 1 <= low <= high for low, high in sizes):
            raise OptionError(
                f"shapes[{name!r}]: a range goes from 1 or more to no less, as 256 to 4096"
            )
        fixed[name] = [low if low == high else None for low, high in sizes]
    if fixed:
        fix_shapes(model, fixed)


def _analyse(model: onnx.ModelProto, slim: onnx.ModelProto, options: Options) -> Analysis:
    largest = {name: [high for _, high in sizes] for name, sizes in options.ranges.items()}
    found = analyse(model, slim, allow_custom_ops=options.allow_custom_ops, largest=largest)
    return replace(found, folds=options.fold)


def _sizes(analysis: Analysis, labels: Mapping[int, str]) -> dict[str, ConvSize]:
    graph = analysis.facts.graph
    return {
        labels[position]: conv_size(graph.node[position], analysis.sizing)
        for position in candidates(graph)
    }


@dataclass(frozen=True)
class _Decision:
    """What is to be cut.

    Attributes:
        drafts: Regions.
        refused: Convolutions left alone.
        forms: Per form that was weighed the regions in it.
        peaks: Per place of a region and form the predicted peak of the region alone.
        weighed: Plans that were weighed.
        recompute: Work after over before.
        order: Name of the order of the nodes, `rewriters.search.turns_of`.
        turns: When each node is wanted to run, by position; None for the order of the file.
        axis: The axis that is cut.
        reasons: What holds the peak where nothing is cut.
    """

    drafts: Sequence[Draft]
    refused: Sequence[Refusal]
    forms: Mapping[str, Sequence[Draft]] = field(default_factory=dict)
    peaks: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    weighed: tuple[Candidate, ...] = ()
    recompute: float | None = None
    order: str = "file"
    turns: list[int] | None = None
    axis: str | int = "height"
    reasons: tuple[Reason, ...] = ()


def rewrite_model(loaded: Loaded, options: Options, progress: Progress | None = None) -> Outcome:
    """Rewrite a model. ``loaded.model`` is changed in place; copy it first to keep it.

    Args:
        loaded: The model; external weights stay on disk.
        options: What to cut, and how.
        progress: Called with (what, done, total) from time to time.

    Raises:
        ModelError: The model is not valid.
        OptionError: An option does not fit the model.
        BudgetError: No plan keeps the memory budget, or nobody can tell.
    """
    model = loaded.model
    report = progress or (lambda what, done, total: None)
    already = _holds_plan(model)
    if options.upgrade_opset is not None and not already:
        model = upgrade(model, options.upgrade_opset)
    engine = TARGETS[options.target]
    report("analysing", 0, 1)
    unfixed = _predict_unfixed(Loaded(model, loaded.folder), options, engine)
    _fix(model, options)
    slim = skeleton(Loaded(model, loaded.folder))
    analysis = _analyse(model, slim, options)
    if options.shapes or options.ranges:
        _declare_outputs(model, analysis.facts.shapes)
    # ONNX Runtime's default session options are shown beside those that are recommended.
    engines = [engine] if options.target != "onnxruntime" else [engine, "onnxruntime"]
    before, *usual_before = analysis.predict_all(None, engines)
    labels = node_labels(model.graph)
    sizes = _sizes(analysis, labels)
    unchanged = Outcome(
        model,
        (),
        (),
        engine,
        before,
        before,
        {},
        analysis.assumed,
        sizes,
        already,
        unfixed=unfixed if unfixed != before.bytes else None,
    )
    unknown = unknown_sizes(analysis, labels) if before.unknown else None
    unchanged = replace(unchanged, unknown=unknown, data_sized=analysis.data_sized)
    fits = _fits_as_it_is(analysis, options, before, labels, already=already)
    if already:
        return replace(unchanged, fits=fits)

    decided = _decide(analysis, options, engine, before, labels, sizes, report)
    refused = (*decided.refused, *_in_bodies(model))
    turns = decided.turns
    order = ordered(analysis, decided.drafts, turns)
    unchanged = replace(
        unchanged, refused=refused, weighed=decided.weighed, reasons=decided.reasons
    )
    if not decided.drafts:
        return replace(unchanged, fits=fits)
    if order is None:
        raise OptionError("the regions depend on each other in a circle; cut fewer of them")
    found_after = predict_all(analysis, decided.drafts, engines, turns)
    after = found_after[0] if found_after else None
    by_form = {}
    for done_forms, (form, drafts) in enumerate(decided.forms.items()):
        report("splicing", done_forms, len(decided.forms) + 1)
        same = all(map(is_, drafts, decided.drafts)) and len(drafts) == len(decided.drafts)
        found = after if same else predict(analysis, drafts, engine, turns)
        if found is not None and not found.unknown:
            by_form[form] = found.bytes
    _check_budget(options, after)
    defaults = None
    if usual_before and found_after and not usual_before[0].unknown + found_after[1].unknown:
        defaults = usual_before[0].bytes, found_after[1].bytes
    report("splicing", len(decided.forms), len(decided.forms) + 1)
    done = tuple(_describe(entry, labels, sizes, analysis, decided) for entry in decided.drafts)
    plan = plan_data(
        decided.axis,
        decided.order,
        [(e.plan, e.form, r.nodes) for e, r in zip(decided.drafts, done, strict=True)],
        options.target,
    )
    remaining = {
        n for item in order if isinstance(item, int) for n in model.graph.node[item].output
    }
    gone = {name for node in model.graph.node for name in node.output} - remaining
    gone -= {name for entry in decided.drafts for name in entry.fragment.makes}
    splice(model, order)
    move_into_bodies(model, {name for entry in decided.drafts for name in entry.fragment.loops})
    drop_unused_value_info(model.graph, gone)
    reads = {name for entry in decided.drafts for name in entry.fragment.reads}
    correct_claims(model.graph, analysis.facts.shapes, reads)
    folded = Folded()
    if options.fold:
        made = {n.name for entry in decided.drafts for n in entry.fragment.export()[0]}
        folded = fold_clones(model, made, loaded.folder)
    record(model, METADATA_KEY, plan)
    if options.target in _RUN_UNDER and options.by_region:
        record(model, SESSION_OPTIONS_KEY, _RUN_UNDER[options.target])
    check(skeleton(Loaded(model, loaded.folder)), allow_custom_ops=options.allow_custom_ops)
    index(model)
    return replace(
        unchanged,
        rewritten=done,
        after=after or replace(before, unknown=max(1, before.unknown)),
        after_by_form=by_form,
        recompute=decided.recompute,
        plan=plan,
        defaults=defaults,
        folded=folded,
    )


def _predict_unfixed(loaded: Loaded, options: Options, engine: str) -> int | None:
    """Return the predicted peak at the sizes that are to be fixed while they are free still."""
    sizes: dict[str, tuple[tuple[int, int], ...]] = dict(options.ranges)
    sizes |= {name: tuple((size, size) for size in dims) for name, dims in options.shapes.items()}
    if not any(low == high for pairs in sizes.values() for low, high in pairs):
        return None
    slim, copy = skeleton(loaded), onnx.ModelProto()
    copy.CopyFrom(slim)
    checked = onnx.ModelProto()
    checked.CopyFrom(slim)
    _fix(checked, options)  # what does not fit is refused here
    found = _analyse(copy, slim, replace(options, ranges=sizes)).predict(None, engine)
    return None if found.unknown else found.bytes


def _fits_as_it_is(
    analysis: Analysis,
    options: Options,
    before: Peak,
    labels: Mapping[int, str],
    *,
    already: bool,
) -> bool:
    """Tell whether a model keeps the budget that is given as it is.

    Raises:
        BudgetError: It has to be cut for that and cannot be, or nobody can tell.
    """
    budget, most = options.memory_budget, options.max_tensor_elements
    if before.unknown and (budget is not None or most is not None):
        found = unknown_sizes(analysis, labels)
        raise BudgetError(
            "nobody can tell whether a budget is kept, as the predicted peak is unknown; "
            f"{found.reason}: {found.advice}"
        )
    needs = None
    if budget is not None and before.need > budget:
        needs = f"{size_text(before.need)}, the budget is {size_text(budget)}"
    elements = [prod(dims) for name in analysis.bytes if (dims := _sized(analysis, name))]
    if most is not None and max(elements, default=0) > most:
        needs = needs or f"a tensor of {max(elements)} elements, {most} are asked for"
    if needs is not None and already:
        raise BudgetError(
            f"the model was rewritten before (it holds a plan) and is not cut again, and needs "
            f"{needs}; give the original"
        )
    if needs is not None and analysis.facts.opset < _OLDEST_OPSET:
        raise BudgetError(f"{_TOO_OLD.format(analysis.facts.opset)}; as it is it needs {needs}")
    return budget is not None and needs is None


def _sized(analysis: Analysis, name: str) -> tuple[int, ...]:
    """Return a tensor's shape, nothing where any of it is unknown."""
    dims = analysis.sizing.dims.get(name) or ()
    return () if None in dims else tuple(size or 0 for size in dims)


def _check_budget(options: Options, after: Peak | None) -> None:
    """Hold a result against the budget; a plan that is given was made for another one.

    Raises:
        BudgetError: It is not kept, or nobody can tell.
    """
    if options.memory_budget is None:
        return
    if after is None or after.unknown:
        raise BudgetError("nobody can tell whether the budget is kept: sizes are unknown")
    if after.need > options.memory_budget:
        raise BudgetError(
            f"the plan needs {size_text(after.need)}, the budget is "
            f"{size_text(options.memory_budget)}; leave one of the two out"
        )


def _decide(
    analysis: Analysis,
    options: Options,
    engine: str,
    before: Peak,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
    report: Progress,
) -> _Decision:
    facts = analysis.facts
    if facts.opset < _OLDEST_OPSET:
        reason = _TOO_OLD.format(facts.opset)
        return _Decision(
            (), [Refusal(labels[at], reason, "opset-too-old") for at in candidates(facts.graph)]
        )
    if options.plan is not None:
        drafts, turns = apply_plan(analysis, options.plan, labels, engine)
        return _Decision(
            drafts, (), order=options.plan["order"], turns=turns, axis=options.plan["axis"]
        )
    if not options.by_region:
        found = cut_singles(
            analysis,
            options.selection,
            options.axes[0],
            options.patches,
            options.form,
            labels,
            sizes,
            report,
        )
        return _Decision(
            found.drafts, found.refused, found.forms, found.peaks, axis=options.axes[0]
        )
    kept, refused = _kept(analysis, options, labels, sizes)
    axis, cut = _best_axis(analysis, options, engine, kept, labels, report)
    inside = {at for entry in cut.drafts for at in entry.plan.region.nodes}
    failed = {refusal.node: refusal for refusal in cut.refused}
    reasons: tuple[Reason, ...] = ()
    if not cut.drafts:
        reasons = reasons_of(
            analysis, before, cut.links, cut.reasons, kept, cut.refused, labels, engine
        )
    useless = _useless(analysis, options, before, reasons, cut=bool(cut.drafts))
    for at in candidates(facts.graph):
        if at in inside or at in kept:
            continue
        if labels[at] in failed:
            refused.append(failed[labels[at]])
        elif sizes[labels[at]].bytes is None and (at in cut.links or at not in cut.reasons):
            reason = "its size is unknown"
            if analysis.assumed:
                reason += f"; {size_advice(analysis)}"
            refused.append(Refusal(labels[at], reason, "size-unknown"))
        elif at in cut.links:
            refused.append(replace(useless, node=labels[at]))
        else:
            reason = cut.reasons.get(at, "where its rows are is unknown")
            refused.append(Refusal(labels[at], reason, "not-provable"))
    return _Decision(
        cut.drafts,
        refused,
        cut.forms,
        weighed=cut.weighed,
        recompute=cut.recompute,
        order=cut.order,
        turns=cut.turns,
        axis=axis,
        reasons=reasons,
    )


def _useless(
    analysis: Analysis, options: Options, before: Peak, reasons: Sequence[Reason], *, cut: bool
) -> Refusal:
    """Return why a convolution that could be in a region is in none; it names no node yet."""
    if cut:
        return Refusal("", "no region with it lowers the peak further", "no-gain")
    if before.unknown:
        words = "the peak is unknown, as sizes elsewhere are"
        return Refusal("", words, "size-unknown")
    if options.memory_budget is not None:
        return Refusal("", "the model keeps the budget as it is", "no-gain")
    words = "cutting it lowers no peak"
    if reasons:
        held = f"{size_text(reasons[0].bytes or 0)} of {size_text(before.need)}"
        words += f"; {reasons[0].holds} {held}"
    return Refusal("", words, "no-gain")


def _best_axis(
    analysis: Analysis,
    options: Options,
    engine: str,
    kept: frozenset[int],
    labels: Mapping[int, str],
    report: Progress,
) -> tuple[str | int, Regional]:
    """Cut regions along each axis in question; return the better one and what was done.

    Better is, under a budget, less predicted time; else a lower predicted peak.
    """
    found: list[tuple[float, str | int, Regional]] = []
    failed: BudgetError | None = None
    for axis in options.axes:
        try:
            cut = cut_regions(
                analysis, options.limits, axis, options.form, engine, kept, labels, report
            )
        except BudgetError as error:
            failed = failed or error
            continue
        taken = next((candidate for candidate in cut.weighed if candidate.taken), None)
        peak = inf if taken is None else float(taken.peak)
        found.append((peak if options.memory_budget is None else cut.time, axis, cut))
    if failed is not None and not found:
        raise failed
    _, axis, best = min(found, key=lambda entry: entry[0])
    return axis, best


def _kept(
    analysis: Analysis,
    options: Options,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
) -> tuple[frozenset[int], list[Refusal]]:
    """Return the nodes that the user wants left as they are, and why."""
    chosen = options.selection
    kept = {
        at
        for at, label in labels.items()
        if any(fnmatchcase(label, pattern) for pattern in chosen.exclude)
    }
    refused = []
    for position in candidates(analysis.facts.graph):
        label = labels[position]
        if chosen != Selection():
            reason = select(label, sizes[label], 0, chosen)
            if reason is not None and reason.code != "size-unknown":
                kept.add(position)
                refused.append(replace(reason, node=label))
    return frozenset(kept), refused


def _in_bodies(model: onnx.ModelProto) -> Iterator[Refusal]:
    for inner, place in convolutions_in_bodies(model):
        yield Refusal(inner, f"it lies in {place}", "in-subgraph")


def _describe(
    entry: Draft,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
    analysis: Analysis,
    decided: _Decision,
) -> Rewritten:
    plan, region, graph = entry.plan, entry.plan.region, analysis.facts.graph
    convs = [at for at in region.nodes if labels[at] in sizes]
    one = len(convs) == 1 and entry.form in SINGLE_FORMS
    return Rewritten(
        nodes=tuple(labels[position] for position in region.nodes),
        op_type=graph.node[convs[0]].op_type if one else "region",
        form=entry.form,
        axis=region.outputs[0].axis,
        splits=plan.splits,
        recompute=entry.recompute(analysis),
        seams=() if plan.tiling is None else plan.tiling.seams(),
        rows=None if plan.tiling is None else plan.extents[0].rows,
        size=sizes[labels[convs[0]]] if one else region_size(region, analysis.sizing),
        peak_by_form=decided.peaks.get(entry.place, {}),
        notes=plan.notes,
        plan=plan,
    )


def node_labels(graph: onnx.GraphProto) -> dict[int, str]:
    """Return a label per node, unique: its name, or its output's where that is not."""
    count = Counter(node.name for node in graph.node)
    taken = {name for name, times in count.items() if name and times == 1}
    labels = {}
    for position, node in enumerate(graph.node):
        label = node.name
        if not label or count[label] > 1:
            # Node and tensor names are two spaces: an output may be called like another node.
            base = next((name for name in node.output if name), node.op_type)
            free = (f"{base}_{number}" for number in count_from(2))
            label = base if base not in taken else next(n for n in free if n not in taken)
            taken.add(label)
        labels[position] = label
    return labels


def _declare_outputs(model: onnx.ModelProto, facts: Shapes) -> None:
    """Write what fixing the inputs made known into the outputs' shapes, in place."""
    for value in model.graph.output:
        known = facts.dims.get(value.name)
        tensor = value.type.tensor_type
        if known is None or (tensor.HasField("shape") and len(tensor.shape.dim) != len(known)):
            continue
        if not tensor.HasField("shape"):
            for _ in known:
                tensor.shape.dim.add()
        for dim, size in zip(tensor.shape.dim, known, strict=True):
            if size is not None:
                dim.dim_value = size
