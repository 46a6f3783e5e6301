"""The process that runs both models and compares them: ``python -m patchconv_deploy.verify_child``.

A crash or an out-of-memory kill of a runtime ends this process and not the caller. It reads a
job (JSON) and writes a result (JSON) and the stage it is in, at paths given as arguments:

    job     original, rewritten, inputs (.npz), seams, exact_integers, rtol, atol, evaluator
    result  outputs [...] or error {stage: original|rewritten, kind, message}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError, RunError
from engines.onnxruntime_engine import open_session
from patchconv_deploy.comparison import Seam, compare_output

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


def verify(job: Mapping[str, Any], stage_file: Path) -> dict[str, Any]:
    """Run a job and return its result; ``stage_file`` tells how far it came if it is killed."""
    with np.load(job["inputs"], allow_pickle=False) as data:
        feeds = {name: data[name] for name in data.files}
    stage = "original"
    stage_file.write_text(stage)
    try:
        with _open(job["original"], job["evaluator"]) as run:
            reference = _flat(run(feeds))
            again = _flat(run(feeds))
        stage = "rewritten"
        stage_file.write_text(stage)
        with _open(job["rewritten"], job["evaluator"]) as run:
            other = _flat(run(feeds))
    except EngineError as error:
        kind = type(error).__name__
        return {"error": {"stage": stage, "kind": kind, "message": str(error)}}
    if list(reference) != list(other):
        message = f"outputs {list(reference)} became {list(other)}"
        return {"error": {"stage": "rewritten", "kind": "Outputs", "message": message}}
    seams = [Seam(seam["axis"], seam["rows"], tuple(seam["at"])) for seam in job["seams"]]
    outputs = [
        compare_output(
            name,
            reference[name],
            again[name],
            other[name],
            seams=seams,
            exact_integers=job["exact_integers"],
            rtol=job["rtol"],
            atol=job["atol"],
        )
        for name in reference
    ]
    return {"outputs": [asdict(output) for output in outputs]}


def main(arguments: list[str]) -> int:
    """Read the job, write the result."""
    job_path, result_path, stage_path = arguments
    job = json.loads(Path(job_path).read_text())
    Path(result_path).write_text(json.dumps(verify(job, Path(stage_path))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
