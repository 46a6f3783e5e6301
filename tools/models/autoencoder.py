"""The decoder of `diffusers`' own AutoencoderKL, with seeded weights; the package is optional."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.models.layers import initialise

__all__ = ["DiffusersMissingError", "LatentDecoder", "load_decoder", "write_decoder"]

_SEED = 22


class DiffusersMissingError(Exception):
    """The package is not installed; the message says how to get it."""


class LatentDecoder(nn.Module):
    """What an AutoencoderKL makes of a latent: Nx4xHxW to Nx3x8Hx8W.

    The proportions are those of Stable Diffusion's (arXiv:2112.10752), which has ``base=128``.

    Args:
        base: Channels of the last level; the others have 2, 4 and 4 times as many.
        tile: Rows and columns of the image that are decoded together, blended at the seams as
            ``enable_tiling()`` does; None for the whole.

    Raises:
        DiffusersMissingError: There is no AutoencoderKL.
    """

    def __init__(self, base: int, tile: int | None = None) -> None:
        super().__init__()
        try:
            kind: Any = importlib.import_module("diffusers").AutoencoderKL
        except ImportError as error:
            raise DiffusersMissingError(f"pip install diffusers ({error})") from error
        widths = (base, 2 * base, 4 * base, 4 * base)
        self.vae = kind(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
            norm_num_groups=min(32, base // 4),
            sample_size=tile or 8,
        )
        self.vae.encoder = self.vae.quant_conv = None
        if tile is not None:
            self.vae.enable_tiling()
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the image of a latent."""
        result: Tensor = self.vae.decode(x, return_dict=False)[0]
        return result


def write_decoder(base: int, path: Path) -> LatentDecoder:
    """Return a decoder with seeded weights, and write these to a file."""
    with torch.random.fork_rng(devices=[]):
        decoder = LatentDecoder(base)
    generator = torch.Generator().manual_seed(_SEED)
    initialise(decoder, torch.randn(4, 4, 16, 16, generator=generator), _SEED)
    torch.save(decoder.state_dict(), path)
    return decoder


def load_decoder(base: int, path: Path, tile: int | None = None) -> LatentDecoder:
    """Return a decoder with weights from a file; nothing else is made of them."""
    with torch.device("meta"):
        decoder = LatentDecoder(base, tile)
    decoder.load_state_dict(torch.load(path), assign=True)
    return decoder
