"""Emission: a planned region as nodes. Forms of one tiling.

`fused` and `sequential` (one node or many, the same picture), one patch after the other:

    x --+-- Slice -- Conv ... Conv -- Slice --+
        +-- Slice -- Conv ... Conv -- Slice --+-- Concat -- y
        +-- Slice -- Conv ... Conv -- Slice --+

`shrinking`, the same, each patch without the rows that its later nodes do not need
(`tiling.shrinking`): nodes at interior edges have less padding, or none.

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

`rounds`, where the height is known at run time alone: patches of a fixed height, as many as there
are (`emission.rounds`).

In all of them the bounds of Slices at such a height come from `tiling.patches`, read this time on
tensors: the same formulas that are proven on integers. TensorRT plans memory for the largest size a
tensor can have, and takes a Slice between computed bounds, and a Concat of such, for as tall as the
whole, or for the sum. So behind each of them in the other forms a Reshape, which moves nothing,
states the height as a formula whose bound it can see.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from patchconv_deploy.rewriters.emission.bounds import run_time_bounds, static_bounds
from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.emission.fragment import Fragment, Pieces
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.emission.rounds import RoundsWriter
from patchconv_deploy.rewriters.emission.stacked import StackedWriter
from patchconv_deploy.rewriters.emission.writer import PatchWriter
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["emit"]


def emit(
    plan: RegionPlan,
    form: str,
    graph: onnx.GraphProto,
    shapes: Shapes,
    opset: int,
    names: NameScheme,
    base: str,
    *,
    in_turn: bool = False,
    apart: Collection[str] = (),
    stands_for_free: bool = False,
) -> Fragment:
    """Emit a planned region.

    Args:
        plan: The region and its tiling.
        form: One of `emission.forms`; windows shrink if the plan's do.
        graph: The graph its nodes lie in; not changed.
        shapes: Known shapes.
        opset: Version of the default domain.
        names: The name scheme.
        base: What new names derive from.
        in_turn: Patches of whole regions that are written one after the other have to run so
            (`emission.in_turn`); at known rows alone.
        apart: Inputs that windows of such patches are taken of one by one
            (`PatchWriter.sequential`).
        stands_for_free: The rows are known here, and those of the region that this stands for are
            not: nothing is done that rows have to be known for, and every window is taken by
            itself.

    Returns:
        The fragment that makes the region's outputs.
    """

    def begun() -> Fragment:
        makes = tuple(edge.name for edge in plan.region.outputs)
        return Fragment(base, opset, names, covers=plan.region.nodes, makes=makes)

    def in_rounds(kept: frozenset[str], given: Mapping[str, Pieces]) -> Fragment:
        made = begun()
        RoundsWriter(made, plan, graph, shapes, kept, given).write()
        made.rewrite = in_rounds
        return made

    if plan.stride is not None:
        return in_rounds(frozenset(), {})
    fragment = begun()
    if plan.tiling is None:
        bounds, targets = run_time_bounds(fragment, plan)
    else:
        bounds, targets = static_bounds(plan), None
    if FORMS[form].stacked:
        stacked = StackedWriter(fragment, plan, graph, shapes, targets)
        stacked.stacked(bounds, loop=FORMS[form].loop)
    else:
        writer = PatchWriter(fragment, plan, graph, shapes, targets)
        regional = FORMS[form].regional and not stands_for_free
        if stands_for_free:
            apart = {edge.name for edge in plan.region.inputs}
        writer.sequential(bounds, regional=regional, in_turn=in_turn and regional, apart=apart)
    return fragment
