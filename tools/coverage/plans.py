"""Whether TensorRT takes networks of free sizes: ``python -m tools.coverage.plans [--only NAME]``.

Each network of `tools.coverage.networks` that has a free form is exported so, rewritten for
TensorRT in at most eight patches, and planned by TensorRT for RTX for an A100's architecture, which
needs no GPU. A row has the activation memory that was planned, before and after, with a profile of
one height and of widths from the least to the largest; then with one of many heights too, where
TensorRT gives each patch the memory of the whole; or what the builder said. Ends with exit code 1
where the original is planned and the rewritten one is not.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx

from patchconv_deploy import rewrite
from patchconv_deploy.engines.trt.build import build, load_module
from patchconv_deploy.engines.trt.options import BuildOptions
from tools.coverage.networks import NETWORKS, write
from tools.coverage.rows import SPLITS, line_of

__all__ = ["Planned", "main", "plan_of"]

MIB = 1 << 20

ENGINE, GPU = "tensorrt-rtx", "SM80"

# From here on a Resize may be told the sizes of its columns alone, which TensorRT takes.
OPSET = 18

# Characters of a builder's message that are shown.
_MOST = 160


@dataclass(frozen=True)
class Planned:
    """A network as TensorRT plans it.

    Attributes:
        network: A key of `NETWORKS`.
        before: Activation memory of the original's plan, bytes; None where there is none.
        after: The same of the rewritten model.
        ranged: The same with a profile of many heights.
        forms: Forms of its regions; none where it was left as it was.
        words: What the builder, or the rewriter, said where there is no plan.
        seconds: Time of all.
    """

    network: str
    before: int | None
    after: int | None
    ranged: int | None
    forms: tuple[str, ...]
    words: str
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether a plan was lost."""
        return self.before is not None and self.after is None and bool(self.forms)


def plan_of(name: str) -> Planned:
    """Export, rewrite and plan a network.

    Args:
        name: A key of `NETWORKS`.
    """
    started, network = time.monotonic(), NETWORKS[name]
    with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
        path, out = Path(folder, f"{name}.onnx"), Path(folder, f"{name}.patched.onnx")
        shapes = write(name, network.exporters[0], "free", path)
        forms: tuple[str, ...] = ()
        keywords = dict(network.keywords)
        if next(each.version for each in onnx.load(path).opset_import if not each.domain) < OPSET:
            keywords["upgrade_opset"] = OPSET
        try:
            result = rewrite(
                path, out, splits=SPLITS, shapes=shapes, target="tensorrt", verify=False,
                **keywords,
            )  # fmt: skip
            forms = tuple(sorted({region.form for region in result.outcome.rewritten}))
            words = ""
        except Exception as error:  # noqa: BLE001 - one network must not end the table
            words = line_of(error)[:_MOST]
        # Along the axis that is cut, counted from the end.
        cut = -1 if network.keywords.get("axis") == "width" else -2
        before, said = _activations(path, shapes, cut)
        after, more = _activations(out, shapes, cut) if forms else (None, "left as it was")
        ranged = _activations(out, shapes)[0] if forms else None
    words = words or said or more
    return Planned(name, before, after, ranged, forms, words, time.monotonic() - started)


def _within(name: str, minutes: float) -> Planned:
    """Plan a network in a process of its own, which is ended where it takes too long."""
    # The builder is native code, which no signal of Python's ends.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        waiting = pool.apply_async(plan_of, (name,))
        try:
            return waiting.get(60 * minutes)
        except multiprocessing.TimeoutError:
            pool.terminate()
    words = f"not planned within {minutes:g} minutes"
    return Planned(name, None, None, None, (), words, 60 * minutes)


def _activations(path: Path, shapes: Any, fixed: int | None = None) -> tuple[int | None, str]:
    """Return the activation memory of a file's plan, or None and what the builder said.

    Args:
        path: The file.
        shapes: Sizes of its input, ranges among them.
        fixed: A dimension that has its largest size alone.
    """
    entry = onnx.load(path, load_external_data=False).graph.input[0].name
    given = list(next(iter(shapes.values())))
    if fixed is not None:
        given[fixed] = _end(given[fixed], 1)
    ends = [tuple(_end(size, last) for size in given) for last in (0, 1, 1)]
    profile = {entry: (ends[0], ends[1], ends[2])}
    options = BuildOptions(profiles=(profile,), compute_capability=GPU)
    try:
        made = build(path, options, load_module(ENGINE))
    except Exception as error:  # noqa: BLE001 - what a builder refuses is a row of the table
        return None, line_of(error)[:_MOST]
    return made.planned_activation_bytes, ""


def _end(size: Any, last: int) -> int:
    return int(size[last] if isinstance(size, tuple) else size)


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:,.0f}"


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(NETWORKS)), help="Networks to take.")
@click.option("--minutes", default=5.0, show_default=True, help="Limit of each.")
def main(only: tuple[str, ...], minutes: float) -> None:
    """Tell which networks of free sizes TensorRT plans, and in how much memory."""
    print("| network | planned before, MiB | after | ratio | after, many heights | cut as | said |")
    print("|---|---|---|---|---|---|---|")
    lost = planned = fewer = 0
    for name in only or NETWORKS:
        if not NETWORKS[name].free:
            continue
        row = _within(name, minutes)
        both = row.before and row.after
        ratio = f"{(row.after or 0) / (row.before or 1):.2f}" if both else "-"
        words = row.words.replace("|", "/")
        print(
            f"| {name} | {_mib(row.before)} | {_mib(row.after)} | {ratio} | {_mib(row.ranged)} | "
            f"{','.join(row.forms)} | {words} |",
            flush=True,
        )
        lost += row.failed
        planned += row.after is not None
        fewer += bool(both) and (row.after or 0) < (row.before or 0)
    print(f"\nPlanned as rewritten: {planned}; in less memory: {fewer}; plans lost: {lost}.")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
