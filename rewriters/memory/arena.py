"""An allocator that takes regions from the system and gives chunks of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TypeAlias

__all__ = ["Arena", "Chunk"]


# A chunk that is taken: where it begins, and its bytes.
Chunk: TypeAlias = tuple[int, int]


class Arena:
    """ONNX Runtime's arena: best fit in regions that double; a chunk is split where half is left.

    What is in use are whole chunks, so a chunk of up to twice what was asked for counts whole.
    """

    _GRANULE = 256
    _FIRST_REGION = 1 << 20
    _MOST_WASTE = 128 << 20

    def __init__(self) -> None:
        self.most = 0
        self._in_use = 0
        self._next_region = self._FIRST_REGION
        self._bottom = 0
        # Parts of chunks that were asked for: where they begin, and the last of their ends.
        self._asked: dict[int, int] = {}
        # Free chunks by size then address, and by address; regions never touch.
        self._free: list[tuple[int, ...]] = []
        self._free_at: dict[int, int] = {}
        self._free_end: dict[int, int] = {}

    def touched(self) -> int:
        """Return the bytes that were ever part of what was asked for."""
        total, reached = 0, min(self._asked, default=0)
        for begin, end in sorted(self._asked.items()):
            if end > reached:
                total += end - max(begin, reached)
                reached = end
        return total

    def start(self) -> int:
        """Begin to count the most bytes in use anew; return what they were so far."""
        most, self.most = self.most, self._in_use
        return most

    def _insert(self, begin: int, size: int) -> None:
        insort(self._free, (size, begin))
        self._free_at[begin] = size
        self._free_end[begin + size] = begin

    def _remove(self, begin: int) -> int:
        size = self._free_at.pop(begin)
        del self._free_end[begin + size]
        del self._free[bisect_left(self._free, (size, begin))]
        return size

    def take(self, size: int) -> Chunk:
        """Allocate."""
        size = -(-size // self._GRANULE) * self._GRANULE
        found = bisect_left(self._free, (size,))
        if found == len(self._free):
            grown = False
            while self._next_region < size:
                self._next_region *= 2
                grown = True
            # The system maps a new region below the last one; the lowest of equal chunks is taken.
            self._bottom -= self._next_region + 1
            self._insert(self._bottom, self._next_region)
            if not grown:
                self._next_region *= 2
            found = bisect_left(self._free, (size,))
        chunk, begin = self._free.pop(found)
        del self._free_at[begin]
        if chunk >= 2 * size or chunk - size >= self._MOST_WASTE:
            # What is left ends where the chunk ended.
            left = chunk - size
            insort(self._free, (left, begin + size))
            self._free_at[begin + size] = left
            self._free_end[begin + chunk] = begin + size
            chunk = size
        else:
            del self._free_end[begin + chunk]
        end = begin + size
        if self._asked.get(begin, end) <= end:
            self._asked[begin] = end
        self._in_use += chunk
        if self._in_use > self.most:
            self.most = self._in_use
        return begin, chunk

    def give(self, chunk: Chunk) -> None:
        """Free; neighbours that are free too become one chunk."""
        begin, size = chunk
        self._in_use -= size
        if begin + size in self._free_at:
            size += self._remove(begin + size)
        before = self._free_end.get(begin)
        if before is not None:
            size += self._remove(before)
            begin = before
        self._insert(begin, size)
