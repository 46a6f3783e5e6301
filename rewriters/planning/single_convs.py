"""Convolutions one by one: the published method, in the forms `batch` and `sequential`.

Every convolution of the main graph is refused with a reason, or becomes a region of its own with a
proven tiling. Where the form is open, the one with the lower predicted peak of its region is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from patchconv_deploy.rewriters.emission.forms import SINGLE_FORMS
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion, emit_region
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.selection import ConvSize, Selection, candidates, select
from patchconv_deploy.rewriters.regions.single_conv import find_region
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan, plan_region

__all__ = ["Singles", "cut_singles"]


@dataclass(frozen=True)
class Singles:
    """Convolutions that are cut, and those that are not.

    Attributes:
        regions: Those that are cut.
        forms: Per form that was weighed the same convolutions in it; none where a size is unknown.
        peaks: Per place of a region and form the predicted peak of the region alone, bytes.
        refused: Those that are not.
    """

    regions: tuple[EmittedRegion, ...]
    forms: Mapping[str, tuple[EmittedRegion, ...]]
    peaks: Mapping[int, Mapping[str, int]]
    refused: tuple[Refusal, ...]


def cut_singles(
    facts: ModelFacts,
    selection: Selection,
    axis: str | int,
    splits: int,
    form: str,
    sizes: Mapping[str, ConvSize],
    progress: Progress,
) -> Singles:
    """Decide on every convolution, and emit those that are cut.

    Args:
        facts: The model.
        selection: Which convolutions.
        axis: The axis to cut.
        splits: Patches of each.
        form: "batch", "sequential", or "auto".
        sizes: Sizes of the convolutions, by label.
        progress: Called with (what, done, total) from time to time.
    """
    plans, refused = _plan(facts, selection, axis, splits, sizes, progress)
    names = NameScheme.avoiding(facts.index.names)
    regions: list[EmittedRegion] = []
    weighed: dict[str, list[EmittedRegion]] = {}
    peaks: dict[int, Mapping[str, int]] = {}
    for number, plan in enumerate(plans):
        if number % 64 == 0:
            progress("emitting", number, len(plans))
        base = (
            facts.labels[plan.region.nodes[0]] if len(plan.region.nodes) == 1 else plan.region.label
        )
        tried = {
            name: emit_region(plan, name, facts, names, base)
            for name in (SINGLE_FORMS if form == "auto" else (form,))
        }
        for name, entry in tried.items():
            weighed.setdefault(name, []).append(entry)
        found = {name: entry.peak(facts) for name, entry in tried.items()}
        known = {name: size for name, size in found.items() if size is not None}
        regions.append(tried[_lowest(known) if form == "auto" else form])
        peaks[regions[-1].place] = known
    forms = {name: tuple(entries) for name, entries in weighed.items()}
    return Singles(tuple(regions), forms, peaks, tuple(refused))


def _lowest(peaks: Mapping[str, int]) -> str:
    """Return the form with the lower predicted peak, `sequential` where they are equal or unknown.

    `sequential` holds no stack of all windows, so it is the safer guess where sizes are unknown.
    """
    return min(peaks, key=lambda form: (peaks[form], form != "sequential"), default="sequential")


def _plan(
    facts: ModelFacts,
    selection: Selection,
    axis: str | int,
    splits: int,
    sizes: Mapping[str, ConvSize],
    progress: Progress,
) -> tuple[Sequence[RegionPlan], Sequence[Refusal]]:
    certain = facts.certain
    plans: list[RegionPlan] = []
    refused: list[Refusal] = []
    positions = list(candidates(certain.graph))
    for number, position in enumerate(positions):
        if number % 64 == 0:
            progress("planning", number, len(positions))
        label = facts.labels[position]
        found: RegionPlan | Refusal | None
        found = select(label, sizes[label], facts.ideal_peak.bytes, selection)
        if found is None:
            region = find_region(certain, position, axis)
            if isinstance(region, Refusal):
                found = region
            else:
                found = plan_region(region, certain.shapes, splits, certain.opset)
        if isinstance(found, RegionPlan):
            plans.append(found)
        else:
            refused.append(replace(found, node=label))
    return plans, refused
