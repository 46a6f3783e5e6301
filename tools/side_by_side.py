"""One VAE decoder, five ways, in one run: ``python -m tools.side_by_side``.

The decoder of `diffusers`' AutoencoderKL, with seeded weights, on one latent: as PyTorch runs it;
as ``enable_tiling()`` runs it, tiles of half the image whose seams are blended; its ONNX file under
ONNX Runtime, at the defaults and without memory reuse and memory pattern; and the same file
rewritten, at the session options it recommends. Each in a process of its own; they run in turn,
round after round. Prints a Markdown table: peak of the runs above the level after loading, both
together, seconds and their ratio to PyTorch's, and how far the image is off PyTorch's: the largest
error as a share of the image's range, and PSNR over that range.

``--base 128 --latent 64`` is Stable Diffusion's decoder at 512x512: a quarter of an hour.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from patchconv_deploy import rewrite
from patchconv_deploy.cli.types import SizeType
from patchconv_deploy.engines.process.child import Child, child_process

__all__ = ["Figures", "main", "markdown", "measure", "quality"]

MIB = 1 << 20
THREADS = 2
_UNPATTERNED = {"enable_mem_pattern": False, "enable_mem_reuse": False}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Figures:
    """What was measured of one way.

    Attributes:
        way: What the table calls it.
        load_bytes: What the process grew by while the network was loaded.
        peak_bytes: The most it grew by after that.
        whole_bytes: Both together.
        seconds: Median time of a run.
        ratio: Median over the rounds of the time over the first way's.
        largest: Largest error, as a share of the range of the first way's image.
        psnr: Peak signal-to-noise ratio over that range, dB; None if nothing differs.
    """

    way: str
    load_bytes: int
    peak_bytes: int
    whole_bytes: int
    seconds: float
    ratio: float
    largest: float
    psnr: float | None


def quality(image: Array, reference: Array) -> tuple[float, float | None]:
    """Return an image's largest error as a share of the reference's range, and its PSNR in dB.

    Args:
        image: Any shape.
        reference: The same shape; not constant. The PSNR is None where both are the same.
    """
    wanted = reference.astype(np.float64)
    error = image.astype(np.float64) - wanted
    span = float(wanted.max() - wanted.min())
    mean_square = float(np.mean(np.square(error)))
    psnr = 10 * np.log10(span**2 / mean_square) if mean_square else None
    return float(np.max(np.abs(error))) / span, None if psnr is None else float(psnr)


def measure(ways: Mapping[str, Mapping[str, Any]], runs: int, folder: Path) -> list[Figures]:
    """Measure ways of computing one image, each in a fresh process, in turn.

    Args:
        ways: Per name what `tools.side_by_side_child` is asked to load; the first is what the
            others are compared with.
        runs: Timed runs of each, after one that is not timed.
        folder: Where the images are put.
    """
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for way, job in ways.items():
            children[way] = stack.enter_context(child_process("tools.side_by_side_child"))
            children[way].ask("load", **job)
            children[way].ask("run")
        rounds = [
            {way: child.ask("run")["seconds"] for way, child in children.items()}
            for _ in range(runs)
        ]
        memory, images = {}, {}
        for number, (way, child) in enumerate(children.items()):
            file = folder / f"{number}.npy"
            memory[way] = child.ask("finish", output=str(file))
            images[way] = np.load(file)
    first = next(iter(ways))
    return [
        Figures(
            way,
            **memory[way],
            seconds=statistics.median(each[way] for each in rounds),
            ratio=statistics.median(each[way] / each[first] for each in rounds),
            **dict(zip(("largest", "psnr"), quality(images[way], images[first]), strict=True)),  # type: ignore[arg-type]
        )
        for way in ways
    ]


def _ways(
    base: int, latent: int, keywords: Mapping[str, Any], folder: Path
) -> Mapping[str, Mapping[str, Any]]:
    """Write the network and its input; return the ways to run it."""
    import torch

    from tools.export_models import export_module
    from tools.models.autoencoder import DiffusersMissingError, write_decoder

    weights, original, ours = folder / "weights.pt", folder / "vae.onnx", folder / "ours.onnx"
    try:
        decoder = write_decoder(base, weights)
    except DiffusersMissingError as error:
        raise click.ClickException(str(error)) from error
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, latent, latent, generator=generator)
    export_module(decoder, x, original)
    if not rewrite(original, ours, **keywords).outcome.rewritten:
        raise click.ClickException("at this size nothing is cut; take a larger one")
    metadata = {entry.key: entry.value for entry in onnx.load(ours).metadata_props}
    recommended = json.loads(metadata["patchconv.session_options"])
    np.save(folder / "input.npy", x.numpy())
    common = {"input": str(folder / "input.npy"), "threads": THREADS}
    torch_job = {**common, "how": "pytorch", "base": base, "model": str(weights)}
    ort_job = {**common, "how": "onnxruntime", "model": str(original)}
    return {
        "PyTorch": {**torch_job, "tile": None},
        "PyTorch, `enable_tiling()`": {**torch_job, "tile": 8 * latent // 2},
        "ONNX Runtime": {**ort_job, "options": {}},
        "ONNX Runtime, no reuse, no pattern": {**ort_job, "options": _UNPATTERNED},
        "ours": {**ort_job, "model": str(ours), "options": recommended},
    }


def markdown(figures: list[Figures]) -> str:
    """Return the table."""
    lines = [
        "| | loading, MiB | running, MiB | whole process, MiB | time, s | time | "
        "off by, of the range | PSNR, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures:
        sizes = (row.load_bytes, row.peak_bytes, row.whole_bytes)
        cells = [row.way, *(f"{size / MIB:,.0f}" for size in sizes)]
        cells += [f"{row.seconds:.2f}", f"{row.ratio:.2f}"]
        cells += ["0" if row.psnr is None else f"{row.largest:.1e}"]
        cells += ["the same" if row.psnr is None else f"{row.psnr:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--base", default=32, show_default=True, help="Channels of the last level.")
@click.option("--latent", default=32, show_default=True, help="Rows and columns of the latent.")
@click.option("--runs", default=3, show_default=True, help="Timed runs of each.")
@click.option("--splits", type=int, help="Patches; 8 unless a budget is given.")
@click.option("--memory-budget", type=SizeType(), help="Budget that ours is rewritten for.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
def main(
    base: int,
    latent: int,
    runs: int,
    splits: int | None,
    memory_budget: int | None,
    json_file: Path | None,
) -> None:
    """Compare ways to run one VAE decoder: memory, time, and the image they make."""
    if splits is not None and memory_budget is not None:
        raise click.UsageError("--splits and --memory-budget do not go together; leave one out")
    keywords: dict[str, Any] = {"splits": splits or 8}
    if memory_budget is not None:
        keywords = {"memory_budget": memory_budget}
    with tempfile.TemporaryDirectory(prefix="patchconv-") as name:
        print("making the network ...", file=sys.stderr, flush=True)
        ways = _ways(base, latent, keywords, Path(name))
        print("measuring ...", file=sys.stderr, flush=True)
        figures = measure(ways, runs, Path(name))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in figures], indent=2) + "\n")
    print(markdown(figures))


if __name__ == "__main__":
    main()
