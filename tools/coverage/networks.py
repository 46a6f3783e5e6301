"""The networks that are looked at, how each is built and at which size.

Widths are small and sizes moderate, so that a peak is some tens or hundreds of MiB: what is left
alone, and why, does not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from tools.calibrate_memory import ocr_file
from tools.models.classification import CRNN, YOLO, ConvNeXt, EfficientNet, ResNet
from tools.models.layers import initialise
from tools.models.mix_transformer import SegFormer
from tools.models.mobilenet import MobileNet
from tools.models.quiet import quiet
from tools.models.residual_blocks import ResidualBlocks
from tools.models.restoration import DPT, EDSR, ESPCN, CycleGAN, DnCNN, NAFNet, Restormer
from tools.models.segmentation import (
    CRAFT,
    DeepLab,
    FPNSegmentation,
    HRNet,
    SegFormerHead,
    SkipUNet,
)
from tools.models.style_transfer import StyleTransfer
from tools.models.super_resolution import SRVGG, RRDBNet
from tools.models.swinir import SwinIR
from tools.models.unet import UNet
from tools.models.unet_3d import UNet3d
from tools.models.vae_decoder import VAEDecoder
from tools.models.vae_encoder import VAEEncoder
from tools.models.windows import WindowRestorer

__all__ = ["EXPORTERS", "FORMS", "NETWORKS", "Network", "write"]

# "file": it is one already.
EXPORTERS = ("torchscript", "dynamo", "file")

FORMS = ("static", "free")

# Height and width that a network of free sizes is traced at.
_TRACED = 128

# Sizes of which a network takes multiples are traced at this many of them, at least.
_LEAST = 2


@dataclass(frozen=True)
class Network:
    """A network.

    Attributes:
        make: Builds the module; None of a file.
        file: Of an installed package, by the name that `tools.calibrate_memory` gives it.
        channels: Channels of the input.
        size: Height and width at which peaks are told; depth before them.
        multiple: What height and width are multiples of.
        free: Whether it is exported with free sizes as well; why not, where it is not.
        fixed_height: The height is always that of ``size``: only the width is free.
        keywords: What `patchconv_deploy.rewrite` is told beside the patches.
    """

    make: Callable[[], nn.Module] | None = None
    file: str = ""
    channels: int = 3
    size: tuple[int, ...] = (512, 512)
    multiple: int = 1
    free: bool = True
    fixed_height: bool = False
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exporters(self) -> tuple[str, ...]:
        """The exporters it passes through."""
        return ("file",) if self.file else EXPORTERS[:2]

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms it is looked at in."""
        return FORMS if self.free else FORMS[:1]


_WIDTH = {"axis": "width"}

NETWORKS: Mapping[str, Network] = {
    "unet": Network(lambda: UNet(base=16, levels=3), multiple=8),
    "unet_interpolate": Network(SkipUNet),
    "unet_corners": Network(lambda: SkipUNet(fit="corners")),
    "unet_pad": Network(lambda: SkipUNet(fit="pad")),
    "unet_crop": Network(lambda: SkipUNet(fit="crop")),
    "fpn": Network(FPNSegmentation),
    "deeplab": Network(DeepLab),
    "craft": Network(CRAFT),
    "hrnet": Network(HRNet, multiple=8),
    "segformer_head": Network(SegFormerHead),
    "segformer": Network(SegFormer, size=(1024, 1024), multiple=32),
    "dpt": Network(DPT, multiple=16),
    "yolo": Network(YOLO, size=(640, 640), multiple=32),
    "resnet": Network(ResNet),
    "mobilenet": Network(lambda: MobileNet(base=32)),
    "efficientnet": Network(EfficientNet),
    "convnext": Network(ConvNeXt),
    "crnn": Network(CRNN, channels=1, size=(32, 4096), fixed_height=True, keywords=_WIDTH),
    "espcn": Network(ESPCN, channels=1),
    "edsr": Network(EDSR),
    "srvgg": Network(lambda: SRVGG(base=32, layers=6), size=(384, 384)),
    "rrdbnet": Network(lambda: RRDBNet(base=16, growth=8, blocks=1), size=(256, 256)),
    "swinir": Network(SwinIR, size=(256, 256), multiple=8, free=False),
    "swin_windows": Network(WindowRestorer, size=(256, 256)),
    "nafnet": Network(NAFNet),
    "dncnn": Network(DnCNN, channels=1),
    "restormer": Network(Restormer, size=(384, 384)),
    "style_transfer": Network(StyleTransfer, multiple=4),
    "cyclegan": Network(CycleGAN, multiple=4),
    "vae_decoder": Network(lambda: VAEDecoder(base=16, resnets=2), channels=4, size=(64, 64)),
    "vae_encoder": Network(lambda: VAEEncoder(base=16, resnets=1), multiple=8),
    "residual_blocks": Network(lambda: ResidualBlocks(base=24, blocks=2)),
    "nnunet_3d": Network(UNet3d, channels=1, size=(64, 96, 96), multiple=4, free=False),
    "ppocr_det": Network(file="ppocr_det", size=(1024, 1024), multiple=32),
    "ppocr_cls": Network(file="ppocr_cls", size=(48, 192), fixed_height=True, keywords=_WIDTH),
    "ppocr_rec": Network(file="ppocr_rec", size=(48, 2048), fixed_height=True, keywords=_WIDTH),
}


def _built(network: Network) -> nn.Module:
    assert network.make is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(31)
        module = network.make()
        side = max(64, 4 * network.multiple)
        size = (16, 32, 32) if len(network.size) == 3 else (side, side)
        if network.fixed_height:
            size = (network.size[0], side)
        initialise(module, torch.randn(2, network.channels, *size), 31)
    return module


def _traced(network: Network, exporter: str) -> tuple[int, ...]:
    """Return the size that a free network is traced at, another one in each direction."""
    by = network.multiple
    height = max(_TRACED, _LEAST * by)
    width = height + by * max(1, 32 // by)
    return (network.size[0] if network.fixed_height else height, width)


def write(name: str, exporter: str, form: str, path: Path) -> dict[str, tuple[Any, ...]]:
    """Write a network as a file.

    Args:
        name: A key of `NETWORKS`.
        exporter: One of its exporters.
        form: One of its forms.
        path: The file.

    Returns:
        What `patchconv_deploy.rewrite` is told of its shapes: the sizes that are fixed or, of free
        ones, the least and the largest, at which memory is predicted.
    """
    network, free = NETWORKS[name], form == "free"
    least = max(32, _LEAST * network.multiple)
    if network.file:
        path.write_bytes(ocr_file(network.file).read_bytes())
        entry = onnx.load(path, load_external_data=False).graph.input[0].name
        return {entry: (1, network.channels, *_sizes(network, least, free=free))}
    module = _built(network)
    size = _traced(network, exporter) if free else network.size
    example = torch.randn(1, network.channels, *size)
    with quiet():
        _export(network, module, example, exporter, path, free=free)
    if not free:
        return {}
    return {"input": (1, network.channels, *_sizes(network, least, free=True))}


def _sizes(network: Network, least: int, *, free: bool) -> tuple[Any, ...]:
    if not free:
        return network.size
    ranges = tuple((min(least, size), size) for size in network.size)
    return (network.size[0], *ranges[1:]) if network.fixed_height else ranges


def _export(
    network: Network, module: nn.Module, example: Any, exporter: str, path: Path, *, free: bool
) -> None:
    if exporter == "torchscript":
        named = {3: "width"} if network.fixed_height else {2: "height", 3: "width"}
        torch.onnx.export(
            module, (example,), path, input_names=["input"], opset_version=17,
            dynamic_axes={"input": named} if free else {}, dynamo=False,
        )  # fmt: skip
        return
    shapes = None
    if free:
        dims = {at: torch.export.Dim(word, min=2) for at, word in ((2, "height"), (3, "width"))}
        if network.fixed_height:
            del dims[2]
        by = network.multiple
        shapes = ({at: by * dim if by > 1 else dim for at, dim in dims.items()},)
    torch.onnx.export(
        module, (example,), path, input_names=["input"], opset_version=18,
        dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
