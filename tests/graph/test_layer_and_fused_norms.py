"""LayerNormalization over an image, and ONNX Runtime's own normalisations, written in two and cut.

LayerNormalization runs under ONNX Runtime and, in float64, under onnx's reference evaluator.
GroupNorm and SkipGroupNorm have no kernel in ONNX Runtime's CPU provider: what is written in their
place is run there, and compared with their definition in numpy, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.respelling import respell
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.statistic_nodes import moments_by_row
from patchconv_deploy.rewriters.graph.statistics import Statistic, find_statistics
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.float64 import in_double
from tests.support.oracle import oracle_run
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise, run, value

_DIMS = (2, 4, 6, 5)

# As an attribute holds it.
_EPSILON = float(np.float32(1e-3))


def _found(made: onnx.ModelProto, axis: int) -> list[Statistic]:
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    return find_statistics(facts.certain, {"x": axis})


def _in_two(made: onnx.ModelProto, axis: int = 2) -> onnx.ModelProto:
    (entry,) = _found(made, axis)
    changed = copy_of(made)
    respell(changed.graph, [entry])
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _layer(
    scale: Sequence[int],
    *,
    dims: Sequence[int | str] = _DIMS,
    axis: int = 1,
    bias: bool = True,
    kind: int = TensorProto.FLOAT,
    outputs: str = "y",
) -> onnx.ModelProto:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    weights = {"g": (1 + noise(*scale) / 4).astype(dtype)}
    if bias:
        weights["b"] = noise(*scale, seed=1).astype(dtype)
    made = node(
        "LayerNormalization",
        "x g b" if bias else "x g",
        outputs,
        name="norm",
        axis=axis,
        epsilon=_EPSILON,
    )
    ends = [value(name, (None,) * len(dims)) for name in outputs.split() if name != "y"]
    ends = [value("y", (None,) * len(dims), kind), *ends]
    return model([made], [value("x", dims, kind)], ends, weights)


def _truth(made: onnx.ModelProto, x: Array) -> Array:
    """Return LayerNormalization's definition in float64."""
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in _weights(made)}
    (norm,) = made.graph.node
    axis = next(each.i for each in norm.attribute if each.name == "axis")
    over = tuple(range(axis % x.ndim, x.ndim))
    wide = x.astype(np.float64)
    off = wide - wide.mean(over, keepdims=True)
    variance = np.mean(off**2, over, keepdims=True)
    normal = off / np.sqrt(variance + _EPSILON) * weights["g"]
    made_of: Array = normal + weights.get("b", 0.0)
    return made_of


def _weights(made: onnx.ModelProto) -> list[onnx.TensorProto]:
    return list(made.graph.initializer)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("axis", "scale"),
    [(1, (4, 6, 5)), (1, (4, 1, 1)), (1, (1, 6, 5)), (1, (6, 5)), (2, (6, 5)), (-2, (1, 5))],
)
def test_layer_normalisation(axis: int, scale: Sequence[int], bias: bool) -> None:
    """Over channels and image, over the image alone; a factor for each element or fewer."""
    x = 3 + noise(*_DIMS, dtype=np.float64)
    for tiled in (2, 3) if len(scale) == 3 else (2,):
        made = _layer(scale, axis=axis, bias=bias, kind=TensorProto.DOUBLE)
        got = oracle_run(_in_two(made, tiled), {"x": x})[0]
        np.testing.assert_allclose(got, _truth(made, x), rtol=1e-11, atol=1e-12)


def test_layer_normalisation_of_other_ranks() -> None:
    """A signal, a volume, an image whose channels are last."""
    for dims, tiled in (((2, 4, 12), 2), ((2, 3, 4, 5, 6), 2), ((2, 3, 4, 5, 6), 3), (_DIMS, 1)):
        x = 3 + noise(*dims, dtype=np.float64)
        made = _layer(dims[1:], dims=dims, kind=TensorProto.DOUBLE)
        got = oracle_run(_in_two(made, tiled), {"x": x})[0]
        np.testing.assert_allclose(got, _truth(made, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("free", ["N", "H", "W", "NHW"])
def test_layer_normalisation_at_free_sizes(free: str) -> None:
    """Whatever is free, as far as the factors allow it."""
    sizes = [n if n in free else size for n, size in zip("NCHW", _DIMS, strict=True)]
    made = _layer((4, 1, 1), dims=sizes, kind=TensorProto.DOUBLE)
    x = 3 + noise(*_DIMS, dtype=np.float64)
    got = oracle_run(_in_two(made), {"x": x})[0]
    np.testing.assert_allclose(got, _truth(made, x), rtol=1e-11, atol=1e-12)


def _worst(made: onnx.ModelProto, x: Any) -> tuple[float, float]:
    """Return how far the original and what is written in two are off the truth at most."""
    changed, errors = _in_two(made), [0.0, 0.0]
    for seed in range(4):
        given = x(seed)
        truth = _truth(made, given)
        for at, each in enumerate((made, changed)):
            got = run(each, {"x": given})["y"].astype(np.float64)
            errors[at] = max(errors[at], float(np.abs(got - truth).max()))
    return errors[0], errors[1]


_LARGE = (1, 8, 96, 80)


@pytest.mark.parametrize("scale", [(8, 1, 1), (8, 96, 80)])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_accuracy(scale: Sequence[int], mean: float) -> None:
    """As near to the truth as the original, also around 10,000 with a deviation of 0.01."""
    deviation = 1.0 if mean == 0 else 1e-2

    def x(seed: int) -> Array:
        drawn = mean + deviation * noise(*_LARGE, seed=seed, dtype=np.float64)
        return drawn.astype(np.float32)

    made = _layer(scale, dims=_LARGE)
    before, after = _worst(made, x)
    # With a factor for each channel ONNX Runtime's kernel rounds once; what is written in its place
    # rounds the difference, the factor and the product.
    largest = float(np.abs(_truth(made, x(0))).max())
    assert after <= max(1.5 * before, 1.5 * float(np.spacing(np.float32(largest))))


def test_half_precision() -> None:
    """Sums are made in float32, so that the result is off by its own rounding."""
    made = _layer((8, 96, 80), dims=_LARGE, kind=TensorProto.FLOAT16)
    before, after = _worst(made, lambda seed: noise(*_LARGE, seed=seed, dtype=np.float16))
    assert after <= 1.5 * before


@pytest.mark.parametrize(
    ("why", "made", "tiled"),
    [
        ("over the width alone, which is row-local", _layer((5,), axis=3), 2),
        ("over the tiled axis alone", _layer((5,), axis=3), 3),
        ("over the batch", _layer(_DIMS, axis=0), 2),
        ("one row of one column", _layer((4, 1, 1), dims=(2, 4, 1, 1), axis=2), 2),
        ("whose mean is read", _layer((4, 6, 5), outputs="y m"), 2),
    ],
)
def test_refusals(why: str, made: onnx.ModelProto, tiled: int) -> None:
    """What is not over the tiled axis and more, or has other readers, stays."""
    assert _found(made, tiled) == [], why


# --- cut --------------------------------------------------------------------------------------

_IMAGE = (1, 16, 48, 20)


def _between_convs(nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> onnx.ModelProto:
    """Put nodes from "h" to "n" between Convs, with much before and behind them."""
    around = [
        node("Conv", "x w0", "c", name="first", pads=[1] * 4),
        node("Relu", "c", "h", name="relu"),
        *nodes,
        node("Conv", "n w1", "y", name="last", pads=[1] * 4),
    ]
    convs = {"w0": noise(16, 3, 3, 3) / 5, "w1": noise(3, 16, 3, 3, seed=1) / 12}
    dims = (1, 3, *_IMAGE[2:])
    return model(
        around,
        {"x": dims},
        {"y": dims},
        {**convs, **weights},
        opset=17,
        domains={"com.microsoft": 1},
    )


def _as_one() -> onnx.ModelProto:
    norm = node("LayerNormalization", "h g b", "n", name="norm", axis=1, epsilon=_EPSILON)
    return _between_convs([norm], {"g": 1 + noise(*_IMAGE[1:]) / 4, "b": noise(*_IMAGE[1:])})


def _spelled() -> onnx.ModelProto:
    """As exporters spell it before opset 17."""
    nodes = [
        node("ReduceMean", "h", "m", name="mean", axes=[1, 2, 3]),
        node("Sub", "h m", "d", name="off"),
        node("Pow", "d two", "q", name="square"),
        node("ReduceMean", "q", "v", name="variance", axes=[-3, -2, -1]),
        node("Add", "v e", "a", name="above"),
        node("Sqrt", "a", "s", name="root"),
        node("Div", "d s", "z", name="normal"),
        node("Mul", "z g", "k", name="scaled"),
        node("Add", "k b", "n", name="shifted"),
    ]
    return _between_convs(
        nodes,
        {
            "g": 1 + noise(*_IMAGE[1:]) / 4,
            "b": noise(*_IMAGE[1:]),
            "two": np.array(2, np.float32),
            "e": np.array(_EPSILON, np.float32),
        },
    )


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    given = {"splits": 4, "max_recompute": 3.0, **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(**given))


def _feeds() -> dict[str, Array]:
    return {"x": 2 + noise(1, 3, *_IMAGE[2:])}


@pytest.mark.parametrize("made", [_as_one(), _spelled()], ids=["one node", "spelled out"])
@pytest.mark.parametrize("form", ["fused", "shrinking"])
def test_it_is_cut(made: onnx.ModelProto, form: str) -> None:
    """The plan that a search takes: a lower peak, the original's numbers."""
    done = _cut(made, form=form)
    assert done.rewritten
    assert done.after.bytes < done.before.bytes
    cut = {name for region in done.rewritten for name in region.nodes}
    assert any("norm" in name or "mean" in name for name in cut)
    assert_same(made, done.model, _feeds(), rel=2e-5)


@pytest.mark.parametrize("made", [_as_one(), _spelled()], ids=["one node", "spelled out"])
def test_cut_it_is_as_near_to_the_truth(made: onnx.ModelProto) -> None:
    """Errors against float64 of the cut model: at most half as much again as the original's."""
    done = _cut(made)
    assert done.rewritten
    errors = [0.0, 0.0]
    for seed in range(4):
        x = 2 + noise(1, 3, *_IMAGE[2:], seed=seed)
        truth = oracle_run(in_double(made), {"x": x.astype(np.float64)})[0]
        for at, each in enumerate((made, done.model)):
            got = run(each, {"x": x})["y"].astype(np.float64)
            errors[at] = max(errors[at], float(np.abs(got - truth).max()))
    assert errors[1] <= 1.5 * errors[0]


def test_a_mean_of_one_row_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: what the rows' means differ by is left out of the variance."""
    right = moments_by_row

    def wrong(new: Any, *given: Any, **named: Any) -> Any:
        made = right(new, *given, **named)
        new.nodes[-1].input[1] = new.nodes[-1].input[0]
        return made

    monkeypatch.setattr("patchconv_deploy.rewriters.graph.normalisations.moments_by_row", wrong)
    made = _as_one()
    done = _cut(made)
    assert done.rewritten
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, done.model, _feeds(), rel=2e-5)


# --- ONNX Runtime's own -----------------------------------------------------------------------


def _group_norm(x: Array, groups: int, *, gate: bool, added: Sequence[Array] = ()) -> Array:
    """Return GroupNorm's definition in float64, of an image whose channels are last."""
    wide = x.astype(np.float64)
    for each in added:
        wide = wide + (each[:, None, None] if each.ndim == 2 else each)
    by_group = wide.reshape(*x.shape[:3], groups, -1)
    off = by_group - by_group.mean((1, 2, 4), keepdims=True)
    normal = off / np.sqrt(np.mean(off**2, (1, 2, 4), keepdims=True) + _EPSILON)
    weights = _affine(x.shape[-1])
    y: Array = normal.reshape(x.shape) * weights["g"] + weights["b"]
    return y / (1 + np.exp(-y)) if gate else y


def _affine(channels: int) -> dict[str, Array]:
    return {"g": 1 + noise(channels) / 4, "b": noise(channels, seed=1)}


def _fused(
    op: str = "GroupNorm",
    inputs: str = "x g b",
    outputs: str = "y",
    dims: Sequence[int] = (2, 6, 5, 4),
    *,
    skip: Sequence[int] = (),
    kind: int = TensorProto.FLOAT,
    **given: Any,
) -> onnx.ModelProto:
    attrs = {"groups": 2, "activation": 0, "epsilon": _EPSILON, **given}
    made = node(op, inputs, outputs, name="norm", domain="com.microsoft", **attrs)
    ends = [value(name, (None,) * 4, kind) for name in outputs.split()]
    channels = dims[-1 if attrs.get("channels_last", 1) else 1]
    weights = _affine(channels)
    entries = [value("x", dims, kind), *([value("s", skip, kind)] if skip else [])]
    if " t" in inputs:
        weights["t"] = noise(channels, seed=2)
    return model([made], entries, ends, weights, domains={"com.microsoft": 1})


def _written(made: onnx.ModelProto, axis: int) -> onnx.ModelProto:
    """Return what is written in place of an operator that the CPU provider has no kernel for."""
    (entry,) = _found(made, axis)
    assert entry.kind == "GroupNorm statistics"
    changed = copy_of(made)
    respell(changed.graph, [entry])
    assert not any(each.domain for each in changed.graph.node)
    return changed


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm(gate: bool, groups: int) -> None:
    """Channels last and first, each axis cut, with and without the gate."""
    x = 3 + noise(2, 6, 5, 4)
    truth = _group_norm(x, groups, gate=gate)
    for axis in (1, 2):
        made = _fused(groups=groups, activation=int(gate))
        np.testing.assert_allclose(run(_written(made, axis), {"x": x})["y"], truth, 2e-5, 2e-6)
        first = np.moveaxis(x, 3, 1)
        made = _fused(dims=first.shape, groups=groups, activation=int(gate), channels_last=0)
        got = run(_written(made, axis + 1), {"x": first})["y"]
        np.testing.assert_allclose(np.moveaxis(got, 1, 3), truth, 2e-5, 2e-6)


@pytest.mark.parametrize("skip", [(2, 6, 5, 4), (2, 1, 1, 4), (2, 4)])
@pytest.mark.parametrize("bias", [False, True])
def test_skip_group_norm(skip: Sequence[int], bias: bool) -> None:
    """What is added first: an image, a number a channel of each image, one a channel of all."""
    x, s = 3 + noise(2, 6, 5, 4), noise(*skip, seed=3)
    made = _fused("SkipGroupNorm", "x g b s t" if bias else "x g b s", skip=skip, activation=1)
    added = [s, noise(4, seed=2)] if bias else [s]
    truth = _group_norm(x, 2, gate=True, added=added)
    got = run(_written(made, 1), {"x": x, "s": s})["y"]
    np.testing.assert_allclose(got, truth, 2e-5, 2e-6)


def test_group_norm_of_half_precision() -> None:
    """Scale and bias may be of float32 where the image is of float16."""
    x = (3 + noise(2, 6, 5, 4)).astype(np.float16)
    made = _fused(kind=TensorProto.FLOAT16)
    got = run(_written(made, 1), {"x": x})["y"]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, _group_norm(x, 2, gate=False), 2e-3, 2e-3)


@pytest.mark.parametrize(
    ("why", "made"),
    [
        ("its sum is read", _fused("SkipGroupNorm", "x g b s", "y z", skip=(2, 6, 5, 4))),
        ("an activation that nobody knows", _fused(activation=2)),
        ("groups that do not divide", _fused(groups=3)),
        ("a skip of another image", _fused("SkipGroupNorm", "x g b s", skip=(2, 1, 5, 4))),
    ],
)
def test_fused_refusals(why: str, made: onnx.ModelProto) -> None:
    """What is not known to be right stays as it is."""
    assert _found(made, 1) == [], why


def test_group_norm_is_cut() -> None:
    """Between Convs, in ONNX Runtime's layout: the cut model runs where the original cannot."""
    nodes = [
        node("Transpose", "h", "hl", name="last_h", perm=[0, 2, 3, 1]),
        node(
            "GroupNorm",
            "hl g b",
            "nl",
            name="norm",
            domain="com.microsoft",
            groups=2,
            activation=1,
            epsilon=_EPSILON,
        ),
        node("Transpose", "nl", "n", name="first_n", perm=[0, 3, 1, 2]),
    ]
    made = _between_convs(nodes, _affine(16))
    done = _cut(made)
    assert done.rewritten
    assert done.after.bytes < done.before.bytes
    assert not any(each.domain for each in done.model.graph.node)
    first = model(made.graph.node[:3], {"x": (1, 3, *_IMAGE[2:])}, {"hl": None}, {})
    first.graph.initializer.extend(t for t in made.graph.initializer if t.name == "w0")
    x = _feeds()["x"]
    (h,) = oracle_run(in_double(first), {"x": x.astype(np.float64)})
    n = np.moveaxis(_group_norm(h, 2, gate=True), 3, 1)
    last = model([made.graph.node[-1]], {"n": _IMAGE}, {"y": None}, {})
    last.graph.initializer.extend(t for t in made.graph.initializer if t.name == "w1")
    (truth,) = oracle_run(in_double(last), {"n": n})
    got = run(done.model, {"x": x})["y"]
    np.testing.assert_allclose(got, truth, rtol=0, atol=2e-5 * np.abs(truth).max())


def test_a_group_norm_that_is_not_cut_stays() -> None:
    """Where nothing is gained the operator is left as it was."""
    made = _fused()
    done = _cut(made)
    assert not done.rewritten
    assert done.model == made


_TOKENS = (2, 48, 6)


def _with_skip(op: str, skip: Sequence[int], outputs: str) -> onnx.ModelProto:
    """Put a sum and its normalisation per token behind a Conv whose pixels are tokens."""
    weights = {"w": noise(6, 3, 3, 3) / 5, "dims": np.array([2, 6, 48]), "k": noise(6, 6)}
    weights |= {"g": 1 + noise(6) / 4, "b": noise(6, seed=1), "t": noise(6, seed=2)}
    inputs = "tokens s g b t" if op == "SkipLayerNormalization" else "tokens s g t"
    norm = node(op, inputs, outputs, domain="com.microsoft", epsilon=_EPSILON)
    norm.output[:] = [name if name != "_" else "" for name in norm.output]
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Reshape", "c dims", "flat"),
        node("Transpose", "flat", "tokens", perm=[0, 2, 1]),
        norm,
        node("MatMul", "n k", "y"),
    ]
    ends = ["y", *(name for name in outputs.split() if name not in ("n", "_"))]
    read = {name for each in nodes for name in each.input}
    return model(
        nodes,
        {"x": (2, 3, 8, 6), "s": skip},
        dict.fromkeys(ends, (None,) * 3),
        {name: each for name, each in weights.items() if name in read},
        domains={"com.microsoft": 1},
    )


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("outputs", ["n", "n _ _ z"])
@pytest.mark.parametrize("form", ["fused", "loop"])
def test_skip_layer_normalisation(op: str, outputs: str, form: str) -> None:
    """Each token by itself: row-local, and so is the sum that it gives as well."""
    skips = (_TOKENS, (1, *_TOKENS[1:]), _TOKENS[1:])
    for skip in skips if op == "SkipLayerNormalization" else skips[:1]:
        made = _with_skip(op, skip, outputs)
        cut = tile_all(made, 4, form)
        assert op in cut.operators
        feeds = {"x": noise(2, 3, 8, 6), "s": noise(*skip)}
        assert_same(made, cut.model, feeds, rel=2e-6)


def test_skip_layer_normalisation_whose_mean_is_read() -> None:
    """Nobody knows what the mean is like: refused, with the reason."""
    made = _with_skip("SkipLayerNormalization", _TOKENS, "n m")
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    reasons = find_locality(facts.certain, "height").reasons
    assert reasons[3] == "the rank of its output is unknown"
