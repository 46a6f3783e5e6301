"""Tables of figures, for terminals of any width.

Names of nodes and files are long, and figures are many. Where both have room they stand side by
side. Where they have not, nothing is broken or left out: a name gets a line of its own, its figures
stand below it, and a sentence about it below these. So do their titles. Pipes and files get a line
a row.

    region               nodes  patches      region
    /conv1 .. /pool1        10       x4        nodes  patches
                                             /conv1 .. /pool1
                                                  10       x4
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

__all__ = ["Row", "print_table"]

# A column of sentences that is narrower than this is hard to read.
_LEAST_TAIL = 30

# Wider than any name in a file: what is measured against less is cut off there.
_ENDLESS = 1 << 32


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        head: The name of what it is about.
        cells: Figures and single words. The cells of columns that are left out at the end are
            empty.
        tail: A sentence or a list, empty for none.
    """

    head: str
    cells: tuple[str | Text, ...] = ()
    tail: str = ""


def print_table(
    console: Console,
    head: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    tail: str = "",
    words: Collection[str] = (),
) -> None:
    """Print a table.

    Args:
        console: Where to print.
        head: The title above the heads.
        columns: The titles above the cells. A line break in one is used where room is short.
        rows: The rows.
        tail: The title above the tails.
        words: The columns of words, which begin at the left; figures end at the right.
    """
    cells = [(*row.cells, *[""] * (len(columns) - len(row.cells))) for row in rows]
    heads, tails = [row.head for row in rows], [row.tail for row in rows]
    words = {head, tail, *words, *(word.replace("\n", " ") for word in words)}
    titles = [title.replace("\n", " ") for title in (head, *columns, tail)]
    titles = titles if any(tails) else titles[:-1]
    table = _table(titles, zip(heads, *zip(*cells, strict=True), tails, strict=True), words)
    whole, sentences = _width(console, table), max(map(len, tails), default=0)
    if console.soft_wrap:
        console.print(*_lines(console, table), sep="", end="", crop=False)
        return
    if whole - max(0, sentences - _LEAST_TAIL) <= console.width:
        table.columns[-1].no_wrap = not sentences
        console.print(table)
        return
    figures = _table(columns, cells, words)
    lines = _lines(console, figures, "  ")
    first = len(lines) - len(rows)
    console.print(Text(head, "bold"))
    console.print(*lines[:first], sep="", end="", crop=False)
    if any(tails):
        console.print(Text(f"    {tail}", "bold"))
    for row, line in zip(rows, lines[first:], strict=True):
        console.print(row.head)
        console.print(line, end="", crop=False)
        if row.tail:
            console.print(f"    {row.tail}")


def _table(
    titles: Sequence[str], rows: Iterable[Sequence[str | Text]], words: Collection[str]
) -> Table:
    """Return a table of which no cell is broken."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for title in titles:
        table.add_column(
            Text(title),
            justify="left" if title in words else "right",
            no_wrap=True,
            # Titles of several lines are of tables whose cells have one.
            vertical="bottom" if any("\n" in title for title in titles) else "top",
        )
    for row in rows:
        table.add_row(*row[: len(titles)])
    return table


def _lines(console: Console, table: Table, indent: str = "") -> list[Segments]:
    """Return the lines of a table of which nothing is folded or cropped, however wide it is."""
    options = console.options.update(width=_width(console, table))
    lines = console.render_lines(table, options, pad=False)
    return [Segments([Segment(indent), *_stripped(line), Segment.line()]) for line in lines]


def _stripped(line: list[Segment]) -> list[Segment]:
    """Return a line without the blanks at its end, which cells are filled up with."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], *(Segment(last.text.rstrip(), last.style) for last in line[-1:])]


def _width(console: Console, table: Table) -> int:
    """Return how wide a table is where nothing is folded."""
    return Measurement.get(console, console.options.update(width=_ENDLESS), table).maximum
