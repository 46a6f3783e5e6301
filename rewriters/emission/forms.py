"""The forms that patches of a region can be written in: one record each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FORMS", "GAIN", "REGIONAL_FORMS", "SINGLE_FORMS", "UNROLLED_FORMS", "Form"]


# A peak that falls by less is not worth a change, or another form.
GAIN = 0.98


@dataclass(frozen=True, slots=True)
class Form:
    """How the patches of a region are written, and what that is worth.

    Attributes:
        regional: It takes whole regions of layers; else convolutions one by one.
        stacked: Windows are stacked in one tensor; else each patch has its own nodes.
        loop: Windows are run by the body of a Loop, one at a time.
        grows: There are as many patches as an image needs, of a fixed height.
        shrinks: Windows go without the rows that later nodes do not need.
        falls_back: The form that is taken where it would be the same, or cannot be done.
        time: Time over that of the same patches unrolled, under a runtime and of a compiler.
        saves: Share of a plainer form's memory that it must not be above, under the same two.
    """

    regional: bool
    stacked: bool = False
    loop: bool = False
    shrinks: bool = False
    grows: bool = False
    falls_back: str = ""
    time: tuple[float, float] = (1.0, 1.0)
    saves: tuple[float, float] = (1.0, 1.0)


FORMS: Mapping[str, Form] = {
    "batch": Form(regional=False, stacked=True),
    "sequential": Form(regional=False),
    "fused": Form(regional=True),
    "shrinking": Form(regional=True, shrinks=True, falls_back="fused", saves=(GAIN, GAIN)),
    # Under ONNX Runtime measured to be equal but for copies of what the rounds make, as its weights
    # are its body's own (`emission.bodies`). What TensorRT would take is not measured: there a loop
    # has to save a quarter.
    "loop": Form(regional=True, stacked=True, loop=True, time=(1.03, 1.4), saves=(GAIN**2, 0.75)),
    # It keeps its bound at every size, which the others do at the size they were made for alone.
    "rounds": Form(
        regional=True,
        loop=True,
        grows=True,
        falls_back="shrinking",
        time=(1.03, 1.4),
        saves=(1.25, 1),
    ),
}
SINGLE_FORMS = tuple(name for name, form in FORMS.items() if not form.regional)
REGIONAL_FORMS = tuple(name for name, form in FORMS.items() if form.regional)
UNROLLED_FORMS = tuple(name for name in REGIONAL_FORMS if not FORMS[name].loop)
