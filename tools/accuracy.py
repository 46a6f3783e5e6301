"""Rounding errors of rewritten networks against the original's own: ``python -m tools.accuracy``.

Statistics that are merged, and attention in blocks, sum in another order, so last places differ.
Which result is nearer to the truth is asked here: each network of `CASES`, at a small size, is run
in float64 (PyTorch on the same module; onnx's reference evaluator where there is only a file), and
both files, original and rewritten, under ONNX Runtime in float32. Each on two kinds of inputs:
normal ones, and such of a large mean and a tiny variance, on which a variance that is taken as the
difference of two large sums is lost. A largest error is that of one element: of few inputs it is
chance, hence so many of them.

Prints a Markdown table: the largest and the root mean square error of both over all seeds, and
their ratios. Ends with exit code 1 where a ratio is above the bound, or a network was not cut.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from patchconv_deploy import pareto, rewrite
from tools.export_models import export
from tools.models.architectures import build, example_input
from tools.regions.networks import Network, make

__all__ = ["CASES", "INPUTS", "Case", "Errors", "Row", "compare", "in_double", "markdown"]

Array = np.ndarray[Any, Any]

BOUND = 1.5
NOT_CUT = "not cut"


@dataclass(frozen=True)
class Case:
    """A network, small.

    Attributes:
        make: Its architecture; "det" is the installed package's detector.
        size: Size of the input.
        options: Options of the architecture.
    """

    make: str
    size: tuple[int, ...]
    options: Mapping[str, Any]


CASES: dict[str, Case] = {
    "vae-decoder": Case("vae_decoder", (16, 16), {}),
    "vae-encoder": Case("vae_encoder", (96, 96), {}),
    "residual-blocks": Case("residual_blocks", (128, 128), {}),
    # The input itself is normalised: nothing stands between its mean and the statistic.
    "residual-blocks-bare": Case("residual_blocks", (64, 64), {"stem": False}),
    "style-transfer": Case("style_transfer", (96, 96), {"blocks": 5}),
    "unet-3d": Case("unet_3d", (16, 32, 32), {}),
    "mobilenet": Case("mobilenet", (128, 128), {}),
    "det": Case("det", (96, 96), {}),
    "swinir": Case("swinir", (32, 32), {"groups": 2}),
    "attention": Case("attention", (512,), {}),
    "restormer": Case("restormer", (64, 48), {}),
    "rrdbnet": Case("rrdbnet", (32, 32), {}),
    "unet": Case("unet", (96, 96), {}),
}

INPUTS: Mapping[str, tuple[float, float]] = {"normal": (0.0, 1.0), "1e4 +- 1e-2": (1e4, 1e-2)}


@dataclass(frozen=True)
class Errors:
    """Errors of outputs against float64.

    Attributes:
        largest: The largest, absolute.
        rms: The root of the mean square.
    """

    largest: float
    rms: float

    @classmethod
    def of(cls, got: list[Array], truth: list[Array]) -> Errors:
        """Return the errors of outputs of several runs."""
        errors = np.concatenate([(g - t).ravel() for g, t in zip(got, truth, strict=True)])
        return cls(float(np.max(np.abs(errors))), float(np.sqrt(np.mean(np.square(errors)))))


@dataclass(frozen=True)
class Row:
    """One network on one kind of input, rewritten in one way.

    Attributes:
        network: Its name.
        inputs: Name of the kind of input.
        rewriting: How it was rewritten.
        cut: Regions, most patches of one, and work over the original's; or `NOT_CUT`.
        magnitude: Largest value of the float64 outputs.
        original: Errors of the original in float32.
        rewritten: Errors of the rewritten.
    """

    network: str
    inputs: str
    rewriting: str
    cut: str
    magnitude: float
    original: Errors
    rewritten: Errors

    def ratios(self) -> tuple[float, float]:
        """Return errors over the original's, largest and RMS; 1 where both are nothing."""
        pairs = (
            (self.rewritten.largest, self.original.largest),
            (self.rewritten.rms, self.original.rms),
        )
        return tuple(
            here / there if there else float("inf") if here else 1.0 for here, there in pairs
        )  # type: ignore[return-value]

    def good(self, bound: float) -> bool:
        """Tell whether something was cut, and both errors are within the bound."""
        return self.cut != NOT_CUT and max(self.ratios()) <= bound


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of float32 in float64: weights, constants, Casts, inputs and outputs."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    graph = double.graph

    def widen(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    for tensor in graph.initializer:
        widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == 1:
                attribute.i = TensorProto.DOUBLE
    for each in (*graph.input, *graph.output):
        if each.type.tensor_type.elem_type == TensorProto.FLOAT:
            each.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    return double


def _prepare(case: Case, path: Path) -> tuple[Callable[[Array], Array], Mapping[str, Any]]:
    """Write a case's model; return it as a function in float64, and the shapes to fix."""
    if case.make == "det":
        from onnx.reference import ReferenceEvaluator

        shapes = make(Network("", "det", case.size, (), {}), path)
        evaluator: Any = ReferenceEvaluator(in_double(onnx.load(path)))
        (name,) = shapes
        return lambda x: np.asarray(evaluator.run(None, {name: x})[0]), shapes
    import torch

    export(case.make, path, size=case.size, **case.options)
    module = build(case.make, **case.options).double()

    def run(x: Array) -> Array:
        with torch.no_grad():
            found: Array = module(torch.from_numpy(x)).numpy()
        return found

    return run, {}


def _input(case: Case, kind: str, seed: int) -> Array:
    mean, deviation = INPUTS[kind]
    if case.make == "det":
        noise = np.random.default_rng(seed).standard_normal((1, 3, *case.size))
    else:
        noise = example_input(case.make, size=case.size, seed=seed, **case.options).double().numpy()
    return (mean + deviation * noise).astype(np.float32)


def _run(path: Path, inputs: list[Array]) -> list[Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [np.asarray(session.run(None, {name: x})[0], np.float64) for x in inputs]


def compare(name: str, seeds: int, folder: Path) -> list[Row]:
    """Return the rows of a network: each kind of input, each way to rewrite it.

    Args:
        name: One of `CASES`.
        seeds: Inputs of each kind.
        folder: Where the models are put.
    """
    case = CASES[name]
    path = folder / f"{name}.onnx"
    truth_of, shapes = _prepare(case, path)
    # In few patches, and in what needs least whatever the work: passes that compute again.
    least = min(plan.peak for plan in pareto(path, shapes=shapes))
    # Of a budget a twentieth is left for the prediction's error.
    least = ceil(least / 0.95)
    rewritings: Mapping[str, Mapping[str, Any]] = {
        "--splits 4": {"splits": 4},
        "the least budget": {"memory_budget": least},
    }
    written = {}
    for number, (spelled, keywords) in enumerate(rewritings.items()):
        out = folder / f"{name}.{number}.onnx"
        outcome = rewrite(path, out, shapes=shapes, verify=False, **keywords).outcome
        done = outcome.rewritten
        cut = f"{len(done)} x{max(region.splits for region in done)}" if done else NOT_CUT
        if done and outcome.recompute is not None:
            cut += f", work {outcome.recompute:.2f}"
        written[spelled] = (out, cut)
    rows = []
    for kind in INPUTS:
        inputs = [_input(case, kind, seed) for seed in range(seeds)]
        truth = [truth_of(x.astype(np.float64)) for x in inputs]
        original = Errors.of(_run(path, inputs), truth)
        magnitude = max(float(np.max(np.abs(each))) for each in truth)
        for spelled, (out, cut) in written.items():
            errors = Errors.of(_run(out, inputs), truth)
            rows.append(Row(name, kind, spelled, cut, magnitude, original, errors))
    return rows


def markdown(rows: list[Row], bound: float) -> str:
    """Return the table.

    Args:
        rows: The rows.
        bound: Largest ratio of errors that is good.
    """
    lines = [
        "| network | input | rewritten by | regions | largest value | original off by, RMS | "
        "rewritten off by, RMS | ratio, RMS | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = "within" if max(row.ratios()) <= bound else f"**above {bound:g}**"
        if row.original.largest == 0:
            verdict = "the original is exact" + (
                "" if row.rewritten.largest == 0 else f"; {verdict}"
            )
        elif row.original == row.rewritten:
            verdict = "the same"
        cells = [row.network, row.inputs, row.rewriting, row.cut, f"{row.magnitude:.3g}"]
        for errors in (row.original, row.rewritten):
            cells.append(f"{errors.largest:.2e}, {errors.rms:.2e}")
        cells.append(", ".join(f"{ratio:.2f}" for ratio in row.ratios()))
        lines.append("| " + " | ".join([*cells, verdict]) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Networks to take.")
@click.option("--seeds", default=16, show_default=True, help="Inputs of each kind.")
@click.option("--bound", default=BOUND, show_default=True, help="Largest ratio of errors.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
def main(only: tuple[str, ...], seeds: int, bound: float, json_file: Path | None) -> None:
    """Compare the errors of rewritten networks with the originals' own, against float64."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
        for name in only or CASES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += compare(name, seeds, Path(folder))
            if json_file is not None:
                json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(markdown(rows, bound))
    good = [row for row in rows if row.good(bound)]
    print(f"\n{len(good)} of {len(rows)} within {bound:g} times the original's own error")
    sys.exit(0 if len(good) == len(rows) else 1)


if __name__ == "__main__":
    main()
