"""What weighing the plans of a model may cost, and has cost.

Effort is counted, not timed, so that the same plans are weighed on every machine: in nodes that are
predicted (20 to 30 us each), with all else in terms of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from patchconv_deploy.rewriters.planning.progress import Progress

__all__ = ["EMITTED", "LOOKED_FOR", "PROVEN", "Effort"]


# What there is for all plans of a model, and for each of its nodes.
_EFFORT = 100_000

_EFFORT_PER_NODE = 60

# What a node costs that is emitted.
EMITTED = 3

# What a region costs that is looked for, a place or a region, and proven, a node of a patch.
LOOKED_FOR = 0.01

PROVEN = 0.05


class Effort:
    """An account of effort, filled level by level.

    Args:
        nodes: Number of nodes of the model as it is written.

    Attributes:
        whole: What there is for all levels.
        left: What is left of what the levels so far were given; less than nothing where the last
            plan cost more.
        progress: Told what is spent, of what is expected (`expect`).
    """

    def __init__(self, nodes: int) -> None:
        self.whole = float(_EFFORT + _EFFORT_PER_NODE * nodes)
        self.left = 0.0
        self.progress: Progress = lambda what, done, total: None
        self._given = self._total = 0.0

    def expect(self, share: float) -> None:
        """Say which share of the whole the next levels get, for who is told of progress."""
        self._total = self._given + self.whole * share

    def give(self, share: float) -> float:
        """Fill the account for a level, by a share of the whole; return how much that is.

        What a level leaves is not for the next: each has what it is worth.
        """
        self._given += share * self.whole - max(0.0, self.left)
        self.left = min(0.0, self.left) + share * self.whole
        return share * self.whole

    @contextmanager
    def apart(self, share: float) -> Iterator[None]:
        """Have a share of the whole for one thing, and nothing else; what it leaves is gone."""
        kept, given = self.left, share * self.whole
        self.left, self._given = given, self._given + given - kept
        self._total += given
        try:
            yield
        finally:
            unused, self.left = self.left, kept
            self._given += kept - unused
            self._total -= unused

    def spend(self, effort: float) -> None:
        """Take from what is left."""
        self.left -= effort
        spent = int(max(0.0, min(self._given - self.left, self._total)))
        self.progress("weighing plans", spent, int(self._total))
