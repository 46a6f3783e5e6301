"""``max_buffer``: no tensor of what is written has more bytes; where that cannot be, what can.

Tensors are measured: ONNX Runtime runs the written model with every tensor of its main graph as an
output. Those inside of bodies are of the shapes that inference has for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy import UsageError, pareto, rewrite
from patchconv_deploy.rewriters.errors import BudgetError, OptionError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.nodes import bodies
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning import effort
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.sizes import parse_size
from tests.support.commands import run_command
from tests.support.small_models import (
    Array,
    assert_same,
    copy_of,
    model,
    node,
    noise,
    run,
    super_resolution,
)

DIMS = (1, 2, 96, 64)
FREE = (1, 2, "height", 64)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer plans are weighed: a limit holds for any number of them."""
    monkeypatch.setattr(effort, "_EFFORT", 4_000)


def _rewrite(made: onnx.ModelProto, **options: Any) -> Outcome:
    return rewrite_model(Loaded(copy_of(made), None), Options(**options))


def _wide(dims: tuple[int | str, ...] = DIMS) -> onnx.ModelProto:
    """Make a chain whose inner tensors have eight times the bytes of its ends."""
    nodes, weights, x = [], {}, "x"
    for k, (a, b) in enumerate(pairwise([2, 16, 16, 16, 2])):
        y = "y" if k == 3 else f"c{k}"
        nodes.append(node("Conv", f"{x} w{k}", y, name=f"conv{k}", pads=[1] * 4))
        weights[f"w{k}"] = noise(b, a, 3, 3, seed=k) / 8
        x = y
    return model(nodes, {"x": dims}, {"y": (None,) * 4}, weights)


def _in_doubles() -> onnx.ModelProto:
    """Make a chain whose middle is computed in numbers of twice the bytes, on half the elements."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node("Conv", "c b", "d", name="narrow", pads=[1] * 4),
        node("Cast", "d", "wide", name="cast", to=onnx.TensorProto.DOUBLE),
        node("Abs", "wide", "abs", name="abs"),
        node("Cast", "abs", "back", name="back", to=onnx.TensorProto.FLOAT),
        node("Conv", "back e", "y", name="last", pads=[1] * 4),
    ]
    weights = {"a": noise(8, 2, 3, 3), "b": noise(6, 8, 3, 3) / 8, "e": noise(2, 6, 3, 3) / 8}
    return model(nodes, {"x": DIMS}, {"y": (None,) * 4}, weights)


def _normalised() -> onnx.ModelProto:
    """Make two Convs with a normalisation over the image between them."""
    nodes = [
        node("Conv", "x a", "c", name="first", pads=[1] * 4),
        node("InstanceNormalization", "c s b", "n", name="norm"),
        node("Relu", "n", "r", name="relu"),
        node("Conv", "r d", "y", name="last", pads=[1] * 4),
    ]
    weights = {"a": noise(16, 2, 3, 3), "d": noise(2, 16, 3, 3) / 8}
    weights |= {"s": np.ones(16, np.float32), "b": np.zeros(16, np.float32)}
    return model(nodes, {"x": DIMS}, {"y": (None,) * 4}, weights)


def _read_whole() -> onnx.ModelProto:
    """Make a chain with a tensor that is read whole: by a product over all its positions."""
    nodes = [
        node("Conv", "x a", "c0", name="first", pads=[1] * 4),
        node("Conv", "c0 b", "c1", name="second", pads=[1] * 4),
        node("Reshape", "c1 flat", "f", name="flatten"),
        node("MatMul", "f m", "g", name="product"),
        node("Reshape", "g image", "h", name="unflatten"),
        node("Conv", "h d", "y", name="last", pads=[1] * 4),
    ]
    weights = {"a": noise(16, 2, 3, 3), "b": noise(4, 16, 3, 3) / 8, "d": noise(2, 4, 3, 3) / 8}
    weights |= {"m": noise(4, 4), "flat": np.array([1, 96 * 64, 4])}
    weights |= {"image": np.array([1, 4, 96, 64])}
    return model(nodes, {"x": DIMS}, {"y": (None,) * 4}, weights)


def _of_bodies(graph: onnx.GraphProto) -> int:
    """Return the bytes of the largest tensor of known shape inside of a graph's bodies."""
    most = 0
    for inner in (body for each in graph.node for body in bodies(each)):
        values = [*inner.value_info, *inner.output, *inner.input]
        for tensor in (each.type.tensor_type for each in values):
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
                kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
                sizes = [dim.dim_value for dim in tensor.shape.dim]
                most = max(most, int(np.prod(sizes, dtype=np.int64)) * kind.itemsize)
        most = max(most, _of_bodies(inner))
    return most


def _largest(made: onnx.ModelProto, feeds: Mapping[str, Array]) -> int:
    """Return the bytes of the largest tensor: of the main graph as it ran."""
    shown = copy_of(made)
    inferred = onnx.shape_inference.infer_shapes(shown, data_prop=True).graph
    sequences = {v.name for v in inferred.value_info if v.type.HasField("sequence_type")}
    names = {name for each in made.graph.node for name in each.output if name} - sequences
    there = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - there))
    found = run(shown, feeds)
    arrays = [*found.values(), *feeds.values()]
    arrays += [onnx.numpy_helper.to_array(each) for each in made.graph.initializer]
    return max(*(array.nbytes for array in arrays), _of_bodies(inferred))


@pytest.mark.parametrize("limit", [250_000, 120_000, 80_000])
@pytest.mark.parametrize("form", ["auto", "fused", "shrinking", "loop"])
def test_every_tensor_is_brought_under_the_limit(form: str, limit: int) -> None:
    """Two thirds of the largest tensor, less than a third, and a fifth."""
    made, feed = _wide(), {"x": noise(*DIMS)}
    assert _largest(made, feed) == 16 * 96 * 64 * 4
    outcome = _rewrite(made, max_buffer=limit, form=form)
    before, after = outcome.largest
    assert before is not None
    assert before.bytes == 16 * 96 * 64 * 4
    assert after is not None
    assert _largest(outcome.model, feed) <= after.bytes <= limit
    assert_same(made, outcome.model, feed)


@pytest.mark.parametrize("make", [_in_doubles, _normalised, lambda: super_resolution(48)])
def test_limits_of_other_networks(make: Callable[[], onnx.ModelProto]) -> None:
    """Elements of more bytes, statistics over the image, images that grow: measured, a third."""
    made = make()
    (x,) = made.graph.input
    feed = {"x": noise(*(dim.dim_value for dim in x.type.tensor_type.shape.dim))}
    limit = _largest(made, feed) // 3
    outcome = _rewrite(made, max_buffer=limit)
    assert outcome.rewritten
    assert _largest(outcome.model, feed) <= limit
    assert_same(made, outcome.model, feed, rel=1e-5)


def test_bytes_are_counted_and_not_elements() -> None:
    """The tensor of most bytes is not the one of most elements: it is cut, the other may stay."""
    outcome = _rewrite(_in_doubles(), max_buffer=8 * 96 * 64 * 4)
    before, after = outcome.largest
    assert before is not None
    assert after is not None
    assert (before.name, before.bytes) == ("wide", 6 * 96 * 64 * 8)
    assert after.bytes <= 8 * 96 * 64 * 4


def test_a_free_height_is_held_to_it_at_the_largest() -> None:
    """Patches of a fixed height, as many as the image needs: at the largest size, and below."""
    limit = 120_000
    outcome = _rewrite(
        _wide(FREE), max_buffer=limit, ranges={"x": ((1, 1), (2, 2), (32, 192), (64, 64))}
    )
    assert outcome.assumed == {"x": (1, 2, 192, 64)}
    assert outcome.rewritten
    for rows in (192, 97, 32):
        feed = {"x": noise(1, 2, rows, 64)}
        assert _largest(outcome.model, feed) <= limit
        assert_same(_wide(FREE), outcome.model, feed)


def test_a_model_that_keeps_it_is_left_as_it_is() -> None:
    """Nothing has to be done: not the least memory is asked for."""
    outcome = _rewrite(_wide(), max_buffer=16 * 96 * 64 * 4)
    assert outcome.fits
    assert not outcome.rewritten
    both = _rewrite(_wide(), max_buffer=16 * 96 * 64 * 4, memory_budget=outcome.before.need // 2)
    assert both.rewritten


def test_a_budget_beside_it() -> None:
    """Both are kept; a budget that cannot be is said to be the one."""
    made = _wide()
    alone = _rewrite(made, max_buffer=250_000)
    both = _rewrite(made, max_buffer=250_000, memory_budget=alone.after.need // 2)
    assert both.largest[1] is not None
    assert both.largest[1].bytes <= 250_000
    assert both.after.need <= alone.after.need // 2
    with pytest.raises(BudgetError, match="a budget of 1000 bytes"):
        _rewrite(made, max_buffer=250_000, memory_budget=1000)


def _offered(error: BudgetError) -> int:
    found = re.search(r"max_buffer='([^']+)'", str(error))
    assert found is not None, str(error)
    size = parse_size(found[1])
    assert size is not None
    return size


def test_what_no_cut_makes_smaller_is_named_at_once() -> None:
    """An input, an output, a weight: one line, with the least that could be asked for."""
    with pytest.raises(BudgetError, match=r"x \(48.0 KiB\), y \(48.0 KiB\)") as caught:
        _rewrite(_wide(), max_buffer=40_000)
    assert "\n" not in str(caught.value)
    assert _rewrite(_wide(), max_buffer=_offered(caught.value)).rewritten
    heavy = model(
        [node("Conv", "x w", "y", name="conv")],
        {"x": (1, 64, 8, 8)},
        {"y": (None,) * 4},
        {"w": noise(64, 64, 3, 3)},
    )
    with pytest.raises(
        BudgetError, match=r"100\.0 KiB: w \(0.1 MiB\); at least max_buffer='144KiB'"
    ):
        _rewrite(heavy, max_buffer=100 << 10)


def test_what_is_read_whole_is_named_with_a_limit_that_can_be_kept() -> None:
    """The limit that is offered is kept when it is asked for."""
    made, feed = _read_whole(), {"x": noise(*DIMS)}
    with pytest.raises(BudgetError, match="no smaller whatever is cut: c1 ") as caught:
        _rewrite(made, max_buffer=60_000)
    offered = _offered(caught.value)
    assert offered < 16 * 96 * 64 * 4
    outcome = _rewrite(made, max_buffer=offered)
    assert _largest(outcome.model, feed) <= offered
    assert_same(made, outcome.model, feed)


def test_the_limit_that_the_model_as_it_is_keeps_is_offered_where_no_cut_is_allowed() -> None:
    """Windows overlap, which no recompute allows: left as it is the model keeps a limit, too."""
    with pytest.raises(BudgetError, match="no plan was found") as caught:
        _rewrite(_wide(), max_buffer=100_000, max_recompute=1.0)
    assert _offered(caught.value) == 16 * 96 * 64 * 4
    assert not _rewrite(_wide(), max_buffer=_offered(caught.value), max_recompute=1.0).rewritten


def test_a_plan_that_is_given_is_held_to_it() -> None:
    """A plan says what it was held to, which nothing depends on; another limit is looked at."""
    made = _wide()
    plan: dict[str, Any] = dict(_rewrite(made, max_buffer=250_000).plan or {})
    assert plan["max_buffer"] == 250_000
    assert "max_buffer" not in (_rewrite(made, splits=2).plan or {})
    applied = read_plan(json.dumps(plan))
    assert _rewrite(made, plan=applied).rewritten
    with pytest.raises(BudgetError, match="stays at") as caught:
        _rewrite(made, plan=applied, max_buffer=60_000)
    assert _rewrite(made, plan=applied, max_buffer=_offered(caught.value)).rewritten


def test_what_was_rewritten_before_is_not_cut_again() -> None:
    """It is left as it is where it keeps the limit, and refused where it does not."""
    once = _rewrite(_wide(), max_buffer=250_000).model
    assert _rewrite(once, max_buffer=250_000).fits
    with pytest.raises(BudgetError, match="give the original"):
        _rewrite(once, max_buffer=60_000)


def test_unknown_sizes_tell_nothing() -> None:
    """Nobody can tell of a tensor whose size depends on the data: no promise is made."""
    nodes = [
        node("Conv", "x w", "c", name="conv", pads=[1] * 4),
        node("Custom", "c", "y", name="custom", domain="somewhere"),
    ]
    made = model(nodes, {"x": DIMS}, {"y": (None,) * 4}, {"w": noise(2, 2, 3, 3)})
    made.opset_import.add(domain="somewhere", version=1)
    with pytest.raises(BudgetError, match="nobody can tell"):
        _rewrite(made, max_buffer=10**6, allow_custom_ops=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_buffer": 0}, "max_buffer=0: must be 1 byte or more"),
        ({"max_buffer": 5, "form": "batch"}, "one by one, which meets no budget"),
        ({"max_buffer": 5, "patch_rows": 8}, "each say how large patches are"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    """Refused before a model is looked at."""
    with pytest.raises(OptionError, match=words):
        Options(**options)


def test_the_curve_keeps_it(tmp_path: Path) -> None:
    """Of each plan; the model as it is is shown, and does not fit."""
    path = tmp_path / "m.onnx"
    onnx.save(_wide(), path)
    original, *plans = pareto(path, max_buffer="120KiB")
    assert not original.fits
    assert plans
    assert all(plan.fits for plan in plans)
    with pytest.raises(UsageError, match="max_buffer"):
        pareto(path, max_buffer="large")


def test_in_python_and_on_the_command_line(tmp_path: Path) -> None:
    """Sizes as they are typed; the report has the largest tensor before and after."""
    onnx.save(_wide(), tmp_path / "m.onnx")
    found = rewrite(tmp_path / "m.onnx", tmp_path / "python.onnx", max_buffer="120KiB").report.data
    assert found["options"]["max_buffer_bytes"] == 120 << 10
    before, after = (found["largest_tensor"][when] for when in ("before", "after"))
    assert before == {"bytes": 16 * 96 * 64 * 4, "name": "c0"}
    assert after["bytes"] <= 120 << 10

    out = tmp_path / "typed.onnx"
    done = run_command("rewrite", tmp_path / "m.onnx", "-o", out, "--max-buffer", "120KiB")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Largest activation: 0\.4 -> 0\.1 MiB of 0\.1", done.stdout)
    assert _largest(onnx.load(out), {"x": noise(*DIMS)}) <= 120 << 10
    kept = run_command("rewrite", tmp_path / "m.onnx", "-o", out, "--force", "--max-buffer", "1MiB")
    assert kept.returncode == 0
    assert "No activation is larger than 1.0 MiB as it is" in " ".join(kept.stdout.split())
    small = run_command("rewrite", tmp_path / "m.onnx", "--max-buffer", "10KiB")
    assert small.returncode == 1
    (line,) = small.stderr.splitlines()
    assert "--max-buffer 48KiB is needed" in line
