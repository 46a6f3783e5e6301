"""Memory over the run: what is predicted to be held while each node runs."""

from __future__ import annotations

from typing import Any

from patchconv_deploy.report.page.naming import Regions
from patchconv_deploy.rewriters.memory.peak import Peak

__all__ = ["MOST_STEPS", "timeline"]

# More steps than a screen has columns; of longer runs the highest of each stretch is kept.
MOST_STEPS = 2400


def timeline(peak: Peak, regions: Regions) -> dict[str, Any] | None:
    """Return a run as data: bytes, a label and a region for each step, in the order they run.

    Args:
        peak: What is predicted of it.
        regions: Tells which region a step is of.

    Returns:
        ``bytes``, ``labels``, ``regions`` (-1 for none), ``steps`` (of the run; those of the lists
        may be fewer), and ``peak``, the position of the highest; None where sizes are unknown.
    """
    held = peak.live_bytes
    if peak.unknown or not held:
        return None
    stretch = -(-len(held) // MOST_STEPS)
    # What is packed while loading lies with the activations throughout.
    packed = peak.weights.beside
    labels: list[str] = []
    sizes: list[int] = []
    places: list[int] = []
    for begin in range(0, len(held), stretch):
        label, size = max(held[begin : begin + stretch], key=lambda step: step[1])
        region, name = regions.of(label)
        labels.append(name)
        sizes.append(size + packed)
        places.append(-1 if region is None else region)
    return {
        "bytes": sizes,
        "labels": labels,
        "regions": places,
        "steps": len(held),
        "peak": max(range(len(sizes)), key=sizes.__getitem__),
    }
