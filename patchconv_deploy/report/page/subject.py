"""What a page is about: a rewrite, planned here or read back from its file, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchconv_deploy.api import rewrite
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.errors import UsageError
from patchconv_deploy.measure.run import check_engine, measure_onnxruntime
from patchconv_deploy.report.page.figures import Figures, Row, check_same_rewrite, row_of
from patchconv_deploy.report.page.provenance import remake
from patchconv_deploy.report.report import Report, make_report
from patchconv_deploy.rewriters.emission.forms import SINGLE_FORMS
from patchconv_deploy.rewriters.errors import OptionError
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes, free_inputs
from patchconv_deploy.rewriters.graph.model import Loaded, load
from patchconv_deploy.rewriters.inspection import Overview
from patchconv_deploy.rewriters.look import overview_of, pareto_of
from patchconv_deploy.rewriters.operators.record import Shape
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.planning.evaluated_plan import Candidate
from patchconv_deploy.rewriters.planning.progress import Progress
from patchconv_deploy.scratch import scratch_folder
from patchconv_deploy.verify.verification import check_inputs, not_run, verify

__all__ = ["Asked", "Subject", "look_at"]

_PREFIX = ".patchconv-report-"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be looked at, and how.

    Attributes:
        source: The original model's file.
        patched: A file that was rewritten from it; None to plan a rewrite.
        options: What the rewrite is asked for; of a file the sizes alone.
        keywords: The same as keywords of `rewrite`.
        verify: Run both models and compare, unless figures say what came of that.
        measure: Measure both models under ONNX Runtime on the CPU.
        curve: Search plans for all budgets.
        figures: What was measured and verified before.
        seed: Seed of the inputs.
        inputs: An .npz file of inputs to verify on, None for seeded ones.
        timeout_s: Seconds that verification may run the original.
        folder: Where a rewritten model may lie while it is verified and measured.
    """

    source: Path
    patched: Path | None
    options: Options
    keywords: Mapping[str, Any]
    verify: bool
    measure: bool
    curve: bool
    figures: Figures
    seed: int
    inputs: Path | None
    timeout_s: float
    folder: Path


@dataclass(frozen=True)
class Subject:
    """What a page is about.

    Attributes:
        asked: What was asked for.
        options: What the rewrite was asked for.
        axis: The axis of its plan; without one, the axis that is looked along.
        outcome: What it does.
        report: The same as data.
        verification: What verification found, as in a report; here or in a file.
        verified_by: The file that says so, empty if it was found here.
        rows: What was measured, here and before.
        failed: What could not be measured.
        overview: What holds the original's memory.
        curve: The original, and plans of ever lower peak and ever more time; empty if there is
            none.
        doubt: What is different in the rewritten file from what its plan gives; empty if nothing.
        original: The model as it was read, at the sizes in question, its weights included.
        left: The rewritten file is the model as it was.
    """

    asked: Asked
    options: Options
    axis: str | int
    outcome: Outcome
    report: Report
    verification: Mapping[str, Any]
    verified_by: str
    rows: Sequence[Row]
    failed: Sequence[str]
    overview: Overview
    curve: Sequence[Candidate]
    doubt: str
    original: Loaded
    left: bool = False


def look_at(asked: Asked, progress: Progress | None = None) -> Subject:
    """Plan or read back a rewrite; verify and measure it where asked for.

    Nothing is left on disk.

    Args:
        asked: What is to be looked at.
        progress: Called with (what, done, total) from time to time.

    Raises:
        UsageError: A rewritten file was not made of the model, figures are of another rewrite, or
            inputs do not fit.
        RewriterError, VerificationError, BudgetError, EngineMissing: As `rewrite`.
    """
    if asked.measure:
        check_engine("onnxruntime")
    done = _planned(asked, progress) if asked.patched is None else _read_back(asked, progress)
    if done.outcome.already:
        raise UsageError(
            f"{asked.source}: was rewritten itself; name the model that it was made of, and this "
            "one as PATCHED"
        )
    check_same_rewrite(asked.figures, [entry.nodes for entry in done.outcome.rewritten])
    given = asked.figures.verification
    axis = done.options.axis
    if done.outcome.plan is not None:
        axis = done.outcome.plan["axis"]
    options = replace(done.options, axis="height" if axis == "auto" else axis)
    original = load(asked.source)
    fix_shapes(original.model, done.sizes)
    overview = overview_of(original, options)
    curve = _curve(asked, original, options, done, progress)
    fix_shapes(original.model, options.shapes)
    return Subject(
        asked,
        done.options,
        options.axis,
        done.outcome,
        done.report,
        done.report.verification if given is None else given,
        "" if given is None else asked.figures.source,
        (*done.rows, *asked.figures.rows),
        (*done.failed, *asked.figures.failed),
        overview,
        curve,
        done.doubt,
        original,
        done.left,
    )


@dataclass(frozen=True)
class _Done:
    options: Options
    outcome: Outcome
    report: Report
    rows: Sequence[Row]
    failed: Sequence[str]
    sizes: Mapping[str, Shape]
    doubt: str = ""
    left: bool = False


def _planned(asked: Asked, progress: Progress | None) -> _Done:
    """Plan a rewrite; the model is written for as long as it is verified and measured."""
    verifying = asked.verify and asked.figures.verification is None
    common: dict[str, Any] = {**asked.keywords, "progress": progress, "seed": asked.seed}
    if not (verifying or asked.measure):
        result = rewrite(asked.source, dry_run=True, **common)
    else:
        with scratch_folder(asked.folder, _PREFIX) as folder:
            result = rewrite(
                asked.source,
                folder / f"{asked.source.name.removesuffix('.onnx')}.patched.onnx",
                verify=verifying,
                inputs=asked.inputs,
                timeout_s=asked.timeout_s,
                measure=asked.measure,
                **common,
            )
    rows = [row_of(each.as_json()) for each in result.measured]
    return _Done(asked.options, result.outcome, result.report, *_parted(rows), {})


def _parted(rows: Sequence[Row | str]) -> tuple[list[Row], list[str]]:
    return (
        [each for each in rows if isinstance(each, Row)],
        [each for each in rows if isinstance(each, str)],
    )


def _read_back(asked: Asked, progress: Progress | None) -> _Done:
    """Do the rewrite of a file again, by its plan; verify and measure the file itself."""
    assert asked.patched is not None
    if progress is not None:
        progress("analysing", 0, 1)
    original = load(asked.source)
    check_inputs(asked.inputs, original.model)
    remade = remake(asked.source, asked.patched, asked.options)
    checked = not_run("not asked for", declined=True)
    if asked.verify and asked.figures.verification is None:
        if progress is not None:
            progress("verifying", 0, 1)
        checked = verify(
            asked.source,
            asked.patched,
            remade.outcome,
            seed=asked.seed,
            inputs=asked.inputs,
            timeout_s=asked.timeout_s,
            ranges=remade.options.ranges,
        )
    report = make_report(
        remade.outcome,
        remade.options,
        checked,
        source=asked.source,
        out=asked.patched,
        source_free=free_inputs(original.model),
        normalised=original.normalised,
    )
    rows: list[Row | str] = []
    if asked.measure:
        largest = {n: tuple(high for _, high in e) for n, e in remade.options.ranges.items()}
        shapes = {**remade.options.shapes, **largest}
        measured = measure_onnxruntime(
            [asked.source, asked.patched],
            OrtOptions(),
            shapes=shapes,
            runs=5,
            seed=asked.seed,
            recommended=True,
            at_best=True,
            progress=progress,
        )
        rows = [row_of(each.as_json()) for each in measured]
    return _Done(
        remade.options,
        remade.outcome,
        report,
        *_parted(rows),
        remade.sizes,
        remade.doubt,
        remade.left,
    )


def _curve(
    asked: Asked, original: Loaded, options: Options, done: _Done, progress: Progress | None
) -> Sequence[Candidate]:
    """Return the curve of peak against work; empty where no plans of regions are to be found."""
    if not asked.curve or done.outcome.already or done.outcome.before.unknown:
        return ()
    if options.form in SINGLE_FORMS or not options.by_region:
        return ()
    if progress is not None:
        progress("searching the curve", 0, 1)
    free = replace(options, plan=None)
    try:
        return pareto_of(original, free)
    except OptionError:  # of an opset that is too old nothing is cut
        return ()
