"""How far outputs may be apart, by the coarsest type between the cuts and them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "ABSOLUTE",
    "EPSILON",
    "MOST_FREEDOM",
    "TOLERANCES",
    "USUAL",
    "Way",
    "coarsest",
    "spread_of",
]


Array = np.ndarray[Any, Any]

# Largest error relative to the output's spread. float32 keeps 24 bits and networks add
# up thousands of products in another order, layer after layer; the others scale with their bits.
# "int8": values quantised to 8 bits, of which a few may be a few quanta off; "int4": to fewer.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-10,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 5e-2,
    "int8": 5e-2,
    "int4": 2e-1,
}

# From fine to coarse.
_COARSENESS = tuple(TOLERANCES)

# A few units in the last place of 1.0.
ABSOLUTE: Mapping[str, float] = {
    "float64": 1e-15,
    "float32": 5e-7,
    "float16": 2e-3,
    "bfloat16": 2e-2,
}

# Mean error of a row, relative to the spread, that is no sign of anything: sums of many products in
# another order; a quarter of the last place of 16 bits; half a quantum.
USUAL: Mapping[str, float] = {
    "float64": 32 * 2.0**-52,
    "float32": 32 * 2.0**-23,
    "float16": 2.0**-12,
    "bfloat16": 2.0**-9,
    "int8": 2.0**-8,
    "int4": 2.0**-4,
}

# The original's freedom raises no tolerance above this share of the spread.
MOST_FREEDOM = 0.1

EPSILON: Mapping[str, float] = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}


def coarsest(*types: str) -> str:
    """Return the coarsest of some types; what is no key of `TOLERANCES` does not count."""
    known = [name for name in types if name in TOLERANCES]
    return max(known, key=_COARSENESS.index, default="")


@dataclass(frozen=True, slots=True)
class Way:
    """What lies between the cuts and an output.

    Attributes:
        coarsest: The coarsest type, a key of `TOLERANCES`; empty if there is none.
        stepped: Something on it is no continuous function: a rounding, a comparison, an ArgMax.
        kind: Of an integer output: "levels", "labels" or "others".
        scores: Of labels: the tensor whose largest element they name.
        axis: Of labels: the axis of it.
        smallest: Of labels: they name the smallest element.
    """

    coarsest: str = ""
    stepped: bool = False
    kind: str = "others"
    scores: str = ""
    axis: int = 0
    smallest: bool = False


def spread_of(values: Array) -> float:
    """Return the 99.9 % quantile of the distance from the median; the largest of few values."""
    if not values.size:
        return 0.0
    distance = np.abs(values - np.median(values))
    return float(np.quantile(distance, 0.999) if values.size >= 1000 else np.max(distance))
