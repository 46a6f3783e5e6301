"""A budget holds: what ONNX Runtime really takes, on every network of the calibration table.

Each network is asked for 75, 50, 35 and 25 % of its own predicted peak. Either the rewritten model,
run in a fresh process with the options it recommends, has no more than the budget in use, and the
process grows by no more while it runs (10 % over at most, and what a first run leaves beside
tensors), or there is no such plan and the smallest peak found is said.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import onnx
import pytest

from patchconv_deploy.engines.ort.options import OrtOptions
from patchconv_deploy.measure.run import measure_onnxruntime
from patchconv_deploy.rewriters.errors import BudgetError
from patchconv_deploy.rewriters.graph.model import Loaded
from patchconv_deploy.rewriters.options import Options
from patchconv_deploy.rewriters.rewrite import rewrite_model
from tests.support.small_models import copy_of
from tests.support.tiers import slow
from tools.calibrate_memory import SIZES, cases

# What a process keeps of its first run beside tensors, bytes.
_FIRST_RUN = 8 << 20

SHARES = (0.75, 0.5, 0.35, 0.25)

# Shares that must be reached, so that saying no to everything is no way out.
REACHED = {"chain": 4, "unet": 1, "rrdbnet": 3, "srvgg": 1, "ppocr_det": 1}

# By default, of a chain, which reaches all: the second and the least.
FEW = (0.5, 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which exported networks are kept."""
    return tmp_path_factory.mktemp("networks")


# By default a chain, and one that is refused budgets; all others in the slow tier.
@pytest.mark.parametrize(
    ("network", "shares"),
    [
        ("chain", FEW),
        ("ppocr_cls", SHARES),
        *(slow(network, SHARES) for network in SIZES if network != "ppocr_cls"),
    ],
)
def test_a_budget_holds(
    network: str,
    shares: tuple[float, ...],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In use at most the budget, and 10 %; or the smallest peak that was found."""
    case = next(c for c in cases(folder, (0,)) if c.network == network and c.form == "original")
    original = case.make()
    peak = rewrite_model(Loaded(copy_of(original), None), Options(splits=1)).before.bytes
    lines, refusals, kept = [], list[str](), 0
    for share in shares:
        budget = int(share * peak)
        try:
            outcome = rewrite_model(Loaded(copy_of(original), None), Options(memory_budget=budget))
        except BudgetError as error:
            refusals.append(str(error))
            lines.append(f"{case.label} {share:.0%}: none; {error}")
            continue
        path = folder / f"{network}-{share}.onnx"
        onnx.save(outcome.model, path)
        (found,) = measure_onnxruntime(
            [path], OrtOptions(), shapes={}, runs=2, processes=1, recommended=True
        )
        used, grown = found.runtime_peak_bytes, found.host_peak_bytes
        assert used is not None
        assert grown is not None
        lines.append(
            f"{case.label} {share:.0%}: budget {budget / 2**20:.1f} MiB, predicted "
            f"{outcome.after.need / 2**20:.1f}, in use {used / 2**20:.1f}, the process "
            f"{grown / 2**20:.1f}, {outcome.recompute or 1:.2f}x the work"
        )
        assert used <= 1.1 * budget, lines[-1]
        assert grown <= 1.1 * budget + _FIRST_RUN, lines[-1]
        kept += 1
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    said = re.compile(r"smallest peak found is [\d.,]+ MiB .* held by ")
    assert all(said.search(refusal) for refusal in refusals)
    reached = len(FEW) if shares == FEW else REACHED.get(network, 0)
    assert kept >= reached
