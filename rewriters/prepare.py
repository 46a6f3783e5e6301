"""A model as it is analysed: sizes fixed, weights left out, in the opset that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx

from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.branches import inline_branches
from patchconv_deploy.rewriters.graph.broadcasts import find_broadcasts
from patchconv_deploy.rewriters.graph.facts import CertainFacts, facts_of
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.fused_convs import write_out_fused_convs
from patchconv_deploy.rewriters.graph.model import Loaded, opset_of
from patchconv_deploy.rewriters.graph.resizing import find_resizes
from patchconv_deploy.rewriters.graph.respelling import (
    NO_RESPELLINGS,
    Respelling,
    Respellings,
    respell,
)
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.graph.statistics import find_statistics
from patchconv_deploy.rewriters.graph.unfolding import find_folded
from patchconv_deploy.rewriters.graph.upgrade_opset import upgrade
from patchconv_deploy.rewriters.memory.targets import ENGINES, TARGETS
from patchconv_deploy.rewriters.options import OLDEST_OPSET, Options
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts, analyse
from patchconv_deploy.rewriters.planning.plan_file import METADATA_KEY
from patchconv_deploy.rewriters.planning.predictor import MemoryPredictor
from patchconv_deploy.rewriters.regions.row_locality import tiled_axes
from patchconv_deploy.rewriters.regions.selection import ConvSize, candidates, conv_size

__all__ = [
    "WrittenOut",
    "conv_sizes",
    "fix_sizes",
    "holds_plan",
    "look_at",
    "predict_unfixed",
    "predictor_for",
    "write_out",
]


# Rounds in which statistics are looked for: one may read what another one is written as.
_ROUNDS = 3


def look_at(loaded: Loaded, options: Options) -> MemoryPredictor:
    """Analyse a copy of a model without its weights."""
    if options.upgrade_opset is not None:
        loaded = Loaded(upgrade(loaded.model, options.upgrade_opset), loaded.folder)
    slim = skeleton(loaded)
    fix_sizes(slim, options)
    if not holds_plan(slim):
        write_out(Loaded(slim, None), slim=True)
    return predictor_for(_copied(slim), slim, options)


@dataclass(frozen=True)
class WrittenOut:
    """What a graph was before it was written out.

    Attributes:
        nodes: Its nodes; none where it is as it was.
        weights: Number of its initializers.
    """

    nodes: tuple[onnx.NodeProto, ...] = ()
    weights: int = 0

    def undo(self, graph: onnx.GraphProto) -> None:
        """Give the graph its own nodes back, in place."""
        if self.nodes:
            del graph.node[:]
            graph.node.extend(self.nodes)
            del graph.initializer[self.weights :]


def write_out(loaded: Loaded, *, slim: bool = False) -> WrittenOut:
    """Write what can be cut in operators of ONNX alone in the main graph, in place.

    That are branches whose condition is known (`graph.branches`), and convolutions that ONNX
    Runtime put activations into (`graph.fused_convs`).

    Args:
        loaded: The model.
        slim: Its weights are left out already.
    """
    model, graph = loaded.model, loaded.model.graph
    before = tuple(graph.node)
    own = WrittenOut(before, len(graph.initializer))
    done = False
    while any(node.op_type == "If" for node in graph.node):
        facts = _certain(_copied(model) if slim else skeleton(loaded))
        if not inline_branches(graph, partial(_condition, facts), model.ir_version):
            break
        done = True
    done = write_out_fused_convs(graph, opset_of(model)) or done
    return own if done else WrittenOut()


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _certain(slim: onnx.ModelProto) -> CertainFacts:
    """Return what is certain of a model without its weights, at every size that it takes."""
    facts = facts_of(slim)
    return facts.followed() if any(None in dims for dims in facts.shapes.dims.values()) else facts


def _condition(facts: CertainFacts, name: str) -> bool | None:
    """Return what a condition is, None where that is not known."""
    value = facts.constants.array(name)
    return bool(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def holds_plan(model: onnx.ModelProto) -> bool:
    """Tell whether a model was rewritten before."""
    return any(entry.key == METADATA_KEY for entry in model.metadata_props)


def fix_sizes(model: onnx.ModelProto, options: Options) -> None:
    """Fix what the user gave one size for, in place."""
    fixed: dict[str, Sequence[int | None]] = dict(options.shapes)
    for name, sizes in options.ranges.items():
        if any(not 1 <= low <= high for low, high in sizes):
            raise OptionError(
                f"shapes[{name!r}]: a range goes from 1 or more to no less, as 256 to 4096"
            )
        fixed[name] = [low if low == high else None for low, high in sizes]
    if fixed:
        fix_shapes(model, fixed)


def predictor_for(
    model: onnx.ModelProto, slim: onnx.ModelProto, options: Options
) -> MemoryPredictor:
    """Analyse a model for what is asked, given with its skeleton, which is changed in place.

    Where regions are asked for, what looks at the whole image is written in other words in both of
    them (`ModelFacts.respelled`).
    """
    largest = {name: [high for _, high in sizes] for name, sizes in options.ranges.items()}

    def read(model: onnx.ModelProto, slim: onnx.ModelProto) -> ModelFacts:
        made = analyse(model, slim, allow_custom_ops=options.allow_custom_ops, largest=largest)
        free = made.certain.free.within(options.ranges)
        return replace(made, certain=replace(made.certain, free=free))

    untouched = _copied(slim)
    facts = read(model, slim)
    if options.by_region and not holds_plan(model) and facts.certain.opset >= OLDEST_OPSET:
        chooses = not ENGINES[TARGETS[options.target].engine].lowering.compiler
        own_sizing, respelled = facts.sizing, NO_RESPELLINGS

        def write(found: Sequence[Respelling]) -> tuple[ModelFacts, Respellings]:
            respell(untouched.graph, found)
            made = respell(model.graph, found, respelled)
            facts = read(model, _copied(untouched))
            return replace(facts, respelled=made, own_sizing=own_sizing), made

        # Sequences first: what they are made into may look at the whole image, and be resized.
        if folded := find_folded(facts.certain):
            facts, respelled = write(folded)
        for number in range(_ROUNDS):
            axes = tiled_axes(facts.certain, options.axes[0])
            found: tuple[Respelling, ...] = tuple(find_statistics(facts.certain, axes))
            if number == 0:
                found += (
                    *find_resizes(facts.certain, axes, chooses=chooses),
                    *find_broadcasts(facts.certain),
                )
            there = facts.respelling_of.keys()
            found = tuple(each for each in found if there.isdisjoint(each.covered))
            if found:
                facts, respelled = write(found)
            # There are more only behind outputs whose tiled axis was not known so far.
            if axes.keys() >= {name for each in found for name in each.outputs}:
                break
    return MemoryPredictor(facts, folds=options.fold)


def conv_sizes(facts: ModelFacts) -> dict[str, ConvSize]:
    """Return the sizes of every convolution of the main graph, by label."""
    graph = facts.certain.graph
    return {
        facts.labels[position]: conv_size(graph.node[position], facts.sizing)
        for position in candidates(graph)
    }


def predict_unfixed(loaded: Loaded, options: Options, engine: str) -> int | None:
    """Return the predicted peak at the sizes that are to be fixed while they are free still."""
    sizes: dict[str, tuple[tuple[int, int], ...]] = dict(options.ranges)
    sizes |= {name: tuple((size, size) for size in dims) for name, dims in options.shapes.items()}
    if not any(low == high for pairs in sizes.values() for low, high in pairs):
        return None
    slim = skeleton(loaded)
    fix_sizes(_copied(slim), options)  # what does not fit is refused here
    found = predictor_for(_copied(slim), slim, replace(options, ranges=sizes)).predict(None, engine)
    return None if found.unknown else found.bytes
