"""A plan with its predicted peak and work, and the front of those that none beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from rewriters.emission.fragment import Fragment
from rewriters.memory.peak import Peak
from rewriters.planning.emitted_region import Draft
from rewriters.planning.model_facts import ModelFacts
from rewriters.regions.tiled_region import RegionPlan

__all__ = ["LITTLE", "Candidate", "Point", "front", "recompute_of"]


# Forms that are weighed, the plainest first.
LITTLE = 0.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that was weighed.

    Attributes:
        form: The form of its regions.
        regions: Number of regions.
        splits: Most patches of a region.
        peak: Predicted need on the engine in view, bytes (`memory.Peak.need`).
        touched: Bytes that are ever written to, `memory.Peak.touched`.
        recompute: Work after over before.
        time: Predicted time after over before: the work, and what is copied.
        fits: It keeps the limits.
        taken: It is the one that was taken.
        order: Name of the order of the nodes, `planning.orders.run_rank_of`.
        unknown: Activations of unknown size; while there are any, the peak is not known.
        loading: Predicted bytes that the process grows by while it loads.
        process: The same, loading and running together.
    """

    form: str
    regions: int
    splits: int
    peak: int
    recompute: float
    time: float
    fits: bool
    taken: bool = False
    order: str = "file"
    unknown: int = 0
    touched: int = 0
    loading: int = 0
    process: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Point:
    """A plan that was weighed, with what it is made of.

    Attributes:
        regions: Its regions, windows uniform.
        drafts: The same as nodes.
        candidate: Its figures.
        peak: The predicted peak.
        level: Most bytes held.
        needs: Per region the most and the least bytes held while it runs.
        around: Most bytes held while other nodes run.
    """

    regions: tuple[RegionPlan, ...]
    drafts: tuple[Draft, ...]
    candidate: Candidate
    peak: Peak
    level: int
    needs: tuple[tuple[int, int], ...]
    around: int


def front(points: Iterable[Point], above: float = inf) -> list[Point]:
    """Return the plans that no other beats in both, the least time first.

    Args:
        points: Plans, the least time first.
        above: Only plans that need less than that, bytes.
    """
    found: list[Point] = []
    for point in points:
        if point.peak.need < (found[-1].peak.need if found else above):
            found.append(point)
    return found


def recompute_of(
    facts: ModelFacts, drafts: Sequence[Draft], order: Sequence[int | Fragment]
) -> float | None:
    """Return the work after over before, at assumed sizes where a height is known at run time.

    Args:
        facts: The model.
        drafts: Its regions.
        order: Their arrangement in the graph.

    Returns:
        None where not even assumed sizes are known.
    """
    work = facts.work
    after = sum(work[item] for item in order if isinstance(item, int))
    for entry in drafts:
        share = entry.recompute(facts, assume=True)
        if share is None:
            return None
        after += share * sum(work[at] for at in entry.plan.region.nodes)
    return after / sum(work) if sum(work) else 1.0
