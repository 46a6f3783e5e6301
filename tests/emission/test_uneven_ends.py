"""Pads up to a multiple and crops down to another tensor's rows: so many rows by the remainder."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.operators import slicing
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.rewriters.tiling.patches import Rows
from patchconv_deploy.rewriters.tiling.row_maps import Ending
from patchconv_deploy.rewriters.tiling.sizes import Size, by_remainder
from tests.support.small_models import (
    Array,
    assert_same_where_it_runs,
    copy_of,
    model,
    node,
    noise,
)

pytestmark = pytest.mark.usefixtures("less_weighed")

REL = 2e-6

_HEIGHTS = (*range(1, 40), 64, 97, 130, 133)


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)


def _centre_crop(h: Any = "H") -> onnx.ModelProto:
    """A U-Net of Convs without padding: the skip is cropped to what came up again."""
    nodes = [
        node("Conv", "x a", "p", name="first"),
        node("Relu", "p", "q", name="relu"),
        node("MaxPool", "q", "low", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "low b", "r", name="inner"),
        node("ConvTranspose", "r c", "u", name="up", strides=[2, 2]),
        node("Shape", "q", "of_skip"),
        node("Slice", "of_skip two four", "skip_rows"),
        node("Shape", "u", "of_up"),
        node("Slice", "of_up two four", "up_rows"),
        node("Sub", "skip_rows up_rows", "more"),
        node("Div", "more two", "begin"),
        node("Add", "begin up_rows", "end"),
        node("Slice", "q begin end axes", "cropped", name="crop"),
        node("Concat", "cropped u", "k", name="both", axis=1),
        node("Conv", "k d", "y", name="last"),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(16, 8, 2, 2) / 4,
        "d": noise(2, 24, 3, 3) / 9,
        "two": _ints(2),
        "four": _ints(4),
        "axes": _ints(2, 3),
    }
    return model(nodes, {"x": ("N", 3, h, "W")}, {"y": (None,) * 4}, weights)


def _padded(mode: str, multiple: int = 8) -> onnx.ModelProto:
    """Layers that are padded to a multiple, halved and doubled, and cut back to their rows."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Shape", "p", "shape"),
        node("Slice", "shape two four", "rows"),
        node("Mod", "rows many", "over"),
        node("Sub", "many over", "missing"),
        node("Mod", "missing many", "below"),
        node("Concat", "none below", "pads", axis=0),
        node("Pad", "p pads", "t", name="pad", mode=mode),
        node("Conv", "t b", "low", name="down", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "low", "r", name="relu"),
        node("ConvTranspose", "r c", "u", name="up", strides=[2, 2]),
        node("Concat", "u t", "k", name="both", axis=1),
        node("Conv", "k d", "v", name="last", pads=[1] * 4),
        node("Slice", "v two_zeros rows axes", "y", name="back"),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(16, 8, 2, 2) / 4,
        "d": noise(2, 24, 3, 3) / 9,
        "two": _ints(2),
        "four": _ints(4),
        "axes": _ints(2, 3),
        "two_zeros": _ints(0, 0),
        "many": _ints(multiple),
        "none": _ints(0, 0, 0, 0, 0, 0),
    }
    return model(nodes, {"x": ("N", 3, "H", "W")}, {"y": (None,) * 4}, weights)


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    given = {"splits": 8, "max_recompute": 50.0, **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(**given))


def _inside(outcome: Outcome) -> set[str]:
    return {name for cut in outcome.rewritten for name in cut.nodes}


def _compare(made: onnx.ModelProto, outcome: Outcome, width: int = 15) -> int:
    strips = ({"x": noise(2, 3, height, width, seed=height)} for height in _HEIGHTS)
    return assert_same_where_it_runs(made, outcome.model, strips, REL)


@pytest.mark.parametrize("form", ["rounds", "fused"])
@pytest.mark.parametrize(
    ("made", "inside", "share"),
    [
        (_centre_crop(), {"crop", "both", "up"}, 0.5),
        (_padded("constant"), {"pad", "down", "last"}, 0.7),
        (_padded("edge", 4), {"pad", "down", "last"}, 0.7),
        (_padded("reflect", 2), {"pad", "down", "last"}, 0.7),
    ],
    ids=["centre crop", "constant", "edge", "reflect"],
)
def test_every_height(made: onnx.ModelProto, inside: set[str], share: float, form: str) -> None:
    """In one region with what is around, wherever the original runs."""
    outcome = _cut(made, form=form)
    assert {cut.form for cut in outcome.rewritten} == {form}
    assert inside <= _inside(outcome)
    assert outcome.after.bytes < share * outcome.before.bytes
    onnx.checker.check_model(outcome.model, full_check=True)
    assert _compare(made, outcome) > 15


@pytest.mark.parametrize("made", [_centre_crop(), _padded("edge")])
def test_a_remainder_taken_wrongly_is_seen(
    made: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: rows that end as those of the next height do."""

    def wrong(size: Size, of: Size, most: int) -> tuple[int, ...] | None:
        found = by_remainder(size, of, most)
        return None if found is None else (*found[1:], found[0])

    monkeypatch.setattr(slicing, "by_remainder", wrong)
    outcome = _cut(made)
    if not {"crop", "pad"} & _inside(outcome):
        return  # refused: that is right as well
    with pytest.raises(AssertionError):
        _compare(made, outcome)


def test_what_ends_by_the_remainder() -> None:
    """Rows below, by what is left of the height."""
    rows = Size.free("H")
    below = (rows * -1) % 8
    assert below is not None
    assert by_remainder(below, rows, 64) == (0, 7, 6, 5, 4, 3, 2, 1)
    assert by_remainder(below, rows, 7) is None  # too long a period
    # Of twice as many rows every other remainder comes.
    assert by_remainder(below, rows * 2, 64) == (0, 0, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1)
    # Of the rows that are padded already nothing follows.
    padded = rows + below
    assert padded is not None
    assert by_remainder(below, padded, 64) is None
    assert by_remainder(rows, rows, 64) is None  # it grows
    assert by_remainder(Size.number(3), rows, 64) == (3,)


def test_rows_of_what_ends_unevenly() -> None:
    """Written with + - * // alone, it is the same for numbers and for functions."""
    row_map = Ending(-1, (-2, -3, 0, 5))
    for height in range(40):
        assert row_map.rows_out(height) == height - 1 + (-2, -3, 0, 5)[height % 4]
        made = row_map.rows_out(Size.free("H"))
        assert made.at(height) == row_map.rows_out(height)
    assert row_map.needs(Rows(3, 7), 40) == Rows(4, 8)
