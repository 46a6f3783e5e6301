"""One network in one form: what is gained, what was left alone, and whose fault that is."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from patchconv_deploy import rewrite
from patchconv_deploy.api import RewriteResult
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.measure.run import measure_onnxruntime
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.planning.candidates import candidates_of
from patchconv_deploy.rewriters.planning.model_facts import ModelFacts
from patchconv_deploy.rewriters.planning.peak_holders import reasons_of
from patchconv_deploy.rewriters.prepare import look_at
from tools.coverage.networks import NETWORKS, write

__all__ = ["AIM", "SPLITS", "Row", "line_of", "row_of"]

SPLITS = 8

# What an original's peak should become, and how near to its floor is as good.
AIM, NEAR = 0.5, 1.1

# Operators that look at all rows by what they compute: no patches reach through them.
_WHOLE = frozenset(
    "Attention CumSum Einsum Flatten GRU Gemm GlobalAveragePool GlobalMaxPool LSTM MatMul NonZero "
    "ReduceMax ReduceMean ReduceSum Softmax TopK".split()
)

# What stands around those and only moves elements, and what reads no elements.
_LAYOUT = frozenset("Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
_NOTHING = frozenset({"Shape", "Size"})

# Most reasons that are told.
_REASONS = 6


@dataclass(frozen=True)
class Row:
    """What was found of a network in one form.

    Attributes:
        network: A key of `NETWORKS`.
        exporter: What wrote it.
        form: "static" or "free".
        before: Predicted peak of the original, bytes; None where it is unknown.
        after: The same of the result.
        floor: What no patches go below: the outputs, and one patch of what is alive at the peak.
        held: Bytes that nodes hold which look at all rows, at the peak of the result.
        recompute: Work after over before.
        forms: Forms of the regions.
        verified: "yes", "NO", "as it was" where nothing is cut, or why it was not.
        left: What was left alone, the most bytes first: (bytes, code, reason).
        fault: "" where the aim is reached, else "floor", "method" or "ours".
        seconds: How long exporting, rewriting and verifying took.
        measured: Measured peaks before and after, bytes; None where that was not asked for.
        error: What went wrong, else empty.
    """

    network: str
    exporter: str
    form: str
    before: int | None = None
    after: int | None = None
    floor: int | None = None
    recompute: float | None = None
    forms: tuple[str, ...] = ()
    verified: str = ""
    left: tuple[tuple[int, str, str], ...] = ()
    fault: str = ""
    seconds: float = 0.0
    measured: tuple[int | None, int | None] | None = None
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """Peak after over before."""
        return None if not self.before or self.after is None else self.after / self.before

    @property
    def reached(self) -> bool:
        """Whether it comes to half the peak, or near its own floor."""
        if self.after is None or self.before is None or self.floor is None:
            return False
        return self.after <= max(AIM * self.before, NEAR * self.floor)


def row_of(
    name: str, exporter: str, form: str, *, predict: bool = False, measure: bool = False
) -> Row:
    """Export, rewrite and judge a network; what goes wrong is in the row.

    Args:
        name: A key of `NETWORKS`.
        exporter: One of its exporters.
        form: One of its forms.
        predict: Verify nothing.
        measure: Measure both models, each in a process of its own.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="patchconv-") as folder:
        path, out = Path(folder, f"{name}.onnx"), Path(folder, f"{name}.patched.onnx")
        try:
            shapes = write(name, exporter, form, path)
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything
            seconds = time.monotonic() - started
            return Row(name, exporter, form, error=f"no export: {line_of(error)}", seconds=seconds)
        keywords = dict(NETWORKS[name].keywords)
        opset = next(e.version for e in onnx.load(path).opset_import if e.domain in ("", "ai.onnx"))
        if form == "free" and opset < 13:
            # Below it a Loop takes no sequences.
            keywords["upgrade_opset"] = 13
        try:
            result = rewrite(
                path, out, splits=SPLITS, shapes=shapes, verify=not predict, dry_run=predict,
                timeout_s=120, **keywords,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - one network must not end the table
            seconds = time.monotonic() - started
            return Row(name, exporter, form, error=line_of(error), seconds=seconds)
        found = _judged(Row(name, exporter, form), result, path, shapes, keywords)
        measured = _measured(path, out, shapes) if measure and out.exists() else None
    seconds = time.monotonic() - started
    return replace(found, seconds=seconds, measured=measured)


def line_of(error: Exception) -> str:
    """Return what an error says in one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(text)[:300]


def _judged(
    row: Row, result: RewriteResult, path: Path, shapes: Any, keywords: dict[str, Any]
) -> Row:
    outcome, found = result.outcome, result.report.verification
    before = None if outcome.before.unknown else outcome.before.need
    after = None if outcome.after.unknown else outcome.after.need
    fixed = {n: s for n, s in shapes.items() if not any(isinstance(each, tuple) for each in s)}
    ranges = {
        name: tuple(each if isinstance(each, tuple) else (each, each) for each in shape)
        for name, shape in shapes.items()
        if name not in fixed
    }
    options = Options(splits=SPLITS, shapes=fixed, ranges=ranges, **keywords)
    predictor = look_at(load(path), options)
    facts = predictor.facts
    outputs = _outputs(facts)
    floor = None if before is None else outputs + max(0, before - outputs) // SPLITS
    verified = "yes" if found["passed"] else "NO"
    if not outcome.rewritten:
        verified = "as it was"
    elif not found["ran"]:
        verified = "" if result.path is None else f"not: {found['reason']}"
    judged = replace(
        row,
        before=before,
        after=after,
        floor=floor,
        recompute=outcome.recompute,
        forms=tuple(sorted({region.form for region in outcome.rewritten})),
        verified=verified,
    )
    if judged.reached:
        return judged
    candidates = candidates_of(predictor, options.axes[0], frozenset(), engine=outcome.engine)
    links, why = candidates.links, candidates.reasons
    # What the regions made is no tensor of the model: it is counted for itself.
    alive = outcome.after.alive
    known = tuple((tensor, size) for tensor, size in alive if tensor in facts.bytes)
    pieces = sum(size for _, size in alive) - sum(size for _, size in known)
    peak = replace(outcome.after, bytes=outcome.after.bytes - pieces, alive=known)
    reasons = outcome.reasons or reasons_of(
        predictor, peak, links, why, (), candidates.refused, outcome.engine
    )
    left = [(each.bytes or 0, each.code, each.reason) for each in reasons]
    if pieces:
        left = sorted([*left, (pieces, "patches", "windows, pieces and what is made of them")])[
            ::-1
        ]
    graph = facts.certain.graph
    barriers = sorted(
        (
            (_bytes(facts, at), graph.node[at].op_type, reason)
            for at, reason in why.items()
            if at not in links
            and at not in facts.statistic_of
            and graph.node[at].op_type not in _NOTHING
        ),
        key=lambda each: -each[0],
    )
    left += [(size, "not-cut", f"{op}: {reason}") for size, op, reason in barriers if size]
    refused = {(each.code, each.reason) for each in candidates.refused}
    left += [(0, code, reason) for code, reason in sorted(refused)]
    return replace(judged, left=tuple(left[:_REASONS]), fault=_fault(judged, barriers))


def _fault(judged: Row, barriers: list[tuple[int, str, str]]) -> str:
    """Return whose fault it is that the aim is missed.

    The floor's where twice it is more than the peak; the method's where all nodes that are left
    alone, read or make more than a patch's share of what is left, and do not only move elements,
    look at all rows; else the rewriter's.
    """
    floor, after, before = judged.floor, judged.after, judged.before
    if floor is None or after is None or before is None:
        return "ours"
    if floor >= AIM * before:
        return "floor"
    large = [op for size, op, _ in barriers if op not in _LAYOUT and SPLITS * size > after]
    return "method" if large and all(op in _WHOLE for op in large) else "ours"


def _bytes(facts: ModelFacts, at: int) -> int:
    node = facts.certain.graph.node[at]
    return sum(facts.bytes.get(name) or 0 for name in {*node.input, *node.output})


def _outputs(facts: ModelFacts) -> int:
    return sum(facts.bytes.get(name) or 0 for name in facts.index.outputs)


def _measured(path: Path, out: Path, shapes: Any) -> tuple[int | None, int | None]:
    largest = {
        name: tuple(each[1] if isinstance(each, tuple) else each for each in shape)
        for name, shape in shapes.items()
    }
    before, after = measure_onnxruntime(
        [path, out],
        OrtOptions(threads=2, memory_pattern=False, memory_reuse=False),
        shapes=largest,
        runs=1,
        processes=1,
        recommended=True,
    )
    return before.peak_bytes, after.peak_bytes
