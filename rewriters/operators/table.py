"""The operators a region can hold: one table entry each.

    entry         operators                                        rows        refused
    sliding       Conv, ConvInteger, QLinearConv                   Sliding     kernel size unknown
    transposed    ConvTranspose                                    Transposed  output beyond kernel
    pool          MaxPool, AveragePool, LpPool                     Sliding     Indices used
    resize        Resize, Upsample                                 Periodic    `graph.resizing`
    to_space      DepthToSpace                                     Transposed
    to_depth      SpaceToDepth                                     Sliding
    pad           Pad                                              Padding     wrap, unknown pads
    slice_rows    Slice                                            Sliding     backwards
    broadcast     arithmetic, comparisons, activations, Where ...  Pointwise   unknown rank
    first_alone   BatchNormalization, LRN, Dropout, CumSum ...     Pointwise   training, own axis
    quantize      QuantizeLinear, DequantizeLinear                 Pointwise   scales along rows
    along         Softmax, Concat, Split, Gather, ArgMax ...       Pointwise   along the tiled axis
    reduce        ReduceMean, ReduceSum ...                        Pointwise   over the tiled axis
    normalize     LayerNormalization, RMSNormalization             Pointwise   over the tiled axis
    matmul, gemm, einsum   rows or columns of a matrix product     Pointwise   over the tiled axis
    attend        Attention: queries, or images                    Pointwise   causal, keys kept
    add_and_normalize   SkipLayerNormalization                     Pointwise   over the tiled axis
    attend_by_heads     MultiHeadAttention: queries, or images     Pointwise   causal, packed
    quantised     QLinearAdd, QLinearConcat ...                    as plain    channels last
    transpose, squeeze, unsqueeze, reshape, expand, tile           Pointwise   rows not kept apart

An entry is asked with the dimension of the node's *output* that is the tiled axis, and says which
dimension of which inputs that is. Emission knows no operator: what is not here is not cut.
`BARRIERS` names operators that are never row-local, and why; of barriers proper the reason is an
`OverAllRows`. `CONTRIB` is the same table for ONNX Runtime's own operators, of the domain
com.microsoft.

Source: the ONNX operator definitions; ONNX Runtime's (`docs/ContribOperators.md` there).
"""

from __future__ import annotations

from collections.abc import Mapping

from patchconv_deploy.rewriters.operators.channelwise import (
    REDUCTIONS,
    add_and_normalize,
    along,
    normalize,
    reduce,
)
from patchconv_deploy.rewriters.operators.convolution import sliding, transposed
from patchconv_deploy.rewriters.operators.elementwise import (
    BROADCAST,
    broadcast,
    first_alone,
    quantize,
)
from patchconv_deploy.rewriters.operators.layout import (
    expand,
    reshape,
    squeeze,
    tile,
    transpose,
    unsqueeze,
)
from patchconv_deploy.rewriters.operators.pooling import pool
from patchconv_deploy.rewriters.operators.products import (
    attend,
    attend_by_heads,
    einsum,
    gemm,
    matmul,
)
from patchconv_deploy.rewriters.operators.quantised import QUANTISED
from patchconv_deploy.rewriters.operators.record import ONNX_DOMAINS, Record, RowLocal
from patchconv_deploy.rewriters.operators.resampling import resize, to_depth, to_space
from patchconv_deploy.rewriters.operators.rules import CONTRIB_DOMAIN, Entry, OverAllRows
from patchconv_deploy.rewriters.operators.slicing import pad, slice_rows

__all__ = ["BARRIERS", "CONTRIB", "SPATIAL", "TABLE", "rows_of", "table_of"]


TABLE: Mapping[str, Entry] = {
    **dict.fromkeys(BROADCAST, broadcast),
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), sliding),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), pool),
    **dict.fromkeys(("BatchNormalization", "LRN", "Dropout", "CumSum", "CastLike"), first_alone),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), along),
    **dict.fromkeys(("Concat", "Split", "Gather", "ArgMax", "ArgMin"), along),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), normalize),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "ConvTranspose": transposed,
    "DepthToSpace": to_space,
    "SpaceToDepth": to_depth,
    "Pad": pad,
    "Slice": slice_rows,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "Attention": attend,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Reshape": reshape,
    "Expand": expand,
    "Tile": tile,
}

CONTRIB: Mapping[str, Entry] = {
    "SkipLayerNormalization": add_and_normalize,
    "SkipSimplifiedLayerNormalization": add_and_normalize,
    "MultiHeadAttention": attend_by_heads,
    **{name: quantised.entry for name, quantised in QUANTISED.items()},
}


def table_of(domain: str) -> Mapping[str, Entry]:
    """Return the table of a domain's operators; it is empty for one that is unknown here."""
    if domain == CONTRIB_DOMAIN:
        return CONTRIB
    return TABLE if domain in ONNX_DOMAINS else {}


def rows_of(entry: Entry, record: Record, axis: int) -> RowLocal | str:
    """Return what an entry answers; a reason where a node contradicts itself.

    Files are not trusted: a pool may have a kernel of three axes and padding of two, which neither
    onnx's checker nor its shape inference refuses.

    Args:
        entry: An entry of a table.
        record: What is known of the node.
        axis: The dimension of its output that is the tiled axis.
    """
    try:
        return entry(record, axis)
    except (IndexError, ZeroDivisionError, ValueError):
        return "its attributes do not fit its inputs"


# Operators that say where the image's axes are: batch, channels, then one axis per dimension.
SPATIAL = frozenset(
    {"Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
    | {"DepthToSpace", "SpaceToDepth", "Upsample"}
    | {"GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization"}
)

BARRIERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
        OverAllRows("it pools over the whole image"),
    ),
    **dict.fromkeys(
        (
            "InstanceNormalization",
            "GroupNormalization",
            "MeanVarianceNormalization",
            "GroupNorm",
            "SkipGroupNorm",
        ),
        OverAllRows("its statistics are taken over the whole image"),
    ),
    "MaxUnpool": "its Indices count positions in the whole image",
    "DynamicQuantizeLinear": OverAllRows("its scale is taken over the whole image"),
    **dict.fromkeys(
        ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"), "it is random"
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), "it holds a graph of its own"),
}
