"""How far outputs look: held against tiles that are run, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.look import inspection_of
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.reach import Reach
from tests.planning.test_peak_holders import vae_decoder
from tests.support.commands import run_command
from tests.support.small_models import copy_of, model, node, noise, run, super_resolution

pytestmark = pytest.mark.usefixtures("less_weighed")

ROWS = 96


def _free(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], outputs: str = "y"
) -> onnx.ModelProto:
    dims = {"x": (1, 2, "h", 8)}
    return model(nodes, dims, dict.fromkeys(outputs.split(), (None,) * 4), weights)


def _plain() -> onnx.ModelProto:
    """Two Convs, 3 and 5 rows high."""
    nodes = [
        node("Conv", "x a", "c", name="one", pads=[1] * 4),
        node("Conv", "c b", "y", name="two", pads=[2] * 4),
    ]
    return _free(nodes, {"a": noise(2, 2, 3, 3), "b": noise(2, 2, 5, 5)})


def _strided() -> onnx.ModelProto:
    """Down by 4 and up by 2 again, with a skip."""
    nodes = [
        node("Conv", "x a", "c", name="one", pads=[1] * 4, strides=[2, 2]),
        node("MaxPool", "c", "p", name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("ConvTranspose", "p b", "u", name="up", strides=[2, 2], kernel_shape=[2, 2]),
        node("Add", "u c", "y", name="skip"),
    ]
    return _free(nodes, {"a": noise(2, 2, 3, 3), "b": noise(2, 2, 2, 2)})


def _uneven() -> onnx.ModelProto:
    """A kernel that looks further down than up, dilated."""
    kernel = {"pads": [1, 1, 5, 1], "dilations": [3, 1]}
    return _free([node("Conv", "x a", "y", name="one", **kernel)], {"a": noise(2, 2, 3, 3)})


def _reach(made: onnx.ModelProto, **options: Any) -> tuple[Reach, ...]:
    return inspection_of(Loaded(copy_of(made), None), Options(**options)).reach


def _output(made: onnx.ModelProto, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    sized = copy_of(made)
    fix_shapes(sized, {"x": rows.shape})
    return run(sized, {"x": rows})["y"]


@pytest.mark.parametrize("made", [_plain(), _strided(), _uneven()], ids=["plain", "stride", "odd"])
def test_a_tile_is_right_where_it_is_said_to_be(made: onnx.ModelProto) -> None:
    """At every step: what lies further in than the wrong rows is the whole's, to the bit or so."""
    (found,) = _reach(made)
    (read,) = found.inputs
    assert found.bounded
    assert found.step is not None
    assert found.wrong_above is not None
    assert found.wrong_below is not None
    x = noise(1, 2, ROWS, 8)
    whole = _output(made, x)
    assert whole.shape[2] * read.scale[1] == ROWS * read.scale[0]
    tight = [False, False]
    for begin in range(0, ROWS // 2, read.step):
        for end in (ROWS, ROWS - read.step, ROWS - 2 * read.step):
            tile = _output(made, x[:, :, begin:end])
            first = begin // read.step * found.step
            own = whole[:, :, first : first + tile.shape[2]]
            above = found.wrong_above if begin else 0
            below = found.wrong_below if end < ROWS else 0
            same = np.isclose(tile, own, rtol=1e-5, atol=1e-5).all(axis=(0, 1, 3))
            assert same[above : len(same) - below].all()
            tight[0] |= bool(above) and not same[above - 1]
            tight[1] |= bool(below) and not same[len(same) - below]
    # No row more is cut off than has to be; below, with strides, at other heights than this.
    assert tight[0] == (found.wrong_above > 0)
    assert tight[1] == (found.wrong_below > 0) or read.step > 1


def test_the_reach_is_in_rows_of_the_input() -> None:
    """Of two Convs the sum of what each looks; of strides whole steps; of a scale its own."""
    (plain,) = _reach(_plain())
    assert [(i.above, i.below, i.step, i.scale) for i in plain.inputs] == [(3, 3, 1, (1, 1))]
    (odd,) = _reach(_uneven())
    assert [(i.above, i.below) for i in odd.inputs] == [(1, 5)]
    (strided,) = _reach(_strided())
    assert [(i.step, i.scale) for i in strided.inputs] == [(4, (1, 2))]
    assert strided.step == 2
    (large,) = _reach(super_resolution(16))
    assert [(i.step, i.scale) for i in large.inputs] == [(1, (4, 1))]


def test_what_looks_at_the_whole_image_is_named() -> None:
    """Statistics and barriers apart, each once; there is no reach then."""
    (found,) = _reach(vae_decoder((64, 64), blocks=1))
    assert not found.bounded
    assert (found.step, found.inputs) == (None, ())
    assert [(each.node, each.kind) for each in found.unbounded_by] == [
        ("block0.0.norm", "statistic"),
        ("block0.1.norm", "statistic"),
    ]
    nodes = [
        node("Conv", "x a", "c", name="conv", pads=[1] * 4),
        node("CumSum", "c two", "y", name="sum"),
        node("Relu", "c", "z", name="relu"),
    ]
    made = _free(nodes, {"a": noise(2, 2, 3, 3), "two": np.array(2)}, "y z")
    looked, other = _reach(made)
    assert [(each.node, each.kind) for each in looked.unbounded_by] == [("sum", "barrier")]
    assert looked.unbounded_by[0].reason
    # What the one looks at does not matter to the other.
    assert [(i.above, i.below) for i in other.inputs] == [(1, 1)]


def test_what_is_made_of_statistics_alone_is_not_named() -> None:
    """A gate looks at the image through its pool; the layers behind that add nothing."""
    nodes = [
        node("Conv", "x a", "c", name="conv", pads=[1] * 4),
        node("GlobalAveragePool", "c", "p", name="pool"),
        node("Conv", "p b", "q", name="squeeze"),
        node("HardSigmoid", "q", "g", name="gate"),
        node("Mul", "c g", "y", name="scale"),
    ]
    (found,) = _reach(_free(nodes, {"a": noise(2, 2, 3, 3), "b": noise(2, 2, 1, 1)}))
    assert [(each.node, each.kind) for each in found.unbounded_by] == [("pool", "statistic")]


def test_inspect_has_it(tmp_path: Path) -> None:
    """As JSON and in words."""
    onnx.save(_strided(), tmp_path / "m.onnx")
    done = run_command("inspect", tmp_path / "m.onnx", "--json", tmp_path / "m.json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "m.json").read_text())["reach"]
    assert found["output"] == "y"
    assert found["inputs"][0]["scale"] == [1, 2]
    words = f"Output y looks {found['inputs'][0]['above']} rows above and "
    assert words in done.stdout


@pytest.mark.parametrize(
    ("attributes", "kind", "words"),
    [
        ({"coordinate_transformation_mode": "align_corners"}, "refused", "whole image's height"),
        (
            {"coordinate_transformation_mode": "align_corners", "mode": "cubic"},
            "refused",
            "coordinate_transformation_mode is 'align_corners'",
        ),
    ],
)
def test_a_resize_that_is_no_tile_s_own_is_refused_and_is_no_barrier(
    attributes: dict[str, Any], kind: str, words: str
) -> None:
    """It is named, once, whether it is cut in other words or not; its new nodes are not."""
    nodes = [
        node("Conv", "x a", "c", name="one", pads=[1] * 4),
        node("Resize", "c _ s", "u", name="up", **{"mode": "linear", **attributes}),
        node("Conv", "u b", "y", name="two", pads=[1] * 4),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    made = _free(nodes, {"a": noise(2, 2, 3, 3), "s": scales, "b": noise(2, 2, 3, 3)})
    (found,) = _reach(made)
    assert not found.bounded
    (looker,) = found.unbounded_by
    assert (looker.node, looker.kind) == ("up", kind)
    assert words in looker.reason
