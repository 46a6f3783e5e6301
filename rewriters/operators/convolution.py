"""Conv, ConvTranspose and their integer kinds."""

from __future__ import annotations

from typing import Any

from patchconv_deploy.rewriters.operators.record import Pads, Record, RowLocal, read_convolution
from patchconv_deploy.rewriters.operators.rules import split_padding
from patchconv_deploy.rewriters.tiling.row_maps import Sliding, Transposed

__all__ = ["sliding", "transposed"]


def sliding(record: Record, axis: int) -> RowLocal | str:
    """Conv and its integer kinds: windows that slide."""
    conv = read_convolution(record)
    if isinstance(conv, str):
        return conv
    i = axis - 2
    if not 0 <= i < conv.rank:
        return "it mixes batch or channels"
    begins, ends = conv.begins, conv.ends
    same = conv.auto_pad if conv.auto_pad.startswith("SAME") else None
    if same is not None and max(conv.strides) == 1:
        # Moved by one, SAME padding is the same at every size.
        pairs = [
            split_padding(conv.reach(j) - 1, upper=same == "SAME_UPPER") for j in range(conv.rank)
        ]
        begins, ends, same = tuple(a for a, _ in pairs), tuple(b for _, b in pairs), None
    row_map = Sliding(conv.reach(i), conv.strides[i], begins[i], ends[i], same=same)
    pads = Pads((*begins, *ends), i, conv.rank + i, without=("auto_pad",))
    return RowLocal(row_map, ((0, axis),), axis, pads=None if same else pads)


def transposed(record: Record, axis: int) -> RowLocal | str:
    """ConvTranspose: each input row adds to a window of output rows."""
    conv = read_convolution(record)
    if isinstance(conv, str):
        return conv
    i = axis - 2
    if not 0 <= i < conv.rank:
        return "it mixes batch or channels"
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
            begins[j], ends[j] = split_padding(total, upper=conv.auto_pad == "SAME_UPPER")
    padded = conv.auto_pad != "NOTSET" and any(conv.output_padding)
    if conv.output_shape is not None or padded:
        # onnx's inference adds output_padding on top of auto_pad's size, TensorRT leaves it out.
        replaced = {"output_shape": None, "auto_pad": None, "pads": (*begins, *ends)}
    row_map = Transposed(conv.reach(i), conv.strides[i], begins[i], ends[i], conv.output_padding[i])
    pads = Pads(
        (*begins, *ends), i, conv.rank + i, crops=True, without=("auto_pad", "output_shape")
    )
    return RowLocal(row_map, ((0, axis),), axis, attributes=replaced, pads=pads)
