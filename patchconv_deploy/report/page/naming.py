"""Which region a node of a rewritten model belongs to, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from patchconv_deploy.console import printable
from patchconv_deploy.rewriters.outcome import Rewritten

__all__ = ["Regions"]

# New nodes are called <base>/<tag>/<what>; a tag that the model has already gets a number.
_NEW = re.compile(r"(?P<base>.*)/patchconv(?:_\d+)?/(?P<what>.+)", re.DOTALL)


class Regions:
    """Regions by the names of their nodes.

    Args:
        regions: What was cut.
    """

    def __init__(self, regions: Sequence[Rewritten]) -> None:
        self._by_base: dict[str, int] = {}
        for number, entry in enumerate(regions):
            self._by_base[entry.plan.region.label] = number
            self._by_base.setdefault(entry.nodes[0], number)

    def of(self, name: str) -> tuple[int | None, str]:
        """Return the number of the region that a node or tensor was written for, and its name.

        Args:
            name: A name in the rewritten model.

        Returns:
            None and the printable name where it is the model's own; else the region's number from
            0 on, and the name within the region.
        """
        match = _NEW.fullmatch(name)
        if match is None or match["base"] not in self._by_base:
            return None, printable(name)
        return self._by_base[match["base"]], printable(match["what"])
