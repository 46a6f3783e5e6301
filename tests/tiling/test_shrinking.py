"""Windows that shrink: how far, worked out by hand, and what the nodes look like then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.tiling import network as networks
from patchconv_deploy.rewriters.tiling import proof
from patchconv_deploy.rewriters.tiling.network import Link, Network, Shrinking
from patchconv_deploy.rewriters.tiling.patches import Tiling, tile
from patchconv_deploy.rewriters.tiling.row_maps import (
    Padding,
    Pointwise,
    RowMap,
    Sliding,
    Transposed,
    dropped,
    removable_padding,
)
from patchconv_deploy.rewriters.tiling.shrinking import needed, shrink
from tests.support.regions_by_hand import Cut, tile_all
from tests.support.small_models import Array, assert_same, chain, cut, model, node, noise

Links: TypeAlias = Sequence[tuple[RowMap, tuple[int, ...], tuple[int, ...]]]

CONV = Sliding(3, 1, 1, 1)


def _shrunk(
    links: Links,
    outputs: tuple[int, ...],
    rows: Sequence[int] = (64,),
) -> tuple[Shrinking | None, Network, Tiling]:
    inputs = tuple(range(len(rows)))
    tensors = 1 + max(tensor for _, _, makes in links for tensor in makes)
    made = tuple(Link(op, reads, makes, removable_padding(op)) for op, reads, makes in links)
    network = Network(tensors, made, inputs, outputs)
    step, whole = networks.steps(network), networks.heights(network, rows)
    assert not isinstance(step, str)
    assert not isinstance(whole, str)
    tiling = tile(proof.extents(network, rows), 4)
    assert proof.prove(network, rows, tiling) is None
    found = shrink(network, step, whole, tiling)
    if found is not None:
        assert proof.prove(network, rows, tiling, found) is None
    return found, network, tiling


def _chain(*ops: RowMap) -> Shrinking | None:
    return _shrunk([(op, (k,), (k + 1,)) for k, op in enumerate(ops)], (len(ops),))[0]


def test_a_chain_makes_no_row_in_vain() -> None:
    """Each Conv drops its padding; what the output keeps are its cores."""
    found, network, tiling = _shrunk([(CONV, (k,), (k + 1,)) for k in range(4)], (4,))
    assert found == Shrinking((0, 1, 2, 3, 4), (0, 1, 2, 3, 4))
    (inner,) = {len(patch.cores[0]) for patch in tiling.patches[1:-1]}
    assert 64 - tiling.trim - 4 - 4 == inner
    rows = needed(network, [64] * 5, tiling.patches[1].cores)
    assert [len(r) for r in rows if r is not None] == [
        inner + 8,
        inner + 6,
        inner + 4,
        inner + 2,
        inner,
    ]


@pytest.mark.parametrize(
    ("ops", "top", "bottom"),
    [
        # Steps of two rows: windows have a row more than is needed, which the input drops itself.
        ((CONV, Sliding(3, 2, 1, 1)), (0, 1, 1), (1, 2, 1)),
        ((Sliding(3, 2, 1, 1), CONV), (1, 1, 2), (2, 1, 2)),
        # An upsampling ConvTranspose crops the rows its kernel reaches in part.
        ((Transposed(4, 2, 1, 1),), (0, 1), (0, 1)),
        ((CONV, Transposed(2, 2), CONV), (0, 1, 2, 3), (1, 2, 4, 5)),
        ((Transposed(3, 2, 1, 1, 1), CONV), (0, 0, 1), (0, 1, 2)),
        # Padding on its own, of which an even kernel needs less below.
        ((Padding(1, 2), Sliding(4, 1)), (0, 1, 1), (1, 3, 3)),
        # SAME padding depends on the height, ceil_mode on what is left: kept, and still shifted.
        ((CONV, Sliding(3, 1, same="SAME_UPPER"), CONV), (0, 1, 1, 2), (0, 1, 1, 2)),
        ((CONV, CONV, Sliding(2, 2, ceil=True)), (0, 1, 2, 1), (0, 1, 2, 1)),
    ],
)
def test_by_hand(ops: Sequence[RowMap], top: Sequence[int], bottom: Sequence[int]) -> None:
    """Operators of every kind."""
    found = _chain(*ops)
    assert found is not None
    assert (found.top, found.bottom) == (tuple(top), tuple(bottom))


def test_odd_rows_before_a_stride_are_kept() -> None:
    """An operator of stride 2 without padding is given an even number of rows less."""
    for convs in range(1, 6):
        found = _chain(*[CONV] * convs, Sliding(2, 2))
        assert found is not None
        assert found.top[-2] == 2 * found.top[-1] >= convs - 1
        assert found.bottom[-2] == 2 * found.bottom[-1] >= convs - 1


def test_a_residual_block_shrinks_around_itself() -> None:
    """The skip of x + conv(conv(x)) holds every row: padding stays inside, not around it."""
    inside: Links = [(CONV, (1,), (2,)), (CONV, (2,), (3,)), (Pointwise(), (1, 3), (4,))]
    found, _, _ = _shrunk([(CONV, (0,), (1,)), *inside, (CONV, (4,), (5,))], (5,))
    assert found is not None
    assert found.top == (0, 1, 1, 1, 1, 2)
    assert found.bottom == found.top


def test_branches_of_one_reach_shrink_alike() -> None:
    """conv(x) + conv(x), and a second input that only the join reads."""
    links: Links = [(CONV, (0,), (2,)), (CONV, (0,), (3,)), (Pointwise(), (2, 3, 1), (4,))]
    found, _, _ = _shrunk(links, (4,), (64, 64))
    assert found is not None
    assert found.top == (0, 1, 1, 1, 1)


def test_a_side_output_keeps_its_rows() -> None:
    """Cores of two outputs of different reach are the same rows: the first has some to spare."""
    found, _, tiling = _shrunk([(CONV, (0,), (1,)), (CONV, (1,), (2,))], (1, 2))
    assert found is not None
    assert found.top[1] <= min(patch.cores[0].begin - patch.shift for patch in tiling.patches[1:])
    assert found.top[2] - found.top[1] in (0, 1)


def test_what_is_dropped_is_what_the_row_map_says() -> None:
    """`dropped` of all removable padding leaves none, and as many rows less."""
    for op in (CONV, Sliding(5, 2, 2, 1), Transposed(5, 2, 1, 2, 1), Padding(3, 1)):
        above, below = removable_padding(op)
        less = dropped(op, above, below)
        assert removable_padding(less) == (0, 0)
        rows = 41
        if not isinstance(op, Sliding):
            assert less.rows_out(rows) == op.rows_out(rows) - above - below
    assert dropped(Pointwise(), 0, 0) == Pointwise()


def _cut(nodes: Sequence[onnx.NodeProto], rows_out: int = 64, **weights: Array) -> Cut:
    shapes = {"x": (1, 4, 64, 12)}, {"y": (1, 4, rows_out, None)}
    made = model(nodes, *shapes, weights)
    cut = tile_all(made, 4, "shrinking")
    assert len(cut.plans) == 1, cut.reasons
    assert_same(made, cut.model, {"x": noise(1, 4, 64, 12)})
    onnx.shape_inference.infer_shapes(cut.model, strict_mode=True)
    return cut


def _attributes(cut: Cut, op_type: str, name: str = "pads") -> list[list[int]]:
    return sorted(
        list(attribute.ints)
        for each in cut.model.graph.node
        for attribute in each.attribute
        if each.op_type == op_type and attribute.name == name
    )


def test_pads_of_a_conv() -> None:
    """The first patch keeps its upper padding, the last its lower, the others have none."""
    convs = [
        node("Conv", "x v", "a", pads=[1, 2, 1, 2]),
        node("Conv", "a w", "y", pads=[1, 2, 1, 2]),
    ]
    cut = _cut(convs, v=noise(4, 4, 3, 5), w=noise(4, 4, 3, 5, seed=1))
    first, inner, last = [1, 2, 0, 2], [0, 2, 0, 2], [0, 2, 1, 2]
    assert _attributes(cut, "Conv") == sorted(2 * [first, inner, inner, last])
    # Six edges, at each of which the first Conv alone makes a row more; uniform windows make four.
    assert cut.plans[0].shares == (1 + 6 / 64, 1)


def test_same_padding_becomes_explicit() -> None:
    """auto_pad would pad every edge again."""
    convs = [node("Conv", f"{x} w", y, auto_pad="SAME_LOWER") for x, y in ("xa", "ay")]
    cut = _cut(convs, w=noise(4, 4, 4, 4))
    first, inner, last = [2, 2, 0, 1], [0, 2, 0, 1], [0, 2, 1, 1]
    assert _attributes(cut, "Conv") == sorted(2 * [first, inner, inner, last])
    assert not [a for each in cut.model.graph.node for a in each.attribute if a.name == "auto_pad"]


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_and_conv_transpose(mode: str) -> None:
    """Pad gives up rows through its input, ConvTranspose by cropping more of them."""
    nodes = [
        node("Pad", "x pads", "a", mode=mode),
        node("Conv", "a w", "b"),
        node("ConvTranspose", "b t", "y", pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    cut = _cut(nodes, 128, pads=pads, w=noise(4, 4, 3, 3), t=noise(4, 4, 4, 4))
    crops = [[1, 1, 2, 1], [2, 1, 1, 1], [2, 1, 2, 1], [2, 1, 2, 1]]
    assert _attributes(cut, "ConvTranspose") == crops
    values = {each.name: numpy_helper.to_array(each) for each in cut.model.graph.initializer}
    given = [each.input[1] for each in cut.model.graph.node if each.op_type == "Pad"]
    rows = sorted((int(values[name][2]), int(values[name][6])) for name in given)
    assert rows == [(0, 0), (0, 0), (0, 1), (1, 0)]


def test_nothing_to_shrink_is_fused() -> None:
    """Windows whose rows a skip holds stay as they are."""
    nodes = [node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Add", "a x", "y")]
    cut = _cut(nodes, w=noise(4, 4, 3, 3))
    assert cut.plans[0].shrinking is None
    assert _attributes(cut, "Conv") == 4 * [[1, 1, 1, 1]]


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("extra", [[0, 2], [1, 1]])
def test_auto_pad_with_output_padding(auto_pad: str, extra: Sequence[int]) -> None:
    """Patches that keep auto_pad would be of another size, to onnx and to TensorRT, than others."""
    transposed = node(
        "ConvTranspose", "x w", "y", auto_pad=auto_pad, output_padding=extra, strides=[2, 3]
    )
    shapes = {"x": (1, 4, 64, 12)}, {"y": (None,) * 4}
    made = model([transposed], *shapes, {"w": noise(4, 4, 3, 4)})
    for form in ("fused", "shrinking"):
        tiled = tile_all(made, 4, form)
        assert len(_attributes(tiled, "ConvTranspose")) == 4
        assert_same(made, tiled.model, {"x": noise(1, 4, 64, 12)})
        onnx.shape_inference.infer_shapes(tiled.model, strict_mode=True)
        names = {a.name for each in tiled.model.graph.node for a in each.attribute}
        assert "auto_pad" not in names


def test_a_free_height_does_not_shrink() -> None:
    """Windows are uniform then, and are counted so: their work and what they hold."""
    made = chain(5, (1, 2, None, 32))
    fused, shrinking = (cut(made, form, selection=Selection()) for form in ("fused", "shrinking"))
    assert fused.rewritten
    assert shrinking.recompute == fused.recompute
    assert shrinking.after.bytes == fused.after.bytes
