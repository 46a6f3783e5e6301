"""The graph's picture: every node once, boxes without circles, whatever the graph."""

from __future__ import annotations

from collections import Counter
from graphlib import TopologicalSorter
from typing import Any

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from patchconv_deploy.report.page.drawing import drawing
from patchconv_deploy.rewriters.graph.nodes import node_labels
from tests.planning.test_peak_holders import vae_decoder
from tests.support.small_models import model, node, noise, super_resolution


def _long(nodes: int, skips: int) -> onnx.ModelProto:
    """Make a chain of Relus, each of which adds what was some nodes before."""
    made = [node("Relu", "x", "t0", name="n0")]
    for k in range(1, nodes):
        made.append(node("Add", f"t{k - 1} t{max(0, k - skips)}", f"t{k}", name=f"n{k}"))
    return model(made, {"x": (1, 2, 8, 8)}, {f"t{nodes - 1}": (1, 2, 8, 8)})


def _boxes_in_order(found: dict[str, Any]) -> list[int]:
    """Return the boxes in an order in which each stands after those it reads from.

    Raises:
        graphlib.CycleError: There is none.
    """
    box = [entry[4] for entry in found["nodes"]]
    before: dict[int, set[int]] = {number: set() for number in range(len(found["boxes"]))}
    for source, target, *_ in found["edges"]:
        if box[source] != box[target]:
            before[box[target]].add(box[source])
    return list(TopologicalSorter(before).static_order())


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 150), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_boxes_make_no_circle(nodes: int, skips: int, begin: int, length: int) -> None:
    """A stretch of neighbours is a box, however far its nodes read back; so is a region."""
    made = _long(nodes, skips)
    labels = list(node_labels(made.graph).values())
    region = labels[begin : begin + length]
    found = drawing(made.graph, [region] if region else [], (), {})
    drawn = [entry for entry in found["nodes"] if entry[1] not in ("input", "output")]
    assert sorted(entry[0] for entry in drawn) == sorted(labels)
    order = _boxes_in_order(found)
    assert len(order) == len(found["boxes"])
    sizes = Counter(entry[4] for entry in drawn)
    assert all(sizes[box] == 1 for box, (kind, *_) in enumerate(found["boxes"]) if kind == "node")
    assert (
        max((n for box, n in sizes.items() if found["boxes"][box][0] == "stretch"), default=0) <= 60
    )
    inside = {entry[0] for entry in drawn if found["boxes"][entry[4]][0] == "region"}
    assert inside == set(region)


def test_constants_and_sizes_are_not_drawn() -> None:
    """What comes from weights alone, and what counts sizes, is left out and counted."""
    nodes = [
        node("Shape", "x", "s", name="shape"),
        node("Gather", "s zero", "n", name="batch"),
        node("Concat", "n rest", "d", name="dims", axis=0),
        node("Reshape", "x d", "y", name="reshape"),
        node("Identity", "w", "v", name="constant"),
        node("RandomNormal", "", "r", name="random", shape=[1]),
        node("Add", "y r", "z", name="add"),
    ]
    nodes[5].ClearField("input")
    weights = {"zero": noise(1), "rest": noise(1), "w": noise(1)}
    made = model(nodes, {"x": (1, 2)}, {"z": None}, weights)
    found = drawing(made.graph, [], (), {})
    assert found["hidden"] == 4
    assert {entry[0] for entry in found["nodes"]} == {"x", "z", "reshape", "random", "add"}


def test_a_node_of_two_regions_is_drawn_once() -> None:
    """It is in the first, and told to be in others."""
    made = vae_decoder((64, 64), blocks=1)
    labels = list(node_labels(made.graph).values())
    found = drawing(made.graph, [labels[:4], labels[3:8]], (), {})
    shared = [found["nodes"][number][0] for number in found["shared"]]
    assert shared == [labels[3]]
    at = next(entry for entry in found["nodes"] if entry[0] == labels[3])
    assert found["boxes"][at[4]][:2] == ["region", 0]
    again = [[found["nodes"][number][0] for number in numbers] for numbers in found["again"]]
    assert again == [[], [labels[3]]]


def test_what_was_written_anew_is_drawn_in_its_region() -> None:
    """Nodes that the result has no more are in the region that reads them, or that they read."""
    names = "conv reshape norm back scale other relu last".split()
    nodes = [
        node("Identity", before, name, name=name)
        for before, name in zip(["x", *names], names, strict=False)
    ]
    made = model(nodes, {"x": (1, 2)}, {"last": None})
    regions = [["conv", "norm"], ["relu"]]
    kept = {"other"}
    found = drawing(made.graph, regions, (), {}, kept)
    where = {entry[0]: found["boxes"][entry[4]][1] for entry in found["nodes"][: len(names)]}
    assert where["reshape"] == 0
    assert where["back"] == where["scale"] == 0  # what reads them was not written anew
    assert where["last"] == 1
    assert where["other"] == -1
    plain = drawing(made.graph, regions, (), {})
    where = {entry[0]: plain["boxes"][entry[4]][1] for entry in plain["nodes"][: len(names)]}
    assert where["reshape"] == where["back"] == where["last"] == -1


def test_inputs_and_outputs_are_ends() -> None:
    """Each is a box of its own, with its shape; an edge says which tensor it is."""
    made = super_resolution(16)
    found = drawing(made.graph, [], (), {})
    ends = {entry[0]: entry for entry in found["nodes"] if entry[1] in ("input", "output")}
    assert ends["x"][:3] == ["x", "input", "1x3x16x16"]
    assert ends["y"][:3] == ["y", "output", "1x3x64x64"]
    assert {entry[3] for entry in found["edges"]} == {"x", "c", "u", "v", "r", "y"}
