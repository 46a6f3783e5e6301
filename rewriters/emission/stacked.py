"""Patches of a region stacked: one set of nodes on all of them, or a Loop over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.bounds import Bounds, Span
from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.loop import Result, add_loop
from patchconv_deploy.rewriters.emission.names import of_number
from patchconv_deploy.rewriters.emission.opset_nodes import (
    add_concat,
    add_reshape,
    add_slice,
    add_squeeze,
    add_unsqueeze,
)
from patchconv_deploy.rewriters.emission.writer import PatchWriter, WindowTensor
from patchconv_deploy.rewriters.regions.region import Edge

__all__ = ["StackedWriter"]


class StackedWriter(PatchWriter):
    """Writes one region's nodes once, for windows that are stacked in the batch dimension."""

    def stacked(self, bounds: list[Bounds], *, loop: bool) -> None:
        """Emit one set of nodes, on windows stacked in the batch dimension or one by one."""
        fragment, region, count = self.fragment, self.region, len(bounds)
        windows = [self._windows(bound, k) for k, bound in enumerate(bounds)]
        stacks = {}
        for at, edge in enumerate(region.inputs):
            one = windows[0][edge]
            stack = one.resized(0, None if one.dims[0] is None else one.dims[0] * count)
            variable = add_concat(
                fragment,
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
        joined = add_concat(
            self.fragment, cores, edge.axis + 1, f"{suffix}/cores", like=((1, *dims), kind)
        )
        return add_squeeze(self.fragment, joined, 0, suffix, output=output)

    def _unstack(self, y: WindowTensor, count: int, suffix: str) -> WindowTensor:
        """Reshape [P*N, C, ...] to [P, N, C, ...]."""
        images, *rest = y.dims
        dims = (count, images // count if images else images, *rest)
        whole = replace(y, dims=dims)
        if dims.count(None) <= 1 and 0 not in dims:
            target = self.fragment.ints([-1 if d is None else d for d in dims])
            variable = add_reshape(self.fragment, y.variable, target, suffix, like=whole.like)
        else:
            variable = self._unstack_free(y, whole, suffix)
        return replace(whole, variable=variable)

    def _unstack_free(self, y: WindowTensor, whole: WindowTensor, suffix: str) -> gs.Variable:
        """The same where several sizes are unknown, or one is 0: right without elements, too.

        There no -1 can be worked out, and a 0 in Reshape's shape copies the size in the same
        place: so the tensor gets its first dimension before the sizes are stated.
        """
        fragment, (count, images, *rest) = self.fragment, whole.dims
        parts = fragment.ints([count, images or 0, *(0 for _ in rest)])
        target: gs.Tensor = parts
        if images is None:
            shape = fragment.add("Shape", [y.variable], f"{suffix}/shape")
            stacked = add_slice(fragment, shape, [0], [0], [1], f"{suffix}/stacked")
            each = fragment.add("Div", [stacked, fragment.ints([count])], f"{suffix}/images")
            here = fragment.ints([0, 1, *(0 for _ in rest)])
            # Sum and product, not a Concat, for the reason that `_target` gives.
            placed = fragment.add("Mul", [each, here], f"{suffix}/placed")
            target = fragment.add("Add", [placed, parts], f"{suffix}/target")
        like = (1, *y.dims), y.kind
        first = add_unsqueeze(fragment, y.variable, 0, f"{suffix}/first", like=like)
        return add_reshape(fragment, first, target, suffix, like=whole.like)

    def _loop(self, stacks: Mapping[Edge, WindowTensor], count: int) -> list[WindowTensor]:
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
        variables = add_loop(
            fragment,
            body,
            step,
            count,
            [Result(y.variable, y.dims, kind) for y, kind in zip(made, elements, strict=True)],
            likes=[y.like for y in stacked],
        )
        return [replace(y, variable=v) for y, v in zip(stacked, variables, strict=True)]

    def _core(self, stacked: WindowTensor, axis: int, k: int, span: Span, at: int) -> gs.Variable:
        """Slice patch ``k`` and its core out of [P, N, C, ...]."""
        begin, end = span
        suffix = of_number(f"core_{k}", at)
        one = stacked.resized(0, 1).resized(axis + 1, None)
        if isinstance(begin, int) and isinstance(end, int):
            one = one.resized(axis + 1, end - begin)
            starts: Any = [k, begin]
            ends: Any = [k + 1, end]
        else:
            starts = add_concat(
                self.fragment, [self.fragment.ints([k]), begin], 0, f"{suffix}/begin"
            )
            ends = add_concat(self.fragment, [self.fragment.ints([k + 1]), end], 0, f"{suffix}/end")
        axes = [0, axis + 1]
        return add_slice(self.fragment, stacked.variable, axes, starts, ends, suffix, like=one.like)
