"""The written repository under Triton's real server: loaded, read back, and answered to the bit."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.json_format import Parse

from patchconv_deploy import check_triton_repository, rewrite, write_triton_repository
from patchconv_deploy.triton.schema import schema
from patchconv_deploy.triton.write import TritonResult
from tests.support.small_models import Array, chain, model, node, noise, value
from tests.support.tiers import weighing_less
from tests.support.triton_server import PROTOCOLS, detector, running, skip_without_server
from tools import export_models
from tools.serve import Server
from tools.triton_load import client, infer

CPU = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class Served:
    """A running server, and what was written for it."""

    server: Server
    results: dict[str, TritonResult]
    models: dict[str, Path]
    feeds: dict[str, dict[str, Array]]


def _scalar() -> onnx.ModelProto:
    """A mean over everything, and the input's largest value per item as it is."""
    return model(
        [node("ReduceMean", "x", "mean", keepdims=0), node("Mul", "x k", "y")],
        {"x": (2, 5), "k": ()},
        {"mean": (), "y": (2, 5)},
    )


def _per_item() -> onnx.ModelProto:
    """A number per item: rank 1, with a batch nothing is left of the shape."""
    return model(
        [node("ReduceMax", "x", "best", axes=[1], keepdims=0), node("Mul", "best k", "y")],
        {"x": ("n", 6), "k": ("n",)},
        {"best": ("n",), "y": ("n",)},
    )


def _text() -> onnx.ModelProto:
    kind = onnx.TensorProto.STRING
    return model(
        [onnx.helper.make_node("Identity", ["te xt/\u00fc"], ["out/\u00df"])],
        [value("te xt/\u00fc", ("n", 2), kind)],
        [value("out/\u00df", ("n", 2), kind)],
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Write all models into one repository and serve it once."""
    skip_without_server()
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "repository"
    models: dict[str, Path] = {}
    feeds: dict[str, dict[str, Array]] = {}
    results: dict[str, TritonResult] = {}

    def add(name: str, path: Path, feed: dict[str, Array], **options: Any) -> None:
        models[name], feeds[name] = path, feed
        results[name] = write_triton_repository(path, repository, name=name, **options)

    def saved(name: str, made: onnx.ModelProto, **options: Any) -> Path:
        path = folder / f"{name}.onnx"
        onnx.save(made, path, **options)
        return path

    page = {"x": noise(1, 3, 96, 64)}
    sizes = {"x": (1, 3, 96, 64)}
    batching: dict[str, Any] = {
        "max_batch_size": 4,
        "dynamic_batching": True,
        "warmup": True,
        "shapes": sizes,
    }
    add("detector", detector(), page, **batching)
    with weighing_less():
        cut = rewrite(detector(), folder / "detector.onnx", min_elements=0, rtol=1e-2).path
    assert cut is not None
    add("detector-patched", cut, page, **batching)
    decoder = export_models.export(
        "vae_decoder",
        folder / "vae.onnx",
        size=(10, 8),
        base=8,
        groups=4,
        resnets=1,
    )
    latent = {onnx.load(decoder).graph.input[0].name: noise(1, 4, 10, 8)}
    add("vae", decoder, latent, warmup=True)
    with weighing_less():
        cut = rewrite(decoder, folder / "vae.patched.onnx", min_elements=0).path
    assert cut is not None
    add("vae-patched", cut, latent, warmup=True)
    add("fixed", saved("fixed", chain(2)), {"x": noise(1, 2, 16, 10)})
    add("scalar", saved("scalar", _scalar()), {"x": noise(2, 5), "k": np.array([3], np.float32)})
    item = {"x": noise(3, 6), "k": noise(3)[:, None]}
    add("per-item", saved("per-item", _per_item()), item, max_batch_size=8)
    outside = saved(
        "outside",
        chain(2),
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        location="",
        size_threshold=0,
    )
    add("outside", outside, {"x": noise(1, 2, 16, 10)})
    words = np.array([["a\u00e4", ""], ["\u4e2d", "d"]], dtype=object)
    add("text", saved("text", _text()), {"te xt/\u00fc": words}, max_batch_size=2)
    half = model(
        [node("Relu", "x", "y")],
        [value("x", (2, 3), onnx.TensorProto.FLOAT16)],
        [value("y", (2, 3), onnx.TensorProto.FLOAT16)],
    )
    add("half", saved("half", half), {"x": noise(2, 3).astype(np.float16)})
    assert check_triton_repository(repository, gpu=False) == []
    with running(repository, verbose=1) as server:
        yield Served(server, results, models, feeds)


NAMES = [
    "detector",
    "detector-patched",
    "vae",
    "vae-patched",
    "fixed",
    "scalar",
    "per-item",
    "outside",
    "text",
    "half",
]


def _expected(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run a model under ONNX Runtime on what a client sends."""
    session = onnxruntime.InferenceSession(str(path), providers=CPU)
    ranks = {entry.name: len(entry.shape) for entry in session.get_inputs()}
    own = {}
    for name, array in feeds.items():
        # A scalar, and a number per item, travel as one more dimension of 1.
        own[name] = array.reshape(array.shape[: ranks[name]])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, own), strict=True))


def test_every_model_loads(served: Served) -> None:
    """All are ready at the first try, with auto-completion off."""
    states = {entry["name"]: entry["state"] for entry in served.server.models()}
    assert states == dict.fromkeys(NAMES, "READY")
    assert served.server.is_ready()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_back_is_what_was_written(served: Served, name: str, protocol: str) -> None:
    """Configuration and metadata, field by field."""
    written = served.results[name].config
    with client(served.server, protocol) as opened:
        answer = opened.get_model_config(name)
        metadata = opened.get_model_metadata(name)
    if protocol == "http":
        read = Parse(json.dumps(answer), schema().ModelConfig())
        tensors = [(t["name"], t["datatype"], t["shape"]) for t in metadata["inputs"]]
        tensors += [(t["name"], t["datatype"], t["shape"]) for t in metadata["outputs"]]
    else:
        read = answer.config
        tensors = [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs]
        tensors += [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs]
    # The server notes that it found a backend in Python; Triton's own leaves this empty.
    assert read.runtime == "model.py"
    read.runtime = ""
    assert read == written
    batch = [-1] if written.max_batch_size else []
    assert [(n, k, [int(size) for size in shape]) for n, k, shape in tensors] == [
        (
            entry.name,
            schema()
            .DataType.Name(entry.data_type)
            .removeprefix("TYPE_")
            .replace("STRING", "BYTES"),
            [*batch, *entry.dims],
        )
        for entry in (*written.input, *written.output)
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_equal_onnx_runtime_to_the_bit(served: Served, name: str, protocol: str) -> None:
    """Each output, whole."""
    expected = _expected(served.models[name], served.feeds[name])
    with client(served.server, protocol) as opened:
        got, _ = infer(opened, name, served.feeds[name])
    assert set(got) == set(expected)
    for key, array in expected.items():
        answer = got[key]
        if array.dtype.kind in "OU":
            answer = np.array([text.decode() for text in answer.ravel()], dtype=object)
            assert list(answer) == list(array.ravel())
            continue
        assert answer.dtype == array.dtype
        assert answer.tobytes() == array.tobytes()
        assert answer.size == array.size


def test_dynamic_batching_forms_batches(served: Served) -> None:
    """Requests that wait together run together, and each gets its own answer."""
    feeds = [{"x": noise(1, 3, 96, 64, seed=k)} for k in range(8)]
    expected = [_expected(served.models["detector"], feed) for feed in feeds]
    wrong: list[str] = []

    def work(number: int) -> None:
        with client(served.server, PROTOCOLS[number % 2]) as opened:
            for _ in range(6):
                got, _ = infer(opened, "detector", feeds[number])
                for key, array in expected[number].items():
                    if not np.allclose(got[key], array, rtol=0, atol=1e-6):
                        wrong.append(f"{number}: {key}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with client(served.server, "http") as opened:
        (stats,) = opened.get_inference_statistics("detector")["model_stats"]
    sizes = {int(entry["batch_size"]) for entry in stats["batch_stats"]}
    assert max(sizes) > 1
    assert max(sizes) <= 4


@pytest.mark.parametrize("name", ["detector", "detector-patched", "vae", "vae-patched"])
def test_warmup_runs(served: Served, name: str) -> None:
    """The log says that each sample ran, and the server was ready only then."""
    log = served.server.log.read_text(errors="replace")
    for sample in served.results[name].config.model_warmup:
        assert f"model '{name}' instance {name}_0_0 is running warmup sample '{sample.name}'" in log


def test_a_gpu_repository_loads_on_a_cpu_machine(tmp_path: Path) -> None:
    """configs/cpu.pbtxt is what the server takes there."""
    onnx.save(chain(2), tmp_path / "m.onnx")
    repository = tmp_path / "repository"
    write_triton_repository(tmp_path / "m.onnx", repository, provider="tensorrt", instances=2)
    assert check_triton_repository(repository) == []
    (refused,) = check_triton_repository(repository, gpu=False)
    assert "--model-config-name=cpu" in refused.reason
    assert check_triton_repository(repository, gpu=False, config_name="cpu") == []
    with running(repository) as server:
        assert not server.is_ready()
    with running(repository, config_name="cpu") as server:
        assert server.is_ready()
        with client(server, "grpc") as opened:
            got, _ = infer(opened, "m", {"x": noise(1, 2, 16, 10)})
    expected = _expected(tmp_path / "m.onnx", {"x": noise(1, 2, 16, 10)})
    assert np.array_equal(got["y"], expected["y"])
