"""A cell's outcome: made, asked for and noted, whatever goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.measurement import Job, now
from patchconv_deploy.engines.ort.measure import Turns
from tools.a100.asking import (
    DEFAULT,
    Engine,
    Figure,
    Found,
    Request,
    Setting,
    latency_figures,
    sampled_of,
)
from tools.a100.cases import PUBLISHED, Case, Cell, stand_in
from tools.a100.compared import (
    ORIGINAL_HERE,
    Compared,
    compare,
    load_windows,
    reference,
    windows_of,
)
from tools.a100.models import Variant, variant_path, write_inputs, write_model, write_variant

__all__ = ["Report", "Row", "Run", "row_of", "run_cell", "take_turns"]

logger = logging.getLogger(__name__)


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
        rounds: Rounds of turns with the other models of the case that its time is from, so many
            runs in each; 0: it was timed alone.
        date: When, UTC.
        figures: What it says.
        settings: What the engine says under other settings, with --sweep.
        device_state: Clocks, power and what slowed the device down, when time was taken.
        needed_bytes: Input and output: without that much memory no form runs.
        compared: How sampled windows of its output compare with a reference.
        not_compared: Why they were not, where it ran.
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
    device_state: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    needed_bytes: int = 0
    compared: Compared | None = None
    not_compared: str = ""
    published: str = ""
    error: str = ""
    rounds: int = 0

    def value(self, name: str) -> float | None:
        """Return a figure's number, None if there is none."""
        figure = self.figures.get(name)
        return None if figure is None else figure.value

    @property
    def counts(self) -> bool:
        """Tell whether ratios may be taken of it: a plan, or a run whose output was compared."""
        return self.kind == "planned" or self.compared is not None


def _published(cell: Cell) -> str:
    uncut, cut = PUBLISHED.get(cell.case.name, ("", ""))
    return {"original": uncut, "batch": cut}.get(cell.form, "")


@dataclass(frozen=True, slots=True)
class Run:
    """How cells are run.

    Attributes:
        runs: Timed runs.
        folder: Takes models and inputs; what lies there is used again.
        time_limit_s: Seconds that an engine may take for a cell, under each setting anew; None for
            no limit.
        device_bytes: Memory of the device; None where none is used.
        timing_cache: TensorRT's.
        sweep: Ask under the engines' other settings, too.
        ask_anyway: Let TensorRT say itself what it thinks of tensors of 2^31 elements and more.
        rounds: Rounds in which the models of a case take turns in being timed.
    """

    runs: int
    folder: Path
    time_limit_s: float | None = None
    device_bytes: int | None = None
    timing_cache: Path | None = None
    ask_anyway: bool = False
    sweep: bool = False
    rounds: int = 0


def _check_memory(model: Case, there: int | None) -> None:
    if there is not None and model.least_bytes > there:
        raise ValueError(
            f"skipped: input and output alone need {model.least_bytes / 2**30:.1f} GiB, and the "
            f"device has {there / 2**30:.1f} GiB"
        )


def _sampled(cell: Cell, folder: Path, form: str) -> Path:
    return folder / f"{cell.case.name}-{cell.engine}-{form}-x{cell.splits}.windows.npz"


def _compare(cell: Cell, model: Case, found: Path, folder: Path) -> tuple[Compared | None, str]:
    """Compare the windows an engine wrote; return the outcome, or why there is none."""
    windows = load_windows(found, len(windows_of(model)))
    if model.family != "vae":
        wanted = reference(model, write_model(model, folder), write_inputs(model, folder))
        against = "the original on the CPU in float32"
        return compare(windows, wanted, model.dtype, against), ""
    first = _sampled(replace(cell, splits=1), folder, "original")
    # What it puts out under another setting is compared with what it puts out at its default.
    if found == first:
        return None, "it normalises over the image: no reference for windows"
    if not first.exists():
        return None, "the original did not run"
    wanted = load_windows(first, len(windows))
    return compare(windows, wanted, model.dtype, ORIGINAL_HERE), ""


def _setting(each: Setting, cell: Cell, model: Case, sampled: Path, folder: Path) -> Setting:
    """Compare the output under a setting; one that is wrong has no figures."""
    if each.error:
        return replace(each, error=_one_line(each.error, folder))
    compared, why = _compare(cell, model, sampled, folder)
    if compared is None or compared.agrees:
        return replace(each, compared=compared, not_compared=why)
    return replace(each, compared=compared, figures={}, error=_wrong(compared))


def _wrong(compared: Compared) -> str:
    return (
        f"its output is wrong: it differs by {compared.largest_error:.3g} from "
        f"{compared.against}, {compared.tolerance:g} is allowed"
    )


def _ask(cell: Cell, engine: Engine, variant: Variant, run: Run) -> Row:
    """Ask an engine of a model that is there, and compare what it put out."""
    model = stand_in(cell.case) if engine.scaled else cell.case
    job, sampled = Job(variant.path, variant.path), _sampled(cell, run.folder, cell.form)
    if engine.runs:
        _check_memory(model, run.device_bytes)
        inputs = write_inputs(model, run.folder)
        job = Job(variant.path, inputs, windows_of(model), sampled)
    found = engine.ask(
        Request(job, run.runs, run.timing_cache, run.ask_anyway, run.sweep, run.time_limit_s)
    )
    row = _row(cell, engine, variant, run, found)
    if not engine.runs:
        return row
    # One may run where the default does not fit.
    settings = tuple(
        _setting(each, cell, model, sampled_of(sampled, number), run.folder)
        for number, each in enumerate(found.settings, 1)
    )
    row = replace(row, settings=settings)
    if found.error:
        return row
    compared, why = _compare(cell, model, sampled, run.folder)
    if compared is not None and not compared.agrees:
        return replace(row, compared=compared, figures={}, error=_wrong(compared))
    return replace(row, compared=compared, not_compared=why)


def run_cell(cell: Cell, engine: Engine, run: Run) -> Row:
    """Make a cell's model, ask its engine, and return the row; a failure is one too."""
    model = stand_in(cell.case) if engine.scaled else cell.case
    variant = Variant(run.folder)
    try:
        variant = write_variant(model, cell.form, cell.splits, run.folder, _predicted(engine))
        return _ask(cell, engine, variant, run)
    except Exception as error:  # whatever goes wrong in a cell is its outcome
        logger.debug("%s", cell.name, exc_info=True)
        why = str(error) or type(error).__name__
        return _row(cell, engine, variant, run, Found({}, "", "", {}, now(), why))


def _predicted(engine: Engine) -> str:
    return "onnxruntime" if engine.name == "onnxruntime" else "tensorrt"


def take_turns(
    cells: Sequence[Cell], rows: Mapping[str, Row], engine: Engine, run: Run
) -> dict[str, Row]:
    """Time the models of one case that ran on an engine in turns, and return their rows anew.

    An original and its cuts are measured minutes apart; a ratio of such times is one of the
    machine's, too. What fails or is not done in turns keeps the time it has.

    Args:
        cells: The case's cells.
        rows: Rows there are, by cell.
        engine: The engine.
        run: How; in ``run.rounds`` rounds.
    """
    ran = [(cell, rows[cell.name]) for cell in cells if cell.engine == engine.name
           and cell.name in rows]  # fmt: skip
    timed = [
        (cell, setting)
        for cell, row in ran
        for setting, figures in (
            (DEFAULT, row.figures),
            *((each.name, each.figures) for each in row.settings if engine.settings_too),
        )
        if "latency_median_s" in figures
    ]
    names = {cell.name for cell, _ in timed}
    # Of a report that was stopped, a case can be there whole.
    if engine.turns is None or len(names) < 2 or all(row.rounds for _, row in ran):
        return {}
    jobs = []
    for cell, setting in timed:
        model = stand_in(cell.case) if engine.scaled else cell.case
        how = (model, cell.form, cell.splits, run.folder, _predicted(engine))
        path = variant_path(*how)
        path = path if path.exists() else write_variant(*how).path
        jobs.append((Job(path, write_inputs(model, run.folder)), setting))
    request = Request(
        jobs[0][0], run.runs, run.timing_cache, run.ask_anyway, False, run.time_limit_s, run.rounds
    )
    found: dict[str, dict[str, Turns]] = {}
    for (cell, setting), turns in zip(timed, engine.turns(request, jobs), strict=True):
        if turns.error:
            logger.warning("%s, %s: not timed in turns: %s", cell.name, setting, turns.error)
        else:
            found.setdefault(cell.name, {})[setting] = turns
    return {name: _in_turns(rows[name], each) for name, each in found.items()}


def _in_turns(row: Row, found: Mapping[str, Turns]) -> Row:
    """Return a row with the times that its settings have in turns."""

    def figures(had: Mapping[str, Figure], turns: Turns) -> dict[str, Figure]:
        assert turns.latency_s is not None
        return {**had, **latency_figures(turns.latency_s)}

    settings = tuple(
        replace(
            each,
            figures=figures(each.figures, found[each.name]),
            rounds=found[each.name].rounds,
            device_state=found[each.name].device_state or each.device_state,
        )
        if each.name in found
        else each
        for each in row.settings
    )
    row = replace(row, settings=settings)
    if DEFAULT not in found:
        return row
    turns = found[DEFAULT]
    return replace(
        row,
        figures=figures(row.figures, turns),
        rounds=turns.rounds,
        device_state=turns.device_state or row.device_state,
    )


def _row(cell: Cell, engine: Engine, variant: Variant, run: Run, found: Found) -> Row:
    model = stand_in(cell.case) if engine.scaled else cell.case
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
        runs=run.runs if engine.runs else 0,
        date=found.date,
        figures=found.figures,
        device_state=found.device_state,
        settings=found.settings,
        needed_bytes=model.least_bytes,
        # Beside a stand-in it would be read as a figure to compare with.
        published="" if engine.scaled else _published(cell),
        error=_one_line(found.error, run.folder),
    )


def _one_line(error: str, folder: Path) -> str:
    """Return an error without the place where the models lay, of which a reader has no use."""
    return " ".join(error.replace(f"{folder}/", "").split())


def row_of(data: Mapping[str, Any]) -> Row:
    """Return the row that a report.json has."""
    settings = tuple(Setting(**_read(each)) for each in data.get("settings", ()))
    return Row(**{**_read(data), "settings": settings})


def _read(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON has of a row or a setting, with its figures and its comparison made."""
    figures = {name: Figure(**each) for name, each in data["figures"].items()}
    compared = None if data["compared"] is None else Compared(**data["compared"])
    return {**data, "figures": figures, "compared": compared}


@dataclass(frozen=True, slots=True)
class Report:
    """Rows, and what they are rows of.

    Attributes:
        command: The command line, for people.
        cpu: Made without a GPU.
        engines: The engines.
        wanted: Number of cells asked for; more than rows if it was stopped.
        rows: The rows.
        runs: Timed runs of each.
        ask_anyway: TensorRT was asked of tensors of 2^31 elements and more.
        sweep: Cells were asked under other settings, too.
    """

    command: str
    cpu: bool
    engines: tuple[Engine, ...]
    wanted: int
    rows: tuple[Row, ...]
    runs: int = 0
    ask_anyway: bool = False
    sweep: bool = False

    def of(self, engine: Engine) -> list[Row]:
        """Return an engine's rows."""
        return [row for row in self.rows if row.engine == engine.name]
