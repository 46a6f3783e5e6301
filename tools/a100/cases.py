"""The matrix: cases, their forms, and the cells that are measured."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "CASES",
    "CHAIN",
    "FITTING",
    "FORMS",
    "PUBLISHED",
    "PUBLISHED_BY",
    "REGIONAL",
    "VAE_BASE",
    "Case",
    "Cell",
    "matrix",
    "stand_in",
]

FORMS = ("batch", "sequential")
REGIONAL = ("fused", "shrinking", "loop")
# How much smaller a stand-in is, per side and in channels.
SHRINK = 8
VAE_BASE = 128
# Layers of the chain.
CHAIN = 8
PUBLISHED_BY = "published (MIT, PyTorch, A100)"


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the matrix.

    Attributes:
        family: "conv3", "conv5", "conv7", "vae" or "chain".
        side: Height and width of the image.
        channels: Channels of the Conv; of the decoder's last level; between the chain's layers.
        dtype: "float16" or "float32".
    """

    family: str
    side: int
    channels: int
    dtype: str = "float16"

    @property
    def name(self) -> str:
        """Name for people and for --only."""
        if self.family == "vae":
            narrow = "" if self.channels == VAE_BASE else f"-base{self.channels}"
            return f"vae-{self.side}{narrow}"
        return f"{self.family}-{self.side}x{self.side}x{self.channels}"

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms it is cut in."""
        # Of one Conv a region lowers nothing: its peak is what goes in and comes out.
        return FORMS if self.family.startswith("conv") else (*FORMS, *REGIONAL)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the one input."""
        if self.family == "vae":
            return (1, 4, self.side // 8, self.side // 8)
        return (1, 3 if self.family == "chain" else self.channels, self.side, self.side)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the one output."""
        return (1, 3 if self.family in ("vae", "chain") else self.channels, self.side, self.side)

    @property
    def least_bytes(self) -> int:
        """Bytes on the device without which no form runs: the input and the output."""
        size = math.prod(self.input_shape) + math.prod(self.output_shape)
        return size * np.dtype(self.dtype).itemsize

    @property
    def elements(self) -> int:
        """Elements of the largest tensor that a Conv reads or writes."""
        # The decoder's last doubling is followed by a Conv over twice the last level's channels.
        return self.side**2 * self.channels * (2 if self.family == "vae" else 1)

    @property
    def activation_bytes(self) -> int:
        """Bytes of that tensor."""
        return self.elements * np.dtype(self.dtype).itemsize


CASES: tuple[Case, ...] = (
    *(Case(f"conv{kernel}", 2048, 512) for kernel in (3, 5, 7)),
    *(Case(f"conv{kernel}", 4096, 256) for kernel in (3, 5, 7)),
    *(Case("vae", side, VAE_BASE) for side in (1024, 2048, 4096)),
    *(Case("chain", side, 64) for side in (2048, 4096)),
)

# Of the published ones, single Convs have 2^31 elements and more, where engines run no original.
# These fit uncut: below 2^31.
FITTING: tuple[Case, ...] = tuple(
    Case(f"conv{kernel}", side, channels)
    for side, channels in ((2048, 256), (1024, 512), (4096, 64))
    for kernel in (3, 5, 7)
)

# The published figure: memory as printed there (GB), as it is and cut. 24 to 60 % more time.
PUBLISHED: Mapping[str, tuple[str, str]] = {
    "conv3-2048x2048x512": ("44.0 GB", "18.0 GB"),
    "conv5-2048x2048x512": ("out of 80 GB", "18 GB"),
    "conv7-2048x2048x512": ("out of 80 GB", "18 GB"),
    "conv3-4096x4096x256": ("out of 80 GB", "32 GB"),
    "conv5-4096x4096x256": ("out of 80 GB", "32 GB"),
    "conv7-4096x4096x256": ("out of 80 GB", "32 GB"),
}


def stand_in(case: Case) -> Case:
    """Return the smaller model that stands for a case on the CPU; float32, since few CPUs do 16."""
    return Case(case.family, case.side // SHRINK, case.channels // SHRINK, "float32")


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the matrix: a case, a form, a number of patches, an engine.

    Attributes:
        case: The case.
        form: "original", or one of the case's.
        splits: Number of patches; 1 for the original.
        engine: Name of the engine.
    """

    case: Case
    form: str
    splits: int
    engine: str

    @property
    def name(self) -> str:
        """Name for people and for --only."""
        how = self.form if self.form == "original" else f"{self.form}-x{self.splits}"
        return f"{self.engine}/{self.case.name}/{how}"


def matrix(engines: Sequence[str], splits: Sequence[int], only: Sequence[str]) -> list[Cell]:
    """Return the cells, in order: by case, the largest last, then form, then engine.

    Args:
        engines: Names of the engines.
        splits: Numbers of patches.
        only: Patterns (fnmatch) of names of cells; all cells if empty.
    """
    cells = [
        Cell(case, form, count, engine)
        for case in sorted((*FITTING, *CASES), key=lambda case: case.elements)
        for form, counts in (("original", (1,)), *((form, splits) for form in case.forms))
        for count in counts
        for engine in engines
    ]
    return [
        cell
        for cell in cells
        if not only or any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in only)
    ]
