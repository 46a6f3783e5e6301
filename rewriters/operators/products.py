"""Matrix products: MatMul, Gemm, Einsum, and those that Attention makes inside.

    y[.., i, j] = sum over k of a[.., i, k] * b[.., k, j]

Rows ``i`` of the product are those of its first factor, columns ``j`` those of its second one; the
other factor is read whole. So attention's products are row-local in the queries: of the scores
``q k^T`` these are the rows, or the columns where they are written ``k q^T``.
"""

from __future__ import annotations

from patchconv_deploy.rewriters.operators.record import Record, RowLocal
from patchconv_deploy.rewriters.tiling.row_maps import Pointwise
from patchconv_deploy.rewriters.tiling.sizes import Size

__all__ = ["PRODUCTS", "attend", "attend_by_heads", "einsum", "gemm", "matmul"]


def matmul(record: Record, axis: int) -> RowLocal | str:
    """MatMul: rows of one factor, columns of the other, or what both have in front of these."""
    a, b = record.shape(0), record.shape(1)
    if a is None or b is None or min(len(a), len(b)) < 2:
        return "its factors are not an image and a matrix"
    rank = max(len(a), len(b))
    if axis == rank - 2:
        return RowLocal(Pointwise(), ((0, len(a) - 2),), axis)
    if axis == rank - 1:
        return RowLocal(Pointwise(), ((1, len(b) - 1),), axis)
    carriers = []
    for index, shape in enumerate((a, b)):
        at = axis - (rank - len(shape))
        if at >= 0 and shape[at] != 1:
            carriers.append((index, at))
    if not carriers:
        return "none of its factors has the tiled axis"
    sizes = {_rows(record, index, at) for index, at in carriers}
    if len(carriers) > 1 and (len(sizes) > 1 or None in sizes):
        return "both factors have the tiled axis, of unknown size"
    return RowLocal(Pointwise(), tuple(carriers), axis)


def _rows(record: Record, index: int, axis: int) -> Size | int | None:
    """Return an operand's size along a dimension, as a function of a free one where it is one."""
    shape, free = record.shape(index), record.free[index] if index < len(record.free) else ()
    number = shape[axis] if shape is not None else None
    if number is not None:
        return number
    return free[axis] if axis < len(free) else None


def gemm(record: Record, axis: int) -> RowLocal | str:
    """Gemm: a matrix product, either factor transposed, and what is added to it."""
    factor, flag = ((0, "transA"), (1, "transB"))[axis]
    carriers = [(factor, axis ^ int(bool(record.attributes.get(flag, 0))))]
    if record.given(2):
        added = record.shape(2)
        if added is None:
            return "the rank of what it adds is unknown"
        at = axis - (2 - len(added))
        if at >= 0 and added[at] != 1:
            carriers.append((2, at))
    return RowLocal(Pointwise(), tuple(carriers), axis)


def einsum(record: Record, axis: int) -> RowLocal | str:
    """Einsum: a letter of the result, and who has it."""
    equation = "".join(record.attributes.get("equation", "").split())
    given, arrow, made = equation.partition("->")
    terms = given.split(",")
    if not arrow or "." in equation:
        return "its equation leaves letters open"
    if len(terms) != len(record.shapes) or axis >= len(made):
        return "its equation does not fit its inputs"
    letter = made[axis]
    if made.count(letter) > 1 or any(term.count(letter) > 1 for term in terms):
        return "it takes a diagonal along the tiled axis"
    carriers = []
    for index, term in enumerate(terms):
        shape = record.shape(index)
        if shape is None or len(shape) != len(term):
            return "the rank of an operand is unknown"
        # One row stands for as many as the others have.
        if letter in term and shape[term.index(letter)] != 1:
            carriers.append((index, term.index(letter)))
    if not carriers:
        return "none of its operands has the tiled axis"
    return RowLocal(Pointwise(), tuple(carriers), axis)


# What Attention's queries are one like another with.
_PLAIN = frozenset(
    "scale softcap q_num_heads kv_num_heads softmax_precision qk_matmul_output_mode".split()
)

# Where it counts queries, and with which value it does not.
_COUNTED = {"is_causal": 0, "left_window_size": -1, "right_window_size": -1}


def attend(record: Record, axis: int) -> RowLocal | str:
    """Attention as one node: queries, with all keys and values; or images, each with its own."""
    if any(record.used[1:]):
        return "an output besides the first is used"
    if not record.attributes.keys() <= {*_PLAIN, *_COUNTED}:
        return "it has an attribute that is not known"
    if any(record.given(index) for index in (4, 5, 6)):
        return "how many of its keys count is known at run time alone"
    factors = [record.shape(index) for index in range(3)]
    mask = record.shape(3) if record.given(3) else ()
    if mask is None or any(shape is None for shape in factors):
        return "the rank of an operand is unknown"
    # Heads are a dimension of their own, or part of the channels.
    ranks = {len(shape or ()) for shape in factors}
    if ranks not in ({3}, {4}):
        return "its queries, keys and values are spelled differently"
    rank = ranks.pop()
    if axis == rank - 2:
        if any(record.attributes.get(name, none) != none for name, none in _COUNTED.items()):
            return "its mask is counted from the first query on"
        carriers, masked = [(0, axis)], len(mask) - 2
    elif axis == 0:
        images = {shape[0] for shape in factors if shape is not None}
        if len(images) > 1 or None in images:
            return "its factors have different numbers of images"
        carriers, masked = [(0, 0), (1, 0), (2, 0)], len(mask) - 4
    else:
        return "the tiled axis is that of its heads or channels"
    if masked >= 0 and mask[masked] != 1:
        carriers.append((3, masked))
    return RowLocal(Pointwise(), tuple(carriers), axis)


# Attributes under which MultiHeadAttention treats every query alike.
_PLAIN_HEADS = frozenset({"num_heads", "scale", "mask_filter_value"})


def attend_by_heads(record: Record, axis: int) -> RowLocal | str:
    """ONNX Runtime's MultiHeadAttention of separate queries, keys and values, without a past."""
    if any(record.used[1:]):
        return "an output besides the first is used"
    if not record.attributes.keys() <= {*_PLAIN_HEADS, "unidirectional"}:
        return "it has an attribute that is not known"
    if any(record.given(index) for index in (6, 7, 8, 9)):
        return "it reads the keys of runs before"
    if not (record.given(1) and record.given(2)):
        return "its queries, keys and values are packed in one"
    factors = [record.shape(index) for index in range(3)]
    masks = [record.shape(index) if record.given(index) else () for index in (4, 5)]
    if None in (*factors, *masks):
        return "the rank of an operand is unknown"
    if any(len(shape or ()) != 3 for shape in factors):
        return "its queries, keys and values are packed in one, or come by heads"
    padding, added = (mask or () for mask in masks)
    if axis == 1:
        if record.attributes.get("unidirectional", 0):
            return "its mask is counted from the first query on"
        images_of = (factors[0] or (None,))[0]
        if len(padding) == 1 and (images_of is None or padding[0] != images_of):
            # Of any other length it may hold where each image's queries begin, too.
            return "its mask of one axis may count queries"
        carriers = [(0, 1)]
        # Of keys alone it is the same for all queries.
        if len(padding) == 3:
            carriers.append((4, 1))
        if added:
            carriers.append((5, 2))
    elif axis == 0:
        images = {shape[0] for shape in factors if shape is not None}
        if len(images) > 1 or None in images:
            return "its factors have different numbers of images"
        if len(padding) == 1:
            return "its keys are counted image by image"
        carriers = [(0, 0), (1, 0), (2, 0)]
        if padding:
            carriers.append((4, 0))
        if added and added[0] != 1:
            carriers.append((5, 0))
    else:
        return "the tiled axis is that of its heads"
    return RowLocal(Pointwise(), tuple(carriers), axis)


PRODUCTS = ("MatMul", "Gemm", "Einsum")
