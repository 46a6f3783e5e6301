"""`graph.guarded`: models that onnx's own code crashes on, and the process it runs in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper

from patchconv_deploy.api import convert_model, pareto, rewrite
from patchconv_deploy.rewriters.errors import CrashError, ModelError
from patchconv_deploy.rewriters.graph import guarded
from patchconv_deploy.rewriters.graph.external_data import tensors
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.guarded import (
    Refused,
    check_model,
    convert_version,
    infer_shapes,
)
from patchconv_deploy.rewriters.graph.upgrade_opset import upgrade
from tests.support.small_models import chain, copy_of, model, node, noise

ROOT = str(Path(__file__).resolve().parents[2])

SMALL = {"x": (1, 3, 2, 64)}


def crashing(dims: tuple[int | str, ...] = (1, 3, "h", 64)) -> onnx.ModelProto:
    """Two Convs that a height of 2 is too small for, and a Slice of what is left: -2 rows."""
    ends = {"first": [-1], "last": [2**62], "rows": [2]}
    return model(
        [
            node("Conv", "x w", "a", name="one"),
            node("Conv", "a v", "b", name="two"),
            node("Slice", "b first last rows", "y", name="tail"),
        ],
        {"x": dims},
        {"y": (None,) * 4},
        {
            "w": noise(4, 3, 3, 3),
            "v": noise(4, 4, 3, 3),
            **{name: np.array(numbers, np.int64) for name, numbers in ends.items()},
        },
    )


def nested_functions(depth: int) -> onnx.ModelProto:
    """Functions that call each other twice: 2^depth nodes to infer shapes of, in a small file."""
    functions = []
    for k in range(depth):
        calls = [node(f"F{k - 1}" if k else "Relu", a, b) for a, b in (("x", "t"), ("t", "y"))]
        for call in calls:
            call.domain = "own" if k else ""
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"F{k}", ["x"], ["y"], calls, opsets))
    top = node(f"F{depth - 1}", "x", "y")
    top.domain = "own"
    shape = (1, 3, 8, 8)
    return model([top], {"x": shape}, {"y": shape}, functions=functions, domains={"own": 1})


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let the next question start a process, and another one after the test."""
    guarded._onnx._end()
    yield
    guarded._onnx._end()
    guarded._onnx._hopeless = False


def test_a_crash_is_an_exception_that_names_the_node() -> None:
    """This process lives on, and the next question is answered."""
    small = crashing()
    fix_shapes(small, SMALL)
    for _ in range(2):
        with pytest.raises(CrashError, match=r"node 'tail' \(Slice\): .*crashes.*larger input"):
            infer_shapes(small)
    assert len(infer_shapes(chain(2)).graph.value_info) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda path: rewrite(path, shapes=SMALL),
        lambda path: pareto(path, shapes=SMALL),
        lambda path: convert_model(onnx.load(path), shapes=SMALL),
        lambda path: convert_model(path, shapes=SMALL),
    ],
    ids=["rewrite", "pareto", "proto", "path"],
)
def test_in_python_the_caller_lives(call: Callable[[Path], object], tmp_path: Path) -> None:
    """Each way in raises; no file is written."""
    path = tmp_path / "m.onnx"
    onnx.save(crashing(), path)
    with pytest.raises(ModelError, match="crashes"):
        call(path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("command", ["rewrite", "inspect"])
def test_on_the_command_line_it_is_one_line(command: str, tmp_path: Path) -> None:
    """Exit code 2, and no file."""
    path = tmp_path / "m.onnx"
    onnx.save(crashing(), path)
    done = subprocess.run(
        [sys.executable, "-m", "patchconv_deploy", command, str(path), "--shape", "x:1x3x2x64"],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: node 'tail' (Slice): ")
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_an_ordinary_refusal_is_not_a_crash() -> None:
    """What onnx says against a model comes through in its own words."""
    wrong = model([node("Relu", "x nothing", "y")], {"x": (1, 2)}, {"y": (1, 2)})
    with pytest.raises(Refused, match="Relu"):
        check_model(wrong)
    with pytest.raises(Refused, match="no registered schema"):
        convert_version(model([node("Frob", "x", "y")], {"x": (1,)}, {"y": (1,)}), 20)


def test_answers_are_onnxs_own() -> None:
    """The same message, to the byte, as in this process."""
    made = chain(5, (1, 2, "h", 10))
    want = onnx.shape_inference.infer_shapes(made, data_prop=True)
    assert infer_shapes(made).SerializeToString() == want.SerializeToString()


@pytest.mark.usefixtures("fresh")
def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that unfold to a billion nodes: ended after the seconds it may take."""
    monkeypatch.setattr(guarded, "_SECONDS", 1)
    begin = time.monotonic()
    with pytest.raises(CrashError, match="takes more than 1 s"):
        infer_shapes(nested_functions(30))
    assert time.monotonic() - begin < 60


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not keep the bound")
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("limit", [1 << 20, 28 << 20])
def test_memory_is_bounded(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the model wants more than it may have, or inference does."""
    monkeypatch.setattr(guarded, "_MEMORY", limit)
    count = 20_000
    ends = {0: "x", count: "y"}
    names = [ends.get(k, f"t{k}") for k in range(count + 1)]
    nodes = [node("Relu", a, b) for a, b in pairwise(names)]
    with pytest.raises(CrashError, match="wants more memory"):
        infer_shapes(model(nodes, {"x": (1, 2)}, {"y": (1, 2)}))


@pytest.mark.usefixtures("fresh")
def test_the_time_of_one_answer_is_not_the_nexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lives long spends more than one answer may."""
    monkeypatch.setattr(guarded, "_SECONDS", 1)
    infer_shapes(chain(1))
    assert guarded._onnx._process is not None
    first = guarded._onnx._process._process.pid
    spent, slow = 0.0, chain(1000)
    while spent < 1.5:
        infer_shapes(slow)
        spent = sum(psutil.Process(first).cpu_times()[:2])
    assert guarded._onnx._process._process.pid == first


@pytest.mark.usefixtures("fresh")
def test_threads_share_it_and_may_end() -> None:
    """Asked by many at once; one that is started by a thread outlives the thread."""
    answers: list[int] = []

    def ask(count: int) -> None:
        answers.append(len(infer_shapes(chain(count, relu=False)).graph.value_info) - count)

    first = threading.Thread(target=ask, args=(3,))
    first.start()
    first.join()
    assert guarded._onnx._process is not None
    child = guarded._onnx._process._process.pid
    time.sleep(0.2)
    threads = [threading.Thread(target=ask, args=(count,)) for count in range(2, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [-1] * 11
    assert guarded._onnx._process._process.pid == child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_asks_a_process_of_its_own() -> None:
    """Neither gets the other's answers, and the child's end does not end the parent's."""
    assert infer_shapes(chain(2)).graph.value_info
    assert guarded._onnx._process is not None
    before = guarded._onnx._process._process.pid
    child = os.fork()
    if child == 0:
        code = 1
        try:
            found = len(infer_shapes(chain(4)).graph.value_info)
            process = guarded._onnx._process
            if found == 6 and process is not None and process._process.pid != before:
                code = 0
            guarded._onnx._end()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(infer_shapes(chain(3)).graph.value_info) == 4
    assert guarded._onnx._process._process.pid == before


def test_an_interrupted_answer_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between question and answer: the next question gets its own answer."""
    infer_shapes(chain(2))

    def interrupted(self: guarded._Process, size: int) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(guarded._Process, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer_shapes(chain(5))
    assert len(infer_shapes(chain(2)).graph.value_info) == 2


_PARENT = """
import sys, threading, time
from patchconv_deploy.rewriters.graph import guarded
from tests.support.small_models import chain
from tests.graph.test_guarded import nested_functions
guarded.infer_shapes(chain(2))
print(guarded._onnx._process._process.pid, flush=True)
if sys.argv[1] == "busy":
    guarded.infer_shapes(nested_functions(30))
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a busy child lives on elsewhere, for a while")
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_it_ends_with_its_parent(state: str) -> None:
    """Killed without a chance to say so, idle and in the middle of an answer."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, state],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        if state == "busy":
            time.sleep(0.5)
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("what", ["frozen", "no executable", "missing", "no interpreter"])
def test_without_a_process_onnx_runs_here(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that cannot start an interpreter gets its answers, and a warning."""
    if what == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        program = {"no executable": "", "missing": "/no/python", "no interpreter": "/bin/true"}
        monkeypatch.setattr(sys, "executable", program[what])
    assert len(infer_shapes(chain(2)).graph.value_info) == 2
    assert "onnx runs in this process" in caplog.text
    wrong = model([node("Relu", "x nothing", "y")], {"x": (1, 2)}, {"y": (1, 2)})
    with pytest.raises(Refused):
        check_model(wrong)


@pytest.mark.parametrize("flags", ["", "-I", "-S"])
def test_whatever_started_the_caller(flags: str, tmp_path: Path) -> None:
    """A script without a main guard, from another folder, isolated, with shadowing modules near."""
    for name in ("struct.py", "signal.py", "ctypes.py"):
        (tmp_path / name).write_text("raise SystemExit('shadowed')\n")
    paths = [entry for entry in [ROOT, *sys.path] if entry]
    code = (
        f"import sys; sys.path[:] = {paths!r} + sys.path\n"
        "from patchconv_deploy.rewriters.graph import guarded\n"
        "from tests.support.small_models import chain\n"
        "print(len(guarded.infer_shapes(chain(2)).graph.value_info), guarded._onnx._process)\n"
    )
    done = subprocess.run(
        [sys.executable, *flags.split(), "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith("2 <patchconv_deploy.rewriters.graph.guarded"), done.stderr


class TestConverting:
    """Weights are not sent to the converter, and are there afterwards."""

    def big(self) -> onnx.ModelProto:
        """Weights above and below the limit, in initializers, a Constant node and a body."""
        constant = node("Constant", "", "k", value=helper.make_tensor("", 1, [2000], np.ones(2000)))
        body = helper.make_graph(
            [node("Mul", "k inner", "b")],
            "body",
            [],
            [helper.make_tensor_value_info("b", 1, [2000])],
            [onnx.numpy_helper.from_array(noise(2000, seed=1), "inner")],
        )
        return model(
            [
                constant,
                node("If", "c", "i", then_branch=body, else_branch=body),
                node("Add", "i w", "y"),
            ],
            {"c": ()},
            {"y": (2000,)},
            {"w": noise(2000, seed=2), "c0": noise(3)},
            opset=13,
        )

    def test_weights_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of them, to the bit, at their places; little is sent."""
        made = self.big()
        made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BOOL
        sent: list[int] = []
        ask = guarded._onnx.ask

        def listening(do: bytes, version: int, data: bytes) -> tuple[bytes, bytes]:
            sent.append(len(data))
            return ask(do, version, data)

        monkeypatch.setattr(guarded._onnx, "ask", listening)
        converted = convert_version(made, 18)
        assert sent[0] < 3000
        assert converted.opset_import[0].version == 18
        for part, other in zip(tensors(made), tensors(converted), strict=True):
            np.testing.assert_array_equal(
                onnx.numpy_helper.to_array(part), onnx.numpy_helper.to_array(other)
            )

    def test_external_weights_stay_where_they_are(self, tmp_path: Path) -> None:
        """References survive, whatever the size."""
        saved = copy_of(chain(2))
        onnx.save(
            saved, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
        )
        made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
        converted = upgrade(made, 20)
        assert [t.SerializeToString() for t in converted.graph.initializer] == [
            t.SerializeToString() for t in made.graph.initializer
        ]


def test_a_polite_end_leaves_nothing(tmp_path: Path) -> None:
    """An interpreter that ends by itself takes the process along, without a word."""
    code = (
        "from patchconv_deploy.rewriters.graph import guarded\n"
        "from tests.support.small_models import chain\n"
        "guarded.infer_shapes(chain(2))\nprint(guarded._onnx._process._process.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", code],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert "guarded" not in done.stderr, done.stderr
    assert not psutil.pid_exists(int(done.stdout))


def test_the_signal_of_an_end_is_named() -> None:
    """Codes of all kinds become words."""
    assert "SIGABRT" in guarded._end_of(-signal.SIGABRT, "")
    assert "exit code 3" in guarded._end_of(3, "")
    assert "likely for want of memory" in guarded._end_of(-signal.SIGKILL, "")
    assert "wants more memory" in guarded._end_of(-signal.SIGABRT, "what():  std::bad_alloc")
