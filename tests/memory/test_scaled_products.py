"""A constant factor behind a product of two activations: ONNX Runtime multiplies by it at once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.memory.reader import predict
from tests.support.small_models import Array, model, node

TOKENS, CHANNELS = 256, 8


def _attention(op: str, scale: Array | None, *, second: bool = False) -> onnx.ModelProto:
    """Scores, a factor, and the largest of each row."""
    nodes = [node("MatMul", "q k", "scores")]
    read = "scores"
    if scale is not None:
        nodes.append(node(op, "scale scores" if second else "scores scale", "scaled"))
        read = "scaled"
    nodes.append(node("ReduceMax", read, "y", axes=[2]))
    dims = {"q": (1, TOKENS, CHANNELS), "k": (1, CHANNELS, TOKENS)}
    weights = {} if scale is None else {"scale": scale}
    return model(nodes, dims, {"y": (1, TOKENS, 1)}, weights)


def _peak(made: onnx.ModelProto) -> int:
    return predict(made.graph, infer(made), "onnxruntime-tuned").bytes


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_a_number_is_no_tensor_more(op: str) -> None:
    """As the runtime's own optimised graph has it, and the peak without the factor."""
    for scale in (np.array(0.25, np.float32), np.array([0.25], np.float32)):
        assert _peak(_attention(op, scale)) == _peak(_attention(op, None))


@pytest.mark.parametrize(
    ("op", "scale", "second"),
    [
        ("Mul", np.ones(TOKENS, np.float32), False),
        ("Div", np.array(2, np.float32), True),
        ("Sub", np.array(2, np.float32), False),
    ],
)
def test_what_is_no_factor_stays(op: str, scale: Array, second: bool) -> None:
    """A number for each column, a number that is divided, another operator."""
    assert _peak(_attention(op, scale, second=second)) > _peak(_attention(op, None))
