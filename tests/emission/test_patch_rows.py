"""Patches of so many rows each, asked for: what comes of it, and what cannot be."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import assert_same, copy_of, model, node, noise

REL = 2e-6


def _made(opset: int = 17, height: Any = "H") -> onnx.ModelProto:
    """Two scales and a skip: steps of two rows."""
    nodes = [
        node("Conv", "x a", "p", name="in", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("MaxPool", "q", "m", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "m b", "n", name="low", pads=[1] * 4),
        node("ConvTranspose", "n c", "u", name="up", strides=[2, 2]),
        node("Concat", "u q", "k", name="skip", axis=1),
        node("Conv", "k d", "y", name="out", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3),
        "b": noise(32, 16, 3, 3) / 9,
        "c": noise(32, 16, 2, 2) / 4,
        "d": noise(2, 32, 3, 3) / 9,
    }
    dims = (1, 3, height, "W" if height == "H" else 8)
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights, opset=opset)


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(Loaded(copy_of(made), None), Options(**options))


@pytest.mark.parametrize(("asked", "made_of"), [(2, 2), (17, 16), (64, 64)])
def test_patches_are_as_tall_as_asked(asked: int, made_of: int) -> None:
    """In whole steps, which is said; right at tiny, odd-numbered and large heights."""
    made = _made()
    outcome = _cut(made, patch_rows=asked)
    assert [(cut.form, cut.plan.patch_rows) for cut in outcome.rewritten] == [("rounds", made_of)]
    (cut,) = outcome.rewritten
    assert any("whole steps of 2" in note for note in cut.notes) == (asked != made_of)
    for height in (2, 4, 14, 18, 50, 66, 134):
        assert_same(made, outcome.model, {"x": noise(1, 3, height, 8)}, REL)


def test_lower_patches_hold_less_and_work_more() -> None:
    """Both are predicted of the patches that are written."""
    made = _made()
    low, high = (_cut(made, patch_rows=rows) for rows in (8, 128))
    assert low.after.bytes < high.after.bytes < high.before.bytes
    assert low.recompute is not None
    assert high.recompute is not None
    assert low.recompute > 1.2 > high.recompute > 1


def test_a_plan_file_holds_them() -> None:
    """Applied again it is the same model."""
    made = _made()
    outcome = _cut(made, patch_rows=24)
    assert outcome.plan is not None
    again = _cut(made, plan=outcome.plan)
    assert again.model.SerializeToString() == outcome.model.SerializeToString()
    assert again.time == outcome.time is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch_rows": 0}, "patch_rows=0: must be 1 or more"),
        ({"patch_rows": 1}, "patch_rows=1: too small .* have 2 rows or a multiple"),
        ({"patch_rows": 8, "form": "fused"}, "patch_rows=8: form='fused' has no patches of a fix"),
        ({"patch_rows": 8, "form": "batch"}, "patch_rows=8: form='batch' has no patches of a fix"),
        ({"patch_rows": 8, "target": "tensorrt"}, "patch_rows=8: TensorRT takes no sequences"),
        ({"patch_rows": 8, "splits": 4}, "patch_rows=8 and splits= each say"),
        ({"patch_rows": 8, "memory_budget": 9}, "patch_rows=8 and memory_budget= each say"),
        ({"patch_rows": 2, "max_recompute": 1.2}, "patch_rows=2: .* the work, .*max_recompute=1.2"),
        ({"patch_rows": 10**6}, "patch_rows=1000000: .* too tall to prove"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options: dict[str, Any], said: str) -> None:
    """The line names the option."""
    with pytest.raises(OptionError, match=said) as caught:
        _cut(_made(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_made(opset=12), "patch_rows=8: .* need opset 13, the model has 12"),
        (_made(height=64), "patch_rows=8: .* all sizes of this model are fixed"),
    ],
)
def test_models_that_have_no_rounds(made: onnx.ModelProto, said: str) -> None:
    """An old Loop takes no sequences; a fixed height asks for shares."""
    with pytest.raises(OptionError, match=said):
        _cut(made, patch_rows=8)
