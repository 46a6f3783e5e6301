"""What is known of a model before it is changed: nodes, shapes, sizes, work.

Regions are proven on what is certain (`graph.facts.CertainFacts`), at any size of the free
dimensions. Memory and work can be told at sizes alone: where the model leaves them open some are
assumed. `ModelFacts` holds both, and keeps them apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from patchconv_deploy.rewriters.emission.fragment import Fragment, own_nodes
from patchconv_deploy.rewriters.emission.names import NameScheme
from patchconv_deploy.rewriters.emission.splice import arrange
from patchconv_deploy.rewriters.graph.check import check
from patchconv_deploy.rewriters.graph.constant_folding import Constants, infer_by_value
from patchconv_deploy.rewriters.graph.facts import CertainFacts
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes, nominal_shapes
from patchconv_deploy.rewriters.graph.model import opset_of
from patchconv_deploy.rewriters.graph.nodes import captured, node_label, node_labels
from patchconv_deploy.rewriters.graph.respelling import NO_RESPELLINGS, Respelling, Respellings
from patchconv_deploy.rewriters.graph.shapes import Shapes
from patchconv_deploy.rewriters.graph.statistics import Statistic
from patchconv_deploy.rewriters.graph.use_def import Index, index
from patchconv_deploy.rewriters.memory.executed import ExecutedNode
from patchconv_deploy.rewriters.memory.peak import Peak, peak
from patchconv_deploy.rewriters.memory.reader import sized_by_data
from patchconv_deploy.rewriters.planning.work import node_work
from patchconv_deploy.rewriters.regions.selection import candidates

__all__ = ["ModelFacts", "analyse"]


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is changed.

    Attributes:
        certain: What holds at every size; regions are proven on it alone.
        sizing: Shapes with free dimensions as assumed.
        assumed: The sizes that were assumed.
        labels: A name of each node for people, by position.
        executed: The nodes in file order, as the memory model reads them.
        inputs: Inputs of the graph that are no weights.
        bytes: Bytes of every activation, None where unknown.
        slim: The model without its weights.
        respelled: What is written in other words here, so that it can be cut.
        own_sizing: Shapes of the model's own tensors, where anything is.
    """

    certain: CertainFacts
    sizing: Shapes
    assumed: Mapping[str, tuple[int, ...]]
    labels: Mapping[int, str]
    executed: tuple[ExecutedNode, ...]
    inputs: tuple[str, ...]
    bytes: Mapping[str, int | None]
    slim: onnx.ModelProto
    respelled: Respellings = NO_RESPELLINGS
    own_sizing: Shapes | None = None

    @property
    def index(self) -> Index:
        """Use-def index of the main graph."""
        return self.certain.index

    @cached_property
    def assumes(self) -> bool:
        """Whether sizes had to be assumed."""
        return self.sizing is not self.certain.shapes

    @cached_property
    def statistics(self) -> tuple[Statistic, ...]:
        """What looks at the whole image and is written in two here."""
        return tuple(each for each in self.respelled.entries if isinstance(each, Statistic))

    @cached_property
    def statistic_of(self) -> dict[int, Statistic]:
        """The statistic that a node is part of, by position."""
        pairs = self.respelling_of.items()
        return {at: entry for at, entry in pairs if isinstance(entry, Statistic)}

    @cached_property
    def respelling_of(self) -> dict[int, Respelling]:
        """What a node is part of that is written in other words, by position."""
        pairs = zip(self.respelled.entries, self.respelled.places, strict=True)
        return {at: entry for entry, place in pairs for at in place}

    @cached_property
    def respelled_with(self) -> dict[int, range]:
        """The positions of all that is written in the place of the same nodes, by position."""
        return {at: place for place in self.respelled.places for at in place}

    def own_label(self, at: int) -> str:
        """Return what a node, or the one that it was written for, is called in the model."""
        entry = self.respelling_of.get(at)
        return self.labels[at] if entry is None else entry.label

    @cached_property
    def position_of(self) -> dict[str, int]:
        """Where a node stands, by its label."""
        return {label: at for at, label in self.labels.items()}

    @cached_property
    def written_for(self) -> dict[str, list[int]]:
        """Where the nodes stand that are written for one of the model's, by its name."""
        found: dict[str, list[int]] = {}
        for at in self.respelling_of:
            found.setdefault(self.own_label(at), []).append(at)
        return found

    @cached_property
    def rows_of_statistics(self) -> frozenset[str]:
        """What statistics make of each row."""
        return frozenset(entry.rows for entry in self.statistics)

    @cached_property
    def originals(self) -> dict[int, Fragment]:
        """The model's own nodes in place of what is respelled, by the position they would have."""
        names = NameScheme.avoiding(self.index.names)
        sizing = self.own_sizing or self.sizing
        return {
            place[-1]: own_nodes(entry.originals, entry.outputs, place, sizing, names)
            for entry, place in zip(self.respelled.entries, self.respelled.places, strict=True)
        }

    def originals_beside(self, cut: Collection[int]) -> dict[int, Fragment]:
        """Return the model's own nodes where nothing of what they are respelled as is cut.

        Args:
            cut: Positions of the nodes that are.
        """
        sections = {self.respelling_of[at].section for at in cut if at in self.respelling_of}
        return {
            at: own
            for at, own in self.originals.items()
            if (self.respelling_of[at].section or None) not in sections
            and not any(position in cut for position in own.covers)
        }

    @cached_property
    def uncut(self) -> Sequence[int | Fragment]:
        """The model as it is: its own nodes, nothing of it cut."""
        if not self.respelled.entries:
            return range(len(self.certain.graph.node))
        order = arrange(self.index, self.originals)
        assert order is not None  # it is the order of the file
        return order

    @cached_property
    def shape_nodes(self) -> list[int]:
        """Positions of the nodes that return a tensor's shape."""
        nodes = self.certain.graph.node
        return [at for at, node in enumerate(nodes) if node.op_type == "Shape"]

    @cached_property
    def work(self) -> list[float]:
        """Multiply-accumulates of each node, by position (`planning.work`)."""
        return [node_work(node, self.sizing) for node in self.certain.graph.node]

    @cached_property
    def ideal_peak(self) -> Peak:
        """The most bytes alive over the file's order, inputs and outputs included."""
        return peak(self.executed, self.bytes, inputs=self.inputs, outputs=self.index.outputs)

    @cached_property
    def data_sized(self) -> tuple[str, ...]:
        """Activations whose sizes depend on the data, as those of NonZero: counted as nothing."""
        makers = {at for at, node in enumerate(self.slim.graph.node) if sized_by_data(node)}
        made: set[str] = set()
        for at, node in enumerate(self.executed) if makers else ():
            if at in makers or not made.isdisjoint(node.reads):
                made.update(node.makes)
        return tuple(name for name in self.bytes if name in made and self.bytes[name] is None)

    @cached_property
    def unsized(self) -> tuple[str, ...]:
        """Other activations of unknown size: while there are any, no peak is known."""
        known = {*self.data_sized}
        return tuple(n for n, size in self.bytes.items() if size is None and n not in known)


def analyse(
    model: onnx.ModelProto,
    slim: onnx.ModelProto,
    *,
    allow_custom_ops: bool = False,
    largest: Mapping[str, Sequence[int]] | None = None,
) -> ModelFacts:
    """Analyse a model, given with its skeleton, which is changed in place."""
    checked = onnx.ModelProto()
    checked.CopyFrom(slim)
    check(checked, allow_custom_ops=allow_custom_ops)
    found = index(model)
    needed = [model.graph.node[position].input[0] for position in candidates(model.graph)]
    assumed = nominal_shapes(model, given=largest)
    sizing_slim = onnx.ModelProto()
    sizing_slim.CopyFrom(slim)
    sure = infer_by_value(slim, needed=needed)
    sizing = sure
    if assumed or any(None in sure.dims.get(name, (None,)) for name in needed):
        fix_shapes(sizing_slim, assumed)
        sizing = infer_by_value(sizing_slim, needed=needed, estimate=True)
    executed = []
    for node in model.graph.node:
        reads = (*(name for name in node.input if name), *captured(node))
        executed.append(
            ExecutedNode(node_label(node), node.op_type, reads, tuple(n for n in node.output if n))
        )
    inputs = tuple(v.name for v in model.graph.input if v.name not in found.constants)
    activations = [*inputs, *(name for node in executed for name in node.makes)]
    sizes = {name: sizing.bytes(name) for name in activations if name not in found.constants}
    certain = CertainFacts(found, opset_of(model), sure, Constants(slim, found, sure))
    if any(None in dims for dims in sure.dims.values()):
        certain = certain.followed()
        sizing = certain.shapes if sizing is sure else sizing
    return ModelFacts(
        certain,
        sizing,
        assumed,
        node_labels(model.graph),
        tuple(executed),
        inputs,
        sizes,
        slim,
    )
