"""Names of new nodes and tensors, none of which is taken."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Like", "NameScheme", "of_number"]


# Shape and element type of a tensor.
Like = tuple[tuple[int | None, ...], int]


def of_number(what: str, at: int) -> str:
    """Return the name of something of a region's input or output: the first one needs no number."""
    return what if at == 0 else f"{what}_of_{at}"


@dataclass(frozen=True, slots=True)
class NameScheme:
    """Names of everything new: below ``<base>/<tag>/``, which no name of the model contains."""

    tag: str

    @classmethod
    def avoiding(cls, names: Collection[str]) -> NameScheme:
        """Return the scheme with the first free tag: patchconv, patchconv_2, ..."""
        number = 1
        while True:
            tag = "patchconv" if number == 1 else f"patchconv_{number}"
            inside, before = f"/{tag}/", f"{tag}/"
            if not any(inside in name or name.startswith(before) for name in names):
                return cls(tag)
            number += 1

    def shared(self, array: np.ndarray[Any, Any]) -> str:
        """Return the name of a shared integer constant: equal values, equal name."""
        values = "_".join(str(value) for value in array.reshape(-1).tolist())
        return f"{self.tag}/{array.dtype}/{'scalar/' if array.ndim == 0 else ''}{values}"
