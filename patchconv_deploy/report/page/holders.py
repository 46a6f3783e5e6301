"""What holds the peak before and after, and what was left alone: lists for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from patchconv_deploy.console import printable
from patchconv_deploy.report.page.naming import Regions
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.inspection import Barrier
from patchconv_deploy.rewriters.memory.peak import Peak
from patchconv_deploy.rewriters.planning.peak_holders import Reason
from patchconv_deploy.rewriters.regions.selection import ConvSize
from patchconv_deploy.words import in_flags

__all__ = ["alive_at", "causes", "left_alone"]

# What the copy of a tensor in blocks of channels is called after it.
_BLOCKS = "/blocks"

# Nodes that are named of a reason.
_NAMED = 200

# Tensors of a smaller share of the peak are not named.
_NOTABLE = 0.005

# What patches could be made of is told by what became of it.
_CUT = "layers that can be cut"


def _row(text: str, size: int | None, whole: int, **more: Any) -> dict[str, Any]:
    share = 0.0 if size is None or not whole else min(100.0, 100 * size / whole)
    return {
        "text": text,
        "bytes": mebibytes(size),
        "share": f"{share:.2f}",
        "name": False,
        "shape": "",
        "region": None,
        "nodes": [],
        "count": 0,
        "advice": "",
        **more,
    }


def causes(reasons: Sequence[Reason], peak: Peak, *, cut: bool) -> list[dict[str, Any]]:
    """Return why the original's peak is what it is, the most bytes first.

    Args:
        reasons: What holds it.
        peak: The peak.
        cut: Something was cut.
    """
    rows = []
    for reason in reasons:
        gains = cut and reason.code == "no-gain"
        rows.append(
            _row(
                _CUT if gains else printable(in_flags(reason.reason)),
                reason.bytes,
                peak.bytes,
                advice="" if gains else printable(in_flags(reason.advice)),
                nodes=[printable(name) for name in reason.nodes[:_NAMED]],
                count=len(reason.nodes),
            )
        )
    return rows


def alive_at(peak: Peak, regions: Regions, shapes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what is alive at a peak: pieces by region, other tensors by name.

    Args:
        peak: The peak.
        regions: Tells which region a tensor is of.
        shapes: Shapes of the original's activations.
    """
    pieces: dict[int, tuple[int, int]] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    for name, size in peak.alive:
        region, shown = regions.of(name)
        if region is None and name not in shapes and name.endswith(_BLOCKS):
            name = name.removesuffix(_BLOCKS)
            shown = f"{printable(name)} (blocked layout)"
        if region is None:
            shape = shapes.get(name, "")
            rows.append((size, _row(shown, size, peak.bytes, name=True, shape=shape)))
        else:
            count, total = pieces.get(region, (0, 0))
            pieces[region] = count + 1, total + size
    for region, (count, size) in pieces.items():
        text = f"{count} piece{'s' if count > 1 else ''} of patches of R{region + 1}"
        rows.append((size, _row(text, size, peak.bytes, region=region)))
    rows = [(size, row) for size, row in rows if size >= _NOTABLE * peak.bytes]
    rest = peak.bytes - sum(size for size, _ in rows)
    if rest > 0:
        text = "smaller tensors, workspaces and what the allocator adds"
        rows.append((rest, _row(text, rest, peak.bytes)))
    return [row for _, row in sorted(rows, key=lambda entry: -entry[0])]


def left_alone(
    refused: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, ConvSize],
    barriers: Iterable[Barrier],
    operators: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return what was not cut by the reason, the most bytes first, unknown ones before.

    Args:
        refused: The convolutions left alone, as in the report.
        sizes: Sizes of the convolutions, by label.
        barriers: Nodes that cannot be in a region.
        operators: Operators of the model's nodes by label.
    """
    groups: dict[str, dict[str, int | None]] = {}
    for entry in refused:
        size = sizes.get(entry["node"])
        group = groups.setdefault(entry["reason"], {})
        group[entry["node"]] = None if size is None else size.bytes
    for barrier in barriers:
        groups.setdefault(barrier.reason, {}).setdefault(barrier.node, barrier.bytes)
    found = []
    for reason, nodes in groups.items():
        known = [size for size in nodes.values() if size is not None]
        found.append((len(known) < len(nodes), sum(known), reason, nodes))
    most = max((size for _, size, _, _ in found), default=0)
    found.sort(key=lambda entry: (not entry[0], -entry[1], entry[2]))
    return [
        _row(
            printable(in_flags(reason)),
            size if size or not unknown else None,
            most,
            unknown=unknown,
            count=len(nodes),
            nodes=[
                (printable(name), printable(operators.get(name, "")), mebibytes(of))
                for name, of in sorted(nodes.items(), key=lambda entry: -(entry[1] or 0))[:_NAMED]
            ],
        )
        for unknown, size, reason, nodes in found
    ]
