"""Which numbers divide a model's free sizes, for otherwise it does not run.

A Reshape keeps the count of its elements. From [N, H // 8, 8, W // 8, 8, C] to [N, H, W, C] there
are as many only where 8 divides both, for otherwise there would be less. So what is followed of
such sizes (`graph.free_sizes`) is followed at multiples alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm

import onnx

from patchconv_deploy.rewriters.graph.nodes import captured
from patchconv_deploy.rewriters.graph.size_values import Known
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["divisors", "rounded_up"]


# What images are cut into windows of.
_DIVISORS = range(2, 65)


def rounded_up(symbol: str, by: int) -> Size:
    """Return a free size as it is at multiples of a number, at other sizes the next one.

    Args:
        symbol: The free size.
        by: The number.
    """
    size = Size.free(symbol)
    above = size + (by - 1)
    rounded = None if by == 1 or above is None else above // by
    return size if rounded is None else rounded * by


def divisors(graph: onnx.GraphProto, known: Known, multiples: Mapping[str, int]) -> dict[str, int]:
    """Return of which numbers free sizes have to be multiples, or else the model does not run.

    Args:
        graph: The main graph.
        known: Sizes of its tensors.
        multiples: What free sizes are multiples of so far.

    Returns:
        What is new.
    """
    found: dict[str, int] = {}
    for node in _needed(graph):
        if node.op_type != "Reshape" or node.domain not in ONNX_DOMAINS:
            continue
        x, target = known.dims.get(node.input[0]), known.value(node.input[1])
        y = None if target is None else target[0]
        if x is None or y is None or None in x or None in y:
            continue
        if any(size.constant in (0, -1) for size in y if size is not None):
            continue
        before, after = list(x), list(y)
        for size in x:
            if size in after:
                before.remove(size)
                after.remove(size)
        for those, others in ((before, after), (after, before)):
            found.update(_dividing(those, others, multiples))
    return found


def _dividing(
    less: Sequence[Size | None], more: Sequence[Size | None], multiples: Mapping[str, int]
) -> dict[str, int]:
    """Return what divides the free sizes of one product where it is no more than another one.

    Args:
        less: Factors of a product: quotients of free sizes, rounded down, and numbers.
        more: Factors of the other one: free sizes, and numbers.
        multiples: What the free sizes are multiples of so far.
    """
    number, found = Fraction(1), dict[str, int]()
    sizes = []
    for size in less:
        if size is not None and size.constant is not None:
            number *= size.constant
        else:
            sizes.append(size)
    for whole in more:
        if whole is not None and whole.constant is not None:
            number /= whole.constant or 1
            continue
        same = [size for size in sizes if size and whole and size.symbol == whole.symbol]
        if (
            whole is None
            or len(same) != 1
            or whole != rounded_up(whole.symbol, multiples.get(whole.symbol, 1))
        ):
            return {}
        sizes.remove(same[0])
        by = next((each for each in _DIVISORS if whole // each == same[0]), 0)
        if not by:
            return {}
        number /= by
        found[whole.symbol] = lcm(by, multiples.get(whole.symbol, 1))
    new = {symbol for symbol, by in found.items() if by != multiples.get(symbol, 1)}
    return {symbol: found[symbol] for symbol in new} if number == 1 and not sizes else {}


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that an output is made by: others need not run."""
    found, names = list[onnx.NodeProto](), {value.name for value in graph.output}
    for node in reversed(graph.node):
        if not names.isdisjoint(node.output):
            found.append(node)
            names.update((*node.input, *captured(node)))
    return found
