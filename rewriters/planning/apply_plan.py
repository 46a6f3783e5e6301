"""A plan as it is written in a file, made into regions of a model again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.memory.targets import ENGINES
from patchconv_deploy.rewriters.planning.candidates import row_local
from patchconv_deploy.rewriters.planning.emitted_region import EmittedRegion, emit_region
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.orders import run_rank_of
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region, make_region
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan, plan_region

__all__ = ["apply_plan", "names_of"]


def apply_plan(
    predictor: MemoryPredictor, data: Mapping[str, Any], engine: str
) -> tuple[tuple[EmittedRegion, ...], list[int] | None]:
    """Return the regions of a plan as it is written in a file, and when each node is to run.

    Args:
        predictor: Predicts the model's memory.
        data: The plan, `planning.plan_file.plan_data`.
        engine: A key of `memory.targets.ENGINES`.

    Raises:
        OptionError: The plan does not fit the model, or a region of it cannot be proven.
    """
    facts, labels = predictor.facts, predictor.facts.labels
    certain = facts.certain
    names = NameScheme.avoiding(facts.index.names)
    links = find_locality(certain, data["axis"]).links
    run_rank = run_rank_of(predictor, data["order"], engine, row_local(facts, links))
    emitted, compiled = [], ENGINES[engine].lowering.compiler
    known = facts.position_of.keys() | facts.written_for.keys()
    for entry in data["regions"]:
        unknown = [name for name in entry["nodes"] if name not in known]
        if unknown:
            raise OptionError(f"plan=: the model has no node {unknown[0]!r}")
        exact, named = _stand_for(facts, entry["nodes"])
        made = {name for at in exact | named for name in certain.graph.node[at].output}
        strange = [name for name in entry["outputs"] if name not in made]
        if strange:
            raise OptionError(f"plan=: no node of its region makes {strange[0]!r}")
        nodes = _named(facts, links, exact, named, entry["outputs"])
        if not nodes:
            # A statistic over all rows: its half that goes by rows makes none of these.
            raise OptionError(
                f"plan=: node {entry['nodes'][0]!r} cannot be in a region that makes "
                f"{entry['outputs'][0]!r}"
            )
        outside = [labels[at] for at in nodes if at not in links]
        if outside:
            raise OptionError(f"plan=: node {outside[0]!r} cannot be in a region")
        label = labels[max(nodes)]
        region = make_region(certain, links, nodes, entry["outputs"], label)
        plan = (
            region
            if isinstance(region, Refusal)
            else plan_region(region, certain.shapes, entry["splits"], certain.opset)
        )
        if not isinstance(plan, RegionPlan):
            raise OptionError(f"plan=: the region of {label!r} cannot be cut: {plan.reason}")
        if FORMS[entry["form"]].grows and compiled:
            raise OptionError("plan=: TensorRT takes no rounds; plan for it with target='tensorrt'")
        if FORMS[entry["form"]].grows and plan.tiling is None and entry.get("patch_rows"):
            plan = replace(plan, stride=max(1, entry["patch_rows"] // plan.extents[0].step))
        base = labels[nodes[0]] if len(nodes) == 1 else label
        cut = emit_region(plan, entry["form"], facts, names, base, compiled=compiled)
        if plan.stride is not None and cut.plan.stride is None:
            raise OptionError(
                f"plan=: the region of {label!r} cannot be cut into patches of "
                f"{plan.patch_rows} rows at any height; leave patch_rows out"
            )
        emitted.append(cut)
    return tuple(emitted), run_rank


def names_of(facts: ModelFacts, links: Collection[int], region: Region) -> tuple[str, ...]:
    """Return what a plan calls the nodes of a region: by their names in the model.

    Several nodes may stand for one of the model's. Where its name would be read as others than
    those in the region (`apply_plan`), they go by names of their own.

    Args:
        facts: The model.
        links: The nodes that can be in a region.
        region: Those that are, and what it makes.
    """
    own = {at: facts.own_label(at) for at in sorted(region.nodes)}
    exact, named = _stand_for(facts, own.values())
    read = _named(facts, links, exact, named, [edge.name for edge in region.outputs])
    astray = {facts.own_label(at) for at in own.keys() ^ set(read)}
    return tuple(
        dict.fromkeys(facts.labels[at] if name in astray else name for at, name in own.items())
    )


def _stand_for(facts: ModelFacts, names: Iterable[str]) -> tuple[set[int], set[int]]:
    """Return the nodes that names stand for: those they are the own names of, and the others."""
    names = tuple(names)
    exact = {facts.position_of[name] for name in names if name in facts.position_of}
    return exact, {at for name in names for at in facts.written_for.get(name, ())} - exact


def _named(
    facts: ModelFacts,
    links: Collection[int],
    exact: Collection[int],
    named: Collection[int],
    outputs: Sequence[str],
) -> list[int]:
    """Return the nodes of a region of those that its names stand for.

    Of what is written for a node of the model it is those that can be in a region. A statistic is
    written in two, and both halves go by the name of the model's node: the region's is that which
    leads to its outputs.

    Args:
        facts: The model.
        links: The nodes that can be in a region.
        exact: Those that go by names of their own.
        named: Those that are written for a node that is named.
        outputs: What the region makes.
    """
    if named and not any(at in links for at in named):
        return sorted({*exact, *named})
    within = {at for at in (*exact, *named) if at in links}
    index, reached = facts.index, set[int]()
    ahead = [at for at in map(index.producer.get, outputs) if at in within]
    while ahead:
        at = ahead.pop()
        if at not in reached:
            reached.add(at)
            before = map(index.producer.get, facts.executed[at].reads)
            ahead += [other for other in before if other in within]
    halves = {at for at in named if at in links and at not in facts.statistic_of}
    return sorted({*exact, *halves, *(at for at in named if at in reached)})
