"""Evidence: real networks under TensorRT for RTX, and figures of ``patchconv measure`` held up.

TensorRT for RTX plans for a GPU it does not have: its figures are *planned*, nothing ran. Those of
ONNX Runtime are measured. Both are printed past pytest's capture, so that a run of the tests shows
them.

Under ONNX Runtime (1.32, CPU) the peak of the sequential form depends on addresses: its layout
optimiser walks tables keyed by pointers, and where the system randomises addresses the form's peaks
lie up to a quarter apart from process to process. `patchconv measure` turns randomisation off in
the processes it measures in (`engines.process.addresses`), and reports the largest peak of several
layouts.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from patchconv_deploy.engines.errors import BuildError, ParseError
from patchconv_deploy.engines.measurement import Job, Measurement
from patchconv_deploy.engines.ort.measure import measure
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.engines.trt.build import BuildResult, build
from patchconv_deploy.engines.trt.options import BuildOptions
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.verify.inputs import save_inputs
from tests.rewriting import test_real_models as real
from tests.support import networks
from tests.support.small_models import copy_of, most_elements, noise, super_resolution
from tests.support.tiers import slow

MIB = 1 << 20

FORMS = ("original", *real.FORMS)


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Collect lines, and print them when this module is done."""
    lines: list[str] = []
    yield lines
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        # Standard error: a worker of pytest-xdist has no other way to the terminal.
        print("", *lines, sep="\n", file=sys.stderr, flush=True)  # noqa: T201


def mib(size: int | None) -> str:
    """Spell bytes as MiB."""
    return "-" if size is None else f"{size / MIB:.1f}"


# Large enough that activations are megabytes; build time does not depend on it.
SIZES = {
    "vae_decoder": (32, 24),
    "unet": (256, 192),
    "rrdbnet": (64, 48),
    "mobilenet": (256, 192),
}

OCR_SIZES = {
    "ch_PP-OCRv4_det_infer": (320, 480),
    "ch_PP-OCRv4_rec_infer": (48, 320),
    "ch_ppocr_mobile_v2.0_cls_infer": (48, 192),
}


def planned(
    original: networks.Original,
    shape: tuple[int, ...],
    label: str,
    report: list[str],
    rtx: Any,
    folder: Path,
    *,
    free: bool = False,
) -> None:
    """Build the three forms; they are all taken, or all refused for the same operators.

    Args:
        original: The model.
        shape: Shape of its one input.
        label: What the report calls it.
        report: Takes a line a form.
        rtx: The module.
        folder: Takes the files.
        free: Leave free dimensions as they are, and give the shape in a profile.
    """
    name = original.input
    options = BuildOptions(profiles=({name: (shape, shape, shape)},) if free else ())
    refused: dict[str, set[str] | None] = {}
    for form in FORMS:
        if form == "original":
            model = copy_of(original.model)
            fix_shapes(model, {} if free else {name: shape})
        else:
            outcome = real.rewritten(original, form, shapes={} if free else {name: shape})
            assert outcome.rewritten
            model = outcome.model
        path = folder / f"{form}.onnx"
        onnx.save(model, path)
        row = f"planned, SM80: {label:44} {form:10} "
        try:
            result = build(path, options, rtx)
        except (ParseError, BuildError) as error:
            said = str(error).removeprefix(f"{path}: ")
            # Names and order of nodes differ between the forms; the operators refused must not.
            found = re.findall(r"node .*? \((\w+)\):", said)
            refused[form] = {type(error).__name__, *(found or [said])}
            report.append(row + f"refused: {said[:250]}")
        else:
            refused[form] = None
            report.append(row + figures(result))
    assert refused["batch"] == refused["original"]
    assert refused["sequential"] == refused["original"]


def figures(result: BuildResult) -> str:
    """Check a plan for what every plan has, and spell its figures."""
    assert result.plan
    assert result.device == "none used; planned for SM80"
    assert result.planned_activation_bytes
    assert result.weights_bytes
    return (
        f"activation {mib(result.planned_activation_bytes):>6}  "
        f"scratch {mib(result.planned_scratch_bytes):>6}  weights {mib(result.weights_bytes):>5} "
        f"MiB (TensorRT for RTX {result.version}, planned in {result.seconds:.1f} s)"
    )


# Every kind of file in every run; what repeats a kind with another network is a slow test.
CASES = [
    *((name, "torchscript", "static") for name in SIZES if name != "vae_decoder"),
    ("vae_decoder", "dynamo", "static"),
    ("unet", "torchscript", "dynamic"),
    slow("vae_decoder", "torchscript", "static"),
    *(slow(name, "dynamo", "static") for name in SIZES if name != "vae_decoder"),
    *(slow(name, "torchscript", "dynamic") for name in SIZES if name != "unet"),
    *(slow(name, "dynamo", "dynamic") for name in SIZES),
    ("unet", "torchscript", "fp16"),
    ("unet", "torchscript", "qdq"),
    ("unet", "torchscript", "qdq for TensorRT"),
]

KINDS: dict[str, dict[str, Any]] = {
    "static": {"dynamic": False},
    "dynamic": {"dynamic": True},
    "fp16": {"dynamic": False, "dtype": "float16"},
    "qdq": {"dynamic": False, "qdq": True},
    "qdq for TensorRT": {"dynamic": False, "qdq": True},
}


def for_tensorrt(quantised: networks.Original, path: Path) -> networks.Original:
    """Quantise as TensorRT wants it: biases not behind int32 pairs, every zero point 0.

    The zero points are overwritten, so the numbers change; nothing is run here.
    """
    made = copy_of(quantised.model)
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in list(made.graph.node):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        tensor = weights.get(node.input[0])
        if tensor is not None and tensor.data_type == onnx.TensorProto.INT32:
            scale = numpy_helper.to_array(weights[node.input[1]])
            bias = (numpy_helper.to_array(tensor) * scale).astype(np.float32)
            made.graph.initializer.append(numpy_helper.from_array(bias, node.output[0]))
            made.graph.node.remove(node)
        else:
            zero = weights[node.input[2]]
            zeros = np.zeros_like(numpy_helper.to_array(zero))
            zero.CopyFrom(numpy_helper.from_array(zeros, zero.name))
    onnx.save(made, path)
    return networks.Original(path)


@pytest.mark.parametrize(("name", "exporter", "kind"), CASES)
def test_rtx_exported(
    name: str,
    exporter: str,
    kind: str,
    exported: networks.Export,
    report: list[str],
    rtx: Any,
    tmp_path: Path,
) -> None:
    """Networks of both exporters: every form is taken as the original is."""
    # With free sizes it is the same file whatever it was exported at; what the newer exporter takes
    # ten seconds for is the file of other modules, at their size.
    size = networks.NETWORKS[name].size if exporter == "dynamo" else SIZES[name]
    at = {} if kind == "dynamic" else {"size": size}
    original = exported(name, exporter, **KINDS[kind], **at)
    if kind == "qdq for TensorRT":
        original = for_tensorrt(original, tmp_path / "symmetric.onnx")
    shape = (1, networks.NETWORKS[name].channels, *size)
    label = f"{name} {exporter} {kind} {size[0]}x{size[1]}"
    planned(original, shape, label, report, rtx, tmp_path, free=kind == "dynamic")


@pytest.mark.parametrize("free", [False, slow(True)], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", [name if "det" in name else slow(name) for name in OCR_SIZES])
def test_rtx_ocr(
    name: str,
    free: bool,
    ocr: Callable[[str], networks.Original],
    report: list[str],
    rtx: Any,
    tmp_path: Path,
) -> None:
    """PP-OCR's files: every form is taken as the original is."""
    size = OCR_SIZES[name]
    label = f"{name} {'dynamic' if free else 'static'} {size[0]}x{size[1]}"
    planned(ocr(name), (1, 3, *size), label, report, rtx, tmp_path, free=free)


LIMIT = 2**31 - 1

GIB = 1 << 30


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 0.55),
        ({"form": "loop"}, 0.55),
        ({"target": "onnxruntime", "max_tensor_elements": LIMIT}, 0.55),
        ({"memory_budget": 2 * GIB, "form": "fused"}, 0.1),
    ],
    ids=["target tensorrt", "loop", "max-tensor-elements", "budget 2 GiB"],
)
def test_rtx_plans_what_tensorrt_refuses(
    options: dict[str, Any],
    most: float,
    report: list[str],
    rtx: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """3e9 elements in a tensor, where TensorRT's convolutions take 2^31 - 1: planned once cut.

    The builder of TensorRT for RTX does not check that limit (our build does, and warns), so the
    original has a plan too, to compare with; on TensorRT it would have none.
    """
    made = super_resolution(1712)
    assert most_elements(made) > 3e9 - 1e7
    outcome = rewrite_model(
        Loaded(copy_of(made), None), Options(**{"target": "tensorrt"} | options)
    )
    (done,) = outcome.rewritten
    if done.form != "loop":
        assert most_elements(outcome.model) <= LIMIT
    found = []
    for how, model in (("original", made), (f"{done.form} x{done.splits}", outcome.model)):
        path = tmp_path / "m.onnx"
        onnx.save(model, path)
        caplog.clear()
        found.append(build(path, BuildOptions(), rtx))
        assert ("more than 2^31 - 1 elements" in caplog.text) is (how == "original")
        label = "super-resolution 1712 -> 6848, 3e9 elements"
        report.append(f"planned, SM80: {label:44} {how:10} {figures(found[-1])}")
    original, rewritten = (each.planned_activation_bytes or 0 for each in found)
    assert original > 2 * 4 * (3e9 - 1e7)
    assert rewritten < most * original
    if options.get("target") != "onnxruntime":
        assert abs(outcome.after.bytes / rewritten - 1) < 0.15


THREADS = 2

RUNS = 2  # one that is not timed, and one that is; the second can need more than the first

# What a user would write to see for himself; it imports nothing of this project.
SCRIPT = """
import sys
import numpy
import onnxruntime
model, inputs, threads, runs = sys.argv[1:]
feeds = dict(numpy.load(inputs))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
for _ in range(int(runs)):
    session.run(None, feeds)
"""

# As /usr/bin/time does, which need not be installed. A process of its own, since a new process
# counts the memory of the one that started it, and pytest with torch is larger than what is
# measured.
TIME = """
import os
import sys
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
assert status == 0
print(usage.ru_maxrss)
"""


def resident_peak(job: Job, runs: int) -> int:
    """Return the bytes `/usr/bin/time -v` names for a minimal script, everything included."""
    script = [sys.executable, "-c", SCRIPT, str(job.model), str(job.inputs)]
    arguments = [*script, str(THREADS), str(runs)]
    command = [sys.executable, "-S", "-c", TIME, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Return a VAE decoder of 320x384 pixels in its three forms, with its input."""
    from tools.export_models import export

    folder = tmp_path_factory.mktemp("decoder")
    path = folder / "original.onnx"
    # Convolutions decide the peak here; at a larger latent the attention would.
    export("vae_decoder", path, size=(40, 48), base=32, groups=4, resnets=1)
    inputs = folder / "inputs.npz"
    save_inputs(inputs, {"input": noise(1, 4, 40, 48)})
    original = networks.Original(path)
    jobs = {"original": Job(path, inputs)}
    for form in real.FORMS:
        jobs[form] = Job(folder / f"{form}.onnx", inputs)
        onnx.save(real.rewritten(original, form, splits=4).model, jobs[form].model)
    return jobs


@dataclass(frozen=True)
class Invocation:
    """One call of `measure`, by form."""

    by_form: dict[str, Measurement]

    def peak(self, form: str) -> int:
        """Return the process's peak."""
        found = self.by_form[form].peak_bytes
        assert found is not None
        return found

    def runtime_peak(self, form: str) -> int | None:
        """Return the runtime's own figure."""
        return self.by_form[form].runtime_peak_bytes


def invoke(
    decoder: dict[str, Job],
    forms: Sequence[str],
    report: list[str],
    *,
    arena: bool = True,
    processes: int = 2,
) -> Invocation:
    """Measure forms, and report."""
    options = [OrtOptions(threads=THREADS, arena=arena)] * len(forms)
    jobs = [decoder[form] for form in forms]
    results = measure(jobs, options, runs=RUNS - 1, processes=processes)
    found = dict(zip(forms, results, strict=True))
    for form, result in found.items():
        assert result.error == ""
        report.append(
            f"measured: vae_decoder base 32 320x384, arena {'on ' if arena else 'off'} {form:10} "
            f"process peak {mib(result.peak_bytes):>6} (least {mib(min(result.peaks_bytes)):>6})  "
            f"runtime's own {mib(result.runtime_peak_bytes):>6} MiB "
            f"(ONNX Runtime {result.version}, CPU, {THREADS} threads)"
        )
    return Invocation(found)


# The form whose peak depends on addresses, and the original; the slow tier has the others, too.
FEW = ("original", "sequential")


@pytest.fixture(scope="module", params=[(FEW, 1), slow((FORMS, 2))], ids=["1 layout", "2 layouts"])
def invocations(
    request: pytest.FixtureRequest, decoder: dict[str, Job], report: list[str]
) -> tuple[Invocation, Invocation]:
    """Return what two invocations under default options found; the slow tier, as by default."""
    forms, processes = request.param
    first, second = (invoke(decoder, forms, report, processes=processes) for _ in range(2))
    return first, second


def apart(values: list[int]) -> float:
    """Return by how much the largest is over the least."""
    return max(values) / min(values) - 1


@pytest.mark.parametrize("form", [form if form in FEW else slow(form) for form in FORMS])
def test_peaks_repeat(form: str, invocations: tuple[Invocation, Invocation]) -> None:
    """From run to run: the process's peak within 5 %, the runtime's own figure too."""
    if form not in invocations[0].by_form:
        pytest.skip("measured with the slow tests")
    first, second = (each.by_form[form] for each in invocations)
    if not first.fixed_addresses and form == "sequential":
        pytest.skip("this system does not let a process turn address randomisation off")
    assert invocations[0].peak(form) >= 100 * MIB
    assert apart([each.peak(form) for each in invocations]) <= 0.05
    assert first.runtime_peak_bytes is not None
    assert second.runtime_peak_bytes is not None
    assert apart([first.runtime_peak_bytes, second.runtime_peak_bytes]) <= 0.05
    # Layout by layout, and not by the luck of the largest.
    for pair in zip(first.peaks_bytes, second.peaks_bytes, strict=True):
        assert apart(list(pair)) <= 0.05
    assert max(first.peaks_bytes) == first.peak_bytes


def test_arena_shows(
    invocations: tuple[Invocation, Invocation], decoder: dict[str, Job], report: list[str]
) -> None:
    """Without the arena the original's peak is at least a tenth lower, and there is no own figure.

    By how much differs: glibc keeps freed blocks of up to 32 MiB, or not, as they happen to lie.
    """
    off = invoke(decoder, ["original"], report, arena=False, processes=1)
    for on in invocations:
        assert off.peak("original") < 0.9 * on.peak("original")
    assert off.runtime_peak("original") is None


@pytest.mark.parametrize("form", ["original", slow("batch")])
def test_agrees_with_an_independent_measurement(
    form: str,
    invocations: tuple[Invocation, Invocation],
    decoder: dict[str, Job],
    report: list[str],
) -> None:
    """Within 10 % of ru_maxrss of a minimal script, less that of the script without a run."""
    if form not in invocations[0].by_form:
        pytest.skip("measured with the slow tests")
    idle, ran = (resident_peak(decoder[form], runs) for runs in (0, RUNS))
    report.append(
        f"measured: the same by ru_maxrss, {form}: {mib(ran)} - {mib(idle)} before the first run "
        f"= {mib(ran - idle)} MiB"
    )
    for each in invocations:
        assert abs(ran - idle - each.peak(form)) <= 0.1 * each.peak(form)
