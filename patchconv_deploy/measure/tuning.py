"""Session options of ONNX Runtime for a rewritten model, found by measuring.

    original at the defaults     )
    rewritten, memory reuse and  )  in turn, round after round
    memory pattern on and off    )
    original at the chosen pair     afterwards, alone: its peak may be what does not fit twice

Of the pairs whose peak is within 2 % of the lowest, the one that changes the least of the defaults
is chosen: what brings nothing is not recommended. (`tune_onnxruntime` names the fastest
of these; from run to run that may be another.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.measurement import Measurement
from patchconv_deploy.engines.ort.measure import PROCESSES, Progress, measure
from patchconv_deploy.engines.ort.options import SESSION_OPTIONS, OrtOptions
from patchconv_deploy.measure.prepared import prepared
from patchconv_deploy.measure.run import lowest_of, memory_pairs, noted, spelled

__all__ = ["Tuned", "least_changed", "tune_rewritten"]


_PAIR = ("enable_mem_reuse", "enable_mem_pattern")

_FIELDS = tuple(SESSION_OPTIONS[name] for name in _PAIR)


@dataclass(frozen=True)
class Tuned:
    """What was measured of a rewritten model and its original.

    Attributes:
        results: A row a model and pair of options: the original at the defaults, the original at
            the chosen pair if that is another, the rewritten model at each pair, defaults first.
        chosen: The rewritten model's row at the chosen pair; None if it never ran.
    """

    results: tuple[Measurement, ...]
    chosen: Measurement | None

    @property
    def session_options(self) -> dict[str, bool]:
        """The chosen pair under the names of onnxruntime.SessionOptions; empty without one."""
        if self.chosen is None:
            return {}
        return {name: self.chosen.options[SESSION_OPTIONS[name]] for name in _PAIR}

    def as_json(self) -> dict[str, Any] | None:
        """Return the pair, peaks and whole processes with and without it; None without a pair."""
        if self.chosen is None:
            return None
        original, rewritten = (
            [row for row in self.results if (row.model == self.chosen.model) is ours]
            for ours in (False, True)
        )
        return {
            **self.session_options,
            "kind": "measured",
            "measured_peak_bytes": self.chosen.peak_bytes,
            "measured_peak_bytes_at_defaults": rewritten[0].peak_bytes,
            "original_measured_peak_bytes": original[-1].peak_bytes,
            "original_measured_peak_bytes_at_defaults": original[0].peak_bytes,
            "measured_whole_bytes": self.chosen.whole_bytes,
            "measured_whole_bytes_at_defaults": rewritten[0].whole_bytes,
            "original_measured_whole_bytes": original[-1].whole_bytes,
            "original_measured_whole_bytes_at_defaults": original[0].whole_bytes,
        }

    def renamed(self, old: Path, new: Path) -> Tuned:
        """Return it for a model that was measured in one place and published in another."""
        names = {str(old): str(new)}

        def moved(row: Measurement) -> Measurement:
            error = row.error.replace(str(old), str(new))
            return dataclasses.replace(row, model=names.get(row.model, row.model), error=error)

        chosen = None if self.chosen is None else moved(self.chosen)
        return Tuned(tuple(map(moved, self.results)), chosen)


def least_changed(results: Sequence[Measurement]) -> Measurement | None:
    """Return the row nearest the defaults of those within 2 % of the lowest peak.

    Of rows that change as many options the one of the lower peak; None if all failed.
    """

    def changed(row: Measurement) -> tuple[int, int]:
        return sum(not row.options[field] for field in _FIELDS), row.peak_bytes or 0

    return min(lowest_of(results), key=changed, default=None)


def tune_rewritten(
    original: Path,
    rewritten: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    runs: int = 5,
    processes: int = PROCESSES,
    seed: int = 0,
    served: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Measure a rewritten model at each pair of memory reuse and memory pattern, on the CPU.

    Args:
        original: The model's file.
        rewritten: The rewritten model's file.
        shapes: Sizes of inputs with free dimensions.
        runs: Timed runs of each row.
        processes: Fresh processes that each peak is measured in.
        seed: Seed of the inputs.
        served: Leave memory reuse on, for a server that cannot be told to turn it off.
        progress: Called with (what, done, total) from time to time.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        UsageError: Inputs cannot be made for the models.
    """
    defaults = OrtOptions()
    pairs = [pair for pair in memory_pairs(defaults) if pair.memory_reuse or not served]
    with prepared([original, rewritten], shapes, seed) as (before, after):
        jobs = [before.job, *[after.job] * len(pairs)]
        first, *rows = measure(
            jobs, [defaults, *pairs], runs=runs, processes=processes, progress=progress
        )
        chosen = least_changed(rows)
        originals = [noted(first, before.note)]
        if chosen is not None:
            at = rows.index(chosen)
            chosen = noted(chosen, f"recommended: {spelled(chosen, _FIELDS)}", after.note)
            rows[at] = chosen
            if pairs[at] != defaults and not first.error:
                (alone,) = measure(
                    [before.job], [pairs[at]], runs=runs, processes=processes, progress=progress
                )
                # It ran in no one's turn, so its time is beside no other's.
                originals.append(dataclasses.replace(alone, ratio=None))
    return Tuned((*originals, *rows), chosen)
