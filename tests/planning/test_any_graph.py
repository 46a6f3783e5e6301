"""The planner's bounds hold on any graph: half a minute of the processor, and progress moves.

Graphs that are wide, dense or long: the size of such a graph is its edges, and not its nodes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from patchconv_deploy import rewrite
from patchconv_deploy.rewriters.tiling.network import Link, Network, steps
from tests.support.small_models import model, node, noise

# Seconds of the processor from the file to the file, and between two calls of progress.
MOST = 30.0

MOST_SILENT = 4.0


@dataclass
class _Rows:
    """Rows that stay as they are; counts how often they are asked for."""

    asked: int = 0
    step_out: int = 1

    @property
    def step_in(self) -> int:
        self.asked += 1
        return 1


def test_a_join_is_walked_once() -> None:
    """Not once from each tensor that it joins: 300 dense layers took nine million steps."""
    rows = _Rows()
    link = Link(rows, tuple(range(200)), (200,))  # type: ignore[arg-type]
    network = Network(201, (link,), tuple(range(200)), (200,))
    assert steps(network) == (1,) * 201
    assert rows.asked == 1


def _conv(x: str, y: str, weight: str = "w") -> onnx.NodeProto:
    return node("Conv", f"{x} {weight}", y, pads=[1] * 4)


def _made(nodes: list[onnx.NodeProto], last: str, **weights: int) -> onnx.ModelProto:
    """Return a model of two channels; further weights by their number of input channels."""
    arrays = {name: noise(2, count, 3, 3) for name, count in {"w": 2, **weights}.items()}
    return model(nodes, {"x": (1, 2, 64, 64)}, {last: (None,) * 4}, arrays)


def dense(layers: int) -> onnx.ModelProto:
    """Each layer reads all before."""
    nodes, weights = [_conv("x", "t0")], {}
    for at in range(1, layers):
        nodes.append(node("Concat", " ".join(f"t{k}" for k in range(at)), f"c{at}", axis=1))
        nodes.append(_conv(f"c{at}", f"t{at}", f"w{at}"))
        weights[f"w{at}"] = 2 * at
    return _made(nodes, f"t{layers - 1}", **weights)


def branches(count: int) -> onnx.ModelProto:
    """Convs of one tensor, joined by one Concat."""
    nodes = [_conv("x", "a"), *(_conv("a", f"b{k}") for k in range(count))]
    nodes.append(node("Concat", " ".join(f"b{k}" for k in range(count)), "c", axis=1))
    return _made([*nodes, _conv("c", "y", "w1")], "y", w1=2 * count)


def skips(count: int) -> onnx.ModelProto:
    """A chain, each second node adding a tensor from anywhere before."""
    chosen = random.Random(5)
    nodes, before = [_conv("x", "t")], ["t"]
    for at in range(count):
        nodes.append(_conv(before[-1], f"u{at}"))
        nodes.append(node("Add", f"u{at} {chosen.choice(before)}", f"s{at}"))
        before.append(f"s{at}")
    return _made(nodes, before[-1])


def chain(count: int) -> onnx.ModelProto:
    """Nothing but Convs."""
    names = ["x", *(f"t{k}" for k in range(count))]
    return _made([_conv(*pair) for pair in pairwise(names)], names[-1])


def blocks(count: int) -> onnx.ModelProto:
    """Dense blocks of five Convs in a row, as RRDBNet's."""
    nodes, x = [_conv("x", "a")], "a"
    for block in range(count):
        seen = [x]
        for k in range(5):
            joined = seen[0]
            if k:
                joined = f"c{block}_{k}"
                nodes.append(node("Concat", " ".join(seen), joined, axis=1))
            seen.append(f"t{block}_{k}")
            nodes.append(_conv(joined, seen[-1], f"w{k}" if k else "w"))
        nodes.append(node("Add", f"{x} {seen[-1]}", f"s{block}"))
        x = f"s{block}"
    return _made(nodes, x, **{f"w{k}": 2 * (k + 1) for k in range(1, 5)})


def tree(count: int) -> onnx.ModelProto:
    """Convs of one tensor, added in pairs until one is left."""
    nodes = [_conv("x", "a"), *(_conv("a", f"b{k}") for k in range(count))]
    level, made = [f"b{k}" for k in range(count)], 0
    while len(level) > 1:
        pairs = list(pairwise(level))[::2]
        names = [f"s{made + k}" for k in range(len(pairs))]
        nodes += [node("Add", " ".join(pair), y) for pair, y in zip(pairs, names, strict=True)]
        made += len(pairs)
        level = names + level[2 * len(pairs) :]
    return _made([*nodes, _conv(level[0], "y")], "y")


def wide(count: int) -> onnx.ModelProto:
    """Join as many inputs of the graph by one Concat, between Convs."""
    inputs = {f"x{k}": (1, 2, 64, 64) for k in range(count)}
    nodes = [node("Concat", " ".join(inputs), "c", axis=1), _conv("c", "a", "w1"), _conv("a", "y")]
    weights = {"w": noise(2, 2, 3, 3), "w1": noise(2, 2 * count, 3, 3)}
    return model(nodes, inputs, {"y": (None,) * 4}, weights)


def _assert_bounded(made: onnx.ModelProto, folder: Path, *, cut: bool) -> None:
    path = folder / "model.onnx"
    onnx.save(made, path)
    told: list[tuple[str, int, int, float]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((what, done, total, time.process_time()))

    began = time.process_time()
    result = rewrite(path, verify=False, progress=tell)
    assert time.process_time() - began < MOST
    assert result.report.rewritten or not cut
    for (what, done, _, at), (next_what, next_done, total, then) in pairwise(told):
        assert then - at < MOST_SILENT, (what, done, next_what, next_done)
        assert what != next_what or done <= next_done <= total


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (dense, 60),
        (branches, 200),
        (skips, 100),
        (chain, 150),
        (blocks, 20),
        (tree, 100),
        (wide, 200),
    ],
)
def test_small_ones(make: Callable[[int], onnx.ModelProto], count: int, tmp_path: Path) -> None:
    """Of the kinds below, in seconds.

    Nothing in a chain can be cut with gain: it is far deeper than the image is high, and any region
    in its middle has two whole tensors at its ends, which is all that is alive anywhere.
    """
    _assert_bounded(make(count), tmp_path, cut=make not in (skips, chain))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "count"),
    [
        (dense, 300),
        (branches, 2000),
        (skips, 1000),
        (chain, 5000),
        (blocks, 200),
        (tree, 2000),
        (wide, 2000),
    ],
)
def test_any_graph_is_bounded(
    make: Callable[[int], onnx.ModelProto], count: int, tmp_path: Path
) -> None:
    """At full size: planned and written in time.

    The tree holds 3 MiB, and its patches are thousands of nodes, which take more to load: it stays.
    """
    _assert_bounded(make(count), tmp_path, cut=make in (branches, wide))
