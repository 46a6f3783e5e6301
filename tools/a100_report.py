"""The published figure, reproduced for deployment: memory and time of every form, per engine.

    matrix    one Conv of kernel 3, 5 or 7, at 2048x2048 with 512 channels and at 4096x4096 with
              256, and at sizes below 2^31 elements, which run uncut on every engine; the
              SDXL-shaped VAE decoder at 1024, 2048 and 4096, and 8 x Conv 3x3 + Relu of 64
              channels at 2048 and 4096; fp16; each as it is, and cut in each form and each number
              of patches: single Convs (batch, sequential), and of networks of several layers whole
              regions (fused, loop), too
    engines   with a GPU: TensorRT and ONNX Runtime CUDA, measured. With --cpu: the same matrix as
              plans of TensorRT for RTX (nothing runs), and ONNX Runtime measured on the CPU on
              stand-ins, smaller models in float32 that fit a small machine
    written   report.md, report.json (every figure, not rounded), plots (.png, and their data .csv)

A cell of the matrix that fails (out of memory, a refusal, more time than it may take, an output
that is not the original's) is a row that says so; the largest cells come last. Each figure says
whether it was measured or planned. What MIT published is printed beside, and called that.

Run as ``python -m tools.a100_report --out DIR``; one cell:
``--only '*/conv3-2048x2048x512/batch-x4'``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from patchconv_deploy.engines.errors import DeviceMissing, EngineMissing
from patchconv_deploy.engines.gpu.cuda import Cuda, cuda_device, cuda_memory_bytes
from patchconv_deploy.engines.ort.measure import ROUNDS
from patchconv_deploy.engines.ort.options import PROVIDERS
from patchconv_deploy.engines.ort.run import installed as onnxruntime_installed
from patchconv_deploy.engines.trt.build import load_module
from tools.a100.asking import CPU_ENGINES, GPU_ENGINES, Engine
from tools.a100.cases import Cell, matrix
from tools.a100.models import FREE
from tools.a100.pytorch import PYTORCH, PYTORCH_CPU
from tools.a100.report import mib, write_json, write_report
from tools.a100.resuming import NotThisReport, rows_so_far
from tools.a100.rows import Report, Row, Run, run_cell, take_turns

__all__ = ["main", "missing"]

logger = logging.getLogger(__name__)


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
        any(cell.case.family == "vae" or cell.engine == "pytorch" for cell in cells)
        and importlib.util.find_spec("torch") is None
    ):
        found.append(
            "torch is not installed (VAE decoder, PyTorch's rows); patchconv-deploy[torch]"
        )
    return list(dict.fromkeys(found))


def _parse_splits(
    context: click.Context, parameter: click.Parameter, value: str
) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise click.BadParameter(f"{value!r} is not of the form 2,4,8 (each 2 or more)")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _run_all(
    cells: Sequence[Cell], engines: Mapping[str, Engine], run: Run, out: Path, empty: Report,
    had: Mapping[str, Row],
) -> Report:  # fmt: skip
    """Run the cells, writing the figures so far after each; stopped, it keeps what it has."""
    console = Console(stderr=True)
    rows: dict[str, Row] = {}

    def so_far() -> Report:
        # What is had already stays, whenever this run is stopped.
        done = {**had, **rows}
        return replace(empty, rows=tuple(done[c.name] for c in cells if c.name in done))

    # Beside the report: inputs take gigabytes, and the user chose that disk.
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=out))
    run = replace(run, folder=work)
    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(cells))
            # A case's cells are together.
            for case, group in groupby(cells, key=lambda cell: cell.case):
                mine = list(group)
                for cell in mine:
                    progress.update(task, description=cell.name)
                    if cell.name not in had:
                        rows[cell.name] = run_cell(cell, engines[cell.engine], run)
                        line = _line(rows[cell.name], engines[cell.engine])
                        progress.console.print(line, highlight=False, soft_wrap=True)
                        write_json(so_far(), out)
                    progress.advance(task)
                for engine in engines.values() if run.rounds else ():
                    progress.update(task, description=f"{engine.name}/{case.name}, in turns")
                    rows.update(_in_turns(mine, {**had, **rows}, engine, run))
                    write_json(so_far(), out)
                _sweep(work)
    except KeyboardInterrupt:
        console.print("[yellow]stopped[/]: the report holds what was done", highlight=False)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return so_far()


def _in_turns(
    cells: Sequence[Cell], rows: Mapping[str, Row], engine: Engine, run: Run
) -> dict[str, Row]:
    """Time a case's models in turns; where that fails, the rows stay as they are."""
    try:
        return take_turns(cells, rows, engine, run)
    except Exception as error:  # noqa: BLE001 - what is measured already is worth more
        logger.warning("%s/%s: not timed in turns: %s", engine.name, cells[0].case.name, error)
        return {}


def _sweep(work: Path) -> None:
    """Remove a case's files; the exports with free sizes serve the next one too."""
    for path in work.iterdir():
        if not path.name.startswith(FREE):
            path.unlink()


def _line(row: Row, engine: Engine) -> str:
    if row.error:
        return f"{row.cell}: [red]failed[/]: {escape(row.error)}"
    shown = [f"{head} {mib(row.value(name), name)}" for head, name in engine.columns]
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
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    default=ROUNDS,
    show_default=True,
    help="Rounds in which the models of a case take turns in being timed, once they are measured; "
    "0: each is timed alone.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=3600,
    show_default=True,
    help="Seconds that an engine may take for a cell, and anew under each setting of --sweep; then "
    "it is ended, and a row that says so.",
)
@click.option(
    "--resume", is_flag=True, help="Continue the report that is in the folder where it stopped."
)
@click.option(
    "--ask-anyway",
    is_flag=True,
    help="Ask TensorRT of tensors of 2^31 elements and more, too; the row has its own words.",
)
@click.option(
    "--pytorch",
    is_flag=True,
    help="PyTorch's rows too, of single Convs and the chain as they are (needs torch).",
)
@click.option(
    "--sweep",
    is_flag=True,
    help="Every cell under other settings, too: workspace of TensorRT, arena and layout of ONNX "
    "Runtime. Takes several times as long.",
)
def main(
    out: Path, cpu: bool, splits: tuple[int, ...], only: tuple[str, ...], runs: int | None,
    rounds: int, time_limit: float, resume: bool, ask_anyway: bool, sweep: bool,
    pytorch: bool,
) -> None:  # fmt: skip
    """Measure the published matrix on this machine and write a report.

    Exits 0 if any cell has figures, 1 if none has, 2 if this machine lacks what it needs.
    """
    chosen = (CPU_ENGINES if cpu else GPU_ENGINES) + (
        ((PYTORCH_CPU if cpu else PYTORCH),) if pytorch else ()
    )
    engines = {engine.name: engine for engine in chosen}
    cells = [
        cell
        for cell in matrix(tuple(engines), splits, only)
        if cell.engine != "pytorch" or (cell.form == "original" and cell.case.family != "vae")
    ]
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
    words += ["--rounds", str(rounds)] if rounds != ROUNDS else []
    words += ["--ask-anyway"] if ask_anyway else []
    words += ["--sweep"] if sweep else []
    words += ["--pytorch"] if pytorch else []
    run = Run(
        runs or (2 if cpu else 5),
        out,
        time_limit,
        None if cpu else cuda_memory_bytes(),
        None if cpu else out / "timing.cache",
        ask_anyway,
        sweep,
        rounds,
    )
    empty = Report(
        shlex.join(words), cpu, tuple(engines.values()), len(cells), (), run.runs, ask_anyway, sweep
    )
    had: Mapping[str, Row] = {}
    if resume:
        settings = {
            "mode": "cpu" if cpu else "gpu",
            "runs": run.runs,
            "ask_anyway": ask_anyway,
            "sweep": sweep,
        }
        try:
            had = rows_so_far(out / "report.json", cells, settings)
        except NotThisReport as error:
            raise click.UsageError(f"--resume: {error}") from error
    report = _run_all(cells, engines, run, out, empty, had)
    write_report(report, out)
    failed = sum(bool(row.error) for row in report.rows)
    click.echo(f"{out / 'report.md'}: {len(report.rows)} cells, {failed} failed")
    sys.exit(0 if failed < len(report.rows) else 1)


if __name__ == "__main__":
    main()
