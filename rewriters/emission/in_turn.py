"""Patches that wait for each other: a small data dependency from each to the next.

A compiler runs nodes in an order of its own. TensorRT takes the same layers of several patches
together, so that all of them are alive at once, unless a patch reads something of the one before.
What it reads here is a zero: one number of what the patch before made, compared with itself. It is
subtracted from what the patch begins with, which changes no number: x - 0 is x, to the sign of a
zero, and no NaN or infinity is smaller than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from math import inf, prod
from typing import Protocol

import onnx
import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.names import Like
from patchconv_deploy.rewriters.emission.opset_nodes import add_reshape, add_slice
from patchconv_deploy.rewriters.operators.record import RowLocal

__all__ = ["Turn"]


class Made(Protocol):
    """A tensor of a patch."""

    @property
    def variable(self) -> gs.Variable:
        """The tensor."""

    @property
    def like(self) -> Like:
        """Shape and element type."""


_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})

# What may read another tensor that is worked out when the model runs, in place of a constant.
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


class Turn:
    """What a patch waits for: the patch before.

    Args:
        fragment: Where its nodes go.
        number: Number of the patch that waits.
        before: What the patch before made.
    """

    def __init__(self, fragment: Fragment, number: int, before: Sequence[Made]) -> None:
        self._fragment = fragment
        self._number = number
        self._before = [made for made in before if made.like[1] in _FLOATS]
        self._zeros: dict[int, gs.Variable] = {}
        self._waiting = 0

    def inputs(
        self,
        node: onnx.NodeProto,
        link: RowLocal,
        inside: Collection[str],
        whole: Callable[[str], Made],
        windows: Mapping[int, Made],
    ) -> dict[int, gs.Tensor]:
        """Return inputs of a node, by index, that are to be read in place of its own.

        Args:
            node: A node of the region.
            link: What is known of it.
            inside: What the patch made itself so far: a node that reads of it waits already.
            whole: Returns a tensor around by its name.
            windows: What it reads along the axis, by index.
        """
        if not self._before or any(node.input[i] in inside for i in windows):
            return {}
        small = {}
        if node.op_type in _ARITHMETIC:
            others = set(range(len(node.input))) - windows.keys() - link.constants.keys()
            small = {i: whole(node.input[i]) for i in sorted(others)}
        for i, read in (*small.items(), *windows.items()):
            if read.like[1] in _FLOATS:
                return {i: self._wait(read)}
        return {}

    def _wait(self, x: Made) -> gs.Variable:
        """Return a tensor as it is, once the patch before is done."""
        suffix = f"after_{self._number}/{self._waiting}"
        self._waiting += 1
        zero = self._zero(x.like[1])
        return self._fragment.add("Sub", [x.variable, zero], suffix, like=x.like)

    def _zero(self, kind: int) -> gs.Variable:
        """Return a zero that is there once the patch before is done."""
        if kind not in self._zeros:
            suffix = f"after_{self._number}/zero_{kind}"
            self._zeros[kind] = self._fragment.add(
                "Cast", [self._never], suffix, attrs={"to": kind}, like=((1,), kind)
            )
        return self._zeros[kind]

    @cached_property
    def _never(self) -> gs.Variable:
        """False, once the patch before is done: one number of what it made is below itself."""
        fragment, prefix = self._fragment, f"after_{self._number}"
        last = min(self._before, key=_elements)
        dims, kind = last.like
        begin, end, axes = [0] * len(dims), [1] * len(dims), range(len(dims))
        one = add_slice(
            fragment, last.variable, axes, begin, end, f"{prefix}/first", like=(tuple(end), kind)
        )
        flat = add_reshape(fragment, one, fragment.ints([1]), f"{prefix}/flat", like=((1,), kind))
        like = ((1,), onnx.TensorProto.BOOL)
        return fragment.add("Less", [flat, flat], f"{prefix}/never", like=like)


def _elements(made: Made) -> float:
    dims, _ = made.like
    return inf if None in dims else prod(size or 0 for size in dims)
