"""Draw predicted memory over the run: ``python -m tools.plot_memory A.onnx B.onnx -o memory.svg``.

Needs matplotlib (extra ``report``). The figures are `memory.reader`'s for ONNX Runtime with
memory reuse and memory pattern off; nothing is run.
"""

from __future__ import annotations

from pathlib import Path

import click

from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.rewriters.memory.reader import profile

_ENGINE = "onnxruntime-tuned"
_MOST = 300


def live(path: Path) -> list[float]:
    """Return MiB alive at each step of a model, in the order the engine runs them."""
    loaded = load(path)
    shapes = infer(skeleton(loaded), estimate=True)
    steps = [size / 2**20 for _, size in profile(loaded.model.graph, shapes, _ENGINE)]
    # Of many steps the highest in each stretch: the picture is no wider.
    stretch = -(-len(steps) // _MOST)
    return [max(steps[at : at + stretch]) for at in range(0, len(steps), stretch)]


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--label", "labels", multiple=True, help="Names in the legend, in order.")
def main(models: tuple[Path, ...], output: Path, labels: tuple[str, ...]) -> None:
    """Draw predicted live memory of MODELS over their execution order."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "patchconv", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 3))
    for number, path in enumerate(models):
        steps = live(path)
        share = [100 * at / len(steps) for at in range(len(steps))]
        name = labels[number] if number < len(labels) else path.name
        colour = ("#b03a2e", "#1f618d", "#1e8449")[number % 3]
        axes.fill_between(share, steps, step="post", color=colour, alpha=0.35, linewidth=0)
        axes.step(share, steps, where="post", color=colour, linewidth=1.2, label=name)
    axes.set_xlabel("steps done, %")
    axes.set_ylabel("activations alive, MiB")
    axes.set_xlim(0, 100)
    axes.set_ylim(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    main()
