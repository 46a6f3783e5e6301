"""Inputs without elements: no images, or a free width that a layer cuts down to nothing.

Reshape cannot work out a -1 for such a tensor, and a 0 in its shape copies a size; so what is
emitted has to state sizes in a way that is right there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.emission.opset_nodes import add_unsqueeze
from tests.support.small_models import (
    FP32,
    assert_same,
    chain,
    cut,
    model,
    node,
    noise,
    operators,
    run,
)

pytestmark = pytest.mark.usefixtures("less_weighed")

every_form = pytest.mark.parametrize("form", FORMS)

slow = pytest.mark.slow

opsets = pytest.mark.parametrize(
    "opset", [9, pytest.param(11, marks=slow), 13, 17, pytest.param(21, marks=slow)]
)


def at_opset(made: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model at another opset; its operators are the same there."""
    made.opset_import[0].version = opset
    made.ir_version = 5 if opset < 11 else 8
    return made


def narrowed(dims: Sequence[int | str], opset: int) -> onnx.ModelProto:
    """Make Conv, Relu, Slice from column 4 on, Relu."""
    weights: dict[str, Any] = {"w": noise(2, 2, 3, 3)}
    if opset < 10:
        crop = node("Slice", "r", "t", name="crop", axes=[3], starts=[4], ends=[1 << 40])
    else:
        crop = node("Slice", "r s e a", "t", name="crop")
        weights |= {"s": np.array([4]), "e": np.array([1 << 40]), "a": np.array([3])}
    nodes = [
        node("Conv", "x w", "c", name="conv", pads=[1] * 4),
        node("Relu", "c", "r", name="relu"),
        crop,
        node("Relu", "t", "y", name="last"),
    ]
    made = model(nodes, {"x": tuple(dims)}, {"y": (None,) * 4}, weights)
    return at_opset(made, opset)


def upsampled(dims: Sequence[int | str], opset: int) -> onnx.ModelProto:
    """Make one ConvTranspose, twice the size: worth a loop at any size."""
    up = node("ConvTranspose", "x w", "y", name="up", strides=[2, 2], pads=[1] * 4)
    made = model([up], {"x": tuple(dims)}, {"y": (None,) * 4}, {"w": noise(2, 3, 4, 4)})
    return at_opset(made, opset)


def assert_same_at(
    made: onnx.ModelProto, form: str, empty: Sequence[Sequence[int]], full: Sequence[int]
) -> None:
    """Cut a model; it runs as the original on inputs that leave outputs empty, and on a full one.

    At opsets and sizes where the form has nothing to cut, the test is skipped.
    """
    outcome = cut(made, form)
    if not outcome.rewritten:
        pytest.skip("this form cuts nothing here")
    for dims in empty:
        assert run(made, {"x": noise(*dims)})["y"].size == 0
        assert_same(made, outcome.model, {"x": noise(*dims)})
    assert_same(made, outcome.model, {"x": noise(*full)}, FP32)


@every_form
@opsets
@pytest.mark.parametrize(
    "dims", [("n", 2, "h", "w"), ("n", 2, 16, "w"), ("n", 2, 16, 10)], ids=["nhw", "nw", "n"]
)
def test_no_images(form: str, opset: int, dims: Sequence[int | str]) -> None:
    """A free batch of 0, with free and with known heights and widths."""
    made = at_opset(chain(3, dims), opset)
    assert_same_at(made, form, [(0, 2, 16, 10)], (2, 2, 16, 10))


@every_form
@opsets
@pytest.mark.parametrize(
    "dims",
    [("n", 2, "h", "w"), ("n", 2, 16, "w"), (1, 2, "h", "w"), (1, 2, 16, 4)],
    ids=["nhw", "nw", "hw", "fixed"],
)
def test_no_columns_inside(form: str, opset: int, dims: Sequence[int | str]) -> None:
    """A width that a Slice inside the region empties, and no images as well."""
    full = (2 if dims[0] == "n" else 1, 2, 16, 9 if dims[3] == "w" else 4)
    empty = [(1, 2, 16, 4)] + ([(0, 2, 16, 4), (0, 2, 16, 9)] if dims[0] == "n" else [])
    assert_same_at(narrowed(dims, opset), form, empty, full)


# A free height takes the search longer: by default at the oldest opset and the newest alone.
@every_form
@pytest.mark.parametrize(
    ("dims", "opset"),
    [
        *((("n", 2, 16, 10), opset) for opset in (9, 13, 17)),
        *((("n", 2, "h", "w"), opset) for opset in (9, 17)),
        pytest.param(("n", 2, "h", "w"), 13, marks=slow),
        *(
            pytest.param(dims, opset, marks=slow)
            for dims in (("n", 2, 16, 10), ("n", 2, "h", "w"))
            for opset in (11, 21)
        ),
    ],
)
def test_no_images_upsampled(form: str, opset: int, dims: Sequence[int | str]) -> None:
    """One ConvTranspose: cut by every form."""
    assert_same_at(upsampled(dims, opset), form, [(0, 2, 16, 10)], (2, 2, 16, 10))


def test_batch_of_free_sizes_states_no_unknown() -> None:
    """The batch form at free sizes asks Reshape for no -1, which no empty tensor allows."""
    outcome = cut(chain(1, ("n", 2, "h", "w")), "batch")
    reshapes = [entry for entry in outcome.model.graph.node if entry.op_type == "Reshape"]
    weights = {tensor.name: tensor for tensor in outcome.model.graph.initializer}
    assert reshapes
    assert "Unsqueeze" in operators(outcome.model)
    for entry in reshapes:
        target = weights.get(entry.input[1])
        assert target is None or -1 not in onnx.numpy_helper.to_array(target)


@opsets
def test_unsqueeze_is_spelled_for_the_opset(opset: int) -> None:
    """Axes are an attribute up to opset 12, an input after that."""
    fragment = Fragment("x", opset, NameScheme("t"))
    add_unsqueeze(fragment, fragment.outer("x"), 0, "first")
    (made,), constants = fragment.export()
    assert [a.name for a in made.attribute] == (["axes"] if opset < 13 else [])
    assert len(made.input) == (1 if opset < 13 else 2)
    assert len(constants) == (0 if opset < 13 else 1)
