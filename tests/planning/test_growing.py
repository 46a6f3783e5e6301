"""Regions as they grow: what the search counts of a region is what the proof finds of it."""

from __future__ import annotations

import random

import onnx

from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.planning.candidates import Candidates, candidates_of
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts, analyse
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.shortest_path import cheapest_plan
from patchconv_deploy.rewriters.planning.stage_graph import StageGraph
from patchconv_deploy.rewriters.planning.stages import CandidateRegion, Limits
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region, make_region
from patchconv_deploy.rewriters.tiling.network import steps
from patchconv_deploy.rewriters.tiling.patches import free_steps
from patchconv_deploy.rewriters.tiling.proof import extents
from tests.support.random_graphs import random_graph
from tools.models.deep import make

ENGINE = "onnxruntime-tuned"


def _found(made: onnx.ModelProto, axis: str | int) -> tuple[ModelFacts, Candidates]:
    facts = analyse(made, skeleton(Loaded(made, None)))
    return facts, candidates_of(MemoryPredictor(facts), axis, frozenset(), ENGINE)


def _regions(graph: StageGraph) -> list[CandidateRegion]:
    """Return all regions that can be cut in two."""
    hops = graph.regions.hops(Limits())
    return [graph.regions.one(*ends) for ends in zip(hops.begins, hops.ends, strict=True)]


def _made(
    facts: ModelFacts, found: Candidates, graph: StageGraph, one: CandidateRegion
) -> Region | Refusal:
    """Return a region of the search as what is proven."""
    nodes, tensors = graph.schedule.nodes[one.begin : one.end], graph.schedule.tensors
    wanted = [
        tensors[number].name
        for node in nodes
        for number in node.makes
        if tensors[number].last_use >= one.end
    ]
    positions = [node.position for node in nodes]
    return make_region(facts.certain, found.links, positions, wanted, "region")


def test_what_a_region_leaves_free_is_what_the_proof_finds() -> None:
    """Steps its outputs leave free, and rows per step, of regions of random graphs."""
    compared = 0
    for seed in range(40):
        drawn = random_graph(random.Random(seed).randint, most=12)
        facts, found = _found(drawn.model(), drawn.axis)
        for graph in found.stage_graphs:
            for one in _regions(graph):
                region = _made(facts, found, graph, one)
                if isinstance(region, Refusal):
                    continue
                rows = region.rows(facts.certain.shapes)
                assert rows is not None
                outs = extents(region.network, rows)
                assert one.free == min(free_steps(out, max) for out in outs)
                step = steps(region.network)
                assert not isinstance(step, str)
                tallest = max(outs, key=lambda out: out.rows / out.step)
                assert one.rows * tallest.step == one.step * tallest.rows
                compared += 1
    assert compared > 400, compared


def test_rematerialised_tensors_leave_no_region() -> None:
    """What is made a second time is for the region that it is made in, in plans too."""
    _, found = _found(make("unet", 60), "height")
    repeated = [graph for graph in found.stage_graphs if graph.schedule.rematerialised]
    assert repeated
    for graph in repeated:
        schedule = graph.schedule
        first, *others = [at for at, node in enumerate(schedule.nodes) if node.rematerialised]
        assert not any(graph.uncut(Limits())[at] for at in (first, *others))
        plan = cheapest_plan(graph, Limits())
        assert plan is not None
        assert any(span.begin <= first < span.end for span in plan.spans)
        for one in _regions(graph):
            kept = {
                number
                for node in schedule.nodes[one.begin : one.end]
                for number in node.makes
                if schedule.tensors[number].last_use >= one.end
            }
            assert kept.isdisjoint(schedule.rematerialised)
