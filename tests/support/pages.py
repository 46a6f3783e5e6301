"""The documentation as data: its pages, and the fenced blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks_of", "commands_of", "prose_of", "text_of"]

ROOT = Path(__file__).resolve().parents[2]

PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))

_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_CONTINUED = re.compile(r"\\\n\s*")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: What stands behind the fence.
        text: What is in it.
        not_run: Why it is not run by a test; empty if it is.
    """

    language: str
    text: str
    not_run: str = ""


def text_of(page: str) -> str:
    """Return a page as it stands in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order.

    Raises:
        ValueError: A comment above a block does not say "not run: REASON".
    """
    blocks = []
    for found in _FENCE.finditer(text_of(page)):
        mark = found["mark"] or ""
        reason = mark.removeprefix("not run: ") if mark.startswith("not run: ") else ""
        if mark and not reason:
            raise ValueError(f"{page}: what is {mark!r} above a block?")
        blocks.append(Block(found["language"], found["text"], reason))
    return blocks


def prose_of(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def commands_of(block: Block) -> Iterator[str]:
    """Yield the command lines of a block, continued lines joined; of a console those typed."""
    lines = _CONTINUED.sub(" ", block.text).splitlines()
    for line in lines:
        if block.language == "console":
            if line.startswith("$ "):
                yield line.removeprefix("$ ")
        elif line.strip() and not line.lstrip().startswith("#"):
            yield line
