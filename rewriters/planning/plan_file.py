"""A plan as JSON: written beside a model, read back, applied again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.regions.row_locality import AXES
from patchconv_deploy.rewriters.regions.tiled_region import ORDERS, RegionPlan

__all__ = ["METADATA_KEY", "plan_data", "read_plan"]


# Metadata entry that holds the plan of a rewritten model.
METADATA_KEY = "patchconv.plan"

_VERSION = 2


def plan_data(
    axis: str | int,
    order: str,
    entries: Sequence[tuple[RegionPlan, str, Sequence[str]]],
    target: str,
    max_buffer: int | None = None,
) -> dict[str, Any]:
    """Return the plan of a model as data for JSON, readable and editable.

    Args:
        axis: The axis that is cut, as the user named it.
        order: Name of the order that the nodes stand in.
        entries: Regions with their form and the labels of their nodes.
        target: The engine that it is made for, as the user named it; nothing depends on it.
        max_buffer: Bytes of a tensor that it was held to; nothing depends on it.
    """
    regions: list[dict[str, Any]] = []
    for plan, form, labels in entries:
        entry: dict[str, Any] = {
            "nodes": list(labels),
            "outputs": [edge.name for edge in plan.region.outputs],
            "form": form,
            "axis": plan.region.outputs[0].axis,
            "splits": plan.splits,
        }
        if plan.tiling is not None:
            entry["trim"] = plan.tiling.trim
            entry["seams"] = list(plan.tiling.seams())
        if plan.stride is not None:
            entry["patch_rows"] = plan.patch_rows
        regions.append(entry)
    return {
        "version": _VERSION,
        "target": target,
        "axis": axis,
        "order": order,
        **({} if max_buffer is None else {"max_buffer": max_buffer}),
        "regions": regions,
    }


def read_plan(text: str) -> dict[str, Any]:
    """Read a plan; only what is needed to apply it again.

    Those are a region's nodes, outputs, form, splits and the rows of a patch.

    Raises:
        OptionError: It is no plan.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise OptionError(f"plan=: not JSON: {error}") from error
    except RecursionError:
        raise OptionError("plan=: not a plan: it is nested too deeply") from None
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        raise OptionError(f"plan=: not a plan of version {_VERSION}")
    axis, regions, order = data.get("axis"), data.get("regions"), data.get("order", "file")
    if order not in ORDERS:
        raise OptionError(f"plan=: order must be one of {', '.join(ORDERS)}")
    if not isinstance(axis, str | int) or (isinstance(axis, str) and axis not in AXES):
        raise OptionError("plan=: axis must be height, width, depth or a dimension")
    if not isinstance(regions, list):
        raise OptionError("plan=: regions must be a list")
    for number, entry in enumerate(regions):
        if not isinstance(entry, dict):
            raise OptionError(f"plan=: region {number} is not an object")
        for key in ("nodes", "outputs"):
            names = entry.get(key)
            if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
                raise OptionError(f"plan=: region {number}: {key} must be a list of names")
        splits = entry.get("splits")
        if entry.get("form") not in FORMS or type(splits) is not int or splits < 2:
            raise OptionError(
                f"plan=: region {number}: form must be one of {', '.join(FORMS)}, splits 2 or more"
            )
        rows = entry.get("patch_rows")
        if rows is not None and (type(rows) is not int or rows < 1):
            raise OptionError(f"plan=: region {number}: patch_rows must be 1 or more")
    return {"version": _VERSION, "axis": axis, "order": order, "regions": regions}
