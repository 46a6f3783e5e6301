"""`rewriters.graph`: reading files that may be anything, indexing, skeletons, checking."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from patchconv_deploy.rewriters.errors import ModelError, RewriterError
from patchconv_deploy.rewriters.graph.check import check
from patchconv_deploy.rewriters.graph.model import Loaded, load, opset_of
from patchconv_deploy.rewriters.graph.nodes import (
    attributes,
    captured,
    convolutions_in_bodies,
    node_label,
)
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.use_def import index
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import chain, conv, copy_of, model, node, noise, value


def write(path: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data)
    return path


def rich_model() -> onnx.ModelProto:
    """Make a model with everything a file may hold: body, function, metadata, value_info."""
    body = helper.make_graph([node("Neg", "c", "n")], "body", [], [value("n", None)])
    function = helper.make_function(
        "here", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    made = model(
        [
            node("Conv", "x w", "c", name="conv", pads=[1] * 4),
            node("If", "flag", "i", name="if", then_branch=body, else_branch=body),
            node("Twice", "i", "y", name="twice", domain="here"),
        ],
        [value("x", (1, 2, 8, 6)), value("flag", (), TensorProto.BOOL)],
        {"y": (None,) * 4},
        {"w": noise(2, 2, 3, 3)},
        functions=[function],
        domains={"here": 1},
        value_info=[value("c", (1, 2, 8, 6))],
    )
    made.metadata_props.add(key="author", value="someone")
    made.doc_string = "about the model"
    return made


class TestLoad:
    """Whatever the file holds: a model, or a ModelError of one line."""

    def test_a_good_file(self, tmp_path: Path) -> None:
        """The model as it was saved, and its folder."""
        made = rich_model()
        loaded = load(write(tmp_path / "m.onnx", made.SerializeToString()))
        assert loaded.model == made
        assert loaded.folder == tmp_path
        assert not loaded.has_external_data

    @pytest.mark.parametrize(
        ("name", "words"), [("missing.onnx", "no such file"), (".", "is a folder")]
    )
    def test_no_file(self, tmp_path: Path, name: str, words: str) -> None:
        """A missing file, and a folder."""
        with pytest.raises(ModelError, match=words):
            load(tmp_path / name)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0",
            b"onnx",
            b"\x89PNG\r\n\x1a\n" + bytes(100),
            b"PK\x03\x04" + bytes(100),
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            b"<html><body>404</body></html>",
            bytes(1000),
        ],
    )
    def test_not_a_model(self, tmp_path: Path, data: bytes) -> None:
        """Empty files, pictures, archives, Git LFS pointers, error pages."""
        with pytest.raises(ModelError, match="not an ONNX model") as caught:
            load(write(tmp_path / "m.onnx", data))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("field", ["graph", "opset_import", "ir_version"])
    def test_incomplete(self, tmp_path: Path, field: str) -> None:
        """A model without a graph, an opset or an IR version."""
        made = conv()
        made.ClearField(field)
        with pytest.raises(ModelError, match="not an ONNX model"):
            load(write(tmp_path / "m.onnx", made.SerializeToString()))

    def test_random_bytes(self, tmp_path: Path) -> None:
        """300 files of seeded random bytes."""
        rng = random.Random(1)
        for _ in range(300):
            with pytest.raises(ModelError):
                load(write(tmp_path / "m.onnx", rng.randbytes(rng.randrange(1, 200))))

    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        """Cut short at any byte: an error, or nothing that matters to the graph is missing.

        A file that ends between two fields is well-formed; one that ends before its metadata is
        another valid model.
        """
        made = rich_model()
        data = made.SerializeToString()
        accepted = 0
        for length in range(len(data)):
            path = write(tmp_path / "m.onnx", data[:length])
            try:
                result = load(path)
                rewrite_model(result, Options(selection=Selection(min_elements=0)))
            except ModelError:
                continue
            accepted += 1
            read = onnx.ModelProto.FromString(data[:length])
            assert read.graph == made.graph
            assert {o.domain for o in read.opset_import} >= {""}
            assert list(read.functions) == list(made.functions)
        assert accepted <= 2

    def test_damaged_anywhere(self, tmp_path: Path) -> None:
        """One byte changed: the same, or a valid other model; never another exception."""
        made = rich_model()
        data = made.SerializeToString()
        rng = random.Random(2)
        messages = []
        for _ in range(600):
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] = rng.randrange(256)
            try:
                loaded = load(write(tmp_path / "m.onnx", bytes(damaged)))
                rewrite_model(loaded, Options(selection=Selection(min_elements=0)))
            except RewriterError as error:
                messages.append(str(error))
        assert len(messages) > 50
        assert not any("\n" in message for message in messages)


class TestIndex:
    """Use and definition of tensors."""

    def test_producers_and_users(self) -> None:
        """Positions of makers and readers; constants are what follows from weights alone."""
        made = model(
            [
                node("Mul", "v v", "w"),
                node("Conv", "x w", "c", pads=[1] * 4),
                node("Add", "c c", "a"),
                node("Add", "a c", "y"),
            ],
            {"x": (1, 2, 8, 6)},
            {"y": (None,) * 4},
            {"v": noise(2, 2, 3, 3)},
        )
        found = index(made)
        assert found.producer == {"w": 0, "c": 1, "a": 2, "y": 3}
        assert found.users["c"] == [2, 3]
        assert found.users["v"] == [0]
        assert found.constants == {"v", "w"}
        assert found.outputs == {"y"}

    def test_bodies_read_outer_tensors(self) -> None:
        """What a body captures counts as read by the node that holds it."""
        made = rich_model()
        assert list(captured(made.graph.node[1])) == ["c", "c"]
        assert index(made).users["c"] == [1]
        assert index(made).names >= {"n", "c", "conv", "if", "w"}

    def test_names_inside_functions_are_taken(self) -> None:
        """An inliner brings them into the graph."""
        assert index(rich_model()).names >= {"Twice", "a", "b"}

    def test_what_a_body_makes_itself_is_not_captured(self) -> None:
        """Body inputs, initializers and results of a body, nested ones too."""
        inner = helper.make_graph(
            [node("Add", "mine outer2", "deep")], "inner", [], [value("deep", None)]
        )
        body = helper.make_graph(
            [
                node("Add", "state outer1", "mine"),
                node("If", "flag", "z", then_branch=inner, else_branch=inner),
            ],
            "body",
            [value("state", None), value("flag", None, TensorProto.BOOL)],
            [value("z", None), value("passed", None)],
        )
        entry = node("Loop", "m _ x", "y", body=body)
        assert set(captured(entry)) == {"outer1", "outer2", "passed"}

    def test_random_numbers_are_not_constant(self) -> None:
        """A random operator without inputs makes another tensor each time."""
        made = model(
            [
                node("RandomNormal", "", "r", shape=[1, 2, 8, 6]),
                node("Constant", "", "k", value_float=1.0),
                node("Add", "r k", "y"),
            ],
            {},
            {"y": (None,) * 4},
        )
        assert index(made).constants == {"k"}

    def test_unsorted(self) -> None:
        """A reader before the maker: named, with the way out."""
        made = chain(2)
        nodes = list(made.graph.node)[::-1]
        del made.graph.node[:]
        made.graph.node.extend(nodes)
        with pytest.raises(ModelError, match="sort the graph topologically"):
            index(made)

    def test_unsorted_through_a_body(self) -> None:
        """The same where the reader is a body."""
        made = rich_model()
        nodes = [made.graph.node[1], made.graph.node[0], made.graph.node[2]]
        del made.graph.node[:]
        made.graph.node.extend(nodes)
        with pytest.raises(ModelError, match="'if' reads 'c' before it is made"):
            index(made)


class TestReading:
    """Small readers of nodes and models."""

    def test_attributes(self) -> None:
        """Numbers, strings and lists of them; tensors and graphs left out."""
        entry = helper.make_node(
            "X",
            [],
            [],
            i=1,
            f=0.5,
            s="text",
            ints=[1, 2],
            floats=[1.0],
            t=helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]),
        )
        assert attributes(entry) == {
            "i": 1,
            "f": 0.5,
            "s": "text",
            "ints": (1, 2),
            "floats": (1.0,),
        }

    def test_labels(self) -> None:
        """The name, else the first output that is there, else the operator."""
        assert node_label(node("Conv", "x w", "y", name="n")) == "n"
        assert node_label(node("Conv", "x w", "y")) == "y"
        assert node_label(helper.make_node("Split", ["x"], ["", "b"])) == "b"
        assert node_label(node("Conv", "x w", "")) == "Conv"

    def test_opset(self) -> None:
        """The default domain by either of its names; 0 where there is none."""
        made = conv(opset=13)
        assert opset_of(made) == 13
        made.opset_import[0].domain = "ai.onnx"
        assert opset_of(made) == 13
        made.opset_import[0].domain = "ai.onnx.ml"
        assert opset_of(made) == 0

    def test_convolutions_in_bodies(self) -> None:
        """Nested bodies are walked to the bottom; the place is the node of the main graph."""
        inner = helper.make_graph(
            [node("Conv", "x w", "d", name="deep")], "inner", [], [value("d", None)]
        )
        body = helper.make_graph(
            [node("If", "flag", "z", name="inside", then_branch=inner, else_branch=inner)],
            "body",
            [],
            [value("z", None)],
        )
        made = conv()
        made.graph.node.append(
            node("If", "flag", "q", name="outside", then_branch=body, else_branch=body)
        )
        assert set(convolutions_in_bodies(made)) == {("deep", "the body of If 'outside'")}


class TestSkeleton:
    """The model without its weights' bytes."""

    def test_large_weights_lose_their_bytes_alone(self) -> None:
        """Shapes, types and small tensors stay; the model itself is not touched."""
        made = model(
            [
                node(
                    "Constant",
                    "",
                    "big",
                    value=helper.make_tensor(
                        "t", TensorProto.FLOAT, [64, 64], noise(64, 64).tobytes(), raw=True
                    ),
                ),
                node("Conv", "x w b", "y", name="conv", pads=[1] * 4),
            ],
            {"x": (1, 64, 8, 6)},
            {"y": (None,) * 4},
            {"w": noise(64, 64, 3, 3), "b": noise(64)},
        )
        made.metadata_props.add(key="k", value="v")
        before = made.SerializeToString()
        slim = skeleton(Loaded(made, None))
        assert made.SerializeToString() == before
        assert slim.ByteSize() < 2000
        assert list(slim.graph.initializer[0].dims) == [64, 64, 3, 3]
        assert not slim.graph.initializer[0].raw_data
        assert slim.graph.initializer[1] == made.graph.initializer[1]
        assert not slim.graph.node[0].attribute[0].t.raw_data
        assert slim.graph.node[1] == made.graph.node[1]
        assert list(slim.metadata_props) == list(made.metadata_props)
        assert list(slim.opset_import) == list(made.opset_import)

    def test_of_a_small_model_is_the_model(self) -> None:
        """Without large weights nothing is left out, bodies and functions included."""
        made = rich_model()
        assert skeleton(Loaded(made, None)) == made

    def test_passes_the_check(self) -> None:
        """A skeleton without its large weights is still checked like the model."""
        made = chain(3)
        made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(noise(600, 2, 3, 3), "w0"))
        check(skeleton(Loaded(made, None)))
        made.graph.node[0].input[1] = "nowhere"
        with pytest.raises(ModelError, match="nowhere"):
            check(skeleton(Loaded(made, None)))

    @pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int64, np.int8])
    def test_wrong_length(self, kind: type[np.generic]) -> None:
        """A large tensor whose bytes do not fit its shape, of any type, in weight or Constant."""
        array = np.ones((3000,), kind)
        tensor = onnx.numpy_helper.from_array(array, "w")
        good = model([node("Identity", "w", "y")], {}, {"y": None}, {})
        good.graph.initializer.append(tensor)
        skeleton(Loaded(good, None))
        for length in (tensor.raw_data[:-1], tensor.raw_data + b"\0", tensor.raw_data[:2500]):
            bad = copy_of(good)
            bad.graph.initializer[0].raw_data = length
            with pytest.raises(ModelError, match=r"'w' holds \d+ bytes, its shape \[3000\]"):
                skeleton(Loaded(bad, None))
            inner = copy_of(good)
            del inner.graph.initializer[:]
            held = onnx.TensorProto()
            held.CopyFrom(bad.graph.initializer[0])
            inner.graph.node.insert(0, node("Constant", "", "w", value=held))
            with pytest.raises(ModelError, match=r"'w' holds \d+ bytes"):
                skeleton(Loaded(inner, None))
