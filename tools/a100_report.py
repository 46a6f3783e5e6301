"""The published figure, reproduced for deployment: memory and time of every form, per engine.

    matrix    one Conv of kernel 3, 5 or 7, at 2048x2048 with 512 channels and at 4096x4096 with
              256, the SDXL-shaped VAE decoder at 1024, 2048 and 4096, and 8 x Conv 3x3 + Relu of 64
              channels at 2048 and 4096; fp16; each as it is, and cut in each form and each number
              of patches: single Convs (batch, sequential), and of networks of several layers whole
              regions (fused, loop), too
    engines   with a GPU: TensorRT and ONNX Runtime CUDA, measured. With --cpu: the same matrix as
              plans of TensorRT for RTX (nothing runs), and ONNX Runtime measured on the CPU on
              stand-ins, smaller models in float32 that fit a small machine
    written   report.md, report.json (every figure, not rounded), plots (.png, and their data .csv)

A cell of the matrix that fails (out of memory, a refusal) is a row that says so. Each figure says
whether it was measured or planned. What MIT published is printed beside, and called that.

Run as ``python -m tools.a100_report --out DIR``; one cell: ``--only '*/conv3-2048*/batch-x4'``.
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import importlib
import importlib.util
import io
import json
import logging
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engines.cuda import Cuda, cuda_device
from engines.errors import DeviceMissing, EngineMissing
from engines.measure import Job, Measurement, Spread, measure
from engines.measure_tensorrt import TensorRTResult, measure_tensorrt, plan_tensorrt
from engines.onnxruntime_engine import PROVIDERS, OrtOptions
from engines.onnxruntime_engine import installed as onnxruntime_installed
from engines.tensorrt_build import load_module
from engines.tensorrt_options import BuildOptions
from engines.timing import Timing
from patchconv_deploy.api import rewrite
from patchconv_deploy.cli_types import write_bytes, write_text
from rewriters.graph import load
from rewriters.shapes import fix_shapes

__all__ = ["CASES", "Case", "Cell", "Engine", "Figure", "Row", "main", "matrix", "stand_in"]

logger = logging.getLogger(__name__)

SCHEMA = 1
FORMS = ("batch", "sequential")
REGIONAL = ("fused", "shrinking", "loop")
MIB = 1 << 20
# How much smaller a stand-in is, per side and in channels.
SHRINK = 8
VAE_BASE = 128
# Layers of the chain.
CHAIN = 8
# Begins the names of exports with free sizes, which several cases are made from.
_FREE = "free-vae-"
PUBLISHED_BY = "published (MIT, PyTorch, A100)"


# --- the matrix -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the matrix.

    Attributes:
        family: "conv3", "conv5", "conv7", "vae" or "chain".
        side: Height and width of the image.
        channels: Channels of the Conv; of the decoder's last level; between the chain's layers.
        dtype: "float16" or "float32".
    """

    family: str
    side: int
    channels: int
    dtype: str = "float16"

    @property
    def name(self) -> str:
        """Name for people and for --only."""
        if self.family == "vae":
            narrow = "" if self.channels == VAE_BASE else f"-base{self.channels}"
            return f"vae-{self.side}{narrow}"
        return f"{self.family}-{self.side}x{self.side}x{self.channels}"

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms it is cut in."""
        # Of one Conv a region lowers nothing: its peak is what goes in and comes out.
        return FORMS if self.family.startswith("conv") else (*FORMS, *REGIONAL)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the one input."""
        if self.family == "vae":
            return (1, 4, self.side // 8, self.side // 8)
        return (1, 3 if self.family == "chain" else self.channels, self.side, self.side)

    @property
    def elements(self) -> int:
        """Elements of the largest tensor that a Conv reads or writes."""
        # The decoder's last doubling is followed by a Conv over twice the last level's channels.
        return self.side**2 * self.channels * (2 if self.family == "vae" else 1)

    @property
    def activation_bytes(self) -> int:
        """Bytes of that tensor."""
        return self.elements * np.dtype(self.dtype).itemsize


CASES: tuple[Case, ...] = (
    *(Case(f"conv{kernel}", 2048, 512) for kernel in (3, 5, 7)),
    *(Case(f"conv{kernel}", 4096, 256) for kernel in (3, 5, 7)),
    *(Case("vae", side, VAE_BASE) for side in (1024, 2048, 4096)),
    *(Case("chain", side, 64) for side in (2048, 4096)),
)

# The published figure: memory as printed there (GB), as it is and cut. 24 to 60 % more time.
PUBLISHED: Mapping[str, tuple[str, str]] = {
    "conv3-2048x2048x512": ("44.0 GB", "18.0 GB"),
    "conv5-2048x2048x512": ("out of 80 GB", "18 GB"),
    "conv7-2048x2048x512": ("out of 80 GB", "18 GB"),
    "conv3-4096x4096x256": ("out of 80 GB", "32 GB"),
    "conv5-4096x4096x256": ("out of 80 GB", "32 GB"),
    "conv7-4096x4096x256": ("out of 80 GB", "32 GB"),
}


def stand_in(case: Case) -> Case:
    """Return the smaller model that stands for a case on the CPU; float32, since few CPUs do 16."""
    return Case(case.family, case.side // SHRINK, case.channels // SHRINK, "float32")


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the matrix: a case, a form, a number of patches, an engine.

    Attributes:
        case: The case.
        form: "original", or one of the case's.
        splits: Number of patches; 1 for the original.
        engine: Name of the engine.
    """

    case: Case
    form: str
    splits: int
    engine: str

    @property
    def name(self) -> str:
        """Name for people and for --only."""
        how = self.form if self.form == "original" else f"{self.form}-x{self.splits}"
        return f"{self.engine}/{self.case.name}/{how}"


def matrix(engines: Sequence[str], splits: Sequence[int], only: Sequence[str]) -> list[Cell]:
    """Return the cells, in order: by case, then form, then engine.

    Args:
        engines: Names of the engines.
        splits: Numbers of patches.
        only: Patterns (fnmatch) of names of cells; all cells if empty.
    """
    cells = [
        Cell(case, form, count, engine)
        for case in CASES
        for form, counts in (("original", (1,)), *((form, splits) for form in case.forms))
        for count in counts
        for engine in engines
    ]
    return [
        cell
        for cell in cells
        if not only or any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in only)
    ]


# --- models and inputs ----------------------------------------------------------------------------


def _conv(case: Case) -> onnx.ModelProto:
    """Return one Conv, stride 1, that keeps the sides; weights of unit gain."""
    kernel, channels, dtype = int(case.family[-1]), case.channels, np.dtype(case.dtype)
    generator = np.random.default_rng(kernel)
    shape = (channels, channels, kernel, kernel)
    weight = generator.standard_normal(shape, dtype=np.float32) / np.sqrt(channels * kernel**2)
    bias = generator.standard_normal(channels, dtype=np.float32)
    element = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weight", "bias"], ["output"], "conv",
                          kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)],
        case.name,
        [helper.make_tensor_value_info("input", element, case.input_shape)],
        [helper.make_tensor_value_info("output", element, case.input_shape)],
        [numpy_helper.from_array(weight.astype(dtype), "weight"),
         numpy_helper.from_array(bias.astype(dtype), "bias")],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _chain(case: Case) -> onnx.ModelProto:
    """Return 8 x Conv 3x3 + Relu from 3 channels to 3, weights of unit gain."""
    widths = [3, *[case.channels] * (CHAIN - 1), 3]
    dtype = np.dtype(case.dtype)
    generator = np.random.default_rng(CHAIN)
    nodes, weights, x = [], [], "input"
    for number, (before, after) in enumerate(pairwise(widths)):
        shape = (after, before, 3, 3)
        # A Relu halves what it is given.
        gain = np.sqrt((1 if number == 0 else 2) / (before * 9))
        weight = generator.standard_normal(shape, dtype=np.float32) * gain
        weights.append(numpy_helper.from_array(weight.astype(dtype), f"weight{number}"))
        y = "output" if number == CHAIN - 1 else f"relu{number}"
        conv = f"conv{number}"
        read = [x, f"weight{number}"]
        nodes.append(
            helper.make_node("Conv", read, [conv], conv, kernel_shape=[3, 3], pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [conv], [y], f"relu{number}"))
        x = y
    element = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        nodes,
        case.name,
        [helper.make_tensor_value_info("input", element, case.input_shape)],
        [helper.make_tensor_value_info("output", element, case.input_shape)],
        weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _vae(case: Case, folder: Path) -> onnx.ModelProto:
    """Return the decoder for one image size.

    It is exported with free sizes on a tiny latent, and the sizes fixed afterwards: an export runs
    the network, and at the full size in float16 on a CPU that takes hours.
    """
    free = folder / f"{_FREE}{case.channels}-{case.dtype}.onnx"
    if not free.exists():
        from tools.export_models import export

        dtype: Literal["float16", "float32"] = "float16" if case.dtype == "float16" else "float32"
        groups = case.channels // 4
        export("vae_decoder", free, dynamic=True, dtype=dtype, size=(2, 2), base=case.channels,
               groups=groups)  # fmt: skip
    model = load(free).model
    fix_shapes(model, {"input": case.input_shape})
    return model


def write_model(case: Case, folder: Path) -> Path:
    """Write a case's original and return the file; one that is there is kept."""
    path = folder / f"{case.name}-{case.dtype}.onnx"
    if not path.exists():
        if case.family == "vae":
            made = _vae(case, folder)
        else:
            made = _chain(case) if case.family == "chain" else _conv(case)
        onnx.save(made, path)
    return path


def write_inputs(case: Case, folder: Path) -> Path:
    """Write a case's seeded input channel by channel: whole, one can be 8 GiB."""
    path = folder / f"{case.name}-{case.dtype}.npz"
    if path.exists():
        return path
    generator = np.random.default_rng(0)
    dtype = np.dtype(case.dtype)
    head = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": case.input_shape,
    }
    begun = path.with_suffix(".part")
    with (
        zipfile.ZipFile(begun, "w") as archive,
        archive.open("input.npy", "w", force_zip64=True) as stream,
    ):
        np.lib.format.write_array_header_1_0(stream, head)
        for _ in range(case.input_shape[1]):
            plane = generator.standard_normal(case.input_shape[2:], dtype=np.float32)
            stream.write(plane.astype(dtype).tobytes())
    begun.rename(path)
    return path


@dataclass(frozen=True, slots=True)
class Variant:
    """A model file of a cell.

    Attributes:
        path: The file.
        regions: Number of convolutions, or regions of layers, that were cut.
        patches: Patches of each; the fewest, where a small one allows no more.
        recompute: Most output rows any of them computes over the rows it has.
    """

    path: Path
    regions: int = 0
    patches: int = 1
    recompute: float = 1.0


def write_variant(
    case: Case, form: str, splits: int, folder: Path, predicted: str = "onnxruntime"
) -> Variant:
    """Write a case in a form.

    Args:
        case: The case.
        form: "original", or one of the case's. "batch" and "sequential" cut convolutions of at
            least half the largest tensor; the others the regions that bring the least peak.
        splits: Number of patches; of a region at most so many.
        folder: Takes the files.
        predicted: The engine that regions are chosen for, `rewriters.rewrite.TARGETS`.

    Raises:
        ValueError: Nothing could be cut; the message has the rewriter's reason.
        RewriterError: The rewriter refuses the model or an option.
    """
    source = write_model(case, folder)
    if form == "original":
        return Variant(source)
    target = source.with_name(f"{source.stem}-{form}-x{splits}.onnx")
    outcome = rewrite(
        source,
        target,
        splits=splits,
        form=form,
        min_elements=None if form in REGIONAL else case.elements // 2,
        target=predicted,
        verify=False,
        force=True,
    ).outcome
    if not outcome.rewritten:
        reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in outcome.refused)
        raise ValueError(f"nothing was cut: {reasons or 'no convolution is large enough'}")
    return Variant(
        target,
        len(outcome.rewritten),
        min(region.splits for region in outcome.rewritten),
        max(region.recompute or 1.0 for region in outcome.rewritten),
    )


# --- engines --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, its unit ("bytes", "s"), and whether it was "measured" or "planned"."""

    value: float
    unit: str
    kind: str


@dataclass(frozen=True, slots=True)
class Found:
    """What an engine says of a model: figures, or an error."""

    figures: Mapping[str, Figure]
    version: str
    device: str
    options: Mapping[str, Any]
    date: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to get figures of a model.

    Attributes:
        name: "tensorrt", "tensorrt-rtx" or "onnxruntime".
        title: The same for people, with what its memory figure is.
        kind: "measured" or "planned": what its memory figure is.
        memory: Name of the figure that plots show and ratios are taken of.
        columns: Headings of tables, with the name of their figure.
        runs: It runs the model, so it needs inputs.
        scaled: It takes stand-ins.
        ask: Returns what it says of a model, in a number of runs.
    """

    name: str
    title: str
    kind: str
    memory: str
    columns: tuple[tuple[str, str], ...]
    runs: bool
    scaled: bool
    ask: Callable[[Path, Path | None, int], Found]


def _figures(
    unit: str, kind: str, values: Mapping[str, float | None], figures: dict[str, Figure]
) -> None:
    figures.update(
        {name: Figure(value, unit, kind) for name, value in values.items() if value is not None}
    )


def _latency(spread: Spread | None, figures: dict[str, Figure]) -> None:
    if spread is not None:
        shown = dataclasses.asdict(spread)
        _figures("s", "measured", {f"latency_{k}_s": v for k, v in shown.items()}, figures)


def _of_tensorrt(result: TensorRTResult) -> Found:
    figures: dict[str, Figure] = {}
    planned = ("planned_activation_bytes", "planned_scratch_bytes", "weights_bytes")
    _figures("bytes", "planned", {name: getattr(result, name) for name in planned}, figures)
    measured = ("peak_bytes", "peak_with_weights_bytes", "io_bytes")
    _figures("bytes", "measured", {name: getattr(result, name) for name in measured}, figures)
    if result.peak_with_weights_bytes is not None and result.io_bytes is not None:
        total = result.peak_with_weights_bytes + result.io_bytes
        _figures("bytes", "measured", {"device_bytes": total}, figures)
    _figures("s", "measured", {"build_s": result.build_s}, figures)
    _latency(result.latency_s, figures)
    return Found(figures, result.version, result.device, result.options, result.date, result.error)


def _of_onnxruntime(result: Measurement, device: str) -> Found:
    figures: dict[str, Figure] = {}
    names = ("peak_bytes", "runtime_peak_bytes", "input_bytes", "output_bytes")
    _figures("bytes", "measured", {name: getattr(result, name) for name in names}, figures)
    _latency(result.latency_s, figures)
    return Found(figures, result.version, device, result.options, result.date, result.error)


# Float16 all through, as the model says, and not what a builder makes of it.
_BUILD = BuildOptions(strongly_typed=True)


def _plan(model: Path, inputs: Path | None, runs: int) -> Found:
    return _of_tensorrt(plan_tensorrt([model], [_BUILD])[0])


def _tensorrt(model: Path, inputs: Path | None, runs: int) -> Found:
    assert inputs is not None
    return _of_tensorrt(measure_tensorrt([Job(model, inputs)], [_BUILD], timing=Timing.of(runs))[0])


def _cuda(model: Path, inputs: Path | None, runs: int) -> Found:
    assert inputs is not None
    # One model at a time: two at once might not fit where each does.
    # In one process each: on a GPU opening a session searches algorithms anew, which takes long.
    options = [OrtOptions(provider="cuda")]
    result = measure([Job(model, inputs)], options, runs=runs, processes=1)[0]
    return _of_onnxruntime(result, cuda_device())


def _cpu(model: Path, inputs: Path | None, runs: int) -> Found:
    assert inputs is not None
    result = measure([Job(model, inputs)], [OrtOptions()], runs=runs, processes=1)[0]
    return _of_onnxruntime(result, result.device)


_LATENCY = ("latency, s (measured)", "latency_median_s")
_BUILT = ("build, s (measured)", "build_s")

GPU_ENGINES: tuple[Engine, ...] = (
    Engine(
        "tensorrt",
        "TensorRT, measured",
        "measured",
        "peak_bytes",
        (
            ("peak, MiB (measured)", "peak_bytes"),
            ("whole device, MiB (measured)", "device_bytes"),
            ("workspace, MiB (planned)", "planned_scratch_bytes"),
            _BUILT,
            _LATENCY,
        ),
        runs=True,
        scaled=False,
        ask=_tensorrt,
    ),
    Engine(
        "onnxruntime",
        "ONNX Runtime CUDA, measured",
        "measured",
        "peak_bytes",
        (
            ("peak on the device, MiB (measured)", "peak_bytes"),
            ("arena's own, MiB (measured)", "runtime_peak_bytes"),
            _LATENCY,
        ),
        runs=True,
        scaled=False,
        ask=_cuda,
    ),
)
CPU_ENGINES: tuple[Engine, ...] = (
    Engine(
        "tensorrt-rtx",
        "TensorRT for RTX, planned for SM80; nothing ran",
        "planned",
        "planned_activation_bytes",
        (
            ("activation, MiB (planned)", "planned_activation_bytes"),
            ("workspace, MiB (planned)", "planned_scratch_bytes"),
            ("weights, MiB (planned)", "weights_bytes"),
            _BUILT,
        ),
        runs=False,
        scaled=False,
        ask=_plan,
    ),
    Engine(
        "onnxruntime",
        "ONNX Runtime on the CPU, measured on stand-ins",
        "measured",
        "peak_bytes",
        (
            ("peak, MiB (measured)", "peak_bytes"),
            ("arena's own, MiB (measured)", "runtime_peak_bytes"),
            _LATENCY,
        ),
        runs=True,
        scaled=True,
        ask=_cpu,
    ),
)

WORDS: Mapping[str, str] = {
    "activation": "bytes of the largest tensor a Conv of the model reads or writes, from its shape",
    "tensorrt peak": "most that TensorRT allocated on the device while it ran, by a recording "
    "allocator; weights, inputs and outputs not in it",
    "tensorrt whole device": "the same with weights, inputs and outputs",
    "tensorrt workspace": "largest scratch memory of a layer, as the builder plans it",
    "tensorrt-rtx activation": "activation memory as the builder plans it, scratch in it, inputs "
    "and outputs not; a plan, not a measurement, and not TensorRT's peak",
    "onnxruntime peak": "CUDA: used memory of the device above its level before the first run, "
    "sampled through NVML, copies of inputs and outputs and cuDNN's workspace in it. CPU: the same "
    "of the process's resident memory, outputs in it",
    "onnxruntime arena's own": "mem_in_use_peak of the runtime's profile",
    "latency": "median of the runs. TensorRT: between CUDA events, nothing copied. ONNX Runtime: "
    "wall clock of a run, copies between host and device in it",
    "x original": "over the original of the same model on the same engine",
    "attention in the decoder": "one head over all positions of the latent; kept whole in float16, "
    "its scores are 0.5 GiB at 1024, 8 GiB at 2048 and 128 GiB at 4096. No form cuts them: where "
    "they are the peak, cutting changes nothing",
    "form": "batch, sequential: single Convs of at least half the largest tensor. fused, loop: "
    "whole regions of layers, chosen for the engine's predicted peak; normalisation over space is "
    "in none, so of the decoder little can be cut. ONNX Runtime runs every form at its default "
    "session options",
    "recompute": "output rows computed over output rows there are, the largest of what was cut",
    PUBLISHED_BY: "GB as printed there, as it is and cut (number of patches not given), at 24 to "
    "60 % more time when cut; not ours, and PyTorch's: beside the original and the batch form, "
    "which is the published one",
}


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One cell's outcome.

    Attributes:
        cell: Name of the cell.
        case: The case it is about.
        model: The model that was built or run: the case, or its stand-in.
        stands_for: The case if the model is a stand-in, else empty.
        family: Family of the case.
        form: "original", "batch", "sequential", "fused" or "loop".
        splits: Number of patches asked for; 1 for the original.
        patches: Number there are; the fewest, where a small Conv allows no more.
        dtype: Element type of the model.
        activation_bytes: Largest tensor of a Conv of the model, from its shape.
        regions: Convolutions, or regions of layers, that were cut.
        recompute: Largest recompute of them.
        engine: The engine.
        kind: "measured" or "planned": its memory figures.
        version: Its version.
        device: What it ran on, or planned for.
        options: Its options.
        runs: Timed runs.
        date: When, UTC.
        figures: What it says.
        published: What MIT published for the case and form, not ours; empty for a stand-in.
        error: Why there are no figures; empty if there are.
    """

    cell: str
    case: str
    model: str
    stands_for: str
    family: str
    form: str
    splits: int
    patches: int
    dtype: str
    activation_bytes: int
    regions: int
    recompute: float
    engine: str
    kind: str
    version: str
    device: str
    options: Mapping[str, Any]
    runs: int
    date: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    published: str = ""
    error: str = ""

    def value(self, name: str) -> float | None:
        """Return a figure's number, None if there is none."""
        figure = self.figures.get(name)
        return None if figure is None else figure.value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _published(cell: Cell) -> str:
    uncut, cut = PUBLISHED.get(cell.case.name, ("", ""))
    return {"original": uncut, "batch": cut}.get(cell.form, "")


def run_cell(cell: Cell, engine: Engine, runs: int, folder: Path) -> Row:
    """Make a cell's model, ask its engine, and return the row; a failure is one too.

    Args:
        cell: The cell.
        engine: Its engine.
        runs: Timed runs.
        folder: Takes models and inputs; what lies there is used again.
    """
    model = stand_in(cell.case) if engine.scaled else cell.case
    variant = Variant(folder)
    try:
        predicted = "onnxruntime" if engine.name == "onnxruntime" else "tensorrt"
        variant = write_variant(model, cell.form, cell.splits, folder, predicted)
        inputs = write_inputs(model, folder) if engine.runs else None
        found = engine.ask(variant.path, inputs, runs)
    except Exception as error:  # whatever goes wrong in a cell is its outcome
        logger.debug("%s", cell.name, exc_info=True)
        found = Found({}, "", "", {}, _now(), str(error) or type(error).__name__)
    return Row(
        cell=cell.name,
        case=cell.case.name,
        model=model.name,
        stands_for=cell.case.name if engine.scaled else "",
        family=cell.case.family,
        form=cell.form,
        splits=cell.splits,
        patches=variant.patches,
        dtype=model.dtype,
        activation_bytes=model.activation_bytes,
        regions=variant.regions,
        recompute=variant.recompute,
        engine=engine.name,
        kind=engine.kind,
        version=found.version,
        device=found.device,
        options=found.options,
        runs=runs if engine.runs else 0,
        date=found.date,
        figures=found.figures,
        # Beside a stand-in it would be read as a figure to compare with.
        published="" if engine.scaled else _published(cell),
        # A reader has no use for the place where the models lay.
        error=" ".join(found.error.replace(f"{folder}/", "").split()),
    )


# --- report ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """Rows, and what they are rows of.

    Attributes:
        command: The command line, for people.
        cpu: Made without a GPU.
        engines: The engines.
        wanted: Number of cells asked for; more than rows if it was stopped.
        rows: The rows.
    """

    command: str
    cpu: bool
    engines: tuple[Engine, ...]
    wanted: int
    rows: tuple[Row, ...]

    def of(self, engine: Engine) -> list[Row]:
        """Return an engine's rows."""
        return [row for row in self.rows if row.engine == engine.name]


def report_json(report: Report) -> dict[str, Any]:
    """Return everything as JSON data; nothing is rounded."""
    cases = {row.case for row in report.rows}
    return {
        "schema": SCHEMA,
        "made": _now(),
        "command": report.command,
        "mode": "cpu" if report.cpu else "gpu",
        "cells": report.wanted,
        "words": dict(WORDS),
        "stand_ins": _stand_ins(report),
        "published": {
            "by": PUBLISHED_BY,
            "unit": "GB as printed",
            "cases": [
                {"case": name, "original": uncut, "cut": cut}
                for name, (uncut, cut) in PUBLISHED.items()
                if name in cases
            ],
        },
        "rows": [dataclasses.asdict(row) for row in report.rows],
    }


def _stand_ins(report: Report) -> list[dict[str, str]]:
    found = {row.stands_for: f"{row.model}, {row.dtype}" for row in report.rows if row.stands_for}
    return [{"case": case, "stand_in": model} for case, model in found.items()]


def _mib(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value / MIB:,.1f}" if name.endswith("_bytes") else f"{value:.4f}"


def _over(row: Row, first: Row | None, name: str) -> str:
    value, base = row.value(name), None if first is None else first.value(name)
    return "-" if value is None or not base else f"{value / base:.2f}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    cells = [[text.replace("|", "\\|") for text in line] for line in lines]
    rows = [heads, ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _engine_table(engine: Engine, rows: Sequence[Row]) -> str:
    heads = ["model", "activation, MiB", "form", "patches", *(head for head, _ in engine.columns)]
    heads += ["memory x original", "time x original", "recompute", PUBLISHED_BY, "date (UTC)"]
    originals = {row.model: row for row in rows if row.form == "original"}
    lines = []
    for row in rows:
        first = originals.get(row.model)
        figures = [_mib(row.value(name), name) for _, name in engine.columns]
        if row.error:
            short = row.error if len(row.error) <= 60 else row.error[:57] + "..."
            figures[0] = f"**failed**: {short}"
        lines.append(
            [
                f"{row.model} (for {row.stands_for})" if row.stands_for else row.model,
                f"{row.activation_bytes / MIB:,.1f}",
                row.form,
                str(row.splits if row.error else row.patches),
                *figures,
                _over(row, first, engine.memory),
                _over(row, first, "latency_median_s"),
                f"{row.recompute:.2f}" if row.regions else "-",
                row.published or "-",
                row.date,
            ]
        )
    return _table(heads, lines)


def _distinct(values: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value)) or "-"


def _options(rows: Sequence[Row]) -> str:
    shown = (", ".join(f"{name}={value}" for name, value in row.options.items()) for row in rows)
    return _distinct(shown)


def report_markdown(report: Report, plots: Sequence[str]) -> str:
    """Return the report for people."""
    parts = ["# Memory and time of patched convolutions, per engine"]
    if report.cpu:
        parts.append(
            "**No GPU was used.** Rows of TensorRT for RTX are plans of its builder: nothing ran. "
            "Rows of ONNX Runtime were measured on the CPU, on smaller models in float32 that "
            "stand for those of the matrix. No figure here is one of an A100, but for the column "
            f"of what was {PUBLISHED_BY}."
        )
    parts.append(
        f"Made {_now()} by `{report.command}`; {len(report.rows)} of {report.wanted} cells."
    )
    stand_ins = _stand_ins(report)
    if stand_ins:
        lines = [[pair["case"], pair["stand_in"]] for pair in stand_ins]
        parts += ["## Stand-ins", _table(["of the matrix (float16)", "measured instead"], lines)]
    for engine in report.engines:
        rows = report.of(engine)
        if not rows:
            continue
        parts.append(f"## {engine.title}")
        runs = _distinct(str(row.runs) for row in rows if row.runs)
        parts.append(
            f"Version: {_distinct(row.version for row in rows)}. Device: "
            f"{_distinct(row.device for row in rows)}. Timed runs: {runs}. "
            f"Options: {_options(rows)}."
        )
        for family in dict.fromkeys(row.family for row in rows):
            single = f"Conv {family[-1]}x{family[-1]}"
            titles = {"vae": "VAE decoder", "chain": f"{CHAIN} x Conv 3x3 + Relu"}
            parts.append(f"### {titles.get(family, single)}")
            parts.append(_engine_table(engine, [row for row in rows if row.family == family]))
    failed = [row for row in report.rows if row.error]
    if failed:
        parts.append("## What failed")
        parts.append(_table(["cell", "why"], [[row.cell, row.error] for row in failed]))
    parts.append("## What the figures are")
    parts.append("\n".join(f"- {word}: {meaning}." for word, meaning in WORDS.items()))
    if plots:
        parts.append("## Plots")
        parts += [f"![{name}]({name}.png)\n\nData: [{name}.csv]({name}.csv)" for name in plots]
    return "\n\n".join(parts) + "\n"


# --- plots ----------------------------------------------------------------------------------------

MEMORY_PLOT = "memory_over_activation"
LATENCY_PLOT = "memory_against_latency"
_LATENCY_S = "latency_median_s"


def _variant_label(row: Row) -> str:
    return row.form if row.form == "original" else f"{row.form} x{row.splits}"


def plot_data(report: Report, name: str) -> list[dict[str, Any]]:
    """Return the points of a plot; a cell without the figures has none."""
    points = []
    for engine in report.engines:
        for row in report.of(engine):
            memory, latency = row.value(engine.memory), row.value(_LATENCY_S)
            if memory is None or (name == LATENCY_PLOT and latency is None):
                continue
            points.append(
                {
                    "engine": engine.name,
                    "family": row.family,
                    "case": row.case,
                    "model": row.model,
                    "variant": _variant_label(row),
                    "memory_figure": engine.memory,
                    "memory_kind": engine.kind,
                    "activation_bytes": row.activation_bytes,
                    "memory_bytes": memory,
                    "latency_s": "" if latency is None else latency,
                }
            )
    return points


def _csv(points: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return stream.getvalue()


_T = TypeVar("_T")


def _grouped(
    points: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], _T]
) -> dict[_T, list[Mapping[str, Any]]]:
    groups: dict[_T, list[Mapping[str, Any]]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return groups


def _draw(points: Sequence[Mapping[str, Any]], name: str, engines: Sequence[Engine]) -> bytes:
    """Return a PNG: a row of panels per engine, a column per family."""
    figure_type = importlib.import_module("matplotlib.figure").Figure
    families = list(dict.fromkeys(point["family"] for point in points))
    present = {point["engine"] for point in points}
    shown = [engine for engine in engines if engine.name in present]
    size = (4.5 * len(families) + 1.5, 3.8 * len(shown))
    figure = figure_type(figsize=size, layout="constrained")
    panels = figure.subplots(len(shown), len(families), squeeze=False)
    x_name = "latency_s" if name == LATENCY_PLOT else "activation_bytes"
    scale = 1.0 if name == LATENCY_PLOT else float(MIB)
    variants = list(dict.fromkeys(point["variant"] for point in points))
    for line, engine in zip(panels, shown, strict=True):
        for panel, family in zip(line, families, strict=True):
            mine = [p for p in points if (p["engine"], p["family"]) == (engine.name, family)]
            for variant, group in _grouped(mine, lambda p: str(p["variant"])).items():
                number = variants.index(variant)
                group = sorted(group, key=lambda p: float(p["activation_bytes"]))
                panel.plot(
                    [point[x_name] / scale for point in group],
                    [point["memory_bytes"] / MIB for point in group],
                    # Of another length than the colours: a variant has a pair of its own.
                    marker="osD^vPX*<>h"[number % 11],
                    color=f"C{number % 10}",
                    linestyle="none" if name == LATENCY_PLOT else "-",
                    label=variant,
                )
            if name == LATENCY_PLOT:
                for case, group in _grouped(mine, lambda p: str(p["model"])).items():
                    highest = max(group, key=lambda p: float(p["memory_bytes"]))
                    at = (highest[x_name], highest["memory_bytes"] / MIB)
                    panel.annotate(case, at, textcoords="offset points", xytext=(0, 6), fontsize=7)
            panel.set_title(f"{family}: {engine.title}", fontsize=8)
            panel.set_xlabel(
                "latency, s (measured)"
                if name == LATENCY_PLOT
                else "largest tensor of a Conv, MiB (from its shape)"
            )
            panel.set_ylabel(f"{engine.memory}, MiB ({engine.kind})", fontsize=8)
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.margins(0.1)
            panel.grid(alpha=0.3)
    handles = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    order = [label for label in variants if label in handles]
    figure.legend([handles[label] for label in order], order, loc="outside right upper")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def write_report(report: Report, out: Path) -> None:
    """Write report.json, the plots with their data, and report.md, each whole or not at all."""
    plots = []
    for name in (MEMORY_PLOT, LATENCY_PLOT):
        points = plot_data(report, name)
        if points:
            write_text(out / f"{name}.csv", _csv(points))
            write_bytes(out / f"{name}.png", _draw(points, name, report.engines))
            plots.append(name)
        else:
            # One of an earlier run would be taken for this one's.
            for suffix in ("csv", "png"):
                (out / f"{name}.{suffix}").unlink(missing_ok=True)
    _write_json(report, out)
    write_text(out / "report.md", report_markdown(report, plots))


def _write_json(report: Report, out: Path) -> None:
    write_text(out / "report.json", json.dumps(report_json(report), indent=2) + "\n")


# --- command line ---------------------------------------------------------------------------------


class Missing(click.ClickException):
    """This machine lacks something."""

    exit_code = 2


def _lacks(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except (DeviceMissing, EngineMissing) as error:
        return [str(error)]
    return []


def _lacks_cuda_provider() -> list[str]:
    if not onnxruntime_installed():
        return ["ONNX Runtime is not installed; install patchconv-deploy[gpu-cu12]"]
    runtime: Any = importlib.import_module("onnxruntime")
    if PROVIDERS["cuda"] not in runtime.get_available_providers():
        return [f"this ONNX Runtime has no {PROVIDERS['cuda']}; install patchconv-deploy[gpu-cu12]"]
    return []


def missing(cells: Sequence[Cell], cpu: bool) -> list[str]:
    """Return what this machine lacks for some cells, each in words; empty if nothing."""
    names = {cell.engine for cell in cells}
    found: list[str] = []
    if not cpu:
        found += _lacks(cuda_device)
        if "tensorrt" in names:
            found += _lacks(lambda: load_module("tensorrt")) + _lacks(Cuda.load)
        if "onnxruntime" in names:
            found += _lacks_cuda_provider()
            if importlib.util.find_spec("pynvml") is None:
                found.append("pynvml is not installed; pip install nvidia-ml-py")
    else:
        if "tensorrt-rtx" in names:
            found += _lacks(lambda: load_module("tensorrt-rtx"))
        if "onnxruntime" in names and not onnxruntime_installed():
            found.append("ONNX Runtime is not installed; install patchconv-deploy[cpu]")
    if importlib.util.find_spec("matplotlib") is None:
        found.append("matplotlib is not installed; install patchconv-deploy[report]")
    if (
        any(cell.case.family == "vae" for cell in cells)
        and importlib.util.find_spec("torch") is None
    ):
        found.append("torch is not installed (for the VAE decoder); patchconv-deploy[torch]")
    return list(dict.fromkeys(found))


def _parse_splits(
    context: click.Context, parameter: click.Parameter, value: str
) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise click.BadParameter(f"{value!r} is not of the form 2,4,8 (each 2 or more)")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _run_all(
    cells: Sequence[Cell], engines: Mapping[str, Engine], runs: int, out: Path, command: str,
    cpu: bool,
) -> Report:  # fmt: skip
    """Run the cells, writing the figures so far after each; stopped, it keeps what it has."""
    console = Console(stderr=True)
    rows: list[Row] = []

    def so_far() -> Report:
        return Report(command, cpu, tuple(engines.values()), len(cells), tuple(rows))

    # Beside the report: inputs take gigabytes, and the user chose that disk.
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=out))
    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(cells))
            for number, cell in enumerate(cells):
                if number and cell.case != cells[number - 1].case:
                    _sweep(work)
                progress.update(task, description=cell.name)
                row = run_cell(cell, engines[cell.engine], runs, work)
                rows.append(row)
                progress.advance(task)
                progress.console.print(
                    _line(row, engines[cell.engine]), highlight=False, soft_wrap=True
                )
                _write_json(so_far(), out)
    except KeyboardInterrupt:
        console.print("[yellow]stopped[/]: the report holds what was done", highlight=False)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return so_far()


def _sweep(work: Path) -> None:
    """Remove a case's files; the exports with free sizes serve the next one too."""
    for path in work.iterdir():
        if not path.name.startswith(_FREE):
            path.unlink()


def _line(row: Row, engine: Engine) -> str:
    if row.error:
        return f"{row.cell}: [red]failed[/]: {escape(row.error)}"
    shown = [f"{head} {_mib(row.value(name), name)}" for head, name in engine.columns]
    return f"{row.cell}: " + "; ".join(shown)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the report; also takes the models and inputs, up to 10 GiB, for a while.",
)
@click.option(
    "--cpu", is_flag=True, help="Without a GPU: plans, and CPU measurements of smaller models."
)
@click.option(
    "--splits",
    default="2,4,8",
    show_default=True,
    callback=_parse_splits,
    help="Numbers of patches.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Cells by name, ENGINE/CASE/original or ENGINE/CASE/FORM-xN (repeatable).",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    help="Timed runs of each model, after one that is not timed.  [default: 5; with --cpu 2]",
)
def main(
    out: Path, cpu: bool, splits: tuple[int, ...], only: tuple[str, ...], runs: int | None
) -> None:
    """Measure the published matrix on this machine and write a report.

    Exits 0 if any cell has figures, 1 if none has, 2 if this machine lacks what it needs.
    """
    engines = {engine.name: engine for engine in (CPU_ENGINES if cpu else GPU_ENGINES)}
    cells = matrix(tuple(engines), splits, only)
    if not cells:
        example = matrix(tuple(engines), splits, ())[0].name
        raise click.UsageError(f"--only: no cell is called like that; one is {example}")
    lacking = missing(cells, cpu)
    if lacking:
        hint = "" if cpu else "; --cpu makes the report without a GPU, of plans and smaller models"
        raise Missing("; ".join(lacking) + hint)
    out.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "tools.a100_report", "--out", "DIR", *(["--cpu"] if cpu else [])]
    words += ["--splits", ",".join(map(str, splits))]
    words += [word for pattern in only for word in ("--only", pattern)]
    words += ["--runs", str(runs)] if runs else []
    report = _run_all(cells, engines, runs or (2 if cpu else 5), out, shlex.join(words), cpu)
    write_report(report, out)
    failed = sum(bool(row.error) for row in report.rows)
    click.echo(f"{out / 'report.md'}: {len(report.rows)} cells, {failed} failed")
    sys.exit(0 if failed < len(report.rows) else 1)


if __name__ == "__main__":
    main()
