"""A network that paints an image in a style."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["StyleTransfer"]


def _conv(channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Reflection padding and Conv, as layers of a Sequential."""
    padding = nn.ReflectionPad2d(kernel // 2)
    return [padding, nn.Conv2d(channels, out_channels, kernel, stride)]


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


class _Residual(nn.Module):
    """Conv 3x3 and InstanceNorm, twice, plus the input, on NxCxHxW."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(channels, channels, 3),
            _norm(channels),
            nn.ReLU(),
            *_conv(channels, channels, 3),
            _norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class StyleTransfer(nn.Module):
    """Johnson's network (arXiv:1603.08155) with InstanceNorm and upsampling by nearest.

    Conv 9x9, two steps down, residual blocks, two steps up, Conv 9x9, reflection padding
    throughout. Input Nx3xHxW, output Nx3xHxW; H and W must be multiples of 4. The paper's size is
    ``base=32, blocks=5``.
    """

    def __init__(self, base: int = 16, blocks: int = 2) -> None:
        super().__init__()
        widths = (base, 2 * base, 4 * base)
        layers = [*_conv(3, base, 9), _norm(base), nn.ReLU()]
        for width, wider in pairwise(widths):
            layers += [*_conv(width, wider, 3, 2), _norm(wider), nn.ReLU()]
        layers += [_Residual(widths[-1]) for _ in range(blocks)]
        for width, wider in reversed(list(pairwise(widths))):
            layers += [nn.Upsample(scale_factor=2.0), *_conv(wider, width, 3)]
            layers += [_norm(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, *_conv(base, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        result: Tensor = self.layers(x)
        return result
