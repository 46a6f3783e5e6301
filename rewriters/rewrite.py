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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count as count_from

import onnx
import onnx.version_converter

from rewriters.emission import emit
from rewriters.errors import OptionError
from rewriters.fragment import Fragment, NameScheme, drop_unused_value_info, splice
from rewriters.graph import (
    Index,
    Loaded,
    captured,
    check,
    convolutions_in_bodies,
    index,
    node_label,
    opset_of,
    skeleton,
)
from rewriters.memory import Peak, Step, peak
from rewriters.planner import FORMS, METADATA_KEY, RegionPlan, plan_json, plan_region, recompute_of
from rewriters.regions import (
    AXES,
    ConvSize,
    Refusal,
    Region,
    Selection,
    candidates,
    conv_size,
    find_region,
    select,
)
from rewriters.shapes import Shapes, fix_shapes, infer, nominal_shapes

__all__ = ["Options", "Outcome", "Rewritten", "analyse_memory", "rewrite_model"]

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]

_OLDEST_OPSET = 9
# A graph of more nodes per Conv serves nobody.
_MOST_SPLITS = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """What to cut, and how.

    Attributes:
        splits: Patches per region, at least 1.
        form: "auto", "batch" or "sequential".
        axis: "height", "width", "depth", or a dimension of the tensor (2 or above).
        selection: Which convolutions.
        shapes: Sizes to fix the inputs' free dimensions to.
        upgrade_opset: Version to convert the default domain to first, None to keep it.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.
    """

    splits: int = 4
    form: str = "auto"
    axis: str | int = "height"
    selection: Selection = field(default_factory=Selection)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    upgrade_opset: int | None = None
    allow_custom_ops: bool = False

    def __post_init__(self) -> None:
        if self.splits < 1:
            raise OptionError(f"--splits {self.splits}: the number of patches is at least 1")
        if self.splits > _MOST_SPLITS:
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


@dataclass(frozen=True)
class _Analysis:
    """Everything known of a model before it is changed."""

    index: Index
    opset: int
    facts: Shapes
    sizing: Shapes
    assumed: Mapping[str, tuple[int, ...]]
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    bytes: Mapping[str, int | None]

    def peak(self, steps: Sequence[Step], more: Mapping[str, int | None]) -> Peak:
        return peak(steps, {**self.bytes, **more}, inputs=self.inputs, outputs=self.index.outputs)


def _upgrade(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert the default domain's opset; node metadata the converter drops is put back."""
    old = opset_of(model)
    if not 1 <= version <= onnx.defs.onnx_opset_version():
        raise OptionError(
            f"--upgrade-opset {version}: onnx knows opsets 1 to {onnx.defs.onnx_opset_version()}"
        )
    if model.functions or model.training_info:
        raise OptionError(
            f"--upgrade-opset {version}: onnx's converter drops model-local functions and training "
            "information; inline the functions first (onnx.inliner)"
        )
    if version < old:
        raise OptionError(f"--upgrade-opset {version}: the model is at {old} already")
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, version)
    except Exception as error:
        raise OptionError(
            f"--upgrade-opset {version}: onnx cannot convert the model from {old}: "
            + " ".join(str(error).split())[:200]
        ) from error
    origin = {name: node for node in model.graph.node for name in node.output if name}
    for node in converted.graph.node:
        source = origin.get(node.output[0]) if node.output else None
        if source is not None and source.op_type == node.op_type:
            del node.metadata_props[:]
            node.metadata_props.extend(source.metadata_props)
            node.doc_string = source.doc_string
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    return converted


def _analyse(model: onnx.ModelProto, slim: onnx.ModelProto, options: Options) -> _Analysis:
    """Analyse a model, given with its skeleton, which is changed in place."""
    checked = onnx.ModelProto()
    checked.CopyFrom(slim)
    check(checked, allow_custom_ops=options.allow_custom_ops)
    found = index(model)
    needed = [model.graph.node[position].input[0] for position in candidates(model.graph)]
    assumed = nominal_shapes(model)
    sizing_slim = onnx.ModelProto()
    sizing_slim.CopyFrom(slim)
    facts = infer(slim, needed=needed)
    sizing = facts
    if assumed or any(None in facts.dims.get(name, (None,)) for name in needed):
        fix_shapes(sizing_slim, assumed)
        sizing = infer(sizing_slim, needed=needed, estimate=True)
    steps = []
    for node in model.graph.node:
        reads = (*(name for name in node.input if name), *captured(node))
        steps.append(
            Step(node_label(node), node.op_type, reads, tuple(n for n in node.output if n))
        )
    inputs = tuple(v.name for v in model.graph.input if v.name not in found.constants)
    activations = [*inputs, *(name for step in steps for name in step.makes)]
    sizes = {name: sizing.bytes(name) for name in activations if name not in found.constants}
    return _Analysis(found, opset_of(model), facts, sizing, assumed, tuple(steps), inputs, sizes)


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
    analysis = _analyse(model, slim, Options(allow_custom_ops=True))
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
        model = _upgrade(model, options.upgrade_opset)
    if options.shapes:
        fix_shapes(model, options.shapes)
    report("analysing", 0, 1)
    analysis = _analyse(model, skeleton(Loaded(model, loaded.folder)), options)
    if options.shapes:
        _declare_outputs(model, analysis.facts)
    before = analysis.peak(analysis.steps, {})
    labels = _labels(model.graph)
    sizes = {
        labels[position]: conv_size(model.graph.node[position], analysis.sizing)
        for position in candidates(model.graph)
    }
    unchanged = Outcome(model, (), (), before, before, {}, analysis.assumed, sizes, already)
    if already:
        return unchanged

    plans, refused = _plan(model, analysis, options, before.bytes, labels, sizes, report)
    if not plans:
        return replace(unchanged, refused=tuple(refused))

    emitted = _emit(plans, model.graph, analysis, options, labels, report)
    removed = _removed(plans, analysis.index, [entry.fragment for entry in emitted.values()])
    after = _peak_after(analysis, {at: e.scored.get(e.form) for at, e in emitted.items()}, removed)
    by_form = {
        form: _peak_after(
            analysis, {at: e.scored[form] for at, e in emitted.items()}, removed
        ).bytes
        for form in FORMS
        if all(form in e.scored for e in emitted.values())
    }
    report("splicing", 0, 1)
    gone = {name for position in removed for name in model.graph.node[position].output}
    done = tuple(
        _describe(entry, model.graph.node[entry.plan.region.conv].op_type, labels, sizes)
        for entry in emitted.values()
    )
    splice(model, {at: entry.fragment for at, entry in emitted.items()}, removed)
    drop_unused_value_info(model.graph, gone - {plan.region.output for plan in plans})
    recorded = [(e.plan, e.form, r.nodes) for e, r in zip(emitted.values(), done, strict=True)]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, plan_json(recorded)
    check(skeleton(Loaded(model, loaded.folder)), allow_custom_ops=options.allow_custom_ops)
    index(model)
    return Outcome(model, done, tuple(refused), before, after, by_form, analysis.assumed, sizes)


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
    graph: onnx.GraphProto,
    analysis: _Analysis,
    options: Options,
    labels: Mapping[int, str],
    report: Progress,
) -> dict[int, _Emitted]:
    """Emit every planned region; the keys are the positions the fragments stand at."""
    names = NameScheme.avoiding(analysis.index.names)
    emitted = {}
    for number, plan in enumerate(plans):
        if number % 64 == 0:
            report("emitting", number, len(plans))
        base = labels[plan.region.conv]
        weighed = _score(plan, graph, analysis, names, base, options)
        scored = {form: fragment for form, (fragment, _) in weighed.items()}
        peaks = {form: local for form, (_, local) in weighed.items()}
        form = options.form if options.form != "auto" else _lowest(peaks)
        if analysis.sizing is analysis.facts and form in scored:
            fragment = scored[form]
        else:
            fragment = emit(plan, form, graph, analysis.facts, analysis.opset, names, base)
        emitted[plan.region.nodes[-1]] = _Emitted(plan, form, fragment, scored, peaks)
    return emitted


def _lowest(peaks: Mapping[str, int]) -> str:
    """Return the form with the lower predicted peak, `sequential` where they are equal or unknown.

    `sequential` holds no stack of all windows, so it is the safer guess where sizes are unknown.
    """
    return min(peaks, key=lambda form: (peaks[form], form != "sequential"), default="sequential")


def _describe(
    emitted: _Emitted, op_type: str, labels: Mapping[int, str], sizes: Mapping[str, ConvSize]
) -> Rewritten:
    plan, tiling = emitted.plan, emitted.plan.tiling
    return Rewritten(
        nodes=tuple(labels[position] for position in plan.region.nodes),
        op_type=op_type,
        form=emitted.form,
        axis=plan.region.axis,
        splits=plan.splits,
        recompute=None if tiling is None else recompute_of(plan.extent, tiling),
        seams=() if tiling is None else tiling.seams,
        rows=None if tiling is None else plan.extent.rows,
        size=sizes[labels[plan.region.conv]],
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
    analysis: _Analysis,
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
    for inner, place in convolutions_in_bodies(model):
        refused.append(Refusal(inner, f"it lies in {place}", "in-subgraph"))
    return plans, refused


def _plan_one(analysis: _Analysis, options: Options, position: int) -> RegionPlan | Refusal:
    """Plan the region around one convolution that was selected."""
    if analysis.opset < _OLDEST_OPSET:
        return Refusal(
            "",
            f"opset {analysis.opset} is older than {_OLDEST_OPSET}; convert it with "
            "--upgrade-opset 13",
            "opset-too-old",
        )
    region = find_region(analysis.index, analysis.facts, analysis.opset, position, options.axis)
    if isinstance(region, Refusal):
        return region
    if not analysis.facts.doubtful.isdisjoint((region.input, region.output)):
        return Refusal(
            "",
            "runtimes disagree on the size of its input (a fractional Resize, a pool with "
            "ceil_mode or a narrow Cast before it)",
            "size-doubtful",
        )
    rows = _rows(analysis.facts, region, region.input)
    plan = plan_region(region, rows, options.splits, analysis.opset)
    if isinstance(plan, RegionPlan) and plan.tiling is not None:
        inferred = _rows(analysis.facts, region, region.output)
        if inferred not in (None, plan.extent.rows):
            return Refusal(
                "",
                f"shape inference gives it {inferred} output rows, its own arithmetic "
                f"{plan.extent.rows}",
                "not-provable",
            )
    return plan


def _rows(shapes: Shapes, region: Region, name: str) -> int | None:
    """Return the size of a region's tensor along the tiled axis, None if it is unknown."""
    dims = shapes.dims.get(name)
    return dims[region.axis] if dims is not None and len(dims) == region.rank else None


def _score(
    plan: RegionPlan,
    graph: onnx.GraphProto,
    analysis: _Analysis,
    names: NameScheme,
    base: str,
    options: Options,
) -> dict[str, tuple[Fragment, int]]:
    """Emit the region in each form at assumed sizes and predict its peak; {} if sizes are unknown.

    Only the asked form is emitted where the choice is not open.
    """
    region = plan.region
    if plan.tiling is None:
        rows = _rows(analysis.sizing, region, region.input)
        if rows is None:
            return {}
        sized = plan_region(region, rows, plan.splits, analysis.opset)
        if isinstance(sized, Refusal):
            return {}
        plan = sized
    outputs = {region.output}
    later = [user for user in analysis.index.users.get(region.input, ()) if user > region.nodes[-1]]
    if later or region.input in analysis.index.outputs:
        outputs.add(region.input)
    result = {}
    for form in FORMS if options.form == "auto" else (options.form,):
        fragment = emit(plan, form, graph, analysis.sizing, analysis.opset, names, base)
        sizes = {region.input: analysis.bytes.get(region.input), **fragment.sizes}
        found = peak(fragment.steps(), sizes, inputs=(region.input,), outputs=outputs)
        if found.unknown:
            return {}
        result[form] = (fragment, found.bytes)
    return result


def _removed(plans: Sequence[RegionPlan], found: Index, fragments: Sequence[Fragment]) -> set[int]:
    """Return the positions of nodes that the fragments replace.

    A region's first node stays if others read it: nodes that stay, or clones of another region.
    """
    removed: set[int] = set()
    read = {name for fragment in fragments for name in fragment.reads}
    for plan in plans:
        removed.update(plan.region.nodes[1:] or plan.region.nodes)
    for plan in plans:
        head = plan.region.nodes[0]
        name = found.graph.node[head].output[0]
        users = set(found.users.get(name, ()))
        if users <= removed and name not in found.outputs and name not in read:
            removed.add(head)
    return removed


def _peak_after(
    analysis: _Analysis, fragments: Mapping[int, Fragment | None], removed: set[int]
) -> Peak:
    steps: list[Step] = []
    more: dict[str, int | None] = {}
    unknown = 0
    for position, step in enumerate(analysis.steps):
        fragment = fragments.get(position)
        if fragment is not None:
            steps.extend(fragment.steps())
            more.update(fragment.sizes)
        elif position not in removed:
            steps.append(step)
        elif position in fragments:
            unknown += 1
            steps.append(step)
    found = analysis.peak(steps, more)
    return Peak(found.bytes, found.at, found.unknown + unknown)


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
