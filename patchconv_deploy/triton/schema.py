"""Triton's own description of a model configuration, from the tritonclient package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from patchconv_deploy.errors import UsageError

__all__ = ["parse_config", "read_config", "schema", "to_text"]


def schema() -> Any:
    """Return the module of Triton's protobuf classes.

    Raises:
        UsageError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise UsageError(
            "tritonclient is not installed; pip install 'patchconv-deploy[triton]'"
        ) from error
    return model_config_pb2


def to_text(config: Any) -> str:
    """Return a ModelConfig as the text of a config.pbtxt."""
    return text_format.MessageToString(config, as_utf8=True)


def parse_config(text: str) -> Any:
    """Return the ModelConfig a text describes.

    Raises:
        ValueError: The text is none; the message has the place.
    """
    config = schema().ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return config


def read_config(path: Path) -> Any:
    """Return the ModelConfig in a file.

    Raises:
        ValueError: It cannot be read, or is none.
    """
    try:
        # The server takes other encodings too, in comments at least.
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    return parse_config(text)
