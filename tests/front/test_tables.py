"""Tables on wide and on narrow terminals."""

from __future__ import annotations

import io

from patchconv_deploy.console import PlainConsole
from patchconv_deploy.tables import Row, print_table

COLUMNS = ("nodes", "whole\nprocess", "shapes")
ROWS = (
    Row("/decoder/block.0/conv1/Conv .. /decoder/block.3/Add", ("10", "1,024.5", "1x3x8x8")),
    Row("a\x1b[2J", ("7", "2.0")),
    Row("of a sentence", ("1", "0.5", "1"), "why it is " + "so long and " * 12 + "at its end"),
)


def _printed(width: int, *, soft_wrap: bool = False, rows: tuple[Row, ...] = ROWS) -> list[str]:
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=width, soft_wrap=soft_wrap)
    print_table(console, "region", COLUMNS, rows, tail="why", words=("shapes",))
    lines = stream.getvalue().splitlines()
    return lines if soft_wrap else [line.rstrip() for line in lines]


def test_on_a_wide_terminal_a_row_is_a_line() -> None:
    """The name, its figures below their titles, and the sentence."""
    lines = _printed(300)
    assert len(lines) == 1 + len(ROWS)
    assert lines[0].split() == ["region", "nodes", "whole", "process", "shapes", "why"]
    assert lines[1].split()[-3:] == ["10", "1,024.5", "1x3x8x8"]
    assert lines[1].index("1,024.5") + len("1,024.5") == lines[2].index("2.0") + len("2.0")
    assert lines[3].endswith("at its end")


def test_a_pipe_gets_a_line_a_row() -> None:
    """However long a name is."""
    name = "/" + "x" * 500
    lines = _printed(200, soft_wrap=True, rows=(*ROWS, Row(name, ("3", "2.5"))))
    assert lines[-1].split() == [name, "3", "2.5"]
    assert all(line == line.rstrip() for line in lines)
    heads = [line.split()[0] for line in lines[1:4]]
    assert heads == ["/decoder/block.0/conv1/Conv", "a\\x1b[2J", "of"]
    assert lines[3].endswith(ROWS[2].tail)


def test_on_a_narrow_one_nothing_is_broken() -> None:
    """A name gets a line of its own; no figure is cut off, and no line is too long."""
    lines = _printed(60)
    at = lines.index(ROWS[0].head)
    assert lines[at + 1].split() == ["10", "1,024.5", "1x3x8x8"]
    assert lines[at + 2] == "a\\x1b[2J"
    assert lines[at + 3].split() == ["7", "2.0"]
    assert lines[0] == "region"
    assert lines[2].split() == ["nodes", "process", "shapes"]
    assert lines[3] == "    why"
    said = " ".join(line.strip() for line in lines[at + 6 :])
    assert said == ROWS[2].tail
    assert max(map(len, lines)) <= 60


def test_figures_are_whole_where_they_are_wider_than_the_terminal() -> None:
    """The terminal breaks the line then, and a name that is too long for any is whole as well."""
    lines = _printed(16, rows=ROWS[:1])
    assert "".join(lines).replace(" ", "").endswith("101,024.51x3x8x8")
    name = "/" + "x" * 500
    assert name in "".join(_printed(80, rows=(Row(name, ("1",)),)))


def test_without_rows_the_titles_stand_alone() -> None:
    """No error."""
    assert _printed(80, rows=())[0].split() == ["region", "nodes", "whole", "process", "shapes"]


def test_names_of_any_length_keep_their_figures() -> None:
    """In pipes, and on a terminal, where a name and its sentence are both too long for it."""
    name = "x" * 20_000
    for tail in ("", name):
        rows = (Row(name, ("3", "2.5"), tail), Row("b", ("4", "7.5")))
        piped = _printed(200, soft_wrap=True, rows=rows)
        assert [line.split()[1:3] for line in piped[1:]] == [["3", "2.5"], ["4", "7.5"]]
        lines = [line.split() for line in _printed(80, rows=rows)]
        assert ["3", "2.5"] in lines
        assert ["4", "7.5"] in lines
