"""Models prepared to be measured: inputs made for them, at sizes that are given or nominal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy.engines.measurement import Job
from patchconv_deploy.engines.trt.options import Profile
from patchconv_deploy.errors import UsageError
from patchconv_deploy.rewriters.graph.fixed_shapes import fix_shapes, free_inputs, nominal_shapes
from patchconv_deploy.rewriters.graph.inference import infer
from patchconv_deploy.rewriters.graph.model import load
from patchconv_deploy.rewriters.graph.skeleton import skeleton
from patchconv_deploy.scratch import temporary_folder
from patchconv_deploy.verify.inputs import make_inputs, save_inputs

__all__ = ["Prepared", "prepared", "profiles"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What measuring needs to know of a model.

    Attributes:
        job: The model and the file of its inputs.
        arrays: The inputs.
        free: Inputs with free dimensions.
        metadata: The model's.
        note: What free dimensions were taken as, where nobody said.
    """

    job: Job
    arrays: Mapping[str, np.ndarray[Any, Any]]
    free: frozenset[str]
    metadata: Mapping[str, str]
    note: str


def _prepare(path: Path, file: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Prepared:
    """Make seeded inputs for a model, and write them to a file.

    What is still free when ``shapes`` are put in counts as batch 1 and the nominal number of rows
    and columns.
    """
    loaded = load(path)
    slim = skeleton(loaded)
    known = {value.name for value in slim.graph.input}
    free = frozenset(free_inputs(slim))
    fix_shapes(slim, {name: shape for name, shape in shapes.items() if name in known})
    fix_shapes(slim, nominal_shapes(slim) if free_inputs(slim) else {})
    arrays = make_inputs(loaded.model, infer(slim), {}, seed)
    save_inputs(file, arrays)
    taken = sorted((free & arrays.keys()) - shapes.keys())
    sizes = " ".join(f"{name}:{'x'.join(map(str, arrays[name].shape))}" for name in taken)
    note = f"free dimensions taken as {sizes}; give shapes= for others" if taken else ""
    metadata = {entry.key: entry.value for entry in loaded.model.metadata_props}
    return Prepared(Job(path, file), arrays, free, metadata, note)


@contextmanager
def prepared(
    models: Sequence[Path], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> Iterator[list[Prepared]]:
    """Prepare models; the files of their inputs are there as long as the context.

    Raises:
        ModelError: A file is no model.
        OptionError: A shape does not fit.
        UsageError: No model has an input of that name.
    """
    with temporary_folder() as folder:
        made = [
            _prepare(model, folder / f"inputs_{number}.npz", shapes, seed)
            for number, model in enumerate(models)
        ]
        names = sorted({name for one in made for name in one.arrays})
        for name in shapes.keys() - set(names):
            raise UsageError(
                f"shapes[{name!r}]: there is no such input; the inputs are {', '.join(names)}"
            )
        yield made


def profiles(one: Prepared) -> tuple[Profile, ...]:
    """Return a profile for just the sizes of the free inputs, none where no input is free."""
    shapes = {name: one.arrays[name].shape for name in one.free & one.arrays.keys()}
    return ({name: (shape, shape, shape) for name, shape in shapes.items()},) if shapes else ()
