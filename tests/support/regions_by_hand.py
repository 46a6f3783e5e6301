"""Regions made by hand: every row-local node of a model is cut, whatever the search would choose.

    level     a node that reads a tensor whole is one level above the node that makes it, so that
              no path leads out of a level and back into it
    region    row-local nodes of one level, connected by tensors that carry the tiled axis; one
              that is refused is halved, down to single nodes

What is left uncut has its reason in `Cut.refused`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx

from patchconv_deploy.rewriters.emission.bodies import move_into_bodies
from patchconv_deploy.rewriters.emission.fragment import Fragment
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.emission.splice import drop_unused_value_info, splice
from patchconv_deploy.rewriters.graph.check import check
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.use_def import index
from patchconv_deploy.rewriters.planning.emitted_region import emit_region, ordered
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts, analyse
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import make_region
from patchconv_deploy.rewriters.regions.row_locality import Locality, find_locality
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan, plan_region

__all__ = ["Cut", "tile_all"]


@dataclass(frozen=True)
class Cut:
    """A model whose row-local nodes are cut.

    Attributes:
        model: The result.
        plans: Its regions; every window is shorter than the whole.
        refused: Regions that could not be cut.
        locality: Which nodes are row-local, by position, and why others are not.
        labels: Operator of each node, by position.
    """

    model: onnx.ModelProto
    plans: tuple[RegionPlan, ...]
    refused: tuple[Refusal, ...]
    locality: Locality
    labels: tuple[str, ...]

    @property
    def operators(self) -> frozenset[str]:
        """Operators that lie in a cut region."""
        return frozenset(self.labels[at] for plan in self.plans for at in plan.region.nodes)

    @property
    def reasons(self) -> list[str]:
        """Every reason, of nodes and of regions."""
        return [*self.locality.reasons.values(), *(refusal.reason for refusal in self.refused)]


def tile_all(
    model: onnx.ModelProto,
    splits: int = 3,
    form: str = "fused",
    axis: str | int = "height",
    *,
    halve: bool = True,
) -> Cut:
    """Cut every row-local node of a copy of the model.

    Args:
        model: The model.
        splits: Patches per region.
        form: "fused", "shrinking" or "loop".
        axis: The axis that is cut.
        halve: Cut halves of a region that is refused.
    """
    made = copy.deepcopy(model)
    facts = analyse(made, skeleton(Loaded(made, None)), allow_custom_ops=True)
    locality = find_locality(facts.certain, axis)
    plans: list[RegionPlan] = []
    refused: list[Refusal] = []
    pending = [nodes for _, nodes in sorted(_levels(facts, locality).items())][::-1]
    while pending:
        for nodes in _connected(facts, locality, pending.pop()):
            found = _plan(facts, locality, nodes, splits)
            if isinstance(found, RegionPlan):
                plans.append(found)
                continue
            refused.append(found)
            if halve and len(nodes) > 1:
                middle = len(nodes) // 2
                pending += [nodes[middle:], nodes[:middle]]
    names = NameScheme.avoiding(facts.index.names)
    labels = tuple(node.op_type for node in made.graph.node)
    emitted = [
        emit_region(plan, form, facts, names, f"region_{number}")
        for number, plan in enumerate(plans)
    ]
    if emitted:
        order = ordered(facts, emitted)
        assert order is not None, "the regions depend on each other in a circle"
        remaining = {n for at in order if isinstance(at, int) for n in made.graph.node[at].output}
        gone = {name for node in made.graph.node for name in node.output} - remaining
        fragments = [item for item in order if isinstance(item, Fragment)]
        gone -= {name for fragment in fragments for name in fragment.makes}
        splice(made, order)
        move_into_bodies(made, {name for fragment in fragments for name in fragment.loops})
        drop_unused_value_info(made.graph, gone)
        check(skeleton(Loaded(made, None)), allow_custom_ops=True)
        index(made)
    return Cut(made, tuple(d.plan for d in emitted), tuple(refused), locality, labels)


def _levels(facts: ModelFacts, locality: Locality) -> dict[int, list[int]]:
    index, links = facts.index, locality.links
    level: dict[int, int] = {}
    found: dict[int, list[int]] = {}
    for position, executed in enumerate(facts.executed):
        node, link = index.graph.node[position], links.get(position)
        carried = {node.input[i] for i, _ in link.carriers} if link is not None else set()
        level[position] = 0
        for name in executed.reads:
            maker = index.producer.get(name)
            if maker is not None:
                above = int(name not in carried or maker not in links)
                level[position] = max(level[position], level[maker] + above)
        if link is not None and any(name not in index.constants for name in executed.makes):
            found.setdefault(level[position], []).append(position)
    return found


def _connected(facts: ModelFacts, locality: Locality, nodes: Sequence[int]) -> Iterator[list[int]]:
    graph, links = facts.index.graph, locality.links
    touching: dict[str, list[int]] = {}
    for at in nodes:
        carried = [graph.node[at].input[i] for i, _ in links[at].carriers]
        for name in {*carried, *graph.node[at].output} - {""}:
            touching.setdefault(name, []).append(at)
    neighbours: dict[int, set[int]] = {at: set() for at in nodes}
    for sharing in touching.values():
        for at in sharing:
            neighbours[at].update(sharing)
    seen: set[int] = set()
    for start in nodes:
        part, queue = [], [start]
        while queue:
            at = queue.pop()
            if at not in seen:
                seen.add(at)
                part.append(at)
                queue.extend(neighbours[at])
        if part:
            yield sorted(part)


def _plan(
    facts: ModelFacts, locality: Locality, nodes: Collection[int], splits: int
) -> RegionPlan | Refusal:
    certain, index = facts.certain, facts.index
    inside = set(nodes)
    label = " ".join(index.graph.node[at].op_type for at in nodes)
    wanted = [
        name
        for at in nodes
        for name in index.graph.node[at].output
        if name in index.outputs or not inside.issuperset(index.users.get(name, ()))
    ]
    region = make_region(certain, locality.links, nodes, wanted, label)
    if isinstance(region, Refusal):
        return region
    found = plan_region(region, certain.shapes, splits, certain.opset)
    if isinstance(found, RegionPlan) and found.tiling is not None and found.tiling.trim == 0:
        return Refusal(label, "the halo is as tall as the image", "halo-too-tall")
    return found
