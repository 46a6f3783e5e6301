"""A U-Net for volumes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["UNet3d", "unet_3d_multiple"]


def _double_conv(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Conv 3x3x3, InstanceNorm, LeakyReLU, twice: NxCxDxHxW to NxExDxHxW, or a half of each."""
    layers: list[nn.Module] = []
    for width, step in ((channels, stride), (out_channels, 1)):
        layers += [
            nn.Conv3d(width, out_channels, 3, step, 1),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.LeakyReLU(0.01),
        ]
    return nn.Sequential(*layers)


class UNet3d(nn.Module):
    """U-Net of nnU-Net (arXiv:1809.10486): strided Convs down, transposed Convs up, InstanceNorm.

    Input Nx1xDxHxW, output Nx3xDxHxW; sizes must be multiples of ``2 ** levels``. Its full
    resolution is ``base=32, levels=5`` with at most 320 channels.
    """

    def __init__(self, base: int = 8, levels: int = 2, most: int = 320, classes: int = 3) -> None:
        super().__init__()
        widths = [min(most, base << level) for level in range(levels + 1)]
        pairs = list(pairwise(widths))
        self.first = _double_conv(1, base)
        self.down = nn.ModuleList(_double_conv(width, deeper, 2) for width, deeper in pairs)
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(deeper, width, 2, stride=2) for width, deeper in reversed(pairs)
        )
        self.merge = nn.ModuleList(
            _double_conv(2 * width, width) for width in reversed(widths[:-1])
        )
        self.head = nn.Conv3d(base, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        skips = [self.first(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        result: Tensor = self.head(x)
        return result


def unet_3d_multiple(model: nn.Module) -> int:
    """Return what sizes must be multiples of."""
    assert isinstance(model, UNet3d)
    return 1 << len(model.up)
