"""Nodes of a fragment that are spelled as its opset asks for: attributes at first, inputs later.

Every function adds one node to a fragment and returns its output. Source: the version history of
each operator in ONNX's operator schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.names import Like

__all__ = ["add_concat", "add_reshape", "add_slice", "add_split", "add_squeeze", "add_unsqueeze"]


def add_slice(
    fragment: Fragment,
    x: gs.Variable,
    axes: Sequence[int],
    begin: Sequence[int] | gs.Variable,
    end: Sequence[int] | gs.Variable,
    suffix: str,
    *,
    like: Like | None = None,
    output: str | None = None,
) -> gs.Variable:
    """Add a Slice; attributes up to opset 9, inputs from opset 10."""
    if fragment.opset < 10:
        attrs = {"axes": list(axes), "starts": begin, "ends": end}
        return fragment.add("Slice", [x], suffix, attrs=attrs, like=like, output=output)
    begin = begin if isinstance(begin, gs.Variable) else fragment.ints(begin)
    end = end if isinstance(end, gs.Variable) else fragment.ints(end)
    inputs = [x, begin, end, fragment.ints(axes)]
    return fragment.add("Slice", inputs, suffix, like=like, output=output)


def add_concat(
    fragment: Fragment,
    parts: Sequence[gs.Tensor],
    axis: int,
    suffix: str,
    *,
    like: Like | None = None,
    output: str | None = None,
) -> gs.Variable:
    """Add a Concat."""
    return fragment.add("Concat", parts, suffix, attrs={"axis": axis}, like=like, output=output)


def add_reshape(
    fragment: Fragment, x: gs.Variable, shape: gs.Tensor, suffix: str, *, like: Like | None = None
) -> gs.Variable:
    """Add a Reshape."""
    return fragment.add("Reshape", [x, shape], suffix, like=like)


def add_squeeze(
    fragment: Fragment, x: gs.Variable, axis: int, suffix: str, *, output: str | None = None
) -> gs.Variable:
    """Add a Squeeze of one axis; attribute up to opset 12, input from opset 13."""
    like = fragment.shapes.get(x.name)
    if like is not None:
        dims, kind = like
        like = (*dims[:axis], *dims[axis + 1 :]), kind
    if fragment.opset < 13:
        attrs = {"axes": [axis]}
        return fragment.add("Squeeze", [x], suffix, attrs=attrs, like=like, output=output)
    return fragment.add("Squeeze", [x, fragment.ints([axis])], suffix, like=like, output=output)


def add_unsqueeze(
    fragment: Fragment, x: gs.Variable, axis: int, suffix: str, *, like: Like | None = None
) -> gs.Variable:
    """Add an Unsqueeze of one axis; attribute up to opset 12, input from opset 13."""
    if fragment.opset < 13:
        return fragment.add("Unsqueeze", [x], suffix, attrs={"axes": [axis]}, like=like)
    return fragment.add("Unsqueeze", [x, fragment.ints([axis])], suffix, like=like)


def add_split(fragment: Fragment, x: gs.Variable, count: int, suffix: str) -> list[gs.Variable]:
    """Add a Split of a vector of ``count`` integers into vectors of one, and return these."""
    results = [gs.Variable(fragment.name(f"{suffix}_{k}")) for k in range(count)]
    attrs: dict[str, Any] = {"axis": 0}
    if fragment.opset >= 18:
        attrs["num_outputs"] = count
    fragment.place("Split", [x], results, suffix, attrs=attrs)
    return results
