"""How many instances, and how large a batch, a budget of memory holds.

Each instance is a session of its own: what loading it takes, its inputs, and the peak of its
activations at the largest batch. All is measured in fresh processes under just the options the
configuration asks for; where the engine or its device is missing the peak is predicted, the weights
are those of the file, and that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from patchconv_deploy.engines.errors import DeviceMissing, EngineMissing
from patchconv_deploy.errors import UsageError
from patchconv_deploy.measure.run import measure_onnxruntime
from patchconv_deploy.report.text import mebibytes
from patchconv_deploy.rewriters.graph.external_data import (
    bytes_of,
    external_range,
    is_external,
    tensors,
)
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.look import analyse_memory
from patchconv_deploy.triton.config import memory_options
from patchconv_deploy.triton.signature import sized_inputs

__all__ = ["BATCHES", "MOST_INSTANCES", "Capacity", "Footprint", "footprint", "plan_capacity"]


logger = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16)

# More sessions than this stand in each other's way long before they fill the memory.
MOST_INSTANCES = 16

# A runtime may hold more than what is live; measured peaks reach three times the prediction.
_PREDICTION_FACTOR = 3


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one instance.

    Attributes:
        kind: "measured" or "predicted".
        batch: Items at once.
        peak_bytes: Peak of running, outputs in it; a predicted one is three times what is live.
        input_bytes: The inputs.
        weight_bytes: The weights, as the file holds them.
        load_bytes: Growth of a process that opens the session; None if it was not measured.
        whole_bytes: Peak of opening and running the session, the largest of all processes; None if
            it was not measured.
    """

    kind: str
    batch: int
    peak_bytes: int
    input_bytes: int
    weight_bytes: int
    load_bytes: int | None = None
    whole_bytes: int | None = None

    @property
    def total(self) -> int:
        """Bytes of one instance: all that it adds to the server's process."""
        whole = self.whole_bytes
        if whole is None:
            whole = self.peak_bytes + self.weight_bytes
        return whole + self.input_bytes

    def __str__(self) -> str:
        """Return where they go."""
        if self.load_bytes is None:
            held = f"weights {mebibytes(self.weight_bytes)}"
        else:
            held = f"loading {mebibytes(self.load_bytes)}"
        inputs = mebibytes(self.input_bytes)
        return f"{held}, peak of running {mebibytes(self.peak_bytes)}, inputs {inputs}"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a budget holds: ``instances`` of ``footprint.batch`` items; ``holds`` without a cap."""

    instances: int
    holds: int
    footprint: Footprint


def _weights(path: Path) -> int:
    loaded = load(path)
    total = 0
    for tensor in tensors(loaded.model):
        if is_external(tensor) and loaded.folder is not None:
            total += external_range(tensor, loaded.folder).length
        else:
            total += bytes_of(tensor) or tensor.ByteSize()
    return total


def footprint(
    path: Path, provider: str, shapes: Mapping[str, tuple[int, ...]], batching: bool, batch: int
) -> Footprint:
    """Measure, or predict, what one instance needs.

    Args:
        path: The model.
        provider: "cpu", "cuda" or "tensorrt".
        shapes: Sizes of inputs with free dimensions.
        batching: Whether the first dimension is a batch; if not, it is as ``shapes`` has it.
        batch: Items at once.

    Raises:
        UsageError: The model does not run at these sizes, or its peak is not known.
    """
    loaded = load(path)
    sizes = sized_inputs(loaded, shapes, batch if batching else None)
    weights = _weights(path)
    try:
        (found,) = measure_onnxruntime([path], memory_options(provider), shapes=sizes, runs=2)
    except (EngineMissing, DeviceMissing) as error:
        logger.info("predicted, not measured: %s", error)
        peak = analyse_memory(loaded, sizes)
        if peak is None:
            raise UsageError(
                f"{path}: its peak can neither be measured ({error}) nor predicted (tensors of "
                "unknown size); give instances= and max_batch_size="
            ) from error
        return Footprint("predicted", batch, _PREDICTION_FACTOR * peak, 0, weights)
    if found.error:
        raise UsageError(f"{path}: does not run on a batch of {batch}: {found.error}")
    peak, inputs = found.peak_bytes or 0, found.input_bytes or 0
    return Footprint("measured", batch, peak, inputs, weights, found.load_bytes, found.whole_bytes)


def plan_capacity(
    budget: int, need: Callable[[int], Footprint], *, batching: bool, max_batch: int | None
) -> Capacity:
    """Find the largest batch that fits once, and how many instances of it fit.

    Args:
        budget: Bytes; of each GPU where the model runs on GPUs.
        need: Gives the footprint at a batch.
        batching: Whether the model takes batches.
        max_batch: The batch wanted; None: the largest of `BATCHES` that fits.

    Raises:
        UsageError: Not even one instance fits.
    """
    if max_batch is not None:
        best = need(max(1, max_batch))
    else:
        best = need(1)
        for batch in BATCHES[1:] if batching and best.total <= budget else ():
            larger = need(batch)
            if larger.total > budget:
                break
            best = larger
    holds = budget // best.total if best.total else MOST_INSTANCES
    if not holds:
        raise UsageError(
            f"one instance at batch {best.batch} needs {mebibytes(best.total)} MiB ({best.kind}: "
            f"{best}), "
            f"memory= is {mebibytes(budget)} MiB; cut the model into more patches, lower "
            "max_batch_size=, or give more"
        )
    return Capacity(min(holds, MOST_INSTANCES), holds, best)
