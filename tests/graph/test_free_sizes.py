"""Sizes that a graph works out: what is followed, and what only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import assert_same, copy_of, model, node, noise, run

FLOAT, INT, HALF = TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16

# How a height is worked out from ``h``, and what it is of 50.
WAYS: dict[str, tuple[list[onnx.NodeProto], int | None]] = {
    "half, of whole numbers": ([node("Div", "h two", "n")], 25),
    "a third, of whole numbers": ([node("Div", "h three", "n")], 16),
    "floor of a third": (
        [
            node("Cast", "h", "f", to=FLOAT),
            node("Div", "f real3", "g"),
            node("Floor", "g", "i"),
            node("Cast", "i", "n", to=INT),
        ],
        16,
    ),
    "ceiling of a third": (
        [
            node("Cast", "h", "f", to=FLOAT),
            node("Div", "f real3", "g"),
            node("Ceil", "g", "i"),
            node("Cast", "i", "n", to=INT),
        ],
        17,
    ),
    "a third, cut off": (
        [
            node("Cast", "h", "f", to=FLOAT),
            node("Div", "f real3", "g"),
            node("Cast", "g", "n", to=INT),
        ],
        16,
    ),
    "one and a half": (
        [
            node("Cast", "h", "f", to=FLOAT),
            node("Div", "f real2", "g"),
            node("Mul", "g real3", "i"),
            node("Cast", "i", "n", to=INT),
        ],
        None,
    ),
    "through half precision": (
        [node("Cast", "h", "f", to=HALF), node("Cast", "f", "n", to=INT)],
        None,
    ),
    "through a narrow type": (
        [node("Cast", "h", "f", to=TensorProto.UINT8), node("Cast", "f", "n", to=INT)],
        None,
    ),
    "out of a matrix": (
        [
            node("Shape", "x", "s"),
            node("Reshape", "s square", "q"),
            node("Gather", "q one", "column", axis=1),
            node("Reshape", "column flat", "p"),
            node("Gather", "p second", "n", axis=0),
        ],
        50,
    ),
    "out of a matrix that is turned": (
        [
            node("Shape", "x", "s"),
            node("Reshape", "s square", "q"),
            node("Slice", "q last before one back", "r0"),
            node("Transpose", "r0", "r1", perm=[1, 0]),
            node("Reshape", "r1 flat", "p"),
            node("Gather", "p one", "n", axis=0),
        ],
        50,
    ),
    "up to a multiple, by a remainder below 0": (
        [node("Neg", "h", "m"), node("Mod", "m three", "k"), node("Add", "h k", "n")],
        51,
    ),
    "by a remainder of the dividend's sign": (
        [node("Neg", "h", "m"), node("Mod", "m three", "k", fmod=1), node("Add", "h k", "n")],
        None,
    ),
}


def _model(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A Conv, and what it makes resized to a height that is worked out, and a Conv behind it."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node("Shape", "x", "shape"),
        node("Gather", "shape axis", "h", axis=0),
        *nodes,
        node("Concat", "front n width", "sizes", axis=0),
        node("Resize", "c _ _ sizes", "r", name="resize", mode="nearest"),
        node("Conv", "r b", "y", name="second", pads=[1] * 4),
    ]
    weights: dict[str, Any] = {
        "a": noise(8, 3, 3, 3),
        "b": noise(2, 8, 3, 3),
        "axis": np.array([2]),
        "two": np.array([2]),
        "three": np.array([3]),
        "real2": np.array([2], np.float32),
        "real3": np.array([3], np.float32),
        "square": np.array([2, 2]),
        "flat": np.array([-1]),
        "one": np.array([0]),
        "second": np.array([1]),
        "last": np.array([-1]),
        "before": np.array([-(2**62)]),
        "back": np.array([-1]),
        "front": np.array([1, 8]),
        "width": np.array([16]),
    }
    read = {name for each in nodes for name in each.input}
    kept = {name: array for name, array in weights.items() if name in read}
    return model(nodes, {"x": (1, 3, "H", 16)}, {"y": (None,) * 4}, kept)


@pytest.mark.parametrize("way", WAYS)
def test_a_height_that_is_worked_out(way: str) -> None:
    """It is followed exactly or not at all, and what is cut is right at every height."""
    nodes, right = WAYS[way]
    made = _model(nodes)
    facts = look_at(Loaded(copy_of(made), None), Options()).facts.certain
    size = facts.free.size("r", 2)
    assert (None if size is None else size.at(50)) == right
    outcome = rewrite_model(
        Loaded(copy_of(made), None), Options(splits=32, max_recompute=30.0, form="rounds")
    )
    for height in (6, 7, 8, 9, 50, 61):
        feeds = {"x": noise(1, 3, height, 16)}
        if right is not None and size is not None:
            assert run(made, feeds)["y"].shape[2] == size.at(height)
        assert_same(made, outcome.model, feeds, 2e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 0.5])
def test_constants_that_are_no_size(number: float) -> None:
    """A mask's infinity is no size, and no fault."""
    made = _model([node("Identity", "h", "n")])
    made.graph.node.insert(0, node("Add", "x mask", "masked", name="mask"))
    made.graph.node[1].input[0] = "masked"
    made.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([number], np.float32), "mask")
    )
    assert (
        look_at(Loaded(copy_of(made), None), Options()).facts.certain.free.size("c", 2) is not None
    )


def test_sizes_of_some_axes() -> None:
    """Resize may be given sizes of some dimensions: they are not the first ones."""
    made = _model([node("Mul", "h two", "n")])
    resize = next(each for each in made.graph.node if each.op_type == "Resize")
    resize.input[3] = "n"
    resize.attribute.append(onnx.helper.make_attribute("axes", [2]))
    del made.graph.node[[each.op_type for each in made.graph.node].index("Concat")]
    for name in ("front", "width"):
        del made.graph.initializer[[each.name for each in made.graph.initializer].index(name)]
    made.opset_import[0].version = 18
    facts = look_at(Loaded(copy_of(made), None), Options()).facts.certain
    for axis in (0, 1):
        size = facts.free.size("r", axis)
        assert size is None or size.constant in (1, 8)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=32, max_recompute=30.0))
    for height in (6, 50):
        assert_same(made, outcome.model, {"x": noise(1, 3, height, 16)}, 2e-6)


@pytest.mark.parametrize(
    ("scale", "right"),
    [(2.0, 100), (1.5, 75), (0.25, 12), (1 / 3, None), (1e9, None), (-1.0, None), (np.nan, None)],
)
def test_a_scale_whose_rows_lie_anywhere(scale: float, right: int | None) -> None:
    """What a Resize makes of a height is its scale alone, with corners that are aligned too."""
    resized = node(
        "Resize", "c _ scales", "r", coordinate_transformation_mode="align_corners", mode="linear"
    )
    nodes = [node("Conv", "x a", "c", pads=[1] * 4), resized, node("Relu", "r", "y")]
    weights = {"a": noise(8, 3, 3, 3), "scales": np.array([1, 1, scale, 1], np.float32)}
    made = model(nodes, {"x": (1, 3, "H", 16)}, {"y": (None,) * 4}, weights)
    size = look_at(Loaded(made, None), Options()).facts.certain.free.size("r", 2)
    assert (None if size is None else size.at(50)) == right
    if size is not None:
        for height in (4, 5, 50, 61):
            assert run(made, {"x": noise(1, 3, height, 16)})["y"].shape[2] == size.at(height)


def _windowed(side: int, *, whole: bool = True, needed: bool = True) -> onnx.ModelProto:
    """An image cut into windows, as many as it has or as there are, and put together again."""
    rows = "rows" if whole else "open"
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node("Transpose", "c", "t", perm=[0, 2, 3, 1]),
        node("Shape", "c", "shape"),
        node("Gather", "shape places", "size"),
        node("Div", "size side", "count"),
        node("Gather", "count zeroth", "rows"),
        node("Gather", "count first", "columns"),
        node("Concat", f"one {rows} side columns side channels", "apart", axis=0),
        node("Reshape", "t apart", "w"),
        node("Concat", "one size channels", "back", axis=0),
        node("Reshape", "w back", "u"),
        node("Transpose", "u", "v", perm=[0, 3, 1, 2]),
        node("Conv", "v b" if needed else "c b", "y", name="second", pads=[1] * 4),
    ]
    weights = {
        "a": noise(8, 3, 3, 3),
        "b": noise(2, 8, 3, 3),
        "places": np.array([2, 3]),
        "zeroth": np.array([0]),
        "first": np.array([1]),
        "side": np.array([side]),
        "one": np.array([1]),
        "channels": np.array([8]),
        "open": np.array([-1]),
    }
    return model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, weights)


@pytest.mark.parametrize("side", [2, 4, 7])
def test_sizes_that_a_model_runs_at_alone(side: int) -> None:
    """Windows that are not padded: their side divides the height, and so they are rows of it."""
    made = _windowed(side)
    options = Options(splits=32, max_recompute=30.0, form="rounds")
    facts = look_at(Loaded(copy_of(made), None), options).facts.certain
    links = find_locality(facts, "height").links
    assert {facts.index.producer["w"], facts.index.producer["u"]} <= links.keys()
    size = facts.free.size("x", 2)
    assert size is not None
    for height in range(1, 4 * side):
        assert size.at(height) == -(-height // side) * side
    outcome = rewrite_model(Loaded(copy_of(made), None), options)
    assert outcome.rewritten
    for count in (1, 2, 9, 30):
        feeds = {"x": noise(1, 3, count * side, 2 * side)}
        assert_same(made, outcome.model, feeds, 2e-6)


@pytest.mark.parametrize("given", [{"whole": False}, {"needed": False}], ids=str)
def test_sizes_that_only_look_divided(given: dict[str, bool]) -> None:
    """What is left open takes what there is, and what nobody reads need not run."""
    free = look_at(Loaded(_windowed(4, **given), None), Options()).facts.certain.free
    size = free.size("x", 2)
    assert size is not None
    assert size.at(50) == 50


def test_two_sizes_that_are_left_open() -> None:
    """A Reshape that no runtime takes: its sizes are unknown, and nothing is asked for ever."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s place", "n", axis=0),
        node("Concat", "n open open", "shape", axis=0),
        node("Reshape", "x shape", "y"),
    ]
    weights = {"place": np.array([0]), "open": np.array([-1])}
    made = model(nodes, {"x": (1, 3, "H", 16)}, {"y": (None,) * 3}, weights)
    free = look_at(Loaded(copy_of(made), None), Options()).facts.certain.free
    assert free.size("y", 1) is free.size("y", 2) is None


@pytest.mark.parametrize(
    ("shape", "asked", "made"),
    [
        ((1, 8, 1, 1), "same", [1, 8, "H", "W"]),
        ((8, 1, 1), "same", [1, 8, "H", "W"]),
        ((1, 1, "H", "W"), "numbers", [1, 8, "H", "W"]),
        ((1, 1, "H", "W"), "four", [1, 1, "H", 4]),
    ],
)
def test_an_expand_is_as_large_as_both(
    shape: tuple[Any, ...], asked: str, made: list[int | str]
) -> None:
    """What is 1 becomes what is asked for; of two that are not 1, the number."""
    nodes = [node("Shape", "x", "same"), node("Expand", f"e {asked}", "y")]
    weights = {"numbers": np.array([8, 1, 1]), "four": np.array([4])}
    given = model(nodes, {"x": (1, 8, "H", "W"), "e": shape}, {"y": (None,) * 4}, weights)
    facts = look_at(Loaded(given, None), Options()).facts.certain
    image = [facts.size("x", axis) for axis in range(4)]
    assert None not in image
    wanted = [image["HW".index(each) + 2] if isinstance(each, str) else each for each in made]
    found = [facts.size("y", axis) for axis in range(4)]
    assert [each.constant if each and each.constant else each for each in found] == wanted
