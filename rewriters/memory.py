"""Predicted activation memory: live ranges over an execution order.

A tensor lives from the step that makes it to its last use; graph inputs live from the start, graph
outputs to the end. Views (Reshape, Squeeze, ...) own no bytes. Weights are not activations. The
peak is the largest sum of live bytes; it is a prediction from shapes, not a measurement: no
workspace, no fusion, no reuse strategy of a runtime is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["VIEWS", "Peak", "Step", "peak"]

# Operators whose output shares its first input's bytes on every runtime in view.
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True, slots=True)
class Step:
    """One node of an execution order: the tensors it reads and makes."""

    label: str
    op_type: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest sum of live bytes, the node where it occurs, and what could not be counted."""

    bytes: int
    at: str
    unknown: int


def peak(
    steps: Sequence[Step],
    sizes: Mapping[str, int | None],
    *,
    inputs: Iterable[str],
    outputs: Collection[str],
) -> Peak:
    """Return the peak of an execution order, in bytes; linear in the steps.

    Args:
        steps: The nodes in execution order.
        sizes: Bytes per activation. A tensor that is missing is a weight and costs nothing; None
            is an activation of unknown size, counted in `Peak.unknown`.
        inputs: Tensors alive from the start.
        outputs: Tensors alive to the end.
    """
    owner: dict[str, str] = {}
    last: dict[str, int] = {}

    def root(name: str) -> str:
        return owner.get(name, name)

    for position, step in enumerate(steps):
        if step.op_type in VIEWS and step.reads and step.reads[0] in sizes:
            owner[step.makes[0]] = root(step.reads[0])
        for name in (*step.reads, *step.makes):
            last[root(name)] = position
    for name in outputs:
        last[root(name)] = len(steps)

    ends: dict[int, list[str]] = {}
    for name, position in last.items():
        ends.setdefault(position, []).append(name)
    alive = 0
    unknown = 0
    seen: set[str] = set()

    def begin(name: str) -> int:
        nonlocal unknown
        name = root(name)
        if name in seen or name not in sizes:
            return 0
        seen.add(name)
        size = sizes[name]
        unknown += size is None
        return size or 0

    for name in inputs:
        alive += begin(name)
    best, at = alive, ""
    for position, step in enumerate(steps):
        for name in step.makes:
            alive += begin(name)
        if alive > best:
            best, at = alive, step.label
        for name in ends.get(position, ()):
            if name in seen:
                alive -= sizes[name] or 0
    return Peak(best, at, unknown)
