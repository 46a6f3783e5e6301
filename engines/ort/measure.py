"""Measure models side by side: peak memory and time, each model in a fresh process.

They run in turn, round after round: what slows the machine down slows all of them, and the ratio
is taken round by round. On the CPU all models are open at once, each in its own process, and a
round is a run of each. On a GPU two may not fit where each does, for an arena gives nothing back:
a round is a fresh process of each, one after the other, in which it is warmed up and timed.

Memory is the process's resident high-water mark (`engines.process.memory_probe`), above one of two
levels. *Whole* is above the level before the runtime loads the model: what the model costs a
process in which the runtime is imported and the inputs are made. *Peak* is above the level before
the first run, and *load* is the difference of the two levels. Running may use again what loading
left free, so the peak of the runs is at least what the arena had in use, as the runtime counts it;
whole is as resident memory shows it, and no more than load and peak together, unless loading passed
through more.

A peak depends on where things lie in memory (`engines.process.addresses`). So each model runs in
several more processes, each at addresses that are its own and the same every time: the largest peak
is reported, with all of them beside it, and a repetition finds the same. The runtime's own figure
comes from as many processes again, since profiling costs time.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from patchconv_deploy.engines.errors import (
    DeviceMissing,
    EngineError,
    EngineMissing,
    LoadError,
    OptionError,
    RunError,
)
from patchconv_deploy.engines.gpu.cuda import cuda_device
from patchconv_deploy.engines.measurement import Job, Measurement, Spread, cpu_name, now
from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.engines.process.child import Child, child_process, time_limit
from patchconv_deploy.engines.timing import Timing
from patchconv_deploy.engines.windows import as_json

__all__ = ["PROCESSES", "ROUNDS", "Progress", "Turns", "measure", "time_in_turns"]

# Called with what is done, how much of it is, and how much there is.
Progress = Callable[[str, int, int], None]


_MODULE = "patchconv_deploy.engines.ort.child"

# Enough to meet most orders that a runtime may put independent patches in.
PROCESSES = 3

# Rounds of fresh processes that models take turns in.
ROUNDS = 3


def measure(
    jobs: Sequence[Job],
    options: Sequence[OrtOptions],
    *,
    runs: int = 5,
    processes: int = PROCESSES,
    rounds: int = ROUNDS,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure models under ONNX Runtime, the first as the one others are compared with.

    Args:
        jobs: Models and their inputs.
        options: Session options of each.
        runs: Timed runs of each, at least 1; one more comes before, untimed but in the peak. Of
            several models on a GPU: runs of each round, at most.
        processes: Fresh processes that each one's peak is measured in, at least 1.
        rounds: Rounds that several models on a GPU take turns in, at least 1.
        memory_limit: Address space of each process in bytes, None for no limit.
        progress: Told which model is measured, and how many of all runs and processes have ended.

    Returns:
        One measurement per model; one that crashed or ran out of memory says so in ``error``.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        DeviceMissing: The provider cannot be used here.
        OptionError: A limit of address space on a GPU.
    """
    if memory_limit is not None and any(each.provider != "cpu" for each in options):
        raise OptionError(
            "a memory limit is one of address space, and CUDA reserves more of that than there is "
            "memory: leave it out with a provider of a GPU"
        )
    tasks = _tasks(jobs, options, memory_limit)
    on_gpu = len(tasks) > 1 and any(each.provider != "cpu" for each in options)
    step = _steps(jobs, (rounds if on_gpu else runs) + 1 + processes, progress)
    if on_gpu:
        for task, job in zip(tasks, jobs, strict=True):
            _together([task], [job], 0, step)
        _in_turns(tasks, Timing.of(runs), rounds, step=step)
    else:
        _together(tasks, jobs, runs, step)
    for task in tasks:
        for layout in range(processes):
            step(task)
            with task.noting(), ExitStack() as stack:
                # The second run can need more than the first; those after it are like it.
                if layout:
                    task.open(stack, layout)
                    task.run(timed=False)
                    task.run(timed=False)
                    task.finish()
            with task.noting():
                task.profile(layout, runs=2)
    return [task.result(tasks[0]) for task in tasks]


@dataclass(frozen=True)
class Turns:
    """Times of a model that took turns with others.

    Attributes:
        latency_s: Seconds per run, over all rounds; None where it failed.
        rounds: Number of rounds.
        device_state: On a GPU: clocks, power and what slowed it down, after the last run.
        error: Why there are no times; empty if there are.
    """

    latency_s: Spread | None
    rounds: int
    device_state: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def time_in_turns(
    jobs: Sequence[Job],
    options: Sequence[OrtOptions],
    *,
    runs: int = 5,
    rounds: int = ROUNDS,
    time_limit_s: float | None = None,
) -> list[Turns]:
    """Time models under ONNX Runtime, round after round, each in a fresh process at a time.

    Args:
        jobs: Models and their inputs.
        options: Session options of each.
        runs: Timed runs of each in a round, at most.
        rounds: Rounds, at least 1.
        time_limit_s: Seconds that each may take in a round; None for no limit.

    Raises:
        EngineMissing: ONNX Runtime is not installed.
        DeviceMissing: The provider cannot be used here.
    """
    tasks = _tasks(jobs, options, None)
    _in_turns(tasks, Timing.of(runs), rounds, time_limit_s)
    return [task.turns() for task in tasks]


def _tasks(
    jobs: Sequence[Job], options: Sequence[OrtOptions], memory_limit: int | None
) -> list[_Task]:
    return [
        _Task(
            {
                "model": str(job.model),
                "inputs": str(job.inputs),
                "options": asdict(wanted),
                "memory_limit": memory_limit,
            }
        )
        for job, wanted in zip(jobs, options, strict=True)
    ]


def _steps(jobs: Sequence[Job], each: int, progress: Progress | None) -> Callable[[_Task], None]:
    """Return what is called before each run, and each process, of a model.

    Args:
        jobs: The models.
        each: Runs and processes of one model.
        progress: Told the model, and how many of all have ended.
    """
    ended, total = itertools.count(), len(jobs) * each

    def step(task: _Task) -> None:
        done = next(ended)
        if progress is not None:
            progress(f"measuring {task.name}", done, total)

    return step


def _together(
    tasks: Sequence[_Task], jobs: Sequence[Job], runs: int, step: Callable[[_Task], None]
) -> None:
    """Open all models at once, run them in turn, and take their peaks."""
    with ExitStack() as stack:
        for task in tasks:
            with task.noting():
                task.open(stack, layout=0)
        for turn in range(runs + 1):
            for task in tasks:
                step(task)
                with task.noting():
                    task.run(timed=turn > 0)
                    if not turn:
                        task.warm_up()
        for task, job in zip(tasks, jobs, strict=True):
            with task.noting():
                task.finish()
                task.sample(job)


def _in_turns(
    tasks: Sequence[_Task],
    timing: Timing,
    rounds: int,
    time_limit_s: float | None = None,
    step: Callable[[_Task], None] = lambda _: None,
) -> None:
    """Time models round after round; the process of one has ended when the next one's begins."""
    for _ in range(rounds):
        for task in tasks:
            step(task)
            with task.noting(), time_limit(time_limit_s), ExitStack() as stack:
                task.open(stack, layout=0)
                task.time(timing)


class _Task:
    """A model that is being measured, and what was found so far."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._job = job
        self.name = Path(job["model"]).name
        self._child: Child | None = None
        self._opened: Mapping[str, Any] = {}
        self._finished: list[Mapping[str, Any]] = []
        self._own: list[int | None] = []
        self._error = ""
        # Of the runs while all models are open, and of each round.
        self._together: list[float] = []
        self._rounds: list[list[float]] = []
        self._state: Mapping[str, Any] = {}

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what goes wrong; what is asked of a task that failed is not done."""
        try:
            yield
        except (EngineMissing, DeviceMissing):
            raise
        except EngineError as error:
            self._error = self._error or str(error)

    def _ask(self, do: str, **command: Any) -> dict[str, Any]:
        if self._error or self._child is None:
            raise EngineError(self._error)
        return self._child.ask(do, **command)

    def open(self, stack: ExitStack, layout: int) -> None:
        """Open the model in a fresh process, which ends with the stack."""
        if not self._error:
            self._child = stack.enter_context(child_process(_MODULE, str(layout)))
            self._opened = self._ask("open", **self._job)

    def run(self, *, timed: bool) -> None:
        """Run once."""
        seconds = self._ask("run")["seconds"]
        if timed:
            self._together.append(seconds)

    def time(self, timing: Timing) -> None:
        """Take the times of a round."""
        answer = self._ask("time", timing=asdict(timing))
        self._rounds.append(answer["seconds"])
        self._state = answer["state"]

    def warm_up(self) -> None:
        """Let a GPU reach its clocks."""
        self._ask("warm_up", seconds=Timing().warm_up_s)

    def finish(self) -> None:
        """Take the process's peak."""
        self._finished.append(self._ask("finish"))
        self._state = self._state or self._finished[0]["state"]

    def sample(self, job: Job) -> None:
        """Write windows of the output, if any are asked for."""
        if job.sampled is not None:
            self._ask("sample", windows=as_json(job.windows), file=str(job.sampled))

    def profile(self, layout: int, runs: int) -> None:
        """Take the runtime's own figure, in a fresh process; it may have none."""
        if self._error:
            return
        with (
            tempfile.TemporaryDirectory(prefix="patchconv-") as folder,
            child_process(_MODULE, str(layout)) as child,
        ):
            own = None
            with suppress(RunError, LoadError):
                found = child.ask("profile", runs=runs, folder=folder, **self._job)
                own = found["runtime_peak_bytes"]
            self._own.append(own)

    def _times(self) -> list[list[float]]:
        return [each for each in (self._together, *self._rounds) if each]

    def turns(self) -> Turns:
        """Return the times alone."""
        if self._error:
            return Turns(None, 0, error=self._error)
        seconds = [each for part in self._times() for each in part]
        return Turns(Spread.of(seconds), len(self._rounds), self._state)

    def _figures(self, name: str) -> tuple[int, ...]:
        return tuple(found[name] for found in self._finished)

    def result(self, first: _Task) -> Measurement:
        """Return what was found, beside what was found of the first."""
        options = self._job["options"]
        common: dict[str, Any] = {
            "model": self._job["model"],
            "device": cpu_name() if options["provider"] == "cpu" else cuda_device(),
            "options": options,
            "date": now(),
            "version": self._opened.get("version", ""),
            "providers": tuple(self._opened.get("providers", ())),
        }
        if self._error:
            return Measurement(**common, error=self._error)
        # Of a round as many as both have: time runs out for the slower one first.
        pairs = (
            []
            if first._error
            else [
                a / b
                for mine, theirs in zip(self._times(), first._times(), strict=False)
                for a, b in zip(mine, theirs, strict=False)
            ]
        )
        turns = self.turns()
        peaks = self._figures("peak_bytes")
        if options["provider"] == "cpu":
            # One of each layout, and the same layout makes the same order.
            peaks = tuple(max(a, b or 0) for a, b in zip(peaks, self._own, strict=True))
        loads, wholes = self._figures("load_bytes"), self._figures("whole_bytes")
        own = tuple(figure for figure in self._own if figure is not None)
        return Measurement(
            **common,
            runs=sum(map(len, self._times())),
            rounds=turns.rounds,
            processes=len(peaks),
            fixed_addresses=self._opened["fixed_addresses"],
            peak_bytes=max(peaks),
            peaks_bytes=peaks,
            load_bytes=max(loads),
            loads_bytes=loads,
            whole_bytes=max(wholes),
            wholes_bytes=wholes,
            process_bytes=max(self._figures("process_bytes")),
            host_peak_bytes=max(self._figures("host_peak_bytes")),
            runtime_peak_bytes=max(own, default=None),
            runtime_peaks_bytes=own,
            input_bytes=self._finished[0]["input_bytes"],
            output_bytes=self._finished[0]["output_bytes"],
            timing=self._opened["timing"],
            latency_s=turns.latency_s,
            ratio=Spread.of(pairs) if pairs else None,
            first_run_bytes=self._finished[0]["first_run_bytes"],
            later_runs_bytes=self._finished[0]["later_runs_bytes"],
            device_state=turns.device_state,
        )
