"""The operators a region can hold: one table entry each.

An entry reads a frozen `Record` of the node (attributes, opset, input shapes) and answers with a
`RowLocal`, the node's rows along the tiled axis, or with the reason it cannot be in a region.
Emission knows no operator: what is not in this table is not cut.

    entry                                     rows                    refused
    Conv, ConvInteger, QLinearConv            Sliding                 kernel size unknown
    ConvTranspose                             Transposed              output_shape beyond the kernel
    QuantizeLinear, DequantizeLinear          Pointwise               scales along the tiled axis
    Relu, Clip, LeakyRelu                     Pointwise

Every attribute of a convolution is read in `read_convolution`, all defaults made explicit.

Source: the ONNX operator definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewriters.rowmaps import Pointwise, RowMap, Sliding, Transposed

__all__ = [
    "CONVOLUTIONS",
    "TABLE",
    "Convolution",
    "Record",
    "RowLocal",
    "Shape",
    "read_convolution",
]

Shape = tuple[int | None, ...]

# Convolution operators and the input that holds the kernel.
CONVOLUTIONS: Mapping[str, int] = {
    "Conv": 1,
    "ConvTranspose": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
}


@dataclass(frozen=True, slots=True)
class Record:
    """What a table entry may know of a node.

    Attributes:
        op_type: Operator of the default domain.
        opset: Version of the default domain.
        attributes: Values as Python numbers, strings and tuples.
        shapes: Shape of each input; None where the rank is unknown.
    """

    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    shapes: tuple[Shape | None, ...]

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an input, None if it is absent or of unknown rank."""
        return self.shapes[index] if index < len(self.shapes) else None


@dataclass(frozen=True, slots=True)
class RowLocal:
    """A node's rows along the tiled axis.

    Attributes:
        row_map: Input rows against output rows.
        carrier: Index of the input that carries the tiled axis; the others are shared.
        attributes: Attributes to replace so that the node holds no absolute size; None drops one.
    """

    row_map: RowMap
    carrier: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution's attributes, every default made explicit; one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    auto_pad: str
    group: int
    output_padding: tuple[int, ...]
    output_shape: tuple[int, ...] | None

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    def reach(self, i: int) -> int:
        """Return the rows from a kernel's first to its last tap, both included."""
        return self.dilations[i] * (self.kernel[i] - 1) + 1


def read_convolution(record: Record) -> Convolution | str:
    """Read every attribute of a convolution, or say why that cannot be done."""
    weight = record.shape(CONVOLUTIONS[record.op_type])
    given = record.attributes.get("kernel_shape")
    if given is None:
        if weight is None:
            return "kernel_shape is not given and the weight's shape is unknown"
        given = weight[2:]
    if not given or any(size is None or size < 1 for size in given):
        return "the kernel's size is unknown"
    kernel = tuple(given)
    rank = len(kernel)
    if weight is not None and len(weight) != rank + 2:
        return f"kernel_shape has {rank} axes, the weight {len(weight) - 2}"

    def ints(name: str, default: int, length: int = rank) -> tuple[int, ...]:
        return tuple(record.attributes.get(name, (default,) * length))

    strides, dilations = ints("strides", 1), ints("dilations", 1)
    pads, extra = ints("pads", 0, 2 * rank), ints("output_padding", 0)
    lengths = (len(strides), len(dilations), len(pads), len(extra))
    if lengths != (rank, rank, 2 * rank, rank):
        return f"strides, dilations or pads do not fit {rank} spatial axes"
    if min(strides + dilations) < 1 or min(pads + extra) < 0:
        return "a stride or dilation below 1, or a negative padding"
    if max(strides + dilations + pads + extra + kernel) >= 1 << 31:
        return "a kernel, stride, dilation or padding of 2^31 or more"
    auto_pad = record.attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return f"auto_pad is {auto_pad!r}"
    if auto_pad != "NOTSET":
        pads = (0,) * (2 * rank)
    output_shape = record.attributes.get("output_shape")
    return Convolution(
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        begins=pads[:rank],
        ends=pads[rank:],
        auto_pad=auto_pad,
        group=record.attributes.get("group", 1),
        output_padding=extra,
        output_shape=tuple(output_shape) if output_shape else None,
    )


def _sliding(record: Record, axis: int) -> RowLocal | str:
    conv = read_convolution(record)
    if isinstance(conv, str):
        return conv
    i = axis - 2
    same = conv.auto_pad if conv.auto_pad.startswith("SAME") else None
    return RowLocal(
        Sliding(conv.reach(i), conv.strides[i], conv.begins[i], conv.ends[i], same=same)
    )


def _split_padding(total: int, auto_pad: str) -> tuple[int, int]:
    """Split ConvTranspose's computed padding: the odd row goes below for SAME_UPPER alone."""
    small, large = total // 2, total - total // 2
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _transposed(record: Record, axis: int) -> RowLocal | str:
    conv = read_convolution(record)
    if isinstance(conv, str):
        return conv
    begins, ends = list(conv.begins), list(conv.ends)
    replaced: dict[str, Any] = {}
    if conv.output_shape is not None:
        shape = record.shape(0)
        if len(conv.output_shape) != conv.rank:
            return "output_shape does not have one entry per spatial axis"
        if shape is None or any(size is None for size in shape[2:]):
            return "output_shape fixes the output of an input of unknown size"
        natural = [
            (size or 0) * stride - stride + extra + conv.reach(j)
            for j, (size, stride, extra) in enumerate(
                zip(shape[2:], conv.strides, conv.output_padding, strict=True)
            )
        ]
        totals = [a - b for a, b in zip(natural, conv.output_shape, strict=True)]
        replaced = {"output_shape": None, "auto_pad": None}
    elif conv.auto_pad.startswith("SAME"):
        totals = [
            conv.reach(j) + conv.output_padding[j] - conv.strides[j] for j in range(conv.rank)
        ]
    else:
        totals = []
    if totals:
        if min(totals) < 0:
            return "its output is asked to be larger than the kernel can fill"
        for j, total in enumerate(totals):
            begins[j], ends[j] = _split_padding(total, conv.auto_pad)
        if replaced:
            replaced["pads"] = (*begins, *ends)
    i = axis - 2
    row_map = Transposed(conv.reach(i), conv.strides[i], begins[i], ends[i], conv.output_padding[i])
    return RowLocal(row_map, attributes=replaced)


def _quantize(record: Record, axis: int) -> RowLocal | str:
    scale, shape = record.shape(1), record.shape(0)
    if scale is None:
        return "its scale's shape is unknown"
    if record.attributes.get("block_size", 0):
        return "it is quantised block by block"
    if any(size != 1 for size in scale):
        at = record.attributes.get("axis", 1)
        if at < 0:
            if shape is None:
                return "its quantised axis counts from the end of an unknown rank"
            at += len(shape)
        if at in (0, axis):
            return "its scales vary along the tiled or the batch axis"
    return RowLocal(Pointwise())


def _pointwise(record: Record, axis: int) -> RowLocal | str:
    return RowLocal(Pointwise())


TABLE: Mapping[str, Callable[[Record, int], RowLocal | str]] = {
    "Conv": _sliding,
    "ConvInteger": _sliding,
    "QLinearConv": _sliding,
    "ConvTranspose": _transposed,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "Relu": _pointwise,
    "Clip": _pointwise,
    "LeakyRelu": _pointwise,
}
