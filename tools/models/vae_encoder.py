"""The encoder of a diffusion network, as diffusers shapes it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from tools.models.blocks import Downsample, middle, residual_stages

__all__ = ["VAEEncoder", "vae_encoder_multiple"]


class VAEEncoder(nn.Module):
    """Encoder of the latent-diffusion autoencoder (arXiv:2112.10752), as used by SDXL.

    Input Nx3xHxW, output Nx8x(H/s)x(W/s), means and logarithms of variances of a latent, with
    ``s = 2 ** (len(multipliers) - 1)``, which H and W must be multiples of. SDXL
    (arXiv:2307.01952) has ``base=128, groups=32`` and the default multipliers: channels
    (128, 256, 512, 512), two residual blocks in each down block.
    """

    def __init__(
        self,
        base: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 4, 4),
        resnets: int = 2,
        groups: int = 8,
        latent_channels: int = 4,
    ) -> None:
        super().__init__()
        channels = [base * multiplier for multiplier in multipliers]
        width = channels[-1]
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down = residual_stages(channels, resnets, groups, Downsample)
        self.mid = middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 2 * latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.multiple = 1 << (len(channels) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.mid(self.down(self.conv_in(x)))
        result: Tensor = self.quant_conv(self.conv_out(functional.silu(self.norm_out(x))))
        return result


def vae_encoder_multiple(model: nn.Module) -> int:
    """Return what sizes must be multiples of."""
    assert isinstance(model, VAEEncoder)
    return model.multiple
