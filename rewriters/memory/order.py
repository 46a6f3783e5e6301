"""The order in which an engine runs a graph."""

from __future__ import annotations

from collections.abc import Sequence

from patchconv_deploy.rewriters.memory.executed import ExecutedNode

__all__ = ["execution_order", "walk"]


def execution_order(nodes: Sequence[ExecutedNode], *, depth_first: bool) -> list[ExecutedNode]:
    """Return the nodes as they are run.

    Depth first: from the nodes that nothing reads, the last one first; of the nodes that make a
    node's inputs the last one first. A node runs when all it needs have run.
    """
    if not depth_first:
        return list(nodes)
    order = walk([node.reads for node in nodes], [node.makes for node in nodes])
    return [nodes[number] for number in order]


def walk(reads: Sequence[Sequence[str]], makes: Sequence[Sequence[str]]) -> list[int]:
    """Return the numbers of nodes in their order depth first, as `execution_order`."""
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
