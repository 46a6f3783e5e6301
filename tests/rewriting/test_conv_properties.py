"""Random convolutions, cut into patches, against the uncut one and the float64 oracle.

All data are small whole numbers, so every sum of products is exact in float32 in whatever order a
kernel adds: right results are equal to the bit, and a misplaced row is off by at least 1. That is
why these tests compare with ``==`` and not within a tolerance. A test on ordinary random numbers,
with a tolerance, stands at the end.

Each test counts what it has compared and asks for a least number, so that none passes by skipping.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import (
    EPFail,
    Fail,
    InvalidArgument,
    RuntimeException,
)
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotInRuntime

from tests.support.oracle import (
    Array,
    conv,
    conv_model,
    conv_transpose,
    integers,
    make_model,
    ops,
    oracle_run,
    oracle_session,
    ort_run,
    ort_session,
    rewrite,
    value,
)
from tests.support.tiers import examples

_REFUSED_BY_ORT = (EPFail, Fail, InvalidArgument, NotInRuntime, RuntimeException)

_NAMES = {1: ("height", "width", "depth"), 2: ("height", "width"), 3: ("height", "width", "depth")}

_FROM_END = {"width": 1, "height": 2, "depth": 3}

_OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22)


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Case:
    """One convolution, how it is cut, and the sizes it runs at."""

    op: str
    opset: int
    kernel: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    weight: tuple[int, ...]
    bias: bool
    free: frozenset[int]
    shapes: tuple[tuple[int, ...], ...]
    splits: int
    form: str
    axis: str | int
    seed: int

    @property
    def tiled(self) -> int:
        """The tensor dimension that is cut."""
        if isinstance(self.axis, int):
            return self.axis
        rank = len(self.kernel) + 2
        return 2 if rank == 3 else rank - _FROM_END[self.axis]

    def given(self, name: str, default: Any) -> Any:
        """Return an attribute, or the default where it is left out."""
        return dict(self.attributes).get(name, default)


def _minimum(
    op: str, reach: int, stride: int, pads: tuple[int, int], auto_pad: str, extra: int
) -> int:
    """Return the least rows with an output row."""
    if op == "Conv":
        return 1 if auto_pad.startswith("SAME") else max(1, reach - sum(pads))
    if auto_pad.startswith("SAME"):
        return 1
    return max(1, -(-(1 + sum(pads) - extra - reach) // stride) + 1)


@st.composite
def cases(draw: st.DrawFn, op: str, *, dynamic: bool, longest: int = 40) -> Case:
    """Draw a convolution that has at least one output row and column at each of its sizes."""
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    axis: str | int = draw(st.one_of(st.sampled_from(_NAMES[rank]), st.integers(2, rank + 1)))
    tiled = axis if isinstance(axis, int) else (2 if rank == 1 else rank + 2 - _FROM_END[axis])
    kernel, strides, dilations, begins, ends, extras = [], [], [], [], [], []
    auto_pad = draw(st.sampled_from(("NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")))
    for i in range(rank):
        here = i + 2 == tiled
        kernel.append(draw(st.integers(1, 7 if here else 3)))
        strides.append(draw(st.integers(1, 4 if here else 2)))
        dilations.append(draw(st.integers(1, 3 if here else 2)))
        most = dilations[i] * (kernel[i] - 1) + 1
        begins.append(draw(st.integers(0, most)) if auto_pad == "NOTSET" else 0)
        ends.append(draw(st.integers(0, most)) if auto_pad == "NOTSET" else 0)
        extras.append(draw(st.integers(0, strides[i] - 1)) if op == "ConvTranspose" else 0)
    if not draw(st.booleans()):
        dilations = [1] * rank
    group = draw(st.integers(1, 3))
    inner = draw(st.integers(1, 2))
    outer = draw(st.integers(1, 3))
    if draw(st.integers(0, 3)) == 0:  # depthwise
        group, inner, outer = 3, 1, draw(st.integers(1, 2))
    weight = (group * outer, inner) if op == "Conv" else (group * inner, outer)
    attributes: dict[str, Any] = {}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    if any(s != 1 for s in strides) or draw(st.booleans()):
        attributes["strides"] = strides
    if any(d != 1 for d in dilations) or draw(st.booleans()):
        attributes["dilations"] = dilations
    if any(begins + ends) or (auto_pad == "NOTSET" and draw(st.booleans())):
        attributes["pads"] = begins + ends
    if auto_pad != "NOTSET" or draw(st.booleans()):
        attributes["auto_pad"] = auto_pad
    if group != 1 or draw(st.booleans()):
        attributes["group"] = group
    if any(extras):
        attributes["output_padding"] = extras
        if auto_pad.startswith("SAME"):  # see test_same_padding_with_output_padding
            del attributes["output_padding"]
            extras = [0] * rank
    free = frozenset[int]()
    if dynamic:
        free = frozenset(draw(st.sets(st.sampled_from([0, *range(2, rank + 2)]), min_size=1)))
        if draw(st.integers(0, 3)):
            free |= {tiled}
    count = draw(st.integers(3, 5)) if dynamic else 1
    least = [
        _minimum(
            op,
            dilations[i] * (kernel[i] - 1) + 1,
            strides[i],
            (begins[i], ends[i]),
            auto_pad,
            extras[i],
        )
        for i in range(rank)
    ]
    first: list[int] = []
    shapes = []
    for number in range(count):
        shape = [draw(st.integers(1, 3)), group * inner]
        for i in range(rank):
            most = longest if i + 2 == tiled else 5
            # The tiniest size comes up at least once where sizes are free.
            tiny = dynamic and number == 0
            shape.append(least[i] if tiny else draw(st.integers(least[i], max(least[i], most))))
        first = first or shape
        shapes.append(tuple(size if j in free else first[j] for j, size in enumerate(shape)))
    fixed = not free & set(range(2, rank + 2))
    if op == "ConvTranspose" and fixed and draw(st.integers(0, 3)) == 0:
        natural = [
            strides[i] * (shapes[0][2 + i] - 1) + extras[i] + dilations[i] * (kernel[i] - 1) + 1
            for i in range(rank)
        ]
        attributes["output_shape"] = [draw(st.integers(max(1, n - 6), n)) for n in natural]
    return Case(
        op=op,
        opset=draw(st.sampled_from(_OPSETS)),
        kernel=tuple(kernel),
        attributes=tuple(attributes.items()),
        weight=weight,
        bias=draw(st.booleans()),
        free=free,
        shapes=tuple(shapes),
        splits=draw(st.sampled_from((*range(2, 10), 1))),
        form=draw(st.sampled_from(("batch", "sequential"))),
        axis=axis,
        seed=draw(st.integers(0, 2**16)),
    )


def _expected_code(case: Case, rows_out: int) -> str | None:
    """Return the code a convolution is to be refused with, None if it is to be cut."""
    if case.op == "ConvTranspose" and str(case.given("auto_pad", "")).startswith("SAME"):
        ones = (1,) * len(case.kernel)
        totals = [
            d * (k - 1) + 1 + extra - s
            for k, s, d, extra in zip(
                case.kernel,
                case.given("strides", ones),
                case.given("dilations", ones),
                case.given("output_padding", (0,) * len(case.kernel)),
                strict=True,
            )
        ]
        if case.given("output_shape", None) is None and min(totals) < 0:
            return "not-provable"
    if case.splits == 1:
        return "one-patch"
    if case.tiled in case.free:
        return "opset-too-old" if case.opset < 10 else None
    return "one-row" if rows_out < 2 else None


def _model(case: Case) -> onnx.ModelProto:
    rng = np.random.default_rng(case.seed)
    weight = integers(rng, (*case.weight, *case.kernel))
    channels = weight.shape[0]
    if case.op == "ConvTranspose":
        channels = weight.shape[1] * case.given("group", 1)
    shape = [f"d{i}" if i in case.free else size for i, size in enumerate(case.shapes[0])]
    return conv_model(
        shape,
        weight,
        integers(rng, (channels,)) if case.bias else None,
        op=case.op,
        opset=case.opset,
        **dict(case.attributes),
    )


def _oracle(case: Case, model: onnx.ModelProto, x: Array) -> Array:
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    attributes = {n: v for n, v in case.attributes if n != "kernel_shape"}
    function = conv if case.op == "Conv" else conv_transpose
    return function(x, weights[0], weights[1] if case.bias else None, **attributes)


def _undefined(case: Case) -> bool:
    """Tell whether SAME padding would be negative, a stride being larger than the kernel's reach.

    ONNX does not say what happens then: ONNX Runtime crops, the oracle (and TensorFlow) does not.
    The rewritten graph must agree with either, each run by itself.
    """
    ones = (1,) * len(case.kernel)
    return str(case.given("auto_pad", "")).startswith("SAME") and any(
        d * (k - 1) + 1 < s
        for k, s, d in zip(
            case.kernel, case.given("strides", ones), case.given("dilations", ones), strict=True
        )
    )


def _check(case: Case, seen: Counter[str]) -> None:
    """Cut the case's convolution and compare it at each of its sizes."""
    model = _model(case)
    rng = np.random.default_rng(case.seed + 1)
    feeds = [integers(rng, shape) for shape in case.shapes]
    expected = [_oracle(case, model, x) for x in feeds]
    outcome = rewrite(model, splits=case.splits, form=case.form, axis=case.axis)
    code = _expected_code(case, expected[0].shape[case.tiled])
    if code is not None:
        assert [refusal.code for refusal in outcome.refused] == [code], outcome.refused
        assert outcome.model.SerializeToString() == model.SerializeToString()
        seen[f"refused: {code}"] += 1
        return
    assert not outcome.refused, outcome.refused
    assert len(outcome.rewritten) == 1
    done = outcome.rewritten[0]
    assert (done.form, done.axis) == (case.form, case.tiled)
    onnx.checker.check_model(outcome.model, full_check=True)
    assert ops(outcome.model).count(case.op) == (1 if case.form == "batch" else done.splits)
    note(str(outcome.rewritten))
    run: Any
    try:
        original = ort_session(model)
        uncut = [original.run(None, {"x": x})[0] for x in feeds]
        run = ort_session(outcome.model)
        seen["onnxruntime"] += len(feeds)
    except _REFUSED_BY_ORT as error:
        # ONNX Runtime refuses the original: the reference evaluator runs the rewritten one.
        if "Dilation not supported for AutoPadType::SAME" not in str(error):
            raise
        uncut = [right.astype(np.float32) for right in expected]
        run = oracle_session(outcome.model)
        seen["oracle alone"] += len(feeds)
    apart = _undefined(case)
    second = oracle_session(outcome.model) if apart else None
    for x, whole, right in zip(feeds, uncut, expected, strict=True):
        if second is None:
            assert np.array_equal(whole, right), "ONNX Runtime on the original against the oracle"
        else:
            (again,) = second.run(None, {"x": x})
            assert np.array_equal(again, right)
            seen["undefined"] += 1
        cut: Array = run.run(None, {"x": x})[0]
        assert cut.dtype == whole.dtype
        assert cut.shape == whole.shape, (x.shape, cut.shape, whole.shape)
        assert np.array_equal(cut, whole), f"wrong rows at {x.shape}"
        seen["compared"] += 1
    seen["cut"] += 1


def _run(strategy: st.SearchStrategy[Case], examples: int) -> Counter[str]:
    seen: Counter[str] = Counter()

    @_settings(examples)
    @given(strategy)
    def check(case: Case) -> None:
        _check(case, seen)

    check()
    return seen


# The least number of outputs compared per example drawn; a free one is run at several sizes.
_COMPARED = {
    ("Conv", False): 0.6,
    ("Conv", True): 2,
    ("ConvTranspose", False): 0.6,
    ("ConvTranspose", True): 2,
}


@examples(300, 15_000)
@pytest.mark.parametrize(("op", "dynamic"), _COMPARED)
def test_random_convolution(op: str, dynamic: bool, examples: int) -> None:
    """Every random convolution is cut and equals the uncut one and the oracle, to the bit.

    The slow tier draws fifty times as many, some 80,000 outputs, and longer axes.
    """
    longest = 40 if examples < 1000 else 90
    seen = _run(cases(op, dynamic=dynamic, longest=longest), examples)
    assert seen["compared"] >= _COMPARED[op, dynamic] * examples, seen
    assert seen["onnxruntime"] >= 0.7 * seen["compared"], seen
    assert seen["refused: one-patch"] > examples / 75, seen
    if dynamic:
        assert seen["refused: opset-too-old"] > examples / 75, seen


@st.composite
def _chains(draw: st.DrawFn) -> tuple[onnx.ModelProto, list[Array], int, str]:
    """Draw three convolutions one after the other, the shapes between them left to inference."""
    nodes, weights, channels = [], {}, draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    first = channels
    for number in range(3):
        op = draw(st.sampled_from(("Conv", "Conv", "ConvTranspose")))
        stride, kernel = draw(st.integers(1, 2)), draw(st.integers(2, 4))
        made = draw(st.integers(1, 3))
        shape = (made, channels) if op == "Conv" else (channels, made)
        weights[f"w{number}"] = integers(rng, (*shape, kernel, kernel), most=2)
        attributes: dict[str, Any] = {"strides": [stride, stride]}
        match draw(st.integers(0, 3)):
            case 0:
                attributes["auto_pad"] = draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER")))
            case 1 | 2:
                attributes["pads"] = [draw(st.integers(0, kernel - 1)) for _ in range(4)]
        if op == "ConvTranspose" and stride == 2 and "auto_pad" not in attributes:
            attributes["output_padding"] = [draw(st.integers(0, 1)) for _ in range(2)]
        nodes.append(
            onnx.helper.make_node(
                op, [f"t{number}", f"w{number}"], [f"t{number + 1}"], f"conv{number}", **attributes
            )
        )
        channels = made
    dynamic = draw(st.booleans())
    sizes = [(1, first, *(draw(st.integers(22, 40)) for _ in range(2)))] * (3 if dynamic else 1)
    if dynamic:
        sizes = [(n + 1, first, h + n, w) for n, (_, _, h, w) in enumerate(sizes)]
    spelled: list[int | str] = ["n", first, "h", "w"] if dynamic else [*sizes[0]]
    model = make_model(
        nodes,
        [value("t0", spelled)],
        [value("t3", [None] * 4)],
        weights,
        opset=draw(st.sampled_from((11, 13, 18))),
    )
    feeds = [integers(rng, size, most=2) for size in sizes]
    return model, feeds, draw(st.integers(2, 6)), draw(st.sampled_from(("batch", "sequential")))


@examples(75, 250)
def test_chain_of_convolutions(examples: int) -> None:
    """Three convolutions in a row, each cut on its own: inferred shapes lead nowhere wrong."""
    compared = 0

    @_settings(examples)
    @given(_chains())
    def check(drawn: tuple[onnx.ModelProto, list[Array], int, str]) -> None:
        nonlocal compared
        model, feeds, splits, form = drawn
        outcome = rewrite(model, splits=splits, form=form)
        assert len(outcome.rewritten) == 3, outcome.refused
        before, after = ort_session(model), ort_session(outcome.model)
        for x in feeds:
            whole, cut = (run.run(None, {"t0": x})[0] for run in (before, after))
            assert np.array_equal(whole, cut)
            assert np.array_equal(whole, oracle_run(model, {"t0": x})[0])
            compared += 1

    check()
    assert compared >= 1.2 * examples


_PUBLISHED_WRONG: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], int]] = {
    # name: input, weight, attributes, splits
    "the stride does not divide the patch": (
        (1, 3, 24, 10),
        (4, 3, 3, 3),
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        8,  # patches of 3 rows
    ),
    "the splits do not divide the height": (
        (1, 3, 23, 10),
        (4, 3, 3, 3),
        {"pads": [1, 1, 1, 1]},
        4,
    ),
    "less than SAME padding": ((1, 3, 24, 10), (4, 3, 5, 5), {"pads": [1, 1, 1, 1]}, 4),
    "more than SAME padding": ((1, 3, 24, 10), (4, 3, 3, 3), {"pads": [2, 2, 2, 2]}, 4),
    "no padding": ((1, 3, 24, 10), (4, 3, 3, 3), {}, 4),
    "padding on one side": ((1, 3, 24, 10), (4, 3, 3, 3), {"pads": [2, 1, 0, 1]}, 4),
    "a halo longer than a patch": ((1, 3, 16, 10), (4, 3, 9, 3), {"pads": [4, 1, 4, 1]}, 8),
    "a halo as tall as the image": ((1, 3, 8, 10), (4, 3, 9, 3), {"pads": [4, 1, 4, 1]}, 4),
    "dilation": (
        (1, 3, 24, 10),
        (4, 3, 3, 3),
        {"pads": [1, 1, 1, 1], "dilations": [2, 2]},
        4,
    ),
    "a kernel of one column": ((1, 3, 24, 10), (4, 3, 3, 1), {"pads": [1, 0, 1, 0]}, 4),
    "stride 3, kernel 7, padding 2": (
        (2, 3, 40, 10),
        (4, 3, 7, 3),
        {"strides": [3, 1], "pads": [2, 1, 2, 1]},
        5,
    ),
    "one-dimensional": ((1, 3, 25), (4, 3, 3), {"pads": [1, 1]}, 4),
    "three-dimensional": ((1, 2, 6, 13, 5), (4, 2, 3, 3, 3), {"pads": [1] * 6}, 4),
}


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", _PUBLISHED_WRONG)
def test_where_the_published_library_is_wrong(name: str, free: bool, form: str) -> None:
    """Cases that patch_conv asserts on, fails on or gets wrong are right here."""
    size, kernel, attributes, splits = _PUBLISHED_WRONG[name]
    rng = np.random.default_rng(3)
    weight, bias, x = integers(rng, kernel), integers(rng, kernel[:1]), integers(rng, size)
    shape: list[int | str] = [*size]
    if free:
        shape[0], shape[-2 if len(size) > 3 else 2] = "n", "h"
    model = conv_model(shape, weight, bias, **attributes)
    outcome = rewrite(model, splits=splits, form=form)
    assert [done.splits for done in outcome.rewritten] == [
        splits if free else min(splits, outcome.rewritten[0].splits)
    ]
    assert outcome.rewritten[0].splits >= 2
    (whole,), (cut,) = ort_run(model, {"x": x}), ort_run(outcome.model, {"x": x})
    assert np.array_equal(cut, whole)
    assert np.array_equal(cut, conv(x, weight, bias, **attributes))


_ELEMENTS = {
    "float64": (TensorProto.DOUBLE, np.float64, 4),
    "float16": (TensorProto.FLOAT16, np.float16, 3),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, 1),
}


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", _ELEMENTS)
def test_other_element_types(name: str, free: bool, op: str, form: str) -> None:
    """The type is kept and the result is the same; small whole numbers are exact in all of them."""
    element, dtype, most = _ELEMENTS[name]
    rng = np.random.default_rng(5)
    weight, bias = integers(rng, (4, 4, 3, 3), dtype, most), integers(rng, (4,), dtype, most)
    attributes: dict[str, Any] = {"strides": [2, 1], "pads": [1, 1, 1, 1]}
    shape: list[int | str] = ["n", 4, "h", 9] if free else [2, 4, 21, 9]
    model = conv_model(shape, weight, bias, op=op, opset=22, element=element, **attributes)
    outcome = rewrite(model, splits=4, form=form)
    assert len(outcome.rewritten) == 1
    onnx.checker.check_model(outcome.model, full_check=True)
    x = integers(rng, (2, 4, 21, 9), dtype, most)
    right = (conv if op == "Conv" else conv_transpose)(x, weight, bias, **attributes)
    (cut,) = oracle_run(outcome.model, {"x": x})
    assert cut.dtype == np.dtype(dtype)
    assert np.array_equal(cut.astype(np.float64), right)
    if name == "float16":  # ONNX Runtime computes it in float32
        (whole,), (same,) = ort_run(model, {"x": x}), ort_run(outcome.model, {"x": x})
        assert same.dtype == whole.dtype == np.float16
        assert np.array_equal(same, whole)


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_ordinary_numbers(op: str, form: str) -> None:
    """On normally distributed data the error is no larger than the uncut convolution's own.

    576 products of order 1 are summed, so values are of order 24 and one float32 rounding is
    1e-6 of that; kernels may add in another order for another height, a few roundings' worth.
    """
    rng = np.random.default_rng(11)
    weight = rng.standard_normal((64, 64, 3, 3)).astype(np.float32)
    x = rng.standard_normal((1, 64, 61, 17)).astype(np.float32)
    attributes: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [1, 2]}
    model = conv_model([1, 64, 61, 17], weight, None, op=op, **attributes)
    outcome = rewrite(model, splits=5, form=form)
    (whole,), (cut,) = ort_run(model, {"x": x}), ort_run(outcome.model, {"x": x})
    right = (conv if op == "Conv" else conv_transpose)(x, weight, **attributes)
    assert np.abs(cut - whole).max() <= 5e-5
    assert np.abs(cut - right).max() <= max(5e-5, 2 * float(np.abs(whole - right).max()))


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("opset", _OPSETS)
def test_spelling_of_each_opset(opset: int, free: bool, form: str) -> None:
    """Slice, Squeeze and Split are spelled as the opset has them, and a second rewrite is none."""
    rng = np.random.default_rng(1)
    shape: list[int | str] = ["n", 3, "h", "w"] if free else [1, 3, 20, 8]
    model = conv_model(shape, integers(rng, (4, 3, 3, 3)), opset=opset, pads=[1, 1, 1, 1])
    outcome = rewrite(model, splits=3, form=form)
    if free and opset < 10:
        assert [refusal.code for refusal in outcome.refused] == ["opset-too-old"]
        assert not outcome.rewritten
        return
    assert [o.version for o in outcome.model.opset_import] == [opset]
    nodes = outcome.model.graph.node
    for node in nodes:
        names = {attribute.name for attribute in node.attribute}
        if node.op_type == "Slice":
            assert (len(node.input) == 1) == (opset < 10)
            assert ("axes" in names) == (opset < 10)
        if node.op_type == "Squeeze":
            assert ("axes" in names) == (opset < 13) == (len(node.input) == 1)
        if node.op_type == "Split":
            assert ("num_outputs" in names) == (opset >= 18)
    found = Counter(node.op_type for node in nodes)
    assert found["Conv"] == (1 if form == "batch" else 3)
    assert (found["Split"] == 4) == free
    assert (found["Shape"] == 0) == (not free)
    onnx.checker.check_model(outcome.model, full_check=True)
    again = rewrite(copy.deepcopy(outcome.model), splits=3, form=form)
    assert again.already
    assert again.model.SerializeToString() == outcome.model.SerializeToString()


def test_static_structure() -> None:
    """At known sizes the forms are the ones that the emission's docstring draws."""
    model = conv_model([1, 3, 40, 8], np.ones((4, 3, 3, 3), np.float32), pads=[1, 1, 1, 1])
    batch = Counter(ops(rewrite(model, splits=4, form="batch").model))
    assert batch == {"Slice": 8, "Concat": 2, "Conv": 1, "Reshape": 1, "Squeeze": 1}
    sequential = Counter(ops(rewrite(model, splits=4, form="sequential").model))
    assert sequential == {"Slice": 8, "Conv": 4, "Concat": 1}


@pytest.mark.parametrize("wanted", [[25, 11], [24, 12]])
def test_output_shape_beyond_the_kernel(wanted: list[int]) -> None:
    """A ConvTranspose asked for more than its kernel can fill is left alone, with the reason."""
    weight = np.ones((2, 2, 3, 3), np.float32)
    model = conv_model(
        [1, 2, 22, 9], weight, op="ConvTranspose", output_shape=wanted, strides=[1, 1]
    )
    outcome = rewrite(model, splits=3)
    assert not outcome.rewritten
    assert [refusal.code for refusal in outcome.refused] == ["not-provable"]
    assert "larger than the kernel" in outcome.refused[0].reason


def test_output_shape_of_a_free_height() -> None:
    """``output_shape`` at an unknown height fixes what is to be cut: refused."""
    weight = np.ones((2, 2, 3, 3), np.float32)
    model = conv_model(["n", 2, "h", 9], weight, op="ConvTranspose", output_shape=[24, 11])
    outcome = rewrite(model, splits=3)
    assert [refusal.code for refusal in outcome.refused] == ["not-provable"]
    assert "output_shape" in outcome.refused[0].reason


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("followed", [False, True], ids=["alone", "before a Conv"])
def test_same_padding_with_output_padding(auto_pad: str, form: str, followed: bool) -> None:
    """SAME fixes the output's size, output_padding or not; onnx's shape inference adds it on top.

    A Conv behind it must not be cut by the height that inference gives.
    """
    rng = np.random.default_rng(2)
    nodes = [
        onnx.helper.make_node(
            "ConvTranspose",
            ["x", "w"],
            ["m"],
            "up",
            strides=[2, 2],
            auto_pad=auto_pad,
            output_padding=[1, 1],
        ),
        onnx.helper.make_node("Conv", ["m", "v"], ["y"], "after", pads=[1, 1, 1, 1]),
    ]
    weights = {"w": integers(rng, (2, 2, 4, 4)), "v": integers(rng, (2, 2, 3, 3))}
    if not followed:
        nodes, weights = nodes[:1], {"w": weights["w"]}
        nodes[0].output[0] = "y"
    model = make_model(nodes, [value("x", [1, 2, 13, 7])], [value("y", [None] * 4)], weights)
    outcome = rewrite(model, splits=4, form=form)
    x = integers(rng, (1, 2, 13, 7))
    (whole,), (cut,) = ort_run(model, {"x": x}), ort_run(outcome.model, {"x": x})
    assert whole.shape == (1, 2, 26, 14)
    assert np.array_equal(whole, oracle_run(model, {"x": x})[0])
    assert cut.shape == whole.shape
    assert np.array_equal(cut, whole)
