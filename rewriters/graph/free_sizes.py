"""Sizes of tensors in terms of the model's free sizes, and what the graph works out from them.

A model whose height is free computes sizes inside: half of it, up to a multiple of 8, the size of
another tensor. Each is followed here as a function of one free size (`tiling.sizes`), in one walk
over the nodes. Along a dimension whose rows the table of operators knows, a node's rows are those
of its row map; nothing else is said of an operator here, but for the few that make sizes. What is
no function of one free size stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from patchconv_deploy.rewriters.graph.constant_folding import Constants
from patchconv_deploy.rewriters.graph.dividing_sizes import divisors, rounded_up
from patchconv_deploy.rewriters.graph.nodes import attributes
from patchconv_deploy.rewriters.graph.shapes import ANONYMOUS, Shapes, has_shape, known_size
from patchconv_deploy.rewriters.graph.size_tables import Table, turned
from patchconv_deploy.rewriters.graph.size_values import (
    REALS,
    Dims,
    Value,
    is_whole,
    numbers_of,
    value_of,
)
from patchconv_deploy.rewriters.operators.channelwise import REDUCTIONS
from patchconv_deploy.rewriters.operators.elementwise import BROADCAST
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, Record, RowLocal, Shape
from patchconv_deploy.rewriters.operators.rules import CONTRIB_DOMAIN, resize_axes
from patchconv_deploy.rewriters.operators.table import SPATIAL, rows_of, table_of
from patchconv_deploy.rewriters.tiling.sizes import Size, left_over

__all__ = ["NO_SIZES", "FreeSizes", "follow_sizes"]


_MOST_ELEMENTS = 64

# What divides a size may tell of another one.
_MOST_WALKS = 4

# Sizes times larger numbers are not exact in single precision.
_LARGEST_SCALE = 256

# What works on each image of a batch for itself.
_IMAGES = SPATIAL | {"BatchNormalization"}

# The output has the first input's rank.
_SAME_RANK = frozenset(
    "Transpose Slice Pad Concat Resize Relu LeakyRelu Sigmoid Clip Tanh PRelu Softmax Cast "
    "LogSoftmax LayerNormalization Split".split()
)

_BROADCAST, _REDUCTIONS = frozenset(BROADCAST), frozenset(REDUCTIONS)

_ZERO = Size.number(0)


@dataclass(frozen=True, slots=True)
class FreeSizes:
    """What is known of free sizes.

    Attributes:
        dims: Shape of a tensor, None for a size that is no function of one free size.
        values: Elements of small tensors of sizes, likewise.
        places: An input of the model and a dimension of it, for each free size.
        elements: Element types that nothing else tells.
        ranges: The least and the largest of a free size, where that is given.
        tables: Tensors of sizes of more dimensions than one, all of which are known.
    """

    dims: Mapping[str, Dims]
    values: Mapping[str, Dims]
    places: Mapping[str, tuple[str, int]]
    elements: Mapping[str, int]
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tables: frozenset[str] = frozenset()

    def within(self, given: Mapping[str, Sequence[tuple[int, int]]]) -> FreeSizes:
        """Return the same with the ranges of some inputs' sizes.

        Args:
            given: Per input the least and the largest of each dimension.
        """
        ranges = dict[str, tuple[int, int]]()
        for name, pairs in given.items():
            for size, (low, high) in zip(self.dims.get(name, ()), pairs, strict=False):
                if size is not None and size.symbol:
                    known = ranges.get(size.symbol, (low, high))
                    ranges[size.symbol] = max(low, known[0]), min(high, known[1])
        return replace(self, ranges=ranges)

    def range_of(self, size: Size | None) -> tuple[int, int] | None:
        """Return the least and the largest that a size is, None where that is not given."""
        if size is None or size.symbol not in self.ranges or size.slope < 1:
            return None
        low, high = self.ranges[size.symbol]
        # It grows from period to period.
        least = min(size.at(n) for n in range(low, min(high, low + size.period - 1) + 1))
        most = max(size.at(n) for n in range(max(low, high - size.period + 1), high + 1))
        return least, most

    def certain(self, shapes: Shapes) -> Shapes:
        """Return shapes with what turns out to be the same at every size."""
        dims, elements = dict(shapes.dims), {**self.elements, **shapes.elements}
        for name, sizes in self.dims.items():
            known = tuple(None if size is None else size.constant for size in sizes)
            if name not in shapes.doubtful and known != dims.get(name):
                dims[name] = known
        return replace(shapes, dims=dims, elements=elements)

    def makes_sizes(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node makes sizes, all of which are known."""
        return node.domain in ONNX_DOMAINS and all(
            name in self.tables or (name in self.values and None not in self.values[name])
            for name in node.output
        )

    def shape_of(self, node: onnx.NodeProto) -> tuple[Size, ...] | None:
        """Return what a Shape makes; None if not all of it is known, or for another node."""
        if node.op_type != "Shape" or not self.makes_sizes(node):
            return None
        sizes = self.values[node.output[0]]
        known = tuple(size for size in sizes if size is not None)
        return known if len(known) == len(sizes) else None

    def size(self, name: str, axis: int) -> Size | None:
        """Return a tensor's size along a dimension, None if it is not known."""
        dims = self.dims.get(name)
        return None if dims is None or axis >= len(dims) else dims[axis]


NO_SIZES = FreeSizes({}, {}, {}, {})


def follow_sizes(
    graph: onnx.GraphProto,
    shapes: Shapes,
    constants: Constants,
    record: Callable[[int], Record],
) -> FreeSizes:
    """Follow the free sizes of a graph's inputs through its nodes.

    Args:
        graph: The main graph, in order.
        shapes: What is certain.
        constants: Its constants.
        record: What the table of operators may know of a node, by position.
    """
    multiples: Mapping[str, int] = {}
    for _ in range(_MOST_WALKS):
        walk = _Walk(shapes, constants, multiples)
        for value in graph.input:
            walk.read(value)
        for at, node in enumerate(graph.node):
            if node.output and node.domain in (*ONNX_DOMAINS, CONTRIB_DOMAIN):
                walk.follow(node, at, record)
        found = divisors(graph, walk, multiples)
        if not found:
            break
        multiples = {**multiples, **found}
    values = {name: value for name, (value, _) in walk.values.items()}
    tables = frozenset(name for name, table in walk.tables.items() if None not in table)
    return FreeSizes(walk.dims, values, walk.places, walk.elements, tables=tables)


class _Walk:
    def __init__(self, shapes: Shapes, constants: Constants, multiples: Mapping[str, int]) -> None:
        self.dims: dict[str, Dims] = {}
        self.values: dict[str, Value] = {}
        self.places: dict[str, tuple[str, int]] = {}
        self.elements: dict[str, int] = {}
        # Quotients of reals that are no whole number at every size: what is divided, and by what.
        self.quotients: dict[str, tuple[tuple[Size, int], ...]] = {}
        self.tables: dict[str, Table] = {}
        self._reals: set[str] = set()
        self._shapes = shapes
        self._constants = constants
        self._multiples = multiples

    def read(self, value: onnx.ValueInfoProto) -> None:
        """Take a free size of an input as a symbol of its own, or as the one that it names."""
        if not has_shape(value):
            return
        found = []
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            size = known_size(dim)
            named = not dim.HasField("dim_value") and dim.dim_param not in ANONYMOUS
            symbol = dim.dim_param if named else f"{value.name}[{at}]"
            if size is None:
                self.places.setdefault(symbol, (value.name, at))
            found.append(
                rounded_up(symbol, self._multiples.get(symbol, 1))
                if size is None
                else Size.number(size)
            )
        self.dims[value.name] = tuple(found)

    def follow(self, node: onnx.NodeProto, at: int, record: Callable[[int], Record]) -> None:
        """Find the sizes of what a node makes, and what it makes if that is sizes."""
        if self._makes_reals(node):
            self._reals.add(node.output[0])
        value = None
        if node.domain in ONNX_DOMAINS and node.output:
            value = value_of(node, self) or self._turned(node)
        if value is not None and len(value[0]) <= _MOST_ELEMENTS:
            self._take(node.output[0], value)
        for name in node.output:
            known = self._shapes.dims.get(name) if name else None
            if known is None:
                known = self._unranked(node, name)
            if known is None:
                continue
            if name not in self._shapes.elements and node.op_type in _IMAGES | _SAME_RANK:
                first = node.input[0]
                kind = self._shapes.elements.get(first, self.elements.get(first))
                self.elements.update({} if kind is None else {name: kind})
            found = [None if size is None else Size.number(size) for size in known]
            for axis, size in enumerate(known):
                if size is None and name not in self._shapes.doubtful:
                    found[axis] = self._along(node, at, axis, record)
            self.dims[name] = tuple(found)

    def _turned(self, node: onnx.NodeProto) -> Value | None:
        """Return what a node makes of tables of sizes, where that is a vector or a number."""
        table = turned(node, self._table, lambda name: numbers_of(self.value(name)))
        if table is None or table.size > _MOST_ELEMENTS:
            return None
        if table.ndim > 1:
            self.tables[node.output[0]] = table
            return None
        return tuple(table.reshape(-1)), not table.ndim

    def _table(self, name: str) -> Table | None:
        """Return a small tensor of sizes of any rank, None if it is not known as such."""
        if name in self.tables:
            return self.tables[name]
        value = self.value(name)
        if value is None:
            return None
        made = np.empty(len(value[0]), object)
        made[:] = value[0]
        return made.reshape(() if value[1] else (-1,))

    def _makes_reals(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Cast":
            return attributes(node).get("to") in REALS
        if node.op_type == "Shape":
            return False
        # Others besides the first are counts and places, but for what is calculated.
        pair = node.op_type in ("Concat", "Add", "Sub", "Mul", "Div", "Mod")
        return any(self.is_real(name) for name in (node.input if pair else node.input[:1]))

    def is_real(self, name: str) -> bool:
        """Tell whether a tensor is of floating point."""
        array = self._constants.array(name)
        return name in self._reals if array is None else array.dtype.kind == "f"

    def _take(self, name: str, value: Value) -> None:
        self.values[name] = value
        numbers = numbers_of(value)
        kind = self._shapes.elements.get(name)
        if kind is None and not self.is_real(name):
            kind = onnx.TensorProto.INT64
        if numbers is not None and kind is not None and self._constants.array(name) is None:
            made = np.array(numbers, onnx.helper.tensor_dtype_to_np_dtype(kind))
            self._constants.learn(name, made.reshape(() if value[1] else (-1,)))

    def _unranked(self, node: onnx.NodeProto, name: str) -> tuple[None, ...] | None:
        """Return a shape of unknown sizes where the rank follows from what is known here."""
        if name not in node.output or name in self._shapes.doubtful or not node.input:
            return None
        if node.op_type == "Reshape":
            value = self.value(node.input[1])
            return None if value is None else (None,) * len(value[0])
        ranks = [self._rank(each) for each in node.input if each]
        same = node.op_type in _IMAGES or node.op_type in _SAME_RANK
        if node.op_type in _BROADCAST and None not in ranks:
            rank: int | None = max(each or 0 for each in ranks)
        elif node.op_type == "MatMul" and all(each and each > 1 for each in ranks):
            rank = max(each or 0 for each in ranks)
        elif (same and (name == node.output[0] or node.op_type == "Split")) or (
            node.op_type in _REDUCTIONS and attributes(node).get("keepdims", 1)
        ):
            rank = ranks[0]
        else:
            rank = self._rank_by_axes(node, ranks)
        return None if rank is None else (None,) * rank

    def _rank_by_axes(self, node: onnx.NodeProto, ranks: Sequence[int | None]) -> int | None:
        """Return the rank of what has some dimensions more or less than what it reads."""
        rank = ranks[0]
        if node.op_type == "Gather":
            return None if rank is None or ranks[1] is None else rank + ranks[1] - 1
        more = {"Unsqueeze": 1, "Squeeze": -1, **dict.fromkeys(REDUCTIONS, -1)}.get(node.op_type)
        axes = self._axes(node)
        return None if rank is None or more is None or not axes else rank + more * len(axes)

    def _rank(self, name: str) -> int | None:
        known = self._shapes.dims.get(name, self.dims.get(name))
        if known is not None:
            return len(known)
        array = self._constants.array(name)
        return None if array is None else array.ndim

    def value(self, name: str) -> Value | None:
        """Return a small tensor's elements, as far as they are known."""
        if name in self.values:
            return self.values[name]
        array = self._constants.array(name) if name else None
        if array is None or array.size > _MOST_ELEMENTS or array.ndim > 1:
            return None
        numbers = array.reshape(-1).tolist()
        if not all(type(number) is int or is_whole(number) for number in numbers):
            return None
        return tuple(Size.number(int(number)) for number in numbers), array.ndim == 0

    def _along(
        self, node: onnx.NodeProto, at: int, axis: int, record: Callable[[int], Record]
    ) -> Size | None:
        if axis == 0 and node.op_type in _IMAGES:
            dims = self.dims.get(node.input[0])
            return None if dims is None else dims[0]
        if axis == 1 and node.op_type == "Conv":
            weight = self._shapes.dims.get(node.input[1])
            count = weight[0] if weight else None
            return None if count is None else Size.number(count)
        if node.op_type == "Reshape" or (node.op_type == "Resize" and len(node.input) > 3):
            return self._stated(node, axis)
        if node.op_type == "Expand":
            return self._expanded(node, axis)
        if node.op_type == "Resize":
            return self._scaled(node, record(at), axis)
        if node.op_type == "Range":
            return self._counted(node)
        if self._makes_one(node, axis):
            return Size.number(1)
        if node.op_type == "Concat" and axis == self._axis_of(node):
            return self._put_together(node, axis)
        if node.op_type == "Gather" and axis == self._axis_of(node):
            return self._size(node.input[1], 0) if self._rank(node.input[1]) == 1 else None
        entry = table_of(node.domain).get(node.op_type)
        if entry is None:
            return None
        known = record(at)
        if None in known.shapes or None in known.outputs:
            known = self._ranked(node, known)
        if node.op_type in ("Slice", "Pad", "MatMul"):
            stated = [self.values.get(name, ((), False))[0] or None for name in node.input]
            read = tuple(self.dims.get(name, ()) for name in node.input)
            known = replace(known, free=read, stated=tuple(stated))
        link = rows_of(entry, known, axis)
        if not isinstance(link, RowLocal):
            return None
        rows = []
        for index, dimension in link.carriers:
            size = self._size(node.input[index], dimension)
            if size is None:
                return None
            rows.append(size)
        most = next((s for s in rows if all(s.is_never_below(other) for other in rows)), None)
        # Where it is below 1 the model does not run, and nothing is wrong that is said of it.
        if most is None:
            return None
        try:
            made: Size | None = link.row_map.rows_out(most)
        except TypeError:  # somewhere on the way it is no function of one size
            return None
        return made

    def _expanded(self, node: onnx.NodeProto, axis: int) -> Size | None:
        """Return a size that a tensor is broadcast to, along a dimension counted from the front."""
        asked, rank, one = self.value(node.input[1]), self._rank(node.input[0]), Size.number(1)
        if asked is None or rank is None:
            return None
        behind = axis - max(rank, len(asked[0]))
        own = self._size(node.input[0], behind + rank) if behind + rank >= 0 else one
        wanted = asked[0][behind] if -behind <= len(asked[0]) else one
        if own == one or wanted == one:
            return wanted if own == one else own
        # Of two that are not 1 they are equal, or the model does not run.
        return next((size for size in (own, wanted) if size and (size.constant or 0) > 1), None)

    def _counted(self, node: onnx.NodeProto) -> Size | None:
        """Return how many numbers a Range counts from 0 by 1."""
        start, end, step = (self.value(name) for name in node.input)
        if numbers_of(start) != [0] or numbers_of(step) != [1] or end is None:
            return None
        return end[0][0]

    def _axes(self, node: onnx.NodeProto) -> Sequence[int]:
        """Return the axes that a node is given, none where they are not known."""
        axes: Any = attributes(node).get("axes")
        if len(node.input) > 1:
            axes = self._constants.numbers(node.input[1])
        return axes or ()

    def _makes_one(self, node: onnx.NodeProto, axis: int) -> bool:
        """Tell whether a node puts a dimension in, or reduces one and keeps it."""
        new = node.op_type == "Unsqueeze"
        if not new and not (node.op_type in _REDUCTIONS and attributes(node).get("keepdims", 1)):
            return False
        axes, rank = self._axes(node), self._rank(node.input[0])
        return rank is not None and axis in {at % (rank + new * len(axes)) for at in axes}

    def _axis_of(self, node: onnx.NodeProto) -> int | None:
        """Return the dimension that a Concat or Gather works along."""
        rank = self._rank(node.input[0])
        return attributes(node).get("axis", 0) % rank if rank else None

    def _put_together(self, node: onnx.NodeProto, axis: int) -> Size | None:
        """Return the sum of what is put together along a dimension."""
        made: Size | None = _ZERO
        for name in node.input:
            size = self._size(name, axis)
            made = None if made is None or size is None else made + size
        return made

    def _size(self, name: str, axis: int) -> Size | None:
        """Return a tensor's size along a dimension, None if it is not known."""
        known, own = self._shapes.dims.get(name, ()), self.dims.get(name, ())
        number = known[axis] if axis < len(known) else None
        if number is not None:
            return Size.number(number)
        return own[axis] if axis < len(own) else None

    def _scaled(self, node: onnx.NodeProto, record: Record, axis: int) -> Size | None:
        """Return a size that is scaled by a given number, wherever its rows lie."""
        dims, axes = self.dims.get(node.input[0], ()), resize_axes(record)
        size = dims[axis] if axis < len(dims) else None
        scales = record.value(1 if record.opset < 11 else 2)
        if size is None or (axes and axis not in axes):
            return size
        if not scales or len(scales) != len(axes or dims):
            return None
        scale = float(scales[(axes or range(len(dims))).index(axis)])
        if not 0 < scale <= _LARGEST_SCALE:
            return None
        factor = Fraction(scale)
        made: Size | None = size * factor.numerator // factor.denominator
        return made

    def _ranked(self, node: onnx.NodeProto, record: Record) -> Record:
        """Return a record with the shapes that were found here."""

        def shape(name: str, known: Shape | None) -> Shape | None:
            found = self.dims.get(name)
            if known is not None or found is None:
                return known
            return tuple(None if size is None else size.constant for size in found)

        reads = zip(node.input, record.shapes, strict=True)
        makes = zip(node.output, record.outputs, strict=True)
        made = tuple(known or shape(name, self._unranked(node, name)) for name, known in makes)
        return replace(record, shapes=tuple(shape(*pair) for pair in reads), outputs=made)

    def _stated(self, node: onnx.NodeProto, axis: int) -> Size | None:
        """Return a size that is given as such."""
        policy = attributes(node)
        if policy.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        value = self.value(node.input[3 if node.op_type == "Resize" else 1])
        if "axes" in policy:
            rank = self._rank(node.input[0]) or 1
            named = [at % rank for at in policy["axes"]]
            if axis not in named:
                return self._size(node.input[0], axis)
            axis = named.index(axis)
        if value is None or axis >= len(value[0]):
            return None
        size = value[0][axis]
        if size is None:
            return None
        # A 0 would copy a size; where a size is 0 that grows, there is nothing to reshape into it.
        if (
            node.op_type == "Resize"
            or (size.slope and size.is_never_below(_ZERO))
            or (size.is_never_below(Size.number(1)))
        ):
            return size
        dims = self.dims.get(node.input[0])
        if size.constant == -1 and dims is not None:
            # Of two that are left open neither is known, and the model does not run.
            if sum(each is not None and each.constant == -1 for each in value[0]) > 1:
                return None
            others = [self._stated(node, other) for other in range(len(value[0])) if other != axis]
            return left_over(dims, others)
        copied = size.constant == 0 and not attributes(node).get("allowzero", 0)
        return dims[axis] if copied and dims is not None and axis < len(dims) else None
