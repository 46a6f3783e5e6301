"""Plans: which regions are cut, where, and how. A plan is data.

Here the number of patches is the user's; the plan says, per region, how many fit, where every
window and core lies (or that this is worked out at run time), and what it costs in recompute.
Every tiling in a plan has passed `rewriters.proof`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewriters import proof
from rewriters.geometry import Extent, Tiling, tile
from rewriters.regions import Refusal, Region

__all__ = ["FORMS", "METADATA_KEY", "RegionPlan", "plan_json", "plan_region", "recompute_of"]

# Metadata entry that holds the plan of a rewritten model.
METADATA_KEY = "patchconv.plan"
FORMS = ("batch", "sequential")
_VERSION = 1
# Patches times heights to prove where the height is unknown: a second or so.
_MOST_EFFORT = 200_000


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """How a region is cut.

    Attributes:
        region: The region.
        splits: Number of patches.
        rows: Input rows, None if known at run time alone.
        extent: The output's rows (0 if unknown), step and wrong rows of interior windows.
        tiling: Windows and cores; None if worked out at run time.
        notes: What the user should know.
    """

    region: Region
    splits: int
    rows: int | None
    extent: Extent
    tiling: Tiling | None
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> proof.Steps:
        """Rows per step of every tensor along the region."""
        return proof.steps(self.region.chain)


def recompute_of(extent: Extent, tiling: Tiling) -> float:
    """Return output rows computed after over before."""
    window = extent.rows - tiling.trim * extent.step
    return len(tiling.patches) * window / extent.rows


def plan_region(region: Region, rows: int | None, splits: int, opset: int) -> RegionPlan | Refusal:
    """Cut a region into patches and prove it.

    Args:
        region: The region.
        rows: Rows of its input along the tiled axis, None if known at run time alone.
        splits: Patches asked for, at least 1.
        opset: Version of the default domain.
    """
    if splits == 1:
        return Refusal(region.label, "one patch is the whole Conv", "one-patch")
    if rows is None and proof.effort(region.chain, splits) > _MOST_EFFORT:
        return Refusal(
            region.label,
            "its stride, kernel or number of splits is too large to prove every height; fix the "
            "height with --shape",
            "not-provable",
        )
    extent = proof.extent(region.chain, rows, 0)
    if rows is None:
        if opset < 10:
            return Refusal(
                region.label,
                f"opset {opset} cannot slice at sizes known at run time alone; fix them with "
                "--shape, or convert with --upgrade-opset 13",
                "opset-too-old",
            )
        reason = proof.prove_every_height(region.chain, splits)
        if reason is not None:
            return Refusal(region.label, reason, "not-provable")
        return RegionPlan(region, splits, None, extent, None)
    if extent.rows < 2:
        return Refusal(region.label, "fewer than two output rows", "one-row")
    tiling = tile(extent, splits)
    reason = proof.prove(region.chain, rows, tiling)
    if reason is not None:
        return Refusal(region.label, reason, "not-provable")
    notes = []
    if len(tiling.patches) < splits:
        notes.append(f"{len(tiling.patches)} patches instead of {splits}: too few rows for more")
    if tiling.trim == 0:
        notes.append("every window is the whole input: the halo is as tall as the image")
    return RegionPlan(region, len(tiling.patches), rows, extent, tiling, tuple(notes))


def plan_json(entries: Sequence[tuple[RegionPlan, str, Sequence[str]]]) -> str:
    """Return the plan of a model as JSON: one entry per region with its form and node labels."""
    regions: list[dict[str, Any]] = []
    for plan, form, labels in entries:
        entry: dict[str, Any] = {
            "nodes": list(labels),
            "form": form,
            "axis": plan.region.axis,
            "splits": plan.splits,
        }
        if plan.tiling is not None:
            entry["trim"] = plan.tiling.trim
            entry["seams"] = list(plan.tiling.seams)
        regions.append(entry)
    return json.dumps({"version": _VERSION, "regions": regions}, separators=(",", ":"))
