"""`graph.constant_folding`: size arithmetic is worked out, and never more than a size is made."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest

from patchconv_deploy.rewriters.graph.constant_folding import Constants, infer_by_value
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.use_def import index
from tests.support.small_models import Array, model, node


def constants(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Array], dims: Any = (1, 3, 40, 16)
) -> Constants:
    """Return the constants of a model of these nodes; its input is x, its output y."""
    made = model([*nodes, node("Relu", "x", "y")], {"x": dims}, {"y": dims}, weights)
    slim = skeleton(Loaded(made, None))
    return Constants(slim, index(made), infer(slim))


def ints(*values: int) -> Array:
    """Return whole numbers."""
    return np.array(values, np.int64)


_LARGE = 300

_CUBE = {
    "a": np.ones((_LARGE, 1, 1), np.int32),
    "b": np.ones((1, _LARGE, 1), np.int32),
    "c": np.ones((1, 1, _LARGE), np.int32),
    "t": np.ones((_LARGE, 1, 1), np.bool_),
    "u": np.ones((1, _LARGE, 1), np.bool_),
}


@pytest.mark.parametrize(
    ("made", "weights"),
    [
        *[(node(op, "a b", "k"), _CUBE) for op in ("Add", "Sub", "Mul", "Div", "Mod", "Equal")],
        *[(node(op, "a b", "k"), _CUBE) for op in ("Greater", "GreaterOrEqual", "Less")],
        *[(node(op, "t u", "k"), _CUBE) for op in ("And", "Or", "Xor")],
        (node("Max", "a b c", "k"), _CUBE),
        (node("Min", "a b c", "k"), _CUBE),
        (node("Where", "t b c", "k"), _CUBE),
        (node("Expand", "one to", "k"), {"one": ints(1), "to": ints(30_000, 1000)}),
        (node("ConstantOfShape", "to", "k"), {"to": ints(30_000, 1000)}),
        (
            node("Range", "from to by", "k"),
            {"from": np.array(0), "to": np.array(30_000_000), "by": np.array(1)},
        ),
        (
            node("Range", "from to by", "k"),
            {"from": np.float32(0), "to": np.float32(1), "by": np.float32(1e-9)},
        ),
        (node("Concat", "a " * 3000, "k", axis=0), {"a": np.ones(500, np.int64)}),
        (
            node("Gather", "a i", "k", axis=1),
            {"a": np.ones((500, 1), np.int64), "i": np.zeros((20, 25), np.int64)},
        ),
    ],
    ids=lambda each: each.op_type if isinstance(each, onnx.NodeProto) else "",
)
def test_a_large_result_is_not_made(made: onnx.NodeProto, weights: Mapping[str, Array]) -> None:
    """Operands of some kilobytes, results of many megabytes: no value, and never any of them."""
    known = constants([made], weights)
    tracemalloc.start()
    try:
        assert known.array("k") is None
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("made", "weights"),
    [
        (node("Add", "a b", "k"), {"a": ints(1, 2, 3), "b": np.array([[10], [20]])}),
        (node("Max", "a b a", "k"), {"a": ints(1, 200), "b": ints(100)}),
        (node("Where", "t a b", "k"), {"t": np.array([True, False]), "a": ints(1), "b": ints(2)}),
        (node("Expand", "a to", "k"), {"a": ints(1, 2), "to": ints(3, 1)}),
        (node("ConstantOfShape", "to", "k"), {"to": ints(3, 0)}),
        (node("ConstantOfShape", "to", "k"), {"to": np.zeros(0, np.int64)}),
        (
            node("Range", "from to by", "k"),
            {"from": np.array(1023), "to": np.array(-1), "by": np.array(-1)},
        ),
        (
            node("Range", "from to by", "k"),
            {"from": np.array(5), "to": np.array(1), "by": np.array(1)},
        ),
        (node("Concat", "a b", "k", axis=0), {"a": ints(*range(500)), "b": ints(*range(500))}),
        (
            node("Gather", "a i", "k", axis=-2),
            {"a": np.arange(500).reshape(250, 2), "i": np.zeros((16, 32), np.int32)},
        ),
        (node("Slice", "a b c", "k"), {"a": ints(*range(500)), "b": ints(3), "c": ints(5)}),
    ],
    ids=lambda each: each.op_type if isinstance(each, onnx.NodeProto) else "",
)
def test_a_small_result_is_worked_out(made: onnx.NodeProto, weights: Mapping[str, Array]) -> None:
    """Up to 1,024 elements, as the reference implementation makes them."""
    evaluator: Any = onnx.reference.ReferenceEvaluator
    want = evaluator(made, opsets={"": 17}).run(None, dict(weights))[0]
    found = constants([made], weights).array("k")
    assert found is not None
    np.testing.assert_array_equal(found, want)


def test_sizes_that_come_of_sizes_are_worked_out() -> None:
    """A Range up to a computed height: inference need not know how long it is."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "h"),
        node("Range", "zero h one", "r"),
    ]
    scalars = {name: np.array(value) for name, value in (("two", 2), ("zero", 0), ("one", 1))}
    assert constants(nodes, scalars).numbers("r") == tuple(range(40))


def test_all_of_them_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many small nodes does not become many kilobytes for each."""
    monkeypatch.setattr("patchconv_deploy.rewriters.graph.constant_folding._MOST_TOGETHER", 2500)
    nodes = [node("ConstantOfShape", "n", f"k{k}") for k in range(10)]
    known = constants(nodes, {"n": ints(1000)})
    assert [known.array(f"k{k}") is not None for k in range(10)] == [True] * 2 + [False] * 8


@pytest.mark.parametrize("kind", ["value_ints", "value_floats"])
def test_a_constant_of_many_numbers_is_a_weight(kind: str) -> None:
    """Its values are not made Python numbers."""
    many: Any = [1] * 200_000 if kind == "value_ints" else [1.0] * 200_000
    made = node("Constant", "", "k", **{kind: many})
    known = constants([made], {})
    tracemalloc.start()
    try:
        assert known.array("k") is None
        assert len(attributes(made)[kind]) < 10_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "made",
    [
        onnx.TensorProto(name="w", data_type=77, dims=[1], raw_data=b"1234"),
        onnx.TensorProto(name="w", data_type=7, dims=[3], int64_data=[1]),
        onnx.TensorProto(name="w", data_type=7, dims=[0, 2**62], raw_data=b""),
        onnx.TensorProto(name="w", data_type=8, dims=[2]),
    ],
)
def test_a_tensor_that_cannot_be_read_is_not_known(made: onnx.TensorProto) -> None:
    """A type nobody knows, other bytes than its shape asks for."""
    known = constants([], {})
    known._tensors["w"] = made
    found = known.array("w")
    assert found is None or not found.size


def test_scales_that_are_none_are_no_scales() -> None:
    """A Resize by a tensor that holds something else: sizes stay unknown, nothing fails."""
    for scales in (np.ones(5000, np.float32), np.ones((2, 2), np.float32)):
        made = model(
            [node("Resize", "x _ s", "y", mode="nearest")],
            {"x": (1, 3, 8, 8)},
            {"y": None},
            {"s": scales},
        )
        slim = skeleton(Loaded(made, None))
        assert infer(slim).dims.get("y", (None,)) in ((None,), (1, 3, 8, 8))


_STAGES = 3


def _staged() -> onnx.ModelProto:
    """Return Reshapes to sizes that are worked out of the shape before, at opset 11."""
    nodes, name = [], "x"
    for k in range(_STAGES):
        nodes += [
            node("Shape", name, f"s{k}"),
            node("Cast", f"s{k}", f"c{k}", to=onnx.TensorProto.INT32),
            node("Slice", f"c{k} zero one", f"n{k}"),
            node("Cast", f"n{k}", f"l{k}", to=onnx.TensorProto.INT64),
            node("Concat", f"l{k} rest", f"value_{k}", axis=0),
            node("Reshape", f"{name} value_{k}", f"r{k}"),
            node("Relu", f"r{k}", f"y{k}"),
        ]
        name = f"y{k}"
    weights = {"zero": ints(0), "one": ints(1), "rest": ints(-1, 6)}
    return model(nodes, {"x": (2, 3, 4)}, {name: None}, weights, opset=11)


@pytest.mark.parametrize("estimate", [False, True])
def test_sizes_behind_arithmetic_are_known_at_any_opset(estimate: bool) -> None:
    """One stage after the other; names that stand for the values are none of the shapes."""
    slim = skeleton(Loaded(_staged(), None))
    before = slim.graph.node[5].SerializeToString()
    found = infer_by_value(slim, estimate=estimate)
    assert {found.dims[f"y{k}"] for k in range(_STAGES)} == {(2, 2, 6)}
    assert not infer(slim, estimate=estimate).dims.get("y0")
    made = {name for each in slim.graph.node for name in (*each.input, *each.output)}
    assert found.dims.keys() | found.elements.keys() <= made
    assert slim.graph.node[5].SerializeToString() == before


def test_what_a_caller_may_override_is_no_size() -> None:
    """Sizes made of an initializer that is an input too are not known."""
    slim = skeleton(Loaded(_staged(), None))
    slim.graph.input.append(onnx.helper.make_tensor_value_info("rest", onnx.TensorProto.INT64, [2]))
    assert None in infer_by_value(slim).dims.get("y0", (None,))
