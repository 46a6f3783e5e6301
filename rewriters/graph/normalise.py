"""What runtimes take and the specification does not, brought into the specification's form.

ONNX Runtime loads models that onnx.checker refuses: nodes in another order than that of the data,
the default domain spelled "ai.onnx" in nodes, a domain that is used and not imported, a graph
without a name, the same initializer twice, initializers before IR version 4 that are no inputs.
All of these have one meaning, and that is written down; what has none is left to the checker.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

import onnx

__all__ = ["normalise"]


_DEFAULT = "ai.onnx"

# Domains that ONNX Runtime defines operators of, all of version 1.
_IMPLIED = ("com.microsoft", "com.microsoft.nchwc")


def normalise(model: onnx.ModelProto) -> tuple[str, ...]:
    """Bring a model into the specification's form, in place.

    Returns:
        What was changed, a sentence each; none if nothing was.
    """
    done = (
        (_sort_all(model.graph), "nodes are sorted: some stood before what they read"),
        (_spell_domain(model), 'the default domain is spelled "", not "ai.onnx"'),
        (_import_domains(model), "domains that are used are imported"),
        (_name(model.graph), "the graph has a name"),
        (
            _drop_twins(model.graph),
            "initializers that were there twice, or had no name, are dropped",
        ),
        (_declare_weights(model), "initializers are inputs as well, as before IR version 4"),
    )
    return tuple(text for changed, text in done if changed)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node and its bodies read; names of a body's own are not told apart."""
    yield from node.input
    for body in _bodies(node):
        for inner in body.node:
            yield from _reads(inner)
        yield from (value.name for value in body.output)


def _sort_all(graph: onnx.GraphProto) -> bool:
    # Inner graphs first: sorting copies nodes.
    done = [_sort(each) for each in reversed(list(_graphs(graph)))]
    return any(done)


def _sort(graph: onnx.GraphProto) -> bool:
    """Sort nodes topologically, as close to their order as can be; not if they form a circle."""
    maker = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    before = [
        {maker[n] for n in _reads(node) if n in maker} - {at} for at, node in enumerate(graph.node)
    ]
    if all(max(others, default=-1) < at for at, others in enumerate(before)):
        return False
    after: dict[int, list[int]] = {}
    for at, others in enumerate(before):
        for other in others:
            after.setdefault(other, []).append(at)
    waiting = [len(others) for others in before]
    ready = [at for at, count in enumerate(waiting) if not count]
    order = []
    while ready:
        at = heapq.heappop(ready)
        order.append(at)
        for user in after.get(at, ()):
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(order) < len(graph.node):
        return False
    nodes = [onnx.NodeProto.FromString(graph.node[at].SerializeToString()) for at in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for body in _bodies(node):
                for inner in _graphs(body):
                    yield from inner.node


def _spell_domain(model: onnx.ModelProto) -> bool:
    changed = False
    for node in _all_nodes(model):
        if node.domain == _DEFAULT:
            node.domain, changed = "", True
    if changed:
        versions = {each.domain: each.version for each in model.opset_import}
        if _DEFAULT in versions and "" not in versions:
            model.opset_import.add(domain="", version=versions[_DEFAULT])
    return changed


def _import_domains(model: onnx.ModelProto) -> bool:
    known = {each.domain for each in model.opset_import}
    used = {node.domain for graph in _graphs(model.graph) for node in graph.node}
    missing = [domain for domain in _IMPLIED if domain in used - known]
    for domain in missing:
        model.opset_import.add(domain=domain, version=1)
    return bool(missing)


def _name(graph: onnx.GraphProto) -> bool:
    if graph.name:
        return False
    graph.name = "graph"
    return True


def _drop_twins(graph: onnx.GraphProto) -> bool:
    changed = False
    for each in _graphs(graph):
        count = Counter(tensor.name for tensor in each.initializer)
        if "" not in count and len(count) == len(each.initializer):
            continue
        first: dict[str, onnx.TensorProto] = {}
        # Two of one name that differ have no one meaning.
        if any(
            tensor != first.setdefault(tensor.name, tensor)
            for tensor in each.initializer
            if count[tensor.name] > 1 and tensor.name
        ):
            continue
        for at in reversed(range(len(each.initializer))):
            name = each.initializer[at].name
            if not name or count[name] > 1:
                count[name] -= 1
                del each.initializer[at]
                changed = True
    return changed


def _declare_weights(model: onnx.ModelProto) -> bool:
    if model.ir_version >= 4:
        return False
    there = {value.name for value in model.graph.input}
    missing = [tensor for tensor in model.graph.initializer if tensor.name not in there]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in missing
    )
    return bool(missing)
