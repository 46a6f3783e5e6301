"""What a rewrite did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from patchconv_deploy.rewriters.emission.conv_folding import Folded
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.planning.choose import Goal
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.planning.peak_holders import Reason
from patchconv_deploy.rewriters.planning.written_tensors import WrittenTensor
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.selection import ConvSize
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan

__all__ = ["SESSION_OPTIONS_KEY", "Outcome", "Rewritten"]


# Where a model recommends session options, in its metadata.
SESSION_OPTIONS_KEY = "patchconv.session_options"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A region that was cut.

    Attributes:
        nodes: Labels of the model's nodes that it has; what is cut in several regions, as a
            normalisation may be, is in each.
        op_type: Operator of its convolution, "region" if it has several.
        form: One of `emission.forms`.
        axis: The tiled axis.
        splits: Number of patches.
        recompute: Work after over before; None if known at run time alone.
        seams: Rows of the first output at which a core begins; empty if known at run time alone.
        rows: Rows of the first output, None if known at run time alone.
        size: Sizes of its first input and output (free dimensions as assumed), bytes of all.
        peak_by_form: Predicted peak while the region runs, bytes per form.
        notes: What the user should know.
        plan: The plan it was cut by.
    """

    nodes: tuple[str, ...]
    op_type: str
    form: str
    axis: int
    splits: int
    recompute: float | None
    seams: tuple[int, ...]
    rows: int | None
    size: ConvSize
    peak_by_form: Mapping[str, int]
    notes: tuple[str, ...]
    plan: RegionPlan

    def seams_at(self, shapes: Shapes) -> tuple[int, tuple[int, ...]] | None:
        """Return the first output's rows and its seams, None if they are not known.

        Args:
            shapes: Shapes of the model's tensors at the sizes in question.
        """
        if self.rows is not None:
            return self.rows, self.seams
        region = self.plan.region
        rows = region.rows(shapes)
        if rows is None:
            return None
        return replace(self.plan, region=region.at(shapes)).seams_at(rows)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A rewritten model and what was done to it.

    Attributes:
        model: The result; the model as it was (shapes fixed if asked for) if nothing was cut.
        rewritten: Regions that were cut.
        refused: Convolutions left alone, each with its reason.
        engine: The engine that memory is predicted for, `memory.targets.ENGINES`.
        before: Predicted peak activation of the model.
        after: The same of the result.
        after_by_form: The same with every region in one form, bytes.
        assumed: Sizes that free dimensions were counted as in these predictions.
        sizes: Sizes of every convolution of the main graph, by label.
        already: The model held a plan and was left alone.
        weighed: Figures of every plan of regions that was weighed.
        recompute: Work after over before, None if it is not known.
        time: Predicted time after over before: the work, and what is copied; None if it is not
            known, or nothing was cut.
        plan: What was done, as `planning.plan_file.plan_data`.
        defaults: Predicted peaks before and after at ONNX Runtime's default session options, None
            where another engine is in view, or they are unknown.
        fits: The model keeps the memory budget as it is, so nothing was cut.
        reasons: What holds the peak where nothing was cut, the most bytes first.
        unknown: Why the peak is unknown, None if it is known.
        data_sized: Activations whose sizes depend on the data, counted as nothing.
        folded: What was folded into weights that the clones of a convolution share.
        unfixed: Predicted peak of the model as it was given, at the sizes that were fixed, bytes;
            None where that changes nothing. An engine that knows sizes when it loads a model may
            lay it out otherwise.
        largest: The largest activation before and after, at assumed sizes; None where its size is
            unknown.
        goal: What the search chose the plan by, None where nothing was searched or is cut.
    """

    model: onnx.ModelProto = field(repr=False)
    rewritten: tuple[Rewritten, ...]
    refused: tuple[Refusal, ...]
    engine: str
    before: Peak
    after: Peak
    after_by_form: Mapping[str, int]
    assumed: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, ConvSize]
    already: bool = False
    weighed: tuple[Candidate, ...] = ()
    recompute: float | None = None
    time: float | None = None
    plan: Mapping[str, Any] | None = None
    defaults: tuple[int, int] | None = None
    fits: bool = False
    reasons: tuple[Reason, ...] = ()
    unknown: Reason | None = None
    data_sized: tuple[str, ...] = ()
    folded: Folded = field(default_factory=Folded)
    unfixed: int | None = None
    largest: tuple[WrittenTensor | None, WrittenTensor | None] = (None, None)
    goal: Goal | None = None
