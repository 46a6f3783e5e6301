"""The networks that look at the whole image: their files compute what the modules do."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from tests.support.oracle import ort_session

torch = pytest.importorskip("torch", reason="torch is not installed")

from tools.export_models import export, main  # noqa: E402
from tools.models.architectures import build, example_input  # noqa: E402

# What each exported file must hold, and how often: what the network is there for.
_HOLDS = {
    "vae_encoder": {"InstanceNormalization": 22, "Softmax": 1},
    "residual_blocks": {"InstanceNormalization": 9},
    "style_transfer": {"InstanceNormalization": 9, "Pad": 10, "Resize": 2},
    "unet_3d": {"InstanceNormalization": 10, "ConvTranspose": 2},
    "swinir": {"LayerNormalization": 5, "Softmax": 2},
    "attention": {"Softmax": 1},
}


@pytest.mark.parametrize("name", _HOLDS)
def test_a_file_computes_what_its_module_does(name: str, tmp_path: Path) -> None:
    """Within rounding, on values of usual size; normalisations and attention are in the file."""
    path = export(name, tmp_path / "model.onnx")
    model = onnx.load(path)
    x = example_input(name)
    (got,) = ort_session(model).run(None, {"input": x.numpy()})
    wanted = build(name)(x).numpy()
    assert got.shape == wanted.shape
    assert 0.5 < wanted.std() < 2
    assert abs(got - wanted).max() < 1e-4
    found = [node.op_type for node in model.graph.node]
    assert {op: found.count(op) for op in _HOLDS[name]} == _HOLDS[name]


def test_the_encoder_pads_below_and_on_the_right_alone() -> None:
    """The last row is as far from the padding as the first is not."""
    from tools.models.blocks import Downsample

    step = Downsample(1)
    with torch.no_grad():
        step.conv.weight.fill_(1.0)
        step.conv.bias.fill_(0.0)
        got = step(torch.ones(1, 1, 4, 4))
    assert got.tolist() == [[[[9.0, 6.0], [6.0, 4.0]]]]


def test_windows_that_wrap_see_their_own_side_alone() -> None:
    """Rolled rows of the top and the bottom lie in one window and must not mix."""
    from tools.models.swinir import _Layer

    layer = _Layer(8, 2, 8, 4).eval()
    x = torch.randn(1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, :4] += 1.0
    with torch.no_grad():
        moved = (layer(x) - layer(other)).abs().amax(dim=(0, 2, 3))
    assert (moved[:4] > 0.1).all()
    assert moved[4:].max() == 0


def test_volumes_and_tokens_on_the_command_line(tmp_path: Path) -> None:
    """As many sizes as the network has dimensions; else it says so."""
    out = str(tmp_path / "model.onnx")
    for name, size in (("unet_3d", "8x12x16"), ("attention", "24")):
        done = CliRunner().invoke(main, [name, out, "--size", size])
        assert done.exit_code == 0, done.output
        dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
        assert "x".join(str(d.dim_value) for d in dims).find(size) > 0
    refused = CliRunner().invoke(main, ["unet_3d", out, "--size", "16x16"])
    assert refused.exit_code == 1
    assert "3 sizes" in refused.output
