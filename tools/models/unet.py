"""A U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["UNet", "unet_multiple"]


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


def unet_multiple(model: nn.Module) -> int:
    """Return what sizes must be multiples of."""
    assert isinstance(model, UNet)
    return 1 << len(model.up)
