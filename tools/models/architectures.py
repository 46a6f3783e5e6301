"""The networks by name, built with seeded weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tools.models.layers import Architecture, Size, initialise
from tools.models.mobilenet import MobileNet
from tools.models.super_resolution import SRVGG, RRDBNet
from tools.models.unet import UNet, unet_multiple
from tools.models.vae_decoder import VAEDecoder

__all__ = ["ARCHITECTURES", "architecture_of", "build", "example_input"]


ARCHITECTURES: dict[str, Architecture] = {
    "vae_decoder": Architecture(VAEDecoder, channels=4, size=(16, 16), seed=11),
    "unet": Architecture(UNet, channels=3, size=(128, 128), seed=12, multiple=unet_multiple),
    "rrdbnet": Architecture(RRDBNet, channels=3, size=(32, 32), seed=13),
    "srvgg": Architecture(SRVGG, channels=3, size=(32, 32), seed=15),
    "mobilenet": Architecture(MobileNet, channels=3, size=(128, 128), seed=14),
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


def _noise(channels: int, size: Size, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *size, generator=generator)


def build(name: str, **arch_options: Any) -> nn.Module:
    """Return the named network in eval mode, float32, with its seeded weights."""
    architecture = architecture_of(name)
    # Construction draws weights that are replaced; leave the caller's generator as it was.
    with torch.random.fork_rng(devices=[]):
        model = architecture.build(**arch_options)
    # A small input is enough for statistics, whatever size the export is for.
    multiple = architecture.multiple(model)
    side = 2 * multiple * math.ceil(min(architecture.size) / (2 * multiple))
    example = _noise(architecture.channels, (side, side), 4, architecture.seed)
    initialise(model, example, architecture.seed)
    return model


def example_input(name: str, *, size: Size | None = None, batch: int = 1, seed: int = 0) -> Tensor:
    """Return a seeded normal float32 input, ``batch`` x C x H x W, for the named network."""
    architecture = architecture_of(name)
    return _noise(architecture.channels, size or architecture.size, batch, seed)
