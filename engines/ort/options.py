"""What a session of ONNX Runtime is opened with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["GPU_FIELDS", "PROVIDERS", "SESSION_OPTIONS", "OrtOptions"]


PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

# Attribute of onnxruntime.SessionOptions -> field of OrtOptions.
SESSION_OPTIONS: Mapping[str, str] = {
    "enable_cpu_mem_arena": "arena",
    "enable_mem_pattern": "memory_pattern",
    "enable_mem_reuse": "memory_reuse",
}

# Fields of OrtOptions that a provider of a GPU alone reads.
GPU_FIELDS = (
    "arena_extend_strategy",
    "cudnn_conv_use_max_workspace",
    "cudnn_conv_algo_search",
    "prefer_nhwc",
)


@dataclass(frozen=True, slots=True)
class OrtOptions:
    """Session options that decide memory and time.

    Attributes:
        provider: "cpu", "cuda" or "tensorrt".
        threads: Threads within an operator; 0 leaves it to the runtime.
        arena: Keep freed memory in an arena that grows and is never given back.
        arena_extend_strategy: How the CUDA arena grows: "kNextPowerOfTwo", by doubling, so that a
            model that needs less may reserve more; or "kSameAsRequested".
        memory_pattern: Reserve one block for all activations from the second run on.
        memory_reuse: Plan static reuse of buffers.
        cudnn_conv_use_max_workspace: Let cuDNN take as much workspace as it wants. Versions that
            plan convolutions by cuDNN 9's graphs need not heed this one and the next.
        cudnn_conv_algo_search: "EXHAUSTIVE", "HEURISTIC" or "DEFAULT".
        prefer_nhwc: Run convolutions on a GPU with the channels last: the layout of tensor cores,
            which cutting must not be credited for.
    """

    provider: str = "cpu"
    threads: int = 0
    arena: bool = True
    arena_extend_strategy: str = "kNextPowerOfTwo"
    memory_pattern: bool = True
    memory_reuse: bool = True
    cudnn_conv_use_max_workspace: bool = True
    cudnn_conv_algo_search: str = "EXHAUSTIVE"
    prefer_nhwc: bool = False

    def session_options(self) -> dict[str, bool]:
        """Return the memory options under the names of onnxruntime.SessionOptions."""
        return {name: getattr(self, field) for name, field in SESSION_OPTIONS.items()}

    def providers(self, stream: int | None = None) -> list[Any]:
        """Return the providers to ask for, with their options.

        Args:
            stream: The CUDA stream that a provider of a GPU is to run on; its own if None.
        """
        on = {} if stream is None else {"user_compute_stream": str(stream)}
        cuda = {
            **on,
            "arena_extend_strategy": self.arena_extend_strategy,
            "cudnn_conv_use_max_workspace": "1" if self.cudnn_conv_use_max_workspace else "0",
            "cudnn_conv_algo_search": self.cudnn_conv_algo_search,
            "prefer_nhwc": "1" if self.prefer_nhwc else "0",
        }
        wanted: dict[str, list[Any]] = {
            "cpu": [PROVIDERS["cpu"]],
            "cuda": [(PROVIDERS["cuda"], cuda)],
            "tensorrt": [(PROVIDERS["tensorrt"], on), (PROVIDERS["cuda"], cuda)],
        }
        return wanted[self.provider]
