"""Damaged models: refused in one line, or written so that they compute the same; never a traceback.

The mutations are those of `tests.support.mutations`, run there in a process of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from patchconv_deploy import ModelError, OptionError, pareto, rewrite
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from tests.support.mutations import CLEAN, mutated
from tests.support.small_models import chain, conv, cut, model, node, noise, session, value

ROOT = Path(__file__).resolve().parents[2]


def _outcomes(folder: Path, first: int, count: int) -> list[dict[str, Any]]:
    """Run a range of seeds; what ended the process is an outcome as well."""
    found: list[dict[str, Any]] = []
    end = first + count
    while first < end:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.support.mutations",
                str(folder),
                str(first),
                str(end - first),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found += [line for line in lines if "outcome" in line]
        if done.returncode == 0:
            break
        last = lines[-1] if lines else {"seed": first}
        # A model that ends the process by running, as it is or cut, is the runtime's affair.
        if last.get("stage") != "running":
            found.append({**last, "outcome": "crash", "message": done.stderr[-300:]})
        first = last["seed"] + 1
    return found


def _assert_clean(outcomes: list[dict[str, Any]]) -> None:
    assert [each for each in outcomes if each["outcome"] not in CLEAN] == []
    count = Counter(each["outcome"] for each in outcomes)
    # Neither is everything refused nor is nothing.
    assert all(count[outcome] > len(outcomes) / 50 for outcome in CLEAN), count
    refused = [each["message"] for each in outcomes if each["outcome"] == "refused"]
    assert all(message and "\n" not in message for message in refused)


def test_mutations(tmp_path: Path) -> None:
    """A hundred of them."""
    _assert_clean(_outcomes(tmp_path, 0, 100))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 12_000, 250))
def test_many_mutations(tmp_path: Path, first: int) -> None:
    """Two thousand more."""
    _assert_clean(_outcomes(tmp_path, first, 250))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50_000, 50_040))
def test_mutations_at_the_command_line(tmp_path: Path, seed: int) -> None:
    """The command says one line where it fails, and leaves nothing behind."""
    path = tmp_path / "model.onnx"
    path.write_bytes(mutated(seed)[1])
    done = subprocess.run(
        [sys.executable, "-m", "patchconv_deploy", "rewrite", str(path), "--min-elements", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode in (0, 1, 2), done.stderr
    assert "internal error" not in done.stderr
    assert "Traceback" not in done.stderr
    left = sorted(file.name for file in tmp_path.iterdir())
    if done.returncode:
        assert done.stderr.count("\n") == 1
        assert left == ["model.onnx"]
    else:
        assert left == ["model.onnx", "model.patched.onnx"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"data_type": 77}, "element type 77"),
        ({"data_type": 0}, "element type 0"),
        ({"dims": [2**62, 1]}, "has the shape"),
        ({"dims": [-3, 2]}, "has the shape"),
        ({"raw_data": b"123"}, "holds 3 bytes"),
    ],
)
def test_a_weight_that_cannot_be_is_refused(
    tmp_path: Path, damage: dict[str, Any], says: str
) -> None:
    """Its type, its shape and its bytes are held against each other once, when it is read."""
    made = conv()
    tensor = made.graph.initializer[0]
    for name, new in damage.items():
        tensor.ClearField(name)
        if isinstance(new, list):
            tensor.dims.extend(new)
        else:
            setattr(tensor, name, new)
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=says):
        rewrite(path, min_elements=0)


def test_an_input_that_no_memory_holds_is_refused() -> None:
    """The sizes of patches would overflow in the runtime."""
    with pytest.raises(ModelError, match=r"more than 2\^53"):
        cut(conv((2**62, 2, 16, 10)))


def test_a_graph_without_work_is_inspected(tmp_path: Path) -> None:
    """Whose only Conv reads a constant: nothing to repeat, nothing to cut."""
    made = model(
        [node("Conv", "w w", "y", pads=[1, 1])],
        {"x": [2, 3, 40]},
        {"y": None},
        {"w": noise(3, 3, 3)},
    )
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    assert not rewrite(path, splits=2).report.rewritten


def _with_sparse_weight() -> onnx.ModelProto:
    made = chain(3, (1, 2, 256, 64))
    first = TensorProto()
    first.CopyFrom(made.graph.initializer[0])
    del made.graph.initializer[0]
    array = onnx.numpy_helper.to_array(first).reshape(-1)
    places = np.array([0, 5, 17, 30])
    sparse = made.graph.sparse_initializer.add()
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(array[places].copy(), first.name))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(places.astype(np.int64), ""))
    sparse.dims.extend(first.dims)
    return made


@pytest.mark.parametrize("form", ["batch", "sequential", "fused", "shrinking", "loop"])
def test_a_sparse_weight_is_a_weight(form: str) -> None:
    """Its shape is known like any other's, and clones share it."""
    made = _with_sparse_weight()
    outcome = cut(made, form)
    assert outcome.rewritten
    x = noise(1, 2, 256, 64)
    before, after = (session(each).run(None, {"x": x})[0] for each in (made, outcome.model))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["batch", "sequential", "fused", "shrinking", "loop", "rounds"])
@pytest.mark.parametrize("free", [False, True])
def test_stale_shapes_in_the_file_are_not_written_again(form: str, free: bool) -> None:
    """Shapes that are declared are claims: ONNX Runtime refuses wrong ones beside new nodes."""
    made = chain(3, ("n", 2, "h", 64) if free else (1, 2, 256, 64))
    stale = [value(each.output[0], [1, 2, 48, 32]) for each in made.graph.node[:-1]]
    made.graph.value_info.extend([*stale, value("y", [1, 2, 48, 32])])
    del made.graph.output[:]
    made.graph.output.append(value("y", [1, 2, "rows", 32]))
    outcome = cut(made, form)
    assert outcome.rewritten
    x = noise(1, 2, 256, 64)
    before, after = (session(each).run(None, {"x": x})[0] for each in (made, outcome.model))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    kept = {each.name: each for each in outcome.model.graph.value_info}
    for each in kept.values():
        sizes = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
        assert sizes[2:] != [48, 32]
    declared = outcome.model.graph.output[0].type.tensor_type.shape.dim
    assert declared[3].dim_value == 64
    assert declared[2].dim_param == "rows" or declared[2].dim_value == 256


def test_a_plan_nested_deeply_is_no_plan() -> None:
    """The reader of JSON gives up on it; so does the command, in one line."""
    with pytest.raises(OptionError, match="nested too deeply"):
        read_plan("[" * 100_000)


def test_an_operator_of_another_domain_may_be_called_conv(tmp_path: Path) -> None:
    """With fewer inputs than ONNX's own: it is counted by what it reads and makes."""
    made = chain(3)
    own = node("Conv", "y", "z")
    own.domain = "com.microsoft"
    made.graph.node.append(own)
    made.opset_import.add(domain="com.microsoft", version=1)
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    assert pareto(path, allow_custom_ops=True)
