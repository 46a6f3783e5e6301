"""What to type to get each part of a page again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from patchconv_deploy.cli.types import spelled_ranges
from patchconv_deploy.options import OPTIONS
from patchconv_deploy.rewriters.options import Options

__all__ = ["commands"]


def commands(
    source: Path,
    patched: Path | None,
    words: Sequence[str],
    page: Sequence[str],
    curve: Sequence[str],
    options: Options,
    *,
    axis: str | int,
    cut: bool,
) -> list[tuple[str, str]]:
    """Return commands, each with what it is for.

    Args:
        source: The original model's file, as it was named.
        patched: The rewritten file, None where there is none yet.
        words: The options that a rewrite was planned with, as they were typed.
        page: The options of the page; the words are among them.
        curve: Those of the words that the curve depends on; sizes, target and axis are not in it.
        options: What the rewrite is asked for.
        axis: The axis that is looked along.
        cut: Something was cut.
    """
    model = _file(source)
    name = source.name.removesuffix(".onnx") + ".patched.onnx"
    made = _file(patched or source.parent / name)
    given, asked, weighed = (
        "".join(f" {_word(word)}" for word in each) for each in (words, page, curve)
    )
    sizes, largest = _sizes(options)
    looked = sizes
    for option, value in (("target", options.target), ("axis", axis)):
        if value != OPTIONS[option].default:
            looked += f" --{option} {value}"
    found = []
    if patched is None:
        found.append(("Write this model", f"patchconv rewrite {model}{given}"))
        found.append(("This page", f"patchconv report {model}{asked}"))
    else:
        found.append(("This page", f"patchconv report {model} {made}{asked}"))
    found.append(("What holds the peak", f"patchconv inspect {model}{looked}"))
    found.append(("The curve", f"patchconv rewrite {model}{looked}{weighed} --pareto"))
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


def _file(path: Path) -> str:
    """Return a file's name as a word that is no option, whatever it begins with."""
    return _word(f"./{path}" if str(path).startswith("-") else str(path))


def _word(word: str) -> str:
    """Return a word as a shell reads it, on one line and without a terminal's commands."""
    if word.isprintable():
        return shlex.quote(word)
    # The quotes of bash, zsh and POSIX of 2024, in which bytes may be spelled.
    return "$'" + "".join(map(_spelled, word)) + "'"


def _spelled(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
