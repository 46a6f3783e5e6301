"""Emission: a planned region as nodes. Two forms of one tiling.

`batch`, the published PatchConv as a subgraph (P patches, N images):

    x --+-- Slice --+                                           +-- Slice --+
        +-- Slice --+-- Concat -- Conv -- Reshape [P, N, ...] --+-- Slice --+-- Concat -- Squeeze
        +-- Slice --+                                           +-- Slice --+

`sequential`:

    x --+-- Slice -- Conv -- Slice --+
        +-- Slice -- Conv -- Slice --+-- Concat -- y
        +-- Slice -- Conv -- Slice --+

The first Slices take windows, the second ones crop each window's output to its core. Nodes are
cloned with their attributes as they are, original padding included, and share their weights.
Slices that would take everything are left out.

At a height known at run time alone, the bounds of all Slices come from `geometry.schedule`, read
this time on tensors: the same formula that is proven on integers. TensorRT plans memory for the
largest size a tensor can have, and takes a Slice between computed bounds, and a Concat of such, for
as tall as the whole, or for the sum. So a Reshape behind each of them, which moves nothing, states
the height as a formula whose bound it can see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewriters.fragment import Fragment, NameScheme
from rewriters.geometry import Extent, schedule
from rewriters.operators import Shape
from rewriters.planner import RegionPlan
from rewriters.proof import window_slack
from rewriters.regions import Region
from rewriters.shapes import Shapes

__all__ = ["emit"]

# More rows than any tensor has, and far from overflow when added to.
_BEYOND = 1 << 40

Bound: TypeAlias = int | Any  # an integer, or a gs.Variable of one


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Window and core of one patch: input rows, and output rows counted in the window."""

    window: tuple[Bound, Bound]
    core: tuple[Bound, Bound]


@dataclass(frozen=True, slots=True)
class _Targets:
    """Shapes to state at run time: of a window and of the region's output."""

    window: gs.Variable
    output: gs.Variable


def emit(
    plan: RegionPlan,
    form: str,
    graph: onnx.GraphProto,
    shapes: Shapes,
    opset: int,
    names: NameScheme,
    base: str,
) -> Fragment:
    """Emit a planned region.

    Args:
        plan: The region and its tiling.
        form: "batch" or "sequential".
        graph: The graph its nodes lie in; not changed.
        shapes: Known shapes.
        opset: Version of the default domain.
        names: The name scheme.
        base: What new names derive from.

    Returns:
        The fragment whose last node makes the region's output.
    """
    fragment = Fragment(base, opset, names)
    if plan.tiling is None:
        bounds, targets = _run_time_bounds(fragment, plan)
    else:
        bounds, targets = _static_bounds(plan), None
    writer = _Writer(fragment, plan, graph, shapes, targets)
    if form == "batch":
        writer.batch(bounds)
    else:
        writer.sequential(bounds)
    return fragment


def _static_bounds(plan: RegionPlan) -> list[_Bounds]:
    tiling, step = plan.tiling, plan.steps
    assert tiling is not None
    assert plan.rows is not None
    height = plan.rows - tiling.trim * step.input
    bounds = []
    for patch in tiling.patches:
        begin = patch.shift * step.input
        core = patch.core.shifted(-patch.shift * step.output)
        bounds.append(_Bounds((begin, begin + height), (core.begin, core.end)))
    return bounds


class _Number:
    """An integer tensor of the fragment that takes part in arithmetic, emitting nodes."""

    def __init__(self, fragment: Fragment, tensor: gs.Tensor) -> None:
        self.fragment = fragment
        self.tensor = tensor

    def _other(self, other: Any) -> gs.Tensor:
        if isinstance(other, _Number):
            return other.tensor
        return self.fragment.ints(np.atleast_1d(np.asarray(other, dtype=np.int64)))

    def _emit(self, op: str, *inputs: gs.Tensor) -> _Number:
        suffix = f"bounds/{op}_{len(self.fragment.sizes)}"
        return _Number(self.fragment, self.fragment.add(op, inputs, suffix))

    def __add__(self, other: Any) -> _Number:
        return self._emit("Add", self.tensor, self._other(other))

    def __sub__(self, other: Any) -> _Number:
        return self._emit("Sub", self.tensor, self._other(other))

    def __mul__(self, other: Any) -> _Number:
        if isinstance(other, int) and other == 1:
            return self
        return self._emit("Mul", self.tensor, self._other(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> _Number:
        # ONNX truncates towards zero; all dividends here are non-negative.
        if isinstance(other, int) and other == 1:
            return self
        return self._emit("Div", self.tensor, self._other(other))

    # Keep numpy from taking the operation apart element by element.
    __array_ufunc__ = None

    def below(self, other: Any, *, smaller: bool) -> _Number:
        """Return the smaller or larger of two, elementwise; Min and Max take no int64 before 12."""
        there = self._other(other)
        pair = (self.tensor, there) if smaller else (there, self.tensor)
        return self._emit("Where", self._emit("Less", self.tensor, there).tensor, *pair)


def _minimum(a: _Number, b: Any) -> _Number:
    return a.below(b, smaller=True)


def _maximum(a: _Number, b: Any) -> _Number:
    return a.below(b, smaller=False)


def _run_time_bounds(fragment: Fragment, plan: RegionPlan) -> tuple[list[_Bounds], _Targets]:
    region, step, count = plan.region, plan.steps, plan.splits
    shape = fragment.add("Shape", [fragment.outer(region.input)], "bounds/shape")
    axis = fragment.ints([region.axis])
    height = _Number(
        fragment, fragment.add("Gather", [shape, axis], "bounds/rows", attrs={"axis": 0})
    )
    out: Any = height
    for row_map in region.chain:
        out = row_map.rows_out(out)
    symbolic: Any = _SymbolicExtent(out, plan.extent)
    k = np.arange(count)
    placed = schedule(
        symbolic,
        count,
        index=k,
        first=(k > 0).astype(np.int64),
        last=np.where(k == count - 1, _BEYOND, 0),
        minimum=_minimum,
        maximum=_maximum,
    )
    begin = placed.shifts * step.input
    # The second is never the smaller one; it is there for its bound (`proof.window_slack`).
    window = _minimum(
        height - placed.trim * step.input,
        placed.stride * step.input + window_slack(region.chain),
    )
    end = begin + window
    down = placed.shifts * step.output
    columns = [
        fragment.split(number.tensor, count, f"bounds/{name}")
        for name, number in (
            ("window_begin", begin),
            ("window_end", end),
            ("core_begin", placed.begins - down),
            ("core_end", placed.ends - down),
        )
    ]
    targets = _Targets(
        _target(fragment, region, window, "window"), _target(fragment, region, out, "output")
    )
    return [_Bounds((a, b), (c, d)) for a, b, c, d in zip(*columns, strict=True)], targets


def _target(fragment: Fragment, region: Region, rows: _Number, what: str) -> gs.Variable:
    """Return a shape for Reshape: ``rows`` on the tiled axis, all else as it is (0)."""
    before, after = [0] * region.axis, [0] * (region.rank - region.axis - 1)
    parts = [fragment.ints(before), rows.tensor, *([fragment.ints(after)] if after else [])]
    return fragment.concat(parts, 0, f"bounds/{what}_shape")


class _SymbolicExtent:
    """An `Extent` whose rows are a tensor."""

    def __init__(self, rows: _Number, extent: Extent) -> None:
        self.rows = rows
        self.step, self.top, self.tail = extent.step, extent.top, extent.tail


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the region in a window: where it is and, if known, its shape."""

    variable: gs.Variable
    dims: tuple[int | None, ...] | None
    bits: int | None

    @property
    def size(self) -> int | None:
        if self.dims is None or self.bits is None or any(d is None for d in self.dims):
            return None
        return (prod(d or 0 for d in self.dims) * self.bits + 7) // 8


class _Writer:
    """Writes one region's nodes into a fragment."""

    def __init__(
        self,
        fragment: Fragment,
        plan: RegionPlan,
        graph: onnx.GraphProto,
        shapes: Shapes,
        targets: _Targets | None,
    ) -> None:
        self.fragment = fragment
        self.targets = targets
        self.plan = plan
        self.region = plan.region
        self.shapes = shapes
        self.nodes = [graph.node[position] for position in plan.region.nodes]

    def _whole(self, name: str) -> _Tensor:
        dims: Shape | None = self.shapes.dims.get(name)
        if dims is None or len(dims) != self.region.rank:
            dims = (None,) * self.region.rank
        return _Tensor(self.fragment.outer(name), dims, self.shapes.bits(name))

    def _resized(self, tensor: _Tensor, axis: int, size: int | None) -> _Tensor:
        dims = tensor.dims
        if dims is not None:
            dims = (*dims[:axis], size, *dims[axis + 1 :])
        return replace(tensor, dims=dims)

    def _cut(self, x: _Tensor, axis: int, bounds: tuple[Bound, Bound], suffix: str) -> _Tensor:
        """Slice one axis; nothing is emitted where static bounds take all of it."""
        begin, end = bounds
        if isinstance(begin, int) and isinstance(end, int):
            whole = None if x.dims is None else x.dims[axis]
            if begin == 0 and end == whole:
                return x
            cut = self._resized(x, axis, end - begin)
            variable = self.fragment.slice(
                x.variable, [axis], [begin], [end], suffix, size=cut.size
            )
        else:
            cut = self._resized(x, axis, None)
            variable = self.fragment.slice(x.variable, [axis], begin, end, suffix, size=cut.size)
        return replace(cut, variable=variable)

    def _window(self, x: _Tensor, k: int, bound: _Bounds) -> _Tensor:
        window = self._cut(x, self.region.axis, bound.window, f"window_{k}")
        if self.targets is None:
            return window
        stated = self.fragment.reshape(
            window.variable, self.targets.window, f"window_{k}/stated", size=window.size
        )
        return replace(window, variable=stated)

    def _clones(self, x: _Tensor, suffix: str, batch: int) -> _Tensor:
        """Clone the region's nodes on a window (or ``batch`` stacked windows)."""
        plan = self.plan
        for node, link, r_out in zip(
            self.nodes, self.region.links, plan.steps.rows[1:], strict=True
        ):
            y = self._whole(node.output[0])
            axis, rows = self.region.axis, None
            if plan.tiling is not None and y.dims is not None and y.dims[axis] is not None:
                rows = (y.dims[axis] or 0) - plan.tiling.trim * r_out
            y = self._resized(y, axis, rows)
            images = None if y.dims is None or y.dims[0] is None else y.dims[0] * batch
            y = self._resized(y, 0, images)
            variable = self.fragment.clone(
                node,
                link.carrier,
                x.variable,
                f"{node.op_type}{suffix}",
                replaced=link.attributes,
                size=y.size,
            )
            x = replace(y, variable=variable)
        return x

    def sequential(self, bounds: list[_Bounds]) -> None:
        """Emit each patch after the one before."""
        axis = self.region.axis
        x = self._whole(self.region.input)
        cores = []
        for k, bound in enumerate(bounds):
            window = self._window(x, k, bound)
            y = self._clones(window, f"_{k}", 1)
            cores.append(self._cut(y, axis, bound.core, f"core_{k}").variable)
        whole = self._whole(self.region.output)
        if self.targets is None:
            self.fragment.concat(cores, axis, "output", size=whole.size, output=self.region.output)
        else:
            joined = self.fragment.concat(cores, axis, "cores", size=whole.size)
            self._state_output(joined, self.targets, whole.size)

    def _state_output(self, joined: gs.Variable, targets: _Targets, size: int | None) -> None:
        self.fragment.add(
            "Reshape", [joined, targets.output], "output", size=size, output=self.region.output
        )

    def batch(self, bounds: list[_Bounds]) -> None:
        """Emit one set of nodes on the windows stacked in the batch dimension."""
        fragment, axis, count = self.fragment, self.region.axis, len(bounds)
        x = self._whole(self.region.input)
        windows = [self._window(x, k, bound) for k, bound in enumerate(bounds)]
        dims = windows[0].dims
        images = None if dims is None or dims[0] is None else dims[0] * count
        stack = self._resized(windows[0], 0, images)
        variable = fragment.concat(
            [window.variable for window in windows], 0, "stack", size=stack.size
        )
        y = self._clones(replace(stack, variable=variable), "", count)
        stacked = fragment.reshape(
            y.variable, self._stacked_shape(y, count), "patches", size=y.size
        )
        cores = []
        for k, bound in enumerate(bounds):
            cores.append(self._core(stacked, y, k, bound.core))
        whole = self._whole(self.region.output)
        joined = fragment.concat(cores, axis + 1, "cores", size=whole.size)
        if self.targets is None:
            fragment.squeeze(joined, 0, "output", output=self.region.output)
        else:
            squeezed = fragment.squeeze(joined, 0, "squeezed")
            self._state_output(squeezed, self.targets, whole.size)

    def _stacked_shape(self, y: _Tensor, count: int) -> gs.Tensor:
        """Return [P, N, C, ...] for an output of shape [P*N, C, ...]."""
        if y.dims is not None:
            images, *rest = y.dims
            target = [images // count if images else None, *rest]
            if sum(size is None for size in target) <= 1:
                return self.fragment.ints([count, *(-1 if d is None else d for d in target)])
        shape = self.fragment.add("Shape", [y.variable], "patches/shape")
        tail = self.fragment.slice(shape, [0], [1], [self.region.rank], "patches/rest")
        head = self.fragment.ints([count, -1])
        return self.fragment.concat([head, tail], 0, "patches/target")

    def _core(
        self, stacked: gs.Variable, y: _Tensor, k: int, core: tuple[Bound, Bound]
    ) -> gs.Variable:
        """Slice patch ``k`` and its core out of [P, N, C, ...]."""
        axis, begin, end = self.region.axis, *core
        size = None
        if isinstance(begin, int) and isinstance(end, int):
            one = self._resized(y, axis, end - begin)
            images = None if y.dims is None or y.dims[0] is None else y.dims[0]
            count = self.plan.splits
            size = self._resized(one, 0, None if images is None else images // count).size
            starts: Any = [k, begin]
            ends: Any = [k + 1, end]
        else:
            starts = self.fragment.concat([self.fragment.ints([k]), begin], 0, f"core_{k}/begin")
            ends = self.fragment.concat([self.fragment.ints([k + 1]), end], 0, f"core_{k}/end")
        return self.fragment.slice(stacked, [0, axis + 1], starts, ends, f"core_{k}", size=size)
