"""Triton's real server for the tests, and clients of both protocols."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils

from tests.small_models import Array
from tools.serve import VARIABLE, Server, default_environment, serve, unsupported

PROTOCOLS = ("http", "grpc")


def skip_without_server() -> None:
    """Skip where the machine cannot run the server; elsewhere it must be set up."""
    reason = unsupported()
    if reason is not None:
        pytest.skip(reason)
    if not (default_environment() / "installed").is_file():
        message = f"{default_environment()} is not set up; run the tests with tools/dev.py test"
        if VARIABLE in os.environ:
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def running(repository: Path, **options: Any) -> Iterator[Server]:
    """Run the server on a repository."""
    skip_without_server()
    with serve(repository, **options) as server:
        yield server


@contextmanager
def client(server: Server, protocol: str) -> Iterator[Any]:
    """Open a client of one protocol."""
    if protocol == "http":
        opened = tritonclient.http.InferenceServerClient(server.http, network_timeout=120.0)
    else:
        opened = tritonclient.grpc.InferenceServerClient(server.grpc)
    try:
        yield opened
    finally:
        opened.close()


def infer(
    opened: Any, model: str, feeds: Mapping[str, Array], version: str = ""
) -> tuple[dict[str, Array], str]:
    """Send a request; return outputs by name, and the version that answered."""
    grpc = isinstance(opened, tritonclient.grpc.InferenceServerClient)
    module = tritonclient.grpc if grpc else tritonclient.http
    inputs = []
    for name, array in feeds.items():
        kind = tritonclient.utils.np_to_triton_dtype(array.dtype)
        entry = module.InferInput(name, list(array.shape), kind)
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    result = opened.infer(model, inputs, model_version=version)
    answer = result.get_response()
    if grpc:
        names, answered = [o.name for o in answer.outputs], answer.model_version
    else:
        names, answered = [o["name"] for o in answer["outputs"]], answer["model_version"]
    return {name: np.asarray(result.as_numpy(name)) for name in names}, str(answered)
