"""The channels that ONNX Runtime lays out together: by processor, and as the runtime does."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from patchconv_deploy.rewriters.memory.processor import block_of, channel_block
from tests.support.small_models import model, node, noise


@pytest.mark.parametrize(
    ("machine", "extensions", "block"),
    [
        ("x86_64", ["X86_V2", "X86_V3"], 8),
        ("AMD64", ["SSE", "AVX2"], 8),
        ("x86_64", ["X86_V3", "X86_V4"], 16),
        ("x86_64", ["AVX2", "AVX512F"], 16),
        ("aarch64", ["NEON"], 16),
        ("arm64", [], 16),
    ],
)
def test_block(machine: str, extensions: list[str], block: int) -> None:
    """Eight on x86 without AVX-512, else sixteen."""
    assert block_of(machine, extensions) == block


def test_the_runtime_lays_out_as_many(tmp_path: Path) -> None:
    """The runtime's own optimised graph: a Conv of 20 channels is filled up to whole blocks."""
    conv = node("Conv", "x w", "y", name="conv", pads=[1] * 4)
    dims = (1, 20, 16, 16)
    made = model([conv], {"x": dims}, {"y": dims}, {"w": noise(20, 20, 3, 3)})
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that such a graph is for this processor alone
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    (laid_out,) = [each for each in optimised.node if each.op_type == "Conv"]
    assert laid_out.domain == "com.microsoft.nchwc"
    sizes = {tensor.name: tuple(tensor.dims) for tensor in optimised.initializer}
    weight = laid_out.input[1]
    block = channel_block()
    assert sizes[weight][0] == -(-20 // block) * block
