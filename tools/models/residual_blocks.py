"""Residual blocks with GroupNorm at one size: what diffusion networks are mostly made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from tools.models.blocks import ResnetBlock

__all__ = ["ResidualBlocks", "residual_blocks_channels"]


class ResidualBlocks(nn.Module):
    """Conv 3x3, residual blocks, GroupNorm, SiLU, Conv 3x3, as at either end of a VAE.

    Input Nx3xHxW, output Nx3xHxW. Without ``stem`` the input, NxCxHxW, is what the first block
    normalises.
    """

    def __init__(self, base: int = 32, blocks: int = 4, groups: int = 8, stem: bool = True) -> None:
        super().__init__()
        self.conv_in: nn.Module = nn.Conv2d(3, base, 3, padding=1) if stem else nn.Identity()
        self.blocks = nn.Sequential(*(ResnetBlock(base, base, groups) for _ in range(blocks)))
        self.norm_out = nn.GroupNorm(groups, base, eps=1e-6)
        self.conv_out = nn.Conv2d(base, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.norm_out(self.blocks(self.conv_in(x)))
        result: Tensor = self.conv_out(functional.silu(x))
        return result


def residual_blocks_channels(options: Mapping[str, Any]) -> int:
    """Return the channels of the input."""
    return 3 if options.get("stem", True) else int(options.get("base", 32))
