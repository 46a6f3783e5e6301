"""Whether a memory budget and a limit on buffers are kept, before anything is cut and after."""

from __future__ import annotations

from math import prod

from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.memory.peak import Peak, size_text
from patchconv_deploy.rewriters.options import OLDEST_OPSET, TOO_OLD, Options
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.offers import typed_size
from patchconv_deploy.rewriters.planning.peak_holders import unknown_sizes
from patchconv_deploy.rewriters.planning.written_tensors import WrittenTensor, fixed_tensors

__all__ = ["check_budget", "check_buffers", "fits_as_it_is"]


def fits_as_it_is(
    facts: ModelFacts,
    options: Options,
    before: Peak,
    largest: WrittenTensor | None,
    *,
    already: bool,
) -> bool:
    """Tell whether a model keeps the budget and the limit on buffers that are given as it is.

    Args:
        facts: The model.
        options: What is asked for.
        before: Its predicted peak.
        largest: Its largest activation, None where its size is unknown.
        already: It was rewritten before.

    Raises:
        BudgetError: It has to be cut for that and cannot be, or nobody can tell.
    """
    budget, most = options.memory_budget, options.max_tensor_elements
    buffer = options.max_buffer
    limits = (budget, most, buffer)
    if before.unknown and any(limit is not None for limit in limits):
        found = unknown_sizes(facts)
        raise BudgetError(
            "nobody can tell whether a budget is kept, as the predicted peak is unknown; "
            f"{found.reason}: {found.advice}"
        )
    needs = None
    if budget is not None and before.need > budget:
        needs = f"{size_text(before.need)}, the budget is {size_text(budget)}"
    elements = [prod(dims) for name in facts.bytes if (dims := _sized(facts, name))]
    if most is not None and max(elements, default=0) > most:
        needs = needs or f"a tensor of {max(elements)} elements, {most} are asked for"
    if buffer is not None and largest is not None and largest.bytes > buffer:
        large = f"{size_text(largest.bytes)} for {largest.name}"
        needs = needs or f"a buffer of {large}, {size_text(buffer)} are asked for"
    if needs is not None and already:
        raise BudgetError(
            f"the model was rewritten before (it holds a plan) and is not cut again, and needs "
            f"{needs}; give the original"
        )
    if needs is not None and facts.certain.opset < OLDEST_OPSET:
        raise BudgetError(f"{TOO_OLD.format(facts.certain.opset)}; as it is it needs {needs}")
    if buffer is not None:
        _check_fixed(facts, buffer)
    return (budget is not None or buffer is not None) and needs is None


def _check_fixed(facts: ModelFacts, buffer: int) -> None:
    """Refuse a limit below what no cut makes smaller.

    Raises:
        BudgetError: An input, an output or a weight is larger.
    """
    found = [tensor for tensor in fixed_tensors(facts) if tensor.bytes > buffer]
    if found:
        names = ", ".join(f"{tensor.name} ({size_text(tensor.bytes)})" for tensor in found[:3])
        raise BudgetError(
            f"inputs, outputs and weights stay as large as they are, more than "
            f"{size_text(buffer)}: {names}; at least max_buffer='{typed_size(found[0].bytes)}' is "
            "needed, or smaller inputs"
        )


def check_buffers(options: Options, largest: WrittenTensor | None) -> None:
    """Hold a result against the limit on buffers; a plan that is given was made for another one.

    Raises:
        BudgetError: It is not kept, or nobody can tell.
    """
    if options.max_buffer is None:
        return
    if largest is None:
        raise BudgetError("nobody can tell whether max_buffer= is kept: sizes are unknown")
    if largest.bytes > options.max_buffer:
        raise BudgetError(
            f"{largest.name} stays at {size_text(largest.bytes)}, of "
            f"{size_text(options.max_buffer)} asked for; "
            f"max_buffer='{typed_size(largest.bytes)}' is kept"
        )


def _sized(facts: ModelFacts, name: str) -> tuple[int, ...]:
    """Return a tensor's shape, nothing where any of it is unknown."""
    dims = facts.sizing.dims.get(name) or ()
    return () if None in dims else tuple(size or 0 for size in dims)


def check_budget(options: Options, after: Peak | None) -> None:
    """Hold a result against the budget; a plan that is given was made for another one.

    Raises:
        BudgetError: It is not kept, or nobody can tell.
    """
    if options.memory_budget is None:
        return
    if after is None or after.unknown:
        raise BudgetError("nobody can tell whether the budget is kept: sizes are unknown")
    if after.need > options.memory_budget:
        raise BudgetError(
            f"the plan needs {size_text(after.need)}, the budget is "
            f"{size_text(options.memory_budget)}; leave one of the two out"
        )
