"""What looks at the whole image, written as one reduction over each row and one over the rows.

A normalisation, a global pool or a reduction over the image holds the whole image until it has seen
the last row. Written in two, only its second half does, and that reads a few numbers a row:

    x --+-- reduce each row -- rows --- reduce over the rows --- mean, scale, shift
        |      (row-local)   [N, C, H, 1]      (tiny)                    |
        +----------------------------------------------------------- apply -- y
                                                                  (row-local)

What is row-local can be cut into patches like any other layer. All rows have equally many elements,
so that the second half needs no counts, and is right at any height:

    mean     = mean of the rows' means
    variance = mean of the rows' variances + mean of (row's mean - mean)^2

which is Chan, Golub and LeVeque's merge of equal counts ("Updating formulae and a pairwise
algorithm for computing sample variances", 1979): never the difference of two large sums. Half
precision is reduced in float32. Groups are merged from their channels in the same way.

    written in two                                             not
    InstanceNormalization, its Mul and Add behind it           of a signal of no even blocks
    Reshape [N, G, -1], InstanceNormalization, Reshape back    whose sizes are unknown
    GroupNormalization; com.microsoft's, too                   SkipGroupNorm whose sum is read
    LayerNormalization over the tiled axis                     over the batch or that axis alone
    GlobalAveragePool, GlobalMaxPool
    AveragePool, MaxPool whose kernel is the image             with padding, Indices
    Reduce* over the tiled axis and others                     over the tiled axis alone
    Softmax over an image that was reshaped to one dimension   LogSoftmax
    MatMul, Einsum of two that add up over all positions       what is larger than a row

The rows of a signal [N, C, L] are blocks of neighbours, where its length has a divisor of 8 to 64.

What is not cut in the end gets its own nodes back (`graph.respelling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patchconv_deploy.rewriters.graph import products_over_rows
from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.new_nodes import NewNodes, ReadGraph
from patchconv_deploy.rewriters.graph.nodes import node_label
from patchconv_deploy.rewriters.graph.normalisations import (
    fused_group,
    group,
    grouped,
    instance,
    layer,
)
from patchconv_deploy.rewriters.graph.reductions import REDUCTIONS, reduction
from patchconv_deploy.rewriters.graph.respelling import (
    Respelling,
    copied,
    free_word,
    with_servants,
)
from patchconv_deploy.rewriters.graph.softmax import softmax
from patchconv_deploy.rewriters.graph.statistic_nodes import InTwo
from patchconv_deploy.rewriters.operators.rules import CONTRIB_DOMAIN

__all__ = ["Statistic", "find_statistics"]


# Per operator how it is written in two: the first that can.
_SPELLED: Mapping[str, Sequence[Callable[[ReadGraph, int], InTwo | None]]] = {
    "InstanceNormalization": (grouped, instance),
    "GroupNormalization": (group,),
    "LayerNormalization": (layer,),
    "MatMul": (products_over_rows.matmul,),
    "Einsum": (products_over_rows.einsum,),
    "Softmax": (softmax,),
    **dict.fromkeys(REDUCTIONS, (reduction,)),
}

# The same of ONNX Runtime's own operators.
_CONTRIB: Mapping[str, Sequence[Callable[[ReadGraph, int], InTwo | None]]] = {
    "GroupNorm": (fused_group,),
    "SkipGroupNorm": (fused_group,),
}

_SPELLED_BY_DOMAIN = {"": _SPELLED, "ai.onnx": _SPELLED, CONTRIB_DOMAIN: _CONTRIB}


@dataclass(frozen=True)
class Statistic(Respelling):
    """Nodes that look at the whole image, and what is written in their place.

    Attributes:
        rows: What the new ones make of each row.
        kind: What people call it.
        image: What it looks at.
    """

    rows: str
    kind: str
    image: str


def find_statistics(facts: CertainFacts, axes: Mapping[str, int]) -> list[Statistic]:
    """Find what looks at the whole image, and write it in two; the model is not changed.

    Args:
        facts: The model.
        axes: Which dimension of a tensor is the tiled axis, where that is known.
    """
    found = ReadGraph(facts, axes, free_word("statistic", facts.index.names))
    statistics: list[Statistic] = []
    for position, node in enumerate(facts.graph.node):
        table = _SPELLED_BY_DOMAIN.get(node.domain)
        if table is None or not node.input or not node.output:
            continue
        tried = (spelled(found, position) for spelled in table.get(node.op_type, ()))
        made = next((each for each in tried if each is not None), None)
        if made is not None:
            statistics.append(_statistic(found, position, *made))
    return statistics


def _statistic(
    found: ReadGraph, position: int, positions: Sequence[int], new: NewNodes
) -> Statistic:
    nodes = found.facts.graph.node
    covered = with_servants(found, positions, new)
    return Statistic(
        covered=covered,
        originals=tuple(copied(nodes[at]) for at in covered),
        nodes=tuple(new.nodes),
        outputs=(nodes[max(positions)].output[0],),
        label=node_label(nodes[position]),
        rows=f"{new.base}/rows",
        kind=new.kind,
        image=new.image,
    )
