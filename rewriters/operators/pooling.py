"""Pools over windows."""

from __future__ import annotations

from patchconv_deploy.rewriters.operators.record import Pads, Record, RowLocal
from patchconv_deploy.rewriters.tiling.row_maps import Sliding

__all__ = ["pool"]


def pool(record: Record, axis: int) -> RowLocal | str:
    """MaxPool, AveragePool, LpPool: windows that slide, ceil_mode and all."""
    if any(record.used[1:]):
        return "its Indices count positions in the whole image"
    values = record.attributes
    kernel = values.get("kernel_shape", ())
    rank, i = len(kernel), axis - 2
    if not 0 <= i < rank:
        return "it has no kernel along the tiled axis"
    stride = values.get("strides", (1,) * rank)[i]
    dilation = values.get("dilations", (1,) * rank)[i]
    pads = values.get("pads", (0,) * (2 * rank))
    auto_pad = values.get("auto_pad", "NOTSET") or "NOTSET"
    reach = dilation * (kernel[i] - 1) + 1
    if min(reach, stride) < 1:
        return "a kernel, stride or dilation below 1"
    if auto_pad.startswith("SAME"):
        if max(values.get("dilations", (1,))) > 1 or stride > reach + 1:
            return "runtimes pad it differently (auto_pad, dilated or of a stride above its kernel)"
        return RowLocal(Sliding(reach, stride, same=auto_pad), ((0, axis),), axis)
    begin, end = (pads[i], pads[rank + i]) if auto_pad == "NOTSET" else (0, 0)
    ceil_mode = bool(values.get("ceil_mode", 0))
    if ceil_mode:
        shape = record.shape(0)
        rows = shape[axis] if shape is not None else None
        if rows is None:
            return "ceil_mode on an input of unknown size"
        out = -(-(rows + begin + end - reach) // stride) + 1
        if (out - 1) * stride >= rows + begin:
            return "its last window lies in the padding (ceil_mode), where runtimes disagree"
    return RowLocal(
        Sliding(reach, stride, begin, end, ceil=ceil_mode),
        ((0, axis),),
        axis,
        pads=Pads(tuple(pads), i, rank + i) if auto_pad == "NOTSET" else None,
    )
