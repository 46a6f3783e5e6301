"""The largest tensor of what would be written: what a limit on one buffer is held against.

Counted are the tensors of the graph and of its bodies at the sizes in question, weights included:
what a runtime makes a buffer for. What it lays out anew for itself is no tensor of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import onnx

from patchconv_deploy.rewriters.graph.external_data import BITS
from patchconv_deploy.rewriters.graph.nodes import bodies
from patchconv_deploy.rewriters.memory.reader import Model
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion, ordered
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor

__all__ = ["WrittenTensor", "fixed_tensors", "largest_of", "largest_tensor"]


class WrittenTensor(NamedTuple):
    """A tensor of a graph, by its bytes first."""

    bytes: int
    name: str


def largest_tensor(model: Model) -> WrittenTensor:
    """Return the largest activation of a graph and its bodies; of unknown sizes none."""
    names = dict.fromkeys([*model.inputs, *(n for node in model.nodes for n in node.makes if n)])
    sized = ((model.tensors.bytes(name), name) for name in names)
    found = [WrittenTensor(size, name) for size, name in sized if size is not None]
    found += [largest_tensor(body) for each in model.bodies.values() for body in each]
    return max(found, key=lambda tensor: tensor.bytes, default=WrittenTensor(0, ""))


def largest_of(
    predictor: MemoryPredictor,
    emitted: Sequence[EmittedRegion],
    run_rank: Sequence[int] | None = None,
) -> WrittenTensor | None:
    """Return the largest activation of the model with these regions, None if sizes are unknown.

    Args:
        predictor: Knows the model.
        emitted: Its regions; none for the model as it is.
        run_rank: When each node is wanted to run, by position; None for the order of the file.
    """
    facts = predictor.facts
    order = ordered(facts, emitted, run_rank, sized=True) if emitted else facts.uncut
    return None if order is None else largest_tensor(predictor.model(order))


def fixed_tensors(facts: ModelFacts) -> list[WrittenTensor]:
    """Return what no cut makes smaller: inputs, outputs and weights, the largest first."""
    graph = facts.slim.graph
    weights = dict(_weights(graph))
    ends = dict.fromkeys(value.name for value in (*graph.input, *graph.output))
    sized = ((facts.sizing.bytes(name), name) for name in ends if name not in weights)
    found = [WrittenTensor(size, name) for size, name in sized if size is not None]
    found += [WrittenTensor(size, name) for name, size in weights.items()]
    return sorted(found, key=lambda tensor: -tensor.bytes)


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    for tensor in graph.initializer:
        yield tensor.name, (prod(tensor.dims) * BITS.get(tensor.data_type, 0) + 7) // 8
    for node in graph.node:
        for body in bodies(node):
            yield from _weights(body)
