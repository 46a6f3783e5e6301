"""What nodes make of sizes: arithmetic on a few whole numbers, each a function of one free size.

    Shape -- Gather -- Div -- Floor -- Concat -- ...

An element that is no function of one free size is None.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import onnx

from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.tiling.sizes import Size, left_over, ratio

__all__ = ["REALS", "Dims", "Known", "Value", "is_whole", "numbers_of", "value_of"]


Dims = tuple[Size | None, ...]

# A value: its elements in order, and whether it is one number without dimensions.
Value = tuple[Dims, bool]

REALS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)

# Types in which sizes are exact: below 2^24 whole numbers are in all of them.
_EXACT = frozenset(
    {
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
    }
)

_ZERO = Size.number(0)


class Known(Protocol):
    """What is known of the tensors that a node reads.

    Attributes:
        dims: Shapes.
        quotients: Quotients of reals that are no whole number at every size: what is divided, and
            by what. Those that are found are put in.
    """

    @property
    def dims(self) -> Mapping[str, Dims]: ...  # noqa: D102

    @property
    def quotients(self) -> MutableMapping[str, tuple[tuple[Size, int], ...]]: ...  # noqa: D102

    def value(self, name: str) -> Value | None:
        """Return a small tensor's elements, as far as they are known."""

    def is_real(self, name: str) -> bool:
        """Tell whether a tensor is of floating point."""


def value_of(node: onnx.NodeProto, known: Known) -> Value | None:
    """Return what a node makes, if that is a few whole numbers.

    Args:
        node: The node, of the default domain.
        known: What is known of what it reads.
    """
    values = attributes(node)
    match node.op_type:
        case "Shape":
            dims = known.dims.get(node.input[0])
            return (
                None if dims is None else (dims[values.get("start", 0) : values.get("end")], False)
            )
        case "Identity":
            return known.value(node.input[0])
        case "Cast" if values.get("to") not in _EXACT:
            return None
        case "Cast" | "Floor" | "Ceil":
            return _rounded(node, known)
        case "Squeeze" | "Unsqueeze" | "Reshape":
            return _reshaped(node, known)
        case "Concat":
            parts = [known.value(name) for name in node.input]
            if any(part is None or part[1] for part in parts):
                return None
            return tuple(size for part in parts if part for size in part[0]), False
        case "ReduceProd":
            return _multiplied(node, known)
        case "Gather":
            return _gathered(known.value(node.input[0]), known.value(node.input[1]))
        case "Slice":
            return _sliced(node, known)
        case "Add" | "Sub" | "Mul" | "Div" | "Mod" if len(node.input) == 2:
            pair = [known.value(name) for name in node.input]
            if pair[0] is None or pair[1] is None:
                return None
            if node.op_type in ("Div", "Mod") and any(known.is_real(name) for name in node.input):
                return _divided(node, known, pair[0], pair[1])
            # With fmod the sign is that of the dividend.
            op = "Fmod" if values.get("fmod", 0) else node.op_type
            return _calculated(op, pair[0], pair[1])
        case "Neg":
            value = known.value(node.input[0])
            if value is None:
                return None
            return tuple(None if size is None else size * -1 for size in value[0]), value[1]
    return None


def is_whole(number: Any) -> bool:
    """Tell whether a real number is a whole one; infinite ones are not."""
    return isinstance(number, float) and number.is_integer()


def _rounded(node: onnx.NodeProto, known: Known) -> Value | None:
    """Return sizes in another type, or quotients rounded; whole numbers are what they are."""
    name = node.input[0]
    value = known.value(name)
    quotients = known.quotients.get(name)
    if value is not None or quotients is None:
        return value
    if node.op_type == "Cast" and attributes(node).get("to") in REALS:
        known.quotients[node.output[0]] = quotients
        return None
    # A Cast to whole numbers truncates, which is down: nothing here is below 0.
    up = int(node.op_type == "Ceil")
    made: list[Size | None] = []
    for size, by in quotients:
        above = size + (by - 1) * up
        made.append(None if above is None else above // by)
    return tuple(made), False


def _divided(node: onnx.NodeProto, known: Known, a: Value, b: Value) -> Value | None:
    """Return a quotient of reals that is whole at every size; note another one."""
    made = _calculated("Div", a, b)
    rest = _calculated("Mod", a, b)
    if node.op_type == "Mod" or made is None or rest is None or a[1]:
        return None
    numbers = numbers_of(rest)
    if numbers is not None and not any(numbers):
        return made
    by = [None if size is None else size.constant for size in b[0]]
    by = by * len(a[0]) if len(by) == 1 else by
    pairs = [(x, y) for x, y in zip(a[0], by, strict=False) if x is not None and y and y > 0]
    if len(pairs) == len(a[0]) == len(made[0]) and all(x.is_never_below(_ZERO) for x, _ in pairs):
        known.quotients[node.output[0]] = tuple(pairs)
    return None


def _reshaped(node: onnx.NodeProto, known: Known) -> Value | None:
    """Return the same elements, as a vector or as one number."""
    value = known.value(node.input[0])
    if value is None:
        return None
    if node.op_type == "Reshape":
        target = numbers_of(known.value(node.input[1]))
        return None if target is None or len(target) > 1 else (value[0], not target)
    if node.op_type == "Unsqueeze":
        # Of a vector it would make a matrix.
        return (value[0], False) if value[1] else None
    return (value[0], True) if len(value[0]) == 1 else None


def _multiplied(node: onnx.NodeProto, known: Known) -> Value | None:
    """Return the product of a vector of sizes, as far as it is one of numbers and one size."""
    value = known.value(node.input[0])
    if value is None or value[1]:
        return None
    return (left_over(value[0], ()),), not attributes(node).get("keepdims", 1)


def numbers_of(value: Value | None) -> list[int] | None:
    """Return a value that is known as whole as numbers."""
    found = [] if value is None else [None if s is None else s.constant for s in value[0]]
    known = [number for number in found if number is not None]
    return known if value is not None and len(known) == len(found) else None


def _gathered(data: Value | None, indices: Value | None) -> Value | None:
    at = numbers_of(indices)
    if data is None or indices is None or at is None or data[1]:
        return None
    if any(not -len(data[0]) <= index < len(data[0]) for index in at):
        return None
    return tuple(data[0][index] for index in at), indices[1]


def _sliced(node: onnx.NodeProto, known: Known) -> Value | None:
    data = known.value(node.input[0])
    if data is None or data[1]:
        return None
    if len(node.input) > 2:
        bounds = [numbers_of(known.value(name)) if name else [0] for name in node.input[1:]]
    else:
        values = attributes(node)
        bounds = [list(values.get("starts", ())), list(values.get("ends", ()))]
    if any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    start, end, _, step = [each[0] for each in bounds if each] + [0, 1][len(bounds) - 2 :]
    return (data[0][start:end:step], False) if step else None


def _calculated(op: str, a: Value, b: Value) -> Value | None:
    count = max(len(a[0]), len(b[0]))
    if {len(a[0]), len(b[0])} - {1, count}:
        return None
    left: Sequence[Size | None] = a[0] * count if len(a[0]) == 1 else a[0]
    right: Sequence[Size | None] = b[0] * count if len(b[0]) == 1 else b[0]
    made = tuple(
        None if x is None or y is None else _number(op, x, y)
        for x, y in zip(left, right, strict=True)
    )
    return made, a[1] and b[1]


def _number(op: str, a: Size, b: Size) -> Size | None:
    by: Any = b.constant
    match op:
        case "Add":
            return a + b
        case "Sub":
            return a - b
        case "Mul":
            if by is not None:
                scaled: Size = a * by
                return scaled
            return None if a.constant is None else b * a.constant
        case "Div" if by is None and (times := ratio(a, b)) is not None:
            return Size.number(int(times)) if times.denominator == 1 else None
        case "Mod" if by and by > 0:
            # Of whole numbers: the sign is that of the divisor, as here.
            rest: Size | None = a % by
            return rest
        case "Div" | "Fmod" if by and by > 0 and a.is_never_below(_ZERO):
            made: Size | None = a // by if op == "Div" else a % by
            return made
    return None
