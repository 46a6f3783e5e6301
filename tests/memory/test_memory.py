"""`rewriters.memory`: the predicted peak against a simulator that knows nothing of live ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchconv_deploy.rewriters.memory.executed import VIEWS, ExecutedNode
from patchconv_deploy.rewriters.memory.peak import Peak, peak


def simulate(
    nodes: Sequence[ExecutedNode],
    sizes: Mapping[str, int | None],
    inputs: Collection[str],
    outputs: Collection[str],
) -> tuple[int, int]:
    """Return peak bytes and the number of unknown sizes, by asking at every node who is needed.

    A buffer is held if it has been made and something that shares its bytes is read or made at
    this node or later, or is an output. Inputs that nothing reads are held throughout: they are
    the caller's.
    """
    group = {name: name for name in sizes}
    for node in nodes:
        if node.op_type in VIEWS and node.reads and node.reads[0] in sizes:
            group[node.makes[0]] = group[node.reads[0]]
    touched = {name for node in nodes for name in (*node.reads, *node.makes)}
    everywhere = {name for name in inputs if name not in touched and name in sizes}
    made = set(inputs)
    best = sum(sizes[name] or 0 for name in {group[n] for n in made if n in sizes})
    for position, node in enumerate(nodes):
        made |= set(node.makes)
        later = {n for s in nodes[position:] for n in (*s.reads, *s.makes)} | set(outputs)
        needed = {group[name] for name in later if name in sizes} | {group[n] for n in everywhere}
        held = {group[name] for name in made if name in sizes} & needed
        best = max(best, sum(sizes[name] or 0 for name in held))
    # A buffer is counted once, where it begins, however many views look at it.
    buffers = {group[name] for name in made if name in sizes}
    return best, sum(sizes[name] is None for name in buffers)


@dataclass(frozen=True)
class Case:
    """A random graph."""

    nodes: tuple[ExecutedNode, ...]
    sizes: Mapping[str, int | None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a graph: inputs, weights, up to 12 nodes of one or two outputs, some of them views."""
    size = st.one_of(st.integers(0, 50), st.integers(0, 50), st.none())
    inputs = tuple(f"in{k}" for k in range(draw(st.integers(0, 3))))
    sizes: dict[str, int | None] = {name: draw(size) for name in inputs}
    known = [*inputs, "weight0", "weight1"]
    nodes = []
    for position in range(draw(st.integers(0, 12))):
        reads = tuple(draw(st.lists(st.sampled_from(known), max_size=3)))
        op = draw(st.sampled_from(["Conv", "Reshape", "Identity", "Split"]))
        makes = tuple(f"t{position}_{k}" for k in range(2 if op == "Split" else 1))
        for name in makes:
            sizes[name] = draw(size)
        known.extend(makes)
        nodes.append(ExecutedNode(f"n{position}", op, reads, makes))
    activations = [name for name in known if name in sizes]
    outputs = tuple(draw(st.lists(st.sampled_from(activations), max_size=3))) if activations else ()
    return Case(tuple(nodes), sizes, inputs, outputs)


@given(cases())
def test_against_the_simulator(case: Case) -> None:
    """Peak bytes and unknown sizes agree on random graphs."""
    found = peak(case.nodes, case.sizes, inputs=case.inputs, outputs=case.outputs)
    assert (found.bytes, found.unknown) == simulate(
        case.nodes, case.sizes, case.inputs, case.outputs
    )


@given(cases())
def test_the_named_node_is_where_the_peak_is(case: Case) -> None:
    """Cut off after the named node the peak is the same, before it it is lower."""
    found = peak(case.nodes, case.sizes, inputs=case.inputs, outputs=case.outputs)
    labels = [node.label for node in case.nodes]
    if not found.at:
        return
    position = labels.index(found.at)
    rest = {n for s in case.nodes[position + 1 :] for n in s.reads} | set(case.outputs)
    upto = peak(case.nodes[: position + 1], case.sizes, inputs=case.inputs, outputs=rest)
    assert upto.bytes == found.bytes


def chain(*ops: str) -> list[ExecutedNode]:
    """Return t0 -> t1 -> ... through these operators."""
    return [ExecutedNode(f"n{k}", op, (f"t{k}",), (f"t{k + 1}",)) for k, op in enumerate(ops)]


class TestExamples:
    """Graphs small enough to count by hand."""

    def test_a_chain_holds_two_neighbours(self) -> None:
        """Input and output of the largest node."""
        sizes = {"t0": 1, "t1": 10, "t2": 5, "t3": 2}
        found = peak(chain("Conv", "Conv", "Conv"), sizes, inputs=["t0"], outputs={"t3"})
        assert found == Peak(15, "n1", 0)

    def test_a_skip_stays_alive(self) -> None:
        """What an Add at the end reads is held until then."""
        nodes = [*chain("Conv", "Conv"), ExecutedNode("add", "Add", ("t2", "t0"), ("y",))]
        sizes = {"t0": 100, "t1": 10, "t2": 10, "y": 10}
        assert peak(nodes, sizes, inputs=["t0"], outputs={"y"}).bytes == 120

    @pytest.mark.parametrize("view", sorted(VIEWS))
    def test_views_own_nothing(self, view: str) -> None:
        """A view is its input's bytes, and keeps them alive as long as it is read."""
        sizes = {"t0": 7, "t1": 10, "t2": 10, "t3": 3}
        found = peak(chain("Conv", view, "Conv"), sizes, inputs=["t0"], outputs={"t3"})
        assert found == Peak(17, "n0", 0)

    def test_a_view_of_a_view_of_an_input(self) -> None:
        """Views are followed to the buffer at their root; an output view keeps it to the end."""
        nodes = [*chain("Reshape", "Squeeze"), ExecutedNode("big", "Conv", ("other",), ("y",))]
        sizes = {"t0": 8, "t1": 8, "t2": 8, "other": 1, "y": 20}
        assert peak(nodes, sizes, inputs=["t0", "other"], outputs={"t2", "y"}).bytes == 29
        assert peak(nodes, sizes, inputs=["t0", "other"], outputs={"y"}).bytes == 21

    def test_a_view_of_a_weight_is_counted_if_it_has_a_size(self) -> None:
        """A weight costs nothing; what is not known to share its bytes does."""
        nodes = [ExecutedNode("view", "Reshape", ("weight",), ("v",))]
        assert peak(nodes, {"v": 5}, inputs=[], outputs={"v"}).bytes == 5
        assert peak(nodes, {}, inputs=[], outputs={"v"}).bytes == 0

    def test_unknown_sizes_are_counted_not_guessed(self) -> None:
        """Unknown activations add nothing to the bytes and one each to the count."""
        sizes = {"t0": None, "t1": 10, "t2": None, "t3": None}
        found = peak(chain("Conv", "Conv", "Reshape"), sizes, inputs=["t0"], outputs={"t3"})
        assert found == Peak(10, "n0", 2)

    def test_weights_cost_nothing(self) -> None:
        """A tensor without an entry is a weight."""
        nodes = [ExecutedNode("conv", "Conv", ("x", "weight"), ("y",))]
        assert peak(nodes, {"x": 3, "y": 4}, inputs=["x"], outputs={"y"}).bytes == 7

    def test_a_result_that_nobody_reads(self) -> None:
        """It is held while its node runs."""
        nodes = [
            ExecutedNode("split", "Split", ("x",), ("a", "b")),
            ExecutedNode("conv", "Conv", ("a",), ("y",)),
        ]
        sizes = {"x": 1, "a": 2, "b": 100, "y": 2}
        assert peak(nodes, sizes, inputs=["x"], outputs={"y"}) == Peak(103, "split", 0)

    def test_an_empty_graph(self) -> None:
        """Inputs alone."""
        assert peak([], {"x": 3}, inputs=["x"], outputs=set()) == Peak(3, "", 0)
        assert peak([], {}, inputs=[], outputs=set()) == Peak(0, "", 0)

    def test_linear_in_the_steps(self) -> None:
        """200,000 nodes are no problem."""
        nodes = chain(*["Conv"] * 200_000)
        sizes: dict[str, int | None] = {f"t{k}": 1 for k in range(200_001)}
        assert peak(nodes, sizes, inputs=["t0"], outputs={"t200000"}).bytes == 2
