"""A region with its patches: proven right, ready to be emitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.operators.record import ROWS
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region
from patchconv_deploy.rewriters.tiling import network as networks
from patchconv_deploy.rewriters.tiling import proof, proof_any_height, rounds
from patchconv_deploy.rewriters.tiling.patches import (
    Extent,
    Patch,
    Rows,
    Tiling,
    core,
    free_steps,
    place_windows,
    tile,
)
from patchconv_deploy.rewriters.tiling.shrinking import shrink

__all__ = ["ORDERS", "RegionPlan", "plan_region"]


ORDERS = ("file", "engine", "late", "runs")

# Patches times heights to prove where the height is unknown: a second or so.
_MOST_EFFORT = 400_000


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """How a region is cut.

    Attributes:
        region: The region.
        splits: Number of patches.
        rows: Rows of each input, None if known at run time alone.
        steps: Rows per step of every tensor of the region.
        extents: Per output its rows (meaningless if unknown), step, wrong rows of interior windows.
        ranks: Dimensions of each input, then of each output.
        tiling: Windows and cores; None if worked out at run time.
        notes: What the user should know.
        heights: Rows of every tensor of the region; empty if known at run time alone.
        shrinking: Rows that tensors go without at interior edges, None in uniform windows.
        stride: Steps that each patch has of its own where there are as many patches as an image
            needs (`tiling.rounds`); None where there are ``splits``.
        proven: It is proven; else its height is free, and it may be weighed, but not written.
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
    shrinking: networks.Shrinking | None = None
    stride: int | None = None
    proven: bool = True

    @property
    def patch_rows(self) -> int | None:
        """Rows of the first output that each patch has of its own, None where that is no number."""
        return None if self.stride is None else self.stride * self.extents[0].step

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
        whole = networks.heights(network, rows)
        if isinstance(whole, str):
            return None
        outs = [
            replace(extent, rows=whole[number])
            for number, extent in zip(network.outputs, self.extents, strict=True)
        ]
        if self.stride is not None:
            return outs[0].rows, rounds.tile_rounds(outs, self.stride).seams()
        free = min(free_steps(out, max) for out in outs)
        first, begins = outs[0], []
        for k in range(1, self.splits):
            placed = place_windows(free, self.splits, k)
            begin, _ = core(first, placed, first=1, last=0, minimum=min)
            begins.append(begin)
        # Of a small output the last cores are empty.
        return first.rows, tuple(sorted({row for row in begins if 0 < row < first.rows}))

    @property
    def walked(self) -> int:
        """About how many operators of a patch the proof looked at."""
        network = self.region.network
        if self.tiling is not None or not self.proven:
            return self.splits * sum(len(link.reads) for link in network.links)
        network = networks.contracted(network)
        if self.stride is not None:
            return rounds.effort(network, self.stride)
        return proof_any_height.effort(network, self.splits)

    def shrunk(self) -> RegionPlan:
        """Return the same with windows that shrink, where they can (`tiling.shrinking`)."""
        if self.tiling is None or self.rows is None:
            return self
        network = self.region.network
        found = shrink(network, self.steps, self.heights, self.tiling)
        if found is None or proof.prove(network, self.rows, self.tiling, found) is not None:
            return self
        return replace(self, shrinking=found)

    def own_stride(self) -> int | None:
        """Return the steps that each patch has of its own; None if every window is the whole."""
        if self.tiling is None or not self.tiling.trim:
            return None
        free: int = min(free_steps(extent, max) for extent in self.extents)
        return free - self.tiling.trim

    def in_rounds(self, stride: int) -> RegionPlan | Refusal:
        """Return the same with as many patches as an image needs; proven if the plan is.

        Args:
            stride: Steps that each patch has of its own.
        """
        network, label = self.region.network, self.region.label
        notes, tiling, reason = self.notes, None, None
        if self.rows is not None:
            tiling = rounds.tile_rounds(self.extents, stride)
            reason = proof.prove(network, self.rows, tiling)
        elif self.proven:
            reason, alone = _proven(self.region, partial(_prove_rounds, stride=stride))
            notes = (*(note for note in notes if note != _given_alone(self.region)), *alone)
        if reason is not None:
            return Refusal(label, reason, "not-provable")
        splits = self.splits if tiling is None else len(tiling.patches)
        return replace(
            self, splits=splits, tiling=tiling, shrinking=None, stride=stride, notes=notes
        )

    def at_every_height(self, shapes: Shapes, opset: int) -> RegionPlan | Refusal:
        """Return the same proven.

        Args:
            shapes: Known shapes.
            opset: Version of the default domain.
        """
        if self.proven:
            return self
        if self.stride is not None:
            return replace(self, proven=True).in_rounds(self.stride)
        return plan_region(self.region, shapes, self.splits, opset)


def _prove_rounds(network: networks.Network, stride: int) -> str | None:
    network = networks.contracted(network)
    if rounds.effort(network, stride) > _MOST_EFFORT:
        return "its patches are too tall to prove every height"
    return rounds.prove_rounds(network, stride)


def _prove_shares(network: networks.Network, splits: int) -> str | None:
    network = networks.contracted(network)
    if proof_any_height.effort(network, splits) > _MOST_EFFORT:
        return (
            "its stride, kernel or number of splits is too large to prove every height; fix the "
            "height with shapes="
        )
    return proof_any_height.prove_every_height(network, splits)


def _proven(
    region: Region, prove: Callable[[networks.Network], str | None]
) -> tuple[str | None, tuple[str, ...]]:
    """Prove a region at every height, or else at those that are given for it.

    Args:
        region: The region.
        prove: Returns why a network cannot be proven, None if it is.

    Returns:
        Why not, None if it is proven; and what is to be said of it.
    """
    reason = prove(region.network)
    if reason is None or region.heights is None:
        return reason, ()
    least, most = region.heights
    reason = prove(replace(region.network, least=least, most=most))
    return reason, () if reason else (_given_alone(region),)


def _given_alone(region: Region) -> str:
    least, most = region.heights or (1, 1)
    return (
        f"proven where its input has {least} to {most} rows, which is what the ranges given with "
        "shapes= come to there, and at no other height"
    )


def plan_region(
    region: Region, shapes: Shapes, splits: int, opset: int, *, put_off: bool = False
) -> RegionPlan | Refusal:
    """Cut a region into patches and prove it.

    Args:
        region: The region.
        shapes: Known shapes, or assumed ones where a plan is made to be weighed alone.
        splits: Patches asked for, at least 1.
        opset: Version of the default domain.
        put_off: What has to be proven at every height is not yet (`RegionPlan.proven`).
    """
    if region.rows(shapes) is not None:
        region = region.at(shapes)
    label, network = region.label, region.network
    if splits == 1:
        return Refusal(label, "one patch is the whole Conv", "one-patch")
    step = networks.steps(network)
    if isinstance(step, str):
        return Refusal(label, step, "not-provable")
    edges = (*region.inputs, *region.outputs)
    ranks = tuple(region.rank or len(shapes.dims.get(edge.name, ())) for edge in edges)
    rows = region.rows(shapes)
    if rows is None:
        refused = _refused_at_run_time(region, opset)
        if refused is not None:
            return refused
        reason, alone = None, tuple[str, ...]()
        if not put_off:
            reason, alone = _proven(region, partial(_prove_shares, splits=splits))
        if reason is not None:
            return Refusal(label, reason, "not-provable")
        try:
            extents = proof.extents(network, None, networks.first_height(network))
        except ValueError as error:  # no height fits: a proof would find it, too
            return Refusal(label, str(error), "not-provable")
        return RegionPlan(
            region, splits, None, step, extents, ranks, None, alone, proven=not put_off
        )
    whole = networks.heights(network, rows)
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


def _refused_at_run_time(region: Region, opset: int) -> Refusal | None:
    """Return why a region cannot be cut where its height is known when it runs, None if it may."""
    label = region.label
    if any(ROWS in numbers for link in region.links for numbers in link.constants.values()):
        reason = "it holds sizes that are known at run time alone; fix them with shapes="
        return Refusal(label, reason, "size-unknown")
    if opset < 10:
        return Refusal(
            label,
            f"opset {opset} cannot slice at sizes known at run time alone; fix them with "
            "shapes=, or convert with upgrade_opset=13",
            "opset-too-old",
        )
    return None
