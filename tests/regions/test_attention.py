"""Attention in blocks of queries, as exporters and people spell it.

Each model is cut whatever a search would choose, and compared with ONNX Runtime and with onnx's
reference evaluator: between Convs, where the tokens are an image's pixels, and of tokens alone,
where attention itself says what is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.operators import table
from patchconv_deploy.rewriters.operators.products import attend
from patchconv_deploy.rewriters.operators.record import Record, RowLocal
from patchconv_deploy.rewriters.operators.rules import same_rows
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.regions import row_locality
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.backend_cases import node_cases
from tests.support.float64 import assert_same_in_double
from tests.support.regions_by_hand import Cut, tile_all
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise
from tests.support.tiers import slow

pytestmark = pytest.mark.usefixtures("less_weighed")

_ROWS, _COLUMNS, _CHANNELS, _HEADS = 8, 6, 8, 2

_TOKENS = _ROWS * _COLUMNS

_FORMS = (("fused", 3), ("shrinking", 4), ("loop", 2))


class _Builder:
    """Nodes and weights of a model that grows; names count up."""

    def __init__(self, opset: int, batch: int) -> None:
        self.opset, self.batch = opset, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self._names = count()

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        made = [f"t{next(self._names)}" for _ in range(outputs)]
        self.nodes.append(node(op, " ".join(inputs), " ".join(made), name=made[0], **attrs))
        return made if outputs > 1 else made[0]

    def const(self, array: Any) -> str:
        name = f"c{next(self._names)}"
        self.weights[name] = np.asarray(array)
        return name

    def linear(self, x: str, channels: int, sharp: float = 1.0) -> str:
        seed = len(self.weights)
        weight = sharp * noise(_CHANNELS, channels, seed=seed) / np.sqrt(_CHANNELS)
        return str(self.add("MatMul", x, self.const(weight.astype(np.float32))))

    def reduce(self, op: str, x: str) -> str:
        if self.opset < (13 if op == "ReduceSum" else 18):
            return str(self.add(op, x, axes=[-1], keepdims=1))
        return str(self.add(op, x, self.const([-1]), keepdims=1))


# From [N, tokens, channels] to the same.
_Attention: TypeAlias = Callable[[_Builder, str], str]

_SCALE = np.float32(_CHANNELS**-0.5)


def _three(b: _Builder, x: str) -> tuple[str, str, str]:
    """Make queries, keys and values; the scores are far from flat."""
    return b.linear(x, _CHANNELS, 2.0), b.linear(x, _CHANNELS, 2.0), b.linear(x, _CHANNELS)


def _softmax(b: _Builder, x: str) -> str:
    return str(b.add("Softmax", x, axis=-1 if b.opset >= 11 else 2))


def _turned(b: _Builder, x: str) -> str:
    return str(b.add("Transpose", x, perm=[0, 2, 1]))


def _plain(b: _Builder, x: str) -> str:
    q, k, v = _three(b, x)
    scores = b.add("Mul", b.add("MatMul", q, _turned(b, k)), b.const(_SCALE))
    return str(b.add("MatMul", _softmax(b, scores), v))


def _joint(b: _Builder, x: str) -> str:
    """One product makes all three, which a Split takes apart; the scale is on q and on k."""
    joint = b.linear(x, 3 * _CHANNELS, 1.5)
    sizes = [b.const([_CHANNELS] * 3)] if b.opset >= 13 else []
    q, k, v = b.add("Split", joint, *sizes, outputs=3, axis=2)
    root = b.const(np.float32(_CHANNELS**-0.25))
    keys = _turned(b, b.add("Mul", k, root))
    weights = _softmax(b, b.add("MatMul", b.add("Mul", q, root), keys))
    return str(b.add("MatMul", weights, v))


def _split_heads(b: _Builder, x: str) -> str:
    dims = b.const([b.batch, _TOKENS, _HEADS, _CHANNELS // _HEADS])
    return str(b.add("Transpose", b.add("Reshape", x, dims), perm=[0, 2, 1, 3]))


def _with_heads(b: _Builder, x: str, masked: Callable[[str], str] | None = None) -> str:
    q, k, v = (_split_heads(b, each) for each in _three(b, x))
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = masked(scores) if masked is not None else scores
    weights = b.add("Softmax", scores, axis=-1 if b.opset >= 11 else 3)
    joined = b.add("Transpose", b.add("MatMul", weights, v), perm=[0, 2, 1, 3])
    return str(b.add("Reshape", joined, b.const([b.batch, _TOKENS, _CHANNELS])))


def _heads_in_batch(b: _Builder, x: str) -> str:
    """As `torch.nn.MultiheadAttention`: tokens first, heads and images in one dimension."""
    x = b.add("Transpose", x, perm=[1, 0, 2])
    dims = b.const([_TOKENS, b.batch * _HEADS, _CHANNELS // _HEADS])
    q, k, v = (
        b.add("Transpose", b.add("Reshape", each, dims), perm=[1, 0, 2]) for each in _three(b, x)
    )
    weights = _softmax(b, b.add("MatMul", q, _turned(b, k)))
    y = b.add("Transpose", b.add("MatMul", weights, v), perm=[1, 0, 2])
    y = b.add("Reshape", y, b.const([_TOKENS * b.batch, _CHANNELS]))
    weight = b.const(noise(_CHANNELS, _CHANNELS))
    y = b.add("Gemm", y, weight, b.const(noise(_CHANNELS)), transB=1)
    y = b.add("Reshape", y, b.const([_TOKENS, b.batch, _CHANNELS]))
    return str(b.add("Transpose", y, perm=[1, 0, 2]))


def _masked_keys(b: _Builder, x: str) -> str:
    mask = b.const(3 * noise(1, 1, 1, _TOKENS))
    return _with_heads(b, x, lambda scores: b.add("Add", scores, mask))


def _masked_queries(b: _Builder, x: str) -> str:
    mask = b.const(3 * noise(_TOKENS, _TOKENS))
    return _with_heads(b, x, lambda scores: b.add("Add", scores, mask))


def _causal(b: _Builder, x: str) -> str:
    allowed = b.const(np.tri(_TOKENS, dtype=np.bool_)[None])
    never = b.const(np.float32(-1e9))
    return _with_heads(b, x, lambda scores: b.add("Where", allowed, scores, never))


def _keys_first(b: _Builder, x: str) -> str:
    """Scores k q^T: their columns are the queries, and the values stand first, too."""
    q, k, v = _three(b, x)
    scores = b.add("MatMul", k, _turned(b, q))
    weights = b.add("Softmax", scores, axis=1)
    return _turned(b, b.add("MatMul", _turned(b, v), weights))


def _values_first(b: _Builder, x: str) -> str:
    """As latent diffusion models: v times the weights turned round."""
    q, k, v = _three(b, x)
    weights = _softmax(b, b.add("MatMul", q, _turned(b, k)))
    return _turned(b, b.add("MatMul", _turned(b, v), _turned(b, weights)))


def _einsum(b: _Builder, x: str) -> str:
    q, k, v = _three(b, x)
    weights = _softmax(b, b.add("Einsum", q, k, equation="bic,bjc->bij"))
    return str(b.add("Einsum", weights, v, equation="bij,bjc->bic"))


def _spelled_out(b: _Builder, x: str) -> str:
    """The Softmax from its parts."""
    q, k, v = _three(b, x)
    scores = b.add("MatMul", q, _turned(b, k))
    above = b.add("Exp", b.add("Sub", scores, b.reduce("ReduceMax", scores)))
    return str(b.add("MatMul", b.add("Div", above, b.reduce("ReduceSum", above)), v))


def _one_head_of_keys(b: _Builder, x: str) -> str:
    """Several heads of queries share the keys and values of one."""
    q, k, v = _three(b, x)
    few = _CHANNELS // _HEADS
    q = _split_heads(b, q)
    k, v = (b.add("Gather", each, b.const(list(range(few))), axis=2) for each in (k, v))
    dims = b.const([b.batch, 1, _TOKENS, few])
    k, v = (b.add("Reshape", each, dims) for each in (k, v))
    weights = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2]))
    y = b.add("MatMul", b.add("Softmax", weights, axis=-1), v)
    y = b.add("Transpose", y, perm=[0, 2, 1, 3])
    return str(b.add("Reshape", y, b.const([b.batch, _TOKENS, _CHANNELS])))


@dataclass(frozen=True)
class _Case:
    """A spelling, and the opsets it is tried at."""

    attention: _Attention
    opsets: tuple[int, ...] = (13, 18)


CASES: Mapping[str, _Case] = {
    "plain": _Case(_plain, (9, 11, 13, 18)),
    "joint": _Case(_joint, (11, 13, 18)),
    "heads": _Case(_with_heads, (9, 13, 21)),
    "heads in the batch": _Case(_heads_in_batch),
    "keys masked": _Case(_masked_keys),
    "queries masked": _Case(_masked_queries),
    "causal": _Case(_causal),
    "keys first": _Case(_keys_first),
    "values first": _Case(_values_first),
    "einsum": _Case(_einsum),
    "spelled out": _Case(_spelled_out, (11, 13, 18)),
    "one head of keys": _Case(_one_head_of_keys),
}


def _model(
    attention: _Attention, opset: int = 17, batch: int = 1, *, image: bool = False
) -> onnx.ModelProto:
    """Put attention, with what belongs to a block, between Convs or on tokens alone."""
    b = _Builder(opset, batch)
    x = "x"
    if image:
        x = b.add("Conv", x, b.const(noise(_CHANNELS, 3, 3, 3) / 3), pads=[1] * 4)
        x = b.add("Reshape", x, b.const([batch, _CHANNELS, _TOKENS]))
        x = _turned(b, x)
    shortcut = x
    if opset >= 17:
        x = b.add("LayerNormalization", x, b.const(noise(_CHANNELS) + 1), axis=-1)
    y = b.linear(attention(b, x), _CHANNELS)
    y = b.add("Add", shortcut, y)
    # A perceptron over the channels.
    y = b.add("Add", y, b.linear(b.add("Tanh", b.linear(y, _CHANNELS)), _CHANNELS))
    dims: list[int] = [batch, _TOKENS, _CHANNELS]
    if image:
        y = b.add("Reshape", _turned(b, y), b.const([batch, _CHANNELS, _ROWS, _COLUMNS]))
        y = b.add("Conv", y, b.const(noise(3, _CHANNELS, 3, 3) / 5), pads=[1] * 4)
        dims = [batch, 3, _ROWS, _COLUMNS]
    inner = [batch, 3, _ROWS, _COLUMNS] if image else dims
    return model(b.nodes, {"x": inner}, {y: dims}, b.weights, opset=opset)


def _feeds(made: onnx.ModelProto) -> dict[str, Array]:
    dims = [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim]
    return {"x": noise(*dims, seed=3)}


def _same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Compare with ONNX Runtime and, in double precision, with the reference evaluator."""
    feeds = _feeds(before)
    assert_same(before, after, feeds)
    assert_same_in_double(before, after, feeds)


def _scores(cut: Cut, made: onnx.ModelProto) -> list[int]:
    """Return the positions of products of two activations in cut regions."""
    constants = {tensor.name for tensor in made.graph.initializer}
    return [
        at
        for plan in cut.plans
        for at in plan.region.nodes
        if made.graph.node[at].op_type in ("MatMul", "Einsum")
        and constants.isdisjoint(made.graph.node[at].input)
    ]


@pytest.mark.parametrize("image", [False, True], ids=["tokens", "image"])
@pytest.mark.parametrize(
    ("name", "opset"), [(name, opset) for name, case in CASES.items() for opset in case.opsets]
)
def test_blocks_of_queries(name: str, opset: int, image: bool) -> None:
    """Both products and what is between them are cut, and the numbers are the same."""
    made = _model(CASES[name].attention, opset, image=image)
    for form, splits in _FORMS:
        cut = tile_all(made, splits, form)
        assert len(_scores(cut, made)) == 2, cut.reasons
        assert "Softmax" in cut.operators or name == "spelled out"
        _same(made, cut.model)


@pytest.mark.parametrize("name", ["plain", "heads", "heads in the batch", "values first"])
def test_several_images(name: str) -> None:
    """Each image attends to itself."""
    for image in (False, True):
        made = _model(CASES[name].attention, batch=2, image=image)
        cut = tile_all(made)
        # [tokens x images, channels] takes rows apart; attention itself is cut none the less.
        assert len(_scores(cut, made)) == 2, cut.reasons
        _same(made, cut.model)


# By default each spelling along one axis, and each axis for several spellings.
@pytest.mark.parametrize(
    ("name", "axis"),
    [
        (name, axis) if number % 3 == k else slow(name, axis)
        for number, name in enumerate(CASES)
        for k, axis in enumerate(("width", "height", 2))
    ],
)
def test_a_plan_is_found(name: str, axis: str | int) -> None:
    """The search cuts attention too, whatever axis is named: what holds the peak are the scores."""
    made = _model(CASES[name].attention, image=True)
    options = Options(axis=axis, splits=4, max_recompute=4)
    outcome = rewrite_model(Loaded(copy_of(made), None), options)
    assert outcome.rewritten
    _same(made, outcome.model)


def _locality(made: onnx.ModelProto) -> row_locality.Locality:
    facts = analyse(made, skeleton(Loaded(made, None))).certain
    return find_locality(facts, "height")


@pytest.mark.parametrize("image", [False, True], ids=["tokens", "image"])
@pytest.mark.parametrize("name", list(CASES))
def test_keys_and_values_stay_whole(name: str, image: bool) -> None:
    """Of each product one factor is cut: queries, and the weights of queries."""
    made = _model(CASES[name].attention, image=image)
    constants = {tensor.name for tensor in made.graph.initializer}
    links = _locality(copy_of(made)).links
    products = [
        (at, each)
        for at, each in enumerate(made.graph.node)
        if each.op_type in ("MatMul", "Einsum") and constants.isdisjoint(each.input)
    ]
    assert len(products) == 2
    for at, _ in products:
        assert len(links[at].carriers) == 1
    (scores, _), (mix, _) = products
    # Which of the scores' factors is cut is told by the model, not by who comes first.
    assert links[scores].carriers[0][0] == (1 if name == "keys first" else 0)
    assert links[mix].carriers[0][0] == (1 if name in ("keys first", "values first") else 0)


def _one_node(b: _Builder, x: str) -> str:
    """The operator of opset 23, its heads in the channels and a mask of each query's own."""
    mask = b.const(2 * noise(_TOKENS, _TOKENS))
    heads = {"q_num_heads": _HEADS, "kv_num_heads": _HEADS}
    return str(b.add("Attention", *_three(b, x), mask, **heads))


def _one_node_with_heads(b: _Builder, x: str) -> str:
    q, k, v = (_split_heads(b, each) for each in _three(b, x))
    joined = b.add("Transpose", b.add("Attention", q, k, v), perm=[0, 2, 1, 3])
    return str(b.add("Reshape", joined, b.const([b.batch, _TOKENS, _CHANNELS])))


@pytest.mark.parametrize("image", [False, True], ids=["tokens", "image"])
@pytest.mark.parametrize("attention", [_one_node, _one_node_with_heads])
@pytest.mark.parametrize(("form", "splits"), _FORMS)
def test_one_node(attention: _Attention, form: str, splits: int, image: bool) -> None:
    """Attention as one operator is cut in blocks of queries, too."""
    made = _model(attention, 23, image=image)
    cut = tile_all(made, splits, form)
    assert "Attention" in cut.operators
    _same(made, cut.model)


def test_onnx_cases() -> None:
    """ONNX's own cases of Attention, as one node and written out: their own outputs, or refused."""
    cases = [case for case in node_cases(["Attention"]) if case.name.startswith("test_attention")]
    cut_at_all, wrong = 0, []
    for case in cases:
        assert case.model is not None
        assert case.data_sets
        made, (inputs, outputs) = case.model, case.data_sets[0]
        made.ir_version = min(made.ir_version, 11)
        feeds = dict(zip((value.name for value in made.graph.input), inputs, strict=True))
        cut = tile_all(made, 2)
        if not cut.plans:
            continue
        cut_at_all += 1
        found: Any = ReferenceEvaluator(cut.model).run(None, feeds)
        for got, expected in zip(found, outputs, strict=True):
            # The tolerance of ONNX's own backend tests; half precision has fewer places.
            small = 2e-3 if np.asarray(expected).dtype == np.float16 else 1e-6
            if not np.allclose(got, expected, rtol=1e-3, atol=small, equal_nan=True):
                wrong.append(case.name)
    assert not wrong
    assert cut_at_all > len(cases) / 2


def test_attributes_of_one_node() -> None:
    """What counts queries is refused where these are cut, not where images are; the unknown is."""
    shapes = ((6, 2, 8, 4),) * 3

    def asked(axis: int, **given: int) -> RowLocal | str:
        return attend(Record("Attention", 25, given, shapes), axis)

    assert isinstance(asked(2, left_window_size=-1, is_causal=0), RowLocal)
    for given in ({"is_causal": 1}, {"left_window_size": 2}, {"right_window_size": 0}):
        assert asked(2, **given) == "its mask is counted from the first query on"
        found = asked(0, **given)
        assert isinstance(found, RowLocal)
        assert found.carriers == ((0, 0), (1, 0), (2, 0))
    assert asked(2, dilation=2) == "it has an attribute that is not known"


@pytest.mark.parametrize("attention", [_one_node, _one_node_with_heads])
def test_the_scores_inside_are_foreseen(attention: _Attention) -> None:
    """The search knows what one Attention holds while it runs, and cuts it for that."""
    made = _model(attention, 23)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=4))
    assert outcome.rewritten
    scores = 4 * _HEADS * _TOKENS**2
    assert outcome.before.bytes > scores > outcome.after.bytes
    _same(made, outcome.model)


def test_a_mask_is_cut_with_the_queries() -> None:
    """A mask of each query's own is cut into the same blocks; one for all queries is not cut."""
    made = _model(_masked_queries)
    (mask,) = (t.name for t in made.graph.initializer if list(t.dims) == [_TOKENS, _TOKENS])
    cut = tile_all(made)
    assert mask in {edge.name for plan in cut.plans for edge in plan.region.inputs}
    made = _model(_masked_keys)
    cut = tile_all(made)
    inputs = {edge.name for plan in cut.plans for edge in plan.region.inputs}
    assert inputs.isdisjoint(tensor.name for tensor in made.graph.initializer)


def test_a_mask_that_is_not_cut_shows() -> None:
    """A planted fault: every block of queries gets the first block's mask."""
    made = _model(_masked_queries)
    (mask,) = (t.name for t in made.graph.initializer if list(t.dims) == [_TOKENS, _TOKENS])
    cut = tile_all(made)
    windows = [n for n in cut.model.graph.node if n.op_type == "Slice" and n.input[0] == mask]
    assert len(windows) == 3
    assert_same(made, cut.model, _feeds(made))
    for window in windows[1:]:
        window.CopyFrom(node("Identity", windows[0].output[0], window.output[0]))
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, cut.model, _feeds(made))


def test_blocks_of_keys_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the Softmax is taken for row-local along the keys."""
    made = _model(_keys_first)
    monkeypatch.setitem(
        table.TABLE,
        "Softmax",
        lambda record, axis: same_rows(axis),
    )
    monkeypatch.setattr(row_locality, "is_weighed", lambda *_: False)
    monkeypatch.setattr(row_locality, "queries", lambda *_: 1)
    cut = tile_all(made)
    assert "Softmax" in cut.operators
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, cut.model, _feeds(made))


def test_weights_are_not_what_is_cut() -> None:
    """Rows that come from a constant factor alone are no image's."""
    made = model(
        [
            node("MatMul", "x w", "m"),
            node("Transpose", "m", "t", perm=[0, 1, 3, 2]),
            node("Conv", "t k", "y", pads=[1] * 4),
        ],
        {"x": (1, 2, 5, 4)},
        {"y": (1, 2, 24, 5)},
        {"w": noise(4, 24), "k": noise(2, 2, 3, 3)},
    )
    locality = _locality(made)
    assert locality.reasons[0] == "the tiled axis is that of its weights"


def test_pooling_by_attention_is_refused() -> None:
    """One query for all tokens: nothing is row-local but what is before it."""
    b = _Builder(17, 1)
    keys, values = b.linear("x", _CHANNELS), b.linear("x", _CHANNELS)
    (query,) = [b.const(noise(1, 1, _CHANNELS))]
    weights = _softmax(b, b.add("MatMul", query, _turned(b, keys)))
    y = b.add("MatMul", weights, values)
    made = model(b.nodes, {"x": [1, _TOKENS, _CHANNELS]}, {y: [1, 1, _CHANNELS]}, b.weights)
    assert not tile_all(made).plans


def test_linear_attention() -> None:
    """Keys times values is summed over the tokens; queries times that is row-local."""
    b = _Builder(17, 1)
    x = b.add("Conv", "x", b.const(noise(_CHANNELS, 3, 3, 3) / 3), pads=[1] * 4)
    x = _turned(b, b.add("Reshape", x, b.const([1, _CHANNELS, _TOKENS])))
    q, k, v = _three(b, x)
    summed = b.add("MatMul", _turned(b, b.add("Softmax", k, axis=1)), v)
    y = _turned(b, b.add("MatMul", b.add("Softmax", q, axis=2), summed))
    y = b.add("Reshape", y, b.const([1, _CHANNELS, _ROWS, _COLUMNS]))
    y = b.add("Conv", y, b.const(noise(3, _CHANNELS, 3, 3) / 5), pads=[1] * 4)
    dims = [1, 3, _ROWS, _COLUMNS]
    made = model(b.nodes, {"x": dims}, {y: dims}, b.weights)
    cut = tile_all(made)
    assert "it sums products over the tiled axis" in cut.reasons
    assert len(_scores(cut, made)) == 1
    _same(made, cut.model)


@pytest.mark.parametrize("seed", range(24))
def test_random_attention(seed: int) -> None:
    """Any spelling, size, number of images and patches."""
    rng = np.random.default_rng(seed)
    name = list(CASES)[seed % len(CASES)]
    image, batch = bool(rng.integers(2)), int(rng.integers(1, 3))
    made = _model(CASES[name].attention, int(rng.choice([13, 18])), batch, image=image)
    form = ("fused", "shrinking", "loop")[int(rng.integers(3))]
    cut = tile_all(made, int(rng.integers(2, 9)), form)
    assert cut.plans
    _same(made, cut.model)
