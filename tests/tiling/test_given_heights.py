"""Heights that are given bound what has to be proven, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
import pytest

from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.free_sizes import FreeSizes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.rewriters.tiling import rounds
from patchconv_deploy.rewriters.tiling.network import Link, Network
from patchconv_deploy.rewriters.tiling.proof_any_height import prove_every_height
from patchconv_deploy.rewriters.tiling.row_maps import Periodic, Pointwise, Sliding
from patchconv_deploy.rewriters.tiling.sizes import Size
from tests.support.small_models import assert_same, copy_of, model, node, noise


def _doubled_and_joined() -> Network:
    """Half the rows, doubled again and joined to a skip that is read first: wrong at one row."""
    twice = Periodic(1, 2, (0, 0), (1, 1))
    links = (
        Link(Sliding(3, 2, 1, 1), (0,), (1,)),
        Link(twice, (1,), (2,)),
        Link(Pointwise(), (0, 2), (3,)),
    )
    return Network(4, links, (0,), (3,))


def test_a_join_that_fails_at_one_row_alone() -> None:
    """From two rows on it is proven, in shares and in rounds."""
    network = _doubled_and_joined()
    for found in (prove_every_height(network, 4), rounds.prove_rounds(network, 8)):
        assert found is not None
        assert found.startswith("at 1 rows")
    for least in (2, 64):
        given = replace(network, least=least, most=512)
        assert prove_every_height(given, 4) is None
        assert rounds.prove_rounds(given, 8) is None


def test_heights_inside_are_still_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault, at one height: seen from below it, not from above."""
    network = Network.chain([Sliding(3, 1, 1, 1)] * 3)
    tile = rounds.tile_rounds

    def wrong(outs: Any, stride: int) -> Any:
        if outs[0].rows != 70:
            return tile(outs, stride)
        made = tile(outs, stride)
        return replace(made, patches=made.patches[:-1])

    monkeypatch.setattr(rounds, "tile_rounds", wrong)
    for least, most, seen in ((64, 512, True), (70, 70, True), (71, 512, False), (1, 69, False)):
        given = replace(network, least=least, most=most)
        rounds.prove_rounds.cache_clear()
        assert (rounds.prove_rounds(given, 16) is not None) == seen
    rounds.prove_rounds.cache_clear()


def test_as_many_heights_from_the_least_on() -> None:
    """Where the least is beyond those that are walked, they are walked from there."""
    network = Network.chain([Sliding(3, 1, 1, 1)])
    assert list(replace(network, least=1000).within(range(3, 7))) == [1000, 1001, 1002, 1003]
    assert list(replace(network, least=2, most=4).within(range(3, 7))) == [3, 4]
    assert network.within(range(3, 7)) == range(3, 7)
    tall = rounds.effort(network, 512)
    assert rounds.effort(replace(network, least=64, most=128), 512) < tall / 20


def test_the_range_of_a_size() -> None:
    """Of a half, rounded up, of what is given for the whole; of two inputs where both are."""
    h = Size.free("H")
    more = h + 1
    assert more is not None
    half = more // 2
    free = FreeSizes({"x": (None, h), "mask": (h, None)}, {}, {}, {})
    given = free.within({"x": ((1, 1), (64, 513)), "mask": ((1, 300), (5, 5))})
    assert given.range_of(h) == (64, 300)
    assert given.range_of(half) == (32, 150)
    assert given.range_of(Size.number(3)) is None
    assert free.range_of(h) is None


def _deep(levels: int = 6) -> onnx.ModelProto:
    """Halved and doubled as often: steps of so many rows that tall patches cost much to prove."""
    weights = {"wu": noise(4, 4, 2, 2) / 2, "first": noise(16, 4, 3, 3) / 6}
    nodes, last = [node("Conv", "x first", "p", name="first", pads=[1] * 4)], "p"
    for k in range(levels):
        weights[f"d{k}"] = noise(4, 4 if k else 16, 3, 3) / 6
        down = {"pads": [1] * 4, "strides": [2, 2]}
        nodes.append(node("Conv", f"{last} d{k}", f"a{k}", name=f"down{k}", **down))
        nodes.append(node("Relu", f"a{k}", f"b{k}"))
        last = f"b{k}"
    for k in range(levels):
        weights[f"u{k}"] = noise(4, 4, 3, 3) / 6
        nodes.append(node("ConvTranspose", f"{last} wu", f"c{k}", name=f"up{k}", strides=[2, 2]))
        nodes.append(node("Conv", f"c{k} u{k}", f"e{k}", name=f"mixed{k}", pads=[1] * 4))
        last = f"e{k}"
    nodes.append(node("Identity", last, "y"))
    return model(nodes, {"x": (1, 4, "H", 8)}, {"y": (None,) * 4}, weights)


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(Loaded(copy_of(made), None), Options(**options))


def test_patches_that_are_too_tall_to_prove_at_every_height() -> None:
    """At those that are given they are proven; that the others are not is said."""
    made, tall = _deep(), 64 * 150
    whole = {
        "nodes": [each.name or each.output[0] for each in made.graph.node],
        "outputs": ["y"],
        "form": "rounds",
        "splits": 2,
        "patch_rows": tall,
    }
    plan = {"version": 2, "axis": "height", "order": "file", "regions": [whole]}
    fixed = ((1, 1), (4, 4)), ((8, 8),)
    with pytest.raises(OptionError, match="cannot be cut into patches of 9600 rows"):
        _cut(made, plan=plan, ranges={"x": (*fixed[0], (1, 20000), *fixed[1])})
    outcome = _cut(made, plan=plan, ranges={"x": (*fixed[0], (19000, 20000), *fixed[1])})
    (cut,) = outcome.rewritten
    assert isinstance(cut.plan, RegionPlan)
    assert cut.plan.patch_rows == tall
    assert "proven where its input has 19000 to 20000 rows" in cut.notes[-1]
    for height in (19008, 19968):
        assert_same(made, outcome.model, {"x": noise(1, 4, height, 8)}, 1e-5)


def test_nothing_is_said_where_every_height_is_proven() -> None:
    """A range is no bound on what is right."""
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Conv", "p b", "y", name="second", pads=[1] * 4),
    ]
    weights = {"a": noise(16, 3, 3, 3) / 3, "b": noise(2, 16, 3, 3) / 9}
    made = model(nodes, {"x": (1, 3, "H", 8)}, {"y": (None,) * 4}, weights)
    outcome = _cut(made, splits=4, ranges={"x": ((1, 1), (3, 3), (64, 512), (8, 8))})
    (cut,) = outcome.rewritten
    assert not cut.notes
    for height in (1, 2, 63, 512, 700):
        assert_same(made, outcome.model, {"x": noise(1, 3, height, 8)}, 2e-6)
