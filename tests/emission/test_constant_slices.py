"""Windows of constants that are cut when a model is written: which, the numbers, what is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.emission import constant_slices
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise

ROWS = 64


def _mask() -> Array:
    """Make rows that are equal but for the last, as masks of attention are."""
    rows = np.tile(noise(1, 8, 1, 48), (1, 1, ROWS, 1))
    rows[:, :, -1] = -100
    return rows


def _masked(
    mask: Array | None = None, *, opset: int = 17, ir: int = 8, outputs: str = "y"
) -> onnx.ModelProto:
    """Two layers with a constant of every row in between."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Add", "p mask", "m", name="masked"),
        node("Conv", "m b", "y", name="last"),
    ]
    rows = _mask() if mask is None else mask
    weights = {"a": noise(8, 3, 3, 3), "b": noise(3, 8, 1, 1), "mask": rows}
    ends = dict.fromkeys(outputs.split(), (None,) * 4)
    return model(nodes, {"x": (1, 3, ROWS, 48)}, ends, weights, opset=opset, ir=ir)


def _cut(made: onnx.ModelProto, folder: Path | None = None, **options: Any) -> Outcome:
    chosen = {"splits": 4, "form": "fused", "max_recompute": 3.0, **options}
    return rewrite_model(Loaded(copy_of(made), folder), Options(**chosen))


def _constants(outcome: Outcome) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in outcome.model.graph.initializer if t.data_type == 1}


def _slices_of(outcome: Outcome, name: str) -> list[onnx.NodeProto]:
    return [n for n in outcome.model.graph.node if n.op_type == "Slice" and n.input[0] == name]


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_a_constant_of_every_row_is_gone(opset: int) -> None:
    """Its windows are there, equal ones once; the numbers are what they were."""
    made = _masked(opset=opset)
    outcome = _cut(made)
    (cut,) = outcome.rewritten
    assert cut.splits == 4
    left = _constants(outcome)
    assert "mask" not in left
    windows = [t for name, t in left.items() if "/patchconv/window_" in name]
    assert 1 < len(windows) < 4  # those in the middle are equal
    assert sum(t.ByteSize() for t in windows) < 0.8 * _mask().nbytes
    assert_same(made, outcome.model, {"x": noise(1, 3, ROWS, 48)}, 1e-6)


def test_what_is_predicted_of_loading_is_less_by_as_much() -> None:
    """The report counts the constants that are written."""
    made = _masked()
    kept, cut = _cut(made, fold=False), _cut(made)
    bytes_of = [
        sum(len(t.raw_data) for t in _constants(each).values() if t.name not in "ab")
        for each in (kept, cut)
    ]
    less = kept.after.weights.loading - cut.after.weights.loading
    assert less == bytes_of[0] - bytes_of[1] > 0


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows a row too far down give other numbers."""
    made = _masked(noise(1, 8, ROWS, 48))
    sliced = constant_slices._sliced
    monkeypatch.setattr(
        constant_slices,
        "_sliced",
        lambda n, whole, constants: sliced(n, np.roll(whole, 1, axis=2), constants),
    )
    with pytest.raises(AssertionError):
        assert_same(made, _cut(made).model, {"x": noise(1, 3, ROWS, 48)}, 1e-6)


def _read_twice() -> onnx.ModelProto:
    made = _masked(outputs="y z")
    made.graph.node.append(node("Exp", "mask", "z", name="other"))
    return made


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (_read_twice(), {}),  # the constant stays, so that its windows would be more
        (_masked(), {"fold": False}),  # nothing is to be folded
        (_masked(ir=3), {}),  # every initializer is an input of the model
    ],
    ids=["read_elsewhere", "nothing_folded", "an_input"],
)
def test_what_stays(made: onnx.ModelProto, options: dict[str, Any]) -> None:
    """The constant as it is, and windows of it."""
    if made.ir_version < 4:
        made.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in made.graph.initializer
        )
    outcome = _cut(made, **options)
    assert outcome.rewritten
    assert "mask" in {t.name for t in outcome.model.graph.initializer}
    assert len(_slices_of(outcome, "mask")) == 4
    assert_same(made, outcome.model, {"x": noise(1, 3, ROWS, 48)}, 1e-6)


def test_a_constant_in_another_file_stays_there(tmp_path: Path) -> None:
    """What is large and external is not taken into the model."""
    onnx.save(
        _masked(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=1024,
    )
    loaded = load(tmp_path / "m.onnx")
    outcome = rewrite_model(loaded, Options(splits=4, form="fused", max_recompute=3.0))
    assert outcome.rewritten
    assert len(_slices_of(outcome, "mask")) == 4


def test_windows_that_overlap_by_much_are_not_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that all differ are more than the constant; by how much more they may is a bound."""
    made = _masked(noise(1, 8, ROWS, 48))
    assert not _slices_of(_cut(made), "mask")
    monkeypatch.setattr(constant_slices, "_MOST_TIMES", 1.0)
    assert len(_slices_of(_cut(made), "mask")) == 4
