"""Shapes: fixing free dimensions, inferring, and sizes in bytes.

A dimension is free if it is symbolic, unset or negative (TensorFlow and Paddle write -1). "?" is
written by Paddle for every unknown dimension alike; it is no symbol that two dimensions share.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import onnx
import onnx.numpy_helper

from rewriters.errors import OptionError
from rewriters.external_data import BITS
from rewriters.graph import UNKNOWN_DOMAIN, attributes
from rewriters.guarded import Refused, infer_shapes
from rewriters.operators import Record, Shape, read_convolution

__all__ = [
    "Shapes",
    "correct_claims",
    "fix_shapes",
    "free_inputs",
    "infer",
    "nominal_shapes",
    "required_inputs",
]

logger = logging.getLogger(__name__)

# What a free dimension counts as where only the order of magnitude of sizes is asked for.
NOMINAL_BATCH, NOMINAL_CHANNELS, NOMINAL_SPATIAL = 1, 4, 512

_LARGEST = 1 << 31
_ANONYMOUS = frozenset({"", "?", "None", "unk"})


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shape and element type of the main graph's tensors, as far as they are known.

    Attributes:
        dims: Shape of a tensor, None for each unknown size.
        elements: Element type of a tensor.
        doubtful: Tensors whose sizes a runtime may compute otherwise than onnx infers them. A
            runtime that folds inferred shapes contradicts itself there, so that not even
            arithmetic at run time is safe.
    """

    dims: Mapping[str, Shape]
    elements: Mapping[str, int]
    doubtful: frozenset[str] = frozenset()

    def bits(self, name: str) -> int | None:
        """Return the bits of one element, None if the type is unknown or has no fixed size."""
        return BITS.get(self.elements.get(name, 0))

    def bytes(self, name: str) -> int | None:
        """Return the tensor's size in bytes, None if it is unknown."""
        shape, bits = self.dims.get(name), self.bits(name)
        if shape is None or bits is None or any(size is None for size in shape):
            return None
        return (prod(size or 0 for size in shape) * bits + 7) // 8


def _known(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def required_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that no initializer gives a value to."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def free_inputs(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the inputs that have a free dimension, with None for each of them."""
    free = {}
    for value in required_inputs(model):
        if _has_shape(value):
            shape = tuple(_known(dim) for dim in value.type.tensor_type.shape.dim)
            if any(size is None for size in shape):
                free[value.name] = shape
    return free


def nominal_shapes(
    model: onnx.ModelProto,
    spatial: int = NOMINAL_SPATIAL,
    given: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return a plausible size for every input with free dimensions, equal symbols alike.

    Args:
        model: The model; only its inputs are read.
        spatial: Rows and columns of a free spatial dimension.
        given: Sizes of inputs that are known better.
    """
    symbols: dict[str, int] = {}
    wanted = given or {}
    for value in required_inputs(model):
        for dim, known in zip(
            value.type.tensor_type.shape.dim, wanted.get(value.name, ()), strict=False
        ):
            if dim.dim_param not in _ANONYMOUS:
                symbols.setdefault(dim.dim_param, known)
    result = {}
    free = free_inputs(model)
    for value in required_inputs(model):
        if value.name not in free:
            continue
        sizes = []
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            size = _known(dim)
            if size is None:
                size = (NOMINAL_BATCH, NOMINAL_CHANNELS)[axis] if axis < 2 else spatial
                if len(dims) < 3 and axis == 1:
                    size = 16
                if value.name in wanted:
                    size = wanted[value.name][axis]
                if dim.dim_param not in _ANONYMOUS:
                    size = symbols.setdefault(dim.dim_param, size)
            sizes.append(size)
        result[value.name] = tuple(sizes)
    return result


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | None]]) -> None:
    """Fix the free dimensions of inputs, in place; a symbol takes its value everywhere.

    Shapes of inner tensors that are not wholly known afterwards are dropped, to be inferred anew.

    Args:
        model: The model (or its skeleton).
        shapes: Per input name its whole shape; None leaves a dimension as it is.

    Raises:
        OptionError: No such input, another rank, or another size than a fixed dimension has.
    """
    inputs = {value.name: value for value in required_inputs(model)}
    symbols: dict[str, int] = {}
    for name, sizes in shapes.items():
        if name not in inputs:
            known_names = ", ".join(inputs)
            raise OptionError(f"shapes[{name!r}]: no such input; the inputs are {known_names}")
        value = inputs[name]
        if not value.type.HasField("tensor_type"):
            raise OptionError(f"shapes[{name!r}]: the input is not a tensor")
        if not _has_shape(value):
            for _ in sizes:
                value.type.tensor_type.shape.dim.add()
        dims = value.type.tensor_type.shape.dim
        if len(dims) != len(sizes):
            raise OptionError(
                f"shapes[{name!r}]: {len(sizes)} sizes given, the input has {len(dims)}"
            )
        for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
            known = _known(dim)
            if size is None:
                continue
            if not 1 <= size < _LARGEST:
                raise OptionError(f"shapes[{name!r}]: size {size} is not between 1 and 2^31")
            if known is not None and known != size:
                raise OptionError(
                    f"shapes[{name!r}]: dimension {axis} is fixed to {known} in the model, "
                    f"not {size}"
                )
            symbol = dim.dim_param
            if symbol not in _ANONYMOUS and symbols.setdefault(symbol, size) != size:
                raise OptionError(
                    f"shapes[{name!r}]: dimension {axis} is {symbol!r}, "
                    f"given as {symbols[symbol]} before and as {size} now"
                )
            dim.dim_value = size
    for value in [*required_inputs(model), *model.graph.output]:
        _substitute(value, symbols)
    kept = []
    for value in model.graph.value_info:
        _substitute(value, symbols)
        if _has_shape(value) and all(
            _known(dim) is not None for dim in value.type.tensor_type.shape.dim
        ):
            kept.append(value)
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def correct_claims(graph: onnx.GraphProto, facts: Shapes, read: Collection[str]) -> None:
    """Drop what the file says wrongly of inner tensors, and put right what it says of outputs.

    A runtime merges what is declared with what it infers: it lives with a stale shape of a node
    that it infers leniently, and refuses the Slice or Concat that stands there now.

    Args:
        graph: The main graph; changed in place.
        facts: What follows from the inputs and the operators.
        read: Tensors that sizes are taken from at run time: a number declared for one of them
            that does not follow might stand in for its real size.
    """

    def right(value: onnx.ValueInfoProto) -> bool:
        known = facts.dims.get(value.name)
        if known is None or not _has_shape(value):
            return True
        stated = [_known(dim) for dim in value.type.tensor_type.shape.dim]
        if len(stated) != len(known):
            return False
        return all(
            claim is None or claim == size or (size is None and value.name not in read)
            for claim, size in zip(stated, known, strict=True)
        )

    kept = [value for value in graph.value_info if right(value)]
    if len(kept) < len(graph.value_info):
        kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    given = {value.name for value in graph.input}
    for value in graph.output:
        if right(value) or value.name in given:
            continue
        known, shape = facts.dims[value.name], value.type.tensor_type.shape
        if len(shape.dim) != len(known):
            del shape.dim[:]
            for _ in known:
                shape.dim.add()
        for dim, size in zip(shape.dim, known, strict=True):
            if size is not None:
                dim.dim_value = size
            elif dim.HasField("dim_value"):
                dim.Clear()


def _substitute(value: onnx.ValueInfoProto, symbols: Mapping[str, int]) -> None:
    if _has_shape(value):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]


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
        if _has_shape(value):
            for dim in value.type.tensor_type.shape.dim:
                negative = dim.HasField("dim_value") and dim.dim_value < 0
                if negative or (dim.HasField("dim_param") and dim.dim_param in _ANONYMOUS):
                    dim.Clear()
    _write_out_padding(slim)
    declared = list(slim.graph.value_info)
    bare = onnx.ModelProto()
    bare.CopyFrom(slim)
    del bare.graph.value_info[:]
    given = {value.name for value in bare.graph.input}
    for value in bare.graph.output:
        # An output that is an input too: inference takes the input's shape from there.
        if _has_shape(value) and value.name not in given:
            value.type.tensor_type.ClearField("shape")
    derived = _read_shapes(_infer(bare).graph)
    wrong = _wrong_ranks(bare.graph, derived)
    if not estimate and _hide_doubtful(bare, derived, wrong):
        known = {name: dims for name, dims in derived.dims.items() if name not in wrong}
        plain, derived = replace(derived, dims=known), _read_shapes(_infer(bare).graph)
        derived = replace(derived, doubtful=_less_known(plain, derived))
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


def _less_known(plain: Shapes, derived: Shapes) -> frozenset[str]:
    """Return the tensors of which one inference knows more than the other."""
    return frozenset(
        name
        for name, dims in plain.dims.items()
        if any(
            a is not None and b is None
            for a, b in zip(dims, derived.dims.get(name, (None,) * len(dims)), strict=False)
        )
    )


def _wrong_ranks(graph: onnx.GraphProto, plain: Shapes) -> frozenset[str]:
    """Return outputs of ConvTranspose that inference gives other than their inputs' rank.

    It does so for an `output_shape` that does not list every dimension it expects.
    """
    wrong = set()
    for node in graph.node:
        made = plain.dims.get(node.output[0]) if node.op_type == "ConvTranspose" else None
        taken = plain.dims.get(node.input[0]) if made is not None else None
        if made is not None and (len(made) < 3 or (taken is not None and len(made) != len(taken))):
            wrong.add(node.output[0])
    return frozenset(wrong)


def _hide_doubtful(model: onnx.ModelProto, plain: Shapes, wrong: Collection[str]) -> bool:
    """Hide, in place, nodes whose output size runtimes and onnx's inference disagree on.

    A size computed in floating point is rounded down on either side of a whole number (Resize and
    Upsample by a fractional scale), a pooling window that begins in the padding counts or not
    (ceil_mode), a dilated pool's SAME padding counts the dilation or not, and a Cast to few bits
    wraps around.

    Args:
        model: Its doubtful nodes move to a domain that inference knows nothing of.
        plain: Shapes as inference sees them; they say whether the doubt makes a difference.
        wrong: Tensors it is mistaken about; what makes them is hidden, too.

    Returns:
        Whether there were any.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    hidden = False
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
        dims = plain.dims.get(node.input[0]) if node.input else None
        if node.output[0] in wrong or _is_doubtful(node, attributes(node), dims, constants):
            node.domain, hidden = UNKNOWN_DOMAIN, True
    if hidden:
        model.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)
    return hidden


_FEW_BITS = (
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
)


def _is_doubtful(
    node: onnx.NodeProto,
    values: Mapping[str, Any],
    dims: Shape | None,
    constants: Mapping[str, onnx.TensorProto],
) -> bool:
    match node.op_type:
        case "MaxPool" | "AveragePool" | "LpPool" if (
            values.get("auto_pad", "NOTSET").startswith("SAME")
            and max(values.get("dilations", (1,))) > 1
        ):
            return True
        case "MaxPool" | "AveragePool" | "LpPool" if values.get("ceil_mode") and dims:
            return any(_last_window_in_padding(values, i, d) for i, d in enumerate(dims[2:]))
        case "Cast":
            return bool(values.get("to") in _FEW_BITS and dims is not None and len(dims) == 1)
        case "Resize" | "Upsample":
            if len(node.input) > 3 and node.input[3]:
                return bool(values.get("keep_aspect_ratio_policy", "stretch") != "stretch")
            given: Any = values.get("scales")
            if given is None:
                # Resize-10 and Upsample-9 have the scales second, Resize-11 third.
                tensor = constants.get(node.input[2 if len(node.input) > 2 else 1])
                if tensor is None or dims is None:
                    return False
                given = _scales(tensor, len(dims))
            return any(_rounds_apart(d, s) for d, s in zip(dims or (), given, strict=False))
        case _:
            return False


def _scales(tensor: onnx.TensorProto, rank: int) -> list[float]:
    """Return the values of a tensor that holds a scale for each dimension; none if it does not."""
    if list(tensor.dims) != [rank]:
        return []
    try:
        scales: list[float] = onnx.numpy_helper.to_array(tensor).tolist()
    except Exception as error:  # noqa: BLE001 - bytes of another length, a type numpy does not know
        logger.debug("scales %r cannot be read: %s", tensor.name, error)
        return []
    return scales


def _rounds_apart(size: int | None, scale: float) -> bool:
    """Tell whether a scaled size may be rounded down to different numbers."""
    if size is None:
        return False
    exact = size * scale
    near = abs(exact - round(exact)) < 1e-3
    return near and exact != int(exact)


def _last_window_in_padding(values: Mapping[str, Any], i: int, size: int | None) -> bool:
    """Tell whether a pool's last window begins beyond the input, so that it may count or not."""
    kernel = values.get("kernel_shape", ())
    if size is None or i >= len(kernel):
        return False
    rank = len(kernel)
    if values.get("auto_pad", "NOTSET") != "NOTSET":
        return True
    pads = values.get("pads", (0,) * 2 * rank)
    stride = values.get("strides", (1,) * rank)[i]
    reach = values.get("dilations", (1,) * rank)[i] * (kernel[i] - 1) + 1
    out = -(-(size + pads[i] + pads[rank + i] - reach) // stride) + 1
    return bool((out - 1) * stride >= size + pads[i])


def _write_out_padding(model: onnx.ModelProto) -> None:
    """Write ConvTranspose's SAME padding out as pads, in place, where output_padding is given.

    SAME fixes the output at input x stride; onnx's inference adds output_padding on top of that.
    """
    weights = _weight_shapes(model.graph)
    guessed = False
    for node in model.graph.node:
        if node.op_type != "ConvTranspose" or node.domain not in ("", "ai.onnx"):
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


def _weight_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Return the shapes of what may be a weight: of a body's weights it is what they come in as."""
    known: dict[str, Shape] = {
        value.name: tuple(_known(dim) for dim in value.type.tensor_type.shape.dim)
        for value in graph.input
        if _has_shape(value)
    }
    known |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                known[node.output[0]] = tuple(attribute.t.dims)
    return known


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
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
            if _has_shape(value):
                dims[value.name] = tuple(_known(d) for d in value.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        dims[tensor.name] = tuple(tensor.dims)
        elements[tensor.name] = tensor.data_type
    return Shapes(dims, elements)
