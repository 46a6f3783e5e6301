"""New nodes in the place of old ones, in an order that an engine can run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import onnx

from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.graph.use_def import Index

__all__ = ["arrange", "drop_unused_value_info", "sorted_by", "splice"]


def arrange(
    index: Index, fragments: Mapping[int, Fragment], run_rank: Sequence[int] | None = None
) -> list[int | Fragment] | None:
    """Return the graph's nodes, by position, with fragments in place of what they make.

    Nodes that only served what a fragment makes now are left out. The order is the graph's own,
    but where a fragment has to come earlier or later.

    Args:
        index: The graph.
        fragments: Per position the fragment that stands there.
        run_rank: When each node is wanted to run, by position; None for the order of the file. ONNX
            Runtime walks from the results to what they need, and of two operands makes the one that
            stands later in the file first: so what runs late stands early.

    Returns:
        The new order, None if the fragments depend on each other in a circle.
    """
    graph = index.graph
    covered = {at for fragment in fragments.values() for at in fragment.covers}
    made = {name for fragment in fragments.values() for name in fragment.makes}
    needed = {name for fragment in fragments.values() for name in fragment.reads}
    needed |= index.outputs
    gone = set(covered)
    for position in sorted(covered, reverse=True):
        outputs = index.ends[position][1]
        if not made.isdisjoint(outputs):
            continue
        users = (user for name in outputs for user in index.users.get(name, ()))
        if not needed.isdisjoint(outputs) or not gone.issuperset(users):
            gone.remove(position)
    items: dict[tuple[int, int], int | Fragment] = {}
    for position in range(len(graph.node)):
        if position not in gone:
            items[position, 0] = position
        if position in fragments:
            items[position, 1] = fragments[position]
    return _sorted(index, items, run_rank)


def _sorted(
    index: Index,
    items: Mapping[tuple[int, int], int | Fragment],
    run_rank: Sequence[int] | None,
) -> list[int | Fragment] | None:
    """Sort topologically, as close to the order of the keys as can be."""

    def ends(item: int | Fragment) -> tuple[Iterable[str], Iterable[str]]:
        if isinstance(item, Fragment):
            return item.reads, item.makes
        return index.ends[item]

    keys = list(items)
    maker = {name: at for at, key in enumerate(keys) for name in ends(items[key])[1] if name}
    before = [
        {maker[name] for name in ends(items[key])[0] if name in maker} - {at}
        for at, key in enumerate(keys)
    ]
    if run_rank is None:
        order = sorted_by(before, lambda at: keys[at])
    else:
        order = sorted_by(before, lambda at: (-run_rank[keys[at][0]], -keys[at][1]))
    return [items[keys[at]] for at in order] if len(order) == len(items) else None


def sorted_by(before: Sequence[Collection[int]], key: Callable[[int], Any]) -> list[int]:
    """Sort numbers topologically, as close to the order of their keys as can be.

    Args:
        before: Per number those that have to come before it.
        key: What to sort by.

    Returns:
        The numbers in order; without those in a circle or behind one.
    """
    waiting = [len(others) for others in before]
    after: dict[int, list[int]] = {}
    for at, others in enumerate(before):
        for other in others:
            after.setdefault(other, []).append(at)
    ready = [(key(at), at) for at, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, at = heapq.heappop(ready)
        order.append(at)
        for other in after.get(at, ()):
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, (key(other), other))
    return order


def splice(model: onnx.ModelProto, order: Sequence[int | Fragment]) -> None:
    """Give the main graph the nodes of an arrangement, in place; others stay as they are.

    Integer constants become initializers; Constant nodes before IR version 4, which lists every
    initializer among the model's inputs.

    Args:
        model: The model.
        order: `arrange` of its graph.
    """
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    for item in order:
        if isinstance(item, Fragment):
            new, used = item.export()
            nodes.extend(new)
            for name, tensor in used.items():
                constants.setdefault(name, tensor)
        else:
            nodes.append(model.graph.node[item])
    if model.ir_version >= 4:
        model.graph.initializer.extend(constants.values())
    else:
        nodes[:0] = [
            onnx.helper.make_node("Constant", [], [name], name=name, value=tensor)
            for name, tensor in constants.items()
        ]
    # Messages keep their content when the list they came from is emptied.
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def drop_unused_value_info(graph: onnx.GraphProto, gone: Iterable[str]) -> None:
    """Drop the shapes of tensors that no longer exist, in place."""
    names = set(gone)
    if not any(value.name in names for value in graph.value_info):
        return
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)
