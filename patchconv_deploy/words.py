r"""Options in Python's words, and the same in the command line's.

Errors, warnings, reasons and advice of the library name an option as it is written in Python, as a
keyword with an equals sign. That is good English there, and what a program reads in a report. Where
the command line prints such a sentence it says the same in flags:

    memory_budget=0: must be 1 byte or more     --memory-budget 0: must be 1 byte or more
    fix it with shapes={'x': (1, 3, 64, 64)}    fix it with --shape x:1x3x64x64
    shapes['x']: no such input                  --shape x: no such input
    give instances= or memory=                  give --instances or --memory
    leave out share_weights=True                leave out --share-weights
    splits=N, form='auto', fold=False           --splits N, --form auto, --no-fold
    plan for it with rewrite(MODEL, splits=8)   plan for it with patchconv rewrite MODEL --splits 8

Which keyword is which flag is asked of the command that runs: click knows the name of a parameter,
which is the keyword in Python, and how it is spelled. An option that another command has is named
with that command. What no command knows, and what stands in quotes, is left as it is: names of
models and files are no options.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import click

__all__ = ["flag_of", "in_flags"]

_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""


def _brackets(depth: int) -> str:
    """Return a pattern of what stands in brackets that hold at most so many others."""
    inner = rf"|{_brackets(depth - 1)}" if depth else ""
    return rf"[(\[{{](?:{_STRING}|[^()\[\]{{}}'\"]{inner})*[)\]}}]"


# A literal, or a placeholder: N, NAME.
_VALUE = (
    rf"{_STRING}|{_brackets(2)}|-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|-?inf|nan"
    r"|True|False|None|\.\.\.|[A-Z]+"
)
_BEGIN, _END = r"(?<![\w'\"/.=:-])", r"(?=[\s,;:)]|\.?$|\.\s)"
_WORDS = re.compile(
    rf"(?P<call>{_BEGIN}(?P<command>[a-z]+)(?=\(){_brackets(3)})"
    rf"|{_BEGIN}(?P<name>[a-z_]+)(?:=(?P<value>{_VALUE})?|\[(?P<key>{_STRING})\]){_END}"
    rf"|(?<!\w)(?:{_STRING})"
)


def flag_of(parameter: click.Parameter) -> str:
    """Return how an option is spelled: the long form."""
    return max(parameter.opts, key=len)


def in_flags(text: str) -> str:
    """Return a sentence of the library in the words of the command that runs.

    Outside of a command the sentence is left as it is.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return text
    commands = dict(_commands(context))
    own = next(iter(commands))

    def render(match: re.Match[str]) -> str:
        if match["call"]:
            named = [path for path, each in commands.items() if each.name == match["command"]]
            said = _call(match["call"], commands[named[0]]) if named else None
            return match[0] if said is None else f"{named[0]} {said}"
        for path, command in commands.items():
            option = _option(command, match["name"])
            if option is not None:
                value = _literal(match["key"] or match["value"] or "...")
                return ("" if path == own else f"{path} ") + _spelled(option, value)
        return match[0]

    return _WORDS.sub(render, text)


def _commands(context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield the command that runs and those beside it, each by what is typed to run it."""
    yield context.command_path, context.command
    group = context.parent
    if group is not None and isinstance(group.command, click.Group):
        for name, command in group.command.commands.items():
            if command is not context.command:
                yield f"{group.command_path} {name}", command


def _option(command: click.Command, name: str | None) -> click.Option | None:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name == name:
            return parameter
    return None


def _literal(text: str) -> Any:
    """Return the value of a literal; of anything else, the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _call(text: str, command: click.Command) -> str | None:
    """Return a call's arguments as flags; None where it is no call that the command can take."""
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(call, ast.Call):
        return None
    words = [_text(_literal(ast.unparse(each))) for each in call.args]
    for keyword in call.keywords:
        option = _option(command, keyword.arg)
        if option is None:
            return None
        words.append(_spelled(option, _literal(ast.unparse(keyword.value))))
    return " ".join(words)


def _spelled(option: click.Option, value: Any) -> str:
    """Return an option with a value as it is typed; `...` is any value, and is left out."""
    flag = flag_of(option)
    if option.is_flag:
        return option.secondary_opts[0] if value is False and option.secondary_opts else flag
    if value is ... or value == {...}:
        return flag
    if isinstance(value, Mapping):
        return " ".join(f"{flag} {_pair(*pair)}" for pair in value.items())
    if isinstance(value, list | tuple):
        return " ".join(f"{flag} {_text(each)}" for each in value)
    return f"{flag} {_text(value)}"


def _pair(key: str, value: Any) -> str:
    """Return an entry as it is typed: a shape of an input, or a file for a name."""
    if not isinstance(value, tuple):
        return _text(key) if value is ... else f"{_text(key)}={_text(value)}"
    return f"{_text(key)}:{'x'.join(map(_size, value))}"


def _size(size: Any) -> str:
    """Return a size of a shape as it is typed; `...` is one to fill in."""
    if isinstance(size, tuple):
        return "..".join(map(str, size))
    return "?" if size is ... else str(size)


def _text(value: Any) -> str:
    return shlex.quote(str(value))
