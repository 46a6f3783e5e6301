"""Images that are folded into sequences, written as images.

    x [N, C, H, W] -- Reshape -- [N, C, H * W] -- Transpose -- MatMul -- ... -- Reshape -- y
    x [N, C, H, W] ----------------------------- Transpose -- MatMul -- ... ------------- y

Transformers fold rows and columns, or rows and columns of windows, into one dimension. What they do
to it is mostly done to each of its elements, and as well to each row and column. Where both sizes
are free, the folded one is a product that says nothing of rows, so that nothing there could be
cut; unfolded, the rows are those of the image. What does need the sequence (keys of attention, a
class token put in front) gets it by a Reshape.

    stays unfolded                               is given the sequence
    arithmetic, activations, Cast, Where         where another operand is as long
    MatMul: rows, columns, batch, sums           MatMul: keys and values of attention
    Gemm: rows
    Reduce*, Softmax over all of it
    LayerNormalization, Softmax, Reduce*,        along the sequence
    Concat, Split, Slice, Gather
    Transpose, Squeeze, Unsqueeze, Reshape       all other operators
    BatchNormalization, Shape

Where no region reaches a sequence, its nodes stay as they were (`graph.respelling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import TensorProto

from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.new_nodes import ReadGraph
from patchconv_deploy.rewriters.graph.products_over_rows import rows_outward, sum_of_rows
from patchconv_deploy.rewriters.graph.reductions import can_be_in_two, reduce_in_two
from patchconv_deploy.rewriters.graph.respelling import Respelling, free_word
from patchconv_deploy.rewriters.graph.sequence_nodes import (
    SequenceNode,
    SequenceWalk,
    size_of,
    sizes_to,
)
from patchconv_deploy.rewriters.graph.softmax import softmax_in_two
from patchconv_deploy.rewriters.graph.statistic_nodes import FLOATS
from patchconv_deploy.rewriters.graph.unfolded import (
    Layout,
    Part,
    Unfolded,
    is_one,
    plain,
    reshaped,
)
from patchconv_deploy.rewriters.operators.channelwise import REDUCTIONS
from patchconv_deploy.rewriters.operators.elementwise import BROADCAST
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["find_folded"]


def find_folded(facts: CertainFacts) -> list[Respelling]:
    """Find sequences that are images, and write them as such; the model is not changed.

    Args:
        facts: The model, whose sizes are followed.
    """
    if not facts.free.dims:
        return []
    walk = SequenceWalk(ReadGraph(facts, {}, free_word("unfolded", facts.index.names)), _RULES)
    for position in range(len(facts.graph.node)):
        walk.visit(position)
    return walk.respellings()


def _aligned(layouts: Sequence[Layout], sizes: Sequence[Part]) -> Layout | None:
    """Return the layout of what operands are broadcast to, None where they are folded otherwise."""
    rank, made = len(sizes), list[tuple[Part, ...]]()
    for axis, size in enumerate(sizes):
        folded = {
            layout[axis - rank]
            for layout in layouts
            if axis - rank >= -len(layout) and len(layout[axis - rank]) > 1
        }
        if len(folded) > 1:
            return None
        made.append(folded.pop() if folded else (size,))
    return tuple(made)


def _broadcast(at: SequenceNode) -> bool:
    sizes = at.sizes()
    given = [index for index in range(len(at.node.input)) if at.has(index)]
    operands = at.operands(given)
    known = [operand for operand in operands if operand is not None]
    if sizes is None or len(known) < len(given):
        return False
    if any(len(operand.layout) > len(sizes) for operand in known):
        return False
    wanted = _aligned([operand.layout for operand in known], sizes)
    if wanted is None:
        return False
    inputs = [""] * len(at.node.input)
    for index, operand in zip(given, known, strict=True):
        those = wanted[len(wanted) - len(operand.layout) :]
        name = at.spread(operand, those, f"operand_{index}")
        if name is None:
            return False
        inputs[index] = name
    return at.write(inputs, [wanted])


def _matmul(at: SequenceNode) -> bool:
    a, b, sizes = at.read(0), at.read(1), at.sizes()
    if a is None or b is None or sizes is None or min(len(a.layout), len(b.layout)) < 2:
        return False
    if a.is_folded(len(a.layout) - 1):
        return _over_rows(at, a, b, sizes)
    if b.is_folded(len(b.layout) - 1) and not at.is_unfolded(0):
        return _columns(at, a, b, sizes)
    if any(b.is_folded(len(b.layout) + axis) for axis in (-2, -1)):
        # Keys and values are read whole.
        b = at.own(1)
        if b is None or not at.is_unfolded(0):
            return False
    batch = _aligned([a.layout[:-2], b.layout[:-2]], sizes[:-2])
    if batch is None:
        return False
    rows = a.layout[-2]
    wanted = (*batch[len(batch) + 2 - len(a.layout) :], *a.layout[-2:])
    first = at.spread(a, wanted, "first")
    wanted = (*batch[len(batch) + 2 - len(b.layout) :], *b.layout[-2:])
    second = at.spread(b, wanted, "second", len(rows) - 1)
    if first is None or second is None:
        return False
    return at.write([first, second], [(*batch, rows, (sizes[-1],))])


def _is_image(x: Unfolded, axis: int) -> bool:
    """Tell whether one dimension alone is folded, of rows and columns."""
    return [len(parts) for parts in x.layout] == [
        1 + (each == axis % len(x.layout)) for each in range(len(x.layout))
    ]


def _over_rows(at: SequenceNode, a: Unfolded, b: Unfolded, sizes: Sequence[Part]) -> bool:
    """A product that adds up over the image: of each row, and their sum."""
    rows = len(a.layout) - 2
    if len(b.layout) != len(a.layout) or a.layout[-1] != b.layout[-2] or at.kind(0) not in FLOATS:
        return False
    if not _is_image(a, -1) or not _is_image(b, -2):
        return False
    left = rows_outward(at.new, a.name, rows, "left")
    made = at.make(plain(sizes))
    sum_of_rows(at.new, "MatMul", [left, b.name], rows, made, at.kind(0))
    return True


def _columns(at: SequenceNode, a: Unfolded, b: Unfolded, sizes: Sequence[Part]) -> bool:
    """A product whose columns are the image: one for each of its rows."""
    rows = len(b.layout) - 2
    if len(a.layout) != len(b.layout) or not _is_image(b, -1):
        return False
    right = rows_outward(at.new, b.name, rows, "right")
    left = at.new.over("Unsqueeze", a.name, [rows], "left")
    product = at.new.add("MatMul", [left, right], "MatMul")
    made = at.make((*plain(sizes[:-1]), b.layout[-1]))
    # The same exchange of two dimensions takes the rows back.
    rows_outward(at.new, product, rows, "Transpose", made)
    return True


def _gemm(at: SequenceNode) -> bool:
    """Gemm of rows: as MatMul and Add, which take more dimensions than two."""
    x, w, sizes = at.read(0), at.own(1), at.sizes()
    plain_numbers = at.given.get("alpha", 1.0) == at.given.get("beta", 1.0) == 1.0
    if x is None or w is None or sizes is None or at.given.get("transA", 0) or not plain_numbers:
        return False
    added = at.own(2) if at.has(2) else None
    # What is added to each row has one dimension, or one row.
    rows = () if added is None else tuple(parts[0] for parts in added.layout)
    if x.is_folded(1) or not x.is_folded(0) or at.is_unfolded(1):
        return False
    if at.has(2) and (added is None or at.is_unfolded(2) or not all(map(is_one, rows[:-1]))):
        return False
    weight = w.name
    if at.given.get("transB", 0):
        weight = at.new.add("Transpose", [weight], "weight", perm=[1, 0])
    layout = (x.layout[0], (sizes[1],))
    made = at.make(layout)
    product = at.new.add("MatMul", [x.name, weight], "MatMul", "" if at.has(2) else made)
    if at.has(2):
        at.new.add("Add", [product, at.node.input[2]], "Add", made)
    return True


def _transpose(at: SequenceNode) -> bool:
    x = at.read(0)
    if x is None:
        return False
    perm = at.given.get("perm") or tuple(reversed(range(len(x.layout))))
    if sorted(perm) != list(range(len(x.layout))):
        return False
    places = [x.at(axis) + part for axis in perm for part in range(len(x.layout[axis]))]
    return at.write([x.name], [tuple(x.layout[axis] for axis in perm)], perm=places)


def _reshape(at: SequenceNode) -> bool:
    x, y = at.read(0), at.sizes()
    if x is None or y is None:
        return False
    made = reshaped(x.parts, y)
    if made is None:
        return False
    layout, wanted = list[tuple[Part, ...]](), list[int | tuple[int, ...]]()
    for size, those in zip(y, made, strict=True):
        parts = tuple(x.parts[each] for each in those)
        if size is not None and size.constant is not None:
            parts, those = (size,), (0,)
        elif len(those) == 1:
            parts = (size if size is not None else parts[0],)
        layout.append(parts)
        for part, place in zip(parts, those, strict=True):
            number = None if part is None else part.constant
            wanted.append((place,) if number is None else number)
    # A product of one free size and numbers is followed as it is.
    free = [sum(part is not None and part.constant is None for part in parts) for parts in layout]
    if not at.is_unfolded(0) and max(free, default=0) < 2:
        return False
    if any(not parts for parts in layout):
        return False
    if [part for parts in layout for part in parts] == list(x.parts):
        name = at.make(tuple(layout))
        at.new.add("Identity", [x.name], "Identity", name)
        return True
    shape = sizes_to(at.new, x.name, wanted, "Reshape")
    at.new.add("Reshape", [x.name, shape], "Reshape", at.make(tuple(layout)))
    return True


def _axis_of(at: SequenceNode, x: Unfolded, default: int) -> int | None:
    """Return the dimension that a node works along, None where it is folded or not there."""
    axis, rank = int(at.given.get("axis", default)), len(x.layout)
    return None if not -rank <= axis < rank or x.is_folded(axis % rank) else axis % rank


def _normalize(at: SequenceNode) -> bool:
    x = at.read(0)
    if x is None or any(at.is_used(output) for output in (1, 2)):
        return False
    axis = at.given.get("axis", -1) % len(x.layout)
    if any(x.is_folded(each) for each in range(axis, len(x.layout))):
        return False
    # Runtimes take a scale of each element, too.
    scales = [at.own(index) for index in range(1, len(at.node.input)) if at.has(index)]
    for scale in scales:
        if scale is None or not all(map(is_one, scale.parts[: axis - len(x.layout)])):
            return False
    return at.write([x.name, *at.node.input[1:]], [x.layout], axis=axis - len(x.layout))


def _softmax(at: SequenceNode) -> bool:
    x = at.read(0)
    default = -1 if at.opset >= 13 else 1
    if x is None:
        return False
    last = at.given.get("axis", default) % len(x.layout) == len(x.layout) - 1
    if last and at.node.op_type == "Softmax" and at.opset >= 13 and _is_image(x, -1):
        return _weights_of_positions(at, x)
    axis = _axis_of(at, x, default)
    # Before opset 13 it takes the dimensions behind its own together.
    if axis is None or (at.opset < 13 and not last):
        return False
    return at.write([x.name], [x.layout], axis=x.at(axis))


def _weights_of_positions(at: SequenceNode, x: Unfolded) -> bool:
    """Softmax over rows and columns, of each channel before them."""
    rank = len(x.layout)
    channels = x.parts[rank - 2]
    if rank < 3 or at.kind(0) not in FLOATS:
        return False
    if channels is None or channels.constant is None:
        return False
    made = at.make(x.layout)
    place = rank - 1
    softmax_in_two(at.new, x.name, place, [rank], place - 1, channels.constant, at.kind(0), made)
    return True


def _reduce(at: SequenceNode) -> bool:
    x, axes = at.read(0), at.reduced_axes()
    if x is None or axes is None:
        return False
    kept = bool(at.given.get("keepdims", 1))
    layout = tuple(
        (Size.number(1),) if axis in axes else parts
        for axis, parts in enumerate(x.layout)
        if kept or axis not in axes
    )
    if any(x.is_folded(axis) for axis in axes):
        return _reduce_image(at, x, axes, layout, kept=kept)
    return _with_axes(at, x, layout, [x.at(axis) for axis in axes], keepdims=int(kept))


def _reduce_image(
    at: SequenceNode, x: Unfolded, axes: Sequence[int], layout: Layout, *, kept: bool
) -> bool:
    """A reduction over rows and columns and other dimensions: of each row, and of these."""
    image = next(axis for axis in axes if x.is_folded(axis))
    op, kind, rows = at.node.op_type, at.kind(0), x.at(image)
    if not _is_image(x, image) or not can_be_in_two(op, kind):
        return False
    over = [place for axis in axes for place in range(x.at(axis), x.at(axis) + len(x.layout[axis]))]
    # Rows and columns, each kept as one, are one dimension of the result.
    gone = [rows + 1] if kept else over
    others = [place for place in over if place != rows]
    reduce_in_two(at.new, op, x.name, rows, others, at.make(layout), kind=kind, gone=gone)
    return True


def _concat(at: SequenceNode) -> bool:
    sizes = at.sizes()
    operands = [at.read(index) for index in range(len(at.node.input))]
    first = operands[0]
    axis = None if first is None else _axis_of(at, first, 0)
    if first is None or axis is None or sizes is None:
        return False
    for operand in operands:
        if operand is None or len(operand.layout) != len(first.layout) or operand.is_folded(axis):
            return False
        pairs = zip(operand.layout, first.layout, strict=True)
        if any(a != b and max(len(a), len(b)) > 1 for a, b in pairs):
            return False
    layout = (*first.layout[:axis], (sizes[axis],), *first.layout[axis + 1 :])
    names = [operand.name for operand in operands if operand is not None]
    return at.write(names, [layout], axis=first.at(axis))


def _split(at: SequenceNode) -> bool:
    x = at.read(0)
    axis = None if x is None else _axis_of(at, x, 0)
    if x is None or axis is None or not all(at.node.output):
        return False
    layouts = []
    for output in range(len(at.node.output)):
        sizes = at.sizes(output)
        size = None if sizes is None else sizes[axis]
        layouts.append((*x.layout[:axis], (size,), *x.layout[axis + 1 :]))
    return at.write([x.name, *at.node.input[1:]], layouts, axis=x.at(axis))


def _gather(at: SequenceNode) -> bool:
    x, indices = at.read(0), at.own(1)
    axis = None if x is None else _axis_of(at, x, 0)
    if x is None or axis is None or indices is None or at.is_unfolded(1):
        return False
    layout = (*x.layout[:axis], *indices.layout, *x.layout[axis + 1 :])
    return at.write([x.name, at.node.input[1]], [layout], axis=x.at(axis))


def _slice(at: SequenceNode) -> bool:
    x, sizes = at.read(0), at.sizes()
    if x is None or sizes is None or at.opset < 10:
        return False
    axes = at.numbers(3) if at.has(3) else range(len(at.numbers(1) or ()))
    if axes is None:
        return False
    over = [axis % len(x.layout) for axis in axes]
    # All that says what is taken is of one element type.
    if not over or any(x.is_folded(axis) for axis in over) or at.kind(1) != TensorProto.INT64:
        return False
    inputs = [x.name, *at.node.input[1:3], at.new.ints([x.at(axis) for axis in over], "axes")]
    layout = tuple((sizes[axis],) if axis in over else parts for axis, parts in enumerate(x.layout))
    return at.write([*inputs, *at.node.input[4:]], [layout])


def _axes_given(at: SequenceNode, rank: int) -> list[int] | None:
    """Return the axes of a Squeeze or Unsqueeze, ascending."""
    axes: Any = at.numbers(1) if at.opset >= 13 else at.given.get("axes")
    return sorted(axis % rank for axis in axes) if axes else None


def _squeeze(at: SequenceNode) -> bool:
    x = at.read(0)
    axes = None if x is None else _axes_given(at, len(x.layout))
    if x is None or axes is None or any(x.is_folded(axis) for axis in axes):
        return False
    layout = tuple(parts for axis, parts in enumerate(x.layout) if axis not in axes)
    return _with_axes(at, x, layout, [x.at(axis) for axis in axes])


def _unsqueeze(at: SequenceNode) -> bool:
    x, sizes = at.read(0), at.sizes()
    axes = None if x is None or sizes is None else _axes_given(at, len(sizes))
    if x is None or sizes is None or axes is None or len({*axes}) + len(x.layout) != len(sizes):
        return False
    own = iter(x.layout)
    layout = tuple((Size.number(1),) if axis in axes else next(own) for axis in range(len(sizes)))
    made = Unfolded("", layout)
    return _with_axes(at, x, layout, [made.at(axis) for axis in axes])


def _with_axes(
    at: SequenceNode, x: Unfolded, layout: Layout, axes: Sequence[int], **given: int
) -> bool:
    op = at.node.op_type
    at.new.over(op, x.name, axes, op, at.make(layout), **given)
    return True


def _normalize_batch(at: SequenceNode) -> bool:
    x = at.read(0)
    if x is None or at.given.get("training_mode", 0) or at.is_used(1):
        return False
    if len(x.layout) < 3 or x.is_folded(0) or x.is_folded(1):
        return False
    return at.write([x.name, *at.node.input[1:]], [x.layout])


def _shape(at: SequenceNode) -> bool:
    x = at.read(0)
    if x is None or at.given.get("start", 0) or "end" in at.given:
        return False
    shape = at.new.add("Shape", [x.name], "sizes")
    ranges = [range(x.at(axis), x.at(axis) + len(parts)) for axis, parts in enumerate(x.layout)]
    pieces = [size_of(at.new, shape, each, f"size_{axis}") for axis, each in enumerate(ranges)]
    at.new.add("Concat", pieces, "Concat", at.node.output[0], axis=0)
    return True


_RULES: Mapping[str, Callable[[SequenceNode], bool]] = {
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "BatchNormalization": _normalize_batch,
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _normalize,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
