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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
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
from patchconv_deploy.rewriters.emission.fragment import Fragment, Pieces
from patchconv_deploy.rewriters.emission.loop import (
    Result,
    add_assumed_loop,
    add_collecting_loop,
)
from patchconv_deploy.rewriters.emission.names import Like, of_number
from patchconv_deploy.rewriters.emission.opset_nodes import add_squeeze
from patchconv_deploy.rewriters.emission.pieces import Given
from patchconv_deploy.rewriters.emission.writer import PatchWriter, WindowTensor
from patchconv_deploy.rewriters.graph.nodes import captured
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.regions.region import Edge
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan
from patchconv_deploy.rewriters.tiling.patches import Rows
from patchconv_deploy.rewriters.tiling.proof import window_slack
from patchconv_deploy.rewriters.tiling.rounds import place_round, round_cores, rounds_of

__all__ = ["OLDEST_OPSET", "RoundsWriter"]

OLDEST_OPSET = 13


class RoundsWriter(PatchWriter):
    """Writes one region's nodes as rounds of a Loop.

    Where the plan's heights are known it is written for its memory to be predicted: with their
    numbers, and with a tensor that stands for the sequence of what its rounds make.

    Args:
        fragment: Where its nodes go.
        plan: The region.
        graph: The graph its nodes lie in.
        shapes: Known shapes.
        kept: Outputs that stay in pieces (`emission.pieces`).
        given: Inputs that come in pieces.
    """

    def __init__(
        self,
        fragment: Fragment,
        plan: RegionPlan,
        graph: onnx.GraphProto,
        shapes: Shapes,
        kept: Collection[str],
        given: Mapping[str, Pieces],
    ) -> None:
        super().__init__(fragment, plan, graph, shapes, None)
        self._kept, self._given = kept, given

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
            edge: self._window(body, at, edge, span)
            for at, (edge, span) in enumerate(zip(region.inputs, bound.windows, strict=True))
        }
        made = self._cores(body, windows, bound)
        kinds = [self.shapes.elements.get(edge.name, 0) for edge in region.outputs]
        results = [Result(y.variable, y.dims, kind) for y, kind in zip(made, kinds, strict=True)]
        if plan.tiling is None:
            for at, sequence in enumerate(
                add_collecting_loop(fragment, body, step, count, results)
            ):
                self._leave(at, [sequence], None)
        else:
            likes = [self._likes(at, result) for at, result in enumerate(results)]
            around = self._around()
            pieces, done = add_assumed_loop(fragment, body, step, results, likes, around)
            for at, parts in enumerate(pieces):
                self._leave(at, parts, done)
        read = self._read_whole()
        fragment.in_windows = {e.name: e.axis for e in region.inputs if e.name not in read}

    def _leave(self, at: int, parts: list[gs.Variable], done: gs.Variable | None) -> None:
        """Put an output together, or leave it in pieces; say what there is to know of these."""
        fragment, plan, edge = self.fragment, self.plan, self.region.outputs[at]
        assert plan.stride is not None
        extent = plan.extents[at]
        pieces = Pieces(edge.axis, plan.stride * extent.step, extent.top)
        names = [str(part.name) for part in parts]
        if done is None:
            rows, count = (fragment.name(f"pieces/{at}/{what}") for what in ("rows", "count"))
            pieces = replace(pieces, name=names[0], rows=rows, count=count)
            made = [names[0], rows, count]
        else:
            likes = [fragment.shapes[name] for name in names]
            known = tuple(zip(names, likes, strict=True))
            pieces = replace(pieces, parts=known, done=str(done.name))
            made = [*names, pieces.done]
        fragment.pieces[edge.name] = pieces
        if edge.name not in self._kept:
            fragment.add(
                "ConcatFromSequence",
                parts if done is None else [*parts, done],
                "output" if at == 0 else f"output_{at}",
                attrs={"axis": edge.axis},
                like=self._whole(edge.name).like,
                output=edge.name,
            )
            return
        if done is None:
            fragment.add("Identity", [self._rows[at].tensor], f"pieces/{at}/rows")
            fragment.add("Identity", [self._count.tensor], f"pieces/{at}/count")
        fragment.makes = (
            *(name for name in fragment.makes if name != edge.name),
            *(name for name in made if name not in fragment.makes),
        )

    def _likes(self, at: int, result: Result) -> list[Like]:
        """Return shape and element type of each piece of an output, at known sizes."""
        tiling, axis = self.plan.tiling, self.region.outputs[at].axis
        assert tiling is not None
        dims = result.dims
        return [
            ((*dims[:axis], len(patch.cores[at]), *dims[axis + 1 :]), result.kind)
            for patch in tiling.patches
        ]

    def _around(self) -> tuple[list[str], list[str]]:
        """Return what is there before the rounds, and what they are given in pieces."""
        given = self._given
        names = [edge.name for edge in self.region.inputs]
        before = [given[name].done if name in given else name for name in names]
        parts = dict(part for name in names if name in given for part in given[name].parts)
        self.fragment.shapes.update(parts)
        return before, list(parts)

    def _window(self, body: Fragment, at: int, edge: Edge, span: Span) -> WindowTensor:
        """Write a round's window of an input."""
        suffix, whole = of_number("window", at), self._whole(edge.name)
        pieces = self._given.get(edge.name)
        if pieces is None:
            return self._cut(whole, edge.axis, span, suffix, body)
        given, plan = Given(pieces, body, suffix), self.plan
        begin, end = span
        if isinstance(begin, int):
            cut = whole.resized(edge.axis, end - begin)
            return replace(cut, variable=given.assumed_window(Rows(begin, end)))
        assert plan.stride is not None
        number = self.region.network.inputs[at]
        most = plan.stride * plan.steps[number] + window_slack(self.region.network, at)
        window = given.window(RunTimeNumber(body, begin), RunTimeNumber(body, end), most)
        return replace(whole.resized(edge.axis, None), variable=window)

    def _read_whole(self) -> set[str]:
        """Return what the nodes read otherwise than along the tiled axis."""
        found = set[str]()
        for node, link in zip(self.nodes, self.region.links, strict=True):
            carried = {i for i, _ in link.carriers}
            found.update(name for i, name in enumerate(node.input) if i not in carried)
            found.update(captured(node))
        return found

    def _run_time(self, body: Fragment, step: gs.Variable) -> tuple[gs.Variable, Bounds]:
        """Write what a height comes to; return the number of rounds, and a round's rows."""
        fragment, plan, network = self.fragment, self.plan, self.region.network
        assert plan.stride is not None
        known = {name: pieces.rows for name, pieces in self._given.items()}
        heights, outs, free = free_heights(fragment, plan, known)
        trim, count = rounds_of(free, plan.stride, maximum)
        self._rows, self._count = [out.rows for out in outs], count
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
            tuple(windows), self._round_cores(body, outs, placed, index)
        )

    def _round_cores(
        self, body: Fragment, outs: Sequence[SymbolicExtent], placed: Any, index: RunTimeNumber
    ) -> tuple[Span, ...]:
        """Write which rows of each output's window a round owns."""
        inside = [SymbolicExtent(out.rows.inside(body), out) for out in outs]
        found: list[Span] = []
        for at, ((begin, end), out) in enumerate(
            zip(round_cores(inside, placed, index, minimum), inside, strict=True)
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
