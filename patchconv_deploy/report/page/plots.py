"""The page's plots as files: SVG and PNG, drawn by matplotlib from the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchconv_deploy.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_matplotlib", "write_plots"]

_BEFORE, _AFTER, _QUIET = "#b4603c", "#1f6d83", "#68707a"

_MIB = 2**20


def check_matplotlib() -> None:
    """See, before any work, that what draws is installed.

    Raises:
        UsageError: It is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("matplotlib is not installed; install patchconv-deploy[report]") from None


def write_plots(page: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the plots of a page as files: ``memory`` and ``curve``, each ``.svg`` and ``.png``.

    Args:
        page: `content.content`.
        folder: Where to; made if it is missing.

    Returns:
        The files; none of a plot that the page does not have.

    Raises:
        UsageError: The folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        if page["plots"]["before"] is not None:
            written += _drawn(folder / "memory", lambda axes: _memory(axes, page["plots"]))
        if page["curve"] is not None:
            written += _drawn(folder / "curve", lambda axes: _curve(axes, page["curve"]))
    except OSError as error:
        raise UsageError(f"plots={str(folder)!r}: {error.strerror}") from error
    return written


def _drawn(base: Path, draw: Callable[[Axes], None]) -> list[Path]:
    """Draw a plot without a window, and write it twice."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = [base.with_suffix(suffix) for suffix in (".svg", ".png")]
    # Text stays text, and the same plot is the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "patchconv", "font.size": 10}):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_ylim(0)
        axes.spines[["top", "right"]].set_visible(False)
        # Beside the axes it lies on no line.
        count = len(axes.get_legend_handles_labels()[1])
        figure.legend(loc="outside upper left", ncols=min(count, 2), frameon=False)
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=160)
    return files


def _memory(axes: Axes, plots: Mapping[str, Any]) -> None:
    """Draw both runs over the share of steps that are done."""
    for name, colour in (("before", _BEFORE), ("after", _AFTER)):
        run = plots[name]
        if run is None:
            continue
        # A step lasts to the next one, the last to the end.
        sizes = [size / _MIB for size in (*run["bytes"], run["bytes"][-1])]
        share = [100 * at / len(run["bytes"]) for at in range(len(sizes))]
        axes.fill_between(share, sizes, step="post", color=colour, alpha=0.2, linewidth=0)
        label = f"{name}, activations, predicted: {max(sizes):,.1f} MiB"
        axes.step(share, sizes, where="post", color=colour, linewidth=1.3, label=label)
    for line in plots["measured"]:
        colour = _BEFORE if line["when"] == "before" else _AFTER
        what = "running" if line["kind"] == "measured" else "activations"
        label = f"{line['when']}, {what}, {line['kind']}: {line['bytes'] / _MIB:,.1f} MiB"
        axes.axhline(line["bytes"] / _MIB, color=colour, linestyle="--", linewidth=1, label=label)
    axes.set_xlim(0, 100)
    axes.set_xlabel("steps done, %")
    axes.set_ylabel("MiB")


def _curve(axes: Axes, curve: Mapping[str, Any]) -> None:
    """Draw plans by predicted memory against time; the one that was taken in a ring."""

    def places(plans: list[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        return [plan["time"] for plan in plans], [plan["peak"] / _MIB for plan in plans]

    if curve["weighed"]:
        axes.scatter(*places(curve["weighed"]), s=14, color=_QUIET, alpha=0.4, label="weighed")
    if curve["points"]:
        x, y = places(curve["points"])
        axes.step(x, y, where="post", color=_AFTER, linewidth=1.3)
        axes.scatter(x, y, s=22, color=_AFTER, label="least found")
    if curve["taken"] is not None:
        x, y = places([curve["taken"]])
        axes.scatter(
            x, y, s=150, facecolors="none", edgecolors=_BEFORE, linewidths=2, label="taken"
        )
    axes.set_xlabel("predicted time, of the original's")
    axes.set_ylabel("predicted, running, MiB")
