"""Why something is left as it is: data, shown in the report."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Refusal"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A convolution that was left alone.

    Attributes:
        node: The node's name, or its output's where it has none.
        reason: Why, in words.
        code: The same as a word that stays the same from release to release.
    """

    node: str
    reason: str
    code: str
