"""Inputs to verify a model on: those that are given, or made at sizes to try."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.constant_folding import infer_by_value
from patchconv_deploy.rewriters.graph.fixed_shapes import (
    fix_shapes,
    free_inputs,
    has_channels_last,
    nominal_shapes,
)
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.look import analyse_memory
from patchconv_deploy.verify.inputs import load_inputs, make_inputs

__all__ = ["Case", "Ranges", "case_at", "cases", "shapes_at", "skeleton_at"]


logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

# Per input the least and the largest of each dimension.
Ranges: TypeAlias = Mapping[str, tuple[tuple[int, int], ...]]

# Rows and columns tried for free spatial dimensions, in this order: small, then what networks with
# fixed heads or many strides ask for.
_SPATIAL = (64, 96, 128, 224, 256, 48, 32, 512)


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs to run on.

    Attributes:
        make: Makes them, once it is known that the models fit into memory.
        peak: Predicted peak activation of the original at their sizes, bytes; None if unknown.
    """

    make: Callable[[], Mapping[str, Array]]
    peak: int | None


def cases(
    loaded: Loaded, source: Loaded, seed: int, inputs: Path | None, ranges: Ranges
) -> Iterator[Case]:
    """Yield sets of inputs to try until the original runs.

    Args:
        loaded: The rewritten model.
        source: The original.
        seed: Seed of inputs that are made.
        inputs: An .npz file of inputs to use instead.
        ranges: Sizes inside are used.

    Raises:
        UsageError: The given inputs do not fit the model.
    """
    if inputs is not None:
        arrays = load_inputs(inputs, loaded.model)
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        yield Case(lambda: arrays, _predict(source, shapes))
        return
    tried: list[Mapping[str, tuple[int, ...]]] = []
    for sizes in _sizes(loaded.model, ranges):
        if sizes in tried:
            continue
        tried.append(sizes)
        yield case_at(loaded, source, sizes, seed)


def case_at(
    loaded: Loaded, source: Loaded, sizes: Mapping[str, tuple[int, ...]], seed: int
) -> Case:
    """Return seeded inputs of some sizes.

    Args:
        loaded: The rewritten model.
        source: The original.
        sizes: Sizes of the inputs with free dimensions.
        seed: Seed of the inputs.
    """
    make = partial(make_inputs, loaded.model, shapes_at(loaded, sizes), sizes, seed)
    return Case(make, _predict(source, sizes))


def shapes_at(loaded: Loaded, sizes: Mapping[str, Sequence[int]]) -> Shapes:
    """Return what is known of a model's tensors at the sizes of its inputs.

    Args:
        loaded: The model; not changed.
        sizes: Sizes of its inputs.

    Raises:
        RewriterError: They do not fit the model, or nothing can be known at them.
    """
    return infer_by_value(skeleton_at(loaded, sizes))


def skeleton_at(loaded: Loaded, sizes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Return a model without its weights, its inputs of given sizes.

    Args:
        loaded: The model; not changed.
        sizes: Sizes of its inputs.

    Raises:
        RewriterError: They do not fit the model.
    """
    slim = skeleton(loaded)
    fix_shapes(slim, sizes)
    return slim


def _sizes(model: onnx.ModelProto, ranges: Ranges) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield sizes of the inputs with free dimensions, a bounded number of them.

    First as an image with its channels before its rows, and with its channels last; the other way
    round where the last dimension is known and the second is not.
    """
    free = free_inputs(model)

    def inside(name: str, spatial: int) -> tuple[int, ...] | None:
        given = ranges.get(name)
        if given is None:
            return None
        return tuple(min(max(spatial, low), high) for low, high in given)

    def first() -> Iterator[dict[str, tuple[int, ...]]]:
        for spatial in _SPATIAL:
            limits = {n: sizes for n in free if (sizes := inside(n, spatial)) is not None}
            yield nominal_shapes(model, spatial, limits)

    def last() -> Iterator[dict[str, tuple[int, ...]]]:
        for spatial in _SPATIAL:
            limits = {
                name: inside(name, spatial)
                or tuple(size or (1 if axis == 0 else spatial) for axis, size in enumerate(shape))
                for name, shape in free.items()
            }
            yield nominal_shapes(model, spatial, limits)

    flat = any(map(has_channels_last, free.values()))
    for each in (last, first) if flat else (first, last):
        yield from each()


def _predict(source: Loaded, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    try:
        return analyse_memory(source, shapes)
    except RewriterError as error:
        logger.debug("no prediction of the original's peak: %s", error)
        return None
