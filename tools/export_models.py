"""Export real architectures, with random seeded weights, as ONNX files for tests and benchmarks.

Networks are available by name (`tools.models.architectures.ARCHITECTURES`), of images, volumes and
tokens. Their defaults are small; width and depth are options, so that the published proportions are
one option away (``export("vae_decoder", path, base=128, groups=32)`` has the shape of SDXL's
decoder).

No weights are downloaded. Random ones are scaled layer by layer on a random input (see
``_initialise``) so that every layer contributes visibly to the output: a network whose output
barely depends on its middle would hide a wrong rewrite of that middle.

Run as ``python -m tools.export_models unet unet.onnx --exporter dynamo --dynamic``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import click
import onnx
import torch
from torch import Tensor, nn

from tools.models.architectures import ARCHITECTURES, architecture_of, build, example_input
from tools.models.layers import INPUT_NAME, OUTPUT_NAME, Size
from tools.models.quantise import quantize_qdq
from tools.models.quiet import quiet

__all__ = ["export", "export_module"]


Exporter = Literal["torchscript", "dynamo"]

DType = Literal["float32", "float16"]

# ONNX Runtime 1.23 loads up to this IR version, and up to opset 23.
MAX_IR_VERSION = 13

# TorchScript's exporter stops at 20 and has attention from 14 on; the other one writes 18 and
# converts upwards, while its conversion downwards gives up on some operators.
OPSETS: dict[Exporter, range] = {"torchscript": range(14, 21), "dynamo": range(18, 24)}

DEFAULT_OPSET: dict[Exporter, int] = {"torchscript": 17, "dynamo": 18}


def _export_torchscript(
    model: nn.Module, example: Tensor, path: Path, opset: int, dynamic: bool, fold: bool
) -> None:
    axes: dict[str, dict[int, str]] = {}
    if dynamic:
        with torch.no_grad():
            output_shape = model(example).shape
        axes[INPUT_NAME] = {0: "batch", 2: "height", 3: "width"}
        if output_shape[2:] == example.shape[2:]:
            axes[OUTPUT_NAME] = dict(axes[INPUT_NAME])
        elif len(output_shape) == 4:
            axes[OUTPUT_NAME] = {0: "batch", 2: "output_height", 3: "output_width"}
        else:
            axes[OUTPUT_NAME] = {0: "batch"}
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        opset_version=opset,
        dynamic_axes=axes,
        # The model is in evaluation mode as it is; said of the export, its norms are folded away.
        training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )


def _export_dynamo(
    model: nn.Module,
    example: Tensor,
    path: Path,
    opset: int,
    dynamic: bool,
    fold: bool,
    multiple: int,
) -> None:
    shapes: tuple[dict[int, Any], ...] | None = None
    if dynamic:
        height, width = torch.export.Dim("height"), torch.export.Dim("width")
        if multiple > 1:
            # torch.export wants the divisibility that the skips need said in the dimension.
            height, width = multiple * height, multiple * width
        shapes = ({0: torch.export.Dim("batch"), 2: height, 3: width},)
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        opset_version=opset,
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        optimize=fold,
        verbose=False,
    )


def export(
    name: str,
    path: str | Path,
    *,
    exporter: Exporter = "torchscript",
    dynamic: bool = False,
    dtype: DType = "float32",
    size: Size | None = None,
    opset: int | None = None,
    fold: bool = True,
    **arch_options: Any,
) -> Path:
    """Write the named network as one ONNX file and return its path.

    The model has one input, ``input`` (NxCxHxW, or as the network's class says), and one output,
    ``output``. ``size`` is the input's height and width (a latent's for ``vae_decoder``; depth
    before them for a volume, the number of tokens); the batch is 1. With ``dynamic``,
    batch, height and width are symbols instead. Without ``fold`` BatchNormalization stays in the
    file. ``arch_options`` go to the network's class.
    """
    architecture = architecture_of(name)
    if exporter not in DEFAULT_OPSET:
        raise ValueError(f"unknown exporter {exporter!r}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}")
    opset = opset or DEFAULT_OPSET[exporter]
    if opset not in OPSETS[exporter]:
        allowed = OPSETS[exporter]
        raise ValueError(f"{exporter} writes opsets {allowed[0]} to {allowed[-1]}, not {opset}")
    size = size or architecture.size
    model = build(name, **arch_options)
    multiple = architecture.multiple(model)
    if len(size) != len(architecture.size):
        raise ValueError(f"{name} needs {len(architecture.size)} sizes, not {size}")
    if any(each % multiple for each in size):
        raise ValueError(f"{name} needs height and width in multiples of {multiple}, not {size}")
    if dynamic and len(size) != 2:
        raise ValueError(f"{name} is exported at a fixed size alone: it takes no images")

    path = Path(path)
    # A batch of 1 would be taken as a constant by torch.export.
    example = example_input(name, size=size, batch=2 if dynamic else 1, **arch_options)
    if dtype == "float16":
        model, example = model.half(), example.half()
    with quiet():
        if exporter == "torchscript":
            _export_torchscript(model, example, path, opset, dynamic, fold)
        else:
            _export_dynamo(model, example, path, opset, dynamic, fold, multiple)
    _finish(path, opset)
    return path


def export_module(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write any module of one input and one output as one ONNX file, at the example's size."""
    opset = DEFAULT_OPSET["torchscript"]
    with quiet():
        _export_torchscript(module, example, path, opset, dynamic=False, fold=True)
    _finish(path, opset)


def _finish(path: Path, opset: int) -> None:
    """Check the versions of an exported file and take the exporting machine's traces out of it."""
    model = onnx.load(path)
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        # A failed conversion only warns, and leaves the exporter's own opset.
        raise RuntimeError(f"the exporter wrote opset {written} instead of {opset}")
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    for node in model.graph.node:
        node.doc_string = ""
        kept = [entry for entry in node.metadata_props if "stack_trace" not in entry.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _parse_size(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> Size | None:
    if value is None:
        return None
    sizes = value.lower().split("x")
    if not all(each.isdecimal() for each in sizes):
        raise click.BadParameter(f"{value!r} is not of the form HxW")
    return tuple(map(int, sizes))


def _parse_options(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not (key.isidentifier() and sign):
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE")
        try:
            options[key] = json.loads(text)
        except json.JSONDecodeError:
            options[key] = text
    return options


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--exporter", type=click.Choice(list(DEFAULT_OPSET)), default="torchscript", show_default=True
)
@click.option("--dynamic", is_flag=True, help="Symbolic batch, height and width.")
@click.option(
    "--size", metavar="HxW", callback=_parse_size, help="Input height and width, or DxHxW."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True
)
@click.option("--opset", type=int, help="ONNX opset; 17 for torchscript and 18 for dynamo.")
@click.option(
    "--fold/--no-fold",
    default=True,
    show_default=True,
    help="Fold BatchNormalization into the Convs.",
)
@click.option("--qdq", is_flag=True, help="Quantise the export to int8 (QDQ).")
@click.option(
    "-o",
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_parse_options,
    help="Option of the architecture, such as base=128; may be repeated.",
)
def main(
    name: str,
    out: Path,
    exporter: Exporter,
    dynamic: bool,
    size: Size | None,
    dtype: DType,
    opset: int | None,
    fold: bool,
    qdq: bool,
    options: dict[str, Any],
) -> None:
    """Export the architecture NAME to the ONNX file OUT."""
    if qdq and dtype != "float32":
        raise click.UsageError("--qdq needs --dtype float32")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "float.onnx") if qdq else out
        try:
            export(
                name,
                target,
                exporter=exporter,
                dynamic=dynamic,
                dtype=dtype,
                size=size,
                opset=opset,
                fold=fold,
                **options,
            )
        except (TypeError, ValueError) as error:  # an unknown option, or an unfit value
            raise click.ClickException(str(error)) from error
        if qdq:
            quantize_qdq(target, out, size=size or ARCHITECTURES[name].size)
    click.echo(f"{out} ({out.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
