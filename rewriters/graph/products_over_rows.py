"""Matrix products that add up over all positions of an image, written in two (`graph.statistics`).

    q [.., M, P] @ k [.., P, N]        P: all positions, H x W

becomes

    rows  = q [.., H, M, W] @ k [.., H, W, N]      a product for each row of the image
    whole = sum over H of rows

Attention between channels (Restormer, XCiT) and linear attention (keys by values first) hold such a
product: it has a row and a column for each channel, not for each position. An Einsum of two factors
is written in the same way.

Source: Zamir et al., "Restormer", 2022; Shen et al., "Efficient Attention", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod
from string import ascii_letters
from typing import Any

from onnx import TensorProto

from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.statistic_nodes import (
    FLOATS,
    HALF,
    InTwo,
    in_blocks,
    row_of,
)

__all__ = ["einsum", "matmul", "rows_outward", "sum_of_rows"]


_KIND = "a product over the image"


def matmul(found: ReadGraph, position: int) -> InTwo | None:
    """MatMul of [.., M, P] and [.., P, N], where P are the positions."""
    node = found.node(position)
    a, b = node.input
    first, second = found.shapes.dims.get(a), found.shapes.dims.get(b)
    if first is None or second is None or len(first) != len(second) or len(first) < 2:
        return None
    at, kind = len(first) - 2, found.shapes.elements.get(a, 0)
    if found.axes.get(a) != at + 1 or found.axes.get(b) != at or kind not in FLOATS:
        return None
    length, left, right = first[-1], first[at], second[-1]
    if not length or not left or not right or second[at] != length:
        return None
    width = _width(found, a, length, left * right, left + right)
    if width is None:
        return None
    new = found.new(position, a, _KIND)
    image, _ = in_blocks(new, a, first, at + 1, width, "left_rows")
    turned = rows_outward(new, image, at, "left")
    other, _ = in_blocks(new, b, second, at, width, "right")
    sum_of_rows(new, "MatMul", [turned, other], at, node.output[0], kind)
    return [position], new


def einsum(found: ReadGraph, position: int) -> InTwo | None:
    """Einsum of two factors that share the letter of the positions, which the result has not."""
    node = found.node(position)
    equation = "".join(attributes(node).get("equation", "").split())
    given, _, made = equation.partition("->")
    terms = given.split(",")
    if not made or {len(terms), len(node.input)} != {2}:
        return None
    shapes = [found.shapes.dims.get(name, ()) for name in node.input]
    axes = [found.axes.get(name) for name in node.input]
    kind = found.shapes.elements.get(node.input[0], 0)
    if not "".join((*terms, made)).isalpha() or kind not in FLOATS:
        return None
    sizes, places = dict[str, int](), set[str]()
    for term, shape, axis in zip(terms, shapes, axes, strict=True):
        if len(term) != len(shape) or len({*term}) < len(term) or axis is None:
            return None
        for letter, size in zip(term, shape, strict=True):
            if not size or sizes.setdefault(letter, size) != size:
                return None
        places.add(term[axis])
    letter = places.pop()
    if places or letter in made or not sizes.keys() >= {*made} or len({*made}) < len(made):
        return None
    own = sum(prod(sizes[each] for each in term if each != letter) for term in terms)
    width = _width(found, node.input[0], sizes[letter], prod(sizes[each] for each in made), own)
    if width is None:
        return None
    new = found.new(position, node.input[0], _KIND)
    row, column = [each for each in ascii_letters if each not in equation][:2]
    factors = [
        in_blocks(new, name, shape, axis or 0, width, word)[0]
        for name, shape, axis, word in zip(node.input, shapes, axes, ("left", "right"), strict=True)
    ]
    apart = ",".join(term.replace(letter, row + column) for term in terms)
    each = f"{apart}->{made[0]}{row}{made[1:]}"
    sum_of_rows(new, "Einsum", factors, 1, node.output[0], kind, equation=each)
    return [position], new


def rows_outward(new: NewNodes, image: str, at: int, suffix: str, output: str = "") -> str:
    """Write [.., M, H, W] as [.., H, M, W], for a product of each row.

    Args:
        new: Takes the node.
        image: The tensor, of three dimensions from ``at`` on.
        at: The dimension before its rows.
        suffix: What the result is called after.
        output: What it is called instead, if given.
    """
    perm = [*range(at), at + 1, at, at + 2]
    return new.add("Transpose", [image], suffix, output, perm=perm)


def sum_of_rows(
    new: NewNodes,
    op: str,
    factors: Sequence[str],
    axis: int,
    output: str,
    kind: int,
    **given: Any,
) -> None:
    """Write a product for each row of an image, and their sum.

    Args:
        new: Takes the nodes.
        op: MatMul or Einsum.
        factors: What is multiplied, with a dimension for the rows.
        axis: The dimension of the rows in the products.
        output: What the result is called.
        kind: Its element type; half precision is summed up in float32.
        given: Attributes of the operator.
    """
    half = kind in HALF
    rows = new.add(op, factors, "products" if half else "rows", **given)
    if half:
        rows = new.add("Cast", [rows], "rows", to=int(TensorProto.FLOAT))
    whole = new.over("ReduceSum", rows, [axis], "whole", "" if half else output, keepdims=0)
    if half:
        new.add("Cast", [whole], "half", output, to=kind)


def _width(found: ReadGraph, name: str, length: int, product: int, factors: int) -> int | None:
    """Return the width of the rows that products are made of.

    Args:
        found: The graph.
        name: A factor.
        length: Number of its positions.
        product: Elements of the product.
        factors: Elements of both factors at one position.

    Returns:
        That of the image, or, where none is known, the largest divisor of the length up to its
        root; None where a product of one row is no smaller than the row of both factors.
    """
    by_size = (by for by in range(isqrt(length), 1, -1) if length % by == 0)
    width = row_of(found, name) or next(by_size, None)
    return width if width and product < width * factors else None
