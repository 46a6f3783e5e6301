"""Models that ONNX Runtime takes and onnx.checker refuses are read, cut, verified, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from patchconv_deploy import convert_model, rewrite
from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.normalise import normalise
from tests.support.small_models import (
    assert_same,
    chain,
    copy_of,
    model,
    node,
    noise,
    session,
    value,
)


def _unsorted(made: onnx.ModelProto) -> None:
    nodes = list(copy_of(made).graph.node)[::-1]
    del made.graph.node[:]
    made.graph.node.extend(nodes)


def _spelled(made: onnx.ModelProto) -> None:
    for each in made.graph.node:
        each.domain = "ai.onnx"


def _spelled_throughout(made: onnx.ModelProto) -> None:
    _spelled(made)
    made.opset_import[0].domain = "ai.onnx"


def _not_imported(made: onnx.ModelProto) -> None:
    made.graph.node[1].op_type, made.graph.node[1].domain = "Gelu", "com.microsoft"


def _nameless(made: onnx.ModelProto) -> None:
    made.graph.name = ""


def _twice(made: onnx.ModelProto) -> None:
    made.graph.initializer.append(made.graph.initializer[0])


def _weight_without_name(made: onnx.ModelProto) -> None:
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32)))


def _old(made: onnx.ModelProto) -> None:
    made.ir_version = 3


SPOILT: Mapping[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "unsorted": (_unsorted, "nodes are sorted"),
    "ai.onnx in nodes": (_spelled, 'spelled ""'),
    "ai.onnx throughout": (_spelled_throughout, 'spelled ""'),
    "domain not imported": (_not_imported, "are imported"),
    "no name": (_nameless, "has a name"),
    "initializer twice": (_twice, "are dropped"),
    "initializer without a name": (_weight_without_name, "are dropped"),
    "weights are no inputs": (_old, "before IR version 4"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_a_runtime_takes_is_cut_and_said(name: str, tmp_path: Path) -> None:
    """The checker refuses it, ONNX Runtime runs it; it is cut, verified, and named."""
    spoil, said = SPOILT[name]
    made = chain(2)
    spoil(made)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(made)
    session(made)
    file = tmp_path / "spoilt.onnx"
    file.write_bytes(made.SerializeToString())
    result = rewrite(file, min_elements=0, require_verified=True)
    assert result.report.rewritten
    assert result.report.verification["passed"]
    assert [w for w in result.report.warnings if said in w]
    written = onnx.load(str(result.path))
    onnx.checker.check_model(written)
    assert_same(made, written, {"x": noise(1, 2, 16, 10)})


def test_what_is_normalised_alone_is_verified(tmp_path: Path) -> None:
    """Nothing is cut, and yet it is not the file that was read."""
    made = chain(2)
    _unsorted(made)
    file = tmp_path / "unsorted.onnx"
    file.write_bytes(made.SerializeToString())
    found = rewrite(file, exclude=["*"], require_verified=True).report
    assert found.verification["passed"]
    assert not found.rewritten


def test_a_model_from_memory_is_normalised_and_not_changed() -> None:
    """`convert_model` reads a proto as it reads a file; the caller's own stays as it is."""
    made = chain(2)
    _unsorted(made)
    before = made.SerializeToString()
    assert_same(made, convert_model(made, min_elements=0), {"x": noise(1, 2, 16, 10)})
    assert made.SerializeToString() == before


def test_what_keeps_to_the_specification_stays_as_it_is() -> None:
    """Not a byte is another, and nothing is said."""
    made = chain(3)
    before = made.SerializeToString()
    assert normalise(made) == ()
    assert made.SerializeToString() == before


def test_bodies_are_sorted_too() -> None:
    """A branch whose nodes stand the wrong way round, and what it reads stands behind it."""

    def branch(name: str) -> onnx.GraphProto:
        made = [node("Relu", f"{name}_", name), node("Neg", "t", f"{name}_")]
        return onnx.helper.make_graph(made, name, [], [value(name, (None,) * 4)])

    nodes = [
        node("If", "c", "y", then_branch=branch("a"), else_branch=branch("b")),
        node("Abs", "x", "t"),
    ]
    inputs = [value("x", (1, 2, 4, 4)), value("c", (), onnx.TensorProto.BOOL)]
    made = model(nodes, inputs, {"y": (None,) * 4})
    assert len(normalise(made)) == 1
    assert [each.op_type for each in made.graph.node] == ["Abs", "If"]
    onnx.checker.check_model(made)


def test_what_has_no_one_meaning_is_left_to_the_checker(tmp_path: Path) -> None:
    """A circle, and two weights of one name that differ: bad input, one line."""
    circle, torn = chain(2), chain(2)
    circle.graph.node[0].input[0] = "r0"
    torn.graph.initializer.append(onnx.numpy_helper.from_array(noise(2, 2, 3, 3, seed=9), "w0"))
    for made in (circle, torn):
        before = made.SerializeToString()
        assert normalise(made) == ()
        assert made.SerializeToString() == before
        file = tmp_path / "bad.onnx"
        file.write_bytes(before)
        with pytest.raises(RewriterError):
            rewrite(file)
