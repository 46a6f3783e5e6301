"""`emission.conv_folding`: what is folded is what ONNX Runtime folds, to the bit, but once."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from patchconv_deploy import rewrite
from patchconv_deploy.cli.main import rewrite_command
from patchconv_deploy.rewriters.emission.conv_folding import Folded
from patchconv_deploy.rewriters.errors import ExternalDataError
from patchconv_deploy.rewriters.graph.external_data import (
    copy_external,
    external_range,
    is_external,
    is_pending,
    pending,
)
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.graph.nodes import node_labels
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import (
    Array,
    assert_same,
    copy_of,
    cut,
    model,
    node,
    noise,
    operators,
    run,
    value,
)

CHANNELS = 4


def numbers(dtype: Any = np.float32) -> dict[str, Array]:
    """Return statistics of a BatchNormalization, and constants of several shapes."""
    found = {name: noise(CHANNELS, seed=at) for at, name in enumerate(("s", "t", "m"))}
    found["v"] = np.abs(noise(CHANNELS, seed=3)) + 0.1
    found["k"] = noise(CHANNELS, 1, 1, seed=4)
    found["k4"] = noise(1, CHANNELS, 1, 1, seed=5)
    found["q"] = np.asarray(0.2, np.float32)
    found["one"] = np.asarray([0.2], np.float32)
    return {name: array.astype(dtype) for name, array in found.items()}


def network(
    *behind: onnx.NodeProto,
    op: str = "Conv",
    bias: bool = True,
    dtype: Any = np.float32,
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Make a convolution "c", nodes behind it and a Relu: 2 channels to 4; the last makes "y"."""
    held = {"b": noise(CHANNELS, seed=8, dtype=dtype), **numbers(dtype)}
    held["w"] = noise(*((2, CHANNELS) if op == "ConvTranspose" else (CHANNELS, 2)), 3, 3).astype(
        dtype
    )
    held.update(weights or {})
    conv = node(op, "x w b" if bias else "x w", "c", name="conv", pads=[1] * 4)
    last = behind[-1].output[0]
    nodes = [conv, *behind, node("Relu", last, "y", name="relu")]
    read = {name for each in nodes for name in each.input}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(
        nodes,
        [value("x", (1, 2, 48, 16), kind)],
        [value("y", (None,) * 4, kind)],
        {name: array for name, array in held.items() if name in read},
        opset=opset,
    )


NORM = node("BatchNormalization", "c s t m v", "n", name="norm", epsilon=3e-3)

CHAIN = (
    node("Mul", "c q", "d", name="scale"),
    node("BatchNormalization", "d s t m v", "e", name="norm"),
    node("Add", "e k", "f", name="shift"),
    node("Mul", "f k4", "n", name="scale again"),
)


def optimised(original: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return what ONNX Runtime makes of a model at its basic level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    data = original.SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def weights_of(made: onnx.ModelProto) -> list[Array]:
    """Return all constants but integers, in an order that their names do not matter to."""
    arrays = [numpy_helper.to_array(tensor) for tensor in made.graph.initializer]
    found = {array.tobytes(): array for array in arrays if array.dtype.kind == "f"}
    return [found[key] for key in sorted(found)]


def cut_in_two(
    original: onnx.ModelProto, form: str = "fused", outputs: Sequence[str] = ("y",), **options: Any
) -> Outcome:
    """Cut a whole model into two patches, as a plan that names all its nodes."""
    labels = node_labels(original.graph).values()
    nodes = [label for label in labels if not label.startswith("const")]
    region = {"nodes": nodes, "outputs": list(outputs), "form": form, "splits": 2}
    plan = {"version": 2, "axis": "height", "order": "file", "regions": [region]}
    outcome = cut(original, form, plan=plan, **options)
    assert outcome.rewritten
    return outcome


FOLDED = {
    "norm": (NORM,),
    "scale": (node("Mul", "c q", "n"),),
    "scale per channel": (node("Mul", "c k", "n"),),
    "scale per channel, full rank": (node("Mul", "c k4", "n"),),
    "shift": (node("Add", "c k", "n"),),
    "shift, full rank": (node("Add", "c k4", "n"),),
    "chain": CHAIN,
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", FOLDED)
def test_weights_are_the_runtime_s_own(name: str, dtype: Any, bias: bool, tmp_path: Path) -> None:
    """Folded weights are equal, to the bit, to those ONNX Runtime makes for the original."""
    original = network(*FOLDED[name], dtype=dtype, bias=bias)
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, len(FOLDED[name]))
    expected, got = weights_of(optimised(original, tmp_path)), weights_of(outcome.model)
    assert len(expected) == len(got)
    assert all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, got, strict=True)
    )
    assert operators(outcome.model).count("Conv") == 2
    assert {"Mul", "Add", "BatchNormalization"}.isdisjoint(operators(outcome.model))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_norm_behind_conv_transpose(bias: bool, tmp_path: Path) -> None:
    """ONNX Runtime folds a BatchNormalization into a ConvTranspose as well."""
    original = network(NORM, op="ConvTranspose", bias=bias)
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, 1)
    expected, got = weights_of(optimised(original, tmp_path)), weights_of(outcome.model)
    assert [a.tobytes() for a in expected] == [b.tobytes() for b in got]


@pytest.mark.parametrize("name", FOLDED)
def test_outputs_are_equal_to_the_bit(name: str) -> None:
    """Folding changes no number: with it, without it, and in the original."""
    original = network(*FOLDED[name])
    feeds = {"x": noise(1, 2, 48, 16)}
    outcome, plain = cut_in_two(original), cut_in_two(original, fold=False)
    assert plain.folded == Folded()
    assert len(plain.model.graph.node) > len(outcome.model.graph.node)
    whole, folded, unfolded = (run(m, feeds)["y"] for m in (original, outcome.model, plain.model))
    assert np.array_equal(folded, unfolded)
    assert np.array_equal(folded, whole)


def test_the_patches_share_one_set_of_weights() -> None:
    """The clones read the same new weights, and the old constants are gone."""
    outcome = cut_in_two(network(*CHAIN))
    convs = [each for each in outcome.model.graph.node if each.op_type == "Conv"]
    assert len({tuple(each.input[1:]) for each in convs}) == 1
    left = {tensor.name for tensor in outcome.model.graph.initializer if tensor.data_type == 1}
    assert left == set(convs[0].input[1:])


LEFT = {
    "scalar shift": (node("Add", "c q", "n"),),
    "one number with a dimension": (node("Mul", "c one", "n"),),
    "constant first": (node("Mul", "k c", "n"),),
    "division": (node("Div", "c q", "n"),),
    "difference": (node("Sub", "c k", "n"),),
    "square": (node("Mul", "c c", "n"),),
    "second reader": (NORM, node("Add", "n c", "z")),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_the_runtime_does_not_fold_is_left(name: str, tmp_path: Path) -> None:
    """What ONNX Runtime leaves behind the Conv stays there: folding it would change numbers."""
    original = network(*LEFT[name])
    kept = operators(optimised(original, tmp_path))
    assert all(each.op_type in kept for each in LEFT[name])
    outcome = cut_in_two(original)
    assert outcome.folded == Folded()
    assert outcome.model == cut_in_two(original, fold=False).model


def test_only_a_norm_is_folded_into_conv_transpose(tmp_path: Path) -> None:
    """ONNX Runtime folds no Mul into a ConvTranspose."""
    original = network(node("Mul", "c k", "n"), op="ConvTranspose")
    assert "Mul" in operators(optimised(original, tmp_path))
    assert cut_in_two(original).folded == Folded()


def test_weights_that_may_change_are_left() -> None:
    """An initializer that is an input too may be given at run time; one quantised is another."""
    overridable = network(NORM)
    overridable.graph.input.append(value("s", (CHANNELS,)))
    assert cut_in_two(overridable).folded == Folded()
    quantised = network(NORM)
    del quantised.graph.initializer[:]
    held = {**numbers(), "b": noise(CHANNELS), "w8": np.ones((CHANNELS, 2, 3, 3), np.int8)}
    held["z"] = np.asarray(0.1, np.float32)
    quantised.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in held.items())
    quantised.graph.node.insert(0, node("DequantizeLinear", "w8 z", "w", name="const"))
    assert cut_in_two(quantised).folded == Folded()


def test_a_result_in_between_that_is_an_output_is_left() -> None:
    """What a caller reads is still made."""
    original = network(NORM)
    original.graph.output.append(value("c", (None,) * 4))
    outcome = cut_in_two(original, outputs=("y", "c"))
    assert outcome.folded == Folded()
    feeds = {"x": noise(1, 2, 48, 16)}
    assert_same(original, outcome.model, feeds)


def test_constants_by_way_of_nodes() -> None:
    """Constant nodes, and Identity nodes that exporters put before shared weights."""
    original = network(NORM)
    kept = [tensor for tensor in original.graph.initializer if tensor.name not in ("w", "s")]
    moved = {tensor.name: tensor for tensor in original.graph.initializer}
    del original.graph.initializer[:]
    original.graph.initializer.extend(kept)
    constant = helper.make_node("Constant", [], ["w0"], value=moved["w"], name="const0")
    scale = helper.make_node("Constant", [], ["s"], value=moved["s"], name="const1")
    original.graph.node.insert(0, node("Identity", "w0", "w", name="const2"))
    original.graph.node.insert(0, constant)
    original.graph.node.insert(0, scale)
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, 1)
    assert {"Constant", "Identity"}.isdisjoint(operators(outcome.model))
    feeds = {"x": noise(1, 2, 48, 16)}
    assert np.array_equal(run(outcome.model, feeds)["y"], run(original, feeds)["y"])


def test_weights_that_others_read_stay() -> None:
    """A Conv with the same weights and another scale gets its own; the raw ones stay if read."""
    original = network(
        NORM,
        node("Conv", "x w b", "c2", name="conv2", pads=[1] * 4),
        node("Mul", "c2 q", "n2", name="scale2"),
        node("Conv", "x w b", "c3", name="conv3", pads=[1] * 4),
        node("Sum", "n n2 c3", "z", name="sum"),
    )
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(2, 2)
    names = [tensor.name for tensor in outcome.model.graph.initializer]
    assert {"w", "w/folded", "w/folded_2"} <= set(names)
    assert len(names) == len(set(names))
    feeds = {"x": noise(1, 2, 48, 16)}
    assert np.allclose(run(outcome.model, feeds)["y"], run(original, feeds)["y"], atol=1e-5)


def test_names_that_are_taken() -> None:
    """A tensor that is called like the new weights is not overwritten."""
    original = network(NORM)
    original.graph.node[-1].input[0] = "w/folded"
    original.graph.node[-2].output[0] = "w/folded"
    outcome = cut_in_two(original)
    assert outcome.folded == Folded(1, 1)
    feeds = {"x": noise(1, 2, 48, 16)}
    assert np.array_equal(run(outcome.model, feeds)["y"], run(original, feeds)["y"])


def test_what_is_not_cloned_is_left_to_the_runtime() -> None:
    """Nothing is cut, or there is one clone alone: every node and weight stays as it was."""
    original = network(NORM)
    for form in ("loop", "batch"):
        assert cut_in_two(original, form).folded == Folded()
    left = cut(original, "batch", splits=1)
    assert not left.rewritten
    assert left.model.graph.initializer == original.graph.initializer


def test_a_plan_names_the_nodes_of_the_original() -> None:
    """A plan made with folding applies without it, and the other way round."""
    original = network(*CHAIN)
    folded, plain = cut_in_two(original), cut_in_two(original, fold=False)
    assert folded.plan == plain.plan
    assert folded.plan is not None
    assert "norm" in folded.plan["regions"][0]["nodes"]
    assert cut(original, "fused", plan=folded.plan).model == folded.model
    assert cut(original, "fused", plan=folded.plan, fold=False).model == plain.model


def test_the_prediction_does_not_change() -> None:
    """The memory model folds by itself: with folding it predicts the same activations."""
    original = network(*CHAIN)
    assert cut_in_two(original).after == cut_in_two(original, fold=False).after


def saved(original: onnx.ModelProto, folder: Path) -> Path:
    """Save a model with all its weights in a file beside it."""
    folder.mkdir()
    onnx.save(
        copy_of(original),
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    return folder / "m.onnx"


@pytest.mark.parametrize("share", [False, True], ids=["copied", "shared"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_weights_in_another_file(op: str, share: bool, tmp_path: Path) -> None:
    """They are scaled as they are copied: never in memory, equal to the bit to those that are."""
    original = network(*(CHAIN if op == "Conv" else (NORM,)), op=op)
    inside = cut_in_two(original)
    file, out = saved(original, tmp_path / "model"), tmp_path / "model" / "out.onnx"
    result = rewrite(file, out, plan=inside.plan, share_weights=share)
    assert result.outcome.folded == inside.folded
    assert result.report.verification["passed"]
    with_weights = onnx.load(out)
    held = {t.name: numpy_helper.to_array(t) for t in with_weights.graph.initializer}
    for tensor in inside.model.graph.initializer:
        assert np.array_equal(held[tensor.name], numpy_helper.to_array(tensor)), tensor.name
    new = next(
        t for t in onnx.load(out, load_external_data=False).graph.initializer if "w/" in t.name
    )
    (written,) = out.parent.glob("out.onnx.*.data")
    assert external_range(new, out.parent).location == written.name


def test_weights_that_others_read_are_shared_still(tmp_path: Path) -> None:
    """With shared weight files only what was folded is written."""
    original = network(NORM, node("Conv", "n u", "z", name="next", pads=[1] * 4))
    u = numpy_helper.from_array(noise(64, CHANNELS, 9, 9) / 64, "u")
    original.graph.initializer.append(u)
    file, out = saved(original, tmp_path / "model"), tmp_path / "model" / "out.onnx"
    rewrite(file, out, plan=cut_in_two(original).plan, share_weights=True)
    slim = onnx.load(out, load_external_data=False).graph.initializer
    where = {t.name: external_range(t, out.parent).location for t in slim if is_external(t)}
    assert where["u"] == "m.bin"
    (written,) = out.parent.glob("out.onnx.*.data")
    assert where["w/folded"] == written.name
    assert written.stat().st_size == 4 * CHANNELS * 2 * 9


def test_weights_that_are_not_saved_yet_cannot_be_mistaken(tmp_path: Path) -> None:
    """Before a model is saved no file holds the weights, and nobody reads the old ones for them."""
    original = network(NORM)
    loaded = load(saved(original, tmp_path / "model"))
    outcome = rewrite_model(loaded, Options(plan=cut_in_two(original).plan))
    new = next(t for t in outcome.model.graph.initializer if t.name == "w/folded")
    assert is_pending(new)
    with pytest.raises(ExternalDataError, match="made on saving"):
        external_range(new, tmp_path / "model")


def test_weights_out_of_reach_are_left(tmp_path: Path) -> None:
    """A model that came from memory refers to files that nobody can find: nothing is folded."""
    original = network(NORM)
    loaded = Loaded(load(saved(original, tmp_path / "model")).model, None)
    outcome = rewrite_model(loaded, Options(plan=cut_in_two(original).plan))
    assert outcome.rewritten
    assert outcome.folded == Folded()


def test_a_large_weight_is_scaled_in_pieces(tmp_path: Path) -> None:
    """Rows are scaled some at a time: several chunks make the same bytes as one product."""
    source = noise(640, 16, 16, 4)
    (tmp_path / "w.bin").write_bytes(source.tobytes())
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=source.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    first, second = noise(640, seed=1), np.asarray(0.2, np.float32)
    made = model([node("Relu", "x", "y")], {"x": (1,)}, {"y": (1,)})
    made.graph.initializer.append(pending(tensor, [first.reshape(-1, 1, 1, 1), second]))
    stream = io.BytesIO()
    copy_external(made, tmp_path, stream, "new.bin")
    expected = source * first.reshape(-1, 1, 1, 1) * second
    assert stream.getvalue() == expected.tobytes()


def test_the_command_leaves_it_to_the_runtime_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--no-fold; the report says what was folded, in words and as data."""
    plan, file = tmp_path / "plan.json", tmp_path / "m.onnx"
    original = network(*CHAIN)
    onnx.save(original, file)
    plan.write_text(json.dumps(cut_in_two(original).plan))
    for extra, nodes in (((), 4), (("--no-fold",), 0)):
        report = tmp_path / "report.json"
        arguments = [str(file), "--plan", str(plan), "--report", str(report), "--force", *extra]
        rewrite_command.main(arguments, standalone_mode=False)
        data = json.loads(report.read_text())
        assert data["folded"] == {"convolutions": nodes // 4, "nodes": nodes}
        assert data["options"]["fold"] == (not extra)
        assert ("Folded once for all patches: 4" in capsys.readouterr().out) == (not extra)
