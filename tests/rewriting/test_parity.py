"""Parity with torch, and with the published library where that is right.

Convolutions come from torch modules: exported by torch itself, or built from their weights. The
published ``patch_conv`` cuts only from 2^30 elements on. To run its own code on small inputs,
`_Posing` is a tensor whose ``shape`` claims so many channels that any product with them is huge;
it is a plain tensor to everything else. Nothing of the library is copied or changed.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from tests.support.oracle import Array, conv, conv_model, ops, ort_run, rewrite

torch = pytest.importorskip("torch", reason="torch is not installed")


def _module(**arguments: Any) -> Any:
    """Return a torch convolution whose weights are small whole numbers: sums are exact."""
    kind = arguments.pop("kind", "Conv2d")
    torch.manual_seed(7)
    module = getattr(torch.nn, kind)(**arguments)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape).float())
    return module.eval()


def _input(shape: tuple[int, ...]) -> Any:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(9)).float()


def _torch(module: Any, x: Any) -> Array:
    with torch.no_grad():
        y: Array = module(x).numpy()
    return y


def _built(module: Any, shape: list[int | str]) -> onnx.ModelProto:
    """Return the module's convolution as a model, from its weights and settings."""
    rank = len(module.kernel_size)
    pads = module.padding
    attributes: dict[str, Any] = {
        "strides": module.stride,
        "dilations": module.dilation,
        "group": module.groups,
        "pads": [*pads, *pads],
    }
    transposed = "Transpose" in type(module).__name__
    if transposed:
        attributes["output_padding"] = module.output_padding
    assert len(shape) == rank + 2
    return conv_model(
        shape,
        module.weight.detach().numpy(),
        None if module.bias is None else module.bias.detach().numpy(),
        op="ConvTranspose" if transposed else "Conv",
        **attributes,
    )


_MODULES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "3x3": ({"kernel_size": 3, "padding": 1}, (2, 6, 37, 19)),
    "5x5": ({"kernel_size": 5, "padding": 2}, (1, 6, 37, 19)),
    "7x7": ({"kernel_size": 7, "padding": 3}, (1, 6, 37, 19)),
    "1x1": ({"kernel_size": 1}, (2, 6, 37, 19)),
    "no padding": ({"kernel_size": 3}, (2, 6, 37, 19)),
    "stride 2": ({"kernel_size": 3, "padding": 1, "stride": 2}, (2, 6, 37, 19)),
    "stride 3, kernel 4x2": (
        {"kernel_size": (4, 2), "padding": (2, 0), "stride": (3, 1)},
        (2, 6, 38, 19),
    ),
    "dilation 3": ({"kernel_size": 3, "padding": 3, "dilation": 3}, (1, 6, 37, 19)),
    "depthwise": ({"kernel_size": 3, "padding": 1, "groups": 6, "out_channels": 12}, (2, 6, 37, 9)),
    "groups, no bias": (
        {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False},
        (2, 6, 37, 19),
    ),
    "1-D": ({"kind": "Conv1d", "kernel_size": 5, "padding": 2, "stride": 2}, (2, 6, 41)),
    "3-D": ({"kind": "Conv3d", "kernel_size": 3, "padding": 1}, (1, 6, 5, 23, 7)),
    "transposed": (
        {"kind": "ConvTranspose2d", "kernel_size": 4, "padding": 1, "stride": 2},
        (2, 6, 17, 9),
    ),
    "transposed, output padding": (
        {
            "kind": "ConvTranspose2d",
            "kernel_size": 3,
            "padding": 1,
            "stride": 2,
            "output_padding": 1,
        },
        (1, 6, 17, 9),
    ),
}


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", _MODULES)
def test_parity_with_torch(name: str, free: bool, form: str) -> None:
    """A torch convolution's weights, cut into patches, give what torch gives: to the bit."""
    arguments, size = _MODULES[name]
    module = _module(**{"in_channels": 6, "out_channels": 4, **arguments})
    shape: list[int | str] = [*size]
    if free:
        shape = ["n", 6, *(f"d{i}" for i in range(len(size) - 2))]
    outcome = rewrite(_built(module, shape), splits=4, form=form)
    assert [done.splits for done in outcome.rewritten] == [4]
    x = _input(size)
    (cut,) = ort_run(outcome.model, {"x": x.numpy()})
    assert np.array_equal(cut, _torch(module, x))


def _small_network() -> Any:
    return torch.nn.Sequential(
        _module(in_channels=3, out_channels=8, kernel_size=3, padding=1),
        torch.nn.ReLU(),
        _module(in_channels=8, out_channels=8, kernel_size=3, padding=1, stride=2, groups=4),
        torch.nn.ReLU(),
        _module(
            kind="ConvTranspose2d",
            in_channels=8,
            out_channels=2,
            kernel_size=4,
            padding=1,
            stride=2,
        ),
    ).eval()


@cache
def _exported(*, free: bool, dynamo: bool) -> tuple[Any, onnx.ModelProto]:
    """Return the small network and what torch exports of it."""
    net, x = _small_network(), _input((2, 3, 40, 16))
    file = io.BytesIO()
    arguments: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamo": dynamo}
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's dynamo exporter needs onnxscript")
        arguments |= {"verbose": False, "external_data": False}
        if free:
            dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=20)}
            arguments["dynamic_shapes"] = (dims,)
    elif free:
        arguments["dynamic_axes"] = {"x": {0: "n", 2: "h"}}
    torch.onnx.export(net, (x,), file, **arguments)
    model = onnx.load_from_string(file.getvalue())
    model.ir_version = min(model.ir_version, 10)
    return net, model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["batch", "sequential", "auto"])
@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_parity_with_exported_torch(dynamo: bool, free: bool, form: str) -> None:
    """A small network exported by torch: every Conv is cut, several heights equal torch's own."""
    net, model = _exported(free=free, dynamo=dynamo)
    before = sum(op in ("Conv", "ConvTranspose") for op in ops(model))
    outcome = rewrite(model, splits=4, form=form)
    assert before == len(outcome.rewritten) == 3, outcome.refused
    for height, images in ((40, 2), (61, 1), (23, 3)) if free else ((40, 2),):
        x = _input((images, 3, height, 16))
        (cut,) = ort_run(outcome.model, {"x": x.numpy()})
        assert np.array_equal(cut, _torch(net, x))


class _Many(int):
    """A number of channels that says of any product with it that it is huge."""

    def __mul__(self, other: int) -> int:
        return 1 << 40


class _Posing(torch.Tensor):  # type: ignore[misc, name-defined, unused-ignore]
    """A tensor whose ``shape`` poses as that of one beyond patch_conv's threshold."""

    __torch_function__: ClassVar[Any] = torch._C._disabled_torch_function_impl

    @property
    def shape(self) -> tuple[int, ...]:
        """The true sizes; the channels are `_Many`."""
        images, channels, *rest = self.size()
        return (images, _Many(channels), *rest)


def _published(module: Any, x: Any, splits: int, *, sequential: bool) -> Array:
    """Run patch_conv's own patches on a small input."""
    library = pytest.importorskip("patch_conv", reason="patch_conv is not installed")
    patched = library.PatchConv2d(splits=splits, sequential=sequential, conv2d=module)
    calls: list[tuple[int, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, given: calls.append(tuple(given[0].size())))
    try:
        y = _torch(patched, x.as_subclass(_Posing))
    finally:
        hook.remove()
    # The convolution really ran on patches: one by one, or stacked in the batch dimension.
    assert len(calls) == (len(x) * splits if sequential else 1), calls
    assert sequential or calls[0][0] == len(x) * splits, calls
    return y


@pytest.mark.parametrize("form", ["batch", "sequential"])
@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 7, "padding": 3},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "groups": 6, "out_channels": 6, "bias": False},
        {"kernel_size": (3, 5), "padding": (1, 0)},
    ],
    ids=str,
)
def test_parity_with_the_published_library(
    arguments: dict[str, Any], splits: int, form: str
) -> None:
    """Where the published PatchConv2d is right, both give the same, in either of its two modes."""
    module = _module(**{"in_channels": 6, "out_channels": 4, **arguments})
    x = _input((2, 6, 64, 11))
    outcome = rewrite(_built(module, [2, 6, 64, 11]), splits=splits, form=form)
    assert [done.splits for done in outcome.rewritten] == [splits]
    (cut,) = ort_run(outcome.model, {"x": x.numpy()})
    assert np.array_equal(cut, _published(module, x, splits, sequential=form == "sequential"))
    assert np.array_equal(cut, _torch(module, x))


@pytest.mark.parametrize(
    ("arguments", "height", "splits"),
    [
        pytest.param({"kernel_size": 3, "padding": 1, "stride": 2}, 24, 8, id="stride, patch"),
        pytest.param({"kernel_size": 3, "padding": 1}, 23, 4, id="splits, height"),
        pytest.param({"kernel_size": 5, "padding": 1}, 24, 4, id="less than SAME"),
        pytest.param({"kernel_size": 3, "padding": 2}, 24, 4, id="more than SAME"),
        pytest.param({"kernel_size": 3}, 24, 4, id="no padding"),
        pytest.param({"kernel_size": 9, "padding": 4}, 16, 8, id="halo longer than a patch"),
        pytest.param({"kernel_size": 3, "padding": 1, "dilation": 2}, 24, 4, id="dilation"),
    ],
)
def test_right_where_the_published_library_is_not(
    arguments: dict[str, Any], height: int, splits: int
) -> None:
    """The published PatchConv2d asserts, fails or gives something else; the rewrite gives torch's.

    The first half documents the library as it is: should it fail, patch_conv has become better.
    """
    module = _module(**{"in_channels": 6, "out_channels": 4, **arguments})
    x = _input((1, 6, height, 11))
    right = _torch(module, x)
    try:
        other = _published(module, x, splits, sequential=True)
    except (AssertionError, RuntimeError):
        other = None
    assert other is None or other.shape != right.shape or not np.array_equal(other, right)
    # Its padding stays changed when it fails half way.
    module = _module(**{"in_channels": 6, "out_channels": 4, **arguments})
    model = _built(module, [1, 6, height, 11])
    for form in ("batch", "sequential"):
        outcome = rewrite(model, splits=splits, form=form)
        assert outcome.rewritten[0].splits >= 2
        assert np.array_equal(ort_run(outcome.model, {"x": x.numpy()})[0], right)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    weights = (module.weight.detach().numpy(), module.bias.detach().numpy())
    assert np.array_equal(conv(x.numpy(), *weights, **attributes), right)
