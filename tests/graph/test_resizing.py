"""Resizes whose rows lie differently from row to row: written as shifts, and cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from patchconv_deploy.rewriters.graph import resizing
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.resizing import find_resizes
from patchconv_deploy.rewriters.graph.respelling import Respelling, respell
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.oracle import oracle_run
from tests.support.small_models import (
    assert_same,
    copy_of,
    model,
    node,
    noise,
    operators,
    run,
)

COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
ROUNDINGS = ("floor", "ceil")
WAYS = [
    *(("linear", coordinates, "floor") for coordinates in COORDINATES),
    *(("nearest", coordinates, rounding) for coordinates in COORDINATES for rounding in ROUNDINGS),
]

# Weighted by rows and then by columns, in place of both at once.
REL = 1e-6


def _back(
    way: tuple[str, str, str],
    factor: int = 2,
    *,
    dims: tuple[Any, ...] = (1, 2, "H", "W"),
    kernel: int = 1,
    opset: int = 17,
    scales: tuple[float, ...] = (),
    sizes: tuple[int, ...] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """A pool of some stride, resized to its input's size, to other sizes, or by scales."""
    mode, coordinates, rounding = way
    weights = {"none": np.zeros(0, np.float32)}
    kernels = {"kernel_shape": [kernel] * 2, "strides": [factor] * 2}
    nodes = [node("MaxPool", "x", "p", name="down", **kernels)]
    if scales:
        weights["by"] = np.array(scales, np.float32)
    elif sizes:
        weights["sizes"] = np.array(sizes)
    else:
        nodes += [
            node("Shape", "p", "own"),
            node("Gather", "own first", "images"),
            node("Shape", "x", "other"),
            node("Gather", "other last", "size"),
            node("Concat", "images size", "sizes", axis=0),
        ]
        weights |= {"first": np.array([0, 1]), "last": np.array([2, 3])}
    attributes |= {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    # Until opset 13 the input in between is not optional.
    read = "p none by" if scales else "p none none sizes" if opset < 13 else "p _ _ sizes"
    nodes.append(node("Resize", read, "u", name="up", **attributes))
    return model(nodes, {"x": dims}, {"u": (None,) * 4}, weights, opset=opset)


def _found(made: onnx.ModelProto) -> list[Respelling]:
    facts = analyse(made, skeleton(Loaded(copy_of(made), None)))
    return find_resizes(facts.certain, {"p": 2, "u": 2, "x": 2}, chooses=True)


def _respelled(made: onnx.ModelProto) -> onnx.ModelProto:
    changed = copy_of(made)
    found = _found(made)
    assert [each.label for each in found] == ["up"]
    respell(changed.graph, found)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    given = {"splits": 4, "max_recompute": 3.0, **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(**given))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("factor", [2, 3])
def test_every_height(way: tuple[str, str, str], factor: int) -> None:
    """Whatever the last row lacks; where rows are chosen not one is another."""
    made = _back(way, factor)
    changed = _respelled(made)
    for height in (*range(1, 40), 127, 128, 129, 500, 1021):
        x = {"x": noise(1, 2, height, 7, seed=height)}
        want, got = run(made, x)["u"], run(changed, x)["u"]
        bound = 0 if way[0] == "nearest" else REL * float(np.abs(want).max())
        assert got.shape == want.shape
        assert float(np.abs(got - want).max()) <= bound, height


@given(
    way=st.sampled_from(WAYS),
    rows=st.integers(1, 40),
    after=st.integers(1, 160),
    opset=st.sampled_from([11, 13, 17, 18, 21]),
)
def test_sizes_that_are_given(way: tuple[str, str, str], rows: int, after: int, opset: int) -> None:
    """From any height to any other: it is equal, or it is not written so."""
    made = _back(way, 1, dims=(1, 2, rows, 5), opset=opset, sizes=(1, 2, after, 9))
    if not _found(made):
        return
    changed = _respelled(made)
    x = {"x": noise(1, 2, rows, 5, seed=after)}
    want, got = run(made, x)["u"], run(changed, x)["u"]
    bound = 0 if way[0] == "nearest" else REL * float(np.abs(want).max())
    assert float(np.abs(got - want).max()) <= bound


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[11]], ids="-".join)
@pytest.mark.parametrize("scale", [3.0, 5.0, 2.98])
def test_scales(way: tuple[str, str, str], scale: float) -> None:
    """A factor that is no power of two; what is left over of a fraction is cut off."""
    made = _back(way, 1, dims=(1, 2, 30, 6), scales=(1, 1, scale, 2.0))
    changed = _respelled(made)
    x = {"x": noise(1, 2, 30, 6)}
    assert_same(made, changed, x, REL)


def test_scales_beside_sizes_that_are_absent() -> None:
    """An optional input may be named as absent: the rows are scaled once, not twice."""
    made = _back(WAYS[0], 1, dims=(1, 2, 30, 6), scales=(1, 1, 3.0, 2.0))
    made.graph.node[-1].input.append("")
    assert_same(made, _respelled(made), {"x": noise(1, 2, 30, 6)}, REL)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(("times", "op"), [(1, "Identity"), (2, "Resize")])
def test_sizes_that_are_its_own_times_a_number(times: int, op: str, opset: int) -> None:
    """A Resize by scales, or nothing at all: a patch of it has no sizes of its own."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Shape", "x", "own"),
        node("Mul", "own by", "sizes"),
        node("Resize", "c none none sizes", "u", name="up", mode="linear"),
        node("Relu", "u", "y"),
    ]
    weights = {"w": noise(3, 3, 3, 3), "by": np.array([1, 1, times, times])}
    weights["none"] = np.zeros(0, np.float32)
    made = model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, weights, opset=opset)
    (entry,) = _found(copy_of(made))
    assert entry.nodes[-1].op_type == op
    assert all(not name for name in entry.nodes[-1].input[3:])
    for height, width in ((1, 1), (5, 8), (31, 2)):
        feeds = {"x": noise(1, 3, height, width)}
        assert_same(made, _respelled(copy_of(made)), feeds, REL)


def test_what_is_left_has_no_rows_for_a_compiler() -> None:
    """TensorRT takes no sizes that are worked out: at a free width columns are named from opset 18.

    Before, such a Resize stays as it is.
    """
    for opset, written in ((17, False), (18, True)):
        made = _around(("linear", "half_pixel", "floor"), (1, 3, "H", "W"))
        made.opset_import[0].version = opset
        facts = analyse(made, skeleton(Loaded(made, None)))
        found = find_resizes(facts.certain, {"e": 2}, chooses=False)
        assert bool(found) == written
        for entry in found:
            (rest,) = [each for each in entry.nodes if each.name.endswith("/rest")]
            axes = next(each for each in rest.attribute if each.name == "axes").ints
            assert 2 not in axes


def test_a_scale_at_free_sizes() -> None:
    """Three times as many rows, averaged."""
    made = _back(("linear", "half_pixel", ""), 1, scales=(1, 1, 3, 3))
    changed = _respelled(made)
    for height in (1, 2, 3, 50):
        assert_same(made, changed, {"x": noise(1, 2, height, 4)}, REL)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[7]], ids="-".join)
@pytest.mark.parametrize("rows", [33, "H"])
def test_half_precision(rows: int | str, way: tuple[str, str, str]) -> None:
    """It is averaged in float32, and rounded once as the original is."""
    made = _back(way, dims=(1, 2, rows, 8))
    for each in (*made.graph.input, *made.graph.output):
        each.type.tensor_type.elem_type = TensorProto.FLOAT16
    changed = _respelled(made)
    x = {"x": noise(1, 2, 33, 8, dtype=np.float16)}
    want, got = run(made, x)["u"], run(changed, x)["u"]
    assert got.dtype == want.dtype == np.float16
    bound = 0 if way[0] == "nearest" else 1e-3
    assert float(np.abs(got - want).max()) <= bound * float(np.abs(want).max())


@pytest.mark.parametrize(
    "made",
    [
        _back(("linear", "half_pixel", ""), dims=(1, 2, 64, 8)),  # row-local as it is
        _back(("linear", "half_pixel_symmetric", ""), opset=19),
        _back(("cubic", "half_pixel", "")),
        _back(("nearest", "half_pixel", "round_prefer_floor")),
        _back(("linear", "half_pixel", ""), opset=18, antialias=1, dims=(1, 2, 33, 8)),
        _back(WAYS[0], 1, dims=(1, 2, 64, 8), sizes=(1, 2, 24, 8)),  # to fewer rows
        _back(WAYS[0], 1, sizes=(1, 2, 48, 8)),  # from any height to the same
        _back(WAYS[0], 3, kernel=30),  # many rows are missing
        _back(WAYS[0], 1, dims=(1, 2, 33, 8), scales=(1, 1, 100, 1)),
        _back(WAYS[0], 1, dims=(1, 2, 33, 8), scales=(1, 1, 2.5, 1)),
        # Nothing is worked out for it.
        _back(WAYS[3], 1, dims=(1, 2, 1 << 40, 8), sizes=(1, 2, 1 << 41, 8)),
    ],
    ids="exact symmetric cubic rounded antialias down one-size far large fraction tall".split(),
)
def test_what_is_left_alone(made: onnx.ModelProto) -> None:
    """Other operators, and rows that lie too far apart."""
    assert _found(made) == []


def _around(way: tuple[str, str, str], dims: tuple[Any, ...]) -> onnx.ModelProto:
    """A skip around two scales, as decoders of segmentation networks have it."""
    mode, coordinates, rounding = way
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("Conv", "q b", "d", name="down", pads=[1] * 4, strides=[2, 2]),
        node("Conv", "d b", "e", name="deep", pads=[1] * 4),
        node("Shape", "e", "own"),
        node("Gather", "own first", "images"),
        node("Shape", "q", "other"),
        node("Gather", "other last", "size"),
        node("Concat", "images size", "sizes", axis=0),
        node("Resize", "e _ _ sizes", "u", name="up", **attributes),
        node("Add", "u q", "v", name="skip"),
        node("Conv", "v c", "y", name="end", pads=[1] * 4),
    ]
    weights = {
        "a": noise(16, 3, 3, 3),
        "b": noise(16, 16, 3, 3) / 9,
        "c": noise(2, 16, 3, 3) / 9,
        "first": np.array([0, 1]),
        "last": np.array([2, 3]),
    }
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[8]], ids="-".join)
def test_cut_at_any_height(way: tuple[str, str, str]) -> None:
    """One region from the first Conv to the last, equal at every height."""
    made = _around(way, (1, 3, "H", "W"))
    outcome = _cut(made, splits=16)
    assert [cut.form for cut in outcome.rewritten] == ["rounds"]
    assert {"first", "up", "end"} <= {*outcome.rewritten[0].nodes}
    assert outcome.after.bytes < 0.25 * outcome.before.bytes
    for height in (1, 2, 3, 5, 8, 13, 33, 64, 127, 128, 255):
        assert_same(made, outcome.model, {"x": noise(1, 3, height, 11)}, REL)


@pytest.mark.parametrize("form", ["fused", "shrinking", "loop"])
@pytest.mark.parametrize("rows", [128, 131])
def test_cut_at_one_height(form: str, rows: int) -> None:
    """In every form, against two runtimes; corners that are aligned."""
    made = _around(WAYS[3], (1, 3, rows, 16))
    outcome = _cut(made, form=form)
    assert any("up" in cut.nodes for cut in outcome.rewritten)
    x = {"x": noise(1, 3, rows, 16)}
    assert_same(made, outcome.model, x, 2 * REL)
    want = oracle_run(made, x)[0]
    assert float(np.abs(run(outcome.model, x)["y"] - want).max()) <= 1e-5 * float(
        np.abs(want).max()
    )


def test_what_is_not_cut_stays_as_it_was() -> None:
    """Written in other words for a search that finds nothing: the file's own nodes are back."""
    made = _back(WAYS[3], dims=(1, 2, 3, 3))
    outcome = _cut(made)
    assert not outcome.rewritten
    assert operators(outcome.model) == operators(made)


def test_a_row_too_few_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: with bounds of rows that are taken too narrow the numbers differ."""
    made = _back(WAYS[0])
    whole = resizing._Rows.shifts

    def narrower(rows: Any) -> range:
        found = whole(rows)
        assert found is not None
        return found[:-1]

    monkeypatch.setattr(resizing._Rows, "shifts", narrower)
    changed = _respelled(made)
    x = {"x": noise(1, 2, 31, 7)}
    assert float(np.abs(run(made, x)["u"] - run(changed, x)["u"]).max()) > 0.01
