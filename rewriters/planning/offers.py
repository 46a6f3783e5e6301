"""Budgets that can be kept, and what to ask for in place of one that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from patchconv_deploy.rewriters.errors import BudgetError, Offer
from patchconv_deploy.rewriters.memory.peak import Peak, size_text
from patchconv_deploy.rewriters.planning.evaluated_plan import EvaluatedPlan, pareto_front
from patchconv_deploy.rewriters.planning.stage_graph import StageGraph
from patchconv_deploy.rewriters.planning.stages import Limits

__all__ = ["MARGIN", "budget_error", "tensor_error", "to_ask", "typed_size"]


# Kept back of a budget: the prediction is this much too low at worst on the tests' models.
MARGIN = 0.05

# No plan has as many patches.
_PLENTY = 192


def to_ask(need: int) -> int:
    """Return the least budget that a plan of a predicted need keeps, the margin included."""
    return -(-need * 100 // (100 - round(100 * MARGIN)))


def budget_error(
    plans: Sequence[EvaluatedPlan],
    limits: Limits,
    plain: Peak,
    graph: StageGraph,
    *,
    too_large: bool,
    fixing: str = "",
) -> BudgetError:
    """Return the error that no plan keeps the budget, with what to ask for instead.

    Args:
        plans: The plans that keep all limits but the budget, the least time first.
        limits: What is asked for.
        plain: Predicted peak of the model as it is.
        graph: The stages of one order of its nodes.
        too_large: It has larger tensors than the limits allow.
        fixing: How to fix sizes that are free; said where no plan found lowers the peak.
    """
    least = min((plan.peak for plan in plans), key=lambda peak: peak.need, default=None)
    offers = _offers(plans, plain) if limits.budget < inf and not too_large else ()
    there = least if least is not None and least.need < plain.need else plain
    advice = _advice(offers, limits) if offers else ""
    if fixing and there is plain:
        advice += f"{'; ' * bool(advice)}{fixing}"
    held = ", ".join(f"{name} ({size_text(size)})" for name, size in there.alive[:3])
    held += " and others" if len(there.alive) > 3 else ""
    # What to do stands first, for the reasons are long.
    return BudgetError(
        f"a budget of {size_text(limits.budget)}, less {MARGIN:.0%} for the prediction's error, "
        f"cannot be met. {f'{advice}. ' if advice else ''}The smallest peak found is "
        f"{size_text(there.need)} (predicted, at {there.at!r}, held by {held}); what cannot be cut "
        f"takes {size_text(graph.bound)} by itself",
        offers,
    )


def tensor_error(limits: Limits, graph: StageGraph, kept: int | None) -> BudgetError:
    """Return the error that no plan keeps every tensor as small as asked for.

    Args:
        limits: What is asked for.
        graph: The stages of one order of the nodes.
        kept: Bytes that some plan keeps every tensor at; None where that is not known.
    """
    most, found = limits.tensor, graph.untileable(limits.tensor)[:3]
    if most.bytes is None:
        names = ", ".join(tensor.name for tensor in found)
        said = f"tensors of more than {most.elements} elements stay, whatever is cut"
        return BudgetError(said + (f": {names}" if names else ""))
    what = size_text(most.bytes)
    if most.elements is not None:
        what += f" and {most.elements} elements"
    said = f"no plan was found that keeps every tensor within {what}"
    if found:
        names = ", ".join(f"{tensor.name} ({size_text(tensor.size)})" for tensor in found)
        said += f"; read whole, and no smaller whatever is cut: {names}"
    if kept is not None:
        said += f"; max_buffer='{typed_size(kept)}' can be kept"
    return BudgetError(said)


def typed_size(size: int) -> str:
    """Return bytes as they are typed: rounded up to a tenth, so that it is enough."""
    for unit, letters in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{-(-size * 10 // unit) / 10:g}{letters}"
    return f"{size}B"


def _offers(plans: Sequence[EvaluatedPlan], plain: Peak) -> tuple[Offer, ...]:
    """Return budgets that are kept, the smallest first; the last is the model as it is."""
    found = [Offer(plain.need, 1.0, 1.0)]
    for plan in pareto_front(plans, plain.need):
        budget = to_ask(plan.peak.need)
        if budget < found[-1].budget:
            found.append(Offer(budget, plan.figures.recompute, plan.figures.time))
    return tuple(reversed(found))


def _advice(offers: Sequence[Offer], limits: Limits) -> str:
    """Return what to ask for instead: the smallest budget that is kept, and the next cheaper."""
    asked = [
        f"{_asked(offer.budget)} or more ({offer.recompute:.2f}x the work, {offer.time:.2f}x the "
        "time)"
        if offer.time != 1
        else f"{_asked(offer.budget)} or more (the model as it is)"
        for offer in offers[:2]
    ]
    tight = []
    if limits.recompute < inf:
        tight.append("more recompute")
    if limits.splits < _PLENTY:
        tight.append("more patches")
    allowed = f"; or allow {' or '.join(tight)}" if tight else ""
    return f"Raise the budget to {', or to '.join(asked)}{allowed}"


def _asked(size: float) -> str:
    """Return a size for people, rounded up, so that what is asked for is enough."""
    if size >= 2**20:
        return f"{-(-size * 10 // 2**20) / 10:,.1f} MiB"
    return f"{-(-size * 10 // 2**10) / 10:,.1f} KiB" if size >= 2**10 else f"{size} bytes"
