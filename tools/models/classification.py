"""Networks that give an image a class, a box or a text."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.models.segmentation import conv_norm

__all__ = ["CRNN", "YOLO", "ConvNeXt", "EfficientNet", "ResNet"]


class _Basic(nn.Module):
    """Residual block of two Convs: NxCxHxW to NxDx(H/s)x(W/s)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, width, 3, stride)
        self.second = conv_norm(width, width)[:2]
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = conv_norm(channels, width, 1, stride)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet (arXiv:1512.03385): Nx3xHxW to Nx10."""

    def __init__(self, base: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, base, 7, 2), nn.MaxPool2d(3, 2, 1))
        layers, width = list[nn.Module](), base
        for level in range(4):
            for at in range(blocks):
                layers.append(_Basic(width, base << level, 2 if level and not at else 1))
                width = base << level
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        y = functional.adaptive_avg_pool2d(self.layers(self.stem(x)), 1)
        return cast(Tensor, self.head(torch.flatten(y, 1)))


class _MBConv(nn.Module):
    """Inverted residual with squeeze-and-excite and SiLU: NxCxHxW to NxDx(H/s)x(W/s)."""

    def __init__(self, channels: int, width: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expand
        self.expand = nn.Conv2d(channels, wide, 1) if expand > 1 else nn.Identity()
        self.depth = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide)
        self.squeeze = nn.Conv2d(wide, max(1, channels // 4), 1)
        self.excite = nn.Conv2d(max(1, channels // 4), wide, 1)
        self.project = nn.Conv2d(wide, width, 1)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y = functional.silu(self.depth(functional.silu(self.expand(x))))
        pooled = functional.adaptive_avg_pool2d(y, 1)
        y = self.project(y * torch.sigmoid(self.excite(functional.silu(self.squeeze(pooled)))))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """EfficientNet (arXiv:1905.11946): Nx3xHxW to Nx10."""

    def __init__(self, base: int = 16) -> None:
        super().__init__()
        # Of each block width (in units of base), expansion, kernel, stride.
        plan = [(1, 1, 3, 1), (2, 6, 3, 2), (2, 6, 3, 1), (3, 6, 5, 2), (3, 6, 5, 1), (5, 6, 3, 2)]
        self.stem = nn.Conv2d(3, 2 * base, 3, 2, 1)
        layers, width = list[nn.Module](), 2 * base
        for times, expand, kernel, stride in plan:
            layers.append(_MBConv(width, times * base, expand, kernel, stride))
            width = times * base
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, 8 * base, 1)
        self.head = nn.Linear(8 * base, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        y = functional.silu(self.last(self.blocks(functional.silu(self.stem(x)))))
        y = functional.adaptive_avg_pool2d(y, 1).flatten(1)
        return cast(Tensor, self.head(y))


class _NextBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over channels, two linear layers, a scale: NxCxHxW to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.first = nn.Linear(channels, 4 * channels)
        self.second = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.scale * self.second(functional.gelu(self.first(y)))
        return x + y.permute(0, 3, 1, 2)


class _ChannelNorm(nn.Module):
    """LayerNorm over the channels of NxCxHxW, spelled out as there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / torch.sqrt(spread + 1e-6)
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    """ConvNeXt (arXiv:2201.03545): Nx3xHxW to Nx10."""

    def __init__(self, base: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, base, 4, 4), _ChannelNorm(base))
        layers, width = list[nn.Module](), base
        for level in range(3):
            if level:
                down = nn.Conv2d(width, 2 * width, 2, 2)
                layers += [_ChannelNorm(width), down]
                width *= 2
            layers += [_NextBlock(width), _NextBlock(width)]
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        return cast(Tensor, self.head(self.norm(self.layers(self.stem(x)).mean([-2, -1]))))


def _silu(channels: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
    return nn.Sequential(conv, nn.SiLU())


class _CSP(nn.Module):
    """Cross-stage block: one half of the channels through residual Convs: NxCxHxW to NxDxHxW."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.left, self.right = _silu(channels, width // 2, 1), _silu(channels, width // 2, 1)
        self.inner = nn.Sequential(_silu(width // 2, width // 2, 1), _silu(width // 2, width // 2))
        self.join = _silu(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return cast(Tensor, self.join(torch.cat([left + self.inner(left), self.right(x)], 1)))


class YOLO(nn.Module):
    """One-stage detector with a path aggregation neck (as of YOLOv5 and YOLOX).

    Input Nx3xHxW; three outputs NxBx(H/8)x(W/8), by 16 and by 32. ``focus`` puts the four pixels
    of each square into channels first.
    """

    def __init__(self, base: int = 16, outputs: int = 24, focus: bool = True) -> None:
        super().__init__()
        self.focus = focus
        self.stem = _silu(12, base) if focus else _silu(3, base, 6, 2)
        if not focus:
            self.stem = _silu(3, base, 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _silu(base << at, base << at + 1, 3, 2), _CSP(base << at + 1, base << at + 1)
            )
            for at in range(4)
        )
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))
        deep = base << 4
        self.spp = _silu(4 * deep, deep, 1)
        self.reduce = nn.ModuleList([_silu(deep, deep // 2, 1), _silu(deep // 2, deep // 4, 1)])
        self.up = nn.ModuleList([_CSP(deep, deep // 2), _CSP(deep // 2, deep // 4)])
        self.step = nn.ModuleList(
            [_silu(deep // 4, deep // 4, 3, 2), _silu(deep // 2, deep // 2, 3, 2)]
        )
        self.down = nn.ModuleList([_CSP(deep // 2, deep // 2), _CSP(deep, deep)])
        self.heads = nn.ModuleList(
            nn.Conv2d(width, outputs, 1) for width in (deep // 4, deep // 2, deep)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for ``x``; the class says their shapes."""
        if self.focus:
            parts = [x[..., a::2, b::2] for a in (0, 1) for b in (0, 1)]
            x = torch.cat(parts, 1)
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.spp(torch.cat([x, *(pool(x) for pool in self.pools)], 1))
        tops = [x]
        for reduce, up, skip in zip(self.reduce, self.up, (maps[2], maps[1]), strict=True):
            tops[-1] = reduce(tops[-1])
            raised = functional.interpolate(tops[-1], scale_factor=2.0, mode="nearest")
            tops.append(up(torch.cat([raised, skip], 1)))
        outs = [tops.pop()]
        for step, down in zip(self.step, self.down, strict=True):
            outs.append(down(torch.cat([step(outs[-1]), tops.pop()], 1)))
        return tuple(head(y) for head, y in zip(self.heads, outs, strict=True))


class CRNN(nn.Module):
    """CRNN (arXiv:1507.05717): Convs, columns as time, an LSTM: Nx1x32xW to (W/4+1)xNx40."""

    def __init__(self, base: int = 32) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            conv_norm(1, base), nn.MaxPool2d(2, 2),
            conv_norm(base, 2 * base), nn.MaxPool2d(2, 2),
            conv_norm(2 * base, 4 * base), conv_norm(4 * base, 4 * base),
            nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            conv_norm(4 * base, 8 * base), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(8 * base, 8 * base, 2),
        )  # fmt: skip
        self.lstm = nn.LSTM(8 * base, 64, bidirectional=True)
        self.head = nn.Linear(128, 40)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        y = self.convs(x).squeeze(2).permute(2, 0, 1)
        return cast(Tensor, self.head(self.lstm(y)[0]))
