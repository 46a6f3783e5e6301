"""``patchconv report``: one HTML file that shows what cutting a model does."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
import cloup

from patchconv_deploy.api import make_options
from patchconv_deploy.cli.auto_budget import auto_budget
from patchconv_deploy.cli.command import command
from patchconv_deploy.cli.config import config_option
from patchconv_deploy.cli.progress import progress_bar
from patchconv_deploy.cli.reproduce import commands
from patchconv_deploy.cli.types import (
    AUTO,
    BudgetType,
    SizeType,
    given,
    read_text,
    shapes_keyword,
    spelled_ranges,
    write_text,
)
from patchconv_deploy.console import complain, log_to_stderr, stdout_console
from patchconv_deploy.options import declared_options, names_of
from patchconv_deploy.report.page.content import content
from patchconv_deploy.report.page.figures import read_figures
from patchconv_deploy.report.page.plots import check_matplotlib, write_plots
from patchconv_deploy.report.page.render import check_jinja, check_page_target, render
from patchconv_deploy.report.page.subject import Asked, look_at
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.sizes import spelled_size
from patchconv_deploy.words import flag_of

__all__ = ["report_command"]

# What a rewrite is planned with; of a file that was rewritten the plan is known.
_PLANNING = (
    "splits",
    "memory_budget",
    "max_recompute",
    "form",
    "patch_rows",
    "target",
    "max_tensor_elements",
    "max_buffer",
    "plan",
    "axis",
    "min_elements",
    "include",
    "exclude",
    "upgrade_opset",
    "fold",
)


@command(
    "report",
    summary="Write an HTML page that shows what cutting a model does.",
    examples="""
    # of a model and what was made of it
    patchconv report model.onnx model.patched.onnx
    # of a plan that is made here, without the curve of all budgets
    patchconv report model.onnx --splits 8 --no-curve
    # measured here, plots as SVG and PNG beside the page
    patchconv report model.onnx model.patched.onnx --measure --plots plots
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("patched", required=False, type=click.Path(path_type=Path))
@cloup.option_group(
    "Page",
    click.option(
        "-o",
        "--output",
        "out",
        type=click.Path(path_type=Path),
        metavar="OUT",
        help="Default: MODEL.report.html. A report that stands there is replaced, nothing else.",
    ),
    click.option("--measure", is_flag=True, help="Measure both models under ONNX Runtime."),
    click.option(
        "--figures",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE.json",
        help="What was measured or verified before: of patchconv measure --json or "
        "patchconv-rewrite --report.",
    ),
    click.option(
        "--curve/--no-curve",
        default=True,
        help="Search plans for all budgets; takes longer than the plan itself.",
    ),
    click.option(
        "--plots",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Write the plots as SVG and PNG, too.",
    ),
)
@declared_options(
    *_PLANNING, "shapes", "verify", "seed", "inputs", "timeout_s", "allow_custom_ops", "quiet"
)
@config_option()
@click.pass_context
def report_command(
    context: click.Context,
    /,
    model: Path,
    patched: Path | None,
    out: Path | None,
    plan: Path | None,
    shapes: tuple[tuple[str, tuple[tuple[int, int], ...]], ...],
    verify: bool,
    seed: int,
    inputs: Path | None,
    timeout_s: float,
    measure: bool,
    figures: tuple[Path, ...],
    curve: bool,
    plots: Path | None,
    quiet: bool,
    **planning: Any,
) -> None:
    """Write one HTML file that shows what cutting MODEL does: memory, graph, regions, cost.

    PATCHED is what patchconv-rewrite made of MODEL; without it the rewrite is planned here, with
    the same options, and no model is left. Both models are run and compared, but for --no-verify.
    """
    target = out or model.with_name(model.name.removesuffix(".onnx") + ".report.html")
    check_jinja()
    check_page_target(target)
    if plots is not None:
        check_matplotlib()
        if plots.exists() and not plots.is_dir():
            raise click.UsageError(f"--plots {plots}: is no folder")
    if patched is not None:
        _check_planned(context)
    log_to_stderr(logging.ERROR)
    if planning["memory_budget"] == AUTO:
        looked = Options(
            target=planning["target"],
            ranges=dict(shapes),
            allow_custom_ops=planning["allow_custom_ops"],
        )
        planning["memory_budget"] = auto_budget(model, looked, quiet=quiet)
    keywords: dict[str, Any] = {
        **planning,
        "plan": None if plan is None else read_plan(read_text("--plan", plan)),
        "shapes": shapes_keyword(shapes),
    }
    with progress_bar(quiet) as progress:
        subject = look_at(
            Asked(
                source=model,
                patched=patched,
                options=make_options(**keywords),
                keywords=keywords,
                verify=verify,
                measure=measure,
                curve=curve,
                figures=read_figures(figures),
                seed=seed,
                inputs=inputs,
                timeout_s=timeout_s,
                folder=target.absolute().parent,
            ),
            progress,
        )
    cut = bool(subject.outcome.rewritten)
    # What was free once is another budget another day.
    typed = {**context.params, "memory_budget": planning["memory_budget"]}
    names = {parameter.name for parameter in given(context)} - {*_ASIDE}
    again = commands(
        model,
        patched,
        _typed(context, typed, names - {*_PAGE}),
        _typed(context, typed, names),
        _typed(context, typed, (names & names_of("pareto")) - {"shapes", "target", "axis"}),
        subject.options,
        axis=subject.axis,
        cut=cut,
    )
    page = content(subject, again)
    write_text(target, render(page))
    written = [target]
    if plots is not None:
        written += write_plots(page, plots)
    if not quiet:
        console = stdout_console()
        console.print(page["lead"])
        for path in written:
            console.print(f"Written: {path}")
    for note in page["notes"]:
        complain("warning", note)
    if page["verification"]["state"] == "bad":
        complain("error", f"the models do not compute the same: {page['verification']['reason']}")
        sys.exit(1)


def _check_planned(context: click.Context) -> None:
    """Refuse what a rewrite is planned with where one is given.

    Raises:
        click.UsageError: It names the option.
    """
    for parameter in given(context):
        if parameter.name in _PLANNING:
            raise click.UsageError(
                f"{flag_of(parameter)} means nothing beside PATCHED, which holds its plan; leave "
                "one of the two out"
            )


# What says what stands in the page, not what it is about; and where it goes.
_PAGE = ("figures", "verify", "measure", "curve", "timeout_s")
_ASIDE = ("out", "plots", "quiet")


def _typed(
    context: click.Context, values: Mapping[str, Any], names: Collection[str | None]
) -> list[str]:
    """Return options as they may be typed again, in the order that a command has them in.

    Args:
        context: The command that runs.
        values: The value of each.
        names: Those that are wanted.
    """
    words: list[str] = []
    for parameter in context.command.params:
        if parameter.name not in names or not isinstance(parameter, click.Option):
            continue
        value = values[parameter.name or ""]
        for each in value if parameter.multiple else (value,):
            words += _spelled(parameter, each)
    return words


def _spelled(parameter: click.Option, value: Any) -> list[str]:
    flag = flag_of(parameter)
    if parameter.is_flag:
        off = value is False and parameter.secondary_opts
        return [parameter.secondary_opts[0] if off else flag]
    if parameter.name == "shapes":
        value = spelled_ranges(*value)
    if isinstance(parameter.type, SizeType | BudgetType) and isinstance(value, int):
        value = spelled_size(value)
    return [flag, str(value)]
