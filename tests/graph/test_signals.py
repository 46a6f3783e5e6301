"""Statistics of signals [N, C, L], as of audio: their rows are blocks of neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy.rewriters.graph import normalisations
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.respelling import respell
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.statistic_nodes import in_blocks
from patchconv_deploy.rewriters.graph.statistics import Statistic, find_statistics
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.model_facts import analyse
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.float64 import in_double
from tests.support.oracle import oracle_run
from tests.support.small_models import Array, assert_same, copy_of, model, node, noise, run, value
from tests.support.tiers import slow

pytestmark = pytest.mark.usefixtures("less_weighed")

_DIMS = (2, 8, 240)

# Nodes and weights that make "y" of "x".
Made = tuple[list[onnx.NodeProto], dict[str, Array]]


def _instance(channels: int = 8) -> Made:
    made = [node("InstanceNormalization", "x g b", "y", name="norm", epsilon=1e-3)]
    return made, {"g": 1 + noise(channels) / 4, "b": noise(channels, seed=1)}


def _group(groups: int, channels: int = 8) -> Made:
    made = node("GroupNormalization", "x g b", "y", name="norm", num_groups=groups, epsilon=1e-3)
    return [made], _instance(channels)[1]


def _exported(groups: int, dims: Sequence[int] = _DIMS) -> Made:
    nodes = [
        node("Reshape", "x grouped", "x3", name="to_groups"),
        node("InstanceNormalization", "x3 g b", "y3", name="norm", epsilon=1e-3),
        node("Reshape", "y3 dims", "back", name="back"),
        node("Mul", "back scale", "scaled", name="scale"),
        node("Add", "scaled shift", "y", name="shift"),
    ]
    return nodes, {
        "grouped": np.array([0, groups, -1]),
        "dims": np.array(dims),
        "g": 1 + noise(groups) / 4,
        "b": noise(groups, seed=1) / 4,
        "scale": 1 + noise(dims[1], 1) / 2,
        "shift": noise(dims[1], 1, seed=1),
    }


def _reduced(op: str, keeps: int = 1, axes: Sequence[int] = (2,)) -> Made:
    made = [node(op, "x over", "y", name="reduce", keepdims=keeps)]
    return made, {"over": np.asarray(axes, np.int64)}


def _pooled(op: str) -> Made:
    return [node(op, "x", "y", name="pool")], {}


def _model(made: Made, dims: Sequence[int | str] = _DIMS, kind: int = 1) -> onnx.ModelProto:
    nodes, weights = made
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    cast = {n: w.astype(dtype) if w.dtype.kind == "f" else w for n, w in weights.items()}
    bare = model(nodes, [value("x", dims, kind)], [value("y", None, kind)], cast, opset=21, ir=10)
    inferred = onnx.shape_inference.infer_shapes(bare)
    known = inferred.graph.output[0].type.tensor_type.HasField("shape")
    bare.graph.output[0].CopyFrom(
        inferred.graph.output[0] if known else value("y", (None,) * 3, kind)
    )
    return bare


def _found(made: onnx.ModelProto) -> list[Statistic]:
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    return find_statistics(facts.certain, {"x": 2})


def _in_two(made: onnx.ModelProto) -> onnx.ModelProto:
    (entry,) = _found(made)
    changed = copy_of(made)
    respell(changed.graph, [entry])
    onnx.checker.check_model(changed, full_check=True)
    return changed


_EVERY: dict[str, Made] = {
    "instance": _instance(),
    **{f"{groups} groups": _group(groups) for groups in (1, 2, 8)},
    **{f"{groups} exported": _exported(groups) for groups in (1, 2, 8)},
    **{op: _reduced(op) for op in ("ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp")},
    "dropped": _reduced("ReduceSum", keeps=0),
    "channels too": _reduced("ReduceMean", axes=(1, 2)),
    **{op: _pooled(op) for op in ("GlobalAveragePool", "GlobalMaxPool")},
}


@pytest.mark.parametrize("name", list(_EVERY))
def test_in_double(name: str) -> None:
    """The same numbers but for last places."""
    made = _model(_EVERY[name], kind=TensorProto.DOUBLE)
    for each in made.graph.node:
        if each.op_type == "GroupNormalization":
            each.attribute.append(onnx.helper.make_attribute("stash_type", TensorProto.DOUBLE))
    x = 3 + noise(*_DIMS, dtype=np.float64)
    before, after = (oracle_run(each, {"x": x})[0] for each in (made, _in_two(made)))
    if name == "GlobalMaxPool":  # of which the evaluator makes two dimensions
        before = x.max(2, keepdims=True)
    assert before.shape == after.shape
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("name", ["instance", "2 groups", "2 exported"])
def test_accuracy(name: str, mean: float) -> None:
    """As near to the truth as the original, also where the mean is large."""
    dims = (1, 8, 8000)
    made = _model(_exported(2, dims) if name == "2 exported" else _EVERY[name], dims)
    changed, errors = _in_two(made), [0.0, 0.0]
    deviation = 1.0 if mean == 0 else 1e-2
    for seed in range(4):
        x = (mean + deviation * noise(*dims, seed=seed, dtype=np.float64)).astype(np.float32)
        double = in_double(made)
        for norm in double.graph.node:
            if norm.op_type == "GroupNormalization":
                norm.attribute.append(onnx.helper.make_attribute("stash_type", TensorProto.DOUBLE))
        truth = oracle_run(double, {"x": x.astype(np.float64)})[0]
        for at, each in enumerate((made, changed)):
            error = np.abs(run(each, {"x": x})["y"] - truth).max()
            errors[at] = max(errors[at], float(error))
    assert errors[1] <= 1.5 * errors[0]


@pytest.mark.parametrize(
    ("why", "dims"),
    [
        ("a prime", (1, 8, 241)),
        ("no divisor from 8 to 64", (1, 8, 67 * 4)),
        ("one block", (1, 8, 13)),
        ("nobody knows", (1, 8, "L")),
    ],
)
def test_lengths_without_blocks(why: str, dims: Sequence[int | str]) -> None:
    """Then nothing is written in two."""
    for made in (_instance(), _group(2), _reduced("ReduceMean"), _pooled("GlobalAveragePool")):
        assert _found(_model(made, dims)) == [], why


def test_groups_of_an_image_are_no_signal() -> None:
    """Channels and pixels in one dimension, put back to another image: not to be cut in blocks."""
    nodes, weights = _exported(2)
    made = _model((nodes[:2], weights), (2, 8, 240))
    del made.graph.output[:]
    made.graph.output.append(value("y3", (2, 2, 960)))
    facts = analyse(copy_of(made), skeleton(Loaded(copy_of(made), None)))
    assert find_statistics(facts.certain, {"x": 2, "x3": 2}) == []


# --- cut --------------------------------------------------------------------------------------

_LENGTH, _CHANNELS = 3200, 16


def _network(made: Made) -> onnx.ModelProto:
    """Put nodes that make "y" of "x" between Convs of a signal."""
    nodes, weights = made
    around = {}
    for number, (many, few) in enumerate(((_CHANNELS, 2), (_CHANNELS, _CHANNELS), (2, _CHANNELS))):
        weight = noise(many, few, 7, seed=number) / np.sqrt(7 * few)
        around[f"w{number}"] = weight.astype(np.float32)
    inside = []
    for each in nodes:
        renamed = onnx.NodeProto()
        renamed.CopyFrom(each)
        renamed.input[:] = ["h" if name == "x" else name for name in each.input]
        renamed.output[:] = ["n" if name == "y" else name for name in each.output]
        inside.append(renamed)
    last = [node("Conv", "n w1", "c", name="second", pads=[3, 3])]
    if inside[-1].op_type not in ("InstanceNormalization", "GroupNormalization", "Add"):
        # A gate on what it was taken of.
        last = [
            node("Sigmoid", "n", "s", name="sigmoid"),
            node("Mul", "h s", "gated", name="gate"),
            node("Conv", "gated w1", "c", name="second", pads=[3, 3]),
        ]
    every = [
        node("Conv", "x w0", "h", name="first", pads=[3, 3]),
        *inside,
        *last,
        node("Relu", "c", "r", name="relu"),
        node("Conv", "r w2", "y", name="third", pads=[3, 3]),
    ]
    dims = (1, 2, _LENGTH)
    return model(every, {"x": dims}, {"y": dims}, {**weights, **around}, opset=21, ir=10)


def _cut(made: onnx.ModelProto, **options: Any) -> Outcome:
    given = {"splits": 8, "max_recompute": 3.0, **options}
    return rewrite_model(Loaded(copy_of(made), None), Options(**given))


_NETWORKS: dict[str, Made] = {
    "instance": _instance(_CHANNELS),
    "groups": _group(4, _CHANNELS),
    "exported": _exported(1, (1, _CHANNELS, _LENGTH)),
    "squeeze and excite": _pooled("GlobalAveragePool"),
    "largest": _reduced("ReduceMax"),
}


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        *((name, "height") for name in _NETWORKS),
        *((name, "auto") if name == "groups" else slow(name, "auto") for name in _NETWORKS),
    ],
)
def test_networks_are_cut(name: str, axis: str) -> None:
    """Below half of the peak, with the original's numbers, whatever the axis is called."""
    made = _network(_NETWORKS[name])
    done = _cut(made, axis=axis)
    assert done.rewritten
    assert done.after.bytes < 0.5 * done.before.bytes
    assert_same(made, done.model, {"x": noise(1, 2, _LENGTH)}, rel=1e-5)


def test_cut_they_are_as_near_to_the_truth() -> None:
    """Errors against float64 of the cut model: at most half as much again as the original's."""
    made = _network(_NETWORKS["instance"])
    done = _cut(made)
    errors = [0.0, 0.0]
    for seed in range(6):
        x = noise(1, 2, _LENGTH, seed=seed)
        truth = oracle_run(in_double(made), {"x": x.astype(np.float64)})[0]
        for at, each in enumerate((made, done.model)):
            error = float(np.abs(run(each, {"x": x})["y"] - truth).max())
            errors[at] = max(errors[at], error)
    assert errors[1] <= 1.5 * errors[0]


def test_blocks_of_the_wrong_size_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: statistics are taken of the first half of each block alone."""

    def wrong(new: Any, signal: str, dims: Sequence[int | None], axis: int, block: int) -> Any:
        image, found = in_blocks(new, signal, dims, axis, block)
        half, _ = new.halves(image, block // 2, "halves", ("one", "two"), 3)
        return half, (*found[:3], block // 2)

    monkeypatch.setattr(normalisations, "in_blocks", wrong)
    made = _network(_NETWORKS["instance"])
    done = _cut(made)
    assert done.rewritten
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, done.model, {"x": noise(1, 2, _LENGTH)}, rel=1e-5)
