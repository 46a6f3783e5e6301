"""Emission: a planned region as nodes. Forms of one tiling.

`fused` and `sequential` (one node or many, the same picture), one patch after the other:

    x --+-- Slice -- Conv ... Conv -- Slice --+
        +-- Slice -- Conv ... Conv -- Slice --+-- Concat -- y
        +-- Slice -- Conv ... Conv -- Slice --+

`shrinking`, the same, each patch without the rows that its later nodes do not need
(`rewriters.shrinking`): nodes at interior edges have less padding, or none.

`batch`, the published PatchConv as a subgraph (P patches, N images):

    x --+-- Slice --+                                           +-- Slice --+
        +-- Slice --+-- Concat -- Conv -- Reshape [P, N, ...] --+-- Slice --+-- Concat -- Squeeze
        +-- Slice --+                                           +-- Slice --+

`loop`, the same with the patches run by one body, one at a time:

    x --+-- Slice --+                                                          +-- Slice --+
        +-- Slice --+-- Concat -- Reshape [P, N, ...] -- Loop(Gather k, Conv ...) -- Slice --+-- ...
        +-- Slice --+                                                          +-- Slice --+

The first Slices take windows, one for each of the region's inputs, the second ones crop each
window's outputs to their cores. Nodes are cloned with their attributes as they are, original
padding included unless windows shrink, and share their weights. Slices that would take everything
are left out.

At a height known at run time alone, the bounds of all Slices come from `rewriters.geometry`, read
this time on tensors: the same formulas that are proven on integers. TensorRT plans memory for the
largest size a tensor can have, and takes a Slice between computed bounds, and a Concat of such, for
as tall as the whole, or for the sum. So a Reshape behind each of them, which moves nothing, states
the height as a formula whose bound it can see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewriters.fragment import Fragment, Like, NameScheme
from rewriters.geometry import Extent, Patch, core, free_steps, schedule
from rewriters.operators import ROWS, RowLocal, Shape
from rewriters.planner import RegionPlan
from rewriters.proof import Link, padding_dropped, window_slack
from rewriters.regions import Edge
from rewriters.shapes import Shapes

__all__ = ["emit"]

# More rows than any tensor has, and far from overflow when added to.
_BEYOND = 1 << 40

Bound: TypeAlias = int | Any  # an integer, or a gs.Variable of one
Span: TypeAlias = tuple[Bound, Bound]


@dataclass(frozen=True, slots=True)
class _Bounds:
    """One patch: rows of each input, and rows of each output counted in the window."""

    windows: tuple[Span, ...]
    cores: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Targets:
    """Shapes to state at run time: of the input's windows and of each output."""

    window: gs.Variable
    outputs: tuple[gs.Variable, ...]


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
        form: One of `planner.FORMS`; windows shrink if the plan's do.
        graph: The graph its nodes lie in; not changed.
        shapes: Known shapes.
        opset: Version of the default domain.
        names: The name scheme.
        base: What new names derive from.

    Returns:
        The fragment that makes the region's outputs.
    """
    makes = tuple(edge.name for edge in plan.region.outputs)
    fragment = Fragment(base, opset, names, covers=plan.region.nodes, makes=makes)
    if plan.tiling is None:
        bounds, targets = _run_time_bounds(fragment, plan)
    else:
        bounds, targets = _static_bounds(plan), None
    writer = _Writer(fragment, plan, graph, shapes, targets)
    if form in ("batch", "loop"):
        writer.stacked(bounds, loop=form == "loop")
    else:
        writer.sequential(bounds)
    return fragment


def _static_bounds(plan: RegionPlan) -> list[_Bounds]:
    tiling, network = plan.tiling, plan.region.network
    assert tiling is not None
    bounds = []
    for patch in tiling.patches:
        windows = [plan.window(number, patch) for number in network.inputs]
        cores = [
            owned.shifted(-plan.window(number, patch).begin)
            for number, owned in zip(network.outputs, patch.cores, strict=True)
        ]
        bounds.append(_Bounds(tuple(windows), tuple(cores)))
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
        suffix = f"bounds/{op}_{self.fragment.count}"
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
    network = region.network
    (source,) = region.inputs
    shape = fragment.add("Shape", [fragment.outer(source.name)], "bounds/shape")
    axis = fragment.ints([source.axis])
    height = _Number(
        fragment, fragment.add("Gather", [shape, axis], "bounds/rows", attrs={"axis": 0})
    )
    makers = {number: link for link in network.links for number in link.makes}
    rows: dict[int, Any] = {network.inputs[0]: height}

    def rows_of(number: int) -> Any:
        pending = [number]
        while pending:
            link = makers[pending[-1]] if pending[-1] not in rows else None
            if link is None:
                pending.pop()
            elif link.reads[0] in rows:
                rows.update(dict.fromkeys(link.makes, link.row_map.rows_out(rows[link.reads[0]])))
            else:
                pending.append(link.reads[0])
        return rows[number]

    outs: list[Any] = [
        _SymbolicExtent(rows_of(number), extent)
        for number, extent in zip(network.outputs, plan.extents, strict=True)
    ]
    k = np.arange(count)
    free = reduce(_minimum, (free_steps(out, _maximum) for out in outs))
    placed = schedule(free, count, k)
    begin = placed.shifts * step[network.inputs[0]]
    # The second is never the smaller one; it is there for its bound (`proof.window_slack`).
    window = _minimum(
        height - placed.trim * step[network.inputs[0]],
        placed.stride * step[network.inputs[0]] + window_slack(network),
    )
    spans = [_columns(fragment, begin, begin + window, count, "window")]
    for number, out in enumerate(outs):
        begins, ends = core(
            out,
            placed,
            first=(k > 0).astype(np.int64),
            last=np.where(k == count - 1, _BEYOND, 0),
            minimum=_minimum,
        )
        down = placed.shifts * out.step
        name = "core" if number == 0 else f"core_of_{number}"
        spans.append(_columns(fragment, begins - down, ends - down, count, name))
    bounds = [_Bounds((window,), tuple(cores)) for window, *cores in zip(*spans, strict=True)]
    targets = _Targets(
        _target(fragment, source, plan.ranks[0], window, "window"),
        tuple(
            _target(fragment, edge, rank, out.rows, "output" if at == 0 else f"output_{at}")
            for at, (edge, rank, out) in enumerate(
                zip(region.outputs, plan.ranks[1:], outs, strict=True)
            )
        ),
    )
    return bounds, targets


def _columns(
    fragment: Fragment, begin: _Number, end: _Number, count: int, name: str
) -> list[tuple[gs.Variable, gs.Variable]]:
    """Split vectors of one bound per patch into a pair of bounds for each."""
    begins = fragment.split(begin.tensor, count, f"bounds/{name}_begin")
    ends = fragment.split(end.tensor, count, f"bounds/{name}_end")
    return list(zip(begins, ends, strict=True))


def _target(fragment: Fragment, edge: Edge, rank: int, rows: _Number, what: str) -> gs.Variable:
    """Return a shape for Reshape: ``rows`` on the tiled axis, all else as it is (0).

    A product, not a Concat: from a Concat of constants and one computed size ONNX Runtime's
    ReshapeFusion (core/optimizer/reshape_fusion.cc) makes a constant with -1 in place of that size,
    and a -1 cannot be worked out for a tensor without elements.
    """
    here = fragment.ints([int(axis == edge.axis) for axis in range(rank)])
    return fragment.add("Mul", [rows.tensor, here], f"bounds/{what}_shape")


class _SymbolicExtent:
    """An `Extent` whose rows are a tensor."""

    def __init__(self, rows: _Number, extent: Extent) -> None:
        self.rows = rows
        self.step, self.top, self.tail = extent.step, extent.top, extent.tail


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the region in a window: where it is and, if known, its shape."""

    variable: gs.Variable
    dims: tuple[int | None, ...]
    kind: int

    @property
    def like(self) -> Like:
        return self.dims, self.kind

    def resized(self, axis: int, size: int | None) -> _Tensor:
        return replace(self, dims=(*self.dims[:axis], size, *self.dims[axis + 1 :]))


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
        rank = self.region.rank
        if dims is None or (rank and len(dims) != rank):
            dims = (None,) * rank
        return _Tensor(self.fragment.outer(name), dims, self.shapes.elements.get(name, 0))

    def _cut(self, x: _Tensor, axis: int, bounds: Span, suffix: str) -> _Tensor:
        """Slice one axis; nothing is emitted where static bounds take all of it."""
        begin, end = bounds
        if isinstance(begin, int) and isinstance(end, int):
            if begin == 0 and end == x.dims[axis]:
                return x
            cut = x.resized(axis, end - begin)
            variable = self.fragment.slice(
                x.variable, [axis], [begin], [end], suffix, like=cut.like
            )
        else:
            cut = x.resized(axis, None)
            variable = self.fragment.slice(x.variable, [axis], begin, end, suffix, like=cut.like)
        return replace(cut, variable=variable)

    def _windows(self, bound: _Bounds, k: int) -> dict[Edge, _Tensor]:
        windows = {}
        for at, (edge, span) in enumerate(zip(self.region.inputs, bound.windows, strict=True)):
            suffix = f"window_{k}" if at == 0 else f"window_{k}_of_{at}"
            window = self._cut(self._whole(edge.name), edge.axis, span, suffix)
            if self.targets is not None:
                stated = self.fragment.reshape(
                    window.variable, self.targets.window, f"{suffix}/stated", like=window.like
                )
                window = replace(window, variable=stated)
            windows[edge] = window
        return windows

    def _clones(
        self, into: Fragment, tensors: dict[Edge, _Tensor], suffix: str, batch: int, patch: int
    ) -> list[_Tensor]:
        """Clone the region's nodes on a patch's window (or ``batch`` stacked ones).

        Returns:
            The outputs.
        """
        plan, counts = self.plan, _Counter()
        at = None if plan.tiling is None else plan.tiling.patches[patch]
        wanted: dict[str, _Tensor] = {}
        for node, link, entry in zip(
            self.nodes, self.region.links, self.region.network.links, strict=True
        ):
            made = []
            for name, number in zip(
                (name for name in node.output if name), entry.makes, strict=True
            ):
                y = self._whole(name)
                if len(y.dims) <= link.axis:  # nobody reads it, and inference leaves it out
                    y = replace(y, dims=(None,) * (link.axis + 1))
                rows = None
                if at is not None and y.dims[link.axis] is not None:
                    rows = len(plan.window(number, at))
                y = y.resized(link.axis, rows)
                if batch > 1:
                    y = y.resized(0, None if y.dims[0] is None else y.dims[0] * batch)
                made.append((name, y))
            local = None if at is None else len(plan.window(entry.makes[0], at))
            replaced: dict[int, gs.Tensor] = {
                i: into.ints([local if number is ROWS else number for number in numbers])
                for i, numbers in link.constants.items()
            }
            attributes, padding = self._less_padding(link, entry, at)
            replaced.update({i: into.ints(numbers) for i, numbers in padding.items()})
            for i, axis in link.carriers:
                replaced[i] = tensors[Edge(node.input[i], axis)].variable
            variables = into.clone(
                node,
                replaced,
                f"{counts.label(node.op_type)}{suffix}",
                attributes={**link.attributes, **attributes},
                likes=[y.like for _, y in made],
            )
            for (name, y), variable in zip(made, variables, strict=True):
                wanted[name] = replace(y, variable=variable)
                tensors[Edge(name, link.axis)] = wanted[name]
        return [wanted[edge.name] for edge in self.region.outputs]

    def _less_padding(
        self, link: RowLocal, entry: Link, patch: Patch | None
    ) -> tuple[Mapping[str, Any], Mapping[int, tuple[int, ...]]]:
        """Return attributes and inputs, by index, that drop padding at interior edges."""
        plan = self.plan
        if plan.shrinking is None or plan.tiling is None or patch is None or link.pads is None:
            return {}, {}
        dropped = padding_dropped(entry, *plan.shrinking.at(patch.shift, plan.tiling.trim))
        assert dropped is not None  # it is proven
        if not any(dropped):
            return {}, {}
        values = link.pads.dropped(*dropped)
        if link.pads.index is not None:
            return {}, {link.pads.index: values}
        return {**dict.fromkeys(link.pads.without), "pads": values}, {}

    def sequential(self, bounds: list[_Bounds]) -> None:
        """Emit each patch after the one before."""
        outputs = self.region.outputs
        cores: list[list[gs.Variable]] = [[] for _ in outputs]
        for k, bound in enumerate(bounds):
            made = self._clones(self.fragment, self._windows(bound, k), f"_{k}", 1, k)
            for at, (edge, y) in enumerate(zip(outputs, made, strict=True)):
                suffix = f"core_{k}" if at == 0 else f"core_{k}_of_{at}"
                cores[at].append(self._cut(y, edge.axis, bound.cores[at], suffix).variable)
        for at, edge in enumerate(outputs):
            join = partial(self.fragment.concat, cores[at], edge.axis)
            self._finish(at, partial(join, like=self._whole(edge.name).like))

    def _finish(self, at: int, join: Callable[..., gs.Variable]) -> None:
        """Join cores to output ``at``; at run time its height is stated behind that."""
        edge = self.region.outputs[at]
        suffix = "output" if at == 0 else f"output_{at}"
        if self.targets is None:
            join(suffix, output=edge.name)
            return
        self.fragment.add(
            "Reshape",
            [join(f"{suffix}/joined"), self.targets.outputs[at]],
            suffix,
            like=self._whole(edge.name).like,
            output=edge.name,
        )

    def stacked(self, bounds: list[_Bounds], *, loop: bool) -> None:
        """Emit one set of nodes, on windows stacked in the batch dimension or one by one."""
        fragment, region, count = self.fragment, self.region, len(bounds)
        windows = [self._windows(bound, k) for k, bound in enumerate(bounds)]
        stacks = {}
        for at, edge in enumerate(region.inputs):
            one = windows[0][edge]
            stack = one.resized(0, None if one.dims[0] is None else one.dims[0] * count)
            variable = fragment.concat(
                [window[edge].variable for window in windows],
                0,
                "stack" if at == 0 else f"stack_{at}",
                like=stack.like,
            )
            stacks[edge] = replace(stack, variable=variable)
        if loop:
            made = self._loop(stacks, count)
        else:
            made = []
            for at, y in enumerate(self._clones(fragment, stacks, "", count, 0)):
                suffix = "patches" if at == 0 else f"patches_{at}"
                made.append(self._unstack(y, count, suffix))
        for at, edge in enumerate(region.outputs):
            cores = [
                self._core(made[at], edge.axis, k, bound.cores[at], at)
                for k, bound in enumerate(bounds)
            ]
            self._finish(at, partial(self._join_stacked, cores, edge))

    def _join_stacked(
        self, cores: list[gs.Variable], edge: Edge, suffix: str, *, output: str | None = None
    ) -> gs.Variable:
        dims, kind = self._whole(edge.name).like
        joined = self.fragment.concat(
            cores, edge.axis + 1, f"{suffix}/cores", like=((1, *dims), kind)
        )
        return self.fragment.squeeze(joined, 0, suffix, output=output)

    def _unstack(self, y: _Tensor, count: int, suffix: str) -> _Tensor:
        """Reshape [P*N, C, ...] to [P, N, C, ...]."""
        images, *rest = y.dims
        dims = (count, images // count if images else images, *rest)
        whole = replace(y, dims=dims)
        if dims.count(None) <= 1 and 0 not in dims:
            target = self.fragment.ints([-1 if d is None else d for d in dims])
            variable = self.fragment.reshape(y.variable, target, suffix, like=whole.like)
        else:
            variable = self._unstack_free(y, whole, suffix)
        return replace(whole, variable=variable)

    def _unstack_free(self, y: _Tensor, whole: _Tensor, suffix: str) -> gs.Variable:
        """The same where several sizes are unknown, or one is 0: right without elements, too.

        There no -1 can be worked out, and a 0 in Reshape's shape copies the size in the same
        place: so the tensor gets its first dimension before the sizes are stated.
        """
        fragment, (count, images, *rest) = self.fragment, whole.dims
        parts = fragment.ints([count, images or 0, *(0 for _ in rest)])
        target: gs.Tensor = parts
        if images is None:
            shape = fragment.add("Shape", [y.variable], f"{suffix}/shape")
            stacked = fragment.slice(shape, [0], [0], [1], f"{suffix}/stacked")
            each = fragment.add("Div", [stacked, fragment.ints([count])], f"{suffix}/images")
            here = fragment.ints([0, 1, *(0 for _ in rest)])
            # Sum and product, not a Concat, for the reason that `_target` gives.
            placed = fragment.add("Mul", [each, here], f"{suffix}/placed")
            target = fragment.add("Add", [placed, parts], f"{suffix}/target")
        like = (1, *y.dims), y.kind
        first = fragment.unsqueeze(y.variable, 0, f"{suffix}/first", like=like)
        return fragment.reshape(first, target, suffix, like=whole.like)

    def _loop(self, stacks: Mapping[Edge, _Tensor], count: int) -> list[_Tensor]:
        """Emit a Loop whose body takes one window of each stack; return [P, N, C, ...]."""
        fragment = self.fragment
        body = Fragment(
            f"{fragment.base}/{fragment.names.tag}/loop", fragment.opset, fragment.names
        )
        step = body.outer(f"{body.base}/k")
        windows = {}
        for at, (edge, stack) in enumerate(stacks.items()):
            rows = self._unstack(stack, count, "windows" if at == 0 else f"windows_{at}")
            one = replace(rows, dims=rows.dims[1:])
            suffix = "window" if at == 0 else f"window_{at}"
            variable = body.add(
                "Gather", [rows.variable, step], suffix, attrs={"axis": 0}, like=one.like
            )
            windows[edge] = replace(one, variable=variable)
        made = self._clones(body, windows, "", 1, 0)
        elements = [self.shapes.elements.get(edge.name, 0) for edge in self.region.outputs]
        stacked = [replace(y, dims=(count, *y.dims)) for y in made]
        variables = fragment.loop(
            body,
            step,
            count,
            [(y.variable, y.dims, kind) for y, kind in zip(made, elements, strict=True)],
            likes=[y.like for y in stacked],
        )
        return [replace(y, variable=v) for y, v in zip(stacked, variables, strict=True)]

    def _core(self, stacked: _Tensor, axis: int, k: int, span: Span, at: int) -> gs.Variable:
        """Slice patch ``k`` and its core out of [P, N, C, ...]."""
        begin, end = span
        suffix = f"core_{k}" if at == 0 else f"core_{k}_of_{at}"
        one = stacked.resized(0, 1).resized(axis + 1, None)
        if isinstance(begin, int) and isinstance(end, int):
            one = one.resized(axis + 1, end - begin)
            starts: Any = [k, begin]
            ends: Any = [k + 1, end]
        else:
            starts = self.fragment.concat([self.fragment.ints([k]), begin], 0, f"{suffix}/begin")
            ends = self.fragment.concat([self.fragment.ints([k + 1]), end], 0, f"{suffix}/end")
        axes = [0, axis + 1]
        return self.fragment.slice(stacked.variable, axes, starts, ends, suffix, like=one.like)


class _Counter:
    """Numbers nodes of one operator: Conv, Conv.1, Conv.2, ..."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def label(self, op_type: str) -> str:
        number = self._seen.get(op_type, 0)
        self._seen[op_type] = number + 1
        return op_type if number == 0 else f"{op_type}.{number}"
