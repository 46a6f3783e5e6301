"""Orders that the nodes of a graph may run in, by name.

file      as they stand
engine    as the engine runs the graph as it is
late      what makes more than it reads as late as it can
runs      the same, with row-local nodes together
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence

from patchconv_deploy.rewriters.operators.record import RowLocal
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor

__all__ = ["run_orders", "run_rank_of"]


def run_orders(
    facts: ModelFacts, engine_order: Sequence[int], links: Mapping[int, RowLocal]
) -> dict[str, list[int]]:
    """Return the orders, that of the engine first; none that is equal to it.

    Args:
        facts: The model.
        engine_order: Positions of the nodes as the engine runs them.
        links: The row-local nodes.
    """
    first = list(engine_order)
    others = {
        "file": sorted(first),
        "late": _late_order(facts),
        "runs": _late_order(facts, _by_rows(facts, links)),
    }
    return {"engine": first, **{name: order for name, order in others.items() if order != first}}


def run_rank_of(
    predictor: MemoryPredictor, order: str, engine: str, links: Mapping[int, RowLocal]
) -> list[int] | None:
    """Return when each node runs in an order, by position; None for the order of the file.

    Args:
        predictor: Predicts the model's memory.
        order: Name of the order.
        engine: A key of `memory.targets.ENGINES`.
        links: The row-local nodes.
    """
    if order == "file":
        return None
    if order == "engine":
        nodes: Sequence[int] = predictor.run(engine)[0]
    else:
        facts = predictor.facts
        nodes = _late_order(facts, _by_rows(facts, links) if order == "runs" else ())
    run_rank = [0] * len(nodes)
    for rank, at in enumerate(nodes):
        run_rank[at] = rank
    return run_rank


def _by_rows(facts: ModelFacts, links: Mapping[int, RowLocal]) -> set[int]:
    """Return the row-local nodes but for those that others need the whole result of.

    Keys and values are made of the image's rows, and read whole by each row of queries: they come
    before all that leads to the queries, or else no region holds attention and what it reads.
    """
    graph, index = facts.index.graph, facts.index
    found = set[int]()
    for at in links:
        users = {
            (user, name) for name in facts.executed[at].makes for user in index.users.get(name, ())
        }
        if not users or any(
            graph.node[user].input[place] == name
            for user, name in users
            if user in links
            for place, _ in links[user].carriers
        ):
            found.add(at)
    return found


def _late_order(facts: ModelFacts, together: Collection[int] = ()) -> list[int]:
    """Return an order in which nodes that make more than they read run as late as they can.

    Backwards from the end: of the nodes whose users all stand, the one that sets most bytes free
    comes next. A Resize then runs right before its user, where both can be in one region.

    Args:
        facts: The model.
        together: Row-local nodes: where one is ready it comes before all others, the latest to be
            ready first, so that they stand in long runs.
    """
    index, executed, sizes = facts.index, facts.executed, facts.bytes
    users = [
        {user for name in node.makes for user in index.users.get(name, ())} - {at}
        for at, node in enumerate(executed)
    ]
    waiting = [len(others) for others in users]
    alive = {name for name in index.outputs if sizes.get(name)}
    order: list[int] = []

    def rank(at: int) -> tuple[int, int, int]:
        made = sum(sizes.get(name) or 0 for name in executed[at].makes)
        read = sum(sizes.get(name) or 0 for name in {*executed[at].reads} - alive)
        return -1 - len(order) if at in together else 0, read - made, -at

    ready = [(rank(at), at) for at, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    while ready:
        _, at = heapq.heappop(ready)
        order.append(at)
        alive.update(name for name in executed[at].reads if sizes.get(name))
        for maker in {index.producer[n] for n in executed[at].reads if n in index.producer} - {at}:
            waiting[maker] -= 1
            if not waiting[maker]:
                heapq.heappush(ready, (rank(maker), maker))
    return order[::-1]
