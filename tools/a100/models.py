"""Model files of the cases, as they are and cut, and their seeded inputs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from patchconv_deploy.api import rewrite
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes
from patchconv_deploy.rewriters.graph.model import load
from tools.a100.cases import CHAIN, REGIONAL, Case

__all__ = ["FREE", "Variant", "variant_path", "write_inputs", "write_model", "write_variant"]

# Begins the names of exports with free sizes, which several cases are made from.
FREE = "free-vae-"


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
    free = folder / f"{FREE}{case.channels}-{case.dtype}.onnx"
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
    path = variant_path(case, "original", 1, folder)
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


def variant_path(
    case: Case, form: str, splits: int, folder: Path, predicted: str = "onnxruntime"
) -> Path:
    """Return the file that `write_variant` writes."""
    source = folder / f"{case.name}-{case.dtype}.onnx"
    if form == "original":
        return source
    return source.with_name(f"{source.stem}-{form}-x{splits}-{predicted}.onnx")


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
        predicted: The engine that regions are chosen for, `options.TARGETS`.

    Raises:
        ValueError: Nothing could be cut; the message has the rewriter's reason.
        RewriterError: The rewriter refuses the model or an option.
    """
    source = write_model(case, folder)
    if form == "original":
        return Variant(source)
    target = variant_path(case, form, splits, folder, predicted)
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
