"""ONNX Runtime's MultiHeadAttention in blocks of queries, against ONNX Runtime and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.memory.reader import predict
from patchconv_deploy.rewriters.operators import table
from patchconv_deploy.rewriters.operators.products import attend_by_heads
from patchconv_deploy.rewriters.operators.record import Record, RowLocal
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise, run, value

_BATCH, _QUERIES, _KEYS, _CHANNELS, _VALUES, _HEADS = 2, 24, 10, 8, 12, 2

# What may stand beside queries, keys and values: the inputs, and their shapes.
_BESIDE: dict[str, tuple[str, dict[str, Sequence[int]]]] = {
    "nothing": ("", {}),
    "bias": (" b", {"b": (2 * _CHANNELS + _VALUES,)}),
    "mask of keys": (" _ m", {"m": (_BATCH, _KEYS)}),
    "keys that count": (" _ m", {"m": (_BATCH,)}),
    "mask of queries": (" _ m", {"m": (_BATCH, _QUERIES, _KEYS)}),
    "added to all heads": (" _ _ a", {"a": (1, 1, _QUERIES, _KEYS)}),
    "added to each": (" _ _ a", {"a": (_BATCH, _HEADS, _QUERIES, _KEYS)}),
    "all of it": (" b m a", {"b": (2 * _CHANNELS + _VALUES,), "m": (_BATCH, _KEYS)}),
}
_BESIDE["all of it"][1]["a"] = (1, _HEADS, _QUERIES, _KEYS)


def _model(beside: str = "nothing", **given: Any) -> onnx.ModelProto:
    more, shapes = _BESIDE[beside]
    attention = node(
        "MultiHeadAttention",
        "q k v" + more,
        "h",
        name="attention",
        domain="com.microsoft",
        **{"num_heads": _HEADS, **given},
    )
    factors = {
        "x": (_BATCH, _QUERIES, _CHANNELS),
        "k": (_BATCH, _KEYS, _CHANNELS),
        "v": (_BATCH, _KEYS, _VALUES),
    }
    entries = [value(name, dims) for name, dims in factors.items()]
    for name, dims in shapes.items():
        kind = TensorProto.INT32 if name == "m" else TensorProto.FLOAT
        entries.append(value(name, dims, kind))
    nodes = [
        node("MatMul", "x w", "q", name="queries"),
        attention,
        node("Relu", "h", "r", name="relu"),
        node("MatMul", "r u", "y", name="out"),
    ]
    weights = {"w": noise(_CHANNELS, _CHANNELS), "u": noise(_VALUES, _VALUES)}
    return model(nodes, entries, {"y": (None,) * 3}, weights, domains={"com.microsoft": 1})


def _feeds(made: onnx.ModelProto) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for number, each in enumerate(made.graph.input):
        dims = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
        feeds[each.name] = noise(*dims, seed=number)
        if each.name == "m" and len(dims) == 1:
            feeds["m"] = np.arange(_KEYS - 1, _KEYS - 1 - _BATCH, -1, dtype=np.int32)
        elif each.name == "m":
            feeds["m"] = (feeds["m"] > -0.5).astype(np.int32)
            feeds["m"][..., 0] = 1
    return feeds


def _definition(feeds: dict[str, Array], made: onnx.ModelProto) -> Array:
    """Return the model's output in float64, of queries, keys and values alone."""
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in _weights(made)}
    x, k, v = (feeds[name].astype(np.float64) for name in "xkv")

    def by_heads(each: Array) -> Array:
        return each.reshape(*each.shape[:2], _HEADS, -1).swapaxes(1, 2)

    q, k, v = by_heads(x @ weights["w"]), by_heads(k), by_heads(v)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v
    joined = mixed.swapaxes(1, 2).reshape(_BATCH, _QUERIES, _VALUES)
    y: Array = np.maximum(joined, 0) @ weights["u"]
    return y


def _weights(made: onnx.ModelProto) -> list[onnx.TensorProto]:
    return list(made.graph.initializer)


@pytest.mark.parametrize(("form", "splits"), [("fused", 3), ("shrinking", 4), ("loop", 2)])
@pytest.mark.parametrize("beside", list(_BESIDE))
def test_blocks_of_queries(beside: str, form: str, splits: int) -> None:
    """Queries with what is around them, whatever stands beside: the original's numbers."""
    made = _model(beside)
    cut = tile_all(made, splits, form)
    assert "MultiHeadAttention" in cut.operators
    assert len(cut.plans) == 1
    assert_same(made, cut.model, _feeds(made), rel=2e-6)


def test_it_is_as_near_to_the_truth() -> None:
    """Errors against float64: at most half as much again as the original's."""
    made = _model()
    cut = tile_all(made, 4).model
    errors = [0.0, 0.0]
    for seed in range(6):
        feeds = {name: each + noise(*each.shape, seed=seed) for name, each in _feeds(made).items()}
        truth = _definition(feeds, made)
        for at, each in enumerate((made, cut)):
            got = run(each, feeds)["y"]
            errors[at] = max(errors[at], float(np.abs(got - truth).max()))
    assert 0 < errors[1] <= 1.5 * errors[0]


def test_what_stays_whole() -> None:
    """Keys, values and masks of keys are no region's windows; masks of queries are."""
    for beside, windows in (("mask of keys", {"x"}), ("mask of queries", {"x", "m"})):
        cut = tile_all(_model(beside))
        inputs = {edge.name for plan in cut.plans for edge in plan.region.inputs}
        assert inputs == windows


def test_self_attention_of_an_image() -> None:
    """Queries, keys and values of the same pixels: the queries are cut, the others whole."""
    tokens = 8 * 6
    weights = {"w": noise(8, 3, 3, 3) / 5, "flat": np.array([1, 8, tokens])}
    weights |= {f"{name}w": noise(8, 8, seed=k) / 3 for k, name in enumerate("qkv")}
    weights |= {"back": np.array([1, 8, 8, 6]), "u": noise(3, 8, 3, 3) / 8}
    nodes = [
        node("Conv", "x w", "c", name="first", pads=[1] * 4),
        node("Reshape", "c flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        *(node("MatMul", f"t {name}w", name) for name in "qkv"),
        node("MultiHeadAttention", "q k v", "h", domain="com.microsoft", num_heads=2),
        node("Transpose", "h", "ht", perm=[0, 2, 1]),
        node("Reshape", "ht back", "n"),
        node("Conv", "n u", "y", name="last", pads=[1] * 4),
    ]
    sizes = {"x": (1, 3, 8, 6)}
    made = model(nodes, sizes, {"y": (None,) * 4}, weights, domains={"com.microsoft": 1})
    cut = tile_all(made, 4)
    assert "MultiHeadAttention" in cut.operators
    assert_same(made, cut.model, {"x": noise(1, 3, 8, 6)}, rel=5e-6)


def _asked(axis: int, shapes: Sequence[Any] = (), absent: Sequence[int] = (), **given: Any) -> Any:
    used = given.pop("used", (True,))
    found = shapes or ((2, 24, 8), (2, 10, 8), (2, 10, 12))
    record = Record(
        "MultiHeadAttention",
        17,
        {"num_heads": 2, **given},
        tuple(found),
        used=used,
        absent=frozenset(absent),
    )
    return attend_by_heads(record, axis)


def test_what_is_refused() -> None:
    """With the reason."""
    three = ((2, 24, 8), (2, 10, 8), (2, 10, 12))
    packed = ((2, 24, 2, 3, 4), None, None)
    past = (*three, None, None, None, (2, 2, 4, 4), (2, 2, 4, 4))
    heads = (three[0], (2, 2, 10, 4), (2, 2, 10, 4))
    assert _asked(1, unidirectional=1) == "its mask is counted from the first query on"
    assert _asked(1, window=3) == "it has an attribute that is not known"
    assert _asked(1, used=(True, True)) == "an output besides the first is used"
    assert _asked(1, packed[:1]) == "its queries, keys and values are packed in one"
    assert _asked(1, packed, (1, 2)) == "its queries, keys and values are packed in one"
    assert _asked(1, past, (3, 4, 5)) == "it reads the keys of runs before"
    reason = "its queries, keys and values are packed in one, or come by heads"
    assert _asked(1, heads) == reason
    assert _asked(2) == "the tiled axis is that of its heads"
    assert _asked(1, (three[0], None, three[2])) == "the rank of an operand is unknown"
    counted = (*three, None, (2,))
    assert _asked(0, counted, (3,)) == "its keys are counted image by image"
    assert isinstance(_asked(1, counted, (3,)), RowLocal)
    # Of 3 x images + 2 numbers some say where queries begin.
    begins = "its mask of one axis may count queries"
    assert _asked(1, (*three, None, (8,)), (3,)) == begins
    assert _asked(1, (*three, None, (None,)), (3,)) == begins


def test_images() -> None:
    """Along the batch every factor is cut; what is added to all images alike is not."""
    three = ((6, 24, 8), (6, 10, 8), (6, 10, 12))
    assert _asked(0).carriers == ((0, 0), (1, 0), (2, 0))
    found = _asked(0, (*three, None, (6, 10), (1, 2, 24, 10)), (3,))
    assert found.carriers == ((0, 0), (1, 0), (2, 0), (4, 0))
    found = _asked(0, (*three, None, None, (6, 2, 24, 10)), (3, 4))
    assert found.carriers == ((0, 0), (1, 0), (2, 0), (5, 0))


def test_causal_attention_is_left(tmp_path: Any) -> None:
    """The reason is said of the node."""
    made = _model(unidirectional=1)
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    locality = find_locality(facts.certain, "height")
    assert locality.reasons[1] == "its mask is counted from the first query on"


@pytest.mark.parametrize("beside", ["mask of keys", "added to all heads"])
def test_the_scores_inside_are_foreseen(beside: str) -> None:
    """With a mask the kernel holds all scores at once: that is cut. Without one it does not."""
    made = _model(beside)
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    scores = 4 * _BATCH * _HEADS * _QUERIES * _KEYS
    held = predict(made.graph, facts.sizing, "onnxruntime-tuned").bytes
    plain = predict(_model().graph, facts.sizing, "onnxruntime-tuned").bytes
    assert held >= plain + scores / 2
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=4, max_recompute=4))
    assert outcome.rewritten
    assert outcome.after.bytes < outcome.before.bytes
    assert_same(made, outcome.model, _feeds(made), rel=2e-6)


def test_blocks_of_keys_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: every block of queries gets the keys of its own rows alone."""

    def wrong(record: Record, axis: int) -> RowLocal | str:
        found = attend_by_heads(record, axis)
        if isinstance(found, str) or axis != 1:
            return found
        carriers = ((0, 1), (1, 1), (2, 1))
        return RowLocal(found.row_map, carriers, axis)

    monkeypatch.setitem(table.CONTRIB, "MultiHeadAttention", wrong)
    made = _model()
    for name in ("k", "v"):
        (entry,) = (each for each in made.graph.input if each.name == name)
        entry.type.tensor_type.shape.dim[1].dim_value = _QUERIES
    cut = tile_all(made)
    assert "MultiHeadAttention" in cut.operators
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, cut.model, _feeds(made), rel=2e-6)
