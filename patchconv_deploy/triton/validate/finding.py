"""What is wrong with a model of a repository, in words to act on."""

from __future__ import annotations

from dataclasses import dataclass

from patchconv_deploy.console import printable
from patchconv_deploy.triton.signature import Tensor

__all__ = ["FILES", "PLATFORMS", "RESERVED", "Finding", "fits", "text"]


PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
    "pytorch": "pytorch_libtorch",
}

FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}

# Folders of a model that are no versions.
RESERVED = frozenset({"configs", "warmup", "initial_state"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a server refuses.

    Attributes:
        model: Name of the model's folder.
        file: The file that is wrong, relative to the repository.
        reason: What is wrong, and what to do.
    """

    model: str
    file: str
    reason: str

    def __str__(self) -> str:
        """Return it as one line."""
        return printable(f"{self.file}: {self.reason}")


def text(tensor: Tensor) -> str:
    """Return a tensor's type and dimensions as they are said."""
    return str(list(tensor.dims))


def fits(dims: list[int], pattern: list[int]) -> bool:
    """Return whether dimensions fit a pattern in which -1 is any size."""
    return len(dims) == len(pattern) and all(
        want in (-1, have) for have, want in zip(dims, pattern, strict=True)
    )
