"""Sampled windows of a model's first output, written by the process that ran it.

Outputs of measured models are gigabytes: what is compared are windows of them, and those alone
leave the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from patchconv_deploy.engines.errors import RunError

__all__ = ["Window", "as_json", "name_of", "write_windows"]

# (begin, end) in every dimension.
Window: TypeAlias = tuple[tuple[int, int], ...]


def name_of(number: int) -> str:
    """Return the name of a window's array in the file."""
    return f"window{number}"


def as_json(windows: Sequence[Window]) -> list[list[list[int]]]:
    """Return windows as JSON data."""
    return [[list(pair) for pair in window] for window in windows]


def write_windows(
    path: Path, output: np.ndarray[Any, Any], windows: Sequence[Sequence[Sequence[int]]]
) -> None:
    """Write windows of an output to an .npz file, `name_of` each.

    Raises:
        RunError: A window is not within the output.
    """
    for window in windows:
        if len(window) != output.ndim or any(
            not 0 <= begin < end <= size
            for (begin, end), size in zip(window, output.shape, strict=True)
        ):
            raise RunError(f"no window {window} in an output of shape {output.shape}")
    cut = {
        name_of(number): output[tuple(slice(begin, end) for begin, end in window)]
        for number, window in enumerate(windows)
    }
    with path.open("wb") as stream:
        np.savez(stream, **cut)  # type: ignore[arg-type]
