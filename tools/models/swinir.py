"""SwinIR: attention inside windows, shifted in every second layer, scaling images up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SwinIR", "swinir_multiple"]


def _windows(x: Tensor, window: int) -> Tensor:
    """NxHxWxC to (windows)x(tokens of one)xC."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def _image(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `_windows`, of an image of this height and width."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, c)


def _mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Return what keeps pixels apart that only the roll put in one window: windows x 1 x T x T.

    A constant in the exported file, as it is where people export theirs.
    """
    bands = [
        np.digitize(np.arange(size), [size - window, size - shift]) for size in (height, width)
    ]
    bands_of = 3 * bands[0][:, None] + bands[1][None, :]
    tiles = bands_of.reshape(height // window, window, width // window, window)
    tokens = tiles.transpose(0, 2, 1, 3).reshape(-1, window * window)
    apart = tokens[:, None, :] != tokens[:, :, None]
    return torch.from_numpy(np.where(apart, -100.0, 0.0).astype(np.float32))[:, None]


class _WindowAttention(nn.Module):
    """Attention with heads and a bias by relative position, inside windows of BxTxC."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.table = nn.Embedding((2 * window - 1) ** 2, heads)
        at = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"))
        apart = at.reshape(2, -1)[:, :, None] - at.reshape(2, -1)[:, None, :] + window - 1
        self.register_buffer("index", torch.from_numpy(apart[0] * (2 * window - 1) + apart[1]))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = scores + self.table.weight[self.index].permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            scores = scores.view(b // count, count, self.heads, t, t) + mask.to(scores.dtype)
            scores = scores.view(b, self.heads, t, t)
        y = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, t, c)
        result: Tensor = self.out(y)
        return result


class _Layer(nn.Module):
    """LayerNorm and window attention, LayerNorm and MLP, each plus its input, on NxHxWxC."""

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = _WindowAttention(channels, heads, window)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[1]), int(x.shape[2])
        y, mask = self.norm1(x), None
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
            mask = _mask(height, width, self.window, self.shift)
        y = self.attention(_windows(y, self.window), mask)
        y = _image(y, self.window, height, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class _Group(nn.Module):
    """Layers, unshifted and shifted in turn, and a Conv 3x3, plus the input, on NxCxHxW."""

    def __init__(self, channels: int, depth: int, heads: int, window: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(_Layer(channels, heads, window, index % 2 * (window // 2)) for index in range(depth))
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        result: Tensor = x + self.conv(y)
        return result


class SwinIR(nn.Module):
    """SwinIR (arXiv:2108.10257), its light form: a sub-pixel shuffle at the end.

    Input Nx3xHxW, output Nx3x(scale*H)x(scale*W); H and W must be multiples of ``window``. The
    paper's light size is ``base=60, groups=4, depth=6, heads=6, window=8``.
    """

    def __init__(
        self,
        base: int = 24,
        groups: int = 1,
        depth: int = 2,
        heads: int = 2,
        window: int = 8,
        scale: int = 2,
    ) -> None:
        super().__init__()
        self.window = window
        self.conv_first = nn.Conv2d(3, base, 3, padding=1)
        self.groups = nn.Sequential(*(_Group(base, depth, heads, window) for _ in range(groups)))
        self.norm = nn.LayerNorm(base)
        self.conv_body = nn.Conv2d(base, base, 3, padding=1)
        self.conv_last = nn.Conv2d(base, 3 * scale * scale, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.conv_first(x)
        y = self.norm(self.groups(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return functional.pixel_shuffle(self.conv_last(x + self.conv_body(y)), self.scale)


def swinir_multiple(model: nn.Module) -> int:
    """Return what sizes must be multiples of."""
    assert isinstance(model, SwinIR)
    return model.window
