"""Publishing: whole or not at all, names and versions that stay inside, killed at any point."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from patchconv_deploy import UsageError, write_triton_repository
from patchconv_deploy.triton.publish import stage_version, versions
from tests.support.small_models import chain, noise

ROOT = Path(__file__).resolve().parents[2]
PUBLISHER = ROOT / "tests/support/publisher.py"


def _publish(repository: Path, text: str, **options: Any) -> int:
    with stage_version(repository, "m", **options) as staged:
        (staged.folder / "model.onnx").write_text(text)
        config = staged.model / "config.pbtxt"
        config.unlink(missing_ok=True)
        config.write_text(f"of {text}")
        staged.publish()
        return staged.version


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_versions_follow_each_other(tmp_path: Path) -> None:
    """The next free version by default; what stands is not touched."""
    repository = tmp_path / "repository"
    assert _publish(repository, "a") == 1
    assert _publish(repository, "b", version=7) == 7
    assert _publish(repository, "c") == 8
    assert versions(repository / "m") == [1, 7, 8]
    assert _tree(repository)["m/1/model.onnx"] == b"a"
    assert [entry.name for entry in tmp_path.iterdir()] == ["repository"]


def test_an_existing_version_needs_force(tmp_path: Path) -> None:
    """Without it nothing changes; with it the whole version is another."""
    repository = tmp_path / "repository"
    _publish(repository, "a")
    (repository / "m" / "1" / "left.txt").write_text("from before")
    before = _tree(tmp_path)
    with pytest.raises(UsageError, match="this version exists; leave version= out"):
        _publish(repository, "b", version=1)
    assert _tree(tmp_path) == before
    _publish(repository, "b", version=1, force=True)
    assert _tree(repository) == {"m/1/model.onnx": b"b", "m/config.pbtxt": b"of b"}


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../m", "a/b", "/tmp/m", "a b", ".m", "a\\b", "a\n", "\u00fc", "x" * 129],
)
def test_names_cannot_escape(tmp_path: Path, name: str) -> None:
    """No folder is made for them, not even the repository."""
    with pytest.raises(UsageError, match="model name"), stage_version(tmp_path / "r", name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_models_place_is_refused(tmp_path: Path) -> None:
    """It could lead anywhere."""
    (tmp_path / "r").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "r" / "m").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="no folder; move it away"):
        _publish(tmp_path / "r", "a")


def test_staging_must_be_on_the_same_file_system(tmp_path: Path) -> None:
    """A rename across two is no single step."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system here")
    with pytest.raises(UsageError, match="name a folder on the same one with staging="):
        _publish(tmp_path / "r", "a", staging=shared)
    with pytest.raises(UsageError, match="name one outside"):
        _publish(tmp_path / "r", "a", staging=tmp_path / "r")
    (tmp_path / "other").mkdir()
    assert _publish(tmp_path / "r", "a", staging=tmp_path / "other") == 1


def test_a_failure_leaves_what_stood(tmp_path: Path) -> None:
    """Whatever goes wrong before the last step."""
    repository = tmp_path / "repository"
    _publish(repository, "a")
    before = _tree(tmp_path)

    def fail() -> None:
        with stage_version(repository, "m") as staged:
            (staged.folder / "model.onnx").write_text("b")
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert _tree(tmp_path) == before


def test_two_publishers_take_turns(tmp_path: Path) -> None:
    """No version is lost, whatever the order."""
    repository = tmp_path / "repository"
    threads = [
        threading.Thread(target=_publish, args=(repository, str(number))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions(repository / "m") == list(range(1, 9))
    texts = {(repository / "m" / str(v) / "model.onnx").read_text() for v in range(1, 9)}
    assert texts == {str(number) for number in range(8)}


def test_labels_and_metadata_are_carried_and_live_files_are_not_written_through(
    tmp_path: Path,
) -> None:
    """The folder that is being served shares its files; a new version must not change them."""
    made = chain(1)
    made.metadata_props.add(key="author", value="m\u00fc")
    onnx.save(made, tmp_path / "m.onnx")
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n")
    repository = tmp_path / "repository"
    first = write_triton_repository(tmp_path / "m.onnx", repository, labels={"y": labels})
    assert first.config.parameters["metadata.author"].string_value == "m\u00fc"
    assert first.config.output[0].label_filename == "labels_0.txt"
    live = (repository / "m" / "labels_0.txt").open()
    labels.write_text("dog\n")
    write_triton_repository(tmp_path / "m.onnx", repository, labels={"y": labels})
    assert live.read() == "cat\n"
    live.close()
    assert (repository / "m" / "labels_0.txt").read_text() == "dog\n"


def test_what_the_user_should_know(tmp_path: Path) -> None:
    """A configuration that was changed by hand is replaced, and an older version is not served."""
    onnx.save(chain(1), tmp_path / "m.onnx")
    repository = tmp_path / "repository"
    for version in (3, None):
        (said,) = write_triton_repository(tmp_path / "m.onnx", repository, version=version).notes
        assert said.startswith("it was not rewritten and is published as it is")
    config = repository / "m" / "config.pbtxt"
    config.write_text(config.read_text() + 'metric_tags { key: "a" value: "b" }\n')
    older = write_triton_repository(tmp_path / "m.onnx", repository, version=1)
    assert older.notes[1:] == (
        "the model's config.pbtxt said something else and was replaced",
        "version 4 stands beside it, is newer, and is the one served",
    )


def test_killed_at_random_points(tmp_path: Path) -> None:
    """Fifty publishers are killed; what is visible is always whole, and publishing goes on.

    Between two kills the visible folder holds the versions 1..n, each one of the two models to the
    byte, and the configuration that was written with version n.
    """
    models = [tmp_path / f"{name}.onnx" for name in "ab"]
    for number, model in enumerate(models):
        model.write_bytes(noise(1 << 22, seed=number).tobytes())
    wanted = {hashlib.sha256(model.read_bytes()).digest() for model in models}
    repository = tmp_path / "place" / "repository"
    repository.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, str(PUBLISHER), str(repository), *map(str, models)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    known: dict[tuple[int, int], bytes] = {}

    def digest(file: Path) -> bytes:
        status = file.stat()
        key = (status.st_ino, status.st_size)
        if key not in known:
            known[key] = hashlib.sha256(file.read_bytes()).digest()
        return known[key]

    def check() -> int:
        standing = versions(repository / "m")
        entries = sorted(entry.name for entry in repository.iterdir())
        assert entries == (["m"] if standing else [])
        assert standing == list(range(1, len(standing) + 1))
        for version in standing:
            assert digest(repository / "m" / str(version) / "model.onnx") in wanted
        if standing:
            text = (repository / "m" / "config.pbtxt").read_text()
            assert text.startswith(f"# {len(standing)} ")
        return len(standing)

    def start() -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    generator = random.Random(0)
    durations, finished = [], 0
    try:
        for _ in range(3):
            begin = time.perf_counter()
            start()
            assert process.stdout.readline() == "ended\n"
            durations.append(time.perf_counter() - begin)
        assert check() == 3
        for _ in range(50):
            before = check()
            child = start()
            time.sleep(generator.uniform(0, min(durations)))
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                finished += 1
            assert process.stdout.readline() == "ended\n"
            assert before <= check() <= before + 1
        assert finished < 25, "most publishers were done before they were killed"
        begin_count = check()
        start()
        assert process.stdout.readline() == "ended\n"
        assert check() == begin_count + 1
        # What the killed ones left behind is gone.
        assert sorted(entry.name for entry in repository.parent.iterdir()) == ["repository"]
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()
