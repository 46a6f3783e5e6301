"""Strips handed over from region to region: what is whole, what is merged, and the numbers.

The blocks go from few channels to many and back, with a normalisation of the many in between: to
run the layer in front of it a second time is less than to keep what it makes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from patchconv_deploy.rewriters.emission import handing_over, writer
from patchconv_deploy.rewriters.emission.fragment import Join, Window
from patchconv_deploy.rewriters.emission.handing_over import Strip
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.oracle import oracle_run
from tests.support.small_models import Dims, assert_same, copy_of, model, node, noise

OPSETS = (9, 10, 11, 13, 21)

# Sums of a statistic are made in another order, and a root stands behind them.
REL = 1e-5


def _blocks(
    count: int = 2,
    *,
    opset: int = 17,
    side: int = 64,
    dims: Dims = None,
    outputs: Sequence[str] = (),
    scope: str = "",
    behind: Sequence[onnx.NodeProto] = (),
) -> onnx.ModelProto:
    """Make first, then blocks of up (4 to 32 channels), norm, relu, down (1 x 1) and add.

    Tensors: "h" of first, "s0", "s1", ... of the blocks; the last is "y".
    """
    nodes = [node("Conv", "x e", "h", name=f"{scope}first", pads=[1] * 4)]
    weights, x = {"e": noise(4, 4, 3, 3) / 6}, "h"
    for k in range(count):
        weights |= {
            f"u{k}": noise(32, 4, 3, 3, seed=k) / 6,
            f"g{k}": 1 + noise(32, seed=k) / 4,
            f"b{k}": noise(32, seed=9 + k),
            f"d{k}": noise(4, 32, 1, 1, seed=k) / 6,
        }
        y = "y" if k == count - 1 else f"s{k}"
        nodes += [
            node("Conv", f"{x} u{k}", f"c{k}", name=f"{scope}up{k}", pads=[1] * 4),
            node("InstanceNormalization", f"c{k} g{k} b{k}", f"n{k}", name=f"{scope}norm{k}"),
            node("Relu", f"n{k}", f"r{k}", name=f"{scope}relu{k}"),
            node("Conv", f"r{k} d{k}", f"v{k}", name=f"{scope}down{k}"),
            node("Add", f"v{k} {x}", y, name=f"{scope}add{k}"),
        ]
        x = y
    ends = dict.fromkeys(("y", *outputs), (None,) * 4)
    shape = dims or (1, 4, side, side)
    return model(
        [*nodes, *behind], {"x": shape}, ends, weights, opset=opset, ir=8 if opset < 21 else 10
    )


_ROWS = ("row_means", "off_row_means", "row_squares", "rows")


def _plan(
    count: int, *, splits: int, form: str, axis: str, scope: str, chained: bool
) -> dict[str, Any]:
    """Return a plan of two passes a block: up and its statistic, then up again and the rest.

    Args:
        count: Blocks.
        splits: Patches of every region.
        form: Form of every region.
        axis: The axis.
        scope: What names begin with.
        chained: A block's Add and the next block's first pass are one region.
    """
    word = "statistic" if "/statistic/" not in scope else "statistic_2"
    regions: list[tuple[list[str], list[str]]] = [(["first"], ["h"])]
    for k in range(count):
        rows = [f"norm{k}/{word}/{each}" for each in _ROWS]
        first = [f"up{k}", *rows]
        outputs = [f"{scope}{rows[-1]}"]
        if chained and k:
            first, outputs = [f"add{k - 1}", *first], [f"s{k - 1}", *outputs]
        second = [f"up{k}", f"norm{k}/{word}/centred", f"norm{k}/{word}/y", f"relu{k}", f"down{k}"]
        last = k == count - 1
        if last or not chained:
            second.append(f"add{k}")
        made = "y" if last else f"v{k}" if chained else f"s{k}"
        regions += [(first, outputs), (second, [made])]
    entries = [
        {
            "nodes": [scope + name for name in nodes],
            "outputs": outputs,
            "form": form,
            "axis": 2 if axis == "height" else 3,
            "splits": splits,
        }
        for nodes, outputs in regions
    ]
    head = {"version": 2, "target": "onnxruntime", "axis": axis, "order": "file"}
    return {**head, "regions": entries}


def _cut(
    made: onnx.ModelProto,
    count: int = 2,
    *,
    splits: int = 8,
    form: str = "fused",
    axis: str = "height",
    scope: str = "",
    chained: bool = False,
) -> Outcome:
    """Apply the plan to a model of `_blocks`."""
    plan = _plan(count, splits=splits, form=form, axis=axis, scope=scope, chained=chained)
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(plan=plan, axis=axis))
    assert len(outcome.rewritten) == 1 + 2 * count
    return outcome


def _twice(outcome: Outcome) -> list[str]:
    """Return the convolutions that are in two regions: what runs in two passes."""
    seen = Counter(name for each in outcome.rewritten for name in each.nodes)
    return [name for name, count in seen.items() if count > 1]


def _joined(made: onnx.ModelProto) -> set[str]:
    return {each.output[0] for each in made.graph.node if each.op_type == "Concat"}


def _tensors(made: onnx.ModelProto) -> set[str]:
    return {name for each in made.graph.node for name in (*each.input, *each.output)}


def _convs(made: onnx.ModelProto) -> int:
    """Count convolutions, those included that ONNX Runtime fuses or lays out anew."""
    return sum(each.op_type in ("Conv", "FusedConv") for each in made.graph.node)


def _optimised(made: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    data = made.SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


@pytest.mark.parametrize("form", ["fused", "shrinking"])
@pytest.mark.parametrize("opset", OPSETS)
def test_strips_are_never_put_together(opset: int, form: str) -> None:
    """What regions alone read is not there as a whole; the numbers are those of the original."""
    made = _blocks(opset=opset)
    outcome = _cut(made, form=form)
    assert {"up0", "up1"} <= {*_twice(outcome)}
    left = _tensors(outcome.model)
    assert left.isdisjoint({"h", "s0", "c0", "c1", "n0", "r0"})
    assert "y" in _joined(outcome.model)
    feeds = {"x": noise(1, 4, 64, 64)}
    assert_same(made, outcome.model, feeds, REL)


@pytest.mark.parametrize("form", ["fused", "shrinking"])
@pytest.mark.parametrize("axis", ["height", "width"])
def test_numbers_by_the_reference_evaluator(form: str, axis: str) -> None:
    """The other oracle; heights that no number of patches divides."""
    made = _blocks(dims=(2, 4, 21, 29))
    outcome = _cut(made, form=form, axis=axis, splits=4)
    feeds = {"x": noise(2, 4, 21, 29)}
    expected, got = (oracle_run(each, feeds)[0] for each in (made, outcome.model))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


def test_an_output_stays_whole() -> None:
    """What the graph returns is put together, and read in windows as before."""
    made = _blocks(outputs=("s0",))
    outcome = _cut(made)
    assert {"s0", "y"} <= _joined(outcome.model)
    assert "h" not in _tensors(outcome.model)
    assert_same(made, outcome.model, {"x": noise(1, 4, 64, 64)}, REL)


def test_what_an_uncut_node_reads_stays_whole() -> None:
    """A node that looks along the axis reads the tensor itself."""
    along = node("Softmax", "s0", "z", name="along", axis=2)
    made = _blocks(outputs=("z",), behind=[along])
    outcome = _cut(made)
    assert "s0" in _joined(outcome.model)
    assert along in outcome.model.graph.node
    assert "h" not in _tensors(outcome.model)
    assert_same(made, outcome.model, {"x": noise(1, 4, 64, 64)}, REL)


def test_what_a_body_reads_stays_whole() -> None:
    """The same of a node inside an If, which reads it from around."""
    branch = onnx.helper.make_graph(
        [node("ReduceMax", "s0", "m", axes=[1, 2, 3])], "branch", [], [_free("m")]
    )
    chosen = node("If", "yes", "z", name="if", then_branch=branch, else_branch=branch)
    made = _blocks(outputs=("z",), behind=[chosen])
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    outcome = _cut(made)
    assert "s0" in _joined(outcome.model)
    assert_same(made, outcome.model, {"x": noise(1, 4, 64, 64)}, REL)


def _free(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (None,) * 4)


def _cuts(made: onnx.ModelProto) -> Iterator[tuple[str, ...]]:
    """Yield what each Slice reads, and its bounds."""
    known = {t.name: str(onnx.numpy_helper.to_array(t).tolist()) for t in made.graph.initializer}
    for each in made.graph.node:
        if each.op_type == "Slice":
            bounds = [known.get(name, name) for name in each.input[1:]]
            if not bounds:
                bounds = [str(onnx.helper.get_attribute_value(a)) for a in each.attribute]
            yield each.input[0], *bounds


@pytest.mark.parametrize("opset", OPSETS)
def test_no_two_slices_are_the_same(opset: int) -> None:
    """Two passes that read the same rows write their Slices in two ways."""
    cuts = Counter(_cuts(_cut(_blocks(opset=opset)).model))
    assert len(cuts) > 30
    assert max(cuts.values()) == 1


def _merged(outcome: Outcome, folder: Path) -> int:
    return _convs(outcome.model) - _convs(_optimised(outcome.model, folder))


def test_no_pass_is_merged_away(tmp_path: Path) -> None:
    """ONNX Runtime runs the layers in front of a statistic twice, as they are written."""
    assert _merged(_cut(_blocks()), tmp_path) == 0


def test_no_pass_of_a_chain_is_merged_away(tmp_path: Path) -> None:
    """The same where a block's last layer and the next block's first are one region."""
    assert _merged(_cut(_blocks(), chained=True), tmp_path) == 0


def test_no_pass_of_low_strips_is_merged_away(tmp_path: Path) -> None:
    """The same where strips are as low as the halo, so that a window consists of whole ones."""
    assert _merged(_cut(_blocks(side=32), splits=16), tmp_path) == 0


@pytest.mark.parametrize("scope", ["a/patchconv/", "a/statistic/", "strip_1/", "a/strip_1/"])
def test_names_of_the_model(scope: str) -> None:
    """Whatever the model calls its nodes."""
    made = _blocks(scope=scope)
    assert_same(made, _cut(made, scope=scope).model, {"x": noise(1, 4, 64, 64)}, REL)


def test_a_free_batch_and_none() -> None:
    """Heights are known, the number of images is not: it may be two, or none."""
    made = _blocks(dims=("N", 4, 64, 64))
    outcome = _cut(made)
    assert "h" not in _tensors(outcome.model)
    for batch in (0, 1, 2):
        assert_same(made, outcome.model, {"x": noise(batch, 4, 64, 64)}, REL)


def test_free_sizes_are_not_handed_over() -> None:
    """Where strips are of heights known at run time alone, tensors are put together."""
    made = _blocks(dims=(1, 4, "H", "W"))
    outcome = rewrite_model(Loaded(copy_of(made), None), Options(splits=4))
    assert outcome.rewritten
    assert not any("/strip_" in name for name in _tensors(outcome.model))
    for size in ((64, 64), (33, 47), (9, 5)):
        assert_same(made, outcome.model, {"x": noise(1, 4, *size)}, REL)


# --- the ways a Slice is written --------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_spellings(rows: int) -> None:
    """Four pairs of bounds, all different, of the same rows."""
    whole = list(range(rows))
    for begin in range(rows):
        for end in range(begin + 1, rows + 1):
            bounds = [handing_over._spelled(begin, end, rows, number) for number in range(4)]
            assert len(set(bounds)) == 4
            assert {tuple(whole[low:high]) for low, high in bounds} == {tuple(whole[begin:end])}


def test_pieces_are_the_rows_of_the_window() -> None:
    """Every window over strips of every height."""
    heights = (3, 1, 4, 2)
    names, like = ("a", "b", "c", "d"), ((1, 1, 10, 1), onnx.TensorProto.FLOAT)
    strips = handing_over._strips(Join("t", 2, names, heights, like))
    rows = {each.name: range(each.begin, each.end) for each in strips}
    for begin in range(10):
        for end in range(begin + 1, 11):
            window = Window("t", "w", "w", 2, begin, end, 10, like)
            got = [
                row
                for strip, first, last in handing_over._pieces(window, strips)
                for row in rows[strip.name][first:last]
            ]
            assert got == list(range(begin, end))


# --- planted faults ---------------------------------------------------------------------------


def _assert_caught() -> None:
    made = _blocks()
    outcome = _cut(made)
    with pytest.raises(AssertionError, match="off by"):
        assert_same(made, outcome.model, {"x": noise(1, 4, 64, 64)}, 2e-4)


def test_a_slice_a_row_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: bounds counted from the end are a row too high."""
    right = handing_over._spelled

    def wrong(begin: int, end: int, rows: int, number: int) -> tuple[int, int]:
        low, high = right(begin, end, rows, number)
        return (low - 1, high - 1) if low < -1 - begin and high < 0 else (low, high)

    def counted(begin: int, end: int, rows: int, number: int) -> tuple[int, int]:
        return (begin - 1, end - 1) if number and begin else wrong(begin, end, rows, number)

    monkeypatch.setattr(handing_over, "_spelled", counted)
    _assert_caught()


def test_swapped_strips_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a window of two strips puts the lower one first."""
    right = handing_over._pieces

    def wrong(window: Window, strips: Sequence[Strip]) -> list[tuple[Strip, int, int]]:
        return right(window, strips)[::-1]

    monkeypatch.setattr(handing_over, "_pieces", wrong)
    _assert_caught()


def test_a_statistic_of_windows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what is made of each row is handed on for the window's rows, not the core's."""
    right = writer.PatchWriter._cut

    def wrong(self: Any, x: Any, axis: int, bounds: Any, suffix: str, **others: Any) -> Any:
        tall = suffix.startswith("core") and x.dims[axis] is not None and x.dims[1] == 64
        return x if tall else right(self, x, axis, bounds, suffix, **others)

    monkeypatch.setattr(writer.PatchWriter, "_cropped_early", lambda self, bounds: {})
    monkeypatch.setattr(writer.PatchWriter, "_cut", wrong)
    _assert_caught()


def test_one_spelling_is_merged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Planted: all passes write their Slices in one way, and ONNX Runtime makes one of them."""
    monkeypatch.setattr(handing_over, "_spelled", lambda begin, end, rows, number: (begin, end))
    assert _merged(_cut(_blocks()), tmp_path) > 4
