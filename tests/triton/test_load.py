"""Under load: right answers, a new version without a failed request, a broken one without harm."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from patchconv_deploy import rewrite, write_triton_repository
from tests.support.small_models import chain, conv, model, node, noise
from tests.support.tiers import slow
from tests.support.triton_server import detector, running, skip_without_server
from tools.serve import Server
from tools.triton_load import Load, expect, load, serve_and_load

SHAPE = (1, 2, 64, 48)


def _wait(what: Any, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


def _states(server: Server, name: str) -> dict[str, str]:
    return {
        entry["version"]: entry.get("state", "")
        for entry in server.models()
        if entry["name"] == name and "version" in entry
    }


@pytest.mark.parametrize("requests", [100, slow(1000)])
def test_many_requests_of_eight_clients(
    requests: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Original and rewritten detector, sizes mixed: no error, no wrong answer, the server's peak.

    At this size a rewritten model gains nothing: the figures are there to be looked at, and the
    bound is for what leaks, which grows with the requests: a thousand in the slow tier.
    """
    skip_without_server()
    original = detector()
    cut = rewrite(original, tmp_path / "cut.onnx", splits=2, include=["p2o.Conv.2"]).path
    assert cut is not None
    for path in (original, cut):
        seen, peak, loaded = serve_and_load(
            path,
            {"x": (1, 3, 64, 64)},
            {"x": (1, 3, 96, 128)},
            {"x": (1, 3, 128, 96)},
            requests=requests,
            max_batch_size=4,
            dynamic_batching=True,
        )
        assert seen.errors == []
        assert seen.wrong == []
        assert seen.answers == requests
        record_property(f"server_peak_bytes_{path.stem}", peak)
        assert peak - loaded < 200 << 20


def test_instances_stay_within_what_was_planned(tmp_path: Path) -> None:
    """The measured footprint is what an instance takes in the server, copies of its tensors aside.

    A Python-based backend holds inputs and outputs once more, and once in shared memory.
    """
    skip_without_server()
    made = model(
        [
            node("Conv", "x a", "h", pads=[1] * 4),
            node("Relu", "h", "r"),
            node("Conv", "r b", "y", pads=[1] * 4),
        ],
        {"x": ("n", 2, 128, 128)},
        {"y": ("n", 2, 128, 128)},
        {"a": noise(64, 2, 3, 3), "b": noise(2, 64, 3, 3)},
    )
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    # A batch that is asked for is measured alone, not beside others that might fit better.
    written = write_triton_repository(
        path, tmp_path / "repository", memory=100 << 20, max_batch_size=8
    )
    assert written.capacity is not None
    need = written.capacity.footprint
    assert need.load_bytes is not None
    # The server has loaded the model before its level is taken.
    planned = written.capacity.instances * (need.total - need.load_bytes)
    batch = written.config.max_batch_size
    assert batch == 8
    cases = {"1": expect(path, {"x": (batch, 2, 128, 128)})}
    with running(tmp_path / "repository") as server:
        before = server.peak_bytes(instances=True)
        seen = load(server, "m", cases, requests=60)
        grown = server.peak_bytes(instances=True) - before
    assert (seen.errors, seen.wrong) == ([], [])
    tensors = 2 * written.capacity.footprint.input_bytes * written.capacity.instances
    assert 0.5 * planned < grown < 1.1 * planned + 3 * tensors + (16 << 20)


def test_a_new_version_and_a_broken_one_while_under_load(tmp_path: Path) -> None:
    """Clients see version 2 without a failed request; version 3 does not load, and 2 goes on."""
    skip_without_server()
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    onnx.save(chain(2, ("n", *SHAPE[1:])), first)
    other = chain(2, ("n", *SHAPE[1:]))
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(noise(2, 2, 3, 3, seed=9), "w0")
    )
    onnx.save(other, second)
    repository = tmp_path / "repository"
    options: dict[str, Any] = {"name": "m", "max_batch_size": 4, "dynamic_batching": True}
    write_triton_repository(first, repository, **options)
    cases = {"1": expect(first, {"x": SHAPE}), "2": expect(second, {"x": SHAPE})}
    with running(repository, poll_seconds=1) as server:
        done, seen = threading.Event(), Load()

        def clients() -> None:
            nonlocal seen
            seen = load(server, "m", cases, until=done)

        under_load = threading.Thread(target=clients)
        under_load.start()
        try:
            time.sleep(1)
            made = write_triton_repository(second, repository, **options)
            assert made.version == 2
            _wait(lambda: _states(server, "m").get("2") == "READY")
            # A version no check has seen, put in place in one step.
            broken = tmp_path / "broken"
            broken.mkdir()
            (broken / "model.onnx").write_bytes(second.read_bytes()[:-100])
            os.rename(broken, repository / "m" / "3")
            _wait(lambda: _states(server, "m").get("3") == "UNAVAILABLE")
            assert _states(server, "m")["2"] == "READY"
            time.sleep(1)
        finally:
            done.set()
            under_load.join()
    assert seen.errors == []
    assert seen.wrong == []
    assert seen.versions == ["1", "2"]
    assert seen.answers > 100


@pytest.mark.parametrize("change", ["same-config", "other-config"])
def test_replacing_what_is_served(tmp_path: Path, change: str) -> None:
    """A version replaced with --force, and one with another interface, are picked up whole."""
    skip_without_server()
    onnx.save(chain(1, ("n", *SHAPE[1:])), tmp_path / "first.onnx")
    channels = 2 if change == "same-config" else 5
    onnx.save(conv(("n", *SHAPE[1:]), out=channels), tmp_path / "second.onnx")
    repository = tmp_path / "repository"
    options: dict[str, Any] = {"name": "m", "max_batch_size": 4}
    write_triton_repository(tmp_path / "first.onnx", repository, **options)
    cases = expect(tmp_path / "second.onnx", {"x": SHAPE})
    with running(repository, poll_seconds=1) as server:
        version = 1 if change == "same-config" else 2
        write_triton_repository(
            tmp_path / "second.onnx", repository, version=version, force=True, **options
        )

        def changed() -> bool:
            seen = load(server, "m", {str(version): cases}, clients=1, requests=1)
            assert seen.errors == []
            return not seen.wrong

        _wait(changed)
