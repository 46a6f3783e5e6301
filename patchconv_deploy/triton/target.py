"""Whether a model was planned for what a server does, said when it is published.

Triton's ONNX Runtime backend reads the parameters ``enable_mem_arena`` and ``enable_mem_pattern``
of a configuration and nothing of memory reuse, which stays on. A plan that is made for reuse off,
as the session options that a model recommends may say, can need twice its memory there. So what a
model was planned for (``patchconv.plan`` and ``patchconv.session_options`` in its metadata) is held
against what the server will do (`triton_config.memory_options`).

Source: triton-inference-server/onnxruntime_backend, src/onnxruntime.cc and README.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from patchconv_deploy.engines.ort.options import SESSION_OPTIONS
from patchconv_deploy.errors import UsageError
from patchconv_deploy.measure.session_options import recommended_options
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.rewriters.planning.plan_file import METADATA_KEY
from patchconv_deploy.triton.config import PLAN, memory_options

__all__ = ["planning"]


_REUSE = "enable_mem_reuse"


def planning(
    path: Path, metadata: Mapping[str, str], platform: str, provider: str
) -> tuple[list[str], list[str]]:
    """Return notes and warnings on what a model was planned for, one line each.

    Args:
        path: The model's file, for messages.
        metadata: Its metadata.
        platform: "onnxruntime_onnx" or "tensorrt_plan".
        provider: Where ONNX Runtime runs it.
    """
    on_tensorrt = platform == PLAN or provider == "tensorrt"
    wanted = "tensorrt" if on_tensorrt else "triton"
    if METADATA_KEY not in metadata:
        return [
            "it was not rewritten and is published as it is; "
            f"rewrite(MODEL, target={wanted!r}) cuts its memory"
        ], []
    target = _target(metadata[METADATA_KEY])
    again = f"plan for this server with rewrite(MODEL, target={wanted!r})"
    if on_tensorrt or target == "tensorrt":
        if on_tensorrt == (target == "tensorrt"):
            return ["it was planned for TensorRT, which runs it"], []
        known = target or "an engine that its plan does not name"
        runs = "TensorRT" if on_tensorrt else "ONNX Runtime"
        return [], [f"it was planned for {known}, and {runs} runs it: it can need more; {again}"]
    server = memory_options(provider)
    try:
        recommended = recommended_options(path, metadata, server)
    except UsageError as error:
        return [], [f"what it was planned for is not known ({error}); {again}"]
    if recommended is None:
        if target == "onnxruntime-default":
            return ["it was planned for ONNX Runtime's default session options"], []
        return ["its plan says nothing of session options"], []
    planned, does = recommended.session_options(), server.session_options()
    unlike = [name for name in SESSION_OPTIONS if planned[name] != does[name]]
    said = ", ".join(f"{name}={planned[name]}" for name in unlike or SESSION_OPTIONS)
    if not unlike:
        return [f"it was planned for what the server does ({said})"], []
    why = (
        "the server cannot turn memory reuse off, and it can need twice the memory there"
        if _REUSE in unlike
        else "the configuration asks for the opposite"
    )
    return [], [f"it was planned for {said}; {why}; {again}"]


def _target(plan: str) -> str:
    """Return the target that a recorded plan names, "" where it names none that is known."""
    try:
        data = json.loads(plan)
    except (ValueError, RecursionError):
        return ""
    target = data.get("target") if isinstance(data, dict) else None
    return target if isinstance(target, str) and target in TARGETS else ""
