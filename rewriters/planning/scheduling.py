"""Nodes laid out in an order: versions of tensors, how long each lives, and rows per step."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import gcd, lcm, prod

import onnx

from patchconv_deploy.rewriters.memory.targets import Engine
from patchconv_deploy.rewriters.operators.record import FOLDED, RowLocal, is_channelwise
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.schedule import Entry, Schedule, ScheduledNode, Tensor
from patchconv_deploy.rewriters.tiling.row_maps import Fitted

__all__ = ["make_schedule"]


def make_schedule(
    facts: ModelFacts,
    links: Mapping[int, RowLocal],
    order: Sequence[Entry],
    *,
    engine: Engine,
) -> Schedule:
    """Lay out nodes in an order.

    Args:
        facts: The model.
        links: Row-local nodes that may be in a region.
        order: The nodes.
        engine: How memory is counted.
    """
    layout = _Layout(facts, counts_inputs=engine.holding.counts_inputs)
    for entry in order:
        layout.add(entry, links.get(entry.position))
    nodes, tensors = layout.nodes, layout.tensors
    for number in layout.outputs():
        tensors[number].last_use = len(nodes)
    _share(facts.certain.graph.node, nodes, tensors, engine.in_place)
    _step(nodes, tensors)
    whole = {n for node in nodes if node.link is None for n in (*node.reads, *node.makes)}
    shared = {number for node in nodes for number in node.whole}
    for number, tensor in enumerate(tensors):
        outside = tensor.made_at < 0 or tensor.last_use >= len(nodes)
        tensor.untileable = outside or number in whole
        tensor.in_strips = not tensor.untileable and number not in shared
    return Schedule(nodes, tensors, _live(len(nodes), tensors))


class _Layout:
    """Nodes one after the other, and the versions of tensors between them.

    Args:
        facts: The model.
        counts_inputs: Inputs of the graph cost something to keep.
    """

    def __init__(self, facts: ModelFacts, *, counts_inputs: bool) -> None:
        self.nodes: list[ScheduledNode] = []
        self.tensors: list[Tensor] = []
        self._facts = facts
        # Number of the latest version of each tensor.
        self._latest: dict[str, int] = {}
        for name in facts.inputs:
            self._new(name, -1, (facts.bytes.get(name) or 0) if counts_inputs else 0)

    def outputs(self) -> list[int]:
        """Return the tensors that are outputs of the graph."""
        names = self._facts.index.outputs
        return [self._latest[name] for name in names if name in self._latest]

    def add(self, entry: Entry, link: RowLocal | None) -> None:
        """Place a node after those before it.

        Args:
            entry: The node.
            link: Its row map; not taken where the sizes do not fit it.
        """
        facts, position, latest = self._facts, entry.position, self._latest
        reads = [name for name in facts.executed[position].reads if name in latest]
        link, carried = self._carried(position, link)
        along = set(carried)
        read = tuple(dict.fromkeys([*(latest[name] for name in reads), *carried]))
        for number in read:
            self.tensors[number].last_use = len(self.nodes)
        makes = self._make(position, link)
        if link is not None and not self._is_tiled(link, carried, makes):
            link = None
        self.nodes.append(
            ScheduledNode(
                position,
                entry.rematerialised,
                link,
                tuple(carried),
                read,
                tuple(number for number in read if number not in along),
                tuple(makes),
                facts.work[position],
                folded=_folded(facts, position, carried),
            )
        )

    def _new(self, name: str, made_at: int, kept: int) -> int:
        """Return the number of a new version of a tensor, of so many bytes to keep."""
        sizing = self._facts.sizing
        size, elements = sizing.bytes(name) or 0, prod(d or 1 for d in sizing.dims.get(name) or ())
        self.tensors.append(Tensor(name, kept, made_at, made_at, size=size, elements=elements))
        self._latest[name] = len(self.tensors) - 1
        return self._latest[name]

    def _rows(self, name: str, axis: int) -> int | None:
        # At assumed sizes the model may not fit itself: its shapes, or ranks, are unknown then.
        dims = self._facts.sizing.dims.get(name, ())
        return dims[axis] if axis < len(dims) else None

    def _carried(self, position: int, link: RowLocal | None) -> tuple[RowLocal | None, list[int]]:
        """Return a node's row map, None if it does not fit, and what it reads along the axis."""
        node = self._facts.certain.graph.node[position]
        link = None if link is None else self._at_sizes(link)
        carried: list[int] = []
        for i, axis in link.carriers if link is not None else ():
            name = node.input[i]
            number = self._latest[name] if name in self._latest else self._new(name, -1, 0)
            rows = self._rows(name, axis)
            if rows is None or self.tensors[number].rows not in (0, rows):
                return None, carried
            self.tensors[number].rows = rows
            carried.append(number)
        return link, carried

    def _at_sizes(self, link: RowLocal) -> RowLocal | None:
        """Return a node's rows at the sizes that are assumed, None where they are not known."""
        if not isinstance(link.row_map, Fitted):
            return link
        place = self._facts.certain.free.places.get(link.row_map.symbol)
        height = None if place is None else self._rows(*place)
        return None if height is None else replace(link, row_map=link.row_map.at(height))

    def _make(self, position: int, link: RowLocal | None) -> list[int]:
        """Return new versions of what a node makes that somebody reads."""
        facts, makes = self._facts, []
        for name in facts.certain.graph.node[position].output:
            if name and (name in facts.index.users or name in facts.index.outputs):
                made = self._new(name, len(self.nodes), facts.bytes.get(name) or 0)
                makes.append(made)
                if link is not None:
                    self.tensors[made].rows = self._rows(name, link.axis) or 0
        return makes

    def _is_tiled(self, link: RowLocal, carried: Sequence[int], makes: Sequence[int]) -> bool:
        """Tell whether the rows that a node reads and makes are those of its row map."""
        tensors = self.tensors
        return (
            bool(carried)
            and bool(makes)
            and all(tensors[number].rows >= 2 for number in makes)
            and all(
                link.row_map.rows_out(tensors[number].rows) == tensors[makes[0]].rows
                for number in carried
            )
        )


def _folded(facts: ModelFacts, position: int, carried: Sequence[int]) -> int:
    """Return what a region has to make together with the node, -1 if there is nothing.

    The convolution's result that it alone scales or shifts: engines scale the weights in its place,
    which rounds otherwise than the two nodes do. And the first part of a statistic of each row,
    which must leave a patch as one tensor.
    """
    graph, index = facts.certain.graph, facts.index
    node = graph.node[position]
    if node.op_type == "Concat" and node.output[0] in facts.rows_of_statistics:
        return carried[0] if carried else -1
    if len(carried) != 1 or node.op_type not in FOLDED["Conv"]:
        return -1
    name = node.input[0]
    maker = index.producer.get(name)
    if maker is None or node.op_type not in FOLDED.get(graph.node[maker].op_type, ()):
        return -1
    if len(index.users.get(name, ())) > 1 or name in index.outputs:
        return -1
    if node.op_type != "BatchNormalization":
        dims, other = facts.sizing.dims, node.input[1]
        if other not in index.constants or not is_channelwise(
            node.op_type, dims.get(other), dims.get(name)
        ):
            return -1
    return carried[0]


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
