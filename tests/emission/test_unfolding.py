"""Random transformers at free sizes, cut by the rows of the image that their sequence is."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph import unfolding
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.oracle import oracle_run
from tests.support.random_sequences import CHANNELS, Sequences, random_sequences
from tests.support.small_models import (
    assert_same_where_it_runs,
    copy_of,
    model,
    node,
    noise,
)
from tests.support.tiers import slow

# Sums of other lengths and orders, and a Softmax behind some.
REL = 5e-5

SIZES = ((4, 4), (8, 12), (12, 8), (44, 8), (64, 20), (100, 4))

# Attention's scores grow with the square of the image.
RANGES = {"x": ((1, 2), (3, 3), (4, 256), (4, 64))}

pytestmark = pytest.mark.usefixtures("less_weighed")


def _rewritten(made: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, bool]:
    """Cut a model; return it, and whether a sequence is in a region."""
    given: dict[str, Any] = {"splits": 7, "max_recompute": 5.0, "ranges": RANGES, **options}
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(**given))
    names = {name for cut in outcome.rewritten for name in cut.nodes}
    return outcome.model, any(not name.startswith("conv") for name in names)


def _compare(seed: int, *, matrices: bool = False, **options: Any) -> bool:
    images = bool(seed % 3 == 0)
    made = random_sequences(seed, images=images, matrices=matrices)
    after, within = _rewritten(made, **options)
    feeds = [
        {"x": noise(1 + (images and at % 2), 3, *size, seed=seed)} for at, size in enumerate(SIZES)
    ]
    assert assert_same_where_it_runs(made, after, feeds, REL) == len(SIZES)
    return within


@pytest.mark.parametrize("seeds", [range(12), slow(range(12, 400))])
def test_any_size(seeds: range) -> None:
    """In rounds, at six sizes, of one image and of two."""
    assert sum(_compare(seed) for seed in seeds) > 0.5 * len(seeds)


@pytest.mark.parametrize("seeds", [range(8), slow(range(8, 150))])
def test_rows_of_a_matrix(seeds: range) -> None:
    """Images and sequences in one dimension, as a Gemm has it."""
    assert sum(_compare(seed, matrices=True) for seed in seeds) > 0.4 * len(seeds)


@pytest.mark.parametrize("seed", [295, 311])
def test_sizes_that_are_asked_of_what_a_region_makes(seed: int) -> None:
    """A region that needs them would wait for itself: they are worked out from the inputs'."""
    assert _compare(seed)


@pytest.mark.parametrize("seeds", [range(4), slow(range(4, 150))])
def test_any_size_unrolled(seeds: range) -> None:
    """As many patches at every size, as TensorRT has to have them."""
    cut = [_compare(seed, form="fused", target="tensorrt", splits=3) for seed in seeds]
    assert sum(cut) > 0.2 * len(seeds)


@pytest.mark.parametrize("seeds", [range(4), slow(range(4, 100))])
def test_any_width(seeds: range) -> None:
    """Cut along the columns, whose sizes are given where rows are what is left."""
    assert sum(_compare(seed, axis="width") for seed in seeds) > 0.2 * len(seeds)


@pytest.mark.parametrize("seeds", [range(4), slow(range(4, 150))])
def test_budgets(seeds: range) -> None:
    """Whatever a budget chooses: some sequences are cut, others beside them not."""
    cut = 0
    for seed in seeds:
        share = random.Random(seed).uniform(0.3, 0.9)
        made = random_sequences(seed)
        before = rewrite_model(Loaded(copy_of(made), None), Options(splits=1, ranges=RANGES)).before
        try:
            after, _ = _rewritten(made, splits=None, memory_budget=int(before.need * share))
        except BudgetError:
            continue
        feeds = [{"x": noise(1, 3, *size, seed=seed)} for size in SIZES]
        assert_same_where_it_runs(made, after, feeds, REL)
        cut += 1
    assert cut > 0.4 * len(seeds)


@pytest.mark.parametrize("seeds", [range(6), slow(range(6, 200))])
def test_one_size(seeds: range) -> None:
    """At a fixed size, where a sequence stays one, and at a fixed width."""
    cut = 0
    for seed in seeds:
        width = (12, 8)[seed % 2]
        made = random_sequences(seed, size=((96, "H")[seed % 2], width))
        after, within = _rewritten(made, **({"ranges": {}} if seed % 2 == 0 else {}))
        heights = (96,) if seed % 2 == 0 else (4, 12, 44, 100)
        feeds = [{"x": noise(1, 3, each, width, seed=seed)} for each in heights]
        assert assert_same_where_it_runs(made, after, feeds, REL) == len(heights)
        cut += within
    assert cut > 0.3 * len(seeds)


@pytest.mark.parametrize("seeds", [range(3), slow(range(3, 60))])
def test_by_the_reference(seeds: range) -> None:
    """The second oracle: onnx's reference evaluator, to which a Loop without a condition is new."""
    for seed in seeds:
        made = random_sequences(seed)
        after, _ = _rewritten(made, form="fused", splits=3)
        for height, width in ((8, 12), (44, 8)):
            feeds = {"x": noise(1, 3, height, width, seed=seed)}
            (right,), (got,) = oracle_run(made, feeds), oracle_run(after, feeds)
            assert abs(right - got).max() <= REL * abs(right).max()


def _compare_one(made: Sequences, image: str, t: str) -> list[onnx.ModelProto]:
    """Bring a sequence back to its image, cut rows and columns, and compare; return both cuts."""
    back = made.conv(made.add("Relu", made.restored(t, image)))
    nodes = [*made.nodes, node("Conv", f"{back} {made.weight(2, CHANNELS, 1, 1)}", "y")]
    given = model(
        nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, made.weights, opset=made.opset
    )
    cuts = [_rewritten(given, axis=axis)[0] for axis in ("height", "width")]
    for after in cuts:
        feeds = [{"x": noise(1, 3, *size)} for size in SIZES]
        assert assert_same_where_it_runs(given, after, feeds, REL) == len(SIZES)
    return cuts


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_weights_over_channels_before_the_sequence(op: str) -> None:
    """Of [N, C, L] along C: the positions are its last dimension, but not what it is over."""
    made = Sequences(1, images=False)
    made.opset = 17
    image = made.conv("x")
    turned = made.add("Transpose", made.flattened(image), perm=[0, 2, 1])
    weights = made.add(op, turned, axis=1)
    for after in _compare_one(made, image, made.add("Transpose", weights, perm=[0, 2, 1])):
        # It is in a Loop's body, not left beside it.
        assert op not in {each.op_type for each in after.graph.node}


@pytest.mark.parametrize("seed", [1, 2])
def test_bounds_of_another_element_type(seed: int) -> None:
    """A Slice whose bounds have 32 bits: new axes of 64 would not go with them."""
    made = Sequences(seed, images=False)
    image = made.conv("x")
    t = made.activated(made.linear(made.flattened(image)))
    made.weights |= {
        name: np.array([number], np.int32)
        for name, number in {"first": 0, "last": CHANNELS // 2, "axis": 2}.items()
    }
    some = made.add("Slice", f"{t} first last axis")
    _compare_one(made, image, made.add("Concat", f"{some} {some}", axis=2))


@pytest.mark.parametrize("operator", ["Softmax", "LayerNormalization"])
def test_an_axis_that_is_counted_wrongly_is_caught(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a node works along the dimension that has the number of the folded one."""

    def wrong(at: Any) -> bool:
        read = [at.read(index) for index in range(len(at.node.input))]
        return bool(at.write([each.name for each in read], [read[0].layout]))

    monkeypatch.setattr(unfolding, "_RULES", {**unfolding._RULES, operator: wrong})
    along = onnx.helper.make_attribute("axis", 2)
    has = (
        seed
        for seed in range(400)
        if any(
            entry.op_type == operator and along in entry.attribute
            for entry in random_sequences(seed, images=bool(seed % 3 == 0)).graph.node
        )
    )
    with pytest.raises(Exception, match=r"off by|shape|dimension|Size"):
        list(map(_compare, islice(has, 16)))
