"""Load a served model, original beside rewritten: ``python -m tools.triton_load A.onnx B.onnx``.

Each model gets a server of its own (`tools/serve.py`), so that the server's peak is that model's
alone. Clients of both protocols, half each, send seeded inputs as fast as they are answered, and
every answer is compared with ONNX Runtime's.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy import write_triton_repository
from patchconv_deploy.rewriters.graph import fixed_shapes, inference, skeleton
from patchconv_deploy.rewriters.graph import model as models
from patchconv_deploy.verify.inputs import make_inputs
from tools.serve import Server, serve

Array = np.ndarray[Any, Any]
Case = tuple[Mapping[str, Array], Mapping[str, Array]]
SEEDS = 4


@dataclass
class Load:
    """What clients saw.

    Attributes:
        answers: Requests that were answered.
        errors: What failed, one line each.
        wrong: Answers that differ from what was expected, one line each.
        versions: Versions that answered, in the order of their first answer.
        seconds: Time from the first request to the last answer.
    """

    answers: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    seconds: float = 0.0


@contextlib.contextmanager
def client(server: Server, protocol: str) -> Iterator[Any]:
    """Open a client, "http" or "grpc"."""
    import tritonclient.grpc
    import tritonclient.http

    if protocol == "http":
        opened = tritonclient.http.InferenceServerClient(server.http, network_timeout=120.0)
    else:
        opened = tritonclient.grpc.InferenceServerClient(server.grpc)
    try:
        yield opened
    finally:
        opened.close()


def infer(opened: Any, model: str, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], str]:
    """Send a request; return outputs by name, and the version that answered."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import np_to_triton_dtype

    grpc = isinstance(opened, tritonclient.grpc.InferenceServerClient)
    module = tritonclient.grpc if grpc else tritonclient.http
    inputs = []
    for name, array in feeds.items():
        entry = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    result = opened.infer(model, inputs)
    answer = result.get_response()
    if grpc:
        names, version = [o.name for o in answer.outputs], answer.model_version
    else:
        names, version = [o["name"] for o in answer["outputs"]], answer["model_version"]
    return {name: np.asarray(result.as_numpy(name)) for name in names}, str(version)


def same(expected: Mapping[str, Array], got: Mapping[str, Array]) -> bool:
    """Tell whether two sets of outputs agree to the last bits that a batch may change."""
    return set(expected) == set(got) and all(
        got[name].dtype == array.dtype
        and got[name].size == array.size
        and np.allclose(got[name].reshape(array.shape), array, rtol=1e-5, atol=1e-5, equal_nan=True)
        for name, array in expected.items()
    )


def load(
    server: Server,
    model: str,
    cases: Mapping[str, Sequence[Case]],
    *,
    clients: int = 8,
    requests: int | None = None,
    until: threading.Event | None = None,
) -> Load:
    """Send requests from several clients at once.

    Args:
        server: The server.
        model: The model's name there.
        cases: Per version, inputs and what is expected for them; the inputs are those of the
            first.
        clients: Clients at once, half of each protocol.
        requests: Number of requests; None: until ``until`` is set.
        until: Ends it.
    """
    found, lock = Load(), threading.Lock()
    numbers = iter(range(requests)) if requests is not None else iter(int, 1)
    feeds = next(iter(cases.values()))

    def work(protocol: str, first: int) -> None:
        at = first
        with client(server, protocol) as opened:
            while until is None or not until.is_set():
                with lock:
                    if next(numbers, None) is None:
                        return
                at += 1
                try:
                    got, version = infer(opened, model, feeds[at % len(feeds)][0])
                except Exception as error:  # noqa: BLE001 - whatever fails is what is looked for
                    with lock:
                        found.errors.append(f"{protocol}: {error}")
                    continue
                right = version in cases and same(cases[version][at % len(feeds)][1], got)
                with lock:
                    found.answers += 1
                    if version not in found.versions:
                        found.versions.append(version)
                    if not right:
                        found.wrong.append(f"{protocol}, version {version}, input {at}")

    threads = [
        threading.Thread(target=work, args=(("http", "grpc")[number % 2], number))
        for number in range(clients)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds = time.perf_counter() - begin
    return found


def expect(path: Path, *sizes: Mapping[str, tuple[int, ...]]) -> list[Case]:
    """Return seeded inputs of a model, with its outputs for them under ONNX Runtime.

    Args:
        path: The model.
        *sizes: Sizes of its inputs; of several the cases are mixed at random, by a seed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    model = models.load(path)
    cases: list[Case] = []
    for shapes in sizes:
        slim = skeleton.skeleton(model)
        fixed_shapes.fix_shapes(slim, shapes)
        known = inference.infer(slim)
        for seed in range(SEEDS):
            feed = make_inputs(model.model, known, {}, seed)
            cases.append((feed, dict(zip(names, session.run(names, feed), strict=True))))
    random.Random(len(cases)).shuffle(cases)
    return cases


def serve_and_load(
    path: Path,
    *sizes: Mapping[str, tuple[int, ...]],
    requests: int = 1000,
    clients: int = 8,
    **options: Any,
) -> tuple[Load, int, int]:
    """Publish a model, serve it, load it.

    Args:
        path: The model.
        *sizes: Sizes of its inputs, of one request; of several the largest last.
        requests: Number of requests.
        clients: Clients at once.
        **options: For `write_triton_repository`.

    Returns:
        What the clients saw; the server's peak memory, bytes; and that before the first request.
    """
    cases, shapes = expect(path, *sizes), sizes[-1]
    with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
        repository = Path(folder) / "repository"
        made = write_triton_repository(path, repository, name="model", shapes=shapes, **options)
        with serve(repository) as server:
            before = server.peak_bytes()
            seen = load(
                server, "model", {str(made.version): cases}, clients=clients, requests=requests
            )
            return seen, server.peak_bytes(), before


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        help="NAME:1x3x512x512; again for sizes that are mixed, the largest last",
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-batch-size", type=int, default=0)
    arguments = parser.parse_args()
    sizes: list[dict[str, tuple[int, ...]]] = [{}]
    for text in arguments.shape:
        name, _, dims = text.rpartition(":")
        if name in sizes[-1]:
            sizes.append({})
        sizes[-1][name] = tuple(map(int, dims.split("x")))
    bad = False
    print(f"{'model':40} answers errors wrong  seconds  peak MiB  (loaded MiB)")
    for path in arguments.models:
        seen, peak, before = serve_and_load(
            path,
            *sizes,
            requests=arguments.requests,
            clients=arguments.clients,
            max_batch_size=arguments.max_batch_size,
            dynamic_batching=arguments.max_batch_size > 1,
        )
        bad = bad or bool(seen.errors or seen.wrong)
        print(
            f"{path.name:40} {seen.answers:7} {len(seen.errors):6} {len(seen.wrong):5} "
            f"{seen.seconds:8.1f} {peak / 2**20:9.0f} {before / 2**20:9.0f}",
            flush=True,
        )
        for line in (*seen.errors[:3], *seen.wrong[:3]):
            print(f"  {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
