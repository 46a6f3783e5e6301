"""SegFormer: transformer blocks on images that are folded into sequences, at four scales."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SegFormer"]


def _as_image(tokens: Tensor, height: int, width: int) -> Tensor:
    n, _, c = tokens.shape
    return tokens.transpose(1, 2).reshape(n, c, height, width)


def _as_tokens(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    """Every position looks at a smaller image of all of them."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.reduce = nn.Conv2d(channels, channels, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        n, length, c = x.shape
        q = self.q(x).reshape(n, length, self.heads, c // self.heads).permute(0, 2, 1, 3)
        y = x
        if self.reduce is not None:
            y = self.norm(_as_tokens(self.reduce(_as_image(x, height, width))))
        kv = self.kv(y).reshape(n, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ kv[0].transpose(-2, -1)) * self.scale
        made = (scores.softmax(-1) @ kv[1]).transpose(1, 2).reshape(n, length, c)
        return cast(Tensor, self.out(made))


class _Block(nn.Module):
    """Attention, and an MLP with a depthwise Conv between its layers."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.attention = _Attention(channels, heads, reduction)
        self.first, self.second = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )
        self.between = nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attention(self.norms[0](x), height, width)
        y = _as_image(self.first(self.norms[1](x)), height, width)
        return cast(Tensor, x + self.second(functional.gelu(_as_tokens(self.between(y)))))


class _Stage(nn.Module):
    """Overlapping patches as tokens, blocks, and an image again."""

    def __init__(
        self, before: int, channels: int, stride: int, heads: int, reduction: int, blocks: int
    ) -> None:
        super().__init__()
        kernel = 7 if stride == 4 else 3
        self.patches = nn.Conv2d(before, channels, kernel, stride, kernel // 2)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.blocks = nn.ModuleList(_Block(channels, heads, reduction) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        height, width = x.shape[2:]
        y = self.norms[0](_as_tokens(x))
        for block in self.blocks:
            y = block(y, height, width)
        return _as_image(self.norms[1](y), height, width)


class SegFormer(nn.Module):
    """SegFormer (arXiv:2105.15203) of few channels, its encoder and decoder.

    Input Nx3xHxW, output Nx8x(H/4)x(W/4).
    """

    def __init__(self, base: int = 16, width: int = 64, blocks: int = 1) -> None:
        super().__init__()
        widths = [base, 2 * base, 4 * base, 8 * base]
        given = zip([3, *widths], widths, (4, 2, 2, 2), (1, 2, 4, 8), (8, 4, 2, 1), strict=False)
        self.stages = nn.ModuleList(_Stage(*each, blocks) for each in given)
        self.linear = nn.ModuleList(nn.Linear(c, width) for c in widths)
        self.fuse = nn.Sequential(
            nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.head = nn.Conv2d(width, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        size, moved = maps[0].shape[2:], []
        for m, linear in zip(maps, self.linear, strict=True):
            y = _as_image(linear(_as_tokens(m)), m.shape[2], m.shape[3])
            moved.append(functional.interpolate(y, size=size, mode="bilinear", align_corners=False))
        return cast(Tensor, self.head(self.fuse(torch.cat(moved[::-1], 1))))
