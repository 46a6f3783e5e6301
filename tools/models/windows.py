"""Attention inside windows for any size: rows and columns are reflected up to whole windows."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["WindowRestorer"]


class _WindowBlock(nn.Module):
    """LayerNorm, attention inside windows, LayerNorm, MLP, on NxHxWxC of whole windows."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def _attend(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        side = self.window
        x = x.reshape(n, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
        tokens = x.reshape(-1, side * side, c)
        qkv = self.qkv(tokens).reshape(-1, side * side, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, side * side, c)
        y = self.out(y).reshape(n, h // side, w // side, side, side, c)
        return y.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norms[0](x))
        return cast(Tensor, x + self.mlp(self.norms[1](x)))


class WindowRestorer(nn.Module):
    """Window attention between Convs, without shifts, for any size: Nx3xHxW to Nx3x2Hx2W.

    As SwinIR does it (arXiv:2108.10257), the image is reflected up to whole windows first and
    cropped at the end.
    """

    def __init__(self, base: int = 24, blocks: int = 2, heads: int = 2, window: int = 8) -> None:
        super().__init__()
        self.window = window
        self.first = nn.Conv2d(3, base, 3, padding=1)
        self.blocks = nn.Sequential(*(_WindowBlock(base, heads, window) for _ in range(blocks)))
        self.body = nn.Conv2d(base, base, 3, padding=1)
        self.last = nn.Conv2d(base, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        height, width = x.shape[2:]
        side = self.window
        down, right = (side - height % side) % side, (side - width % side) % side
        x = self.first(functional.pad(x, (0, right, 0, down), mode="reflect"))
        y = self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = functional.pixel_shuffle(self.last(x + self.body(y)), 2)
        return y[:, :, : 2 * height, : 2 * width]
