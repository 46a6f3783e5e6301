"""Seeded mutations of small models: damaged as files in the wild are, and worse.

    python -m tests.support.mutations FOLDER FIRST COUNT

writes each mutation of a range of seeds to a file, hands it to the Python API as the command line
does, and prints a line of JSON for each: what came of it. Nothing but the errors of this project
may; a file that is written has to be one that ONNX Runtime takes, and it has to compute the same,
where the mutated model itself runs. It is a program, so that what ends a process natively ends this
one, and the one that started it knows at which seed.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import Message
from onnx import TensorProto, helper

from patchconv_deploy import PatchConvError, RewriterError, convert_model, pareto, rewrite
from patchconv_deploy.engines.errors import EngineError
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.look import inspection_of
from patchconv_deploy.rewriters.options import Options
from tests.support.small_models import Array, chain, conv, model, node, noise, value

__all__ = ["ACTIONS", "CLEAN", "MODELS", "mutated", "run_one"]


# Address space of the process: what asks for more is not bounded.
_MEMORY = 12 << 30

# What takes longer is a finding.
_SECONDS = 60

_TOLERANCE = 1e-4

# What an outcome may be: the model was refused, or something was written (or shown).
CLEAN = frozenset({"refused", "written", "same"})

Rng = random.Random


def _ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def _u_net() -> onnx.ModelProto:
    """Down, up again, joined: stride, pool, both kinds of upsampling, Concat, Pad, Slice."""
    nodes = [
        node("Conv", "x a", "c0", name="in", pads=[1] * 4),
        node("BatchNormalization", "c0 s t u v", "b0", name="norm", epsilon=1e-5),
        node("LeakyRelu", "b0", "r0", alpha=0.1),
        node("MaxPool", "r0", "p0", name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p0 b", "c1", name="low", pads=[2, 2, 2, 2], dilations=[2, 2], group=2),
        node("Relu", "c1", "r1"),
        node("ConvTranspose", "r1 d", "u0", name="up", strides=[2, 2], kernel_shape=[2, 2]),
        node("Resize", "r1 _ scales", "u1", name="scale", mode="nearest",
             nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        node("Concat", "r0 u0 u1", "j", name="join", axis=1),
        node("Pad", "j pads", "q", name="edge", mode="constant"),
        node("Conv", "q e", "c2", name="out", kernel_shape=[3, 3]),
        node("Slice", "c2 from to axes", "y", name="crop"),
    ]  # fmt: skip
    weights = {
        "a": noise(4, 3, 3, 3), "b": noise(4, 2, 3, 3), "d": noise(4, 4, 2, 2),
        "e": noise(3, 12, 3, 3), "s": noise(4) ** 2, "t": noise(4), "u": noise(4),
        "v": noise(4) ** 2 + 1, "scales": np.array([1, 1, 2, 2], np.float32),
        "pads": _ints(0, 0, 1, 1, 0, 0, 1, 1), "from": _ints(0), "to": _ints(-1), "axes": _ints(3),
    }  # fmt: skip
    return model(nodes, {"x": [1, 3, 16, 12]}, {"y": [1, 3, 16, 11]}, weights, opset=18, ir=9)


def _free() -> onnx.ModelProto:
    """Free batch, height and width; a shape that is worked out; value_info."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4, strides=[1, 1]),
        node("AveragePool", "c", "p", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        node("Shape", "p", "shape"),
        node("Gather", "shape two", "rows", axis=0),
        node("Concat", "one four rows minus", "target", axis=0),
        node("Reshape", "p target", "r"),
        node("Conv", "r b", "d", name="second", auto_pad="SAME_UPPER"),
        node("Sigmoid", "d", "g"),
        node("Mul", "d g", "y"),
    ]
    weights = {
        "a": noise(4, 3, 3, 3), "b": noise(2, 4, 3, 3), "two": _ints(2), "one": _ints(0),
        "four": _ints(4), "minus": _ints(-1),
    }  # fmt: skip
    made = model(
        nodes,
        {"x": ["n", 3, "h", "w"]},
        {"y": ["n", 2, "h", "w"]},
        weights,
        value_info=[value("c", ["n", 4, "h", "w"]), value("d", ["n", 2, "h", "w"])],
    )
    made.metadata_props.add(key="patchconv.session_options", value="{}")
    return made


def _attention() -> onnx.ModelProto:
    """Channels last: Transpose, LayerNormalization, MatMul, Softmax, Split, DepthToSpace."""
    nodes = [
        node("Conv", "x a", "c", name="patch", strides=[2, 2], pads=[0] * 4, kernel_shape=[2, 2]),
        node("Transpose", "c", "t", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "t g h", "l", axis=-1, epsilon=1e-5),
        node("MatMul", "l m", "k"),
        node("Split", "k sizes", "k0 k1", axis=3),
        node("Softmax", "k1", "s", axis=-1),
        node("Mul", "k0 s", "z"),
        node("Transpose", "z", "w", perm=[0, 3, 1, 2]),
        node("DepthToSpace", "w", "q", blocksize=2, mode="CRD"),
        node("Conv", "q b", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(8, 3, 2, 2), "g": noise(8), "h": noise(8), "m": noise(8, 16),
        "sizes": _ints(8, 8), "b": noise(2, 2, 3, 3),
    }  # fmt: skip
    return model(nodes, {"x": [1, 3, 16, 8]}, {"y": [1, 2, 16, 8]}, weights, opset=17)


def _quantised() -> onnx.ModelProto:
    """QLinearConv, and a Conv between DequantizeLinear and QuantizeLinear; uint8 outside."""
    nodes = [
        node("QLinearConv", "x s z w s zw s z", "c", name="ints", pads=[1] * 4),
        node("DequantizeLinear", "c s z", "f"),
        node("DequantizeLinear", "w s zw", "v"),
        node("Conv", "f v", "d", name="float", pads=[1] * 4, strides=[1, 1]),
        node("Relu", "d", "r"),
        node("QuantizeLinear", "r s z", "y"),
    ]
    weights: dict[str, Array] = {
        "s": np.array(0.1, np.float32), "z": np.array(128, np.uint8), "zw": np.array(0, np.int8),
        "w": (10 * noise(3, 3, 3, 3)).astype(np.int8),
    }  # fmt: skip
    kind = TensorProto.UINT8
    return model(
        nodes,
        [value("x", [1, 3, 16, 8], kind)],
        [value("y", [1, 3, 16, 8], kind)],
        weights,
        opset=13,
    )


def _nested() -> onnx.ModelProto:
    """A Loop and a model-local function, Constant nodes, an If, a second output, Einsum."""
    body = helper.make_graph(
        [node("Conv", "state w", "next", pads=[1] * 4), node("Identity", "go", "on")],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("state", None),
        ],
        [value("on", [], TensorProto.BOOL), value("next", None)],
    )
    branch = helper.make_graph([node("Relu", "l", "taken")], "then", [], [value("taken", None)])
    other = helper.make_graph([node("Neg", "l", "left")], "else", [], [value("left", None)])
    function = helper.make_function(
        "own", "Twice", ["v"], ["vv"], [node("Add", "v v", "vv")], [helper.make_opsetid("", 17)]
    )
    three = helper.make_tensor("three", TensorProto.INT64, [], [3])
    twice = node("Twice", "c", "t")
    twice.domain = "own"
    nodes = [
        node("Conv", "x w", "c", name="first", pads=[1] * 4),
        node("Constant", "", "n", value=three),
        twice,
        node("Loop", "n yes t", "l", name="loop", body=body),
        node("If", "yes", "f", then_branch=branch, else_branch=other),
        node("Einsum", "f e", "m", equation="bchw,co->bohw"),
        node("Conv", "m w", "y", name="second", pads=[1] * 4),
        node("GlobalAveragePool", "y", "g"),
    ]
    return model(
        nodes,
        {"x": [1, 3, 16, 8]},
        {"y": [1, 3, 16, 8], "g": [1, 3, 1, 1]},
        {"w": noise(3, 3, 3, 3) / 5, "yes": np.array(True), "e": noise(3, 3)},
        functions=[function],
        domains={"own": 1},
    )


def _old() -> onnx.ModelProto:
    """Opset 9: Upsample, attributes where later versions have inputs, weights among the inputs."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node("Pad", "c", "p", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        node("Slice", "p", "s", axes=[2, 3], starts=[1, 1], ends=[-1, -1]),
        node("Upsample", "s scales", "u", mode="nearest"),
        node("Conv", "u b", "d", name="second", pads=[1] * 4),
        node("Clip", "d", "y", min=-1.0, max=1.0),
    ]
    weights = {
        "a": noise(4, 3, 3, 3), "b": noise(2, 4, 3, 3),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    made = model(nodes, {"x": [1, 3, 12, 8]}, {"y": [1, 2, 24, 16]}, weights, opset=9, ir=3)
    made.graph.input.extend(value(name, list(a.shape)) for name, a in weights.items())
    return made


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": conv,
    "chain": lambda: chain(4),
    "u_net": _u_net,
    "free": _free,
    "attention": _attention,
    "quantised": _quantised,
    "nested": _nested,
    "old": _old,
    "line": lambda: model(
        [node("Conv", "x w", "y", pads=[1, 1])],
        {"x": [2, 3, 40]},
        {"y": [2, 3, 40]},
        {"w": noise(3, 3, 3)},
    ),
}


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for descriptor, held in message.ListFields():
        if descriptor.message_type is not None:
            for each in held if descriptor.is_repeated else (held,):
                yield from _messages(each)


def _scalars(made: onnx.ModelProto) -> list[tuple[Message, Any, int | None]]:
    """Return every number and text of a model: its message, its field, its place in a list."""
    found: list[tuple[Message, Any, int | None]] = []
    for message in _messages(made):
        for descriptor, held in message.ListFields():
            if descriptor.message_type is None and descriptor.name != "doc_string":
                places = range(len(held)) if descriptor.is_repeated else (None,)
                found += [(message, descriptor, place) for place in places]
    return found


def _names(made: onnx.ModelProto) -> list[str]:
    found = {name for each in made.graph.node for name in (*each.input, *each.output) if name}
    return sorted(found | {each.name for each in made.graph.node if each.name})


def _number(rng: Rng, old: int) -> int:
    near = [old + 1, old - 1, 2 * old, -old, 0, 1, -1, 2, 3, 5]
    far = [2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 10**6, 10**9, 77]
    return rng.choice(near if rng.random() < 0.6 else far)


def _change_scalar(made: onnx.ModelProto, rng: Rng) -> None:
    message, descriptor, place = rng.choice(_scalars(made))
    held = getattr(message, descriptor.name)
    old = held if place is None else held[place]
    new: Any
    if isinstance(old, bool):
        new = not old
    elif isinstance(old, int):
        new = _number(rng, old)
    elif isinstance(old, float):
        new = rng.choice([0.0, -1.0, 0.5, 1e38, float("nan"), float("inf"), -old, 2 * old])
    elif isinstance(old, bytes):
        new = rng.choice([b"", old[:-1], old + b"\0", old[: len(old) // 2], b"\xff\xfe", old * 2])
    else:
        new = rng.choice([*_names(made), "", "nobody", "ai.onnx", "com.microsoft", "x" * 300])
    with contextlib.suppress(ValueError, TypeError, OverflowError):  # an enum, or 32 bits
        if place is None:
            setattr(message, descriptor.name, new)
        else:
            held[place] = new


def _change_list(made: onnx.ModelProto, rng: Rng) -> None:
    lists = [
        (message, descriptor)
        for message in _messages(made)
        for descriptor, _ in message.ListFields()
        if descriptor.is_repeated
    ]
    message, descriptor = rng.choice(lists)
    held = getattr(message, descriptor.name)
    at, other = rng.randrange(len(held)), rng.randrange(len(held))
    parts = list(held)
    match rng.randrange(5):
        case 0:
            parts.pop(at)
        case 1:
            parts.append(parts[at])
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case 3:
            parts.clear()
        case 4:
            parts.insert(other, parts[at])
    if descriptor.message_type is not None:
        parts = [type(part).FromString(part.SerializeToString()) for part in parts]
    message.ClearField(descriptor.name)
    getattr(message, descriptor.name).extend(parts)


def _clear_field(made: onnx.ModelProto, rng: Rng) -> None:
    fields = [
        (message, descriptor.name)
        for message in _messages(made)
        for descriptor, _ in message.ListFields()
        if message is not made or descriptor.name != "graph"
    ]
    message, name = rng.choice(fields)
    message.ClearField(name)


def _change_attribute(made: onnx.ModelProto, rng: Rng) -> None:
    """Lists of another length, other numbers, another type: what operators are read by."""
    own = [each for each in _messages(made) if isinstance(each, onnx.AttributeProto)]
    if not own:
        return
    attribute = rng.choice(own)
    name = attribute.name
    numbers = [_number(rng, 1) for _ in range(rng.randrange(6))]
    values: list[Any] = [numbers or [0], _number(rng, 1), float(rng.random()), "SAME_LOWER", "no"]
    attribute.CopyFrom(helper.make_attribute(name, rng.choice([numbers or [0], *values])))


_ATTRIBUTES = (
    *("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad", "axis", "axes"),
    *("output_shape", "output_padding", "ceil_mode", "mode", "perm", "to", "blocksize"),
)


def _add_attribute(made: onnx.ModelProto, rng: Rng) -> None:
    target = rng.choice(made.graph.node)
    name = rng.choice(_ATTRIBUTES)
    numbers = [_number(rng, 1) for _ in range(rng.randrange(1, 5))]
    new = helper.make_attribute(name, rng.choice([numbers, numbers[0], "SAME_UPPER"]))
    for attribute in target.attribute:
        if attribute.name == name:
            attribute.CopyFrom(new)
            return
    target.attribute.append(new)


def _change_wire(made: onnx.ModelProto, rng: Rng) -> None:
    """Another input or output: cycles, self-loops, a name that is made twice, a missing one."""
    target = rng.choice(made.graph.node)
    field = rng.choice([target.input, target.output])
    new = rng.choice([*_names(made), *target.output, *target.input, "", "nobody"])
    if field and rng.random() < 0.8:
        field[rng.randrange(len(field))] = new
    else:
        field.append(new)


def _change_operator(made: onnx.ModelProto, rng: Rng) -> None:
    target = rng.choice(made.graph.node)
    if rng.random() < 0.3:
        target.domain = rng.choice(["ai.onnx", "com.microsoft", "own", "nowhere"])
    else:
        others = [each.op_type for each in made.graph.node]
        target.op_type = rng.choice(
            [*others, "Conv", "ConvTranspose", "MaxPool", "Softmax", "Flatten", "Size", "Nothing"]
        )


def _change_dims(made: onnx.ModelProto, rng: Rng) -> None:
    """The shape of a weight, its bytes with it or not."""
    tensors = [each for each in _messages(made) if isinstance(each, TensorProto)]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    dims = list(tensor.dims)
    match rng.randrange(6):
        case 0:
            dims = dims[::-1]
        case 1:
            dims = [*dims, 1]
        case 2:
            dims = [1, *dims]
        case 3:
            dims = [int(np.prod(dims))]
        case 4:
            dims = [0 if rng.random() < 0.5 else size for size in dims]
        case 5:
            dims = [_number(rng, size) for size in dims]
    del tensor.dims[:]
    with contextlib.suppress(ValueError):
        tensor.dims.extend(dims)
    if rng.random() < 0.7 and all(0 <= size < 100 for size in dims) and tensor.raw_data:
        data = tensor.raw_data * (1 + int(np.prod(dims)) * 8 // len(tensor.raw_data))
        width = len(tensor.raw_data) // max(1, int(np.prod(list(tensor.dims))))
        tensor.raw_data = data[: max(width, 1) * int(np.prod(dims))]


def _change_type(made: onnx.ModelProto, rng: Rng) -> None:
    kinds = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 23, 25, 77, -1]
    kind = rng.choice(kinds)
    targets = [
        each for each in _messages(made) if isinstance(each, (TensorProto, onnx.TypeProto.Tensor))
    ]
    if targets:
        target = rng.choice(targets)
        if isinstance(target, TensorProto):
            target.data_type = kind
        else:
            target.elem_type = kind


def _change_version(made: onnx.ModelProto, rng: Rng) -> None:
    if rng.random() < 0.3:
        made.ir_version = rng.choice([0, 1, 3, 4, 7, 10, 13, 14, 99])
        return
    rng.choice(made.opset_import).version = rng.choice([0, 1, 6, 8, 9, 10, 11, 13, 18, 21, 24, 99])


def _store_sparse(made: onnx.ModelProto, rng: Rng) -> None:
    """A weight as a sparse initializer, right or nearly."""
    held = [t for t in made.graph.initializer if t.data_type == TensorProto.FLOAT]
    if not held:
        return
    tensor = rng.choice(held)
    array = onnx.numpy_helper.to_array(tensor).reshape(-1)
    places = np.flatnonzero(array)[: rng.randrange(1, 20)]
    sparse = onnx.SparseTensorProto()
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(array[places].copy(), tensor.name))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(places.astype(np.int64), "where"))
    sparse.dims.extend(tensor.dims)
    kept = [TensorProto.FromString(t.SerializeToString()) for t in made.graph.initializer]
    name = tensor.name
    del made.graph.initializer[:]
    made.graph.initializer.extend(t for t in kept if t.name != name)
    made.graph.sparse_initializer.append(sparse)


_MUTATIONS: tuple[tuple[Callable[[onnx.ModelProto, Rng], None], int], ...] = (
    (_change_scalar, 8),
    (_change_list, 4),
    (_clear_field, 3),
    (_change_attribute, 4),
    (_add_attribute, 3),
    (_change_wire, 3),
    (_change_operator, 2),
    (_change_dims, 3),
    (_change_type, 2),
    (_change_version, 1),
    (_store_sparse, 1),
)


def mutated(seed: int) -> tuple[str, bytes]:
    """Return the name of a small model and a mutation of it, as a file's bytes."""
    rng = random.Random(seed)
    name = rng.choice(sorted(MODELS))
    made = MODELS[name]()
    functions, weights = zip(*_MUTATIONS, strict=True)
    if rng.random() > 0.12:
        for mutate in rng.choices(functions, weights, k=rng.choice([1, 1, 1, 2, 3])):
            # Not every damage can be done to what is left of a damaged model.
            with contextlib.suppress(IndexError, ValueError, TypeError, ZeroDivisionError):
                mutate(made, rng)
        return name, made.SerializeToString()
    data = bytearray(made.SerializeToString())
    match rng.randrange(3):
        case 0:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            at = rng.randrange(len(data))
            del data[at : at + rng.randrange(1, 9)]
    return name, bytes(data)


ACTIONS: tuple[dict[str, Any], ...] = (
    {"form": "batch", "min_elements": 0},
    {"form": "sequential", "min_elements": 0, "splits": 3},
    {"form": "batch", "min_elements": 0, "axis": "width"},
    {"form": "fused", "splits": 2},
    {"form": "shrinking", "splits": 4},
    {"form": "loop", "splits": 2},
    {"splits": 3},
    {"axis": "auto", "splits": 2},
    {"memory_budget": 4000},
    {"upgrade_opset": 21},
    {"target": "tensorrt", "exclude": ["first"]},
    {"do": "inspect"},
    {"do": "pareto"},
    {"do": "convert", "min_elements": 0},
)


def _act(path: Path, action: dict[str, Any]) -> Path | None:
    """Do one of `ACTIONS` with a file; return what was written."""
    options = {**action, "allow_custom_ops": True}
    match options.pop("do", "rewrite"):
        case "inspect":
            inspection_of(load(path), Options(allow_custom_ops=True))
        case "pareto":
            pareto(path, **options)
        case "convert":
            made = convert_model(load(path).model, verify=False, **options)
            out = path.with_name("converted.onnx")
            out.write_bytes(made.SerializeToString())
            return out
        case _:
            return rewrite(path, path.with_name("out.onnx"), verify=False, **options).path
    return None


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64,
          "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(double)": np.float64,
          "tensor(int32)": np.int32, "tensor(bool)": np.bool_}  # fmt: skip


def _feeds(session: Any) -> dict[str, Array] | None:
    generator = np.random.default_rng(0)
    feeds = {}
    for given in session.get_inputs():
        sizes = {"n": 2, "h": 20, "w": 9}
        dims = [size if isinstance(size, int) else sizes.get(size, 5) for size in given.shape]
        if given.type not in _TYPES or np.prod(dims, dtype=float) > 1e6:
            return None
        kind = np.dtype(_TYPES[given.type])
        array = generator.standard_normal(dims) * (1 if kind.kind == "f" else 50)
        feeds[given.name] = np.abs(array).astype(kind) if kind.kind == "u" else array.astype(kind)
    return feeds


def _held_against(original: Path, out: Path) -> tuple[str, str]:
    """Open and run both: what ONNX Runtime takes of the original, it takes of the result."""
    try:
        before = _session(original)
        feeds = _feeds(before)
        wanted = None if feeds is None else before.run(None, feeds)
    except Exception as error:  # noqa: BLE001 - whatever the runtime says: the original is no good
        return "written", f"the original: {' '.join(str(error).split())[:100]}"
    try:
        after = _session(out)
        got = None if feeds is None else after.run(None, feeds)
    except Exception as error:  # noqa: BLE001
        return "unusable", " ".join(str(error).split())[:400]
    for a, b in zip(wanted or (), got or (), strict=True):
        if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiu":
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return "wrong", f"{a.dtype}{a.shape} became {b.dtype}{b.shape}"
        quantum = 1.0 if a.dtype.itemsize == 1 else 0.0
        a, b = a.astype(np.float64), b.astype(np.float64)
        spread = np.max(np.abs(a[np.isfinite(a)]), initial=1e-3)
        off = np.abs(a - b)[np.isfinite(a)]
        if np.isfinite(off).all() and np.max(off, initial=0) <= _TOLERANCE * spread + quantum:
            continue
        return "wrong", f"off by {np.max(off, initial=0):.3g}, largest {spread:.3g}"
    return "same", ""


def run_one(seed: int, folder: Path) -> dict[str, Any]:
    """Mutate, act, look at what came of it."""
    name, data = mutated(seed)
    action = ACTIONS[random.Random(-seed).randrange(len(ACTIONS))]
    path = folder / "model.onnx"
    path.write_bytes(data)
    result: dict[str, Any] = {"seed": seed, "model": name, "action": action}
    try:
        out = _act(path, action)
        result["outcome"], result["message"] = "written", ""
        if out is not None:
            print(json.dumps({"seed": seed, "stage": "running"}), flush=True)  # noqa: T201 - a program
            result["outcome"], result["message"] = _held_against(path, out)
    except (PatchConvError, RewriterError, EngineError) as error:
        result["outcome"], result["message"], out = "refused", str(error), None
    except Exception as error:  # noqa: BLE001 - a finding, whatever it is
        result["outcome"], out = "internal error", None
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "site-packages" not in f.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        result["message"] = f"{type(error).__name__}: {error}"[:300] + f" at {where}"
    if path.read_bytes() != data:
        result["outcome"] = "original changed"
    for left in sorted(folder.iterdir()):
        if left not in (path, out):
            result["outcome"], result["message"] = "litter", left.name
        if left.is_file():
            left.unlink()
    return result


def main() -> None:
    """Run a range of seeds; a line of JSON before each and one after."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))

    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed, "stage": "rewriting"}), flush=True)  # noqa: T201 - a program
        signal.alarm(_SECONDS)
        result = run_one(seed, folder)
        signal.alarm(0)
        print(json.dumps(result), flush=True)  # noqa: T201 - a program


if __name__ == "__main__":
    main()
