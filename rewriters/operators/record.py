"""What is read of a node: a frozen record, and a convolution's attributes with all defaults.

A table entry (`operators.resampling`) reads a `Record` and answers with a `RowLocal`, or with the
reason the node cannot be in a region.

Source: the ONNX operator definitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchconv_deploy.rewriters.tiling.row_maps import RowMap, removable_padding
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = [
    "CONVOLUTIONS",
    "FOLDED",
    "ONNX_DOMAINS",
    "ROWS",
    "Absolute",
    "Convolution",
    "FreeShape",
    "Pads",
    "Record",
    "RowLocal",
    "Shape",
    "is_channelwise",
    "read_convolution",
]


# How the domain of ONNX's own operators is spelled.
ONNX_DOMAINS = ("", "ai.onnx")

Shape = tuple[int | None, ...]

FreeShape = tuple[Size | None, ...]

# Stands, in a constant, for the rows the node's output has in a window.
ROWS = None

# What ONNX Runtime folds into a convolution where all else that it reads is constant.
FOLDED: Mapping[str, frozenset[str]] = {
    "Conv": frozenset({"BatchNormalization", "Mul", "Add"}),
    "ConvTranspose": frozenset({"BatchNormalization"}),
}


def is_channelwise(op_type: str, dims: Shape | None, result: Shape | None) -> bool:
    """Tell whether a Mul or Add by a constant scales or shifts whole channels, as Convs can.

    Args:
        op_type: "Mul", which may also be by one number without dimensions, or "Add".
        dims: Shape of the constant.
        result: Shape of the convolution's result.
    """
    if dims is None or result is None or len(result) < 3:
        return False
    channels = (result[1], *(1,) * (len(result) - 2))
    return dims in (channels, (1, *channels)) or (op_type == "Mul" and not dims)


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
        outputs: Shape of each output; None where the rank is unknown or nobody reads it.
        values: Numbers of each input that is a small constant, else None.
        used: Whether anybody reads the output, for each.
        absent: Optional inputs that are left out.
        free: Shape of each input in terms of the model's free sizes, as far as that is known.
        free_output: The same of the first output.
        stated: Elements of each input that are sizes, likewise; None where they are none.
    """

    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    shapes: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...] = ()
    values: Sequence[tuple[Any, ...] | None] = ()
    used: tuple[bool, ...] = (True,)
    absent: frozenset[int] = frozenset()
    free: tuple[FreeShape, ...] = ()
    free_output: FreeShape = ()
    stated: tuple[FreeShape | None, ...] = ()

    def shape(self, index: int) -> Shape | None:
        """Return the shape of an input, None if it is absent or of unknown rank."""
        return self.shapes[index] if index < len(self.shapes) else None

    def given(self, index: int) -> bool:
        """Tell whether an optional input is there, even if nothing is known of it."""
        return index < len(self.shapes) and index not in self.absent

    def value(self, index: int) -> tuple[Any, ...] | None:
        """Return the numbers of an input that is a small constant, else None."""
        return self.values[index] if index < len(self.values) else None

    @property
    def output(self) -> Shape | None:
        """The shape of the first output."""
        return self.outputs[0] if self.outputs else None


@dataclass(frozen=True, slots=True)
class Pads:
    """How a node's padding is written, so that less of it can be.

    Attributes:
        values: The padding of all axes.
        begin: Which of them is above the tiled axis.
        end: Which of them is below.
        index: The input that holds them, None for the attribute ``pads``.
        crops: They take rows away (ConvTranspose): more of them is less output.
        without: Attributes that would overrule them.
    """

    values: tuple[int, ...]
    begin: int
    end: int
    index: int | None = None
    crops: bool = False
    without: tuple[str, ...] = ()

    def dropped(self, above: int, below: int) -> tuple[int, ...]:
        """Return the padding with rows dropped above and below."""
        values, sign = list(self.values), 1 if self.crops else -1
        values[self.begin] += sign * above
        values[self.end] += sign * below
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Absolute:
    """Which element of an input is the output's rows.

    Attributes:
        at: The element.
        count: Elements of the input.
        begin: What it is more than the output's rows; None if all elements are the output's shape.
    """

    at: int
    count: int
    begin: int | None = None


@dataclass(frozen=True, slots=True)
class RowLocal:
    """A node's rows along the tiled axis.

    Attributes:
        row_map: Input rows against output rows.
        carriers: Per input that carries the tiled axis its index and which of its dimensions that
            is; the other inputs are shared by all patches.
        axis: The dimension of the outputs that is the tiled axis.
        attributes: Attributes to replace so that the node holds no absolute size; None drops one.
        constants: Integer inputs to replace for the same reason, by index; `ROWS` stands for the
            rows of the output in a window.
        absolute: Integer inputs that hold the whole output's rows, known when the model runs
            alone, or one past the last of them: in a window it is less. By index.
        pads: Its padding, where it may go without some (`tiling.row_maps.removable_padding`).
    """

    row_map: RowMap
    carriers: tuple[tuple[int, int], ...]
    axis: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, tuple[int | None, ...]] = field(default_factory=dict)
    absolute: Mapping[int, Absolute] = field(default_factory=dict)
    pads: Pads | None = None

    @property
    def removable_padding(self) -> tuple[int, int]:
        """Rows of padding it may go without at an interior edge, above and below."""
        return (0, 0) if self.pads is None else removable_padding(self.row_map)


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
