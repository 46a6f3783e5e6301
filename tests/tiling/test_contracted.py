"""A region without what makes each row of the same row: proofs say the same of it."""

from __future__ import annotations

import random

import pytest

from patchconv_deploy.rewriters.tiling import network as networks
from patchconv_deploy.rewriters.tiling import proof, proof_any_height, rounds
from patchconv_deploy.rewriters.tiling.network import Link, Network, contracted
from patchconv_deploy.rewriters.tiling.patches import tile
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise, RowMap, Sliding, Transposed

_MAPS: tuple[RowMap, ...] = (
    Pointwise(),
    Pointwise(),
    Pointwise(),
    Sliding(1, 1),
    Sliding(1, 1, same="SAME_UPPER"),
    Sliding(3, 1, 1, 1),
    Sliding(5, 1, 2, 2),
    Sliding(3, 1, 0, 2),
    Sliding(2, 2),
    Sliding(3, 2, 1, 1),
    Transposed(2, 2),
)


def _network(seed: int) -> Network:
    """A random region of one input: chains, joins of what is as high, several outputs."""
    drawn = random.Random(seed)
    links, rows = list[Link](), [240]
    for _ in range(drawn.randint(2, 14)):
        source = drawn.randrange(len(rows))
        others = [at for at, each in enumerate(rows) if each == rows[source]]
        if drawn.random() < 0.4:
            reads = tuple(drawn.choice(others) for _ in range(drawn.randint(1, 3)))
            row_map: RowMap = Pointwise()
        else:
            reads, row_map = (source,), drawn.choice(_MAPS)
        links.append(Link(row_map, reads, (len(rows),)))
        rows.append(row_map.rows_out(rows[reads[0]]))
    read = {number for link in links for number in link.reads}
    outputs = [number for number in range(1, len(rows)) if number not in read]
    outputs += [drawn.randrange(1, len(rows))]
    return Network(len(rows), tuple(links), (0,), tuple(dict.fromkeys(outputs)))


def test_proofs_say_the_same() -> None:
    """At every height and at one, in rounds and in shares; steps and rows of what is left agree."""
    fewer = proven = refused = 0
    for seed in range(400):
        network = _network(seed)
        less = contracted(network)
        fewer += len(less.links) < len(network.links)
        step, short = networks.steps(network), networks.steps(less)
        assert isinstance(step, str) == isinstance(short, str)
        if isinstance(step, str) or isinstance(short, str):
            continue
        assert [step[n] for n in network.outputs] == [short[n] for n in less.outputs]
        assert step[0] == short[0]
        for prove, count in (
            (rounds.prove_rounds, 2),
            (rounds.prove_rounds, 7),
            (proof_any_height.prove_every_height, 3),
        ):
            found = prove(network, count)
            assert (found is None) == (prove(less, count) is None)
            proven += found is None
            refused += found is not None
        for rows in (16, 97):
            heights = networks.heights(network, [rows]), networks.heights(less, [rows])
            assert isinstance(heights[0], str) == isinstance(heights[1], str)
            if not isinstance(heights[0], str):
                tilings = [tile(proof.extents(each, [rows]), 4) for each in (network, less)]
                assert tilings[0] == tilings[1]
    assert fewer > 250
    assert proven > 500
    assert refused > 0


def test_what_makes_an_output_stays() -> None:
    """And what joins two tensors; numbers are those of what is left."""
    links = (
        Link(Sliding(3, 1, 1, 1), (0,), (1,)),
        Link(Pointwise(), (1,), (2,)),
        Link(Pointwise(), (2, 1), (3,)),
        Link(Pointwise(), (3, 0), (4,)),
        Link(Sliding(1, 1), (4,), (5,)),
        Link(Pointwise(), (5,), (6,)),
    )
    found = contracted(Network(7, links, (0,), (6,)))
    assert found == Network(
        4,
        (
            Link(Sliding(3, 1, 1, 1), (0,), (1,)),
            Link(Pointwise(), (1, 0), (2,)),
            Link(Pointwise(), (2,), (3,)),
        ),
        (0,),
        (3,),
    )


@pytest.mark.parametrize(
    "row_map", [Sliding(1, 1, 1, 0), Sliding(1, 2), Sliding(2, 1, 1, 0), Pointwise(margin=1)]
)
def test_what_only_looks_alike_stays(row_map: RowMap) -> None:
    """A row more, less or moved."""
    links = (Link(row_map, (0,), (1,)), Link(Pointwise(), (1,), (2,)))
    assert len(contracted(Network(3, links, (0,), (2,))).links) == 2
