"""A Loop, its body a fragment of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.names import Like
from patchconv_deploy.rewriters.emission.opset_nodes import add_reshape, add_slice

__all__ = ["Result", "add_assumed_loop", "add_collecting_loop", "add_loop"]


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

    def info(self, name: str) -> onnx.ValueInfoProto:
        """Return its type under a name."""
        return onnx.helper.make_tensor_value_info(name, self.kind, self.dims)


class _Pieces(NamedTuple):
    """What rounds have made so far, as a sequence: its names before and after, element type."""

    before: str
    after: str
    kind: int

    def info(self, name: str) -> onnx.ValueInfoProto:
        """Return its type under a name."""
        return onnx.helper.make_tensor_sequence_value_info(name, self.kind, None)


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


def add_collecting_loop(
    fragment: Fragment,
    body: Fragment,
    step: gs.Variable,
    count: gs.Variable,
    results: Sequence[Result],
) -> list[gs.Variable]:
    """Add a Loop that collects what its rounds make, of whatever sizes; opset 13 or later.

    Args:
        fragment: The fragment.
        body: Nodes of one round; it may read any tensor of the surrounding graph.
        step: What the body reads the number of the round from.
        count: Rounds, at least one.
        results: What a round makes.

    Returns:
        Per result the sequence of all rounds' tensors.
    """
    pieces = [
        _Pieces(f"pieces_{at}", f"more_pieces_{at}", result.kind)
        for at, result in enumerate(results)
    ]
    empty = []
    for at, (each, result) in enumerate(zip(pieces, results, strict=True)):
        before = body.outer(f"{body.base}/{each.before}")
        after = gs.Variable(f"{body.base}/{each.after}")
        body.place("SequenceInsert", [before, result.tensor], [after], each.after)
        attrs = {"dtype": result.kind}
        empty.append(fragment.add("SequenceEmpty", [], f"no_pieces_{at}", attrs=attrs))
    going = _State("going", "still_going", onnx.TensorProto.BOOL, [])
    graph = _graph(body, step, [going, *pieces], [])
    outputs = [gs.Variable(fragment.name(f"loop/{at}")) for at in range(len(results))]
    true = np.asarray(True)
    going_on = gs.Constant(fragment.names.shared(true), true)
    fragment.place("Loop", [count, going_on, *empty], outputs, "loop", body=(graph, body))
    return outputs


def add_assumed_loop(
    fragment: Fragment,
    body: Fragment,
    step: gs.Variable,
    results: Sequence[Result],
    pieces: Sequence[Sequence[Like]],
    around: tuple[Sequence[str], Sequence[str]],
) -> tuple[list[list[gs.Variable]], gs.Variable]:
    """Add what stands for `add_collecting_loop` where memory is predicted; it is never run.

    What predicts memory knows tensors, not sequences, and of a Loop that scans all is held twice.
    So all pieces are there before the first round, which reads one of them, and until whoever reads
    them is done; nobody makes them again.

    Args:
        fragment: The fragment.
        body: Nodes of one round.
        step: What the body reads the number of the round from.
        results: What a round makes.
        pieces: Per result shape and element type of each round's.
        around: What is there before the Loop, and what is held until it ends.

    Returns:
        Per result the pieces; and a small tensor that is there once they are complete.
    """
    before, held = around
    rooms, tokens = list[list[gs.Variable]](), list[Result]()
    for at, (result, likes) in enumerate(zip(results, pieces, strict=True)):
        rooms.append([gs.Variable(fragment.name(f"pieces/{at}/{k}")) for k in range(len(likes))])
        fragment.shapes.update(zip((room.name for room in rooms[at]), likes, strict=True))
        source = [fragment.outer(name) for name in before]
        fragment.place("Split", source, rooms[at], f"pieces/{at}")
        there = body.outer(str(rooms[at][0].name))
        ends = [
            _one_number(body, each, len(result.dims), f"pieces/{name}_{at}")
            for each, name in ((result.tensor, "made"), (there, "there"))
        ]
        token = body.add("Concat", ends, f"pieces/token_{at}", attrs={"axis": 0})
        tokens.append(Result(token, (len(ends),), result.kind))
    count = len(pieces[0])
    made = [((count, *token.dims), token.kind) for token in tokens]
    collected = add_loop(fragment, body, step, count, tokens, likes=made)
    inputs = [*collected, *(fragment.outer(name) for name in held)]
    done = fragment.add("Max", inputs, "pieces/done", like=((1,), results[0].kind))
    return rooms, done


def _one_number(body: Fragment, x: gs.Variable, rank: int, suffix: str) -> gs.Variable:
    """Return one number of a tensor, as a vector."""
    axes = range(rank)
    one = add_slice(body, x, axes, [0] * rank, [1] * rank, f"{suffix}/first")
    return add_reshape(body, one, body.ints([1]), suffix)


def _graph(
    body: Fragment,
    step: gs.Variable,
    states: Sequence[_State | _Pieces],
    results: Sequence[Result],
) -> onnx.GraphProto:
    """Return a body as a graph: the number of the round and states in, states and results out."""
    nodes = list(body.export()[0])
    made = {name for node in nodes for name in node.output}
    befores = [f"{body.base}/{state.before}" for state in states]
    afters = [f"{body.base}/{state.after}" for state in states]
    # Made here, not passed on: where no condition is given TensorRT knows none inside.
    true = onnx.helper.make_tensor("going", onnx.TensorProto.BOOL, [], [True])
    nodes.append(onnx.helper.make_node("Constant", [], [afters[0]], value=true))
    for before, after in zip(befores[1:], afters[1:], strict=True):
        if after not in made:
            nodes.append(onnx.helper.make_node("Identity", [before], [after], name=after))
    info = onnx.helper.make_tensor_value_info
    return onnx.helper.make_graph(
        nodes,
        body.base,
        [
            info(step.name, onnx.TensorProto.INT64, []),
            *(state.info(name) for name, state in zip(befores, states, strict=True)),
        ],
        [
            *(state.info(name) for name, state in zip(afters, states, strict=True)),
            *(info(result.tensor.name, result.kind, result.dims) for result in results),
        ],
    )
