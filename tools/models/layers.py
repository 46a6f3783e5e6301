"""What the networks share: aims of their random weights, so that values stay in range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "Architecture", "Size", "aim", "initialise"]


# Height and width; depth before them for volumes, one number for tokens.
Size = tuple[int, ...]

INPUT_NAME = "input"

OUTPUT_NAME = "output"

Layer = TypeVar("Layer", bound=nn.Module)


def aim(layer: Layer, std: float, *, relative: bool = False) -> Layer:
    """Note the output deviation that ``initialise`` should give ``layer`` (1 unless noted).

    With ``relative``, the deviation is in units of that of the layer's leading input channels, as
    many as it has outputs: in a dense block, (a part of) what the block adds its result to.
    """
    setattr(layer, "target_std", (std, relative))  # noqa: B010 - an attribute Module does not declare
    return layer


_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm)

_WEIGHTED = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def initialise(model: nn.Module, example: Tensor, seed: int) -> None:
    """Give ``model`` seeded weights for which activations neither vanish nor explode.

    Weights and biases are drawn from a normal distribution; then, in one forward pass, each
    layer's weights are scaled until its output has the wanted deviation, and each BatchNorm takes
    the statistics of its own input (layer-sequential unit variance, arXiv:1511.06422). The weights
    of an Embedding, which here is a table of biases, are drawn alone.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(parameter: Tensor, mean: float, std: float) -> None:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise.mul_(std).add_(mean))

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias").detach()
        if not isinstance(layer, nn.Linear):
            bias = bias.reshape(-1, *[1] * (output.dim() - 2))
        std, relative = getattr(layer, "target_std", (1.0, False))
        if relative:
            std *= inputs[0][:, : output.shape[1]].std().item()
        factor = std / (output - bias).std().item()
        weight.mul_(factor)
        return (output - bias) * factor + bias

    def adopt(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer.get_buffer("running_mean").copy_(inputs[0].mean((0, 2, 3)))
        layer.get_buffer("running_var").copy_(inputs[0].var((0, 2, 3)))

    model.eval().requires_grad_(False)
    hooks = []
    for layer in model.modules():
        if isinstance(layer, _NORMS):
            # Not the identity, so that losing or misplacing the affine part shows.
            draw(layer.weight, 1.0, 0.1)
            draw(layer.bias, 0.0, 0.1)
            if isinstance(layer, nn.BatchNorm2d):
                hooks.append(layer.register_forward_pre_hook(adopt))
        elif isinstance(layer, nn.Embedding):
            draw(layer.weight, 0.0, 0.5)
        elif isinstance(layer, _WEIGHTED):
            draw(layer.weight, 0.0, 1.0 / math.sqrt(layer.weight[0].numel()))
            if layer.bias is None:  # only before a BatchNorm, which sets the scale itself
                continue
            draw(layer.bias, 0.0, 0.1)
            hooks.append(layer.register_forward_hook(scale))
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()


@dataclass(frozen=True)
class Architecture:
    """How to build and feed one network.

    ``size`` is the default size of the input, height and width of an image, ``seed`` that of the
    weights. ``multiple`` gives, for a built model, the number that sizes must be multiples of.
    ``channels`` are those of the input, a number or a function of the options; of ``tokens`` they
    come last.
    """

    build: Callable[..., nn.Module]
    channels: int | Callable[[Mapping[str, Any]], int]
    size: Size
    seed: int
    multiple: Callable[[nn.Module], int] = lambda model: 1
    tokens: bool = False
