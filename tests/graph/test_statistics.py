"""What looks at the whole image, written in two: numbers, accuracy, refusals, and the way back.

The truth is the original in float64, run by the ONNX reference evaluator. ONNX Runtime runs both in
float32 and float16: what is written in two may be off the truth by half as much again as the
original is, not more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.respelling import Respellings, respell
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.statistics import Statistic, find_statistics
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.oracle import oracle_run
from tests.support.small_models import (
    Array,
    Dims,
    assert_same,
    copy_of,
    model,
    node,
    noise,
    operators,
    run,
    value,
)

OPSETS = (9, 11, 13, 17, 18, 20, 21, 23)

REDUCTIONS = (
    "ReduceMax ReduceMin ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceSumSquare"
).split()

# Nodes and weights that make "y" of "x".
Made = tuple[list[onnx.NodeProto], dict[str, Array]]


def _model(
    made: Made,
    x: Dims = (1, 4, 6, 5),
    *,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """Make a model; its weights are of the input's type, integers stay integers."""
    nodes, weights = made
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    cast = {n: w.astype(dtype) if w.dtype.kind == "f" else w for n, w in weights.items()}
    ends = [value(name, None, kind) for name in outputs]
    ir = 8 if opset < 21 else 10
    bare = model(nodes, [value("x", x, kind)], ends, cast, opset=opset, ir=ir)
    for end, known in zip(
        bare.graph.output, onnx.shape_inference.infer_shapes(bare).graph.output, strict=True
    ):
        # What is put back to a shape that is worked out has as many dimensions as the input.
        found = known.type.tensor_type.HasField("shape")
        end.CopyFrom(known if found else value(end.name, (None,) * len(x or ()), kind))
    return bare


def _found(made: onnx.ModelProto, axes: Mapping[str, int]) -> list[Statistic]:
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    return find_statistics(facts.certain, axes)


def _in_two(made: onnx.ModelProto, axis: int = 2, count: int = 1) -> onnx.ModelProto:
    """Return a copy that is written in two."""
    found = _found(made, {"x": axis})
    assert len(found) == count
    changed = copy_of(made)
    respell(changed.graph, found)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _reduced(op: str, opset: int, axes: Sequence[int] | None, keeps: int) -> Made:
    """Spell a reduction; without axes it is over all of them."""
    as_input = opset >= (13 if op == "ReduceSum" else 18)
    if axes is None:
        return [node(op, "x", "y", name="reduce", keepdims=keeps)], {}
    if as_input:
        made = [node(op, "x over", "y", name="reduce", keepdims=keeps)]
        return made, {"over": np.asarray(axes, np.int64)}
    return [node(op, "x", "y", name="reduce", axes=list(axes), keepdims=keeps)], {}


def _instance(channels: int = 4) -> Made:
    made = [node("InstanceNormalization", "x g b", "y", name="norm", epsilon=1e-3)]
    return made, {"g": 1 + noise(channels) / 2, "b": noise(channels, seed=1)}


def _exported(groups: int, channels: int = 4, *, rank: int = 4, shape: str = "Shape") -> Made:
    """Spell GroupNorm as exporters do: one normalisation of three dimensions, then Mul and Add."""
    nodes = [
        node("Reshape", "x grouped", "x3", name="to_groups"),
        node("InstanceNormalization", "x3 g b", "y3", name="norm", epsilon=1e-3),
        node("Shape", "x", "dims", name="dims"),
        node("Reshape", f"y3 {'dims' if shape == 'Shape' else 'known'}", "back", name="back"),
        node("Mul", "back scale", "scaled", name="scale"),
        node("Add", "scaled shift", "y", name="shift"),
    ]
    if shape != "Shape":
        del nodes[2]
    ones = (1,) * (rank - 2)
    return nodes, {
        "grouped": np.array([0, groups, -1]),
        "g": 1 + noise(groups) / 4,
        "b": noise(groups, seed=1) / 4,
        "scale": 1 + noise(channels, *ones) / 2,
        "shift": noise(1, channels, *ones, seed=1),
    }


def _group(groups: int, channels: int = 4) -> Made:
    made = [
        node("GroupNormalization", "x g b", "y", name="norm", num_groups=groups, epsilon=1e-3),
    ]
    return made, {"g": 1 + noise(channels) / 2, "b": noise(channels, seed=1)}


def _truth(made: onnx.ModelProto, x: Array) -> Array:
    """Return the result in float64."""
    wide = copy_of(made)
    for tensor in wide.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for entry in (*wide.graph.input, *wide.graph.output):
        entry.type.tensor_type.elem_type = TensorProto.DOUBLE
    _in_full(wide)
    return oracle_run(wide, {"x": x.astype(np.float64)})[0]


def _double(made: Made, x: Dims, opset: int) -> onnx.ModelProto:
    wide = _model(made, x, opset=opset, kind=TensorProto.DOUBLE)
    _in_full(wide)
    return wide


def _in_full(made: onnx.ModelProto) -> None:
    """Let GroupNormalization sum in float64, not in float32."""
    for each in made.graph.node:
        if each.op_type == "GroupNormalization":
            each.attribute.append(onnx.helper.make_attribute("stash_type", TensorProto.DOUBLE))


def _assert_same_in_double(made: onnx.ModelProto, x: Array, axis: int = 2) -> None:
    """Compare both by the reference evaluator: in float64 they are the same but for last places."""
    changed = _in_two(made, axis)
    assert operators(changed) != operators(made)
    before, after = (oracle_run(each, {"x": x})[0] for each in (made, changed))
    assert before.shape == after.shape
    assert before.dtype == after.dtype == np.float64
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)


def _near_one(*shape: int) -> Array:
    """Positive, so that there is a logarithm, and near one, so that a product stays finite."""
    return 1 + 0.1 * noise(*shape, dtype=np.float64)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op: str, opset: int) -> None:
    """Axes in any order, counted from either end, with others; dimensions kept or not."""
    for rank, batch, keeps in product((4, 5), (1, 2), (0, 1)):
        dims = (batch, 3, 6, 5, 4)[:rank]
        space = list(range(2, rank))
        every = (space, space[::-1], [at - rank for at in space], [1, *space], [2, 3], None)
        for axes in every:
            made = _double(_reduced(op, opset, axes, keeps), dims, opset)
            _assert_same_in_double(made, _near_one(*dims))
    # The axis that is cut is another.
    made = _double(_reduced(op, opset, [2, 3], 0), (2, 3, 6, 5), opset)
    _assert_same_in_double(made, _near_one(2, 3, 6, 5), axis=3)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op: str, opset: int) -> None:
    """Two and three spatial axes, any of them cut, free sizes."""
    for dims, free, axis in product(((1, 3, 6, 5), (2, 3, 6, 5, 4)), (False, True), (2, 3)):
        sizes = ("N", "C", "H", "W", "D")[: len(dims)] if free else dims
        made = _double(([node(op, "x", "y", name="pool")], {}), sizes, opset)
        x = noise(*dims, dtype=np.float64)
        got = oracle_run(_in_two(made, axis), {"x": x})[0]
        merged = np.mean if op == "GlobalAveragePool" else np.max
        expected = merged(x, axis=tuple(range(2, len(dims))), keepdims=True)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def _normalisations(opset: int, rank: int) -> list[Made]:
    exported = [
        _exported(groups, rank=rank, shape=shape)
        for groups, shape in product((1, 2, 4), ("Shape", "known"))
    ]
    native = [_group(groups) for groups in (1, 2, 4)] if opset >= 21 else []
    return [_instance(), *exported, *native]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("rank", [4, 5])
def test_normalisations(opset: int, rank: int) -> None:
    """Every spelling, of one image and of two."""
    for batch in (1, 2):
        dims = (batch, 4, 6, 5, 3)[:rank]
        x = 3 + noise(*dims, dtype=np.float64)
        for nodes, weights in _normalisations(opset, rank):
            given = {**weights, "known": np.array(dims)} if "grouped" in weights else weights
            made = _double((nodes, given), dims, opset)
            _assert_same_in_double(made, x)
            if rank == 5:
                _assert_same_in_double(made, x, axis=3)


@pytest.mark.parametrize("opset", [9, 13, 18, 21])
def test_normalisations_at_free_sizes(opset: int) -> None:
    """Whatever is free: the batch, the height, the width, all of them."""
    x = 3 + noise(2, 4, 6, 5, dtype=np.float64)
    for free in ("N", "H", "W", "HW", "NHW"):
        sizes = [n if n in free else size for n, size in zip("NCHW", x.shape, strict=True)]
        for nodes, weights in _normalisations(opset, 4):
            if any(each.op_type == "Reshape" and "known" in each.input for each in nodes):
                continue
            _assert_same_in_double(_double((nodes, weights), sizes, opset), x)


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_no_images(opset: int) -> None:
    """A batch of nothing is nothing, in ONNX Runtime; of no elements no -1 can be worked out."""
    made = [_instance(), *((_group(2),) if opset >= 21 else ())]
    made += [_reduced(op, opset, [2, 3], keeps) for op in REDUCTIONS for keeps in (0, 1)]
    made += [([node(op, "x", "y")], {}) for op in ("GlobalAveragePool", "GlobalMaxPool")]
    sizes: list[int | str] = ["N", 0]
    for nodes, batch in product(made, sizes):
        changed = _in_two(_model(nodes, (batch, 4, 6, 5), opset=opset))
        got = run(changed, {"x": noise(0, 4, 6, 5)})["y"]
        assert got.shape[:2] == (0, 4)
        assert got.size == 0


@pytest.mark.parametrize("missing", ["scale", "shift", "both"])
def test_scale_and_shift_may_be_missing(missing: str) -> None:
    """Mul alone, Add alone, neither."""
    nodes, weights = _exported(2)
    if missing in ("shift", "both"):
        nodes.pop()
    if missing in ("scale", "both"):
        nodes.pop(4)
    if missing == "scale":
        nodes[-1].input[0] = "back"
    nodes[-1].output[0] = "y"
    made = _double((nodes, weights), (2, 4, 6, 5), 17)
    _assert_same_in_double(made, 3 + noise(2, 4, 6, 5, dtype=np.float64))


# --- accuracy ---------------------------------------------------------------------------------


def _worst(made: onnx.ModelProto, x: Callable[[int], Array], seeds: int = 6) -> tuple[float, float]:
    """Return how far the original and what is written in two are off the truth at most."""
    changed, errors = _in_two(made), [0.0, 0.0]
    for seed in range(seeds):
        given = x(seed)
        truth = _truth(made, given)
        for at, each in enumerate((made, changed)):
            got = run(each, {"x": given})["y"].astype(np.float64)
            assert got.shape == truth.shape
            errors[at] = max(errors[at], float(np.abs(got - truth).max()))
    return errors[0], errors[1]


_LARGE = (1, 8, 96, 80)


def _spelled(name: str) -> tuple[Made, int]:
    """Return an operator on 8 channels and its opset."""
    if name.startswith("GroupNormalization"):
        return _group(2, 8), 21
    if name.startswith("exported"):
        return _exported(2, 8), 17
    if name.startswith("Instance"):
        return _instance(8), 17
    if name.startswith("Global"):
        return ([node(name, "x", "y", name="pool")], {}), 17
    return _reduced(name, 17, [2, 3], 1), 17


_SPELLED = ["InstanceNormalization", "exported", "GroupNormalization", "GlobalAveragePool"]
_SPELLED += ["GlobalMaxPool", *REDUCTIONS]


@pytest.mark.parametrize("name", _SPELLED)
def test_accuracy(name: str) -> None:
    """Of normal numbers: as near to the truth as the original, in ONNX Runtime."""
    made, opset = _spelled(name)
    positive = name in ("ReduceProd", "ReduceLogSum")

    def x(seed: int) -> Array:
        drawn = noise(*_LARGE, seed=seed)
        return 1 + drawn / 200 if positive else drawn

    before, after = _worst(_model(made, _LARGE, opset=opset), x)
    largest = float(np.abs(_truth(_model(made, _LARGE, opset=opset), x(0))).max())
    # Half a last place is what no order of a sum can help. Of a product every factor is rounded,
    # and what thousands of roundings come to differs from one order to another, either way.
    allowed = 3 if name == "ReduceProd" else 1.5
    assert after <= max(allowed * before, float(np.spacing(np.float32(largest))) / 2)


@pytest.mark.parametrize("name", ["InstanceNormalization", "exported", "GroupNormalization"])
def test_accuracy_far_from_zero(name: str) -> None:
    """Around 10,000 with a deviation of 0.01: the difference of two large sums would be lost."""
    made, opset = _spelled(name)

    def x(seed: int) -> Array:
        return (1e4 + 1e-2 * noise(*_LARGE, seed=seed, dtype=np.float64)).astype(np.float32)

    before, after = _worst(_model(made, _LARGE, opset=opset), x)
    assert after <= 1.5 * before


@pytest.mark.parametrize("name", _SPELLED)
def test_half_precision(name: str) -> None:
    """Sums are made in float32, so that the result is off by its own rounding."""
    made, opset = _spelled(name)
    positive = name in ("ReduceProd", "ReduceLogSum")

    def x(seed: int) -> Array:
        drawn = noise(*_LARGE, seed=seed, dtype=np.float16)
        return 1 + drawn / np.float16(200) if positive else drawn

    half = _model(made, _LARGE, opset=opset, kind=TensorProto.FLOAT16)
    before, after = _worst(half, x, seeds=3)
    largest = float(np.abs(_truth(half, x(0))).max())
    assert after <= max(1.5 * before, float(np.spacing(np.float16(largest))))


# --- the way back -----------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_undo_gives_the_model_back(opset: int) -> None:
    """Byte for byte, with what onnx does not know and what stands in nobody's way."""
    nodes, weights = _exported(2)
    nodes[-1].output[0] = "between"
    nodes += [
        node("Relu", "between", "h", name="relu"),
        node("GlobalAveragePool", "h", "y", name="pool"),
    ]
    made = _model((nodes, weights), (2, 4, 6, 5), opset=opset)
    nodes[1].doc_string = "the first"
    made.graph.node[1].doc_string = "the first"
    made.graph.value_info.append(value("x3", (2, 2, None)))
    made.graph.node[1].attribute.append(onnx.helper.make_attribute("note", "kept"))
    as_it_was = made.SerializeToString()
    found = _found_loosely(made)
    assert [entry.kind for entry in found] == ["GroupNorm statistics", "global pooling"]
    changed = respell(made.graph, found)
    assert made.SerializeToString() != as_it_was
    changed.undo(made.graph)
    assert made.SerializeToString() == as_it_was
    Respellings().undo(made.graph)
    assert made.SerializeToString() == as_it_was


def _found_loosely(made: onnx.ModelProto) -> list[Statistic]:
    """Find statistics of a model that only our own reader takes."""
    plain = copy_of(made)
    for each in plain.graph.node:
        kept = [a for a in each.attribute if a.name != "note"]
        del each.attribute[:]
        each.attribute.extend(kept)
    return _found(plain, {"x": 2, "h": 2})


def test_what_is_not_cut_comes_back() -> None:
    """A rewrite that cuts nothing returns the model as it was given, byte for byte."""
    made = _model(_exported(2), (1, 4, 6, 5))
    as_it_was = made.SerializeToString()
    outcome = rewrite_model(Loaded(made, None), Options())
    assert not outcome.rewritten
    assert outcome.model.SerializeToString() == as_it_was


def test_what_serves_a_statistic_goes_with_it() -> None:
    """Sizes that are worked out for it alone; others stay."""
    nodes, weights = _exported(2)
    made = _model((nodes, weights))
    (entry,) = _found(made, {"x": 2})
    assert entry.covered == tuple(range(6))
    assert entry.outputs[0] == "y"
    assert entry.label == "norm"
    shared = [*nodes, node("Shape", "dims", "rank", name="rank")]
    both = _model((shared, weights), outputs=("y",))
    (entry,) = _found(both, {"x": 2})
    assert 2 not in entry.covered


# --- refusals ---------------------------------------------------------------------------------


def _changed(made: Made, **changes: Any) -> Made:
    """Return an exporter's GroupNorm with nodes put behind, or weights changed."""
    nodes, weights = made
    return [*nodes, *changes.pop("nodes", ())], {**weights, **changes}


_NO_AXES: Made = (
    [node("ReduceSum", "x none", "y", noop_with_empty_axes=1)],
    {"none": np.array([], np.int64)},
)


@pytest.mark.parametrize(
    ("why", "made", "dims", "axes"),
    [
        ("of one axis alone", _instance(), (1, 4, 6), {"x": 2}),
        ("whose axis nobody knows", _instance(), (1, 4, 6, 5), {}),
        ("whose channels nobody knows", _instance(), (1, "C", 6, 5), {"x": 2}),
        ("of one column", _reduced("ReduceMean", 17, [2, 3], 1), (1, 4, 6, 1), {"x": 2}),
        ("of one row", _reduced("ReduceMean", 17, [2, 3], 1), (1, 4, 1, 5), {"x": 2}),
        ("over channels", _reduced("ReduceMean", 17, [1], 1), (1, 4, 6, 5), {"x": 2}),
        ("over columns", _reduced("ReduceMax", 17, [3], 1), (1, 4, 6, 5), {"x": 2}),
        ("over rows alone", _reduced("ReduceMax", 17, [2], 1), (1, 4, 6, 5), {"x": 2}),
        (
            "over no axis",
            (
                [node("ReduceSum", "x none", "y", noop_with_empty_axes=1)],
                {"none": np.array([], int)},
            ),
            (1, 4, 6, 5),
            {"x": 2},
        ),
        (
            "groups that are no channels together",
            _changed(_exported(2), grouped=np.array([1, 3, 40])),
            (1, 4, 6, 5),
            {"x": 2},
        ),
        (
            "groups of more than one image",
            _changed(_exported(2), grouped=np.array([1, 2, -1])),
            (2, 4, 6, 5),
            {"x": 2},
        ),
        (
            "put back to another shape",
            _changed(_exported(2, shape="known"), known=np.array([1, 4, 5, 6])),
            (1, 4, 6, 5),
            {"x": 2},
        ),
        (
            "whose groups another reads",
            _changed(_exported(2), nodes=[node("Relu", "x3", "z")]),
            (1, 4, 6, 5),
            {"x": 2},
        ),
        (
            "whose result another reads before it is put back",
            _changed(_exported(2), nodes=[node("Relu", "y3", "z")]),
            (1, 4, 6, 5),
            {"x": 2},
        ),
    ],
)
def test_refusals(why: str, made: Made, dims: Dims, axes: Mapping[str, int]) -> None:
    """What cannot be written in two, or gains nothing by it, is left as it is."""
    assert _found(_model(made, dims), axes) == [], why


@pytest.mark.parametrize("name", ["x3", "y3"])
def test_an_output_inside_is_left(name: str) -> None:
    """Exporters' GroupNorm of which something in between is an output."""
    assert _found(_model(_exported(2), outputs=("y", name)), {"x": 2}) == []


def test_axes_that_are_given_at_run_time_are_left() -> None:
    """Nobody knows what they are."""
    made = model(
        [node("ReduceMean", "x axes", "y", name="mean")],
        [value("x", (1, 4, 6, 5)), value("axes", (2,), TensorProto.INT64)],
        [value("y", None)],
        opset=18,
    )
    assert _found(made, {"x": 2}) == []


@pytest.mark.parametrize(
    "other",
    [
        ("Mul", "back gate"),  # no constant
        ("Mul", "back one"),  # one number for all channels
        ("Mul", "back row"),  # not the same in all rows
        ("Sub", "back shift"),
    ],
)
def test_what_is_no_scale_of_channels_stays(other: tuple[str, str]) -> None:
    """The normalisation is written in two, what stands behind it is not taken into it."""
    nodes, weights = _exported(2)
    del nodes[4:]
    nodes.append(node(*other, "y", name="behind"))
    weights |= {"one": np.array(2, np.float32), "row": noise(4, 6, 1)}
    made = model(
        nodes, [value("x", (1, 4, 6, 5)), value("gate", (1, 4, 1, 1))], [value("y", None)], weights
    )
    (entry,) = _found(made, {"x": 2})
    assert entry.outputs[0] == "back"
    changed = copy_of(made)
    respell(changed.graph, [entry])
    assert changed.graph.node[-1] == made.graph.node[-1]
    assert_same(made, changed, {"x": noise(1, 4, 6, 5), "gate": noise(1, 4, 1, 1)})


def test_what_is_an_output_too_is_kept() -> None:
    """The result before its scale is asked for: the scale is left behind it."""
    made = _model(_exported(2), outputs=("y", "back"))
    (entry,) = _found(made, {"x": 2})
    assert entry.outputs[0] == "back"
    changed = copy_of(made)
    respell(changed.graph, [entry])
    assert_same(made, changed, {"x": noise(1, 4, 6, 5)})


# --- names ------------------------------------------------------------------------------------


def test_names_that_are_taken_are_avoided() -> None:
    """A model that is written so already, or only calls its tensors so."""
    nodes, weights = _instance()
    nodes[0].output[0] = "h"
    nodes.append(node("Relu", "h", "norm/statistic/rows", name="statistic"))
    nodes.append(node("Relu", "norm/statistic/rows", "y", name="/statistic_2/"))
    made = _model((nodes, weights))
    (entry,) = _found(made, {"x": 2})
    assert entry.rows == "norm/statistic_3/rows"
    changed = copy_of(made)
    respell(changed.graph, [entry])
    assert_same(made, changed, {"x": noise(1, 4, 6, 5)})


_TWICE = [
    node("InstanceNormalization", "x g b", "twice"),
    node("InstanceNormalization", "twice g b", "y", name="twice"),
]


def test_a_name_that_two_nodes_answer_to() -> None:
    """A nameless node goes by its output, which another node may be called like."""
    made = _model((_TWICE, _instance()[1]))
    found = _found(made, {"x": 2, "twice": 2})
    assert len({entry.rows for entry in found}) == 2
    changed = copy_of(made)
    respell(changed.graph, found)
    assert_same(made, changed, {"x": noise(1, 4, 6, 5)})


# --- what only looks the same -----------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    "ReduceMax ReduceMin ReduceSum ReduceProd ReduceL1 ReduceSumSquare ReduceMean ReduceL2 "
    "ReduceLogSumExp".split(),
)
def test_whole_numbers(op: str) -> None:
    """A mean, a root or a logarithm of each row would be rounded: then they stay as they are."""
    made = _model(_reduced(op, 17, [2, 3], 1), (2, 4, 6, 5), kind=TensorProto.INT32)
    changed = copy_of(made)
    respell(changed.graph, _found(made, {"x": 2}))
    for seed in range(5):
        x = np.random.default_rng(seed).integers(1, 9, (2, 4, 6, 5)).astype(np.int32)
        np.testing.assert_array_equal(run(made, {"x": x})["y"], run(changed, {"x": x})["y"])


@pytest.mark.parametrize(("grouped", "right"), [([0, 2, -1], True), ([-1, 2, 30], False)])
def test_groups_of_a_free_batch(grouped: Sequence[int], right: bool) -> None:
    """[-1, 2, height x width] is twice as many images of half the channels: no GroupNorm."""
    nodes, weights = _exported(2)
    made = _model((nodes, {**weights, "grouped": np.asarray(grouped)}), ("N", 4, 6, 5))
    found = _found(made, {"x": 2})
    assert len(found) == int(right)
    changed = copy_of(made)
    respell(changed.graph, found)
    assert_same(made, changed, {"x": 3 + noise(2, 4, 6, 5)})


def test_a_shape_that_says_where_it_starts() -> None:
    """PyTorch's newer exporter writes the default, ``start=0``, at sizes that are free."""
    nodes, weights = _exported(2)
    nodes[2].attribute.append(onnx.helper.make_attribute("start", 0))
    made = _model((nodes, weights), ("N", 4, "H", "W"), opset=18)
    assert len(_found(made, {"x": 2})) == 1


def test_a_shape_of_some_dimensions_is_another() -> None:
    """What is put back to a part of a shape is not put back."""
    nodes, weights = _exported(2)
    nodes[2].attribute.append(onnx.helper.make_attribute("start", 1))
    made = _model((nodes, weights), ("N", 4, "H", "W"), opset=18)
    assert _found(made, {"x": 2}) == []
