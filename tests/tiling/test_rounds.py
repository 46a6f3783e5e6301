"""Patches of a fixed height: every height of random regions, and faults that have to be found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patchconv_deploy.rewriters.tiling import rounds
from patchconv_deploy.rewriters.tiling.network import Network, first_height, heights, steps
from patchconv_deploy.rewriters.tiling.patches import Extent, Placement, covers
from patchconv_deploy.rewriters.tiling.proof import extents, prove
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise, RowMap, Sliding, Transposed


def _maps() -> st.SearchStrategy[list[RowMap]]:
    one: st.SearchStrategy[RowMap] = st.one_of(
        st.builds(
            Sliding,
            reach=st.integers(1, 6),
            stride=st.integers(1, 3),
            begin=st.integers(0, 3),
            end=st.integers(0, 3),
            ceil=st.booleans(),
        ),
        st.builds(
            Transposed,
            reach=st.integers(2, 5),
            stride=st.integers(1, 2),
            begin=st.integers(0, 1),
            end=st.integers(0, 1),
            extra=st.integers(0, 1),
        ),
        st.just(Pointwise()),
    )
    return st.lists(one, min_size=1, max_size=5)


def _outs(network: Network, rows: int) -> list[Extent] | None:
    """Return the outputs of a region at a height, with the wrong rows of any; None: no such."""
    worst, whole = extents(network, None, first_height(network)), heights(network, (rows,))
    if isinstance(whole, str):
        return None
    return [
        Extent(whole[tensor], extent.step, extent.top, extent.tail)
        for tensor, extent in zip(network.outputs, worst, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(_maps(), st.integers(1, 9))
def test_every_height_far_beyond_those_that_are_proven(maps: list[RowMap], stride: int) -> None:
    """What is proven of the heights that are looked at is true of those that are not."""
    network = Network.chain(maps)
    assume(not isinstance(steps(network), str))
    try:
        proven = rounds.prove_rounds(network, stride)
    except ValueError:
        assume(False)
    assume(proven is None)
    first = first_height(network)
    for rows in (*range(first, first + 60), 211, 500, 997, 1000):
        outs = _outs(network, rows)
        if outs is None:
            continue
        tiling = rounds.tile_rounds(outs, stride)
        assert prove(network, (rows,), tiling) is None
        assert covers([patch.cores[0] for patch in tiling.patches], outs[0].rows)
        # All but the first and the last are as high as was asked for, and none is higher.
        own = [len(patch.cores[0]) for patch in tiling.patches]
        assert all(each == stride * outs[0].step for each in own[1:-2])
        edge = outs[0].top + outs[0].tail + 2 * outs[0].step
        assert max(own) <= stride * outs[0].step + edge


def test_the_number_of_rounds() -> None:
    """A chain of three 3x3 convolutions in patches of 16 rows."""
    network = Network.chain([Sliding(3, 1, 1, 1)] * 3)
    for rows, count in ((1, 1), (16, 1), (22, 1), (23, 2), (38, 2), (39, 3), (1000, 63)):
        outs = _outs(network, rows)
        assert outs is not None
        tiling = rounds.tile_rounds(outs, 16)
        assert len(tiling.patches) == count
        # A window is a patch and the rows it needs around it, but for the smallest images.
        assert rows - tiling.trim == min(rows, 16 + 6)


def test_several_outputs_of_several_heights() -> None:
    """Of a region with outputs at two scales each gets its rows."""
    network = Network(
        3,
        (
            Network.chain([Sliding(3, 1, 1, 1)]).links[0],
            Network.chain([Pointwise(), Sliding(3, 2, 1, 1)]).links[1],
        ),
        (0,),
        (1, 2),
    )
    assert rounds.prove_rounds(network, 3) is None
    outs = _outs(network, 101)
    assert outs is not None
    tiling = rounds.tile_rounds(outs, 3)
    assert [len(tiling.patches[1].cores[at]) for at in (0, 1)] == [6, 3]


def _one_more_step(trim: Any, stride: int, index: Any, minimum: Any) -> Placement:
    """Place windows one step too far apart."""
    shift = minimum(index * (stride + 1), trim)
    return Placement(stride, trim, shift, minimum(shift + stride + 1, trim))


def _one_too_low(trim: Any, stride: int, index: Any, minimum: Any) -> Placement:
    """Begin the cores of a window one step above it."""
    shift = minimum(index * stride, trim)
    return Placement(stride, trim, minimum(shift + 1, trim), minimum(shift + stride, trim))


@pytest.mark.parametrize("fault", [_one_more_step, _one_too_low])
def test_windows_in_the_wrong_place_are_found(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """The proof is made of what is emitted: a fault there is a refusal."""
    network = Network.chain([Sliding(3, 1, 1, 1), Sliding(3, 2, 1, 1), Sliding(5, 1, 2, 2)])
    assert rounds.prove_rounds.__wrapped__(network, 4) is None
    monkeypatch.setattr(rounds, "place_round", fault)
    assert rounds.prove_rounds.__wrapped__(network, 4) is not None


@settings(max_examples=60, deadline=None)
@given(_maps(), st.integers(1, 9), st.data())
def test_a_window_is_made_of_the_cores_that_it_lies_on(
    maps: list[RowMap], stride: int, data: st.DataObject
) -> None:
    """Any window of an output, from the cores of its rounds: each row once, and in order."""
    network = Network.chain(maps)
    assume(not isinstance(steps(network), str))
    rows = data.draw(st.integers(first_height(network), 300))
    outs = _outs(network, rows)
    assume(outs is not None and outs[0].rows > 0)
    assert outs is not None
    out = outs[0]
    cores = [patch.cores[0] for patch in rounds.tile_rounds(outs, stride).patches]
    begin = data.draw(st.integers(0, out.rows - 1))
    end = data.draw(st.integers(begin + 1, out.rows))
    most = end - begin + data.draw(st.integers(0, 5))
    found = list[int]()
    for index, low, high in rounds.touched(
        (begin, end), most, (stride * out.step, out.top, len(cores)), min, max
    ):
        owned = range(cores[index].begin, cores[index].end)
        found += owned[low:high]
    assert found == list(range(begin, end))
