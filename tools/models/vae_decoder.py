"""The decoder of a diffusion network, as diffusers shapes it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from tools.models.blocks import Upsample, middle, residual_stages

__all__ = ["VAEDecoder"]


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
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.conv_in = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        self.mid = middle(channels[0], groups)
        self.up = residual_stages(channels, resnets, groups, Upsample)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.up(self.mid(self.conv_in(self.post_quant_conv(x))))
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result
