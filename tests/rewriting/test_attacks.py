"""Models and files made to break the tool: each once did, or nearly."""

from __future__ import annotations

import os
import threading
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy import OptionError, SaveError, UsageError, pareto, rewrite
from patchconv_deploy.cli.types import read_text
from patchconv_deploy.free_memory import Memory
from patchconv_deploy.rewriters.errors import ModelError
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.verify import pairs
from patchconv_deploy.verify.inputs import load_inputs, make_inputs
from tests.support.oracle import rewrite as rewrite_proto
from tests.support.small_models import Array, model, node, value

WEIGHT = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)


def _run(proto: onnx.ModelProto, x: Array, *, plain: bool = False) -> Array:
    options = onnxruntime.SessionOptions()
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, {"x": x})[0]
    return result


def _same(proto: onnx.ModelProto, shape: tuple[int, ...], **options: Any) -> list[Outcome]:
    """Rewrite in both forms, compare; return what was done."""
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    want = _run(proto, x)
    outcomes = []
    for form in ("batch", "sequential"):
        outcome = rewrite_proto(proto, form=form, **options)
        got = _run(outcome.model, x)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        outcomes.append(outcome)
    return outcomes


@pytest.mark.parametrize("scale", [0.7, 1.4, 2.3, 0.5, 1.5, 2.0])
@pytest.mark.parametrize("rows", [10, 25, 30, 33, 100])
@pytest.mark.parametrize("op", ["Resize", "Upsample"])
def test_a_size_rounded_in_floating_point_is_not_believed(op: str, rows: int, scale: float) -> None:
    """Onnx infers 69 rows for 100 x 0.7 where ONNX Runtime makes 70: left alone, or right."""
    if op == "Upsample" and scale < 1:
        return  # Upsample does not shrink
    inputs = "x _ s" if op == "Resize" else "x s"
    proto = model(
        [node(op, inputs, "p", mode="nearest"), node("Conv", "p w", "y", pads=[1] * 4)],
        {"x": [1, 3, rows, 20]},
        {"y": None},
        {"w": WEIGHT, "s": np.array([1, 1, scale, scale], np.float32)},
        opset=13 if op == "Resize" else 9,
    )
    exact = float(rows * np.float32(scale)) == rows * scale and scale in (0.5, 1.5, 2.0)
    for outcome in _same(proto, (1, 3, rows, 20)):
        if exact:
            assert outcome.rewritten[0].rows == int(rows * scale)
        else:
            assert [refusal.code for refusal in outcome.refused] in ([], ["size-doubtful"])


def test_a_scale_known_to_round_apart_is_refused() -> None:
    """The case above that once gave 69 rows."""
    proto = model(
        [node("Resize", "x _ s", "p", mode="nearest"), node("Conv", "p w", "y", pads=[1] * 4)],
        {"x": [1, 3, 100, 20]},
        {"y": None},
        {"w": WEIGHT, "s": np.array([1, 1, 0.7, 1], np.float32)},
    )
    for outcome in _same(proto, (1, 3, 100, 20)):
        assert outcome.refused[0].code == "size-doubtful"


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("rows", [5, 28, 29, 60, 61])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1},
        {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ],
    ids=["padded", "sparse", "usual", "same"],
)
def test_a_pool_with_ceil_mode_is_believed_where_all_agree(
    op: str, rows: int, attributes: dict[str, Any]
) -> None:
    """Whether a last window in the padding counts is in doubt; elsewhere nothing is."""
    proto = model(
        [node(op, "x", "p", **attributes), node("Conv", "p w", "y", pads=[1] * 4)],
        {"x": [1, 3, rows, rows]},
        {"y": None},
        {"w": WEIGHT},
    )
    for outcome in _same(proto, (1, 3, rows, rows)):
        assert {refusal.code for refusal in outcome.refused} <= {"size-doubtful"}
        if "kernel_shape" in attributes and attributes["kernel_shape"] == [3, 3]:
            assert len(outcome.rewritten) == 1


def test_a_type_that_cannot_be_sliced_stays_out_of_the_region() -> None:
    """FP8 between Q and DQ: no Slice takes it, so the Conv is cut alone, in float."""
    proto = model(
        [
            node("QuantizeLinear", "x s z", "xq"),
            node("DequantizeLinear", "xq s z", "xf"),
            node("Conv", "xf w", "c", pads=[1] * 4),
            node("QuantizeLinear", "c s z", "yq"),
            node("DequantizeLinear", "yq s z", "y"),
        ],
        {"x": [1, 3, 16, 8]},
        {"y": None},
        {"w": WEIGHT, "s": np.array(0.05, np.float32)},
        opset=21,
        ir=10,
    )
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    proto.graph.initializer.append(zero)
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 8)).astype(np.float32)
    for form in ("batch", "sequential"):
        outcome = rewrite_proto(proto, form=form)
        assert len(outcome.rewritten[0].nodes) == 1
        # ONNX Runtime's optimised and plain runs of the original differ in an element of eight.
        got, want = (_run(m, x, plain=True) for m in (outcome.model, proto))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shared", ["second without Q", "weight", "both inputs"])
def test_a_shared_dequantize_stays_while_a_clone_reads_it(shared: str) -> None:
    """The pair of one Conv is cloned away; another patched Conv still reads the original."""
    second = {
        "second without Q": node("Conv", "xf w", "y2", pads=[1] * 4),
        "weight": node("Conv", "w xf", "y2"),
        "both inputs": node("Conv", "xf xf", "y2"),
    }[shared]
    proto = model(
        [
            node("DequantizeLinear", "x s z", "xf"),
            node("Conv", "xf w", "c", pads=[1] * 4),
            node("QuantizeLinear", "c t z", "y1"),
            second,
        ],
        [value("x", [3, 3, 3, 3], TensorProto.UINT8)],
        [value("y1", None, TensorProto.UINT8), value("y2", None)],
        {
            "w": WEIGHT,
            "s": np.array(0.1, np.float32),
            "t": np.array(0.1, np.float32),
            "z": np.array(128, np.uint8),
        },
    )
    x = np.random.default_rng(0).integers(0, 255, (3, 3, 3, 3)).astype(np.uint8)
    outcome = rewrite_proto(proto, splits=2)
    assert outcome.rewritten
    np.testing.assert_array_equal(_run(outcome.model, x), _run(proto, x))


def test_upgrading_does_not_lose_functions() -> None:
    """Onnx's converter drops model-local functions: refused, not written without them."""
    function = helper.make_function(
        "loc", "F", ["a"], ["b"], [node("Relu", "a", "b")], [helper.make_opsetid("", 11)]
    )
    proto = model(
        [node("F", "x", "f"), node("Conv", "f w", "y")],
        {"x": [1, 3, 8, 8]},
        {"y": None},
        {"w": WEIGHT},
        opset=11,
        functions=[function],
        domains={"loc": 1},
    )
    proto.graph.node[0].domain = "loc"
    with pytest.raises(OptionError, match="functions"):
        rewrite_proto(proto, upgrade_opset=13)


@pytest.mark.parametrize(
    "attributes", [{"strides": [2_000_000_000, 1]}, {"dilations": [200_000, 1]}]
)
def test_what_would_take_too_long_to_prove_is_refused(attributes: dict[str, Any]) -> None:
    """A run-time height and a huge stride or kernel: a reason, in no time."""
    proto = model(
        [node("Conv", "x w", "y", **attributes)],
        {"x": [1, 3, "h", 8]},
        {"y": None},
        {"w": WEIGHT},
    )
    assert rewrite_proto(proto).refused[0].code == "not-provable"


def _external(folder: Path, name: str, location: str) -> Path:
    proto = model(
        [node("Conv", "x w", "y", pads=[1] * 4)], {"x": [1, 3, 16, 8]}, {"y": None}, {"w": WEIGHT}
    )
    path = folder / name
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.mark.parametrize("perm", [[0, -1, 1, 2], [0, 1, 1, 3], [0, 1, 2], [0, 1, 2, 7]])
@pytest.mark.parametrize("rows", [64, "H"])
def test_a_transpose_of_other_dimensions_is_left_alone(perm: list[int], rows: int | str) -> None:
    """Exporters have written -1 there; no runtime takes it, and it is no reason to break off."""
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4),
        node("Transpose", "c", "t", name="turn", perm=perm),
        node("Relu", "t", "y", name="relu"),
    ]
    made = model(nodes, {"x": (1, 3, rows, 32)}, {"y": (None,) * 4}, {"w": WEIGHT})
    outcome = rewrite_proto(made, form="fused", splits=4)
    assert not {"turn", "relu"} & {name for done in outcome.rewritten for name in done.nodes}


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("out", ["w.bin", "model.onnx"])
def test_the_inputs_weights_are_never_overwritten(tmp_path: Path, out: str, share: bool) -> None:
    """Neither they nor the model, --force or not."""
    path = _external(tmp_path, "model.onnx", "w.bin")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(SaveError, match="never overwritten"):
        rewrite(path, tmp_path / out, min_elements=0, force=True, share_weights=share)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("share", [False, True])
def test_the_inputs_weights_may_be_called_like_the_output(tmp_path: Path, share: bool) -> None:
    """The output's own are called otherwise, so nothing is in the way."""
    path = _external(tmp_path, "model.onnx", "out.onnx.data")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    rewrite(path, tmp_path / "out.onnx", min_elements=0, share_weights=share)
    assert {file: file.read_bytes() for file in before} == before


def test_replaced_weights_do_not_come_back(tmp_path: Path) -> None:
    """An output called as the staging folder's own entries gets its own weights."""
    path = _external(tmp_path, "model.onnx", "w.bin")
    x = np.ones((1, 3, 16, 8), np.float32)
    out = tmp_path / "replaced"
    out.write_bytes(b"old")
    (tmp_path / "replaced.data").write_bytes(b"old weights")
    rewrite(path, out, min_elements=0, force=True)
    found = [
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for p in (path, out)
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """A target that is no regular file is refused, --force or not."""
    import os

    path, pipe = _external(tmp_path, "model.onnx", "w.bin"), tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SaveError, match="no regular file"):
        rewrite(path, pipe, min_elements=0, force=True)
    assert pipe.is_fifo()


@pytest.mark.parametrize("place", [".", "/", "", "pipe", "/dev/zero", "folder", "folder/none.onnx"])
def test_a_path_that_is_no_model(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at once, with no output named: one that ends is not waited for."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    words = "is a folder|is no regular file|no such file"
    with pytest.raises(ModelError, match=words):
        rewrite(place)
    with pytest.raises(ModelError, match=words):
        pareto(place)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_text_that_never_ends(tmp_path: Path) -> None:
    """--plan /dev/zero is refused, and a pipe with a plan in it is read."""
    with pytest.raises(click.UsageError, match="too long"):
        read_text("--plan", Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("{}"))
    writer.start()
    assert read_text("--plan", tmp_path / "pipe") == "{}"
    writer.join()


@pytest.mark.parametrize("kind", ["truncated", "empty", "array", "text"])
def test_damaged_inputs_are_refused(tmp_path: Path, kind: str) -> None:
    """Whatever numpy and zipfile raise becomes one line."""
    path, file = _external(tmp_path, "model.onnx", "w.bin"), tmp_path / "in.npz"
    np.savez(file, x=np.ones((1, 3, 16, 8), np.float32))
    data = file.read_bytes()
    np.save(tmp_path / "a.npy", np.ones(3))
    damaged = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "array": (tmp_path / "a.npy").read_bytes(),
        "text": b"hello",
    }
    file.write_bytes(damaged[kind])
    with pytest.raises(UsageError, match=r"not an \.npz"):
        rewrite(path, min_elements=0, inputs=file)


def test_an_entry_nobody_asked_for_is_not_unpacked(tmp_path: Path) -> None:
    """A large unknown entry is named before anything is read."""
    path, file = _external(tmp_path, "model.onnx", "w.bin"), tmp_path / "in.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("junk.npy", b"\0" * 1000)
    with pytest.raises(UsageError, match=r"no (array for the )?input"):
        rewrite(path, min_elements=0, inputs=file)


def _archive(file: Path, header: dict[str, Any], megabytes: int) -> None:
    """Write an .npz whose array x is so many megabytes of zeros, in some kilobytes."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(megabytes):
            stream.write(bytes(1 << 20))


@pytest.mark.parametrize("free", [False, True])
def test_an_array_is_not_unpacked_before_its_header_is_read(
    tmp_path: Path, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kilobytes that unpack to what the model does not take, or memory does not hold."""
    proto = model(
        [node("Conv", "x w", "y", pads=[1] * 4)],
        {"x": [1, 3, "h" if free else 16, 8]},
        {"y": None},
        {"w": WEIGHT},
    )
    file = tmp_path / "in.npz"
    shape = (1, 3, (64 << 20) // 96, 8)
    _archive(file, {"descr": "<f4", "fortran_order": False, "shape": shape}, 64)
    assert file.stat().st_size < 200_000
    if free:
        have = psutil.virtual_memory()._replace(available=60 << 20)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: have)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=r"unpacks to 0\.1 GiB" if free else "has shape"):
            load_inputs(file, proto)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00" + bytes(100), "pickle"]
)
def test_an_entry_that_is_no_array(tmp_path: Path, data: bytes | str) -> None:
    """Text, half a header, a version nobody knows, and objects, which are never unpickled."""
    path, file = _external(tmp_path, "model.onnx", "w.bin"), tmp_path / "in.npz"
    if isinstance(data, str):
        np.savez(file, x=np.array([{}], object))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", data)
    with pytest.raises(UsageError, match=r"inputs='.*': .*(not an \.npz file|is object)"):
        load_inputs(file, load(path).model)


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    """Column-major and compressed, text, no elements: the checks let them through."""
    text = TensorProto.STRING
    proto = model(
        [node("Identity", "x", "y"), node("Identity", "s", "t")],
        [value("x", ["n", 3]), value("s", [2], text)],
        [value("y", None), value("t", None, text)],
    )
    for rows in (0, 4):
        x = np.asfortranarray(np.arange(rows * 3, dtype=np.float32).reshape(rows, 3))
        np.savez_compressed(tmp_path / "in.npz", x=x, s=np.array(["a", "bc"]))
        found = load_inputs(tmp_path / "in.npz", proto)
        np.testing.assert_array_equal(found["x"], x)
        assert found["s"].tolist() == ["a", "bc"]


def test_inputs_that_memory_does_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any is made, and together: each alone would fit."""
    side = 1000
    proto = model(
        [node("Add", "a b", "y")], {"a": [side, side], "b": [side, side]}, {"y": [side, side]}
    )
    have = psutil.virtual_memory()._replace(available=12_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: have)
    with pytest.raises(UsageError, match="the inputs take"):
        make_inputs(proto, infer(skeleton(Loaded(proto, None))), {}, 0)


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For inputs that are made, for those that are read, and for how the original is run."""
    contained = Memory(2**40, 2**40, limit=2**30, held=2**30 - 1_000_000)
    monkeypatch.setattr("patchconv_deploy.verify.inputs.memory_here", lambda: contained)
    monkeypatch.setattr("patchconv_deploy.verify.pairs.memory_here", lambda: contained)
    proto = model([node("Relu", "x", "y")], {"x": [600, 600]}, {"y": [600, 600]})
    with pytest.raises(UsageError, match="the inputs take"):
        make_inputs(proto, infer(skeleton(Loaded(proto, None))), {}, 0)
    np.savez(tmp_path / "in.npz", x=np.zeros((600, 600), np.float32))
    with pytest.raises(UsageError, match="unpacks to"):
        load_inputs(tmp_path / "in.npz", proto)
    assert pairs._fits(300_000)
    assert not pairs._fits(300_000, times=2)
    assert not pairs._fits(1_000_000)


def test_a_rewritten_model_without_a_kernel_is_no_match() -> None:
    """Twins stand in where the original lacks a kernel, not where only the rewritten one does."""
    lacking = {"error": {"stage": "rewritten", "kind": "NoKernel", "message": "NOT_IMPLEMENTED"}}
    assert not pairs._lacks_kernel(lacking)
    lacking["error"]["stage"] = "original"
    assert pairs._lacks_kernel(lacking)


def test_inputs_too_large_to_make_are_not_made(tmp_path: Path) -> None:
    """640 GB of input: the file is written, verification says why it did not run."""
    proto = model(
        [node("Conv", "x w", "y", pads=[1] * 4)],
        {"x": [1, 3, 400_000, 400_000]},
        {"y": None},
        {"w": WEIGHT},
    )
    path = tmp_path / "huge.onnx"
    onnx.save(proto, path)
    found = rewrite(path, min_elements=0).report.verification
    assert not found["ran"]
    assert "GiB" in found["reason"]


def test_odd_names_reach_no_markup(tmp_path: Path) -> None:
    """Brackets, escapes and control characters in a node's name are printed, not obeyed."""
    import os
    import subprocess
    import sys

    proto = model(
        [node("Conv", "x w", "y", name="a\\[/b]\x1b[31m\n\u00fc", pads=[1] * 4)],
        {"x": [1, 3, 16, 8]},
        {"y": None},
        {"w": WEIGHT},
    )
    path = tmp_path / "odd.onnx"
    onnx.save(proto, path)
    done = subprocess.run(
        [sys.executable, "-m", "patchconv_deploy", "rewrite", str(path), "--min-elements", "0"],
        capture_output=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PYTHONIOENCODING": "ascii",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert b"[/b]" in done.stdout
    assert numpy_helper.to_array(onnx.load(path).graph.initializer[0]).shape == (3, 3, 3, 3)
