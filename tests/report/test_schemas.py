"""The JSON Schemas in the package, held against what is written."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from jsonschema import Draft202012Validator, ValidationError

import patchconv_deploy
from patchconv_deploy import UsageError, VerificationError, rewrite, schema
from patchconv_deploy.engines.measurement import Measurement
from patchconv_deploy.engines.ort.measure import measure
from patchconv_deploy.measure import tuning
from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.schemas import SCHEMAS
from tests.support.commands import run_command
from tests.support.small_models import chain, file_names, model, node, noise, super_resolution


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas in it that list properties."""
    if isinstance(part, dict):
        if isinstance(part.get("properties"), dict):
            yield part
        for each in part.values():
            yield from _parts(each)


def _strict(name: str) -> Draft202012Validator:
    """Return a validator that knows of no key but those that are listed."""
    found = copy.deepcopy(schema(name))
    for part in _parts(found):
        part["additionalProperties"] = False
    # What a row of measurements holds is another table's.
    if name == "report":
        del found["properties"]["measured"]["items"]["additionalProperties"]
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


def _assert_valid(report: dict[str, Any], plan: Any = None) -> None:
    """Hold a report and a plan, as they are written, against the schemas."""
    _strict("report").validate(json.loads(json.dumps(report)))
    if plan is not None:
        _strict("plan").validate(json.loads(json.dumps(plan)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_whole(name: str) -> None:
    """Schemas of draft 2020-12; each key that is required is described, and all but a few are."""
    found = schema(name)
    Draft202012Validator.check_schema(found)
    for part in _parts(found):
        assert set(part["required"]) <= set(part["properties"])
    assert found["properties"]["version"] == {"const": 2 if name == "plan" else 1}


def test_words_are_those_of_the_program() -> None:
    """Forms and targets that are added are added to the schemas."""
    options = schema("report")["properties"]["options"]["properties"]
    assert options["form"]["enum"] == ["auto", *FORMS]
    assert options["target"]["enum"] == list(TARGETS)
    plan = schema("plan")["properties"]
    assert plan["regions"]["items"]["properties"]["form"]["enum"] == list(FORMS)
    assert plan["target"]["enum"] == list(TARGETS)


def test_a_name_that_is_none_is_refused() -> None:
    """No path leaves the package by it."""
    with pytest.raises(UsageError, match="there are plan and report"):
        schema("../../setup")
    assert "schema" in patchconv_deploy.__all__


@pytest.mark.usefixtures("less_weighed")
@pytest.mark.parametrize(
    "options",
    [
        {"splits": 4},
        {"splits": 3, "form": "batch", "min_elements": 0},
        {"splits": 3, "form": "sequential", "include": ("*",)},
        {"memory_budget": 3 << 19, "max_recompute": 1.5},
        {"memory_budget": 1 << 30},
        {"max_buffer": 1 << 19},
        {"target": "tensorrt", "splits": 4, "axis": "width"},
        {"target": "triton", "splits": 4, "verify": False},
        {"exclude": ("*",)},
        {"dry_run": True, "splits": 4},
        {"splits": 4, "rtol": 0.0, "atol": 0.0},
    ],
)
@pytest.mark.parametrize("kind", ["chain", "normalises"])
def test_reports_and_plans_are_as_the_schemas_say(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Cut or not, verified or not, of every form; no key is left out of the schema."""
    path = tmp_path / "model.onnx"
    made = chain(4, (1, 2, 256, 64)) if kind == "chain" else _normalises(256)
    onnx.save(made, path)
    try:
        result = rewrite(path, **options)
        report, plan = result.report.data, result.outcome.plan
    except VerificationError as error:
        report, plan = error.report.data, None
    _assert_valid(report, plan)


@pytest.mark.usefixtures("less_weighed")
def test_the_report_of_free_sizes_and_of_a_plan_that_is_applied(tmp_path: Path) -> None:
    """Rows of patches stand in both; the plan reads back."""
    path = tmp_path / "model.onnx"
    onnx.save(_normalises(None), path)
    shapes = {"x": (1, 8, (64, 512), 64)}
    result = rewrite(path, shapes=shapes, patch_rows=32)
    assert result.report.rewritten[0]["patch_rows"] == 32
    _assert_valid(result.report.data, result.outcome.plan)
    plan = read_plan(json.dumps(result.outcome.plan))
    again = rewrite(path, tmp_path / "again.onnx", shapes=shapes, plan=plan)
    _assert_valid(again.report.data, again.outcome.plan)
    unknown = rewrite(path, tmp_path / "unknown.onnx", form="batch", min_elements=0, force=True)
    _assert_valid(unknown.report.data, unknown.outcome.plan)


@pytest.mark.usefixtures("less_weighed")
def test_the_files_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--report` and `--plan-out` write them, measured."""

    def once(*jobs: Any, **how: Any) -> list[Measurement]:
        return measure(*jobs, **{**how, "processes": 1, "runs": 1})

    monkeypatch.setattr(tuning, "measure", once)
    path = tmp_path / "model.onnx"
    onnx.save(super_resolution(16), path)
    files = [tmp_path / "report.json", tmp_path / "plan.json"]
    words = ["--measure", "--report", str(files[0]), "--plan-out", str(files[1])]
    done = run_command("rewrite", path, *words)
    assert done.returncode == 0, done.stderr
    report, plan = (json.loads(file.read_text()) for file in files)
    assert report["measured"]
    assert report["recommended_session_options"]["kind"] == "measured"
    _assert_valid(report, plan)
    assert set(file_names(tmp_path)) >= {"report.json", "plan.json"}


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    """A key that is missing, of another type, or of another name; so the tests above can fail."""
    path = tmp_path / "model.onnx"
    onnx.save(chain(4, (1, 2, 256, 64)), path)
    result = rewrite(path, splits=4, dry_run=True).report.data
    changes: tuple[Callable[[dict[str, Any]], object], ...] = (
        lambda data: data.pop("choice"),
        lambda data: data.update(version=2),
        lambda data: data["rewritten"][0].update(splits="4"),
        lambda data: data["verification"].update(unknown=1),
    )
    for change in changes:
        data = json.loads(json.dumps(result))
        change(data)
        with pytest.raises(ValidationError):
            _strict("report").validate(data)


def _normalises(rows: int | None) -> onnx.ModelProto:
    """Return Conv, InstanceNormalization, Relu, Conv."""
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("InstanceNormalization", "a s b", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r v", "y", pads=[1] * 4),
    ]
    weights = {
        "w": noise(16, 8, 3, 3),
        "v": noise(8, 16, 3, 3, seed=1),
        "s": noise(16, seed=2),
        "b": noise(16, seed=3),
    }
    return model(nodes, {"x": (1, 8, rows, 64)}, {"y": (None,) * 4}, weights)
