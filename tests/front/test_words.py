"""Options in the library's sentences: Python's words there, flags on the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import engines
import patchconv_deploy
import rewriters
from patchconv_deploy.cli.main import patchconv, rewrite_command
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.words import in_flags

# A server's flag, and trtexec's: other programs' options go by their own names.
_FOREIGN = re.compile(r"--(model-config-name|(min|opt|max)Shapes)")


def _said(command: str, text: str) -> str:
    with (
        click.Context(patchconv, info_name="patchconv") as root,
        click.Context(patchconv.commands[command], parent=root, info_name=command),
    ):
        return in_flags(text)


@pytest.mark.parametrize(
    ("command", "python", "flags"),
    [
        ("rewrite", "memory_budget=0: must be", "--memory-budget 0: must be"),
        ("rewrite", "max_recompute=nan: must be", "--max-recompute nan: must be"),
        (
            "rewrite",
            "fix with shapes={'x': (1, 3, (8, 64), ...)}",
            "fix with --shape x:1x3x8..64x?",
        ),
        ("rewrite", "shapes['a b']: no such input", "--shape 'a b': no such input"),
        ("rewrite", "fix them with shapes=", "fix them with --shape"),
        ("rewrite", "splits=N, form='auto', fold=False.", "--splits N, --form auto, --no-fold."),
        ("rewrite", "leave share_weights=True out", "leave --share-weights out"),
        ("rewrite", "allow more with timeout_s=, or", "allow more with --verify-timeout, or"),
        ("rewrite", "plan=: not JSON", "--plan: not JSON"),
        ("rewrite", "include=['a', 'b*']", "--include a --include 'b*'"),
        ("triton", "labels['y']: no such file", "--labels y: no such file"),
        ("triton", "give instances= and max_batch_size=", "give --instances and --max-batch-size"),
        (
            "triton",
            "rewrite('a (1).onnx', target='triton') cuts",
            "patchconv rewrite 'a (1).onnx' --target triton cuts",
        ),
        (
            "inspect",
            "convert it with upgrade_opset=13",
            "convert it with patchconv rewrite --upgrade-opset 13",
        ),
        # Names of files and models, and other programs' words.
        ("rewrite", "/a/axis=1/m.onnx, axis=1.onnx", "/a/axis=1/m.onnx, axis=1.onnx"),
        ("rewrite", "inputs' 'axis=1', enable_x=False", "inputs' 'axis=1', enable_x=False"),
    ],
)
def test_both_spellings(command: str, python: str, flags: str) -> None:
    """The sentence is Python's until a command says it."""
    assert in_flags(python) == python
    assert _said(command, python) == flags


def test_alone() -> None:
    """``patchconv-rewrite`` names itself."""
    with click.Context(rewrite_command, info_name="patchconv-rewrite"):
        said = in_flags("rewrite(MODEL, splits=8)")
    assert said == "patchconv-rewrite MODEL --splits 8"


def test_an_error_of_the_library(tmp_path: Path) -> None:
    """The same error in Python and of the command."""
    with pytest.raises(OptionError, match=r"^splits=0: the number of patches"):
        Options(splits=0)
    with pytest.raises(OptionError, match=r"^--splits 0: the number of patches"):
        rewrite_command.main([_model(tmp_path), "--splits", "0"], standalone_mode=False)


def _model(folder: Path) -> str:
    return str(folder / "m.onnx")


def _texts() -> Iterator[tuple[str, str]]:
    """Yield all strings of the library that are no docstrings, with their places."""
    for package in (patchconv_deploy, rewriters, engines):
        for file in Path(str(package.__file__)).parent.rglob("*.py"):
            if (
                file.parent.name == "cli"
                or file.match("*y/options.py")
                or file.match("trt/options.py")
            ):
                continue
            tree = ast.parse(file.read_text())
            documented = {id(each) for node in ast.walk(tree) for each in _docstrings(node)}
            for each in ast.walk(tree):
                if not isinstance(each, ast.Constant) or id(each) in documented:
                    continue
                if isinstance(each.value, str):
                    yield f"{file.name}:{each.lineno}", each.value


def _docstrings(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr):
            yield first.value


def test_no_flag_in_the_library() -> None:
    """No sentence names a flag, outside of the command line and the table that declares them."""
    own = {
        flag
        for command in patchconv.commands.values()
        if command.name != "build"
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--")
    }
    found = [
        (place, flag)
        for place, text in _texts()
        for flag in re.findall(r"--[a-z][\w-]*", text)
        if flag in own and not _FOREIGN.match(flag)
    ]
    assert found == []


def test_names_are_python_keywords() -> None:
    """A name that several commands have is spelled alike in all of them."""
    spelled: dict[str, set[str]] = {}
    for command in patchconv.commands.values():
        for each in command.params:
            if isinstance(each, click.Option) and each.name not in ("pareto",):
                spelled.setdefault(str(each.name), set()).add(max(each.opts, key=len))
    assert {name: flags for name, flags in spelled.items() if len(flags) > 1} == {}
