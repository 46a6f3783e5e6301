"""The process that runs both models and compares them: ``python -m patchconv_deploy.verify.child``.

It answers (`engines.process.child`), in this order; which one it dies at tells which model it was:

    {"do": "original", "path": ..., "inputs": FILE.npz, "evaluator": "onnxruntime" | "reference"}
    {"do": "rewritten", ...}
    {"do": "compare", "seams": [...], "exact_integers": ..., "rtol": ..., "atol": ...,
     "ways": {OUTPUT: {...}}, "final": ..., "plain": FILE.npz or nothing,
     "steps": FILE.npz or nothing}
        -> {"outputs": [...]}

and, in a process of its own, so that it costs the others nothing where there is no room for it:

    {"do": "keep", "path": ..., "inputs": FILE.npz, "out": FILE.npz, "optimised": ...}

which runs a model, with graph optimisations or without, and writes what it gave.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from patchconv_deploy.engines.errors import RunError
from patchconv_deploy.engines.ort.run import open_session
from patchconv_deploy.engines.process.child import serve
from patchconv_deploy.verify.comparison import compare_output, rounding_of_sums
from patchconv_deploy.verify.inputs import save_inputs
from patchconv_deploy.verify.seams import Seam
from patchconv_deploy.verify.tolerances import Way

__all__ = ["main"]


Feeds = Mapping[str, np.ndarray[Any, Any]]

Runner = Callable[[Feeds], dict[str, Any]]


@contextmanager
def _open(path: str, evaluator: str) -> Iterator[Runner]:
    if evaluator == "reference":
        from onnx.reference import ReferenceEvaluator

        def run(feeds: Feeds) -> dict[str, Any]:
            try:
                session = ReferenceEvaluator(path)
                return dict(zip(session.output_names, session.run(None, dict(feeds)), strict=True))
            except Exception as error:
                raise RunError(" ".join(str(error).split())) from error

        yield run
    else:
        with open_session(Path(path)) as session:
            yield session.run


def _flat(results: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Give each array of a sequence output a name of its own."""
    flat: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in results.items():
        if isinstance(value, list):
            flat.update((f"{name}[{i}]", np.asarray(item)) for i, item in enumerate(value))
        else:
            flat[name] = np.asarray(value)
    return flat


class _Worker:
    """What the models gave, until it is compared."""

    def __init__(self) -> None:
        self._reference: dict[str, np.ndarray[Any, Any]] = {}
        self._again: dict[str, np.ndarray[Any, Any]] = {}
        self._other: dict[str, np.ndarray[Any, Any]] = {}

    def original(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run the original twice: its own noise shows."""
        feeds = _feeds(job)
        with _open(job["path"], job["evaluator"]) as run:
            self._reference = _flat(run(feeds))
            self._again = _flat(run(feeds))
        return {}

    def rewritten(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run the rewritten model once."""
        with _open(job["path"], job["evaluator"]) as run:
            self._other = _flat(run(_feeds(job)))
        if list(self._reference) != list(self._other):
            raise RunError(f"outputs {list(self._reference)} became {list(self._other)}")
        return {}

    def compare(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Compare what they gave."""
        seams = [Seam(seam["axis"], seam["rows"], tuple(seam["at"])) for seam in job["seams"]]
        ways = {name: Way(**way) for name, way in job["ways"].items()}
        plain, steps = (
            {} if job.get(name) is None else _arrays(job[name]) for name in ("plain", "steps")
        )
        outputs = []
        for name, reference in self._reference.items():
            way = ways.get(name, Way())
            compare = partial(
                compare_output,
                name,
                other=self._other[name],
                seams=seams,
                exact_integers=job["exact_integers"],
                rtol=job["rtol"],
                atol=job["atol"],
                way=way,
                final=job["final"],
            )
            found = compare(
                reference,
                self._again[name],
                plain=plain.get(name),
                scores=plain.get(way.scores),
            )
            if found.passed is False and name in steps:
                rounding = rounding_of_sums(reference, steps[name])
                if rounding is not None:
                    in_steps = compare(steps[name], steps[name], scores=steps.get(way.scores))
                    found = replace(in_steps, sums=rounding) if in_steps.passed else found
            outputs.append(found)
        return {"outputs": [asdict(output) for output in outputs]}


def _keep(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a model and write what it gave."""
    with open_session(Path(job["path"]), optimised=job["optimised"]) as session:
        given = _flat(session.run(_feeds(job)))
    kept = {name: array for name, array in given.items() if array.dtype.kind in "biuf"}
    save_inputs(Path(job["out"]), kept)
    return {}


def _feeds(job: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return _arrays(job["inputs"])


def _arrays(path: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def main() -> int:
    """Serve until standard input ends."""
    worker = _Worker()
    serve(
        {
            "original": worker.original,
            "rewritten": worker.rewritten,
            "compare": worker.compare,
            "keep": _keep,
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
