"""The rewrite of a model, from analysis to the spliced graph.

    prepare    opset raised and shapes fixed, where asked for
    analyse    skeleton checked, use-def index, known shapes, sizes of free dimensions assumed
    plan       regions for a budget (`planning.choose`), convolutions one by one
               (`planning.single_convs`), or a plan that is given
    splice     regions replaced by their fragments, the plan recorded, the result checked
    fold       what engines fold into each clone of a convolution is folded once

A model that holds a plan already is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import is_

from rewriters.budget import check_budget, fits_as_it_is
from rewriters.decide import Decision, decide, left_in_bodies
from rewriters.emission.bodies import move_into_bodies
from rewriters.emission.conv_folding import Folded, fold_clones
from rewriters.emission.forms import SINGLE_FORMS
from rewriters.emission.splice import drop_unused_value_info, splice
from rewriters.errors import OptionError
from rewriters.graph.check import check
from rewriters.graph.fixed_shapes import correct_claims, declare_outputs
from rewriters.graph.model import Loaded, record
from rewriters.graph.nodes import node_labels
from rewriters.graph.skeleton import skeleton
from rewriters.graph.upgrade_opset import upgrade
from rewriters.graph.use_def import index
from rewriters.memory.targets import TARGETS
from rewriters.options import Options, Progress
from rewriters.outcome import SESSION_OPTIONS_KEY, Outcome, Rewritten
from rewriters.planning.analysis import Analysis
from rewriters.planning.emitted_region import Draft, ordered, predict, predict_all
from rewriters.planning.peak_holders import unknown_sizes
from rewriters.planning.plan_file import METADATA_KEY, plan_data
from rewriters.prepare import analyse_for, conv_sizes, fix_sizes, holds_plan, predict_unfixed
from rewriters.regions.selection import ConvSize, region_size

__all__ = ["rewrite_model"]


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
    already = holds_plan(model)
    if options.upgrade_opset is not None and not already:
        model = upgrade(model, options.upgrade_opset)
    engine = TARGETS[options.target].engine
    report("analysing", 0, 1)
    unfixed = predict_unfixed(Loaded(model, loaded.folder), options, engine)
    fix_sizes(model, options)
    slim = skeleton(Loaded(model, loaded.folder))
    analysis = analyse_for(model, slim, options)
    if options.shapes or options.ranges:
        declare_outputs(model, analysis.facts.shapes)
    # ONNX Runtime's default session options are shown beside those that are recommended.
    target = TARGETS[options.target]
    engines = [target.engine, target.beside] if target.beside else [target.engine]
    before, *usual_before = analysis.predict_all(None, engines)
    labels = node_labels(model.graph)
    sizes = conv_sizes(analysis, labels)
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
    fits = fits_as_it_is(analysis, options, before, labels, already=already)
    if already:
        return replace(unchanged, fits=fits)

    decided = decide(analysis, options, engine, before, labels, sizes, report)
    refused = (*decided.refused, *left_in_bodies(model))
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
    check_budget(options, after)
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
    if target.session_options and options.by_region:
        record(model, SESSION_OPTIONS_KEY, target.session_options)
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


def _describe(
    entry: Draft,
    labels: Mapping[int, str],
    sizes: Mapping[str, ConvSize],
    analysis: Analysis,
    decided: Decision,
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
