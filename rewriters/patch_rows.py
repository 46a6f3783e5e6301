"""Patches of a height that is asked for, in place of the one that was found.

The search looks for shares of the height that is assumed. Where a height is given, the regions that
it chose are cut anew, into patches of so many rows each, and proven at every height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from patchconv_deploy.rewriters.decide import Decision
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.emission.rounds import OLDEST_OPSET
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.options import MOST_SPLITS, Options
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion, emit_region, ordered
from patchconv_deploy.rewriters.planning.evaluator import costs_of
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["check_patch_rows", "splits_for", "with_patch_rows"]


def check_patch_rows(facts: ModelFacts, options: Options) -> None:
    """Refuse a height of patches where there can be none of a fixed one.

    Args:
        facts: The model.
        options: What is asked for.

    Raises:
        OptionError: It says why.
    """
    if options.patch_rows is None:
        return
    given = f"patch_rows={options.patch_rows}"
    if facts.certain.opset < OLDEST_OPSET:
        raise OptionError(
            f"{given}: patches of a fixed height need opset {OLDEST_OPSET}, the model has "
            f"{facts.certain.opset}; convert it with upgrade_opset={OLDEST_OPSET}"
        )
    if not facts.assumed:
        raise OptionError(
            f"{given}: patches of a fixed height are for images of any height, and all sizes of "
            "this model are fixed; use splits="
        )


def splits_for(facts: ModelFacts, options: Options) -> Options:
    """Return options that let the search look for about as many patches as there will be.

    Args:
        facts: The model.
        options: What is asked for.
    """
    if options.patch_rows is None:
        return options
    most = max((size for shape in facts.assumed.values() for size in shape[2:]), default=0)
    count = min(max(2, -(-most // options.patch_rows)), MOST_SPLITS)
    return replace(options, form="rounds", patch_rows=None, splits=count)


def with_patch_rows(facts: ModelFacts, options: Options, found: Decision) -> Decision:
    """Return what was decided, with patches of the height that is asked for.

    Args:
        facts: The model.
        options: What is asked for.
        found: What the search decided.

    Raises:
        OptionError: A region has no patches of that height, or they take more work than is
            allowed.
    """
    rows = options.patch_rows
    if rows is None or not found.regions:
        return found
    names = NameScheme.avoiding(facts.index.names)
    regions = [_cut_anew(entry, rows, facts, names) for entry in found.regions]
    arrangement = ordered(facts, regions, found.run_rank, sized=True)
    costs = None
    if arrangement is not None:
        costs = costs_of(facts, regions, arrangement, compiled=False)
    work, time = costs or (None, None)
    if work is not None and work > (options.max_recompute or inf):
        raise OptionError(
            f"patch_rows={rows}: patches this low make {work:.2f}x the work, more than "
            f"max_recompute={options.max_recompute} allows"
        )
    return replace(
        found,
        regions=regions,
        forms={"rounds": regions},
        recompute=work,
        time=time,
        weighed=(),
        peaks={},
        goal=None,
    )


def _cut_anew(
    entry: EmittedRegion, rows: int, facts: ModelFacts, names: NameScheme
) -> EmittedRegion:
    """Return a region in patches of so many rows."""
    plan, label, given = entry.plan, entry.plan.region.label, f"patch_rows={rows}"
    if plan.tiling is not None:
        raise OptionError(
            f"{given}: the height of the region of {label!r} is fixed, to "
            f"{plan.extents[0].rows} rows; use splits="
        )
    step = plan.extents[0].step
    if rows < step:
        raise OptionError(
            f"{given}: too small for the region of {label!r}, whose patches have {step} rows or a "
            "multiple of that"
        )
    wanted = _in_steps(plan, rows)
    cut = emit_region(wanted, "rounds", facts, names, label)
    if cut.plan.stride is None:
        proven = plan.in_rounds(rows // step)
        reason = proven.reason if isinstance(proven, Refusal) else "its sizes are unknown"
        raise OptionError(f"{given}: the region of {label!r} cannot be cut so: {reason}")
    return cut


def _in_steps(plan: RegionPlan, rows: int) -> RegionPlan:
    """Return a plan with patches of so many rows, or a little less: of whole steps."""
    step = plan.extents[0].step
    stride = rows // step
    notes: Sequence[str] = plan.notes
    if stride * step < rows:
        notes = (*notes, f"patches of {stride * step} rows, not {rows}: whole steps of {step}")
    return replace(plan, stride=stride, shrinking=None, notes=tuple(notes))
