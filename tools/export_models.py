"""Export real architectures, with random seeded weights, as ONNX files for tests and benchmarks.

Networks are available by name: ``vae_decoder``, ``unet``, ``rrdbnet``, ``srvgg`` and ``mobilenet``.
Their defaults are small; width and depth are options, so that the published proportions are one
option away (``export("vae_decoder", path, base=128, groups=32)`` has the shape of SDXL's decoder).

No weights are downloaded. Random ones are scaled layer by layer on a random input (see
``_initialise``) so that every layer contributes visibly to the output: a network whose output
barely depends on its middle would hide a wrong rewrite of that middle.

Run as ``python -m tools.export_models unet unet.onnx --exporter dynamo --dynamic``.
"""

# The classes of torch and of the runtime are Any where their types are not read.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "ARCHITECTURES",
    "SRVGG",
    "Architecture",
    "MobileNet",
    "RRDBNet",
    "UNet",
    "VAEDecoder",
    "build",
    "example_input",
    "export",
    "quantize_qdq",
]

Exporter = Literal["torchscript", "dynamo"]
DType = Literal["float32", "float16"]
Size = tuple[int, int]

# ONNX Runtime 1.23 loads up to this IR version, and up to opset 23.
MAX_IR_VERSION = 13
# TorchScript's exporter stops at 20 and has attention from 14 on; the other one writes 18 and
# converts upwards, while its conversion downwards gives up on some operators.
OPSETS: dict[Exporter, range] = {"torchscript": range(14, 21), "dynamo": range(18, 24)}
DEFAULT_OPSET: dict[Exporter, int] = {"torchscript": 17, "dynamo": 18}

INPUT_NAME = "input"
OUTPUT_NAME = "output"

_Layer = TypeVar("_Layer", bound=nn.Module)


# --- weights --------------------------------------------------------------------------------------


def _aim(layer: _Layer, std: float, *, relative: bool = False) -> _Layer:
    """Note the output deviation that ``_initialise`` should give ``layer`` (1 unless noted).

    With ``relative``, the deviation is in units of that of the layer's leading input channels, as
    many as it has outputs: in a dense block, (a part of) what the block adds its result to.
    """
    setattr(layer, "target_std", (std, relative))  # noqa: B010 - an attribute Module does not declare
    return layer


def _initialise(model: nn.Module, example: Tensor, seed: int) -> None:
    """Give ``model`` seeded weights for which activations neither vanish nor explode.

    Weights and biases are drawn from a normal distribution; then, in one forward pass, each
    layer's weights are scaled until its output has the wanted deviation, and each BatchNorm takes
    the statistics of its own input (layer-sequential unit variance, arXiv:1511.06422).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(parameter: Tensor, mean: float, std: float) -> None:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise.mul_(std).add_(mean))

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias").detach()
        if not isinstance(layer, nn.Linear):
            bias = bias.reshape(-1, 1, 1)
        std, relative = getattr(layer, "target_std", (1.0, False))
        if relative:
            std *= inputs[0][:, : output.shape[1]].std().item()
        factor = std / (output - bias).std().item()
        weight.mul_(factor)
        return (output - bias) * factor + bias

    def adopt(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer.get_buffer("running_mean").copy_(inputs[0].mean((0, 2, 3)))
        layer.get_buffer("running_var").copy_(inputs[0].var((0, 2, 3)))

    model.eval().requires_grad_(False)
    hooks = []
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)):
            # Not the identity, so that losing or misplacing the affine part shows.
            draw(layer.weight, 1.0, 0.1)
            draw(layer.bias, 0.0, 0.1)
            if isinstance(layer, nn.BatchNorm2d):
                hooks.append(layer.register_forward_pre_hook(adopt))
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            draw(layer.weight, 0.0, 1.0 / math.sqrt(layer.weight[0].numel()))
            if layer.bias is None:  # only before a BatchNorm, which sets the scale itself
                continue
            draw(layer.bias, 0.0, 0.1)
            hooks.append(layer.register_forward_hook(scale))
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()


# --- VAE decoder ----------------------------------------------------------------------------------


class _ResnetBlock(nn.Module):
    """GroupNorm, SiLU, conv 3x3, twice, plus the input: NxCxHxW to NxDxHxW."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if channels != out_channels:
            self.shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        result: Tensor = self.shortcut(x) + y
        return result


class _SpatialAttention(nn.Module):
    """Single-head self-attention between all positions of NxCxHxW, plus the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        # A flat softmax would average every position away; larger logits keep it selective.
        self.to_q = _aim(nn.Linear(channels, channels), 1.5)
        self.to_k = _aim(nn.Linear(channels, channels), 1.5)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).flatten(2).transpose(1, 2)  # N x HW x C
        q, k, v = (to(y).unsqueeze(1) for to in (self.to_q, self.to_k, self.to_v))
        y = self.to_out(functional.scaled_dot_product_attention(q, k, v).squeeze(1))
        result: Tensor = x + y.transpose(1, 2).reshape(x.shape)
        return result


class _Upsample(nn.Module):
    """Nearest-neighbour doubling, then conv 3x3: NxCxHxW to NxCx2Hx2W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class VAEDecoder(nn.Module):
    """Decoder of the latent-diffusion autoencoder (arXiv:2112.10752), as used by SDXL.

    Input Nx4xHxW (a latent), output Nx3x(sH)x(sW) with ``s = 2 ** (len(multipliers) - 1)``.
    SDXL (arXiv:2307.01952) has ``base=128, groups=32`` and the default multipliers: channels
    (512, 512, 256, 128), three residual blocks in each up block, eight times upsampled.
    """

    def __init__(
        self,
        base: int = 32,
        multipliers: tuple[int, ...] = (4, 4, 2, 1),
        resnets: int = 3,
        groups: int = 8,
        latent_channels: int = 4,
    ) -> None:
        super().__init__()
        channels = [base * multiplier for multiplier in multipliers]
        width = channels[0]
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid = nn.Sequential(
            _ResnetBlock(width, width, groups),
            _SpatialAttention(width, groups),
            _ResnetBlock(width, width, groups),
        )
        ups: list[nn.Module] = []
        for index, out_width in enumerate(channels):
            for _ in range(resnets):
                ups.append(_ResnetBlock(width, out_width, groups))
                width = out_width
            if index < len(channels) - 1:
                ups.append(_Upsample(width))
        self.up = nn.Sequential(*ups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.up(self.mid(self.conv_in(self.post_quant_conv(x))))
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


# --- U-Net ----------------------------------------------------------------------------------------


def _double_conv(channels: int, out_channels: int) -> nn.Sequential:
    """Conv 3x3, BatchNorm, ReLU, twice: NxCxHxW to NxDxHxW."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """U-Net for segmentation (arXiv:1505.04597), with padded convolutions and BatchNorm.

    Input Nx3xHxW, output Nx1xHxW; H and W must be multiples of ``2 ** levels``. The paper's
    width is ``base=64``.
    """

    def __init__(
        self, base: int = 32, levels: int = 4, in_channels: int = 3, out_channels: int = 1
    ) -> None:
        super().__init__()
        widths = [base << level for level in range(levels + 1)]
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            _double_conv(a, b) for a, b in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(
            _double_conv(2 * width, width) for width in reversed(widths[:-1])
        )
        self.head = nn.Conv2d(base, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        skips: list[Tensor] = []
        for index, down in enumerate(self.down):
            x = down(self.pool(x) if index else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        result: Tensor = self.head(x)
        return result


# --- RRDBNet --------------------------------------------------------------------------------------


class _DenseBlock(nn.Module):
    """Residual dense block: five convs, each on all that precedes it, on NxCxHxW."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        # Relative, since the input grows from block to block and would drown a fixed deviation.
        self.convs = nn.ModuleList(
            _aim(nn.Conv2d(channels + index * growth, growth, 3, padding=1), 1.0, relative=True)
            for index in range(4)
        )
        # Five times the input cancels the factor of 0.2 that would let the skip dominate.
        self.last = _aim(
            nn.Conv2d(channels + 4 * growth, channels, 3, padding=1), 5.0, relative=True
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.convs:
            features.append(functional.leaky_relu(conv(torch.cat(features, dim=1)), 0.2))
        result: Tensor = self.last(torch.cat(features, dim=1)) * 0.2 + x
        return result


class _RRDB(nn.Module):
    """Residual in residual dense block: three dense blocks on NxCxHxW."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.blocks(x) * 0.2 + x
        return result


class RRDBNet(nn.Module):
    """ESRGAN's generator (arXiv:1809.00219), four times upsampled.

    Input Nx3xHxW, output Nx3x4Hx4W. The paper's size is ``base=64, growth=32, blocks=23``.
    """

    def __init__(self, base: int = 32, growth: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, base, 3, padding=1)
        self.trunk = nn.Sequential(*(_RRDB(base, growth) for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(base, base, 3, padding=1)
        self.up1 = _Upsample(base)
        self.up2 = _Upsample(base)
        self.conv_hr = nn.Conv2d(base, base, 3, padding=1)
        self.conv_last = nn.Conv2d(base, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.conv_first(x)
        x = x + self.trunk_conv(self.trunk(x))
        for layer in (self.up1, self.up2, self.conv_hr):
            x = functional.leaky_relu(layer(x), 0.2)
        result: Tensor = self.conv_last(x)
        return result


# --- SRVGG ----------------------------------------------------------------------------------------


class SRVGG(nn.Module):
    """Compact super-resolution net (Real-ESRGAN's SRVGGNetCompact, arXiv:2107.10833).

    A plain chain of Conv 3x3 and PReLU at the input's size, one Conv to ``3 * scale ** 2``
    channels, a sub-pixel shuffle (ESPCN, arXiv:1609.05158), and the input added, enlarged by
    nearest neighbours. Input Nx3xHxW, output Nx3x(scale*H)x(scale*W). The published sizes are
    ``base=64`` with ``layers=16`` or ``32``.
    """

    def __init__(self, base: int = 48, layers: int = 8, scale: int = 4) -> None:
        super().__init__()
        body: list[nn.Module] = []
        for index in range(layers):
            body.append(nn.Conv2d(base if index else 3, base, 3, padding=1))
            body.append(nn.PReLU(base, init=0.25))
        self.body = nn.Sequential(*body)
        self.last = nn.Conv2d(base, 3 * scale * scale, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        enlarged = functional.interpolate(x, scale_factor=self.scale, mode="nearest")
        result: Tensor = self.shuffle(self.last(self.body(x))) + enlarged
        return result


# --- MobileNet ------------------------------------------------------------------------------------


def _conv_norm(
    channels: int,
    out_channels: int,
    kernel: int,
    activation: nn.Module | None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> list[nn.Module]:
    """Conv, BatchNorm and activation, as the layers of a Sequential."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return layers if activation is None else [*layers, activation]


class _SqueezeExcite(nn.Module):
    """Scale the channels of NxCxHxW by a function of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        # The gate is flat beyond 3; two keeps it both varied and mostly inside.
        self.expand = _aim(nn.Conv2d(channels // 4, channels, 1), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(functional.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1))))
        return x * functional.hardsigmoid(gate)


class _InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; plus the input where the shape is the same."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: int,
        expansion: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: bool,
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += _conv_norm(channels, hidden, 1, activation())
        layers += _conv_norm(hidden, hidden, kernel, activation(), stride=stride, groups=hidden)
        if squeeze:
            layers.append(_SqueezeExcite(hidden))
        layers += _conv_norm(hidden, out_channels, 1, None)
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Inverted residuals (MobileNetV2, arXiv:1801.04381) with the V3 (arXiv:1905.02244) extras.

    ReLU6 in the first stages, hardswish after, one squeeze-excite block, output stride 16.

    Input Nx3xHxW. With ``head="dense"`` the output is Nx``classes``xHxW (for H and W multiples
    of 16): per-position scores, resized bilinearly. With ``head="classifier"`` it is
    Nx``classes``. The published width is ``base=16``; ``repeats`` is the number of further,
    residual blocks in each of the three stages.
    """

    def __init__(
        self,
        base: int = 16,
        repeats: int = 1,
        classes: int = 10,
        head: Literal["dense", "classifier"] = "dense",
    ) -> None:
        super().__init__()
        if head not in ("dense", "classifier"):
            raise ValueError(f"unknown head {head!r}")
        self.dense = head == "dense"

        def width(multiplier: float) -> int:
            return max(8, 8 * round(base * multiplier / 8))  # multiples of 8, as in the papers

        channels = width(1)
        layers = _conv_norm(3, channels, 3, nn.Hardswish(), stride=2)
        layers.append(
            _InvertedResidual(
                channels,
                channels,
                kernel=3,
                expansion=1,
                stride=1,
                activation=nn.ReLU6,
                squeeze=False,
            )
        )
        stages: list[tuple[float, int, int, type[nn.Module], bool]] = [
            # width, kernel, expansion, activation, squeeze-excite in the first block
            (1.5, 3, 4, nn.ReLU6, False),
            (2.5, 5, 3, nn.Hardswish, True),
            (5.0, 3, 6, nn.Hardswish, False),
        ]
        for multiplier, kernel, expansion, activation, squeeze in stages:
            for index in range(1 + repeats):
                out_channels = width(multiplier)
                layers.append(
                    _InvertedResidual(
                        channels,
                        out_channels,
                        kernel=kernel,
                        expansion=expansion,
                        stride=1 if index else 2,
                        activation=activation,
                        squeeze=squeeze and index == 0,
                    )
                )
                channels = out_channels
        layers += _conv_norm(channels, 4 * channels, 1, nn.Hardswish())
        self.features = nn.Sequential(*layers)
        self.head: nn.Module = (
            nn.Conv2d(4 * channels, classes, 1) if self.dense else nn.Linear(4 * channels, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.features(x)
        if self.dense:
            return functional.interpolate(
                self.head(x), scale_factor=16.0, mode="bilinear", align_corners=False
            )
        result: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


# --- registry -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """How to build and feed one network.

    ``size`` is the default input height and width, ``seed`` that of the weights. ``multiple``
    gives, for a built model, the number that height and width must be multiples of.
    """

    build: Callable[..., nn.Module]
    channels: int
    size: Size
    seed: int
    multiple: Callable[[nn.Module], int] = lambda model: 1


def _unet_multiple(model: nn.Module) -> int:
    assert isinstance(model, UNet)
    return 1 << len(model.up)


ARCHITECTURES: dict[str, Architecture] = {
    "vae_decoder": Architecture(VAEDecoder, channels=4, size=(16, 16), seed=11),
    "unet": Architecture(UNet, channels=3, size=(128, 128), seed=12, multiple=_unet_multiple),
    "rrdbnet": Architecture(RRDBNet, channels=3, size=(32, 32), seed=13),
    "srvgg": Architecture(SRVGG, channels=3, size=(32, 32), seed=15),
    "mobilenet": Architecture(MobileNet, channels=3, size=(128, 128), seed=14),
}


def _architecture(name: str) -> Architecture:
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"unknown architecture {name!r}; known: {known}") from None


def _noise(channels: int, size: Size, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *size, generator=generator)


def build(name: str, **arch_options: Any) -> nn.Module:
    """Return the named network in eval mode, float32, with its seeded weights."""
    architecture = _architecture(name)
    # Construction draws weights that are replaced; leave the caller's generator as it was.
    with torch.random.fork_rng(devices=[]):
        model = architecture.build(**arch_options)
    # A small input is enough for statistics, whatever size the export is for.
    multiple = architecture.multiple(model)
    side = 2 * multiple * math.ceil(min(architecture.size) / (2 * multiple))
    example = _noise(architecture.channels, (side, side), 4, architecture.seed)
    _initialise(model, example, architecture.seed)
    return model


def example_input(name: str, *, size: Size | None = None, batch: int = 1, seed: int = 0) -> Tensor:
    """Return a seeded normal float32 input, ``batch`` x C x H x W, for the named network."""
    architecture = _architecture(name)
    return _noise(architecture.channels, size or architecture.size, batch, seed)


# --- export ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings, prints and log records of the exporters and the quantiser to ourselves."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _export_torchscript(
    model: nn.Module, example: Tensor, path: Path, opset: int, dynamic: bool, fold: bool
) -> None:
    axes: dict[str, dict[int, str]] = {}
    if dynamic:
        with torch.no_grad():
            output_shape = model(example).shape
        axes[INPUT_NAME] = {0: "batch", 2: "height", 3: "width"}
        if output_shape[2:] == example.shape[2:]:
            axes[OUTPUT_NAME] = dict(axes[INPUT_NAME])
        elif len(output_shape) == 4:
            axes[OUTPUT_NAME] = {0: "batch", 2: "output_height", 3: "output_width"}
        else:
            axes[OUTPUT_NAME] = {0: "batch"}
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        opset_version=opset,
        dynamic_axes=axes,
        # The model is in evaluation mode as it is; said of the export, its norms are folded away.
        training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )


def _export_dynamo(
    model: nn.Module,
    example: Tensor,
    path: Path,
    opset: int,
    dynamic: bool,
    fold: bool,
    multiple: int,
) -> None:
    shapes: tuple[dict[int, Any], ...] | None = None
    if dynamic:
        height, width = torch.export.Dim("height"), torch.export.Dim("width")
        if multiple > 1:
            # torch.export wants the divisibility that the skips need said in the dimension.
            height, width = multiple * height, multiple * width
        shapes = ({0: torch.export.Dim("batch"), 2: height, 3: width},)
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        opset_version=opset,
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        optimize=fold,
        verbose=False,
    )


def export(
    name: str,
    path: str | Path,
    *,
    exporter: Exporter = "torchscript",
    dynamic: bool = False,
    dtype: DType = "float32",
    size: Size | None = None,
    opset: int | None = None,
    fold: bool = True,
    **arch_options: Any,
) -> Path:
    """Write the named network as one ONNX file and return its path.

    The model has one input, ``input`` (NxCxHxW), and one output, ``output``. ``size`` is the
    input's height and width (a latent's for ``vae_decoder``); the batch is 1. With ``dynamic``,
    batch, height and width are symbols instead. Without ``fold`` BatchNormalization stays in the
    file. ``arch_options`` go to the network's class.
    """
    architecture = _architecture(name)
    if exporter not in DEFAULT_OPSET:
        raise ValueError(f"unknown exporter {exporter!r}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}")
    opset = opset or DEFAULT_OPSET[exporter]
    if opset not in OPSETS[exporter]:
        allowed = OPSETS[exporter]
        raise ValueError(f"{exporter} writes opsets {allowed[0]} to {allowed[-1]}, not {opset}")
    size = size or architecture.size
    model = build(name, **arch_options)
    multiple = architecture.multiple(model)
    if size[0] % multiple or size[1] % multiple:
        raise ValueError(f"{name} needs height and width in multiples of {multiple}, not {size}")

    path = Path(path)
    # A batch of 1 would be taken as a constant by torch.export.
    example = example_input(name, size=size, batch=2 if dynamic else 1)
    if dtype == "float16":
        model, example = model.half(), example.half()
    with _quiet():
        if exporter == "torchscript":
            _export_torchscript(model, example, path, opset, dynamic, fold)
        else:
            _export_dynamo(model, example, path, opset, dynamic, fold, multiple)
    _finish(path, opset)
    return path


def _finish(path: Path, opset: int) -> None:
    """Check the versions of an exported file and take the exporting machine's traces out of it."""
    model = onnx.load(path)
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        # A failed conversion only warns, and leaves the exporter's own opset.
        raise RuntimeError(f"the exporter wrote opset {written} instead of {opset}")
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    for node in model.graph.node:
        node.doc_string = ""
        kept = [entry for entry in node.metadata_props if "stack_trace" not in entry.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


# --- quantisation ---------------------------------------------------------------------------------


def quantize_qdq(
    source: str | Path,
    path: str | Path,
    *,
    size: Size | None = None,
    samples: int = 4,
    seed: int = 0,
) -> Path:
    """Write a statically quantised (QDQ, int8, per-channel weights) copy of a float32 model.

    It is calibrated on ``samples`` seeded normal inputs. Symbolic dimensions are taken as a batch
    of 1 and, for height and width, ``size`` (64x64 unless given). Normalisations stay in float.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    graph = onnx.load(source, load_external_data=False).graph
    value = graph.input[0]
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise ValueError("only float32 models can be quantised")
    fallback = (1, 0, *(size or (64, 64)))
    shape = [
        dim.dim_value if dim.HasField("dim_value") else fallback[axis]
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    rng = np.random.default_rng(seed)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = samples

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            if not self.left:
                return None
            self.left -= 1
            return {value.name: rng.standard_normal(shape, dtype=np.float32)}

    path = Path(path)
    with _quiet():
        quantize_static(
            str(source),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            # Weights of 7 bits: on x86 without VNNI sums of two products of 8 bits saturate in 16,
            # and what a network computes depends on the kernel that is chosen.
            reduce_range=True,
            # The quantiser copies a bias that several of them share under the next free number
            # among the initializers, which may be a node's output already ("val_150").
            nodes_to_exclude=[
                node.name for node in graph.node if node.op_type == "InstanceNormalization"
            ],
        )
    return path


# --- command line ---------------------------------------------------------------------------------


def _parse_size(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> Size | None:
    if value is None:
        return None
    height, _, width = value.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"{value!r} is not of the form HxW")
    return int(height), int(width)


def _parse_options(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not (key.isidentifier() and sign):
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE")
        try:
            options[key] = json.loads(text)
        except json.JSONDecodeError:
            options[key] = text
    return options


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--exporter", type=click.Choice(list(DEFAULT_OPSET)), default="torchscript", show_default=True
)
@click.option("--dynamic", is_flag=True, help="Symbolic batch, height and width.")
@click.option("--size", metavar="HxW", callback=_parse_size, help="Input height and width.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True
)
@click.option("--opset", type=int, help="ONNX opset; 17 for torchscript and 18 for dynamo.")
@click.option(
    "--fold/--no-fold",
    default=True,
    show_default=True,
    help="Fold BatchNormalization into the Convs.",
)
@click.option("--qdq", is_flag=True, help="Quantise the export to int8 (QDQ).")
@click.option(
    "-o",
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_parse_options,
    help="Option of the architecture, such as base=128; may be repeated.",
)
def main(
    name: str,
    out: Path,
    exporter: Exporter,
    dynamic: bool,
    size: Size | None,
    dtype: DType,
    opset: int | None,
    fold: bool,
    qdq: bool,
    options: dict[str, Any],
) -> None:
    """Export the architecture NAME to the ONNX file OUT."""
    if qdq and dtype != "float32":
        raise click.UsageError("--qdq needs --dtype float32")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "float.onnx") if qdq else out
        try:
            export(
                name,
                target,
                exporter=exporter,
                dynamic=dynamic,
                dtype=dtype,
                size=size,
                opset=opset,
                fold=fold,
                **options,
            )
        except (TypeError, ValueError) as error:  # an unknown option, or an unfit value
            raise click.ClickException(str(error)) from error
        if qdq:
            quantize_qdq(target, out, size=size or ARCHITECTURES[name].size)
    click.echo(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
