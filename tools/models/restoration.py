"""Networks that make an image of an image: denoised, larger, of another style, its depth."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.models.segmentation import conv_norm

__all__ = ["DPT", "EDSR", "ESPCN", "CycleGAN", "DnCNN", "NAFNet", "Restormer"]


class ESPCN(nn.Module):
    """ESPCN (arXiv:1609.05158): three Convs and a pixel shuffle: Nx1xHxW to Nx1x(sH)x(sW)."""

    def __init__(self, base: int = 64, scale: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, base, 5, padding=2), nn.Tanh(),
            nn.Conv2d(base, base // 2, 3, padding=1), nn.Tanh(),
            nn.Conv2d(base // 2, scale * scale, 3, padding=1), nn.PixelShuffle(scale),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        return cast(Tensor, self.layers(x))


class _Residual(nn.Module):
    """Conv, ReLU, Conv, plus the input: NxCxHxW to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + 0.5 * self.second(functional.relu(self.first(x))))


class EDSR(nn.Module):
    """EDSR (arXiv:1707.02921): Nx3xHxW to Nx3x2Hx2W."""

    def __init__(self, base: int = 24, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, base, 3, padding=1)
        self.body = nn.Sequential(
            *(_Residual(base) for _ in range(blocks)), nn.Conv2d(base, base, 3, padding=1)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(base, 4 * base, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(base, 3, 3, padding=1),
        )
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.4]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        mean = self.get_buffer("mean")
        y = self.head(x - mean)
        return cast(Tensor, self.tail(self.body(y) + y) + mean)


class DnCNN(nn.Module):
    """DnCNN (arXiv:1608.03981): the noise, taken from the input: Nx1xHxW to the same."""

    def __init__(self, base: int = 48, layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, base, 3, padding=1),
            nn.ReLU(),
            *(conv_norm(base, base) for _ in range(layers)),
            nn.Conv2d(base, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        return cast(Tensor, x - self.layers(x))


class _LayerNorm2d(nn.Module):
    """LayerNorm over the channels of NxCxHxW."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight * (x - mean) / (spread + 1e-6).sqrt() + self.bias


def _halves(x: Tensor) -> Tensor:
    """Multiply one half of the channels by the other: Nx2CxHxW to NxCxHxW."""
    first, second = x.chunk(2, 1)
    return first * second


class _NAFBlock(nn.Module):
    """NAFNet's block: NxCxHxW to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_LayerNorm2d(channels) for _ in range(2))
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.depth = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.channels = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.project = nn.Conv2d(channels, channels, 1)
        self.first = nn.Conv2d(channels, 2 * channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = _halves(self.depth(self.expand(self.norms[0](x))))
        x = x + self.project(y * self.channels(y))
        return cast(Tensor, x + self.second(_halves(self.first(self.norms[1](x)))))


class NAFNet(nn.Module):
    """NAFNet (arXiv:2204.04676): padded to a multiple and cropped back: Nx3xHxW to the same."""

    def __init__(self, base: int = 16, levels: int = 3) -> None:
        super().__init__()
        self.levels = levels
        widths = [base << level for level in range(levels + 1)]
        self.intro, self.ending = nn.Conv2d(3, base, 3, padding=1), nn.Conv2d(base, 3, 3, padding=1)
        self.encoders = nn.ModuleList(_NAFBlock(w) for w in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, 2) for w in widths[:-1])
        self.middle = _NAFBlock(widths[-1])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, 2 * w, 1, bias=True), nn.PixelShuffle(2))
            for w in widths[:0:-1]
        )
        self.decoders = nn.ModuleList(_NAFBlock(w) for w in widths[-2::-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        height, width = x.shape[2:]
        by = 1 << self.levels
        x = functional.pad(x, (0, (by - width % by) % by, 0, (by - height % by) % by))
        y, skips = self.intro(x), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            y = encoder(y)
            skips.append(y)
            y = down(y)
        y = self.middle(y)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            y = decoder(up(y) + skips.pop())
        return cast(Tensor, self.ending(y) + x)[:, :, :height, :width]


class _ChannelAttention(nn.Module):
    """Restormer's attention between channels: NxCxHxW to the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.depth = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = (
            part.reshape(n, self.heads, c // self.heads, h * w)
            for part in self.depth(self.qkv(x)).chunk(3, 1)
        )
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return cast(Tensor, self.out((weights @ v).reshape(n, c, h, w)))


class _GatedForward(nn.Module):
    """Restormer's gated feed-forward block: NxCxHxW to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4 * channels, 1)
        self.depth = nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels)
        self.second = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.depth(self.first(x)).chunk(2, 1)
        return cast(Tensor, self.second(functional.gelu(first) * second))


class Restormer(nn.Module):
    """Restormer's block (arXiv:2111.09881) at one size: Nx3xHxW to the same."""

    def __init__(self, base: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.out = nn.Conv2d(3, base, 3, padding=1), nn.Conv2d(base, 3, 3, padding=1)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(nn.Sequential(_LayerNorm2d(base), _ChannelAttention(base, 2)))
            self.blocks.append(nn.Sequential(_LayerNorm2d(base), _GatedForward(base)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        y = self.embed(x)
        for block in self.blocks:
            y = y + block(y)
        return cast(Tensor, self.out(y) + x)


class CycleGAN(nn.Module):
    """CycleGAN's generator (arXiv:1703.10593): Nx3xHxW to the same, sizes multiples of 4."""

    def __init__(self, base: int = 24, blocks: int = 3) -> None:
        super().__init__()

        def norm(channels: int) -> list[nn.Module]:
            return [nn.InstanceNorm2d(channels, affine=True), nn.ReLU()]

        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, base, 7), *norm(base)]
        for width in (base, 2 * base):
            layers += [nn.Conv2d(width, 2 * width, 3, 2, 1), *norm(2 * width)]
        layers += [_ReflectResidual(4 * base) for _ in range(blocks)]
        for width in (4 * base, 2 * base):
            up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1)
            layers += [up, *norm(width // 2)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(base, 3, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        return cast(Tensor, self.layers(x))


class _ReflectResidual(nn.Module):
    """Two Convs with reflected borders and InstanceNorm, plus the input: NxCxHxW to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)]
            layers += [nn.InstanceNorm2d(channels, affine=True), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.layers(x))


class _Fusion(nn.Module):
    """DPT's fusion block, its corners aligned: NxCxHxW to NxCx2Hx2W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.skip, self.unit = _Residual(channels), _Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            x = x + self.skip(skip)
        y = self.unit(x)
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=True)
        return cast(Tensor, self.project(y))


class DPT(nn.Module):
    """Depth by dense prediction (arXiv:2103.13413), its decoder on convolutional maps.

    Input Nx3xHxW, output Nx1xHxW; sizes are multiples of 16. Maps are enlarged with their corners
    aligned, as there.
    """

    def __init__(self, base: int = 24, width: int = 48) -> None:
        super().__init__()
        widths = [base << level for level in range(4)]
        self.stages = nn.ModuleList(
            nn.Sequential(conv_norm(a, b, stride=2), conv_norm(b, b))
            for a, b in zip([3, *widths], widths, strict=False)
        )
        self.moved = nn.ModuleList(nn.Conv2d(w, width, 3, padding=1, bias=True) for w in widths)
        self.fusions = nn.ModuleList(_Fusion(width) for _ in widths)
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        maps = []
        for stage, moved in zip(self.stages, self.moved, strict=True):
            x = stage(x)
            maps.append(moved(x))
        y = self.fusions[3](maps.pop(), None)
        for fusion in (self.fusions[2], self.fusions[1], self.fusions[0]):
            y = fusion(y, maps.pop())
        return cast(Tensor, functional.relu(self.head(y)))
