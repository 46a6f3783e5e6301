"""What to type to get each part of a page again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from patchconv_deploy.cli.types import spelled_ranges
from patchconv_deploy.console import printable
from patchconv_deploy.options import OPTIONS
from patchconv_deploy.rewriters.options import Options

__all__ = ["commands"]


def commands(
    source: Path,
    patched: Path | None,
    words: Sequence[str],
    page: Sequence[str],
    options: Options,
    *,
    cut: bool,
) -> list[tuple[str, str]]:
    """Return commands, each with what it is for.

    Args:
        source: The original model's file, as it was named.
        patched: The rewritten file, None where there is none yet.
        words: The options that a rewrite was planned with, as they were typed.
        page: The options of the page; the words are among them.
        options: What the rewrite is asked for.
        cut: Something was cut.
    """
    model = _word(source)
    name = source.name.removesuffix(".onnx") + ".patched.onnx"
    made = _word(patched or source.parent / name)
    given, asked = ("".join(f" {_word(word)}" for word in each) for each in (words, page))
    sizes, largest = _sizes(options)
    target = "" if options.target == OPTIONS["target"].default else f" --target {options.target}"
    found = []
    if patched is None:
        found.append(("Write this model", f"patchconv rewrite {model}{given}"))
        found.append(("This page", f"patchconv report {model}{asked}"))
    else:
        found.append(("This page", f"patchconv report {model} {made}{asked}"))
    found.append(("What holds the peak", f"patchconv inspect {model}{sizes}{target}"))
    found.append(("The curve", f"patchconv rewrite {model}{sizes}{target} --pareto"))
    if cut:
        measuring = f"patchconv measure {model} {made}{largest} --recommended"
        found.append(("The measurement", measuring))
        found.append(
            (
                "The page with what was measured",
                f"{measuring} --json measured.json\n"
                f"patchconv report {model} {made} --figures measured.json",
            )
        )
    return found


def _sizes(options: Options) -> tuple[str, str]:
    """Return the sizes that are asked for as options: with their ranges, and the largest alone."""
    given = {name: [(size, size) for size in shape] for name, shape in options.shapes.items()}
    given |= {name: list(pairs) for name, pairs in options.ranges.items()}
    ranges, largest = "", ""
    for name, pairs in given.items():
        most = [(high, high) for _, high in pairs]
        ranges += f" --shape {_word(spelled_ranges(name, pairs))}"
        largest += f" --shape {_word(spelled_ranges(name, most))}"
    return ranges, largest


def _word(word: str | Path) -> str:
    return shlex.quote(printable(str(word)))
