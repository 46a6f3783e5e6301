"""Planned regions as nodes, before the model is changed.

An emitted region holds the nodes that would be written and, where the model's sizes are not all
known, the same at assumed sizes; memory is predicted on the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from patchconv_deploy.rewriters.emission.emit import emit
from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.emission.fragment import Fragment, fold
from patchconv_deploy.rewriters.emission.handing_over import hand_over
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.emission.pieces import hand_over_pieces
from patchconv_deploy.rewriters.emission.rounds import OLDEST_OPSET
from patchconv_deploy.rewriters.emission.size_nodes import work_out
from patchconv_deploy.rewriters.emission.splice import arrange
from patchconv_deploy.rewriters.graph.use_def import Index
from patchconv_deploy.rewriters.memory.executed import ExecutedNode
from patchconv_deploy.rewriters.memory.peak import Peak, peak
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.regions.refusal import Refusal
from patchconv_deploy.rewriters.regions.region import Region
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan, plan_region

__all__ = ["EmittedRegion", "emit_region", "ordered", "predict", "predict_all"]


@dataclass(frozen=True)
class EmittedRegion:
    """A region in one form.

    Attributes:
        plan: The plan.
        form: The form.
        fragment: The nodes that would take the region's place.
        sized: The same at assumed sizes; None where not even those are known.
        assumed: The plan at assumed sizes, None where the plan's own are known.
    """

    plan: RegionPlan
    form: str
    fragment: Fragment
    sized: Fragment | None
    assumed: RegionPlan | None = None

    @property
    def place(self) -> int:
        """Position in the graph that the fragment stands at."""
        return self.plan.region.nodes[-1]

    def recompute(self, facts: ModelFacts, *, assume: bool = False) -> float | None:
        """Return the region's work after over before, None if known at run time alone.

        Args:
            facts: The model.
            assume: Return that at assumed sizes rather than None.
        """
        plan = self.assumed if assume and self.assumed is not None else self.plan
        shares = plan.shares
        if shares is None:
            return None
        work = [facts.work[at] for at in plan.region.nodes]
        if not any(work):  # of unknown sizes: all nodes count alike
            work = [1.0] * len(work)
        after = sum(each * share for each, share in zip(work, shares, strict=True))
        return after / sum(work)

    def peak(self, facts: ModelFacts) -> int | None:
        """Return the most bytes alive in the region alone, None if sizes are unknown."""
        if self.sized is None:
            return None
        region, index = self.plan.region, facts.index
        inputs = [edge.name for edge in region.inputs]
        outputs = {edge.name for edge in region.outputs}
        for name in inputs:
            if name in index.outputs or any(
                user > region.nodes[-1] for user in index.users.get(name, ())
            ):
                outputs.add(name)
        nodes, _ = self.sized.export()
        executed = [ExecutedNode(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in nodes]
        sizes = {**{name: facts.bytes.get(name) for name in inputs}, **self.sized.sizes}
        found = peak(executed, sizes, inputs=inputs, outputs=outputs)
        return None if found.unknown else found.bytes


def emit_region(
    plan: RegionPlan,
    form: str,
    facts: ModelFacts,
    names: NameScheme,
    base: str,
    *,
    compiled: bool = False,
) -> EmittedRegion:
    """Emit a planned region.

    Args:
        plan: The plan.
        form: The form.
        facts: The model.
        names: The name scheme.
        base: What new names derive from.
        compiled: A compiler will run it, in an order of its own.
    """
    certain = facts.certain
    # Networks without statistics keep their order, as far as was measured.
    in_turn = compiled and bool(facts.statistics) and plan.tiling is not None
    apart = () if compiled else _staying(plan.region, facts.index)
    emitted = partial(emit, names=names, base=base, in_turn=in_turn, apart=apart)
    sized = _at_assumed_sizes(plan, facts)
    if FORMS[form].grows:
        grown = _in_rounds(plan, sized, facts)
        if grown is None:
            plan, form = replace(plan, stride=None), FORMS[form].falls_back
        else:
            plan, sized = grown
    if FORMS[form].shrinks:
        plan = plan.shrunk()
        # Windows of a height known at run time alone are uniform.
        form = form if plan.tiling is not None else FORMS[form].falls_back
    fragment = emitted(plan, form, certain.graph, certain.shapes, certain.opset)
    if not facts.assumes and plan.tiling is not None:
        return EmittedRegion(plan, form, fragment, fragment)
    if sized is None:
        return EmittedRegion(plan, form, fragment, None)
    if plan.shrinking is not None:
        sized = sized.shrunk()
    known = plan.tiling is not None
    assumed = emitted(
        sized, form, certain.graph, facts.sizing, certain.opset, stands_for_free=not known
    )
    return EmittedRegion(plan, form, fragment, assumed, None if known else sized)


def _staying(region: Region, index: Index) -> frozenset[str]:
    """Return the inputs of a region that are in memory behind it, too, or may be."""
    inside = frozenset(region.nodes)
    return frozenset(
        edge.name
        for edge in region.inputs
        if edge.name not in index.producer
        or edge.name in index.outputs
        or not inside.issuperset(index.users.get(edge.name, ()))
    )


def _at_assumed_sizes(plan: RegionPlan, facts: ModelFacts) -> RegionPlan | None:
    """Return a plan at the sizes that are assumed, None where it cannot be made at them."""
    if not facts.assumes and plan.tiling is not None:
        return plan
    sized = plan_region(plan.region, facts.sizing, plan.splits, facts.certain.opset)
    return sized if isinstance(sized, RegionPlan) and sized.tiling is not None else None


def _in_rounds(
    plan: RegionPlan, sized: RegionPlan | None, facts: ModelFacts
) -> tuple[RegionPlan, RegionPlan] | None:
    """Return a plan of as many patches as an image needs, and the same at assumed sizes.

    A patch is as high as one of those that the assumed height is cut into. None where the height
    is known, or no such plan can be proven or written.
    """
    if plan.tiling is not None or sized is None or facts.certain.opset < OLDEST_OPSET:
        return None
    if not all(facts.certain.shapes.elements.get(edge.name) for edge in plan.region.outputs):
        return None
    stride = plan.stride or sized.own_stride()
    if stride is None:
        return None
    found = plan.in_rounds(stride), sized.in_rounds(stride)
    grown, counted = found
    if isinstance(grown, Refusal) or isinstance(counted, Refusal):
        return None
    return grown, counted


def ordered(
    facts: ModelFacts,
    emitted: Sequence[EmittedRegion],
    run_rank: Sequence[int] | None = None,
    *,
    sized: bool = False,
) -> list[int | Fragment] | None:
    """Arrange regions in the graph; Shapes of tensors that are gone are made without them.

    Args:
        facts: The model.
        emitted: Its regions.
        run_rank: When each node is wanted to run, by position; None for the order of the file.
        sized: Take the fragments at assumed sizes.

    Returns:
        The new order, None if the regions depend on each other in a circle, or sizes are unknown.
    """
    fragments: dict[int, Fragment] = {}
    for entry in emitted:
        fragment = entry.sized if sized else entry.fragment
        if fragment is None:
            return None
        fragments[entry.place] = fragment
    cut = {at for fragment in fragments.values() for at in fragment.covers}
    # What nothing is cut of keeps its own nodes.
    fragments |= facts.originals_beside(cut)
    order = arrange(facts.index, {**fragments, **_shapes_of_gone(facts, fragments)}, run_rank)
    if order is None:
        # A region may need sizes that are asked of what it makes itself.
        fragments |= _shapes_of_gone(facts, fragments, made=True)
        order = arrange(facts.index, fragments, run_rank)
    if order is not None and any(fragment.pieces for fragment in fragments.values()):
        changed = hand_over_pieces(fragments, _read_by_nodes(facts, order), facts.bytes)
        if changed:
            fragments |= changed
            fragments |= _shapes_of_gone(facts, fragments)
            order = arrange(facts.index, fragments, run_rank)
    if order is None or not facts.statistics:
        return order
    return hand_over(order, facts.index)


def _read_by_nodes(facts: ModelFacts, order: Sequence[int | Fragment]) -> set[str]:
    """Return what the graph returns, and what nodes read that stay as they are.

    A Shape that can be worked out without its tensor does not count.
    """
    shapes = {at for at in facts.shape_nodes if _is_known(facts, at)}
    read = (facts.index.ends[at][0] for at in order if isinstance(at, int) and at not in shapes)
    return set(facts.index.outputs).union(*read)


def _is_known(facts: ModelFacts, at: int) -> bool:
    """Tell whether a Shape can be made without its tensor."""
    certain, node = facts.certain, facts.certain.graph.node[at]
    value = certain.constants.array(node.output[0])
    return value is not None or certain.free.shape_of(node) is not None


def _shapes_of_gone(
    facts: ModelFacts, fragments: Mapping[int, Fragment], *, made: bool = False
) -> dict[int, Fragment]:
    """Return what makes the shapes of tensors that will not be there: constants, or worked out.

    Args:
        facts: The model.
        fragments: What stands in the place of nodes.
        made: Those of tensors that fragments make, too.
    """
    certain, index = facts.certain, facts.index
    there = {name for fragment in fragments.values() for name in fragment.makes}
    gone = {at: fragment for fragment in fragments.values() for at in fragment.covers}
    found = {}
    for user in facts.shape_nodes:
        node = certain.graph.node[user]
        fragment = gone.get(index.producer.get(node.input[0], -1))
        if fragment is None or user in fragments or (node.input[0] in there and not made):
            continue
        value = certain.constants.array(node.output[0])
        sizes = certain.free.shape_of(node)
        if value is not None:
            found[user] = fold(user, node, value, fragment)
        elif sizes is not None:
            found[user] = work_out(user, node, sizes, certain.free.places, fragment)
    return found


def predict(
    predictor: MemoryPredictor,
    emitted: Sequence[EmittedRegion],
    engine: str,
    run_rank: Sequence[int] | None = None,
) -> Peak | None:
    """Return the predicted peak of the model with these regions, None if sizes are unknown.

    Args:
        predictor: Predicts the model's memory.
        emitted: Its regions.
        engine: A key of `memory.targets.ENGINES`.
        run_rank: When each node is wanted to run, by position; None for the order of the file.
    """
    found = predict_all(predictor, emitted, [engine], run_rank)
    return found[0] if found else None


def predict_all(
    predictor: MemoryPredictor,
    emitted: Sequence[EmittedRegion],
    engines: Sequence[str],
    run_rank: Sequence[int] | None = None,
) -> list[Peak]:
    """Return the predicted peak on each engine, none if sizes are unknown. As `predict`."""
    order = ordered(predictor.facts, emitted, run_rank, sized=True)
    return [] if order is None else predictor.predict_all(order, engines)
