"""What is written for some models, by form, budget and target: nothing moves unless it is meant to.

`snapshot.json` holds, for each case, digests of the rewritten graph and of its report, beside a few
figures that say what changed when a digest does. Plans depend on how many channels the processor
lays out together, so that is fixed here. After a change that is meant: ``python -m
tests.rewriting.test_snapshot``, and read the difference.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from patchconv_deploy.report.report import make_report
from patchconv_deploy.rewriters.errors import RewriterError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.memory import targets
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.regions.selection import Selection
from patchconv_deploy.rewriters.rewrite import rewrite_model
from patchconv_deploy.verify.verification import not_run
from tests.support.random_graphs import random_graph
from tests.support.small_models import chain, conv, super_resolution
from tools.models.deep import make

SNAPSHOT = Path(__file__).parent / "snapshot.json"

RANDOM = 12

BLOCK = 16

REGIONAL = ("fused", "shrinking", "loop")

TARGETS = ("onnxruntime", "onnxruntime-default", "triton", "tensorrt")

MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "chain": lambda: chain(6, (1, 2, 96, 40)),
    "free": lambda: chain(4, (1, 2, None, 40)),
    "strided": lambda: conv((2, 2, 67, 30), kernel=5, strides=[2, 1]),
    "super_resolution": lambda: super_resolution(24),
    "rrdbnet": lambda: make("rrdbnet", 60),
    "unet": lambda: make("unet", 60),
    "vae": lambda: make("vae", 60),
}


def _options(model: str) -> Iterator[tuple[str, Options]]:
    singles = Selection(min_elements=0)
    for form in ("batch", "sequential"):
        for splits in (2, 5):
            yield f"{form}-x{splits}", Options(form=form, splits=splits, selection=singles)
    for form in REGIONAL:
        yield f"{form}-x4", Options(form=form, splits=4)
    for target in TARGETS:
        yield f"auto-{target}", Options(target=target)
    yield "width", Options(axis="width", splits=3)
    yield "budget", Options(memory_budget=1 << 20)
    yield "impossible", Options(memory_budget=1 << 10)


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()[:20]


def _graph(model: onnx.ModelProto) -> str:
    """Digest what is ours: shapes that onnx infers may differ by its version."""
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    del kept.graph.value_info[:]
    kept.ClearField("producer_version")
    return _digest(kept.SerializeToString(deterministic=True))


def _entry(original: onnx.ModelProto, options: Options) -> dict[str, Any]:
    """Return what is compared of one case; the refusal, if it is one."""
    try:
        outcome = rewrite_model(Loaded(original, None), options)
    except RewriterError as error:
        return {"refused": str(error)}
    report = make_report(outcome, options, not_run("a snapshot"))
    text = json.dumps(dict(report.data, version=None), sort_keys=True, default=str)
    return {
        "graph": _graph(outcome.model),
        "report": _digest(text.encode()),
        "nodes": dict(sorted(Counter(node.op_type for node in outcome.model.graph.node).items())),
        "peaks": [outcome.before.bytes, outcome.after.bytes],
    }


def _case(name: str) -> dict[str, Any]:
    kind, _, seed = name.partition(":")
    if kind == "random":
        graph = random_graph(random.Random(int(seed)).randint, most=12)
        return {
            form: _entry(graph.model(), Options(form=form, splits=3, axis=graph.axis))
            for form in (*REGIONAL, "auto")
        }
    return {label: _entry(MODELS[kind](), options) for label, options in _options(kind)}


CASES = (*MODELS, *(f"random:{seed}" for seed in range(RANDOM)))


def _fix_block(set_item: Callable[[Any, str, Any], object]) -> None:
    for name, engine in list(targets.ENGINES.items()):
        lowering = dataclasses.replace(engine.lowering, block=engine.lowering.block and BLOCK)
        set_item(targets.ENGINES, name, dataclasses.replace(engine, lowering=lowering))


# Those that take longest; the others are of the same kinds.
_SLOW = ("free", "rrdbnet", "unet", "vae")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in CASES],
)
def test_what_is_written_is_what_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same graph and the same report as when the snapshot was taken."""
    _fix_block(monkeypatch.setitem)
    expected = json.loads(SNAPSHOT.read_text())[name]
    assert json.loads(json.dumps(_case(name))) == expected


if __name__ == "__main__":
    _fix_block(dict.__setitem__)
    SNAPSHOT.write_text(json.dumps({name: _case(name) for name in CASES}, indent=1) + "\n")
