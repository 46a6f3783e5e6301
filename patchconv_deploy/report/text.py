"""Sizes and shapes as they are printed."""

from __future__ import annotations

from patchconv_deploy.rewriters.operators.record import Shape

__all__ = ["mebibytes", "shape_text", "with_unit"]


def mebibytes(size: float | None) -> str:
    """Return a size in MiB for people; of less than a tenth the first figures, never 0.0."""
    if size is None:
        return "unknown"
    found = size / 2**20
    if found >= 0.1 or not size:
        return f"{found:,.1f}"
    return f"{found:.3f}" if found >= 0.001 else "<0.001"


def shape_text(shape: Shape | None) -> str:
    """Return a shape for people: 1x3x?x?."""
    return "unknown" if shape is None else "x".join("?" if d is None else str(d) for d in shape)


def with_unit(size: int | None) -> str:
    """Return a size in MiB, or that it is unknown."""
    return "unknown" if size is None else f"{mebibytes(size)} MiB"
