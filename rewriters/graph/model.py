"""A model as it is loaded: its file, its opset, its metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from patchconv_deploy.rewriters.errors import ModelError
from patchconv_deploy.rewriters.graph.external_data import external_range, is_external, tensors
from patchconv_deploy.rewriters.graph.normalise import normalise
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS

__all__ = ["Loaded", "load", "opset_of", "record"]


logger = logging.getLogger(__name__)

_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and the folder its external data lies in (None: it came from memory).

    Attributes:
        model: The model.
        folder: The folder.
        normalised: What was brought into the specification's form, a sentence each.
    """

    model: onnx.ModelProto
    folder: Path | None
    normalised: tuple[str, ...] = ()

    @property
    def has_external_data(self) -> bool:
        """Whether any weight lies in another file."""
        return any(is_external(tensor) for tensor in tensors(self.model))


def load(path: Path) -> Loaded:
    """Read a model file; external weights are checked to be there and left on disk.

    What runtimes take and the specification does not is normalised (`graph.normalise`).

    Args:
        path: The model file.

    Raises:
        ModelError: Not a file, not an ONNX model, truncated, or without a graph or opset.
        ExternalDataError: An external weight file is missing, too short, or outside the folder.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no regular file"
        raise ModelError(f"{path}: {kind if path.exists() else 'no such file'}")
    try:
        size = path.stat().st_size
        if size > _PROTOBUF_LIMIT:
            raise ModelError(f"{path}: above 2 GiB; save it with its weights as external data")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated") from error
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model, or truncated (no graph or no opset)")
    if not _is_text(model):
        raise ModelError(f"{path}: damaged: it holds a name that is not UTF-8 text")
    for tensor in tensors(model):
        if is_external(tensor):
            external_range(tensor, path.parent)
    normalised = normalise(model)
    for text in normalised:
        logger.info("%s: %s", path, text)
    return Loaded(model, path.parent, normalised)


def _is_text(message: Message) -> bool:
    """Tell whether every string is UTF-8; protobuf hands others out as bytes."""
    if isinstance(message, onnx.TensorProto):
        own: tuple[Any, ...] = (message.name, message.doc_string)
        parts: Iterable[Any] = (*message.external_data, *message.metadata_props)
        return all(isinstance(text, str) for text in own) and all(map(_is_text, parts))
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None and descriptor.type != descriptor.TYPE_STRING:
            continue
        for part in value if descriptor.is_repeated else (value,):
            if isinstance(part, Message):
                if not _is_text(part):
                    return False
            elif not isinstance(part, str):
                return False
    return True


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default domain, 0 if the model imports none."""
    return max((o.version for o in model.opset_import if o.domain in ONNX_DOMAINS), default=0)


def record(model: onnx.ModelProto, key: str, data: Mapping[str, Any]) -> None:
    """Write an entry of the model's metadata as JSON, in place of those under the same key.

    Args:
        model: The model; changed in place.
        key: The entry's key; a runtime refuses a model that has one twice.
        data: What to write.
    """
    held = model.metadata_props
    for at in reversed([at for at, entry in enumerate(held) if entry.key == key]):
        del held[at]
    held.add(key=key, value=json.dumps(data, separators=(",", ":")))
