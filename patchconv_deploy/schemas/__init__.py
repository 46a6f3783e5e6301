"""JSON Schemas of the files that are written for programs: reports and plans."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from patchconv_deploy.errors import UsageError

__all__ = ["SCHEMAS", "schema"]

SCHEMAS = ("plan", "report")


def schema(name: str) -> dict[str, Any]:
    """Return a JSON Schema (draft 2020-12), to validate a file or to make types of.

    Its `version` is that of the files. Another version removes a key or changes what one means;
    keys may be added within one.

    Args:
        name: "report", of `patchconv-rewrite --report`, or "plan", of ``--plan-out``.

    Raises:
        UsageError: There is no schema of this name.
    """
    if name not in SCHEMAS:
        raise UsageError(f"schema({name!r}): there are {' and '.join(SCHEMAS)}")
    text = files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
