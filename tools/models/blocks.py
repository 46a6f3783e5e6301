"""Blocks of diffusion networks: residual, attention, and steps of two up and down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from tools.models.layers import aim

__all__ = [
    "Downsample",
    "ResnetBlock",
    "SelfAttention",
    "SpatialAttention",
    "Upsample",
    "middle",
    "residual_stages",
]


class ResnetBlock(nn.Module):
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
        """Normalise and smooth, twice, and add the input."""
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        result: Tensor = self.shortcut(x) + y
        return result


def residual_stages(
    channels: Sequence[int], resnets: int, groups: int, step: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Return residual blocks at several widths, with a step up or down between them.

    Args:
        channels: The widths; the first blocks read as many channels as they make.
        resnets: Blocks at each width.
        groups: Channels are normalised in so many groups.
        step: Makes what stands between two widths, given the first of them.
    """
    layers, width = list[nn.Module](), channels[0]
    for index, out_width in enumerate(channels):
        for _ in range(resnets):
            layers.append(ResnetBlock(width, out_width, groups))
            width = out_width
        if index < len(channels) - 1:
            layers.append(step(width))
    return nn.Sequential(*layers)


def middle(width: int, groups: int) -> nn.Sequential:
    """Return the narrowest part of an autoencoder: attention between two residual blocks."""
    return nn.Sequential(
        ResnetBlock(width, width, groups),
        SpatialAttention(width, groups),
        ResnetBlock(width, width, groups),
    )


class SelfAttention(nn.Module):
    """Single-head self-attention between tokens: NxTxC to the same."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        # A flat softmax would average every position away; larger logits keep it selective.
        self.to_q = aim(nn.Linear(channels, channels), 1.5)
        self.to_k = aim(nn.Linear(channels, channels), 1.5)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token ask all of them."""
        q, k, v = (to(x).unsqueeze(1) for to in (self.to_q, self.to_k, self.to_v))
        result: Tensor = self.to_out(functional.scaled_dot_product_attention(q, k, v).squeeze(1))
        return result


class SpatialAttention(nn.Module):
    """Self-attention between all positions of NxCxHxW, behind a GroupNorm, plus the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.attention = SelfAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Let every position ask all of them, and add the input."""
        y = self.attention(self.norm(x).flatten(2).transpose(1, 2))  # N x HW x C
        result: Tensor = x + y.transpose(1, 2).reshape(x.shape)
        return result


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then conv 3x3: NxCxHxW to NxCx2Hx2W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample by two, then smooth."""
        result: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class Downsample(nn.Module):
    """A row below and a column on the right, then conv 3x3 by 2: NxCxHxW to NxCxH/2xW/2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Pad on one side, then smooth and halve."""
        result: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return result
