"""Networks that give each pixel a class: decoders, and what they stand on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CRAFT", "DeepLab", "FPNSegmentation", "HRNet", "SegFormerHead", "SkipUNet", "conv_norm"]


def conv_norm(
    channels: int, width: int, kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Conv, BatchNorm, ReLU that keep the size at stride 1: NxCxHxW to NxDx(H/s)x(W/s)."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def _together(maps: Sequence[Tensor]) -> Tensor:
    """Return maps of ever lower sizes as one of the first one's size, channels side by side."""
    size = maps[0].shape[2:]
    larger = [
        functional.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps[1:]
    ]
    return torch.cat([maps[0], *larger], 1)


class Backbone(nn.Module):
    """A ladder of stages, each at half the size: NxCxHxW to a list from H/2 on."""

    def __init__(self, base: int, levels: int) -> None:
        super().__init__()
        self.widths = [base << level for level in range(levels)]
        self.stages = nn.ModuleList(
            nn.Sequential(conv_norm(a, b, stride=2), conv_norm(b, b))
            for a, b in zip([3, *self.widths], self.widths, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, the largest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class SkipUNet(nn.Module):
    """U-Net for any size (arXiv:1505.04597): what comes up is brought to its skip's size.

    Input Nx3xHxW, output Nx1xHxW. ``fit`` says how: "interpolate" (bilinear, to the size),
    "corners" (the same, corners aligned), "pad" (transposed Conv, then padded to the skip's size)
    or "crop" (padded up to a multiple first, cropped back at the end).
    """

    def __init__(self, base: int = 16, levels: int = 3, fit: str = "interpolate") -> None:
        super().__init__()
        widths = [base << level for level in range(levels + 1)]
        self.fit, self.levels = fit, levels
        self.down = nn.ModuleList(
            nn.Sequential(conv_norm(a, b), conv_norm(b, b))
            for a, b in zip([3, *widths], widths, strict=False)
        )
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(deep, width, 2, 2)
            if fit in ("pad", "crop")
            else nn.Conv2d(deep, width, 1)
            for width, deep in pairs
        )
        self.merge = nn.ModuleList(
            nn.Sequential(conv_norm(2 * width, width), conv_norm(width, width))
            for width, _ in pairs
        )
        self.head = nn.Conv2d(base, 1, 1)

    def _to(self, x: Tensor, skip: Tensor, up: nn.Module) -> Tensor:
        x = up(x)
        if self.fit == "pad":
            down, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            half = (right // 2, right - right // 2, down // 2, down - down // 2)
            x = functional.pad(x, half)
        elif self.fit != "crop":
            x = functional.interpolate(
                x, size=skip.shape[2:], mode="bilinear", align_corners=self.fit == "corners"
            )
        return torch.cat([skip, x], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        height, width = x.shape[2:]
        if self.fit == "crop":
            by = 1 << self.levels
            x = functional.pad(x, (0, -width % by, 0, -height % by))
        skips = []
        for index, down in enumerate(self.down):
            x = down(functional.max_pool2d(x, 2) if index else x)
            skips.append(x)
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(self._to(x, skips.pop(), up))
        result: Tensor = self.head(x)
        return result[:, :, :height, :width] if self.fit == "crop" else result


class FPNSegmentation(nn.Module):
    """Feature pyramid (arXiv:1612.03144) and a head at its largest map: Nx3xHxW to Nx8xHxW."""

    def __init__(self, base: int = 24, levels: int = 4, width: int = 48) -> None:
        super().__init__()
        self.backbone = Backbone(base, levels)
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in self.backbone.widths)
        self.smooth = nn.ModuleList(conv_norm(width, width) for _ in self.backbone.widths)
        self.head = nn.Conv2d(width * levels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        maps = [layer(m) for layer, m in zip(self.lateral, self.backbone(x), strict=True)]
        for at in range(len(maps) - 2, -1, -1):
            maps[at] = maps[at] + functional.interpolate(
                maps[at + 1], size=maps[at].shape[2:], mode="nearest"
            )
        maps = [layer(m) for layer, m in zip(self.smooth, maps, strict=True)]
        y = self.head(_together(maps))
        return functional.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


class DeepLab(nn.Module):
    """DeepLab v3+ (arXiv:1802.02611): dilated branches, and one of the pooled image.

    Input Nx3xHxW, output Nx8xHxW.
    """

    def __init__(self, base: int = 24, width: int = 64) -> None:
        super().__init__()
        self.backbone = Backbone(base, 3)
        deep = self.backbone.widths[-1]
        self.branches = nn.ModuleList(
            [conv_norm(deep, width, 1), *(conv_norm(deep, width, dilation=d) for d in (3, 6, 9))]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(deep, width, 1), nn.ReLU())
        self.project = conv_norm(5 * width, width, 1)
        self.low = conv_norm(base, 16, 1)
        self.head = nn.Sequential(conv_norm(width + 16, width), nn.Conv2d(width, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        maps = self.backbone(x)
        y = maps[-1]
        pooled = functional.interpolate(
            self.pooled(y), size=y.shape[2:], mode="bilinear", align_corners=False
        )
        y = self.project(torch.cat([*(branch(y) for branch in self.branches), pooled], 1))
        low = self.low(maps[0])
        y = functional.interpolate(y, size=low.shape[2:], mode="bilinear", align_corners=False)
        y = self.head(torch.cat([y, low], 1))
        return functional.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


class CRAFT(nn.Module):
    """CRAFT (arXiv:1904.01941): a VGG's maps merged upwards: Nx3xHxW to Nx2x(H/2)x(W/2)."""

    def __init__(self, base: int = 16) -> None:
        super().__init__()
        widths = [base, 2 * base, 4 * base, 8 * base]
        self.stages = nn.ModuleList(
            nn.Sequential(conv_norm(a, b), conv_norm(b, b))
            for a, b in zip([3, *widths], widths, strict=False)
        )
        # Behind the last stage, as there: a pool of stride 1 and a dilated Conv.
        self.tail = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(widths[-1], widths[-1], 3, padding=6, dilation=6),
            nn.Conv2d(widths[-1], widths[-1], 1),
        )
        pairs = [(2 * widths[3], widths[2]), (widths[2] + widths[2], widths[1])]
        pairs.append((widths[1] + widths[1], widths[0]))
        self.up = nn.ModuleList(
            nn.Sequential(conv_norm(a, 2 * b, 1), conv_norm(2 * b, b)) for a, b in pairs
        )
        self.head = nn.Sequential(conv_norm(base, base), nn.Conv2d(base, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        maps = []
        for at, stage in enumerate(self.stages):
            x = stage(functional.max_pool2d(x, 2) if at else x)
            maps.append(x)
        y = self.up[0](torch.cat([self.tail(x), x], 1))
        for up, skip in zip(self.up[1:], (maps[2], maps[1]), strict=True):
            y = functional.interpolate(y, size=skip.shape[2:], mode="bilinear", align_corners=False)
            y = up(torch.cat([y, skip], 1))
        result: Tensor = self.head(y)
        return result


class HRNet(nn.Module):
    """HRNet (arXiv:1908.07919): branches at three sizes, each fused with all.

    Input Nx3xHxW, output Nx8xHxW.
    """

    def __init__(self, base: int = 24, modules: int = 2) -> None:
        super().__init__()
        widths = [base, 2 * base, 4 * base]
        self.stem = nn.Sequential(conv_norm(3, base, stride=2), conv_norm(base, base))
        self.start = nn.ModuleList([conv_norm(base, widths[1], stride=2)])
        self.start.append(conv_norm(widths[1], widths[2], stride=2))
        self.branches = nn.ModuleList(
            nn.ModuleList(nn.Sequential(conv_norm(w, w), conv_norm(w, w)) for w in widths)
            for _ in range(modules)
        )
        self.fuse = nn.ModuleList(
            nn.ModuleList(self._path(widths, a, b) for b in range(3) for a in range(3))
            for _ in range(modules)
        )
        self.head = nn.Conv2d(sum(widths), 8, 1)

    @staticmethod
    def _path(widths: list[int], source: int, to: int) -> nn.Module:
        if source == to:
            return nn.Identity()
        if source > to:
            return nn.Conv2d(widths[source], widths[to], 1)
        layers = [conv_norm(widths[at], widths[at + 1], stride=2) for at in range(source, to)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        maps = [self.stem(x)]
        for start in self.start:
            maps.append(start(maps[-1]))
        for branches, fuse in zip(self.branches, self.fuse, strict=True):
            maps = [branch(m) for branch, m in zip(branches, maps, strict=True)]
            maps = [self._fused(maps, fuse[3 * to : 3 * to + 3], to) for to in range(3)]
        y = self.head(_together(maps))
        return functional.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)

    @staticmethod
    def _fused(maps: list[Tensor], paths: nn.ModuleList, to: int) -> Tensor:
        y = maps[to]
        for source, path in enumerate(paths):
            if source == to:
                continue
            moved = path(maps[source])
            if source > to:
                moved = functional.interpolate(moved, size=maps[to].shape[2:], mode="nearest")
            y = y + moved
        return functional.relu(y)


class SegFormerHead(nn.Module):
    """SegFormer's decoder (arXiv:2105.15203): a linear layer a map, all at a quarter of the image.

    Input Nx3xHxW, output Nx8x(H/2)x(W/2), on convolutional maps.
    """

    def __init__(self, base: int = 24, width: int = 64) -> None:
        super().__init__()
        self.backbone = Backbone(base, 4)
        self.linear = nn.ModuleList(nn.Linear(c, width) for c in self.backbone.widths)
        self.fuse = conv_norm(4 * width, width, 1)
        self.head = nn.Conv2d(width, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for ``x``; the class says their shapes."""
        maps = self.backbone(x)
        size, moved = maps[0].shape[2:], []
        for m, linear in zip(maps, self.linear, strict=True):
            n, _, h, w = m.shape
            y = linear(m.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, -1, h, w)
            moved.append(functional.interpolate(y, size=size, mode="bilinear", align_corners=False))
        result: Tensor = self.head(self.fuse(torch.cat(moved[::-1], 1)))
        return result
