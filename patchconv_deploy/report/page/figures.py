"""What was measured and verified before, read from JSON that the commands wrote.

Two kinds of files are taken: that of ``patchconv measure --json`` (``results``) and that of
``patchconv-rewrite --report`` (``verification``, ``measured``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchconv_deploy.errors import UsageError

__all__ = ["Figures", "Row", "check_same_rewrite", "read_figures", "row_of"]

_LARGEST = 64 << 20


@dataclass(frozen=True)
class Row:
    """What was measured of one model under one set of options.

    Attributes:
        model: The name of its file.
        engine: What ran it, or planned for it, with its version.
        kind: "measured", or "planned" where nothing was run.
        device: The processor, or the GPU.
        options: Memory reuse and memory pattern, in words; empty where the engine has none.
        peak: Peak of the runs, bytes.
        whole: Peak of loading and running, bytes; None where that is not known.
        seconds: Median of a run, None where nothing was run.
        ratio: Time over the first model's, None for none.
        date: When.
    """

    model: str
    engine: str
    kind: str
    device: str
    options: str
    peak: int
    whole: int | None
    seconds: float | None
    ratio: float | None
    date: str


@dataclass(frozen=True)
class Figures:
    """What files said.

    Attributes:
        rows: What was measured, in the order of the files.
        verification: What verification found, as in a report; None where no file has that.
        source: The file that has it.
        regions: The nodes of each region of that report.
        failed: Models that could not be measured, with the reason.
    """

    rows: tuple[Row, ...] = ()
    verification: Mapping[str, Any] | None = None
    source: str = ""
    regions: tuple[tuple[str, ...], ...] = ()
    failed: tuple[str, ...] = ()


@dataclass
class _Gathered:
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    verification: Mapping[str, Any] | None = None
    source: str = ""
    regions: tuple[tuple[str, ...], ...] = ()


def read_figures(paths: Iterable[Path]) -> Figures:
    """Return what files say.

    Args:
        paths: JSON files.

    Raises:
        UsageError: One cannot be read, or is neither of the two kinds.
    """
    found = _Gathered()
    for path in paths:
        data = _read(path)
        try:
            _gather(data, path, found)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(
                f"figures={str(path)!r}: neither a measurement nor the report of a rewrite"
            ) from None
    return Figures(
        tuple(found.rows), found.verification, found.source, found.regions, tuple(found.failed)
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"figures={str(path)!r}: {error.strerror}") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"figures={str(path)!r}: not JSON") from None
    if not isinstance(data, dict) or not data.keys() & {"results", "verification"}:
        raise UsageError(
            f"figures={str(path)!r}: neither a measurement nor the report of a rewrite"
        )
    return data


def _gather(data: Mapping[str, Any], path: Path, found: _Gathered) -> None:
    for entry in (*data.get("results", ()), *data.get("measured", ())):
        row = row_of(entry)
        if isinstance(row, str):
            found.failed.append(row)
        else:
            found.rows.append(row)
    checked = data.get("verification")
    if checked is not None and checked["ran"]:
        _check_verification(checked)
        found.verification, found.source = checked, str(path)
        found.regions = tuple(tuple(map(str, e["nodes"])) for e in data["rewritten"])


def _check_verification(found: Mapping[str, Any]) -> None:
    """Read all that is used of a verification.

    Raises:
        KeyError, TypeError, ValueError: Something is missing, or of another kind.
    """
    if found["passed"] not in (True, False, None):
        raise ValueError
    bool(found["declined"])
    for text in ("reason", "via", "doubt"):
        str(found[text])
    for shapes in (found["shapes"], *found["sizes"]):
        for shape in shapes.values():
            [int(size) for size in shape]
    for output in found["outputs"]:
        str(output["name"])
        figures = ("max_abs", "max_rel", "tolerance", "differing")
        [float(output[key]) for key in figures]
        if output["seam_max_abs"] is not None:
            float(output["seam_max_abs"])


def row_of(entry: Mapping[str, Any]) -> Row | str:
    """Return a row from what was measured, as JSON; a sentence where that failed.

    Args:
        entry: `engines.measurement.Measurement.as_json`, or the same of TensorRT.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    model = Path(str(entry["model"])).name
    if entry.get("error"):
        return f"{model}: {entry['error']}"
    planned = entry.get("kind") == "planned"
    peak = entry["planned_activation_bytes"] if planned else entry["peak_bytes"]
    seconds, ratio = (entry.get(key) for key in ("latency_s", "ratio"))
    options = entry.get("options") or {}
    said = [
        f"{words} {'on' if options[key] else 'off'}"
        for key, words in (("memory_reuse", "reuse"), ("memory_pattern", "pattern"))
        if key in options
    ]
    whole = entry.get("whole_bytes")
    return Row(
        model,
        f"{entry['engine']} {entry.get('version', '')}".strip(),
        "planned" if planned else "measured",
        str(entry.get("device", "")),
        ", ".join(said),
        int(peak),
        None if whole is None else int(whole),
        None if seconds is None else float(seconds["median"]),
        None if ratio is None else float(ratio["median"]),
        str(entry.get("date", "")),
    )


def check_same_rewrite(figures: Figures, regions: Sequence[Sequence[str]]) -> None:
    """Refuse a verification that is of another rewrite.

    Args:
        figures: What files said.
        regions: The nodes of each region of the rewrite at hand.

    Raises:
        UsageError: The regions are not the same.
    """
    if figures.verification is None:
        return
    if sorted(figures.regions) != sorted(map(tuple, regions)):
        raise UsageError(
            f"figures={figures.source!r}: is of another rewrite: its regions are not those of this "
            "one; give the same options as then, or the model that it wrote"
        )
