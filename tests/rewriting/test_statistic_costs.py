"""What each statistic costs, as `patchconv inspect` says it: bytes kept, or work to make again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from patchconv_deploy.cli.main import patchconv
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters import statistic_costs as costs
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.look import inspection_of
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.work import COPY
from tests.support.small_models import copy_of, model, node, noise

_ROWS, _COLUMNS, _CHANNELS = 40, 24, 8

_ELEMENTS = _CHANNELS * _ROWS * _COLUMNS

# Multiply-accumulates of a Conv of 3x3 that keeps the channels.
_CONV = _ELEMENTS * _CHANNELS * 9


def _conv(number: int, x: str, y: str) -> onnx.NodeProto:
    return node("Conv", f"{x} w{number}", y, name=f"conv{number}", pads=[1] * 4)


def _model(nodes: list[onnx.NodeProto], rows: int | str = _ROWS) -> onnx.ModelProto:
    read = {name for each in nodes for name in each.input}
    weights = {
        name: noise(_CHANNELS, _CHANNELS, 3, 3, seed=k)
        for k, name in enumerate(("w0", "w1", "w2"))
        if name in read
    }
    weights |= {
        name: values
        for name, values in {
            "g": 1 + noise(_CHANNELS) / 4,
            "b": noise(_CHANNELS, seed=1),
            "two": np.array(2, np.float32),
            "little": np.array(1e-3, np.float32),
            "space": np.array([2, 3]),
        }.items()
        if name in read
    }
    sizes = {"x": (1, _CHANNELS, rows, _COLUMNS)}
    return model(nodes, sizes, {"y": (None,) * 4}, weights, opset=18)


def _gated() -> onnx.ModelProto:
    """A normalisation, and a gate on what stands behind it."""
    return _model(
        [
            _conv(0, "x", "c0"),
            node("InstanceNormalization", "c0 g b", "n0", name="norm"),
            node("Relu", "n0", "r0", name="relu"),
            _conv(1, "r0", "c1"),
            node("GlobalAveragePool", "c1", "p", name="pool"),
            node("Sigmoid", "p", "s", name="gate"),
            node("Mul", "c1 s", "y", name="gated"),
        ]
    )


def _costs(made: onnx.ModelProto) -> dict[str, costs.StatisticCost]:
    found = inspection_of(Loaded(copy_of(made), None), Options())
    return {each.node: each for each in found.statistics}


def test_a_normalisation_and_a_gate() -> None:
    """Each by its node, its kind, what it reads, the bytes of that, and the work to make it."""
    found = _costs(_gated())
    assert list(found) == ["norm", "pool"]
    norm, pool = found["norm"], found["pool"]
    assert (norm.kind, norm.image, norm.kept) == ("InstanceNorm statistics", "c0", ("c0",))
    assert (pool.kind, pool.image, pool.kept) == ("global pooling", "c1", ("c1",))
    assert norm.bytes == pool.bytes == 4 * _ELEMENTS
    # Of the model's input it is one Conv; behind the normalisation whatever is applied as well.
    assert norm.work == _CONV
    moved = COPY * 2 * _ELEMENTS
    assert _CONV + 2 * moved <= pool.work < _CONV + 4 * moved
    assert 0 < norm.share < pool.share < 1


def test_what_nothing_reads_again_is_not_kept() -> None:
    """The pool at the end of a classifier."""
    made = _model(
        [
            _conv(0, "x", "c0"),
            node("Relu", "c0", "r0"),
            node("GlobalAveragePool", "r0", "y", name="pool"),
        ]
    )
    (pool,) = _costs(made).values()
    assert (pool.image, pool.kept, pool.bytes, pool.work) == ("r0", (), 0, 0)


def test_a_normalisation_spelled_out() -> None:
    """Of the squares nothing is kept but what they are squares of, made of what the mean keeps."""
    made = _model(
        [
            _conv(0, "x", "c0"),
            node("ReduceMean", "c0 space", "m", name="mean"),
            node("Sub", "c0 m", "d", name="off"),
            node("Pow", "d two", "q", name="squares"),
            node("ReduceMean", "q space", "v", name="variance"),
            node("Add", "v little", "e"),
            node("Sqrt", "e", "s"),
            node("Div", "d s", "y", name="scaled"),
        ]
    )
    found = _costs(made)
    assert (found["mean"].image, found["mean"].kept) == ("c0", ("c0",))
    assert (found["variance"].image, found["variance"].kept) == ("q", ("d",))
    assert found["mean"].work == _CONV
    assert COPY * 2 * _ELEMENTS <= found["variance"].work < COPY * 3 * _ELEMENTS


def test_what_another_branch_keeps_is_not_this_statistics() -> None:
    """A skip connection around a gate lies in memory whatever the gate does."""
    made = _model(
        [
            _conv(0, "x", "c0"),
            _conv(1, "c0", "c1"),
            node("GlobalAveragePool", "c1", "p", name="pool"),
            node("Mul", "c1 p", "m"),
            node("Add", "m c0", "y", name="skip"),
        ]
    )
    (pool,) = _costs(made).values()
    assert pool.kept == ("c1",)
    assert pool.work == 2 * _CONV


def test_sizes_that_are_free() -> None:
    """Bytes are those at the sizes that are assumed."""
    nodes = [_conv(0, "x", "c0"), node("GlobalMaxPool", "c0", "p", name="pool")]
    made = _model([*nodes, node("Mul", "c0 p", "y")], rows="H")
    (pool,) = _costs(made).values()
    assert pool.bytes == 4 * _CHANNELS * 512 * _COLUMNS


def test_nothing_of_a_model_without_any() -> None:
    """No statistic, no cost."""
    assert _costs(_model([_conv(0, "x", "y")])) == {}


def test_that_an_image_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: what is behind a statistic is taken to be behind its own first half."""
    monkeypatch.setattr(costs, "_behind", lambda *_: set())
    with pytest.raises(AssertionError):
        test_a_normalisation_and_a_gate()


def _inspected(made: onnx.ModelProto, folder: Path) -> tuple[str, Any]:
    onnx.save(made, folder / "m.onnx")
    arguments = ["inspect", str(folder / "m.onnx"), "--json", str(folder / "i.json")]
    done = CliRunner().invoke(patchconv, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output, json.loads((folder / "i.json").read_text())


def test_inspect_says_them(tmp_path: Path) -> None:
    """In the text and in the file; without a statistic neither has a word of it."""
    said, data = _inspected(_gated(), tmp_path)
    rows = [line.split() for line in said.splitlines()]
    heads = [row for row in rows if row[:2] == ["statistics", "kind"]]
    assert len(heads) == 1
    (pool,) = (row for row in rows if row[:3] == ["pool", "global", "pooling"])
    first = data["statistics"][0]
    assert first.keys() == {"node", "kind", "image", "kept", "bytes", "work", "share"}
    (entry,) = (each for each in data["statistics"] if each["node"] == "pool")
    assert pool[3:] == [mebibytes(entry["bytes"]), f"+{entry['share']:.2f}", "c1"]
    said, data = _inspected(_model([_conv(0, "x", "y")]), tmp_path)
    assert "statistics" not in said
    assert data["statistics"] == []
