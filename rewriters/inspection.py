"""What holds a model's memory, and what could be done about it; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from rewriters.analysis import Analysis
from rewriters.choice import candidates_of
from rewriters.memory import Peak
from rewriters.operators import Shape
from rewriters.search import Space

__all__ = ["Barrier", "Inspection", "Run", "TensorSize", "inspect_model"]

_PATCHES = (4, 8, 16)


@dataclass(frozen=True, slots=True)
class TensorSize:
    """An activation: its name, shape, bytes, and the node that makes it."""

    name: str
    shape: Shape | None
    bytes: int
    maker: str


@dataclass(frozen=True, slots=True)
class Barrier:
    """A node that cannot be in a region.

    Attributes:
        node: Its name.
        op_type: Its operator.
        reason: Why.
        bytes: Bytes of what it reads and makes.
    """

    node: str
    op_type: str
    reason: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring row-local nodes, of which regions can be made.

    Attributes:
        first: Its first node.
        last: Its last node.
        nodes: Number of nodes.
        peak: Most bytes alive while it runs as it is.
        tiled: Per number of patches the same with all of it as one region, and work over before;
            empty where it is not one region.
    """

    first: str
    last: str
    nodes: int
    peak: int
    tiled: Mapping[int, tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found; lists are sorted, the largest first.

    Attributes:
        peak: Predicted peak on the engine in view.
        tensors: Activations.
        barriers: Nodes that cannot be in a region and read or make something large.
        runs: Where regions can be.
        assumed: Sizes that free dimensions were counted as.
    """

    peak: Peak
    tensors: tuple[TensorSize, ...]
    barriers: tuple[Barrier, ...]
    runs: tuple[Run, ...]
    assumed: Mapping[str, tuple[int, ...]]


def inspect_model(
    analysis: Analysis, axis: str | int, engine: str, labels: Mapping[int, str]
) -> Inspection:
    """Inspect a model.

    Args:
        analysis: The model.
        axis: "height", "width", "depth" or a dimension of the tensor.
        engine: A key of `rewriters.activation.ENGINES`.
        labels: Names of the nodes.
    """
    found = candidates_of(analysis, axis, frozenset(), engine=engine)
    graph = analysis.facts.graph
    tensors = [
        TensorSize(name, analysis.sizing.dims.get(name), analysis.bytes.get(name) or 0, labels[at])
        for at, node in enumerate(graph.node)
        for name in node.output
        if analysis.bytes.get(name)
    ]
    barriers = [
        Barrier(labels[at], graph.node[at].op_type, reason, size)
        for at, reason in found.reasons.items()
        if at not in found.links and (size := _touched(analysis, graph.node[at]))
    ]
    return Inspection(
        peak=analysis.predict(None, engine),
        tensors=tuple(sorted(tensors, key=lambda each: -each.bytes)),
        barriers=tuple(sorted(barriers, key=lambda each: -each.bytes)),
        runs=tuple(sorted(_runs(found.spaces[0], labels), key=lambda each: -each.peak)),
        assumed=analysis.assumed,
    )


def _touched(analysis: Analysis, node: onnx.NodeProto) -> int:
    return sum(analysis.bytes.get(name) or 0 for name in {*node.input, *node.output})


def _runs(space: Space, labels: Mapping[int, str]) -> list[Run]:
    occurrences = space.program.occurrences
    runs = []
    for begin, end in space.runs():
        whole = next((s for s in space.segments.get(end, ()) if s.begin == begin), None)
        tiled = {
            patches: (whole.peak(patches), patches * whole.window(patches) / whole.rows)
            for patches in _PATCHES
            if whole is not None and patches <= whole.free
        }
        runs.append(
            Run(
                labels[occurrences[begin].node],
                labels[occurrences[end - 1].node],
                end - begin,
                max(space.plain_peaks[begin:end]),
                tiled,
            )
        )
    return runs
