"""Whole networks: PP-OCR's files, and four architectures through both of PyTorch's exporters.

Every Conv that has two output rows or more is cut, in both forms, and the result computes what the
original does. How close, and why:

    fp32    3e-5 of the output's largest value. A patch sums the same products as the whole; the
            runtime may add them in another order, and some thirty layers pass the last bit on.
    fp16    2e-2. The same last bit, of 11, is 5e-4 per layer.
    QDQ     Most outputs are equal. Where a Conv that was not quantised feeds a QuantizeLinear, the
            last bit of fp32 may tip a value over to the next of 255 steps, and layers pass it on:
            a quarter of the largest value at the worst place, 1e-2 on average.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rewriters.graph import Loaded, load
from rewriters.regions import Selection
from rewriters.rewrite import Options, Outcome, rewrite_model
from tests.small_models import Array, copy_of, noise, session

FP32 = 3e-5
FP16 = 2e-2
QDQ_WORST, QDQ_MEAN = 0.25, 1e-2

FORMS = ("batch", "sequential")
Size = tuple[int, int]


@dataclass(frozen=True)
class Network:
    """How to export one network small, and two sizes to run it at; neither is square."""

    options: dict[str, Any]
    channels: int
    size: Size
    other: Size


NETWORKS = {
    "vae_decoder": Network({"base": 8, "groups": 4, "resnets": 1}, 4, (10, 8), (7, 13)),
    "unet": Network({"base": 4, "levels": 3}, 3, (48, 32), (40, 72)),
    "rrdbnet": Network({"base": 8, "growth": 4, "blocks": 1}, 3, (20, 16), (13, 21)),
    "mobilenet": Network({"base": 8, "repeats": 0}, 3, (64, 48), (80, 112)),
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


def rewritten(original: Original, form: str, **options: Any) -> Outcome:
    """Cut every Conv of a copy, in three patches, and check the result."""
    options.setdefault("splits", 3)
    options.setdefault("selection", Selection(min_elements=0))
    loaded = Loaded(copy_of(original.model), original.path.parent)
    outcome = rewrite_model(loaded, Options(form=form, **options))
    onnx.checker.check_model(outcome.model)
    return outcome


def assert_all_cut(outcome: Outcome, rows: dict[str, int]) -> None:
    """Assert that every Conv of two rows or more was cut, and why the others were not."""
    cut = {label for done in outcome.rewritten for label in done.nodes}
    assert rows
    assert {label for label, count in rows.items() if count >= 2} <= cut
    assert {refusal.code for refusal in outcome.refused} <= {"one-row"}
    assert not {refusal.node for refusal in outcome.refused} & cut


def assert_close(expected: dict[str, Array], outcome: Outcome, name: str, feed: Array) -> None:
    """Assert that fp32 outputs are equal but for the order of sums."""
    opened = session(outcome.model)
    got = opened.run(list(expected), {name: feed})
    for (output, array), other in zip(expected.items(), got, strict=True):
        assert array.shape == other.shape
        largest = float(np.abs(array).max())
        error = float(np.abs(array - other).max())
        assert largest > 0
        assert error <= FP32 * largest, f"{output} at {feed.shape}: {error} of {largest}"


Export = Callable[..., Original]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports a network once per session."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Original] = {}

    def get(name: str, exporter: str = "torchscript", **options: Any) -> Original:
        from tools.export_models import export, quantize_qdq

        qdq = options.pop("qdq", False)
        key = "-".join([name, exporter, *map(str, options.values()), str(qdq)])
        if key not in made:
            network, path = NETWORKS[name], folder / f"{key}.onnx"
            options = {"size": network.size, **options, **network.options}
            export(name, path, exporter=exporter, **options)  # type: ignore[arg-type]
            if qdq:
                quantised = folder / f"{key}-qdq.onnx"
                path = quantize_qdq(path, quantised, size=network.size)
            made[key] = Original(path)
        return made[key]

    return get


exporters = pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
names = pytest.mark.parametrize("name", list(NETWORKS))
forms = pytest.mark.parametrize("form", FORMS)


@names
@exporters
@forms
def test_static(exported: Export, name: str, exporter: str, form: str) -> None:
    """Sizes in the file: windows are numbers, and every Conv is cut."""
    original = exported(name, exporter, dynamic=False)
    network = NETWORKS[name]
    feed = noise(1, network.channels, *network.size)
    expected, rows = original.at(feed)
    outcome = rewritten(original, form)
    assert_all_cut(outcome, rows)
    assert all(done.rows is not None for done in outcome.rewritten)
    assert_close(expected, outcome, original.input, feed)


@names
@exporters
@forms
def test_dynamic(exported: Export, name: str, exporter: str, form: str) -> None:
    """Symbols in the file: rewritten once, right at two sizes and two batches."""
    original = exported(name, exporter, dynamic=True)
    network = NETWORKS[name]
    outcome = rewritten(original, form)
    for batch, size in ((1, network.size), (2, network.other)):
        feed = noise(batch, network.channels, *size)
        expected, rows = original.at(feed)
        assert_all_cut(outcome, rows)
        assert_close(expected, outcome, original.input, feed)


@names
def test_dynamic_fixed(exported: Export, name: str) -> None:
    """Symbols in the file and sizes given: as good as a static file."""
    original = exported(name, dynamic=True)
    network = NETWORKS[name]
    feed = noise(1, network.channels, *network.other)
    expected, rows = original.at(feed)
    outcome = rewritten(original, "sequential", shapes={original.input: feed.shape})
    assert_all_cut(outcome, rows)
    assert all(done.rows is not None for done in outcome.rewritten)
    assert_close(expected, outcome, original.input, feed)


@forms
@pytest.mark.parametrize("axis", ["width"])
def test_width(exported: Export, form: str, axis: str) -> None:
    """The same along the other axis."""
    original = exported("unet", dynamic=False)
    network = NETWORKS["unet"]
    feed = noise(1, network.channels, *network.size)
    expected, _ = original.at(feed)
    outcome = rewritten(original, form, axis=axis)
    assert {done.axis for done in outcome.rewritten} == {3}
    assert_close(expected, outcome, original.input, feed)


@forms
@pytest.mark.parametrize("name", ["unet", "rrdbnet"])
def test_fp16(exported: Export, name: str, form: str) -> None:
    """Half precision stays half precision."""
    original = exported(name, dynamic=False, dtype="float16")
    network = NETWORKS[name]
    feed = noise(1, network.channels, *network.size, dtype=np.float16)
    expected, rows = original.at(feed)
    outcome = rewritten(original, form)
    assert_all_cut(outcome, rows)
    (array,) = expected.values()
    (got,) = session(outcome.model).run(list(expected), {original.input: feed})
    assert got.dtype == np.float16
    error = np.abs(array.astype(np.float64) - got).max()
    assert error <= FP16 * np.abs(array).max()


@forms
@pytest.mark.parametrize("name", ["unet", "mobilenet"])
def test_qdq(exported: Export, name: str, form: str) -> None:
    """A quantised network: the pairs around each Conv go into every patch with it."""
    original = exported(name, dynamic=False, qdq=True)
    network = NETWORKS[name]
    feed = noise(1, network.channels, *network.size)
    expected, rows = original.at(feed)
    outcome = rewritten(original, form)
    assert_all_cut(outcome, rows)
    assert any(len(done.nodes) >= 3 for done in outcome.rewritten)
    (array,) = expected.values()
    (got,) = session(outcome.model).run(list(expected), {original.input: feed})
    error = np.abs(array - got)
    assert error.max() <= QDQ_WORST * np.abs(array).max()
    assert error.mean() <= QDQ_MEAN * np.abs(array).max()


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


@pytest.mark.parametrize("name", list(OCR))
@forms
def test_ocr(ocr: Callable[[str], Original], name: str, form: str) -> None:
    """PP-OCR, converted by Paddle: weights in Constant nodes, dims unknown; two sizes."""
    original = ocr(name)
    outcome = rewritten(original, form)
    for batch, size in zip((1, 2), OCR[name], strict=True):
        feed = page(batch, size)
        expected, rows = original.at(feed)
        assert_all_cut(outcome, rows)
        assert max(float(array.max()) for array in expected.values()) > 0.1
        assert_close(expected, outcome, original.input, feed)


@pytest.mark.parametrize("name", list(OCR))
def test_ocr_fixed(ocr: Callable[[str], Original], name: str) -> None:
    """The same files at a given size."""
    original = ocr(name)
    feed = page(1, OCR[name][0])
    expected, rows = original.at(feed)
    outcome = rewritten(original, "batch", shapes={original.input: feed.shape})
    assert_all_cut(outcome, rows)
    assert_close(expected, outcome, original.input, feed)
