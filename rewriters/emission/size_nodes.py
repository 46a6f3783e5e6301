"""A tensor's shape, worked out from the sizes of the model's inputs.

    x -- Shape -- Gather --+-- Div (period) --+-- Mul (slope) --------------- Add -- the shape
                           +-- minus whole periods -- Gather (first period) --+

In place of the Shape of a tensor that is cut and not there as a whole any more. Sizes without a
period need the Gather, the Mul and the Add alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["work_out"]


def work_out(
    position: int,
    node: onnx.NodeProto,
    sizes: Sequence[Size],
    places: Mapping[str, tuple[str, int]],
    like: Fragment,
) -> Fragment:
    """Return a fragment that makes a Shape's output from the shapes of the model's inputs.

    Args:
        position: The node's position.
        node: The Shape; its input need not exist any more.
        sizes: What it makes.
        places: An input of the model and its dimension, for each free size.
        like: A fragment whose opset and names are the model's.
    """
    name = node.output[0]
    made = Fragment(name, like.opset, like.names, covers=(position,), makes=(name,))

    def add(op: str, inputs: Sequence[gs.Tensor], suffix: str, count: int) -> gs.Variable:
        attrs = {"axis": 0} if op in ("Gather", "Concat") else None
        return made.add(op, inputs, suffix, attrs=attrs, like=((count,), onnx.TensorProto.INT64))

    ranks = {
        given: 1 + max(axis for each, axis in places.values() if each == given)
        for given, _ in places.values()
    }
    count = len(sizes)
    inputs = list(dict.fromkeys(places[size.symbol][0] for size in sizes if size.symbol))
    read: list[gs.Tensor] = []
    offsets, at = dict[str, int](), 0
    for given in inputs:
        # Its last dimensions may not be free; of several inputs only those before are taken.
        number, free = len(read), ranks[given]
        shape = add("Shape", [made.outer(given)], f"shape_of_{number}", free)
        if len(inputs) > 1:
            shape = add("Gather", [shape, made.ints(list(range(free)))], f"free_of_{number}", free)
        read.append(shape)
        offsets[given] = at
        at += free
    counted = read[0] if read else made.ints([1])
    if len(read) > 1:
        counted = add("Concat", read, "shapes", at)
    indices = [
        offsets[places[size.symbol][0]] + places[size.symbol][1] if size.symbol else 0
        for size in sizes
    ]
    free = add("Gather", [counted, made.ints(indices)], "sizes", count)
    periods = made.ints([size.period for size in sizes])
    slopes = made.ints([size.slope for size in sizes])
    if all(size.period == 1 for size in sizes):
        grown = add("Mul", [free, slopes], "grown", count)
        first: gs.Tensor = made.ints([size.values[0] for size in sizes])
    else:
        turns = add("Div", [free, periods], "turns", count)
        whole = add("Mul", [turns, periods], "whole", count)
        rest = add("Sub", [free, whole], "rest", count)
        begins = [sum(size.period for size in sizes[:k]) for k in range(len(sizes))]
        places_in_table = add("Add", [rest, made.ints(begins)], "places", count)
        table = made.ints([value for size in sizes for value in size.values])
        first = add("Gather", [table, places_in_table], "first", count)
        grown = add("Mul", [turns, slopes], "grown", count)
    made.add("Add", [grown, first], "shape", output=name)
    return made
