"""The original's graph for a picture in which what is cut is one box, and long stretches are.

    region   nodes that run patch by patch
    stretch  nodes as they are that stand one after the other between regions
    node     one node as it is

A stretch is a run of neighbours in an order in which the whole graph can run, so that no path
leaves a box and comes back; boxes make no circle. Constants and arithmetic on sizes are not drawn.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from patchconv_deploy.console import printable
from patchconv_deploy.report.text import shape_text
from patchconv_deploy.rewriters.graph.nodes import captured, node_labels
from patchconv_deploy.rewriters.inspection import TensorSize
from patchconv_deploy.rewriters.operators.record import Shape

__all__ = ["drawing"]

# Nodes that stand alone between two regions are drawn as they are; longer runs are stretches.
_ALONE, _STRETCH = 2, 60


@dataclass
class _Graph:
    """What is drawn of a graph: nodes by position, and which of them read which."""

    labels: Mapping[int, str]
    nodes: Sequence[onnx.NodeProto]
    drawn: list[int] = field(default_factory=list)
    reads: dict[int, dict[int, list[str]]] = field(default_factory=dict)
    given: dict[int, list[str]] = field(default_factory=dict)
    hidden: int = 0


def drawing(
    graph: onnx.GraphProto,
    regions: Sequence[Sequence[str]],
    tensors: Sequence[TensorSize],
    assumed: Mapping[str, Shape],
    kept: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return the picture as data.

    Args:
        graph: The original's main graph.
        regions: Labels of the nodes of each region.
        tensors: Shapes and bytes of activations.
        assumed: Shapes of inputs that have free dimensions.
        kept: Names of the nodes of the rewritten graph. A node that is in no region and not there
            was written anew with the region that it leads to, and is drawn there. None to draw all
            as they are.

    Returns:
        ``nodes``: [label, operator, shape, bytes, box]; ``boxes``: [kind, region or -1, title];
        ``edges``: [from, to, bytes, tensor], nodes by number, the model's inputs and outputs among
        them (operators "input" and "output"); ``hidden``: nodes that are not drawn; ``shared``:
        numbers of nodes that are in several regions; ``again``:
        per region the numbers of those that it runs and another one draws.
    """
    found = _read(graph)
    region_of, shared = _regions_of(found, regions)
    if kept is not None:
        _take_in(found, region_of, kept)
    boxes = _boxes(found, region_of)
    sizes = {tensor.name: tensor for tensor in tensors}
    number = {at: count for count, at in enumerate(found.drawn)}
    nodes: list[list[Any]] = []
    made: list[list[Any]] = [[kind, region, _title(kind, of, found)] for kind, region, of in boxes]
    box_of = {at: count for count, (_, _, members) in enumerate(boxes) for at in members}
    for at in found.drawn:
        node = found.nodes[at]
        results = [sizes[name] for name in node.output if name in sizes]
        shape = shape_text(results[0].shape) if results else ""
        total = sum(tensor.bytes for tensor in results)
        label = printable(found.labels[at])
        nodes.append([label, printable(node.op_type), shape, total, box_of[at]])
    edges: list[list[Any]] = [
        [number[source], number[at], sum(sizes[n].bytes for n in names if n in sizes), names[0]]
        for at, sources in found.reads.items()
        for source, names in sources.items()
    ]
    edges += list(_interface(graph, found, number, nodes, made, sizes, assumed))
    return {
        "nodes": nodes,
        "boxes": made,
        "edges": [[a, b, size, printable(name)] for a, b, size, name in edges],
        "hidden": found.hidden,
        "shared": sorted(number[at] for at in shared),
        "again": [
            sorted(
                number[at] for at in shared if found.labels[at] in names and region_of[at] != each
            )
            for each, names in enumerate(map(set, regions))
        ],
    }


def _read(graph: onnx.GraphProto) -> _Graph:
    """Tell what is to be drawn, and who reads whom."""
    found = _Graph(node_labels(graph), graph.node)
    # None: constant. Else whether it is made of sizes alone.
    kinds: dict[str, bool | None] = {tensor.name: None for tensor in graph.initializer}
    kinds |= {sparse.values.name: None for sparse in graph.sparse_initializer}
    kinds |= {value.name: False for value in graph.input if value.name not in kinds}
    maker: dict[str, int] = {}
    for at, node in enumerate(graph.node):
        names = [name for name in (*node.input, *captured(node)) if name]
        read = {name: kinds.get(name, False) for name in names}
        lively = [name for name, kind in read.items() if kind is False]
        kind: bool | None = False
        if node.op_type == "Shape" or (not lively and any(read.values())):
            kind = True
        elif not lively and not _makes_anew(node):
            kind = None
        kinds |= {name: kind for name in node.output if name}
        if kind is not False:
            found.hidden += 1
            continue
        found.drawn.append(at)
        sources: dict[int, list[str]] = {}
        for name in lively:
            if name in maker:
                sources.setdefault(maker[name], []).append(name)
            else:
                found.given.setdefault(at, []).append(name)
        found.reads[at] = sources
        maker |= {name: at for name in node.output if name}
    return found


def _makes_anew(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")


def _regions_of(found: _Graph, regions: Sequence[Sequence[str]]) -> tuple[dict[int, int], set[int]]:
    """Return the region that each node is drawn in, and the nodes that are in several."""
    positions = {found.labels[at]: at for at in found.drawn}
    region_of: dict[int, int] = {}
    shared: set[int] = set()
    for number, labels in enumerate(regions):
        for label in labels:
            at = positions.get(label)
            if at is None:
                continue
            if at in region_of:
                shared.add(at)
            region_of.setdefault(at, number)
    return region_of, shared


def _take_in(found: _Graph, region_of: dict[int, int], kept: Collection[str]) -> None:
    """Draw nodes that were written anew in the region that reads them, else in one they read.

    Of a normalisation spelled out in several nodes a region names one alone.
    """
    readers: dict[int, list[int]] = {at: [] for at in found.drawn}
    for at, sources in found.reads.items():
        for source in sources:
            readers[source].append(at)
    names = {at: found.nodes[at].name for at in found.drawn if at not in region_of}
    gone = [at for at, name in names.items() if name and name not in kept]
    for order, beside in ((reversed(gone), readers), (gone, found.reads)):
        for at in order:
            near = {region_of.get(other) for other in beside[at]} - {None}
            if at not in region_of and len(near) == 1:
                region_of[at] = near.pop() or 0


def _boxes(found: _Graph, region_of: Mapping[int, int]) -> list[tuple[str, int, tuple[int, ...]]]:
    """Return the boxes in an order they can run in: kind, region or -1, nodes."""
    members: dict[tuple[int, int], list[int]] = {}
    for at in found.drawn:
        key = (1, region_of[at]) if at in region_of else (0, at)
        members.setdefault(key, []).append(at)
    of = {at: key for key, group in members.items() for at in group}
    before: dict[tuple[int, int], set[tuple[int, int]]] = {key: set() for key in members}
    after: dict[tuple[int, int], set[tuple[int, int]]] = {key: set() for key in members}
    for at, sources in found.reads.items():
        for source in sources:
            if of[source] != of[at]:
                before[of[at]].add(of[source])
                after[of[source]].add(of[at])
    boxes: list[tuple[str, int, tuple[int, ...]]] = []
    run: list[int] = []

    def close() -> None:
        boxes.extend(_stretches(run, found))
        run.clear()

    for key in _sorted(members, before, after):
        if key[0] == 1:
            close()
            boxes.append(("region", key[1], tuple(members[key])))
        else:
            run.append(key[1])
    close()
    return boxes


def _sorted(
    members: Mapping[tuple[int, int], Sequence[int]],
    before: Mapping[tuple[int, int], set[tuple[int, int]]],
    after: Mapping[tuple[int, int], set[tuple[int, int]]],
) -> Iterator[tuple[int, int]]:
    """Yield the groups in an order they can run in, as near to the file's as can be."""
    waits = {key: len(others) for key, others in before.items()}
    ready = [(members[key][0], key) for key, count in waits.items() if not count]
    heapq.heapify(ready)
    left = dict.fromkeys(sorted(members, key=lambda key: members[key][0]))
    while left:
        # A node that is drawn in one region and runs in several may close a circle.
        key = heapq.heappop(ready)[1] if ready else next(iter(left))
        if key not in left:
            continue
        del left[key]
        yield key
        for other in after[key]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, (members[other][0], other))


def _stretches(run: Sequence[int], found: _Graph) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yield the boxes of nodes that stand in a row and are not cut.

    A long row ends where the fewest tensors pass on.
    """
    if len(run) <= _ALONE:
        yield from (("node", -1, (at,)) for at in run)
        return
    place = {at: count for count, at in enumerate(run)}
    crossing = [0] * (len(run) + 1)
    for at in run:
        for source in found.reads[at]:
            if source in place:
                crossing[place[source] + 1] += 1
                crossing[place[at] + 1] -= 1
    for count in range(1, len(crossing)):
        crossing[count] += crossing[count - 1]
    begin = 0
    while len(run) - begin > _STRETCH:
        ends = range(begin + _STRETCH // 2, begin + _STRETCH + 1)
        end = min(ends, key=lambda end: (crossing[end], -end))
        yield "stretch", -1, tuple(run[begin:end])
        begin = end
    yield "stretch", -1, tuple(run[begin:])


def _title(kind: str, members: Sequence[int], found: _Graph) -> str:
    if kind == "node":
        return ""
    ends = dict.fromkeys(printable(found.labels[at]) for at in (members[0], members[-1]))
    return " .. ".join(ends)


def _interface(
    graph: onnx.GraphProto,
    found: _Graph,
    number: Mapping[int, int],
    nodes: list[list[Any]],
    boxes: list[list[Any]],
    sizes: Mapping[str, TensorSize],
    assumed: Mapping[str, Shape],
) -> Iterator[list[Any]]:
    """Add the model's inputs and outputs to nodes and boxes; yield their edges."""
    maker = {name: at for at in found.drawn for name in found.nodes[at].output}

    def add(value: onnx.ValueInfoProto, kind: str) -> int:
        dims = value.type.tensor_type.shape.dim
        shape: Shape | None = assumed.get(value.name) or tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in dims
        )
        known = sizes.get(value.name)
        text = shape_text(shape if known is None else known.shape)
        nodes.append([printable(value.name), kind, text, 0, len(boxes)])
        boxes.append([kind, -1, printable(value.name)])
        return len(nodes) - 1

    weights = {tensor.name for tensor in graph.initializer}
    given = {v.name: add(v, "input") for v in graph.input if v.name not in weights}
    for at, names in found.given.items():
        yield from ([given[name], number[at], 0, name] for name in names if name in given)
    for value in graph.output:
        end = add(value, "output")
        if value.name in maker:
            size = sizes[value.name].bytes if value.name in sizes else 0
            yield [number[maker[value.name]], end, size, value.name]
        elif value.name in given:
            yield [given[value.name], end, 0, value.name]
