"""Write the original so that it adds up large sums in steps, which rounds less.

A runtime adds the values of an image up one after the other. The more it adds, the less of each is
left in the sum: of 2^22 values ONNX Runtime's mean and variance are off by 1e-3, of 2^24 by 1e-2
(version 1.32 on the CPU, measured). A rewritten model that adds row by row is nearer to the truth
there, and so far from the original. It is compared with the original in steps then:

    mean over H and W  ->  mean over W, mean over H         the same number, of far shorter sums

    InstanceNormalization, GroupNormalization,              mean and variance written out
    LayerNormalization
    ReduceMean, ReduceSum, GlobalAveragePool                one dimension after the other

A dimension of more than 2^11 is taken apart into factors first. Left as it is: what has fewer than
2^16 values in a sum, what is not float32, what is of unknown size. The rewriter's own way to merge
statistics is not used here, since it is what is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isqrt, prod

import onnx
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.facts import facts_of
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.respelling import free_word
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS
from patchconv_deploy.verify.cases import skeleton_at

__all__ = ["with_sums_in_steps"]


# From so many values on a sum is taken in steps.
_MANY = 1 << 16

# A dimension that is longer is taken apart.
_STEP = 1 << 11

_Dims = Sequence[int]


def with_sums_in_steps(
    loaded: Loaded, sizes: Mapping[str, Sequence[int]]
) -> onnx.ModelProto | None:
    """Return a model that adds up in steps, for inputs of given sizes; None if nothing is large.

    Args:
        loaded: The model; not changed.
        sizes: Sizes of its inputs.

    Raises:
        RewriterError: They do not fit the model, or nothing can be known at them.
    """
    facts = facts_of(skeleton_at(loaded, sizes))
    graph = ReadGraph(facts, {}, free_word("in_steps", facts.index.names))
    instead = {
        position: made
        for position, node in enumerate(facts.graph.node)
        if node.domain in ONNX_DOMAINS
        and node.op_type in _WRITTEN
        and (made := _WRITTEN[node.op_type](graph, position))
    }
    if not instead:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(loaded.model)
    del model.graph.node[:]
    for position, node in enumerate(loaded.model.graph.node):
        model.graph.node.extend(instead.get(position, [node]))
    return model


def _known(graph: ReadGraph, name: str) -> tuple[int, ...] | None:
    """Return a tensor's shape, None if that is unknown or the tensor is not float32."""
    dims = graph.shapes.dims.get(name)
    if graph.shapes.elements.get(name) != TensorProto.FLOAT or dims is None or None in dims:
        return None
    return tuple(size or 0 for size in dims)


def _steps(length: int) -> list[int]:
    """Return factors of a length, none above the limit where it has such."""
    if length <= _STEP:
        return [length]
    part = next(by for by in range(isqrt(length), 0, -1) if length % by == 0)
    return [length] if part == 1 else [*_steps(length // part), *_steps(part)]


def _reduced(new: NewNodes, op: str, x: str, dims: _Dims, axes: Sequence[int], suffix: str) -> str:
    """Write a mean or sum over axes, the last first; all dimensions are kept."""
    parts = [_steps(size) if at in axes else [size] for at, size in enumerate(dims)]
    kept = [1 if at in axes else size for at, size in enumerate(dims)]
    places = [at in axes for at, part in enumerate(parts) for _ in part]
    found = new.reshape(x, [size for part in parts for size in part], f"{suffix}_parts")
    for place in reversed([place for place, over in enumerate(places) if over]):
        found = new.reduce(op, found, [place], f"{suffix}_{place}")
    return new.reshape(found, kept, suffix)


def _normalised(new: NewNodes, x: str, dims: _Dims, epsilon: float, first: int = 2) -> str:
    """Write an image less its mean, over its deviation: of all dimensions from ``first`` on."""
    axes = range(first, len(dims))
    mean = _reduced(new, "ReduceMean", x, dims, axes, "mean")
    off = new.add("Sub", [x, mean], "off_mean")
    squared = new.add("Mul", [off, off], "squared")
    variance = _reduced(new, "ReduceMean", squared, dims, axes, "variance")
    above = new.add("Add", [variance, new.number(epsilon, TensorProto.FLOAT, "epsilon")], "above")
    return new.add("Div", [off, new.add("Sqrt", [above], "deviation")], "normalised")


def _scaled(new: NewNodes, x: str, factors: Sequence[str], dims: _Dims, output: str = "") -> str:
    """Write a scale and a shift of each channel, or of whatever the second dimension counts."""
    scale, shift = (
        new.reshape(name, [1, dims[1], *[1] * (len(dims) - 2)], word)
        for name, word in zip(factors, ("scale", "shift"), strict=True)
    )
    return new.add("Add", [new.add("Mul", [x, scale], "scaled"), shift], "shifted", output)


def _instance(graph: ReadGraph, position: int) -> list[onnx.NodeProto]:
    node = graph.node(position)
    dims = _known(graph, node.input[0])
    if dims is None or prod(dims[2:]) < _MANY:
        return []
    new = graph.new(position, node.input[0], node.op_type)
    x = _normalised(new, node.input[0], dims, attributes(node).get("epsilon", 1e-5))
    _scaled(new, x, node.input[1:3], dims, node.output[0])
    return new.nodes


def _group(graph: ReadGraph, position: int) -> list[onnx.NodeProto]:
    node, given = graph.node(position), attributes(graph.node(position))
    dims, groups = _known(graph, node.input[0]), given["num_groups"]
    if dims is None or prod(dims[1:]) // groups < _MANY:
        return []
    new = graph.new(position, node.input[0], node.op_type)
    grouped = [dims[0], groups, dims[1] // groups, *dims[2:]]
    x = new.reshape(node.input[0], grouped, "grouped")
    x = _normalised(new, x, grouped, given.get("epsilon", 1e-5))
    # Before opset 21 a group has a scale, then a channel.
    per_group = dims[1] != groups and _known(graph, node.input[1]) == (groups,)
    if not per_group:
        x = new.reshape(x, dims, "by_channel")
    scaled = _scaled(new, x, node.input[1:3], grouped if per_group else dims)
    new.add("Reshape", [scaled, new.ints(dims, "shape")], "result", node.output[0])
    return new.nodes


def _layer(graph: ReadGraph, position: int) -> list[onnx.NodeProto]:
    node, given = graph.node(position), attributes(graph.node(position))
    dims = _known(graph, node.input[0])
    first = given.get("axis", -1) % len(dims) if dims else 0
    if dims is None or prod(dims[first:]) < _MANY or any(map(graph.is_read, node.output[1:])):
        return []
    new = graph.new(position, node.input[0], node.op_type)
    found = _normalised(new, node.input[0], dims, given.get("epsilon", 1e-5), first)
    # Scale and shift have the normalised dimensions, and broadcast.
    for op, factor in zip(("Mul", "Add"), node.input[1:], strict=False):
        found = new.add(op, [found, factor], op.lower()) if factor else found
    new.add("Identity", [found], "result", node.output[0])
    return new.nodes


def _reduction(graph: ReadGraph, position: int) -> list[onnx.NodeProto]:
    node = graph.node(position)
    dims, axes = _known(graph, node.input[0]), graph.reduced_axes(node)
    if node.op_type == "GlobalAveragePool" and dims is not None:
        axes = tuple(range(2, len(dims)))
    if dims is None or axes is None or prod(dims[at] for at in axes) < _MANY:
        return []
    new = graph.new(position, node.input[0], node.op_type)
    op = "ReduceSum" if node.op_type == "ReduceSum" else "ReduceMean"
    kept = attributes(node).get("keepdims", 1)
    found = _reduced(new, op, node.input[0], dims, axes, "reduced")
    shape = [1 if at in axes else size for at, size in enumerate(dims) if kept or at not in axes]
    new.add("Reshape", [found, new.ints(shape, "shape")], "result", node.output[0])
    return new.nodes


_WRITTEN: Mapping[str, Callable[[ReadGraph, int], list[onnx.NodeProto]]] = {
    "InstanceNormalization": _instance,
    "GroupNormalization": _group,
    "LayerNormalization": _layer,
    "GlobalAveragePool": _reduction,
    "ReduceMean": _reduction,
    "ReduceSum": _reduction,
}
