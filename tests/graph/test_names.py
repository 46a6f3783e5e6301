"""Names that a model brings along: what a terminal takes for orders is shown, never sent to it."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from patchconv_deploy.cli import main as cli
from patchconv_deploy.console import (
    PlainConsole,
    complain,
    log_to_stderr,
    printable,
    styled,
)
from patchconv_deploy.tables import Row, print_table
from patchconv_deploy.verify import verification
from tests.support.small_models import model, node, noise

# A window's title, a cleared screen, a colour, a line that looks like one of ours, the direction
# of writing turned around, markup and an emoji.
HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b[31mred\r\nerror: forged\u202e\u2028[bold]:bomb:\x9b1m"

SHOWN = r"\x1b]0;title\x07\x1b[2J\x1b[31mred\r\nerror: forged\u202e\u2028[bold]:bomb:\x9b1m"

FILE = r"m\x1b[31m[bold]\u202e"

Command = Callable[..., tuple[int, str]]


def _hostile() -> onnx.ModelProto:
    """Two Convs; every name that can be one is hostile."""
    made = model(
        [
            node("Conv", "x w", "c", name=HOSTILE + "1", pads=[1] * 4),
            node("Relu", "c", "r", name=HOSTILE + "2"),
            node("Conv", "r v", "y", name=HOSTILE + "3", pads=[1] * 4),
        ],
        {"x": [1, 3, 64, 32]},
        {"y": [1, 3, 64, 32]},
        {"w": noise(8, 3, 3, 3), "v": noise(3, 8, 3, 3)},
    )
    made.graph.name = made.producer_name = HOSTILE
    made.metadata_props.add(key=HOSTILE, value=HOSTILE)
    names = {name: HOSTILE + name for name in ("x", "c", "r", "y", "w", "v")}
    for each in made.graph.node:
        for field in (each.input, each.output):
            field[:] = [names[name] for name in field]
    for value in (*made.graph.input, *made.graph.output):
        value.name = names[value.name]
    for tensor in made.graph.initializer:
        tensor.name = names[tensor.name]
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The hostile model in a file of a hostile name."""
    file = tmp_path / "m\x1b[31m[bold]\u202e.onnx"
    onnx.save(_hostile(), file)
    return file


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process; returns its exit code and all that it printed."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["patchconv", *map(str, arguments)])
        root = logging.getLogger()
        before, level = list(root.handlers), root.level
        with pytest.raises(SystemExit) as ended:
            cli.main()
        root.handlers[:] = before
        root.setLevel(level)
        code = int(ended.value.code or 0)
        said = capfd.readouterr()
        return code, said.out + said.err

    return run


def _assert_harmless(text: str) -> None:
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines), [x for x in lines if not x.isprintable()]
    assert not any(line.startswith("error: forged") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["rewrite", "--min-elements", "0", "-v"], 0, [SHOWN + "1", SHOWN + "3", FILE]),
        (["rewrite", "--splits", "2"], 0, [FILE]),
        (["rewrite", "--dry-run"], 0, ["Predicted"]),
        (["rewrite", "--exclude", "*", "-v"], 0, [SHOWN + "1", SHOWN + "3", FILE]),
        (["rewrite", "--pareto"], 0, ["original"]),
        (
            ["rewrite", "--exclude", HOSTILE + "?none"],
            0,
            ["forged\\u202e", "[bold]:bomb:", "?none"],
        ),
        (["rewrite", "--shape", HOSTILE + ":1x1"], 2, [r"\x1b[31m", "[bold]:bomb:"]),
        (["rewrite", "--shape", HOSTILE + "x:1x3x64x33"], 2, [r"\x1b[31m", "[bold]:bomb:"]),
        (["inspect"], 0, [SHOWN + "c", SHOWN + "y"]),
        (["inspect", "--shape", HOSTILE + ":1x1"], 2, [r"\x1b[31m", "[bold]:bomb:"]),
        (["measure", "--runs", "1", "--processes", "1"], 0, [FILE]),
        (["triton", "--repository", "r"], 2, [FILE.removesuffix(".onnx")]),
    ],
)
def test_every_command_prints_names_as_text(
    path: Path, command: Command, arguments: list[str], code: int, shown: list[str]
) -> None:
    """Tables, warnings, errors: what is not printable is shown as an escape, markup as it is."""
    found, text = command(arguments[0], path, *arguments[1:])
    assert found == code, text
    _assert_harmless(text)
    for each in shown:
        assert each in text


@pytest.mark.parametrize(
    "damage", ["domain", "operator", "type", "unsorted", "length", "external", "output"]
)
def test_errors_about_a_model_quote_its_names_as_text(
    tmp_path: Path, command: Command, damage: str
) -> None:
    """Whatever is wrong with a model, the line that says so is one line, and harmless."""
    made = _hostile()
    first = made.graph.node[0]
    match damage:
        case "domain":
            first.domain = HOSTILE
        case "operator":
            first.op_type = HOSTILE
        case "type":
            made.graph.initializer[0].data_type = 77
        case "unsorted":
            nodes = list(made.graph.node)[::-1]
            del made.graph.node[:]
            made.graph.node.extend(nodes)
        case "length":
            made.graph.initializer[0].raw_data = b"1234567"
        case "external":
            tensor = made.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=HOSTILE)
        case "output":
            made.graph.output[0].name = HOSTILE
    file = tmp_path / "model.onnx"
    file.write_bytes(made.SerializeToString())
    code, text = command("rewrite", file)
    _assert_harmless(text)
    assert code in (0, 1, 2)
    assert text.count("\n") == 1 or code == 0
    for other in (["inspect", file], ["measure", file, "--runs", "1", "--processes", "1"]):
        _assert_harmless(command(*other)[1])


def test_a_repository_is_checked_without_obeying_it(tmp_path: Path, command: Command) -> None:
    """Names of models, files and fields of a repository are others' words, too."""
    folder = tmp_path / "repository" / "m\x1b[31m\u202e"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(_hostile().SerializeToString())
    (folder / "config.pbtxt").write_text(
        'name: "\\033[2J"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 0\n'
        'input [{name: "\\033]0;x\\007", data_type: TYPE_FP32, dims: [1]}]\n'
    )
    code, text = command("triton", "--check", tmp_path / "repository")
    assert code == 1, text
    _assert_harmless(text)
    assert r"m\x1b[31m" in text


def test_a_mismatch_quotes_names_as_text(
    path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason of a failed verification names the output."""
    real = verification.verify

    def wrong(source: Path, *arguments: object, **keywords: object) -> verification.Verification:
        staged = onnx.load(str(arguments[0]))
        weight = onnx.numpy_helper.to_array(staged.graph.initializer[0]).copy() + np.float32(1)
        staged.graph.initializer[0].raw_data = weight.tobytes()
        Path(str(arguments[0])).write_bytes(staged.SerializeToString())
        return real(source, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr("patchconv_deploy.api.verify", wrong)
    code, text = command("rewrite", path, "--min-elements", "0")
    assert code == 1
    _assert_harmless(text)
    assert text.count("\n") == 1


@pytest.mark.parametrize("width", [900, 300])
def test_a_terminal_gets_no_orders_from_names(width: int) -> None:
    """Where colours are on, lines and cells hold only those of our own; names beside or above."""
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=True, width=width, color_system="standard")
    row = Row(HOSTILE, (HOSTILE, styled(HOSTILE, ("failed", "red"))), HOSTILE)
    print_table(console, "name", ("a", "b"), [row], tail="said")
    console.print(HOSTILE)
    console.print(styled(("note:", "yellow"), HOSTILE))
    shown = stream.getvalue()
    for own in ("\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[33m"):
        shown = shown.replace(own, "")
    _assert_harmless(shown)
    assert shown.count(SHOWN) == 6


def test_the_log_is_lines_of_text(capfd: pytest.CaptureFixture[str]) -> None:
    """A record is one line whatever it quotes; a traceback keeps its lines."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()
    try:
        log_to_stderr(logging.ERROR)
        logging.getLogger("x").error("about %s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("x").exception("failed")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    said = capfd.readouterr().err
    _assert_harmless(said)
    assert "Traceback" in said


def test_an_error_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Line breaks of a runtime's message become blanks, all else is shown."""
    complain("error", "a\n  b\x1b[1m\x7f\ud800")
    assert capfd.readouterr().err == "error: a b\\x1b[1m\\x7f\\ud800\n"


def test_what_is_printable_stays_as_it_is() -> None:
    """Letters of all scripts are no control characters."""
    assert printable("Größe/层 1 [b] \\x1b") == "Größe/层 1 [b] \\x1b"
