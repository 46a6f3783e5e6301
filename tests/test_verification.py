"""Verification: where it looks, at which sizes, when it happens, and what it lets pass."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import onnx
import pytest

from patchconv_deploy import rewrite
from rewriters.graph import Loaded, skeleton
from rewriters.shapes import fix_shapes, infer
from tests.small_models import chain, copy_of, cut, noise, run


def _begins(rewritten: onnx.ModelProto, rows: int) -> list[int]:
    """Return the rows at which cores begin, as ONNX Runtime works them out."""
    made = copy_of(rewritten)
    makers = {name: each for each in made.graph.node for name in each.output}
    # The rows are put together, and a Reshape behind states how many there are.
    join = makers["y"] if makers["y"].op_type == "Concat" else makers[makers["y"].input[0]]
    assert join.op_type == "Concat"
    del made.graph.output[:]
    made.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (None,) * 4)
        for name in join.input
    )
    cores = run(made, {"x": noise(1, 2, rows, 10)})
    return list(accumulate(core.shape[2] for core in cores.values()))[:-1]


@pytest.mark.parametrize("rows", [101, 64, 33, 20])
@pytest.mark.parametrize("splits", [2, 4, 7])
def test_seams_of_a_free_height_are_where_the_cores_meet(rows: int, splits: int) -> None:
    """A region in the form it was cut in says where its patches meet, at any height."""
    made = chain(4, ("n", 2, "h", 10))
    outcome = cut(made, "fused", splits=splits)
    (region,) = outcome.rewritten
    assert region.rows is None
    slim = skeleton(Loaded(made, None))
    fix_shapes(slim, {"x": (1, 2, rows, 10)})
    found = region.seams_at(infer(slim))
    assert found is not None
    begins = sorted({begin for begin in _begins(outcome.model, rows) if 0 < begin < rows})
    assert found == (rows, tuple(begins))


def test_rows_next_to_the_seams_of_a_region_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared apart are the rows where the fused patches meet, not others."""
    from patchconv_deploy import verification

    jobs = []
    run_pair = verification._run_pair

    def spy(*given: object) -> object:
        jobs.append(given[3])
        return run_pair(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(verification, "_run_pair", spy)
    monkeypatch.setattr(verification, "_SPATIAL", (101,))
    file = tmp_path / "free.onnx"
    onnx.save(chain(4, ("n", 2, "h", 10)), file)
    assert rewrite(file, form="fused", min_elements=0).report.verification["passed"]
    assert jobs[0]["seams"] == [{"axis": 2, "rows": 101, "at": [27, 50, 73]}]  # type: ignore[index]
