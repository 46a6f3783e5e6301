"""The options of a rewrite, declared once.

The commands are made of these tables (`declared_options`), and those of docs/command-line.md are
written from them (`tools.option_table`). The Python functions spell their keywords out, for people
and for type checkers; tests hold them, and the keys of the report, against the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import cloup

from patchconv_deploy.cli.types import AxisType, BudgetType, RangesType, SizeType
from patchconv_deploy.measure.run import ENGINES
from patchconv_deploy.rewriters.emission.forms import FORMS
from patchconv_deploy.rewriters.memory.targets import TARGETS
from patchconv_deploy.verify.verification import TIMEOUT_S

__all__ = ["OPTIONS", "Declared", "declared_options", "names_of", "option_table"]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

# Functions of Python that have an option. A curve is not cut by a plan or a budget; a model that is
# no file is neither staged nor measured.
_COMMAND: tuple[str, ...] = ()
_FILES = ("rewrite",)
_REWRITES = ("rewrite", "convert_model")
_ALL = ("rewrite", "convert_model", "pareto")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """An option.

    Attributes:
        name: The keyword in Python, and the parameter of the command.
        flags: How it is typed, as click has it; the first one stands in the documentation.
        value: What stands for its value, empty for none or for a choice that the help spells out.
        help: The command's help, half a line.
        meaning: The documentation's text (Markdown; links as from docs/command-line.md); empty
            where the option shares the row above.
        python: The functions that have the keyword.
        reported: Its key among the report's options, empty if it has none.
        default: What it is where nothing is said, in Python and on the command line.
        kind: How click reads its value: a type; `bool` for a switch, which takes none.
        multiple: Whether it may be given more than once on the command line.
        metavar: What stands for its value in the command's help, where that is more.
    """

    name: str
    flags: tuple[str, ...]
    value: str = ""
    help: str
    meaning: str = ""
    python: tuple[str, ...]
    reported: str = ""
    default: Any = None
    kind: type | click.ParamType[Any] = bool
    multiple: bool = False
    metavar: str = ""

    @property
    def shown(self) -> str:
        """How it is typed, in the documentation: of a switch that is on, what turns it off."""
        flag = self.flags[0].partition("/")[2] or self.flags[0]
        return f"`{flag} {self.value}`" if self.value else f"`{flag}`"

    def decorator(self) -> Callable[[CommandT], CommandT]:
        """Return what adds it to a command of click."""
        more: dict[str, Any] = {"is_flag": True} if self.kind is bool else {"type": self.kind}
        # The default of a list is click's own, and a switch that is off needs no word for it.
        if not (self.default is None or self.default is False or self.multiple):
            more |= {"default": self.default, "show_default": True}
        return click.option(
            *self.flags,
            self.name,
            help=self.help,
            multiple=self.multiple,
            metavar=self.metavar or self.value or None,
            **more,
        )


_FILE = click.Path(path_type=Path)

_OUTPUT = (
    Declared(
        name="out",
        flags=("-o", "--output"),
        value="OUT",
        help="Default: MODEL.patched.onnx.",
        meaning="the file to write, `MODEL.patched.onnx` by default. It is overwritten with "
        "`--force` alone; the input and its weights never are",
        python=_REWRITES,
        kind=_FILE,
    ),
    Declared(
        name="force",
        flags=("--force",),
        help="Overwrite an existing output.",
        python=_REWRITES,
        default=False,
    ),
    Declared(
        name="dry_run",
        flags=("--dry-run",),
        help="Show what would be done; run and write nothing.",
        meaning="show what would be done; run and write nothing",
        python=_FILES,
        default=False,
    ),
    Declared(
        name="report",
        flags=("--report",),
        value="FILE.json",
        help="Write the report as JSON.",
        meaning="write the [report](report.md) as JSON",
        python=_COMMAND,
        kind=_FILE,
    ),
    Declared(
        name="plan_out",
        flags=("--plan-out",),
        value="FILE",
        help="Write the plan as JSON.",
        meaning="write the plan as JSON, to edit and to apply again: [plan files](plan-files.md)",
        python=_COMMAND,
        kind=_FILE,
    ),
    Declared(
        name="verbose",
        flags=("-v", "--verbose"),
        help="List every Conv left alone; log what is done.",
        meaning="list every Conv left alone and log what is done; print errors and warnings alone",
        python=_COMMAND,
        default=False,
    ),
    Declared(
        name="quiet",
        flags=("-q", "--quiet"),
        help="Print errors and warnings alone.",
        python=_COMMAND,
        default=False,
    ),
)

_MEMORY = (
    Declared(
        name="splits",
        flags=("--splits",),
        value="N",
        help="Most patches of a region. Default: 4, or more where 4 gain nothing; with a budget "
        "as many as it takes.",
        meaning="most patches of a region; patches of a Conv in the forms for single Convs. "
        "Without a budget the plan whose runs take least is taken. Default: 4, or more where 4 "
        "gain nothing ([more](choosing.md#splits))",
        python=_REWRITES,
        reported="splits",
        kind=int,
    ),
    Declared(
        name="memory_budget",
        flags=("--memory-budget",),
        value="SIZE",
        help="Most that runs may add to the process, as predicted: 512MiB, 2G (GiB), 2GB (10^9 "
        "bytes), or auto: what is free on this machine, less what loading takes. Least time that "
        "fits.",
        meaning="most that runs may add to the process (*running*), as predicted for the target: "
        "`512MiB`, `2G`, `2GB` (GB is 10^9 bytes, G and GiB are 2^30), or `auto`: what is free "
        "here. Of all plans weighed the one of least predicted time that fits is taken; exit code "
        "1 if none does "
        "([more](choosing.md#memory-budget))",
        python=_REWRITES,
        reported="memory_budget_bytes",
        kind=BudgetType(),
        metavar="SIZE|auto",
    ),
    Declared(
        name="max_recompute",
        flags=("--max-recompute",),
        value="X",
        help="Most work over the original's. Default: 1.5; with a budget any.",
        meaning="most work after over work before; without a budget 1.5, with `--patch-rows` any",
        python=_ALL,
        reported="max_recompute",
        kind=float,
    ),
    Declared(
        name="patch_rows",
        flags=("--patch-rows",),
        value="N",
        help="Rows of a patch where the height is free (rounds), instead of --splits.",
        meaning="where the height is free: rows of a region's first output that each patch has of "
        "its own, in place of `--splits` or a budget ([more](sizes.md#rows-of-a-patch))",
        python=_REWRITES,
        reported="patch_rows",
        kind=int,
    ),
    Declared(
        name="max_buffer",
        flags=("--max-buffer",),
        value="SIZE",
        help="Most bytes of a tensor: what WebGPU or Vulkan binds as one buffer.",
        meaning="no tensor of more bytes than this, inputs, outputs and weights among them: "
        "`128MiB`, what WebGPU and Vulkan bind as one buffer "
        "([more](choosing.md#tensors-that-are-too-large))",
        python=_ALL,
        reported="max_buffer_bytes",
        kind=SizeType(),
    ),
    Declared(
        name="max_tensor_elements",
        flags=("--max-tensor-elements",),
        value="N",
        help="Most elements of a tensor; 2^31 - 1 for TensorRT.",
        meaning="no tensor of more elements than this; 2^31 - 1 for `--target tensorrt` "
        "([more](choosing.md#tensors-that-are-too-large))",
        python=_ALL,
        reported="max_tensor_elements",
        kind=int,
    ),
    Declared(
        name="target",
        flags=("--target",),
        help="Engine that memory is predicted for.",
        meaning="the engine that memory is predicted for: `onnxruntime` (default), "
        "`onnxruntime-default`, `triton` or `tensorrt` ([more](choosing.md#target))",
        python=_ALL,
        reported="target",
        default="onnxruntime",
        kind=click.Choice(list(TARGETS)),
    ),
    Declared(
        name="pareto_only",
        flags=("--pareto",),
        help="Print predicted peak against work, at every budget; run and write nothing.",
        meaning="print predicted peak against work and time; run and write nothing "
        "([more](choosing.md#the-curve-of-budgets))",
        python=_COMMAND,
        default=False,
    ),
)

_CUT = (
    Declared(
        name="shapes",
        flags=("--shape",),
        value="NAME:1x3x512x512",
        help="Fix an input's free dimensions; 256..4096 leaves one free.",
        meaning="fix an input's free dimensions, in the output too; `1x3x256..4096x512` leaves one "
        "free and predicts for the largest ([more](sizes.md))",
        python=_ALL,
        reported="shapes",
        kind=RangesType(),
        multiple=True,
    ),
    Declared(
        name="axis",
        flags=("--axis",),
        help="Axis to cut.",
        meaning="the axis to cut: `height` (default), `width`, `depth`, a dimension of the tensor "
        "(2 and up), or `auto`: of height and width the one that serves better",
        python=_ALL,
        reported="axis",
        default="height",
        kind=AxisType(),
        metavar="height|width|depth|auto|INDEX",
    ),
    Declared(
        name="form",
        flags=("--form",),
        help="fused, shrinking, loop, rounds: whole regions; batch, sequential: single Convs. "
        "auto: regions, or the Convs that are named by --include or --min-elements.",
        meaning="how patches are written: `fused`, `shrinking`, `loop`, `rounds` for whole "
        "regions, `batch`, `sequential` for single Convs, or `auto` (default), which chooses "
        "([more](choosing.md#form))",
        python=_REWRITES,
        reported="form",
        default="auto",
        kind=click.Choice(["auto", *FORMS]),
    ),
    Declared(
        name="include",
        flags=("--include",),
        value="GLOB",
        help="Cut Convs by name, large or not.",
        meaning="cut only Convs of such names; leave nodes of such names as they are",
        python=_ALL,
        reported="include",
        default=(),
        kind=str,
        multiple=True,
    ),
    Declared(
        name="exclude",
        flags=("--exclude",),
        value="GLOB",
        help="Leave nodes of these names as they are.",
        python=_ALL,
        reported="exclude",
        default=(),
        kind=str,
        multiple=True,
    ),
    Declared(
        name="min_elements",
        flags=("--min-elements",),
        value="N",
        help="Cut Convs whose larger side has at least N elements (channels x height x width); 0: "
        "all. Default: input + output at least half of the predicted peak.",
        meaning="single Convs whose larger side has at least N elements (channels x height x "
        "width); 0: all. Default for `batch` and `sequential`: input + output at least half of "
        "what is alive at the peak",
        python=_ALL,
        reported="min_elements",
        kind=int,
    ),
    Declared(
        name="plan",
        flags=("--plan",),
        value="FILE",
        help="Do what this plan says.",
        meaning="apply a [plan file](plan-files.md), such as `--plan-out` writes",
        python=_REWRITES,
        kind=_FILE,
    ),
)

_MODEL = (
    Declared(
        name="fold",
        flags=("--fold/--no-fold",),
        help="Fold BatchNormalization, Mul and Add into Convs once, so that patches share weights.",
        meaning="leave it to the runtime to fold BatchNormalization, Mul and Add into each clone "
        "of a Conv ([more](onnxruntime.md#what-loading-costs))",
        python=_REWRITES,
        reported="fold",
        default=True,
    ),
    Declared(
        name="upgrade_opset",
        flags=("--upgrade-opset",),
        value="N",
        help="Convert to opset N first.",
        meaning="convert an old model first (opset 9 and up are taken as they are). What onnx's "
        "converter gets wrong is put right (Upsample, Resize, Hardmax, Pad) or refused; the result "
        "is verified against the original",
        python=_ALL,
        kind=int,
    ),
    Declared(
        name="share_weights",
        flags=("--share-weights",),
        help="Refer to the original's external weights.",
        meaning="refer to the original's external weight file instead of copying it",
        python=_FILES,
        default=False,
    ),
    Declared(
        name="allow_custom_ops",
        flags=("--allow-custom-ops",),
        help="Leave unknown operators as they are.",
        meaning="leave operators alone that neither ONNX nor ONNX Runtime define",
        python=_ALL,
        default=False,
    ),
)

_VERIFICATION = (
    Declared(
        name="verify",
        flags=("--verify/--no-verify",),
        help="Run both, compare.",
        meaning="do not [verify](verification.md); tolerances, seed, inputs of your own",
        python=_REWRITES,
        default=True,
    ),
    Declared(
        name="rtol",
        flags=("--rtol",),
        value="X",
        help="Tolerance relative to an output's spread.",
        python=_FILES,
        kind=float,
    ),
    Declared(
        name="atol",
        flags=("--atol",),
        value="X",
        help="Absolute tolerance, added.",
        python=_FILES,
        kind=float,
    ),
    Declared(
        name="seed",
        flags=("--seed",),
        value="N",
        help="Seed of the inputs.",
        python=_FILES,
        default=0,
        kind=click.IntRange(min=0),
    ),
    Declared(
        name="inputs",
        flags=("--inputs",),
        value="FILE.npz",
        help="Inputs to verify on (.npz).",
        python=_FILES,
        kind=_FILE,
    ),
    Declared(
        name="timeout_s",
        flags=("--verify-timeout",),
        value="SECONDS",
        help="How long verification may run the original.",
        meaning="how long verification may run the original (1800); the result as long, or ten "
        "times what the original took",
        python=_FILES,
        default=TIMEOUT_S,
        kind=click.FloatRange(0, 1e7, min_open=True),
    ),
    Declared(
        name="require_verified",
        flags=("--require-verified",),
        help="Write nothing that is not verified.",
        meaning="write nothing that could not be verified: exit code 1 then",
        python=_FILES,
        default=False,
    ),
)

_MEASURING = (
    Declared(
        name="measure",
        flags=("--measure",),
        help="Measure both models; under ONNX Runtime, find the session options to recommend.",
        meaning="measure both models when the result is verified; under ONNX Runtime this finds "
        "the session options that the written model recommends ([more](onnxruntime.md))",
        python=_FILES,
        default=False,
    ),
    Declared(
        name="engine",
        flags=("--engine",),
        help="Engine to measure on.",
        python=_COMMAND,
        default="onnxruntime",
        kind=click.Choice(ENGINES),
    ),
)

# In the order of the commands' help and of the documentation's tables.
_GROUPS: Mapping[str, tuple[Declared, ...]] = {
    "Output": _OUTPUT,
    "Memory": _MEMORY,
    "What is cut": _CUT,
    "The model": _MODEL,
    "Verification": _VERIFICATION,
    "Measuring": _MEASURING,
}

OPTIONS: Mapping[str, Declared] = {
    each.name: each for declared in _GROUPS.values() for each in declared
}


def declared_options(*names: str) -> Callable[[CommandT], CommandT]:
    """Return the decorator that adds declared options to a command, under their headings.

    Args:
        names: Their keywords; all that are declared where none is named.

    Raises:
        KeyError: No such option is declared.
    """
    wanted = {OPTIONS[name].name for name in names} or OPTIONS.keys()
    groups = []
    for heading, declared in _GROUPS.items():
        decorators = [each.decorator() for each in declared if each.name in wanted]
        if decorators:
            groups.append(cloup.option_group(heading, *decorators))

    def decorate(function: CommandT) -> CommandT:
        # As decorators stand above a function: the last one is applied first.
        for group in reversed(groups):
            function = group(function)
        return function

    return decorate


def names_of(function: str) -> frozenset[str]:
    """Return the options that a function of Python has.

    Args:
        function: "rewrite", "convert_model" or "pareto".
    """
    return frozenset(each.name for each in OPTIONS.values() if function in each.python)


def option_table() -> str:
    """Return the documentation's tables, one under each heading, a row for options of one text."""
    parts = []
    for heading, declared in _GROUPS.items():
        rows: list[tuple[list[str], str]] = []
        for each in declared:
            if each.meaning:
                rows.append(([], each.meaning))
            rows[-1][0].append(each.shown)
        lines = [f"### {heading}", "", "| option | meaning |", "|---|---|"]
        lines += [f"| {', '.join(shown)} | {meaning} |" for shown, meaning in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
