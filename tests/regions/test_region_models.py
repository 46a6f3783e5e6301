"""Whole networks cut as regions: PP-OCR's files, and exports of both of PyTorch's exporters.

Each network is cut twice over: by `rewrite_model` as a user would, for a budget or by number of
splits, and by hand wherever a node is row-local (`tests.support.regions_by_hand`). The result
computes what the original does (tolerances: `tests.rewriting.test_real_models`) and is put together
soundly: names are unique, weights are there once, nodes that were not cut are the original's to the
byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.rewriting.test_real_models import FP16, FP32, QDQ_MEAN, QDQ_WORST
from tests.support.networks import NETWORKS, OCR, Export, Original, exports, page
from tests.support.regions_by_hand import tile_all
from tests.support.small_models import Array, copy_of, noise, session
from tests.support.tiers import slow

pytestmark = pytest.mark.usefixtures("less_weighed")

FORMS = ("fused", "shrinking", "loop")

FREE_FORMS = (*FORMS, "rounds")

forms = pytest.mark.parametrize("form", FORMS)


def _rewrite(original: Original, **options: Any) -> Outcome:
    loaded = Loaded(copy_of(original.model), original.path.parent)
    return rewrite_model(loaded, Options(**options))


def _run(model: onnx.ModelProto, name: str, feed: Array) -> list[Array]:
    return list(session(model).run(None, {name: feed}))


def _assert_close(original: Original, made: onnx.ModelProto, feed: Array) -> None:
    expected, _ = original.at(feed)
    for (output, array), other in zip(
        expected.items(), _run(made, original.input, feed), strict=True
    ):
        assert array.shape == other.shape
        assert array.dtype == other.dtype
        largest = float(np.abs(array.astype(np.float64)).max())
        error = float(np.abs(array.astype(np.float64) - other).max())
        assert largest > 0
        limit = FP16 if array.dtype == np.float16 else FP32
        assert error <= limit * largest, f"{output} at {feed.shape}: {error} of {largest}"


def _assert_sound(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Assert that the result is put together soundly."""
    onnx.checker.check_model(after)
    assert list(before.graph.input) == list(after.graph.input)
    assert [v.name for v in before.graph.output] == [v.name for v in after.graph.output]
    made = [name for node in after.graph.node for name in node.output if name]
    made += [value.name for value in after.graph.input]
    made += [tensor.name for tensor in after.graph.initializer]
    twice = [n for n, count in Counter(made).items() if count > 1]
    # IR 3 and PyTorch's older exports list initializers among the inputs.
    assert set(twice) <= {v.name for v in before.graph.input}
    titles = Counter(node.name for node in after.graph.node if node.name)
    assert not [name for name, count in titles.items() if count > 1]
    old = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        if node.name in old and "patchconv" not in node.name:
            assert node.SerializeToString() == old[node.name].SerializeToString()
    weights = [sum(t.ByteSize() for t in m.graph.initializer) for m in (before, after)]
    constants = [
        sum(n.ByteSize() for n in m.graph.node if n.op_type == "Constant") for m in (before, after)
    ]
    assert weights[1] + constants[1] <= weights[0] + constants[0] + 65536
    assert after.opset_import == before.opset_import
    assert after.ir_version == before.ir_version
    kept = {entry.key: entry.value for entry in after.metadata_props}
    assert {entry.key: entry.value for entry in before.metadata_props}.items() <= kept.items()


def _assert_idempotent(original: Original, outcome: Outcome) -> None:
    again = rewrite_model(Loaded(copy_of(outcome.model), original.path.parent), Options())
    assert again.already
    assert again.model.SerializeToString() == outcome.model.SerializeToString()


def _searched(all_forms: Sequence[str], *kept: tuple[str, str, str]) -> pytest.MarkDecorator:
    """Parametrise a test with ``name``, ``exporter`` and ``form``: every network in every form.

    The search takes nearly all of the time. By default it meets each network, each form and each
    exporter; the other combinations are slow tests. What is cut by hand has all forms.

    Args:
        all_forms: The forms.
        *kept: Network, exporter and form of what runs by default.
    """
    cases = list(product(NETWORKS, ("torchscript", "dynamo"), all_forms))
    assert set(kept) <= set(cases)
    return pytest.mark.parametrize(
        ("name", "exporter", "form"),
        [case if case in kept else slow(*case) for case in cases],
    )


@_searched(
    FORMS,
    ("vae_decoder", "torchscript", "shrinking"),
    ("vae_decoder", "dynamo", "loop"),
    ("unet", "torchscript", "fused"),
    ("rrdbnet", "torchscript", "fused"),
    ("rrdbnet", "torchscript", "loop"),
    ("mobilenet", "torchscript", "shrinking"),
)
def test_static(exported: Export, name: str, exporter: str, form: str) -> None:
    """Sizes in the file."""
    network = NETWORKS[name]
    original = exported(name, exporter, dynamic=False)
    outcome = _rewrite(original, form=form, splits=4)
    _assert_sound(original.model, outcome.model)
    _assert_close(original, outcome.model, noise(1, network.channels, *network.size))
    if name in ("unet", "rrdbnet"):
        assert outcome.rewritten
        _assert_idempotent(original, outcome)


@exports(dynamo="vae_decoder")
@forms
def test_static_by_hand(exported: Export, name: str, exporter: str, form: str) -> None:
    """Sizes in the file, every row-local node cut."""
    network = NETWORKS[name]
    original = exported(name, exporter, dynamic=False)
    made = tile_all(original.model, 3, form)
    assert sum(len(plan.region.nodes) for plan in made.plans) > 0.3 * len(made.labels)
    _assert_sound(original.model, made.model)
    _assert_close(original, made.model, noise(1, network.channels, *network.size))


def _assert_right_at_two_sizes(original: Original, name: str, made: onnx.ModelProto) -> None:
    network = NETWORKS[name]
    _assert_sound(original.model, made)
    for batch, at in ((1, network.size), (2, network.other)):
        _assert_close(original, made, noise(batch, network.channels, *at))


@_searched(
    FREE_FORMS,
    ("vae_decoder", "torchscript", "rounds"),
    ("unet", "torchscript", "shrinking"),
    ("unet", "torchscript", "rounds"),
    ("rrdbnet", "torchscript", "loop"),
    ("mobilenet", "torchscript", "fused"),
    ("mobilenet", "dynamo", "rounds"),
)
def test_dynamic(exported: Export, name: str, exporter: str, form: str) -> None:
    """Symbols in the file: cut once, right at two sizes and two batches."""
    original = exported(name, exporter, dynamic=True)
    outcome = _rewrite(original, form=form, splits=3)
    _assert_right_at_two_sizes(original, name, outcome.model)


@exports(dynamo="mobilenet")
@pytest.mark.parametrize("form", FREE_FORMS)
def test_dynamic_by_hand(exported: Export, name: str, exporter: str, form: str) -> None:
    """Symbols in the file, every row-local node cut."""
    original = exported(name, exporter, dynamic=True)
    made = tile_all(original.model, 3, form)
    assert made.plans
    _assert_right_at_two_sizes(original, name, made.model)


# By default one share; at that the decoder is refused, after the longest of all searches, as the
# small network is.
@pytest.mark.parametrize(
    ("name", "share"),
    [
        (name, share) if share == 0.5 and name != "vae_decoder" else slow(name, share)
        for name, share in product(NETWORKS, (0.75, 0.5, 0.35))
    ],
)
def test_budget(exported: Export, name: str, share: float) -> None:
    """A plan for a budget computes the same; or there is none, which is said."""
    network = NETWORKS[name]
    original = exported(name, dynamic=False)
    peak = _rewrite(original, splits=1).before.bytes
    try:
        outcome = _rewrite(original, memory_budget=int(share * peak))
    except BudgetError:
        # What holds the VAE's peak is normalised over the whole image; the small network's is its
        # output, which the patches of the last Resize are put together to.
        assert share < 0.75 or name in ("vae_decoder", "mobilenet")
        return
    _assert_sound(original.model, outcome.model)
    _assert_close(original, outcome.model, noise(1, network.channels, *network.size))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(slow("unet", form) if form != "fused" else ("unet", form) for form in FORMS),
        *(("rrdbnet", form) for form in FORMS),
        *(slow("vae_decoder", form) if form != "loop" else ("vae_decoder", form) for form in FORMS),
    ],
)
def test_fp16(exported: Export, name: str, form: str) -> None:
    """Half precision stays half precision."""
    network = NETWORKS[name]
    original = exported(name, dynamic=False, dtype="float16")
    feed = noise(1, network.channels, *network.size, dtype=np.float16)
    outcome = _rewrite(original, form=form, splits=3)
    made = tile_all(original.model, 3, form)
    for result in (outcome.model, made.model):
        _assert_sound(original.model, result)
        _assert_close(original, result, feed)


@forms
@pytest.mark.parametrize("name", ["unet", "mobilenet"])
def test_qdq(exported: Export, name: str, form: str) -> None:
    """A quantised network: the pairs around each Conv lie in the region with it."""
    network = NETWORKS[name]
    original = exported(name, dynamic=False, qdq=True)
    feed = noise(1, network.channels, *network.size)
    outcome = _rewrite(original, form=form, splits=3)
    made = tile_all(original.model, 3, form)
    assert made.plans
    ((array),) = original.at(feed)[0].values()
    for result in (outcome.model, made.model):
        _assert_sound(original.model, result)
        (got,) = _run(result, original.input, feed)
        error = np.abs(array - got)
        assert error.max() <= QDQ_WORST * np.abs(array).max()
        assert error.mean() <= QDQ_MEAN * np.abs(array).max()


# Every file and every form once by default, every pair in the slow tier.
@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form) if k == m else slow(name, form)
        for k, name in enumerate(OCR)
        for m, form in enumerate(FORMS)
    ],
)
def test_ocr(ocr: Any, name: str, form: str) -> None:
    """PP-OCR: free dimensions."""
    original = ocr(name)
    feeds = [page(batch, size) for batch, size in zip((1, 2), OCR[name], strict=True)]
    outcome = _rewrite(original, form=form, splits=3)
    made = tile_all(original.model, 3, form)
    assert made.plans
    for feed in feeds:
        _assert_close(original, outcome.model, feed)
        _assert_close(original, made.model, feed)


# A search of its own: by default of the smallest file.
@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form) if (k, m) == (2, 2) else slow(name, form)
        for k, name in enumerate(OCR)
        for m, form in enumerate(FORMS)
    ],
)
def test_ocr_at_a_given_size(ocr: Any, name: str, form: str) -> None:
    """PP-OCR: sizes fixed by the rewrite."""
    original = ocr(name)
    feed = page(1, OCR[name][0])
    fixed = _rewrite(original, form=form, splits=3, shapes={original.input: feed.shape})
    _assert_close(original, fixed.model, feed)
