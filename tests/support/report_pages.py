"""Reports as pages: written by the command, read as a browser would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx

from tests.support.commands import run_command
from tests.support.small_models import model, node, noise

__all__ = ["HOSTILE", "Page", "hostile", "measured_row", "read_page", "write_page"]

# Names that would be markup, a template or a terminal's commands, if anybody let them.
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "a\x1b[31m\u202eb\nc\x00d\u2028",
    "&lt;b&gt;' onmouseover='alert(1)",
)


def hostile(side: int = 64) -> onnx.ModelProto:
    """Make a network whose nodes, tensors, input and output have such names."""
    a, b, c, d, e, f = HOSTILE
    weights = {"w": noise(16, 3, 3, 3), "v": noise(16, 16, 3, 3) / 12, "u": noise(3, 16, 3, 3) / 12}
    nodes = [
        node("Conv", "", "", name=a, pads=[1] * 4),
        node("Relu", "", "", name=b),
        node("Conv", "", "", name=c, pads=[1] * 4),
        node("Relu", "", "", name=d),
        node("Conv", "", "", name=e, pads=[1] * 4),
    ]
    tensors = [f, *(f"{name}{at}" for at, name in enumerate((a, b, c, d))), "y" + e]
    for at, (each, weight) in enumerate(zip(nodes, ["w", "", "v", "", "u"], strict=True)):
        each.input.extend([tensors[at], weight] if weight else [tensors[at]])
        each.output.append(tensors[at + 1])
    whole = (1, 3, side, side)
    return model(nodes, {tensors[0]: whole}, {tensors[-1]: whole}, weights)


@dataclass
class Page(HTMLParser):
    """A page as it is parsed.

    Attributes:
        text: The file.
        tags: Names of its elements with their attributes, in order.
        words: Its text, that of scripts and styles not.
        data: What its scripts are given.
        scripts: The text of its scripts.
    """

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    _inside: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        held = dict(attrs)
        self.tags.append((tag, held))
        self._inside = ""
        if tag == "script":
            self._inside = "data" if held.get("type") == "application/json" else "script"
        elif tag == "style":
            self._inside = "style"

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        self._inside = ""

    def handle_data(self, data: str) -> None:
        """Note text."""
        if self._inside == "data":
            self.data = json.loads(data)
        elif self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.words += f" {data}"

    def section(self, name: str) -> str:
        """Return the text of a section, by its id."""
        begin = self.text.index(f'id="{name}"')
        return Page(self.text[self.text.rindex("<", 0, begin) :].partition("</section>")[0]).words


def read_page(path: Path) -> Page:
    """Return a page that was written."""
    return Page(path.read_text(encoding="utf-8"))


def write_page(made: onnx.ModelProto, folder: Path, *arguments: str | Path) -> Page:
    """Save a model and write its page, without a curve; return that.

    Args:
        made: The model.
        folder: Where to.
        arguments: Further arguments of ``patchconv report``.
    """
    onnx.save(made, folder / "model.onnx")
    out = folder / "page.html"
    done = run_command("report", folder / "model.onnx", *arguments, "--no-curve", "-o", out)
    assert done.returncode == 0, done.stderr
    return read_page(out)


def measured_row(name: str, peak: int, **more: Any) -> dict[str, Any]:
    """Return what ``patchconv measure --json`` writes of a model.

    Args:
        name: Its file.
        peak: Bytes that its runs took; the process took twice as many.
        more: What else is written, or otherwise; ``reuse`` is whether memory was reused.
    """
    options = {"memory_reuse": more.pop("reuse", True), "memory_pattern": True}
    latency = {"median": 0.5, "min": 0.4, "max": 0.6}
    return {
        "model": f"some/where/{name}",
        "engine": "onnxruntime",
        "version": "1.32",
        "device": "a processor",
        "options": options,
        "peak_bytes": peak,
        "whole_bytes": 2 * peak,
        "latency_s": latency,
        "ratio": {"median": 1.5, "min": 1, "max": 2},
        "date": "2026-01-01",
        "error": "",
        **more,
    }
