"""What is padded or cropped to rows that follow from the model's height alone: proof and faults."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from patchconv_deploy.rewriters.tiling.network import Link, Network, first_height, heights
from patchconv_deploy.rewriters.tiling.proof_any_height import prove_every_height
from patchconv_deploy.rewriters.tiling.rounds import prove_rounds
from patchconv_deploy.rewriters.tiling.row_maps import Fitted, Padding, Sliding, Transposed
from patchconv_deploy.rewriters.tiling.sizes import Size

H = Size.free("h")


def size(found: Size | None) -> Size:
    """Return a size that is known."""
    assert found is not None
    return found


def up_and_padded(missing: Size) -> Network:
    """Half the rows, doubled, padded to those before, joined with them; a Conv behind."""
    halves, doubles = Sliding(2, 2), Transposed(2, 2)
    links = (
        Link(halves, (0,), (1,)),
        Link(doubles, (1,), (2,)),
        Link(Fitted(Size.number(0), missing), (2,), (3,)),
        Link(Sliding(3, 1, 1, 1), (3, 0), (4,)),
    )
    return Network(5, links, (0,), (4,), (size(H // 4),))


RIGHT = size(size(H // 4) - size(size(H // 8) * 2))


def test_a_map_that_is_doubled_is_padded_to_the_one_before() -> None:
    """It is proven at every height, in shares and in rounds, at all of which the join fits."""
    network = up_and_padded(RIGHT)
    assert network.fits == 8
    for height in range(first_height(network), 100):
        assert not isinstance(heights(network.at(height), network.rows_at(height)), str)
    assert prove_every_height(network, 3) is None
    assert prove_rounds(network, 4) is None


@pytest.mark.parametrize("more", [-1, 1])
def test_a_row_too_many_or_too_few_fits_at_no_height(more: int) -> None:
    """A planted fault: where the join does not fit there is no height to be proven."""
    network = up_and_padded(size(RIGHT + more))
    assert prove_rounds(network, 4) == "there is no height at which its tensors fit"


def test_rows_added_above_shift_what_is_needed() -> None:
    """A planted fault: a window that is padded as if it began with the image is not the whole's."""
    begin = size(H % 3)
    network = Network(
        3,
        (Link(Fitted(begin, Size.number(0)), (0,), (1,)), Link(Sliding(3, 1, 1, 1), (1,), (2,))),
        (0,),
        (2,),
        (H,),
    )
    assert prove_rounds(network, 5) is None
    wrong = replace(network, sizes=(size(H + 1),))
    assert network.at(4).links[0].row_map == Padding(1, 0)
    assert wrong.rows_at(4) == (5,)


def test_it_is_brute_force() -> None:
    """At each height the padding is the number that it is there, whatever the functions are."""
    draw = random.Random(7).randrange
    for _ in range(200):
        period = draw(1, 9)
        values = [tuple(draw(5) for _ in range(period)) for _ in range(2)]
        begin, end = (size(Size("h", 0, each) + 0) for each in values)
        fitted = Fitted(begin, end)
        for height in range(1, 40):
            above, below = (each[height % period] for each in values)
            assert fitted.at(height) == Padding(above, below)
            assert fitted.rows_out_at(height, height) == height + above + below


def test_without_a_height_it_says_nothing() -> None:
    """Rows are asked of a number of padded rows, never guessed."""
    fitted = Fitted(Size.number(0), RIGHT)
    with pytest.raises(TypeError, match="height"):
        fitted.rows_out(12)
    with pytest.raises(TypeError, match="height"):
        fitted.needs(range(0, 1), 12)  # type: ignore[arg-type]
    assert fitted.rows_out(size(H // 8) * 2) == H // 4
