"""What holds a model's memory, and what could be done about it; nothing is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from patchconv_deploy.rewriters.emission.forms import GAIN
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.operators.record import Shape
from patchconv_deploy.rewriters.planning.candidates import candidates_of, row_local
from patchconv_deploy.rewriters.planning.choose import unbeaten
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate, EvaluatedPlan, original_of
from patchconv_deploy.rewriters.planning.evaluator import PlanEvaluator
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.peak_holders import Reason, reasons_of, unknown_sizes
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.planning.stages import Limits
from patchconv_deploy.rewriters.reach import Reach, kind_of, reaches
from patchconv_deploy.rewriters.regions.row_locality import find_locality
from patchconv_deploy.rewriters.statistic_costs import StatisticCost, statistic_costs

__all__ = [
    "Barrier",
    "Inspection",
    "Overview",
    "Run",
    "TensorSize",
    "inspect_model",
    "overview_of_model",
]


# Share of the peak that a node has to read and make to be told of.
_LARGE = 0.01


@dataclass(frozen=True, slots=True)
class TensorSize:
    """An activation: its name, shape, bytes, and the node that makes it."""

    name: str
    shape: Shape | None
    bytes: int
    maker: str


@dataclass(frozen=True, slots=True)
class Barrier:
    """A node that no region can hold and is run whole: regions end before it, and begin behind it.

    Attributes:
        node: Its name.
        kind: "barrier" (each row of its output depends on all rows of its input) or "refused" (it
            cannot be proven patch by patch as it is spelled, or at these sizes).
        op_type: Its operator.
        reason: Why.
        bytes: Bytes of what it reads and makes, which are in memory whole while it runs; None where
            any of it is of unknown size.
    """

    node: str
    kind: str
    op_type: str
    reason: str
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """A region of one of the plans that a rewrite chooses from, and that lowers the peak.

    Attributes:
        first: Its first node.
        last: Its last node.
        nodes: Number of nodes.
        peak: Most bytes alive while it runs as it is.
        tiled: Per number of patches the same with it cut, predicted of the nodes that would be
            written, and its work over before; each is less than ``peak``.
    """

    first: str
    last: str
    nodes: int
    peak: int
    tiled: Mapping[int, tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found; lists are sorted, the largest first.

    Attributes:
        peak: Predicted peak on the engine in view.
        tensors: Activations.
        barriers: Nodes that no region can hold and that read or make something large: a hundredth
            of the peak or more.
        runs: Regions that could be cut; none where the peak is unknown.
        assumed: Sizes that free dimensions were counted as.
        unknown: Why the peak is unknown, None if it is known.
        data_sized: Activations whose sizes depend on the data, counted as nothing.
        left: Why the whole model would be left as it is, empty if it would not.
        reasons: What holds the peak where no region lowers it.
        curve: The model as it is, and plans of ever lower peak and ever more time; none where the
            whole model would be left as it is.
        statistics: What looks at the whole image and is served all the same, with what it costs;
            none where the whole model would be left as it is.
        reach: How far each output looks along the axis, for who runs the model on tiles.
    """

    peak: Peak
    tensors: tuple[TensorSize, ...]
    barriers: tuple[Barrier, ...]
    runs: tuple[Run, ...]
    assumed: Mapping[str, tuple[int, ...]]
    unknown: Reason | None = None
    data_sized: tuple[str, ...] = ()
    left: str = ""
    reasons: tuple[Reason, ...] = ()
    curve: tuple[Candidate, ...] = ()
    statistics: tuple[StatisticCost, ...] = ()
    reach: tuple[Reach, ...] = ()


@dataclass(frozen=True, slots=True)
class Overview:
    """What is told of a model without a search; lists are sorted, the largest first.

    Attributes:
        tensors: Activations.
        barriers: Nodes that cannot be in a region and read or make something large.
        statistics: What looks at the whole image and is served all the same, with what it costs.
        reasons: What holds the model's peak as it is. What patches can be made of has the code
            "no-gain", whether they gain anything or not: that takes a search.
    """

    tensors: tuple[TensorSize, ...]
    barriers: tuple[Barrier, ...]
    statistics: tuple[StatisticCost, ...]
    reasons: tuple[Reason, ...]


def inspect_model(
    predictor: MemoryPredictor,
    axis: str | int,
    engine: str,
    limits: Limits,
    left: str = "",
) -> Inspection:
    """Inspect a model.

    Args:
        predictor: Predicts the model's memory.
        axis: "height", "width", "depth" or a dimension of the tensor.
        engine: A key of `memory.targets.ENGINES`.
        limits: What every plan has to keep.
        left: Why the whole model would be left as it is, empty if it would not.
    """
    facts = predictor.facts
    found = candidates_of(predictor, axis, frozenset(), engine=engine)
    plain = predictor.predict(None, engine)
    runs: list[Run] = []
    curve: tuple[Candidate, ...] = () if left else (original_of(plain),)
    if not plain.unknown and not left:
        evaluator, plans = unbeaten(predictor, found, limits, engine, plain)
        runs = _runs(evaluator, plans)
        curve += tuple(plan.figures for plan in plans)
    reasons: tuple[Reason, ...] = ()
    if not runs and not left:
        reasons = reasons_of(
            predictor, plain, found.links, found.reasons, (), found.refused, engine
        )
    return Inspection(
        peak=plain,
        tensors=_tensors(facts),
        barriers=_barriers(facts, found.links, found.reasons, plain.bytes),
        runs=tuple(sorted(runs, key=lambda each: (-each.peak, -each.nodes))),
        assumed=facts.assumed,
        unknown=unknown_sizes(facts) if plain.unknown else None,
        data_sized=facts.data_sized,
        left=left,
        reasons=reasons,
        curve=curve,
        statistics=statistic_costs(facts, found.links),
        reach=reaches(facts, find_locality(facts.certain, axis)),
    )


def overview_of_model(
    predictor: MemoryPredictor, axis: str | int, engine: str, kept: Collection[int] = ()
) -> Overview:
    """Tell what can be told of a model without searching for plans.

    Args:
        predictor: Predicts the model's memory.
        axis: "height", "width", "depth" or a dimension of the tensor.
        engine: A key of `memory.targets.ENGINES`.
        kept: Positions of the nodes that the user wants left as they are.
    """
    facts = predictor.facts
    locality = find_locality(facts.certain, axis)
    links = row_local(facts, locality.links, kept)
    plain = predictor.predict(None, engine)
    return Overview(
        tensors=_tensors(facts),
        barriers=_barriers(facts, links, locality.reasons, plain.bytes),
        statistics=statistic_costs(facts, links),
        reasons=reasons_of(predictor, plain, links, locality.reasons, kept, (), engine),
    )


def _tensors(facts: ModelFacts) -> tuple[TensorSize, ...]:
    """Return the activations, the largest first; of what is respelled the results alone."""
    found = [
        TensorSize(
            name, facts.sizing.dims.get(name), facts.bytes.get(name) or 0, facts.own_label(at)
        )
        for at, node in enumerate(facts.certain.graph.node)
        for name in node.output
        if facts.bytes.get(name)
        and (at not in facts.respelling_of or name in facts.respelling_of[at].outputs)
    ]
    return tuple(sorted(found, key=lambda each: -each.bytes))


def _barriers(
    facts: ModelFacts, links: Collection[int], reasons: Mapping[int, str], peak: int
) -> tuple[Barrier, ...]:
    """Return the nodes that cannot be in a region, those of unknown size first, then by bytes.

    A node that reads nothing but sizes, or makes what is known before anything runs, needs no
    tensor whole.
    """
    graph, labels, certain = facts.certain.graph, facts.labels, facts.certain
    found = [
        Barrier(labels[at], kind_of(reason), graph.node[at].op_type, reason, size)
        for at, reason in reasons.items()
        if at not in links
        and at not in facts.respelling_of
        and not certain.free.makes_sizes(graph.node[at])
        and any(certain.constants.array(name) is None for name in graph.node[at].output if name)
        and ((size := _touched(facts, graph.node[at])) is None or size >= max(1, _LARGE * peak))
    ]
    return tuple(sorted(found, key=lambda each: (each.bytes is not None, -(each.bytes or 0))))


def _touched(facts: ModelFacts, node: onnx.NodeProto) -> int | None:
    names = {*node.input, *node.output} & facts.bytes.keys()
    sizes = [facts.bytes[name] for name in names]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _runs(evaluator: PlanEvaluator, plans: Sequence[EvaluatedPlan]) -> list[Run]:
    """Return the regions of the plans that nothing beats: proven, and emitted as nodes."""
    facts = evaluator.facts
    plains: dict[tuple[int, ...], int] = {}
    tiled: dict[tuple[int, ...], dict[int, tuple[int, float]]] = {}
    for each in plans:
        for plan, entry, (most, _) in zip(each.regions, each.emitted, each.needs, strict=True):
            nodes = plan.region.nodes
            plains[nodes] = plain = evaluator.uncut_peak(plan)
            work = entry.recompute(facts, assume=True)
            if work is not None and most < GAIN * plain:
                ways = tiled.setdefault(nodes, {})
                ways[plan.splits] = min(ways.get(plan.splits, (most, work)), (most, work))
    label = facts.own_label
    return [
        Run(label(nodes[0]), label(nodes[-1]), len(nodes), plains[nodes], dict(sorted(w.items())))
        for nodes, w in tiled.items()
    ]
