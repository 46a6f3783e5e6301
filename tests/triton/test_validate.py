"""The validator against Triton's real server: it refuses what the server refuses, and no more.

One repository holds a model per case, each an accepted one with one thing changed; one server
loads them all. The two verdicts must agree, and ours must say what to change.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from patchconv_deploy import check_triton_repository, write_triton_repository
from patchconv_deploy.triton.schema import parse_config, schema, to_text
from tests.support.small_models import chain, model, node, value
from tests.support.tiers import slow
from tests.support.triton_server import running, skip_without_server
from tools.serve import ServeError


@dataclass(frozen=True)
class Place:
    """The folder of a case's model and its configuration, to be changed."""

    folder: Path
    config: Any

    @property
    def x(self) -> Any:
        """The first input."""
        return self.config.input[0]

    @property
    def y(self) -> Any:
        """The first output."""
        return self.config.output[0]

    @property
    def onnx(self) -> Path:
        """The model's file."""
        return self.folder / "1" / "model.onnx"


Change = Callable[[Place], None]

# What each case changes, and words our refusal must hold; None: both accept it.
CASES: dict[str, tuple[Change, str | None]] = {}


def case(says: str | None) -> Callable[[Change], Change]:
    """Register a case under its function's name."""

    def add(change: Change) -> Change:
        CASES[change.__name__.strip("_")] = (change, says)
        return change

    return add


@case("the folder is 'other_name'; make them equal")
def _other_name(p: Place) -> None:
    p.config.name = "something"


@case("not a model configuration: 1:")
def _not_a_config(p: Place) -> None:
    (p.folder / "config.pbtxt").write_text("this is no configuration")


@case("no_such_field")
def _unknown_field(p: Place) -> None:
    text = to_text(p.config) + "no_such_field: 1\n"
    (p.folder / "config.pbtxt").write_text(text)


@case("missing; a server without auto-completion needs it")
def _no_config(p: Place) -> None:
    (p.folder / "config.pbtxt").unlink()


@case("set platform to one of")
def _unknown_platform(p: Place) -> None:
    p.config.platform, p.config.backend = "onnx", ""
    p.config.default_model_filename = "weights.bin"


@case("does not go with backend 'onnxruntime'")
def _wrong_pair(p: Place) -> None:
    p.config.platform = "tensorrt_plan"


@case("0 turns batching off")
def _negative_batch(p: Place) -> None:
    p.config.max_batch_size = -1


@case("is above max_batch_size 4")
def _preferred_too_large(p: Place) -> None:
    p.config.dynamic_batching.preferred_batch_size.append(8)


@case("preferred_batch_size 0: must be 1 or more")
def _preferred_zero(p: Place) -> None:
    p.config.dynamic_batching.preferred_batch_size.append(0)


@case("default_priority_level is 0; with priority_levels 2 it must be from 1 to 2")
def _no_default_priority(p: Place) -> None:
    p.config.dynamic_batching.priority_levels = 2


@case("default_priority_level is 3")
def _priority_too_high(p: Place) -> None:
    p.config.dynamic_batching.priority_levels = 2
    p.config.dynamic_batching.default_priority_level = 3


@case("priority_queue_policy for level 5")
def _policy_of_no_level(p: Place) -> None:
    batching = p.config.dynamic_batching
    batching.priority_levels = batching.default_priority_level = 1
    batching.priority_queue_policy[5].max_queue_size = 1


@case("preserve_ordering allows one priority level")
def _ordering_and_priorities(p: Place) -> None:
    batching = p.config.dynamic_batching
    batching.priority_levels, batching.default_priority_level = 2, 1
    batching.preserve_ordering = True


@case("use REJECT")
def _ordering_and_delay(p: Place) -> None:
    batching = p.config.dynamic_batching
    batching.preserve_ordering = True
    batching.default_queue_policy.timeout_action = schema().ModelQueuePolicy.DELAY
    batching.default_queue_policy.default_timeout_microseconds = 5


@case("an input has no name")
def _input_without_name(p: Place) -> None:
    p.x.name = ""


@case("has no data_type; give it")
def _input_without_type(p: Place) -> None:
    p.x.ClearField("data_type")


@case("output 'y' has no data_type")
def _output_without_type(p: Place) -> None:
    p.y.ClearField("data_type")


@case("has no dims; give the sizes")
def _input_without_dims(p: Place) -> None:
    del p.x.dims[:]


@case("has 0 among its dims")
def _dims_of_zero(p: Place) -> None:
    p.x.dims[1] = 0


@case("has -2 among its dims")
def _dims_below_minus_one(p: Place) -> None:
    p.y.dims[1] = -2


@case("do not hold the same number of elements")
def _reshape_of_other_size(p: Place) -> None:
    p.x.reshape.shape.extend([2, 16, 11])


@case("do not hold the same number of elements")
def _reshape_of_other_parts(p: Place) -> None:
    p.x.dims[1] = -1
    p.x.reshape.shape.extend([4, -1, 5])


@case("holds a size that is neither")
def _reshape_of_zero(p: Place) -> None:
    p.x.reshape.shape.extend([2, 0, 10])


@case("an empty reshape needs max_batch_size above 0")
def _empty_reshape_without_batch(p: Place) -> None:
    p.config.max_batch_size = 0
    p.x.dims[:] = [1]
    p.x.reshape.SetInParent()


@case("format NHWC or NCHW needs 3 dims")
def _format_of_two_dims(p: Place) -> None:
    p.x.dims[:] = [2, 160]
    p.x.format = schema().ModelInput.FORMAT_NCHW


@case("is_shape_tensor is for TensorRT alone")
def _shape_tensor(p: Place) -> None:
    p.x.is_shape_tensor = True


@case("is_non_linear_format_io is for TensorRT alone")
def _non_linear(p: Place) -> None:
    p.x.is_non_linear_format_io = True


@case("is KIND_CPU but lists gpus")
def _cpu_with_gpus(p: Place) -> None:
    p.config.instance_group[0].gpus.append(0)


@case("is KIND_MODEL but lists gpus")
def _model_with_gpus(p: Place) -> None:
    p.config.instance_group[0].kind = schema().ModelInstanceGroup.KIND_MODEL
    p.config.instance_group[0].gpus.append(0)


@case("this server has no GPU")
def _gpu_where_none_is(p: Place) -> None:
    p.config.instance_group[0].kind = schema().ModelInstanceGroup.KIND_GPU


@case("profile is for TensorRT alone")
def _profile_of_onnx(p: Place) -> None:
    p.config.instance_group[0].profile.append("0")


@case("needs exactly one source_input")
def _batch_input_of_two(p: Place) -> None:
    made = p.config.batch_input.add(kind=0, data_type=schema().TYPE_FP32)
    made.target_name.append("n")
    made.source_input.extend(["x", "x"])


@case("data_type is not TYPE_INT32 or TYPE_FP32")
def _batch_input_type(p: Place) -> None:
    made = p.config.batch_input.add(kind=0, data_type=schema().TYPE_INT64)
    made.target_name.append("n")
    made.source_input.append("x")


@case("'q' is none of the inputs")
def _batch_input_source(p: Place) -> None:
    made = p.config.batch_input.add(kind=0, data_type=schema().TYPE_FP32)
    made.target_name.append("n")
    made.source_input.append("q")


@case("'z' is none of the outputs")
def _batch_output_target(p: Place) -> None:
    made = p.config.batch_output.add()
    made.target_name.append("z")
    made.source_input.append("x")


@case("a control_input has no name")
def _control_without_name(p: Place) -> None:
    p.config.ClearField("dynamic_batching")
    p.config.sequence_batching.control_input.add()


@case("takes exactly one of int32_false_true")
def _control_without_values(p: Place) -> None:
    p.config.ClearField("dynamic_batching")
    p.config.sequence_batching.control_input.add(name="x").control.add(kind=0)


@case("turn one off")
def _cached_and_decoupled(p: Place) -> None:
    p.config.response_cache.enable = True
    p.config.model_transaction_policy.decoupled = True


@case("names no family")
def _metric_without_family(p: Place) -> None:
    p.config.model_metrics.metric_control.add().histogram_options.buckets.append(1)


@case("num_versions is 0, so nothing is served")
def _latest_of_none(p: Place) -> None:
    p.config.version_policy.latest.num_versions = 0


@case("put its file into a folder named 1")
def _no_version(p: Place) -> None:
    shutil.rmtree(p.folder / "1")


@case("'01': a version is a number without leading zeros")
def _leading_zero(p: Place) -> None:
    (p.folder / "1").rename(p.folder / "01")


@case("'v1': a version is a number")
def _version_with_letter(p: Place) -> None:
    (p.folder / "1").rename(p.folder / "v1")


@case("begins like a version and is none")
def _version_and_word(p: Place) -> None:
    (p.folder / "1").rename(p.folder / "2_old")


@case("version_policy asks for [7]")
def _absent_version(p: Place) -> None:
    p.config.version_policy.specific.versions.append(7)


@case("has no file 'model.onnx'")
def _no_file(p: Place) -> None:
    p.onnx.unlink()


@case("has no file 'net.onnx'")
def _other_file_name(p: Place) -> None:
    p.config.default_model_filename = "net.onnx"


@case("ONNX")
def _empty_file(p: Place) -> None:
    p.onnx.write_bytes(b"")


@case("truncated")
def _truncated(p: Place) -> None:
    p.onnx.write_bytes(p.onnx.read_bytes()[:-40])


@case("put it back")
def _lost_weights(p: Place) -> None:
    onnx.save(onnx.load(p.onnx), p.onnx, save_as_external_data=True, location="w", size_threshold=0)
    (p.onnx.parent / "w").unlink()


@case("is not in the model's folder; put it there")
def _no_labels(p: Place) -> None:
    p.y.label_filename = "labels.txt"


@case("version 9")
def _newest_version_is_empty(p: Place) -> None:
    (p.folder / "9").mkdir()


@case("input 'pixels' is not in the model; its inputs are 'x'")
def _wrong_input(p: Place) -> None:
    p.x.name = "pixels"


@case("output 'heat' is not in the model; its outputs are 'y'")
def _wrong_output(p: Place) -> None:
    p.y.name = "heat"


@case("the model also takes 'x'")
def _no_input(p: Place) -> None:
    del p.config.input[:]


@case("input 'x' is listed twice; list it once")
def _input_twice(p: Place) -> None:
    p.config.input.add().CopyFrom(p.x)


@case(None)
def _output_twice(p: Place) -> None:
    p.config.output.add().CopyFrom(p.y)


@case("take it out of input")
def _one_input_too_many(p: Place) -> None:
    extra = p.config.input.add()
    extra.CopyFrom(p.x)
    extra.name = "more"


@case("is TYPE_FP16, in the model TYPE_FP32")
def _wrong_type(p: Place) -> None:
    p.x.data_type = schema().TYPE_FP16


@case("is TYPE_INT64, in the model TYPE_FP32")
def _wrong_output_type(p: Place) -> None:
    p.y.data_type = schema().TYPE_INT64


@case("set dims: [2, 16, 10]")
def _rank_too_small(p: Place) -> None:
    p.x.dims[:] = [2, 16]


@case("set dims: [2, 16, 10]")
def _batch_in_dims(p: Place) -> None:
    p.x.dims[:] = [-1, 2, 16, 10]


@case("set dims: [2, 16, 10]")
def _other_channels(p: Place) -> None:
    p.x.dims[0] = 3


@case("set dims: [2, 16, 10]")
def _free_input_size(p: Place) -> None:
    p.x.dims[1] = -1


@case("set dims: [2, 16, 10]")
def _free_output_size(p: Place) -> None:
    p.y.dims[1] = -1


@case("the first dimension of the model's shape [1, 2, 16, 10] is fixed")
def _batching_a_fixed_batch(p: Place) -> None:
    onnx.save(chain(2), p.onnx)


@case("set dims: [-1, 2, 16, 10]")
def _no_batching_but_dims_without(p: Place) -> None:
    p.config.max_batch_size = 0
    p.config.ClearField("dynamic_batching")


@case("is a scalar in the model; its dims must be [ 1 ]")
def _scalar_of_two(p: Place) -> None:
    _make_scalar(p)
    p.y.dims[:] = [2]


@case("optional inputs need max_batch_size 0")
def _optional_and_batching(p: Place) -> None:
    extra = p.config.input.add()
    extra.CopyFrom(p.x)
    extra.name, extra.optional = "more", True


@case("parameter enable_mem_arena is 'maybe'; use 0 or 1")
def _arena_parameter(p: Place) -> None:
    p.config.parameters["enable_mem_arena"].string_value = "maybe"


@case("parameter intra_op_thread_count is 'all'")
def _threads_parameter(p: Place) -> None:
    p.config.parameters["intra_op_thread_count"].string_value = "all"


@case("use 0 (sequential) or 1 (parallel)")
def _mode_parameter(p: Place) -> None:
    p.config.parameters["execution_mode"].string_value = "2"


@case("no data for input 'x'")
def _warmup_without_input(p: Place) -> None:
    p.config.model_warmup.add(name="w", batch_size=1, count=1)


@case("'z' is none of the inputs")
def _warmup_of_unknown(p: Place) -> None:
    _warm(p).inputs["z"].CopyFrom(p.config.model_warmup[0].inputs["x"])


@case("has dims [2, 16, 11], the configuration [2, 16, 10]")
def _warmup_of_other_size(p: Place) -> None:
    _warm(p).inputs["x"].dims[2] = 11


@case("must be TYPE_FP32 as in input")
def _warmup_of_other_type(p: Place) -> None:
    _warm(p).inputs["x"].data_type = schema().TYPE_INT32


@case("has a free dimension; give its size")
def _warmup_of_free_size(p: Place) -> None:
    _warm(p).inputs["x"].dims[1] = -1


@case("has no data; set zero_data: true")
def _warmup_without_data(p: Place) -> None:
    _warm(p).inputs["x"].ClearField("zero_data")


def _warm(p: Place) -> Any:
    sample = p.config.model_warmup.add(name="w", batch_size=1, count=1)
    sample.inputs["x"].data_type = p.x.data_type
    sample.inputs["x"].dims.extend(p.x.dims)
    sample.inputs["x"].zero_data = True
    return sample


def _make_scalar(p: Place) -> None:
    made = model([node("ReduceMax", "x", "y", keepdims=0)], {"x": (2, 3)}, {"y": ()})
    onnx.save(made, p.onnx)
    p.config.max_batch_size = 0
    p.config.ClearField("dynamic_batching")
    p.x.dims[:] = [2, 3]
    p.y.dims[:] = [1]


@case(None)
def _plain(p: Place) -> None:
    pass


@case(None)
def _no_name(p: Place) -> None:
    p.config.name = ""


@case(None)
def _backend_alone(p: Place) -> None:
    p.config.platform = p.config.default_model_filename = ""


@case(None)
def _platform_alone(p: Place) -> None:
    p.config.backend = p.config.default_model_filename = ""


@case(None)
def _files_speak_for_themselves(p: Place) -> None:
    p.config.backend = p.config.platform = p.config.default_model_filename = ""


@case(None)
def _no_groups(p: Place) -> None:
    del p.config.instance_group[:]


@case(None)
def _any_kind(p: Place) -> None:
    p.config.instance_group[0].kind = schema().ModelInstanceGroup.KIND_AUTO


@case(None)
def _scalar_output(p: Place) -> None:
    _make_scalar(p)


@case(None)
def _warmed(p: Place) -> None:
    _warm(p)


@case("batch_size 9 is above max_batch_size")
def _warmed_above_the_batch(p: Place) -> None:
    _warm(p).batch_size = 9


@case(None)
def _warmup_of_no_batch(p: Place) -> None:
    p.config.model_warmup.add(name="w")


@case(None)
def _odd_folders_beside(p: Place) -> None:
    for name in ("007", "notes", "configs", "warmup"):
        (p.folder / name).mkdir()


@case(None)
def _older_version_is_broken(p: Place) -> None:
    (p.folder / "1").rename(p.folder / "2")
    (p.folder / "1").mkdir()


@case(None)
def _version_zero(p: Place) -> None:
    (p.folder / "1").rename(p.folder / "0")


@case(None)
def _some_versions_missing(p: Place) -> None:
    p.config.version_policy.specific.versions.extend([1, 5])


@case(None)
def _all_versions(p: Place) -> None:
    shutil.copytree(p.folder / "1", p.folder / "3")
    p.config.version_policy.all.SetInParent()


@case("3/model.onnx")
def _all_versions_and_one_is_broken(p: Place) -> None:
    _all_versions(p)
    (p.folder / "3" / "model.onnx").write_bytes(b"no model")


@case(None)
def _model_in_a_folder(p: Place) -> None:
    data = p.onnx.read_bytes()
    p.onnx.unlink()
    p.onnx.mkdir()
    (p.onnx / "model.onnx").write_bytes(data)


@case(None)
def _default_value_left_out(p: Place) -> None:
    _with_default(p)


@case(None)
def _default_value_as_optional(p: Place) -> None:
    _with_default(p)
    extra = p.config.input.add(name="k", data_type=schema().TYPE_FP32, optional=True)
    extra.dims.append(3)


@case("is no required input of the model")
def _default_value_as_required(p: Place) -> None:
    _with_default(p)
    p.config.input.add(name="k", data_type=schema().TYPE_FP32).dims.append(3)


def _with_default(p: Place) -> None:
    made = model(
        [node("Mul", "x k", "y")],
        [value("x", (2, 3)), value("k", (3,))],
        [value("y", (2, 3))],
        {"k": np.ones(3, np.float32)},
    )
    onnx.save(made, p.onnx)
    p.config.max_batch_size = 0
    p.config.ClearField("dynamic_batching")
    p.x.dims[:] = [2, 3]
    p.y.dims[:] = [2, 3]


@case(None)
def _not_every_output(p: Place) -> None:
    made = chain(2, ("N", 2, 16, 10))
    made.graph.output.append(value("c0", ("N", 2, 16, 10)))
    onnx.save(made, p.onnx)


@case(None)
def _version_is_a_link(p: Place) -> None:
    (p.folder / "1").rename(p.folder.parent.parent / "linked")
    (p.folder / "1").symlink_to(p.folder.parent.parent / "linked")


@case(None)
def _file_is_a_link(p: Place) -> None:
    p.onnx.rename(p.folder.parent.parent / "linked.onnx")
    p.onnx.symlink_to(p.folder.parent.parent / "linked.onnx")


@case(None)
def _file_of_another_folder(p: Place) -> None:
    p.onnx.rename(p.folder / "shared.onnx")
    p.config.default_model_filename = "../shared.onnx"


@case(None)
def _file_outside_the_repository(p: Place) -> None:
    p.onnx.rename(p.folder.parent.parent / "outside.onnx")
    p.config.default_model_filename = "../../../outside.onnx"


@case(None)
def _version_and_word_below_a_good_one(p: Place) -> None:
    shutil.copytree(p.folder / "1", p.folder / "5")
    (p.folder / "1").rename(p.folder / "2_old")


@case("begins like a version and is none")
def _version_below_zero(p: Place) -> None:
    (p.folder / "1").rename(p.folder / "-1")


@case(None)
def _comment_in_another_encoding(p: Place) -> None:
    text = to_text(p.config).encode() + b"# gr\xfc\xdfe\n"
    (p.folder / "config.pbtxt").write_bytes(text)


@case(None)
def _two_groups(p: Place) -> None:
    p.config.instance_group.add(count=1, kind=schema().ModelInstanceGroup.KIND_CPU)


@case(None)
def _count_of_zero(p: Place) -> None:
    p.config.instance_group[0].count = 0


@case(None)
def _negative_count(p: Place) -> None:
    p.config.instance_group[0].count = -3


@case(None)
def _unknown_parameter(p: Place) -> None:
    p.config.parameters["author"].string_value = "someone"


@dataclass(frozen=True)
class Verdicts:
    """Both verdicts on every case: the reasons, empty where it was accepted.

    A sample that fails may take its server down with it (a fault of its own, seen in every third
    run), so these models are served one by one, when they are asked for; going down counts as
    refusing.
    """

    ours: dict[str, list[str]]
    together: dict[str, str]
    alone: dict[str, Path]

    def server(self, name: str) -> str:
        """Return what the server says of a case."""
        if name not in self.alone:
            return self.together[name]
        try:
            return _reasons(self.alone[name], [name])[name]
        except (ServeError, OSError) as error:
            return str(error)


FAILING_SAMPLES = [name for name, (_, says) in CASES.items() if says and name.startswith("warm")]


def _reasons(repository: Path, names: list[str]) -> dict[str, str]:
    """Have the server load a repository; return why it refuses each model, "" if it does not."""
    ready: dict[str, list[bool]] = {}
    reasons: dict[str, str] = {}
    with running(repository) as server:
        for entry in server.models():
            ready.setdefault(entry["name"], []).append(entry.get("state") == "READY")
            reasons.setdefault(entry["name"], entry.get("reason", ""))
        log = server.log.read_text(errors="replace").splitlines()
    return {
        name: ""
        if all(ready.get(name, [False]))
        # What fails before a model is looked at is in the log alone.
        else reasons.get(name) or next((line for line in log if f"'{name}'" in line), "refused")
        for name in names
    }


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Lay out all cases, check them, and have the server load them."""
    skip_without_server()
    folder = tmp_path_factory.mktemp("validate")
    onnx.save(chain(2, ("N", 2, 16, 10)), folder / "m.onnx")
    repository = folder / "repository"
    plain = write_triton_repository(
        folder / "m.onnx", folder / "plain", max_batch_size=4, dynamic_batching=True
    )
    for name, (change, _) in CASES.items():
        place = Place(repository / name, schema().ModelConfig())
        place.config.CopyFrom(plain.config)
        place.config.name = name
        shutil.copytree(folder / "plain" / "m", place.folder)
        file = place.folder / "config.pbtxt"
        file.write_text(to_text(place.config))
        before = file.read_bytes()
        change(place)
        if file.exists() and file.read_bytes() == before:
            file.write_text(to_text(place.config))
    ours: dict[str, list[str]] = {name: [] for name in CASES}
    for finding in check_triton_repository(repository, gpu=False):
        ours[finding.model].append(finding.reason)
    for name in FAILING_SAMPLES:
        (folder / name).mkdir()
        (repository / name).rename(folder / name / name)
    together = _reasons(repository, [name for name in CASES if name not in FAILING_SAMPLES])
    return Verdicts(ours, together, {name: folder / name for name in FAILING_SAMPLES})


def test_there_are_enough_bad_repositories() -> None:
    """At least forty."""
    assert sum(says is not None for _, says in CASES.values()) >= 40


# What leads out of the repository a server opens, and we do not: a repository that is only looked
# at may be somebody else's.
STRICTER = frozenset(
    {
        "version_is_a_link",
        "file_is_a_link",
        "file_of_another_folder",
        "file_outside_the_repository",
    }
)


@pytest.mark.parametrize("name", sorted(STRICTER))
def test_what_leads_out_is_not_opened(verdicts: Verdicts, name: str) -> None:
    """The server loads it; the check refuses it without a look."""
    assert not verdicts.server(name)
    (reason,) = verdicts.ours[name]
    assert "was not opened" in reason


@pytest.mark.parametrize("name", FAILING_SAMPLES)
def test_samples_that_fail_are_refused(verdicts: Verdicts, name: str) -> None:
    """Each with what to do."""
    says = CASES[name][1]
    assert says is not None
    assert any(says in reason for reason in verdicts.ours[name])


# A server for each of these takes seconds: all but two are slow tests.
@pytest.mark.parametrize(
    "name",
    [slow(name) if name in FAILING_SAMPLES[2:] else name for name in CASES if name not in STRICTER],
)
def test_both_say_the_same(verdicts: Verdicts, name: str) -> None:
    """Refused by both, with our reason saying what to do; or accepted by both."""
    _, says = CASES[name]
    ours, server = verdicts.ours[name], verdicts.server(name)
    assert bool(ours) == bool(server), f"ours: {ours}; the server: {server!r}"
    assert bool(server) == (says is not None), f"the server: {server!r}"
    if says is not None:
        assert any(says in reason for reason in ours), ours


def test_a_configuration_survives_its_text() -> None:
    """Text and message are the same thing, names with quotes and line ends included."""
    config = schema().ModelConfig(name="a\"b\n'\u00fc\\")
    assert parse_config(to_text(config)) == config
