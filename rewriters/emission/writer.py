"""Patches of a region, written one after the other; what all ways of writing them share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.bounds import Bounds, RunTimeNumber, Span, Targets
from patchconv_deploy.rewriters.emission.fragment import Fragment, Join, Window
from patchconv_deploy.rewriters.emission.in_turn import Turn
from patchconv_deploy.rewriters.emission.names import Like, of_number
from patchconv_deploy.rewriters.emission.opset_nodes import (
    add_concat,
    add_reshape,
    add_slice,
)
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.operators.record import ROWS, RowLocal, Shape
from patchconv_deploy.rewriters.operators.rules import FAR
from patchconv_deploy.rewriters.regions.region import Edge
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan
from patchconv_deploy.rewriters.tiling.network import Link, padding_dropped
from patchconv_deploy.rewriters.tiling.patches import Patch
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise

__all__ = ["PatchWriter", "WindowTensor"]


@dataclass(frozen=True, slots=True)
class WindowTensor:
    """A tensor of the region in a window: where it is and, if known, its shape."""

    variable: gs.Variable
    dims: tuple[int | None, ...]
    kind: int

    @property
    def like(self) -> Like:
        """Shape and element type."""
        return self.dims, self.kind

    def resized(self, axis: int, size: int | None) -> WindowTensor:
        """Return the same with another size along an axis."""
        return replace(self, dims=(*self.dims[:axis], size, *self.dims[axis + 1 :]))


class PatchWriter:
    """Writes one region's nodes into a fragment."""

    def __init__(
        self,
        fragment: Fragment,
        plan: RegionPlan,
        graph: onnx.GraphProto,
        shapes: Shapes,
        targets: Targets | None,
    ) -> None:
        self.fragment = fragment
        self.targets = targets
        self.plan = plan
        self.region = plan.region
        self.shapes = shapes
        # Steps that windows are shorter by, where that is known when the model runs.
        self.trim: RunTimeNumber | None = None if targets is None else targets.trim
        self._shortened: dict[tuple[int, str, int], gs.Tensor] = {}
        self.nodes = [graph.node[position] for position in plan.region.nodes]

    def _whole(self, name: str) -> WindowTensor:
        dims: Shape | None = self.shapes.dims.get(name)
        rank = self.region.rank
        if dims is None or (rank and len(dims) != rank):
            dims = (None,) * rank
        return WindowTensor(self.fragment.outer(name), dims, self.shapes.elements.get(name, 0))

    def _cut(
        self,
        x: WindowTensor,
        axis: int,
        bounds: Span,
        suffix: str,
        into: Fragment | None = None,
        *,
        apart: bool = False,
    ) -> WindowTensor:
        """Slice one axis; nothing is emitted where static bounds take all of it.

        Args:
            x: What is cut.
            axis: The axis.
            bounds: Its first row, and one past its last.
            suffix: Names the node and what it makes.
            into: Where the node goes; the writer's fragment by default.
            apart: Name another axis as well, which all is taken of.
        """
        into = into or self.fragment
        begin, end = bounds
        if isinstance(begin, int) and isinstance(end, int):
            if begin == 0 and end == x.dims[axis]:
                return x
            cut = x.resized(axis, end - begin)
            axes, begins, ends = [axis], [begin], [end]
            if apart:
                axes, begins, ends = [*axes, 0 if axis else 1], [*begins, 0], [*ends, FAR]
            variable = add_slice(into, x.variable, axes, begins, ends, suffix, like=cut.like)
        else:
            cut = x.resized(axis, None)
            variable = add_slice(into, x.variable, [axis], begin, end, suffix, like=cut.like)
        return replace(cut, variable=variable)

    def _windows(
        self, bound: Bounds, k: int, apart: Collection[int] = ()
    ) -> dict[Edge, WindowTensor]:
        windows = {}
        for at, (edge, span) in enumerate(zip(self.region.inputs, bound.windows, strict=True)):
            suffix = of_number(f"window_{k}", at)
            whole = self._whole(edge.name)
            window = self._cut(whole, edge.axis, span, suffix, apart=at in apart)
            begin, end = span
            if window.variable is not whole.variable and isinstance(begin, int):
                rows = whole.dims[edge.axis]
                cut = Window(
                    edge.name,
                    str(window.variable.name),
                    suffix,
                    edge.axis,
                    begin,
                    int(end),
                    rows,
                    window.like,
                )
                self.fragment.windows.append(cut)
            if self.targets is not None:
                stated = add_reshape(
                    self.fragment,
                    window.variable,
                    self.targets.windows[at],
                    f"{suffix}/stated",
                    like=window.like,
                )
                window = replace(window, variable=stated)
            windows[edge] = window
        return windows

    def _clones(
        self,
        into: Fragment,
        tensors: dict[Edge, WindowTensor],
        suffix: str,
        batch: int,
        patch: int,
        crops: Mapping[str, tuple[Span, str]] | None = None,
        turn: Turn | None = None,
    ) -> list[WindowTensor]:
        """Clone the region's nodes on a patch's window (or ``batch`` stacked ones).

        Args:
            into: Where they go.
            tensors: The windows; what the clones make is added.
            suffix: Names the clones.
            batch: Windows that are stacked.
            patch: Number of the patch.
            crops: Outputs to crop as soon as they are there: what is read of them are cores.
            turn: The patch before, where this one is to wait for it.

        Returns:
            The outputs.
        """
        crops = crops or {}
        cropped: dict[Edge, int | None] = {}
        plan, counts = self.plan, _Counter()
        at = None if plan.tiling is None else plan.tiling.patches[patch]
        wanted: dict[str, WindowTensor] = {}
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
                for i, axis in link.carriers:
                    if Edge(node.input[i], axis) in cropped:
                        rows = cropped[Edge(node.input[i], axis)]
                        cropped[Edge(name, link.axis)] = rows
                        y = y.resized(link.axis, rows)
                made.append((name, y))
            local = None if at is None else len(plan.window(entry.makes[0], at))
            replaced: dict[int, gs.Tensor] = {
                i: into.ints([local if number is ROWS else number for number in numbers])
                for i, numbers in link.constants.items()
            }
            replaced.update(self._less_rows(into, node, link, entry, [y for _, y in made]))
            attributes, padding = self._less_padding(link, entry, at)
            replaced.update({i: into.ints(numbers) for i, numbers in padding.items()})
            read = {i: tensors[Edge(node.input[i], axis)] for i, axis in link.carriers}
            replaced.update({i: tensor.variable for i, tensor in read.items()})
            if turn is not None:
                replaced.update(turn.inputs(node, link, wanted, self._whole, read))
            variables = into.clone(
                node,
                replaced,
                f"{counts.label(node.op_type)}{suffix}",
                attributes={**link.attributes, **attributes},
                likes=[y.like for _, y in made],
            )
            for (name, y), variable in zip(made, variables, strict=True):
                wanted[name] = replace(y, variable=variable)
                if name in crops:
                    wanted[name] = self._cut(wanted[name], link.axis, *crops[name], into)
                    cropped[Edge(name, link.axis)] = wanted[name].dims[link.axis]
                tensors[Edge(name, link.axis)] = wanted[name]
        return [wanted[edge.name] for edge in self.region.outputs]

    def _less_rows(
        self,
        into: Fragment,
        node: onnx.NodeProto,
        link: RowLocal,
        entry: Link,
        made: Sequence[WindowTensor],
    ) -> dict[int, gs.Tensor]:
        """Return inputs, by index, that hold the output's rows, with those in a window."""
        found: dict[int, gs.Tensor] = {}
        for i, given in link.absolute.items():
            dims = made[0].dims
            if self.plan.tiling is not None and given.begin is None and None not in dims:
                found[i] = into.ints(dims)
                continue
            rows = dims[link.axis]
            if self.plan.tiling is not None and given.count == 1 and rows is not None:
                found[i] = into.ints([rows + (given.begin or 0)])
                continue
            key = (id(into), node.output[0], i)
            if key not in self._shortened:
                step = self.plan.steps[entry.makes[0]]
                here = np.array([int(each == given.at) for each in range(given.count)]) * step
                if self.plan.tiling is not None:
                    less: gs.Tensor = into.ints(here * self.plan.tiling.trim)
                else:
                    assert self.trim is not None
                    less = (self.trim.inside(into) * here).tensor
                name = f"bounds/less_{len(self._shortened)}"
                whole, like = into.outer(node.input[i]), ((given.count,), onnx.TensorProto.INT64)
                self._shortened[key] = into.add("Sub", [whole, less], name, like=like)
            found[i] = self._shortened[key]
        return found

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

    def sequential(
        self,
        bounds: list[Bounds],
        *,
        regional: bool,
        in_turn: bool = False,
        apart: Collection[str] = (),
    ) -> None:
        """Emit each patch after the one before.

        Args:
            bounds: Where the patches start and end.
            regional: What they make may be handed over to other regions in strips.
            in_turn: A patch reads something of the one before, so that it has to wait for it.
            apart: Inputs that windows are taken of one by one, also where they take them apart
                without overlap. Of such Slices along one axis ONNX Runtime makes a Split, which
                copies the whole at the first patch: a loss where the input stays. It takes none
                that names a second axis (GatherSliceToSplitFusion,
                ``core/optimizer/gather_fusion.cc``).
        """
        outputs = self.region.outputs
        split = self._split_by(bounds, apart) if self.targets is None else ()
        cores: list[list[gs.Variable]] = [[] for _ in outputs]
        rows: list[list[Any]] = [[] for _ in outputs]
        early = self._cropped_early(bounds) if regional and self.targets is None else {}
        inside = {name for names in early.values() for name in names}
        before: list[WindowTensor] = []
        for k, bound in enumerate(bounds):
            turn = Turn(self.fragment, k, before) if before else None
            suffixes = [of_number(f"core_{k}", at) for at in range(len(outputs))]
            crops = {
                edge.name: (bound.cores[at], suffixes[at])
                for at, edge in enumerate(outputs)
                if edge.name in early
            }
            windows = self._windows(bound, k, () if k else split)
            made = self._clones(self.fragment, windows, f"_{k}", 1, k, crops, turn)
            before = made if in_turn else []
            for at, (edge, y) in enumerate(zip(outputs, made, strict=True)):
                core = y
                if edge.name not in crops and edge.name not in inside:
                    core = self._cut(y, edge.axis, bound.cores[at], suffixes[at])
                cores[at].append(core.variable)
                rows[at].append(core.dims[edge.axis])
        for at, edge in enumerate(outputs):
            if self.targets is None and regional:
                parts = tuple(str(core.name) for core in cores[at])
                like = self._whole(edge.name).like
                self.fragment.joins.append(Join(edge.name, edge.axis, parts, tuple(rows[at]), like))
            join = partial(add_concat, self.fragment, cores[at], edge.axis)
            self._finish(at, partial(join, like=self._whole(edge.name).like))

    def _split_by(self, bounds: Sequence[Bounds], names: Collection[str]) -> list[int]:
        """Return which inputs of these names windows take apart, one behind the other."""
        found = []
        for at, edge in enumerate(self.region.inputs):
            dims = self._whole(edge.name).dims
            if edge.name not in names or len(dims) < 2:
                continue
            begins, ends = zip(*(bound.windows[at] for bound in bounds), strict=True)
            if begins == (0, *ends[:-1]) and ends[-1] == dims[edge.axis]:
                found.append(at)
        return found

    def _cropped_early(self, bounds: list[Bounds]) -> dict[str, set[str]]:
        """Return outputs that are cropped as soon as they are made, and what is made of the cores.

        What reads them in the region computes each row from that row alone, and makes nothing but
        the same rows: a statistic of a layer. The window is then not kept for the crop.
        """
        region, found = self.region, dict[str, set[str]]()
        spans = {
            edge.name: [bound.cores[at] for bound in bounds]
            for at, edge in enumerate(region.outputs)
        }
        for edge in region.outputs:
            made, fits = {edge.name}, True
            for node, link in zip(self.nodes, region.links, strict=True):
                read = [node.input[i] for i, _ in link.carriers]
                if made.isdisjoint(read):
                    continue
                # The rows of a window may be said to it, those of its core not.
                stated = bool(link.constants or link.absolute)
                same = isinstance(link.row_map, Pointwise) and not stated
                fits = fits and same and made.issuperset(read)
                made.update(name for name in node.output if name)
            made.discard(edge.name)
            ends = made & spans.keys()
            if fits and ends and all(spans[name] == spans[edge.name] for name in ends):
                found[edge.name] = made
        inner = {name for names in found.values() for name in names}
        return {name: made for name, made in found.items() if name not in inner}

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


class _Counter:
    """Numbers nodes of one operator: Conv, Conv.1, Conv.2, ..."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def label(self, op_type: str) -> str:
        number = self._seen.get(op_type, 0)
        self._seen[op_type] = number + 1
        return op_type if number == 0 else f"{op_type}.{number}"
