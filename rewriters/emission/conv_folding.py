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

- behind a Conv all of these; behind a ConvTranspose, whatever its groups, ``BatchNormalization``
  alone;
- k is the second operand, has no dimensions (Mul), or has the rank of the result or one less, with
  the channels as the one dimension that is not 1;
- everything but x is constant: an initializer that is no input of the model, a Constant node, or
  what the graph works out of these and the runtime makes a tensor of (`emission.worked_out`), such
  as weights in float16 behind a Cast. Weights behind a DequantizeLinear are none;
- the result in between has that one reader and is no output of the graph;
- BatchNormalization has one output and does not train;
- all are float16, float32 or float64, and of the same type.

Weights in another file stay there, and what is made of them goes to the new model's own
(`emission.folded_weights`).

Only clones are folded, and only where at least two would be: a single Conv is left to the runtime,
and what is not cut stays as it is. Names of the tensors that others read stay.

Source: ONNX Runtime, ``core/optimizer/conv_bn_fusion.cc``, ``conv_mul_fusion.cc``,
``conv_add_fusion.cc`` and ``initializer.cc``; version 1.32's results are compared in the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

import onnx

from patchconv_deploy.rewriters.emission.constants import constants_of, replace_nodes
from patchconv_deploy.rewriters.emission.folded_weights import Affine, Recipe, evaluate
from patchconv_deploy.rewriters.emission.worked_out import WorkedOut
from patchconv_deploy.rewriters.graph.constant_folding import Constants
from patchconv_deploy.rewriters.graph.external_data import is_external
from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.use_def import Index, index
from patchconv_deploy.rewriters.operators.record import CONVOLUTIONS, FOLDED, is_channelwise

__all__ = ["Folded", "fold_clones"]


_KINDS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})

_DEFAULT = ("", "ai.onnx")

# The first opset in which the operands of a Mul are broadcast to each other.
_BROADCASTS = 7


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
class _Clone:
    """A convolution and the nodes behind it that are folded into it, by position."""

    conv: int
    behind: tuple[int, ...]


def fold_clones(
    model: onnx.ModelProto,
    clones: Collection[str],
    facts: CertainFacts,
    folder: Path | None = None,
) -> Folded:
    """Fold what stands behind clones of convolutions into weights that they share, in place.

    Args:
        model: A model with patches in its main graph.
        clones: Names of the nodes that are clones.
        facts: What is certain of the model as it was before.
        folder: The folder that its external weights lie in; None: they are out of reach.
    """
    found = index(model)
    values = Constants(model, found, facts.shapes)
    constants = WorkedOut(constants_of(model.graph), found, values, folder)
    groups: dict[Recipe, list[_Clone]] = {}
    for position, node in enumerate(model.graph.node):
        if node.name in clones and node.op_type in CONVOLUTIONS and node.domain in _DEFAULT:
            weight = _weight(node.input[1], constants, facts)
            matched = weight and _match(found, constants, position, weight, folder)
            if matched:
                recipe, clone = matched
                groups.setdefault(recipe, []).append(clone)
    groups = {recipe: several for recipe, several in groups.items() if len(several) > 1}
    if not groups:
        return Folded()
    free = partial(_free, names=set(found.names))
    made: list[onnx.TensorProto] = []
    behind: dict[int, list[onnx.NodeProto]] = {}
    read: list[str] = []
    for recipe, several in groups.items():
        shared = evaluate(recipe, constants, folder, free)
        made += shared.tensors
        if shared.nodes:
            behind.setdefault(found.producer[recipe.weight], []).extend(shared.nodes)
        for clone in several:
            read += _rewire(model.graph, clone, shared.inputs)
    gone = {at for several in groups.values() for clone in several for at in clone.behind}
    replace_nodes(model, gone, made, read, behind)
    return Folded(len(groups), sum(len(recipe.affine) for recipe in groups))


def _weight(name: str, constants: WorkedOut, facts: CertainFacts) -> onnx.TensorProto | None:
    """Return a constant weight, without its numbers where these are worked out and many."""
    weight = constants.get(name)
    if weight is not None:
        return weight if weight.data_type in _KINDS and len(weight.dims) > 2 else None
    dims = facts.shapes.dims.get(name)
    if facts.opset < _BROADCASTS:
        return None
    # The runtime has no arithmetic for others on every processor.
    if constants.kind(name) != onnx.TensorProto.FLOAT or dims is None or len(dims) < 3:
        return None
    if None in dims or name in facts.shapes.doubtful:
        return None
    return onnx.TensorProto(data_type=onnx.TensorProto.FLOAT, dims=cast("Sequence[int]", dims))


def _match(
    found: Index,
    constants: WorkedOut,
    position: int,
    weight: onnx.TensorProto,
    folder: Path | None,
) -> tuple[Recipe, _Clone] | None:
    """Return what can be folded into a convolution, None if nothing can."""
    nodes = found.graph.node
    conv = nodes[position]
    group = attributes(conv).get("group", 1)
    if group < 1 or weight.dims[0] % group:
        return None
    channels = weight.dims[1] * group if conv.op_type == "ConvTranspose" else weight.dims[0]
    bias = conv.input[2] if len(conv.input) > 2 else None
    if bias is not None:
        held = constants.get(bias)
        if held is None or held.data_type != weight.data_type or [*held.dims] != [channels]:
            return None
    behind: list[int] = []
    affine: list[Affine] = []
    made = conv.output[0]
    while made not in found.outputs and len(found.users.get(made, ())) == 1:
        at = found.users[made][0]
        entry = _affine(nodes[at], made, conv.op_type, weight, channels, constants)
        if entry is None:
            break
        behind.append(at)
        affine.append(entry)
        made = nodes[at].output[0]
    tensors = [weight, *(constants[name] for entry in affine for name in entry.constants)]
    if bias is not None:
        tensors.append(constants[bias])
    if not affine or (folder is None and any(is_external(tensor) for tensor in tensors)):
        return None
    dims = tuple(weight.dims)
    recipe = Recipe(conv.op_type, group, conv.input[1], dims, bias or "", tuple(affine))
    return recipe, _Clone(position, tuple(behind))


def _affine(
    node: onnx.NodeProto,
    source: str,
    op_type: str,
    weight: onnx.TensorProto,
    channels: int,
    constants: WorkedOut,
) -> Affine | None:
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
    return Affine(node.op_type, others, epsilon)


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
