"""The regions of a rewrite for people: how each is cut, in rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from patchconv_deploy.console import printable
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.outcome import Rewritten
from patchconv_deploy.rewriters.regions.tiled_region import RegionPlan
from patchconv_deploy.words import in_flags

__all__ = ["FORM_WORDS", "halo_of", "regions_of"]

FORM_WORDS: Mapping[str, str] = {
    "fused": "patch after patch, every window of one height",
    "shrinking": "patch after patch, layers without the rows that later ones do not need",
    "loop": "an ONNX Loop runs one patch a round",
    "rounds": "an ONNX Loop of as many patches of a fixed height as the image needs",
    "batch": "windows stacked in the batch dimension, one Conv",
    "sequential": "one Conv per patch",
}

# Patches whose windows are drawn, and names that are listed.
_DRAWN, _NAMED = 64, 400


def halo_of(plan: RegionPlan) -> int | None:
    """Return the most rows of the first input that two neighbouring windows have in common.

    Returns:
        None where the rows are known when the model runs alone.
    """
    if plan.tiling is None or not plan.tiling.patches:
        return None
    first = plan.region.network.inputs[0]
    windows = [plan.window(first, patch) for patch in plan.tiling.patches]
    return max((before.end - after.begin for before, after in pairwise(windows)), default=0)


def regions_of(
    rewritten: Sequence[Rewritten],
    entries: Sequence[Mapping[str, Any]],
    operators: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row a region.

    Args:
        rewritten: What was cut.
        entries: The same in the report; figures are taken from there.
        operators: Operators of the model's nodes by label.
    """
    return [
        _region(number, region, entry, operators)
        for number, (region, entry) in enumerate(zip(rewritten, entries, strict=True))
    ]


def _region(
    number: int, region: Rewritten, entry: Mapping[str, Any], operators: Mapping[str, str]
) -> dict[str, Any]:
    plan = region.plan
    kinds = Counter(operators[label] for label in entry["nodes"] if label in operators)
    nodes = [printable(label) for label in entry["nodes"]]
    work = entry["recompute"]
    return {
        "number": number,
        "id": f"R{number + 1}",
        "first": nodes[0],
        "last": nodes[-1],
        "nodes": nodes[:_NAMED],
        "count": len(nodes),
        "kinds": ", ".join(f"{count} {printable(op)}" for op, count in kinds.most_common()),
        "form": entry["form"],
        "form_words": FORM_WORDS[entry["form"]],
        "axis": entry["axis"],
        "splits": entry["splits"],
        "recompute": "at run time" if work is None else f"{work:.3f}x",
        "seams": list(entry["seams"]),
        "rows": region.rows,
        "windows": _windows(plan),
        "patch_rows": entry.get("patch_rows"),
        "inputs": _edges(plan, plan.region.inputs, plan.region.network.inputs),
        "outputs": _edges(plan, plan.region.outputs, plan.region.network.outputs),
        "bytes": None if entry["bytes"] is None else mebibytes(entry["bytes"]),
        "notes": [printable(in_flags(note)) for note in entry["notes"]],
    }


def _edges(
    plan: RegionPlan, edges: Sequence[Any], numbers: Sequence[int]
) -> list[tuple[str, int | None]]:
    """Return names and rows of a region's inputs or outputs, None for rows that are unknown."""
    return [
        (printable(edge.name), plan.heights[number] if plan.heights else None)
        for edge, number in zip(edges, numbers, strict=True)
    ]


def _windows(plan: RegionPlan) -> dict[str, Any] | None:
    """Return windows and cores of the first input and output, None if known at run time alone."""
    if plan.tiling is None:
        return None
    network = plan.region.network
    given, made = network.inputs[0], network.outputs[0]
    rows, out = plan.heights[given], plan.heights[made]
    patches = [(plan.window(given, patch), patch.cores[0]) for patch in plan.tiling.patches]
    heights = [len(window) for window, _ in patches]
    return {
        "rows": rows,
        "out": out,
        "height": str(max(heights)),
        "least": min(heights),
        "halo": halo_of(plan),
        "patches": [
            {
                "window": [window.begin, window.end],
                "core": [core.begin, core.end],
                "left": f"{100 * window.begin / rows:.3f}",
                "width": f"{100 * len(window) / rows:.3f}",
                "core_left": f"{100 * core.begin / out:.3f}",
                "core_width": f"{100 * len(core) / out:.3f}",
            }
            for window, core in patches[:_DRAWN]
        ],
        "more": max(0, len(patches) - _DRAWN),
    }
