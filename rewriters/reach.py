"""How far outputs look: what somebody needs who runs a model on tiles from outside.

A tile of the input that begins and ends at whole *steps* has the same stride phase, padding and
sizes as the whole. Of what the model makes of it, rows near an edge that is no edge of the image
are wrong: as many as lie within the *reach* of the operators between. Who gives each tile so many
rows more, and cuts off what these make, has the model's own output:

    input   |---- reach above ----|==== rows of its own ====|---- reach below ----|
    output  |--- wrong: cut off ---|=== rows of its own ===|--- wrong: cut off ---|

An output that looks at the whole image, through a normalisation, a pool or attention, has no such
reach: tiles give another output, however tall. Nor has one behind a Resize whose rows lie by the
height of the whole image. What does so is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from patchconv_deploy.rewriters.graph.statistics import Statistic
from patchconv_deploy.rewriters.operators.record import RowLocal
from patchconv_deploy.rewriters.operators.rules import OverAllRows
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region, make_region
from patchconv_deploy.rewriters.regions.row_locality import Locality
from patchconv_deploy.rewriters.tiling import network as networks
from patchconv_deploy.rewriters.tiling import proof
from patchconv_deploy.rewriters.tiling.patches import Extent

__all__ = ["InputReach", "Looker", "Reach", "kind_of", "reaches"]


# Of a Resize that is written as weighted shifts: of a tile its rows would lie elsewhere.
_PLACED = "where its rows lie is counted from the whole image's height"


@dataclass(frozen=True, slots=True)
class Looker:
    """A node between inputs and an output for which no reach is known.

    Attributes:
        node: Its name; empty where it is the way as a whole that has no reach.
        kind: "statistic" (a reduction over the image, which a rewrite serves), "barrier" (it looks
            at all rows) or "refused" (how far it looks cannot be proven).
        reason: Why.
    """

    node: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class InputReach:
    """How far an output looks into an input.

    Attributes:
        input: The input.
        axis: Its dimension that is the tiled axis.
        step: Its rows per step; tiles begin and end at multiples of it.
        above: Rows before a tile's own that it needs.
        below: Rows behind them.
        scale: Rows of the output per row of the input, numerator and denominator.
    """

    input: str
    axis: int
    step: int
    above: int
    below: int
    scale: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an output looks.

    Attributes:
        output: The output.
        bounded: It has a reach; else the rest is empty but for ``unbounded_by``.
        axis: Its dimension that is the tiled axis, None where it has none.
        step: Its rows per step.
        wrong_above: Rows at a tile's upper edge, where that is none of the image, to be cut off.
        wrong_below: The same at its lower edge.
        inputs: Per input that it reads along the axis how far.
        unbounded_by: What looks at the whole image, or is refused, in the order of the graph.
    """

    output: str
    bounded: bool
    axis: int | None = None
    step: int | None = None
    wrong_above: int | None = None
    wrong_below: int | None = None
    inputs: tuple[InputReach, ...] = ()
    unbounded_by: tuple[Looker, ...] = ()


def reaches(facts: ModelFacts, locality: Locality) -> tuple[Reach, ...]:
    """Return how far each output of a model looks.

    Args:
        facts: The model.
        locality: Its row-local nodes.
    """
    names = [value.name for value in facts.certain.graph.output]
    return tuple(_reach(facts, locality, name) for name in names)


def _reach(facts: ModelFacts, locality: Locality, output: str) -> Reach:
    nodes = _before(facts, output)
    after = _of_statistics(facts, nodes)
    lookers = [
        _looker(facts, locality.reasons, at)
        for at in sorted(nodes)
        if (at not in locality.links or at in facts.respelling_of) and at not in after
    ]
    if lookers:
        return Reach(output, False, unbounded_by=tuple(dict.fromkeys(lookers)))
    found = _extent(facts, locality.links, nodes, output)
    if isinstance(found, str):
        return Reach(output, False, unbounded_by=(Looker("", kind_of(found), found),))
    return found


def _before(facts: ModelFacts, output: str) -> set[int]:
    """Return the nodes that an output is made by, those left out that work out sizes alone."""
    certain, index = facts.certain, facts.index
    found: set[int] = set()
    ahead = [output]
    while ahead:
        name = ahead.pop()
        at = index.producer.get(name)
        if at is None or at in found or name in index.constants:
            continue
        node = certain.graph.node[at]
        known = all(certain.constants.array(made) is not None for made in node.output if made)
        if known or certain.free.makes_sizes(node):
            continue
        found.add(at)
        ahead.extend(facts.executed[at].reads)
    return found


def _of_statistics(facts: ModelFacts, nodes: set[int]) -> set[int]:
    """Return the nodes that read statistics alone: they see no more of the image than these."""
    found: set[int] = set()
    for at in sorted(nodes):
        before = {facts.index.producer.get(name) for name in facts.executed[at].reads}
        before &= nodes
        if before and all(other in found or other in facts.statistic_of for other in before):
            found.add(at)
    return found - facts.statistic_of.keys()


def _looker(facts: ModelFacts, reasons: Mapping[int, str], at: int) -> Looker:
    entry = facts.respelling_of.get(at)
    if isinstance(entry, Statistic):
        return Looker(entry.label, "statistic", entry.kind)
    if entry is not None:
        return Looker(entry.label, "refused", _PLACED)
    reason = reasons.get(at, "no Conv, pool or attention leads to it")
    return Looker(facts.labels[at], kind_of(reason), reason)


def kind_of(reason: str) -> str:
    """Return what a node that is not row-local is, by the reason for that."""
    return "barrier" if isinstance(reason, OverAllRows) else "refused"


def _extent(
    facts: ModelFacts, links: Mapping[int, RowLocal], nodes: set[int], output: str
) -> Reach | str:
    """Return the reach of an output whose nodes are all row-local, or why it has none."""
    certain = facts.certain
    if not nodes:
        return "it is made of no input"
    region = make_region(certain, links, nodes, [output], output)
    if isinstance(region, Refusal):
        return region.reason
    network = region.network
    step = networks.steps(network)
    if isinstance(step, str):
        return step
    rows = region.rows(certain.shapes)
    first = 0 if rows is not None else networks.first_height(network)
    (extent,) = proof.extents(network, rows, first)
    inputs = tuple(_into(region, number, step[number], extent) for number in network.inputs)
    axis = region.outputs[0].axis
    return Reach(output, True, axis, extent.step, extent.top, extent.tail, inputs)


def _into(region: Region, number: int, step: int, extent: Extent) -> InputReach:
    """Return how far an output looks into an input: its wrong rows in the input's, rounded up."""
    edge, out = region.tensors[number], extent.step
    above, below = (-(-rows * step // out) for rows in (extent.top, extent.tail))
    common = gcd(step, out)
    return InputReach(edge.name, edge.axis, step, above, below, (out // common, step // common))
