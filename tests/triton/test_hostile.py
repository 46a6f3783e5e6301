"""A repository is not trusted: nothing outside it is opened, and one bad model is one finding."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from patchconv_deploy import check_triton_repository, write_triton_repository
from patchconv_deploy.engines.ort.signature import runtime
from patchconv_deploy.triton.schema import read_config, schema, to_text
from patchconv_deploy.triton.validate import check
from patchconv_deploy.triton.validate import model as validate_model
from patchconv_deploy.triton.validate.check import check_model
from patchconv_deploy.triton.validate.finding import Finding
from tests.support.small_models import chain

Change = Callable[[Path, Any, Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sound models, and beside the repository a model that is not part of it."""
    folder = tmp_path_factory.mktemp("sound")
    onnx.save(chain(1), folder / "m.onnx")
    (folder / "outside").mkdir()
    onnx.save(chain(1), folder / "outside" / "secret.onnx")
    for name in ("a", "b", "c"):
        write_triton_repository(folder / "m.onnx", folder / "repository", name=name)
    return folder


@pytest.fixture
def repository(sound: Path, tmp_path: Path) -> Path:
    """A copy of the three sound models and of what is beside them, to be changed."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    return tmp_path / "repository"


def _absolute(folder: Path, config: Any, outside: Path) -> None:
    config.default_model_filename = str(outside)


def _upwards(folder: Path, config: Any, outside: Path) -> None:
    config.default_model_filename = "../../../outside/secret.onnx"


def _link(folder: Path, config: Any, outside: Path) -> None:
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").symlink_to(outside)


def _linked_version(folder: Path, config: Any, outside: Path) -> None:
    (folder / "1" / "model.onnx").unlink()
    (folder / "1").rmdir()
    (folder / "1").symlink_to(outside.parent)
    config.default_model_filename = "secret.onnx"


def _folder_with_a_link(folder: Path, config: Any, outside: Path) -> None:
    config.default_model_filename = "inner"
    (folder / "1" / "inner").mkdir()
    (folder / "1" / "inner" / "model.onnx").symlink_to(outside)


def _circle(folder: Path, config: Any, outside: Path) -> None:
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").symlink_to("model.onnx")


def _control(folder: Path, config: Any, outside: Path) -> None:
    config.default_model_filename = "model\x1b[2J.onnx"


def _capability(folder: Path, config: Any, outside: Path) -> None:
    config.cc_model_filenames["8.0"] = str(outside)


def _other_backend(folder: Path, config: Any, outside: Path) -> None:
    config.platform, config.backend = "", "python"
    config.default_model_filename = str(outside)


def _labels(folder: Path, config: Any, outside: Path) -> None:
    config.output[0].label_filename = str(outside)


def _labels_upwards(folder: Path, config: Any, outside: Path) -> None:
    config.output[0].label_filename = "../../outside/secret.onnx"


def _warmup(folder: Path, config: Any, outside: Path) -> None:
    sample = config.model_warmup.add(name="s", batch_size=1)
    made = sample.inputs["x"]
    made.data_type, made.input_data_file = schema().TYPE_FP32, "../../../outside/secret.onnx"
    made.dims.extend([1, 2, 16, 10])


def _state(folder: Path, config: Any, outside: Path) -> None:
    state = config.sequence_batching.state.add(input_name="x", output_name="y")
    state.initial_state.add(name="s", data_file=str(outside))


def _linked_config(folder: Path, config: Any, outside: Path) -> None:
    (outside.parent / "config.pbtxt").write_text(to_text(config))
    (folder / "config.pbtxt").unlink()
    (folder / "config.pbtxt").symlink_to(outside.parent / "config.pbtxt")


def _linked_model(folder: Path, config: Any, outside: Path) -> None:
    folder.rename(outside.parent / "b")
    folder.symlink_to(outside.parent / "b")


def _large_config(folder: Path, config: Any, outside: Path) -> None:
    (folder / "config.pbtxt").write_text("#" + " " * (2 << 20))


HOSTILE: dict[Change, str] = {
    _absolute: "is an absolute path and was not opened",
    _upwards: "leads out of its folder and was not opened",
    _link: "is a link out of the repository and was not opened",
    _linked_version: "is a link out of the repository and was not opened",
    _folder_with_a_link: "is a link out of the repository and was not opened",
    _circle: "is a link out of the repository and was not opened",
    _control: r"'model\x1b[2J.onnx' holds control characters and was not opened",
    _capability: "is an absolute path and was not opened",
    _other_backend: "is an absolute path and was not opened",
    _labels: "label_filename",
    _labels_upwards: "leads out of its folder and was not opened",
    _warmup: "input_data_file '../../../outside/secret.onnx' leads out of its folder",
    _state: "data_file",
    _linked_config: "is a link out of the repository and was not opened",
    _linked_model: "it is a link out of the repository and was not opened",
    _large_config: "is larger than 1024 KiB, so it was not read",
}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__.strip("_"))
def test_what_leads_out_is_refused_and_never_opened(
    repository: Path, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding names it; no model and no configuration is read beyond the repository."""
    folder, outside = repository / "b", repository.parent / "outside" / "secret.onnx"
    config = read_config(folder / "config.pbtxt")
    before = to_text(config)
    change(folder, config, outside)
    if to_text(config) != before:
        (folder / "config.pbtxt").write_text(to_text(config))
    opened: list[Path] = []
    for module, name in ((check, "read_config"), (validate_model, "read_signature")):
        real = getattr(module, name)

        def note(path: Path, *rest: Any, real: Any = real) -> Any:
            opened.append(path.resolve())
            return real(path, *rest)

        monkeypatch.setattr(module, name, note)
    with runtime() as opener:
        found = check_model(folder, opener)
    assert any(HOSTILE[change] in finding.reason for finding in found), found
    assert all(path.is_relative_to(repository.resolve()) for path in opened)


def test_a_link_within_the_repository_is_followed(repository: Path) -> None:
    """Models may share a file."""
    (repository / "b" / "1" / "model.onnx").unlink()
    (repository / "b" / "1" / "model.onnx").symlink_to("../../a/1/model.onnx")
    assert check_triton_repository(repository) == []


def _check(repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "patchconv_deploy", "triton", "--check", str(repository)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_one_bad_model_does_not_end_the_check_of_others(repository: Path) -> None:
    """A folder name that is no text and a configuration nested too deep are findings."""
    (repository / "a" / "config.pbtxt").write_text("parameters { " * 5000)
    file = repository / "c" / "config.pbtxt"
    file.write_text(file.read_text().replace("TYPE_FP32", "TYPE_FP64"))
    bad = repository / "b\x1b[31m\nb"
    bad.mkdir()
    done = _check(repository)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "4 models, 3 refused"
    assert r"b\x1b[31m\nb" in done.stdout
    assert "\x1b" not in done.stdout
    assert any("c/config.pbtxt: 1/model.onnx: input 'x' is TYPE_FP64" in line for line in lines)


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGABRT)", "raise KeyError('x')"])
def test_a_check_that_dies_is_a_finding_of_that_model(
    repository: Path, tmp_path: Path, how: str
) -> None:
    """Whatever a native library does to the process, or code raises: the others are checked."""
    # Taken up by every Python that starts with this folder on its path, the checking process too.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'patchconv_deploy.triton.validate.child' in sys.orig_argv:\n"
        "    import patchconv_deploy.triton.validate.check as validate\n"
        "    real = validate.check_model\n"
        "    def dies(model, *rest, **options):\n"
        f"        if model.name == 'b': {how}\n"
        "        return real(model, *rest, **options)\n"
        "    validate.check_model = dies\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    file = repository / "c" / "config.pbtxt"
    file.write_text(file.read_text().replace("TYPE_FP32", "TYPE_FP64"))
    done = _check(repository, PYTHONPATH=path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    says = "SIGABRT" if "kill" in how else "KeyError"
    (line,) = [line for line in done.stdout.splitlines() if "it could not be checked" in line]
    assert line.startswith("refused: b: ")
    assert says in line
    assert "c/config.pbtxt: 1/model.onnx: input 'x' is TYPE_FP64" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 models, 2 refused"


def test_a_finding_is_one_line() -> None:
    """Its parts may come from a hostile file."""
    text = str(Finding("m", "m\n/config.pbtxt", "bad \x1b[2J\u202e"))
    assert text == r"m\n/config.pbtxt: bad \x1b[2J\u202e"
