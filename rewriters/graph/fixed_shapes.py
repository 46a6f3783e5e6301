"""Sizes of inputs: which are free, what to assume for them, and fixing them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx
import onnx.numpy_helper

from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.shapes import (
    ANONYMOUS,
    Shapes,
    has_shape,
    known_size,
    required_inputs,
)
from patchconv_deploy.rewriters.operators.record import Shape

__all__ = [
    "correct_claims",
    "declare_outputs",
    "declare_ranks",
    "fix_shapes",
    "free_inputs",
    "has_channels_last",
    "nominal_shapes",
]


# What a free dimension counts as where only the order of magnitude of sizes is asked for.
NOMINAL_BATCH, NOMINAL_CHANNELS, NOMINAL_SPATIAL = 1, 4, 512

_LARGEST = 1 << 31


def free_inputs(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the inputs that have a free dimension, with None for each of them."""
    free = {}
    for value in required_inputs(model):
        if has_shape(value):
            shape = tuple(known_size(dim) for dim in value.type.tensor_type.shape.dim)
            if any(size is None for size in shape):
                free[value.name] = shape
    return free


def has_channels_last(shape: Sequence[int | None]) -> bool:
    """Tell whether an image's channels are its last dimension: known there, not where they lead."""
    return len(shape) > 3 and shape[1] is None and shape[-1] is not None


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
            if dim.dim_param not in ANONYMOUS:
                symbols.setdefault(dim.dim_param, known)
    result = {}
    free = free_inputs(model)
    for value in required_inputs(model):
        if value.name not in free:
            continue
        sizes = []
        dims = value.type.tensor_type.shape.dim
        flat = has_channels_last([known_size(dim) for dim in dims])
        for axis, dim in enumerate(dims):
            size = known_size(dim)
            if size is None:
                size = (NOMINAL_BATCH, spatial if flat else NOMINAL_CHANNELS, spatial)[min(axis, 2)]
                if len(dims) < 3 and axis == 1:
                    size = 16
                if value.name in wanted:
                    size = wanted[value.name][axis]
                if dim.dim_param not in ANONYMOUS:
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
        if not has_shape(value):
            for _ in sizes:
                value.type.tensor_type.shape.dim.add()
        dims = value.type.tensor_type.shape.dim
        if len(dims) != len(sizes):
            raise OptionError(
                f"shapes[{name!r}]: {len(sizes)} sizes given, the input has {len(dims)}"
            )
        for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
            known = known_size(dim)
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
            if symbol not in ANONYMOUS and symbols.setdefault(symbol, size) != size:
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
        if has_shape(value) and all(
            known_size(dim) is not None for dim in value.type.tensor_type.shape.dim
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
        if known is None or not has_shape(value):
            return True
        stated = [known_size(dim) for dim in value.type.tensor_type.shape.dim]
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


def declare_ranks(graph: onnx.GraphProto, facts: Shapes) -> None:
    """Say how many dimensions a tensor has that is put together from a sequence, in place.

    Of a Loop's sequences inference knows no rank; of a part of such a tensor's Shape it then knows
    no length, and a runtime takes that for a Resize to no sizes at all and refuses the model.

    Args:
        graph: The main graph.
        facts: What follows from the inputs and the operators.
    """
    inner = {value.name for value in graph.value_info}
    outputs = {value.name: value for value in graph.output}
    for node in graph.node:
        name = node.output[0] if node.output else ""
        known, kind = facts.dims.get(name), facts.elements.get(name)
        if node.op_type != "ConcatFromSequence" or name in inner or known is None or not kind:
            continue
        declared = onnx.helper.make_tensor_value_info(name, kind, known)
        if name not in outputs:
            graph.value_info.append(declared)
        elif not has_shape(outputs[name]):
            outputs[name].CopyFrom(declared)


def _substitute(value: onnx.ValueInfoProto, symbols: Mapping[str, int]) -> None:
    if has_shape(value):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]


def declare_outputs(model: onnx.ModelProto, facts: Shapes) -> None:
    """Write what fixing the inputs made known into the outputs' shapes, in place."""
    for value in model.graph.output:
        known = facts.dims.get(value.name)
        tensor = value.type.tensor_type
        if known is None or (tensor.HasField("shape") and len(tensor.shape.dim) != len(known)):
            continue
        if not tensor.HasField("shape"):
            for _ in known:
                tensor.shape.dim.add()
        for dim, size in zip(tensor.shape.dim, known, strict=True):
            if size is not None:
                dim.dim_value = size
