"""Folding of what the graph works out: the runtime's own numbers, and one tensor for all clones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from patchconv_deploy import rewrite
from patchconv_deploy.rewriters.emission import worked_out
from patchconv_deploy.rewriters.emission.conv_folding import Folded
from patchconv_deploy.rewriters.graph.external_data import ExternalRange, external_range
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.emission.test_conv_folding import NORM, cut_in_two, optimised, saved, weights_of
from tests.support.small_models import Array, model, node, noise, operators, run, value

CHANNELS = 24

# Of more elements than are worked out here.
SHAPE = (CHANNELS, 8, 3, 3)


def _network(
    before: Sequence[onnx.NodeProto],
    held: Mapping[str, Array],
    behind: onnx.NodeProto = NORM,
) -> onnx.ModelProto:
    """Make a Conv whose weight "w" or whose scale "k" is made by nodes before it."""
    known = {name: noise(CHANNELS, seed=at) for at, name in enumerate(("s", "t", "m", "b"))}
    known["v"] = np.abs(noise(CHANNELS, seed=5)) + 0.1
    known["w"] = noise(*SHAPE, seed=6)
    made = {name for each in before for name in each.output}
    known = {name: array for name, array in {**known, **held}.items() if name not in made}
    conv = node("Conv", "x w b", "c", name="conv", pads=[1] * 4)
    nodes = [*before, conv, behind, node("Relu", behind.output[0], "y", name="relu")]
    read = {name for each in nodes for name in each.input}
    return model(
        nodes,
        [value("x", (1, SHAPE[1], 48, 16))],
        [value("y", (None,) * 4)],
        {name: array for name, array in known.items() if name in read},
    )


def _float(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return node(op, inputs, output, name=f"const/{output}", **attributes)


def _cast(source: str, output: str) -> onnx.NodeProto:
    return _float("Cast", source, output, to=onnx.TensorProto.FLOAT)


WHOLE = noise(*SHAPE, seed=6)
GAINS = noise(CHANNELS, 1, 1, 1, seed=7)

WEIGHTS: Mapping[str, tuple[Sequence[onnx.NodeProto], Mapping[str, Array]]] = {
    "half": ([_cast("h", "w")], {"h": WHOLE.astype(np.float16)}),
    "integer": (
        [_cast("i", "f"), _float("Mul", "f g", "w")],
        {"i": (50 * WHOLE).astype(np.int8), "g": GAINS},
    ),
    "scaled": ([_float("Mul", "h g", "w")], {"h": WHOLE, "g": GAINS}),
    "normalised": (
        [
            _float("ReduceL2", "h", "norms", axes=[1, 2, 3], keepdims=1),
            _float("Div", "h norms", "d"),
            _float("Mul", "d g", "w"),
        ],
        {"h": WHOLE, "g": GAINS},
    ),
    "spectral": (
        [
            _float("Reshape", "h flat", "r"),
            _float("Mul", "r r", "q"),
            _float("ReduceSum", "q", "u", keepdims=0),
            _float("Sqrt", "u", "norm"),
            _float("Div", "h norm", "w"),
        ],
        {"h": WHOLE, "flat": np.asarray([CHANNELS, -1])},
    ),
    "transposed": (
        [_float("Transpose", "h", "w", perm=[1, 0, 2, 3])],
        {"h": np.ascontiguousarray(WHOLE.transpose(1, 0, 2, 3))},
    ),
    "reshaped": (
        [_float("Reshape", "h shape", "w")],
        {"h": WHOLE.reshape(-1), "shape": np.asarray(SHAPE)},
    ),
}

FEEDS = {"x": noise(1, SHAPE[1], 48, 16, seed=9)}


@pytest.mark.parametrize("behind", ["BatchNormalization", "Mul"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_worked_out(name: str, behind: str, tmp_path: Path) -> None:
    """The clones share one tensor, to the bit the one that the runtime makes for the original."""
    scale = node("Mul", "c k", "n", name="scale")
    before, held = WEIGHTS[name]
    held = {**held, "k": noise(CHANNELS, 1, 1, seed=4)}
    original = _network(before, held, NORM if behind == "BatchNormalization" else scale)
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, 1)
    assert behind not in {each.op_type for each in outcome.model.graph.node if "Conv" in each.name}
    expected = weights_of(optimised(original, tmp_path))
    got = weights_of(optimised(outcome.model, tmp_path))
    assert [a.tobytes() for a in expected] == [b.tobytes() for b in got]
    assert np.array_equal(run(outcome.model, FEEDS)["y"], run(original, FEEDS)["y"])


def test_nothing_large_is_worked_out_here() -> None:
    """What the weight is made of stays as it was; one Mul stands before all clones."""
    before, held = WEIGHTS["half"]
    original = _network(before, held)
    outcome = cut_in_two(original)
    assert operators(outcome.model).count("Mul") == 1
    kept = {t.name: numpy_helper.to_array(t) for t in outcome.model.graph.initializer}
    assert np.array_equal(kept["h"], held["h"])
    assert max(a.size for name, a in kept.items() if name != "h") == CHANNELS


def test_a_small_weight_is_worked_out() -> None:
    """One of few numbers becomes a constant, and what it was made of goes."""
    small = noise(4, 2, 3, 3)
    original = model(
        [
            _cast("h", "w"),
            node("Conv", "x w", "c", name="conv", pads=[1] * 4),
            node("Mul", "c q", "n", name="scale"),
            node("Relu", "n", "y", name="relu"),
        ],
        [value("x", (1, 2, 48, 16))],
        [value("y", (None,) * 4)],
        {"h": small.astype(np.float16), "q": np.asarray(0.2, np.float32)},
    )
    outcome = cut_in_two(original)
    assert {"Cast", "Mul"}.isdisjoint(operators(outcome.model))
    feeds = {"x": noise(1, 2, 48, 16)}
    assert np.array_equal(run(outcome.model, feeds)["y"], run(original, feeds)["y"])


NUMBERS: Mapping[str, tuple[str, Sequence[onnx.NodeProto], Mapping[str, Array]]] = {
    "shift, reshaped": (
        "Add",
        [_float("Reshape", "n0 shape", "k")],
        {"n0": noise(CHANNELS), "shape": np.asarray([1, CHANNELS, 1, 1])},
    ),
    "scale, unsqueezed": (
        "Mul",
        [_float("Unsqueeze", "n0 axes", "k")],
        {"n0": noise(CHANNELS), "axes": np.asarray([1, 2])},
    ),
    "scale, of a half": (
        "Mul",
        [_cast("n0", "k")],
        {"n0": noise(CHANNELS, 1, 1).astype(np.float16)},
    ),
    "scale, by arithmetic": (
        "Mul",
        [_float("Div", "n0 n1", "d"), _float("Sub", "d n1", "k")],
        {"n0": noise(CHANNELS, 1, 1), "n1": noise(CHANNELS, 1, 1, seed=1)},
    ),
    "statistics, of halves": (
        "BatchNormalization",
        [_cast("s0", "s"), _cast("v0", "v")],
        {
            "s0": noise(CHANNELS).astype(np.float16),
            "v0": (np.abs(noise(CHANNELS, seed=5)) + 0.1).astype(np.float16),
        },
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_channels_that_are_worked_out(name: str, tmp_path: Path) -> None:
    """They are constants afterwards, and what they were made of is gone."""
    op, before, held = NUMBERS[name]
    behind = NORM if op == "BatchNormalization" else node(op, "c k", "n", name="behind")
    original = _network(before, held, behind)
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, 1)
    assert {"Reshape", "Unsqueeze", "Cast", "Div", "Sub"}.isdisjoint(operators(outcome.model))
    expected = weights_of(optimised(original, tmp_path))
    assert [a.tobytes() for a in expected] == [b.tobytes() for b in weights_of(outcome.model)]
    assert np.array_equal(run(outcome.model, FEEDS)["y"], run(original, FEEDS)["y"])


def test_what_the_runtime_does_not_work_out_is_left(tmp_path: Path) -> None:
    """Arithmetic in float16, a DequantizeLinear, and what may be given when the model runs."""
    half = _float("Mul", "h g", "p")
    in_half = _network(
        [half, _cast("p", "w")], {"h": WHOLE.astype(np.float16), "g": GAINS.astype(np.float16)}
    )
    assert "BatchNormalization" in operators(optimised(in_half, tmp_path))
    quantised = _network(
        [_float("DequantizeLinear", "i z", "w")],
        {"i": (50 * WHOLE).astype(np.int8), "z": np.asarray(0.02, np.float32)},
    )
    assert "BatchNormalization" in operators(optimised(quantised, tmp_path))
    given_later = _network(*WEIGHTS["scaled"])
    given_later.graph.input.append(value("g", GAINS.shape))
    unknown = _network([_float("Sin", "h", "w")], {"h": WHOLE})
    for original in (in_half, quantised, given_later, unknown):
        assert cut_in_two(original).folded == Folded()


def test_a_weight_that_others_read_stays() -> None:
    """It goes on to be read as it was, by the model and as an output of it."""
    original = _network(*WEIGHTS["scaled"])
    original.graph.output.append(value("w", SHAPE))
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, 1)
    for name in ("y", "w"):
        assert np.array_equal(run(outcome.model, FEEDS)[name], run(original, FEEDS)[name])


def test_arithmetic_that_is_deep_or_doubles_ends() -> None:
    """Each name is looked at once; a chain of thousands is left."""
    doubled = [_float("Add", f"k{at} k{at}", f"k{at + 1}") for at in range(25)]
    behind = node("Mul", "c k25", "n", name="scale")
    outcome = cut_in_two(_network(doubled, {"k0": noise(CHANNELS, 1, 1)}, behind))
    assert outcome.folded == Folded(1, 1)
    deep = [_float("Neg", f"k{at}", f"k{at + 1}") for at in range(3000)]
    behind = node("Mul", "c k3000", "n", name="scale")
    outcome = cut_in_two(_network(deep, {"k0": noise(CHANNELS, 1, 1)}, behind))
    assert outcome.folded == Folded()


def test_halves_in_another_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics are; the weights stay there, and the clones share what is made of them."""
    before = [*WEIGHTS["half"][0], _cast("s0", "s")]
    original = _network(before, {**WEIGHTS["half"][1], "s0": noise(CHANNELS).astype(np.float16)})
    plan = cut_in_two(original).plan
    read: list[int] = []

    def counted(tensor: onnx.TensorProto, folder: Path) -> ExternalRange:
        found = external_range(tensor, folder)
        read.append(found.length)
        return found

    monkeypatch.setattr(worked_out, "external_range", counted)
    file, out = saved(original, tmp_path / "model"), tmp_path / "model" / "out.onnx"
    outcome = rewrite_model(load(file), Options(plan=plan))
    assert outcome.folded == Folded(1, 1)
    assert 0 < max(read) <= 4 * CHANNELS
    result = rewrite(file, out, plan=plan, share_weights=True)
    assert result.report.verification["passed"]
    assert np.array_equal(run(onnx.load(out), FEEDS)["y"], run(original, FEEDS)["y"])


def _transposed(group: int, reads: int, makes: int, bias: bool, behind: onnx.NodeProto) -> Any:
    channels = group * makes
    held = {name: noise(channels, seed=at) for at, name in enumerate(("s", "t", "m", "b"))}
    held["v"] = np.abs(noise(channels, seed=5)) + 0.1
    held["k"] = noise(channels, 1, 1, seed=6)
    held["w"] = noise(group * reads, makes, 3, 2, seed=7)
    conv = node(
        "ConvTranspose",
        "x w b" if bias else "x w",
        "c",
        name="conv",
        group=group,
        strides=[2, 1],
        pads=[1] * 4,
    )
    nodes = [conv, behind, node("Relu", "n", "y", name="relu")]
    names = {name for each in nodes for name in each.input}
    inputs = [value("x", (1, group * reads, 24, 8))]
    weights = {name: array for name, array in held.items() if name in names}
    return model(nodes, inputs, [value("y", (None,) * 4)], weights)


@settings(max_examples=40, deadline=None)
@given(
    group=st.integers(1, 4), reads=st.integers(1, 3), makes=st.integers(1, 3), bias=st.booleans()
)
def test_a_norm_behind_a_grouped_conv_transpose(
    tmp_path_factory: pytest.TempPathFactory, group: int, reads: int, makes: int, bias: bool
) -> None:
    """Its weights are (C, M / group, ...): each row has the channels of the group it belongs to."""
    original = _transposed(group, reads, makes, bias, NORM)
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, 1)
    made = optimised(original, tmp_path_factory.mktemp("group"))
    assert [a.tobytes() for a in weights_of(made)] == [
        b.tobytes() for b in weights_of(outcome.model)
    ]
    feeds = {"x": noise(1, group * reads, 24, 8, seed=9)}
    assert np.array_equal(run(outcome.model, feeds)["y"], run(original, feeds)["y"])


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_scale_behind_a_grouped_conv_transpose_is_left(op: str, tmp_path: Path) -> None:
    """As the runtime leaves it, whatever the groups."""
    original = _transposed(2, 2, 3, True, node(op, "c k", "n", name="behind"))
    assert op in operators(optimised(original, tmp_path))
    assert cut_in_two(original).folded == Folded()


@pytest.mark.parametrize("group", [1, 3])
def test_a_grouped_conv_transpose_in_another_file(group: int, tmp_path: Path) -> None:
    """Its weights are scaled as they are copied."""
    original = _transposed(group, 2, 5, True, NORM)
    inside = cut_in_two(original)
    file, out = saved(original, tmp_path / "model"), tmp_path / "model" / "out.onnx"
    rewrite(file, out, plan=inside.plan)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    (expected,) = (t for t in inside.model.graph.initializer if t.name == "w/folded")
    assert np.array_equal(held["w/folded"], numpy_helper.to_array(expected))
