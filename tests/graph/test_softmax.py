"""Softmax over an image, written in two and cut: global context, soft-argmax.

The truth is the original in float64, run by the ONNX reference evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.graph import softmax, statistics
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.respelling import respell
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.statistics import Statistic, find_statistics
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.float64 import in_double
from tests.support.oracle import oracle_run
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise, run, value

pytestmark = pytest.mark.usefixtures("less_weighed")

_DIMS = (2, 3, 6, 5)


def _model(
    flat: Sequence[int] = (2, 3, 30),
    *,
    dims: Sequence[int | str] = _DIMS,
    axis: int | None = -1,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    outputs: str = "y",
) -> onnx.ModelProto:
    given = {} if axis is None else {"axis": axis}
    nodes = [node("Reshape", "x flat", "f"), node("Softmax", "f", "y", name="softmax", **given)]
    ends = [value(name, flat, kind) for name in outputs.split()]
    weights = {"flat": np.asarray(flat)}
    return model(nodes, [value("x", dims, kind)], ends, weights, opset=opset)


def _found(made: onnx.ModelProto, axis: int = 2) -> list[Statistic]:
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    return find_statistics(facts.certain, {"x": axis})


def _in_two(made: onnx.ModelProto, axis: int = 2) -> onnx.ModelProto:
    (entry,) = _found(made, axis)
    changed = copy_of(made)
    respell(changed.graph, [entry])
    onnx.checker.check_model(changed, full_check=True)
    return changed


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 23])
@pytest.mark.parametrize("dims", [(2, 3, 6, 5), (1, 1, 6, 5), (2, 1, 6, 5), (2, 3, 4, 6, 5)])
def test_in_double(dims: Sequence[int], opset: int) -> None:
    """Channels by themselves, images and volumes, any axis of them cut."""
    flat = (*dims[:2], int(np.prod(dims[2:])))
    made = _model(flat, dims=dims, axis=2, opset=opset, kind=TensorProto.DOUBLE)
    x = 5 * noise(*dims, dtype=np.float64)
    truth = np.exp(x) / np.exp(x).sum(tuple(range(2, len(dims))), keepdims=True)
    for axis in range(2, len(dims)):
        got = oracle_run(_in_two(made, axis), {"x": x})[0]
        np.testing.assert_allclose(got, truth.reshape(flat), rtol=1e-12)


def test_channels_together() -> None:
    """Over channels and image, and of what more dimensions were put to."""
    x = 5 * noise(*_DIMS, dtype=np.float64)
    for flat in ((2, 1, 3, 30), (6, 30)):
        made = _model(flat, kind=TensorProto.DOUBLE)
        truth = np.exp(x) / np.exp(x).sum((2, 3), keepdims=True)
        got = oracle_run(_in_two(made), {"x": x})[0]
        np.testing.assert_allclose(got, truth.reshape(flat), rtol=1e-12)


@pytest.mark.parametrize(
    ("why", "made"),
    [
        ("over another dimension", _model(axis=1)),
        ("of channels as well, without any before them", _model((2, 90))),
        ("before opset 13 over all that is behind", _model(axis=1, opset=11)),
        ("over a part of the image", _model((2, 18, 5))),
        ("at a free size", _model((2, 3, 30), dims=(2, 3, "H", 5))),
    ],
)
def test_refusals(why: str, made: onnx.ModelProto) -> None:
    """What is not known to be over the image stays."""
    assert _found(made) == [], why


def test_what_another_reads_stays() -> None:
    """Where the reshaped image is read by others, or given, it is still made."""
    made = _model(outputs="y f")
    changed = _in_two(made)
    assert_same(made, changed, {"x": noise(*_DIMS)}, rel=1e-6)


_LARGE = (1, 4, 96, 80)


def _large(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    return _model((1, 4, 96 * 80), dims=_LARGE, kind=kind)


_IMAGES = 8

# What two exponentials, a product, sums and a division may be off by together, each by half a unit
# of 2**-23 and more. The original and what is written in its place are off by 0.4 to 1; which of
# them is nearer depends on the processor and on the numbers.
_ROUNDINGS = 1.25


def _masked(x: Array) -> Array:
    return np.where(x > 2, x, -1e9)


def _errors(models: Sequence[onnx.ModelProto], draw: Callable[[Array], Array]) -> list[float]:
    """Return how far each model is off the truth, in units of 2**-23 of the largest weight.

    The root mean square over images and channels of the worst weight: the worst of all is luck.
    """
    squares = np.zeros(len(models))
    for seed in range(_IMAGES):
        x = draw(noise(*_LARGE, seed=seed)).astype(np.float32)
        wide = x.astype(np.float64)
        powers = np.exp(wide - wide.max((2, 3), keepdims=True))
        truth = (powers / powers.sum((2, 3), keepdims=True)).reshape(1, 4, -1)
        for at, each in enumerate(models):
            error = np.abs(run(each, {"x": x})["y"] - truth).max(2) / truth.max(2)
            squares[at] += np.mean(np.square(error / np.finfo(np.float32).eps))
    return [float(each) for each in np.sqrt(squares / _IMAGES)]


@pytest.mark.parametrize(
    "draw",
    [lambda x: x, lambda x: 30 * x, lambda x: 1e4 + x, _masked],
    ids=["normal", "sharp", "far from zero", "masked"],
)
def test_accuracy(draw: Callable[[Array], Array]) -> None:
    """As near to the truth as the original, in ONNX Runtime; weights relative to their largest."""
    made = _large()
    before, after = _errors([made, _in_two(made)], draw)
    assert after <= max(1.5 * before, _ROUNDINGS)


def test_a_sum_put_into_the_exponent_shows() -> None:
    """A planted fault: exp(off - log(sum)) is the same on paper, and off by a rounding more."""
    made = _large()
    changed = _in_two(made)
    nodes = {each.name.rsplit("/", 1)[-1]: each for each in changed.graph.node}
    off, exp, div = nodes["off"], nodes["exp"], nodes["y"]
    log = node("Log", div.input[1], "log")
    less = node("Sub", f"{off.output[0]} log", "less")
    last = node("Exp", "less", div.output[0])
    at = list(changed.graph.node).index(exp)
    for each in (exp, div):
        changed.graph.node.remove(each)
    for each in (last, less, log):
        changed.graph.node.insert(at, each)
    onnx.checker.check_model(changed, full_check=True)
    before, after = _errors([made, changed], _masked)
    assert after > max(1.5 * before, _ROUNDINGS)


def test_half_precision() -> None:
    """Sums are made in float32."""
    made = _large(TensorProto.FLOAT16)
    x = (5 * noise(*_LARGE)).astype(np.float16)
    powers = np.exp(x.astype(np.float64))
    truth = (powers / powers.sum((2, 3), keepdims=True)).reshape(1, 4, -1)
    before, after = (
        float(np.abs(run(each, {"x": x})["y"] - truth).max()) for each in (made, _in_two(made))
    )
    assert after <= 1.5 * before


def test_rows_that_are_masked_as_a_whole() -> None:
    """Minus infinity adds nothing; where all of an image is, both give no number."""
    made = _model()
    x = noise(*_DIMS)
    x[:, :, 1:3] = -np.inf
    x[0, 0, :, 2] = -np.inf
    assert_same(made, _in_two(made), {"x": x}, rel=1e-6)
    x[1, 2] = -np.inf
    before, after = (run(each, {"x": x})["y"] for each in (made, _in_two(made)))
    np.testing.assert_array_equal(np.isnan(before), np.isnan(after))


# --- cut --------------------------------------------------------------------------------------

_ROWS, _COLUMNS = 64, 24


def _soft_argmax() -> onnx.ModelProto:
    """Where a heat map has its weight: the mean of coordinates."""
    pixels = _ROWS * _COLUMNS
    nodes = [
        node("Conv", "x w0", "c", name="conv", pads=[1] * 4),
        node("Relu", "c", "r", name="relu"),
        node("Conv", "r w1", "heat", name="heat", pads=[1] * 4),
        node("Reshape", "heat flat", "f", name="flatten"),
        node("Softmax", "f", "s", name="softmax", axis=2),
        node("Reshape", "s back", "p", name="back"),
        node("Mul", "p across", "px", name="by_column"),
        node("ReduceSum", "px space", "y", name="mean_column", keepdims=0),
        node("Mul", "p along", "py", name="by_row"),
        node("ReduceSum", "py space", "z", name="mean_row", keepdims=0),
    ]
    weights = {
        "w0": noise(8, 3, 3, 3) / 5,
        "w1": noise(8, 8, 3, 3, seed=1) / 4,
        "flat": np.array([1, 8, pixels]),
        "back": np.array([1, 8, _ROWS, _COLUMNS]),
        "across": np.arange(_COLUMNS, dtype=np.float32).reshape(1, 1, 1, -1),
        "along": np.arange(_ROWS, dtype=np.float32).reshape(1, 1, -1, 1),
        "space": np.array([2, 3]),
    }
    ends = {"y": (1, 8), "z": (1, 8)}
    return model(nodes, {"x": (1, 3, _ROWS, _COLUMNS)}, ends, weights)


def _global_context() -> onnx.ModelProto:
    """Pixels weighed by a Softmax over all of them, and their mean added to each."""
    pixels = _ROWS * _COLUMNS
    nodes = [
        node("Conv", "x w0", "c", name="conv", pads=[1] * 4),
        node("Relu", "c", "r", name="relu"),
        node("Conv", "r w1", "mask", name="mask"),
        node("Reshape", "mask one", "f", name="flatten"),
        node("Softmax", "f", "s", name="softmax", axis=2),
        node("Reshape", "s back", "p", name="back"),
        node("Mul", "r p", "weighed", name="weighed"),
        node("ReduceSum", "weighed space", "context", name="context", keepdims=1),
        node("Conv", "context w2", "t", name="transform"),
        node("Add", "r t", "g", name="added"),
        node("Conv", "g w3", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "w0": noise(8, 3, 3, 3) / 5,
        "w1": noise(1, 8, 1, 1, seed=1),
        "w2": noise(8, 8, 1, 1, seed=2) / 3,
        "w3": noise(3, 8, 3, 3, seed=3) / 8,
        "one": np.array([1, 1, pixels]),
        "back": np.array([1, 1, _ROWS, _COLUMNS]),
        "space": np.array([2, 3]),
    }
    dims = (1, 3, _ROWS, _COLUMNS)
    return model(nodes, {"x": dims}, {"y": dims}, weights)


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    given = {"splits": 4, "max_recompute": 3.0, **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(**given))


def _feeds() -> dict[str, Array]:
    return {"x": noise(1, 3, _ROWS, _COLUMNS)}


_MADE = [_soft_argmax(), _global_context()]


@pytest.mark.parametrize("made", _MADE, ids=["soft-argmax", "global context"])
@pytest.mark.parametrize("form", ["fused", "shrinking"])
def test_it_is_cut(made: onnx.ModelProto, form: str) -> None:
    """The plan that a search takes: a lower peak, the original's numbers."""
    done = _cut(made, form=form)
    assert done.after.bytes < 0.9 * done.before.bytes
    assert any("softmax" in name for region in done.rewritten for name in region.nodes)
    assert_same(made, done.model, _feeds(), rel=2e-5)


@pytest.mark.parametrize("made", _MADE, ids=["soft-argmax", "global context"])
def test_cut_it_is_as_near_to_the_truth(made: onnx.ModelProto) -> None:
    """Errors against float64 of the cut model: at most half as much again as the original's."""
    done = _cut(made)
    names = [each.name for each in made.graph.output]
    errors = {name: [0.0, 0.0] for name in names}
    for seed in range(8):
        x = noise(1, 3, _ROWS, _COLUMNS, seed=seed)
        truth = dict(zip(names, oracle_run(in_double(made), {"x": x.astype(float)}), strict=True))
        for at, each in enumerate((made, done.model)):
            got = run(each, {"x": x})
            for name in names:
                error = float(np.abs(got[name] - truth[name]).max())
                errors[name][at] = max(errors[name][at], error)
    for before, after in errors.values():
        assert after <= 1.5 * before


def test_sums_that_are_not_brought_to_one_maximum_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: each row's sum counts as it is, whatever the row's largest."""
    right = softmax.softmax

    def wrong(*given: Any) -> Any:
        made = right(*given)
        if made is not None:
            for each in made[1].nodes:
                if each.name.endswith("/weighed"):
                    each.op_type = "Max"
        return made

    made = _global_context()
    monkeypatch.setitem(statistics._SPELLED, "Softmax", (wrong,))
    done = _cut(made)
    assert done.rewritten
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, done.model, _feeds(), rel=2e-5)
