"""Odd models, cut as regions: each computes what it did, and what must not be cut is not.

Every model goes through `rewrite_model` in every form of regions and is cut by hand wherever a
node is row-local. The convolutions widen to 12 channels inside, so that the search has a peak to
lower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import make_region
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.rewriters.tiling.network import Link, Network, tallest_first
from patchconv_deploy.rewriters.tiling.proof_any_height import prove_every_height
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise, Sliding, Transposed
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import Array, Dims, assert_same, copy_of, model, node, noise, value
from tests.support.tiers import slow

_IMAGE = (1, 2, 32, 10)

Model: TypeAlias = tuple[onnx.ModelProto, list[dict[str, Array]]]


def _between(
    nodes: Sequence[onnx.NodeProto],
    *,
    last: str = "r",
    channels: int = 12,
    dims: Dims = _IMAGE,
    sizes: Sequence[tuple[int, ...]] = (),
    outputs: Mapping[str, Dims] | None = None,
    weights: Mapping[str, Array] | None = None,
    **options: Any,
) -> Model:
    """Put nodes between a Conv that makes ``c`` and one that reads ``last``."""
    made = model(
        [
            node("Conv", "x w", "c", name="first", pads=[1] * 4),
            *nodes,
            node("Conv", f"{last} v", "y", name="last", pads=[1] * 4),
        ],
        {"x": dims},
        {"y": (None,) * 4, **(outputs or {})},
        {
            "w": 0.3 * noise(12, 2, 3, 3),
            "v": 0.3 * noise(2, channels, 3, 3, seed=1),
            **(weights or {}),
        },
        **options,
    )
    return made, [{"x": noise(*size)} for size in sizes or (_IMAGE,)]


def _chain(dims: Dims, *sizes: tuple[int, ...], opset: int = 17, ir: int = 8) -> Model:
    nodes = [
        node("Relu", "c", "a"),
        node("Conv", "a u", "b", name="middle", pads=[1] * 4),
        node("Relu", "b", "r"),
    ]
    weights = {"u": 0.2 * noise(12, 12, 3, 3, seed=2)}
    return _between(nodes, dims=dims, sizes=sizes, weights=weights, opset=opset, ir=ir)


def _body(inner: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph([inner], "body", [], [value(inner.output[0], None)])


def _if_captures() -> Model:
    """Both branches read a tensor of the region."""
    branches: dict[str, Any] = {
        "then_branch": _body(node("Relu", "c", "then")),
        "else_branch": _body(node("Neg", "c", "else")),
    }
    nodes = [
        node("Relu", "c", "a"),
        node("ReduceMax", "x", "most", keepdims=0),
        node("Greater", "most zero", "cond"),
        node("If", "cond", "i", **branches),
        node("Add", "i a", "r"),
    ]
    return _between(nodes, weights={"zero": np.asarray(0, np.float32)})


def _loop_captures() -> Model:
    """A Loop's body reads a tensor of the region, and its state is one."""
    body = helper.make_graph(
        [
            node("Add", "state c", "next"),
            node("Identity", "cond", "going"),
            node("ReduceMean", "c", "mean", keepdims=0),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("cond", [], TensorProto.BOOL),
         value("state", None)],
        [value("going", [], TensorProto.BOOL), value("next", None), value("mean", [])],
    )  # fmt: skip
    nodes = [
        node("Relu", "c", "a"),
        node("Loop", "rounds _ a", "state_out means", body=body),
        node("Add", "state_out a", "r"),
    ]
    return _between(nodes, outputs={"means": (None,)}, weights={"rounds": np.asarray(2, np.int64)})


_NUMBERS = {
    "two": np.asarray(2, np.int64),
    "at2": np.asarray(2, np.int64),
    "at3": np.asarray(3, np.int64),
    "zero": np.asarray([0], np.int64),
    "pair": np.asarray([2], np.int64),
    "one": np.asarray([1], np.int64),
    "twelve": np.asarray([12], np.int64),
}

_SIZES = [
    node("Relu", "c", "a"),
    node("Shape", "a", "s"),
    node("Gather", "s at2", "h"),
    node("Gather", "s at3", "w_"),
]


def _shape_resize(dims: Dims = _IMAGE, *sizes: tuple[int, ...]) -> Model:
    """PyTorch's spelling of up-sampling: sizes made of the shape of a tensor of the region."""
    nodes = [
        *_SIZES,
        node("Mul", "h two", "h2"),
        node("Mul", "w_ two", "w2"),
        node("Unsqueeze", "h2 zero", "h2u"),
        node("Unsqueeze", "w2 zero", "w2u"),
        node("Slice", "s zero pair", "nc"),
        node("Concat", "nc h2u w2u", "to", axis=0),
        node("Resize", "a _ _ to", "r", mode="nearest"),
    ]
    return _between(nodes, dims=dims, sizes=sizes, weights=_NUMBERS)


def _shape_reshape(dims: Dims = _IMAGE, *sizes: tuple[int, ...]) -> Model:
    nodes = [
        *_SIZES,
        node("Unsqueeze", "h zero", "hu"),
        node("Unsqueeze", "w_ zero", "wu"),
        node("Concat", "one twelve one hu wu", "to", axis=0),
        node("Reshape", "a to", "five"),
        node("Relu", "five", "five_"),
        node("Concat", "one twelve hu wu", "back", axis=0),
        node("Reshape", "five_ back", "r"),
    ]
    return _between(nodes, dims=dims, sizes=sizes, weights=_NUMBERS)


def _shape_is_output() -> Model:
    made, feeds = _between([node("Relu", "c", "r"), node("Shape", "r", "s")])
    made.graph.output.append(value("s", (4,), TensorProto.INT64))
    return made, feeds


def _constant_of_shape() -> Model:
    half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
    nodes = [
        node("Shape", "c", "s"),
        node("ConstantOfShape", "s", "k", value=half),
        node("Add", "c k", "r"),
    ]
    return _between(nodes)


def _row_numbers() -> Model:
    """A constant that is computed, and another one in each row."""
    nodes = [
        node("Range", "from to by", "numbers"),
        node("Cast", "numbers", "floats", to=TensorProto.FLOAT),
        node("Reshape", "floats column", "rows"),
        node("Mul", "rows c", "r"),
    ]
    ends = {"from": 0, "to": 32, "by": 1}
    weights = {name: np.asarray(number, np.int64) for name, number in ends.items()}
    return _between(nodes, weights={**weights, "column": np.asarray([1, 1, 32, 1])})


def _twice() -> Model:
    nodes = [
        node("Add", "c c", "a"),
        node("Concat", "a a", "b", axis=1),
        node("Mul", "b b", "r"),
    ]
    return _between(nodes, channels=24)


def _input_is_output() -> Model:
    return _between([node("Relu", "c", "r")], outputs={"x": _IMAGE, "c": (None,) * 4})


def _transposed_to_itself() -> Model:
    """The same tensor along two of its dimensions."""
    nodes = [node("Transpose", "c", "t", perm=[0, 1, 3, 2]), node("Add", "c t", "r")]
    return _between(nodes, dims=(1, 2, 16, 16), sizes=[(1, 2, 16, 16)])


def _dynamic_weights() -> Model:
    """A Conv whose kernel is made of the region."""
    nodes = [
        node("ReduceMean", "c", "g", axes=[2, 3], keepdims=1),
        node("Reshape", "g shape", "k"),
        node("Conv", "c k", "r", group=12),
    ]
    return _between(nodes, weights={"shape": np.asarray([12, 1, 1, 1])})


def _attention() -> Model:
    nodes = [
        node("Transpose", "c", "t", perm=[0, 1, 3, 2]),
        node("MatMul", "c t", "scores"),
        node("Softmax", "scores", "shares", axis=-1),
        node("MatMul", "shares c", "r"),
    ]
    return _between(nodes)


def _overridable_padding() -> Model:
    """An initializer that callers may override decides about padding."""
    pads = np.asarray([0, 0, 1, 0, 0, 0, 1, 0])
    made, feeds = _between([node("Pad", "c pads", "r")], weights={"pads": pads})
    made.graph.input.append(value("pads", (8,), TensorProto.INT64))
    other = {**feeds[0], "pads": np.asarray([0, 0, 3, 0, 0, 0, -1, 0])}
    return made, [*feeds, other]


def _other_domain() -> Model:
    nodes = [
        node("FusedConv", "c u", "d", domain="com.microsoft", activation="Relu",
             pads=[1] * 4, kernel_shape=[3, 3]),
        node("Relu", "d", "r"),
    ]  # fmt: skip
    weights = {"u": 0.2 * noise(12, 12, 3, 3, seed=2)}
    return _between(nodes, weights=weights, domains={"com.microsoft": 1})


def _names(name: Callable[[int], str]) -> Model:
    made, feeds = _chain(_IMAGE)
    for number, entry in enumerate(made.graph.node):
        entry.name = name(number)
    return made, feeds


def _taken_names() -> Model:
    """Tensors called as new ones would be, inside a body too."""
    branch = _body(node("Relu", "a", "last/patchconv/Conv_0"))
    other = _body(node("Neg", "a", "region_0/patchconv/core_1"))
    nodes = [
        node("Relu", "c", "a"),
        node("If", "cond", "region_0/patchconv/window_0", then_branch=branch, else_branch=other),
        node("Add", "a region_0/patchconv/window_0", "r"),
    ]
    return _between(nodes, weights={"cond": np.asarray(True)})


def _old_ir(opset: int) -> Model:
    """IR version 3: every initializer is an input."""
    made, feeds = _chain(_IMAGE, opset=opset, ir=3)
    made.graph.input.extend(value(t.name, list(t.dims)) for t in made.graph.initializer)
    return made, feeds


MODELS: Mapping[str, Callable[[], Model]] = {
    "if captures": _if_captures,
    "loop captures": _loop_captures,
    "shape to resize": _shape_resize,
    "shape to resize, free": lambda: _shape_resize((1, 2, "h", 10), _IMAGE, (1, 2, 21, 10)),
    "shape to reshape": _shape_reshape,
    "shape to reshape, free": lambda: _shape_reshape((1, 2, "h", 10), _IMAGE, (1, 2, 21, 10)),
    "shape is output": _shape_is_output,
    "constant of shape": _constant_of_shape,
    "row numbers": _row_numbers,
    "twice": _twice,
    "input is output": _input_is_output,
    "transposed to itself": _transposed_to_itself,
    "dynamic weights": _dynamic_weights,
    "attention": _attention,
    "overridable padding": _overridable_padding,
    "other domain": _other_domain,
    "no image": lambda: _chain((0, *_IMAGE[1:]), (0, *_IMAGE[1:])),
    "three images": lambda: _chain((3, *_IMAGE[1:]), (3, *_IMAGE[1:])),
    "free batch": lambda: _chain(("n", *_IMAGE[1:]), _IMAGE, (3, *_IMAGE[1:])),
    "all free": lambda: _chain(("n", 2, "h", "w"), _IMAGE, (2, 2, 1, 1), (1, 2, 7, 9)),
    **{f"{rows} rows": partial(_chain, (1, 2, rows, 9), (1, 2, rows, 9))
       for rows in (1, 2, 3, 5)},
    "unnamed": lambda: _names(lambda number: ""),
    "names like new ones": lambda: _names(lambda number: f"conv{number}/patchconv/Conv_0"),
    "tensors like new ones": _taken_names,
    **{f"opset {opset}": partial(_chain, _IMAGE, opset=opset, ir=8 if opset < 19 else 10)
       for opset in range(9, 27)},
    **{f"IR 3, opset {opset}": partial(_old_ir, opset) for opset in (9, 13)},
}  # fmt: skip

# The search leaves these alone; by hand nothing of them can be cut either.
_UNCUT = {"1 rows"}


@pytest.mark.parametrize("name", list(MODELS))
def test_odd_model(name: str) -> None:
    """Cut or not, in every form, the model computes what it did."""
    made, feeds = MODELS[name]()
    cuts = (("fused", 3), ("shrinking", 4), ("loop", 2))
    results = [tile_all(made, splits, form) for form, splits in cuts]
    assert all(bool(cut.plans) == (name not in _UNCUT) for cut in results)
    rewritten = [
        rewrite_model(Loaded(copy_of(made), None), Options(form=form, splits=4))
        for form in ("fused", "shrinking", "loop", "auto")
    ]
    for after in [*(cut.model for cut in results), *(outcome.model for outcome in rewritten)]:
        onnx.checker.check_model(after)
        assert list(after.graph.input) == list(made.graph.input)
        assert [v.name for v in after.graph.output] == [v.name for v in made.graph.output]
        for feed in feeds:
            assert_same(made, after, feed)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize(
    ("kernel", "attrs"), [(3, {"dilations": [3, 1]}), (1, {"strides": [3, 1]})]
)
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_same_padding_of_a_pool(
    op: str, kernel: int, attrs: Mapping[str, Any], auto_pad: str
) -> None:
    """ONNX Runtime pads for the kernel without its dilation, and by less than nothing."""
    nodes = [
        node("Conv", "x w", "a", pads=[2, 0, 2, 0]),
        node(op, "a", "b", kernel_shape=[kernel, 1], auto_pad=auto_pad, **attrs),
        node("Conv", "b v", "y", pads=[1, 0, 1, 0]),
    ]
    weights = {"w": noise(1, 1, 5, 1), "v": noise(1, 1, 3, 1)}
    made = model(nodes, {"x": (1, 1, 18, 3)}, {"y": (None,) * 4}, weights, opset=19, ir=9)
    feed = {"x": noise(1, 1, 18, 3)}
    for form in ("fused", "shrinking"):
        tiled = tile_all(made, 2, form)
        assert op not in tiled.operators
        assert any("runtimes" in reason for reason in tiled.reasons)
        if op == "LpPool" or "dilations" in attrs:  # the others take no padding below zero
            assert_same(made, tiled.model, feed)


@pytest.mark.parametrize("form", ["fused", "shrinking", "auto"])
def test_sizes_written_down_beside_a_free_one(form: str) -> None:
    """At the width that is assumed for the free one, the model's sizes do not fit each other."""
    nodes = [
        node("Reshape", "c size", "a"),
        node("Add", "a c", "b"),
        node("Resize", "b _ _ tall", "d", mode="nearest"),
        node("MaxPool", "d", "r", kernel_shape=[2, 1], strides=[2, 1]),
    ]
    weights = {
        "size": np.asarray([1, 12, 32, 10], np.int64),
        "tall": np.asarray([1, 12, 64, 10], np.int64),
    }
    made, feeds = _between(nodes, dims=(1, 2, 32, "w"), weights=weights)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(form=form))
    for after in (outcome.model, tile_all(made, 3, "fused" if form == "auto" else form).model):
        assert_same(made, after, feeds[0])


def test_an_output_shape_below_the_assumed_height() -> None:
    """It is inferred to be less than an image then."""
    big = node("ConvTranspose", "c t", "r", output_shape=[64, 20], strides=[2, 2])
    weights = {"t": 0.3 * noise(12, 12, 2, 2)}
    made, feeds = _between([big], dims=(1, 2, "h", 10), weights=weights)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(form="fused", axis="width"))
    assert_same(made, outcome.model, feeds[0])


def test_a_slice_that_reads_one_number_twice() -> None:
    """It begins at row 3 of axis 3, in a Loop's body, where constants are not seen as such."""
    bounds = {"three": np.asarray([3], np.int64), "far": np.asarray([99], np.int64)}
    made, feeds = _between([node("Slice", "c three far three", "r")], weights=bounds)
    for form in ("fused", "shrinking", "loop"):
        options = Options(form=form, target="tensorrt", max_recompute=9)
        assert_same(made, rewrite_model(Loaded(copy_of(made), None), options).model, feeds[0])


def test_a_tensor_made_inside_and_used_whole() -> None:
    """A region cannot hold a tensor of which each row needs all rows."""
    from patchconv_deploy.rewriters.graph.skeleton import skeleton
    from patchconv_deploy.rewriters.planning.model_facts import analyse

    made, _ = _dynamic_weights()
    del made.graph.node[1:3]
    made.graph.node.insert(1, node("Transpose", "c", "k", perm=[0, 1, 2, 3]))
    facts = analyse(made, skeleton(Loaded(made, None))).certain
    links = find_locality(facts, "height").links
    found = make_region(facts, links, [0, 1, 2], ["r"], "region")
    assert isinstance(found, Refusal)
    assert "used whole" in found.reason


def test_free_heights_that_do_not_fit() -> None:
    """Heights at which the original cannot run are none; one row that is repeated is a height."""
    halved_and_doubled = Network(
        4,
        (
            Link(Sliding(2, 2), (0,), (1,)),
            Link(Transposed(2, 2), (1,), (2,)),
            Link(Pointwise(), (0, 2), (3,)),
        ),
        (0,),
        (3,),
    )
    assert prove_every_height(halved_and_doubled, 3) is None
    rounded_apart = Network(
        4,
        (
            Link(Sliding(2, 2), (0,), (1,)),
            Link(Sliding(3, 2, 1, 1), (0,), (2,)),
            Link(Pointwise(), (1, 2), (3,)),
        ),
        (0,),
        (3,),
    )
    # 3 rows: 1 and 2, which a runtime adds by repeating the one: the sum has not the first's rows.
    reason = prove_every_height(rounded_apart, 3)
    assert reason == "at 3 rows: it joins a tensor of one row with a taller one"
    assert prove_every_height(tallest_first(rounded_apart), 3) is None
    never = Network(
        3,
        (Link(Sliding(3, 1), (0,), (1,)), Link(Pointwise(), (0, 1), (2,))),
        (0,),
        (2,),
    )
    assert prove_every_height(never, 3) == "there is no height at which its tensors fit"


@pytest.mark.parametrize("rounds", [300, slow(1000)])
def test_thousands_of_nodes(rounds: int) -> None:
    """A minute is far above what 3,000 nodes take: some seconds."""
    nodes = [node("Conv", "x w", "t0", pads=[1] * 4)]
    for k in range(rounds):
        nodes += [
            node("Conv", f"t{k} v", f"c{k}", pads=[1] * 4),
            node("Relu", f"c{k}", f"r{k}"),
            node("Add", f"r{k} t{k}", f"t{k + 1}"),
        ]
    weights = {"w": noise(4, 2, 3, 3), "v": 0.1 * noise(4, 4, 3, 3)}
    made = model(nodes, {"x": (1, 2, 256, 64)}, {f"t{rounds}": (None,) * 4}, weights)
    begun = time.process_time()
    tile_all(made, 3)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(form="fused", splits=4))
    assert time.process_time() - begun < 60
    assert numpy_helper.to_array(outcome.model.graph.initializer[0]).shape == (4, 2, 3, 3)
