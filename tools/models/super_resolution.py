"""Two networks that scale images up: RRDBNet and SRVGG."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.models.blocks import Upsample
from tools.models.layers import aim

__all__ = ["SRVGG", "RRDBNet"]


class _DenseBlock(nn.Module):
    """Residual dense block: five convs, each on all that precedes it, on NxCxHxW."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        # Relative, since the input grows from block to block and would drown a fixed deviation.
        self.convs = nn.ModuleList(
            aim(nn.Conv2d(channels + index * growth, growth, 3, padding=1), 1.0, relative=True)
            for index in range(4)
        )
        # Five times the input cancels the factor of 0.2 that would let the skip dominate.
        self.last = aim(
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
        self.up1 = Upsample(base)
        self.up2 = Upsample(base)
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
