"""Proofs over all heights that are put off until a plan is taken: nothing unproven is written."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.outcome import Outcome
from patchconv_deploy.rewriters.regions import tiled_region
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import assert_same, copy_of, model, node, noise

REL = 2e-6


def _made() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x a", "p", name="first", pads=[1] * 4),
        node("Relu", "p", "q", name="relu"),
        node("Conv", "q b", "y", name="second", pads=[1] * 4),
    ]
    weights = {"a": noise(8, 3, 3, 3), "b": noise(2, 8, 3, 3) / 9}
    return model(nodes, {"x": (1, 3, "H", "W")}, {"y": (None,) * 4}, weights)


def _cut(**options: Any) -> Outcome:
    return rewrite_model(Loaded(copy_of(_made()), None), Options(**{"splits": 4, **options}))


def _refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Let proofs fail; return which were asked for, as they are."""
    asked: list[str] = []

    def refused(name: str) -> Any:
        def proof(*_: Any, **__: Any) -> str:
            asked.append(name)
            return "a fault that was planted"

        return proof

    for name in names:
        monkeypatch.setattr(tiled_region, name, refused(name))
    return asked


def test_what_is_taken_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not what is weighed alone."""
    asked: list[int] = []
    prove = tiled_region._prove_rounds

    def counted(network: Any, stride: int) -> str | None:
        asked.append(stride)
        return prove(network, stride)

    monkeypatch.setattr(tiled_region, "_prove_rounds", counted)
    outcome = _cut()
    assert asked == [cut.plan.stride for cut in outcome.rewritten]
    assert all(cut.plan.proven for cut in outcome.rewritten)
    assert len(outcome.weighed) > len(asked)


def test_rounds_that_cannot_be_proven_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches that are a share of the height are, which can."""
    asked = _refuse(monkeypatch, "_prove_rounds")
    outcome = _cut()
    assert asked
    assert {cut.form for cut in outcome.rewritten} == {"fused"}
    assert all(cut.plan.proven for cut in outcome.rewritten)
    for height in (1, 7, 30, 64):
        assert_same(_made(), outcome.model, {"x": noise(1, 3, height, 8)}, REL)


def test_what_cannot_be_proven_at_all_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is as it was, and the reason is said; a budget that needs it is refused."""
    _refuse(monkeypatch, "_prove_rounds", "_prove_shares")
    outcome = _cut()
    assert not outcome.rewritten
    assert {"a fault that was planted"} <= {refusal.reason for refusal in outcome.refused}
    with pytest.raises(BudgetError) as raised:
        _cut(memory_budget=6 << 20)
    assert all(offer.budget >= outcome.before.need for offer in raised.value.offers)
