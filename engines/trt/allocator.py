"""An allocator that records what TensorRT asks the device for, in a build or in a run.

The bookkeeping (`Ledger`) knows no CUDA.

Source: the TensorRT Python API (IGpuAllocator, IGpuAsyncAllocator; `Builder.gpu_allocator` and
`Runtime.gpu_allocator` take one).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from patchconv_deploy.engines.errors import RunError
from patchconv_deploy.engines.gpu.cuda import Cuda

__all__ = ["ALIGNMENT", "Allocator", "Ledger", "aligned", "recording_allocator"]


logger = logging.getLogger(__name__)

# What cudaMalloc aligns to, and more than TensorRT asks for.
ALIGNMENT = 256


def aligned(size: int, alignment: int) -> int:
    """Return the smallest multiple of an alignment (a power of two, 0 for none) of that size.

    Raises:
        ValueError: The alignment is not a power of two.
    """
    if alignment & (alignment - 1) or alignment < 0:
        raise ValueError(f"alignment {alignment} is not a power of two")
    return size if alignment == 0 else -(-size // alignment) * alignment


@dataclass
class Ledger:
    """Bytes that are allocated now, and the most that ever were.

    Attributes:
        live: Address -> bytes.
        live_bytes: Sum over ``live``.
        peak_bytes: The most ``live_bytes`` was since the last `mark`.
        allocations: Number of allocations.
        refused: Bytes of requests that could not be met.
    """

    live: dict[int, int] = field(default_factory=dict)
    live_bytes: int = 0
    peak_bytes: int = 0
    allocations: int = 0
    refused: list[int] = field(default_factory=list)

    def add(self, address: int, size: int) -> None:
        """Note an allocation."""
        if address in self.live:
            raise ValueError(f"address {address:#x} is allocated already")
        self.live[address] = size
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.allocations += 1

    def remove(self, address: int) -> bool:
        """Note a release; False if nothing is allocated there."""
        size = self.live.pop(address, None)
        if size is None:
            return False
        self.live_bytes -= size
        return True

    def mark(self) -> int:
        """Begin a new peak at what is allocated now, and return that, in bytes."""
        self.peak_bytes = self.live_bytes
        return self.live_bytes


class Allocator:
    """What a recording allocator does, without TensorRT's base class.

    TensorRT calls ``allocate`` and ``deallocate``, or the ``_async`` pair, from a thread of its
    own, and takes no exception from them: a request that fails is answered with 0.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.ledger = Ledger()
        # Where an allocation begins that was aligned further than CUDA does.
        self._begins: dict[int, int] = {}

    def allocate(self, size: int, alignment: int, flags: int = 0) -> int:
        """Allocate; 0 for nothing, or where it cannot be."""
        del flags  # resizing is not offered, and TensorRT does without
        if size == 0:
            return 0
        # cudaMalloc aligns to `ALIGNMENT`; what is asked for beyond that is found inside.
        whole = size + (alignment if alignment > ALIGNMENT else 0)
        try:
            begin = self.cuda.malloc(whole)
        except RunError as error:
            logger.warning("%d bytes: %s", size, error)
            self.ledger.refused.append(size)
            return 0
        address = -(-begin // alignment) * alignment if alignment > ALIGNMENT else begin
        self._begins[address] = begin
        self.ledger.add(address, aligned(whole, ALIGNMENT))
        return address

    def deallocate(self, memory: int) -> bool:
        """Release; True also for 0, which is nothing."""
        if memory == 0:
            return True
        if not self.ledger.remove(memory):
            return False
        try:
            self.cuda.free(self._begins.pop(memory))
        except RunError as error:
            logger.warning("%s", error)
            return False
        return True

    def reallocate(self, address: int, alignment: int, new_size: int) -> int:
        """Decline: TensorRT then allocates anew."""
        del address, alignment, new_size
        return 0

    # cudaFree waits for the device, so the plain pair is right on any stream. Bindings differ in
    # the order of flags and stream, and neither is needed.

    def allocate_async(self, size: int, alignment: int, *flags_and_stream: int) -> int:
        """Allocate."""
        del flags_and_stream
        return self.allocate(size, alignment)

    def deallocate_async(self, memory: int, stream: int = 0) -> bool:
        """Release."""
        del stream
        return self.deallocate(memory)

    def reallocate_async(self, address: int, alignment: int, new_size: int) -> int:
        """Decline."""
        return self.reallocate(address, alignment, new_size)


def recording_allocator(module: Any, cuda: Cuda) -> Any:
    """Return an allocator for a Runtime or a Builder that records: an `Allocator` of the module.

    Its base is the module's `IGpuAsyncAllocator`, or `IGpuAllocator` where there is no other.
    """
    base = getattr(module, "IGpuAsyncAllocator", None) or module.IGpuAllocator

    # Allocator comes first, so that its methods are the ones the binding finds.
    class Recording(Allocator, base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            Allocator.__init__(self, cuda)

    return Recording()
