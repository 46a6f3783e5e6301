"""The axis that a model is cut along, where the choice is left to the search.

Each axis is tried on the model as it is written for it: what looks at the whole image is reduced
over each row first, and a row lies along the other axis (`graph.statistics`).
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from patchconv_deploy.rewriters.decide import kept_nodes
from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.rewriters.options import OLDEST_OPSET, Options
from patchconv_deploy.rewriters.patch_rows import splits_for
from patchconv_deploy.rewriters.planning.choose import choose_regions
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.prepare import conv_sizes, look_at

__all__ = ["along_best_axis"]


def along_best_axis(loaded: Loaded, options: Options, progress: Progress) -> Options:
    """Return the options with one axis: of those in question the one that serves better.

    Better is, under a budget, less predicted time; else a lower predicted peak. The usual one where
    nothing can be cut, or no budget kept, along any.

    Args:
        loaded: The model; not changed.
        options: What is asked for.
        progress: Called with (what, done, total) from time to time.
    """
    if len(options.axes) == 1 or not options.by_region:
        return options
    tried = [replace(options, axis=axis) for axis in options.axes]
    return min(tried, key=lambda each: _cost(loaded, each, progress))


def _cost(loaded: Loaded, options: Options, progress: Progress) -> float:
    """Return what a cut along an axis costs: predicted time, or the predicted peak in bytes."""
    predictor = look_at(loaded, options)
    facts = predictor.facts
    if facts.certain.opset < OLDEST_OPSET:
        return inf
    kept, _ = kept_nodes(facts, options, conv_sizes(facts))
    asked, engine = splits_for(facts, options), TARGETS[options.target].engine
    try:
        cut = choose_regions(
            predictor, asked.limits, options.axes[0], asked.form, engine, kept, progress
        )
    except BudgetError:
        return inf
    if options.memory_budget is not None:
        return cut.time
    taken = next((candidate for candidate in cut.weighed if candidate.taken), None)
    return inf if taken is None else float(taken.peak)
