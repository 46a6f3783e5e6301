"""What a rewrite is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from patchconv_deploy.rewriters.emission.forms import FORMS, SINGLE_FORMS
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.memory.targets import ENGINES, TARGETS
from patchconv_deploy.rewriters.planning.stages import LargestTensor, Limits
from patchconv_deploy.rewriters.regions.row_locality import AXES
from patchconv_deploy.rewriters.regions.selection import Selection

__all__ = ["MOST_SPLITS", "OLDEST_OPSET", "TOO_OLD", "Options"]


# The oldest opset that is cut.
OLDEST_OPSET = 9

TOO_OLD = f"opset {{}} is older than {OLDEST_OPSET}; convert it with upgrade_opset=13"

# A graph of more nodes per Conv serves nobody.
MOST_SPLITS = 4096

_SPLITS = 4

# Without a budget: no more than half as much work again for a lower peak.
_RECOMPUTE = 1.5


@dataclass(frozen=True, slots=True)
class Options:
    """What to cut, and how.

    Attributes:
        splits: Patches per region, at least 1; with a budget: at most so many. None: 4, or as many
            as the budget asks for.
        form: "batch" and "sequential" cut convolutions one by one, "fused", "shrinking",
            "loop" and "rounds" whole regions; "auto" chooses among these.
        axis: "height", "width", "depth", a dimension of the tensor (2 or above), or "auto": of
            height and width the one that serves better; height for convolutions one by one.
        selection: Which convolutions.
        shapes: Sizes to fix the inputs' free dimensions to.
        ranges: Least and largest size of each dimension of an input; it stays free where they
            differ, and memory is predicted for the largest.
        upgrade_opset: Version to convert the default domain to first, None to keep it.
        allow_custom_ops: Let operators pass that neither ONNX nor ONNX Runtime define.
        memory_budget: Most bytes of activations (`memory.Peak.need`), None for as few as can be.
        max_recompute: Most work after over before; None: 1.5 without a budget, else any.
        max_tensor_elements: Most elements of a tensor, None for any number.
        max_buffer: Most bytes of a tensor, None for any number.
        target: The engine whose memory is predicted: "onnxruntime" (at the session options that are
            recommended for the model), "onnxruntime-default" (at its own), "triton" (at those that
            a Triton server can be told: the memory pattern is off, reuse is on), or "tensorrt".
        patch_rows: Rows of a region's first output that each patch has of its own, where the height
            is free (`patch_rows`); None for what the search finds.
        plan: What to do, as `planning.plan_file.read_plan` returns it; nothing is searched then.
        fold: Fold what stands behind clones of a convolution once (`emission.conv_folding`).
    """

    splits: int | None = None
    form: str = "auto"
    axis: str | int = "height"
    selection: Selection = field(default_factory=Selection)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    upgrade_opset: int | None = None
    allow_custom_ops: bool = False
    memory_budget: int | None = None
    max_recompute: float | None = None
    max_tensor_elements: int | None = None
    max_buffer: int | None = None
    target: str = "onnxruntime"
    patch_rows: int | None = None
    plan: Mapping[str, Any] | None = None
    fold: bool = True

    @property
    def axes(self) -> tuple[str | int, ...]:
        """The axes in question, the usual one first; of a plan its own."""
        if self.plan is not None:
            return (self.plan["axis"],)
        return ("height", "width") if self.axis == "auto" else (self.axis,)

    @property
    def patches(self) -> int:
        """Patches per convolution cut on its own."""
        return _SPLITS if self.splits is None else self.splits

    @property
    def limits(self) -> Limits:
        """What a plan of regions has to keep."""
        free = self._free
        recompute = self.max_recompute
        if recompute is None:
            recompute = _RECOMPUTE if free else inf
        return Limits(
            budget=inf if self.memory_budget is None else self.memory_budget,
            recompute=recompute,
            splits=self.patches if free or self.splits is not None else MOST_SPLITS,
            tensor=LargestTensor(self._elements, self.max_buffer),
            more=free and self.splits is None,
        )

    @property
    def _free(self) -> bool:
        """Whether there is no limit to keep: the peak is made as low as can be."""
        limits = self.memory_budget, self.max_tensor_elements, self.max_buffer
        return all(limit is None for limit in limits)

    @property
    def _elements(self) -> int | None:
        if self.max_tensor_elements is None:
            return TARGETS[self.target].most_elements
        return self.max_tensor_elements

    @property
    def by_region(self) -> bool:
        """Whether whole regions are cut, not convolutions one by one.

        Who names convolutions and leaves the form open means these convolutions.
        """
        if self.patch_rows is not None:
            return True
        named = self.selection.include or self.selection.min_elements is not None
        if self.form == "auto":
            return not (named and self._free)
        return self.form not in SINGLE_FORMS

    def __post_init__(self) -> None:
        if self.splits is not None and self.splits < 1:
            raise OptionError(f"splits={self.splits}: the number of patches is at least 1")
        if self.splits is not None and self.splits > MOST_SPLITS:
            raise OptionError(f"splits={self.splits}: at most {MOST_SPLITS} patches")
        if self.form not in ("auto", *FORMS):
            raise OptionError(f"form={self.form!r}: must be auto, {' or '.join(FORMS)}")
        if isinstance(self.axis, str) and self.axis not in (*AXES, "auto"):
            raise OptionError(f"axis={self.axis!r}: must be height, width, depth, auto or an index")
        if isinstance(self.axis, int) and self.axis < 2:
            raise OptionError(
                f"axis={self.axis!r}: dimensions 0 and 1 are batch and channels; spatial ones "
                "begin at 2"
            )
        if self.memory_budget is not None and self.memory_budget < 1:
            raise OptionError(f"memory_budget={self.memory_budget}: must be 1 byte or more")
        if self.max_recompute is not None and not self.max_recompute >= 1:
            raise OptionError(f"max_recompute={self.max_recompute}: must be 1 or more")
        if self.max_recompute is not None and self.plan is not None:
            raise OptionError(
                "max_recompute= is for choosing a plan, and plan= is one that is chosen: leave out "
                "one of the two"
            )
        if self.max_tensor_elements is not None and self.max_tensor_elements < 1:
            raise OptionError(f"max_tensor_elements={self.max_tensor_elements}: must be 1 or more")
        if self.max_buffer is not None and self.max_buffer < 1:
            raise OptionError(f"max_buffer={self.max_buffer}: must be 1 byte or more")
        if self.target not in TARGETS:
            raise OptionError(f"target={self.target!r}: must be {' or '.join(TARGETS)}")
        compiled = ENGINES[TARGETS[self.target].engine].lowering.compiler
        if compiled and self.form in FORMS and FORMS[self.form].grows:
            raise OptionError(
                f"form={self.form!r}: TensorRT takes no sequences of tensors; use form='auto'"
            )
        if self.form in SINGLE_FORMS and (
            self.memory_budget or self.max_recompute or self.max_buffer
        ):
            raise OptionError(
                f"form={self.form!r} cuts convolutions one by one, which meets no budget; "
                "use form='auto'"
            )
        low = self.selection.min_elements
        if low is not None and low < 0:
            raise OptionError(f"min_elements={low}: must be 0 or more")
        if self.patch_rows is not None:
            self._check_patch_rows(self.patch_rows, compiled=compiled)

    def _check_patch_rows(self, rows: int, *, compiled: bool) -> None:
        given = f"patch_rows={rows}"
        if rows < 1:
            raise OptionError(f"{given}: must be 1 or more")
        if self.form != "auto" and not FORMS[self.form].grows:
            raise OptionError(
                f"{given}: form={self.form!r} has no patches of a fixed height; use form='rounds'"
            )
        if compiled:
            raise OptionError(f"{given}: TensorRT takes no sequences of tensors; use splits=")
        others = {
            "splits": self.splits,
            "memory_budget": self.memory_budget,
            "max_tensor_elements": self.max_tensor_elements,
            "max_buffer": self.max_buffer,
            "plan": self.plan,
        }
        for name, other in others.items():
            if other is not None:
                raise OptionError(
                    f"{given} and {name}= each say how large patches are: leave out one of the two"
                )
