"""The networks by name, built with seeded weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tools.models.blocks import SelfAttention
from tools.models.layers import Architecture, Size, initialise
from tools.models.mix_transformer import SegFormer
from tools.models.mobilenet import MobileNet
from tools.models.residual_blocks import ResidualBlocks, residual_blocks_channels
from tools.models.restoration import Restormer
from tools.models.style_transfer import StyleTransfer
from tools.models.super_resolution import SRVGG, RRDBNet
from tools.models.swinir import SwinIR, swinir_multiple
from tools.models.unet import UNet, unet_multiple
from tools.models.unet_3d import UNet3d, unet_3d_multiple
from tools.models.vae_decoder import VAEDecoder
from tools.models.vae_encoder import VAEEncoder, vae_encoder_multiple

__all__ = ["ARCHITECTURES", "architecture_of", "build", "example_input"]


ARCHITECTURES: dict[str, Architecture] = {
    "vae_decoder": Architecture(VAEDecoder, channels=4, size=(16, 16), seed=11),
    "unet": Architecture(UNet, channels=3, size=(128, 128), seed=12, multiple=unet_multiple),
    "rrdbnet": Architecture(RRDBNet, channels=3, size=(32, 32), seed=13),
    "srvgg": Architecture(SRVGG, channels=3, size=(32, 32), seed=15),
    "mobilenet": Architecture(MobileNet, channels=3, size=(128, 128), seed=14),
    "vae_encoder": Architecture(
        VAEEncoder, channels=3, size=(64, 64), seed=16, multiple=vae_encoder_multiple
    ),
    "residual_blocks": Architecture(
        ResidualBlocks, channels=residual_blocks_channels, size=(32, 32), seed=17
    ),
    "style_transfer": Architecture(
        StyleTransfer, channels=3, size=(64, 64), seed=18, multiple=lambda model: 4
    ),
    "unet_3d": Architecture(
        UNet3d, channels=1, size=(16, 16, 16), seed=19, multiple=unet_3d_multiple
    ),
    "segformer": Architecture(
        SegFormer, channels=3, size=(64, 64), seed=22, multiple=lambda model: 32
    ),
    "swinir": Architecture(SwinIR, channels=3, size=(32, 32), seed=20, multiple=swinir_multiple),
    "restormer": Architecture(Restormer, channels=3, size=(32, 32), seed=23),
    "attention": Architecture(
        SelfAttention,
        channels=lambda options: options.get("channels", 64),
        size=(128,),
        seed=21,
        tokens=True,
    ),
}


def architecture_of(name: str) -> Architecture:
    """Return the architecture of a name.

    Raises:
        ValueError: There is none of that name.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"unknown architecture {name!r}; known: {known}") from None


def _noise(
    architecture: Architecture, options: dict[str, Any], size: Size, batch: int, seed: int
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    channels = architecture.channels
    if callable(channels):
        channels = channels(options)
    shape = (*size, channels) if architecture.tokens else (channels, *size)
    return torch.randn(batch, *shape, generator=generator)


def build(name: str, **arch_options: Any) -> nn.Module:
    """Return the named network in eval mode, float32, with its seeded weights."""
    architecture = architecture_of(name)
    # Construction draws weights that are replaced; leave the caller's generator as it was.
    with torch.random.fork_rng(devices=[]):
        model = architecture.build(**arch_options)
    # A small input is enough for statistics, whatever size the export is for.
    multiple = architecture.multiple(model)
    side = 2 * multiple * math.ceil(min(architecture.size) / (2 * multiple))
    size = (side,) * len(architecture.size)
    example = _noise(architecture, arch_options, size, 4, architecture.seed)
    initialise(model, example, architecture.seed)
    return model


def example_input(
    name: str, *, size: Size | None = None, batch: int = 1, seed: int = 0, **arch_options: Any
) -> Tensor:
    """Return a seeded normal float32 input, ``batch`` x C x H x W, for the named network.

    Of a volume it is ``batch`` x C x D x H x W, of tokens ``batch`` x T x C. ``arch_options`` are
    those it is built with.
    """
    architecture = architecture_of(name)
    return _noise(architecture, arch_options, size or architecture.size, batch, seed)
