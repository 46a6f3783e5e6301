"""Plans: which regions are cut, where, and how. A plan is data.

A `RegionPlan` says how many patches fit a region, where every window and core lies (or that this is
worked out at run time), and what it costs in recompute. Every tiling in it has passed
`rewriters.proof`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewriters import proof
from rewriters.errors import OptionError
from rewriters.geometry import Extent, Patch, Rows, Tiling, core, free_steps, schedule, tile
from rewriters.locality import AXES
from rewriters.operators import ROWS
from rewriters.regions import Refusal, Region
from rewriters.shapes import Shapes
from rewriters.shrinking import shrink

__all__ = ["FORMS", "METADATA_KEY", "RegionPlan", "plan_data", "plan_region", "read_plan"]

# Metadata entry that holds the plan of a rewritten model.
METADATA_KEY = "patchconv.plan"
FORMS = ("batch", "sequential", "fused", "shrinking", "loop")
ORDERS = ("file", "engine", "late", "runs")
_VERSION = 2
# Patches times heights to prove where the height is unknown: a second or so.
_MOST_EFFORT = 200_000


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """How a region is cut.

    Attributes:
        region: The region.
        splits: Number of patches.
        rows: Rows of each input, None if known at run time alone.
        steps: Rows per step of every tensor of the region.
        extents: Per output its rows (meaningless if unknown), step, wrong rows of interior windows.
        ranks: Dimensions of the first input, then of each output.
        tiling: Windows and cores; None if worked out at run time.
        notes: What the user should know.
        heights: Rows of every tensor of the region; empty if known at run time alone.
        shrinking: Rows that tensors go without at interior edges, None in uniform windows.
    """

    region: Region
    splits: int
    rows: tuple[int, ...] | None
    steps: tuple[int, ...]
    extents: tuple[Extent, ...]
    ranks: tuple[int, ...]
    tiling: Tiling | None
    notes: tuple[str, ...] = ()
    heights: tuple[int, ...] = ()
    shrinking: proof.Shrinking | None = None

    @property
    def shares(self) -> tuple[float, ...] | None:
        """Rows computed after over before, of each node; None if known at run time alone."""
        if self.tiling is None:
            return None
        made = [link.makes[0] for link in self.region.network.links]
        return tuple(
            sum(len(self.window(tensor, patch)) for patch in self.tiling.patches)
            / self.heights[tensor]
            for tensor in made
        )

    def window(self, tensor: int, patch: Patch) -> Rows:
        """Return the rows of the whole tensor that a patch has of it; the height must be known."""
        assert self.tiling is not None
        begin = patch.shift * self.steps[tensor]
        end = begin + self.heights[tensor] - self.tiling.trim * self.steps[tensor]
        if self.shrinking is not None:
            top, bottom = self.shrinking.at(patch.shift, self.tiling.trim)
            begin, end = begin + top[tensor], end - bottom[tensor]
        return Rows(begin, end)

    def seams_at(self, rows: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
        """Return the first output's rows and those at which a core begins, at a given height.

        What `rewriters.emission` works out at run time, here in integers: the same formulas.

        Args:
            rows: Rows of each input; not looked at where the plan's own are known.

        Returns:
            The rows and the seams, None if the region does not run at that height.
        """
        if self.tiling is not None:
            return self.extents[0].rows, self.tiling.seams()
        network = self.region.network
        whole = proof.heights(network, rows)
        if isinstance(whole, str):
            return None
        outs = [
            replace(extent, rows=whole[number])
            for number, extent in zip(network.outputs, self.extents, strict=True)
        ]
        free = min(free_steps(out, max) for out in outs)
        first, begins = outs[0], []
        for k in range(1, self.splits):
            placed = schedule(free, self.splits, k)
            begin, _ = core(first, placed, first=1, last=0, minimum=min)
            begins.append(begin)
        # Of a small output the last cores are empty.
        return first.rows, tuple(sorted({row for row in begins if 0 < row < first.rows}))

    def shrunk(self) -> RegionPlan:
        """Return the same with windows that shrink, where they can (`rewriters.shrinking`)."""
        if self.tiling is None or self.rows is None:
            return self
        network = self.region.network
        found = shrink(network, self.steps, self.heights, self.tiling)
        if found is None or proof.prove(network, self.rows, self.tiling, found) is not None:
            return self
        return replace(self, shrinking=found)


def plan_region(region: Region, shapes: Shapes, splits: int, opset: int) -> RegionPlan | Refusal:
    """Cut a region into patches and prove it.

    Args:
        region: The region.
        shapes: Known shapes, or assumed ones where a plan is made to be weighed alone.
        splits: Patches asked for, at least 1.
        opset: Version of the default domain.
    """
    label, network = region.label, region.network
    if splits == 1:
        return Refusal(label, "one patch is the whole Conv", "one-patch")
    step = proof.steps(network)
    if isinstance(step, str):
        return Refusal(label, step, "not-provable")
    edges = (region.inputs[0], *region.outputs)
    ranks = tuple(region.rank or len(shapes.dims.get(edge.name, ())) for edge in edges)
    rows = region.rows(shapes)
    if rows is None:
        reason = _plan_every_height(region, splits, opset)
        if reason is not None:
            return reason
        extents = proof.extents(network, None, proof.first_height(network))
        return RegionPlan(region, splits, None, step, extents, ranks, None)
    whole = proof.heights(network, rows)
    if isinstance(whole, str):
        return Refusal(label, whole, "not-provable")
    if min(whole[number] for number in network.outputs) < 2:
        return Refusal(label, "fewer than two output rows", "one-row")
    extents = proof.extents(network, rows)
    tiling = tile(extents, splits)
    reason_found = proof.prove(network, rows, tiling)
    if reason_found is not None:
        return Refusal(label, reason_found, "not-provable")
    notes = []
    if len(tiling.patches) < splits:
        notes.append(f"{len(tiling.patches)} patches instead of {splits}: too few rows for more")
    if tiling.trim == 0:
        notes.append("every window is the whole input: the halo is as tall as the image")
    return RegionPlan(
        region, len(tiling.patches), rows, step, extents, ranks, tiling, tuple(notes), whole
    )


def _plan_every_height(region: Region, splits: int, opset: int) -> Refusal | None:
    """Prove a region at every height; return why that cannot be done."""
    label, network = region.label, region.network
    if len(network.inputs) > 1 or any(
        ROWS in numbers for link in region.links for numbers in link.constants.values()
    ):
        reason = "it holds sizes that are known at run time alone; fix them with shapes="
        return Refusal(label, reason, "size-unknown")
    if proof.effort(network, splits) > _MOST_EFFORT:
        return Refusal(
            label,
            "its stride, kernel or number of splits is too large to prove every height; fix the "
            "height with shapes=",
            "not-provable",
        )
    if opset < 10:
        return Refusal(
            label,
            f"opset {opset} cannot slice at sizes known at run time alone; fix them with "
            "shapes=, or convert with upgrade_opset=13",
            "opset-too-old",
        )
    found = proof.prove_every_height(network, splits)
    return None if found is None else Refusal(label, found, "not-provable")


def plan_data(
    axis: str | int,
    order: str,
    entries: Sequence[tuple[RegionPlan, str, Sequence[str]]],
    target: str,
) -> dict[str, Any]:
    """Return the plan of a model as data for JSON, readable and editable.

    Args:
        axis: The axis that is cut, as the user named it.
        order: Name of the order that the nodes stand in.
        entries: Regions with their form and the labels of their nodes.
        target: The engine that it is made for, as the user named it; nothing depends on it.
    """
    regions: list[dict[str, Any]] = []
    for plan, form, labels in entries:
        entry: dict[str, Any] = {
            "nodes": list(labels),
            "outputs": [edge.name for edge in plan.region.outputs],
            "form": form,
            "axis": plan.region.outputs[0].axis,
            "splits": plan.splits,
        }
        if plan.tiling is not None:
            entry["trim"] = plan.tiling.trim
            entry["seams"] = list(plan.tiling.seams())
        regions.append(entry)
    return {
        "version": _VERSION,
        "target": target,
        "axis": axis,
        "order": order,
        "regions": regions,
    }


def read_plan(text: str) -> dict[str, Any]:
    """Read a plan; only what is needed to apply it again: nodes, outputs, form and splits.

    Raises:
        OptionError: It is no plan.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise OptionError(f"plan=: not JSON: {error}") from error
    except RecursionError:
        raise OptionError("plan=: not a plan: it is nested too deeply") from None
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        raise OptionError(f"plan=: not a plan of version {_VERSION}")
    axis, regions, order = data.get("axis"), data.get("regions"), data.get("order", "file")
    if order not in ORDERS:
        raise OptionError(f"plan=: order must be one of {', '.join(ORDERS)}")
    if not isinstance(axis, str | int) or (isinstance(axis, str) and axis not in AXES):
        raise OptionError("plan=: axis must be height, width, depth or a dimension")
    if not isinstance(regions, list):
        raise OptionError("plan=: regions must be a list")
    for number, entry in enumerate(regions):
        if not isinstance(entry, dict):
            raise OptionError(f"plan=: region {number} is not an object")
        for key in ("nodes", "outputs"):
            names = entry.get(key)
            if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
                raise OptionError(f"plan=: region {number}: {key} must be a list of names")
        splits = entry.get("splits")
        if entry.get("form") not in FORMS or type(splits) is not int or splits < 2:
            raise OptionError(
                f"plan=: region {number}: form must be one of {', '.join(FORMS)}, splits 2 or more"
            )
    return {"version": _VERSION, "axis": axis, "order": order, "regions": regions}
