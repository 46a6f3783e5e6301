"""Whole networks for the tests: exports of four architectures, and PP-OCR's files.

The fixtures `exported` and `ocr` stand in `tests.conftest`: what takes seconds to export is one
file for every module and every worker of a run.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import load
from tests.support.small_models import Array, copy_of, noise, session

__all__ = ["NETWORKS", "OCR", "Export", "Original", "exports", "page"]


Size = tuple[int, int]


@dataclass(frozen=True)
class Network:
    """How to export one network narrow, and two sizes to run it at; neither is square.

    Heights leave a region rows to cut.
    """

    options: dict[str, Any]
    channels: int
    size: Size
    other: Size


NETWORKS = {
    "vae_decoder": Network({"base": 8, "groups": 4, "resnets": 1}, 4, (24, 12), (17, 13)),
    "unet": Network({"base": 4, "levels": 3}, 3, (96, 32), (72, 40)),
    "rrdbnet": Network({"base": 8, "growth": 4, "blocks": 1}, 3, (48, 16), (33, 21)),
    "mobilenet": Network({"base": 8, "repeats": 0}, 3, (160, 48), (112, 80)),
}

OCR = {
    "ch_PP-OCRv4_det_infer": ((64, 96), (128, 64)),
    "ch_PP-OCRv4_rec_infer": ((48, 64), (48, 104)),
    "ch_ppocr_mobile_v2.0_cls_infer": ((48, 192), (48, 96)),
}


@dataclass
class Original:
    """A model with the outputs and the Convs' output rows it has at each size."""

    path: Path
    ran: dict[tuple[int, ...], tuple[dict[str, Array], dict[str, int]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self.model = load(self.path).model
        self.input = self.model.graph.input[0].name

    def at(self, feed: Array) -> tuple[dict[str, Array], dict[str, int]]:
        """Run at one size: outputs by name, and rows of every Conv's output by its node's label."""
        if feed.shape not in self.ran:
            shown = copy_of(self.model)
            convs = {
                node.output[0]: node.name or node.output[0]
                for node in shown.graph.node
                if node.op_type in ("Conv", "ConvTranspose")
            }
            outputs = {output.name for output in shown.graph.output}
            shown.graph.output.extend(
                onnx.ValueInfoProto(name=name) for name in convs if name not in outputs
            )
            opened = session(shown)
            names = [output.name for output in opened.get_outputs()]
            rows = dict(zip(names, opened.run(names, {self.input: feed}), strict=True))
            plain = session(self.model)
            names = [output.name for output in plain.get_outputs()]
            arrays = dict(zip(names, plain.run(names, {self.input: feed}), strict=True))
            self.ran[feed.shape] = (
                arrays,
                {label: rows[name].shape[2] for name, label in convs.items()},
            )
        return self.ran[feed.shape]


def exports(dynamo: str) -> pytest.MarkDecorator:
    """Parametrise a test with ``name`` and ``exporter``: every network by either exporter.

    Args:
        dynamo: The network that PyTorch's newer exporter writes in every run, for what it spells
            otherwise. The others are slow tests: one export takes it ten seconds.
    """
    return pytest.mark.parametrize(
        ("name", "exporter"),
        [
            *((name, "torchscript") for name in NETWORKS),
            *(
                pytest.param(name, "dynamo", marks=[] if name == dynamo else [pytest.mark.slow])
                for name in NETWORKS
            ),
        ],
    )


Export = Callable[..., Original]


def _folder(factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the workers of one run share."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "exported"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports a network once, for all modules and workers of a run.

    Two workers that ask at the same moment both export; either file is as good.
    """
    folder = _folder(tmp_path_factory)
    made: dict[str, Original] = {}

    def written(path: Path, write: Callable[[Path], object]) -> Path:
        if not path.exists():
            mine = path.with_name(f"{os.getpid()}-{path.name}")
            write(mine)
            mine.replace(path)
        return path

    def get(name: str, exporter: str = "torchscript", **options: Any) -> Original:
        from tools.export_models import export
        from tools.models.quantise import quantize_qdq

        qdq = options.pop("qdq", False)
        network = NETWORKS[name]
        options = {"dynamic": False, "size": network.size, "dtype": "float32", **options}
        spelled = [name, exporter, *(f"{key}={options[key]}" for key in sorted(options))]
        plain = re.sub(r"[^\w.=-]+", "_", "-".join(spelled))
        key = f"{plain}-qdq" if qdq else plain
        if key not in made:
            path = written(
                folder / f"{plain}.onnx",
                lambda path: export(name, path, exporter=exporter, **options, **network.options),  # type: ignore[arg-type]
            )
            if qdq:
                source = path
                path = written(
                    folder / f"{key}.onnx",
                    lambda path: quantize_qdq(source, path, size=options["size"]),
                )
            made[key] = Original(path)
        return made[key]

    return get


def ocr_file(name: str) -> Path:
    """Return a model file of the installed package, which is not imported."""
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    if found is None or found.origin is None:
        pytest.skip("no PP-OCR files: pip install --no-deps rapidocr-onnxruntime==1.4.4")
    return Path(found.origin).parent / "models" / f"{name}.onnx"


@pytest.fixture(scope="session")
def ocr() -> Callable[[str], Original]:
    """Return a function that loads a PP-OCR model once per session."""
    made: dict[str, Original] = {}

    def get(name: str) -> Original:
        if name not in made:
            made[name] = Original(ocr_file(name))
        return made[name]

    return get


def page(batch: int, size: Size) -> Array:
    """Return dark strokes on a light page, with some noise: on noise alone nothing is detected."""
    height, width = size
    image = np.ones((batch, 3, height, width), np.float32)
    for y in range(8, height - 20, 32):
        for x in range(6, width - 12, 12):
            image[:, :, y : y + 20, x : x + 3] = -1
            image[:, :, y + x % 17 : y + x % 17 + 3, x : x + 9] = -1
    return image + 0.1 * noise(batch, 3, height, width)
