"""Choice of regions: what the search finds, made into regions and proven.

The search weighs; it proves nothing. A region of its plan that cannot be made or proven is
forbidden, with its reason kept, and the search goes on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from patchconv_deploy.rewriters.operators.record import RowLocal
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.rewriters.planning.search import stage_graphs
from patchconv_deploy.rewriters.planning.shortest_path import cheapest_plan
from patchconv_deploy.rewriters.planning.stage_graph import StageGraph
from patchconv_deploy.rewriters.planning.stages import Limits, Plan, RegionChoice
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region, make_region
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan, plan_region

__all__ = ["Candidates", "candidates_of", "choice_of", "row_local"]


logger = logging.getLogger(__name__)

_MOST_TRIES = 40


@dataclass
class Candidates:
    """Everything there is to choose from in a model.

    Attributes:
        facts: The model.
        links: Row-local nodes, by position.
        reasons: Why other nodes are not.
        stage_graphs: The stages of each order of the nodes.
        refused: Regions that turned out not to be provable.
        proven: Regions that were asked for so far.
        looked_at: Places and stages that plans were looked for at, for who counts effort.
        proved: Nodes, of each patch, of the regions that were proven; the same.
        puts_off: What has to be proven at every height is not before a plan is taken.
    """

    facts: ModelFacts
    links: Mapping[int, RowLocal]
    reasons: Mapping[int, str]
    stage_graphs: Sequence[StageGraph]
    refused: list[Refusal]
    proven: dict[RegionChoice, RegionPlan | Refusal] = field(default_factory=dict)
    looked_at: int = 0
    proved: int = 0
    puts_off: bool = False

    @property
    def plain_peak(self) -> int:
        """The most bytes alive where nothing is cut, as the search counts them."""
        return max(self.stage_graphs[0].live_bytes, default=0)

    def choose(
        self, limits: Limits, graphs: Sequence[StageGraph] | None = None
    ) -> tuple[RegionPlan, ...] | None:
        """Return the proven regions of the plan of least work under a budget.

        Args:
            limits: What to keep.
            graphs: Where to search, None for everywhere.

        Returns:
            The plan of least work over all orders of the nodes; None where no order keeps the
            limits.
        """
        found = [self._choose(graph, limits) for graph in graphs or self.stage_graphs]
        best = min(
            (entry for entry in found if entry is not None),
            key=lambda entry: entry[0].cost,
            default=None,
        )
        return None if best is None else best[1]

    def in_patches(self, plan: RegionPlan, splits: int) -> RegionPlan | None:
        """Return a region in another number of patches, None if it cannot be cut so."""
        choice = choice_of(plan.region, splits)
        if choice not in self.proven:
            self.proven[choice] = self._cut(plan.region, splits)
        made = self.proven[choice]
        return None if isinstance(made, Refusal) else made

    def _choose(
        self, graph: StageGraph, limits: Limits
    ) -> tuple[Plan, tuple[RegionPlan, ...]] | None:
        for _ in range(_MOST_TRIES):
            plan = cheapest_plan(graph, limits)
            self.looked_at += graph.size
            if plan is None:
                return None
            regions = []
            for choice, span in zip(plan.choices, plan.spans, strict=True):
                if choice not in self.proven:
                    self.proven[choice] = self._prove(choice.nodes, choice.wanted, choice.splits)
                made = self.proven[choice]
                if isinstance(made, Refusal):
                    logger.debug("region %s: %s", made.node, made.reason)
                    self.refused.append(made)
                    graph.forbid(span.begin, span.end)
                else:
                    regions.append(made)
            if len(regions) == len(plan.choices):
                return plan, tuple(regions)
        return None

    def _prove(
        self,
        nodes: Sequence[int],
        wanted: Collection[str],
        splits: int,
    ) -> RegionPlan | Refusal:
        label = self.facts.labels[nodes[-1]]
        region = make_region(self.facts.certain, self.links, nodes, wanted, label)
        return region if isinstance(region, Refusal) else self._cut(region, splits)

    def _cut(self, region: Region, splits: int) -> RegionPlan | Refusal:
        certain = self.facts.certain
        found = plan_region(region, certain.shapes, splits, certain.opset, put_off=self.puts_off)
        if isinstance(found, RegionPlan):
            self.proved += found.walked
        else:
            self.proved += splits * sum(len(link.reads) for link in region.network.links)
        if isinstance(found, RegionPlan) and found.tiling is not None and found.tiling.trim == 0:
            return Refusal(region.label, "the halo is as tall as the image", "halo-too-tall")
        return found


def choice_of(region: Region, splits: int) -> RegionChoice:
    """Return what tells a region in so many patches from others."""
    return RegionChoice(region.nodes, tuple(edge.name for edge in region.outputs), splits)


def row_local(
    facts: ModelFacts, links: Mapping[int, RowLocal], kept: Collection[int] = ()
) -> dict[int, RowLocal]:
    """Return the links of nodes that are neither constant nor to be left as they are."""
    index = facts.index
    return {
        at: link
        for at, link in links.items()
        if at not in kept
        and not all(name in index.constants for name in index.graph.node[at].output if name)
    }


def candidates_of(
    predictor: MemoryPredictor,
    axis_name: str | int,
    kept: frozenset[int],
    engine: str,
    progress: Progress | None = None,
) -> Candidates:
    """Find everything there is to choose from.

    Args:
        predictor: Predicts the model's memory.
        axis_name: "height", "width", "depth" or a dimension of the tensor.
        kept: Positions of nodes that are to be left as they are.
        engine: A key of `memory.targets.ENGINES`.
        progress: Called with (what, done, total) from time to time.
    """
    facts = predictor.facts
    certain = facts.certain
    locality = find_locality(certain, axis_name)
    constant = {
        at
        for at, node in enumerate(certain.graph.node)
        if all(not name or name in facts.index.constants for name in node.output)
    }
    known = {
        at
        for at, node in enumerate(certain.graph.node)
        if at not in locality.links
        and at not in constant
        and (
            at in locality.vectors
            or all(certain.constants.array(name) is not None for name in node.output if name)
            or certain.free.makes_sizes(node)
        )
    }
    links = row_local(facts, locality.links, kept)

    def searching(done: int, most: int) -> None:
        if progress is not None:
            progress("searching", done, most)

    found = list(stage_graphs(predictor, links, constant | known, engine, searching))
    return Candidates(facts, links, locality.reasons, found, [])
