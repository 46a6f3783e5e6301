"""The rewrite of a model, from analysis to the spliced graph.

    prepare    opset raised and shapes fixed, where asked for
    analyse    skeleton checked, use-def index, known shapes, sizes of free dimensions assumed
    plan       every convolution: refused with a reason, or a region with a proven tiling
    emit       both forms where the choice is open; the one with the lower predicted peak stays
    splice     regions replaced by their fragments, the plan recorded, the result checked

A model that holds a plan already is left as it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import count as count_from
from math import inf

import onnx

from rewriters.analysis import Analysis, analyse, upgrade
from rewriters.choice import candidates_of
from rewriters.emission import emit
from rewriters.errors import BudgetError, OptionError
from rewriters.fragment import (
    Fragment,
    NameScheme,
    arrange,
    drop_unused_value_info,
    fold,
    splice,
)
from rewriters.graph import Loaded, check, convolutions_in_bodies, index, skeleton
from rewriters.locality import AXES
from rewriters.memory import Peak, Step, peak
from rewriters.planner import FORMS, METADATA_KEY, RegionPlan, plan_json, plan_region
from rewriters.regions import (
    ConvSize,
    Refusal,
    Selection,
    candidates,
    conv_size,
    find_region,
    region_size,
    select,
)
from rewriters.search import Limits
from rewriters.shapes import Shapes, fix_shapes

__all__ = ["Options", "Outcome", "Rewritten", "analyse_memory", "rewrite_model"]

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]

_OLDEST_OPSET = 9
# A graph of more nodes per Conv serves nobody.
_MOST_SPLITS = 4096
_SPLITS = 4
# Without a budget: no more than half as much work again for a lower peak.
_RECOMPUTE = 1.5
_TOO_OLD = f"opset {{}} is older than {_OLDEST_OPSET}; convert it with --upgrade-opset 13"
TARGETS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True, slots=True)
class Options:
    """What to cut, and how.

    Attributes:
        splits: Patches per region, at least 1; with a budget: at most so many. None: 4, or as many
            as the budget asks for.
        form: "batch" and "sequential" cut convolutions one by one, "fused" and "loop" whole
            regions; "auto" chooses between the last two.
        axis: "height", "width", "depth", or a dimension of the tensor (2 or above).
        selection: Which convolutions.
        shapes: Sizes to fix the inputs' free dimensions to.
        upgrade_opset: Version to convert the default domain to first, None to keep it.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.
        memory_budget: Most bytes of activations alive at once, None for as few as can be.
        max_recompute: Most work after over before; None: 1.5 without a budget, else any.
        max_tensor_elements: Most elements of a tensor, None for any number.
        target: The engine whose memory is predicted: "onnxruntime" or "tensorrt".
    """

    splits: int | None = None
    form: str = "auto"
    axis: str | int = "height"
    selection: Selection = field(default_factory=Selection)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    upgrade_opset: int | None = None
    allow_custom_ops: bool = False
    memory_budget: int | None = None
    max_recompute: float | None = None
    max_tensor_elements: int | None = None
    target: str = "onnxruntime"

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
            elements=self.max_tensor_elements,
        )

    @property
    def by_region(self) -> bool:
        """Whether whole regions are cut, not convolutions one by one.

        Who names convolutions and leaves the form open means these convolutions.
        """
        named = self.selection.include or self.selection.min_elements is not None
        free = self.memory_budget is None and self.max_tensor_elements is None
        return self.form in ("fused", "loop") or (self.form == "auto" and not (named and free))

    def __post_init__(self) -> None:
        if self.splits is not None and self.splits < 1:
            raise OptionError(f"--splits {self.splits}: the number of patches is at least 1")
        if self.splits is not None and self.splits > _MOST_SPLITS:
            raise OptionError(f"--splits {self.splits}: at most {_MOST_SPLITS} patches")
        if self.form not in ("auto", *FORMS):
            raise OptionError(f"--form {self.form}: must be auto, {' or '.join(FORMS)}")
        if isinstance(self.axis, str) and self.axis not in AXES:
            raise OptionError(f"--axis {self.axis}: must be height, width, depth or an index")
        if isinstance(self.axis, int) and self.axis < 2:
            raise OptionError(
                f"--axis {self.axis}: dimensions 0 and 1 are batch and channels; spatial ones "
                "begin at 2"
            )
        if self.memory_budget is not None and self.memory_budget < 1:
            raise OptionError(f"--memory-budget {self.memory_budget}: must be 1 byte or more")
        if self.max_recompute is not None and not self.max_recompute >= 1:
            raise OptionError(f"--max-recompute {self.max_recompute}: must be 1 or more")
        if self.max_tensor_elements is not None and self.max_tensor_elements < 1:
            raise OptionError(
                f"--max-tensor-elements {self.max_tensor_elements}: must be 1 or more"
            )
        if self.target not in TARGETS:
            raise OptionError(f"--target {self.target}: must be {' or '.join(TARGETS)}")
        if self.form in ("batch", "sequential") and (self.memory_budget or self.max_recompute):
            raise OptionError(
                f"--form {self.form} cuts convolutions one by one, which meets no budget; "
                "use --form fused, loop or auto"
            )
        low = self.selection.min_elements
        if low is not None and low < 0:
            raise OptionError(f"--min-elements {low}: must be 0 or more")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A region that was cut.

    Attributes:
        nodes: Labels of its nodes.
        op_type: Operator of its convolution.
        form: "batch" or "sequential".
        axis: The tiled axis.
        splits: Number of patches.
        recompute: Output rows computed after over before; None if known at run time alone.
        seams: Output rows at which a core begins; empty if known at run time alone.
        rows: Output rows of the region, None if known at run time alone.
        size: Sizes of the convolution's input and output (free dimensions as assumed).
        peak_by_form: Predicted peak while the region runs, bytes per form.
        notes: What the user should know.
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """A rewritten model and what was done to it.

    Attributes:
        model: The result; the model as it was (shapes fixed if asked for) if nothing was cut.
        rewritten: Regions that were cut.
        refused: Convolutions left alone, each with its reason.
        before: Predicted peak activation of the model.
        after: The same of the result.
        after_by_form: The same with every region in one form, bytes.
        assumed: Sizes that free dimensions were counted as in these predictions.
        sizes: Sizes of every convolution of the main graph, by label.
        already: The model held a plan and was left alone.
    """

    model: onnx.ModelProto
    rewritten: tuple[Rewritten, ...]
    refused: tuple[Refusal, ...]
    before: Peak
    after: Peak
    after_by_form: Mapping[str, int]
    assumed: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, ConvSize]
    already: bool = False


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
    analysis = analyse(model, slim, allow_custom_ops=True)
    found = analysis.peak(analysis.steps, {})
    return None if found.unknown else found.bytes


def rewrite_model(loaded: Loaded, options: Options, progress: Progress | None = None) -> Outcome:
    """Rewrite a model. ``loaded.model`` is changed in place; copy it first to keep it.

    Args:
        loaded: The model; external weights stay on disk.
        options: What to cut, and how.
        progress: Called with (what, done, total) from time to time.

    Raises:
        ModelError: The model is not valid.
        OptionError: An option does not fit the model.
    """
    model = loaded.model
    report = progress or (lambda what, done, total: None)
    already = any(entry.key == METADATA_KEY for entry in model.metadata_props)
    if options.upgrade_opset is not None and not already:
        model = upgrade(model, options.upgrade_opset)
    if options.shapes:
        fix_shapes(model, options.shapes)
    report("analysing", 0, 1)
    slim = skeleton(Loaded(model, loaded.folder))
    analysis = analyse(model, slim, allow_custom_ops=options.allow_custom_ops)
    if options.shapes:
        _declare_outputs(model, analysis.facts.shapes)
    before = analysis.peak(analysis.steps, {})
    labels = _labels(model.graph)
    sizes = {
        labels[position]: conv_size(model.graph.node[position], analysis.sizing)
        for position in candidates(model.graph)
    }
    unchanged = Outcome(model, (), (), before, before, {}, analysis.assumed, sizes, already)
    if already:
        return unchanged

    if options.by_region:
        emitted, refused = _cut_regions(analysis, options, labels, sizes, report)
    else:
        plans, refused = _plan(model, analysis, options, before.bytes, labels, sizes, report)
        emitted = _emit(plans, analysis, options, labels, report)
    refused = [*refused, *_in_bodies(model)]
    order = _arrange(analysis, emitted)
    if not emitted or order is None:
        return replace(unchanged, refused=tuple(refused))
    after = _peak_after(analysis, emitted, order)
    by_form = {}
    for form in FORMS:
        if all(form in entry.scored for entry in emitted.values()):
            scored = {at: replace(e, fragment=e.scored[form]) for at, e in emitted.items()}
            by_form[form] = _peak_after(analysis, scored, None).bytes
    report("splicing", 0, 1)
    remaining = {name for item in order if isinstance(item, int) for name in _outputs(model, item)}
    gone = {name for node in model.graph.node for name in node.output} - remaining
    gone -= {name for entry in emitted.values() for name in entry.fragment.makes}
    done = tuple(
        _describe(entry, model.graph, labels, sizes, analysis) for entry in emitted.values()
    )
    splice(model, order)
    drop_unused_value_info(model.graph, gone)
    recorded = [(e.plan, e.form, r.nodes) for e, r in zip(emitted.values(), done, strict=True)]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, plan_json(recorded)
    check(skeleton(Loaded(model, loaded.folder)), allow_custom_ops=options.allow_custom_ops)
    index(model)
    return Outcome(model, done, tuple(refused), before, after, by_form, analysis.assumed, sizes)


def _in_bodies(model: onnx.ModelProto) -> Iterator[Refusal]:
    for inner, place in convolutions_in_bodies(model):
        yield Refusal(inner, f"it lies in {place}", "in-subgraph")


def _arrange(analysis: Analysis, emitted: Mapping[int, _Emitted]) -> list[int | Fragment] | None:
    """Arrange fragments in the graph; Shape nodes of tensors that are gone become constants."""
    fragments = {at: entry.fragment for at, entry in emitted.items()}
    facts = analysis.facts
    made = {name for fragment in fragments.values() for name in fragment.makes}
    for fragment in [*fragments.values()]:
        for position in fragment.covers:
            for name in set(facts.graph.node[position].output) - made:
                for user in analysis.index.users.get(name, ()):
                    node = facts.graph.node[user]
                    if node.op_type == "Shape" and user not in fragments:
                        value = facts.constants.array(node.output[0])
                        if value is not None:
                            fragments[user] = fold(user, node, value, fragment)
    return arrange(analysis.index, fragments)


def _cut_regions(
    analysis: Analysis,
    options: Options,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
    report: Progress,
) -> tuple[dict[int, _Emitted], list[Refusal]]:
    """Choose regions, emit them, and say why other convolutions were left alone."""
    facts = analysis.facts
    if facts.opset < _OLDEST_OPSET:
        return {}, [
            Refusal(labels[at], _TOO_OLD.format(facts.opset), "opset-too-old")
            for at in candidates(facts.graph)
        ]
    report("planning", 0, 1)
    kept, refused = _kept(analysis, options, labels, sizes)
    found = candidates_of(analysis, options.axis, kept, count_inputs=False)
    chosen = found.choose(options.limits, labels)
    if chosen is None:
        raise BudgetError("the budget cannot be met")
    names = NameScheme.avoiding(analysis.index.names)
    emitted: dict[int, _Emitted] = {}
    for plan in chosen.regions:
        base = plan.region.label
        scored = {}
        for form in ("fused", "loop") if options.form == "auto" else (options.form,):
            scored[form] = emit(plan, form, facts.graph, analysis.sizing, facts.opset, names, base)
        form = next(iter(scored))
        fragment = scored[form]
        if analysis.assumes:
            # What is written holds no size that is merely assumed.
            fragment = emit(plan, form, facts.graph, facts.shapes, facts.opset, names, base)
        emitted[plan.region.nodes[-1]] = _Emitted(plan, form, fragment, scored, {})
    cut = {at for plan in chosen.regions for at in plan.region.nodes}
    for at in candidates(facts.graph):
        if at in cut or at in kept:
            continue
        if at in found.links:
            refused.append(Refusal(labels[at], "cutting it would not lower the peak", "no-gain"))
        else:
            reason = found.reasons.get(at, "its axes are unknown")
            refused.append(Refusal(labels[at], reason, "not-provable"))
    return emitted, refused


def _kept(
    analysis: Analysis,
    options: Options,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
) -> tuple[frozenset[int], list[Refusal]]:
    """Return the nodes that the user wants left as they are, and why."""
    kept, refused = set(), []
    chosen = options.selection
    for position in range(len(analysis.steps)):
        label = labels[position]
        if any(fnmatchcase(label, pattern) for pattern in chosen.exclude):
            kept.add(position)
    for position in candidates(analysis.facts.graph):
        label = labels[position]
        if chosen.include or chosen.exclude or chosen.min_elements is not None:
            reason = select(label, sizes[label], 0, chosen)
            if reason is not None and reason.code != "size-unknown":
                kept.add(position)
                refused.append(replace(reason, node=label))
    return frozenset(kept), refused


def _outputs(model: onnx.ModelProto, position: int) -> Sequence[str]:
    return model.graph.node[position].output


@dataclass(frozen=True)
class _Emitted:
    """A region as it will stand in the model, and as it was weighed.

    Attributes:
        plan: The plan.
        form: The form that was taken.
        fragment: The nodes that take the region's place.
        scored: Per form its nodes at assumed sizes; empty where sizes are unknown.
        peaks: Per form its predicted peak, bytes.
    """

    plan: RegionPlan
    form: str
    fragment: Fragment
    scored: Mapping[str, Fragment]
    peaks: Mapping[str, int]


def _emit(
    plans: Sequence[RegionPlan],
    analysis: Analysis,
    options: Options,
    labels: Mapping[int, str],
    report: Progress,
) -> dict[int, _Emitted]:
    """Emit every planned region; the keys are the positions the fragments stand at."""
    facts = analysis.facts
    names = NameScheme.avoiding(analysis.index.names)
    emitted = {}
    for number, plan in enumerate(plans):
        if number % 64 == 0:
            report("emitting", number, len(plans))
        base = labels[plan.region.nodes[0]] if len(plan.region.nodes) == 1 else plan.region.label
        weighed = _score(plan, analysis, names, base, options)
        scored = {form: fragment for form, (fragment, _) in weighed.items()}
        peaks = {form: local for form, (_, local) in weighed.items()}
        form = options.form if options.form != "auto" else _lowest(peaks)
        if not analysis.assumes and form in scored:
            fragment = scored[form]
        else:
            fragment = emit(plan, form, facts.graph, facts.shapes, facts.opset, names, base)
        emitted[plan.region.nodes[-1]] = _Emitted(plan, form, fragment, scored, peaks)
    return emitted


def _lowest(peaks: Mapping[str, int]) -> str:
    """Return the form with the lower predicted peak, `sequential` where they are equal or unknown.

    `sequential` holds no stack of all windows, so it is the safer guess where sizes are unknown.
    """
    return min(peaks, key=lambda form: (peaks[form], form != "sequential"), default="sequential")


def _describe(
    emitted: _Emitted,
    graph: onnx.GraphProto,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
    analysis: Analysis,
) -> Rewritten:
    plan, tiling = emitted.plan, emitted.plan.tiling
    region = plan.region
    convs = [at for at in region.nodes if labels[at] in sizes]
    size = sizes[labels[convs[0]]] if len(convs) == 1 else region_size(region, analysis.sizing)
    return Rewritten(
        nodes=tuple(labels[position] for position in region.nodes),
        op_type=graph.node[convs[0]].op_type if len(convs) == 1 else "region",
        form=emitted.form,
        axis=region.outputs[0].axis,
        splits=plan.splits,
        recompute=plan.recompute,
        seams=() if tiling is None else tiling.seams(),
        rows=None if tiling is None else plan.extents[0].rows,
        size=size,
        peak_by_form=emitted.peaks,
        notes=plan.notes,
    )


def _labels(graph: onnx.GraphProto) -> dict[int, str]:
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


def _plan(
    model: onnx.ModelProto,
    analysis: Analysis,
    options: Options,
    before: int,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
    report: Progress,
) -> tuple[list[RegionPlan], list[Refusal]]:
    """Decide on every convolution."""
    plans: list[RegionPlan] = []
    refused: list[Refusal] = []
    positions = list(candidates(model.graph))
    for number, position in enumerate(positions):
        if number % 64 == 0:
            report("planning", number, len(positions))
        label = labels[position]
        found = select(label, sizes[label], before, options.selection) or _plan_one(
            analysis, options, position
        )
        if isinstance(found, RegionPlan):
            plans.append(found)
        else:
            refused.append(replace(found, node=label))
    return plans, refused


def _plan_one(analysis: Analysis, options: Options, position: int) -> RegionPlan | Refusal:
    """Plan the region around one convolution that was selected."""
    facts = analysis.facts
    if facts.opset < _OLDEST_OPSET:
        return Refusal(
            "",
            _TOO_OLD.format(facts.opset),
            "opset-too-old",
        )
    region = find_region(facts, position, options.axis)
    if isinstance(region, Refusal):
        return region
    return plan_region(region, facts.shapes, options.patches, facts.opset)


def _score(
    plan: RegionPlan, analysis: Analysis, names: NameScheme, base: str, options: Options
) -> dict[str, tuple[Fragment, int]]:
    """Emit the region in each form at assumed sizes and predict its peak; {} if sizes are unknown.

    Only the asked form is emitted where the choice is not open.
    """
    region, facts = plan.region, analysis.facts
    if plan.tiling is None:
        sized = plan_region(region, analysis.sizing, plan.splits, facts.opset)
        if isinstance(sized, Refusal) or sized.tiling is None:
            return {}
        plan = sized
    outputs = {edge.name for edge in region.outputs}
    inputs = tuple(edge.name for edge in region.inputs)
    for name in inputs:
        later = any(user > region.nodes[-1] for user in analysis.index.users.get(name, ()))
        if later or name in analysis.index.outputs:
            outputs.add(name)
    result = {}
    for form in ("batch", "sequential") if options.form == "auto" else (options.form,):
        fragment = emit(plan, form, facts.graph, analysis.sizing, facts.opset, names, base)
        sizes = {**{name: analysis.bytes.get(name) for name in inputs}, **fragment.sizes}
        found = peak(fragment.steps(), sizes, inputs=inputs, outputs=outputs)
        if found.unknown:
            return {}
        result[form] = (fragment, found.bytes)
    return result


def _peak_after(
    analysis: Analysis,
    emitted: Mapping[int, _Emitted],
    order: Sequence[int | Fragment] | None,
) -> Peak:
    """Return the predicted peak of an arrangement, at assumed sizes.

    Args:
        analysis: The model.
        emitted: Its regions.
        order: `arrange` of the regions' fragments; None: to be found.
    """
    weighed = {id(e.fragment): e.scored.get(e.form, e.fragment) for e in emitted.values()}
    if order is None:
        order = _arrange(analysis, emitted) or ()
    steps: list[Step] = []
    more: dict[str, int | None] = {}
    for item in order:
        if isinstance(item, Fragment):
            fragment = weighed.get(id(item), item)
            steps.extend(fragment.steps())
            more.update(fragment.sizes)
        else:
            steps.append(analysis.steps[item])
    return analysis.peak(steps, more)


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
