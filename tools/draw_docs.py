"""Draw the documentation's pictures as SVG: ``python -m tools.draw_docs docs/drawings``.

Text and lines follow ``prefers-color-scheme``, so that they are seen on light and on dark pages.
Nothing is measured here: the drawings show the idea, not a network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["DRAWINGS"]

_STYLE = """
  text { font: 14px sans-serif; fill: #24292f; text-anchor: middle; }
  .small { font-size: 12px; }
  .left { text-anchor: start; }
  .line { stroke: #57606a; fill: none; stroke-width: 1.2; }
  .thin { stroke: #8c959f; fill: none; stroke-width: 0.8; stroke-dasharray: 3 3; }
  .head { fill: #57606a; }
  .box { fill: none; stroke: #57606a; stroke-width: 1.2; }
  .wrong { fill: url(#hatch); stroke: #cf222e; stroke-width: 0.8; }
  .hatched { stroke: #cf222e; stroke-width: 1.6; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .line { stroke: #9da7b3; }
    .thin { stroke: #6e7681; }
    .head { fill: #9da7b3; }
    .box { stroke: #9da7b3; }
    .wrong { stroke: #ff7b72; }
    .hatched { stroke: #ff7b72; }
  }
"""

# One for each patch; they are seen on white and on black.
_COLOURS = ("#3b82f6", "#f59e0b", "#10b981")

_FAINT = 0.35


def _rect(
    x: float, y: float, width: float, height: float, fill: str = "", opacity: float = 1
) -> str:
    """Return a rectangle: filled with a colour, or in the style of a class if it is no colour."""
    paint = f'fill="{fill}" fill-opacity="{opacity}"' if fill[:1] == "#" else f'class="{fill}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {paint}/>'


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "thin") -> str:
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" class="{kind}"/>'


def _arrow(x1: float, x2: float, y: float) -> str:
    """Return an arrow to the right."""
    head = f'<path d="M{x2:g} {y:g}l-8 -4v8z" class="head"/>'
    return _line(x1, y, x2 - 6, y, "line") + head


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    hatch = (
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path d="M0 0V6" class="hatched"/></pattern></defs>'
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n{hatch}\n{body}\n</svg>\n"
    )


def _window(x: float, y: float, width: float, rows: Sequence[float], colour: str) -> list[str]:
    """Return a window from the top down: halo, core, halo; a halo may be empty."""
    above, core, below = rows
    return [
        *([_rect(x, y, width, above, colour, _FAINT)] if above else []),
        _rect(x, y + above, width, core, colour),
        *([_rect(x, y + above + core, width, below, colour, _FAINT)] if below else []),
    ]


def _idea() -> str:
    """Draw an image in three windows, the layers patch by patch, and the output put together."""
    core, halo, gap, top = 66, 16, 20, 58
    parts = [
        _text(75, 30, "input"),
        _text(262, 30, "windows"),
        _text(262, 47, "core, with halo rows around it", "small"),
        _text(432, 30, "the same layers"),
        _text(432, 47, "one patch after the other", "small"),
        _text(622, 30, "crop"),
        _text(622, 47, "rows near a cut are wrong", "small"),
        _text(815, 30, "Concat: the output"),
    ]
    image = top + (4 * halo + 2 * gap) / 2
    y = float(top)
    for number, colour in enumerate(_COLOURS):
        rows = (halo if number else 0, core, halo if number < 2 else 0)
        height, middle = sum(rows), y + sum(rows) / 2
        begin = image + number * core
        parts += [
            _rect(20, begin, 110, core, colour),
            _line(130, begin - rows[0], 215, y),
            _line(130, begin + core + rows[2], 215, y + height),
            *_window(215, y, 95, rows, colour),
            _arrow(316, 352, middle),
            _rect(354, middle - 26, 156, 52, "box"),
            _text(432, middle + 5, "Conv, Relu, Conv, ..."),
            _arrow(514, 572, middle),
            *([_rect(575, y, 95, rows[0], "wrong")] if rows[0] else []),
            _rect(575, y + rows[0], 95, core, colour),
            *([_rect(575, y + rows[0] + core, 95, rows[2], "wrong")] if rows[2] else []),
            _line(670, y + rows[0], 760, begin),
            _line(670, y + rows[0] + core, 760, begin + core),
            _rect(760, begin, 110, core, colour),
        ]
        y += height + gap
    words = (
        "Between input and output only one patch is alive at a time. The output is the same tensor."
    )
    parts.append(_text(445, y + 10, words))
    return _svg(890, int(y + 26), "An image cut into overlapping windows", parts)


def _one_patch() -> str:
    """Draw one window through three layers: wrong rows creep inward, the core is cut out."""
    y, halo, core, width = 56.0, 30, 90, 80
    height = core + 2 * halo
    columns = (20, 190, 360, 530)
    words = ("window", "after Conv 1", "after Conv 2", "after Conv 3")
    parts = []
    for number, (x, label) in enumerate(zip(columns, words, strict=True)):
        wrong = number * 10
        parts.append(_text(x + width / 2, 40, label))
        if wrong:
            parts.append(_rect(x, y, width, wrong, "wrong"))
            parts.append(_rect(x, y + height - wrong, width, wrong, "wrong"))
            parts.append(_rect(x, y + wrong, width, height - 2 * wrong, _COLOURS[0], _FAINT))
        else:
            parts += _window(x, y, width, (halo, core, halo), _COLOURS[0])
        if number < 3:
            parts.append(_arrow(x + width + 10, x + 160, y + height / 2))
    parts += [
        _arrow(620, 690, y + height / 2),
        _text(655, y + height / 2 - 10, "crop", "small"),
        _rect(700, y + halo, width, core, _COLOURS[0]),
        _text(700 + width / 2, 40, "core"),
        _line(100, y + halo, 700, y + halo),
        _line(100, y + halo + core, 700, y + halo + core),
        _rect(190, y + height + 24, 26, 12, "wrong"),
        _text(224, y + height + 35, "wrong: padding stands where rows of the image belong", "left"),
        _rect(190, y + height + 46, 26, 12, _COLOURS[0], _FAINT),
        _text(224, y + height + 57, "right; what is left after the last layer is the core", "left"),
    ]
    return _svg(800, int(y + height + 76), "One window through three convolutions", parts)


def _statistic() -> str:
    """Draw two passes: partial sums of each patch are merged, then applied patch by patch."""
    top, core, gap = 60.0, 46, 14
    parts = [
        _text(65, 40, "image"),
        _text(235, 22, "first pass:"),
        _text(235, 40, "a row each of numbers", "small"),
        _text(420, 40, "merged"),
        _text(600, 22, "second pass:"),
        _text(600, 40, "normalise each patch", "small"),
        _text(765, 40, "output"),
    ]
    middle = top + (3 * core + 2 * gap) / 2
    for number, colour in enumerate(_COLOURS):
        y = top + number * (core + gap)
        whole = middle - 1.5 * core + number * core
        parts += [
            _rect(20, whole, 90, core, colour),
            _line(110, whole + core / 2, 190, y + core / 2),
            _rect(190, y + core / 2 - 7, 90, 14, colour),
            _line(280, y + core / 2, 370, middle),
            _line(470, middle, 555, y + core / 2),
            _rect(555, y, 90, core, colour),
            _line(645, y + core / 2, 720, whole + core / 2),
            _rect(720, whole, 90, core, colour),
        ]
    parts += [
        _rect(370, middle - 22, 100, 44, "box"),
        _text(420, middle - 2, "mean,"),
        _text(420, middle + 15, "deviation"),
    ]
    bottom = int(top + 3 * core + 2 * gap + 16)
    return _svg(830, bottom, "A normalisation over the image in two passes", parts)


def _strips() -> str:
    """Draw two regions between which strips are handed over, not put together."""
    top, core, gap, halo = 56.0, 50, 16, 10
    parts = [
        _text(90, 40, "region A writes strips"),
        _text(400, 40, "a window of region B"),
        _text(690, 40, "region B, patch by patch"),
    ]
    for number, colour in enumerate(_COLOURS):
        y = top + number * (core + gap)
        parts.append(_rect(40, y, 100, core, colour))
    second = top + core + gap
    window = second - halo
    parts += [
        _rect(350, window, 100, halo, _COLOURS[0], 0.8),
        _rect(350, second, 100, core, _COLOURS[1]),
        _rect(350, second + core, 100, halo, _COLOURS[2], 0.8),
        _line(140, top + core - halo, 350, window),
        _line(140, top + core, 350, second),
        _line(140, second + core + gap, 350, second + core),
        _line(140, second + core + gap + halo, 350, second + core + halo),
        _arrow(150, 342, second + core / 2),
        _arrow(460, 582, second + core / 2),
        _rect(600, second + core / 2 - 26, 180, 52, "box"),
        _text(690, second + core / 2 + 5, "Conv, Relu, Conv, ..."),
        _text(400, top + 3 * core + 2 * gap + 26, "The whole tensor between A and B never exists."),
    ]
    bottom = int(top + 3 * core + 2 * gap + 44)
    return _svg(800, bottom, "Strips handed over from one region to the next", parts)


DRAWINGS: Mapping[str, Callable[[], str]] = {
    "idea.svg": _idea,
    "one-patch.svg": _one_patch,
    "statistic.svg": _statistic,
    "strips.svg": _strips,
}


def main() -> None:
    """Write every drawing into the folder that is named."""
    if len(sys.argv) != 2:
        sys.exit(str(__doc__))
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        (folder / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
