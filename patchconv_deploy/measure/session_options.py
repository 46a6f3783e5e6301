"""The session options of ONNX Runtime that a model recommends for itself, in its metadata.

    metadata_props["patchconv.session_options"] = '{"enable_mem_reuse": false, ...}'

A model file is not trusted: names that are not known to decide memory alone are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from patchconv_deploy.engines.ort.options import SESSION_OPTIONS, OrtOptions
from patchconv_deploy.errors import UsageError
from patchconv_deploy.rewriters.graph.model import record
from patchconv_deploy.rewriters.outcome import SESSION_OPTIONS_KEY as METADATA_KEY

__all__ = ["recommend", "recommended_options", "unlike_recommended"]


def recommend(model: onnx.ModelProto, options: Mapping[str, bool]) -> None:
    """Record session options in a model's metadata, in place of those that stand there.

    Args:
        model: The model; changed in place.
        options: Names of onnxruntime.SessionOptions to true or false.
    """
    record(model, METADATA_KEY, dict(options))


def recommended_options(
    path: Path, metadata: Mapping[str, str], options: OrtOptions
) -> OrtOptions | None:
    """Return options with those that a model recommends put in; None where it recommends none.

    Args:
        path: The model's file, for messages.
        metadata: Its metadata.
        options: What holds for all that the model says nothing of.

    Raises:
        UsageError: The entry is no JSON object of known names to true or false.
    """
    try:
        entry = _entry(metadata)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if entry is None:
        return None
    fields: dict[str, Any] = {SESSION_OPTIONS[name]: value for name, value in entry.items()}
    return dataclasses.replace(options, **fields)


def unlike_recommended(metadata: Mapping[str, str], options: OrtOptions) -> str:
    """Return in one line that a model recommends others than these options; "" where it does not.

    Args:
        metadata: The model's.
        options: What it runs under.
    """
    try:
        entry = _entry(metadata) or {}
    except ValueError as error:
        return f"what it recommends is not known: {error}"
    given = options.session_options()
    unlike = {name: value for name, value in entry.items() if value != given[name]}
    if not unlike:
        return ""
    wanted = ", ".join(f"{name}={value}" for name, value in unlike.items())
    return f"ran without the session options it recommends ({wanted}); recommended=True runs it so"


def _entry(metadata: Mapping[str, str]) -> dict[str, bool] | None:
    """Return what a model recommends, None where it recommends nothing.

    Raises:
        ValueError: The entry is no JSON object of known names to true or false.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        entry = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        entry = None
    known = f"a JSON object of {', '.join(SESSION_OPTIONS)} to true or false"
    if not isinstance(entry, dict):
        raise ValueError(f"its metadata entry {METADATA_KEY} is not {known}")
    for name, value in entry.items():
        if name not in SESSION_OPTIONS or not isinstance(value, bool):
            raise ValueError(
                f"its metadata entry {METADATA_KEY} has {name!r}: {value!r}; it must be {known}"
            )
    return entry
