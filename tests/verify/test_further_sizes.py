"""Where a size is free a result is verified at several: what was seen at which is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy import rewrite
from patchconv_deploy.errors import VerificationError
from patchconv_deploy.report.report import all_sizes_text
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.verify.further import further_sizes
from patchconv_deploy.verify.verification import Verification, verify
from tests.support.small_models import copy_of, model, node, noise


def _made(dims: tuple[Any, ...] = (1, 3, "H", "W"), stride: int = 1) -> onnx.ModelProto:
    """Lower by a stride, up again and joined to the skip: multiples of the stride alone."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Conv", "p b", "q", name="down", pads=[1] * 4, strides=[stride] * 2),
        node("ConvTranspose", "q c", "u", name="up", strides=[stride] * 2),
        node("Concat", "p u", "k", name="skip", axis=1),
        node("Conv", "k d", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3) / 3,
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(16, 8, stride, stride) / 4,
        "d": noise(3, 24, 3, 3) / 9,
    }
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights)


def _sizes(verification: Any) -> list[tuple[int, int]]:
    return [tuple(sizes["x"][2:]) for sizes in verification["sizes"]]


def _heights(verification: Any) -> list[int]:
    return [height for height, _ in _sizes(verification)]


@pytest.mark.parametrize(
    ("stride", "shapes", "sizes"),
    [
        (1, None, [(64, 64), (65, 64), (1, 64), (512, 64), (64, 65)]),
        (16, None, [(64, 64), (80, 64), (16, 64), (512, 64), (64, 80)]),
        (4, {"x": (1, 3, (30, 200), 32)}, [(64, 32), (68, 32), (32, 32), (200, 32)]),
        (1, {"x": (1, 3, (64, 64), 32)}, [(64, 32)]),
        (1, {"x": (1, 3, (60, 64), 32)}, [(64, 32), (63, 32), (60, 32)]),
        (1, {"x": (1, 3, 64, 32)}, [(64, 32)]),
        (1, {"x": (1, 3, 64, (64, 4096))}, [(64, 64), (64, 65)]),
        (1, {"x": (1, 3, 64, (20, 40))}, [(64, 40), (64, 39)]),
        (
            1,
            {"x": (1, 3, (64, 200), (96, 4096))},
            [(64, 96), (65, 96), (200, 96), (64, 97)],
        ),
    ],
)
def test_an_odd_height_the_least_and_the_assumed_one_and_an_odd_width(
    stride: int, shapes: Any, sizes: list[tuple[int, int]], tmp_path: Path
) -> None:
    """Of the blocks that the model takes, within the range that is given."""
    onnx.save(_made(stride=stride), tmp_path / "m.onnx")
    result = rewrite(tmp_path / "m.onnx", splits=4, shapes=shapes, max_recompute=9.0)
    assert result.outcome.rewritten
    found = result.report.verification
    assert found["passed"]
    assert _sizes(found) == sizes
    assert found["sizes"][0] == found["shapes"]
    assert all_sizes_text(found).count("; ") == len(sizes) - 1
    assert not found["one_width"]


def test_a_fixed_height_is_verified_once(tmp_path: Path) -> None:
    """Nothing is placed when the model runs."""
    onnx.save(_made((1, 3, 64, 32)), tmp_path / "m.onnx")
    found = rewrite(tmp_path / "m.onnx", splits=4).report.verification
    assert found["passed"]
    assert _heights(found) == [64]


def _tampered(made: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Return a model that is wrong at odd heights, at one row, above 400 rows, or at odd widths."""
    made = copy_of(made)
    made.graph.node[-1].output[0] = "right"
    number = {"odd": 2, "least": 1, "assumed": 400, "odd width": 2}[kind]
    side = 3 if kind == "odd width" else 2
    for name, value in (("which", np.array(side)), ("number", np.array(number))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.int64), name))
    operator = {"odd": "Mod", "least": "Equal", "assumed": "Greater", "odd width": "Mod"}[kind]
    made.graph.node.extend(
        [
            node("Shape", "x", "dims"),
            node("Gather", "dims which", "rows"),
            node(operator, "rows number", "found"),
            node("Cast", "found", "wrong", to=onnx.TensorProto.FLOAT),
            node("Add", "right wrong", "y"),
        ]
    )
    return made


@pytest.mark.parametrize(
    ("kind", "at"),
    [("odd", (65, 64)), ("least", (1, 64)), ("assumed", (512, 64)), ("odd width", (64, 65))],
)
def test_a_model_that_is_wrong_at_one_kind_of_size(
    kind: str, at: tuple[int, int], tmp_path: Path
) -> None:
    """Planted faults that the first height does not show."""
    made = _made()
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=4))
    assert outcome.rewritten
    onnx.save(made, tmp_path / "m.onnx")
    onnx.save(_tampered(outcome.model, kind), tmp_path / "wrong.onnx")
    found = verify(tmp_path / "m.onnx", tmp_path / "wrong.onnx", outcome)
    assert isinstance(found, Verification)
    assert found.passed is False
    assert found.shapes["x"][2:] == at


def test_inputs_that_are_given_are_the_only_ones(tmp_path: Path) -> None:
    """They are what the user wants to know of."""
    onnx.save(_made(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=noise(1, 3, 40, 24))
    found = rewrite(tmp_path / "m.onnx", splits=4, inputs=tmp_path / "x.npz").report.verification
    assert _heights(found) == [40]


def test_sizes_of_inputs_of_one_height() -> None:
    """Another input of the same height or width changes with it, one of its own does not."""
    dims: dict[str, Any] = {
        "x": (1, 3, "H", "W"),
        "mask": (1, 1, "H", "W"),
        "z": (1, 3, 8, 8),
        "v": ("N", 4),
    }
    nodes = [node("Concat", "x mask", "y", axis=1), node("Identity", "z", "w")]
    nodes.append(node("Identity", "v", "u"))
    outputs = {"y": (None,) * 4, "w": (None,) * 4, "u": (None,) * 2}
    source = Loaded(model(nodes, dims, outputs), None)
    sizes = {"x": (1, 3, 64, 48), "mask": (1, 1, 64, 48), "v": (2, 4)}
    odd, least, assumed, wide = (
        next(group.sizes)
        for group in further_sizes(
            source, source.model, sizes, lambda at: at["x"][2], {}, {"x": (1, 3, 512, 512)}
        )
    )
    assert odd == {"x": (1, 3, 65, 48), "mask": (1, 1, 65, 48), "v": (2, 4)}
    assert least["x"] == (1, 3, 1, 48)
    assert assumed["mask"] == (1, 1, 512, 48)
    assert wide == {"x": (1, 3, 64, 49), "mask": (1, 1, 64, 49), "v": (2, 4)}


def test_heights_that_follow_each_other() -> None:
    """A mask of twice the rows keeps twice the rows, whatever its symbol is called."""
    dims: dict[str, Any] = {"x": (1, 3, "H", "W"), "mask": (1, 1, "M", "W")}
    nodes = [node("Identity", "x", "y"), node("Identity", "mask", "w")]
    source = Loaded(model(nodes, dims, {"y": (None,) * 4, "w": (None,) * 4}), None)
    sizes = {"x": (1, 3, 64, 48), "mask": (1, 1, 128, 48)}
    groups = further_sizes(
        source, source.model, sizes, lambda at: (at["x"][2], at["mask"][2]), {}, {}
    )
    odd, least, *_ = ([*group.sizes] for group in groups)
    assert odd[0] == {"x": (1, 3, 65, 48), "mask": (1, 1, 130, 48)}
    assert least[0] == {"x": (1, 3, 1, 48), "mask": (1, 1, 2, 48)}


@pytest.mark.parametrize("dims", [("N", "H", "W", 3), ("N", "H", 32, 3), (1, "H", 32, 3)])
def test_channels_last(dims: tuple[Any, ...], tmp_path: Path) -> None:
    """Rows are the second dimension of the input, whichever others are known."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t a", "p", pads=[1] * 4),
        node("Relu", "p", "r"),
        node("Conv", "r b", "y", pads=[1] * 4),
    ]
    weights = {"a": noise(16, 3, 3, 3) / 3, "b": noise(3, 16, 3, 3) / 9}
    onnx.save(model(nodes, {"x": dims}, {"y": (None,) * 4}, weights), tmp_path / "m.onnx")
    result = rewrite(tmp_path / "m.onnx", splits=4, max_recompute=9.0)
    assert result.outcome.rewritten
    found = result.report.verification
    assert found["passed"]
    first, *others = [sizes["x"] for sizes in found["sizes"]]
    wider = [others.pop()] if dims[2] == "W" else []
    assert len(others) >= 2
    for each in others:
        assert each[1] != first[1]
        assert (each[0], *each[2:]) == (first[0], *first[2:])
    for each in wider:
        assert each[2] == first[2] + 1
        assert (*each[:2], each[3]) == (*first[:2], first[3])


def test_that_it_was_verified_at_one_size_alone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free height and width, and no time for another."""
    monkeypatch.setattr("patchconv_deploy.verify.verification._FURTHER_S", 0.0)
    onnx.save(_made(), tmp_path / "m.onnx")
    found = rewrite(tmp_path / "m.onnx", splits=4).report.verification
    assert found["passed"]
    assert found["one_height"]
    assert found["one_width"]
    assert all_sizes_text(found).endswith("; at no other height; at no other width")


def test_nothing_is_written_of_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that fails at a further height is no result."""
    onnx.save(_made(), tmp_path / "m.onnx")

    def wrong(loaded: Loaded, options: Options, progress: Any = None) -> Any:
        outcome = rewrite_model(loaded, options, progress)
        tampered = _tampered(outcome.model, "odd")
        outcome.model.CopyFrom(tampered)
        return outcome

    monkeypatch.setattr("patchconv_deploy.api.rewrite_model", wrong)
    with pytest.raises(VerificationError, match="does not compute the same"):
        rewrite(tmp_path / "m.onnx", splits=4)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
