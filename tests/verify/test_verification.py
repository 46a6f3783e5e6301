"""Verification: where it looks, at which sizes, when it happens, and what it lets pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnx
import pytest

from patchconv_deploy import rewrite
from patchconv_deploy.cli.main import main_rewrite
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from tests.support.small_models import chain, copy_of, cut, model, node, noise, run


def _begins(rewritten: onnx.ModelProto, rows: int) -> list[int]:
    """Return the rows at which cores begin, as ONNX Runtime works them out."""
    made = copy_of(rewritten)
    makers = {name: each for each in made.graph.node for name in each.output}
    # The rows are put together, and a Reshape behind states how many there are.
    join = makers["y"] if makers["y"].op_type == "Concat" else makers[makers["y"].input[0]]
    assert join.op_type == "Concat"
    del made.graph.output[:]
    made.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (None,) * 4)
        for name in join.input
    )
    cores = run(made, {"x": noise(1, 2, rows, 10)})
    return list(accumulate(core.shape[2] for core in cores.values()))[:-1]


@pytest.mark.parametrize("rows", [101, 64, 33, 20])
@pytest.mark.parametrize("splits", [2, 4, 7])
def test_seams_of_a_free_height_are_where_the_cores_meet(rows: int, splits: int) -> None:
    """A region in the form it was cut in says where its patches meet, at any height."""
    made = chain(4, ("n", 2, "h", 10))
    outcome = cut(made, "fused", splits=splits)
    (region,) = outcome.rewritten
    assert region.rows is None
    slim = skeleton(Loaded(made, None))
    fix_shapes(slim, {"x": (1, 2, rows, 10)})
    found = region.seams_at(infer(slim))
    assert found is not None
    begins = sorted({begin for begin in _begins(outcome.model, rows) if 0 < begin < rows})
    assert found == (rows, tuple(begins))


def test_rows_next_to_the_seams_of_a_region_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared apart are the rows where the fused patches meet, not others."""
    from patchconv_deploy.verify import cases, pairs

    jobs = []
    run_pair = pairs._run_pair

    def spy(*given: object) -> object:
        jobs.append(given[3])
        return run_pair(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs, "_run_pair", spy)
    monkeypatch.setattr(cases, "_SPATIAL", (101,))
    file = tmp_path / "free.onnx"
    onnx.save(chain(4, ("n", 2, "h", 10)), file)
    assert rewrite(file, form="fused", min_elements=0).report.verification["passed"]
    assert jobs[0]["seams"] == [{"axis": 2, "rows": 101, "at": [27, 50, 73]}]  # type: ignore[index]


def _free(tmp_path: Path) -> Path:
    file = tmp_path / "free.onnx"
    onnx.save(chain(2, ("n", 2, "h", 10)), file)
    return file


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs ``patchconv-rewrite`` and gives exit code, standard output and error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["patchconv-rewrite", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main_rewrite()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call


def test_the_last_line_says_at_which_sizes_it_was_verified(
    tmp_path: Path, command: Command
) -> None:
    """Where the file is, and what it was run on; warnings stand before it."""
    code, out, err = command(str(_free(tmp_path)), "--min-elements", "0")
    assert code == 0
    assert "warning: predictions and selection assume" in err
    sizes = "x 1x2x64x10; x 1x2x65x10; x 1x2x1x10; x 1x2x512x10"
    assert f"{sizes}): equal" in " ".join(out.split())
    last = " ".join(out.split()).split("Written: ")[-1]
    assert last.endswith(f"free.patched.onnx, verified at {sizes}")


@pytest.mark.parametrize("missing", [True, False])
def test_what_could_not_be_verified_is_the_last_warning_or_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, missing: bool
) -> None:
    """No runtime, or no room: a warning at the end; where it is required, exit code 1, no file."""
    from patchconv_deploy.verify import verification

    if missing:
        monkeypatch.setattr(verification, "installed", lambda: False)
    else:
        monkeypatch.setattr(verification, "_does_not_fit", lambda *given: "no room")
    file, out, report = _free(tmp_path), tmp_path / "out.onnx", tmp_path / "report.json"
    arguments = [str(file), "-o", str(out), "--min-elements", "0", "--report", str(report)]
    code, _, err = command(*arguments, "--require-verified")
    assert code == 1
    assert err.startswith("error:")
    assert "not verified" in err
    assert len(err.splitlines()) == 1
    assert not out.exists()
    assert json.loads(report.read_text())["output"] is None
    code, _, err = command(*arguments)
    assert code == 0
    assert err.splitlines()[-1].startswith("warning: not verified: ")
    assert out.exists()


def test_what_is_required_to_be_verified_has_to_be_asked_for(
    tmp_path: Path, command: Command
) -> None:
    """Without verification, or as a dry run, there is nothing to require."""
    file = _free(tmp_path)
    for option in ("--no-verify", "--dry-run"):
        assert command(str(file), "--require-verified", option)[0] == 2
    passed = rewrite(file, min_elements=0, require_verified=True)
    assert passed.path is not None
    same = rewrite(file, tmp_path / "same.onnx", exclude=["*"], require_verified=True)
    assert same.path is not None


def test_sizes_inside_the_ranges_are_verified(tmp_path: Path) -> None:
    """Channels last: rows and columns are where the ranges say, and no smaller than they say."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "c", name="conv"),
        node("Transpose", "c", "y", perm=[0, 2, 3, 1]),
    ]
    made = model(
        nodes,
        {"x": ("n", "h", "w", 3)},
        {"y": (None, None, None, 4)},
        {"w": noise(4, 3, 5, 5)},
    )
    file = tmp_path / "last.onnx"
    onnx.save(made, file)
    given = {"x": (1, (80, 480), (72, 640), 3)}
    found = rewrite(file, shapes=given, min_elements=0, force=True).report.verification
    assert found["passed"]
    assert found["shapes"]["x"] == (1, 80, 72, 3)
    free = rewrite(file, min_elements=0, force=True).report.verification
    assert free["passed"]
    assert free["shapes"]["x"] == (1, 64, 64, 3)


def test_other_sizes_are_tried_where_the_original_does_not_run(tmp_path: Path) -> None:
    """A head that takes 224 rows alone: found, and said."""
    made = model(
        [
            node("Conv", "x w", "c", name="conv", pads=[1] * 4),
            node("Reshape", "c shape", "f", name="flat"),
            node("MatMul", "f m", "y", name="head"),
        ],
        {"x": (1, 2, "h", "h")},
        {"y": (None, None)},
        {
            "w": noise(1, 2, 3, 3),
            "shape": np.array([1, -1], np.int64),
            "m": noise(224 * 224, 2) / 224,
        },
    )
    file = tmp_path / "head.onnx"
    onnx.save(made, file)
    found = rewrite(file, min_elements=0, require_verified=True).report.verification
    assert found["passed"]
    assert found["shapes"]["x"] == (1, 2, 224, 224)
