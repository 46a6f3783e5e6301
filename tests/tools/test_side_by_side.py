"""One decoder, several ways: what is said of an image and a process; the command on a tiny one."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="torch is not installed")

from tools.side_by_side import MIB, Figures, main, markdown, quality


def test_an_image_is_judged_by_the_range_of_the_first() -> None:
    """The largest error as a share of it, and the PSNR; of the same image there is none."""
    reference = np.array([[-1.0, 0.0], [0.5, 3.0]], np.float32)
    assert quality(reference, reference) == (0.0, None)
    other = reference + np.array([[0.0, 0.4], [0.0, 0.0]], np.float32)
    largest, psnr = quality(other, reference)
    assert largest == pytest.approx(0.1)
    assert psnr == pytest.approx(10 * np.log10(16 / 0.04))


def test_the_table() -> None:
    """A row a way; what differs nowhere has no PSNR."""
    rows = [
        Figures("PyTorch", 10 * MIB, 1050 * MIB, 1060 * MIB, 2.0, 1.0, 0.0, None),
        Figures("tiles", 10 * MIB, 518 * MIB, 528 * MIB, 2.8, 1.38, 0.28, 37.6),
    ]
    assert markdown(rows).splitlines()[2:] == [
        "| PyTorch | 10 | 1,050 | 1,060 | 2.00 | 1.00 | 0 | the same |",
        "| tiles | 10 | 518 | 528 | 2.80 | 1.38 | 2.8e-01 | 37.6 |",
    ]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it, and no traceback."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("tools.models.autoencoder.importlib.import_module", missing)
    done = CliRunner().invoke(main, ["--base", "8", "--latent", "8"])
    assert done.exit_code == 1
    assert "pip install diffusers" in done.output


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="pip install diffusers")
def test_five_ways_from_one_command(tmp_path: Path) -> None:
    """Ours computes PyTorch's image; the blended tiles another one."""
    file = tmp_path / "figures.json"
    command = ["--base", "16", "--latent", "16", "--runs", "1", "--json", str(file)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    eager, tiles, *onnx = json.loads(file.read_text())
    assert eager["psnr"] is None
    assert tiles["psnr"] < 50
    assert [row["way"] for row in onnx][-1] == "ours"
    for row in onnx:
        assert row["largest"] < 1e-4
        assert 0 < row["peak_bytes"] <= row["whole_bytes"]
