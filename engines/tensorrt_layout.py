"""How TensorRT lays a tensor out on the device, and numpy's arrays in that layout and back.

    LINEAR          N x C x H x W, as numpy has it
    HWC             N x H x W x C
    HWC8, HWC16     N x H x W x C', C' the channels rounded up to 8, 16; what is added is zeros

Shapes that TensorRT speaks of stay N x C x H x W; the padding is in the memory alone, and counts.

Source: the TensorRT Python API (TensorFormat, ITensor.allowed_formats).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FORMATS", "LAYOUTS", "Layout"]

# trtexec's word -> the module's enumerator.
FORMATS: Mapping[str, str] = {"chw": "LINEAR", "hwc": "HWC", "hwc8": "HWC8", "hwc16": "HWC16"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout.

    Attributes:
        multiple: Channels come last and are rounded up to a multiple of it; 0: they stay where
            they are, second.
    """

    multiple: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return what a shape N x C x H x W, or of any rank above 2, is on the device."""
        if not self.multiple:
            return shape
        batch, channels, *sides = shape
        return (batch, *sides, -(-channels // self.multiple) * self.multiple)

    def to_device(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return an array as it is on the device, contiguous."""
        if not self.multiple:
            # Not ascontiguousarray, which makes a vector of a scalar.
            return np.asarray(array, order="C")
        made = np.zeros(self.shape(array.shape), array.dtype)
        made[..., : array.shape[1]] = np.moveaxis(array, 1, -1)
        return made

    def from_device(
        self, array: np.ndarray[Any, Any], shape: tuple[int, ...]
    ) -> np.ndarray[Any, Any]:
        """Return what lies on the device as an array of a shape; no copy."""
        return np.moveaxis(array[..., : shape[1]], -1, 1) if self.multiple else array


# The module's enumerator -> layout.
LAYOUTS: Mapping[str, Layout] = {
    "LINEAR": Layout(0),
    "HWC": Layout(1),
    "HWC8": Layout(8),
    "HWC16": Layout(16),
}
