"""The help of every command: headings, examples that can be typed, and no line too long."""

from __future__ import annotations

import shlex

import click
import pytest

from patchconv_deploy.cli.command import Command
from patchconv_deploy.cli.main import patchconv
from patchconv_deploy.options import OPTIONS
from tests.support.commands import run_command

NAMES = sorted(patchconv.commands)


def _command(name: str) -> Command:
    command = patchconv.commands[name]
    assert isinstance(command, Command)
    return command


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns; every option of the command is in it, and its examples are."""
    monkeypatch.setenv("COLUMNS", "80")
    done = run_command(name, "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    flags = [flag for each in _command(name).params for flag in each.opts if flag[0] == "-"]
    assert [flag for flag in flags if flag not in done.stdout] == []
    assert "Examples:" in lines


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_what_it_does(name: str) -> None:
    """And what its value is, in no word of Python's."""
    context = click.Context(_command(name))
    options = [each for each in context.command.params if isinstance(each, click.Option)]
    assert [each.opts for each in options if not each.help] == []
    valued = [each for each in options if not each.is_flag]
    types = ("TEXT", "PATH", "INTEGER", "FLOAT", "INTEGER RANGE", "FLOAT RANGE")
    assert [each.opts for each in valued if each.make_metavar(context) in types] == []


@pytest.mark.parametrize("name", NAMES)
def test_examples_can_be_typed(name: str) -> None:
    """Each line parses as a command, none of which is run; each stands below what it does."""
    text = _command(name).examples.replace("\\\n", "")
    comments, typed = text.splitlines()[::2], text.splitlines()[1::2]
    assert len(comments) == len(typed) > 0
    assert all(line.startswith("# ") for line in comments)
    for line in typed:
        program, command, *arguments = shlex.split(line)
        assert (program, command) == ("patchconv", name)
        with _command(name).make_context(name, arguments) as context:
            assert context.params


def test_an_example_that_is_wrong_does_not_parse() -> None:
    """So the test above can fail."""
    with pytest.raises(click.NoSuchOption):
        _command("rewrite").make_context("rewrite", ["model.onnx", "--split", "4"])


def test_options_stand_under_headings() -> None:
    """Those of a rewrite in the order of the documentation; few are left to the last heading."""
    command = _command("rewrite")
    shown = [option.name for group in command.option_groups for option in group.options]
    assert shown == list(OPTIONS)
    assert len(command.option_groups) > 4
    for name in NAMES:
        groups = _command(name).option_groups
        assert all(len(group.options) <= 10 for group in groups)
        assert len({group.title for group in groups}) == len(groups)
        assert groups or len(_command(name).params) <= 2
