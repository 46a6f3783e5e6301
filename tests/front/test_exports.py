"""What `patchconv_deploy` hands out: every error, its version; and what it writes once."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import onnx
import pytest

import patchconv_deploy
import patchconv_deploy.engines.errors
import patchconv_deploy.errors
import patchconv_deploy.rewriters.errors
from patchconv_deploy import rewrite
from patchconv_deploy.measure.session_options import recommend
from patchconv_deploy.rewriters.outcome import SESSION_OPTIONS_KEY as METADATA_KEY
from tests.support.small_models import chain, session

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "tree",
    [patchconv_deploy.rewriters.errors, patchconv_deploy.errors, patchconv_deploy.engines.errors],
)
def test_every_error_is_exported_and_drawn(tree: ModuleType) -> None:
    """Who catches an error finds its class in the package, and its place in the tree."""
    exported = {getattr(patchconv_deploy, name) for name in patchconv_deploy.__all__}
    found = {
        each
        for each in vars(tree).values()
        if isinstance(each, type)
        and issubclass(each, Exception)
        and each.__module__ == tree.__name__
    }
    assert found <= exported
    for each in found:
        assert each.__name__ in str(tree.__doc__)
        assert each.__name__ in tree.__all__


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    """Installed or from a checkout that nobody installed."""
    assert patchconv_deploy.__version__ == version("patchconv-deploy")
    hidden = (
        "import importlib.metadata as m\n"
        "def version(name): raise m.PackageNotFoundError(name)\n"
        "m.version = version\n"
        "from patchconv_deploy.version import VERSION\n"
        "print(VERSION)"
    )
    said = subprocess.run(
        [sys.executable, "-c", hidden],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    ).stdout
    assert said.strip() == patchconv_deploy.__version__


def test_a_model_that_recommends_options_already_is_rewritten(tmp_path: Path) -> None:
    """The entry is replaced: ONNX Runtime refuses a model that has a key twice."""
    made = chain(3, (1, 2, 128, 64))
    made.metadata_props.add(key=METADATA_KEY, value='{"enable_mem_pattern": true}')
    made.metadata_props.add(key="kept", value="as it is")
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    result = rewrite(path, splits=2, verify=False)
    assert result.path is not None
    assert result.report.rewritten
    written = onnx.load(result.path)
    keys = [entry.key for entry in written.metadata_props]
    assert sorted(keys) == sorted({*keys, "kept", METADATA_KEY})
    session(written)
    recommend(written, {"enable_mem_reuse": True})
    assert [e.value for e in written.metadata_props if e.key == METADATA_KEY] == [
        '{"enable_mem_reuse":true}'
    ]
