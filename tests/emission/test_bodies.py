"""`emission.bodies`: constants that only a Loop's body uses are the body's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from patchconv_deploy import rewrite
from patchconv_deploy.rewriters.emission import bodies
from patchconv_deploy.rewriters.errors import SaveError
from patchconv_deploy.rewriters.graph.external_data import is_external, tensors
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.memory.reader import predict
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.verify.twin import float32_twin
from tests.support.small_models import (
    assert_same,
    chain,
    copy_of,
    file_names,
    model,
    node,
    noise,
    value,
)

DIMS = (1, 16, 64, 24)

FEEDS = {"x": noise(*DIMS)}


def body_of(made: onnx.ModelProto, number: int = 0) -> onnx.GraphProto:
    """Return the body of one of the model's Loops."""
    loops = [each for each in made.graph.node if each.op_type == "Loop"]
    (found,) = (each.g for each in loops[number].attribute if each.name == "body")
    return found


def names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of a graph's initializers, without the integers that cuts are made with."""
    return {each.name for each in graph.initializer if "int64" not in each.name}


def pair(**more: Any) -> onnx.ModelProto:
    """Make Conv, Relu, Conv over 16 channels, with weights ``w``, ``b`` and ``v``."""
    nodes = [
        node("Conv", "x w b", "c", name="c0", pads=[1] * 4),
        node("Relu", "c", "r", name="relu"),
        node("Conv", "r v", "y", name="c1", pads=[1] * 4),
    ]
    weights = {"w": noise(16, 16, 3, 3) / 12, "b": noise(16), "v": noise(16, 16, 3, 3, seed=1) / 12}
    return model(nodes, {"x": DIMS}, {"y": DIMS}, weights, **more)


def plan(*regions: str) -> dict[str, Any]:
    """Return a plan of Loops; a region is its nodes and its output, separated by blanks."""
    entries = [
        {"nodes": names[:-1], "outputs": names[-1:], "form": "loop", "splits": 4}
        for names in (region.split() for region in regions)
    ]
    return {"version": 2, "axis": "height", "order": "file", "regions": entries}


WHOLE = plan("c0 relu c1 y")


def looped(made: onnx.ModelProto, planned: dict[str, Any] = WHOLE) -> Outcome:
    """Cut a copy into Loops, and see that it is valid and predicted as it is."""
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(plan=planned))
    assert {done.form for done in outcome.rewritten} == {"loop"}
    onnx.checker.check_model(outcome.model, full_check=True)
    shapes = infer(skeleton(Loaded(outcome.model, None)), estimate=True)
    assert predict(outcome.model.graph, shapes, outcome.engine).bytes == outcome.after.bytes
    return outcome


def optimised(made: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return what ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return onnx.load(folder / "optimised.onnx")


def test_weights_move_and_the_runtime_lays_the_body_out_in_blocks(tmp_path: Path) -> None:
    """Nothing but the cuts' integers stays around; the Convs of the body are blocked ones."""
    made = pair()
    outcome = looped(made)
    assert names(outcome.model.graph) == set()
    assert names(body_of(outcome.model)) == {"w", "b", "v"}
    assert_same(made, outcome.model, FEEDS)
    inner = body_of(optimised(outcome.model, tmp_path))
    convs = [each.domain for each in inner.node if each.op_type == "Conv"]
    assert convs == ["com.microsoft.nchwc"] * 2


def test_constant_nodes_move(tmp_path: Path) -> None:
    """Weights in Constant nodes, as Paddle writes them, become the body's initializers."""
    made = pair()
    weights = list(made.graph.initializer)
    del made.graph.initializer[:]
    for at, weight in enumerate(weights):
        made.graph.node.insert(at, node("Constant", "", weight.name, value=weight))
    outcome = looped(made)
    assert names(body_of(outcome.model)) == {"w", "b", "v"}
    assert not [each for each in outcome.model.graph.node if each.op_type == "Constant"]
    assert_same(made, outcome.model, FEEDS)


@pytest.mark.parametrize("ir", [3, 4])
def test_ir_version_3_has_constant_nodes_in_the_body(ir: int) -> None:
    """There every initializer is an input too, and stays one; later, a caller may set it."""
    made = pair(ir=ir)
    made.graph.input.extend(
        value(each.name, list(each.dims)) for each in made.graph.initializer if each.name != "b"
    )
    if ir == 3:
        made.graph.input.append(value("b", (16,)))
    outcome = looped(made)
    inner = body_of(outcome.model)
    assert list(outcome.model.graph.input) == list(made.graph.input)
    if ir == 3:
        assert not inner.initializer
        constants = [each.output[0] for each in inner.node if each.op_type == "Constant"]
        assert {name.rpartition("/")[2] for name in constants} >= {"w", "b", "v"}
        assert names(outcome.model.graph) == {"w", "b", "v"}
        assert not {"w", "b", "v"} & {name for each in inner.node for name in each.input}
    else:
        assert names(inner) == {"b"}
    assert_same(made, outcome.model, FEEDS)


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_what_others_use_too(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that the rest needs is copied while it is small, and stays if it is not."""
    monkeypatch.setattr(bodies, "_COPIED", most)
    made = pair()
    made.graph.node.append(node("ReduceSum", "w", "z", name="sum", keepdims=0))
    made.graph.output.append(value("z", ()))
    outcome = looped(made)
    assert names(outcome.model.graph) == {"w"}
    own = names(body_of(outcome.model))
    assert {"b", "v"} <= own
    (copied,) = own - {"b", "v"} if most else {"w"}
    assert copied.endswith("w")
    assert any(copied in each.input for each in body_of(outcome.model).node)
    assert_same(made, outcome.model, FEEDS)


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_two_loops_of_one_weight(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each body has a copy, or both read what is around."""
    monkeypatch.setattr(bodies, "_COPIED", most)
    made = pair()
    for each in made.graph.node:
        each.input[:] = [name.replace("v", "w") for name in each.input]
    made.graph.initializer.pop(2)
    outcome = looped(made, plan("c0 relu r", "c1 y"))
    assert len(outcome.rewritten) == 2
    assert names(outcome.model.graph) == (set() if most else {"w"})
    found = [names(body_of(outcome.model, number)) for number in (0, 1)]
    assert sum(any(name.endswith("w") for name in own) for own in found) == (2 if most else 0)
    assert not found[0] & found[1]
    assert_same(made, outcome.model, FEEDS)


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_weights_that_are_computed(
    most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DequantizeLinear of a weight moves with what it reads; a scale for several is copied."""
    monkeypatch.setattr(bodies, "_COPIED", most)
    made = pair()
    rng = np.random.default_rng(0)
    (old,) = [each for each in made.graph.initializer if each.name == "w"]
    made.graph.initializer.remove(old)
    whole = rng.integers(-9, 9, (16, 16, 3, 3)).astype(np.int8)
    made.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in (("q", whole), ("scale", np.array(0.02, np.float32)))
    )
    made.graph.node.insert(0, node("DequantizeLinear", "q scale", "w", name="dq"))
    made.graph.node.append(node("Mul", "scale scale", "z", name="used"))
    made.graph.output.append(value("z", ()))
    outcome = looped(made)
    inner = body_of(outcome.model)
    assert names(outcome.model.graph) == ({"scale"} if most else {"scale", "q"})
    assert ("dq" in {each.name for each in inner.node}) == bool(most)
    assert ("q" in names(inner)) == bool(most)
    assert_same(made, outcome.model, FEEDS)


class TestExternal:
    """External weights stay external in a body, and everybody who walks over weights sees them."""

    def saved(self, folder: Path) -> tuple[Path, onnx.ModelProto]:
        """Save `pair` with its weights beside it."""
        made = pair()
        onnx.save(
            copy_of(made),
            folder / "m.onnx",
            save_as_external_data=True,
            location="m.bin",
            size_threshold=0,
        )
        return folder / "m.onnx", made

    @pytest.mark.parametrize("share", [False, True])
    def test_written_and_verified(self, share: bool, tmp_path: Path) -> None:
        """Copied beside the new model, or shared; ONNX Runtime and onnx read them."""
        path, made = self.saved(tmp_path)
        out = tmp_path / "out.onnx"
        rewrite(path, out, plan=WHOLE, share_weights=share)
        written = load(out)
        inner = body_of(written.model)
        assert names(inner) == {"w", "b", "v"}
        assert all(is_external(each) for each in inner.initializer if each.name in ("w", "v"))
        assert ("out.onnx.HASH.data" in file_names(tmp_path)) != share
        onnx.checker.check_model(str(out), full_check=True)
        assert_same(made, onnx.load(out), FEEDS)
        opened = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        assert opened.run(None, FEEDS)[0].shape == DIMS

    def test_a_file_with_several_links_is_not_shared(self, tmp_path: Path) -> None:
        """ONNX Runtime would refuse to load it; nothing is written."""
        path, _ = self.saved(tmp_path)
        (tmp_path / "other").hardlink_to(tmp_path / "m.bin")
        with pytest.raises(SaveError, match="leave share_weights=True out"):
            rewrite(path, tmp_path / "out.onnx", plan=WHOLE, share_weights=True)
        assert not (tmp_path / "out.onnx").exists()
        rewrite(path, tmp_path / "out.onnx", plan=WHOLE)

    def test_twins(self, tmp_path: Path) -> None:
        """The float32 twin has the weights of bodies in memory."""
        path, made = self.saved(tmp_path)
        loaded = load(path)
        outcome = rewrite_model(loaded, Options(plan=WHOLE))
        twin = float32_twin(outcome.model, tmp_path)
        assert not any(is_external(each) for each in tensors(twin))
        assert_same(made, twin, FEEDS)

    def test_before_ir_version_4_they_stay(self, tmp_path: Path) -> None:
        """A Constant node cannot be external for every runtime."""
        path, _ = self.saved(tmp_path)
        loaded = load(path)
        loaded.model.ir_version = 3
        loaded.model.graph.input.extend(
            value(each.name, list(each.dims)) for each in loaded.model.graph.initializer
        )
        outcome = rewrite_model(loaded, Options(plan=WHOLE))
        assert names(outcome.model.graph) == {"w", "b", "v"}


def test_a_constant_that_stays_keeps_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight moves only if nothing that stays outside is computed from it."""
    monkeypatch.setattr(bodies, "_COPIED", 0)
    made = pair()
    # v is computed from w and from something that the rest uses.
    (old,) = [each for each in made.graph.initializer if each.name == "v"]
    made.graph.initializer.remove(old)
    made.graph.initializer.append(numpy_helper.from_array(noise(16, 16, 1, 1), "shared"))
    made.graph.node.insert(0, node("Mul", "w shared", "v", name="made"))
    made.graph.node.append(node("ReduceSum", "shared", "z", name="sum", keepdims=0))
    made.graph.output.append(value("z", ()))
    outcome = looped(made)
    assert names(outcome.model.graph) == {"w", "shared"}
    assert names(body_of(outcome.model)) == {"b"}
    assert_same(made, outcome.model, FEEDS)


def test_other_forms_are_as_they_were() -> None:
    """Only Loops take constants."""
    made = chain(3, (1, 2, 32, 10))
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=4, form="fused"))
    assert {f"w{k}" for k in range(3)} <= {each.name for each in outcome.model.graph.initializer}


@pytest.mark.parametrize("constant", [False, True])
def test_a_transposed_kernel_without_its_size_is_known_inside(constant: bool) -> None:
    """Its size is the weight's, whether that is an input of the body or a Constant of the file."""
    nodes = [
        node("ConvTranspose", "x w", "t", name="up", strides=[2, 2], output_padding=[1, 1]),
        node("Relu", "t", "y", name="last"),
    ]
    weight = noise(2, 3, 3, 3)
    if constant:
        nodes.insert(0, node("Constant", "", "w", value=numpy_helper.from_array(weight)))
    made = model(nodes, {"x": (1, 2, 24, 8)}, {"y": (None,) * 4}, {} if constant else {"w": weight})
    outcome = looped(made, plan("up last y"))
    assert not outcome.before.unknown
    assert not outcome.after.unknown
