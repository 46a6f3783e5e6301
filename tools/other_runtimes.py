"""A model and what was made of it under other runtimes: ``python -m tools.other_runtimes``.

    python -m tools.other_runtimes model.onnx model.patched.onnx

Each file runs under OpenVINO on the CPU, in float32 (``pip install openvino``). The files take
turns, each in a process of its own. `patchconv measure` is the same for ONNX Runtime.
Prints a Markdown table: memory and time as `tools.side_by_side` has them, and how far the output is
off that of the first file under the same runtime.

Models have one input of fixed sizes; it is filled with seeded numbers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from tools.side_by_side import THREADS, Figures, markdown, measure

__all__ = ["main"]

# As tables call them, and as pip and Python do.
RUNTIMES = {"OpenVINO": "openvino"}


def input_of(model: Path) -> np.ndarray[Any, Any]:
    """Return seeded numbers for a model's one input.

    Raises:
        click.ClickException: It has another number of inputs, free sizes, or another element type.
    """
    graph = onnx.load(model, load_external_data=False).graph
    names = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in names]
    if len(inputs) != 1:
        raise click.ClickException(f"{model}: has {len(inputs)} inputs; take a model of one")
    kind = inputs[0].type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    if not all(shape) or kind.elem_type != onnx.TensorProto.FLOAT:
        raise click.ClickException(f"{model}: its input is not float32 of fixed sizes")
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _figures(title: str, models: Sequence[Path], runs: int, folder: Path) -> list[Figures]:
    """Measure models under one runtime."""
    file = folder / "input.npy"
    np.save(file, input_of(models[0]))
    common = {"input": str(file), "threads": THREADS, "how": RUNTIMES[title]}
    ways = {f"{title}, {model.name}": {**common, "model": str(model)} for model in models}
    return measure(ways, runs, folder)


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=3, show_default=True, help="Timed runs of each.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
def main(models: tuple[Path, ...], runs: int, json_file: Path | None) -> None:
    """Measure MODELS under OpenVINO; the first is what the others are compared with."""
    missing = [name for name in RUNTIMES.values() if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"install what is missing: pip install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        print("measuring ...", file=sys.stderr, flush=True)
        figures = [each for title in RUNTIMES for each in _figures(title, models, runs, Path(name))]
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in figures], indent=2) + "\n")
    print(markdown(figures))


if __name__ == "__main__":
    main()
