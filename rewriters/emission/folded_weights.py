"""The weights and the bias that clones share after folding, worked out as ONNX Runtime does it.

    a constant               W * s                 a constant of the file
    one in another file      W * s                 made when the model is saved
    worked out, and large    Mul(W, s) -> W'       one node for all clones

Each operation's result is rounded to the element type, so that all bits are the runtime's. A weight
that the graph works out (`emission.worked_out`) is not loaded: a Mul by constants stands before the
clones, and the runtime makes one tensor of it when it loads the model, with the same products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.emission.worked_out import WorkedOut, values_of
from patchconv_deploy.rewriters.graph.external_data import is_external, pending

__all__ = ["Affine", "Recipe", "Shared", "evaluate"]


Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Affine:
    """A node that scales or shifts the channels of a convolution's result.

    Attributes:
        op_type: "BatchNormalization", "Mul" or "Add".
        constants: Names of the tensors it does so by.
        epsilon: What a BatchNormalization adds to the variance.
    """

    op_type: str
    constants: tuple[str, ...]
    epsilon: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Weights that clones share after folding; equal for all clones of one convolution.

    Attributes:
        op_type: "Conv" or "ConvTranspose".
        group: Its groups.
        weight: Name of its weights.
        dims: Their shape.
        bias: Name of its bias, "" where it has none.
        affine: What is folded, in order.
    """

    op_type: str
    group: int
    weight: str
    dims: tuple[int, ...]
    bias: str
    affine: tuple[Affine, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """What clones read after folding.

    Attributes:
        inputs: Names of their weights and, if there is one now, their bias.
        tensors: New constants.
        nodes: New nodes, which go behind the one that makes the old weights.
    """

    inputs: tuple[str, ...]
    tensors: tuple[onnx.TensorProto, ...]
    nodes: tuple[onnx.NodeProto, ...]


def evaluate(
    recipe: Recipe, constants: WorkedOut, folder: Path | None, free: Callable[[str], str]
) -> Shared:
    """Return weights and bias.

    Args:
        recipe: What is folded.
        constants: The model's.
        folder: The folder that its external weights lie in.
        free: Takes a name, or one like it that is not taken yet.

    Raises:
        ExternalDataError: What lies in another file is not there.
    """
    bias = values_of(constants[recipe.bias], folder) if recipe.bias else None
    factors = []
    with np.errstate(all="ignore"):  # as in the runtime, where infinity and NaN just come out
        for entry in recipe.affine:
            values = [values_of(constants[name], folder) for name in entry.constants]
            factor, bias = _step(entry, values, bias)
            if factor is not None:
                factors.append(_along_channels(recipe, factor))
        tensors, nodes, weight = _scaled(recipe, constants.get(recipe.weight), factors, free)
    inputs = [weight]
    if bias is not None:
        inputs.append(free(f"{recipe.bias or recipe.weight}/folded"))
        tensors.append(onnx.numpy_helper.from_array(bias, inputs[-1]))
    return Shared(tuple(inputs), tuple(tensors), tuple(nodes))


def _along_channels(recipe: Recipe, factor: Array) -> Array:
    """Return a factor of the result's channels in a shape that the weights are multiplied by.

    Weights of a Conv are (M, C / group, ...), of a ConvTranspose (C, M / group, ...): there a row
    holds the channels of the group that it belongs to.
    """
    if not factor.ndim:
        return factor
    ones = (1,) * (len(recipe.dims) - 2)
    if recipe.op_type == "Conv":
        return factor.reshape(-1, 1, *ones)
    rows = factor.reshape(recipe.group, recipe.dims[1])
    if recipe.group > 1:
        rows = rows.repeat(recipe.dims[0] // recipe.group, axis=0)
    return rows.reshape(*rows.shape, *ones)


def _scaled(
    recipe: Recipe,
    tensor: onnx.TensorProto | None,
    factors: Sequence[Array],
    free: Callable[[str], str],
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto], str]:
    """Return weights times factors: constants, nodes and the name they go by."""
    if not factors:
        return [], [], recipe.weight
    if tensor is None:
        return _in_nodes(recipe, factors, free)
    if is_external(tensor):
        made = pending(tensor, factors)
    else:
        weight = values_of(tensor, None)
        for factor in factors:
            weight = weight * factor
        made = onnx.numpy_helper.from_array(weight)
    made.name = free(f"{recipe.weight}/folded")
    return [made], [], made.name


def _in_nodes(
    recipe: Recipe, factors: Sequence[Array], free: Callable[[str], str]
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto], str]:
    tensors, nodes, name = [], [], recipe.weight
    for factor in factors:
        scale, made = free(f"{recipe.weight}/scale"), free(f"{recipe.weight}/folded")
        tensors.append(onnx.numpy_helper.from_array(factor, scale))
        nodes.append(onnx.helper.make_node("Mul", [name, scale], [made], made))
        name = made
    return tensors, nodes, name


def _step(
    entry: Affine, values: Sequence[Array], bias: Array | None
) -> tuple[Array | None, Array | None]:
    """Return the factor of the weights, and the bias."""
    if entry.op_type == "BatchNormalization":
        gamma, beta, mean, variance = values
        kind = gamma.dtype
        # Epsilon is float32 and is not rounded to a half before it is added.
        wide = np.promote_types(kind, np.float32)
        raised = (variance.astype(wide) + np.float32(entry.epsilon)).astype(kind)
        scale = gamma / np.sqrt(raised)
        if bias is None:
            return scale, beta - mean * scale
        return scale, (bias - mean) * scale + beta
    number = values[0].reshape(-1) if values[0].ndim else values[0]
    if entry.op_type == "Mul":
        return number, None if bias is None else bias * number
    return None, number if bias is None else bias + number
