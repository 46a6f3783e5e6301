"""Drivers that change nothing: the peak, what holds it, and the curve of peak against work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import onnx

from patchconv_deploy.rewriters.decide import kept_nodes
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.inspection import (
    Inspection,
    Overview,
    inspect_model,
    overview_of_model,
)
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.rewriters.options import MOST_SPLITS, OLDEST_OPSET, TOO_OLD, Options
from patchconv_deploy.rewriters.planning.choose import pareto
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.planning.peak_holders import Reason, unknown_sizes
from patchconv_deploy.rewriters.prepare import conv_sizes, holds_plan, look_at

__all__ = [
    "analyse_memory",
    "check_one_axis",
    "inspection_of",
    "loading_of",
    "overview_of",
    "pareto_of",
    "unknown_of",
]


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


def inspection_of(loaded: Loaded, options: Options) -> Inspection:
    """Return what holds a model's memory and what could be cut; the model is not changed.

    Args:
        loaded: The model; external weights stay on disk.
        options: Shapes, axis and target are looked at.
    """
    predictor = look_at(loaded, options)
    opset = predictor.facts.certain.opset
    left = "the model was rewritten before (it holds a plan)" if holds_plan(loaded.model) else ""
    if not left and opset < OLDEST_OPSET:
        left = TOO_OLD.format(opset)
    limits = replace(options.limits, splits=MOST_SPLITS, recompute=options.max_recompute or inf)
    engine = TARGETS[options.target].engine
    return inspect_model(predictor, options.axes[0], engine, limits, left)


def loading_of(loaded: Loaded, options: Options) -> tuple[int, int]:
    """Return what loading a model is predicted to take, and its inputs, bytes.

    Args:
        loaded: The model; not changed.
        options: The target and the sizes are looked at. Inputs of unknown size count as nothing.
    """
    predictor = look_at(loaded, options)
    facts = predictor.facts
    loading = predictor.predict(None, TARGETS[options.target].engine).weights.loading
    return loading, sum(facts.bytes.get(name) or 0 for name in facts.inputs)


def overview_of(loaded: Loaded, options: Options) -> Overview:
    """Return what holds a model's memory, without a search; the model is not changed.

    Args:
        loaded: The model; external weights stay on disk.
        options: As for `rewrite_model`; form, splits, budget and plan are not looked at.
    """
    predictor = look_at(loaded, options)
    facts = predictor.facts
    kept, _ = kept_nodes(facts, options, conv_sizes(facts))
    return overview_of_model(predictor, options.axes[0], TARGETS[options.target].engine, kept)


def unknown_of(loaded: Loaded, options: Options) -> Reason | None:
    """Return why a model's peak is unknown, and what to do; None if it is known.

    Args:
        loaded: The model; not changed.
        options: As for `pareto_of`.
    """
    predictor = look_at(loaded, options)
    known = not predictor.predict(None, TARGETS[options.target].engine).unknown
    return None if known else unknown_sizes(predictor.facts)


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
    if holds_plan(loaded.model):
        raise OptionError("the model was rewritten before (it holds a plan); give the original")
    predictor = look_at(loaded, options)
    facts = predictor.facts
    if facts.certain.opset < OLDEST_OPSET:
        raise OptionError(TOO_OLD.format(facts.certain.opset))
    kept, _ = kept_nodes(facts, options, conv_sizes(facts))
    limits = replace(options.limits, splits=MOST_SPLITS, recompute=options.max_recompute or inf)
    return pareto(predictor, limits, options.axes[0], TARGETS[options.target].engine, kept)


def check_one_axis(options: Options) -> None:
    """Refuse two axes where a curve is wanted.

    Raises:
        OptionError: Both are in question.
    """
    if len(options.axes) > 1:
        raise OptionError("axis='auto': a curve is along one axis; name height or width")
