"""`rewriters.rewrite`: structure, names, what survives, what is refused; always with numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy.rewriters.errors import ModelError, OptionError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.look import analyse_memory
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.plan_file import METADATA_KEY
from patchconv_deploy.rewriters.regions.selection import Selection
from tests.support.small_models import (
    Array,
    assert_same,
    chain,
    conv,
    copy_of,
    cut,
    model,
    node,
    noise,
    operators,
    run,
    session,
    value,
)

FORMS = ("batch", "sequential")

both_forms = pytest.mark.parametrize("form", FORMS)


def codes(outcome: Outcome) -> dict[str, str]:
    """Return the code of every refusal by node."""
    return {refusal.node: refusal.code for refusal in outcome.refused}


def serialized(made: onnx.ModelProto) -> bytes:
    """Return the model's bytes, map order fixed."""
    return made.SerializeToString(deterministic=True)


def by_name(made: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the nodes of the main graph by name."""
    return {entry.name: entry for entry in made.graph.node}


class TestStructure:
    """The nodes each form emits."""

    def test_batch_is_slices_one_conv_and_slices(self) -> None:
        """Windows stacked, one Conv, patches unstacked, cores cropped and joined."""
        outcome = cut(conv(), "batch", splits=3)
        assert operators(outcome.model) == [
            *["Slice"] * 3,
            "Concat",
            "Conv",
            "Reshape",
            *["Slice"] * 3,
            "Concat",
            "Squeeze",
        ]
        assert_same(conv(), outcome.model, {"x": noise(1, 2, 16, 10)})

    def test_sequential_is_one_conv_per_patch(self) -> None:
        """Each window is cut, convolved and cropped before the next one is touched."""
        outcome = cut(conv(), "sequential", splits=3)
        assert operators(outcome.model) == [*["Slice", "Conv", "Slice"] * 3, "Concat"]
        assert_same(conv(), outcome.model, {"x": noise(1, 2, 16, 10)})

    def test_a_pointwise_conv_needs_no_crop(self) -> None:
        """Windows of a 1x1 Conv do not overlap, so nothing is cropped and nothing recomputed."""
        made = conv(kernel=1)
        outcome = cut(made, "sequential", splits=4)
        assert operators(outcome.model) == [*["Slice", "Conv"] * 4, "Concat"]
        assert outcome.rewritten[0].recompute == 1.0
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    def test_clones_keep_their_attributes(self, form: str) -> None:
        """Every emitted Conv has the original's attributes, weights and bias, padding included.

        But not those that say what is so without them (`emission.lean_clones`).
        """
        made = conv(pads=[1, 2, 0, 1], strides=[1, 2], dilations=[1, 1], group=1)
        outcome = cut(made, form)
        clones = [entry for entry in outcome.model.graph.node if entry.op_type == "Conv"]
        assert len(clones) == (1 if form == "batch" else 4)
        for clone in clones:
            given = [each for each in made.graph.node[0].attribute if each.name != "dilations"]
            assert list(clone.attribute) == given
            assert list(clone.input[1:]) == ["w", "b"]
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    def test_all_windows_are_of_one_height(self, form: str) -> None:
        """Uniform windows: every window has the same rows, whatever the height divides by."""
        made = conv((1, 2, 23, 10))
        inferred = onnx.shape_inference.infer_shapes(
            cut(made, form, splits=5).model, data_prop=True
        )
        heights = {
            entry.type.tensor_type.shape.dim[2].dim_value
            for entry in inferred.graph.value_info
            if "/window_" in entry.name
        }
        assert len(heights) == 1

    @both_forms
    @pytest.mark.parametrize("axis", ["height", "width", 2, 3])
    def test_axes(self, form: str, axis: str | int) -> None:
        """Either spatial axis can be cut, by name or by number."""
        made = conv((2, 2, 11, 13))
        outcome = cut(made, form, axis=axis)
        assert outcome.rewritten[0].axis == {"height": 2, "width": 3}.get(str(axis), axis)
        assert_same(made, outcome.model, {"x": noise(2, 2, 11, 13)})

    @both_forms
    @pytest.mark.parametrize("rank", [1, 3])
    def test_other_ranks(self, form: str, rank: int) -> None:
        """1-D Convs are cut along their only axis, 3-D ones along any of the three."""
        dims = (2, 2, 12, 7, 6)[: rank + 2]
        made = model(
            [node("Conv", "x w", "y", name="conv", pads=[1] * 2 * rank)],
            {"x": dims},
            {"y": (None,) * (rank + 2)},
            {"w": noise(3, 2, *(3,) * rank)},
        )
        for axis in ("height",) if rank == 1 else ("depth", "height", "width"):
            outcome = cut(made, form, axis=axis, splits=3)
            assert len(outcome.rewritten) == 1
            assert_same(made, outcome.model, {"x": noise(*dims)})

    def test_outcome_says_what_was_done(self) -> None:
        """Splits, seams, rows, recompute and sizes of a region are in the outcome."""
        outcome = cut(conv(), "sequential")
        (done,) = outcome.rewritten
        assert (done.nodes, done.op_type, done.form) == (("conv",), "Conv", "sequential")
        assert (done.axis, done.splits, done.rows) == (2, 4, 16)
        assert len(done.seams) == 3
        assert list(done.seams) == sorted(set(done.seams))
        assert done.recompute is not None
        assert done.recompute > 1
        assert done.size.input == (1, 2, 16, 10)
        assert done.size.output == (1, 3, 16, 10)
        assert done.size.bytes == 4 * 160 * (2 + 3)
        assert set(outcome.after_by_form) == {"sequential"}
        # ONNX Runtime's arena: the output, in pieces of 256 bytes; inputs are the caller's.
        assert outcome.before.bytes >= 4 * 160 * 3
        assert not outcome.already

    def test_auto_takes_the_form_with_the_lower_predicted_peak(self) -> None:
        """With form "auto" both are scored and the better one is emitted."""
        outcome = cut(conv(), "auto")
        (done,) = outcome.rewritten
        assert set(done.peak_by_form) == set(FORMS)
        assert done.peak_by_form[done.form] == min(done.peak_by_form.values())
        assert set(outcome.after_by_form) == set(FORMS)
        assert outcome.after.bytes == outcome.after_by_form[done.form]

    def test_fewer_patches_where_rows_are_few(self) -> None:
        """More patches than rows: as many as there are rows for, and a note."""
        outcome = cut(conv((1, 2, 5, 10)), splits=16)
        (done,) = outcome.rewritten
        assert done.splits < 16
        assert done.notes
        assert_same(conv((1, 2, 5, 10)), outcome.model, {"x": noise(1, 2, 5, 10)})

    @both_forms
    @pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 18, 21])
    def test_opsets(self, form: str, opset: int) -> None:
        """The subgraph is spelled for the model's own opset, which stays."""
        made = conv(opset=opset, ir=4 if opset < 11 else 8)
        outcome = cut(made, form)
        assert outcome.model.opset_import == made.opset_import
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    @pytest.mark.parametrize("opset", [10, 13, 18])
    def test_sizes_known_at_run_time_alone(self, form: str, opset: int) -> None:
        """A dynamic model is rewritten once and right at every size, from one row up."""
        made = conv(("n", 2, "h", "w"), opset=opset, ir=5 if opset < 11 else 8)
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 1
        assert outcome.rewritten[0].rows is None
        for dims in [(1, 2, 1, 4), (2, 2, 2, 3), (1, 2, 7, 5), (3, 2, 16, 9), (1, 2, 33, 8)]:
            assert_same(made, outcome.model, {"x": noise(*dims)})


class TestStability:
    """Same input, same bytes; what is not cut is not touched."""

    @both_forms
    def test_idempotent(self, form: str) -> None:
        """A rewritten model is recognised by its recorded plan and left as it is."""
        once = cut(chain(3), form)
        twice = cut(once.model, "batch", splits=7)
        assert not once.already
        assert twice.already
        assert not twice.rewritten
        assert serialized(once.model) == serialized(twice.model)

    @both_forms
    @pytest.mark.parametrize("dims", [(1, 2, 16, 10), ("n", 2, "h", "w")])
    def test_deterministic(self, form: str, dims: Sequence[int | str]) -> None:
        """Two runs give the same bytes."""
        one, two = cut(chain(4, dims), form), cut(chain(4, dims), form)
        assert serialized(one.model) == serialized(two.model)

    @pytest.mark.parametrize(
        "models",
        [
            "[cut(chain(6), 'auto')]",
            # Two tensors of one block are handed over, and read by the next one behind a pool.
            "[cut(gated_blocks(4, (768, 768)), 'fused')]",
            "[cut(gated_blocks(4), 'shrinking', splits=4)]",
            "[cut(random_sequences(seed), 'auto', splits=3) for seed in (1, 4, 8)]",
            "[cut(random_sequences(seed, size=(48, 12)), 'auto') for seed in (2, 3, 7)]",
        ],
    )
    def test_deterministic_from_process_to_process(self, models: str) -> None:
        """Nor do the bytes depend on the seed of Python's string hashes."""
        code = (
            "import hashlib; from tests.support.small_models import chain, cut, gated_blocks; "
            "from tests.support.random_sequences import random_sequences; "
            f"made = {models}; assert all(each.rewritten for each in made); "
            "data = b''.join(e.model.SerializeToString(deterministic=True) for e in made); "
            "print(hashlib.sha256(data).hexdigest())"
        )
        root = Path(__file__).parents[2]
        digests = {
            subprocess.run(
                [sys.executable, "-P", "-c", code],
                env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            ).stdout
            for seed in ("1", "2", "3")
        }
        assert len(digests) == 1

    def test_nothing_cut_nothing_changed(self) -> None:
        """Where every Conv is refused the model's bytes stay as they were."""
        made = chain(3)
        outcome = cut(made, selection=Selection(exclude=("*",)))
        assert serialized(outcome.model) == serialized(made)

    @both_forms
    def test_everything_else_survives(self, form: str) -> None:
        """Metadata, doc strings, versions and untouched nodes, byte for byte."""
        made = chain(3)
        made.doc_string, made.graph.doc_string = "about the model", "about the graph"
        made.domain, made.model_version, made.producer_version = "org.example", 7, "1.2"
        made.metadata_props.add(key="author", value="someone")
        made.metadata_props.add(key="stages", value='{"a": [1, 2]}')
        made.graph.metadata_props.add(key="graph", value="g")
        for entry in made.graph.node:
            entry.doc_string = f"about {entry.name}"
            entry.metadata_props.add(key="origin", value=f"layer of {entry.name}")
        made.graph.input[0].doc_string = "about x"
        outcome = cut(made, form, selection=Selection(include=("conv1",)))
        result = outcome.model
        assert len(outcome.rewritten) == 1

        metadata = {entry.key: entry.value for entry in result.metadata_props}
        plan = metadata.pop(METADATA_KEY)
        assert '"conv1"' in plan
        assert metadata == {entry.key: entry.value for entry in made.metadata_props}
        for field in ("doc_string", "domain", "model_version", "producer_name", "ir_version"):
            assert getattr(result, field) == getattr(made, field)
        assert result.producer_version == made.producer_version
        assert list(result.opset_import) == list(made.opset_import)
        assert result.graph.doc_string == made.graph.doc_string
        assert result.graph.name == made.graph.name
        assert list(result.graph.metadata_props) == list(made.graph.metadata_props)
        assert list(result.graph.input) == list(made.graph.input)
        assert list(result.graph.output) == list(made.graph.output)
        kept = list(result.graph.initializer)[: len(made.graph.initializer)]
        assert kept == list(made.graph.initializer)

        after = by_name(result)
        for entry in made.graph.node:
            if entry.name != "conv1":
                name = entry.name
                assert after[name].SerializeToString() == entry.SerializeToString(), name
        clones = [n for n in result.graph.node if n.op_type == "Conv" and "/patchconv/" in n.name]
        assert clones
        for clone in clones:
            assert clone.doc_string == "about conv1"
            assert list(clone.metadata_props) == list(made.graph.node[2].metadata_props)

    @both_forms
    def test_ir_3(self, form: str) -> None:
        """Before IR 4 every initializer is an input too; the interface stays and it runs."""
        made = chain(2, ir=3)
        del made.opset_import[:]
        made.opset_import.add(domain="", version=9)
        for tensor in made.graph.initializer:
            made.graph.input.append(value(tensor.name, tuple(tensor.dims)))
        outcome = cut(made, form)
        assert outcome.model.ir_version == 3
        assert len(outcome.rewritten) == 2
        assert list(outcome.model.graph.input) == list(made.graph.input)
        assert len(outcome.model.graph.initializer) == len(made.graph.initializer)
        onnx.checker.check_model(outcome.model)
        assert [i.name for i in session(outcome.model).get_inputs()] == ["x"]
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    def test_input_model_of_other_ir_versions(self) -> None:
        """The IR version is kept from 4 to the newest that ONNX Runtime reads."""
        for ir in (4, 7, 10, 13):
            outcome = cut(conv(ir=ir))
            assert outcome.model.ir_version == ir
            assert_same(conv(ir=ir), outcome.model, {"x": noise(1, 2, 16, 10)})


def made_names(outcome: Outcome, original: onnx.ModelProto) -> set[str]:
    """Return the node and tensor names that the original does not have."""

    def names(made: onnx.ModelProto) -> set[str]:
        found = {entry.name for entry in made.graph.node}
        found |= {name for entry in made.graph.node for name in (*entry.input, *entry.output)}
        return found | {tensor.name for tensor in made.graph.initializer}

    return names(outcome.model) - names(original) - {""}


@both_forms
def test_new_names_avoid_stale_shapes(form: str) -> None:
    """A shape that is left in value_info for a name of ours is not taken for our tensor's."""
    made = conv()
    for new in sorted(made_names(cut(made, form), made)):
        made.graph.value_info.append(value(new, (7, 7), onnx.TensorProto.STRING))
    outcome = cut(made, form)
    assert outcome.rewritten
    assert all("/patchconv_2/" in f"/{name}" for name in made_names(outcome, made))
    onnx.checker.check_model(outcome.model, full_check=True)
    assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})


def assert_unique(made: onnx.ModelProto) -> None:
    """Assert that node names that are given, and tensor names, are unique."""
    outputs = [name for entry in made.graph.node for name in entry.output if name]
    assert len(outputs) == len(set(outputs))
    weights = [tensor.name for tensor in made.graph.initializer]
    assert len(weights) == len(set(weights))
    assert not set(weights) & set(outputs)


class TestNames:
    """Names of everything new derive from the node's and collide with nothing."""

    @both_forms
    def test_derived_from_the_node(self, form: str) -> None:
        """New names lie below ``<node>/patchconv/``; shared integers below ``patchconv/``."""
        made = conv(name="/down/conv1")
        outcome = cut(made, form)
        new = made_names(outcome, made)
        assert new
        assert all(name.startswith(("/down/conv1/patchconv/", "patchconv/int64/")) for name in new)
        assert "/down/conv1" in outcome.sizes

    @both_forms
    def test_unnamed_nodes_go_by_their_output(self, form: str) -> None:
        """A node without a name is called after its output, in names, report and patterns."""
        made = chain(3)
        for entry in made.graph.node:
            entry.name = ""
        outcome = cut(made, form)
        assert [done.nodes for done in outcome.rewritten] == [("c0",), ("c1",), ("y",)]
        assert_unique(outcome.model)
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})
        assert codes(cut(made, form, selection=Selection(include=("c1",)))) == {
            "c0": "not-included",
            "y": "not-included",
        }

    @both_forms
    def test_duplicate_node_names(self, form: str) -> None:
        """Nodes that share a name are told apart by their outputs.

        ONNX Runtime 1.32 refuses two nodes of one name, so the original runs under other names.
        """
        made = chain(3)
        for entry in made.graph.node:
            entry.name = "same" if entry.op_type == "Conv" else entry.name
        unnamed = copy_of(made)
        for entry in unnamed.graph.node:
            entry.name = ""
        outcome = cut(made, form)
        assert [done.nodes for done in outcome.rewritten] == [("c0",), ("c1",), ("y",)]
        assert set(outcome.sizes) == {"c0", "c1", "y"}
        assert_unique(outcome.model)
        assert_same(unnamed, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    def test_a_node_named_like_another_nodes_output(self, form: str) -> None:
        """Node and tensor names are two spaces; a label used twice must not make one name of two.

        conv0 is called "y", and the unnamed conv2 makes the tensor "y".
        """
        made = chain(3)
        made.graph.node[0].name, made.graph.node[4].name = "y", ""
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 3
        assert len(outcome.sizes) == 3
        assert_unique(outcome.model)
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    @pytest.mark.parametrize(
        "taken", ["conv0/patchconv/window_0", "patchconv/int64/0", "c/patchconv/"]
    )
    def test_a_model_that_uses_such_names(self, form: str, taken: str) -> None:
        """Names containing ``/patchconv/`` in the model: another tag is used."""
        made = chain(2)
        made.graph.node[1].input[0] = made.graph.node[0].output[0] = taken
        outcome = cut(made, form)
        new = made_names(outcome, made)
        assert new
        assert all("patchconv_2/" in name for name in new)
        assert_unique(outcome.model)
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    def test_such_a_name_inside_a_body(self, form: str) -> None:
        """Names inside If bodies count: they may not shadow what is new outside."""
        body = helper.make_graph(
            [node("Neg", "c", "conv/patchconv/window_0")],
            "body",
            [],
            [value("conv/patchconv/window_0", None)],
        )
        made = model(
            [
                node("Conv", "x w", "c", name="conv", pads=[1] * 4),
                node("If", "flag", "y", name="if", then_branch=body, else_branch=body),
            ],
            [value("x", (1, 2, 16, 10)), value("flag", (), TensorProto.BOOL)],
            {"y": (None,) * 4},
            {"w": noise(2, 2, 3, 3)},
        )
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 1
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10), "flag": np.array(True)})


class TestWeights:
    """Weights are read where they are, whatever makes them."""

    @both_forms
    def test_one_weight_for_two_convs(self, form: str) -> None:
        """A shared weight stays one tensor."""
        made = chain(2)
        made.graph.node[2].input[1] = "w0"
        del made.graph.initializer[1]
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 2
        assert [t.name for t in outcome.model.graph.initializer if t.data_type == 1] == ["w0"]
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    @pytest.mark.parametrize("source", ["constant", "dequantize", "mul", "input", "identity"])
    def test_where_the_weight_comes_from(self, form: str, source: str) -> None:
        """Constant node, DequantizeLinear, computed from initializers, a graph input."""
        w = noise(3, 2, 3, 3)
        nodes: list[onnx.NodeProto] = []
        weights: dict[str, Array] = {}
        inputs = {"x": (1, 2, 16, 10)}
        feeds = {"x": noise(1, 2, 16, 10)}
        if source == "constant":
            nodes.append(node("Constant", "", "w", value=numpy_helper.from_array(w)))
        elif source == "dequantize":
            nodes.append(node("DequantizeLinear", "q s z", "w", axis=0))
            weights["q"] = (20 * w).astype(np.int8)
            weights["s"], weights["z"] = np.array([0.1, 0.2, 0.3], np.float32), np.zeros(3, np.int8)
        elif source == "mul":
            nodes.append(node("Mul", "v g", "w"))
            weights["v"], weights["g"] = w, noise(3, 1, 1, 1)
        elif source == "identity":
            nodes.append(node("Identity", "v", "w"))
            weights["v"] = w
        else:
            inputs["w"], feeds["w"] = (3, 2, 3, 3), w
        nodes.append(node("Conv", "x w", "y", name="conv", pads=[1] * 4))
        made = model(nodes, inputs, {"y": (None,) * 4}, weights)
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 1
        assert_same(made, outcome.model, feeds)

    @both_forms
    def test_quantised_chain_keeps_its_pairs(self, form: str) -> None:
        """Dequantize -> Conv -> Relu -> Quantize is one region, cloned whole."""
        made = model(
            [
                node("QuantizeLinear", "x s z", "xq", name="q0"),
                node("DequantizeLinear", "xq s z", "xd", name="d0"),
                node("DequantizeLinear", "wq ws wz", "wd", name="dw", axis=0),
                node("Conv", "xd wd", "c", name="conv", pads=[1] * 4),
                node("Relu", "c", "r", name="relu"),
                node("QuantizeLinear", "r s z", "yq", name="q1"),
                node("DequantizeLinear", "yq s z", "y", name="d1"),
            ],
            {"x": (1, 2, 16, 10)},
            {"y": (None,) * 4},
            {
                "s": np.array(0.05, np.float32),
                "z": np.array(0, np.int8),
                "wq": (20 * noise(3, 2, 3, 3)).astype(np.int8),
                "ws": np.array([0.01, 0.02, 0.03], np.float32),
                "wz": np.zeros(3, np.int8),
            },
        )
        outcome = cut(made, form)
        (done,) = outcome.rewritten
        assert done.nodes == ("d0", "conv", "relu", "q1")
        assert operators(outcome.model).count("QuantizeLinear") == (2 if form == "batch" else 5)
        # Int8 in, int8 out: every output is on the same grid, so not one step may differ.
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)}, rel=0)

    @both_forms
    def test_two_quantised_convs_share_their_dequantizer(self, form: str) -> None:
        """A DequantizeLinear before two Convs goes only when both regions have cloned it."""
        made = model(
            [
                node("QuantizeLinear", "x s z", "xq"),
                node("DequantizeLinear", "xq s z", "xd", name="d0"),
                node("Conv", "xd w0", "c0", name="conv0", pads=[1] * 4),
                node("QuantizeLinear", "c0 s z", "q0"),
                node("DequantizeLinear", "q0 s z", "y0"),
                node("Conv", "xd w1", "c1", name="conv1", pads=[1] * 4),
                node("QuantizeLinear", "c1 s z", "q1"),
                node("DequantizeLinear", "q1 s z", "y1"),
            ],
            {"x": (1, 2, 16, 10)},
            {"y0": (None,) * 4, "y1": (None,) * 4},
            {
                "s": np.array(0.05, np.float32),
                "z": np.array(0, np.int8),
                "w0": noise(3, 2, 3, 3),
                "w1": noise(2, 2, 3, 3),
            },
        )
        feeds = {"x": noise(1, 2, 16, 10)}
        all_cut = cut(made, form)
        assert len(all_cut.rewritten) == 2
        assert "d0" not in by_name(all_cut.model)
        assert_same(made, all_cut.model, feeds, rel=1e-2)
        one_cut = cut(made, form, selection=Selection(include=("conv1",)))
        assert "d0" in by_name(one_cut.model)
        assert_same(made, one_cut.model, feeds, rel=1e-2)


class TestSurroundings:
    """Who else reads a region's tensors, and what lies around it."""

    @both_forms
    def test_region_output_is_a_graph_output_too(self, form: str) -> None:
        """An inner tensor that is also an output keeps its name and its value."""
        made = chain(3, relu=False)
        made.graph.output.append(value("c0", (1, 2, 16, 10)))
        made.graph.output.append(value("c1", (1, 2, 16, 10)))
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 3
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    def test_residual(self, form: str) -> None:
        """A Conv's input that a later Add reads stays whole for it."""
        made = model(
            [
                node("Relu", "x", "r", name="relu"),
                node("Conv", "r w", "c", name="conv", pads=[1] * 4),
                node("Add", "c r", "y", name="add"),
            ],
            {"x": (1, 2, 16, 10)},
            {"y": (None,) * 4},
            {"w": noise(2, 2, 3, 3)},
        )
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 1
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @both_forms
    def test_output_read_by_a_body(self, form: str) -> None:
        """A body that captures a region's output still finds it."""
        body = helper.make_graph([node("Neg", "c", "n")], "body", [], [value("n", None)])
        made = model(
            [
                node("Conv", "x w", "c", name="conv", pads=[1] * 4),
                node("If", "flag", "y", name="if", then_branch=body, else_branch=body),
            ],
            [value("x", (1, 2, 16, 10)), value("flag", (), TensorProto.BOOL)],
            {"y": (None,) * 4},
            {"w": noise(2, 2, 3, 3)},
        )
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 1
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10), "flag": np.array(True)})

    @both_forms
    @pytest.mark.parametrize("unknown", [-1, None, "?"])
    def test_exporters_spellings_of_unknown(self, form: str, unknown: int | str | None) -> None:
        """A graph as Paddle and TensorFlow write it: unnamed, NHWC, dims of -1, unset or "?".

        The two "?" are two sizes, not one.
        """
        dims = (unknown, unknown, unknown, 2)
        made = model(
            [
                node("Constant", "", "w0", value=numpy_helper.from_array(noise(3, 2, 3, 3))),
                node("Constant", "", "w1", value=numpy_helper.from_array(noise(2, 3, 3, 3))),
                node("Transpose", "x", "t0", perm=[0, 3, 1, 2]),
                node("Conv", "t0 w0", "c0", auto_pad="SAME_UPPER", strides=[2, 2]),
                node("Transpose", "c0", "t1", perm=[0, 2, 3, 1]),
                node("Relu", "t1", "r1"),
                node("Transpose", "r1", "t2", perm=[0, 3, 1, 2]),
                node("Conv", "t2 w1", "c1", auto_pad="SAME_LOWER"),
                node("Transpose", "c1", "y", perm=[0, 2, 3, 1]),
            ],
            {"x": dims},
            {"y": dims},
            opset=11,
            value_info=[value("c0", (unknown, 3, unknown, unknown)), value("t2", (unknown,) * 4)],
        )
        outcome = cut(made, form)
        refused = {r.node: r.reason for r in outcome.refused}
        assert len(outcome.rewritten) + len(refused) == 2
        assert [done.nodes for done in outcome.rewritten][-1:] == [("c1",)], refused
        for shape in [(1, 21, 9, 2), (2, 8, 13, 2)]:
            assert_same(made, outcome.model, {"x": noise(*shape)})
        fixed = cut(made, form, shapes={"x": (1, 21, 9, 2)})
        assert len(fixed.rewritten) == 2
        assert_same(made, fixed.model, {"x": noise(1, 21, 9, 2)})

    @both_forms
    @pytest.mark.parametrize("rows", [8, 12, 32, 64])
    def test_stale_value_info(self, form: str, rows: int) -> None:
        """A wrong declared shape of an inner tensor never makes a wrong graph."""
        made = chain(2)
        made.graph.value_info.append(value("r0", (1, 2, rows, 10)))
        made.graph.value_info.append(value("c0", (1, 2, rows, 10)))
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 2
        clean, result = copy_of(made), copy_of(outcome.model)
        del clean.graph.value_info[:], result.graph.value_info[:]
        assert_same(clean, result, {"x": noise(1, 2, 16, 10)})

    @both_forms
    @pytest.mark.parametrize("rows", [8, 32])
    def test_stale_value_info_behind_what_inference_does_not_know(
        self, form: str, rows: int
    ) -> None:
        """Where nothing but the file's own word tells a height, the height is not built in."""
        made = model(
            [
                node("QuickGelu", "x", "g", name="gelu", domain="com.microsoft"),
                node("Conv", "g w", "y", name="conv", pads=[1] * 4),
            ],
            {"x": (1, 2, 16, 10)},
            {"y": None},
            {"w": noise(3, 2, 3, 3)},
            domains={"com.microsoft": 1},
            value_info=[value("g", (1, 2, rows, 10))],
        )
        outcome = cut(made, form)
        clean, result = copy_of(made), copy_of(outcome.model)
        del clean.graph.value_info[:], result.graph.value_info[:]
        assert_same(clean, result, {"x": noise(1, 2, 16, 10)})
        assert len(outcome.rewritten) == 1

    @both_forms
    def test_an_initializer_that_callers_may_override(self, form: str) -> None:
        """From IR 4 on an initializer among the inputs is a default; no size may hang on it."""
        made = model(
            [
                node("Reshape", "x shape", "r", name="reshape"),
                node("Conv", "r w", "y", name="conv", pads=[1] * 4),
            ],
            [value("x", ("n",)), value("shape", (4,), TensorProto.INT64)],
            {"y": None},
            {"shape": np.array([1, 2, 16, 10], np.int64), "w": noise(3, 2, 3, 3)},
        )
        outcome = cut(made, form)
        feeds = {"x": noise(2 * 8 * 5), "shape": np.array([1, 2, 8, 5])}
        assert_same(made, outcome.model, feeds)

    def test_value_info_of_what_is_gone_goes(self) -> None:
        """Declared shapes of tensors that no longer exist are dropped, others stay."""
        made = chain(2)
        made.graph.value_info.append(value("c0", (1, 2, 16, 10)))
        made.graph.value_info.append(value("r0", (1, 2, 16, 10)))
        outcome = cut(made)
        assert {entry.name for entry in outcome.model.graph.value_info} == {"c0", "r0"}


def small_if(conv_in: str) -> onnx.ModelProto:
    """Make a model with a Conv inside an If, a Loop or a model-local function."""
    inner = [node("Conv", "x w", "n", name="inner", pads=[1] * 4)]
    x, weights = value("x", (1, 2, 8, 8)), {"w": noise(2, 2, 3, 3)}
    if conv_in == "function":
        function = helper.make_function(
            "here", "Block", ["x", "w"], ["n"], inner, [helper.make_opsetid("", 17)]
        )
        return model(
            [node("Block", "x w", "y", name="call", domain="here")],
            [x],
            {"y": None},
            weights,
            functions=[function],
            domains={"here": 1},
        )
    if conv_in == "if":
        body = helper.make_graph(inner, "body", [], [value("n", None)])
        entry = node("If", "flag", "y", name="outer", then_branch=body, else_branch=body)
        return model([entry], [x, value("flag", (), TensorProto.BOOL)], {"y": None}, weights)
    body = helper.make_graph(
        [
            node("Identity", "more", "again"),
            node("Conv", "state w", "n", name="inner", pads=[1] * 4),
        ],
        "body",
        [
            value("i", (), TensorProto.INT64),
            value("more", (), TensorProto.BOOL),
            value("state", (1, 2, 8, 8)),
        ],
        [value("again", (), TensorProto.BOOL), value("n", (1, 2, 8, 8))],
    )
    entry = node("Loop", "count _ x", "y", name="outer", body=body)
    return model([entry], [x], {"y": None}, {**weights, "count": np.array(2)})


class TestRefusals:
    """Every code is reached, and a refused model still runs as it did."""

    def check(self, made: onnx.ModelProto, expected: dict[str, str], **options: Any) -> Outcome:
        """Rewrite; assert the refusals' codes, that each has a reason, and nothing was cut."""
        outcome = cut(made, **options)
        assert codes(outcome) == expected
        assert all(refusal.reason for refusal in outcome.refused)
        assert not outcome.rewritten
        assert serialized(outcome.model) == serialized(made)
        return outcome

    def test_excluded(self) -> None:
        """A name that matches an exclude pattern, even if it is included too."""
        self.check(conv(), {"conv": "excluded"}, selection=Selection(exclude=("c*",)))
        both = Selection(include=("conv",), exclude=("conv",))
        self.check(conv(), {"conv": "excluded"}, selection=both)

    def test_not_included(self) -> None:
        """With include patterns, all other names."""
        self.check(conv(), {"conv": "not-included"}, selection=Selection(include=("other",)))

    def test_not_large(self) -> None:
        """Below the asked number of elements."""
        selection = Selection(min_elements=3 * 160 + 1)
        self.check(conv(), {"conv": "not-large"}, selection=selection)

    def test_size_unknown(self) -> None:
        """A size that cannot be inferred, with a rule that asks for it."""
        made = model(
            [
                node("QuickGelu", "x", "g", domain="com.microsoft"),
                node("Conv", "g w", "y", name="conv", pads=[1] * 4),
            ],
            {"x": (1, 2, 16, 10)},
            {"y": None},
            {"w": noise(3, 2, 3, 3)},
            domains={"com.microsoft": 1},
        )
        self.check(made, {"conv": "size-unknown"}, selection=Selection())
        self.check(made, {"conv": "size-unknown"}, selection=Selection(min_elements=1))

    def test_no_such_axis(self) -> None:
        """An axis beyond the Conv's rank."""
        self.check(conv(), {"conv": "no-such-axis"}, axis="depth")
        self.check(conv(), {"conv": "no-such-axis"}, axis=4)

    def test_kernel_unknown(self) -> None:
        """A weight of unknown shape and no kernel_shape to tell."""
        made = model(
            [node("Conv", "x w", "y", name="conv", pads=[1] * 4)],
            [value("x", (1, 2, 16, 10)), value("w", (3, 2, "k", "k"))],
            {"y": None},
        )
        self.check(made, {"conv": "kernel-unknown"})

    def test_one_row(self) -> None:
        """An output of one row."""
        self.check(conv((1, 2, 1, 10)), {"conv": "one-row"})

    def test_one_patch(self) -> None:
        """One patch asked for."""
        self.check(conv(), {"conv": "one-patch"}, splits=1)

    @pytest.mark.parametrize("opset", [7, 8])
    def test_opset_too_old(self, opset: int) -> None:
        """Below 9 always; at 9 where heights are known at run time alone."""
        self.check(conv(opset=opset, ir=4), {"conv": "opset-too-old"})
        self.check(conv(("n", 2, "h", "w"), opset=9, ir=4), {"conv": "opset-too-old"})

    def test_constant_input(self) -> None:
        """A Conv of constants has nothing to cut."""
        made = model(
            [
                node("Relu", "v", "x", name="relu"),
                node("Conv", "x w", "c", name="conv", pads=[1] * 4),
                node("Add", "c z", "y"),
            ],
            {"z": (1,)},
            {"y": None},
            {"v": noise(1, 2, 8, 8), "w": noise(3, 2, 3, 3)},
        )
        self.check(made, {"conv": "constant-input"})

    def test_not_provable(self) -> None:
        """ConvTranspose whose output_shape asks for more than its kernel fills."""
        made = model(
            [node("ConvTranspose", "x w", "y", name="conv", strides=[2, 2], output_shape=[40, 40])],
            {"x": (1, 2, 8, 8)},
            {"y": None},
            {"w": noise(2, 3, 3, 3)},
        )
        self.check(made, {"conv": "not-provable"})

    @pytest.mark.parametrize("conv_in", ["if", "loop", "function"])
    def test_in_subgraph(self, conv_in: str) -> None:
        """A Conv inside a body or a function is named with the place it lies in."""
        outcome = self.check(small_if(conv_in), {"inner": "in-subgraph"})
        place = {"if": "If 'outer'", "loop": "Loop 'outer'", "function": "here::Block"}[conv_in]
        assert place in outcome.refused[0].reason

    def test_refused_and_cut_side_by_side(self) -> None:
        """One Conv refused does not keep another from being cut."""
        made = chain(3)
        outcome = cut(made, selection=Selection(min_elements=0, exclude=("conv1",)))
        assert codes(outcome) == {"conv1": "excluded"}
        assert [done.nodes for done in outcome.rewritten] == [("conv0",), ("conv2",)]
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})


class TestSelection:
    """The default rule, and patterns."""

    def uneven(self) -> onnx.ModelProto:
        """Make "big" at full size, a pooling by 4, "small" on a sixteenth of it."""
        return model(
            [
                node("Conv", "x w0", "a", name="net/big", pads=[1] * 4),
                node("MaxPool", "a", "p", name="net/pool", kernel_shape=[4, 4], strides=[4, 4]),
                node("Conv", "p w1", "y", name="net/small", pads=[1] * 4),
            ],
            {"x": (1, 2, 32, 32)},
            {"y": (None,) * 4},
            {"w0": noise(2, 2, 3, 3), "w1": noise(2, 2, 3, 3, seed=1)},
        )

    def test_default_is_half_of_the_peak(self) -> None:
        """Input and output together at least half the predicted peak: large."""
        outcome = cut(self.uneven(), selection=Selection())
        assert [done.nodes for done in outcome.rewritten] == [("net/big",)]
        assert codes(outcome) == {"net/small": "not-large"}
        assert "6 %" in outcome.refused[0].reason

    @pytest.mark.parametrize(("others", "large"), [(1, True), (2, True), (3, False)])
    def test_default_at_its_threshold(self, others: int, large: bool) -> None:
        """The Conv holds 2 tensors; exactly half (2 of 4) is large, 2 of 5 is not."""
        nodes = [node("Relu", "x", f"k{k}") for k in range(others)]
        nodes.append(node("Relu", "x", "r"))
        nodes.append(node("Conv", "r w", "c", name="conv", pads=[1] * 4))
        nodes.append(node("Sum", " ".join(["c", *(f"k{k}" for k in range(others))]), "y"))
        made = model(nodes, {"x": (1, 2, 16, 16)}, {"y": (None,) * 4}, {"w": noise(2, 2, 3, 3)})
        # At the Sum all k, c and y live; at the Conv all k, r and c.
        outcome = cut(made, selection=Selection())
        assert bool(outcome.rewritten) is large

    @pytest.mark.parametrize(("least", "count"), [(0, 2), (128, 2), (129, 1), (2048, 1), (2049, 0)])
    def test_min_elements(self, least: int, count: int) -> None:
        """Channels x height x width of the larger side decide, the threshold included."""
        outcome = cut(self.uneven(), selection=Selection(min_elements=least))
        assert len(outcome.rewritten) == count

    def test_include_and_exclude_are_globs(self) -> None:
        """Patterns match the whole name, case and all; include overrides the default rule."""

        def names(**patterns: tuple[str, ...]) -> list[str]:
            outcome = cut(self.uneven(), selection=Selection(**patterns))  # type: ignore[arg-type]
            return [done.nodes[0] for done in outcome.rewritten]

        assert names(include=("*small",)) == ["net/small"]
        assert names(include=("net/*",)) == ["net/big", "net/small"]
        assert names(include=("net",)) == []
        assert names(include=("NET/*",)) == []
        assert names(include=("net/[bs]*",), exclude=("*big",)) == ["net/small"]
        assert names(exclude=("*big",)) == []

    @pytest.mark.parametrize(
        "options",
        [
            {"splits": 0},
            {"splits": -1},
            {"form": "fuzed"},
            {"axis": "rows"},
            {"axis": 1},
            {"axis": -1},
            {"selection": Selection(min_elements=-1)},
        ],
    )
    def test_bad_options(self, options: dict[str, Any]) -> None:
        """Options that fit no model are refused when they are made."""
        with pytest.raises(OptionError):
            Options(**options)


class TestShapes:
    """Fixing free dimensions."""

    def two_inputs(self) -> onnx.ModelProto:
        """Make y = Conv(x) + z with symbols shared between x and z."""
        return model(
            [
                node("Conv", "x w", "c", name="conv", pads=[1] * 4),
                node("Add", "c z", "y", name="add"),
            ],
            {"x": ("n", 2, "h", "w"), "z": ("n", 1, "h", 1)},
            {"y": ("n", 2, "h", "w")},
            {"w": noise(2, 2, 3, 3)},
        )

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ({"nope": (1,)}, "no such input; the inputs are x, z"),
            ({"w": (2, 2, 3, 3)}, "no such input"),
            ({"x": (1, 2, 8)}, "3 sizes given, the input has 4"),
            ({"x": (1, 3, 8, 8)}, "dimension 1 is fixed to 2"),
            ({"x": (1, 2, 8, 8), "z": (1, 1, 9, 1)}, "'h', given as 8 before and as 9 now"),
            ({"x": (1, 2, 0, 8)}, "size 0 is not between 1"),
            ({"x": (1, 2, -1, 8)}, "size -1 is not between 1"),
        ],
    )
    def test_errors(self, shapes: dict[str, tuple[int, ...]], message: str) -> None:
        """An unknown input, another rank, a conflict, a size below one."""
        with pytest.raises(OptionError, match=message):
            cut(self.two_inputs(), shapes=shapes)

    @both_forms
    def test_fixing_one_input_fixes_its_symbols_everywhere(self, form: str) -> None:
        """X alone is given; z and the output take its symbols' values; windows are static."""
        made = self.two_inputs()
        outcome = cut(made, form, shapes={"x": (1, 2, 12, 9)})

        def dims(entry: onnx.ValueInfoProto) -> list[int]:
            return [dim.dim_value for dim in entry.type.tensor_type.shape.dim]

        assert [dims(entry) for entry in outcome.model.graph.input] == [
            [1, 2, 12, 9],
            [1, 1, 12, 1],
        ]
        assert dims(outcome.model.graph.output[0]) == [1, 2, 12, 9]
        assert outcome.rewritten[0].rows == 12
        assert "Shape" not in operators(outcome.model)
        assert_same(made, outcome.model, {"x": noise(1, 2, 12, 9), "z": noise(1, 1, 12, 1)})

    def test_outputs_of_other_symbols_are_declared(self) -> None:
        """An output whose symbols no input has takes the inferred sizes."""
        made = conv(("n", 2, "h", "w"), strides=[2, 2])
        del made.graph.output[:]
        made.graph.output.append(value("y", ("n", 3, "out_h", "out_w")))
        outcome = cut(made, shapes={"x": (1, 2, 13, 9)})
        dims = outcome.model.graph.output[0].type.tensor_type.shape.dim
        assert [dim.dim_value for dim in dims] == [1, 3, 7, 5]
        assert_same(made, outcome.model, {"x": noise(1, 2, 13, 9)})

    def test_an_input_of_unknown_rank(self) -> None:
        """An input without any shape takes the given one."""
        made = conv(None)
        outcome = cut(made, shapes={"x": (1, 2, 13, 9)})
        assert len(outcome.rewritten) == 1
        assert outcome.rewritten[0].rows == 13
        assert_same(made, outcome.model, {"x": noise(1, 2, 13, 9)})

    @both_forms
    def test_an_input_of_unknown_rank_left_unknown(self, form: str) -> None:
        """The Conv's own kernel tells the rank; sizes come at run time."""
        made = conv(None)
        outcome = cut(made, form)
        assert len(outcome.rewritten) == 1
        assert_same(made, outcome.model, {"x": noise(1, 2, 13, 9)})

    def test_analyse_memory(self) -> None:
        """The predicted peak at given sizes, without changing the model."""
        made = conv(("n", 2, "h", "w"))
        before = serialized(made)
        assert analyse_memory(Loaded(made, None), {"x": (1, 2, 10, 10)}) == 4 * 100 * 5
        assert analyse_memory(Loaded(made, None), {"x": (2, 2, 20, 10)}) == 4 * 400 * 5
        assert serialized(made) == before


class TestUpgrade:
    """Converting the default domain's opset first."""

    def old(self, opset: int) -> onnx.ModelProto:
        """Make Conv -> BatchNormalization -> Relu -> MaxPool -> Conv -> Reshape of an old opset."""
        made = model(
            [
                node("Conv", "x w0", "c0", name="conv0", pads=[1] * 4),
                node("BatchNormalization", "c0 s b m v", "n", name="norm"),
                node("Relu", "n", "r", name="relu"),
                node("MaxPool", "r", "p", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
                node("Conv", "p w1", "c1", name="conv1", pads=[1] * 4),
                node("Reshape", "c1 shape", "y", name="flat"),
            ],
            {"x": (1, 2, 16, 10)},
            {"y": (1, 80)},
            {
                "w0": noise(3, 2, 3, 3),
                "w1": noise(2, 3, 3, 3),
                **{name: np.abs(noise(3, seed=k)) + 0.5 for k, name in enumerate("sbmv")},
                "shape": np.array([1, -1], np.int64),
            },
            opset=opset,
            ir=4,
        )
        made.metadata_props.add(key="author", value="someone")
        made.doc_string = "about the model"
        made.graph.doc_string = "about the graph"
        for entry in made.graph.node:
            entry.doc_string = f"about {entry.name}"
            entry.metadata_props.add(key="origin", value=f"layer of {entry.name}")
        return made

    @both_forms
    @pytest.mark.parametrize("opset", [8, 9])
    def test_numbers_and_metadata_survive(self, form: str, opset: int) -> None:
        """The converted and cut model computes the same and keeps what nodes carried."""
        made = self.old(opset)
        outcome = cut(made, form, upgrade_opset=13)
        result = outcome.model
        assert [(o.domain, o.version) for o in result.opset_import] == [("", 13)]
        assert len(outcome.rewritten) == 2
        metadata = {entry.key: entry.value for entry in result.metadata_props}
        assert metadata["author"] == "someone"
        assert (result.doc_string, result.graph.doc_string) == (
            "about the model",
            "about the graph",
        )
        assert result.producer_name == made.producer_name
        assert result.ir_version == made.ir_version
        after = by_name(result)
        for entry in made.graph.node:
            if entry.op_type != "Conv":
                assert after[entry.name].doc_string == entry.doc_string
                assert list(after[entry.name].metadata_props) == list(entry.metadata_props)
        clones = [n for n in result.graph.node if n.op_type == "Conv"]
        assert {clone.doc_string for clone in clones} == {"about conv0", "about conv1"}
        assert_same(made, result, {"x": noise(1, 2, 16, 10)})

    @pytest.mark.parametrize("opset", [8, 9])
    def test_ir_3(self, opset: int) -> None:
        """An old file of IR 3, initializers among the inputs, converts and runs."""
        made = self.old(opset)
        made.ir_version = 3
        del made.metadata_props[:]
        for tensor in made.graph.initializer:
            made.graph.input.append(value(tensor.name, tuple(tensor.dims), tensor.data_type))
        outcome = cut(made, upgrade_opset=13)
        assert len(outcome.rewritten) == 2
        assert [i.name for i in session(outcome.model).get_inputs()] == ["x"]
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    @pytest.mark.parametrize("opset", [9, 11])
    def test_dynamic_after_upgrade(self, opset: int) -> None:
        """A dynamic model of opset 9 is cut once it is converted."""
        made = conv(("n", 2, "h", "w"), opset=opset, ir=4)
        outcome = cut(made, upgrade_opset=13)
        assert len(outcome.rewritten) == 1
        for dims in [(1, 2, 16, 10), (2, 2, 7, 12)]:
            assert_same(made, outcome.model, {"x": noise(*dims)})

    def test_downgrade_is_an_error(self) -> None:
        """A version below the model's own is refused."""
        with pytest.raises(OptionError, match="at 17 already"):
            cut(conv(), upgrade_opset=13)

    def test_what_cannot_be_converted(self) -> None:
        """The converter's own failure is translated."""
        made = conv(opset=8, ir=4)
        with pytest.raises(OptionError, match="upgrade_opset=999"):
            cut(made, upgrade_opset=999)


class TestInvalid:
    """Models that are refused as a whole."""

    def custom(self) -> onnx.ModelProto:
        """Make Conv -> a custom operator -> Conv."""
        return model(
            [
                node("Conv", "x w", "c", name="conv0", pads=[1] * 4),
                node("Mystery", "c", "m", name="mystery", domain="org.example"),
                node("Conv", "m w", "y", name="conv1", pads=[1] * 4),
            ],
            {"x": (1, 2, 16, 10)},
            {"y": (None,) * 4},
            {"w": noise(2, 2, 3, 3)},
            domains={"org.example": 1},
        )

    def test_custom_operator(self) -> None:
        """An operator that nobody here defines raises, and is left alone where allowed."""
        with pytest.raises(ModelError, match=r"'mystery'.*org.example::Mystery.*allow_custom_ops"):
            cut(self.custom())
        made = self.custom()
        outcome = cut(made, allow_custom_ops=True)
        assert len(outcome.rewritten) == 2
        assert by_name(outcome.model)["mystery"] == by_name(made)["mystery"]
        assert list(outcome.model.opset_import) == list(made.opset_import)

    def test_unknown_operator_of_the_default_domain(self) -> None:
        """A misspelt operator is a custom one, too."""
        made = conv()
        made.graph.node.append(node("Reluu", "y", "z", name="typo"))
        with pytest.raises(ModelError, match="typo"):
            cut(made)

    @pytest.mark.parametrize("op", ["QuickGelu", "Gelu"])
    def test_contrib_operators_are_no_custom_ones(self, op: str) -> None:
        """ONNX Runtime's own domain passes."""
        made = chain(1)
        made.graph.node[0].input[0] = "g"
        made.graph.node.insert(0, node(op, "x", "g", name="gelu", domain="com.microsoft"))
        made.opset_import.add(domain="com.microsoft", version=1)
        outcome = cut(made)
        assert len(outcome.rewritten) == 1
        assert_same(made, outcome.model, {"x": noise(1, 2, 16, 10)})

    def test_unsorted(self) -> None:
        """A node before its input's producer: an error that says what to do."""
        made = chain(2)
        nodes = list(made.graph.node)[::-1]
        del made.graph.node[:]
        made.graph.node.extend(nodes)
        with pytest.raises(ModelError):
            cut(made)

    @pytest.mark.parametrize("damage", ["missing", "twice", "attribute", "arity", "untyped"])
    def test_invalid(self, damage: str) -> None:
        """What the ONNX checker refuses raises ModelError, in one line."""
        made = chain(2)
        if damage == "untyped":
            made.graph.input[0].ClearField("type")
        elif damage == "missing":
            made.graph.node[0].input[0] = "nowhere"
        elif damage == "twice":
            made.graph.node[2].output[0] = "c0"
        elif damage == "attribute":
            made.graph.node[0].attribute.append(helper.make_attribute("pads2", [1]))
        else:
            del made.graph.node[0].input[1:]
        with pytest.raises(ModelError) as caught:
            cut(made)
        assert "\n" not in str(caught.value)

    def test_weight_with_too_few_bytes(self) -> None:
        """A large weight whose bytes do not fit its shape is refused, and named."""
        made = model(
            [node("Conv", "x w", "y", name="conv", pads=[1] * 4)],
            {"x": (1, 64, 16, 10)},
            {"y": (None,) * 4},
            {"w": noise(64, 64, 3, 3)},
        )
        raw = made.graph.initializer[0].raw_data
        for damaged in (raw[:-4], raw + b"\0" * 4, raw[:5000]):
            made.graph.initializer[0].raw_data = damaged
            with pytest.raises(ModelError, match=r"'w' holds \d+ bytes"):
                cut(made)

    def test_large_weight_in_a_typed_field(self) -> None:
        """The same where the numbers lie in float_data."""
        made = model(
            [node("Conv", "x w", "y", name="conv", pads=[1] * 4)],
            {"x": (1, 64, 16, 10)},
            {"y": (None,) * 4},
            {"w": noise(64, 64, 3, 3)},
        )
        tensor = made.graph.initializer[0]
        numbers = numpy_helper.to_array(tensor).reshape(-1)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(numbers.tolist())
        feeds = {"x": noise(1, 64, 16, 10)}
        assert_same(made, cut(made).model, feeds)
        del tensor.float_data[-3:]
        with pytest.raises(ModelError, match="'w'"):
            cut(made)


def test_run_helper_sees_a_difference() -> None:
    """The comparison of these tests would notice one wrong row."""
    made = conv()
    other = copy_of(made)
    feeds = {"x": noise(1, 2, 16, 10)}
    array = numpy_helper.to_array(other.graph.initializer[1]).copy()
    array[0] += 1e-3
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(array, "b"))
    assert run(made, feeds).keys() == {"y"}
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, other, feeds)
