"""Hand-made ONNX models for the tests, and ONNX Runtime to compare them with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model

__all__ = [
    "FP32",
    "Array",
    "Dims",
    "assert_same",
    "assert_same_where_it_runs",
    "chain",
    "conv",
    "copy_of",
    "cut",
    "file_names",
    "gated_blocks",
    "model",
    "most_elements",
    "node",
    "noise",
    "operators",
    "run",
    "session",
    "super_resolution",
    "value",
]


Array: TypeAlias = np.ndarray[Any, Any]

Dims: TypeAlias = Sequence[int | str | None] | None

# A patch sums the same products as the whole; a runtime may add them in another order, so single
# precision differs by a few units in the last place of the largest partial sum.
FP32 = 1e-5


def node(op: str, inputs: str, outputs: str, *, name: str = "", **attrs: Any) -> onnx.NodeProto:
    """Make a node; inputs and outputs are separated by blanks, "_" is an absent one."""
    made = helper.make_node(
        op,
        [part if part != "_" else "" for part in inputs.split()],
        outputs.split(),
        **attrs,
    )
    made.name = name
    return made


def file_names(folder: Path) -> list[str]:
    """Return what is in a folder; HASH stands for what names weights after their bytes."""
    names = (entry.name for entry in folder.iterdir())
    return sorted(re.sub(r"\.[0-9a-f]{16}\.data$", ".HASH.data", name) for name in names)


def value(name: str, dims: Dims, kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """Make a value: dims are sizes, symbols, None (unset) or -1; None for an unknown rank."""
    return helper.make_tensor_value_info(name, kind, dims)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Dims] | Sequence[onnx.ValueInfoProto],
    outputs: Mapping[str, Dims] | Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    value_info: Sequence[onnx.ValueInfoProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Make a model; float32 values where a mapping of names to dims is given."""

    def values(
        given: Mapping[str, Dims] | Sequence[onnx.ValueInfoProto],
    ) -> list[onnx.ValueInfoProto]:
        if isinstance(given, Mapping):
            return [value(name, dims) for name, dims in given.items()]
        return list(given)

    graph = helper.make_graph(
        nodes,
        "small",
        values(inputs),
        values(outputs),
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        value_info=value_info,
    )
    opsets = [helper.make_opsetid(d, v) for d, v in {"": opset, **(domains or {})}.items()]
    return helper.make_model(
        graph,
        ir_version=ir,
        opset_imports=opsets,
        functions=functions,
        producer_name="tests",
    )


def in_half(made: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of single precision in half precision, weights, inputs and outputs."""
    half = copy_of(made)
    for tensor in half.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for each in (*half.graph.input, *half.graph.output):
        each.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return half


def noise(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Return seeded normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def conv(
    dims: Dims = (1, 2, 16, 10),
    *,
    kernel: int = 3,
    out: int = 3,
    opset: int = 17,
    ir: int = 8,
    name: str = "conv",
    **attrs: Any,
) -> onnx.ModelProto:
    """Make a model of one Conv with bias, by default padded to keep its size."""
    attrs.setdefault("pads", [kernel // 2] * 4)
    return model(
        [node("Conv", "x w b", "y", name=name, **attrs)],
        {"x": dims},
        {"y": (None,) * 4},
        {"w": noise(out, 2, kernel, kernel, seed=1), "b": noise(out, seed=2)},
        opset=opset,
        ir=ir,
    )


def chain(
    count: int, dims: Dims = (1, 2, 16, 10), *, relu: bool = True, ir: int = 8
) -> onnx.ModelProto:
    """Make conv0 -> relu0 -> conv1 -> ...; 2 channels throughout."""
    nodes, weights, x = [], {}, "x"
    for k in range(count):
        y = "y" if k == count - 1 else f"c{k}"
        nodes.append(node("Conv", f"{x} w{k}", y, name=f"conv{k}", pads=[1] * 4))
        weights[f"w{k}"] = noise(2, 2, 3, 3, seed=k)
        x = y
        if relu and k < count - 1:
            x = f"r{k}"
            nodes.append(node("Relu", y, x, name=f"relu{k}"))
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights, ir=ir)


def super_resolution(side: int) -> onnx.ModelProto:
    """Make a network that scales 3 channels up by 4: inside, 64 channels at four times the side."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node(
            "Resize",
            "c _ s",
            "u",
            name="up",
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        node("Conv", "u b", "v", name="wide", pads=[1] * 4),
        node("Relu", "v", "r", name="relu"),
        node("Conv", "r d", "y", name="last", pads=[1] * 4),
    ]
    weights = {
        "a": noise(64, 3, 3, 3),
        "b": noise(64, 64, 3, 3) / 24,
        "d": noise(3, 64, 3, 3) / 24,
        "s": np.array([1, 1, 4, 4], np.float32),
    }
    dims = {"x": (1, 3, side, side)}, {"y": (1, 3, 4 * side, 4 * side)}
    return model(nodes, *dims, weights)


def most_elements(made: onnx.ModelProto) -> int:
    """Return the elements of a model's largest tensor; every shape has to be known."""
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True).graph
    shapes = {each.name: each.type.tensor_type.shape.dim for each in inferred.value_info}
    shapes |= {each.name: each.type.tensor_type.shape.dim for each in inferred.output}
    assert {name for each in inferred.node for name in each.output if name} == shapes.keys()
    assert all(dim.dim_value for dims in shapes.values() for dim in dims)
    return max(math.prod(dim.dim_value for dim in dims) for dims in shapes.values())


def gated_blocks(blocks: int, size: tuple[int | str, int] = (96, 32)) -> onnx.ModelProto:
    """Return residual blocks whose channels are weighed by what a pool over the image says."""
    nodes, channels = [node("Conv", "x first", "b0", name="first", pads=[1] * 4)], 8
    weights = {"first": noise(channels, 3, 3, 3), "last": noise(2, channels, 3, 3)}
    for at in range(blocks):
        for which in "uv":
            weights[f"{which}{at}"] = noise(channels, channels, 3, 3, seed=at) / np.float32(9)
        nodes += [
            node("Conv", f"b{at} u{at}", f"c{at}", name=f"c{at}", pads=[1] * 4),
            node("Relu", f"c{at}", f"r{at}", name=f"r{at}"),
            node("Conv", f"r{at} v{at}", f"d{at}", name=f"d{at}", pads=[1] * 4),
            node("GlobalAveragePool", f"d{at}", f"p{at}", name=f"p{at}"),
            node("Sigmoid", f"p{at}", f"s{at}", name=f"s{at}"),
            node("Mul", f"d{at} s{at}", f"m{at}", name=f"m{at}"),
            node("Add", f"m{at} b{at}", f"b{at + 1}", name=f"a{at}"),
        ]
    nodes.append(node("Conv", f"b{blocks} last", "y", name="last", pads=[1] * 4))
    return model(nodes, {"x": (1, 3, *size)}, {"y": (1, 2, *size)}, weights)


def copy_of(original: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model."""
    made = onnx.ModelProto()
    made.CopyFrom(original)
    return made


def cut(original: onnx.ModelProto, form: str = "batch", **options: Any) -> Outcome:
    """Rewrite a copy of a model: every Conv, in four patches, unless told otherwise."""
    options.setdefault("selection", Selection(min_elements=0))
    return rewrite_model(Loaded(copy_of(original), None), Options(form=form, **options))


def session(made: onnx.ModelProto) -> Any:
    """Open a model in ONNX Runtime, one thread, warnings off."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = made.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(made: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model and return its outputs by name."""
    opened = session(made)
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, dict(feeds)), strict=True))


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Mapping[str, Array],
    rel: float = FP32,
    least: float = 0.0,
) -> None:
    """Assert equal outputs: names, types, shapes, and values within ``rel`` of the largest.

    Args:
        before: The one model.
        after: The other.
        feeds: Inputs of both.
        rel: How far values may be apart, of the largest of an output.
        least: How far in any case: what is 0 but for rounding has no digit that is right.
    """
    expected, got = run(before, feeds), run(after, feeds)
    assert list(expected) == list(got)
    for name, array in expected.items():
        other = got[name]
        assert array.dtype == other.dtype
        assert array.shape == other.shape
        largest = float(np.max(np.abs(array.astype(np.float64)), initial=0.0))
        error = float(np.max(np.abs(array.astype(np.float64) - other), initial=0.0))
        assert error <= max(rel * largest, least), f"{name}: off by {error}, largest {largest}"


def assert_same_where_it_runs(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Iterable[Mapping[str, Array]],
    rel: float = FP32,
) -> int:
    """Assert equal outputs on all inputs that the first model runs on; return how many."""
    ran = 0
    for each in feeds:
        try:
            run(before, each)
        except Exception:  # noqa: BLE001 - the model itself does not run on them
            continue
        ran += 1
        assert_same(before, after, each, rel)
    return ran


def operators(made: onnx.ModelProto) -> list[str]:
    """Return the operators of the main graph in order."""
    return [entry.op_type for entry in made.graph.node]
