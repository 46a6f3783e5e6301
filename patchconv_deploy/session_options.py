"""The session options of ONNX Runtime that a model recommends for itself, in its metadata.

    metadata_props["patchconv.session_options"] = '{"enable_mem_reuse": false, ...}'

A model file is not trusted: names that are not known to decide memory alone are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import onnx

from engines.onnxruntime_engine import SESSION_OPTIONS, OrtOptions
from patchconv_deploy.errors import UsageError

__all__ = ["METADATA_KEY", "recommend", "recommended_options"]

METADATA_KEY = "patchconv.session_options"


def recommend(model: onnx.ModelProto, options: Mapping[str, bool]) -> None:
    """Record session options in a model's metadata, in place of those that stand there.

    Args:
        model: The model; changed in place.
        options: Names of onnxruntime.SessionOptions to true or false.
    """
    text = json.dumps(dict(options), separators=(",", ":"))
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = text
            return
    model.metadata_props.add(key=METADATA_KEY, value=text)


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
    if METADATA_KEY not in metadata:
        return None
    try:
        entry = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        entry = None
    known = f"a JSON object of {', '.join(SESSION_OPTIONS)} to true or false"
    if not isinstance(entry, dict):
        raise UsageError(f"{path}: its metadata entry {METADATA_KEY} is not {known}")
    for name, value in entry.items():
        if name not in SESSION_OPTIONS or not isinstance(value, bool):
            raise UsageError(
                f"{path}: its metadata entry {METADATA_KEY} has {name!r}: {value!r}; it must be "
                f"{known}"
            )
    fields = {SESSION_OPTIONS[name]: value for name, value in entry.items()}
    return dataclasses.replace(options, **fields)
