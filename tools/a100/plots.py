"""Plots of memory, and the points they are drawn from."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tools.a100.asking import Engine
from tools.a100.rows import Report, Row

__all__ = ["LATENCY_PLOT", "MEMORY_PLOT", "csv_text", "draw", "plot_data"]

MIB = 1 << 20

MEMORY_PLOT = "memory_over_activation"
LATENCY_PLOT = "memory_against_latency"
_LATENCY_S = "latency_median_s"


def _variant_label(row: Row) -> str:
    return row.form if row.form == "original" else f"{row.form} x{row.splits}"


def plot_data(report: Report, name: str) -> list[dict[str, Any]]:
    """Return the points of a plot; a cell without the figures has none."""
    points = []
    for engine in report.engines:
        for row in report.of(engine):
            memory, latency = row.value(engine.memory), row.value(_LATENCY_S)
            if memory is None or (name == LATENCY_PLOT and latency is None):
                continue
            points.append(
                {
                    "engine": engine.name,
                    "family": row.family,
                    "case": row.case,
                    "model": row.model,
                    "variant": _variant_label(row),
                    "memory_figure": engine.memory,
                    "memory_kind": engine.kind,
                    "activation_bytes": row.activation_bytes,
                    "memory_bytes": memory,
                    "latency_s": "" if latency is None else latency,
                }
            )
    return points


def csv_text(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the points as CSV."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return stream.getvalue()


_T = TypeVar("_T")


def _grouped(
    points: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], _T]
) -> dict[_T, list[Mapping[str, Any]]]:
    groups: dict[_T, list[Mapping[str, Any]]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return groups


def draw(points: Sequence[Mapping[str, Any]], name: str, engines: Sequence[Engine]) -> bytes:
    """Return a PNG: a row of panels per engine, a column per family."""
    figure_type = importlib.import_module("matplotlib.figure").Figure
    families = list(dict.fromkeys(point["family"] for point in points))
    present = {point["engine"] for point in points}
    shown = [engine for engine in engines if engine.name in present]
    size = (4.5 * len(families) + 1.5, 3.8 * len(shown))
    figure = figure_type(figsize=size, layout="constrained")
    panels = figure.subplots(len(shown), len(families), squeeze=False)
    x_name = "latency_s" if name == LATENCY_PLOT else "activation_bytes"
    scale = 1.0 if name == LATENCY_PLOT else float(MIB)
    variants = list(dict.fromkeys(point["variant"] for point in points))
    for line, engine in zip(panels, shown, strict=True):
        for panel, family in zip(line, families, strict=True):
            mine = [p for p in points if (p["engine"], p["family"]) == (engine.name, family)]
            for variant, group in _grouped(mine, lambda p: str(p["variant"])).items():
                number = variants.index(variant)
                group = sorted(group, key=lambda p: float(p["activation_bytes"]))
                panel.plot(
                    [point[x_name] / scale for point in group],
                    [point["memory_bytes"] / MIB for point in group],
                    # Of another length than the colours: a variant has a pair of its own.
                    marker="osD^vPX*<>h"[number % 11],
                    color=f"C{number % 10}",
                    linestyle="none" if name == LATENCY_PLOT else "-",
                    label=variant,
                )
            if name == LATENCY_PLOT:
                for case, group in _grouped(mine, lambda p: str(p["model"])).items():
                    highest = max(group, key=lambda p: float(p["memory_bytes"]))
                    at = (highest[x_name], highest["memory_bytes"] / MIB)
                    panel.annotate(case, at, textcoords="offset points", xytext=(0, 6), fontsize=7)
            panel.set_title(f"{family}: {engine.title}", fontsize=8)
            panel.set_xlabel(
                "latency, s (measured)"
                if name == LATENCY_PLOT
                else "largest tensor of a Conv, MiB (from its shape)"
            )
            panel.set_ylabel(f"{engine.memory}, MiB ({engine.kind})", fontsize=8)
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.margins(0.1)
            panel.grid(alpha=0.3)
    handles = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    order = [label for label in variants if label in handles]
    figure.legend([handles[label] for label in order], order, loc="outside right upper")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
