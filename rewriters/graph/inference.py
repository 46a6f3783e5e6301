"""Shapes: fixing free dimensions, inferring, and sizes in bytes.

A dimension is free if it is symbolic, unset or negative (TensorFlow and Paddle write -1). "?" is
written by Paddle for every unknown dimension alike; it is no symbol that two dimensions share.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.graph.check import UNKNOWN_DOMAIN
from patchconv_deploy.rewriters.graph.doubtful_sizes import hide_doubtful, less_known, wrong_ranks
from patchconv_deploy.rewriters.graph.guarded import Refused, infer_shapes
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.shapes import ANONYMOUS, Shapes, has_shape, known_size
from patchconv_deploy.rewriters.operators.quantised import QUANTISED
from patchconv_deploy.rewriters.operators.record import (
    ONNX_DOMAINS,
    Record,
    Shape,
    read_convolution,
)
from patchconv_deploy.rewriters.operators.rules import CONTRIB_DOMAIN

__all__ = ["infer"]


logger = logging.getLogger(__name__)


def infer(slim: onnx.ModelProto, *, needed: Collection[str] = (), estimate: bool = False) -> Shapes:
    """Infer the shapes of the main graph's tensors.

    Only what follows from the inputs and the operators is a fact. What the file declares of inner
    tensors may be stale; where a needed tensor is out of inference's reach (behind a custom
    operator, say) its rank is believed and no size. Nor is the default value of an initializer
    that callers may override, of which a Reshape may make sizes.

    Args:
        slim: A skeleton; changed in place: negative and anonymous dimensions are cleared, since
            inference takes them for sizes and symbols.
        needed: Tensors whose rank must be known if the file declares it.
        estimate: Believe declared sizes and default values too: good enough for a prediction of
            memory, not for a graph.

    Raises:
        CrashError: Inference crashes on the model, or wants more memory or time than it may have.
    """
    if not estimate and slim.ir_version >= 4:
        inputs = {value.name for value in slim.graph.input}
        kept = [tensor for tensor in slim.graph.initializer if tensor.name not in inputs]
        if len(kept) < len(slim.graph.initializer):
            del slim.graph.initializer[:]
            slim.graph.initializer.extend(kept)
    for value in [*slim.graph.input, *slim.graph.output, *slim.graph.value_info]:
        if has_shape(value):
            for dim in value.type.tensor_type.shape.dim:
                negative = dim.HasField("dim_value") and dim.dim_value < 0
                if negative or (dim.HasField("dim_param") and dim.dim_param in ANONYMOUS):
                    dim.Clear()
    _write_out_padding(slim)
    declared = list(slim.graph.value_info)
    bare = onnx.ModelProto()
    bare.CopyFrom(slim)
    del bare.graph.value_info[:]
    given = {value.name for value in bare.graph.input}
    for value in bare.graph.output:
        # An output that is an input too: inference takes the input's shape from there.
        if has_shape(value) and value.name not in given:
            value.type.tensor_type.ClearField("shape")
    derived = _read_shapes(_infer(bare).graph)
    wrong = wrong_ranks(bare.graph, derived)
    if not estimate and hide_doubtful(bare, derived, wrong):
        known = {name: dims for name, dims in derived.dims.items() if name not in wrong}
        plain, derived = replace(derived, dims=known), _read_shapes(_infer(bare).graph)
        derived = replace(derived, doubtful=less_known(plain, derived))
    if not declared or all(name in derived.dims for name in needed):
        return derived
    believed = _read_shapes(_infer(slim).graph)
    dims = believed.dims
    if not estimate:
        dims = {name: (None,) * len(shape) for name, shape in dims.items()}
    return replace(
        derived,
        dims={**dims, **derived.dims},
        elements={**believed.elements, **derived.elements},
    )


def _write_out_padding(model: onnx.ModelProto) -> None:
    """Write ConvTranspose's SAME padding out as pads, in place, where output_padding is given.

    SAME fixes the output at input x stride; onnx's inference adds output_padding on top of that.
    """
    weights = _weight_shapes(model.graph)
    guessed = False
    for node in model.graph.node:
        if node.op_type != "ConvTranspose" or node.domain not in ONNX_DOMAINS:
            continue
        shapes = (None, weights.get(node.input[1]))
        conv = read_convolution(Record(node.op_type, 1, attributes(node), shapes))
        if isinstance(conv, str):
            # Its size is anyone's guess: inference goes on behind it with what it does know.
            node.domain, guessed = UNKNOWN_DOMAIN, True
            continue
        if not conv.auto_pad.startswith("SAME"):
            continue
        if conv.output_shape is not None or not any(conv.output_padding):
            continue
        totals = [
            max(0, conv.reach(i) + conv.output_padding[i] - conv.strides[i])
            for i in range(conv.rank)
        ]
        kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
        # Which side is cropped more does not matter to the output's size.
        kept.append(onnx.helper.make_attribute("pads", [*totals, *(0 for _ in totals)]))
        kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del node.attribute[:]
        node.attribute.extend(kept)
    if guessed:
        model.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)


def _plain(node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return an operator of ONNX of the same shapes as a quantised one; None of any other."""
    quantised = QUANTISED.get(node.op_type)
    if quantised is None or attributes(node).get("channels_last", 0):
        return None
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain, plain.op_type = "", quantised.plain
    plain.input[:] = [node.input[at] for at in quantised.operands(len(node.input))]
    del plain.attribute[:]
    plain.attribute.extend(each for each in node.attribute if each.name not in quantised.dropped)
    return plain


def _weight_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Return the shapes of what may be a weight: of a body's weights it is what they come in as."""
    known: dict[str, Shape] = {
        value.name: tuple(known_size(dim) for dim in value.type.tensor_type.shape.dim)
        for value in graph.input
        if has_shape(value)
    }
    known |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                known[node.output[0]] = tuple(attribute.t.dims)
    return known


# ONNX Runtime's own operators of which some outputs have the shape of the first input.
_LIKE_THE_FIRST: Mapping[str, Collection[int]] = {
    "GroupNorm": (0,),
    "SkipGroupNorm": (0, 1),
    "SkipLayerNormalization": (0, 3),
    "SkipSimplifiedLayerNormalization": (0, 3),
}


def _with_known_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which operators that onnx does not know are some of the same shapes.

    MultiHeadAttention of separate queries q, keys k and values v is shaped as q (k^T v).
    """
    if not any(each.domain == CONTRIB_DOMAIN for each in model.graph.node):
        return model
    known = onnx.ModelProto()
    known.CopyFrom(model)
    del known.graph.node[:]
    make = onnx.helper.make_node
    for each in model.graph.node:
        own = each.domain == CONTRIB_DOMAIN and len(each.input) > 0
        like = _LIKE_THE_FIRST.get(each.op_type, ()) if own else ()
        made = [name for at, name in enumerate(each.output) if at in like and name]
        plain = _plain(each) if own else None
        if plain is not None:
            known.graph.node.append(plain)
        elif made:
            known.graph.node.extend(make("Identity", [each.input[0]], [name]) for name in made)
        elif own and each.op_type == "MultiHeadAttention" and _is_separate(each):
            y = each.output[0]
            turned, product = f"{y}/keys_turned", f"{y}/keys_by_values"
            known.graph.node.append(make("Transpose", [each.input[1]], [turned], perm=[0, 2, 1]))
            known.graph.node.append(make("MatMul", [turned, each.input[2]], [product]))
            known.graph.node.append(make("MatMul", [each.input[0], product], [y]))
        else:
            known.graph.node.append(each)
    return known


def _is_separate(attention: onnx.NodeProto) -> bool:
    """Tell whether queries, keys and values are given, and one result is asked for."""
    return len(attention.input) > 2 and all(attention.input[:3]) and len(attention.output) == 1


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    model = _with_known_operators(model)
    try:
        return infer_shapes(model)
    except Refused as error:
        logger.warning("shape inference failed, sizes stay unknown: %s", error)
        return model


def _read_shapes(graph: onnx.GraphProto) -> Shapes:
    dims: dict[str, Shape] = {}
    elements: dict[str, int] = {}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        if value.type.HasField("tensor_type"):
            elements[value.name] = value.type.tensor_type.elem_type
            if has_shape(value):
                dims[value.name] = tuple(known_size(d) for d in value.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        dims[tensor.name] = tuple(tensor.dims)
        elements[tensor.name] = tensor.data_type
    return Shapes(dims, elements)
