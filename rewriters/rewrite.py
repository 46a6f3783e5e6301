"""The rewrite of a model, from analysis to the spliced graph.

    axis       height or width, where that is left open (`best_axis`)
    prepare    opset raised and shapes fixed, where asked for; use-def index, known shapes, sizes of
               free dimensions assumed; the peak predicted
    decide     regions for a budget, convolutions one by one, or a plan that is given (`decide`)
    predict    the peak of what was decided, held against the budget
    splice     regions replaced by their fragments, what engines fold into clones folded once, the
               plan recorded, the result checked

A model that holds a plan already is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_

from patchconv_deploy.rewriters.best_axis import along_best_axis
from patchconv_deploy.rewriters.budget import check_budget, check_buffers, fits_as_it_is
from patchconv_deploy.rewriters.decide import Decision, decide, left_in_bodies
from patchconv_deploy.rewriters.emission.bodies import move_into_bodies
from patchconv_deploy.rewriters.emission.constant_slices import cut_constants
from patchconv_deploy.rewriters.emission.conv_folding import Folded, fold_clones
from patchconv_deploy.rewriters.emission.forms import SINGLE_FORMS
from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.lean_clones import (
    drop_copies,
    drop_defaults,
    number_tensors,
)
from patchconv_deploy.rewriters.emission.splice import drop_unused_value_info, splice
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.check import check
from patchconv_deploy.rewriters.graph.fixed_shapes import (
    correct_claims,
    declare_outputs,
    declare_ranks,
)
from patchconv_deploy.rewriters.graph.model import Loaded, record
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.upgrade_opset import upgrade
from patchconv_deploy.rewriters.graph.use_def import index
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import SESSION_OPTIONS_KEY, Outcome, Rewritten
from patchconv_deploy.rewriters.patch_rows import check_patch_rows, splits_for, with_patch_rows
from patchconv_deploy.rewriters.planning.apply_plan import names_of
from patchconv_deploy.rewriters.planning.emitted_region import (
    EmittedRegion,
    ordered,
    predict,
    predict_all,
)
from patchconv_deploy.rewriters.planning.peak_holders import unknown_sizes
from patchconv_deploy.rewriters.planning.plan_file import METADATA_KEY, plan_data
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.planning.written_tensors import largest_of
from patchconv_deploy.rewriters.prepare import (
    WrittenOut,
    conv_sizes,
    fix_sizes,
    holds_plan,
    predict_unfixed,
    predictor_for,
    write_out,
)
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.regions.selection import ConvSize, region_size

__all__ = ["rewrite_model"]


@dataclass(frozen=True)
class _Subject:
    """A model as it is worked on: prepared, analysed, predicted.

    Attributes:
        loaded: The model, changed in place once something is decided.
        predictor: Predicts its memory; holds what is known of it.
        sizes: Sizes of its convolutions, by label.
        engines: Engines that memory is predicted for, the target's first.
        before: Predicted peak of the model as it is, on each of them.
        written_out: What its graph was before it was written out.
    """

    loaded: Loaded
    predictor: MemoryPredictor
    sizes: Mapping[str, ConvSize]
    engines: Sequence[str]
    before: Sequence[Peak]
    written_out: WrittenOut


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
    progress = progress or (lambda what, done, total: None)
    already = holds_plan(loaded.model)
    if not already:
        options = along_best_axis(loaded, options, progress)
    progress("analysing", 0, 1)
    subject, unfixed = _prepare(loaded, options, already=already)
    facts, before = subject.predictor.facts, subject.before[0]
    largest = largest_of(subject.predictor, ())
    fits = fits_as_it_is(facts, options, before, largest, already=already)
    unchanged = Outcome(
        subject.loaded.model,
        (),
        (),
        subject.engines[0],
        before,
        before,
        {},
        facts.assumed,
        subject.sizes,
        already,
        unknown=unknown_sizes(facts) if before.unknown else None,
        data_sized=facts.data_sized,
        unfixed=unfixed if unfixed != before.bytes else None,
        largest=(largest, largest),
    )
    if already:
        return replace(unchanged, fits=fits)
    check_patch_rows(facts, options)
    decided = decide(
        subject.predictor,
        splits_for(facts, options),
        subject.engines[0],
        before,
        subject.sizes,
        progress,
    )
    decided = with_patch_rows(facts, options, decided)
    unchanged = replace(
        unchanged,
        refused=(*decided.refused, *left_in_bodies(subject.loaded.model)),
        weighed=decided.weighed,
        reasons=decided.reasons,
        goal=decided.goal,
    )
    if not decided.regions:
        check_buffers(options, largest)
        facts.respelled.undo(subject.loaded.model.graph)
        subject.written_out.undo(subject.loaded.model.graph)
        return replace(unchanged, fits=fits)
    order = ordered(facts, decided.regions, decided.run_rank)
    if order is None:
        raise OptionError("the regions depend on each other in a circle; cut fewer of them")
    predicted = _predicted(subject, decided, unchanged, progress)
    check_budget(options, None if predicted.after.unknown else predicted.after)
    check_buffers(options, predicted.largest[1])
    progress("splicing", len(decided.forms), len(decided.forms) + 1)
    return _spliced(subject, decided, order, options, predicted)


def _prepare(loaded: Loaded, options: Options, *, already: bool) -> tuple[_Subject, int | None]:
    """Raise the opset and fix sizes where asked for, in place; analyse and predict the result.

    Returns:
        It, and the predicted peak before its sizes were fixed, None where that changes nothing.
    """
    model, target = loaded.model, TARGETS[options.target]
    if options.upgrade_opset is not None and not already:
        model = upgrade(model, options.upgrade_opset)
        loaded = Loaded(model, loaded.folder)
    unfixed = predict_unfixed(loaded, options, target.engine)
    fix_sizes(model, options)
    written_out = WrittenOut() if already else write_out(loaded)
    predictor = predictor_for(model, skeleton(loaded), options)
    facts = predictor.facts
    if options.shapes or options.ranges:
        declare_outputs(model, facts.certain.shapes)
    engines = [target.engine, target.beside] if target.beside else [target.engine]
    before = predictor.predict_all(None, engines)
    subject = _Subject(loaded, predictor, conv_sizes(facts), engines, before, written_out)
    return subject, unfixed


def _predicted(
    subject: _Subject, decided: Decision, unchanged: Outcome, progress: Progress
) -> Outcome:
    """Return the outcome with the peaks that are predicted of what was decided."""
    predictor, before, run_rank = subject.predictor, subject.before, decided.run_rank
    found = predict_all(predictor, decided.regions, subject.engines, run_rank)
    after = found[0] if found else None
    by_form = {}
    for at, (form, regions) in enumerate(decided.forms.items()):
        progress("splicing", at, len(decided.forms) + 1)
        same = all(map(is_, regions, decided.regions)) and len(regions) == len(decided.regions)
        peak = after if same else predict(predictor, regions, subject.engines[0], run_rank)
        if peak is not None and not peak.unknown:
            by_form[form] = peak.bytes
    defaults = None
    if len(found) > 1 and not before[1].unknown + found[1].unknown:
        defaults = before[1].bytes, found[1].bytes
    return replace(
        unchanged,
        after=after or replace(before[0], unknown=max(1, before[0].unknown)),
        after_by_form=by_form,
        recompute=decided.recompute,
        time=decided.time,
        defaults=defaults,
        largest=(unchanged.largest[0], largest_of(predictor, decided.regions, run_rank)),
    )


def _spliced(
    subject: _Subject,
    decided: Decision,
    order: Sequence[int | Fragment],
    options: Options,
    outcome: Outcome,
) -> Outcome:
    """Put the regions into the graph, in place: the one step that changes it.

    Raises:
        ModelError: The result is not valid.
    """
    loaded, regions = subject.loaded, decided.regions
    model, target = loaded.model, TARGETS[options.target]
    done = tuple(_describe(entry, subject, decided) for entry in regions)
    facts = subject.predictor.facts
    respelled = any(at in facts.respelling_of for e in regions for at in e.plan.region.nodes)
    links = find_locality(facts.certain, decided.axis).links if respelled else {}
    plan = plan_data(
        decided.axis,
        decided.order,
        [(e.plan, e.form, names_of(facts, links, e.plan.region)) for e in regions],
        options.target,
        options.max_buffer,
    )
    remaining = {
        n for item in order if isinstance(item, int) for n in model.graph.node[item].output
    }
    gone = {name for node in model.graph.node for name in node.output} - remaining
    fragments = [item for item in order if isinstance(item, Fragment)]
    gone -= {name for fragment in fragments for name in fragment.makes}
    splice(model, order)
    move_into_bodies(model, {name for fragment in fragments for name in fragment.loops})
    drop_unused_value_info(model.graph, gone)
    reads = {name for fragment in fragments for name in fragment.reads}
    certain = subject.predictor.facts.certain
    correct_claims(model.graph, certain.shapes, reads)
    declare_ranks(model.graph, certain.shapes)
    made = {node.name for fragment in fragments for node in fragment.export()[0]}
    folded = Folded()
    if options.fold:
        folded = fold_clones(model, made, certain, loaded.folder)
        saved = cut_constants(model, made)
        weights = outcome.after.weights
        weights = replace(weights, held=max(0, weights.held - saved))
        outcome = replace(outcome, after=replace(outcome.after, weights=weights))
    drop_copies(model, made)
    drop_defaults(model, made)
    if fragments:
        number_tensors(model, made, fragments[0].names)
    record(model, METADATA_KEY, plan)
    if target.session_options and options.by_region:
        record(model, SESSION_OPTIONS_KEY, target.session_options)
    check(skeleton(loaded), allow_custom_ops=options.allow_custom_ops)
    index(model)
    return replace(outcome, rewritten=done, plan=plan, folded=folded)


def _describe(entry: EmittedRegion, subject: _Subject, decided: Decision) -> Rewritten:
    plan, region = entry.plan, entry.plan.region
    facts, sizes = subject.predictor.facts, subject.sizes
    graph, labels = facts.certain.graph, facts.labels
    convs = [at for at in region.nodes if labels[at] in sizes]
    one = len(convs) == 1 and entry.form in SINGLE_FORMS
    return Rewritten(
        nodes=tuple(dict.fromkeys(facts.own_label(position) for position in region.nodes)),
        op_type=graph.node[convs[0]].op_type if one else "region",
        form=entry.form,
        axis=region.outputs[0].axis,
        splits=plan.splits,
        recompute=entry.recompute(facts),
        seams=() if plan.tiling is None else plan.tiling.seams(),
        rows=None if plan.tiling is None else plan.extents[0].rows,
        size=sizes[labels[convs[0]]] if one else region_size(region, facts.sizing),
        peak_by_form=decided.peaks.get(entry.place, {}),
        notes=plan.notes,
        plan=plan,
    )
