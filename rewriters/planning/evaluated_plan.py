"""A plan with its predicted peak and work, and those that none beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.planning.candidates import choice_of
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion
from patchconv_deploy.rewriters.planning.stages import RegionChoice
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["Candidate", "EvaluatedPlan", "choices_of", "original_of", "pareto_front"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """The figures of a plan that was weighed, as they are reported.

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
class EvaluatedPlan:
    """A plan in one form and one order of the nodes, with what is predicted of it.

    Attributes:
        regions: Its regions, windows uniform.
        emitted: The same as nodes.
        figures: What is reported of it.
        peak: The predicted peak.
        level: Most bytes held.
        needs: Per region the most and the least bytes held while it runs.
        around: Most bytes held while other nodes run.
    """

    regions: tuple[RegionPlan, ...]
    emitted: tuple[EmittedRegion, ...]
    figures: Candidate
    peak: Peak
    level: int
    needs: tuple[tuple[int, int], ...]
    around: int


def choices_of(regions: Sequence[RegionPlan]) -> tuple[RegionChoice, ...]:
    """Return what tells the regions of a plan from those of others."""
    return tuple(choice_of(plan.region, plan.splits) for plan in regions)


def original_of(plain: Peak) -> Candidate:
    """Return the figures of the model as it is, by its predicted peak."""
    return Candidate(
        "original",
        0,
        1,
        plain.need,
        1.0,
        1.0,
        fits=True,
        touched=plain.touched,
        loading=plain.weights.loading,
        process=plain.process,
        unknown=plain.unknown,
    )


def pareto_front(plans: Iterable[EvaluatedPlan], above: float = inf) -> list[EvaluatedPlan]:
    """Return the plans that no other beats in both, the least time first.

    Args:
        plans: Plans, the least time first.
        above: Only plans that need less than that, bytes.
    """
    found: list[EvaluatedPlan] = []
    for plan in plans:
        if plan.peak.need < (found[-1].peak.need if found else above):
            found.append(plan)
    return found
