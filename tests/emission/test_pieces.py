"""Pieces handed over from Loop to Loop: what is never whole, and the numbers at every height."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.emission import pieces
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.rewriters.tiling import rounds
from tests.support.small_models import assert_same, copy_of, in_half, model, node, noise

REL = 2e-6


def _scales(
    *, low: int = 16, opset: int = 17, outputs: tuple[str, ...] = (), behind: bool = False
) -> onnx.ModelProto:
    """Two scales and a skip: "q" at the first is read by the other two regions, "o" by the last.

    Args:
        low: Channels of "o".
        opset: Of the model.
        outputs: Further outputs.
        behind: A node that looks at all rows of "q".
    """
    nodes = [
        node("Conv", "x a", "p", name="in", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("MaxPool", "q", "m", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "m b", "n", name="low", pads=[1] * 4),
        node("Relu", "n", "o", name="relu_low"),
        node("ConvTranspose", "o c", "u", name="up", strides=[2, 2]),
        node("Concat", "u q", "k", name="skip", axis=1),
        node("Conv", "k d", "y", name="out", pads=[1] * 4),
    ]
    ends = dict.fromkeys(("y", *outputs), (None,) * 4)
    if behind:
        nodes.append(node("CumSum", "q e", "z", name="sum"))
        ends["z"] = (None,) * 4
    weights = {
        "a": noise(8, 3, 3, 3),
        "b": noise(low, 8, 3, 3) / 9,
        "c": noise(low, 8, 2, 2) / 4,
        "d": noise(2, 16, 3, 3) / 9,
    }
    if behind:
        weights["e"] = np.array(2)
    return model(nodes, {"x": (1, 3, "H", "W")}, ends, weights, opset=opset)


def _plan(rows: tuple[int, int, int], axis: str = "height") -> dict[str, Any]:
    """Return a plan of three regions, in patches of so many rows of what each makes."""
    regions = (
        (["in", "relu"], "q"),
        (["pool", "low", "relu_low"], "o"),
        (["up", "skip", "out"], "y"),
    )
    entries = [
        {
            "nodes": nodes,
            "outputs": [made],
            "form": "rounds",
            "axis": 2 if axis == "height" else 3,
            "splits": 4,
            "patch_rows": each,
        }
        for (nodes, made), each in zip(regions, rows, strict=True)
    ]
    return {
        "version": 2,
        "target": "onnxruntime",
        "axis": axis,
        "order": "file",
        "regions": entries,
    }


def _cut(made: onnx.ModelProto, plan: dict[str, Any]) -> Outcome:
    return rewrite_model(Loaded(copy_of(made), None), Options(plan=plan))


def _put_together(made: onnx.ModelProto) -> set[str]:
    return {n.output[0] for n in made.graph.node if n.op_type == "ConcatFromSequence"}


def _image(height: int, width: int = 10) -> dict[str, Any]:
    return {"x": 1 + noise(1, 3, height, width, seed=height)}


@pytest.mark.parametrize("rows", [(8, 4, 8), (3, 5, 12), (16, 2, 6), (5, 9, 2)])
def test_every_height(rows: tuple[int, int, int]) -> None:
    """Whatever the heights of those who make and who read: windows on one piece, or on many."""
    made = _scales()
    outcome = _cut(made, _plan(rows))
    assert _put_together(outcome.model) == {"y"}
    onnx.checker.check_model(outcome.model, full_check=True)
    for height in (*range(2, 60, 2), 98, 130):
        assert_same(made, outcome.model, _image(height), REL)


def test_along_the_width() -> None:
    """The same where the width is cut."""
    made = _scales(opset=13)
    outcome = _cut(made, _plan((6, 5, 8), "width"))
    assert _put_together(outcome.model) == {"y"}
    for width in (2, 8, 30, 66):
        assert_same(made, outcome.model, _image(6, width), REL)


def test_half_precision() -> None:
    """Pieces of float16."""
    made = in_half(_scales())
    outcome = _cut(made, _plan((8, 4, 8)))
    assert _put_together(outcome.model) == {"y"}
    x = noise(1, 3, 50, 8).astype(np.float16)
    assert_same(made, outcome.model, {"x": x}, 2e-3)


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({"outputs": ("q",)}, {"y", "q"}),
        ({"outputs": ("o",)}, {"y", "o"}),
        ({"behind": True}, {"y", "q"}),
        ({"low": 1}, {"y", "o"}),
    ],
)
def test_what_is_put_together(options: dict[str, Any], whole: set[str]) -> None:
    """What the graph returns, what somebody reads whole, and what is small beside the rest."""
    made = _scales(**options)
    outcome = _cut(made, _plan((8, 4, 8)))
    assert _put_together(outcome.model) == whole
    for height in (2, 30, 66):
        assert_same(made, outcome.model, _image(height), REL)


def test_a_size_that_the_graph_asks_for() -> None:
    """The Shape of a tensor that is not there any more is worked out from the model's height."""
    made = _scales()
    extra = [
        node("Shape", "q", "size", name="size"),
        node("Cast", "size", "z", name="cast", to=TensorProto.FLOAT),
    ]
    made.graph.node.extend(extra)
    made.graph.output.extend([onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])])
    outcome = _cut(made, _plan((8, 4, 8)))
    assert _put_together(outcome.model) == {"y"}
    for height in (2, 30, 66):
        assert_same(made, outcome.model, _image(height), REL)


def test_less_is_held() -> None:
    """What is handed over is predicted once, not in pieces and put together."""
    made = _scales()
    handed = _cut(made, _plan((8, 4, 8)))
    whole = _cut(_scales(outputs=("q", "o")), _plan((8, 4, 8)))
    assert handed.after.need < 0.75 * whole.after.need


def _fewer(touched: Callable[..., Any]) -> Callable[..., Any]:
    """Leave out the last of the pieces that a window may lie on."""
    return lambda *given: touched(*given)[:-1]


def _no_top(touched: Callable[..., Any]) -> Callable[..., Any]:
    """Take the first piece for no higher than the others."""

    def wrong(rows: Any, most: int, cores: Any, *others: Any) -> Any:
        each, _, count = cores
        return touched(rows, most, (each, 0, count), *others)

    return wrong


def _one_row_late(touched: Callable[..., Any]) -> Callable[..., Any]:
    """Begin and end one row too far down."""

    def wrong(rows: Any, *others: Any) -> Any:
        return touched((rows[0] + 1, rows[1] + 1), *others)

    return wrong


def _differs(made: onnx.ModelProto, cut: onnx.ModelProto, height: int) -> bool:
    """Tell whether a model gives other numbers, or other sizes, which may not even run."""
    try:
        assert_same(made, cut, _image(height), REL)
    except Exception:  # noqa: BLE001 - a runtime may raise anything
        return True
    return False


@pytest.mark.parametrize("fault", [_fewer, _no_top, _one_row_late])
def test_wrong_pieces_are_found(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """The heights that are looked at above tell a window of the wrong rows from a right one."""
    made = _scales()
    monkeypatch.setattr(pieces, "touched", fault(rounds.touched))
    outcome = _cut(made, _plan((8, 4, 8)))
    assert any(_differs(made, outcome.model, height) for height in (18, 30, 50, 66))
