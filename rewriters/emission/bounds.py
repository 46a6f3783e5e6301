"""Where each patch's windows start and end: numbers, or worked out when the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.names import of_number
from patchconv_deploy.rewriters.emission.opset_nodes import add_split
from patchconv_deploy.rewriters.regions.region import Edge
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan
from patchconv_deploy.rewriters.tiling.network import Network
from patchconv_deploy.rewriters.tiling.patches import (
    BEYOND,
    Extent,
    core,
    free_steps,
    place_windows,
)
from patchconv_deploy.rewriters.tiling.proof import window_slack
from patchconv_deploy.rewriters.tiling.row_maps import Fitted

__all__ = [
    "Bounds",
    "RunTimeNumber",
    "Span",
    "SymbolicExtent",
    "Targets",
    "free_heights",
    "maximum",
    "minimum",
    "run_time_bounds",
    "static_bounds",
]


Bound: TypeAlias = int | Any  # an integer, or a gs.Variable of one

Span: TypeAlias = tuple[Bound, Bound]


@dataclass(frozen=True, slots=True)
class Bounds:
    """One patch: rows of each input, and rows of each output counted in the window."""

    windows: tuple[Span, ...]
    cores: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """Shapes to state at run time: of each input's windows and of each output.

    Attributes:
        windows: Of the inputs' windows.
        outputs: Of the outputs.
        trim: Steps that windows are shorter by than the whole.
    """

    windows: tuple[gs.Variable, ...]
    outputs: tuple[gs.Variable, ...]
    trim: RunTimeNumber


def static_bounds(plan: RegionPlan) -> list[Bounds]:
    """Return where each patch starts and ends, in rows that are known now."""
    tiling, network = plan.tiling, plan.region.network
    assert tiling is not None
    bounds = []
    for patch in tiling.patches:
        windows = [plan.window(number, patch) for number in network.inputs]
        cores = [
            owned.shifted(-plan.window(number, patch).begin)
            for number, owned in zip(network.outputs, patch.cores, strict=True)
        ]
        bounds.append(Bounds(tuple(windows), tuple(cores)))
    return bounds


class RunTimeNumber:
    """An integer tensor of the fragment that takes part in arithmetic, emitting nodes."""

    def __init__(self, fragment: Fragment, tensor: gs.Tensor) -> None:
        self.fragment = fragment
        self.tensor = tensor

    def inside(self, body: Fragment) -> RunTimeNumber:
        """Return the same number as a node of a body reads it."""
        if body is self.fragment:
            return self
        return RunTimeNumber(body, body.outer(str(self.tensor.name)))

    def _other(self, other: Any) -> gs.Tensor:
        if isinstance(other, RunTimeNumber):
            return other.tensor
        return self.fragment.ints(np.atleast_1d(np.asarray(other, dtype=np.int64)))

    def _emit(self, op: str, *inputs: gs.Tensor) -> RunTimeNumber:
        suffix = f"bounds/{op}_{self.fragment.count}"
        return RunTimeNumber(self.fragment, self.fragment.add(op, inputs, suffix))

    def __add__(self, other: Any) -> RunTimeNumber:
        return self._emit("Add", self.tensor, self._other(other))

    def __sub__(self, other: Any) -> RunTimeNumber:
        return self._emit("Sub", self.tensor, self._other(other))

    def __rsub__(self, other: Any) -> RunTimeNumber:
        return self._emit("Sub", self._other(other), self.tensor)

    def __mul__(self, other: Any) -> RunTimeNumber:
        if isinstance(other, int) and other == 1:
            return self
        return self._emit("Mul", self.tensor, self._other(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> RunTimeNumber:
        # ONNX truncates towards zero; all dividends here are non-negative.
        if isinstance(other, int) and other == 1:
            return self
        return self._emit("Div", self.tensor, self._other(other))

    # Keep numpy from taking the operation apart element by element.
    __array_ufunc__ = None

    def below(self, other: Any, *, smaller: bool) -> RunTimeNumber:
        """Return the smaller or larger of two, elementwise; Min and Max take no int64 before 12."""
        there = self._other(other)
        pair = (self.tensor, there) if smaller else (there, self.tensor)
        return self._emit("Where", self._emit("Less", self.tensor, there).tensor, *pair)


def minimum(a: RunTimeNumber, b: Any) -> RunTimeNumber:
    """Return the smaller of two numbers, elementwise."""
    return a.below(b, smaller=True)


def maximum(a: RunTimeNumber, b: Any) -> RunTimeNumber:
    """Return the larger of two numbers, elementwise."""
    return a.below(b, smaller=False)


def run_time_bounds(fragment: Fragment, plan: RegionPlan) -> tuple[list[Bounds], Targets]:
    """Return the same where rows are known when the model runs, with the nodes that work it out."""
    region, step, count = plan.region, plan.steps, plan.splits
    network = region.network
    heights, outs, free = free_heights(fragment, plan)
    k = np.arange(count)
    placed = place_windows(free, count, k)
    windows, spans = [], []
    for at, (number, height) in enumerate(zip(network.inputs, heights, strict=True)):
        begin = placed.shifts * step[number]
        # The second is never the smaller one: it is there for its bound (`window_slack`).
        window = minimum(
            height - placed.trim * step[number],
            placed.stride * step[number] + window_slack(network, at),
        )
        windows.append(window)
        spans.append(_columns(fragment, begin, begin + window, count, of_number("window", at)))
    for number, out in enumerate(outs):
        begins, ends = core(
            out,
            placed,
            first=(k > 0).astype(np.int64),
            last=np.where(k == count - 1, BEYOND, 0),
            minimum=minimum,
        )
        down = placed.shifts * out.step
        name = of_number("core", number)
        spans.append(_columns(fragment, begins - down, ends - down, count, name))
    inputs = len(heights)
    bounds = [
        Bounds(tuple(each[:inputs]), tuple(each[inputs:])) for each in zip(*spans, strict=True)
    ]
    targets = Targets(
        tuple(
            _target(fragment, edge, rank, window, of_number("window", at))
            for at, (edge, rank, window) in enumerate(
                zip(region.inputs, plan.ranks[:inputs], windows, strict=True)
            )
        ),
        tuple(
            _target(fragment, edge, rank, out.rows, "output" if at == 0 else f"output_{at}")
            for at, (edge, rank, out) in enumerate(
                zip(region.outputs, plan.ranks[inputs:], outs, strict=True)
            )
        ),
        placed.trim,
    )
    return bounds, targets


def free_heights(
    fragment: Fragment, plan: RegionPlan, known: Mapping[str, str] | None = None
) -> tuple[list[RunTimeNumber], list[SymbolicExtent], RunTimeNumber]:
    """Write what free heights come to.

    Args:
        fragment: Where to.
        plan: The region.
        known: What holds the rows of inputs that are not there as a whole.

    Returns:
        The rows of each input, each output with its rows, and the steps that the outputs leave
        free.
    """
    region, network = plan.region, plan.region.network
    known = known or {}
    heights = [
        RunTimeNumber(fragment, fragment.outer(known[edge.name]))
        if edge.name in known
        else _height(fragment, edge, at)
        for at, edge in enumerate(region.inputs)
    ]
    rows: dict[int, Any] = dict(zip(network.inputs, heights, strict=True))
    own = None if region.height is None else _height(fragment, region.height, len(heights))
    outs = [
        SymbolicExtent(_rows_of(network, number, rows, own), extent)
        for number, extent in zip(network.outputs, plan.extents, strict=True)
    ]
    return heights, outs, reduce(minimum, (free_steps(out, maximum) for out in outs))


def _height(fragment: Fragment, edge: Edge, at: int) -> RunTimeNumber:
    shape = fragment.add("Shape", [fragment.outer(edge.name)], of_number("bounds/shape", at))
    inputs, attrs = [shape, fragment.ints([edge.axis])], {"axis": 0}
    rows = fragment.add("Gather", inputs, of_number("bounds/rows", at), attrs=attrs)
    return RunTimeNumber(fragment, rows)


def _rows_of(network: Network, number: int, rows: dict[int, Any], own: Any) -> Any:
    """Return the rows of a tensor of a region.

    Args:
        network: The region.
        number: The tensor.
        rows: Rows of its inputs, as numbers of any kind; what is worked out is added.
        own: The model's height, None where nothing is fitted to it.
    """
    makers = {number: link for link in network.links for number in link.makes}
    pending = [number]
    while pending:
        link = makers[pending[-1]] if pending[-1] not in rows else None
        if link is None:
            pending.pop()
        elif link.reads[0] in rows:
            read, row_map = rows[link.reads[0]], link.row_map
            if isinstance(row_map, Fitted):
                made = row_map.rows_out_at(read, own)
            else:
                made = row_map.rows_out(read)
            rows.update(dict.fromkeys(link.makes, made))
        else:
            pending.append(link.reads[0])
    return rows[number]


def _columns(
    fragment: Fragment, begin: RunTimeNumber, end: RunTimeNumber, count: int, name: str
) -> list[tuple[gs.Variable, gs.Variable]]:
    """Split vectors of one bound per patch into a pair of bounds for each."""
    begins = add_split(fragment, begin.tensor, count, f"bounds/{name}_begin")
    ends = add_split(fragment, end.tensor, count, f"bounds/{name}_end")
    return list(zip(begins, ends, strict=True))


def _target(
    fragment: Fragment, edge: Edge, rank: int, rows: RunTimeNumber, what: str
) -> gs.Variable:
    """Return a shape for Reshape: ``rows`` on the tiled axis, all else as it is (0).

    A product, not a Concat: from a Concat of constants and one computed size ONNX Runtime's
    ReshapeFusion (core/optimizer/reshape_fusion.cc) makes a constant with -1 in place of that size,
    and a -1 cannot be worked out for a tensor without elements.
    """
    here = fragment.ints([int(axis == edge.axis) for axis in range(rank)])
    return fragment.add("Mul", [rows.tensor, here], f"bounds/{what}_shape")


class SymbolicExtent:
    """An `Extent` whose rows are a tensor."""

    def __init__(self, rows: RunTimeNumber, extent: Extent | SymbolicExtent) -> None:
        self.rows = rows
        self.step: int = extent.step
        self.top: int = extent.top
        self.tail: int = extent.tail
