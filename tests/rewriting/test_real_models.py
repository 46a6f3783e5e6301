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

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.networks import NETWORKS, OCR, Export, Original, exports, page
from tests.support.small_models import Array, copy_of, noise, session

__all__ = ["FP16", "FP32", "QDQ_MEAN", "QDQ_WORST"]


FP32 = 3e-5

FP16 = 2e-2

QDQ_WORST, QDQ_MEAN = 0.25, 1e-2

FORMS = ("batch", "sequential")


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


names = pytest.mark.parametrize("name", list(NETWORKS))

forms = pytest.mark.parametrize("form", FORMS)


@exports(dynamo="vae_decoder")
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


@exports(dynamo="mobilenet")
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
