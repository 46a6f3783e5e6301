"""The command line: ``patchconv`` and ``patchconv-rewrite``.

Exit codes: 0 done, 1 mismatch or failure, 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import cloup

from patchconv_deploy.api import RewriteResult, default_output, make_options, rewrite
from patchconv_deploy.cli.auto_budget import auto_budget
from patchconv_deploy.cli.build import build_command
from patchconv_deploy.cli.command import HELP_OPTIONS, command
from patchconv_deploy.cli.config import config_option
from patchconv_deploy.cli.doctor import doctor_command
from patchconv_deploy.cli.inspect import inspect_command
from patchconv_deploy.cli.measure import measure_command
from patchconv_deploy.cli.pareto import check_pareto, pareto_json, print_pareto
from patchconv_deploy.cli.progress import progress_bar
from patchconv_deploy.cli.report import report_command
from patchconv_deploy.cli.triton import triton_command
from patchconv_deploy.cli.types import (
    AUTO,
    check_json_target,
    read_text,
    shapes_keyword,
    write_text,
)
from patchconv_deploy.console import (
    complain,
    log_to_stderr,
    stdout_console,
)
from patchconv_deploy.engines.errors import DeviceMissing, EngineError, EngineMissing, OptionError
from patchconv_deploy.errors import Interrupted, PatchConvError, VerificationError
from patchconv_deploy.measure.run import Result, check_engine, measure_models
from patchconv_deploy.measure.table import measurement_json, print_results
from patchconv_deploy.options import declared_options
from patchconv_deploy.report.report import Report, all_sizes_text
from patchconv_deploy.report.table import print_report
from patchconv_deploy.report.warnings import unknown_peak
from patchconv_deploy.rewriters.errors import BudgetError, RewriterError
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.look import pareto_of, unknown_of
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.plan_file import read_plan
from patchconv_deploy.version import VERSION

__all__ = ["main", "main_rewrite"]


logger = logging.getLogger(__name__)


@command(
    "rewrite",
    summary="Write a model that needs less memory, and verify it.",
    examples="""
    # least memory in 4 patches; writes model.patched.onnx
    patchconv rewrite model.onnx
    # what each budget costs in work and time
    patchconv rewrite model.onnx --pareto
    # the fastest plan that adds 512 MiB at most
    patchconv rewrite model.onnx --memory-budget 512MiB -o small.onnx
    # free height, up to 4096 rows
    patchconv rewrite model.onnx --shape x:1x3x256..4096x512
    # for TensorRT, in 8 patches, with the report as JSON
    patchconv rewrite model.onnx --target tensorrt --splits 8 --report r.json
    """,
)
@click.argument("model", type=click.Path(path_type=Path))
@declared_options()
@config_option()
@click.version_option(VERSION)
@click.pass_context
def rewrite_command(
    context: click.Context,
    model: Path,
    out: Path | None,
    splits: int | None,
    memory_budget: int | str | None,
    max_recompute: float | None,
    form: str,
    patch_rows: int | None,
    target: str,
    max_tensor_elements: int | None,
    max_buffer: int | None,
    plan: Path | None,
    plan_out: Path | None,
    axis: str | int,
    min_elements: int | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    shapes: tuple[tuple[str, tuple[tuple[int, int], ...]], ...],
    report: Path | None,
    pareto_only: bool,
    dry_run: bool,
    verify: bool,
    require_verified: bool,
    rtol: float | None,
    atol: float | None,
    seed: int,
    inputs: Path | None,
    timeout_s: float,
    upgrade_opset: int | None,
    fold: bool,
    share_weights: bool,
    allow_custom_ops: bool,
    measure: bool,
    engine: str,
    force: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run MODEL's large layers patch by patch: same interface, same numbers, less memory."""
    check_json_target("--report", report)
    check_json_target("--plan-out", plan_out)
    if pareto_only:
        check_pareto(context)
    if report is not None and report.resolve() == (out or default_output(model)).resolve():
        raise click.UsageError(f"--report {report}: this is the output's own file")
    if measure:
        check_engine(engine)
    log_to_stderr(logging.DEBUG if verbose else logging.ERROR)
    given_plan = None if plan is None else read_plan(read_text("--plan", plan))
    if memory_budget == AUTO and not pareto_only:
        looked = Options(target=target, ranges=dict(shapes), allow_custom_ops=allow_custom_ops)
        memory_budget = auto_budget(model, looked, quiet=quiet)
    planning: dict[str, Any] = {
        "splits": splits,
        "memory_budget": memory_budget,
        "max_recompute": max_recompute,
        "form": form,
        "patch_rows": patch_rows,
        "target": target,
        "max_tensor_elements": max_tensor_elements,
        "max_buffer": max_buffer,
        "plan": given_plan,
        "axis": axis,
        "include": include,
        "exclude": exclude,
        "min_elements": min_elements,
        "shapes": shapes_keyword(shapes),
        "fold": fold,
        "upgrade_opset": upgrade_opset,
        "allow_custom_ops": allow_custom_ops,
    }
    if pareto_only:
        _show_curve(model, make_options(**planning), report, quiet)
        return
    with progress_bar(quiet) as progress, _report_of_failure(report):
        result = rewrite(
            model,
            out,
            **planning,
            share_weights=share_weights,
            verify=verify,
            require_verified=require_verified,
            rtol=rtol,
            atol=atol,
            seed=seed,
            inputs=inputs,
            timeout_s=timeout_s,
            measure=measure and engine == "onnxruntime",
            dry_run=dry_run,
            force=force,
            progress=progress,
        )
    results: Sequence[Result] = result.measured
    if measure and result.path is not None and not results:
        try:
            largest = {name: tuple(high for _, high in each) for name, each in shapes}
            results = measure_models([model, result.path], engine, shapes=largest, seed=seed)
        except KeyboardInterrupt:
            raise Interrupted(f"{result.path} was written; measuring was interrupted") from None
        except EngineError as error:
            raise PatchConvError(f"{result.path} was written, but not measured: {error}") from error
        result.report.data["measured"] = measurement_json(results)["results"]
    try:
        _write_report(report, result.report)
        if plan_out is not None and result.outcome.plan is not None:
            write_text(plan_out, json.dumps(result.outcome.plan, indent=2) + "\n")
        if not quiet:
            console = stdout_console()
            print_report(result.report, result.outcome, console, all_rows=verbose)
            if results:
                print_results(results, console)
        _print_end(result, quiet)
    except OSError as error:
        written = f"{result.path} was written, but " if result.path else ""
        raise PatchConvError(f"{written}the report could not be: {error.strerror}") from error
    errors = [f"{each.model}: {each.error}" for each in results if each.error]
    failed = "; ".join(dict.fromkeys(errors))
    if failed:
        raise PatchConvError(f"{result.path} was written, but not measured: {failed}")


def _show_curve(model: Path, options: Options, report: Path | None, quiet: bool) -> None:
    """Print the curve of predicted peak against work, and write it as JSON where asked for."""
    loaded = load(model)
    with progress_bar(quiet, "searching the curve"):
        points = pareto_of(loaded, options)
    if report is not None:
        data = {
            "model": {"path": str(model)},
            "target": options.target,
            "pareto": pareto_json(points),
        }
        write_text(report, json.dumps(data, indent=2) + "\n")
    if not quiet:
        print_pareto(points, stdout_console())
    unknown = unknown_of(loaded, options) if points[0].unknown else None
    if unknown is not None:
        complain("warning", unknown_peak(unknown))


def _print_end(result: RewriteResult, quiet: bool) -> None:
    """Print the warnings and what was written; last of all, what was verified, or that it was not.

    Args:
        result: What was done.
        quiet: Print the warnings alone.
    """
    doubt = result.report.doubt
    for warning in result.report.warnings:
        if warning != doubt:
            complain("warning", warning)
    if not quiet and result.path is not None:
        found = result.report.verification
        # What differs from the file without a cut (an opset, sizes) is verified, too.
        uncut = " (nothing was cut)" if found["ran"] else " (the model as it was)"
        said = "" if result.weights is None else f" with its weights, {result.weights.name}"
        said += "" if result.outcome.rewritten else uncut
        if found["ran"] and not doubt:
            said += f", verified at {all_sizes_text(found)}"
        elif result.outcome.rewritten and not doubt:
            said += ", not verified"
        stdout_console().print(f"Written: {result.path}{said}")
    if doubt:
        complain("warning", doubt)


def _write_report(path: Path | None, report: Report) -> None:
    if path is not None:
        write_text(path, json.dumps(report.data, indent=2) + "\n")


@contextmanager
def _report_of_failure(path: Path | None) -> Iterator[None]:
    """Write the report of a rewrite that did not verify, too."""
    try:
        yield
    except VerificationError as error:
        _write_report(path, error.report)
        raise


_COMPLETION = """\b
Completion: put one of these where your shell begins.
  bash  eval "$(_PATCHCONV_COMPLETE=bash_source patchconv)"
  zsh   eval "$(_PATCHCONV_COMPLETE=zsh_source patchconv)"
  fish  _PATCHCONV_COMPLETE=fish_source patchconv | source
"""


@cloup.group(context_settings=HELP_OPTIONS, epilog=_COMPLETION)
@click.version_option(VERSION)
def patchconv() -> None:
    """Cut exported ONNX models into patches, so that they need less memory; measure and show it."""


patchconv.add_command(rewrite_command)

patchconv.add_command(inspect_command)

patchconv.add_command(measure_command)

patchconv.add_command(build_command)

patchconv.add_command(triton_command)

patchconv.add_command(report_command)

patchconv.add_command(doctor_command)


def _run(command: click.Command) -> int:
    """Run a command; every error is one line on standard error and an exit code."""

    def fail(message: str, code: int) -> int:
        complain("error", message)
        return code

    # A polite kill cleans up like Ctrl-C does.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    log_to_stderr(logging.WARNING)
    try:
        command.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return fail(error.format_message(), 2)
    except PatchConvError as error:
        return fail(str(error), error.exit_code)
    except BudgetError as error:
        return fail(str(error), 1)
    except RewriterError as error:
        return fail(str(error), 2)
    except (EngineMissing, DeviceMissing, OptionError) as error:
        return fail(str(error), 2)
    except EngineError as error:
        return fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted; nothing was written", 130)
    except MemoryError:
        return fail("out of memory while rewriting; nothing was written", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}; nothing was written", 1)
    except Exception as error:
        logger.debug("internal error", exc_info=True)
        return fail(f"internal error, please report it: {type(error).__name__}: {error}", 1)
    return 0


def main() -> None:
    """Run ``patchconv``."""
    sys.exit(_run(patchconv))


def main_rewrite() -> None:
    """Run ``patchconv-rewrite``."""
    sys.exit(_run(rewrite_command))
