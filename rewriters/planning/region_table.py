"""Candidate regions as columns: a plan looks at every region, and many plans are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from patchconv_deploy.rewriters.planning.stages import CandidateRegion, Figure, Limits, patch_counts

__all__ = ["Hops", "RegionTable"]


# Whole numbers from here on are not counted in 64 bits.
_MOST_WHOLE = 1 << 61


class Hops(NamedTuple):
    """Regions that keep limits, as hops from place to place, by rising end.

    Attributes:
        begins: Their first places.
        ends: Places behind their last.
        splits: Their patches.
        costs: Their extra work, tensors moved included.
    """

    begins: list[int]
    ends: list[int]
    splits: list[int]
    costs: list[float]


class RegionTable:
    """The regions of a stage graph, by rising end, all judged at once.

    Args:
        regions: The regions.
        in_strips: They hand over in strips what can be.
        in_loops: As of `CandidateRegion.peak`.
    """

    def __init__(
        self, regions: Sequence[CandidateRegion], *, in_strips: bool, in_loops: bool = False
    ) -> None:
        self._held = {"in_strips": in_strips, "in_loops": in_loops}
        found = sorted(regions, key=lambda region: region.end)
        # Products of these are taken: of more than 64 bits in numbers of any size.
        most = max((max(r.inside, r.elements, r.buffer, r.free) * r.rows for r in found), default=0)
        whole = np.int64 if most < _MOST_WHOLE else np.object_
        kinds = [
            np.float64 if name in ("work", "saved") else whole for name in CandidateRegion._fields
        ]
        self._all = CandidateRegion(
            *(
                np.array([region[at] for region in found], dtype=kind)
                for at, kind in enumerate(kinds)
            )
        )
        self._at = {(region.begin, region.end): at for at, region in enumerate(found)}
        self._allowed = np.ones(len(found), dtype=bool)
        # Per number of patches the bytes alive at once; per figure those of the largest tensor.
        self._peaks: dict[int, Figure] = {}
        self._largest: dict[tuple[str, int], Figure] = {}

    def __len__(self) -> int:
        return len(self._at)

    def one(self, begin: int, end: int) -> CandidateRegion:
        """Return the region between two places."""
        return self._all.at(self._at[begin, end])

    def peak(self, begin: int, end: int, splits: int) -> int:
        """Return the bytes alive at once in the region between two places."""
        return int(self.one(begin, end).peak(splits, **self._held))

    def forbid(self, begin: int, end: int) -> None:
        """Have no more of the region between two places."""
        self._allowed[self._at[begin, end]] = False

    def _peak(self, splits: int) -> Figure:
        if splits not in self._peaks:
            fewest = np.minimum(splits, self._all.free)
            self._peaks[splits] = self._all.peak(fewest, **self._held)
        return self._peaks[splits]

    def _widest(self, figure: str, splits: int) -> Figure:
        """Return the "elements" or the bytes ("buffer") of the largest tensor."""
        if (figure, splits) not in self._largest:
            fewest = np.minimum(splits, self._all.free)
            whole = getattr(self._all, figure)
            self._largest[figure, splits] = self._all.of_window(whole, fewest)
        return self._largest[figure, splits]

    def hops(self, limits: Limits, alike: int | None = None) -> Hops:
        """Return the regions that keep the limits, each in the fewest patches that do.

        Args:
            limits: The limits.
            alike: All in so many patches, or as many as there can be; None for fewest.
        """
        tried = patch_counts(limits.splits) if alike is None else (alike,)
        if not tried or not len(self):
            return Hops([], [], [], [])
        budget = limits.budget if limits.budget < _MOST_WHOLE else inf
        # In more patches a region holds less: the first number that does is the number of those
        # that do not.
        missed = sum((self._peak(splits) > budget).astype(np.int64) for splits in tried)
        allowed = self._allowed
        for figure, most, broadest in (
            ("elements", limits.tensor.elements, self._all.broadest),
            ("buffer", limits.tensor.bytes, self._all.broadest_buffer),
        ):
            if most is not None:
                wide = [self._widest(figure, splits) > most for splits in tried]
                missed = np.maximum(missed, sum(each.astype(np.int64) for each in wide))
                allowed = allowed & (broadest <= most)
        rows = np.flatnonzero(allowed & (missed < len(tried)))
        found = self._all.at(rows)
        splits = np.minimum(np.array(tried)[missed[rows]], found.free)
        cost = found.cost(splits, shrinks=limits.shrinks)
        return Hops(found.begin.tolist(), found.end.tolist(), splits.tolist(), cost.tolist())
