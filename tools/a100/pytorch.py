"""PyTorch beside the engines: what the published figure was taken of. Originals alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from patchconv_deploy.engines.errors import EngineError
from patchconv_deploy.engines.measurement import Job, Spread, now
from patchconv_deploy.engines.process.child import child_process, time_limit
from patchconv_deploy.engines.timing import Timing
from patchconv_deploy.engines.windows import as_json
from tools.a100.asking import Engine, Figure, Found, Request, Setting, latency_figures

__all__ = ["PYTORCH", "PYTORCH_CPU"]

# torch.backends.cudnn.benchmark, and whether channels come last.
_SETTINGS = {
    "benchmark": (True, False),
    "channels_last": (False, True),
    "benchmark, channels_last": (True, True),
}


def _measure(request: Request, job: Job, benchmark: bool, channels_last: bool) -> Found:
    options: dict[str, Any] = {"benchmark": benchmark, "channels_last": channels_last}
    try:
        with (
            time_limit(request.time_limit_s),
            child_process("tools.a100.pytorch_child") as child,
        ):
            answer = child.ask(
                "measure",
                model=str(job.model),
                inputs=str(job.inputs),
                timing=asdict(Timing.of(request.runs)),
                windows=as_json(job.windows),
                sampled=None if job.sampled is None else str(job.sampled),
                **options,
            )
    except EngineError as error:
        return Found({}, "", "", options, now(), str(error))
    figures = {name: Figure(size, "bytes", "measured") for name, size in answer["figures"].items()}
    figures |= latency_figures(Spread.of(answer["seconds"]))
    version = f"{answer['version']}, cuDNN {answer['cudnn'] or 'none'}"
    return Found(figures, version, answer["device"], options, now())


def _ask(request: Request) -> Found:
    """Measure with benchmark on and off, in both layouts, one after the other."""
    jobs = request.jobs(1 + len(_SETTINGS))
    first = _measure(request, jobs[0], False, False)
    settings = []
    for job, (name, flags) in zip(jobs[1:], _SETTINGS.items(), strict=True):
        found = _measure(request, job, *flags)
        settings.append(Setting(name, found.figures, None, found.error))
    return replace(first, settings=tuple(settings))


PYTORCH = Engine(
    "pytorch",
    "PyTorch, measured; originals alone",
    "measured",
    "allocated_bytes",
    (
        ("allocated, MiB (measured)", "allocated_bytes"),
        ("reserved, MiB (measured)", "reserved_bytes"),
        ("device, MiB (measured)", "peak_bytes"),
        ("latency, s (measured)", "latency_median_s"),
    ),
    runs=True,
    scaled=False,
    ask=_ask,
)
PYTORCH_CPU = replace(
    PYTORCH, title="PyTorch on the CPU, time measured on stand-ins; no memory", scaled=True
)
