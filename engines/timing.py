"""How often a model is run for a latency: warmed up first, then until there is enough.

A GPU that was idle runs at low clocks, and the first runs load kernels (CUDA loads lazily): a
second of runs goes by before the first that counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Timing", "take_times"]


@dataclass(frozen=True, slots=True)
class Timing:
    """When to begin and when to stop.

    Attributes:
        warm_up_s: Seconds of runs that do not count; at least one run.
        runs: Runs that count, at most.
        least: Runs that count, at least.
        seconds: Seconds after which no other run is begun.
    """

    warm_up_s: float = 1.0
    runs: int = 10
    least: int = 3
    seconds: float = 3.0

    @classmethod
    def of(cls, runs: int) -> Timing:
        """Return the usual one with a number of runs at most."""
        return cls(runs=runs, least=min(runs, cls().least))


def take_times(
    run: Callable[[], float], timing: Timing, clock: Callable[[], float] = time.monotonic
) -> list[float]:
    """Run a model until there are enough times; return those that count, seconds.

    Args:
        run: Runs once and returns its time in seconds.
        timing: When to stop.
        clock: Seconds that went by.
    """
    begin = clock()
    run()
    while clock() - begin < timing.warm_up_s:
        run()
    begin, times = clock(), [run()]
    while len(times) < timing.runs and (
        len(times) < timing.least or clock() - begin < timing.seconds
    ):
        times.append(run())
    return times
