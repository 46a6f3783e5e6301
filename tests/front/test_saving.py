"""`patchconv_deploy.saving`: a model and its weights, whole or not at all, whenever a run ends."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy import SaveError, rewrite
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.saving import stage
from patchconv_deploy.scratch import scratch_folder, temporary_folder
from patchconv_deploy.triton.publish import stage_version
from tests.support.small_models import chain, copy_of, noise

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there")


def source(folder: Path, name: str, number: float) -> Path:
    """Save a model whose weights, beside it, are all one number, which its name says too."""
    made = chain(3)
    made.graph.name = str(number)
    for tensor in made.graph.initializer:
        full = np.full(tuple(tensor.dims), number, np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(full, tensor.name))
    folder.mkdir(exist_ok=True)
    saved = copy_of(made)
    onnx.save(
        saved, folder / name, save_as_external_data=True, location=f"{name}.w", size_threshold=0
    )
    return folder / name


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two models, 1 and 2, in a folder of their own."""
    return source(tmp_path / "in", "one.onnx", 1), source(tmp_path / "in", "two.onnx", 2)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A place for the output in an empty folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.onnx"


def write(model: Path, out: Path) -> None:
    """Write a model as `rewrite` does."""
    loaded = load(model)
    weights = model.with_name(f"{model.name}.w")
    with stage(loaded.model, loaded.folder, out, keep=[model, weights]) as staged:
        staged.publish()


def standing(out: Path) -> float:
    """Return which model stands there, whole."""
    made = onnx.load(out)
    (number,) = {
        float(x)
        for tensor in made.graph.initializer
        for x in onnx.numpy_helper.to_array(tensor).reshape(-1)
    }
    assert made.graph.name == str(int(number))
    return number


def entries(folder: Path) -> list[str]:
    """Return what is in a folder, hidden files too."""
    return sorted(entry.name for entry in folder.iterdir())


def test_the_weights_name_says_what_is_in_them(pair: tuple[Path, Path], out: Path) -> None:
    """Two files; other weights have another name, the same ones the same, the old ones go."""
    names = []
    for model in (pair[0], pair[1], pair[0], pair[0]):
        write(model, out)
        name, weights = entries(out.parent)
        assert name == "m.onnx"
        assert weights.startswith("m.onnx.")
        assert weights.endswith(".data")
        names.append(weights)
    assert names[0] != names[1]
    assert names[0] == names[2] == names[3]
    assert standing(out) == 1


_CALLS = ("replace", "unlink", "rmdir", "mkdir", "fsync", "open", "close")


def _dying(work: Callable[[], None], turn: int, after: bool) -> bool:
    """Do something in a fork that ends, as by kill -9, at a call of the system; False if it ran."""
    child = os.fork()
    if child == 0:
        left = turn

        def wrapped(real: Any) -> Any:
            def call(*args: Any, **keywords: Any) -> Any:
                nonlocal left
                left -= 1
                if not left and not after:
                    os._exit(9)
                result = real(*args, **keywords)
                if not left:
                    os._exit(9)
                return result

            return call

        try:
            for name in _CALLS:
                setattr(os, name, wrapped(getattr(os, name)))
            work()
        finally:
            os._exit(0 if left > 0 else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@needs_fork
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("first", [False, True], ids=["over another", "first"])
def test_killed_at_every_step(pair: tuple[Path, Path], out: Path, first: bool, after: bool) -> None:
    """Before and after each call: one of the two pairs stands, and the next run leaves nothing."""
    deaths = 0
    for turn in range(1, 1000):
        for name in entries(out.parent):
            (out.parent / name).unlink()
        if not first:
            write(pair[0], out)
        died = _dying(lambda: write(pair[1], out), turn, after)
        deaths += died
        if not first or out.exists():
            assert standing(out) in (() if first else (1,)) + (2,)
        if not died:
            break
        write(pair[turn % 2], out)
        assert len(entries(out.parent)) == 2, (turn, entries(out.parent))
        assert standing(out) == 1 + turn % 2
    assert deaths > 15
    assert standing(out) == 2


@needs_fork
def test_killed_at_random_moments(pair: tuple[Path, Path], out: Path) -> None:
    """Real signals, one run after the other without a clean one in between."""
    begin = time.monotonic()
    write(pair[0], out)
    usual = time.monotonic() - begin
    generator, killed = random.Random(0), 0
    for turn in range(60):
        child = os.fork()
        if child == 0:
            try:
                write(pair[turn % 2], out)
            finally:
                os._exit(0)
        time.sleep(generator.uniform(0, usual))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert standing(out) in (1, 2)
    assert killed > 20
    write(pair[1], out)
    assert len(entries(out.parent)) == 2
    assert standing(out) == 2


def test_a_disk_that_fails_half_way_leaves_what_stood(
    pair: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are in place, the model cannot be: they are taken away again."""
    write(pair[0], out)
    before = entries(out.parent)
    real = os.replace

    def failing(one: Any, other: Any) -> None:
        if Path(other) == out:
            raise OSError(28, "No space left on device")
        real(one, other)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space left"):
        write(pair[1], out)
    assert entries(out.parent) == before
    assert standing(out) == 1


@needs_fork
@needs_locks
def test_a_living_run_is_left_alone(pair: tuple[Path, Path], out: Path) -> None:
    """What is staged by a run that lives is not a dead one's, in this process or another."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            loaded = load(pair[0])
            with stage(loaded.model, loaded.folder, out) as staged:
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                staged.publish()
            os._exit(0)
        finally:
            os._exit(1)
    os.read(ready[0], 1)
    write(pair[1], out)
    assert standing(out) == 2
    assert len(entries(out.parent)) == 4
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (*ready, *go):
        os.close(end)
    assert standing(out) == 1
    assert len(entries(out.parent)) == 2


def test_many_at_once(pair: tuple[Path, Path], out: Path) -> None:
    """Whoever is last stands, whole, and nothing else does."""
    threads = [threading.Thread(target=write, args=(pair[k % 2], out)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert standing(out) in (1, 2)
    assert len(entries(out.parent)) == 2


def die(folder: Path, journal: str) -> None:
    """Leave what a run that was killed leaves: a staging folder, and a lock that is free."""
    staging = folder / ".patchconv-00"
    staging.mkdir()
    (staging / "journal.json").write_text(journal)
    (folder / ".patchconv-00.lock").touch()


@needs_locks
def test_only_what_is_ours_is_removed(pair: tuple[Path, Path], out: Path, tmp_path: Path) -> None:
    """A journal that names other files, however it came there, removes none of them."""
    write(pair[0], out)
    secret = tmp_path / f"m.onnx.{'0' * 16}.data"
    secret.write_text("secret")
    ours = f"m.onnx.{'1' * 16}.data"
    link = f"m.onnx.{'2' * 16}.data"
    names = ["mine.data", "m.onnx.data", f"x.onnx.{'1' * 16}.data", "m.onnx.12.data", ours]
    for name in names:
        (out.parent / name).write_text(name)
    (out.parent / link).symlink_to(secret)
    (used,) = [
        e for e in entries(out.parent) if e.startswith("m.onnx.") and e not in (*names, link)
    ]
    listed = [*names, link, used, f"../{secret.name}", str(secret)]
    die(out.parent, json.dumps({"model": "m.onnx", "weights": listed}))
    write(pair[0], out.with_name("other.onnx"))
    left = entries(out.parent)
    assert ours not in left
    assert {*names[:-1], link, used, "m.onnx", "other.onnx"} <= set(left)
    assert not [name for name in left if name.startswith(".")]
    assert secret.read_text() == "secret"
    assert standing(out) == 1


@needs_locks
@pytest.mark.parametrize(
    "journal", ["", "{", "[]", "null", '{"model": 1}', '{"model": "../m", "weights": []}']
)
def test_a_damaged_journal_holds_nothing_up(
    pair: tuple[Path, Path], out: Path, journal: str
) -> None:
    """The folder goes, the run goes on."""
    die(out.parent, journal)
    write(pair[0], out)
    assert len(entries(out.parent)) == 2


def test_a_model_that_cannot_be_read_keeps_its_weights(pair: tuple[Path, Path], out: Path) -> None:
    """Nobody knows which it refers to."""
    weights = out.parent / f"m.onnx.{'1' * 16}.data"
    weights.write_text("w")
    out.write_bytes(b"\xff\xff")
    journal = {"model": "m.onnx", "weights": [weights.name]}
    die(out.parent, json.dumps(journal))
    write(pair[0], out.with_name("other.onnx"))
    assert weights.exists()


def test_the_inputs_own_weights_stay(pair: tuple[Path, Path], out: Path) -> None:
    """A copy of an output refers to the output's weights: they are its input then."""
    write(pair[0], out)
    copy = out.with_name("copy.onnx")
    copy.write_bytes(out.read_bytes())
    (weights,) = [entry for entry in entries(out.parent) if entry.endswith(".data")]
    before = (out.parent / weights).read_bytes()
    loaded = load(copy)
    staging = stage(loaded.model, loaded.folder, out, keep=[copy, out.parent / weights])
    with pytest.raises(SaveError, match="never overwritten"):
        staging.__enter__()
    loaded = load(pair[1])
    with stage(loaded.model, loaded.folder, out, keep=[copy, out.parent / weights]) as staged:
        staged.publish()
    assert standing(out) == 2
    assert (out.parent / weights).read_bytes() == before
    assert standing(copy) == 1


def test_shared_weights_are_nobodys_to_remove(pair: tuple[Path, Path]) -> None:
    """An output with weights of its own becomes one that shares the original's, and back."""
    out = pair[0].with_name("m.onnx")
    before = {file: file.read_bytes() for file in pair[0].parent.iterdir()}
    for share in (False, True, False, True):
        rewrite(pair[0], out, verify=False, force=True, share_weights=share)
        assert len(entries(out.parent)) == len(before) + (1 if share else 2)
        assert {file: file.read_bytes() for file in before} == before
        onnx.load(out)


@pytest.mark.parametrize("name", ["journal.json", "begun", "files"])
def test_shared_weights_may_be_called_anything(tmp_path: Path, name: str) -> None:
    """Those of the staging folder's own files among it: nothing is written through a link."""
    saved = copy_of(chain(2))
    onnx.save(
        saved, tmp_path / "in.onnx", save_as_external_data=True, location=name, size_threshold=0
    )
    before = (tmp_path / name).read_bytes()
    rewrite(tmp_path / "in.onnx", tmp_path / "out.onnx", verify=False, share_weights=True)
    assert (tmp_path / name).read_bytes() == before
    onnx.load(tmp_path / "out.onnx")


@pytest.mark.parametrize("force", [False, True])
def test_a_link_to_nothing_is_asked_about(tmp_path: Path, force: bool) -> None:
    """-o on a dangling link: with force the link is replaced, what it leads to is not made."""
    onnx.save(chain(2), tmp_path / "in.onnx")
    out, missing = tmp_path / "out.onnx", tmp_path / "elsewhere.onnx"
    out.symlink_to(missing)
    if not force:
        with pytest.raises(SaveError, match=r"link to a file that is missing.*force=True"):
            rewrite(tmp_path / "in.onnx", out, verify=False)
        assert out.is_symlink()
    else:
        rewrite(tmp_path / "in.onnx", out, verify=False, force=True)
        assert not out.is_symlink()
    assert not missing.exists()


class TestScratch:
    """Folders of runs that have ended."""

    @needs_locks
    def test_the_next_run_removes_them(self, tmp_path: Path) -> None:
        """With all that is in them; others' folders, and what holds no lock file, stay."""
        for name in ("a-1", "b-1", "a-2"):
            (tmp_path / name / "deep").mkdir(parents=True)
            (tmp_path / name / "deep" / "file").touch()
        for name in ("a-1", "b-1", "a-3"):
            (tmp_path / f"{name}.lock").touch()
        with scratch_folder(tmp_path, "a-") as folder:
            assert folder.is_dir()
            assert entries(tmp_path) == sorted(
                ["a-2", "b-1", "b-1.lock", folder.name, f"{folder.name}.lock"]
            )
            with scratch_folder(tmp_path, "a-") as other:
                assert folder.is_dir()
                assert other != folder
        assert entries(tmp_path) == ["a-2", "b-1", "b-1.lock"]

    @needs_locks
    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        """Neither as a lock nor as a folder."""
        (tmp_path / "keep").mkdir()
        (tmp_path / "keep" / "file").touch()
        (tmp_path / "a-1").symlink_to(tmp_path / "keep")
        (tmp_path / "a-1.lock").touch()
        (tmp_path / "a-2.lock").symlink_to(tmp_path / "keep" / "file")
        with scratch_folder(tmp_path, "a-"):
            pass
        assert (tmp_path / "keep" / "file").exists()

    def test_temporary_ones_are_gone_afterwards(self) -> None:
        """And nobody else reads them meanwhile."""
        with temporary_folder() as folder:
            (folder / "file").write_text("x")
            assert folder.stat().st_mode & 0o077 == 0 or sys.platform == "win32"
        assert not folder.exists()
        assert not folder.with_name(f"{folder.name}.lock").exists()

    @needs_fork
    def test_a_killed_runs_temporary_files_go_with_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Inputs of a verification, for instance, which can be large."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            with temporary_folder() as folder:
                (folder / "inputs.npz").write_bytes(bytes(1000))
                os.write(told, b"x")
                time.sleep(600)
        os.read(ready, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
        assert len(entries(tmp_path)) == 2
        with temporary_folder() as folder:
            assert entries(tmp_path) == sorted([folder.name, f"{folder.name}.lock"])
        assert entries(tmp_path) == []

    @needs_locks
    def test_repositories_of_one_name_share_a_staging_folder(self, tmp_path: Path) -> None:
        """Two repositories called alike, the same --staging: neither takes the other for dead."""
        for name in ("a", "b", "staging"):
            (tmp_path / name).mkdir()
        with stage_version(tmp_path / "a" / "r", "m", staging=tmp_path / "staging") as first:
            (first.folder / "model.onnx").write_text("first")
            with stage_version(tmp_path / "b" / "r", "m", staging=tmp_path / "staging") as second:
                (second.folder / "model.onnx").write_bytes(noise(4).tobytes())
                second.publish()
            first.publish()
        assert (tmp_path / "a" / "r" / "m" / "1" / "model.onnx").read_text() == "first"
        assert entries(tmp_path / "staging") == []
