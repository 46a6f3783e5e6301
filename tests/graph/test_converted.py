"""Converted opsets: every operator computes what it did, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy import rewrite
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.upgrade_opset import upgrade
from tests.support.small_models import Array, model, node, noise, run, value

X = noise(1, 4, 6, 6)

PADS = [0, 0, 1, 2, 0, 0, 2, 1]

NORM = {name: np.abs(noise(4, seed=k)) + 0.5 for k, name in enumerate("sbmv")}


def _one(
    op: str,
    opset: int,
    weights: dict[str, Array] | None = None,
    outputs: tuple[int, ...] = (onnx.TensorProto.FLOAT,),
    **attrs: Any,
) -> onnx.ModelProto:
    """Make a model of one node."""
    weights = weights or {}
    names = [f"y{k}" for k in range(len(outputs))]
    made = model(
        [node(op, " ".join(["x", *weights]), " ".join(names), name="it", **attrs)],
        {"x": X.shape},
        [value(name, None, kind) for name, kind in zip(names, outputs, strict=True)],
        weights,
        opset=opset,
        ir=8 if opset > 8 else 3,
    )
    for value_info in made.graph.output:
        value_info.type.tensor_type.ClearField("shape")
    if opset < 9:
        made.graph.input.extend(
            value(t.name, tuple(t.dims), t.data_type) for t in made.graph.initializer
        )
    return made


def _scales(*sizes: float) -> dict[str, Array]:
    return {"s": np.array([1, 1, *sizes], np.float32)}


_VALUES: tuple[dict[str, Any], ...] = ({}, {"value": 0.5})

_LIMITS: tuple[dict[str, Any], ...] = ({}, {"min": -0.3})

_INT = onnx.TensorProto.INT64

_FLOAT = onnx.TensorProto.FLOAT

CASES: dict[str, tuple[onnx.ModelProto, int]] = {
    **{
        f"upsample-{opset}-{mode}-{scale}": (
            _one("Upsample", opset, mode=mode, scales=[1, 1, scale, scale])
            if opset < 9
            else _one("Upsample", opset, _scales(scale, scale), mode=mode),
            13,
        )
        for opset in (7, 9)
        for mode in ("nearest", "linear")
        for scale in (2.0, 1.5, 3.0)
    },
    **{
        f"resize-10-{mode}-{rows}-{columns}": (
            _one("Resize", 10, _scales(rows, columns), mode=mode),
            new,
        )
        for mode in ("nearest", "linear")
        for rows, columns, new in ((2, 2, 11), (1.5, 2.6, 13), (0.75, 0.6, 18), (0.5, 1, 21))
    },
    **{
        f"{op}-{axis}": (_one(op, opset, axis=axis), 13)
        for op, opset in (("Softmax", 9), ("LogSoftmax", 11), ("Hardmax", 11))
        for axis in (0, 1, 2, 3)
    },
    **{f"{op}-default": (_one(op, 9), 17) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    **{
        f"pad-{mode}-{kept}": (_one("Pad", 10, mode=mode, pads=PADS, **kept), 13)
        for mode in ("constant", "reflect", "edge")
        for kept in _VALUES
    },
    "pad-negative": (_one("Pad", 9, pads=[0, 0, -1, 2, 0, 0, 2, -1]), 13),
    **{f"clip-{given}": (_one("Clip", 8, **given), 13) for given in _LIMITS},
    "clip-both": (_one("Clip", 8, min=-0.3, max=0.4), 13),
    "batch-norm": (_one("BatchNormalization", 8, NORM, epsilon=1e-3, momentum=0.8), 15),
    "dropout": (_one("Dropout", 8, ratio=0.3), 13),
    "slice": (_one("Slice", 9, starts=[1, -3], ends=[5, 1000], axes=[2, 3]), 13),
    "top-k": (_one("TopK", 9, outputs=(_FLOAT, _INT), k=3, axis=1), 13),
    "split": (_one("Split", 11, outputs=(_FLOAT, _FLOAT), axis=1, split=[1, 3]), 18),
    "reduce-sum": (_one("ReduceSum", 9, axes=[2, 3], keepdims=0), 13),
    "reduce-mean": (_one("ReduceMean", 13, axes=[2, 3]), 18),
    "unsqueeze": (_one("Unsqueeze", 9, axes=[0, 3]), 13),
    "flatten": (_one("Flatten", 7, axis=0), 13),
    "average-pool": (
        _one("AveragePool", 10, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        19,
    ),
    "depth-to-space": (_one("DepthToSpace", 10, blocksize=2), 13),
    "arg-max": (_one("ArgMax", 10, outputs=(_INT,), axis=1), 13),
}


@pytest.mark.parametrize("name", CASES)
def test_a_converted_operator_computes_what_it_did(name: str) -> None:
    """Under ONNX Runtime, before and after; not one element is another."""
    made, new = CASES[name]
    converted = upgrade(made, new)
    assert [entry.version for entry in converted.opset_import] == [new]
    before, after = run(made, {"x": X}), run(converted, {"x": X})
    assert list(before) == list(after)
    for output, array in before.items():
        assert array.dtype == after[output].dtype
        np.testing.assert_allclose(after[output], array, rtol=1e-6, atol=1e-6)


def test_operators_in_bodies_are_put_right() -> None:
    """A branch of an If holds a Resize, and its scales lie outside."""

    def branch(name: str, mode: str) -> onnx.GraphProto:
        made = [node("Upsample", "x s", name, mode=mode)]
        return onnx.helper.make_graph(made, name, [], [value(name, (None,) * 4)])

    made = model(
        [
            node(
                "If",
                "c",
                "y",
                then_branch=branch("a", "linear"),
                else_branch=branch("b", "nearest"),
            )
        ],
        [value("x", X.shape), value("c", (), onnx.TensorProto.BOOL)],
        {"y": (None,) * 4},
        _scales(1.5, 1.5),
        opset=9,
    )
    converted = upgrade(made, 13)
    for taken in (True, False):
        feeds = {"x": X, "c": np.array(taken)}
        np.testing.assert_array_equal(run(converted, feeds)["y"], run(made, feeds)["y"])


@pytest.mark.parametrize(
    ("made", "new", "reason"),
    [
        (_one("Resize", 10, _scales(0.5, 2), mode="nearest"), 13, "above and below 1"),
        (_one("Dropout", 10, outputs=(_FLOAT, onnx.TensorProto.BOOL)), 13, "the mask of Dropout"),
        (
            _one("GroupNormalization", 18, {"s": noise(2), "b": noise(2)}, num_groups=2),
            21,
            "ask for opset 20",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused(made: onnx.ModelProto, new: int, reason: str) -> None:
    """One line that says what to do; and without a change of that operator it converts."""
    with pytest.raises(OptionError, match=reason):
        upgrade(made, new)
    upgrade(made, made.opset_import[0].version + (0 if new == 13 else 1))


def test_scales_that_are_computed_are_refused() -> None:
    """Nearest rounds by the scale; as linear the same converts."""
    nodes = {
        mode: [node("Add", "s0 d", "s"), node("Resize", "x s", "y", name="up", mode=mode)]
        for mode in ("nearest", "linear")
    }
    inputs = [value("x", X.shape), value("d", (4,))]
    made = {
        mode: model(each, inputs, {"y": (None,) * 4}, {"s0": np.ones(4, np.float32)}, opset=10)
        for mode, each in nodes.items()
    }
    with pytest.raises(OptionError, match="'up' takes the nearest value by scales that are comp"):
        upgrade(made["nearest"], 13)
    feeds = {"x": X, "d": np.array([0, 0, 1, 0.5], np.float32)}
    np.testing.assert_array_equal(
        run(upgrade(made["linear"], 13), feeds)["y"], run(made["linear"], feeds)["y"]
    )


def _upsampled() -> onnx.ModelProto:
    return model(
        [
            node("Conv", "x w", "c", name="conv", pads=[1] * 4),
            node("Upsample", "c s", "y", name="up", mode="linear"),
        ],
        {"x": (1, 2, 16, 10)},
        {"y": (None,) * 4},
        {"w": noise(2, 2, 3, 3), **_scales(2, 2)},
        opset=9,
        ir=4,
    )


@pytest.mark.parametrize("excluded", [(), ("*",)])
def test_a_converted_model_is_verified_even_if_nothing_is_cut(
    tmp_path: Path, excluded: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the converter is found whether or not something is cut."""
    from patchconv_deploy import VerificationError
    from patchconv_deploy.rewriters.graph import upgrade_opset

    file, out = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(_upsampled(), file)
    found = rewrite(file, out, upgrade_opset=13, exclude=excluded, min_elements=0)
    assert found.report.verification["passed"]
    assert bool(found.report.rewritten) == (not excluded)
    out.unlink()
    monkeypatch.setattr(upgrade_opset, "put_right", lambda converted, original: None)
    with pytest.raises(VerificationError, match="does not compute the same"):
        rewrite(file, out, upgrade_opset=13, exclude=excluded, min_elements=0)
    assert not out.exists()


def test_fixed_shapes_are_verified_and_what_is_unchanged_is_not(tmp_path: Path) -> None:
    """Changed is what differs from the file, whatever was asked for."""
    file = tmp_path / "free.onnx"
    made = _upsampled()
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    onnx.save(made, file)
    fixed = rewrite(file, exclude=["*"], shapes={"x": (1, 2, 16, 10)})
    assert fixed.report.verification["passed"]
    same = rewrite(file, tmp_path / "same.onnx", exclude=["*"])
    assert not same.report.verification["ran"]
    assert not any("not verified" in warning for warning in same.report.warnings)
