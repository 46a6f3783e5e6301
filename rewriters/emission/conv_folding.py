"""Fold once what ONNX Runtime would fold into every clone of a convolution.

    patches    Conv(x_k, W, b) -> BatchNormalization(gamma, beta, mean, var) -> y_k    k = 0, 1, ...
    folded     Conv(x_k, W', b') -> y_k

ONNX Runtime changes weights in place of scaling a result. It does so for each Conv by itself, so
that clones of one Conv, which share W, would each get a W' of their own, and reorder it once more.
Folded beforehand they share W'. Everything is worked out as ONNX Runtime does it, operation by
operation and each result rounded to the element type, so that W' and b' are the same to the bit:

1. ``BatchNormalization``: s = gamma / sqrt(var + epsilon), W' = W * s,
   b' = (b - mean) * s + beta, or beta - mean * s where there is no b.
2. ``Mul`` by k: W' = W * k, b' = b * k.
3. ``Add`` of k: b' = b + k, or k where there is no b; W stays.
4. Several in a row: one after the other.

s and k are one number per channel of the result, k of a Mul may also be a single one. So much is
folded, and no more:

- behind a Conv all of these; behind a ConvTranspose of one group ``BatchNormalization`` alone;
- k is the second operand, has no dimensions (Mul), or has the rank of the result or one less, with
  the channels as the one dimension that is not 1;
- everything but x is constant: an initializer that is no input of the model, or a Constant node, by
  way of Identity nodes. Weights behind a DequantizeLinear are none;
- the result in between has that one reader and is no output of the graph;
- BatchNormalization has one output and does not train;
- all are float16, float32 or float64, and of the same type.

Weights in another file stay there, and what is made of them goes to the new model's own.

Only clones are folded, and only where at least two would be: a single Conv is left to the runtime,
and what is not cut stays as it is. Names of the tensors that others read stay.

Source: ONNX Runtime, ``core/optimizer/conv_bn_fusion.cc``, ``conv_mul_fusion.cc``,
``conv_add_fusion.cc`` and ``initializer.cc``; version 1.32's results are compared in the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.emission.constants import constants_of, replace_nodes
from patchconv_deploy.rewriters.graph.external_data import external_range, is_external, pending
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.use_def import Index, index
from patchconv_deploy.rewriters.operators.record import CONVOLUTIONS, FOLDED, is_channelwise

__all__ = ["Folded", "fold_clones"]


Array = np.ndarray[Any, Any]

_KINDS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})

_DEFAULT = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Folded:
    """What was folded, counted as it stood before it was cloned.

    Attributes:
        convolutions: Convolutions whose clones share new weights now.
        nodes: Nodes behind them that are gone.
    """

    convolutions: int = 0
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class _Affine:
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
class _Recipe:
    """Weights that clones share after folding; equal for all clones of one convolution.

    Attributes:
        op_type: "Conv" or "ConvTranspose".
        weight: Name of its weights.
        bias: Name of its bias, "" where it has none.
        affine: What is folded, in order.
    """

    op_type: str
    weight: str
    bias: str
    affine: tuple[_Affine, ...]


@dataclass(frozen=True, slots=True)
class _Clone:
    """A convolution and the nodes behind it that are folded into it, by position."""

    conv: int
    behind: tuple[int, ...]


def fold_clones(
    model: onnx.ModelProto, clones: Collection[str], folder: Path | None = None
) -> Folded:
    """Fold what stands behind clones of convolutions into weights that they share, in place.

    Args:
        model: A model with patches in its main graph.
        clones: Names of the nodes that are clones.
        folder: The folder that its external weights lie in; None: they are out of reach.
    """
    found, constants = index(model), constants_of(model.graph)
    groups: dict[_Recipe, list[_Clone]] = {}
    for position, node in enumerate(model.graph.node):
        if node.name in clones and node.op_type in CONVOLUTIONS and node.domain in _DEFAULT:
            matched = _match(found, constants, position, folder)
            if matched is not None:
                recipe, clone = matched
                groups.setdefault(recipe, []).append(clone)
    groups = {recipe: several for recipe, several in groups.items() if len(several) > 1}
    if not groups:
        return Folded()
    names = set(found.names)
    made: list[onnx.TensorProto] = []
    read: list[str] = []
    for recipe, several in groups.items():
        weight, bias = _evaluate(recipe, constants, folder)
        for tensor, base in ((weight, recipe.weight), (bias, recipe.bias or recipe.weight)):
            if tensor is not None:
                tensor.name = _free(f"{base}/folded", names)
                made.append(tensor)
        inputs = [recipe.weight if weight is None else weight.name]
        inputs += [] if bias is None else [bias.name]
        for clone in several:
            read += _rewire(model.graph, clone, inputs)
    gone = {at for several in groups.values() for clone in several for at in clone.behind}
    replace_nodes(model, gone, made, read)
    return Folded(len(groups), sum(len(recipe.affine) for recipe in groups))


def _match(
    found: Index, constants: Mapping[str, onnx.TensorProto], position: int, folder: Path | None
) -> tuple[_Recipe, _Clone] | None:
    """Return what can be folded into a convolution, None if nothing can."""
    nodes = found.graph.node
    conv = nodes[position]
    weight = constants.get(conv.input[1])
    if weight is None or weight.data_type not in _KINDS or len(weight.dims) < 3:
        return None
    transposed = conv.op_type == "ConvTranspose"
    if transposed and attributes(conv).get("group", 1) != 1:
        return None
    channels = weight.dims[1] if transposed else weight.dims[0]
    bias = conv.input[2] if len(conv.input) > 2 else None
    if bias is not None:
        held = constants.get(bias)
        if held is None or held.data_type != weight.data_type or [*held.dims] != [channels]:
            return None
    behind: list[int] = []
    affine: list[_Affine] = []
    made = conv.output[0]
    while made not in found.outputs and len(found.users.get(made, ())) == 1:
        at = found.users[made][0]
        entry = _affine(nodes[at], made, conv.op_type, weight, channels, constants)
        if entry is None:
            break
        behind.append(at)
        affine.append(entry)
        made = nodes[at].output[0]
    tensors = [
        constants[name] for name in (conv.input[1], *(n for e in affine for n in e.constants))
    ]
    if bias is not None:
        tensors.append(constants[bias])
    if not affine or (folder is None and any(is_external(tensor) for tensor in tensors)):
        return None
    recipe = _Recipe(conv.op_type, conv.input[1], bias or "", tuple(affine))
    return recipe, _Clone(position, tuple(behind))


def _affine(
    node: onnx.NodeProto,
    source: str,
    op_type: str,
    weight: onnx.TensorProto,
    channels: int,
    constants: Mapping[str, onnx.TensorProto],
) -> _Affine | None:
    """Return what a node does to the channels of ``source``, None if that is not folded."""
    if node.domain not in _DEFAULT or node.input[0] != source or any(node.output[1:]):
        return None
    if node.op_type not in FOLDED[op_type]:
        return None
    others = tuple(node.input[1:])
    tensors = [constants.get(name) for name in others]
    result = (None, channels, *(None,) * (len(weight.dims) - 2))
    given = attributes(node)
    if given.get("training_mode", 0) or not given.get("spatial", 1):
        return None
    for tensor in tensors:
        if tensor is None or tensor.data_type != weight.data_type:
            return None
        dims = tuple(tensor.dims)
        if node.op_type == "BatchNormalization":
            if dims != (channels,):
                return None
        elif not is_channelwise(node.op_type, dims, result):
            return None
    epsilon = given.get("epsilon", 1e-5)
    return _Affine(node.op_type, others, epsilon)


def _evaluate(
    recipe: _Recipe, constants: Mapping[str, onnx.TensorProto], folder: Path | None
) -> tuple[onnx.TensorProto | None, onnx.TensorProto | None]:
    """Return the weights, None where they stay as they are, and the bias if there is one now."""
    bias = _values(constants[recipe.bias], folder) if recipe.bias else None
    factors = []
    with np.errstate(all="ignore"):  # as in the runtime, where infinity and NaN just come out
        for entry in recipe.affine:
            values = [_values(constants[name], folder) for name in entry.constants]
            factor, bias = _step(entry, values, bias)
            if factor is not None:
                factors.append(factor)
        axis = 1 if recipe.op_type == "ConvTranspose" else 0
        weight = _scaled(constants[recipe.weight], factors, axis) if factors else None
    return weight, None if bias is None else onnx.numpy_helper.from_array(bias)


def _scaled(tensor: onnx.TensorProto, factors: Sequence[Array], axis: int) -> onnx.TensorProto:
    """Return weights times factors; those in another file are not read before they are saved."""
    if is_external(tensor):
        return pending(tensor, factors, axis)
    weight = np.asarray(onnx.numpy_helper.to_array(tensor))
    for factor in factors:
        if factor.ndim:
            factor = factor.reshape([-1 if at == axis else 1 for at in range(weight.ndim)])
        weight = weight * factor
    return onnx.numpy_helper.from_array(weight)


def _step(
    entry: _Affine, values: Sequence[Array], bias: Array | None
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


def _values(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    if not is_external(tensor):
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    assert folder is not None
    read = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type)
    read.raw_data = external_range(tensor, folder).read()
    return np.asarray(onnx.numpy_helper.to_array(read))


def _free(base: str, names: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    others = (f"{base}_{number}" for number in count(2))
    name = base if base not in names else next(other for other in others if other not in names)
    names.add(name)
    return name


def _rewire(graph: onnx.GraphProto, clone: _Clone, inputs: Sequence[str]) -> Iterable[str]:
    """Let a convolution read new weights and make what stood behind it; return what it read."""
    conv, last = graph.node[clone.conv], graph.node[clone.behind[-1]]
    read = [*conv.input[1:], *(name for at in clone.behind for name in graph.node[at].input[1:])]
    del conv.input[1:]
    conv.input.extend(inputs)
    conv.output[0] = last.output[0]
    return read
