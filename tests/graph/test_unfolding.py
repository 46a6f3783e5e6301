"""Sequences that are images: how dimensions are matched, and what comes back as it was."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.unfolded import Part, reshaped
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.prepare import look_at
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.rewriters.tiling.sizes import Size
from tests.support.random_sequences import CHANNELS, Sequences, random_sequences
from tests.support.small_models import copy_of, model, node, noise

# A free size each, and what it is where it is tried: primes, so that no product is another one's.
TRIED = {"n": 7, "h": 11, "w": 13, "v": 17}


def _size(part: int | str) -> Size:
    return Size.number(part) if isinstance(part, int) else Size.free(part)


def _number(part: Part) -> int:
    assert part is not None
    return part.constant if part.constant is not None else TRIED[part.symbol]


@st.composite
def _reshapes(draw: st.DrawFn) -> tuple[list[Part], list[Part], list[int]]:
    """Draw sizes, and what neighbours of them are put together to and taken apart to."""
    free = draw(st.permutations(list(TRIED)))[: draw(st.integers(1, 4))]
    numbers = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), max_size=4))
    given: list[int | str] = [*free, *numbers]
    x = draw(st.permutations(given))
    y: list[Part] = []
    sizes: list[int] = []
    at = 0
    while at < len(x):
        end = draw(st.integers(at + 1, len(x)))
        parts = [_size(part) for part in x[at:end]]
        product = prod(_number(part) for part in parts)
        symbols = [part for part in parts if part.constant is None]
        if not symbols and product % 2 == 0 and draw(st.booleans()):
            y += [Size.number(2), Size.number(product // 2)]
            sizes += [2, product // 2]
        else:
            known = symbols[0] if len(parts) == 1 and symbols else None
            y.append(Size.number(product) if not symbols else known)
            sizes.append(product)
        at = end
    if draw(st.booleans()):
        place = draw(st.integers(0, len(y)))
        y.insert(place, Size.number(1))
        sizes.insert(place, 1)
    return [_size(part) for part in x], y, sizes


@given(_reshapes())
@settings(max_examples=600, deadline=None, derandomize=True)
def test_every_dimension_is_made_of_those_in_its_place(
    drawn: tuple[list[Part], list[Part], list[int]],
) -> None:
    """Those of one dimension have its product, and as many numbers before them."""
    x, y, sizes = drawn
    made = reshaped(x, y)
    if made is None:
        # Only one size may follow from the others.
        assert y.count(None) > 1
        return
    for at, those in enumerate(made):
        part = y[at]
        if part is not None and part.constant is not None:
            continue
        assert list(those) == sorted(those)
        assert prod(_number(x[each]) for each in those) == sizes[at]
        before = prod(_number(part) for part in x[: those[0]])
        assert before == prod(sizes[:at])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (["h", "w"], ["w", "h"]),
        (["h", 6, "w"], ["h", 4, "w"]),
        (["h", "w"], [None, None]),
        ([2, "h"], ["h", 3]),
        (["h", "w"], ["h"]),
    ],
)
def test_what_is_not_matched(x: list[int | str], y: list[int | str | None]) -> None:
    """Sizes in another order, of another product, or two that are left open."""
    wanted = [None if part is None else _size(part) for part in y]
    assert reshaped([_size(part) for part in x], wanted) is None


def test_what_nothing_is_cut_of_comes_back() -> None:
    """Its sequences are written as images to be looked at, and as they were in the file."""
    unfolded = 0
    for seed in range(8):
        made = random_sequences(seed)
        as_it_was = made.SerializeToString()
        unfolded += bool(_entries(copy_of(made)))
        outcome = rewrite_model(Loaded(made, None), Options(splits=1))
        assert not outcome.rewritten
        assert outcome.model.SerializeToString() == as_it_was
    assert unfolded > 5


def test_sizes_that_are_asked_of_a_sequence_are_known() -> None:
    """At assumed sizes every tensor has one: a product of two where it was folded."""
    asked = 0
    for seed in range(12):
        made = random_sequences(seed)
        facts = look_at(Loaded(made, None), Options(splits=2)).facts
        assert not facts.unsized
        asked += any(each.op_type == "ReduceProd" for each in facts.certain.graph.node)
    assert asked


def _entries(made: onnx.ModelProto) -> list[str]:
    facts = look_at(Loaded(made, None), Options(splits=2)).facts
    return [entry.label for entry in facts.respelled.entries if entry.section]


def test_a_classifier_has_no_sequence() -> None:
    """What is folded for a product over all of it stays as it is."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Reshape", "c flat", "f"),
        node("MatMul", "f v", "y"),
    ]
    weights = {"w": noise(4, 3, 3, 3), "v": noise(64, 5), "flat": np.array([1, -1])}
    assert not _entries(model(nodes, {"x": (1, 3, "H", "W")}, {"y": (1, 5)}, weights))


def test_of_one_free_size_nothing_is_unfolded() -> None:
    """Rows of a known width are rows of the sequence: they are cut without."""
    made = Sequences(1, images=False)
    image = made.conv("x")
    back = made.restored(made.linear(made.flattened(image)), image)
    nodes = [*made.nodes, node("Conv", f"{back} {made.weight(2, CHANNELS, 1, 1)}", "y")]
    for dims, within in (((1, 3, "H", 12), False), ((1, 3, "H", "W"), True)):
        assert bool(_entries(model(nodes, {"x": dims}, {"y": (None,) * 4}, made.weights))) is within


def test_a_scale_of_each_element_stays() -> None:
    """What normalises is scaled by a sequence: it has to have the same dimensions."""
    for each in (False, True):
        made = Sequences(1, images=False)
        made.opset = 17
        image = made.conv("x")
        t = made.linear(made.flattened(image))
        by = made.linear(t) if each else made.weight(CHANNELS)
        scaled = made.add("LayerNormalization", f"{t} {by}")
        back = made.restored(scaled, image)
        nodes = [*made.nodes, node("Identity", back, "y")]
        labels = _entries(model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, made.weights))
        assert (scaled in labels) is not each


def test_names_that_new_ones_would_have() -> None:
    """A tensor of the model is called what the one before it would be called as an image."""
    made = Sequences(1, images=False)
    image = made.conv("x")
    first = made.linear(made.flattened(image))
    second = made.activated(first)
    made.nodes[-1].output[0] = f"{first}/unfolded"
    keys = made.add("Transpose", f"{first}/unfolded", perm=[0, 2, 1])
    scores = made.add("MatMul", f"{first} {keys}")
    back = made.restored(made.add("MatMul", f"{scores} {first}/unfolded"), image)
    nodes = [*made.nodes, node("Identity", back, "y")]
    entries = _entries(model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, made.weights))
    assert second in entries


@pytest.mark.parametrize("operator", ["Concat", "Gather", "Transpose"])
def test_a_node_that_cannot_run_stays(operator: str) -> None:
    """Along a dimension that is not there: said by whoever runs the model, and no defect here."""
    made = Sequences(1, images=False)
    image = made.conv("x")
    t = made.linear(made.flattened(image))
    made.weights["scalar"] = np.array(3, np.float32)
    attributes = {"perm": [0, 5, 1]} if operator == "Transpose" else {"axis": 0}
    read = t if operator == "Transpose" else f"scalar {t}"
    wrong = made.add(operator, read, **attributes)
    nodes = [*made.nodes, node("Identity", wrong, "y")]
    labels = _entries(model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, made.weights))
    assert t in labels
    assert wrong not in labels
