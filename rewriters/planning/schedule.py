"""The nodes of a graph in the order they run, as the search for regions reads them.

Nodes may stand in it more than once: a tensor that lives long can be made again right before its
late user. What a node reads is then the latest version made before it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm, prod

import onnx

from rewriters.memory.targets import Engine
from rewriters.operators.record import FOLDED, RowLocal, is_channelwise
from rewriters.planning.analysis import Analysis

__all__ = ["Schedule", "ScheduledNode", "Tensor", "late_order", "make_schedule"]


@dataclass(slots=True)
class Tensor:
    """One version of an activation.

    Attributes:
        name: Its name in the graph.
        bytes: What it costs to keep: its size, 0 for a constant and for inputs that do not count.
        made_at: Place of the node that makes it, -1 for what is there from the start.
        last_use: Place of the last node that reads it; the length of the schedule if it is
            an output of the graph.
        rows: Rows along the tiled axis, 0 if it has none.
        step: Rows per step of the row-local nodes it is connected to, 0 if it has none.
        component: Number of that set of nodes.
        size: Bytes of the tensor itself.
        elements: Its elements.
        exempt: No tiling can make it smaller: it is an input or output of the graph, or a node that
            cannot be in a region reads or makes it whole.
    """

    name: str
    bytes: int
    made_at: int
    last_use: int
    rows: int = 0
    step: int = 0
    component: int = -1
    size: int = 0
    elements: int = 0
    exempt: bool = False


@dataclass(slots=True)
class ScheduledNode:
    """One node at its place.

    Attributes:
        position: Position in the graph.
        again: It repeats an earlier one; it may lie in a region alone.
        link: Its row map, None where it cannot be in a region.
        carried: Tensors it reads along the tiled axis.
        reads: All activations it reads.
        whole: Those that it does not read along the tiled axis.
        makes: Tensors it makes.
        work: `planning.work.node_work`.
        takes_over: The tensor whose bytes its output has from here on, -1 for none.
        folded: The Conv's result that it is folded into by engines, -1 for none.
    """

    position: int
    again: bool
    link: RowLocal | None
    carried: tuple[int, ...]
    reads: tuple[int, ...]
    whole: tuple[int, ...]
    makes: tuple[int, ...]
    work: float
    takes_over: int = -1
    folded: int = -1


@dataclass(frozen=True)
class Schedule:
    """Nodes and the tensors between them.

    Attributes:
        nodes: In the order they run.
        tensors: Their tensors by number.
        live: Per place, bytes of the tensors made before it and read at or after it; one more
            entry for the end.
    """

    nodes: Sequence[ScheduledNode]
    tensors: Sequence[Tensor]
    live: Sequence[int]

    @cached_property
    def users(self) -> Mapping[int, Sequence[int]]:
        """Places of the nodes that read each tensor, in order."""
        found: dict[int, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for number in node.reads:
                found.setdefault(number, []).append(place)
        return found


def make_schedule(
    analysis: Analysis,
    links: Mapping[int, RowLocal],
    order: Sequence[tuple[int, bool]],
    *,
    engine: Engine,
) -> Schedule:
    """Lay out nodes in an order.

    Args:
        analysis: The model.
        links: Row-local nodes that may be in a region.
        order: Positions of the nodes, and whether each repeats an earlier one.
        engine: How memory is counted.
    """
    facts, index, sizing = analysis.facts, analysis.index, analysis.sizing
    graph = facts.graph
    tensors: list[Tensor] = []
    latest: dict[str, int] = {}

    def new(name: str, made_at: int, size: int) -> int:
        whole, elements = sizing.bytes(name) or 0, prod(d or 1 for d in sizing.dims.get(name) or ())
        tensors.append(Tensor(name, size, made_at, made_at, size=whole, elements=elements))
        latest[name] = len(tensors) - 1
        return latest[name]

    def rows_of(name: str, axis: int) -> int | None:
        # At assumed sizes the model may not fit itself: its shapes, or ranks, are unknown then.
        dims = sizing.dims.get(name, ())
        return dims[axis] if axis < len(dims) else None

    for name in analysis.inputs:
        new(name, -1, (analysis.bytes.get(name) or 0) if engine.holding.counts_inputs else 0)
    nodes: list[ScheduledNode] = []
    for place, (position, again) in enumerate(order):
        node, link = graph.node[position], links.get(position)
        reads = [name for name in analysis.steps[position].reads if name in latest]
        carried = []
        for i, axis in link.carriers if link is not None else ():
            name = node.input[i]
            number = latest[name] if name in latest else new(name, -1, 0)
            rows = rows_of(name, axis)
            if rows is None or tensors[number].rows not in (0, rows):
                link = None
                break
            tensors[number].rows = rows
            carried.append(number)
        along = set(carried)
        read = tuple(dict.fromkeys([*(latest[name] for name in reads), *carried]))
        for number in read:
            tensors[number].last_use = place
        makes = []
        for name in node.output:
            if name and (name in index.users or name in index.outputs):
                made = new(name, place, analysis.bytes.get(name) or 0)
                makes.append(made)
                if link is not None:
                    tensors[made].rows = rows_of(name, link.axis) or 0
        if link is not None and (
            not carried
            or not makes
            or any(tensors[number].rows < 2 for number in makes)
            or any(
                link.row_map.rows_out(tensors[number].rows) != tensors[makes[0]].rows
                for number in carried
            )
        ):
            link = None
        nodes.append(
            ScheduledNode(
                position,
                again,
                link,
                tuple(carried),
                read,
                tuple(number for number in read if number not in along),
                tuple(makes),
                analysis.work[position],
                folded=_folded(analysis, position, carried),
            )
        )
    for name in index.outputs:
        if name in latest:
            tensors[latest[name]].last_use = len(nodes)
    _share(graph.node, nodes, tensors, engine.in_place)
    _step(nodes, tensors)
    whole = {n for o in nodes if o.link is None for n in (*o.reads, *o.makes)}
    for number, tensor in enumerate(tensors):
        outside = tensor.made_at < 0 or tensor.last_use >= len(nodes)
        tensor.exempt = outside or number in whole
    return Schedule(nodes, tensors, _live(len(nodes), tensors))


def _folded(analysis: Analysis, position: int, carried: Sequence[int]) -> int:
    """Return the convolution's result that a node scales or shifts alone, -1 if it is none such.

    Engines scale the weights in its place, which rounds otherwise than the two nodes do.
    """
    graph, index = analysis.facts.graph, analysis.index
    node = graph.node[position]
    if len(carried) != 1 or node.op_type not in FOLDED["Conv"]:
        return -1
    name = node.input[0]
    maker = index.producer.get(name)
    if maker is None or node.op_type not in FOLDED.get(graph.node[maker].op_type, ()):
        return -1
    if len(index.users.get(name, ())) > 1 or name in index.outputs:
        return -1
    if node.op_type != "BatchNormalization":
        dims, other = analysis.sizing.dims, node.input[1]
        if other not in index.constants or not is_channelwise(
            node.op_type, dims.get(other), dims.get(name)
        ):
            return -1
    return carried[0]


def late_order(analysis: Analysis, together: Collection[int] = ()) -> list[int]:
    """Return an order in which nodes that make more than they read run as late as they can.

    Backwards from the end: of the nodes whose users all stand, the one that sets most bytes free
    comes next. A Resize then runs right before its user, where both can be in one region.

    Args:
        analysis: The model.
        together: Row-local nodes: where one is ready it comes before all others, the latest to be
            ready first, so that they stand in long runs.
    """
    index, steps, sizes = analysis.index, analysis.steps, analysis.bytes
    users = [
        {user for name in step.makes for user in index.users.get(name, ())} - {at}
        for at, step in enumerate(steps)
    ]
    waiting = [len(others) for others in users]
    alive = {name for name in index.outputs if sizes.get(name)}
    order: list[int] = []

    def rank(at: int) -> tuple[int, int, int]:
        made = sum(sizes.get(name) or 0 for name in steps[at].makes)
        read = sum(sizes.get(name) or 0 for name in {*steps[at].reads} - alive)
        return -1 - len(order) if at in together else 0, read - made, -at

    ready = [(rank(at), at) for at, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    while ready:
        _, at = heapq.heappop(ready)
        order.append(at)
        alive.update(name for name in steps[at].reads if sizes.get(name))
        for maker in {index.producer[n] for n in steps[at].reads if n in index.producer} - {at}:
            waiting[maker] -= 1
            if not waiting[maker]:
                heapq.heappush(ready, (rank(maker), maker))
    return order[::-1]


def _share(
    operators: Sequence[onnx.NodeProto],
    nodes: Sequence[ScheduledNode],
    tensors: Sequence[Tensor],
    in_place: Collection[str],
) -> None:
    """Let a node that works in place take over the bytes of an input that dies there."""
    for place, node in enumerate(nodes):
        if operators[node.position].op_type not in in_place or len(node.makes) != 1:
            continue
        size = tensors[node.makes[0]].bytes
        for number in node.reads:
            read = tensors[number]
            if read.last_use == place and read.bytes == size and read.made_at >= 0:
                node.takes_over = number
                break


def _step(nodes: Sequence[ScheduledNode], tensors: Sequence[Tensor]) -> None:
    """Find rows per step for every connected set of row-local nodes; cut where they disagree."""
    touching: dict[int, list[ScheduledNode]] = {}
    for node in nodes:
        if node.link is not None:
            for number in {*node.carried, *node.makes}:
                touching.setdefault(number, []).append(node)
    ratios: dict[int, Fraction] = {}
    for component, start in enumerate(touching):
        if start in ratios:
            continue
        ratios[start] = Fraction(1)
        members, queue = [start], deque([start])
        # Each node once, not once a tensor: a Concat may have hundreds.
        passed: set[int] = set()
        while queue:
            number = queue.popleft()
            for node in touching[number]:
                link = node.link
                if link is None or id(node) in passed:
                    continue
                passed.add(id(node))
                factor = Fraction(link.row_map.step_out, link.row_map.step_in)
                here = ratios[number]
                if number not in node.carried:
                    here /= factor
                wanted = {
                    **dict.fromkeys(node.carried, here),
                    **dict.fromkeys(node.makes, here * factor),
                }
                if any(ratios.get(other, ratio) != ratio for other, ratio in wanted.items()):
                    node.link = None
                    continue
                for other in wanted.keys() - ratios.keys():
                    members.append(other)
                    queue.append(other)
                ratios.update(wanted)
        whole = lcm(*(ratios[number].denominator for number in members))
        rows = [int(ratios[number] * whole) for number in members]
        least = gcd(*rows)
        for number, count in zip(members, rows, strict=True):
            tensors[number].step, tensors[number].component = count // least, component


def _live(count: int, tensors: Collection[Tensor]) -> list[int]:
    change = [0] * (count + 2)
    for tensor in tensors:
        if tensor.last_use > tensor.made_at:
            change[tensor.made_at + 1] += tensor.bytes
            change[tensor.last_use + 1] -= tensor.bytes
    live = [change[0]]
    for delta in change[1 : count + 1]:
        live.append(live[-1] + delta)
    return live
