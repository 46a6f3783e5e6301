"""A Loop of a fixed number of rounds, its body a fragment of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewriters.emission.fragment import Fragment
from rewriters.emission.names import Like

__all__ = ["Result", "add_loop"]


class Result(NamedTuple):
    """What a round makes: a tensor of the body, its shape and its element type."""

    tensor: gs.Variable
    dims: Sequence[int | None]
    kind: int


class _State(NamedTuple):
    """What a round hands to the next: its names before and after, element type and shape."""

    before: str
    after: str
    kind: int
    dims: list[int]


def add_loop(
    fragment: Fragment,
    body: Fragment,
    step: gs.Variable,
    count: int,
    results: Sequence[Result],
    *,
    likes: Sequence[Like],
) -> list[gs.Variable]:
    """Add a Loop without state to a fragment.

    Args:
        fragment: The fragment.
        body: Nodes of one round; it may read any tensor of the surrounding graph.
        step: What the body reads the number of the round from.
        count: Rounds.
        results: What a round makes.
        likes: Shape and element type of each stacked output.

    Returns:
        Per result all rounds' tensors, stacked along a new first dimension.
    """
    # A condition that is always true is left out: TensorRT takes none. Before opset 11 a Loop must
    # have a state.
    states = [_State("going", "still_going", onnx.TensorProto.BOOL, [])]
    if fragment.opset < 11:
        states.append(_State("state", "same_state", onnx.TensorProto.INT64, [1]))
    graph = _graph(body, step, states, results)
    rounds = np.asarray(count)
    inputs: list[gs.Tensor] = [
        gs.Constant(fragment.names.shared(rounds), rounds.astype(np.int64)),
        gs.Variable(""),
        *(fragment.ints([0]) for _ in states[1:]),
    ]
    outputs = [gs.Variable(fragment.name(f"loop/{k}")) for k in range(len(results))]
    fragment.shapes.update(zip((tensor.name for tensor in outputs), likes, strict=True))
    final = [gs.Variable(fragment.name(f"loop/{state.after}")) for state in states[1:]]
    fragment.place("Loop", inputs, [*final, *outputs], "loop", body=(graph, body))
    return outputs


def _graph(
    body: Fragment, step: gs.Variable, states: Sequence[_State], results: Sequence[Result]
) -> onnx.GraphProto:
    """Return a body as a graph: the number of the round and states in, states and results out."""
    nodes = list(body.export()[0])
    befores = [f"{body.base}/{state.before}" for state in states]
    afters = [f"{body.base}/{state.after}" for state in states]
    # Made here, not passed on: TensorRT knows no condition where none is given.
    true = onnx.helper.make_tensor("going", onnx.TensorProto.BOOL, [], [True])
    nodes.append(onnx.helper.make_node("Constant", [], [afters[0]], value=true))
    for before, after in zip(befores[1:], afters[1:], strict=True):
        nodes.append(onnx.helper.make_node("Identity", [before], [after], name=after))
    info = onnx.helper.make_tensor_value_info
    return onnx.helper.make_graph(
        nodes,
        body.base,
        [
            info(step.name, onnx.TensorProto.INT64, []),
            *(info(n, s.kind, s.dims) for n, s in zip(befores, states, strict=True)),
        ],
        [
            *(info(n, s.kind, s.dims) for n, s in zip(afters, states, strict=True)),
            *(info(result.tensor.name, result.kind, result.dims) for result in results),
        ],
    )
