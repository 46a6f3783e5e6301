"""Patches of a fixed height in a Loop that has as many rounds as an image needs.

    x --- Shape -- rounds, window
      |              |
      +----------- Loop( Slice -- Conv ... Conv -- Slice -- SequenceInsert ) -- ConcatFromSequence

A round cuts its window out of the whole input, and puts the rows that it owns behind those of the
rounds before, so that the last one may have fewer of them and nothing is put together twice
(`tiling.rounds`). Weights stand in the body, once (`emission.bodies`).

Source: ONNX's Loop takes sequences as state from opset 13 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from patchconv_deploy.rewriters.emission.bounds import (
    Bounds,
    RunTimeNumber,
    Span,
    SymbolicExtent,
    free_heights,
    maximum,
    minimum,
    static_bounds,
)
from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.loop import Result, add_collecting_loop, add_loop
from patchconv_deploy.rewriters.emission.names import of_number
from patchconv_deploy.rewriters.emission.opset_nodes import add_squeeze
from patchconv_deploy.rewriters.emission.writer import PatchWriter, WindowTensor
from patchconv_deploy.rewriters.tiling.rounds import place_round, round_cores, rounds_of

__all__ = ["OLDEST_OPSET", "RoundsWriter"]

OLDEST_OPSET = 13


class RoundsWriter(PatchWriter):
    """Writes one region's nodes as rounds of a Loop.

    Where the plan's heights are known it is written for its memory to be predicted: with their
    numbers, and with a Loop that scans what its rounds make, whose shape can be told.
    """

    def write(self) -> None:
        """Write the region."""
        fragment, plan, region = self.fragment, self.plan, self.region
        body = Fragment(
            f"{fragment.base}/{fragment.names.tag}/loop", fragment.opset, fragment.names
        )
        step = body.outer(f"{body.base}/k")
        if plan.tiling is None:
            count, bound = self._run_time(body, step)
        else:
            # All windows are alike; of the cores the tallest stands for all.
            bound = max(static_bounds(plan), key=lambda each: each.cores[0][1] - each.cores[0][0])
            count = len(plan.tiling.patches)
        windows = {
            edge: self._cut(
                self._whole(edge.name),
                edge.axis,
                span,
                of_number("window", at),
                body,
            )
            for at, (edge, span) in enumerate(zip(region.inputs, bound.windows, strict=True))
        }
        made = self._cores(body, windows, bound)
        kinds = [self.shapes.elements.get(edge.name, 0) for edge in region.outputs]
        results = [Result(y.variable, y.dims, kind) for y, kind in zip(made, kinds, strict=True)]
        if plan.tiling is None:
            collected = add_collecting_loop(fragment, body, step, count, results)
        else:
            likes = [((count, *result.dims), result.kind) for result in results]
            collected = add_loop(fragment, body, step, count, results, likes=likes)
        for at, (edge, pieces) in enumerate(zip(region.outputs, collected, strict=True)):
            fragment.add(
                "ConcatFromSequence",
                [pieces],
                "output" if at == 0 else f"output_{at}",
                attrs={"axis": edge.axis},
                like=self._whole(edge.name).like,
                output=edge.name,
            )

    def _run_time(self, body: Fragment, step: gs.Variable) -> tuple[gs.Variable, Bounds]:
        """Write what a height comes to; return the number of rounds, and a round's rows."""
        fragment, plan, network = self.fragment, self.plan, self.region.network
        assert plan.stride is not None
        heights, outs, free = free_heights(fragment, plan)
        trim, count = rounds_of(free, plan.stride, maximum)
        self.trim = trim
        spans = [
            height - trim * plan.steps[n] for height, n in zip(heights, network.inputs, strict=True)
        ]
        # From here on it depends on the round.
        index = RunTimeNumber(body, body.add("Reshape", [step, body.ints([1])], "bounds/round"))
        placed = place_round(trim.inside(body), plan.stride, index, minimum)
        begins = [placed.shifts * plan.steps[number] for number in network.inputs]
        windows = [
            (begin.tensor, (begin + span.inside(body)).tensor)
            for begin, span in zip(begins, spans, strict=True)
        ]
        return add_squeeze(fragment, count.tensor, 0, "bounds/rounds"), Bounds(
            tuple(windows), self._round_cores(body, outs, placed)
        )

    def _round_cores(
        self, body: Fragment, outs: Sequence[SymbolicExtent], placed: Any
    ) -> tuple[Span, ...]:
        """Write which rows of each output's window a round owns."""
        inside = [SymbolicExtent(out.rows.inside(body), out) for out in outs]
        found: list[Span] = []
        for at, ((begin, end), out) in enumerate(
            zip(round_cores(inside, placed, minimum), inside, strict=True)
        ):
            # Outputs that are cut alike get the same bounds: one crop may serve them.
            alike = self.plan.extents.index(self.plan.extents[at])
            down = placed.shifts * out.step
            found.append(
                found[alike] if alike < at else ((begin - down).tensor, (end - down).tensor)
            )
        return tuple(found)

    def _cores(
        self, body: Fragment, windows: dict[Any, WindowTensor], bound: Bounds
    ) -> list[WindowTensor]:
        """Write a round's nodes; return the rows that it owns of each output."""
        outputs = self.region.outputs
        early = self._cropped_early([bound])
        inside = {name for names in early.values() for name in names}
        suffixes = [of_number("core", at) for at in range(len(outputs))]
        crops = {
            edge.name: (bound.cores[at], suffixes[at])
            for at, edge in enumerate(outputs)
            if edge.name in early
        }
        made = self._clones(body, windows, "", 1, 0, crops)
        return [
            y
            if edge.name in crops or edge.name in inside
            else self._cut(y, edge.axis, bound.cores[at], suffixes[at], body)
            for at, (edge, y) in enumerate(zip(outputs, made, strict=True))
        ]
