"""A network for phones, with squeeze-and-excite."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from tools.models.layers import aim

__all__ = ["MobileNet"]


def _conv_norm(
    channels: int,
    out_channels: int,
    kernel: int,
    activation: nn.Module | None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> list[nn.Module]:
    """Conv, BatchNorm and activation, as the layers of a Sequential."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return layers if activation is None else [*layers, activation]


class _SqueezeExcite(nn.Module):
    """Scale the channels of NxCxHxW by a function of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        # The gate is flat beyond 3; two keeps it both varied and mostly inside.
        self.expand = aim(nn.Conv2d(channels // 4, channels, 1), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(functional.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1))))
        return x * functional.hardsigmoid(gate)


class _InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; plus the input where the shape is the same."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: int,
        expansion: int,
        stride: int,
        activation: type[nn.Module],
        squeeze: bool,
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += _conv_norm(channels, hidden, 1, activation())
        layers += _conv_norm(hidden, hidden, kernel, activation(), stride=stride, groups=hidden)
        if squeeze:
            layers.append(_SqueezeExcite(hidden))
        layers += _conv_norm(hidden, out_channels, 1, None)
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Inverted residuals (MobileNetV2, arXiv:1801.04381) with the V3 (arXiv:1905.02244) extras.

    ReLU6 in the first stages, hardswish after, one squeeze-excite block, output stride 16.

    Input Nx3xHxW. With ``head="dense"`` the output is Nx``classes``xHxW (for H and W multiples
    of 16): per-position scores, resized bilinearly. With ``head="classifier"`` it is
    Nx``classes``. The published width is ``base=16``; ``repeats`` is the number of further,
    residual blocks in each of the three stages.
    """

    def __init__(
        self,
        base: int = 16,
        repeats: int = 1,
        classes: int = 10,
        head: Literal["dense", "classifier"] = "dense",
    ) -> None:
        super().__init__()
        if head not in ("dense", "classifier"):
            raise ValueError(f"unknown head {head!r}")
        self.dense = head == "dense"

        def width(multiplier: float) -> int:
            return max(8, 8 * round(base * multiplier / 8))  # multiples of 8, as in the papers

        channels = width(1)
        layers = _conv_norm(3, channels, 3, nn.Hardswish(), stride=2)
        layers.append(
            _InvertedResidual(
                channels,
                channels,
                kernel=3,
                expansion=1,
                stride=1,
                activation=nn.ReLU6,
                squeeze=False,
            )
        )
        stages: list[tuple[float, int, int, type[nn.Module], bool]] = [
            # width, kernel, expansion, activation, squeeze-excite in the first block
            (1.5, 3, 4, nn.ReLU6, False),
            (2.5, 5, 3, nn.Hardswish, True),
            (5.0, 3, 6, nn.Hardswish, False),
        ]
        for multiplier, kernel, expansion, activation, squeeze in stages:
            for index in range(1 + repeats):
                out_channels = width(multiplier)
                layers.append(
                    _InvertedResidual(
                        channels,
                        out_channels,
                        kernel=kernel,
                        expansion=expansion,
                        stride=1 if index else 2,
                        activation=activation,
                        squeeze=squeeze and index == 0,
                    )
                )
                channels = out_channels
        layers += _conv_norm(channels, 4 * channels, 1, nn.Hardswish())
        self.features = nn.Sequential(*layers)
        self.head: nn.Module = (
            nn.Conv2d(4 * channels, classes, 1) if self.dense else nn.Linear(4 * channels, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        x = self.features(x)
        if self.dense:
            return functional.interpolate(
                self.head(x), scale_factor=16.0, mode="bilinear", align_corners=False
            )
        result: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return result
