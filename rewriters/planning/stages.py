"""Regions as stages of one path, and the limits that a plan keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from patchconv_deploy.rewriters.planning.work import COPY

__all__ = [
    "ANY_TENSOR",
    "USUAL",
    "CandidateRegion",
    "Figure",
    "LargestTensor",
    "Limits",
    "Plan",
    "RegionChoice",
    "patch_counts",
]


# Numbers of patches that are tried, up to the limit, which is tried itself.
_PATCH_COUNTS = (
    *(*range(2, 7), *range(8, 17, 2), *range(20, 33, 4)),
    *(*range(40, 65, 8), *range(80, 129, 16), 192),
)

# More work than this is seldom wanted.
USUAL = 1.3


@lru_cache
def patch_counts(most: int) -> tuple[int, ...]:
    """Return the numbers of patches that are tried, if no more than ``most`` are wanted."""
    below = tuple(splits for splits in _PATCH_COUNTS if splits < most)
    return (*below, most) if _PATCH_COUNTS[0] <= most <= _PATCH_COUNTS[-1] else below


@dataclass(frozen=True, slots=True)
class LargestTensor:
    """How large a tensor may be.

    Attributes:
        elements: Most elements, None for any number.
        bytes: Most bytes, None for any number.
    """

    elements: int | None = None
    bytes: int | None = None

    def exceeded_by(self, elements: int, size: int) -> bool:
        """Tell whether a tensor of so many elements and bytes is larger."""
        if self.elements is not None and elements > self.elements:
            return True
        return self.bytes is not None and size > self.bytes


ANY_TENSOR = LargestTensor()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan has to keep.

    Attributes:
        budget: Most bytes of activations alive at once.
        recompute: Most work after over before.
        splits: Most patches per region.
        tensor: How large a tensor may be.
        shrinks: Windows may shrink: their work is counted so.
        more: More patches than that may be taken where so few gain nothing.
        alike: Patches of every region that hands strips over; None for the fewest that do.
    """

    budget: float = inf
    recompute: float = inf
    splits: int = _PATCH_COUNTS[-1]
    tensor: LargestTensor = ANY_TENSOR
    shrinks: bool = False
    more: bool = False
    alike: int | None = None


@dataclass(frozen=True, slots=True)
class RegionChoice:
    """A region of a plan: its nodes, the tensors it makes for others, and its patches."""

    nodes: tuple[int, ...]
    wanted: tuple[str, ...]
    splits: int


# A figure of a region; or a column of them, a row for each of many regions.
Figure: TypeAlias = Any


class CandidateRegion(NamedTuple):
    """Nodes ``[begin, end)`` as one region; or many such at once, all attributes columns.

    Attributes:
        begin: First place.
        end: One past the last place.
        work: Multiply-accumulates of all nodes.
        saved: Those of all nodes, each times the steps its output is shorter by at an upper and a
            lower edge together, where windows shrink.
        before: Bytes alive before it.
        inside: Most bytes alive inside, at full height.
        inputs: Bytes of its inputs.
        outputs: Bytes of its outputs.
        largest: Bytes of its largest output.
        joined: Bytes of its largest output that is put together where others are handed over.
        dying: Bytes of inputs that may come in strips and that nobody reads any more.
        free: Steps its outputs leave free, `tiling.patches.free_steps`.
        rows: Rows of the output of most steps.
        step: Its rows per step.
        elements: Elements of its largest tensor.
        buffer: Bytes of its largest tensor.
        broadest: Elements of its largest output.
        broadest_buffer: Bytes of its largest output.
    """

    begin: Figure
    end: Figure
    work: Figure
    saved: Figure
    before: Figure
    inside: Figure
    inputs: Figure
    outputs: Figure
    largest: Figure
    joined: Figure
    dying: Figure
    free: Figure
    rows: Figure
    step: Figure
    elements: Figure
    buffer: Figure
    broadest: Figure
    broadest_buffer: Figure

    def window(self, splits: Figure) -> Figure:
        """Return how many of the `rows` a window has."""
        return self.rows - (self.free + -self.free // splits) * self.step

    def of_window(self, whole: Figure, splits: Figure) -> Figure:
        """Return what a window has of so many bytes or elements, rounded up."""
        return -(-whole * self.window(splits) // self.rows)

    def peak(self, splits: Figure, *, in_strips: bool, in_loops: bool = False) -> Figure:
        """Return the bytes alive at once: whole ones, so that a plan keeps its own peak.

        Args:
            splits: Patches.
            in_strips: What can be handed over in strips is.
            in_loops: Loops hand over, whose inputs are held until they end.
        """
        inside = self.of_window(self.inside, splits)
        if not in_strips:
            return self.before + self.outputs + np.maximum(inside, self.largest)
        # Strips are set free one by one while the outputs grow.
        grown = self.outputs if in_loops else self.outputs - self.dying
        return self.before + np.maximum(inside + np.maximum(grown, 0), grown + self.joined)

    def extra(self, splits: Figure, *, shrinks: bool) -> Figure:
        """Return the extra work: rows computed again."""
        extra = (splits * self.window(splits) / self.rows - 1) * self.work
        if not shrinks:
            return extra
        return np.maximum(0.0, extra - (splits - 1) * self.step / self.rows * self.saved)

    def cost(self, splits: Figure, *, shrinks: bool) -> Figure:
        """Return the extra work, tensors moved included."""
        moved = splits * self.window(splits) / self.rows * self.inputs + 2 * self.outputs
        return self.extra(splits, shrinks=shrinks) + COPY * moved

    def at(self, rows: Figure) -> CandidateRegion:
        """Return one or some of many regions."""
        return CandidateRegion(*(column[rows] for column in self))


class Span(NamedTuple):
    """A region of a plan: its first place, one past its last place, and its patches."""

    begin: int
    end: int
    splits: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A path through the stages.

    Attributes:
        choices: Regions, in order.
        spans: The same as places.
        cost: Extra work, tensors moved included.
        recompute: Work after over before.
        peak: Most bytes alive at once.
    """

    choices: tuple[RegionChoice, ...]
    spans: tuple[Span, ...]
    cost: float
    recompute: float
    peak: int
