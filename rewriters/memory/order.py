"""The order in which an engine runs a graph."""

from __future__ import annotations

from collections.abc import Sequence

from rewriters.memory.executed import Step

__all__ = ["execution_order", "walk"]


def execution_order(steps: Sequence[Step], *, depth_first: bool) -> list[Step]:
    """Return the steps as they are run.

    Depth first: from the steps that nothing reads, the last one first; of the steps that make a
    step's inputs the last one first. A step runs when all it needs have run.
    """
    if not depth_first:
        return list(steps)
    order = walk([step.reads for step in steps], [step.makes for step in steps])
    return [steps[number] for number in order]


def walk(reads: Sequence[Sequence[str]], makes: Sequence[Sequence[str]]) -> list[int]:
    """Return the numbers of steps in their order depth first, as `execution_order`."""
    maker = {name: number for number, names in enumerate(makes) for name in names}
    needs: list[Sequence[int]] = []
    needed: set[int] = set()
    for names in reads:
        found = {maker[name] for name in names if name in maker}
        needed |= found
        needs.append(sorted(found) if len(found) > 1 else tuple(found))
    stack = [number for number in range(len(reads)) if number not in needed]
    entered = [False] * len(reads)
    result = []
    while stack:
        number = stack.pop()
        if number < 0:
            result.append(~number)
        elif not entered[number]:
            entered[number] = True
            stack.append(~number)
            for need in needs[number]:
                if not entered[need]:
                    stack.append(need)
    return result
