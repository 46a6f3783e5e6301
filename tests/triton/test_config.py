"""What is written for which model, without a server: batch rule, types, memory, plans, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patchconv_deploy import UsageError, check_triton_repository, write_triton_repository
from patchconv_deploy.engines.ort.signature import runtime
from patchconv_deploy.measure.run import measure_onnxruntime
from patchconv_deploy.triton import memory as triton_memory
from patchconv_deploy.triton.config import ConfigOptions
from patchconv_deploy.triton.memory import MOST_INSTANCES, Footprint, plan_capacity
from patchconv_deploy.triton.plan import engine_problems
from patchconv_deploy.triton.schema import read_config, schema
from patchconv_deploy.triton.signature import DATA_TYPES, Signature, Tensor
from patchconv_deploy.triton.validate import check
from patchconv_deploy.triton.validate.check import check_model
from patchconv_deploy.triton.write import TritonResult
from tests.support.commands import run_command
from tests.support.small_models import chain, conv, file_names, model, node, value

MiB = 1 << 20


class _Here:
    """Checks a model as the process does that is started for it, in this one."""

    def ask(self, do: str, *, time_limit_s: float, model: str, **how: Any) -> dict[str, Any]:
        """Return the findings."""
        assert do == "check"
        with runtime() as opener:
            found = check_model(Path(model), opener, **how)
        return {"findings": [asdict(finding) for finding in found]}


@pytest.fixture(autouse=True)
def few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each check its process, whose start is most of it, and each peak its second one.

    `test_triton_hostile` has the processes of checks, `test_measure` those of peaks.
    """

    @contextmanager
    def here(module: str) -> Iterator[_Here]:
        assert module == "patchconv_deploy.triton.validate.child"
        yield _Here()

    monkeypatch.setattr(check, "child_process", here)
    once = partial(measure_onnxruntime, processes=1)
    monkeypatch.setattr(triton_memory, "measure_onnxruntime", once)


def _write(tmp_path: Path, made: onnx.ModelProto, **options: Any) -> TritonResult:
    onnx.save(made, tmp_path / "m.onnx")
    written = write_triton_repository(tmp_path / "m.onnx", tmp_path / "repository", **options)
    assert check_triton_repository(tmp_path / "repository") == []
    assert read_config(tmp_path / "repository" / "m" / "config.pbtxt") == written.config
    return written


def _identity(kind: int, dims: tuple[Any, ...] = (2, 3)) -> onnx.ModelProto:
    return model(
        [node("Identity", "x", "y")], [value("x", dims, kind)], [value("y", dims, kind)], opset=19
    )


@pytest.mark.parametrize("kind", list(DATA_TYPES))
def test_every_type_triton_has(tmp_path: Path, kind: int) -> None:
    """Each element type under Triton's name."""
    config = _write(tmp_path, _identity(kind)).config
    assert config.input[0].data_type == schema().DataType.Value(DATA_TYPES[kind])
    assert config.output[0].data_type == config.input[0].data_type


@pytest.mark.parametrize("kind", [TensorProto.FLOAT8E4M3FN, TensorProto.COMPLEX64])
def test_types_triton_has_not(tmp_path: Path, kind: int) -> None:
    """Refused by name, whatever the runtime says of them."""
    with pytest.raises(UsageError, match=r"input 'x' is of type \w+, which Triton does not have"):
        _write(tmp_path, _identity(kind))


def test_the_batch_is_dropped_only_where_it_is_one(tmp_path: Path) -> None:
    """With batching the first dimension goes, and a number per item keeps a reshape."""
    made = model(
        [node("ReduceMax", "x", "best", axes=[1], keepdims=0)], {"x": ("n", 6)}, {"best": None}
    )
    config = _write(tmp_path, made, max_batch_size=8).config
    assert list(config.input[0].dims) == [6]
    assert list(config.output[0].dims) == [1]
    assert config.output[0].HasField("reshape")
    assert list(config.output[0].reshape.shape) == []
    config = _write(tmp_path, made, max_batch_size=0).config
    assert list(config.input[0].dims) == [-1, 6]
    assert list(config.output[0].dims) == [-1]
    assert not config.output[0].HasField("reshape")


def test_sizes_the_file_does_not_declare(tmp_path: Path) -> None:
    """Outputs are as the runtime infers them, since the backend compares to the last size."""
    made = conv((1, 2, 16, 10))
    config = _write(tmp_path, made).config
    assert list(config.output[0].dims) == [1, 3, 16, 10]


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (conv((1, 2, 16, 10)), "input 'x' has the fixed size 1 there"),
        (
            model(
                [node("Relu", "x", "y"), node("Relu", "z", "w")],
                {"x": ("n", 3), "z": (1, 3)},
                {"y": ("n", 3), "w": (1, 3)},
            ),
            "input 'z' has the fixed size 1 there",
        ),
        (model([node("ReduceMax", "x", "y", keepdims=0)], {"x": ("n", 3)}, {"y": ()}), "a scalar"),
        (
            model(
                [node("ReduceMean", "x", "a", axes=[0]), node("Sub", "x a", "y")],
                {"x": ("n", 3)},
                {"y": ("n", 3)},
            ),
            "output 'y' of two items is not that of each one alone",
        ),
        (
            model(
                [node("Concat", "x x", "y", axis=0)],
                {"x": ("n", 3)},
                {"y": ("k", 3)},
            ),
            "output 'y' of two items is not that of each one alone",
        ),
        (
            model(
                [
                    node("Reshape", "x s", "y"),
                ],
                {"x": ("n", 6)},
                {"y": ("n", 3, 2)},
                {"s": np.array([1, 3, 2])},
            ),
            "output 'y' has the fixed size 1 there",
        ),
    ],
)
def test_no_batch(tmp_path: Path, made: onnx.ModelProto, why: str) -> None:
    """A first dimension that is no batch is refused with the reason, and served without one."""
    with pytest.raises(UsageError, match=f"the first dimension is no batch: .*{why}"):
        _write(tmp_path, made, max_batch_size=4)
    assert not (tmp_path / "repository").exists()
    assert _write(tmp_path, made).config.max_batch_size == 0


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (model([node("Relu", "x", "y")], {"x": (0, 3)}, {"y": (0, 3)}), "a dimension of size 0"),
        (model([node("Relu", "x", "y")], {"x": None}, {"y": None}), "has no known rank"),
        (
            model(
                [node("SequenceConstruct", "x", "y")],
                [value("x", (2, 3))],
                [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
            ),
            "output 'y' is a sequence; Triton serves tensors alone",
        ),
    ],
)
def test_what_triton_cannot_carry(tmp_path: Path, made: onnx.ModelProto, why: str) -> None:
    """Refused beforehand; nothing is written."""
    with pytest.raises(UsageError, match=why):
        _write(tmp_path, made)
    assert not (tmp_path / "repository").exists()


def test_names_of_all_kinds(tmp_path: Path) -> None:
    """Blanks, slashes, quotes, other scripts, and five thousand letters."""
    names = ["a b/c:d", 'ü "q" \\ {}\n', "x" * 5000]
    nodes = [helper.make_node("Relu", [names[0]], [name]) for name in names[1:]]
    made = model(nodes, {names[0]: (2, 3)}, dict.fromkeys(names[1:], (2, 3)))
    config = _write(tmp_path, made).config
    assert [config.input[0].name, *(entry.name for entry in config.output)] == names


def test_inputs_with_a_value_of_their_own_are_left_out(tmp_path: Path) -> None:
    """Before IR version 4 every weight is such an input."""
    for ir in (3, 8):
        made = model(
            [node("Mul", "x k", "y")],
            [value("x", (2, 3)), value("k", (3,))],
            [value("y", (2, 3))],
            {"k": np.ones(3, np.float32)},
            ir=ir,
        )
        config = _write(tmp_path, made).config
        assert [entry.name for entry in config.input] == ["x"]


def test_external_data_in_folders_comes_along(tmp_path: Path) -> None:
    """It lies in one file beside the model, with the same bytes."""
    made = chain(2)
    folder = tmp_path / "source"
    (folder / "w").mkdir(parents=True)
    weights = {}
    for tensor in made.graph.initializer:
        weights[tensor.name] = numpy_helper.to_array(tensor)
        raw = weights[tensor.name].tobytes()
        (folder / "w" / f"{tensor.name}.bin").write_bytes(raw)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"w/{tensor.name}.bin")
        tensor.external_data.add(key="length", value=str(len(raw)))
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    written = write_triton_repository(folder / "m.onnx", tmp_path / "repository")
    assert file_names(written.path) == ["model.onnx", "model.onnx.HASH.data"]
    for tensor in onnx.load(written.path / "model.onnx").graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), weights[tensor.name])


def test_warmup_needs_sizes(tmp_path: Path) -> None:
    """Free dimensions are asked for; with them, batch 1 and the largest are warmed up."""
    made = conv(("n", 2, "h", "w"))
    with pytest.raises(
        UsageError, match=r"give the largest sizes to expect with shapes=\{'x': \(1, 2, "
    ):
        _write(tmp_path, made, max_batch_size=4, warmup=True)
    config = _write(
        tmp_path, made, max_batch_size=4, warmup=True, shapes={"x": (1, 2, 32, 24)}
    ).config
    assert [sample.batch_size for sample in config.model_warmup] == [1, 4]
    assert [list(sample.inputs["x"].dims) for sample in config.model_warmup] == [[2, 32, 24]] * 2
    assert list(config.input[0].dims) == [2, -1, -1]


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
def test_providers(tmp_path: Path, provider: str) -> None:
    """What runs where, and an overlay for a machine without a GPU."""
    config = _write(tmp_path, chain(1), provider=provider, instances=3).config
    groups = schema().ModelInstanceGroup
    on_gpu = provider != "cpu"
    assert config.instance_group[0].kind == (groups.KIND_GPU if on_gpu else groups.KIND_CPU)
    assert config.instance_group[0].count == 3
    names = [a.name for a in config.optimization.execution_accelerators.gpu_execution_accelerator]
    assert names == {"cpu": [], "cuda": ["cuda"], "tensorrt": ["tensorrt", "cuda"]}[provider]
    overlay = tmp_path / "repository" / "m" / "configs" / "cpu.pbtxt"
    assert overlay.exists() == on_gpu
    if on_gpu:
        twin = read_config(overlay)
        assert twin.instance_group[0].kind == groups.KIND_CPU
        assert twin.input == config.input
        assert twin.output == config.output


def test_an_overlay_does_not_outlive_its_configuration(tmp_path: Path) -> None:
    """A version for the CPU after one for a GPU leaves none."""
    _write(tmp_path, chain(1), provider="cuda")
    _write(tmp_path, chain(1))
    assert not (tmp_path / "repository" / "m" / "configs" / "cpu.pbtxt").exists()


def _need(batch: int) -> Footprint:
    return Footprint("measured", batch, 100 * MiB * batch, 0, 50 * MiB)


@pytest.mark.parametrize(
    ("budget", "batching", "asked", "batch", "instances"),
    [
        (1000, True, None, 8, 1),
        (300, True, None, 2, 1),
        (300, True, 1, 1, 2),
        (300, False, None, 1, 2),
        (1000, True, 2, 2, 4),
        (150, True, None, 1, 1),
        (100000, True, None, 16, MOST_INSTANCES),
    ],
)
def test_what_a_budget_holds(
    budget: int, batching: bool, asked: int | None, batch: int, instances: int
) -> None:
    """Worked by hand: 50 MiB of weights, 100 MiB an item."""
    found = plan_capacity(budget * MiB, _need, batching=batching, max_batch=asked)
    assert (found.footprint.batch, found.instances) == (batch, instances)
    assert found.instances * found.footprint.total <= budget * MiB


def test_a_budget_that_holds_nothing() -> None:
    """Refused with what one instance needs."""
    with pytest.raises(UsageError, match=r"one instance at batch 1 needs 150.0 MiB \(measured"):
        plan_capacity(149 * MiB, _need, batching=True, max_batch=None)


def test_the_peak_is_measured_where_it_can_be(tmp_path: Path) -> None:
    """Larger batches take more; on a provider that is not here the figure is called predicted."""
    made = conv(("n", 2, 256, 256), out=16)
    one = _write(tmp_path, made, memory=24 * MiB)
    assert one.capacity is not None
    assert one.capacity.footprint.kind == "measured"
    # The output alone is 4 MiB.
    assert one.capacity.footprint.peak_bytes >= 4 * MiB
    assert one.config.max_batch_size == 1
    more = _write(tmp_path, made, memory=36 * MiB)
    assert more.config.max_batch_size > 1
    assert more.capacity is not None
    assert more.config.instance_group[0].count == more.capacity.instances
    assert more.capacity.instances * more.capacity.footprint.total <= 36 * MiB
    gpu = _write(tmp_path, made, memory=1024 * MiB, provider="cuda")
    assert gpu.capacity is not None
    if gpu.capacity.footprint.kind == "predicted":
        assert any("predicted, not measured" in note for note in gpu.notes)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"instances": 2, "memory": MiB}, "not both"),
        ({"dynamic_batching": True}, "dynamic batching needs max_batch_size="),
        ({"shapes": {"z": (1, 2)}}, "the model's inputs are x"),
        ({"shapes": {"x": (1, 3, 16, 10)}}, "does not fit the model's"),
        ({"labels": {"z": "labels.txt"}}, "the model's outputs are y"),
        ({"labels": {"y": "nowhere.txt"}}, "no such file"),
        ({"platform": "pytorch"}, "it can be onnxruntime_onnx or tensorrt_plan"),
        ({"provider": "npu"}, "it can be cpu, cuda, tensorrt"),
        ({"version": 0}, "whole numbers from 1"),
        ({"max_batch_size": -1}, "0 turns batching off"),
        ({"platform": "tensorrt_plan", "memory": MiB}, "the peak of a plan is measured with"),
        ({"plans": {"": "nowhere.plan"}}, "no such file"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    """Each is one line, and nothing is written."""
    with pytest.raises(UsageError, match=why):
        _write(tmp_path, conv(("n", 2, 16, 10)), **options)
    assert not (tmp_path / "repository").exists()


@dataclass
class _Engine:
    """Stands in for a TensorRT engine: shapes by name, and per profile (min, opt, max)."""

    shapes: dict[str, tuple[int, ...]]
    profiles: list[tuple[int, int]] = field(default_factory=lambda: [(1, 8)])

    @property
    def num_io_tensors(self) -> int:
        return len(self.shapes)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_profile_shape(self, name: str, number: int) -> tuple[tuple[int, ...], ...]:
        least, most = self.profiles[number]
        rest = self.shapes[name][1:]
        return (least, *rest), (most, *rest), (most, *rest)


_SIGNATURE = Signature(
    (Tensor("x", "TYPE_FP32", (-1, 3)),), (Tensor("y", "TYPE_FP32", (-1, 4)),), (), {}, True
)


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        (_Engine({"x": (-1, 3), "y": (-1, 4)}), None),
        (_Engine({"x": (-1, 3), "z": (-1, 4)}), "the plan has the tensors ['x', 'z']"),
        (_Engine({"x": (-1, 3), "y": (-1, 5)}), "'y' is [-1, 5] in the plan, [-1, 4]"),
        (_Engine({"x": (-1, 3), "y": (-1, 4)}, [(1, 4)]), "profile 0 takes batches of 1 to 4"),
        (_Engine({"x": (-1, 3), "y": (-1, 4)}, [(2, 8)]), "profile 0 takes batches of 2 to 8"),
    ],
)
def test_a_plan_is_held_against_model_and_batch(engine: _Engine, why: str | None) -> None:
    """Names, sizes, and profiles that reach from 1 to the largest batch."""
    problems = list(engine_problems(engine, _SIGNATURE, 8))
    assert bool(problems) == (why is not None)
    if why is not None:
        assert problems[0].startswith(why)


def test_plans_by_compute_capability(tmp_path: Path) -> None:
    """Each under a name of its own, the one for any GPU under Triton's default."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    written = _write(
        tmp_path,
        conv(("n", 2, 16, 10)),
        platform="tensorrt_plan",
        max_batch_size=4,
        plans={"8.0": tmp_path / "a", "": tmp_path / "b"},
    )
    assert dict(written.config.cc_model_filenames) == {"8.0": "model_80.plan"}
    assert (written.path / "model_80.plan").read_bytes() == b"a"
    assert (written.path / "model.plan").read_bytes() == b"b"
    assert any("was not opened, only copied" in note for note in written.notes) or any(
        "was not built for the GPU here" in note for note in written.notes
    )
    assert written.config.backend == "tensorrt"
    assert len(written.config.parameters) == 0


def test_the_command_writes_and_checks(tmp_path: Path) -> None:
    """What is printed and what is in the JSON; a repository that was spoilt is refused."""
    # Two items fit, four do not: each batch that is tried is measured in processes of its own.
    onnx.save(conv(("n", 2, 256, 256), out=16), tmp_path / "net.onnx")
    repository = tmp_path / "repository"
    done = run_command(
        *("triton", tmp_path / "net.onnx", "--repository", repository, "--memory", "36MiB"),
        *("--dynamic-batching", "--warmup", "--json", tmp_path / "out.json"),
    )
    assert done.returncode == 0, done.stderr
    assert f"Published: {repository}/net/1" in done.stdout
    assert "measured" in done.stdout
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["version"] == 1
    assert data["memory"]["footprint"]["kind"] == "measured"
    assert data["config"]["name"] == "net"
    checked = run_command("triton", "--check", repository)
    assert (checked.returncode, checked.stdout) == (0, "1 models, 0 refused\n")
    config = repository / "net" / "config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_FP32", "TYPE_FP64"))
    checked = run_command("triton", "--check", repository, "--json", tmp_path / "check.json")
    assert checked.returncode == 1
    assert "input 'x' is TYPE_FP64, in the model TYPE_FP32; change data_type" in checked.stdout
    assert len(json.loads((tmp_path / "check.json").read_text())["refused"]) == 2


def test_tritonclient_is_missing(tmp_path: Path) -> None:
    """One line with the command that installs it."""
    onnx.save(chain(1), tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['tritonclient'] = None\n"
        "from patchconv_deploy.cli.main import main; main()"
    )
    arguments = ["triton", str(tmp_path / "m.onnx"), "--repository", str(tmp_path / "r")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: tritonclient is not installed; pip install 'patchconv-deploy[triton]'\n"
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "give MODEL and --repository DIR, or --check DIR"),
        (("m.onnx",), "give MODEL and --repository DIR"),
        (("m.onnx", "--check", "."), "--check DIR stands alone"),
        (("m.onnx", "--repository", "nowhere/r"), "no such"),
        (("--check", "nowhere"), "no such folder"),
        (("m.onnx", "--repository", "r", "--labels", "y"), "is not of the form OUTPUT=FILE"),
    ],
)
def test_wrong_use(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    """Exit code 2 and one line."""
    done = run_command("triton", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


def test_options_have_defaults_that_turn_nothing_on() -> None:
    """A configuration without options batches nothing and warms nothing up."""
    options = ConfigOptions("m")
    assert (options.max_batch_size, options.dynamic_batching, options.warmup) == (0, False, False)
