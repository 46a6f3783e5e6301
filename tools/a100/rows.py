"""A cell's outcome: made, asked for and noted, whatever goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.measure import now
from tools.a100.asking import Engine, Figure, Found
from tools.a100.cases import PUBLISHED, Cell, stand_in
from tools.a100.models import Variant, write_inputs, write_variant

__all__ = ["Report", "Row", "run_cell"]

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
        date: When, UTC.
        figures: What it says.
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
    published: str = ""
    error: str = ""

    def value(self, name: str) -> float | None:
        """Return a figure's number, None if there is none."""
        figure = self.figures.get(name)
        return None if figure is None else figure.value


def _published(cell: Cell) -> str:
    uncut, cut = PUBLISHED.get(cell.case.name, ("", ""))
    return {"original": uncut, "batch": cut}.get(cell.form, "")


def run_cell(cell: Cell, engine: Engine, runs: int, folder: Path) -> Row:
    """Make a cell's model, ask its engine, and return the row; a failure is one too.

    Args:
        cell: The cell.
        engine: Its engine.
        runs: Timed runs.
        folder: Takes models and inputs; what lies there is used again.
    """
    model = stand_in(cell.case) if engine.scaled else cell.case
    variant = Variant(folder)
    try:
        predicted = "onnxruntime" if engine.name == "onnxruntime" else "tensorrt"
        variant = write_variant(model, cell.form, cell.splits, folder, predicted)
        inputs = write_inputs(model, folder) if engine.runs else None
        found = engine.ask(variant.path, inputs, runs)
    except Exception as error:  # whatever goes wrong in a cell is its outcome
        logger.debug("%s", cell.name, exc_info=True)
        found = Found({}, "", "", {}, now(), str(error) or type(error).__name__)
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
        runs=runs if engine.runs else 0,
        date=found.date,
        figures=found.figures,
        # Beside a stand-in it would be read as a figure to compare with.
        published="" if engine.scaled else _published(cell),
        # A reader has no use for the place where the models lay.
        error=" ".join(found.error.replace(f"{folder}/", "").split()),
    )


@dataclass(frozen=True, slots=True)
class Report:
    """Rows, and what they are rows of.

    Attributes:
        command: The command line, for people.
        cpu: Made without a GPU.
        engines: The engines.
        wanted: Number of cells asked for; more than rows if it was stopped.
        rows: The rows.
    """

    command: str
    cpu: bool
    engines: tuple[Engine, ...]
    wanted: int
    rows: tuple[Row, ...]

    def of(self, engine: Engine) -> list[Row]:
        """Return an engine's rows."""
        return [row for row in self.rows if row.engine == engine.name]
