"""The decoder of a diffusion network, as diffusers shapes it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from tools.models.layers import aim

__all__ = ["Upsample", "VAEDecoder"]


class _ResnetBlock(nn.Module):
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
        """Upsample by two, then smooth."""
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        result: Tensor = self.shortcut(x) + y
        return result


class _SpatialAttention(nn.Module):
    """Single-head self-attention between all positions of NxCxHxW, plus the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        # A flat softmax would average every position away; larger logits keep it selective.
        self.to_q = aim(nn.Linear(channels, channels), 1.5)
        self.to_k = aim(nn.Linear(channels, channels), 1.5)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample by two, then smooth."""
        y = self.norm(x).flatten(2).transpose(1, 2)  # N x HW x C
        q, k, v = (to(y).unsqueeze(1) for to in (self.to_q, self.to_k, self.to_v))
        y = self.to_out(functional.scaled_dot_product_attention(q, k, v).squeeze(1))
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


class VAEDecoder(nn.Module):
    """Decoder of the latent-diffusion autoencoder (arXiv:2112.10752), as used by SDXL.

    Input Nx4xHxW (a latent), output Nx3x(sH)x(sW) with ``s = 2 ** (len(multipliers) - 1)``.
    SDXL (arXiv:2307.01952) has ``base=128, groups=32`` and the default multipliers: channels
    (512, 512, 256, 128), three residual blocks in each up block, eight times upsampled.
    """

    def __init__(
        self,
        base: int = 32,
        multipliers: tuple[int, ...] = (4, 4, 2, 1),
        resnets: int = 3,
        groups: int = 8,
        latent_channels: int = 4,
    ) -> None:
        super().__init__()
        channels = [base * multiplier for multiplier in multipliers]
        width = channels[0]
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid = nn.Sequential(
            _ResnetBlock(width, width, groups),
            _SpatialAttention(width, groups),
            _ResnetBlock(width, width, groups),
        )
        ups: list[nn.Module] = []
        for index, out_width in enumerate(channels):
            for _ in range(resnets):
                ups.append(_ResnetBlock(width, out_width, groups))
                width = out_width
            if index < len(channels) - 1:
                ups.append(Upsample(width))
        self.up = nn.Sequential(*ups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.up(self.mid(self.conv_in(self.post_quant_conv(x))))
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result
